"""Optimisers and their learning-rate schedules."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
import optax

from vatt_jax.settings import choose


def quarter_cosine(peak_rate: float, final_rate: float, warmup_steps: int,
                   total_steps: int) -> optax.Schedule:
  """Linear warm-up from 0, then a quarter period of a cosine (VATT, section 4.3).

  rate(s) = final + (peak - final) * cos(pi/2 * (s - warmup) / (total - warmup)):
  it leaves the peak slowly and arrives at the final rate steeply.
  """
  decay = lambda progress: jnp.cos(math.pi / 2 * progress)
  return _warmed_up(decay, peak_rate, final_rate, warmup_steps, total_steps)


def half_cosine(peak_rate: float, final_rate: float, warmup_steps: int,
                total_steps: int) -> optax.Schedule:
  """Linear warm-up from 0, then half a period of a cosine, as in the release.

  rate(s) = final + (peak - final) * (1 + cos(pi * (s - warmup) / (total - warmup))) / 2
  """
  decay = lambda progress: (1 + jnp.cos(math.pi * progress)) / 2
  return _warmed_up(decay, peak_rate, final_rate, warmup_steps, total_steps)


def _warmed_up(decay: Callable[[jax.Array], jax.Array], peak_rate: float,
               final_rate: float, warmup_steps: int, total_steps: int
               ) -> optax.Schedule:
  """A linear warm-up; then `decay` of the progress, from 0 to 1, falls from 1 to 0."""
  def rate(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    warmup = jnp.minimum(step / max(warmup_steps, 1), 1.0)
    return jnp.where(step < warmup_steps, peak_rate * warmup, final_rate
                     + (peak_rate - final_rate) * decay(jnp.clip(progress, 0, 1)))
  return rate


_DECAYS = {'quarter_cosine': quarter_cosine, 'half_cosine': half_cosine}


def adam(total_steps: int, peak_rate: float, final_rate: float, warmup_steps: int,
         decay: str = 'quarter_cosine', b1: float = 0.9, b2: float = 0.999,
         eps: float = 1e-7) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """VATT's pre-training optimiser, and its schedule for the log.

  Args:
    total_steps: of the run.
    peak_rate: after the warm-up.
    final_rate: at the end.
    warmup_steps: linear, from 0.
    decay: 'quarter_cosine' (the paper) or 'half_cosine' (the release).
    b1: Adam's.
    b2: Adam's.
    eps: Adam's.

  Raises:
    ValueError: the warm-up is longer than the run, or the decay has another name.
  """
  if 0 < total_steps < warmup_steps:
    raise ValueError(f'warmup_steps={warmup_steps}: longer than the run, '
                     f'total_steps={total_steps}')
  schedule = choose(_DECAYS, decay, 'decay')(peak_rate, final_rate, warmup_steps,
                                             total_steps)
  return optax.adam(schedule, b1, b2, eps), schedule
