"""Contrast between two modalities (VATT, section 3.4), over the whole batch."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax.nn import logsumexp
import jax.numpy as jnp

from vatt_jax import parts

FORMS = ('paper', 'symmetric', 'asymmetric')


def masked_nce(logits: jax.Array, positives: jax.Array, rows: jax.Array) -> jax.Array:
  """-log(sum of positive exp / sum of all exp), summed over the rows that count.

  A logit of -inf is no pair at all.

  Args:
    logits: [R, C], similarities over the temperature.
    positives: bool [R, C].
    rows: bool [R]; a row that counts has at least one positive.

  Returns:
    [], float32.
  """
  logits = logits.astype(jnp.float32)
  # A row that doesn't count may have no finite logit; its gradient must not be NaN.
  logits = jnp.where(rows[:, None], logits, 0.0)
  hits = jnp.where(positives | ~rows[:, None], logits, -jnp.inf)
  losses = logsumexp(logits, axis=1) - logsumexp(hits, axis=1)
  return jnp.sum(jnp.where(rows, losses, 0.0))


def mil_nce(anchors: jax.Array, others: jax.Array, present: jax.Array,
            temperature: jax.typing.ArrayLike, form: str = 'paper',
            anchored: jax.Array | None = None, num_chunks: int = 1) -> jax.Array:
  """Multiple-instance NCE: an anchor matches the best of its own candidates.

  Args:
    anchors: [B, D], unit norm.
    others: [B, K, D], unit norm: candidates; those of anchor i are its positives.
    present: bool [B, K]; False: not there, neither positive nor negative. An
      anchor without candidates is left out, and the rest weigh more.
    temperature: tau.
    form: 'paper' is equation 5, each anchor against all candidates of the batch.
      'symmetric' adds the same with all anchors against each item's candidates
      (the release's SymmetricNCE). 'asymmetric' has one denominator for both: all
      candidates against the anchor and all anchors against its candidates, so that
      the positives count twice in it and the least loss is log 2 (the release's
      AsymmetricNCE, with which it was trained).
    anchored: bool [B]; False: the anchor is not there, in no pair. None: all are.
    num_chunks: the items are taken in so many chunks, one after the other, forward
      and backward, each with all others: 1 / num_chunks of the memory. A divisor of B.

  Returns:
    [], float32, the mean over the anchors that are left; 0 if none is.

  Raises:
    ValueError: there is no such form.
  """
  if form not in FORMS:
    raise ValueError(f'form={form!r}: expected one of {", ".join(FORMS)}')
  items = _items(anchors, others, present, anchored)

  def logits(rows: _Items, columns: _Items) -> jax.Array:    # [R, C, K]
    x = _similarity(rows.anchors, columns.others) / temperature
    x = jnp.where(columns.present[None], x, -jnp.inf)
    if rows.anchored is not None:
      x = jnp.where(rows.anchored[:, None, None], x, -jnp.inf)
    return x

  def losses(chunk: _Items) -> list[jax.Array]:
    there = logits(chunk, items)                                     # [R, B, K]
    own = jnp.broadcast_to(_own(chunk, items), there.shape)
    rows = jnp.any(chunk.present, axis=1)                            # [R]
    flat = lambda x: x.reshape(len(rows), -1)
    if form == 'paper':
      return [masked_nce(flat(there), flat(own), rows)]
    back = there if chunk is items else logits(items, chunk)         # [B, R, K]
    there, back, own = flat(there), flat(back.transpose(1, 0, 2)), flat(own)
    if form == 'symmetric':
      return [masked_nce(there, own, rows), masked_nce(back, own, rows)]
    return [masked_nce(jnp.concatenate([there, back], axis=1),
                       jnp.concatenate([own, jnp.zeros_like(own)], axis=1), rows)]

  return sum(_mean(x, items) for x in _add_up(losses, items, num_chunks))


def nce(anchors: jax.Array, others: jax.Array, present: jax.Array,
        temperature: jax.typing.ArrayLike, form: str = 'paper',
        anchored: jax.Array | None = None, num_chunks: int = 1) -> jax.Array:
  """NCE (equation 4): MIL-NCE with one candidate.  [B, D], [B, D], bool [B] -> []."""
  return mil_nce(anchors, others[:, None], present[:, None], temperature, form,
                 anchored, num_chunks)


def sigmoid(anchors: jax.Array, others: jax.Array, present: jax.Array,
            temperature: jax.typing.ArrayLike, bias: jax.typing.ArrayLike,
            anchored: jax.Array | None = None, num_chunks: int = 1) -> jax.Array:
  """Is this pair one? asked of every pair (SigLIP, arXiv 2303.15343, equation 1).

  -log sigmoid(+-(similarity / temperature + bias)), summed over all pairs, over
  the number of anchors that have a candidate; 0 if none has. Beyond the paper.

  Args:
    anchors: [B, D], unit norm.
    others: [B, D], or candidates [B, K, D], unit norm; those of anchor i match it.
    present: bool [B] or [B, K]; False: not there, in no pair.
    temperature: tau.
    bias: of the log-odds; very negative at the start, for most pairs don't match.
    anchored: bool [B]; False: the anchor is not there, in no pair. None: all are.
    num_chunks: as for `mil_nce`.

  Returns:
    [], float32.
  """
  if others.ndim == 2:
    others, present = others[:, None], present[:, None]
  items = _items(anchors, others, present, anchored)

  def losses(chunk: _Items) -> jax.Array:
    log_odds = _similarity(chunk.anchors, items.others) / temperature + bias
    sign = 2 * _own(chunk, items).astype(jnp.float32) - 1            # [R, B, 1]
    rows = jnp.any(chunk.present, axis=1)
    counts = rows[:, None, None] & items.present[None]               # [R, B, K]
    return jnp.sum(jnp.where(counts, -jax.nn.log_sigmoid(sign * log_odds), 0.0))

  return _mean(_add_up(losses, items, num_chunks), items)


class _Items(NamedTuple):
  """What is contrasted: the arguments of the losses, and each item's place."""
  anchors: jax.Array
  others: jax.Array
  present: jax.Array
  anchored: jax.Array | None
  place: jax.Array


def _items(anchors: jax.Array, others: jax.Array, present: jax.Array,
           anchored: jax.Array | None) -> _Items:
  """All of them; candidates of an anchor that is not there are not there either."""
  if anchored is not None:
    present &= anchored[:, None]
  return _Items(anchors, others, present, anchored, jnp.arange(len(anchors)))


def _own(rows: _Items, columns: _Items) -> jax.Array:
  """Whose candidates these are: bool [R, C, 1]."""
  return (rows.place[:, None] == columns.place)[:, :, None]


def _add_up(losses: Callable[[_Items], Any], items: _Items, num_chunks: int) -> Any:
  """The sums of a tree of sums over some of the items, over all of them."""
  if num_chunks == 1:
    return losses(items)
  # Checkpointed, so that the way back too holds one chunk at a time.
  chunk = jax.checkpoint(lambda i: losses(parts.Part(i, num_chunks).take(items)),
                         prevent_cse=False)
  return jax.tree.map(lambda x: jnp.sum(x, axis=0),
                      jax.lax.map(chunk, jnp.arange(num_chunks)))


def _mean(total: jax.Array, items: _Items) -> jax.Array:
  """Over the items of which both are there."""
  rows = jnp.any(items.present, axis=1)
  return total / jnp.maximum(jnp.sum(rows), 1).astype(jnp.float32)


def _similarity(anchors: jax.Array, others: jax.Array) -> jax.Array:
  """[B, D], [B, K, D] -> float32 [B, B, K], of products in float32 on every device.

  By default a TPU would round both to bfloat16 first, and a GPU to TF32: errors of a
  few thousandths, which the division by the temperature makes fifteen times as large.
  """
  return jnp.einsum('id,jkd->ijk', anchors.astype(jnp.float32),
                    others.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
