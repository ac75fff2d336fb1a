"""From clips to batches, through tf.data: which clip, which window, which words.

The batch of step s is a pure function of (clips, seed, s): see
docs/decisions/0001-batches-are-functions-of-the-step.md.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import json
import math
import pathlib
import threading
from typing import Any

from absl import logging
import numpy as np
import tensorflow as tf

from vatt_jax.errors import UserError
from vatt_jax.inputs import clip as clip_lib
from vatt_jax.inputs import labels as labels_lib
from vatt_jax.inputs import media
from vatt_jax.inputs import sources
from vatt_jax.inputs import text as text_lib

# A clip that repeats begins anew when so little of it is left: containers round its
# length, at worst to a millisecond.
_LOOP_SLACK_SECONDS = 1e-3

# The accelerator is JAX's.
for _kind in ('GPU', 'TPU'):
  tf.config.set_visible_devices([], _kind)

# With the default of four, neighbours of the shuffle correlate.
_SHUFFLE_ROUNDS = 16
# How many clips may be broken in a row before the source itself is.
_MAX_DRAWS = 100
# How often a part of a picture is drawn that doesn't fit.
_MAX_CROP_DRAWS = 100

MODALITIES = ('video', 'audio', 'text')
# Fields of a window that need not be above 0.
_UNBOUNDED = ('modalities', 'scale_jitter', 'short', 'audio_seconds')
Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Window:
  """What is read of a clip: every length, size and rate of an example.

  Attributes:
    num_frames: pictures.
    frame_rate_hz: of these, whatever the file's own rate.
    image_size: pixels, height and width.
    audio_hz: sample rate.
    audio_seconds: length of the audio; 0 for that of the frames. A longer or shorter
      one spans the clip as the frames do: at the clip's begin, middle and end, both
      begin, have their middle, and end together.
    num_candidates: sentences, the nearest in time (MIL-NCE's positives).
    max_tokens: of a sentence.
    min_crop_area: in training, the least area of a random crop, as a share of the
      picture's.
    max_crop_aspect: in training, the most that a crop is wider than high, or higher
      than wide; crops are squeezed into the square.
    scale_jitter: in training, instead of these two: pictures are stretched by up to so
      much, more or less, in width and height apart, before a square as large as the
      unstretched picture allows is cut out (the released code's way, with 0.2).
    scale_jitter_rate: the share of clips that are stretched.
    modalities: what is read; the rest is not in the example.
    short: how a clip shorter than the window fills it: 'hold' shows its last frame for
      the rest, without audio; 'loop' repeats the clip from its start (MMV's evaluation
      of action recognition).

  Raises:
    ValueError: a size or rate is not positive, or a modality or `short` unknown.
  """
  num_frames: int
  frame_rate_hz: float
  image_size: int
  audio_hz: int
  audio_seconds: float = 0.0
  num_candidates: int = 5
  max_tokens: int = 16
  min_crop_area: float = 1.0
  max_crop_aspect: float = 1.0
  scale_jitter: float = 0.0
  scale_jitter_rate: float = 0.8
  modalities: tuple[str, ...] = MODALITIES
  short: str = 'hold'

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name not in _UNBOUNDED and value <= 0:
        raise ValueError(f'{field.name}={value}: expected more than 0')
    if self.audio_seconds < 0:
      raise ValueError(f'audio_seconds={self.audio_seconds}: expected a length, or 0 '
                       'for that of the frames')
    if not 0 <= self.scale_jitter < 1:
      raise ValueError(f'scale_jitter={self.scale_jitter}: expected 0 to 1')
    if self.scale_jitter and (self.min_crop_area < 1 or self.max_crop_aspect > 1):
      raise ValueError(f'scale_jitter={self.scale_jitter}: is another way to cut than '
                       'min_crop_area and max_crop_aspect; leave those at 1')
    if not set(self.modalities) <= set(MODALITIES) or not (
        {'video', 'audio'} & set(self.modalities)):
      raise ValueError(f'modalities={self.modalities}: expected some of '
                       f'{", ".join(MODALITIES)}, not text alone')
    if self.short not in ('hold', 'loop'):
      raise ValueError(f"short={self.short!r}: expected 'hold' or 'loop'")

  @property
  def seconds(self) -> float:
    return self.num_frames / self.frame_rate_hz

  @property
  def num_samples(self) -> int:
    return round((self.audio_seconds or self.seconds) * self.audio_hz)

  def empty(self) -> Example:
    """An example of zeros: the shapes and types of every other."""
    size = self.image_size
    arrays = dict(video=np.zeros((self.num_frames, size, size, 3), np.uint8),
                  audio=np.zeros(self.num_samples, np.int16),
                  text=np.zeros((self.num_candidates, self.max_tokens), np.int32))
    example = dict(id=np.zeros((), np.int32), mask=np.zeros((), bool))
    for modality in self.modalities:
      example |= {modality: arrays[modality], f'has_{modality}': np.zeros((), bool)}
    return example

  def random_box(self, size: tuple[int, int], rng: np.random.Generator) -> media.Box:
    """The part of a picture (width, height) that training shows."""
    if self.scale_jitter:
      return jittered_box(size, self.scale_jitter, self.scale_jitter_rate, rng)
    return random_box(size, self.min_crop_area, self.max_crop_aspect, rng)

  def batch(self, size: int) -> Example:
    """So many of them."""
    return {k: np.zeros((size, *v.shape), v.dtype) for k, v in self.empty().items()}


class FileNotes:
  """Which files were skipped or lack something, in a file that survives the run.

  Attributes:
    skipped: path -> why it could not be read.
    no_video: path -> why its pictures are masked.
    no_audio: path -> why its audio is masked; a silent file's is not.
  """

  def __init__(self, max_bad_fraction: float, num_files: int | None,
               path: pathlib.Path | None = None):
    """Starts, or goes on with what an earlier process noted.

    Args:
      max_bad_fraction: of the files read; beyond it the run stops. A handful says
        little about a large source, so fewer than twenty are taken for twenty, or
        for all there are.
      num_files: how many there are, if that is known.
      path: a JSONL file; None notes nothing.
    """
    self._max_bad_fraction = max_bad_fraction
    self._least_read = min(20, num_files or 20)
    self._path = path
    self._lock = threading.Lock()
    self._read: set[str] = set()
    self.skipped: dict[str, str] = {}
    self.no_video: dict[str, str] = {}
    self.no_audio: dict[str, str] = {}
    if path is not None and path.exists():
      self.read(path)

  def read(self, path: pathlib.Path) -> None:
    """Takes over what another process noted in a file."""
    text = path.read_text(encoding='utf-8')
    for line in text[:text.rfind('\n') + 1].splitlines():    # a kill may cut the last
      row = json.loads(line)
      getattr(self, row['note'])[row['path']] = row['reason']

  def add_good(self, path: str, lacks: Mapping[str, str]) -> None:
    """Counts a file that was read; `no_video` or `no_audio` -> why it is masked."""
    with self._lock:
      self._read.add(path)
      for note, reason in lacks.items():
        self._note(note, path, reason)

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
    labels: which classes there are; None where nothing is classified.
  """
  clips: Sequence[clip_lib.Clip]
  window: Window
  tokenizer: text_lib.Tokenizer
  notes: FileNotes
  labels: labels_lib.Labels | None = None

  def empty(self) -> Example:
    """An example of zeros, such as `read` returns: with a label, if there are any."""
    if self.labels is None:
      return self.window.empty()
    return self.window.empty() | dict(label=np.zeros(len(self.labels.names), bool))

  def read(self, index: int, rng: np.random.Generator) -> Example | None:
    """A random window and crop of a clip, or None if it is broken (and noted as such).

    Raises:
      UserError: too many files are broken.
    """
    place = rng.random()
    examples = self._read(index, place,
                          lambda size: [self.window.random_box(size, rng)],
                          self.labels)
    return None if examples is None else examples[0]

  def views(self, index: int, place: float = 0.5, num_crops: int = 1
            ) -> list[Example] | None:
    """A window of a clip, cut in several ways, or None if it is broken (and noted).

    Args:
      index: of the clip.
      place: where in the clip the window lies, 0 for its begin, 1 for its end.
      num_crops: squares as large as the picture allows, evenly from one end of its
        longer edge to the other; a single one is in the middle.

    Raises:
      UserError: too many files are broken.
    """
    sides = spread(num_crops)
    return self._read(index, place,
                      lambda size: [central_box(size, side) for side in sides])

  def augmented(self, index: int, rng: np.random.Generator) -> Example | None:
    """Returns a random window of a clip, cropped at random, mirrored or not.

    The augmentation of MMV's linear evaluation (arXiv 2006.16228, released code): a
    square as large as the frame allows, anywhere along its longer edge; half of the
    clips are mirrored. Returns None if the clip is broken (and noted as such).

    Raises:
      UserError: too many files are broken.
    """
    place, side, flip = rng.random(3)
    examples = self._read(index, place, lambda size: [central_box(size, side)])
    if examples is None:
      return None
    (example,) = examples
    if flip < 0.5 and 'video' in example:
      example['video'] = np.ascontiguousarray(example['video'][:, :, ::-1])
    return example

  def _read(self, index: int, place: float, choose: Callable[..., list[media.Box]],
            labels: labels_lib.Labels | None = None) -> list[Example] | None:
    try:
      clip = self.clips[index]
      with clip.open() as file:
        examples, lacks = self._decode(clip, file, place, choose)
    except media.MediaError as e:
      self.notes.add_bad(e.path, str(e))
      return None
    self.notes.add_good(clip.path, lacks)
    common = dict(id=np.int32(index), mask=np.bool_(True))
    if labels is not None:
      common['label'] = labels.encode(clip)
    return [example | common for example in examples]

  def _decode(self, clip: clip_lib.Clip, file: clip_lib.Media, place: float,
              choose: Callable[..., list[media.Box]]
              ) -> tuple[list[Example], dict[str, str]]:
    """An example for each crop, and what they lack, for `FileNotes.add_good`."""
    window = self.window
    end = clip.end_in(file)
    begin = lambda seconds: clip.start + max(end - clip.start - seconds, 0.0) * place
    start = begin(window.seconds)
    common, lacks = {}, {}
    if 'video' not in window.modalities:
      crops = [{} for _ in choose((1, 1))]
    else:
      crops = self._pictures(file, start, end, choose)
      if not crops[0]['has_video']:
        lacks['no_video'] = f'{clip.path}: has no picture'
    if 'audio' in window.modalities:
      common, no_audio = self._sound(
          clip, file, begin(window.audio_seconds or window.seconds), end)
      if no_audio:
        lacks['no_audio'] = no_audio
    if 'text' in window.modalities:
      text = self._candidates(clip, start + window.seconds / 2)
      common |= dict(text=text, has_text=np.any(text != 0))
    # A clip of which nothing is there says so, rather than being all zeros.
    if not (crops[0].get('has_video') or common.get('has_audio')):
      reason = ''.join(list(lacks.values())[-1:]) or 'has no picture'
      raise media.MediaError(clip.path, reason.removeprefix(f'{clip.path}: '))
    return [crop | common for crop in crops], lacks

  def _pictures(self, file: clip_lib.Media, start: float, end: float,
                choose: Callable[..., list[media.Box]]) -> list[Example]:
    """video and has_video of each crop; zeros where a file has sound alone."""
    window = self.window
    if not file.has_video and 'audio' in window.modalities:
      empty = window.empty()
      return [{k: empty[k] for k in ('video', 'has_video')} for _ in choose((1, 1))]
    times, places = np.unique(self._times(start, end), return_inverse=True)
    pictures = file.frames(times)
    pictures = [pictures[place] for place in places]
    whole = pictures[0].size
    return [dict(video=self._cut(pictures, box), has_video=np.bool_(True))
            for box in choose(whole)]

  def _times(self, start: float, end: float) -> np.ndarray:
    """When each frame of a window is on screen, in a clip that ends at `end`."""
    window, length = self.window, end - start
    times = np.arange(window.num_frames) / window.frame_rate_hz
    if window.short == 'loop':
      times %= length
      times[length - times < _LOOP_SLACK_SECONDS] = 0
    # What follows a short clip in its file is not the clip's.
    return np.minimum(start + times, max(end - 1e-3, start))

  def _cut(self, pictures: Sequence[media.Picture], box: media.Box) -> np.ndarray:
    """The same part of all pictures; `box` is of the first.  -> [T, H, W, 3]."""
    video = self.window.empty()['video']
    for i, picture in enumerate(pictures):
      if i and picture is pictures[i - 1]:    # the same for longer than a frame
        video[i] = video[i - 1]
      else:
        video[i] = picture.cut(_rescale(box, pictures[0].size, picture.size),
                               video.shape[1:3])
    return video

  def _sound(self, clip: clip_lib.Clip, file: clip_lib.Media, start: float, end: float
             ) -> tuple[Example, str]:
    """audio and has_audio, and why there is none, if so."""
    window = self.window
    try:
      audio, no_audio = file.sound(start, window.num_samples, window.audio_hz), ''
    except media.MediaError as e:    # the picture may be good: only the sound is masked
      audio, no_audio = None, str(e)
    if audio is None:
      no_audio = no_audio or f'{clip.path}: has no audio stream'
      audio = np.zeros(window.num_samples, np.float32)
    length = round((end - start) * window.audio_hz)
    if window.short == 'loop' and 0 < length < window.num_samples:
      audio = np.resize(audio[:length], len(audio))    # repeats, as the frames do
    else:
      audio[length:] = 0
    example = dict(audio=media.to_int16(audio), has_audio=np.bool_(not no_audio))
    return example, no_audio

  def _candidates(self, clip: clip_lib.Clip, middle: float) -> np.ndarray:
    """The sentences nearest in time.  -> int32 [K, N]."""
    window = self.window
    text = np.zeros((window.num_candidates, window.max_tokens), np.int32)
    for i, caption in enumerate(nearest(clip.captions, middle, window.num_candidates)):
      text[i] = self.tokenizer.encode(caption.text, window.max_tokens)
    return text


def nearest(captions: Sequence[clip_lib.Caption], time: float, count: int
            ) -> list[clip_lib.Caption]:
  """The `count` captions whose middle is nearest to `time`, nearest first."""
  return sorted(captions, key=lambda c: abs((c.start + c.end) / 2 - time))[:count]


def central_box(size: tuple[int, int], side: float = 0.5) -> media.Box:
  """The largest square, in the middle, or nearer to one side (0, 1) of the longer edge.

  width, height -> left, top, right, bottom.
  """
  edge = min(size)
  return _box(size, edge, edge, side, side)


def jittered_box(size: tuple[int, int], jitter: float, rate: float,
                 rng: np.random.Generator) -> media.Box:
  """What a random square shows of a picture that was stretched before.

  Stretching a picture by f before a square is cut out is cutting out 1/f of the
  square's width (DMVR's `scale_jitter_augm`); what would reach over the edge, and is
  zero there, is squeezed in instead.

  Args:
    size: width and height, pixels.
    jitter: the most by which the factors differ from 1; drawn evenly.
    rate: the share of pictures that are stretched at all.
    rng: draws.
  """
  stretched, wide, high, across, down = rng.random(5)
  factor = lambda u: 1 + jitter * (2 * u - 1) if stretched < rate else 1.0
  width, height = (min(min(size) / factor(u), most)
                   for u, most in zip((wide, high), size, strict=True))
  return _box(size, width, height, across, down)


def random_box(size: tuple[int, int], min_area: float, max_aspect: float,
               rng: np.random.Generator) -> media.Box:
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


def _rescale(box: media.Box, whole: tuple[int, int], size: tuple[int, int]
             ) -> media.Box:
  """The same part of a picture of another size, as some films change theirs."""
  if whole == size:
    return box
  return tuple(v * size[i % 2] / whole[i % 2] for i, v in enumerate(box))


def spread(count: int) -> np.ndarray:
  """Places evenly from one end, 0, to the other, 1; a single one is in the middle."""
  return np.linspace(0, 1, count) if count > 1 else np.array([0.5])


def train_batches(reader: Reader, batch_size: int, seed: int, first_step: int,
                  host: int = 0, num_hosts: int = 1) -> Iterator[dict[str, Any]]:
  """Endless batches; that of step s depends on (clips, seed, s) alone.

  Every epoch has an order of its own; of a mixture with weights, every epoch of each
  source. A broken file's place is taken by another clip of its source, again by
  (seed, epoch, index) alone.

  Args:
    reader: the source.
    batch_size: of all hosts together.
    seed: of order, windows and crops.
    first_step: where to begin; nothing before it is computed.
    host: this host's number.
    num_hosts: each gives its share of every batch.

  Raises:
    UserError: the batch does not split among the hosts; from the iterator: too many
      files are broken.
  """
  share = _host_share(batch_size, num_hosts)
  parts = [(0, len(reader.clips), 1)]
  if isinstance(reader.clips, sources.Mixture) and reader.clips.shares:
    lengths = [len(part) for part in reader.clips.parts]
    parts = list(zip(itertools.accumulate([0, *lengths[:-1]]), lengths,
                     reader.clips.shares, strict=True))

  def draw(i):
    return _draw(_place(i, share, batch_size, host), parts, seed)

  def read(epoch, part, index):
    begin, length, _ = parts[part]
    for attempt in range(_MAX_DRAWS):
      rng = np.random.default_rng((seed, epoch, index, attempt))
      example = reader.read(int(index), rng)
      if example is not None:
        return example
      index = begin + rng.integers(length)
    raise UserError(f'{_MAX_DRAWS} clips drawn in a row are broken; the last: '
                    f'{list(reader.notes.skipped.values())[-1]}')

  dataset = tf.data.Dataset.range(first_step * share, np.iinfo(np.int64).max).map(draw)
  return _batches(*_map(dataset, reader.empty(), read), share)


def _host_share(batch_size: int, num_hosts: int) -> int:
  """How many rows of a batch each host reads."""
  if batch_size % num_hosts:
    raise UserError(f'batch_size={batch_size}: expected a multiple of the {num_hosts} '
                    'hosts')
  return batch_size // num_hosts


def _place(i: tf.Tensor, share: int, batch_size: int, host: int) -> tf.Tensor:
  """Where in the stream of all hosts the i-th row of a host stands."""
  return i // share * batch_size + host * share + i % share


def _draw(place: tf.Tensor, parts: Sequence[tuple[int, int, int]], seed: int
          ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Which clip comes at a place of the stream, in which epoch of its part.

  The parts take turns as evenly as their shares allow: of two, a batch has what it
  should but for less than one clip of each, of more but for less than two.

  Args:
    place: [], int64.
    parts: (first clip, number of clips, share) of each.
    seed: of the order.

  Returns:
    Epoch, part and clip.
  """
  drawn, left = None, sum(share for *_, share in parts)
  # The largest first: each part's rounding is handed on, in proportion, to the next.
  for number, (first, length, share) in sorted(
      enumerate(parts), key=lambda part: -part[1][2]):
    before = place * share // left    # so many of the places before are this part's
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
  """Every clip once, in order; the last batch is filled up with masked zeros.

  A broken file's place is masked too. A clip's views are rows that follow each
  other: of the first window all crops, then of the second. Hosts take turns, window
  by window.

  Args:
    reader: the source.
    batch_size: rows of a batch, of all hosts together.
    num_windows: of each clip, evenly from its begin to its end; one is in its middle.
    num_crops: of each window, which is decoded once (`Reader.views`); three are the
      papers' (VATT, 4.2).
    host: this host's number.
    num_hosts: each gives its share of every batch.
    augment_seed: if given, the windows are random and augmented instead, one crop of
      each (`Reader.augmented`): the e-th of clip i by (augment_seed, e, i) alone.

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
    views = views or [empty] * num_crops
    return {k: np.stack([view[k] for view in views]) for k in empty}

  windows = tf.data.Dataset.range(-(-rows // num_crops)).map(
      lambda i: (i * num_hosts + host,))
  views = {k: np.broadcast_to(v, (num_crops, *v.shape)) for k, v in empty.items()}
  examples, failure = _map(windows, views, read)
  return _batches(examples.unbatch().take(rows), failure, share)


def _map(dataset: tf.data.Dataset, like: Example, read: Callable[..., Example]
         ) -> tuple[tf.data.Dataset, list[UserError]]:
  """Maps `read` over a dataset of its arguments, in parallel and in order.

  Args:
    dataset: of tuples.
    like: the shapes and types of what comes.
    read: arguments -> arrays.

  Returns:
    What is read; and a list, to which an error that ends it is added.
  """
  keys, failure = sorted(like), []

  def read_flat(*args):
    try:
      example = read(*args)
    except UserError as e:    # TensorFlow would bury it in a trace of its own
      failure.append(e)
      raise
    return [np.asarray(example[k], like[k].dtype) for k in keys]

  def to_example(*args):
    arrays = tf.numpy_function(read_flat, args, [like[k].dtype for k in keys])
    for key, array in zip(keys, arrays, strict=True):
      array.set_shape(like[key].shape)
    return dict(zip(keys, arrays, strict=True))

  return dataset.map(to_example, num_parallel_calls=tf.data.AUTOTUNE,
                     deterministic=True), failure


def _batches(dataset: tf.data.Dataset, failure: list[UserError], batch_size: int
             ) -> Iterator[dict[str, Any]]:
  """Batches as arrays; raises the `failure` of `_map` if there is one."""
  dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2)
  try:
    yield from dataset.as_numpy_iterator()
  except Exception:
    if failure:
      raise failure[0] from None
    raise
