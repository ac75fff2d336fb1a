"""The scale of a Transformer's input tokens at initialization, for every config.

A Transformer adds the outputs of its blocks to its tokens. If all tokens share a mean
that is larger than these outputs, hardly anything is learned (docs/decisions/0008).
"""

import dataclasses
import importlib
import io
import pathlib
import tarfile
import wave

import jax
import numpy as np
import pytest

from configs import ablation
from vatt_jax import inherit
from vatt_jax.inputs import augment
from vatt_jax.inputs import spectrograms
from vatt_jax.models.vatt import Vatt

ROOT = pathlib.Path(__file__).parents[2]
# Root mean square of all tokens. It is smallest for waveforms in the paper variant, and
# slightly above 1 in the release variant, whose positions are normalized.
RMS = (0.02, 1.3)
# Root mean square of the mean of all tokens, the part that they share. In measurements
# a tower learned at 0.3, and hardly at all at 1.1.
MOST_MEAN_RMS = 0.6

SWITCHES = ('', 'release', 'ma', 'toy', 'spectrogram', 'ma,release', 'release,toy',
            'spectrogram,release', 'spectrogram,toy', 'large', 'large,release')
# Fields that do not change the scale.
_IGNORED = ('drop_token_rate', 'fill_tiles', 'dropout_rate', 'dtype', 'parent', 'name')


def _configs():
  """Returns the model settings of every config of VATT, by 'FILE:SWITCHES'."""
  configs = {}
  for path in sorted(set((ROOT / 'configs').glob('*.py')) - {
      ROOT / 'configs' / 'common.py'}):
    module = importlib.import_module(f'configs.{path.stem}')
    more = ()
    if path.stem == 'ablation':
      more = [name + end for name in ablation.VARIANTS for end in ('', ',release')]
    for switches in dict.fromkeys((*SWITCHES, *more)):
      try:
        config = module.get_config(*[switches] if switches else [])
      except (TypeError, ValueError):    # not a switch of this file
        continue
      # Empty sizes are the checkpoint's, by default those of `defaults`.
      config = inherit.inherit(config.to_dict())
      if config.get('model') and config['model'].get('name', 'vatt') == 'vatt':
        configs[f'{path.stem}:{switches}'] = config['model']
  return configs


def _tokenizers():
  """Returns (config, modality, tokenizer) of each kind of tokenizer in the configs."""
  tokenizers = {}
  for where, settings in _configs().items():
    head = settings.get('head')
    if head and head.get('name') == 'classifier':
      settings = settings | dict(head=None)    # the data may set the number of classes
    for modality, tokenizer in Vatt.from_config(**settings).tokenizers.items():
      names = {f.name for f in dataclasses.fields(tokenizer)} - set(_IGNORED)
      fields = {name: getattr(tokenizer, name) for name in sorted(names)}
      tokenizers.setdefault(str((modality, fields)), (where, modality, tokenizer))
  return list(tokenizers.values())


def natural(shape, exponent, rng):
  """Returns noise of mean 0 and deviation 1 whose power falls with frequency."""
  grid = np.meshgrid(*(np.fft.fftfreq(n) * n for n in shape), indexing='ij')
  frequency = np.sqrt(sum(g ** 2 for g in grid))
  frequency.flat[0] = np.inf
  spectrum = np.fft.fftn(rng.normal(size=shape)) / frequency ** (exponent / 2)
  noise = np.fft.ifftn(spectrum).real
  return noise / noise.std()


def frames(shape, rng):
  """Returns frames like natural ones, smooth in space and time: uint8 [T, H, W, 3]."""
  gray = 110 + rng.uniform(-40, 40) + 50 * natural(shape, 3.0, rng)
  tint = rng.uniform(0.8, 1.2, 3)
  return np.clip(gray[..., None] * tint, 0, 255).astype(np.uint8)


def speech(num_samples, audio_hz, rng):
  """Returns syllables of harmonics and noise, separated by pauses: int16 [S]."""
  time = np.arange(num_samples) / audio_hz
  syllables = np.maximum(np.sin(2 * np.pi * 3 * time + rng.uniform(0, 6)), 0)
  voice = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 20)
              if 140 * k < audio_hz / 2)
  audio = syllables * (voice + 0.5 * natural((num_samples,), 1.0, rng))
  audio = 0.1 * audio / audio.std() + 3e-4 * rng.normal(size=num_samples)
  return np.clip(audio * 32768, -32768, 32767).astype(np.int16)


def _input(modality, tokenizer):
  """Returns clips with so many positions that the mean of the positions is small."""
  rng = np.random.default_rng(0)
  if modality == 'text':
    return rng.integers(1, tokenizer.vocabulary_size, (8, tokenizer.max_tokens or 16))
  if modality == 'video':
    t, h, w = tokenizer.patch
    clips = frames((4 * t, 6 * h, 6 * w), rng)[None]
    return augment.normalize({'video': clips})['video']
  spectrogram = getattr(tokenizer, 'spectrogram', None)
  audio_hz = spectrogram.audio_hz if spectrogram else 16_000
  clips = np.stack([speech(2 * audio_hz, audio_hz, rng) for _ in range(2)])
  return augment.normalize({'audio': clips})['audio']


def _scale(tokenizer, x):
  """Returns the root mean squares of tokens and of their mean."""
  def tokens(key, x):
    return tokenizer.init_with_output(key, x)[0][0].astype(np.float32)
  y = np.asarray(jax.jit(tokens)(jax.random.key(0), x))
  return np.sqrt((y ** 2).mean()), np.sqrt((y.mean((0, 1)) ** 2).mean())


def _is_fine(rms, mean_rms):
  return RMS[0] <= rms <= RMS[1] and mean_rms <= MOST_MEAN_RMS


@pytest.mark.slow
@pytest.mark.parametrize('modalities', [('audio',), ('video', 'text')], ids=','.join)
def test_tokens_of_every_config_have_a_moderate_mean_and_scale(modalities):
  tokenizers = _tokenizers()
  assert {where for where, _, _ in tokenizers} >= {    # the first config of each kind
      'ablation:', 'ablation:release', 'ablation:spectrogram',
      'ablation:spectrogram,release', 'finetune_audio:spectrogram'}
  wrong = {}
  for where, modality, tokenizer in tokenizers:
    if modality not in modalities:
      continue
    if modality == 'text':    # a small table has the same scale
      tokenizer = tokenizer.clone(vocabulary_size=64)
    scale = _scale(tokenizer, _input(modality, tokenizer))
    if not _is_fine(*scale):
      wrong[where, modality] = scale
  assert not wrong


def _spectrogram_tokenizer(**settings):
  return Vatt.from_config(audio=dict(
      kind='spectrogram', size='base', spectrogram=settings)).tokenizers['audio']


def test_spectrogram_without_normalization_is_out_of_range():
  """The range separates towers that learn from towers that do not."""
  raw = _spectrogram_tokenizer(normalize='none')
  rms, mean_rms = _scale(raw, _input('audio', raw))
  assert rms > RMS[1] and mean_rms > MOST_MEAN_RMS


# Mean and root mean square of the bins that enter the projection. The papers of MMV and
# STiCA do not normalize them: a Transformer on them needs normalize='min_max' or
# 'standardize'.
BINS = {'vatt': ((0.0, 0.7), (0.1, 0.8)), 'gdt': ((-1.0, 1.0), (0.1, 1.5)),
        'mmv': ((-14.0, 0.0), (2.0, 14.0)), 'stica': ((-10.0, 10.0), (2.0, 20.0))}


@pytest.mark.parametrize('name', spectrograms.SPECTROGRAMS)
def test_bins_of_each_named_spectrogram_are_in_its_range(name):
  spectrogram = spectrograms.Spectrogram(**spectrograms.SPECTROGRAMS[name])
  rng = np.random.default_rng(0)
  audio = np.stack([speech(2 * spectrogram.audio_hz, spectrogram.audio_hz, rng)
                    for _ in range(2)])
  bins = np.asarray(spectrogram(audio / np.float32(32768)))
  (low, high), (least, most) = BINS[name]
  assert low <= bins.mean() <= high
  assert least <= np.sqrt((bins ** 2).mean()) <= most


def test_tokens_of_real_recordings_are_in_range(shared):
  tokenizer = _spectrogram_tokenizer()
  with tarfile.open(shared / 'real' / 'spoken_digits.tar.gz') as archive:
    names = [f'recordings/{digit}_theo_0.wav' for digit in range(10)]
    content = [archive.extractfile(name).read() for name in names]
  clips = []
  for one in content:
    with wave.open(io.BytesIO(one)) as file:
      assert file.getframerate() == 8000
      samples = np.frombuffer(file.readframes(8000), '<i2') / 32768
    samples = np.pad(samples, (0, 8000 - len(samples)))
    clips.append(np.interp(np.arange(48_000) / 6, np.arange(8000), samples))
  assert _is_fine(*_scale(tokenizer, np.stack(clips).astype(np.float32)))
