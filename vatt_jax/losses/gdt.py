"""Contrastive learning from transformations of clips (GDT, arXiv 2003.04298).

A transformation has factors: clip, time shift, reversal, modality, augmentation. A loss
is distinctive of a factor or invariant to it. The rows of a batch give the values of
all factors (`inputs.window`, `inputs.augment`), so that a row's class says which rows
are its positives.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vatt_jax import config
from vatt_jax.losses import contrastive

KINDS = ('invariant', 'distinctive')

# The sums of InfoNCE that the released code computes, by shift and reversal, or by the
# only one of them that has two values. An entry "0>1 01 12" contrasts a clip's rows 0
# of one modality with their positives, rows 1 of the other one. The denominator has
# rows 1 of all clips of the own replica. From other replicas it has rows 0 once and
# rows 1 twice, because the released code extends lists of keys that it uses again. The
# rows of a clip are (shift, reversal) 00, 01, 10, 11.
_RELEASED = {
    (): '0>0 1 1',
    ('distinctive',): '0>0 11 11  1>1 11 11',
    ('invariant',): '0>0 10 11  1>1 01 11  0>1 01 12  1>0 10 12',
    ('distinctive', 'distinctive'): """
        0>0 1100 1100  1>1 1100 1100  2>2 0011 0011  3>3 0011 0011
        0>0 1010 1111  2>2 1010 1111  1>1 0101 0101  3>3 0101 0101""",
    ('distinctive', 'invariant'): """
        0>0 1000 1100  1>1 0100 1100  0>1 0100 1200  1>0 1000 1200  2>3 0001 0011
        3>2 0010 0011  0>0 1010 1110  2>2 1010 1110  1>1 0101 1211  3>3 0101 1211""",
    ('invariant', 'distinctive'): """
        0>0 1000 1010  2>2 0010 1010  0>0 1100 1110  1>1 1100 1110  2>2 0011 0011
        3>3 0011 0011  0>2 0010 1121  2>0 1000 1121  1>3 0001 0101  3>1 0100 0101""",
    ('invariant', 'invariant'): """
        0>0 1000 1100  1>1 0100 1100  0>0 1000 1110  2>2 0010 1110
        0>1 0100 1210  1>0 1000 1210  2>3 0001 0011  3>2 0010 0011
        0>2 0010 1120  2>0 1000 1120  1>3 0001 1221  3>1 0100 1221"""}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GDT(contrastive.Contrastive):
  """Contrasts transformed clips (GDT, equation 1; `equation_1`, `released_sums`).

  Two different modalities are contrasted with each other, in both directions. A pair of
  one modality, such as video_video, contrasts each row with all other rows (SimCLR).

  Attributes:
    weight: of this loss in the sum of all.
    pair: two modalities, joined by `_`; by default the section's name.
    space: of the embeddings; empty for `video_text` if the pair has text, or else
      `video_audio`.
    temperature: rho, or its initial value. (The paper's "1/0.07" is its inverse.)
    learn_temperature: train the temperature.
    num_chunks: number of chunks of rows, or of clips in the release variant, which are
      contrasted one after the other in 1 / num_chunks of the memory.
    shift: one of `KINDS`, for windows of a clip at different times; empty without them.
    reversal: one of `KINDS`, for a clip forward and reversed; empty for one of them.
    variant: 'paper' or 'release'.
    num_groups: number of replicas of the release variant, to which the clips belong in
      order.
    num_shifts: of the window.
    num_views: of the window; the loss is invariant to crops and other augmentation.
    num_copies: of the augmentation.
  """
  temperature: float = 0.07
  shift: str = ''
  reversal: str = ''
  variant: str = 'paper'
  num_groups: int = 64
  num_shifts: int
  num_views: int
  num_copies: int
  _takes_one_modality = True

  def __post_init__(self):
    super().__post_init__()
    for name, count, key in (('shift', self.num_shifts, 'window.num_shifts'),
                             ('reversal', self.num_copies, 'augment.copies')):
      kind = getattr(self, name)
      if count > 1:
        config.choose(KINDS, kind, name)
      elif kind:
        raise ValueError(f'{name}={kind!r}: expected more than one value of config.'
                         f'{key}, or none here')
    has_positives = self.num_views > 1 or self.pair == 'text_text' or any(
        kind == 'invariant' and count > 1 for kind, count in (
            (self.shift, self.num_shifts), (self.reversal, self.num_copies)))
    if self._within and not has_positives:
      raise ValueError(f'pair={self.pair!r}: no row has a positive; set config.window.'
                       'num_views=2, or make the loss invariant to shift or reversal')
    if config.choose(config.VARIANTS, self.variant, 'variant') == 'paper':
      return
    if self.num_groups < 2:
      raise ValueError(f'num_groups={self.num_groups}: expected 2 or more')
    if self.num_views > 1 or self.num_shifts > 2 or self._within:
      raise ValueError("variant='release': expected at most two shifts, one view and "
                       'two modalities')

  @property
  def _within(self) -> bool:
    """Returns whether the pair is of one modality."""
    anchor, other = self.pair.split('_')
    return anchor == other

  def _loss(self, anchors, others, present, anchor_mask, numbers):
    anchors, anchor_mask = contrastive.as_candidates(anchors, anchor_mask)
    others, present = contrastive.as_candidates(others, present)
    temperature = numbers['temperature']
    if self.variant == 'release':
      return self._released((anchors, anchor_mask), (others, present), temperature)
    rows = [Rows.of(*side, self._classes(len(side[0])))
            for side in ((anchors, anchor_mask), (others, present))]
    return equation_1(*rows, temperature, self.num_chunks, self._within)

  def _classes(self, num_rows: int) -> np.ndarray:
    """Returns the class of each row: its clip and its distinctive factors.  [R]."""
    clip, shift, _, copy = np.unravel_index(np.arange(num_rows), (
        num_rows // (self.num_shifts * self.num_views * self.num_copies),
        self.num_shifts, self.num_views, self.num_copies))
    shift, copy = (values if kind == 'distinctive' else 0 * values
                   for kind, values in ((self.shift, shift), (self.reversal, copy)))
    return (clip * self.num_shifts + shift) * self.num_copies + copy

  def _released(self, anchors, others, temperature):
    kinds = tuple(kind for kind, count in (
        (self.shift, self.num_shifts), (self.reversal, self.num_copies)) if count > 1)
    if max(anchors[0].shape[1], others[0].shape[1]) > 1:
      raise ValueError("variant='release': expected one caption; set "
                       'config.window.num_candidates=1')
    rows_per_clip = self.num_shifts * self.num_copies
    num_clips = len(anchors[0]) // rows_per_clip
    if num_clips % self.num_chunks:
      raise ValueError(f'num_chunks={self.num_chunks}: expected a divisor of the '
                       f'{num_clips} clips of a batch')
    by_clip = lambda x: x.reshape(-1, rows_per_clip, *x.shape[1:])
    return released_sums(*(Clips.of(*map(by_clip, side), self.num_groups)
                           for side in (anchors, others)), temperature, kinds,
                         self.num_chunks)


class Rows(NamedTuple):
  """Holds embeddings of one modality.

  Attributes:
    x: [R, D], unit norm.
    present: bool [R], False for missing rows, which are in no pair.
    label: [R], the class: rows of equal classes are positives.
    place: [R], number of the row.
  """
  x: jax.Array
  present: jax.Array
  label: jax.Array
  place: jax.Array

  @classmethod
  def of(cls, x: jax.Array, present: jax.Array, labels: np.ndarray) -> Rows:
    """Returns the rows of embeddings [B, K, D], whose masks are [B, K], labels [B]."""
    b, k, d = x.shape
    return cls(x.reshape(b * k, d), present.reshape(b * k),
               jnp.asarray(np.repeat(labels, k), jnp.int32), jnp.arange(b * k))


def equation_1(anchors: Rows, others: Rows, temperature: jax.typing.ArrayLike,
               num_chunks: int = 1, within: bool = False) -> jax.Array:
  """Computes equation 1 of GDT, as the mean over anchors of the mean over positives.

  The denominator of an anchor has all rows of the other modality, with its positives.

  Args:
    anchors: rows of a modality.
    others: rows of another modality, which are contrasted with the anchors, too.
    temperature: rho.
    num_chunks: number of chunks of anchors, which are contrasted one after the other
      in 1 / num_chunks of the memory. A divisor of the number of rows.
    within: the modalities are the same, so a row is contrasted with all rows but
      itself, in the one direction that exists.

  Returns:
    [], float32, the mean over the rows that have a positive; 0 if none has.
  """
  def losses(chunk: Rows, keys: Rows) -> tuple[jax.Array, jax.Array]:
    counts = chunk.present[:, None] & keys.present                   # [R, C]
    if within:
      counts &= chunk.place[:, None] != keys.place
    positives = counts & (chunk.label[:, None] == keys.label)
    rows = jnp.any(positives, axis=1)
    logits = contrastive.similarity(chunk.x, keys.x[:, None])[..., 0] / temperature
    return contrastive.contrast(logits, positives, counts, rows, 'each'), jnp.sum(rows)

  pairs = [(anchors, others)] if within else [(anchors, others), (others, anchors)]
  totals, numbers = zip(*(
      contrastive.sum_chunks(lambda chunk, keys=keys: losses(chunk, keys), rows,
                             num_chunks) for rows, keys in pairs), strict=True)
  return sum(totals) / jnp.maximum(sum(numbers), 1).astype(jnp.float32)


class Clips(NamedTuple):
  """Holds embeddings of one modality by clip, for `released_sums`.

  Attributes:
    x: [B, R, D], unit norm; R rows of a clip.
    present: bool [B, R], False for missing rows, which are in no pair.
    group: [B], the clip's replica.
    place: [B], number of the clip.
  """
  x: jax.Array
  present: jax.Array
  group: jax.Array
  place: jax.Array

  @classmethod
  def of(cls, x: jax.Array, present: jax.Array, num_groups: int) -> Clips:
    """Returns the clips of embeddings [B, R, 1, D], with masks [B, R, 1]."""
    place = np.arange(len(x))
    return cls(x[:, :, 0], present[..., 0], jnp.asarray(place * num_groups // len(x)),
               jnp.asarray(place))


def released_sums(anchors: Clips, others: Clips, temperature: jax.typing.ArrayLike,
                  kinds: tuple[str, ...], num_chunks: int = 1) -> jax.Array:
  """Computes the mean of the sums of InfoNCE of the released code.

  They differ from equation 1 for invariant factors: a sum has one positive, its own
  denominator, and keys without a gradient.

  Args:
    anchors: clips of a modality.
    others: the same clips of another modality.
    temperature: rho.
    kinds: of the factors that have two values, of `KINDS`: shift, reversal.
    num_chunks: see `equation_1`; a divisor of the number of clips.

  Returns:
    [], float32.
  """
  entries = np.array(_RELEASED[kinds].replace('>', ' ').split()).reshape(-1, 4)
  query, key, here, away = (np.array([list(digits) for digits in column], np.int32)
                            for column in entries.T)
  terms = query[:, 0], key[:, 0], here, away                   # [P], [P], [P, R] twice

  def losses(pair: tuple[Clips, Clips], keys: Clips) -> jax.Array:
    chunk, positives = pair
    logits = contrastive.similarity(
        chunk.x.reshape(-1, chunk.x.shape[-1]),
        jax.lax.stop_gradient(keys.x)) / temperature
    logits = logits.reshape(*chunk.x.shape[:2], -1)                  # [b, R, B * R]
    own = (chunk.place[:, None] == keys.place)[:, :, None]           # [b, B, 1]
    same = (chunk.group[:, None] == keys.group)[:, :, None]

    @jax.checkpoint
    def contrast(term):
      query, key, here, away = term
      counts = jnp.where(same, here, away) * keys.present            # [b, B, R]
      match = own & (jnp.arange(len(here)) == key)
      flat = lambda x: x.reshape(len(x), -1)
      return contrastive.contrast(
          jnp.take(logits, query, axis=1), flat(match), flat(counts),
          jnp.take(chunk.present, query, axis=1)
          & jnp.take(positives.present, key, axis=1))

    return jax.lax.map(contrast, terms)

  means = []
  for queries, keys in ((anchors, others), (others, anchors)):
    total = contrastive.sum_chunks(lambda pair, keys=keys: losses(pair, keys),
                                   (queries, keys), num_chunks)
    number = jnp.sum(queries.present[:, terms[0]] & keys.present[:, terms[1]], axis=0)
    means.append(total / jnp.maximum(number, 1).astype(jnp.float32))
  return jnp.mean(jnp.stack(means))
