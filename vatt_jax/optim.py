"""Optimizers, learning-rate schedules, and rules for parts of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
import re
from typing import Any
from typing import NamedTuple

from absl import logging
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vatt_jax import config
from vatt_jax.errors import UserError

# Pattern of a parameter's name, and its multiplier of the learning rate.
Rule = tuple[str, float]


def quarter_cosine(peak_rate: float, final_rate: float, warmup_steps: int,
                   total_steps: int, start_rate: float = 0.0) -> optax.Schedule:
  """Returns linear warm-up, then a quarter cosine period (VATT, section 4.3).

  rate(s) = final + (peak - final) * cos(pi/2 * (s - warmup) / (total - warmup)).
  The rate leaves its peak slowly and reaches the final rate steeply.
  """
  num_decay = max(total_steps - warmup_steps, 1)
  decay = lambda step: final_rate + (peak_rate - final_rate) * jnp.cos(
      math.pi / 2 * jnp.clip(step / num_decay, 0, 1))
  return _warmed_up(decay, peak_rate, warmup_steps, start_rate)


def half_cosine(peak_rate: float, final_rate: float, warmup_steps: int,
                total_steps: int, start_rate: float = 0.0) -> optax.Schedule:
  """Returns linear warm-up, then half a cosine period, as in the release."""
  cosine = optax.cosine_decay_schedule(1.0, max(total_steps - warmup_steps, 1))
  decay = lambda step: final_rate + (peak_rate - final_rate) * cosine(step)
  return _warmed_up(decay, peak_rate, warmup_steps, start_rate)


def multi_step(peak_rate: float, final_rate: float, warmup_steps: int,
               total_steps: int, start_rate: float = 0.0,
               drop_steps: Sequence[int] = ()) -> optax.Schedule:
  """Returns linear warm-up, then a constant rate that drops at some steps.

  All drops are by the same factor, and the last one reaches the final rate.
  """
  count = len(drop_steps)
  if 0 < total_steps <= max(drop_steps, default=0):
    logging.warning('config.optim.drop_steps=%s: the run ends at step %d, so the rate '
                    'does not reach final_rate=%s', tuple(drop_steps), total_steps,
                    final_rate)
  if not count and final_rate != peak_rate:
    raise ValueError(f'drop_steps=(): expected the steps of the drops from peak_rate='
                     f'{peak_rate} to final_rate={final_rate}')
  rates = np.float32([peak_rate * (final_rate / peak_rate) ** (i / max(count, 1))
                      for i in range(count + 1)])
  places = np.array(drop_steps) - warmup_steps
  decay = lambda step: jnp.asarray(rates)[jnp.sum(step >= places)]
  return _warmed_up(decay, peak_rate, warmup_steps, start_rate)


def _warmed_up(decay: optax.Schedule, peak_rate: float, warmup_steps: int,
               start_rate: float) -> optax.Schedule:
  # Not optax's: its rounding error is that of the peak, and so 3e-4 of the first rate.
  warmup = lambda step: start_rate + (peak_rate - start_rate) * (
      step / max(warmup_steps, 1))
  return optax.join_schedules([warmup, decay], [warmup_steps])


def stretched(schedule: optax.Schedule, reached: int, old_total: int, new_total: int
              ) -> optax.Schedule:
  """Stretches the rest of a schedule over more steps.

  Up to the step `reached` the rates are unchanged. The rates of `reached` to
  `old_total` are spread, in the same order, over `reached` to `new_total`. After a
  finished run the rate stays at its final value.
  """
  share = (old_total - reached) / (new_total - reached)

  def rate(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    return schedule(
        jnp.where(step <= reached, step, reached + (step - reached) * share))
  return rate


DECAYS = {'quarter_cosine': quarter_cosine, 'half_cosine': half_cosine,
          'multi_step': multi_step}


class Optimizer(NamedTuple):
  """Holds the optimizer that `build` makes.

  Attributes:
    update: the transformation of gradients.
    schedule: its learning rate, for the log.
    frozen: parameters -> a tree of bool, True for those that the rules freeze; None if
      all are trained.
    clip: gradients of a replica -> clipped gradients, before those of all replicas are
      added; None if `update` clips the whole batch's, or nothing is clipped.
  """
  update: optax.GradientTransformation
  schedule: optax.Schedule
  frozen: Callable[[Any], Any] | None
  clip: Callable[[Any], Any] | None = None


def build(total_steps: int, peak_rate: float, final_rate: float, warmup_steps: int,
          name: str = 'adam', decay: str = 'quarter_cosine', clip_norm: float = 0.0,
          clip_replicas: int = 1, rules: Sequence[Rule] = (), layer_decay: float = 1.0,
          layer_of: Callable[[str], int] = lambda path: 0,
          extended: Sequence[tuple[int, int]] = (), start_rate: float = 0.0,
          drop_steps: Sequence[int] = (), **settings: Any) -> Optimizer:
  """Builds an optimizer, by default that of VATT's pre-training.

  Args:
    total_steps: of the run.
    peak_rate: learning rate after the warm-up.
    final_rate: learning rate at the end.
    warmup_steps: linear, from `start_rate`; half of the run if the run is shorter.
    name: a key of `OPTIMIZERS`.
    decay: 'quarter_cosine' (the paper's pre-training), 'half_cosine' (its other runs)
      or 'multi_step' (GDT's fine-tuning).
    clip_norm: the largest norm of the gradient of all parameters but the head's; a
      larger gradient is scaled down to it. 0 for no limit.
    clip_replicas: with 1 the limit is on the gradient of the whole batch. With more it
      is on the share of each of R replicas, before the shares are added, as in the
      release: the norm of their sum is up to R * clip_norm.
    rules: pairs of a pattern and a multiplier of the learning rate; 0 freezes. The
      first whose pattern fits the beginning of a parameter's name, such as
      `backbones_video/block_0/attention/query/kernel`, applies; one must fit.
    layer_decay: ratio of a layer's learning rate to that of the layer above it;
      tokenizers are below the first layer (BEiT, arXiv 2106.08254, appendix).
    layer_of: the model's (`models.multimodal.MultimodalModel.layer_of`).
    extended: for each time that the run was extended, the step that it had reached and
      its total until then (`stretched`).
    start_rate: learning rate at step 0, where the warm-up begins.
    drop_steps: for 'multi_step', the steps at which the learning rate drops.
    **settings: of the function in `OPTIMIZERS`.

  Raises:
    ValueError: an unknown name, a negative multiplier or norm, or an invalid pattern.
    UserError: from the optimizer's `init`: no rule fits a parameter.
  """
  _check(clip_norm, clip_replicas, layer_decay, rules)
  kind = functools.partial(config.choose(DECAYS, decay, 'decay'),
                           start_rate=start_rate)
  if drop_steps:
    if decay != 'multi_step':
      raise ValueError(f"drop_steps={drop_steps}: unused with decay={decay!r}; set "
                       "decay='multi_step'")
    kind = functools.partial(kind, drop_steps=tuple(drop_steps))
  schedule = _schedule(kind, peak_rate, final_rate, warmup_steps, total_steps, extended)
  update = config.build('optim', OPTIMIZERS, {**settings, 'name': name},
                        schedule=schedule)
  frozen = clip = None
  if clip_norm:
    whole = optax.masked(optax.clip_by_global_norm(clip_norm), _outside_head)
    if clip_replicas > 1:
      clip = lambda grads: whole.update(grads, whole.init(grads))[0]
    else:
      update = optax.chain(whole, update)
  if rules or layer_decay != 1:
    update, frozen = _scaled(update, functools.partial(
        learning_rate_multipliers, rules=rules, layer_decay=layer_decay,
        layer_of=layer_of))
  return Optimizer(update, schedule, frozen, clip)


def _schedule(decay, peak_rate, final_rate, warmup_steps, total_steps, extended):
  """Returns the schedule of a run that may have been extended."""
  first_total, *later_totals = *(old for _, old in extended), total_steps
  schedule = decay(peak_rate, final_rate,
                   _warmup_that_fits(warmup_steps, first_total), first_total)
  for (reached, old_total), new_total in zip(extended, later_totals, strict=True):
    schedule = stretched(schedule, reached, old_total, new_total)
  return schedule


def _scaled(update, multipliers):
  """Scales updates by parameter.

  Args:
    update: an optimizer.
    multipliers: parameters -> a tree of floats; 0 freezes.

  Returns:
    The optimizer, and a function from parameters to those that are frozen. Frozen ones
    have no optimizer state.
  """
  trained = lambda params: jax.tree.map(bool, multipliers(params))
  frozen = lambda params: jax.tree.map(lambda x: x == 0, multipliers(params))
  scale = lambda updates, params: jax.tree.map(
      jnp.multiply, updates, multipliers(params))
  return optax.chain(optax.masked(update, trained), optax.stateless(scale)), frozen


def _warmup_that_fits(warmup_steps: int, total_steps: int) -> int:
  if not 0 < total_steps < warmup_steps:
    return warmup_steps
  logging.warning('config.optim.warmup_steps=%d is longer than the run, config.'
                  'total_steps=%d: the warm-up takes %d steps instead', warmup_steps,
                  total_steps, total_steps // 2)
  return total_steps // 2


STATE_DTYPES = ('float32', 'bfloat16')


def adam(schedule: optax.Schedule, b1: float = 0.9, b2: float = 0.999,
         eps: float = 1e-7, state_dtype: str = 'float32'
         ) -> optax.GradientTransformation:
  """Returns Adam, with the release's epsilon.

  Only the first moment is kept in `state_dtype`. The second changes by a thousandth
  (1 - b2) a step. In bfloat16 such a change is rounded away.
  """
  return optax.adam(schedule, _factor(b1, state_dtype), b2, eps, mu_dtype=state_dtype)


def adamw(schedule: optax.Schedule, weight_decay: float, b1: float = 0.9,
          b2: float = 0.999, eps: float = 1e-8, state_dtype: str = 'float32'
          ) -> optax.GradientTransformation:
  """Returns Adam with decoupled weight decay (arXiv 1711.05101), as in PyTorch.

  All parameters decay. The moments do not contain the decay. Only the first moment is
  kept in `state_dtype`.
  """
  return optax.adamw(schedule, _factor(b1, state_dtype), b2, eps, mu_dtype=state_dtype,
                     weight_decay=weight_decay)


def sgd(schedule: optax.Schedule, momentum: float = 0.9, state_dtype: str = 'float32',
        weight_decay: float = 0.0) -> optax.GradientTransformation:
  """Returns gradient descent with (not Nesterov's) momentum: VATT's fine-tuning.

  The momentum is kept in `state_dtype`. As in PyTorch, `weight_decay` times every
  parameter, also of norms and biases, is added to the gradient before the momentum.
  """
  update = optax.sgd(schedule, _factor(momentum, state_dtype),
                     accumulator_dtype=state_dtype)
  if not weight_decay:
    return update
  return optax.chain(optax.add_decayed_weights(weight_decay), update)


def _factor(decay: float, state_dtype: str) -> float | np.float32:
  """Returns the factor by which a state of a type is multiplied.

  Raises:
    ValueError: the type is not one of `STATE_DTYPES`.
  """
  if state_dtype not in STATE_DTYPES:
    raise ValueError(f'state_dtype={state_dtype!r}: expected one of '
                     f'{", ".join(STATE_DTYPES)}')
  # A Python number would be rounded to bfloat16, such as 0.9 to 0.898.
  return decay if state_dtype == 'float32' else np.float32(decay)


OPTIMIZERS = {'adam': adam, 'adamw': adamw, 'sgd': sgd}


def learning_rate_multipliers(
    params: Mapping[str, Any], rules: Sequence[Rule], layer_decay: float = 1.0,
    layer_of: Callable[[str], int] = lambda path: 0) -> dict[str, Any]:
  """Returns each parameter's multiplier of the learning rate, as a tree of floats.

  Args:
    params: of a model, nested by name.
    rules: as for `build`.
    layer_decay: as for `build`.
    layer_of: as for `build`.

  Raises:
    UserError: rules are given, and none fits a parameter.
  """
  names = traverse_util.flatten_dict(dict(params), sep='/')
  shares = {name: _by_rule(name, rules) * layer_decay ** layer_of(name)
            for name in names}
  return traverse_util.unflatten_dict(shares, sep='/')


def _by_rule(name: str, rules: Sequence[Rule]) -> float:
  for pattern, share in rules:
    if re.match(pattern, name):
      return float(share)
  if rules:
    raise UserError(f'config.optim.rules: none fits the parameter {name}; add one, '
                    "such as ('.*', 1.0) at the end for all others")
  return 1.0


def _outside_head(params: Mapping[str, Any]) -> dict[str, Any]:
  return {k: jax.tree.map(lambda _, inside=k == 'head': not inside, v)
          for k, v in params.items()}


def _check(clip_norm: float, clip_replicas: int, layer_decay: float,
           rules: Sequence[Rule]) -> None:
  if clip_norm < 0 or not 0 < layer_decay <= 1:
    raise ValueError(f'clip_norm={clip_norm}, layer_decay={layer_decay}: expected 0 or '
                     'more, and more than 0 up to 1')
  if clip_replicas < 1:
    raise ValueError(f'clip_replicas={clip_replicas}: expected 1 or more')
  for rule in rules:
    if len(rule) != 2 or not isinstance(rule[0], str):
      raise ValueError(f'rules={rules}: expected pairs of a pattern and a share')
    if rule[1] < 0:
      raise ValueError(f'rules={rules}: expected shares of 0 or more')
    try:
      re.compile(rule[0])
    except re.error as e:
      raise ValueError(f'rules={rules}: {rule[0]!r} is not a pattern ({e})') from e
