"""Contrast between two modalities (VATT, section 3.4), over the whole batch."""

import jax
from jax.nn import logsumexp
import jax.numpy as jnp

FORMS = ('paper', 'symmetric', 'asymmetric')


def masked_nce(logits: jax.Array, positives: jax.Array, rows: jax.Array) -> jax.Array:
  """-log(sum of positive exp / sum of all exp), mean over the rows that count.

  Rows that don't count are left out and so the rest weigh more; with none left
  the loss is 0. A logit of -inf is no pair at all.

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
  return (jnp.sum(jnp.where(rows, losses, 0.0))
          / jnp.maximum(jnp.sum(rows), 1).astype(jnp.float32))


def mil_nce(anchors: jax.Array, others: jax.Array, present: jax.Array,
            temperature: jax.typing.ArrayLike, form: str = 'paper',
            anchored: jax.Array | None = None) -> jax.Array:
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

  Returns:
    [], float32.
  """
  b, k, _ = others.shape
  if anchored is not None:
    present &= anchored[:, None]
  logits = jnp.where(present[None], _similarity(anchors, others) / temperature,
                     -jnp.inf)                                       # [B, B, K]
  own = jnp.broadcast_to(jnp.eye(b, dtype=bool)[:, :, None], (b, b, k))
  if anchored is not None:
    logits = jnp.where(anchored[:, None, None], logits, -jnp.inf)
  rows = jnp.any(present, axis=1)                                    # [B]
  flat = lambda x: x.reshape(b, b * k)
  logits, turned, own = flat(logits), flat(logits.transpose(1, 0, 2)), flat(own)
  if form == 'paper':
    return masked_nce(logits, own, rows)
  if form == 'symmetric':
    return masked_nce(logits, own, rows) + masked_nce(turned, own, rows)
  if form == 'asymmetric':
    return masked_nce(jnp.concatenate([logits, turned], axis=1),
                      jnp.concatenate([own, jnp.zeros_like(own)], axis=1), rows)
  raise ValueError(f'form={form!r}: expected one of {", ".join(FORMS)}')


def nce(anchors: jax.Array, others: jax.Array, present: jax.Array,
        temperature: jax.typing.ArrayLike, form: str = 'paper',
        anchored: jax.Array | None = None) -> jax.Array:
  """NCE (equation 4): MIL-NCE with one candidate.  [B, D], [B, D], bool [B] -> []."""
  return mil_nce(anchors, others[:, None], present[:, None], temperature, form,
                 anchored)


def sigmoid(anchors: jax.Array, others: jax.Array, present: jax.Array,
            temperature: jax.typing.ArrayLike, bias: jax.typing.ArrayLike,
            anchored: jax.Array | None = None) -> jax.Array:
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

  Returns:
    [], float32.
  """
  if others.ndim == 2:
    others, present = others[:, None], present[:, None]
  b = len(anchors)
  log_odds = _similarity(anchors, others) / temperature + bias       # [B, B, K]
  sign = 2 * jnp.eye(b, dtype=jnp.float32)[:, :, None] - 1
  if anchored is not None:
    present &= anchored[:, None]
  rows = jnp.any(present, axis=1)
  counts = rows[:, None, None] & present[None]
  losses = jnp.where(counts, -jax.nn.log_sigmoid(sign * log_odds), 0.0)
  return jnp.sum(losses) / jnp.maximum(jnp.sum(rows), 1).astype(jnp.float32)


def _similarity(anchors: jax.Array, others: jax.Array) -> jax.Array:
  """[B, D], [B, K, D] -> float32 [B, B, K]."""
  return jnp.einsum('id,jkd->ijk', anchors.astype(jnp.float32),
                    others.astype(jnp.float32))
