"""vatt_jax/models/positions.py"""

import jax
import numpy as np
import pytest

from vatt_jax.models import positions
from vatt_jax.models import tokenization


@pytest.mark.parametrize('case', ['14_to_20', '8_to_5', '14_to_24', '16_to_12'])
def test_spline_matches_the_release(case, shared):
  """The tolerance is 1e-5 for golden numbers of float64, and larger for float32."""
  golden = np.load(shared / 'golden' / 'interpolate_pos.npz')
  rows = positions.resize(golden[f'src_{case}'], int(case.split('_')[-1]), spline=True)
  np.testing.assert_allclose(rows, golden[f'out64_{case}'], rtol=0, atol=1e-5)
  np.testing.assert_allclose(rows, golden[f'out_{case}'], rtol=0, atol=5e-3)


@pytest.mark.parametrize('spline', [True, False])
@pytest.mark.parametrize('n, m', [(14, 14), (14, 20), (8, 5), (1, 3), (8, 1)])
def test_resize_keeps_a_constant_and_returns_the_requested_size(n, m, spline):
  out = positions.resize(np.full((n, 4), 2.5, np.float32), m, spline)
  assert out.shape == (m, 4)
  np.testing.assert_allclose(out, 2.5, rtol=1e-5)


def test_spline_interpolates_the_given_points():
  """With twice the positions, every second one is a given one (i/n = 2i/2n)."""
  x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
  np.testing.assert_allclose(positions.resize(x, 14, spline=True)[::2], x, atol=1e-5)
  np.testing.assert_allclose(positions.resize(x, 1, spline=True), x[:1], atol=1e-5)


@pytest.mark.parametrize('release', [True, False])
def test_tokenizer_accepts_another_input_size(release):
  tokenizer = tokenization.VideoTokenizer(width=8, patch=(2, 4, 4), release=release)
  variables = tokenizer.init(jax.random.key(0), np.zeros((1, 4, 8, 8, 3), np.float32))
  tokens = tokenizer.apply(variables, np.zeros((1, 4, 12, 8, 3), np.float32)).x
  assert tokens.shape == (1, 2 * 3 * 2, 8)
  p = variables['params']
  if not release:
    vertical = positions.resize(p['vertical_positions'], 3, spline=False)
    expected = p['time_positions'][0] + vertical[1] + p['horizontal_positions'][0]
    np.testing.assert_allclose(tokens[0, 2], expected, atol=1e-6)


@pytest.mark.parametrize('name', ['positions', 'time_positions'])
def test_shorter_input_takes_the_first_positions_in_time(name):
  """The paper variant cuts the table; the release variant resizes it."""
  table = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
  np.testing.assert_array_equal(positions.fit(table, name, 5, release=False), table[:5])
  np.testing.assert_array_equal(positions.fit(table, name, 5, release=True),
                                positions.resize(table, 5, spline=True))
  for release in (False, True):    # longer: later positions were never trained
    np.testing.assert_array_equal(positions.fit(table, name, 11, release),
                                  positions.resize(table, 11, spline=release))


@pytest.mark.parametrize('name', ['vertical_positions', 'horizontal_positions',
                                  'frequency_positions'])
@pytest.mark.parametrize('release', [True, False])
def test_positions_in_space_and_frequency_are_resized_to_another_resolution(name,
                                                                            release):
  table = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
  np.testing.assert_array_equal(positions.fit(table, name, 5, release),
                                positions.resize(table, 5, spline=release))


def _with_zero_projection(tokenizer, x):
  """Returns variables with which the tokens are the positions."""
  variables = tokenizer.init(jax.random.key(0), x)
  projection = jax.tree.map(np.zeros_like, variables['params']['projection'])
  return {'params': variables['params'] | {'projection': projection}}


@pytest.mark.parametrize('tokenizer, x', [
    (tokenization.WaveformTokenizer(width=8, patch=(16,)),
     np.ones((1, 160), np.float32)),
    (tokenization.VideoTokenizer(width=8, patch=(2, 4, 4)),
     np.ones((1, 12, 8, 8, 3), np.float32)),
    (tokenization.SpectrogramTokenizer(width=8, patch=(2, 20)),
     np.ones((1, 20_160), np.float32))], ids=['waveform', 'video', 'spectrogram'])
def test_shorter_input_keeps_the_positions_of_the_longer_one(tokenizer, x):
  """Audio of 2.56 s has the positions of the beginning of 3.2 s in training."""
  variables = _with_zero_projection(tokenizer, x)
  whole = tokenizer.apply(variables, x).x
  begin = tokenizer.apply(variables, x[:, :round(x.shape[1] * 0.6)]).x
  assert 0 < begin.shape[1] < whole.shape[1]
  np.testing.assert_array_equal(begin, whole[:, :begin.shape[1]])


@pytest.mark.parametrize('release', [True, False])
def test_image_has_the_first_position_in_time(release):
  """The release's spline maps i/n to j/m; for m = 1, j/m = 0 is the first position."""
  tokenizer = tokenization.VideoTokenizer(width=8, patch=(2, 4, 4), release=release)
  variables = _with_zero_projection(tokenizer, np.ones((1, 16, 8, 8, 3), np.float32))
  assert len(variables['params']['time_positions']) == 8
  clip = tokenizer.apply(variables, np.ones((1, 16, 8, 8, 3), np.float32)).x
  image = tokenizer.apply(variables, np.ones((1, 1, 8, 8, 3), np.float32)).x
  assert image.shape == (1, 4, 8)
  np.testing.assert_allclose(image[0], clip[0, :4], atol=1e-6)
