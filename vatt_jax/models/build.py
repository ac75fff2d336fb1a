"""Builds VATT from the `model` section of a config."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.config import call
from vatt_jax.config import check_keys
from vatt_jax.config import choose
from vatt_jax.config import nearest
from vatt_jax.config import Settings
from vatt_jax.errors import UserError
from vatt_jax.inputs import spectrograms
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.models import vatt
from vatt_jax.models.attention import choose_form
from vatt_jax.models.attention import FORMS

# Table 1 of the paper.
SIZES = {
    'small': dict(depth=6, width=512, mlp_dim=2048, num_heads=8),
    'base': dict(depth=12, width=768, mlp_dim=3072, num_heads=12),
    'medium': dict(depth=12, width=1024, mlp_dim=4096, num_heads=16),
    'large': dict(depth=24, width=1024, mlp_dim=4096, num_heads=16)}
SIZE_KEYS = ('size', 'depth', 'width', 'mlp_dim', 'num_heads')

VARIANTS = ('paper', 'release')
_DTYPES = ('float32', 'bfloat16')
# The release drops everywhere in its Transformers and on its tokens, the paper nowhere.
_RELEASE_DROPOUT_RATE = 0.1

_Parts = tuple[dict[str, nn.Module], dict[str, nn.Module], dict[str, nn.Module]]

_AUDIO_TOKENIZERS = {'waveform': vatt.WaveformTokenizer,
                     'spectrogram': vatt.SpectrogramTokenizer}
_HEADS = {'fac': heads.FacHead, 'classifier': heads.Classifier}


def build_model(video: Settings | None = None, audio: Settings | None = None,
                text: Settings | None = None, shared: Settings | None = None,
                head: Settings | None = None, variant: str = 'paper',
                dropout_rate: float | None = None, dtype: str = 'float32',
                attention: str = 'auto', remat: str = 'none',
                scan_layers: bool = False, device: jax.Device | None = None
                ) -> vatt.Vatt:
  """Builds VATT, or some of its towers; with `shared` the modality-agnostic model.

  A tower's size is a `size` of `SIZES`, or `depth`, `width`, `mlp_dim`, `num_heads`.

  Args:
    video: the tower's size, and settings of `vatt.VideoTokenizer`.
    audio: size, and settings of `vatt.WaveformTokenizer`, or with `kind='spectrogram'`
      of `vatt.SpectrogramTokenizer`. Its `spectrogram` has a `name` of
      `spectrograms.SPECTROGRAMS` (default: vatt) and the constants to change; its
      `spec_augment` has settings of `spectrograms.SpecAugment`.
    text: size, and settings of `vatt.TextTokenizer`. With `depth=0` the tower has no
      Transformer and averages the tokens of a sentence (section 4.4.4). In the release
      variant `word_vectors` may name the file that initializes the table of a new run
      (`inputs.word_vectors`); the model does not read it.
    shared: the size of the one Transformer for all modalities, and in the release
      variant `projected_width`, that of its projected output (default: its width). The
      modalities then have no size, and text has `max_tokens`.
    head: settings of `heads.FacHead`, or with `name='classifier'` of
      `heads.Classifier`; None for features only.
    variant: 'paper' or 'release': which to follow where paper and code differ.
    dropout_rate: in and before the Transformers; None for the variant's default.
    dtype: compute type; parameters are always float32.
    attention: one of `attention.FORMS`, or 'auto' to choose it by the device.
    remat: how much the backward pass of a Transformer recomputes, of `layers.REMAT`:
      'none' nothing, 'dots' all but the products with matrices, 'blocks' all but the
      input of each block.
    scan_layers: make one loop of the blocks of a Transformer, so that the program has
      the size of one block. Dropout then draws other numbers.
    device: the device that the model will run on; None for this machine's.

  Raises:
    UserError: names the wrong key.
  """
  for key, value, expected in (('variant', variant, VARIANTS),
                               ('dtype', dtype, _DTYPES),
                               ('attention', attention, ('auto', *FORMS)),
                               ('remat', remat, layers.REMAT)):
    if value not in expected:
      raise UserError(f'config.model.{key}={value!r}: {nearest(value, expected)}'
                      f'expected one of {", ".join(expected)}')
  release = variant == 'release'
  if dropout_rate is None:
    dropout_rate = _RELEASE_DROPOUT_RATE if release else 0.0
  if attention == 'auto':
    attention = choose_form(device or jax.devices()[0])
  style = dict(attention=functools.partial(layers.Attention, form=attention),
               remat=remat, scan_layers=scan_layers)
  common = dict(dropout_rate=dropout_rate, dtype=jnp.dtype(dtype))
  given = dict(video=video, audio=audio, text=text)
  modalities = {m: dict(s) for m, s in given.items() if s is not None}
  if not modalities:
    raise UserError('config.model: no modality; expected video, audio or text')
  parts = (_specific(modalities, release, style, common) if shared is None else
           _agnostic(modalities, shared, release, style, common))
  return vatt.Vatt(*parts, _head(head, release, common['dtype']))


def _specific(modalities: Settings, release: bool, style: Settings, common: Settings
              ) -> _Parts:
  """Builds the parts of a model that has a Transformer for each modality."""
  tokenizers, backbones = {}, {}
  for modality, settings in modalities.items():
    where = f'model.{modality}'
    size, settings = _size(where, settings)
    width = size.pop('width')
    given = dict(style)
    if modality == 'text':
      given |= dict(relative_bias=True)
      if release:
        given |= dict(t5_style=True, width=width)
    if size['depth']:
      backbones[modality] = _module(where, layers.Transformer, size, **given, **common)
    else:    # vectors that are trained need no projection
      backbones[modality] = layers.WordMean(width if release else 0, common['dtype'])
    tokenizers[modality] = _tokenizer(modality, settings, release, width=width,
                                      **common)
  return tokenizers, backbones, {}


def _agnostic(modalities: Settings, shared: Settings, release: bool, style: Settings,
              common: Settings) -> _Parts:
  """Builds the parts of a model that has one Transformer for all modalities."""
  if not modalities.get('text', {'max_tokens': 1}).get('max_tokens'):
    raise UserError('config.model.text.max_tokens: missing; without positions a shared '
                    'Transformer cannot tell the order of tokens')
  size, rest = _size('model.shared', shared)
  width, projectors = size.pop('width'), {}
  if release:
    projected_width = rest.pop('projected_width', width)
    projectors = {m: layers.Projector(projected_width, common['dtype'])
                  for m in modalities}
  for key in rest:
    raise UserError(
        f'config.model.shared.{key}: unknown key; {nearest(key, SIZE_KEYS)}expected '
        f'one of {", ".join(SIZE_KEYS)}')
  tower = _module('model.shared', layers.Transformer, size, **style, **common)
  tokenizers = {
      m: _tokenizer(m, settings, release, agnostic=True, width=width, **common)
      for m, settings in modalities.items()}
  return tokenizers, {'shared': tower}, projectors


def _size(where: str, settings: Settings) -> tuple[dict[str, int], dict[str, Any]]:
  """Splits settings into a tower's size and the rest."""
  size = {k: settings[k] for k in SIZE_KEYS if k in settings}
  rest = {k: v for k, v in settings.items() if k not in size}
  if 'size' in size:
    name = size.pop('size')
    if name not in SIZES:
      raise UserError(f'config.{where}.size={name!r}: {nearest(name, SIZES)}expected '
                      f'one of {", ".join(SIZES)}')
    size = SIZES[name] | size
  for key in ('depth', 'width'):
    if key not in size:
      raise UserError(f'config.{where}.{key}: missing; give it, or a size')
  least = 0 if where == 'model.text' else 1
  if size['depth'] < least:
    raise UserError(f'config.{where}.depth={size["depth"]}: expected {least} or more')
  if not size['depth']:
    return size, rest
  for key in ('mlp_dim', 'num_heads'):
    if key not in size:
      raise UserError(f'config.{where}.{key}: missing; give it, or a size')
  if size['width'] % size['num_heads']:
    raise UserError(f'config.{where}.width={size["width"]}: expected a multiple of '
                    f'num_heads={size["num_heads"]}')
  return size, rest


def _tokenizer(modality: str, settings: Settings, release: bool,
               agnostic: bool = False, **given: Any) -> nn.Module:
  where, settings = f'model.{modality}', dict(settings)
  given['release'] = release
  if modality == 'text':
    vectors = settings.pop('word_vectors', '')    # read where a run starts
    if vectors and not release:
      raise UserError(f'config.{where}.word_vectors={vectors!r}: only variant='
                      "'release' has a table of frozen vectors; remove the key")
    if not release:
      given['table_width'] = 0    # the paper has no such table
    return _module(where, vatt.TextTokenizer, settings, **given)
  given['pre_projection'] = release and agnostic
  rate = settings.get('drop_token_rate', 0.0)
  if not 0 <= rate < 1:
    raise UserError(f'config.{where}.drop_token_rate={rate}: expected 0 or more, less '
                    'than 1')
  if modality == 'video':
    return _module(where, vatt.VideoTokenizer, settings, **given)
  kind = _choose(where, _AUDIO_TOKENIZERS, settings.pop('kind', 'waveform'), 'kind')
  if kind is vatt.SpectrogramTokenizer:
    settings |= _spectrogram(where, settings, release)
  return _module(where, kind, settings, **given)


def _spectrogram(where: str, settings: Settings, release: bool) -> dict[str, Any]:
  """Builds the parts of a `vatt.SpectrogramTokenizer` that have their own settings."""
  changes = dict(settings.get('spectrogram', {}))
  name = changes.pop('name', 'vatt')
  constants = _choose(f'{where}.spectrogram', spectrograms.SPECTROGRAMS, name, 'name')
  if release:
    constants = constants | spectrograms.RELEASED.get(name, {})
  if {'mean', 'std'} & changes.keys():    # a config older than `normalize`
    changes.setdefault('normalize', 'standardize')
  elif changes.get('normalize', 'standardize') != 'standardize':
    constants = {k: v for k, v in constants.items() if k not in ('mean', 'std')}
  parts = dict(spectrogram=call(f'{where}.spectrogram', spectrograms.Spectrogram,
                                constants | changes))
  if 'spec_augment' in settings:
    parts['spec_augment'] = call(f'{where}.spec_augment', spectrograms.SpecAugment,
                                 settings['spec_augment'])
  return parts


def _head(settings: Settings | None, release: bool, dtype: Any) -> nn.Module | None:
  if settings is None:
    return None
  settings = dict(settings)
  kind = _choose('model.head', _HEADS, settings.pop('name', 'fac'), 'name')
  style = dict(release=release) if kind is heads.FacHead else {}
  return _module('model.head', kind, settings, dtype=dtype, **style)


def _module(where: str, kind: Callable[..., nn.Module], settings: Settings,
            **given: Any) -> nn.Module:
  check_keys(where, kind, settings, {*given, 'parent', 'name'})    # linen's fields
  return kind(**settings, **given)


def _choose(where: str, table: Mapping[str, Any], value: str, key: str) -> Any:
  try:
    return choose(table, value, key)
  except ValueError as e:
    raise UserError(f'config.{where}: {e}') from e
