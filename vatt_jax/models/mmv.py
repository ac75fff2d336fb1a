"""MMV (arXiv 2006.16228): a backbone for each modality, and graphs of common spaces.

Backbones and heads are chosen by name. VATT's towers are backbones too, and VATT's head
is a head, so that both models can be mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import inspect
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.config import call
from vatt_jax.config import choose
from vatt_jax.config import Settings
from vatt_jax.errors import UserError
from vatt_jax.inputs import spectrograms
from vatt_jax.models import build
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.models import multimodal
from vatt_jax.models import r2plus1d
from vatt_jax.models import resnet
from vatt_jax.models import s3d
from vatt_jax.models import text_towers

_DTYPES = {name: jnp.dtype(name) for name in ('float32', 'bfloat16')}


class Mmv(multimodal.MultimodalModel):
  """Applies a backbone to each modality, and a head.

  Attributes:
    backbones: modality -> module (x, mask, train) -> `convolutions.Features`, or a
      model of that modality without a head, such as a tower of VATT.
    head: see `MultimodalModel`.
  """
  backbones: Mapping[str, nn.Module]
  head: nn.Module | None = None

  @classmethod
  def from_config(cls, video: Settings | None = None, audio: Settings | None = None,
                  text: Settings | None = None, head: Settings | None = None,
                  dtype: str = 'float32', remat: str = 'none',
                  device: jax.Device | None = None) -> Mmv:
    """Builds the model of a config section, or some of its towers.

    Args:
      video: `name`, a key of `BACKBONES`, and the arguments of its entry; None for no
        such modality.
      audio: the same.
      text: the same.
      head: `name`, a key of `HEADS`, by default 'mmv', and its attributes; None for
        features only.
      dtype: compute type; parameters are always float32.
      remat: how much the backward pass recomputes, one of `layers.REMAT`. A convolution
        of one place is a product with a matrix.
      device: the device that the model will run on; None for this machine's.

    Raises:
      UserError: names the key that is unknown, missing or out of range.
    """
    given = dict(dtype=choose(_DTYPES, dtype, 'dtype'), remat=remat, device=device,
                 parent=None, name=None)    # the last two are linen's
    choose(layers.REMAT, remat, 'remat')
    sections = dict(video=video, audio=audio, text=text)
    backbones = {
        m: _build(f'model.{m}', BACKBONES[m], section, modality=m, **given)
        for m, section in sections.items() if section is not None}
    if not backbones:
      raise UserError('config.model: no modality; expected video, audio or text')
    return cls(backbones, head if head is None else _build(
        'model.head', HEADS, {'name': 'mmv', **head}, **given))

  @property
  def modalities(self) -> tuple[str, ...]:
    """Returns the modalities that the model takes."""
    return tuple(m for m in multimodal.MODALITIES if m in self.backbones)

  @property
  def audio_hz(self) -> int | None:
    """Returns the sample rate that the spectrogram needs."""
    backbone = self.backbones.get('audio')
    if isinstance(backbone, multimodal.MultimodalModel):
      return backbone.audio_hz
    return backbone and backbone.spectrogram.audio_hz

  def encode(self, batch: Mapping[str, jax.Array], train: bool = False
             ) -> dict[str, Any]:
    """Computes features; see `MultimodalModel.encode`."""
    outputs = dict(tokens={}, grid={}, pooled={})
    present = multimodal.find_present(batch)
    for modality in self.modalities:
      if modality not in batch:
        continue
      backbone = self.backbones[modality]
      if isinstance(backbone, multimodal.MultimodalModel):
        alone = {k: v for k, v in batch.items() if k in (modality, 'key')}
        for kind, features in backbone.encode(alone, train).items():
          outputs[kind] |= features
        continue
      features = backbone(batch[modality], present.get(modality), train)
      outputs['pooled'][modality] = features.pooled
      if features.grid is not None:
        outputs['grid'][modality] = features.grid
    return outputs

  def layer_of(self, path: str) -> int:
    """Returns a parameter's distance from the head in VATT's towers, 0 in all others.

    See `MultimodalModel.layer_of`.
    """
    place = re.match(r'backbones_(\w+?)/(.*)', path)
    backbone = self.backbones[place[1]] if place else None
    if isinstance(backbone, multimodal.MultimodalModel):
      return backbone.layer_of(place[2])
    return 0


def _build(where: str, table: Mapping[str, Callable[..., nn.Module]],
           section: Settings, /, **given: Any) -> nn.Module:
  """Builds the module of a section with a `name`; it gets what it takes of `given`."""
  def make(name: str, **fields: Any) -> nn.Module:
    kind = choose(table, name)
    takes = inspect.signature(kind).parameters.keys() - fields.keys()
    return call(where, kind, fields, **{k: v for k, v in given.items() if k in takes})
  return call(where, make, section)


def _vatt(modality: str, device: jax.Device | None, dtype: Any, remat: str,
          variant: str = 'paper', dropout_rate: float | None = None,
          attention: str = 'auto', **tower: Any) -> multimodal.MultimodalModel:
  """Builds a tower of VATT; `tower` is the modality's section of `build_model`."""
  return build.build_model(**{modality: tower}, variant=variant,
                           dropout_rate=dropout_rate, dtype=dtype.name,
                           attention=attention, remat=remat, device=device)


def _audio_resnet50(spectrogram: Settings, dtype: Any, remat: str, width: float = 1
                    ) -> resnet.AudioResNet50:
  """Builds a network with the spectrogram of a config section.

  Args:
    spectrogram: a `name` of `spectrograms.SPECTROGRAMS`, and the constants to change.
    dtype: attribute of the network.
    remat: attribute of the network.
    width: attribute of the network.
  """
  changes = dict(spectrogram)
  where = 'model.audio.spectrogram'
  constants = choose(spectrograms.SPECTROGRAMS, changes.pop('name', 'mmv'),
                     'spectrogram.name')
  spectrogram = call(where, spectrograms.Spectrogram, constants | changes)
  return resnet.AudioResNet50(spectrogram, width, remat, dtype)


# modality -> name -> builder; the section's other keys are its arguments.
BACKBONES: dict[str, dict[str, Callable[..., nn.Module]]] = {
    'video': {'tsm_resnet50': resnet.TSMResNet50, 's3d_g': s3d.S3DG,
              'r2plus1d_18': r2plus1d.R2Plus1D18, 'vatt': _vatt},
    'audio': {'resnet50': _audio_resnet50, 'vatt': _vatt},
    'text': {'word_bag': text_towers.WordBag, 'vatt': _vatt}}
HEADS: dict[str, Callable[..., nn.Module]] = {
    'mmv': heads.MmvHead, 'fac': heads.FacHead, 'classifier': heads.Classifier}
