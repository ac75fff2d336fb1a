"""vatt_jax/optim.py"""

import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax import optim


def test_the_schedule_is_the_paper_s():
  """Section 4.3: 10k steps up to 1e-4, then a quarter period down to 5e-5 at 500k."""
  rate = optim.quarter_cosine(1e-4, 5e-5, 10_000, 500_000)
  np.testing.assert_allclose(
      [rate(s) for s in (0, 5_000, 10_000, 500_000, 600_000)],
      [0, 5e-5, 1e-4, 5e-5, 5e-5], rtol=1e-5)
  np.testing.assert_allclose(rate(255_000), 5e-5 * (1 + np.cos(np.pi / 4)), rtol=1e-5)
  # A quarter period leaves slowly and arrives steeply.
  assert rate(10_000) - rate(20_000) < 0.1 * (rate(490_000) - rate(500_000))


def test_adam_is_adam():
  """Two steps against Kingma and Ba's algorithm 1."""
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


def test_a_warm_up_longer_than_the_run_is_refused():
  with pytest.raises(ValueError, match='warmup_steps=11: longer than the run'):
    optim.build(10, 1e-4, 5e-5, 11)


def test_the_other_schedule_is_the_release_s(shared):
  golden = np.load(shared / 'golden' / 'misc.npz')
  rate = optim.half_cosine(1e-4, 5e-5, 5_000, 500_000)
  np.testing.assert_allclose([rate(s) for s in golden['pretrain_steps']],
                             golden['pretrain_lr'], rtol=1e-5)
  rate = optim.half_cosine(0.005, 0.0, 2_500, 100_000)
  np.testing.assert_allclose([rate(s) for s in golden['finetune_steps']],
                             golden['finetune_lr'], rtol=1e-4, atol=1e-10)


def test_a_schedule_of_another_name_is_refused():
  with pytest.raises(ValueError, match="decay='half': expected one of quarter_cosine"):
    optim.build(10, 1e-4, 5e-5, 1, decay='half')
