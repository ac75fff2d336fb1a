"""Indexes the rows of a captions file by path, and caches the index beside the file.

A pass over HowTo100M's captions takes minutes. The index holds a few numbers for each
path in one NumPy file. The file is mapped into memory, so it opens at once.
"""

from __future__ import annotations

import array
from collections.abc import Iterable
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import uuid
import zlib

from absl import logging
import numpy as np

# Smaller captions files take under a second to scan, so their index is not cached.
MIN_BYTES = 2 ** 24
_FORMAT = 1
# An index begins with its format, the checksum of the table, and the captions file's
# size and modification time. The table follows.
_NUM_HEADER = 4


@dataclasses.dataclass(frozen=True)
class CaptionIndex:
  """Holds the pieces of a captions file; a piece is adjacent rows of one path.

  Attributes:
    table: int64 [3, N]; for each piece the hash of its path and the byte offsets of
      its begin and end; sorted by these.
    is_new: whether the index was built now rather than read.
  """
  table: np.ndarray
  is_new: bool

  def find(self, keys: Iterable[str]) -> list[tuple[int, int]]:
    """Returns begin and end of the keys' pieces, in the order of the file."""
    pieces = []
    for key in keys:
      number = _hash(key)
      first = np.searchsorted(self.table[0], number, 'left')
      last = np.searchsorted(self.table[0], number, 'right')
      pieces += zip(*self.table[1:, first:last].tolist(), strict=True)
    return sorted(pieces)

  def unknown(self, keys: Iterable[str]) -> tuple[int, int, tuple[int, int]]:
    """Compares the paths of the file with all keys of a source.

    Returns:
      The number of paths that are not among the keys, the number of all paths, and
      begin and end of the first piece whose path is not among the keys.
    """
    paths, places = np.unique(self.table[0], return_inverse=True)
    asked = np.isin(paths, np.fromiter(map(_hash, keys), np.int64))
    pieces = self.table[1:, ~asked[places]].T
    first = tuple(pieces[pieces[:, 0].argmin()].tolist()) if len(pieces) else (0, 0)
    return int(np.sum(~asked)), len(paths), first


def open_index(captions: pathlib.Path, pieces: Iterable[tuple[str, int, int]]
               ) -> CaptionIndex:
  """Opens the index of a captions file; builds it if it is missing or stale.

  The index is stored beside the file, or in the user's cache if that folder is not
  writable. Several processes may build it at once.

  Args:
    captions: the captions file.
    pieces: key, begin and end of each piece, in the order of the file. They are read
      only if the index is built.
  """
  table = _read(captions)
  if table is not None:
    return CaptionIndex(table, is_new=False)
  state = _state(captions)    # before the file is read: it may change meanwhile
  large = state[0] >= MIN_BYTES
  if large:
    logging.info('Building the index of %s (%d MB); later starts reuse it',
                 captions, state[0] >> 20)
  numbers = array.array('q')
  for key, begin, end in pieces:
    numbers.extend((_hash(key), begin, end))
  table = np.array(numbers, np.int64).reshape(-1, 3)
  table = np.ascontiguousarray(table[np.lexsort((table[:, 1], table[:, 0]))].T)
  if large:
    _write(captions, state, table)
  return CaptionIndex(table, is_new=True)


def is_ready(captions: pathlib.Path) -> bool:
  """Returns whether the index of a captions file is cached or quick to build."""
  try:
    return _state(captions)[0] < MIN_BYTES or _read(captions) is not None
  except OSError:
    return False


def _hash(key: str) -> int:
  """Returns a 64-bit hash, equal on all machines; millions of keys do not collide."""
  digest = hashlib.blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
  return int.from_bytes(digest, 'little', signed=True)


def _state(captions: pathlib.Path) -> tuple[int, int]:
  """Returns the file's size in bytes and its modification time in nanoseconds."""
  stat = captions.stat()
  return stat.st_size, stat.st_mtime_ns


def _places(captions: pathlib.Path) -> list[pathlib.Path]:
  """Returns the possible paths of the file's index, the preferred one first."""
  caches = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  name = hashlib.sha256(os.fsencode(captions.absolute())).hexdigest()
  return [captions.with_name(f'{captions.name}.index.npy'),
          pathlib.Path(caches) / 'vatt_jax' / 'captions' / f'{name}.npy']


def _read(captions: pathlib.Path) -> np.ndarray | None:
  """Returns the table of a complete, current index of the file, or None."""
  state = _state(captions)
  for path in _places(captions):
    try:
      numbers = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, EOFError, ValueError):    # missing, not an array, or truncated
      continue
    if numbers.dtype != np.int64 or numbers.ndim != 1 or (
        len(numbers) % 3 != _NUM_HEADER % 3 or len(numbers) < _NUM_HEADER):
      continue
    header, table = numbers[:_NUM_HEADER], numbers[_NUM_HEADER:]
    if header.tolist() == [_FORMAT, zlib.crc32(table), *state]:
      return table.reshape(3, -1)
  return None


def _write(captions: pathlib.Path, state: tuple[int, int], table: np.ndarray) -> None:
  """Writes an index atomically; if no path is writable, the next start rebuilds it."""
  numbers = np.concatenate([[_FORMAT, zlib.crc32(table), *state], table.ravel()])
  for path in _places(captions):
    # A unique name, because other processes may write the same index.
    partial = path.with_name(f'{path.name}.{uuid.uuid4().hex}.partial')
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with partial.open('xb') as file:
        np.save(file, numbers)
      partial.replace(path)
      return
    except OSError as e:
      logging.warning('%s: cannot write the index of %s here (%s)', path, captions,
                      e.strerror)
      with contextlib.suppress(OSError):
        partial.unlink()
