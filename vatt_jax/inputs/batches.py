"""Makes batches with tf.data: the order of clips, decoding in parallel, batching.

The batch of step s is a pure function of (clips, seed, s): see
docs/decisions/0001-batches-are-functions-of-the-step.md.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import itertools
from typing import Any

import numpy as np

from vatt_jax.errors import UserError
from vatt_jax.inputs import sources
from vatt_jax.inputs.host_tensorflow import tf
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Example
from vatt_jax.inputs.window import spread

# With the default of four rounds, neighbors in the shuffle correlate.
_SHUFFLE_ROUNDS = 16
# After this many broken clips in a row the source itself counts as broken.
_MAX_DRAWS = 100


def train_batches(reader: Reader, batch_size: int, seed: int, first_step: int,
                  host: int = 0, num_hosts: int = 1) -> Iterator[dict[str, Any]]:
  """Yields endless batches; the batch of step s depends only on (clips, seed, s).

  Every epoch has its own order. In a mixture with weights every epoch of each source
  has its own order. Another clip of its source, chosen by (seed, epoch, index) alone,
  replaces a broken file. The rows of a clip (`Window`) are adjacent and on one host.

  Args:
    reader: the source.
    batch_size: rows of a batch, of all hosts together.
    seed: seed of order, windows and crops.
    first_step: the first step to yield; earlier steps are not computed.
    host: this host's number.
    num_hosts: number of hosts; each reads its share of every batch.

  Raises:
    UserError: the batch does not split among the hosts; from the iterator: too many
      files are broken.
  """
  rows_per_clip = reader.window.rows_per_clip
  share = _host_share(batch_size, num_hosts, rows_per_clip) // rows_per_clip    # clips
  parts = [(0, len(reader.clips), 1)]
  if isinstance(reader.clips, sources.Mixture) and reader.clips.shares:
    lengths = [len(part) for part in reader.clips.parts]
    parts = list(zip(itertools.accumulate([0, *lengths[:-1]]), lengths,
                     reader.clips.shares, strict=True))

  def draw(i):
    return _draw(_place(i, share, host, num_hosts), parts, seed)

  def read(epoch, part, index):
    begin, length, _ = parts[part]
    for attempt in range(_MAX_DRAWS):
      rng = np.random.default_rng((seed, epoch, index, attempt))
      examples = reader.read(int(index), rng)
      if examples is not None:
        return _stack(examples)
      index = begin + rng.integers(length)
    raise UserError(f'{_MAX_DRAWS} clips drawn in a row are broken; the last: '
                    f'{list(reader.notes.skipped.values())[-1]}')

  dataset = tf.data.Dataset.range(first_step * share, np.iinfo(np.int64).max).map(draw)
  clips, failure = _map(dataset, _stack([reader.empty()] * rows_per_clip), read)
  # [clips, rows of a clip, ...] -> [rows, ...]
  merge = lambda x: tf.reshape(x, [-1, *x.shape[2:]])
  return _arrays(clips.batch(share, drop_remainder=True).map(
      lambda batch: tf.nest.map_structure(merge, batch)), failure)


def _host_share(batch_size: int, num_hosts: int, rows_per_clip: int = 1) -> int:
  """Returns the number of rows of a batch that each host reads."""
  if batch_size % num_hosts:
    raise UserError(f'batch_size={batch_size}: expected a multiple of the {num_hosts} '
                    'hosts')
  if batch_size % (num_hosts * rows_per_clip):
    raise UserError(f'batch_size={batch_size}: counts rows; expected a multiple of '
                    f'window.num_shifts * window.num_views={rows_per_clip} on each of '
                    f'{num_hosts} hosts')
  return batch_size // num_hosts


def _stack(examples: Sequence[Example]) -> Example:
  """Stacks examples; a single one is not copied."""
  if len(examples) == 1:
    return tf.nest.map_structure(lambda x: x[None], examples[0])
  return tf.nest.map_structure(lambda *x: np.stack(x), *examples)


def _place(i: tf.Tensor, share: int, host: int, num_hosts: int) -> tf.Tensor:
  """Returns the place of a host's i-th clip in the stream of all hosts."""
  return (i // share * num_hosts + host) * share + i % share


def _draw(place: tf.Tensor, parts: Sequence[tuple[int, int, int]], seed: int
          ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Returns the clip at a place of the stream, and the epoch of its part.

  The parts take turns as evenly as their shares allow. With two parts, the number of a
  part's clips in a batch is off by less than one; with more parts, by less than two.

  Args:
    place: [], int64.
    parts: (first clip, number of clips, share) of each part.
    seed: seed of the order.

  Returns:
    Epoch, part and clip.
  """
  drawn, left = None, sum(share for *_, share in parts)
  # The largest first: each part passes its rounding, in proportion, to the next.
  for number, (first, length, share) in sorted(
      enumerate(parts), key=lambda part: -part[1][2]):
    before = place * share // left    # the number of earlier places of this part
    epoch, position = before // length, before % length
    clip = first + tf.raw_ops.RandomIndexShuffle(
        index=position, seed=tf.stack([seed, epoch, number]), max_index=length - 1,
        rounds=_SHUFFLE_ROUNDS)
    this = epoch, tf.constant(number, tf.int64), clip
    if drawn is None:
      drawn, taken = this, (place + 1) * share // left > before
    else:
      drawn = tuple(tf.where(taken, a, b) for a, b in zip(drawn, this, strict=True))
      taken |= (place + 1) * share // left > before
    place, left = place - before, left - share
  return drawn


def eval_batches(reader: Reader, batch_size: int, num_windows: int = 1,
                 num_crops: int = 1, host: int = 0, num_hosts: int = 1,
                 augment_seed: int | None = None) -> Iterator[dict[str, Any]]:
  """Yields every clip once, in order; the last batch is padded with masked zeros.

  The row of a broken file is masked too. A clip's views are adjacent rows: all crops
  of the first window, then of the second. Hosts take turns, window by window.

  Args:
    reader: the source.
    batch_size: rows of a batch, of all hosts together.
    num_windows: number of windows of each clip, evenly spaced from its begin to its
      end; a single one is in the middle.
    num_crops: number of crops of each window, which is decoded once (`Reader.views`).
      The papers use three (VATT, 4.2).
    host: this host's number.
    num_hosts: number of hosts; each reads its share of every batch.
    augment_seed: if given, the windows are random and augmented instead, with one crop
      each (`Reader.augmented`). The e-th window of clip i depends only on
      (augment_seed, e, i).

  Raises:
    UserError: the batch does not split among the hosts; from the iterator: too many
      files are broken.
  """
  share = _host_share(batch_size, num_hosts)
  count = len(reader.clips) * num_windows
  rows = -(-count // num_hosts) * num_crops    # of each host
  rows = -(-rows // share) * share
  empty, places = reader.window.empty(), spread(num_windows)

  def read_window(index, number):
    if augment_seed is None:
      return reader.views(index, places[number], num_crops)
    example = reader.augmented(
        index, np.random.default_rng((augment_seed, number, index)))
    return None if example is None else [example]

  def read(window):
    views = None
    if window < count:
      views = read_window(*divmod(int(window), num_windows))
    return _stack(views or [empty] * num_crops)

  windows = tf.data.Dataset.range(-(-rows // num_crops)).map(
      lambda i: (i * num_hosts + host,))
  examples, failure = _map(windows, _stack([empty] * num_crops), read)
  return _arrays(examples.unbatch().take(rows).batch(share), failure)


def _map(dataset: tf.data.Dataset, like: Example, read: Callable[..., Example]
         ) -> tuple[tf.data.Dataset, list[UserError]]:
  """Maps `read` over a dataset of its arguments, in parallel and in order.

  Args:
    dataset: tuples of arguments.
    like: an example with the shapes and types of the results.
    read: arguments -> arrays.

  Returns:
    The dataset of results, and a list that receives the error that ends it.
  """
  arrays_like, failure = tf.nest.flatten(like), []
  types = [x.dtype for x in arrays_like]

  def read_flat(*args):
    try:
      example = read(*args)
    except UserError as e:    # TensorFlow would hide it in its own trace
      failure.append(e)
      raise
    tf.nest.assert_same_structure(example, like)
    return list(map(np.asarray, tf.nest.flatten(example), types))

  def to_example(*args):
    arrays = tf.numpy_function(read_flat, args, types)
    for array, one in zip(arrays, arrays_like, strict=True):
      array.set_shape(one.shape)
    return tf.nest.pack_sequence_as(like, arrays)

  return dataset.map(to_example, num_parallel_calls=tf.data.AUTOTUNE,
                     deterministic=True), failure


def _arrays(batches: tf.data.Dataset, failure: list[UserError]
            ) -> Iterator[dict[str, Any]]:
  """Yields batches as arrays; raises the `failure` of `_map` if it has one."""
  try:
    yield from batches.prefetch(2).as_numpy_iterator()
  except Exception:
    if failure:
      raise failure[0] from None
    raise
