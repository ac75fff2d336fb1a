"""Optimisers and their learning-rate schedules."""

import math

import jax
import jax.numpy as jnp
import optax


def quarter_cosine(peak_rate: float, final_rate: float, warmup_steps: int,
                   total_steps: int) -> optax.Schedule:
  """Linear warm-up from 0, then a quarter period of a cosine (VATT, section 4.3).

  rate(s) = final + (peak - final) * cos(pi/2 * (s - warmup) / (total - warmup)):
  it leaves the peak slowly and arrives at the final rate steeply.
  """
  def rate(step: jax.Array) -> jax.Array:
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    decay = jnp.cos(math.pi / 2 * jnp.clip(progress, 0, 1))
    warmup = jnp.minimum(step / max(warmup_steps, 1), 1.0)
    return jnp.where(step < warmup_steps, peak_rate * warmup,
                     final_rate + (peak_rate - final_rate) * decay)
  return rate


def adam(total_steps: int, peak_rate: float, final_rate: float, warmup_steps: int,
         b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
         ) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """VATT's pre-training optimiser, and its schedule for the log.

  Raises:
    ValueError: the warm-up is longer than the run.
  """
  if warmup_steps > total_steps:
    raise ValueError(f'warmup_steps={warmup_steps}: longer than the run, '
                     f'total_steps={total_steps}')
  schedule = quarter_cosine(peak_rate, final_rate, warmup_steps, total_steps)
  return optax.adam(schedule, b1, b2, eps), schedule
