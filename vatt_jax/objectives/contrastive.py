"""Contrast between modalities (VATT, section 3.4): one kernel, two names for it."""

import jax
from jax.nn import logsumexp
import jax.numpy as jnp

FORMS = ('paper', 'symmetric')


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
  return jnp.sum(jnp.where(rows, losses, 0.0)) / jnp.maximum(jnp.sum(rows), 1)


def mil_nce(anchors: jax.Array, others: jax.Array, present: jax.Array,
            temperature: float, form: str = 'paper') -> jax.Array:
  """Multiple-instance NCE: an anchor matches the best of its own candidates.

  Args:
    anchors: [B, D], unit norm.
    others: [B, K, D], unit norm: candidates; those of anchor i are its positives.
    present: bool [B, K]; False: not there, neither positive nor negative. An
      anchor without candidates is left out, and the rest weigh more.
    temperature: tau.
    form: 'paper' is equation 5, each anchor against all candidates of the batch.
      'symmetric' adds the same with all anchors against each item's candidates
      (the release's SymmetricNCE).

  Returns:
    [], float32.
  """
  b, k, _ = others.shape
  logits = jnp.einsum('id,jkd->ijk', anchors.astype(jnp.float32),
                      others.astype(jnp.float32)) / temperature
  logits = jnp.where(present[None], logits, -jnp.inf)                # [B, B, K]
  own = jnp.broadcast_to(jnp.eye(b, dtype=bool)[:, :, None], (b, b, k))
  rows = jnp.any(present, axis=1)                                    # [B]
  flat = lambda x: x.reshape(b, b * k)
  loss = masked_nce(flat(logits), flat(own), rows)
  if form == 'paper':
    return loss
  if form == 'symmetric':
    turned = logits.transpose(1, 0, 2)                               # item, anchor, k
    return loss + masked_nce(flat(turned), flat(own), rows)
  raise ValueError(f"form={form!r}: expected 'paper' or 'symmetric'")


def nce(anchors: jax.Array, others: jax.Array, present: jax.Array,
        temperature: float, form: str = 'paper') -> jax.Array:
  """NCE (equation 4): MIL-NCE with one candidate.  [B, D], [B, D], bool [B] -> []."""
  return mil_nce(anchors, others[:, None], present[:, None], temperature, form)
