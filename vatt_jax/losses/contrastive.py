"""Contrastive losses between two modalities, over the whole batch (VATT, section 3.4).

Every loss scores each anchor against each candidate of the batch. Those that normalize
over candidates share `contrast`.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
from typing import Any
from typing import NamedTuple

import jax
from jax.nn import logsumexp
import jax.numpy as jnp

from vatt_jax.distributed import sharding
from vatt_jax.losses import base
from vatt_jax.models import multimodal

FORMS = ('paper', 'symmetric', 'asymmetric')

# Lower bound of a trained temperature, as in CLIP (arXiv 2103.00020, section 2.5).
MIN_TEMPERATURE = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(base.Loss):
  """Contrasts two modalities that are embedded in one space.

  Attributes:
    weight: of this loss in the sum of all.
    pair: anchor and other modality, joined by `_`; by default the section's name.
    space: of the embeddings; empty for `video_text` if the pair has text, or else
      `video_audio`.
    temperature: tau, or its initial value.
    learn_temperature: train the temperature and other numbers of the loss.
    num_chunks: number of chunks of items, which are contrasted one after the other in
      1 / num_chunks of the memory; a divisor of the batch size.
  """
  pair: str
  temperature: float
  space: str = ''
  learn_temperature: bool = False
  num_chunks: int = 1
  _takes_one_modality = False    # a pair such as video_video; no key of the config

  def __post_init__(self):
    modalities = self.pair.split('_')
    if len(modalities) != 2 or not set(modalities) <= set(multimodal.MODALITIES):
      raise ValueError(f'pair={self.pair!r}: expected two of '
                       f'{", ".join(multimodal.MODALITIES)}, such as video_text')
    if len(set(modalities)) == 1 and not self._takes_one_modality:
      raise ValueError(f'pair={self.pair!r}: expected two different modalities; only '
                       "name='gdt' contrasts rows of one")
    least = MIN_TEMPERATURE if self.learn_temperature else 0.0
    if self.temperature <= least:
      raise ValueError(f'temperature={self.temperature}: expected more than {least}')
    if self.num_chunks < 1:
      raise ValueError(f'num_chunks={self.num_chunks}: expected 1 or more')

  def _numbers(self) -> dict[str, float]:
    """Returns the initial values of the numbers that `learn_temperature` trains."""
    return dict(temperature=self.temperature)

  def _loss(self, anchors: jax.Array, others: jax.Array, present: jax.Array,
            anchor_mask: jax.Array | None, numbers: Mapping[str, Any]) -> jax.Array:
    raise NotImplementedError

  def init(self, key: jax.Array) -> dict[str, jax.Array]:
    """Returns the trained numbers; for a temperature its logarithm."""
    del key
    if not self.learn_temperature:
      return {}
    return {k: jnp.asarray(math.log(v) if k == 'temperature' else v, jnp.float32)
            for k, v in self._numbers().items()}

  def clip_params(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the parameters with the temperature at least `MIN_TEMPERATURE`."""
    least = math.log(MIN_TEMPERATURE)
    return {k: jnp.maximum(v, least) if k == 'temperature' else v
            for k, v in params.items()}

  def __call__(self, params: Mapping[str, jax.Array], outputs: Mapping[str, Any],
               batch: base.Batch, memory: Any
               ) -> tuple[jax.Array, base.Metrics, Any]:
    """Computes the loss; see `Loss.__call__`. The metrics are the trained numbers."""
    anchor, other = self.pair.split('_')
    space = self.space or ('video_text' if 'text' in (anchor, other) else 'video_audio')
    present = multimodal.find_present(batch)
    trained = {k: jnp.exp(v) if k == 'temperature' else v for k, v in params.items()}
    loss = self._loss(base.take(outputs, 'outputs', 'embed', space, anchor),
                      base.take(outputs, 'outputs', 'embed', space, other),
                      base.take(present, 'has', other), present.get(anchor),
                      self._numbers() | trained)
    return loss, trained, memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class NCE(Contrastive):
  """Computes noise-contrastive estimation (VATT, equation 4; `nce`).

  Attributes:
    weight: of this loss in the sum of all.
    pair: anchor and other modality, joined by `_`; by default the section's name.
    space: of the embeddings; empty for `video_text` if the pair has text, or else
      `video_audio`.
    temperature: tau, or its initial value.
    learn_temperature: train the temperature.
    num_chunks: see `mil_nce`.
    form: one of `FORMS`; sets the candidates in the denominator (see `mil_nce`).
  """
  form: str = 'paper'

  def __post_init__(self):
    super().__post_init__()
    _check_form(self.form)

  def _loss(self, anchors, others, present, anchor_mask, numbers):
    if others.ndim != 2:
      raise ValueError(f'{self.pair}: a clip has several candidates; set name to '
                       "'mil_nce'")
    return nce(anchors, others, present, numbers['temperature'], self.form, anchor_mask,
               self.num_chunks)


class MilNCE(NCE):
  """Computes NCE with several candidates per clip (VATT, equation 5; `mil_nce`).

  The fields are those of `NCE`.
  """

  def _loss(self, anchors, others, present, anchor_mask, numbers):
    others, present = as_candidates(others, present)
    return mil_nce(anchors, others, present, numbers['temperature'], self.form,
                   anchor_mask, self.num_chunks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLIP(Contrastive):
  """Computes the pairwise sigmoid loss (arXiv 2303.15343, equation 1; `siglip`).

  Attributes:
    weight: of this loss in the sum of all.
    pair: anchor and other modality, joined by `_`; by default the section's name.
    space: of the embeddings; empty for `video_text` if the pair has text, or else
      `video_audio`.
    temperature: tau, or its initial value.
    learn_temperature: train the temperature and the bias.
    num_chunks: see `mil_nce`.
    bias: of the log-odds, or its initial value; very negative, since most pairs do not
      match.
  """
  bias: float

  def _numbers(self):
    return dict(temperature=self.temperature, bias=self.bias)

  def _loss(self, anchors, others, present, anchor_mask, numbers):
    return siglip(anchors, others, present, numbers['temperature'], numbers['bias'],
                  anchor_mask, self.num_chunks)


def contrast(logits: jax.Array, positives: jax.Array, counts: jax.Array,
             rows: jax.Array, over: str = 'any') -> jax.Array:
  """Computes -log(positive / all) from scores, summed over the rows that count.

  With e[r, c] = counts[r, c] exp(logits[r, c]), a row's loss is

    over='any':  -log(sum over positives of e / sum over all of e), as in MIL-NCE;
    over='each': the mean over positives, weighted by `positives`, of
                 -log(exp(logits) / sum over all of e), as in supervised contrastive
                 learning and GDT.

  Args:
    logits: [R, C], similarities over the temperature.
    positives: [R, C], bool, or weights >= 0 with over='each'.
    counts: [R, C], bool, or the number of times that a candidate is in the sums; with 0
      it is in no pair.
    rows: bool [R]; a row that counts has at least one positive with a count.
    over: 'any' or 'each'.

  Returns:
    [], float32.

  Raises:
    ValueError: `over` has another value.
  """
  if over not in ('any', 'each'):
    raise ValueError(f"over={over!r}: expected 'any' or 'each'")
  # A row that does not count may have no candidate; its gradient must not be NaN.
  logits, positives, counts = (
      jnp.where(rows[:, None], x, jnp.ones((), x.dtype))
      for x in (logits.astype(jnp.float32), positives, counts))
  counted = logits
  if counts.dtype != jnp.bool_:
    times = counts.astype(jnp.float32)
    counted = logits + jnp.log(jnp.where(times > 0, times, 1.0))
  counted = jnp.where(counts.astype(bool), counted, -jnp.inf)
  if over == 'any':
    hit = logsumexp(jnp.where(positives.astype(bool), counted, -jnp.inf), axis=1)
  else:
    weights = jnp.where(counts.astype(bool), positives.astype(jnp.float32), 0.0)
    hit = jnp.sum(weights * logits, axis=1) / jnp.sum(weights, axis=1)
  return jnp.sum(jnp.where(rows, logsumexp(counted, axis=1) - hit, 0.0))


def nce(anchors: jax.Array, others: jax.Array, present: jax.Array,
        temperature: jax.typing.ArrayLike, form: str = 'paper',
        anchor_mask: jax.Array | None = None, num_chunks: int = 1) -> jax.Array:
  """Computes NCE (equation 4): MIL-NCE with one candidate a clip.

  Args:
    anchors: [B, D], unit norm.
    others: [B, D], unit norm.
    present: bool [B].
    temperature: see `mil_nce`.
    form: see `mil_nce`.
    anchor_mask: see `mil_nce`.
    num_chunks: see `mil_nce`.

  Returns:
    [], float32.
  """
  return mil_nce(anchors, others[:, None], present[:, None], temperature, form,
                 anchor_mask, num_chunks)


def mil_nce(anchors: jax.Array, others: jax.Array, present: jax.Array,
            temperature: jax.typing.ArrayLike, form: str = 'paper',
            anchor_mask: jax.Array | None = None, num_chunks: int = 1) -> jax.Array:
  """Computes multiple-instance NCE: an anchor matches the best of its own candidates.

  Args:
    anchors: [B, D], unit norm.
    others: [B, K, D], unit norm: candidates; those of anchor i are its positives.
    present: bool [B, K], False for missing candidates, which are neither positives nor
      negatives. Anchors without candidates are left out of the mean.
    temperature: tau.
    form: 'paper' is equation 5, each anchor against all candidates of the batch.
      'symmetric' adds the same with all anchors against each item's candidates
      (the release's SymmetricNCE). 'asymmetric' has one denominator for both: all
      candidates against the anchor and all anchors against its candidates. Positives
      count twice in it, so the minimum of the loss is log 2 (the release's
      AsymmetricNCE, with which it was trained).
    anchor_mask: bool [B], False for missing anchors, in no pair; None for none missing.
    num_chunks: number of chunks of items. Each chunk is contrasted with all items, one
      after the other, forward and backward, in 1 / num_chunks of the memory. A divisor
      of B.

  Returns:
    [], float32, the mean over the anchors that have candidates; 0 if none has.

  Raises:
    ValueError: `form` has another value.
  """
  _check_form(form)
  items = _Items.of(anchors, others, present, anchor_mask)

  def scores(rows: _Items, columns: _Items) -> tuple[jax.Array, jax.Array]:
    """Returns logits and counts [R, C, K]."""
    logits = similarity(rows.anchors, columns.others) / temperature
    counts = jnp.broadcast_to(columns.present[None], logits.shape)
    if rows.anchor_mask is not None:
      counts &= rows.anchor_mask[:, None, None]
    return logits, counts

  def losses(chunk: _Items) -> list[jax.Array]:
    pairs = scores(chunk, items)                                     # [R, B, K]
    own = jnp.broadcast_to(_own(chunk, items), pairs[0].shape)
    rows = jnp.any(chunk.present, axis=1)                            # [R]
    flat = lambda x: x.reshape(len(rows), -1)
    logits, counts = map(flat, pairs)
    own = flat(own)
    if form == 'paper':
      return [contrast(logits, own, counts, rows)]
    back = pairs if chunk is items else scores(items, chunk)         # [B, R, K]
    back_logits, back_counts = (flat(x.transpose(1, 0, 2)) for x in back)
    if form == 'symmetric':
      return [contrast(logits, own, counts, rows),
              contrast(back_logits, own, back_counts, rows)]
    return [contrast(jnp.concatenate([logits, back_logits], axis=1),
                     jnp.concatenate([own, jnp.zeros_like(own)], axis=1),
                     jnp.concatenate([counts, back_counts], axis=1), rows)]

  return sum(_mean(x, items) for x in sum_chunks(losses, items, num_chunks))


def siglip(anchors: jax.Array, others: jax.Array, present: jax.Array,
           temperature: jax.typing.ArrayLike, bias: jax.typing.ArrayLike,
           anchor_mask: jax.Array | None = None, num_chunks: int = 1) -> jax.Array:
  """Computes the sigmoid loss of all pairs (SigLIP, arXiv 2303.15343, equation 1).

  The loss is -log sigmoid(+-(similarity / temperature + bias)), summed over all pairs
  and divided by the number of anchors that have a candidate; 0 if none has. It is not
  in the VATT paper.

  Args:
    anchors: [B, D], unit norm.
    others: [B, D], or candidates [B, K, D], unit norm; those of anchor i match it.
    present: bool [B] or [B, K], False for missing candidates, in no pair.
    temperature: tau.
    bias: of the log-odds; very negative at first, since most pairs do not match.
    anchor_mask: bool [B], False for missing anchors, in no pair; None for none missing.
    num_chunks: see `mil_nce`.

  Returns:
    [], float32.
  """
  others, present = as_candidates(others, present)
  items = _Items.of(anchors, others, present, anchor_mask)

  def losses(chunk: _Items) -> jax.Array:
    log_odds = similarity(chunk.anchors, items.others) / temperature + bias
    sign = 2 * _own(chunk, items).astype(jnp.float32) - 1            # [R, B, 1]
    rows = jnp.any(chunk.present, axis=1)
    counts = rows[:, None, None] & items.present[None]               # [R, B, K]
    return jnp.sum(jnp.where(counts, -jax.nn.log_sigmoid(sign * log_odds), 0.0))

  return _mean(sum_chunks(losses, items, num_chunks), items)


class _Items(NamedTuple):
  """Holds the arguments of the losses, and each item's place in the batch."""
  anchors: jax.Array
  others: jax.Array
  present: jax.Array
  anchor_mask: jax.Array | None
  place: jax.Array

  @classmethod
  def of(cls, anchors: jax.Array, others: jax.Array, present: jax.Array,
         anchor_mask: jax.Array | None) -> _Items:
    """Returns the items; candidates of a missing anchor are missing too."""
    if anchor_mask is not None:
      present &= anchor_mask[:, None]
    return cls(anchors, others, present, anchor_mask, jnp.arange(len(anchors)))


def as_candidates(x: jax.Array, present: jax.Array | None = None
                  ) -> tuple[jax.Array, jax.Array]:
  """Returns embeddings [B, K, D] and masks [B, K], with K = 1 where it is missing.

  [B, D] or [B, K, D], bool [B] or [B, K], or None for none missing.
  """
  x = x[:, None] if x.ndim == 2 else x
  if present is None:
    present = jnp.ones(x.shape[:2], bool)
  return x, present.reshape(x.shape[:2])


def _check_form(form: str) -> None:
  if form not in FORMS:
    raise ValueError(f'form={form!r}: expected one of {", ".join(FORMS)}')


def _own(rows: _Items, columns: _Items) -> jax.Array:
  """Tells which candidates belong to the row's anchor.  -> bool [R, C, 1]."""
  return (rows.place[:, None] == columns.place)[:, :, None]


def sum_chunks(losses: Callable[[Any], Any], items: Any, num_chunks: int) -> Any:
  """Returns a tree of sums over all items, computed chunk by chunk.

  Args:
    losses: some items -> a tree of sums over them.
    items: a tree of arrays [B, ...].
    num_chunks: a divisor of B.
  """
  if num_chunks == 1:
    return losses(items)
  # Checkpointed, so that the backward pass also holds one chunk at a time.
  chunk = jax.checkpoint(lambda i: losses(sharding.take_rows(items, i, num_chunks)),
                         prevent_cse=False)
  return jax.tree.map(lambda x: jnp.sum(x, axis=0),
                      jax.lax.map(chunk, jnp.arange(num_chunks)))


def _mean(total: jax.Array, items: _Items) -> jax.Array:
  """Divides by the number of items that have an anchor and a candidate."""
  rows = jnp.any(items.present, axis=1)
  return total / jnp.maximum(jnp.sum(rows), 1).astype(jnp.float32)


def similarity(anchors: jax.Array, others: jax.Array) -> jax.Array:
  """Computes similarities with float32 products on every device.

  [B, D], [B, K, D] -> float32 [B, B, K]. By default a TPU would round the operands to
  bfloat16, and a GPU to TF32. The errors would be a few thousandths, and the division
  by the temperature makes them fifteen times as large.
  """
  return jnp.einsum('id,jkd->ijk', anchors.astype(jnp.float32),
                    others.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
