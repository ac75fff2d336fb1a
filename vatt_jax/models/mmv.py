"""MMV (arXiv 2006.16228): a backbone for each modality, and graphs of common spaces.

Backbones and heads are chosen by name. VATT's towers are backbones too, and VATT's head
is a head, so that both models can be mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.config import build
from vatt_jax.config import call
from vatt_jax.config import choose
from vatt_jax.config import naming
from vatt_jax.config import Settings
from vatt_jax.config import VARIANTS
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip_keys
from vatt_jax.inputs import spectrograms
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.models import multimodal
from vatt_jax.models import pooling
from vatt_jax.models import r2plus1d
from vatt_jax.models import resnet
from vatt_jax.models import s3d
from vatt_jax.models import text_towers
from vatt_jax.models import vatt

_DTYPES = ('float32', 'bfloat16')
# Keys of a tower's or head's section that a checkpoint does not fix.
_FREE = ('still', 'last_conv', 'word_vectors', 'audio_text', 'drop_token_rate',
         'crops', 'pooling', 'spec_augment', 'dropout_rate')


class Mmv(multimodal.MultimodalModel):
  """Applies a backbone to each modality, and a head.

  Attributes:
    backbones: modality -> module (x, mask, train) -> `convolutions.Features`, or a
      model of that modality without a head, such as a tower of VATT.
    head: see `MultimodalModel`.
    poolings: modality -> module of `pooling.POOLINGS`, which replaces the backbone's
      own pooling of its map.
    crops: modality -> crops of the map, which the same module pools in training.
  """
  backbones: Mapping[str, nn.Module]
  head: nn.Module | None = None
  poolings: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
  crops: Mapping[str, pooling.Crops] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_config(cls, video: Settings | None = None, audio: Settings | None = None,
                  text: Settings | None = None, head: Settings | None = None,
                  dtype: str = 'float32', remat: str = 'none',
                  device: jax.Device | None = None) -> Mmv:
    """Builds the model of a config section, or some of its towers.

    Args:
      video: `name`, a key of `BACKBONES`, and the arguments of its entry; `pooling`, a
        `name` of `pooling.POOLINGS` and its attributes, or none for the backbone's own
        (with crops: average); and `crops`, the attributes of `pooling.Crops`. None for
        no such modality.
      audio: the same.
      text: the same, without pooling and crops.
      head: `name`, a key of `heads.HEADS`, by default 'mmv', and its attributes; None
        for features only.
      dtype: compute type; parameters are always float32.
      remat: how much the backward pass recomputes, one of `layers.REMAT`. A convolution
        of one place is a product with a matrix.
      device: the device that the model will run on; None for this machine's.

    Raises:
      ValueError: a value is not one of those expected.
      UserError: a key of a tower or of the head is invalid.
    """
    given = dict(dtype=jnp.dtype(choose(_DTYPES, dtype, 'dtype')),
                 remat=choose(tuple(layers.REMAT), remat, 'remat'), device=device,
                 parent=None, name=None)    # the last two are linen's
    towers = {m: dict(section) for m, section in dict(
        video=video, audio=audio, text=text).items() if section is not None}
    poolings, crops = _poolings(towers, given['dtype'])
    backbones = {
        m: build(f'model.{m}', BACKBONES[m], section, modality=m, **given)
        for m, section in towers.items()}
    if not backbones:
      raise UserError('config.model: no modality; expected video, audio or text')
    if head is not None:
      head = {'name': 'mmv', **head}
    head = heads.from_config(head, dtype=given['dtype'])
    return cls(backbones, head, poolings, crops)

  @property
  def modalities(self) -> tuple[str, ...]:
    """Returns the modalities that the model takes."""
    return tuple(m for m in multimodal.MODALITIES if m in self.backbones)

  @property
  def vocabulary_size(self) -> int:
    """Returns the number of ids of text; see `MultimodalModel.vocabulary_size`."""
    return getattr(self.backbones.get('text'), 'vocabulary_size', 0)

  def encode(self, batch: Mapping[str, jax.Array], train: bool = False
             ) -> dict[str, Any]:
    """Computes features; see `MultimodalModel.encode`."""
    outputs = dict(tokens={}, grid={}, pooled={})
    present, towers = multimodal.find_present(batch), self._towers()
    for modality in self.modalities:
      if modality not in batch:
        continue
      if modality in towers:
        alone = {k: v for k, v in batch.items() if k in (modality, 'key')}
        for kind, found in towers[modality].encode(alone, train).items():
          outputs[kind] |= found
        continue
      backbone, given = self.backbones[modality], {}
      if train and getattr(backbone, 'spec_augment', None):
        given = dict(keys=batch['key'])
      features = backbone(batch[modality], present.get(modality), train, **given)
      outputs['pooled'][modality] = features.pooled
      if features.grid is not None:
        outputs['grid'][modality] = features.grid
    for modality in self.poolings:
      if modality in outputs['pooled']:
        outputs['pooled'] |= self._pool(modality, outputs['grid'], batch, train)
    return outputs

  def _pool(self, modality: str, grids: Mapping[str, jax.Array],
            batch: Mapping[str, jax.Array], train: bool) -> dict[str, jax.Array]:
    """Returns the pooled map of a modality, and in training that of its crops."""
    if modality not in grids:
      raise UserError(f'config.model.{modality}.pooling: needs the features of all '
                      f'places; set config.model.{modality}.drop_token_rate=0')
    grid, pool = grids[modality], self.poolings[modality]
    with naming(f'model.{modality}.pooling'):
      pooled = {modality: pool(grid)}
    if train and modality in self.crops:
      keys = clip_keys.derive(batch['key'], 'crops')
      with naming(f'model.{modality}.crops'):
        pooled[f'{modality}_crops'] = self.crops[modality](keys, grid, pool)
    return pooled

  def num_crops(self) -> dict[str, tuple[tuple[int, int], ...]]:
    """Returns the numbers of crops; see `MultimodalModel.num_crops`."""
    return {modality: crops.counts for modality, crops in self.crops.items()}

  def layer_of(self, path: str) -> int:
    """Returns a parameter's distance from the head in VATT's towers, 0 in all others.

    See `MultimodalModel.layer_of`.
    """
    place = re.match(r'backbones_(\w+?)/(.*)', path)
    towers = self._towers()
    return towers[place[1]].layer_of(place[2]) if place and place[1] in towers else 0

  @classmethod
  def fixed_values(cls, section: Settings) -> dict[str, Any]:
    """Returns the values of a tower's or head's section that a checkpoint fixes."""
    values = {**vatt.SIZES.get(section.get('size'), {}), **section}
    return {key: value for key, value in values.items() if key not in _FREE}

  def check_window(self, window: Any) -> None:
    """Raises UserError if the spectrogram or VATT's towers do not fit the window."""
    spectrogram = getattr(self.backbones.get('audio'), 'spectrogram', None)
    if spectrogram is not None and spectrogram.audio_hz != window.audio_hz:
      raise UserError(f'config.window.audio_hz={window.audio_hz}: the spectrogram of '
                      f'config.model.audio expects {spectrogram.audio_hz}; make them '
                      'equal')
    for tower in self._towers().values():
      tower.check_window(window)

  def word_tables(self) -> dict[tuple[str, ...], str]:
    """Returns the bag's frozen table, and the tables of VATT's towers."""
    tables = {('frozen', f'backbones_{modality}', *path[1:]): file
              for modality, tower in self._towers().items()
              for path, file in tower.word_tables().items()}
    text = self.backbones.get('text')
    if isinstance(text, text_towers.WordBag):
      tables['frozen', 'backbones_text', 'embedding'] = text.word_vectors
    return tables

  def resize(self, path: tuple[str, ...], value: Any, shape: tuple[int, ...]) -> Any:
    """Resizes tables of positions in VATT's towers; see `MultimodalModel.resize`."""
    tower = self._towers().get(path[1].removeprefix('backbones_'))
    return tower and tower.resize((path[0], *path[2:]), value, shape)

  def _towers(self) -> dict[str, multimodal.MultimodalModel]:
    """Returns the backbones that are models themselves, by modality."""
    return {modality: tower for modality, tower in self.backbones.items()
            if isinstance(tower, multimodal.MultimodalModel)}


def _poolings(towers: Mapping[str, dict[str, Any]], dtype: Any
              ) -> tuple[dict[str, nn.Module], dict[str, pooling.Crops]]:
  """Takes `pooling` and `crops` out of the sections of towers, and builds them."""
  poolings, crops = {}, {}
  for modality in ('video', 'audio'):
    section, where = towers.get(modality, {}), f'model.{modality}'
    if 'crops' in section:
      crops[modality] = call(f'{where}.crops', pooling.Crops, section.pop('crops'))
      section.setdefault('pooling', dict(name='average'))
    if 'pooling' in section:
      poolings[modality] = build(f'{where}.pooling', pooling.POOLINGS,
                                 section.pop('pooling'), dtype=dtype, parent=None,
                                 name=None)    # the last two are linen's
  return poolings, crops


def _vatt(modality: str, device: jax.Device | None, dtype: Any, remat: str,
          variant: str = 'paper', dropout_rate: float | None = None,
          attention: str = 'auto', **tower: Any) -> vatt.Vatt:
  """Builds a tower of VATT; `tower` is the section of its modality."""
  return vatt.Vatt.from_config(**{modality: tower}, variant=variant,
                               dropout_rate=dropout_rate, dtype=dtype.name,
                               attention=attention, remat=remat, device=device)


def _audio_resnet(net: type[nn.Module], default: str, dtype: Any, remat: str,
                  spectrogram: Settings | None = None,
                  spec_augment: Settings | None = None, **fields: Any) -> nn.Module:
  """Builds a network with the spectrogram of a config section.

  Args:
    net: its class.
    default: name of the default spectrogram.
    dtype: attribute of the network.
    remat: attribute of the network.
    spectrogram: a `name` of `spectrograms.SPECTROGRAMS`, a `variant`, 'paper' or
      'release' (`spectrograms.RELEASED`), and the constants to change.
    spec_augment: fields of `spectrograms.SpecAugment`; None for no masks.
    **fields: other attributes of the network.
  """
  changes, where = dict(spectrogram or {}), 'model.audio.spectrogram'
  with naming(where):
    name = changes.pop('name', default)
    constants = choose(spectrograms.SPECTROGRAMS, name)
    if choose(VARIANTS, changes.pop('variant', 'paper'), 'variant') == 'release':
      constants = constants | spectrograms.RELEASED[name]
  if spec_augment is not None:
    fields['spec_augment'] = call('model.audio.spec_augment', spectrograms.SpecAugment,
                                  spec_augment)
  return call('model.audio', net, fields, dtype=dtype, remat=remat, parent=None,
              name=None, spectrogram=call(where, spectrograms.Spectrogram,
                                          constants | changes))


# modality -> name -> builder; the section's other keys are its arguments.
BACKBONES: dict[str, dict[str, Callable[..., nn.Module]]] = {
    'video': {'tsm_resnet50': resnet.TSMResNet50, 's3d_g': s3d.S3DG,
              'r2plus1d_18': r2plus1d.R2Plus1D18, 'r2plus1d_34': r2plus1d.R2Plus1D34,
              'vatt': _vatt},
    'audio': {'resnet9': functools.partial(_audio_resnet, resnet.AudioResNet9, 'gdt'),
              'resnet18': functools.partial(_audio_resnet, resnet.AudioResNet18, 'gdt'),
              'resnet50': functools.partial(_audio_resnet, resnet.AudioResNet50, 'mmv'),
              'vatt': _vatt},
    'text': {'word_bag': text_towers.WordBag, 'vatt': _vatt}}
