"""Deflates networks of video with training (MMV, arXiv 2006.16228, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax.config import Settings
from vatt_jax.errors import UserError
from vatt_jax.models import mmv
from vatt_jax.models import multimodal


class Deflation(multimodal.MultimodalModel):
  """Computes features of images, and beside them those of still videos.

  It starts from a checkpoint of the network of video, which both networks have. The
  loss `l1` compares them. Both always use moving statistics, and the network of video
  gets no gradient. A checkpoint of this model is one of the deflated network.

  Attributes:
    backbones: 'video' -> the deflated network.
    teachers: 'video' -> the network of video.
    num_frames: of a still video.
  """
  backbones: Mapping[str, nn.Module]
  teachers: Mapping[str, nn.Module]
  num_frames: int = 32
  modalities = ('video',)
  head = None
  needs_checkpoint = True

  @classmethod
  def from_config(cls, video: Settings, num_frames: int = 32, dtype: str = 'float32'
                  ) -> Deflation:
    """Builds both networks of the section of one.

    Args:
      video: as for `mmv.Mmv.from_config`.
      num_frames: of a still video.
      dtype: compute type; parameters are always float32.

    Raises:
      UserError: a key of the network is invalid.
    """
    for key in ('pooling', 'crops'):
      if key in video:
        raise UserError(f'config.model.video.{key}: is not used by deflation; remove '
                        'it')
    deflated, whole = (
        mmv.Mmv.from_config(video=dict(video, still=still), dtype=dtype).backbones
        for still in (True, False))
    return cls(deflated, whole, num_frames)

  def encode(self, batch: Mapping[str, jax.Array], train: bool = False
             ) -> dict[str, Any]:
    """Computes features; see `MultimodalModel.encode`.

    Returns:
      In training also `pooled[video_target]` [B, D], the features of the still video.
    """
    image = batch['video']
    features = self.backbones['video'](image)
    pooled = dict(video=features.pooled)
    if train or self.is_initializing():
      still = jnp.repeat(image, self.num_frames, axis=1)
      pooled['video_target'] = jax.lax.stop_gradient(
          self.teachers['video'](still).pooled)
    return dict(tokens={}, grid=dict(video=features.grid), pooled=pooled)

  @classmethod
  def fixed_values(cls, section: Settings) -> dict[str, Any]:
    """Returns the values of a tower's section that a checkpoint fixes."""
    return mmv.Mmv.fixed_values(section)

  def check_window(self, window: Any) -> None:
    """Raises UserError if the window has more than a frame."""
    if window.num_frames != 1:
      raise UserError(f'config.window.num_frames={window.num_frames}: a deflated '
                      'network takes images; expected 1')

  def adopt(self, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the variables of a network of video to both networks."""
    return {kind: {'teachers_video': tree['backbones_video'], **tree}
            if 'backbones_video' in tree else tree for kind, tree in variables.items()}
