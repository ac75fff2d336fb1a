"""From clips to batches, through tf.data: which clip, which window, which words.

The batch of step s is a pure function of (clips, seed, s): see
docs/decisions/0001-batches-are-functions-of-the-step.md.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
import threading
from typing import Any

from absl import logging
import numpy as np
from PIL import Image
import tensorflow as tf

from vatt_jax.errors import UserError
from vatt_jax.inputs import media
from vatt_jax.inputs import sources
from vatt_jax.inputs import text as text_lib

# The accelerator is JAX's.
for _kind in ('GPU', 'TPU'):
  tf.config.set_visible_devices([], _kind)

# With the default of four, neighbours of the shuffle correlate.
_SHUFFLE_ROUNDS = 16
# How many clips may be broken in a row before the source itself is.
_MAX_DRAWS = 100
# How often a part of a picture is drawn that doesn't fit.
_MAX_CROP_DRAWS = 100

Example = dict[str, np.ndarray]
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Window:
  """What is read of a clip: every length, size and rate of an example.

  Attributes:
    num_frames: pictures.
    frame_rate_hz: of these, whatever the file's own rate.
    image_size: pixels, height and width.
    audio_hz: sample rate; the sound covers the very time of the pictures.
    num_candidates: sentences, the nearest in time (MIL-NCE's positives).
    max_words: of a sentence.
    min_crop_area: in training, the least area of a random crop, as a share of the
      picture's.
    max_crop_aspect: in training, the most that a crop is wider than high, or higher
      than wide; crops are squeezed into the square.

  Raises:
    ValueError: a size or rate is not positive.
  """
  num_frames: int
  frame_rate_hz: float
  image_size: int
  audio_hz: int
  num_candidates: int = 5
  max_words: int = 16
  min_crop_area: float = 1.0
  max_crop_aspect: float = 1.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value <= 0:
        raise ValueError(f'{field.name}={value}: expected more than 0')

  @property
  def seconds(self) -> float:
    return self.num_frames / self.frame_rate_hz

  @property
  def num_samples(self) -> int:
    return round(self.seconds * self.audio_hz)

  def empty(self) -> Example:
    """An example of zeros: the shapes and types of every other."""
    size = self.image_size
    return dict(
        video=np.zeros((self.num_frames, size, size, 3), np.uint8),
        audio=np.zeros(self.num_samples, np.int16),
        text=np.zeros((self.num_candidates, self.max_words), np.int32),
        has_audio=np.zeros((), bool), has_text=np.zeros((), bool),
        id=np.zeros((), np.int32), mask=np.zeros((), bool))

  def batch(self, size: int) -> Example:
    """So many of them."""
    return {k: np.zeros((size, *v.shape), v.dtype) for k, v in self.empty().items()}


class FileNotes:
  """Which files were skipped or are without sound, in a file that survives the run.

  Attributes:
    skipped: path -> why it could not be read.
    soundless: path -> why its sound is masked.
  """

  def __init__(self, max_bad_fraction: float, num_files: int,
               path: pathlib.Path | None = None):
    """Starts, or goes on with what an earlier process noted.

    Args:
      max_bad_fraction: of the files read; beyond it the run stops. A handful says
        little about a large source, so fewer than twenty are taken for twenty, or
        for all there are.
      num_files: how many there are.
      path: a JSONL file; None notes nothing.
    """
    self._max_bad_fraction = max_bad_fraction
    self._least_read = min(20, num_files)
    self._path = path
    self._lock = threading.Lock()
    self._read: set[str] = set()
    self.skipped: dict[str, str] = {}
    self.soundless: dict[str, str] = {}
    if path is not None and path.exists():
      text = path.read_text(encoding='utf-8')
      for line in text[:text.rfind('\n') + 1].splitlines():    # a kill may cut the last
        row = json.loads(line)
        getattr(self, row['note'])[row['path']] = row['reason']

  def add_good(self, path: str, soundless: str = '') -> None:
    """Counts a file that was read; `soundless` says why its sound is masked."""
    with self._lock:
      self._read.add(path)
      if soundless:
        self._note('soundless', path, soundless)

  def add_bad(self, path: str, reason: str) -> None:
    """Names a file, and stops the run if too many are like it.

    Raises:
      UserError: more than `max_bad_fraction` of what was read is broken.
    """
    with self._lock:
      self._read.add(path)
      if self._note('skipped', path, reason):
        logging.warning('Skipped %s', reason)
      bad, read = len(self.skipped.keys() & self._read), len(self._read)
      if bad > self._max_bad_fraction * max(read, self._least_read):
        raise UserError(
            f'{bad} of the {read} files read so far are broken, more than data.'
            f'max_bad_fraction={self._max_bad_fraction}; the last: {reason}')

  def _note(self, note: str, path: str, reason: str) -> bool:
    """True if it is news."""
    notes = getattr(self, note)
    if path in notes:
      return False
    notes[path] = reason
    if self._path is not None:
      with self._path.open('a', encoding='utf-8') as file:
        file.write(json.dumps(dict(note=note, path=path, reason=reason)) + '\n')
    return True


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads examples of a source.

  Attributes:
    clips: the source.
    window: what to read of each.
    tokenizer: words to ids.
    notes: where broken files are counted.
  """
  clips: Sequence[sources.Clip]
  window: Window
  tokenizer: text_lib.WordTokenizer
  notes: FileNotes

  def read(self, index: int, rng: np.random.Generator | None,
           place: float = 0.5) -> Example | None:
    """One example, or None if its file is broken (and counted as such).

    Args:
      index: of the clip.
      rng: chooses window and crop; None takes the central crop, and
      place: where in the clip the window lies, 0 for its begin, 1 for its end.

    Raises:
      UserError: too many files are broken.
    """
    clip = self.clips[index]
    try:
      with media.MediaFile(clip.path) as file:
        example, soundless = self._decode(clip, file, rng, place)
    except media.MediaError as e:
      self.notes.add_bad(clip.path, str(e))
      return None
    self.notes.add_good(clip.path, soundless)
    return example | dict(id=np.int32(index), mask=np.bool_(True))

  def _decode(self, clip: sources.Clip, file: media.MediaFile,
              rng: np.random.Generator | None, place: float) -> tuple[Example, str]:
    """An example, and why it has no sound, if so."""
    window = self.window
    end = min(clip.end, file.duration_seconds)
    if clip.start >= end:
      raise media.MediaError(f'{clip.path}: ends at {end:.1f} s, before the clip '
                             f'begins at {clip.start:.1f} s')
    room = max(end - clip.start - window.seconds, 0.0)
    start = clip.start + room * (place if rng is None else rng.random())
    times = start + np.arange(window.num_frames) / window.frame_rate_hz
    # What follows a short clip in its file is not the clip's.
    images = file.frames(np.minimum(times, max(end - 1e-3, start)))
    size = (window.image_size, window.image_size)
    whole = images[0].size
    box = central_box(whole) if rng is None else random_box(
        whole, window.min_crop_area, window.max_crop_aspect, rng)
    video = np.stack([
        np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))
        for image in images])
    text = self._candidates(clip, start + window.seconds / 2)
    example = dict(video=video, text=text, has_text=np.any(text != 0))
    try:
      audio, soundless = file.sound(start, window.num_samples, window.audio_hz), ''
    except media.MediaError as e:    # the picture is good: only the sound is masked
      audio, soundless = None, str(e)
    if audio is None:
      soundless = soundless or f'{clip.path}: has no sound at {start:.1f} s'
      audio = np.zeros(window.num_samples, np.float32)
    audio[round((end - start) * window.audio_hz):] = 0
    example['audio'] = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
    example['has_audio'] = np.bool_(not soundless)
    return example, soundless

  def _candidates(self, clip: sources.Clip, middle: float) -> np.ndarray:
    """The sentences nearest in time.  -> int32 [K, N]."""
    window = self.window
    text = np.zeros((window.num_candidates, window.max_words), np.int32)
    for i, caption in enumerate(nearest(clip.captions, middle, window.num_candidates)):
      text[i] = self.tokenizer.encode(caption.text, window.max_words)
    return text


def nearest(captions: Sequence[sources.Caption], time: float, count: int
            ) -> list[sources.Caption]:
  """The `count` captions whose middle is nearest to `time`, nearest first."""
  return sorted(captions, key=lambda c: abs((c.start + c.end) / 2 - time))[:count]


def central_box(size: tuple[int, int]) -> Box:
  """The largest square, in the middle.  width, height -> left, top, right, bottom."""
  width, height = size
  side = min(width, height)
  return _box(size, side, side, 0.5, 0.5)


def random_box(size: tuple[int, int], min_area: float, max_aspect: float,
               rng: np.random.Generator) -> Box:
  """A random part of a picture (VATT, section 4.3).

  Args:
    size: width and height, pixels.
    min_area: the least area, as a share of the picture's.
    max_aspect: the most that width and height differ by, as a factor; the aspect
      is drawn evenly by its logarithm.
    rng: draws until a part fits into the picture.

  Returns:
    left, top, right, bottom; after many vain draws the central square.
  """
  width, height = size
  for _ in range(_MAX_CROP_DRAWS):
    area, across, down = rng.random(3)
    area = (min_area + (1 - min_area) * area) * width * height
    aspect = max_aspect ** rng.uniform(-1, 1) if max_aspect > 1 else 1.0
    w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
    if w <= width and h <= height:
      return _box(size, w, h, across, down)
  return central_box(size)


def _box(size, w, h, across, down):
  """A part w x h, whose free room is shared out as `across` and `down` say."""
  left, top = (size[0] - w) * across, (size[1] - h) * down
  return left, top, left + w, top + h


def window_places(num_windows: int) -> np.ndarray:
  """Evenly from a clip's begin, 0, to its end, 1; one is in the middle."""
  return np.linspace(0, 1, num_windows) if num_windows > 1 else np.array([0.5])


def train_batches(reader: Reader, batch_size: int, seed: int, first_step: int,
                  host: int = 0, num_hosts: int = 1) -> Iterator[dict[str, Any]]:
  """Endless batches; that of step s depends on (clips, seed, s) alone.

  Every epoch has an order of its own. A broken file's place is taken by another
  clip, again by (seed, epoch, index) alone.

  Args:
    reader: the source.
    batch_size: of all hosts together.
    seed: of order, windows and crops.
    first_step: where to begin; nothing before it is computed.
    host: this host's number.
    num_hosts: each gives its share of every batch.

  Raises:
    UserError: from the iterator: too many files are broken.
  """
  share = batch_size // num_hosts
  count = len(reader.clips)

  def draw(i):
    """Which clip comes at place i of the stream, in which epoch."""
    place = i // share * batch_size + host * share + i % share
    epoch, position = place // count, place % count
    return epoch, tf.raw_ops.RandomIndexShuffle(
        index=position, seed=tf.stack([seed, epoch, 0]), max_index=count - 1,
        rounds=_SHUFFLE_ROUNDS)

  def read(epoch, index):
    for attempt in range(_MAX_DRAWS):
      rng = np.random.default_rng((seed, epoch, index, attempt))
      example = reader.read(int(index), rng)
      if example is not None:
        return example
      index = rng.integers(count)
    raise UserError(f'{_MAX_DRAWS} clips drawn in a row are broken; the last: '
                    f'{list(reader.notes.skipped.values())[-1]}')

  dataset = tf.data.Dataset.range(first_step * share, np.iinfo(np.int64).max).map(draw)
  return _batches(dataset, reader.window.empty(), read, share)


def eval_batches(reader: Reader, batch_size: int, num_windows: int = 1
                 ) -> Iterator[dict[str, Any]]:
  """Every clip once, in order; the last batch is filled up with masked zeros.

  A broken file's place is masked too.

  Args:
    reader: the source.
    batch_size: rows of a batch.
    num_windows: of each clip, one row after the other, evenly from its begin to its
      end; one is in its middle.

  Raises:
    UserError: from the iterator: too many files are broken.
  """
  count = len(reader.clips) * num_windows
  padded = -(-count // batch_size) * batch_size
  empty = reader.window.empty()
  places = window_places(num_windows)

  def read(row):
    index, window = divmod(int(row), num_windows)
    example = reader.read(index, None, places[window]) if row < count else None
    return empty if example is None else example

  dataset = tf.data.Dataset.range(padded).map(lambda i: (i,))
  return _batches(dataset, empty, read, batch_size)


def _batches(dataset: tf.data.Dataset, empty: Example, read: Callable[..., Example],
             batch_size: int) -> Iterator[dict[str, Any]]:
  """Maps `read` over a dataset of its arguments, in parallel and in order."""
  keys = sorted(empty)
  failure = []

  def read_flat(*args):
    try:
      example = read(*args)
    except UserError as e:    # TensorFlow would bury it in a trace of its own
      failure.append(e)
      raise
    return [np.asarray(example[k], empty[k].dtype) for k in keys]

  def to_example(*args):
    arrays = tf.numpy_function(read_flat, args, [empty[k].dtype for k in keys])
    for key, array in zip(keys, arrays, strict=True):
      array.set_shape(empty[key].shape)
    return dict(zip(keys, arrays, strict=True))

  dataset = dataset.map(to_example, num_parallel_calls=tf.data.AUTOTUNE,
                        deterministic=True)
  dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2)
  try:
    yield from dataset.as_numpy_iterator()
  except Exception:
    if failure:
      raise failure[0] from None
    raise
