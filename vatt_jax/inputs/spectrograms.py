"""Computes log-mel spectrograms of waveforms and the masks of SpecAugment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

# Normalizations of a spectrogram before a tower.
NORMALIZATIONS = ('none', 'min_max', 'standardize')


@dataclasses.dataclass(frozen=True)
class Spectrogram:
  """Computes log-mel spectrograms, by default with periodic Hann windows.

  Bin f of window t is log(log_scale * sum_k w[k, f] |X[t, k]|^power + log_offset),
  normalized, where X is the short-time Fourier transform of the waveform in [-1, 1]
  and w are TensorFlow's triangles on the (HTK) mel scale, unless `whole_bins`.

  Attributes:
    audio_hz: sample rate of the waveform.
    window_seconds: length of a window of the short-time Fourier transform.
    step_seconds: time between the starts of windows.
    fft_length: samples; the window is zero-padded to this length.
    mel_bins: F.
    low_hz: lower edge of the first triangle.
    high_hz: upper edge of the last triangle.
    power: 1 for magnitudes, 2 for power.
    log_scale: factor of the mel-weighted sum.
    log_offset: offset of the scaled sum, so that silence has a logarithm.
    normalize: 'none'; 'min_max' stretches each clip to [0, 1], and a constant clip
      becomes zeros; 'standardize' subtracts `mean` and divides by `std`.
    mean: mean of all bins over a dataset, for 'standardize'.
    std: standard deviation of all bins over a dataset, for 'standardize'.
    pad_end: whether a window starts at every step within the clip, with zeros after
      the clip's end; otherwise only windows within the clip count.
    pre_emphasis: factor of the previous sample, which is subtracted from each one.
    flat_windows: do not weight the samples of a window.
    whole_bins: round the triangles' edges to frequencies of the Fourier transform.

  Raises:
    ValueError: the window does not fit the FFT, the edges do not fit the sample rate,
      the normalization is unknown, or it does not use `mean` and `std`.
  """
  audio_hz: int
  window_seconds: float
  step_seconds: float
  fft_length: int
  mel_bins: int
  low_hz: float
  high_hz: float
  power: int
  log_scale: float
  log_offset: float
  normalize: str = 'none'
  mean: float = 0.0
  std: float = 1.0
  pad_end: bool = False
  pre_emphasis: float = 0.0
  flat_windows: bool = False
  whole_bins: bool = False

  def __post_init__(self):
    if self.window > self.fft_length:
      raise ValueError(f'window_seconds={self.window_seconds}: {self.window} samples, '
                       f'expected at most fft_length={self.fft_length}')
    if not 0 <= self.low_hz < self.high_hz <= self.audio_hz / 2:
      raise ValueError(f'low_hz={self.low_hz}, high_hz={self.high_hz}: expected '
                       f'low_hz < high_hz, at most half of audio_hz={self.audio_hz}')
    if self.normalize not in NORMALIZATIONS:
      raise ValueError(f'normalize={self.normalize!r}: expected one of '
                       f'{", ".join(NORMALIZATIONS)}')
    if self.normalize != 'standardize' and (self.mean, self.std) != (0, 1):
      raise ValueError(f'mean={self.mean}, std={self.std}: unused with normalize='
                       f"{self.normalize!r}; set normalize='standardize'")
    if self.std <= 0:
      raise ValueError(f'std={self.std}: expected more than 0')

  @property
  def window(self) -> int:
    """Returns the length of a window in samples."""
    return round(self.window_seconds * self.audio_hz)

  @property
  def step(self) -> int:
    """Returns the step between windows in samples."""
    return round(self.step_seconds * self.audio_hz)

  def num_windows(self, num_samples: int) -> int:
    """Returns T, the number of windows, for a clip of `num_samples` samples."""
    if self.pad_end:
      return -(-num_samples // self.step)
    return max((num_samples - self.window) // self.step + 1, 0)

  def __call__(self, audio: jax.Array) -> jax.Array:
    """Computes the spectrogram.  float [B, S] in [-1, 1] -> [B, T, F]."""
    n, num_samples = self.window, audio.shape[-1]
    starts = np.arange(self.num_windows(num_samples)) * self.step
    if self.pad_end:
      audio = jnp.pad(audio, [(0, 0), (0, max(starts[-1] + n - num_samples, 0))])
    if self.pre_emphasis:
      audio = jnp.concatenate([
          audio[:, :1], audio[:, 1:] - self.pre_emphasis * audio[:, :-1]], axis=1)
    frames = audio[:, starts[:, None] + np.arange(n)]                # [B, T, window]
    if not self.flat_windows:
      frames *= 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n, dtype=np.float32) / n)
    magnitude = jnp.abs(jnp.fft.rfft(frames, self.fft_length))
    weights = mel_weights(self.mel_bins, self.fft_length // 2 + 1, self.audio_hz,
                          self.low_hz, self.high_hz, self.whole_bins)
    mel = magnitude ** self.power @ weights                          # [B, T, F]
    return self._normalized(jnp.log(self.log_scale * mel + self.log_offset))

  def _normalized(self, x: jax.Array) -> jax.Array:
    """Normalizes spectrograms.  [B, T, F] -> [B, T, F]."""
    if self.normalize == 'min_max':
      low = x.min((1, 2), keepdims=True)
      spread = x.max((1, 2), keepdims=True) - low
      return (x - low) / jnp.where(spread > 0, spread, 1)
    if self.normalize == 'standardize':
      return (x - self.mean) / self.std
    return x


def mel_weights(mel_bins: int, num_frequencies: int, audio_hz: int, low_hz: float,
                high_hz: float, whole_bins: bool = False) -> np.ndarray:
  """Returns triangles of height 1 on the HTK mel scale, like TensorFlow.

  Args:
    mel_bins: F, number of triangles, which are evenly spaced and overlap by half.
    num_frequencies: number of frequencies of the Fourier transform, evenly spaced
      from 0 to audio_hz / 2.
    audio_hz: sample rate of the waveform.
    low_hz: lower edge of the first triangle.
    high_hz: upper edge of the last triangle.
    whole_bins: see `Spectrogram`. A triangle may then be empty.

  Returns:
    float32 [num_frequencies, F]; the constant part has no weight, unless `whole_bins`.
  """
  mel = lambda hz: 1127.0 * np.log1p(hz / 700.0)
  at = mel(np.linspace(0, audio_hz / 2, num_frequencies))[:, None]
  edges = np.linspace(mel(low_hz), mel(high_hz), mel_bins + 2)
  if whole_bins:
    at = np.arange(num_frequencies)[:, None]
    hz = 700.0 * np.expm1(edges / 1127.0)
    edges = np.floor((2 * num_frequencies - 1) * hz / audio_hz)
  low, center, high = edges[:-2], edges[1:-1], edges[2:]
  # A side of no width has no frequency: the division by 1 is not used.
  rising = (at - low) / np.where(center > low, center - low, 1)
  falling = (high - at) / np.where(high > center, high - center, 1)
  triangles = np.where(at < center, rising, falling)
  if not whole_bins:
    triangles[0] = 0
  return np.maximum(triangles, 0).astype(np.float32)


# Constants that a paper does not give come from code: VATT's and GDT's own (STiCA's is
# the same as GDT's), and for MMV its authors' library DMVR. All rows share choices that
# no paper states: Hann windows, no pre-emphasis, exact triangles, and complete windows;
# `RELEASED` says where code differs.
SPECTROGRAMS = {
    # Section 4.5.1: 80 bins, 42 ms every 21 ms. Code: all else. Both variants stretch
    # each clip: without it a tower hardly learns (docs/decisions/0008).
    'vatt': dict(audio_hz=48_000, window_seconds=0.042, step_seconds=0.021,
                 fft_length=2016, mel_bins=80, low_hz=80.0, high_hz=7600.0, power=1,
                 log_scale=1e4, log_offset=1.0, normalize='min_max'),
    # Section 4.1: 80 bins. VATT says that its windows follow MMV's. Neither paper nor
    # code normalizes: the input goes to a CNN, whose batch norm normalizes it.
    'mmv': dict(audio_hz=48_000, window_seconds=2048 / 48_000,
                step_seconds=1024 / 48_000, fft_length=2048, mel_bins=80, low_hz=80.0,
                high_hz=7600.0, power=1, log_scale=1.0, log_offset=1e-6,
                normalize='none'),
    # Appendix A.3.3: 40 bins, 99 windows a second, zero mean and unit variance. Code:
    # all else. Its power is computed from 16-bit samples and divided by the FFT's
    # length; the factor 2 ** 20 gives the same from samples in [-1, 1].
    'gdt': dict(audio_hz=24_000, window_seconds=0.02, step_seconds=0.01,
                fft_length=1024, mel_bins=40, low_hz=0.0, high_hz=12_000.0, power=2,
                log_scale=2.0 ** 20, log_offset=2.0 ** -52, normalize='standardize',
                mean=1.93, std=17.89),
    # Appendix 6.1: 257 bins, 199 windows a second: 10 ms every 5 ms. The code gets 199
    # from two seconds, with GDT's windows. Code: all else. It does not normalize: like
    # MMV's, the input goes to a CNN with batch norm.
    'stica': dict(audio_hz=24_000, window_seconds=0.01, step_seconds=0.005,
                  fft_length=1024, mel_bins=257, low_hz=0.0, high_hz=12_000.0, power=2,
                  log_scale=2.0 ** 20, log_offset=2.0 ** -52, normalize='none')}

# Differences of the released code from a row above, for `variant='release'`.
_GDT_CODE = dict(pre_emphasis=0.97, flat_windows=True, whole_bins=True)
RELEASED = {'vatt': dict(pad_end=True), 'mmv': dict(pad_end=True), 'gdt': _GDT_CODE,
            'stica': dict(_GDT_CODE, window_seconds=0.02, step_seconds=0.01)}


@dataclasses.dataclass(frozen=True)
class SpecAugment:
  """Masks time and frequency (arXiv 1904.08779, section 2, without the warp).

  Each clip has its own random masks. Masked values become the clip's mean, because the
  zero of the paper is the mean of its spectrograms. GDT (appendix A.3.3) has one mask
  of up to 6 windows and one of up to 3 bins; in its code they have up to 5 and 2, and
  `zeros`. VATT and STiCA have no masks, and MMV found none that helped.

  Attributes:
    time_masks: number of masks in time.
    time_width: largest width of a mask in windows; 0 to this are equally probable.
    frequency_masks: number of masks in frequency.
    frequency_width: largest width of a mask in bins; 0 to this are equally probable.
    zeros: masked values become 0, the dataset's mean after `normalize='standardize'`.
  """
  time_masks: int
  time_width: int
  frequency_masks: int
  frequency_width: int
  zeros: bool = False

  def __call__(self, keys: jax.Array, x: jax.Array) -> jax.Array:
    """Masks spectrograms, each by its clip's key.  key [B], [B, T, F] -> [B, T, F]."""
    return jax.vmap(self._mask)(keys, x)

  def _mask(self, key: jax.Array, x: jax.Array) -> jax.Array:
    time, frequency = jax.random.split(key)
    times = _masked(time, x.shape[0], self.time_masks, self.time_width)
    bins = _masked(frequency, x.shape[1], self.frequency_masks, self.frequency_width)
    fill = 0.0 if self.zeros else x.mean()
    return jnp.where(times[:, None] | bins[None], fill, x)


def _masked(key: jax.Array, size: int, masks: int, width: int) -> jax.Array:
  """Returns the places that at least one mask covers.  -> bool [size]."""
  widths, starts = jax.random.uniform(key, (2, masks, 1))
  widths = jnp.floor(widths * (min(width, size) + 1))
  starts = jnp.floor(starts * (size - widths + 1))
  place = np.arange(size, dtype=np.float32)[None]
  return ((place >= starts) & (place < starts + widths)).any(0)
