"""vatt_jax/models/positions.py"""

import jax
import numpy as np
import pytest

from vatt_jax.models import positions
from vatt_jax.models import vatt


@pytest.mark.parametrize('case', ['14_to_20', '8_to_5', '14_to_24', '16_to_12'])
def test_the_spline_is_the_release_s(case, shared):
  """To 1e-5 where the golden set, too, was solved in float64; else float32 rules."""
  golden = np.load(shared / 'golden' / 'interpolate_pos.npz')
  ours = positions.resize(golden[f'src_{case}'], int(case.split('_')[-1]), spline=True)
  np.testing.assert_allclose(ours, golden[f'out64_{case}'], rtol=0, atol=1e-5)
  np.testing.assert_allclose(ours, golden[f'out_{case}'], rtol=0, atol=5e-3)


@pytest.mark.parametrize('spline', [True, False])
@pytest.mark.parametrize('n, m', [(14, 14), (14, 20), (8, 5), (1, 3), (8, 1)])
def test_a_constant_stays_and_sizes_fit(n, m, spline):
  out = positions.resize(np.full((n, 4), 2.5, np.float32), m, spline)
  assert out.shape == (m, 4)
  np.testing.assert_allclose(out, 2.5, rtol=1e-5)


def test_the_spline_goes_through_what_it_knows():
  """Twice the places: every second is an old one (i/n = 2i/2n)."""
  x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
  np.testing.assert_allclose(positions.resize(x, 14, spline=True)[::2], x, atol=1e-5)
  np.testing.assert_allclose(positions.resize(x, 1, spline=True), x[:1], atol=1e-5)


@pytest.mark.parametrize('release', [True, False])
def test_a_tokenizer_takes_another_size_than_it_was_made_for(release):
  tokenizer = vatt.VideoTokenizer(width=8, patch=(2, 4, 4), release=release)
  variables = tokenizer.init(jax.random.key(0), np.zeros((1, 4, 8, 8, 3), np.float32))
  tokens, _ = tokenizer.apply(variables, np.zeros((1, 4, 12, 8, 3), np.float32))
  assert tokens.shape == (1, 2 * 3 * 2, 8)
  p = variables['params']
  if not release:
    vertical = positions.resize(p['vertical_positions'], 3, spline=False)
    expected = p['time_positions'][0] + vertical[1] + p['horizontal_positions'][0]
    np.testing.assert_allclose(tokens[0, 2], expected, atol=1e-6)
