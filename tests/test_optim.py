"""vatt_jax/optim.py"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax import optim
from vatt_jax.errors import UserError
from vatt_jax.models.vatt import Vatt


def test_quarter_cosine_matches_the_paper():
  """Section 4.3: 10k steps up to 1e-4, then a quarter period down to 5e-5 at 500k."""
  rate = optim.quarter_cosine(1e-4, 5e-5, 10_000, 500_000)
  np.testing.assert_allclose(
      [rate(s) for s in (0, 5_000, 10_000, 500_000, 600_000)],
      [0, 5e-5, 1e-4, 5e-5, 5e-5], rtol=1e-5)
  np.testing.assert_allclose(rate(255_000), 5e-5 * (1 + np.cos(np.pi / 4)), rtol=1e-5)
  # A quarter period falls slowly at first and steeply at the end.
  assert rate(10_000) - rate(20_000) < 0.1 * (rate(490_000) - rate(500_000))


def test_adam_matches_its_algorithm():
  """Two steps equal Kingma and Ba's algorithm 1."""
  adam, schedule = optim.build(10, 1e-2, 1e-3, 2, eps=1e-7)[:2]
  p = jnp.array([1.0, -2.0])
  grads = [jnp.array([0.5, -1.0]), jnp.array([0.1, 3.0])]
  state = adam.init(p)
  m = v = 0
  for t, g in enumerate(grads, 1):
    update, state = adam.update(g, state, p)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    expected = -schedule(t - 1) * (m / (1 - 0.9**t)) / (
        np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    np.testing.assert_allclose(update, expected, rtol=1e-4)


def test_warmup_longer_than_the_run_shrinks_with_a_warning(caplog):
  rate = optim.build(10, 1e-4, 5e-5, 11).schedule
  np.testing.assert_allclose([rate(s) for s in (0, 4, 5, 10)], [0, 8e-5, 1e-4, 5e-5],
                             rtol=1e-5)
  assert caplog.messages == [
      'config.optim.warmup_steps=11 is longer than the run, config.total_steps=10: the '
      'warm-up takes 5 steps instead']
  optim.build(11, 1e-4, 5e-5, 11)
  optim.build(0, 1e-4, 5e-5, 11)    # nothing is trained
  assert len(caplog.messages) == 1


def test_staircase_drops_three_times_to_the_final_rate():
  rate = optim.staircase(1e-2, 1e-5, 10, 110)
  steps = [0, 5, 10, 39, 40, 69, 70, 99, 100, 200]
  np.testing.assert_allclose(
      [rate(s) for s in steps],
      [0, 5e-3, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-5)


@pytest.mark.parametrize('decay', ['quarter_cosine', 'half_cosine'])
def test_extended_schedule_stretches_its_rest(decay):
  """It is unchanged up to the reached step, continuous there, and has the same end."""
  settings = dict(peak_rate=1.0, final_rate=0.1, warmup_steps=10, decay=decay)
  old = optim.build(100, **settings).schedule
  new = optim.build(280, **settings, extended=[(40, 100)]).schedule
  for step in (0, 5, 10, 39, 40):
    assert new(step) == old(step)
  for step, same in ((44, 41), (160, 70), (280, 100), (300, 100)):
    np.testing.assert_allclose(new(step), old(same), rtol=1e-5)
  # A second extension stretches the rest of the current schedule.
  again = optim.build(400, **settings, extended=[(40, 100), (160, 280)]).schedule
  assert again(40) == old(40) and again(160) == new(160)
  np.testing.assert_allclose([again(280), again(400)], [new(220), 0.1], rtol=1e-5)
  # The step may be in the warm-up, or after the end.
  early = optim.build(195, **settings, extended=[(5, 100)]).schedule
  np.testing.assert_allclose([early(5), early(9), early(15)], [0.5, 0.7, 1], rtol=1e-5)
  late = optim.build(200, **settings, extended=[(100, 100)]).schedule
  np.testing.assert_allclose([late(99), late(150), late(200)], [old(99), 0.1, 0.1],
                             rtol=1e-5)


def test_half_cosine_matches_the_release(shared):
  golden = np.load(shared / 'golden' / 'misc.npz')
  rate = optim.half_cosine(1e-4, 5e-5, 5_000, 500_000)
  np.testing.assert_allclose([rate(s) for s in golden['pretrain_steps']],
                             golden['pretrain_lr'], rtol=1e-5)
  rate = optim.half_cosine(0.005, 0.0, 2_500, 100_000)
  np.testing.assert_allclose([rate(s) for s in golden['finetune_steps']],
                             golden['finetune_lr'], rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize('name, factor', [
    ('quarter_cosine', lambda progress: np.cos(np.pi / 2 * progress)),
    ('half_cosine', lambda progress: (1 + np.cos(np.pi * progress)) / 2)])
@pytest.mark.parametrize('warmup', [0, 7])
def test_schedule_equals_its_formula_at_every_step(name, factor, warmup):
  rate = getattr(optim, name)(3e-4, 1e-5, warmup, 100)
  steps = np.arange(120)
  progress = np.clip((steps - warmup) / (100 - warmup), 0, 1)
  expected = np.where(steps < warmup, 3e-4 * steps / max(warmup, 1),
                      1e-5 + (3e-4 - 1e-5) * factor(progress))
  np.testing.assert_allclose([rate(s) for s in steps], expected, rtol=1e-6, atol=3e-11)


def test_unknown_schedule_is_refused():
  with pytest.raises(ValueError, match="decay='half': expected one of quarter_cosine"):
    optim.build(10, 1e-4, 5e-5, 1, decay='half')


PARAMS = {
    'tokenizers_video': {'projection': {'kernel': jnp.array([1.0, 2.0])}},
    'backbones_video': {'block_0': {'kernel': jnp.array([3.0])},
                        'block_1': {'kernel': jnp.array([4.0])},
                        'norm': {'scale': jnp.array([5.0])}},
    'head': {'logits': {'kernel': jnp.array([6.0])}}}
GRADS = jax.tree.map(lambda x: 3 * jnp.ones_like(x), PARAMS)


def _step(name='sgd', grads=GRADS, **settings):
  """Returns the update of each parameter by the first step, at a rate of 1."""
  update = optim.build(10, 1.0, 1.0, 0, name=name, **settings).update
  moved, _ = jax.jit(update.update)(grads, update.init(PARAMS), PARAMS)
  return moved


def test_momentum_matches_the_release():
  """Steps are v = 0.9 v + g, p = p - rate v, without Nesterov's look-ahead."""
  sgd, schedule, frozen, _ = optim.build(10, 0.1, 0.0, 2, name='sgd',
                                         decay='half_cosine')
  p, v, state = jnp.array([1.0]), 0, sgd.init(jnp.array([1.0]))
  for t, g in enumerate([0.5, -2.0, 1.0]):
    v = 0.9 * v + g
    update, state = sgd.update(jnp.array([g]), state, p)
    np.testing.assert_allclose(update, [-schedule(t) * v], rtol=1e-6)
  assert frozen is None


@pytest.mark.parametrize('name', ['adam', 'sgd'])
def test_state_in_bfloat16_moves_parameters_like_one_in_float32(name):
  """A hundred steps agree up to bfloat16's rounding; second moments are float32."""
  moved, dtypes = {}, {}
  for state_dtype in optim.STATE_DTYPES:
    update = optim.build(100, 0.1, 0.1, 0, name=name, state_dtype=state_dtype).update
    state, p = update.init(jnp.zeros(3)), jnp.zeros(3)
    step = jax.jit(update.update)
    for t in range(100):
      updates, state = step(jnp.array([1.0, 0.3, 1e-3]) + 0.5 * jnp.sin(t), state, p)
      p += updates
    moved[state_dtype] = p
    dtypes[state_dtype] = [x.dtype.name for x in jax.tree.leaves(state) if x.ndim]
  np.testing.assert_allclose(moved['bfloat16'], moved['float32'], rtol=3e-3, atol=1e-2)
  assert dtypes['float32'] == ['float32'] * len(dtypes['float32'])
  assert dtypes['bfloat16'] == (['bfloat16', 'float32'] if name == 'adam' else
                                ['bfloat16'])


def test_first_rule_that_fits_sets_the_learning_rate_multiplier():
  moved = _step(rules=(('backbones_video/block_0', 0.0), ('backbones', 0.1),
                       ('.*', 2.0)))
  assert moved['backbones_video']['block_0']['kernel'] == 0
  np.testing.assert_allclose(moved['backbones_video']['block_1']['kernel'], -0.3)
  np.testing.assert_allclose(moved['backbones_video']['norm']['scale'], -0.3)
  np.testing.assert_allclose(moved['head']['logits']['kernel'], -6)
  np.testing.assert_allclose(moved['tokenizers_video']['projection']['kernel'], -6)


def test_frozen_parameters_have_no_optimizer_state():
  built = optim.build(10, 1.0, 1.0, 0, rules=(('head', 1.0), ('.*', 0.0)))
  kept = [x.size for x in jax.tree.leaves(built.update.init(PARAMS)) if x.ndim]
  assert kept == [1, 1]    # Adam's two moments of the head
  frozen = built.frozen(PARAMS)
  assert not frozen['head']['logits']['kernel']
  assert frozen['tokenizers_video']['projection']['kernel']


def test_layer_decay_lowers_the_rate_of_each_lower_layer():
  tower = Vatt.from_config(video=dict(width=4, depth=2, num_heads=1, mlp_dim=4))
  moved = _step(layer_decay=0.5, layer_of=tower.layer_of)
  expected = {'tokenizers_video': 0.125, 'block_0': 0.25, 'block_1': 0.5, 'norm': 1}
  backbone = moved['backbones_video']
  np.testing.assert_allclose(moved['tokenizers_video']['projection']['kernel'],
                             [-3 * expected['tokenizers_video']] * 2)
  for name, x in backbone.items():
    np.testing.assert_allclose(*x.values(), -3 * expected[name])
  np.testing.assert_allclose(moved['head']['logits']['kernel'], -3)


def test_gradient_is_clipped_everywhere_but_in_the_head():
  """The norm of the five other numbers, which are all 3, is sqrt(45)."""
  moved = _step(clip_norm=0.75)
  np.testing.assert_allclose(moved['head']['logits']['kernel'], -3)
  np.testing.assert_allclose(moved['backbones_video']['block_0']['kernel'],
                             -3 * 0.75 / np.sqrt(45), rtol=1e-6)
  small = jax.tree.map(lambda x: x * 0.01, GRADS)
  jax.tree.map(np.testing.assert_allclose, _step(grads=small, clip_norm=0.75),
               jax.tree.map(lambda x: -x, small))


def test_parameter_without_a_rule_is_named():
  built = optim.build(10, 1.0, 1.0, 0, rules=(('backbones', 0.1), ('head', 1.0)))
  with pytest.raises(UserError, match='none fits the parameter tokenizers_video/'):
    built.update.init(PARAMS)


@pytest.mark.parametrize('settings, message', [
    (dict(rules=(('head', -1.0),)), 'expected shares of 0 or more'),
    (dict(rules=(('head(', 1.0),)), 'is not a pattern'),
    (dict(rules=('head',)), 'expected pairs of a pattern and a share'),
    (dict(layer_decay=0.0), 'layer_decay=0'), (dict(clip_norm=-1), 'clip_norm=-1'),
    (dict(clip_replicas=0), 'clip_replicas=0: expected 1 or more')])
def test_invalid_setting_is_named(settings, message):
  with pytest.raises(ValueError, match=message):
    optim.build(10, 1.0, 1.0, 0, **settings)


def test_unknown_optimizer_and_setting_of_the_other_one_are_named():
  with pytest.raises(UserError, match="name='lamb': expected one of adam, sgd"):
    optim.build(10, 1.0, 1.0, 0, name='lamb')
  with pytest.raises(UserError, match=r'config\.optim\.b1: unknown key'):
    optim.build(10, 1.0, 1.0, 0, name='sgd', b1=0.5)


def test_invalid_state_dtype_is_named():
  with pytest.raises(UserError, match=r"config\.optim: state_dtype='half': expected"):
    optim.build(10, 1.0, 1.0, 0, state_dtype='half')
