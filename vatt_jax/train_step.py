"""Task and State: the computation of one step, without the loop that calls it."""

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

from vatt_jax import losses as losses_lib
from vatt_jax.distributed import sharding
from vatt_jax.inputs import augment
from vatt_jax.inputs import clip_keys
from vatt_jax.models import multimodal

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@struct.dataclass
class State:
  """Holds all that a run needs to resume, besides the config and the seed.

  Attributes:
    step: [], int32: number of steps taken.
    params: trained parameters of the model, and under `losses` of the losses.
    model_state: the model's other variables, by collection: batch statistics, and
      the word vectors that the release freezes.
    opt_state: state of the optimizer.
    average: moving average of the parameters, if the task keeps one.
    memory: of the losses, by section name (`Loss.init_memory`); None if none keeps one.
  """
  step: jax.Array
  params: Any
  model_state: Any
  opt_state: Any
  average: Any = None
  memory: Any = None


@dataclasses.dataclass(frozen=True, eq=False)    # hashed by identity, for jit
class Task:
  """Trains a model: joins model, losses and optimizer in jitted functions of a state.

  All randomness of step s comes from (seed, s), that of a clip from (seed, s, row).

  Attributes:
    model: a `models.multimodal.MultimodalModel`.
    losses: by section name; the step minimizes their weighted sum.
    optimizer: of the parameters.
    schedule: the optimizer's learning rate, for the log.
    seed: of all randomness.
    augment: augmentation of a batch on the device.
    frozen: parameters -> a tree of bool, True for those that are not trained.
    num_microbatches: number of microbatches that the backbones take one after the
      other, which needs less memory and a third more work. Losses and the head still
      see the whole batch, and each clip's draws stay the same. Only batch norm in a
      backbone is over a microbatch.
    average_decay: of the moving average of the parameters, which replaces them in
      evaluation; 0 for no average.
    clip: gradients -> clipped gradients (`optim.Optimizer.clip`). It is applied to the
      gradient of the whole loss through the rows of each microbatch, before these
      gradients are added. The head sees all rows at once, and its gradient is not
      clipped. `num_microbatches` must be the number of replicas. None clips nothing
      here.
    mesh: the mesh over which state and batch are split; None leaves them where they
      are.
    rules: sharding rules: which axis of the mesh splits which axis of parameters.
    num_clips: size of the dataset, for losses that keep a memory of it.
    rows_per_clip: adjacent rows of the batch that show one clip (`inputs.window`); a
      microbatch has all of them and of their copies (`inputs.augment`), or none.
  """
  model: Any
  losses: Mapping[str, losses_lib.Loss]
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  seed: int
  augment: augment.Augment = dataclasses.field(default_factory=augment.Augment)
  frozen: Callable[[Any], Any] | None = None
  num_microbatches: int = 1
  average_decay: float = 0.0
  clip: Callable[[Any], Any] | None = None
  mesh: Mesh | None = None
  rules: Sequence[sharding.Rule] = sharding.RULES
  num_clips: int = 0
  rows_per_clip: int = 1

  @functools.partial(jax.jit, static_argnums=0)
  def init(self, batch: Batch) -> State:
    """Initializes the state on its devices; only the shapes of the batch matter."""
    model_state = dict(self.model.init(jax.random.key(self.seed),
                                       augment.normalize(batch)))
    params = dict(model_state.pop('params'))
    key = jax.random.fold_in(jax.random.key(self.seed), 1)
    loss_params = {name: loss.init(jax.random.fold_in(key, number))
                   for number, (name, loss) in enumerate(self.losses.items())}
    if any(loss_params.values()):
      params['losses'] = {name: p for name, p in loss_params.items() if p}
    return self._placed(State(
        jnp.zeros((), jnp.int32), params, model_state, self.optimizer.init(params),
        params if self.average_decay else None,
        losses_lib.init_memory(self.losses, self.num_clips)))

  def trace_outputs(self, batch: Batch) -> Any:
    """Returns the shapes of the model's outputs in training, computing nothing."""
    def apply(batch):
      key, inputs = jax.random.key(0), augment.normalize(self._with_keys(batch, 0))
      keys = dict(params=key, drop_token=key, dropout=key)
      return self.model.init_with_output(keys, inputs, train=True)[0]

    return jax.eval_shape(apply, batch)

  def trace_loss(self, name: str, outputs: Any, batch: Batch) -> None:
    """Traces one of the losses, computing nothing.

    Args:
      name: the section of the loss.
      outputs: of `trace_outputs`.
      batch: as for `trace_outputs`.

    Raises:
      losses.MissingOutput: the loss needs an array that the model or batch lacks.
    """
    loss = self.losses[name]

    def apply(outputs, batch):
      inputs = augment.normalize(self._with_keys(batch, 0))
      return loss(loss.init(jax.random.key(0)), outputs, inputs,
                  loss.init_memory(self.num_clips))[0]

    jax.eval_shape(apply, outputs, batch)

  def shardings(self, state: State) -> State:
    """Returns the sharding on the mesh of each array of a state, or of its shapes.

    Parameters are split by the rules, and so are arrays of the same structure: the
    optimizer's moments, and the average. Memory of all clips is split by rows.
    """
    def place(x):
      split = x.ndim and len(x) == self.num_clips and not len(x) % math.prod(
          self.mesh.shape[axis] for axis in ('data', 'fsdp'))
      return (sharding.rows if split else sharding.replicated)(self.mesh)

    return sharding.of_parameters(
        state.replace(memory=None), self.mesh, self.rules).replace(
            memory=jax.tree.map(place, state.memory))

  def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
    """Opens a context in which the model uses the mesh (`logical_axes.split_rows`)."""
    if self.mesh is None:
      return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

  def _placed(self, state: State) -> State:
    if self.mesh is None:
      return state
    return jax.lax.with_sharding_constraint(state, self.shardings(state))

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
  def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
    """Takes a step on a batch (`inputs.batches`); the old state is donated."""
    # For draws that are made once a step: the partners of mixup, the release's
    # DropToken, and dropout, which combines the key with each clip's number.
    key = jax.random.fold_in(jax.random.key(self.seed), state.step)
    pair_key, model_key = jax.random.split(key)
    batch = self.augment.pair(pair_key, self._with_keys(batch, state.step))
    gradients = (self._gradients if self.num_microbatches == 1 else
                 self._gradients_by_microbatch)
    grads, metrics, model_state, memory = gradients(state, model_key, batch)
    with jax.numpy_dtype_promotion('standard'):    # Adam raises a float to an int
      updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
    metrics |= dict(learning_rate=self.schedule(state.step),
                    gradient_norm=optax.tree.norm(grads))
    params = self._clip(optax.apply_updates(state.params, updates))
    average = state.average
    if self.average_decay:
      average = optax.incremental_update(params, average, 1 - self.average_decay)
    if self.mesh is not None:
      metrics = jax.lax.with_sharding_constraint(
          metrics, sharding.replicated(self.mesh))
    return self._placed(State(
        state.step + 1, params, model_state, opt_state, average, memory)), metrics

  def _with_keys(self, batch: Batch, step: jax.typing.ArrayLike) -> dict[str, Any]:
    """Returns the copies of a batch's rows (`Augment.copies`), each with its key."""
    batch = self.augment.copy(batch)
    num_rows = len(jax.tree.leaves(batch)[0])
    return dict(batch, key=clip_keys.make(self.seed, step, num_rows))

  @property
  def _copies_per_clip(self) -> int:
    """Returns the number of adjacent rows of a clip, with all copies."""
    return self.rows_per_clip * len(self.augment.copies)

  def _clip(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters, with those of the losses within their bounds."""
    if 'losses' not in params:
      return params
    return params | {'losses': {name: self.losses[name].clip_params(loss_params)
                                for name, loss_params in params['losses'].items()}}

  def _gradients(self, state: State, key: jax.Array, batch: Batch
                 ) -> tuple[Any, Metrics, Any, Any]:
    """Returns gradients, metrics, the model's other variables, and the memory."""
    inputs = self.augment(batch)

    def loss_fn(params):
      outputs, model_state = self._apply(state, params, inputs, key=key)
      return self._loss(state, params, outputs, model_state, inputs)

    (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return grads, *aux

  def _gradients_by_microbatch(self, state: State, key: jax.Array, batch: Batch
                               ) -> tuple[Any, Metrics, Any, Any]:
    """Computes `_gradients` by GradCache (arXiv 2101.06983, section 3).

    First it computes the features of one microbatch after the other, and keeps nothing
    else. Then it computes head and losses of the whole batch, and the gradient with
    respect to the features. Last it runs the backbones of each microbatch once more, to
    propagate its share of that gradient. With `clip`, a microbatch stands for a replica
    of the released code.
    """
    def encode(params, index):
      inputs = self.augment(self._take_rows(batch, index))
      encoded, model_state = self._apply(state, params, inputs, key=key,
                                         method='encode')
      stats = {k: v for k, v in model_state.items() if k == 'batch_stats'}
      is_present = {m: jnp.any(x) for m, x in multimodal.find_present(inputs).items()}
      rest = {k: v for k, v in inputs.items() if k not in ('video', 'audio')}
      return encoded['pooled'], (rest, stats, is_present)

    def loss_fn(params, pooled):
      outputs, model_state = self._apply(encoded_state, params, pooled, inputs, key=key,
                                         method='apply_head')
      return self._loss(state, params, outputs | dict(pooled=pooled), model_state,
                        inputs)

    def add(grads, index):
      _, pull_back, _ = jax.vjp(lambda p: encode(p, index), state.params, has_aux=True)
      (more,) = pull_back(self._take_rows(by_pooled, index))
      if self.clip is not None:
        more = self.clip(more)
      return jax.tree.map(jnp.add, grads, more), None

    each = jnp.arange(self.num_microbatches)
    pooled, (inputs, stats, is_present) = jax.lax.map(
        lambda i: encode(state.params, i), each)
    pooled, inputs = sharding.join_rows((pooled, inputs), self._copies_per_clip)
    encoded_state = state.replace(
        model_state=state.model_state | _mean_stats(stats, is_present))
    (_, aux), (grads, by_pooled) = jax.value_and_grad(
        loss_fn, argnums=(0, 1), has_aux=True)(state.params, pooled)
    grads, _ = jax.lax.scan(add, grads, each)
    return grads, *aux

  def _take_rows(self, tree: Any, index: jax.typing.ArrayLike) -> Any:
    """Returns the rows of a microbatch of every array."""
    return sharding.take_rows(tree, index, self.num_microbatches,
                              self._copies_per_clip)

  def _apply(self, state: State, params: Any, *args: Any, key: jax.Array,
             **kwargs: Any) -> tuple[Any, Any]:
    """Applies the model in training.

    Returns:
      The outputs, and the model's other variables with new batch statistics.
    """
    if self.frozen is not None:    # computes no gradient for frozen parameters
      params = jax.tree.map(lambda x, f: jax.lax.stop_gradient(x) if f else x,
                            params, self.frozen(params))
    with self._on_mesh():
      outputs, updates = self.model.apply(
          variables(state.replace(params=params)), *args, train=True,
          mutable=['batch_stats'], rngs=dict(drop_token=key, dropout=key), **kwargs)
    return outputs, state.model_state | updates

  def _loss(self, state: State, params: Any, outputs: Mapping[str, Any],
            model_state: Any, inputs: Batch
            ) -> tuple[jax.Array, tuple[Metrics, Any, Any]]:
    """Returns the loss, and its metrics, the model's other variables and the memory."""
    loss, metrics, memory = losses_lib.total_loss(
        self.losses, params.get('losses', {}), outputs, inputs, state.memory)
    model_state = multimodal.keep_absent(model_state, state.model_state,
                                         multimodal.find_present(inputs))
    return loss, (metrics | dict(loss=loss), model_state, memory)

  @functools.partial(jax.jit, static_argnums=0)
  def predict(self, state: State, batch: Batch) -> dict[str, Any]:
    """Returns the model's outputs without tokens and grids, sharded like the batch."""
    with self._on_mesh():
      outputs = self.model.apply(evaluated(state), augment.normalize(batch))
    outputs = {k: v for k, v in outputs.items() if k not in ('tokens', 'grid')}
    if self.mesh is None:
      return outputs
    return jax.lax.with_sharding_constraint(outputs, sharding.rows(self.mesh))


def variables(state: State) -> dict[str, Any]:
  """Returns the variables for `model.apply`."""
  params = {k: v for k, v in state.params.items() if k != 'losses'}
  return {'params': params, **state.model_state}


def start_from(initial: dict[str, Any], state: State) -> State:
  """Returns a state with a checkpoint's weights.

  Args:
    initial: the checkpoint's variables; arrays that are shapes only keep their random
      values.
    state: a randomly initialized state.
  """
  def choose(loaded, random):
    if isinstance(loaded, jax.ShapeDtypeStruct):
      return random
    return jax.device_put(loaded, random.sharding)

  chosen = jax.tree.map(choose, initial, variables(state))
  params = state.params | chosen.pop('params')
  # The average is a copy, because the train step donates the buffers of both.
  average = None if state.average is None else jax.tree.map(jnp.copy, params)
  return state.replace(params=params, model_state=chosen, average=average)


def evaluated(state: State) -> dict[str, Any]:
  """Returns the variables for evaluation, with averaged parameters if there are any."""
  average = state.params if state.average is None else state.average
  return variables(state.replace(params=average))


def _mean_stats(model_state: Any, is_present: Mapping[str, jax.Array]) -> Any:
  """Averages updated variables over the microbatches that have their modality.

  Args:
    model_state: the model's other variables after each microbatch, [n, ...].
    is_present: modality -> bool [n], whether the microbatch has it.
  """
  def mean(path, x):
    weights = is_present.get(multimodal.modality_of(path))
    if weights is None or not jnp.issubdtype(x.dtype, jnp.floating):
      return jnp.mean(x, axis=0, dtype=x.dtype)
    weights = weights.astype(x.dtype)
    return jnp.tensordot(weights, x, 1) / jnp.maximum(jnp.sum(weights), 1)
  return jax.tree_util.tree_map_with_path(mean, model_state)
