"""Contrastive learning from crops of features (STiCA, arXiv 2103.10211)."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vatt_jax import config
from vatt_jax.losses import base
from vatt_jax.losses import contrastive
from vatt_jax.models import multimodal


@dataclasses.dataclass(frozen=True, kw_only=True)
class STiCA(base.Loss):
  """Contrasts crops of two views with each other, and the views with audio.

  It is `weight_within` L_vv + (1 - `weight_within`) L_va (equation 7), each the mean of
  its terms, which are `contrastive.nce` of pairs of views. (The paper sums them, which
  makes L_vv about ten times as large as L_va; the released code averages them.)

  Attributes:
    weight: of this loss in the sum of all.
    space: of the embeddings.
    temperature_within: tau of L_vv.
    temperature_across: tau of L_va.
    weight_within: of L_vv; 1 for video alone.
    variant: 'paper' contrasts all crops of one kind (`models.pooling.Crops`) in both
      directions, except small with small ones (equation 6). 'release' contrasts only
      the last large crops in both directions, and small crops of the second view only
      with large ones of the first; candidates get no gradient. Without crops both
      contrast the views.
    num_chunks: see `contrastive.mil_nce`; a divisor of the number of pairs of views.
    num_views: of the window; must be 2.
    num_copies: of the augmentation.
    crops: modality -> numbers of large and of small crops of each kind.
  """
  space: str = 'video_audio'
  temperature_within: float = 0.5
  temperature_across: float = 0.1
  weight_within: float = 0.5
  variant: str = 'paper'
  num_chunks: int = 1
  num_views: int
  num_copies: int
  crops: Mapping[str, Sequence[tuple[int, int]]]

  def __post_init__(self):
    config.choose(config.VARIANTS, self.variant, 'variant')
    if self.num_views != 2:
      raise ValueError(f'num_views={self.num_views}: expected 2; set '
                       'config.window.num_views=2')
    if not 0 <= self.weight_within <= 1:
      raise ValueError(f'weight_within={self.weight_within}: expected 0 to 1')
    for key in ('temperature_within', 'temperature_across', 'num_chunks'):
      if getattr(self, key) <= 0:
        raise ValueError(f'{key}={getattr(self, key)}: expected more than 0')
    if set(self.crops) - {'video'}:
      raise ValueError(f'crops of {", ".join(sorted(self.crops))}: expected of video '
                       'alone; remove config.model.audio.crops')

  def __call__(self, params: Mapping[str, jax.Array], outputs: Mapping[str, Any],
               batch: base.Batch, memory: Any
               ) -> tuple[jax.Array, base.Metrics, Any]:
    """Computes the loss; see `Loss.__call__`. The metrics are L_vv and L_va."""
    take = lambda name: self._views(base.take(
        outputs, 'outputs', 'embed', self.space, name))
    video = take('video')                                            # [2, N, D]
    present = {m: self._views(x)[0]
               for m, x in multimodal.find_present(batch).items()}
    has_video = present.get('video', jnp.ones(video.shape[1], bool))
    kinds = self.crops.get('video', ())
    crops = jnp.moveaxis(take('video_crops'), 2, 1) if kinds else video[:, None]
    pairs = _pairs(kinds or ((1, 0),), self.variant)
    within = self._contrast(crops, crops[::-1], pairs, has_video,
                            self.temperature_within)
    metrics, loss = dict(within=within), self.weight_within * within
    if self.weight_within < 1:
      audio = take('audio')
      both = jnp.stack([video, audio], axis=1)                       # [2, 2, N, D]
      pairs = [(view, m, 1 - m, 1.0) for view in (0, 1) for m in (0, 1)]
      across = self._contrast(both, both, pairs,
                              has_video & present.get('audio', has_video),
                              self.temperature_across)
      metrics['across'] = across
      loss += (1 - self.weight_within) * across
    return loss, metrics, memory

  def _views(self, x: jax.Array) -> jax.Array:
    """Separates the rows of two views.  [R, ...] -> [2, R / 2, ...]."""
    by_view = jnp.moveaxis(x.reshape(-1, 2, self.num_copies, *x.shape[1:]), 1, 0)
    return by_view.reshape(2, -1, *x.shape[1:])

  def _contrast(self, anchors: jax.Array, others: jax.Array,
                pairs: Sequence[tuple[int, int, int, float]], present: jax.Array,
                temperature: float) -> jax.Array:
    """Computes the weighted mean of NCE over pairs of views.

    Args:
      anchors: [2, P, N, D].
      others: [2, P, N, D].
      pairs: (view, place among P of the anchors, that of the others, weight).
      present: bool [N].
      temperature: tau.
    """
    if len(present) % self.num_chunks:
      raise ValueError(f'num_chunks={self.num_chunks}: expected a divisor of the '
                       f'{len(present)} pairs of views of a batch')
    view, anchor, other = np.array([pair[:3] for pair in pairs]).T
    weights = np.array([weight for *_, weight in pairs], np.float32)
    if self.variant == 'release':
      others = jax.lax.stop_gradient(others)
    losses = jax.vmap(lambda x, y: contrastive.nce(
        x, y, present, temperature, num_chunks=self.num_chunks))(
            anchors[view, anchor], others[view, other])
    return weights @ losses / weights.sum()


def _pairs(kinds: Sequence[tuple[int, int]], variant: str
           ) -> list[tuple[int, int, int, float]]:
  """Returns the pairs of crops of L_vv.

  Args:
    kinds: numbers of large and small crops of each kind; the large ones come first.
    variant: one of `config.VARIANTS`.

  Returns:
    The anchor's view, its crop, the crop of the other view, and the weight of the term.
  """
  pairs, first = [], 0
  for large, small in kinds:
    begin, end = first + large, first + large + small    # of the small ones
    if variant == 'paper':
      pairs += [(view, i, j, 1.0) for i in range(first, end) for j in range(first, end)
                if min(i, j) < begin for view in (0, 1)]
    elif large:
      pairs += [(view, begin - 1, begin - 1, 0.5) for view in (0, 1)]
      pairs += [(1, i, j, 1.0) for i in range(begin, end) for j in range(first, begin)]
    first = end
  return pairs
