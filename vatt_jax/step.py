"""Task and State: what one step computes, apart from the loop that calls it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
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


@struct.dataclass
class State:
  """All that a run needs to go on, with the config and the seed."""
  step: jax.Array            # [], int32: steps taken
  params: Any
  batch_stats: Any
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class Term:
  """One contrast of the loss, between the two modalities of a space."""
  objective: Callable[..., jax.Array]    # (anchors, others, present) -> []
  weight: float = 1.0


def contrast(terms: Mapping[str, Term], embed: Mapping[str, Mapping[str, jax.Array]],
             batch: Batch) -> tuple[jax.Array, Metrics]:
  """The weighted sum of the terms.

  Args:
    terms: space -> term. A space contrasts video with the other modality in it;
      one whose modality the batch lacks is skipped.
    embed: space -> modality -> unit-norm embeddings (`models.multimodal`).
    batch: for `has_audio` and `text`, which say what is there.

  Returns:
    The loss and a metric for each term, under its space's name.
  """
  total, metrics = jnp.zeros((), jnp.float32), {}
  present = multimodal.find_present(batch)
  for space, term in terms.items():
    other = {'video_audio': 'audio', 'video_text': 'text'}[space]
    if other not in embed[space]:
      continue
    loss = term.objective(embed[space]['video'], embed[space][other], present[other])
    metrics[f'loss_{space}'] = loss
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

  @functools.partial(jax.jit, static_argnums=0)
  def init(self, batch: Batch) -> State:
    """The state of step 0; of the batch only shapes matter."""
    variables = self.model.init(jax.random.key(self.seed), augment.normalize(batch))
    params = variables['params']
    return State(jnp.zeros((), jnp.int32), params, variables['batch_stats'],
                 self.optimizer.init(params))

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
  def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One step on a batch (`inputs.pipeline`); the old state is consumed."""
    key = jax.random.fold_in(jax.random.key(self.seed), state.step)

    def loss_fn(params):
      outputs, updates = self.model.apply(
          {'params': params, 'batch_stats': state.batch_stats},
          augment.normalize(batch), train=True, rngs={'drop_token': key},
          mutable=['batch_stats'])
      loss, metrics = contrast(self.terms, outputs['embed'], batch)
      stats = dict(updates['batch_stats'])
      stats['head'] = heads.keep_absent(stats['head'], state.batch_stats['head'],
                                        multimodal.find_present(batch))
      return loss, (metrics, stats)

    (loss, (metrics, batch_stats)), grads = jax.value_and_grad(
        loss_fn, has_aux=True)(state.params)
    updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
    metrics |= dict(loss=loss, learning_rate=self.schedule(state.step),
                    gradient_norm=optax.tree.norm(grads))
    return State(state.step + 1, optax.apply_updates(state.params, updates),
                 batch_stats, opt_state), metrics

  @functools.partial(jax.jit, static_argnums=0)
  def predict(self, state: State, batch: Batch) -> dict[str, Any]:
    """`pooled` and `embed` of a batch, as the model returns them."""
    outputs = self.model.apply(
        {'params': state.params, 'batch_stats': state.batch_stats},
        augment.normalize(batch))
    return {k: outputs[k] for k in ('pooled', 'embed')}
