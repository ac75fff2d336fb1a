"""Task and State: what one step computes, apart from the loop that calls it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

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


@struct.dataclass
class State:
  """All that a run needs to go on, with the config and the seed.

  Attributes:
    step: [], int32: steps taken.
    params: what the optimiser trains: of the model, and under `losses` of the terms.
    model_state: the model's other variables, by collection: batch statistics, and
      the word vectors that the release freezes.
    opt_state: the optimiser's.
  """
  step: jax.Array
  params: Any
  model_state: Any
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class Term:
  """One contrast of the loss, of a pair of modalities.

  Attributes:
    objective: (anchors, others, present, temperature[, bias], anchored) -> [].
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


def contrast(terms: Mapping[str, Term], params: Mapping[str, Any],
             embed: Mapping[str, Mapping[str, jax.Array]], batch: Batch
             ) -> tuple[jax.Array, Metrics]:
  """The weighted sum of the terms (VATT, equation 6).

  Args:
    terms: pair -> term; a pair of which the batch lacks a modality is skipped.
    params: pair -> parameters of its term, where it has any.
    embed: space -> modality -> unit-norm embeddings (`models.multimodal`).
    batch: for `has_video`, `has_audio` and `text`, which say what is there.

  Returns:
    The loss, float32, and a metric for each term, under its pair's name.
  """
  total, metrics = jnp.zeros((), jnp.float32), {}
  present = multimodal.find_present(batch)
  for pair, term in terms.items():
    space, anchor, other = PAIRS[pair]
    if anchor not in embed[space] or other not in embed[space]:
      continue
    learnt = term.values(params.get(pair, {}))
    loss = term.objective(embed[space][anchor], embed[space][other], present[other],
                          anchored=present.get(anchor), **term.fixed, **learnt)
    metrics |= {f'loss_{pair}': loss, **{f'{k}_{pair}': v for k, v in learnt.items()}}
    total += term.weight * loss
  return total, metrics


@dataclasses.dataclass(frozen=True, eq=False)    # hashed by identity, for jit
class Task:
  """A model, its loss and its optimiser, as jitted functions of a state.

  All randomness of step s comes from (seed, s).
  """
  model: Any
  terms: Mapping[str, Term]
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  seed: int
  augment: augment.Augment = dataclasses.field(default_factory=augment.Augment)

  @functools.partial(jax.jit, static_argnums=0)
  def init(self, batch: Batch) -> State:
    """The state of step 0; of the batch only shapes matter."""
    model_state = dict(self.model.init(jax.random.key(self.seed),
                                       augment.normalize(batch)))
    params = dict(model_state.pop('params'))
    learnt = {pair: term.init() for pair, term in self.terms.items() if term.learnt}
    if learnt:
      params['losses'] = learnt
    return State(jnp.zeros((), jnp.int32), params, model_state,
                 self.optimizer.init(params))

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
  def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One step on a batch (`inputs.pipeline`); the old state is consumed."""
    key = jax.random.fold_in(jax.random.key(self.seed), state.step)
    drop_token, dropout, augmentation = jax.random.split(key, 3)
    inputs = self.augment(augmentation, batch)

    def loss_fn(params):
      outputs, updates = self.model.apply(
          variables(state.replace(params=params)), inputs, train=True,
          rngs=dict(drop_token=drop_token, dropout=dropout), mutable=['batch_stats'])
      loss, metrics = contrast(self.terms, params.get('losses', {}), outputs['embed'],
                               batch)
      stats = dict(updates['batch_stats'])
      stats['head'] = heads.keep_absent(
          stats['head'], state.model_state['batch_stats']['head'],
          multimodal.find_present(batch))
      return loss, (metrics, state.model_state | {'batch_stats': stats})

    (loss, (metrics, model_state)), grads = jax.value_and_grad(
        loss_fn, has_aux=True)(state.params)
    with jax.numpy_dtype_promotion('standard'):    # Adam raises a float to an integer
      updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
    metrics |= dict(loss=loss, learning_rate=self.schedule(state.step),
                    gradient_norm=optax.tree.norm(grads))
    params = _bounded(optax.apply_updates(state.params, updates))
    return State(state.step + 1, params, model_state, opt_state), metrics

  @functools.partial(jax.jit, static_argnums=0)
  def predict(self, state: State, batch: Batch) -> dict[str, Any]:
    """What the model returns for a batch, but for the tokens."""
    outputs = self.model.apply(variables(state), augment.normalize(batch))
    return {k: v for k, v in outputs.items() if k != 'tokens'}


def variables(state: State) -> dict[str, Any]:
  """What `model.apply` takes."""
  params = {k: v for k, v in state.params.items() if k != 'losses'}
  return {'params': params, **state.model_state}


def _bounded(params: Any) -> Any:
  """The parameters, learnt temperatures not below the least."""
  least = math.log(LEAST_TEMPERATURE)
  losses = {
      pair: {k: jnp.maximum(v, least) if k == 'temperature' else v
             for k, v in learnt.items()}
      for pair, learnt in params.get('losses', {}).items()}
  return params | ({'losses': losses} if losses else {})
