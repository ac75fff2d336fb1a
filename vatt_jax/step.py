"""Task and State: what one step computes, apart from the loop that calls it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from vatt_jax import parts
from vatt_jax import sharding
from vatt_jax.inputs import augment
from vatt_jax.models import heads
from vatt_jax.models import multimodal

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


# What each pair contrasts: the space, the modality of the anchors, the other one.
PAIRS = {'video_audio': ('video_audio', 'video', 'audio'),
         'video_text': ('video_text', 'video', 'text'),
         'audio_text': ('video_text', 'audio', 'text')}

# A learnt temperature is kept from falling below it, as in CLIP (arXiv 2103.00020,
# section 2.5).
LEAST_TEMPERATURE = 0.01

# The term that is no contrast: of class scores and the labels of clips.
LABEL = 'label'


@struct.dataclass
class State:
  """All that a run needs to go on, with the config and the seed.

  Attributes:
    step: [], int32: steps taken.
    params: what the optimiser trains: of the model, and under `losses` of the terms.
    model_state: the model's other variables, by collection: batch statistics, and
      the word vectors that the release freezes.
    opt_state: the optimiser's.
    average: of the parameters over the steps, if the task takes one.
  """
  step: jax.Array
  params: Any
  model_state: Any
  opt_state: Any
  average: Any = None


@dataclasses.dataclass(frozen=True)
class Term:
  """One term of the loss: the contrast of a pair of modalities, or of the labels.

  Attributes:
    objective: its arrays (`operands`) and arguments, by name -> [].
    weight: in the sum of all terms.
    fixed: arguments of the objective.
    learnt: arguments of the objective that are trained, and where they start.
  """
  objective: Callable[..., jax.Array]
  weight: float = 1.0
  fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)
  learnt: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def init(self) -> dict[str, jax.Array]:
    """The parameters: of a temperature the logarithm."""
    return {k: jnp.asarray(math.log(v) if k == 'temperature' else v, jnp.float32)
            for k, v in self.learnt.items()}

  def values(self, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The arguments that the parameters stand for."""
    return {k: jnp.exp(v) if k == 'temperature' else v for k, v in params.items()}


def total_loss(terms: Mapping[str, Term], params: Mapping[str, Any],
               outputs: Mapping[str, Any], batch: Batch) -> tuple[jax.Array, Metrics]:
  """The weighted sum of the terms (VATT, equation 6).

  Args:
    terms: pair, or 'label' -> term; a pair of which the batch lacks a modality is
      skipped.
    params: the same -> parameters of its term, where it has any.
    outputs: of the model (`models.multimodal`).
    batch: for `has_video`, `has_audio` and `text`, which say what is there, and for
      `label`.

  Returns:
    The loss, float32, and a metric for each term, under its name.
  """
  total, metrics = jnp.zeros((), jnp.float32), {}
  for name, term in terms.items():
    arrays = operands(name, outputs, batch)
    if arrays is None:
      continue
    learnt = term.values(params.get(name, {}))
    loss = term.objective(**arrays, **term.fixed, **learnt)
    metrics |= {f'loss_{name}': loss, **{f'{k}_{name}': v for k, v in learnt.items()}}
    total += term.weight * loss
  return total, metrics


def operands(name: str, outputs: Mapping[str, Any], batch: Batch
             ) -> dict[str, jax.Array | None] | None:
  """The arrays that the objective of a term takes; None if the batch lacks some."""
  present = multimodal.find_present(batch)
  if name == LABEL:
    (modality,) = outputs['pooled']
    return dict(logits=outputs['logits'], labels=batch['label'],
                present=present[modality])
  space, anchor, other = PAIRS[name]
  embed = outputs['embed'][space]
  if anchor not in embed or other not in embed:
    return None
  return dict(anchors=embed[anchor], others=embed[other], present=present[other],
              anchored=present.get(anchor))


@dataclasses.dataclass(frozen=True, eq=False)    # hashed by identity, for jit
class Task:
  """A model, its loss and its optimiser, as jitted functions of a state.

  All randomness of step s comes from (seed, s).

  Attributes:
    model: `models.multimodal.Vatt`.
    terms: of the loss (`total_loss`).
    optimizer: of the parameters.
    schedule: its learning rate, for the log.
    seed: of all randomness.
    augment: what the device changes of a batch.
    frozen: parameters -> a tree of bool, True for those that are not trained.
    num_parts: that the Transformers take a batch in, one after the other: less
      memory, and a third more work. The step is that of the whole batch, its contrast
      and statistics too; only dropout in the Transformers draws otherwise.
    average_decay: of the moving average of the parameters, which is evaluated in
      their place; 0 takes none.
    clip: gradients -> clipped ones (`optim.Optimizer.clip`), of the gradient of the
      whole loss through the rows of each part, before the parts' are added; the head
      sees all rows at once, and its gradient is not clipped. Needs `num_parts`, the
      number of replicas. None clips nothing here.
    mesh: over which state and batch are split; None leaves them where they are.
    rules: what of the state is split over which axis of it.
  """
  model: Any
  terms: Mapping[str, Term]
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  seed: int
  augment: augment.Augment = dataclasses.field(default_factory=augment.Augment)
  frozen: Callable[[Any], Any] | None = None
  num_parts: int = 1
  average_decay: float = 0.0
  clip: Callable[[Any], Any] | None = None
  mesh: Mesh | None = None
  rules: Sequence[sharding.Rule] = sharding.RULES

  @functools.partial(jax.jit, static_argnums=0)
  def init(self, batch: Batch) -> State:
    """The state of step 0, made where it will live; of the batch only shapes matter."""
    model_state = dict(self.model.init(jax.random.key(self.seed),
                                       augment.normalize(batch)))
    params = dict(model_state.pop('params'))
    learnt = {pair: term.init() for pair, term in self.terms.items() if term.learnt}
    if learnt:
      params['losses'] = learnt
    return self._placed(State(
        jnp.zeros((), jnp.int32), params, model_state, self.optimizer.init(params),
        params if self.average_decay else None))

  def shardings(self, state: State) -> State:
    """Where each array of a state, or of its shapes, lives on the mesh.

    Parameters by the rules, and as they do what mirrors them: the optimiser's moments,
    and the average.
    """
    return sharding.of_parameters(state, self.mesh, self.rules)

  def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
    """Within it the model knows of the mesh (`models.axes.split_rows`)."""
    if self.mesh is None:
      return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

  def _placed(self, state: State) -> State:
    if self.mesh is None:
      return state
    return jax.lax.with_sharding_constraint(state, self.shardings(state))

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
  def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One step on a batch (`inputs.pipeline`); the old state is consumed."""
    key = jax.random.fold_in(jax.random.key(self.seed), state.step)
    gradients = self._gradients if self.num_parts == 1 else self._gradients_by_parts
    grads, metrics, model_state = gradients(state, key, batch)
    with jax.numpy_dtype_promotion('standard'):    # Adam raises a float to an integer
      updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
    metrics |= dict(learning_rate=self.schedule(state.step),
                    gradient_norm=optax.tree.norm(grads))
    params = _bounded(optax.apply_updates(state.params, updates))
    average = state.average
    if self.average_decay:
      average = optax.incremental_update(params, average, 1 - self.average_decay)
    if self.mesh is not None:
      metrics = jax.lax.with_sharding_constraint(
          metrics, sharding.replicated(self.mesh))
    return self._placed(
        State(state.step + 1, params, model_state, opt_state, average)), metrics

  def _gradients(self, state: State, key: jax.Array, batch: Batch
                 ) -> tuple[Any, Metrics, Any]:
    """Of the loss by the parameters; its metrics; the model's new other variables."""
    drop_token, dropout, augmentation = jax.random.split(key, 3)
    inputs = self.augment(augmentation, batch)

    def loss_fn(params):
      outputs, updates = self._apply(
          state, params, inputs, rngs=dict(drop_token=drop_token, dropout=dropout))
      return self._loss(state, params, outputs, updates, inputs)

    (_, (metrics, model_state)), grads = jax.value_and_grad(
        loss_fn, has_aux=True)(state.params)
    return grads, metrics, model_state

  def _gradients_by_parts(self, state: State, key: jax.Array, batch: Batch
                          ) -> tuple[Any, Metrics, Any]:
    """As `_gradients`, by GradCache (arXiv 2101.06983, section 3).

    First the features of one part after the other, of which nothing else is kept; then
    head and loss of the whole batch, and the gradient by the features; then the
    Transformers of each part once more, to carry its share of that gradient down.
    With `clip`, a part is what a replica of the released code is.
    """
    drop_token, dropout, augmentation = jax.random.split(key, 3)

    def encode(params, index):
      part = parts.Part(index, self.num_parts)
      inputs = self.augment(augmentation, batch, part)
      rngs = dict(drop_token=drop_token, dropout=jax.random.fold_in(dropout, index))
      (_, pooled), _ = self._apply(state, params, inputs, part=part, rngs=rngs,
                                   method='encode')
      return pooled, {k: v for k, v in inputs.items() if k not in ('video', 'audio')}

    def loss_fn(params, pooled):
      outputs, updates = self._apply(state, params, pooled, inputs,
                                     rngs=dict(dropout=dropout), method='conclude')
      return self._loss(state, params, outputs | dict(pooled=pooled), updates, inputs)

    def add(grads, index):
      _, pull_back, _ = jax.vjp(lambda p: encode(p, index), state.params, has_aux=True)
      (more,) = pull_back(parts.Part(index, self.num_parts).take(by_pooled))
      if self.clip is not None:
        more = self.clip(more)
      return jax.tree.map(jnp.add, grads, more), None

    each = jnp.arange(self.num_parts)
    pooled, inputs = parts.join(jax.lax.map(lambda i: encode(state.params, i), each))
    (_, (metrics, model_state)), (grads, by_pooled) = jax.value_and_grad(
        loss_fn, argnums=(0, 1), has_aux=True)(state.params, pooled)
    grads, _ = jax.lax.scan(add, grads, each)
    return grads, metrics, model_state

  def _apply(self, state: State, params: Any, *args: Any, **kwargs: Any
             ) -> tuple[Any, Mapping[str, Any]]:
    """The model in training: what it returns, and its new batch statistics."""
    if self.frozen is not None:    # so that no gradient is computed for them
      params = jax.tree.map(lambda x, f: jax.lax.stop_gradient(x) if f else x,
                            params, self.frozen(params))
    with self._on_mesh():
      return self.model.apply(variables(state.replace(params=params)), *args,
                              train=True, mutable=['batch_stats'], **kwargs)

  def _loss(self, state: State, params: Any, outputs: Mapping[str, Any],
            updates: Mapping[str, Any], inputs: Batch
            ) -> tuple[jax.Array, tuple[Metrics, Any]]:
    """The loss; its metrics, and the model's new other variables."""
    loss, metrics = total_loss(self.terms, params.get('losses', {}), outputs, inputs)
    return loss, (metrics | dict(loss=loss),
                  _with_stats(state.model_state, updates, inputs))

  @functools.partial(jax.jit, static_argnums=0)
  def predict(self, state: State, batch: Batch) -> dict[str, Any]:
    """What the model returns for a batch but for the tokens, split by rows as it is."""
    with self._on_mesh():
      outputs = self.model.apply(evaluated(state), augment.normalize(batch))
    outputs = {k: v for k, v in outputs.items() if k != 'tokens'}
    if self.mesh is None:
      return outputs
    return jax.lax.with_sharding_constraint(outputs, sharding.rows(self.mesh))


def variables(state: State) -> dict[str, Any]:
  """What `model.apply` takes."""
  params = {k: v for k, v in state.params.items() if k != 'losses'}
  return {'params': params, **state.model_state}


def evaluated(state: State) -> dict[str, Any]:
  """The same for evaluation: the averaged parameters, where there are such."""
  average = state.params if state.average is None else state.average
  return variables(state.replace(params=average))


def _with_stats(model_state: Any, updates: Mapping[str, Any], batch: Batch) -> Any:
  """The model's other variables after a step; a classifier has no statistics."""
  if 'batch_stats' not in updates:
    return model_state
  stats = dict(updates['batch_stats'])
  stats['head'] = heads.keep_absent(
      stats['head'], model_state['batch_stats']['head'],
      multimodal.find_present(batch))
  return model_state | {'batch_stats': stats}


def _bounded(params: Any) -> Any:
  """The parameters, learnt temperatures not below the least."""
  least = math.log(LEAST_TEMPERATURE)
  losses = {
      pair: {k: jnp.maximum(v, least) if k == 'temperature' else v
             for k, v in learnt.items()}
      for pair, learnt in params.get('losses', {}).items()}
  return params | ({'losses': losses} if losses else {})
