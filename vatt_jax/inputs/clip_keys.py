"""Random keys of clips, so that a clip's draws are the same in any microbatch."""

import jax
import jax.numpy as jnp

# Each use of a clip's key has its own number, so that the draws are independent.
_USES = ('augment', 'mixup', 'drop_token_video', 'drop_token_audio', 'spec_augment',
         'dropout', 'crops')


def make(seed: int, step: jax.typing.ArrayLike, batch_size: int) -> jax.Array:
  """Returns a key for each row of a step's batch: `batch['key']`.  -> key [B].

  The views of a clip (`inputs.window`) are rows of their own: their keys are as
  independent as those of two clips, so each view is augmented for itself.
  """
  return jax.random.split(jax.random.fold_in(jax.random.key(seed), step), batch_size)


def derive(keys: jax.Array, use: str) -> jax.Array:
  """Returns the keys for one use of clips' keys.  key [B] -> key [B]."""
  number = _USES.index(use)
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def numbers(keys: jax.Array) -> jax.Array:
  """Returns a number for each clip, which seeds the dropout of that clip.

  key [B] -> uint32 [B].
  """
  return jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32))(
      derive(keys, 'dropout'))
