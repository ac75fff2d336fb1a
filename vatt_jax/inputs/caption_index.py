"""Where each path's rows stand in a captions file, kept beside it between runs.

HowTo100M's captions take minutes to go through. The index is a few numbers for each
path, in one NumPy file that is mapped into memory, so that it opens at once.
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

# Smaller captions files are gone through in a second at each start, and get no index.
MIN_BYTES = 2 ** 24
_FORMAT = 1
# The first numbers of an index: format, checksum of the table, and the captions file's
# size and time of change. The table follows.
_NUM_HEADER = 4


@dataclasses.dataclass(frozen=True)
class CaptionIndex:
  """Pieces of a captions file: rows of one path that follow each other.

  Attributes:
    table: int64 [3, N]; each piece's path as a hash, and the bytes where it begins and
      ends; sorted by these.
    is_new: whether it was built now, not read.
  """
  table: np.ndarray
  is_new: bool

  def find(self, keys: Iterable[str]) -> list[tuple[int, int]]:
    """Returns begin and end of the pieces of some keys, in the order of the file."""
    pieces = []
    for key in keys:
      number = _hash(key)
      first = np.searchsorted(self.table[0], number, 'left')
      last = np.searchsorted(self.table[0], number, 'right')
      pieces += zip(*self.table[1:, first:last].tolist(), strict=True)
    return sorted(pieces)

  def unknown(self, keys: Iterable[str]) -> tuple[int, int, tuple[int, int]]:
    """Compares the paths with all keys that will be asked for.

    Returns:
      How many paths are not among the keys, how many there are, and begin and end of
      the first piece that nobody asks for.
    """
    paths, places = np.unique(self.table[0], return_inverse=True)
    asked = np.isin(paths, np.fromiter(map(_hash, keys), np.int64))
    pieces = self.table[1:, ~asked[places]].T
    first = tuple(pieces[pieces[:, 0].argmin()].tolist()) if len(pieces) else (0, 0)
    return int(np.sum(~asked)), len(paths), first


def open_index(captions: pathlib.Path, pieces: Iterable[tuple[str, int, int]]
               ) -> CaptionIndex:
  """Opens the index of a captions file; builds it if there is none or it is stale.

  It stands beside the file, or in the user's cache where that folder takes no file.
  Several processes may build it at once.

  Args:
    captions: the file.
    pieces: key, begin and end of each piece, in the order of the file; read only if
      the index is built.
  """
  table = _read(captions)
  if table is not None:
    return CaptionIndex(table, is_new=False)
  state = _state(captions)    # from before it is read, should it change meanwhile
  large = state[0] >= MIN_BYTES
  if large:
    logging.info('Building the index of %s, %d MB, which later starts find',
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
  """Returns whether a captions file needs no index to be built, or a small one."""
  try:
    return _state(captions)[0] < MIN_BYTES or _read(captions) is not None
  except OSError:
    return False


def _hash(key: str) -> int:
  """Returns 64 bits, the same on every machine: two of millions do not meet."""
  digest = hashlib.blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
  return int.from_bytes(digest, 'little', signed=True)


def _state(captions: pathlib.Path) -> tuple[int, int]:
  """Returns size and time of change."""
  stat = captions.stat()
  return stat.st_size, stat.st_mtime_ns


def _places(captions: pathlib.Path) -> list[pathlib.Path]:
  """Returns where its index may be, the preferred place first."""
  caches = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  name = hashlib.sha256(os.fsencode(captions.absolute())).hexdigest()
  return [captions.with_name(f'{captions.name}.index.npy'),
          pathlib.Path(caches) / 'vatt_jax' / 'captions' / f'{name}.npy']


def _read(captions: pathlib.Path) -> np.ndarray | None:
  """Returns the table of an index that is whole and of this very file, or None."""
  state = _state(captions)
  for path in _places(captions):
    try:
      numbers = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, EOFError, ValueError):    # none, no array, or cut short
      continue
    if numbers.dtype != np.int64 or numbers.ndim != 1 or (
        len(numbers) % 3 != _NUM_HEADER % 3 or len(numbers) < _NUM_HEADER):
      continue
    header, table = numbers[:_NUM_HEADER], numbers[_NUM_HEADER:]
    if header.tolist() == [_FORMAT, zlib.crc32(table), *state]:
      return table.reshape(3, -1)
  return None


def _write(captions: pathlib.Path, state: tuple[int, int], table: np.ndarray) -> None:
  """Writes an index, whole or not at all; where it cannot, the next start builds it."""
  numbers = np.concatenate([[_FORMAT, zlib.crc32(table), *state], table.ravel()])
  for path in _places(captions):
    # A name of its own, for other processes may be at it too.
    partial = path.with_name(f'{path.name}.{uuid.uuid4().hex}.partial')
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with partial.open('xb') as file:
        np.save(file, numbers)
      partial.replace(path)
      return
    except OSError as e:
      logging.warning('%s: the index of %s cannot be kept here (%s)', path, captions,
                      e.strerror)
      with contextlib.suppress(OSError):
        partial.unlink()
