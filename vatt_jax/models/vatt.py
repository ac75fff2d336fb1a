"""VATT: tokenizers of the modalities, Transformers or a shared one, and a head."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.config import call
from vatt_jax.config import choose
from vatt_jax.config import naming
from vatt_jax.config import nearest
from vatt_jax.config import Settings
from vatt_jax.config import VARIANTS
from vatt_jax.distributed import logical_axes
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip_keys
from vatt_jax.inputs import spectrograms
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.models import multimodal
from vatt_jax.models import positions
from vatt_jax.models import tokenization
from vatt_jax.models.attention import choose_form
from vatt_jax.models.attention import FORMS
from vatt_jax.models.tokenization import Tokens

# Table 1 of the paper.
SIZES = {
    'small': dict(depth=6, width=512, mlp_dim=2048, num_heads=8),
    'base': dict(depth=12, width=768, mlp_dim=3072, num_heads=12),
    'medium': dict(depth=12, width=1024, mlp_dim=4096, num_heads=16),
    'large': dict(depth=24, width=1024, mlp_dim=4096, num_heads=16)}
_SIZE_KEYS = ('depth', 'width', 'mlp_dim', 'num_heads')
# Values of a tower or head that a checkpoint fixes.
_FIXED = (*_SIZE_KEYS, 'patch', 'kind', 'vocabulary_size', 'video_audio_dim',
          'video_text_dim', 'projected_width')

_DTYPES = ('float32', 'bfloat16')
# The release drops everywhere in its Transformers and on its tokens, the paper nowhere.
_RELEASE_DROPOUT_RATE = 0.1

_AUDIO_TOKENIZERS = {'waveform': tokenization.WaveformTokenizer,
                     'spectrogram': tokenization.SpectrogramTokenizer}


class Vatt(multimodal.MultimodalModel):
  """Applies tokenizers, Transformers with a leading AGG token, and a head (section 3).

  Attributes:
    tokenizers: modality -> module, raw input -> `Tokens`; a single tower has only one.
    backbones: modality -> Transformer, or for text `layers.WordMean`, or 'shared' ->
      the one Transformer of the modality-agnostic model.
    projectors: modality -> module, applied to the Transformer's output in the release's
      modality-agnostic model; empty otherwise.
    head: pooled features -> outputs (`multimodal.MultimodalModel.apply_head`).
  """
  tokenizers: Mapping[str, nn.Module]
  backbones: Mapping[str, nn.Module]
  projectors: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
  head: nn.Module | None = None

  @classmethod
  def from_config(cls, video: Settings | None = None, audio: Settings | None = None,
                  text: Settings | None = None, shared: Settings | None = None,
                  head: Settings | None = None, variant: str = 'paper',
                  dropout_rate: float | None = None, dtype: str = 'float32',
                  attention: str = 'auto', remat: str = 'none',
                  scan_layers: bool = False, device: jax.Device | None = None) -> Vatt:
    """Builds VATT, or some of its towers; with `shared` the modality-agnostic model.

    A tower's size is a `size` of `SIZES`, or `depth`, `width`, `mlp_dim`, `num_heads`.

    Args:
      video: the tower's size, and settings of `tokenization.VideoTokenizer`.
      audio: size, and settings of `tokenization.WaveformTokenizer`, or with
        `kind='spectrogram'` of `tokenization.SpectrogramTokenizer`. Its `spectrogram`
        has a `name` of `spectrograms.SPECTROGRAMS` (default: vatt) and the constants to
        change; its `spec_augment` has settings of `spectrograms.SpecAugment`.
      text: size, and settings of `tokenization.TextTokenizer`. With `depth=0` the tower
        has no Transformer and averages the tokens of a sentence (section 4.4.4).
      shared: the size of the one Transformer for all modalities, and in the release
        variant `projected_width`, that of its projected output (default: its width).
        The modalities then have no size, and text has `max_tokens`.
      head: a `name` of `heads.HEADS` (default: fac) and its settings; None for features
        only.
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
      ValueError: a value is not one of those expected.
      UserError: a key of a tower or of the head is invalid.
    """
    release = choose(VARIANTS, variant, 'variant') == 'release'
    if choose(('auto', *FORMS), attention, 'attention') == 'auto':
      attention = choose_form(device or jax.devices()[0])
    if dropout_rate is None:
      dropout_rate = _RELEASE_DROPOUT_RATE if release else 0.0
    common = dict(dropout_rate=dropout_rate,
                  dtype=jnp.dtype(choose(_DTYPES, dtype, 'dtype')))
    style = dict(common, attention=functools.partial(layers.Attention, form=attention),
                 remat=choose(tuple(layers.REMAT), remat, 'remat'),
                 scan_layers=scan_layers)
    towers = {m: section for m, section in (('video', video), ('audio', audio),
                                            ('text', text)) if section is not None}
    if not towers:
      raise UserError('config.model: no modality; expected video, audio or text')
    parts = (_specific(towers, release, style, common) if shared is None else
             _agnostic(towers, shared, release, style, common))
    return cls(*parts, heads.from_config(head, release=release, dtype=common['dtype']))

  def setup(self):
    self.aggregators = {m: layers.Aggregator() for m in self.tokenizers}

  @property
  def modalities(self) -> tuple[str, ...]:
    """Returns the modalities that the model takes."""
    return tuple(m for m in multimodal.MODALITIES if m in self.tokenizers)

  @property
  def vocabulary_size(self) -> int:
    """Returns the number of ids of text; see `MultimodalModel.vocabulary_size`."""
    return getattr(self.tokenizers.get('text'), 'vocabulary_size', 0)

  @property
  def title(self) -> str:
    """Returns the kind of the model, for figures."""
    return 'modality-agnostic' if 'shared' in self.backbones else 'modality-specific'

  def encode(self, batch: Mapping[str, jax.Array], train: bool = False
             ) -> dict[str, Any]:
    """Computes features; see `MultimodalModel.encode`."""
    outputs = dict(tokens={}, grid={}, pooled={})
    for modality, lead, (x, mask, grid), clips in self._tokenized(batch, train):
      tower = self._backbone(modality)
      if not isinstance(tower, layers.WordMean):
        x = self.aggregators[modality](x)
        if mask is not None:
          mask = jnp.pad(mask, [(0, 0), (1, 0)], constant_values=True)  # keep AGG
      x = tower(x, mask, clips)
      if modality in self.projectors:
        x = self.projectors[modality](x)
      x = x.reshape(*lead, *x.shape[1:])
      pooled, tokens = x[..., 0, :], x[..., 1:, :]
      outputs['pooled'][modality], outputs['tokens'][modality] = pooled, tokens
      if grid is not None:
        outputs['grid'][modality] = tokens.reshape(*lead, *grid, -1)
    return outputs

  def layer_of(self, path: str) -> int:
    """Returns a parameter's distance from the head; tokenizers are below block 0.

    See `MultimodalModel.layer_of`.
    """
    place = re.match(r'(backbones|tokenizers|aggregators)_(\w+)/(?:block_(\d+)|norm)?',
                     path)
    if not place or place[0].endswith('/norm'):    # the last norm has the head's rate
      return 0
    tower = self.backbones['shared' if 'shared' in self.backbones else place[2]]
    depth = getattr(tower, 'depth', 0)
    return depth - int(place[3]) if place[3] else depth + 1

  @classmethod
  def fixed_values(cls, section: Settings) -> dict[str, Any]:
    """Returns a tower's or head's values that a checkpoint fixes, with its size's."""
    values = {**SIZES.get(section.get('size'), {}), **section}
    return {key: value for key, value in values.items() if key in _FIXED}

  def check_window(self, window: Any) -> None:
    """Raises UserError if the spectrogram or the positions of text do not fit."""
    spectrogram = getattr(self.tokenizers.get('audio'), 'spectrogram', None)
    if spectrogram is not None and spectrogram.audio_hz != window.audio_hz:
      raise UserError(f'config.window.audio_hz={window.audio_hz}: the spectrogram of '
                      f'config.model.audio expects {spectrogram.audio_hz}; make them '
                      'equal')
    text = self.tokenizers.get('text')
    if text and 'shared' in self.backbones and text.max_tokens < window.max_tokens:
      raise UserError(f'config.model.text.max_tokens={text.max_tokens}: expected '
                      f'window.max_tokens={window.max_tokens} or more')

  def word_tables(self) -> dict[tuple[str, ...], str]:
    """Returns the release's frozen table; see `MultimodalModel.word_tables`."""
    text = self.tokenizers.get('text')
    if text is None or not text.release:
      return {}
    return {('frozen', 'tokenizers_text', 'embedding'): text.word_vectors}

  def resize(self, path: tuple[str, ...], value: Any, shape: tuple[int, ...]) -> Any:
    """Resizes tables of positions; see `MultimodalModel.resize`."""
    if not path[-1].endswith('positions') or value.shape[1:] != shape[1:]:
      return None
    release = any(tokenizer.release for tokenizer in self.tokenizers.values())
    return positions.fit(value, path[-1], shape[0], release)

  def mean_inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Computes the mean of the Transformer's input tokens (VATT, section 4.4.6).

    Args:
      batch: as for `__call__`.

    Returns:
      modality -> [B, D] (text: [B, K, D], without padding).
    """
    means = {}
    for modality, lead, (x, mask, _), _ in self._tokenized(batch):
      present = jnp.ones(x.shape[:2], bool) if mask is None else mask  # [B, N]
      total = jnp.einsum('bnd,bn->bd', x, present.astype(x.dtype))
      mean = total / jnp.maximum(present.sum(axis=1), 1)[:, None].astype(x.dtype)
      means[modality] = mean.reshape(*lead, -1)
    return means

  def _tokenized(self, batch: Mapping[str, jax.Array], train: bool = False
                 ) -> Iterator[tuple[str, tuple[int, ...], Tokens, jax.Array | None]]:
    """Yields name, leading shape, tokens and rows' numbers of the batch's modalities.

    The leading shape is [B]; for text, whose rows are sentences, it is [B, K].
    """
    keys = batch['key'] if train else None
    numbers = None if keys is None else clip_keys.numbers(keys)
    for modality in self.modalities:
      if modality not in batch:
        continue
      x, clips = batch[modality], numbers
      if modality == 'text':
        lead, x = x.shape[:-1], x.reshape(-1, x.shape[-1])            # [B*K, N]
        if clips is not None:
          clips = (clips[:, None] + jnp.arange(lead[1], dtype=clips.dtype)).reshape(-1)
        tokens = self.tokenizers[modality](x, clips)
      else:
        lead = x.shape[:1]
        tokens = self.tokenizers[modality](x, keys)
      tokens = tokens._replace(x=logical_axes.split_rows(tokens.x))
      yield modality, lead, tokens, clips

  def _backbone(self, modality: str) -> nn.Module:
    return self.backbones['shared' if 'shared' in self.backbones else modality]


def _specific(towers: Mapping[str, Settings], release: bool, style: Settings,
              common: Settings) -> tuple[dict[str, nn.Module], ...]:
  """Builds tokenizers and backbones: a Transformer for each modality."""
  tokenizers, backbones = {}, {}
  for modality, section in towers.items():
    where = f'model.{modality}'
    size, section = _split_size(where, section)
    width = size.pop('width')
    given = dict(style)
    if modality == 'text':
      given |= dict(relative_bias=True)
      if release:
        given |= dict(t5_style=True, width=width)
    if size['depth']:
      backbones[modality] = layers.Transformer(**size, **given)
    else:    # vectors that are trained need no projection
      backbones[modality] = layers.WordMean(width if release else 0, common['dtype'])
    tokenizers[modality] = _tokenizer(modality, section, release, width=width, **common)
  return tokenizers, backbones, {}


def _agnostic(towers: Mapping[str, Settings], shared: Settings, release: bool,
              style: Settings, common: Settings) -> tuple[dict[str, nn.Module], ...]:
  """Builds tokenizers, a backbone for all modalities, and the release's projectors."""
  if not towers.get('text', {'max_tokens': 1}).get('max_tokens'):
    raise UserError('config.model.text.max_tokens: missing; without positions a shared '
                    'Transformer cannot tell the order of tokens')
  size, rest = _split_size('model.shared', shared)
  width, projectors = size.pop('width'), {}
  if release:
    projected_width = rest.pop('projected_width', width)
    projectors = {m: layers.Projector(projected_width, common['dtype']) for m in towers}
  for key in rest:
    raise UserError(
        f'config.model.shared.{key}: unknown key; {nearest(key, _SIZE_KEYS)}expected '
        f'one of size, {", ".join(_SIZE_KEYS)}')
  tokenizers = {m: _tokenizer(m, section, release, agnostic=True, width=width, **common)
                for m, section in towers.items()}
  return tokenizers, {'shared': layers.Transformer(**size, **style)}, projectors


def _split_size(where: str, section: Settings) -> tuple[dict[str, int], dict[str, Any]]:
  """Splits a section into a tower's size and the rest."""
  size = {key: section[key] for key in _SIZE_KEYS if key in section}
  rest = {key: value for key, value in section.items()
          if key not in ('size', *_SIZE_KEYS)}
  if 'size' in section:
    with naming(where):
      size = choose(SIZES, section['size'], 'size') | size
  needed = _SIZE_KEYS if size.get('depth', 1) else ('depth', 'width')
  for key in needed:
    if key not in size:
      raise UserError(f'config.{where}.{key}: missing; give it, or a size')
  least = 0 if where == 'model.text' else 1
  if size['depth'] < least:
    raise UserError(f'config.{where}.depth={size["depth"]}: expected {least} or more')
  if size['depth'] and size['width'] % size['num_heads']:
    raise UserError(f'config.{where}.width={size["width"]}: expected a multiple of '
                    f'num_heads={size["num_heads"]}')
  return {key: size[key] for key in needed}, rest


def _tokenizer(modality: str, section: Settings, release: bool, agnostic: bool = False,
               **given: Any) -> nn.Module:
  """Builds the tokenizer of a modality."""
  where, section = f'model.{modality}', dict(section)
  given |= dict(parent=None, name=None, release=release)
  if modality == 'text':
    if not release:
      given['table_width'] = 0    # the paper has no such table
    return call(where, tokenization.TextTokenizer, section, **given)
  given['pre_projection'] = release and agnostic
  if modality == 'video':
    return call(where, tokenization.VideoTokenizer, section, **given)
  with naming(where):
    kind = choose(_AUDIO_TOKENIZERS, section.pop('kind', 'waveform'), 'kind')
  if kind is tokenization.SpectrogramTokenizer:
    section |= _spectrogram(where, section, release)
  return call(where, kind, section, **given)


def _spectrogram(where: str, section: Settings, release: bool) -> dict[str, Any]:
  """Builds the fields of a spectrogram tokenizer that have their own sections."""
  changes = dict(section.get('spectrogram', {}))
  name = changes.pop('name', 'vatt')
  with naming(f'{where}.spectrogram'):
    constants = choose(spectrograms.SPECTROGRAMS, name)
  if release:
    constants = constants | spectrograms.RELEASED.get(name, {})
  if {'mean', 'std'} & changes.keys():    # a config older than `normalize`
    changes.setdefault('normalize', 'standardize')
  elif changes.get('normalize', 'standardize') != 'standardize':
    constants = {k: v for k, v in constants.items() if k not in ('mean', 'std')}
  fields = dict(spectrogram=call(f'{where}.spectrogram', spectrograms.Spectrogram,
                                 constants | changes))
  if 'spec_augment' in section:
    fields['spec_augment'] = call(f'{where}.spec_augment', spectrograms.SpecAugment,
                                  section['spec_augment'])
  return fields
