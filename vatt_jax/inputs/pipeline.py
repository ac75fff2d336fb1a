"""Makes batches from clips with tf.data: chooses clips, windows and captions.

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

# A looped clip restarts when less than this is left, because containers round its
# length, at worst to a millisecond.
_LOOP_SLACK_SECONDS = 1e-3

# Only JAX may use the accelerator.
for _kind in ('GPU', 'TPU'):
  tf.config.set_visible_devices([], _kind)

# With the default of four rounds, neighbors in the shuffle correlate.
_SHUFFLE_ROUNDS = 16
# After this many broken clips in a row the source itself counts as broken.
_MAX_DRAWS = 100
# The number of random crops that are tried until one fits into the frame.
_MAX_CROP_DRAWS = 100

MODALITIES = ('video', 'audio', 'text')
# Fields of a window that need not be above 0.
_UNBOUNDED = ('modalities', 'scale_jitter', 'short', 'audio_seconds')
Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Window:
  """Holds the lengths, sizes and rates of an example.

  Attributes:
    num_frames: number of frames.
    frame_rate_hz: rate of these frames, for any frame rate of the file.
    image_size: height and width of a frame, pixels.
    audio_hz: sample rate of the audio.
    audio_seconds: length of the audio; 0 for the length of the frames. Other lengths
      span the clip as the frames do: at the clip's begin both begin together, at its
      middle both have the same middle, and at its end both end together.
    num_candidates: number of captions, the nearest in time (MIL-NCE's positives).
    max_tokens: number of tokens of a caption.
    min_crop_area: in training, the smallest area of a random crop, as a share of the
      frame's area.
    max_crop_aspect: in training, the largest ratio of a crop's width and height, or of
      height and width. Crops are scaled to a square.
    scale_jitter: in training, an alternative to these two: the largest relative change
      of the frame's width and height, drawn separately. The crop is a square as large
      as the unchanged frame allows (the released code, with 0.2).
    scale_jitter_rate: the share of clips whose scale changes.
    modalities: the modalities to read; the others are not in the example.
    short: how to fill the window if the clip is shorter: 'hold' repeats the last frame,
      without audio; 'loop' repeats the clip from its start (MMV's evaluation of action
      recognition).

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
                       'for the length of the frames')
    if not 0 <= self.scale_jitter < 1:
      raise ValueError(f'scale_jitter={self.scale_jitter}: expected 0 to 1')
    if self.scale_jitter and (self.min_crop_area < 1 or self.max_crop_aspect > 1):
      raise ValueError(f'scale_jitter={self.scale_jitter}: is an alternative to '
                       'min_crop_area and max_crop_aspect; set both to 1')
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
    """Returns an example of zeros, with the shapes and types of all examples."""
    size = self.image_size
    arrays = dict(video=np.zeros((self.num_frames, size, size, 3), np.uint8),
                  audio=np.zeros(self.num_samples, np.int16),
                  text=np.zeros((self.num_candidates, self.max_tokens), np.int32))
    example = dict(id=np.zeros((), np.int32), mask=np.zeros((), bool))
    for modality in self.modalities:
      example |= {modality: arrays[modality], f'has_{modality}': np.zeros((), bool)}
    return example

  def random_box(self, size: tuple[int, int], rng: np.random.Generator) -> media.Box:
    """Returns a random crop of a frame (width, height) for training."""
    if self.scale_jitter:
      return jittered_box(size, self.scale_jitter, self.scale_jitter_rate, rng)
    return random_box(size, self.min_crop_area, self.max_crop_aspect, rng)

  def batch(self, size: int) -> Example:
    """Returns a batch of zeros of this size."""
    return {k: np.zeros((size, *v.shape), v.dtype) for k, v in self.empty().items()}


class FileNotes:
  """Records files that were skipped or lack a modality, in a JSONL file.

  Attributes:
    skipped: path -> why it could not be read.
    no_video: path -> why its video is masked.
    no_audio: path -> why its audio is masked; the audio of a silent file is not.
  """

  def __init__(self, max_bad_fraction: float, num_files: int | None,
               path: pathlib.Path | None = None):
    """Starts empty, or with the notes that an earlier process wrote.

    Args:
      max_bad_fraction: largest fraction of broken files among those read; above it
        the run stops. A few files tell little about a large source, so the fraction
        is of at least twenty files, or of all files if the source has fewer.
      num_files: number of all files, if it is known.
      path: a JSONL file; None writes nothing.
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
    """Adds the notes that another process wrote to a file."""
    text = path.read_text(encoding='utf-8')
    # A killed process may leave its last line incomplete.
    for line in text[:text.rfind('\n') + 1].splitlines():
      row = json.loads(line)
      getattr(self, row['note'])[row['path']] = row['reason']

  def add_good(self, path: str, lacks: Mapping[str, str]) -> None:
    """Counts a file that was read; `lacks`: `no_video` or `no_audio` -> reason."""
    with self._lock:
      self._read.add(path)
      for note, reason in lacks.items():
        self._note(note, path, reason)

  def add_bad(self, path: str, reason: str) -> None:
    """Counts a broken file, and stops the run if too many files are broken.

    Raises:
      UserError: more than `max_bad_fraction` of the files read are broken.
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
    """Writes a note; returns False if the path has one already."""
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
    window: lengths, sizes and rates of an example.
    tokenizer: maps captions to ids.
    notes: counts broken files.
    labels: the label map; None without classification.
  """
  clips: Sequence[clip_lib.Clip]
  window: Window
  tokenizer: text_lib.Tokenizer
  notes: FileNotes
  labels: labels_lib.Labels | None = None

  def empty(self) -> Example:
    """Returns an example of zeros like those of `read`, with a label if it has them."""
    if self.labels is None:
      return self.window.empty()
    return self.window.empty() | dict(label=np.zeros(len(self.labels.names), bool))

  def read(self, index: int, rng: np.random.Generator) -> Example | None:
    """Reads a random window and crop of a clip; None, with a note, if it is broken.

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
    """Reads several crops of a window of a clip; None, with a note, if it is broken.

    Args:
      index: number of the clip.
      place: position of the window in the clip, 0 for its begin, 1 for its end.
      num_crops: number of squares as large as the frame allows, evenly spaced from one
        end of its longer edge to the other; a single one is in the middle.

    Raises:
      UserError: too many files are broken.
    """
    sides = spread(num_crops)
    return self._read(index, place,
                      lambda size: [central_box(size, side) for side in sides])

  def augmented(self, index: int, rng: np.random.Generator) -> Example | None:
    """Reads a random window of a clip with a random crop and a random flip.

    Follows the augmentation of MMV's linear evaluation (arXiv 2006.16228, released
    code): a square as large as the frame allows, anywhere along its longer edge. Half
    of the clips are mirrored. Returns None, with a note, if the clip is broken.

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
    """Returns an example for each crop, and the `lacks` of `FileNotes.add_good`."""
    window = self.window
    end = clip.end_in(file)
    begin = lambda seconds: clip.start + max(end - clip.start - seconds, 0.0) * place
    start = begin(window.seconds)
    common, lacks = {}, {}
    if 'video' not in window.modalities:
      crops = [{} for _ in choose((1, 1))]
    else:
      crops = self._read_video(file, start, end, choose)
      if not crops[0]['has_video']:
        lacks['no_video'] = f'{clip.path}: has no video stream'
    if 'audio' in window.modalities:
      common, no_audio = self._read_audio(
          clip, file, begin(window.audio_seconds or window.seconds), end)
      if no_audio:
        lacks['no_audio'] = no_audio
    if 'text' in window.modalities:
      text = self._candidates(clip, start + window.seconds / 2)
      common |= dict(text=text, has_text=np.any(text != 0))
    # A clip without video and audio is broken; an example of zeros would hide it.
    if not (crops[0].get('has_video') or common.get('has_audio')):
      reason = ''.join(list(lacks.values())[-1:]) or 'has no video stream'
      raise media.MediaError(clip.path, reason.removeprefix(f'{clip.path}: '))
    return [crop | common for crop in crops], lacks

  def _read_video(self, file: clip_lib.Media, start: float, end: float,
                  choose: Callable[..., list[media.Box]]) -> list[Example]:
    """Returns `video` and `has_video` of each crop; zeros for a file of audio only."""
    window = self.window
    if not file.has_video and 'audio' in window.modalities:
      empty = window.empty()
      return [{k: empty[k] for k in ('video', 'has_video')} for _ in choose((1, 1))]
    times, places = np.unique(self._times(start, end), return_inverse=True)
    frames = file.frames(times)
    frames = [frames[place] for place in places]
    whole = frames[0].size
    return [dict(video=self._cut(frames, box), has_video=np.bool_(True))
            for box in choose(whole)]

  def _times(self, start: float, end: float) -> np.ndarray:
    """Returns the times of a window's frames, in a clip that ends at `end`."""
    window, length = self.window, end - start
    times = np.arange(window.num_frames) / window.frame_rate_hz
    if window.short == 'loop':
      times %= length
      times[length - times < _LOOP_SLACK_SECONDS] = 0
    # The file may go on after the end of a short clip.
    return np.minimum(start + times, max(end - 1e-3, start))

  def _cut(self, frames: Sequence[media.Picture], box: media.Box) -> np.ndarray:
    """Crops all frames alike; `box` refers to the first.  -> [T, H, W, 3]."""
    video = self.window.empty()['video']
    for i, frame in enumerate(frames):
      if i and frame is frames[i - 1]:    # still on screen
        video[i] = video[i - 1]
      else:
        video[i] = frame.cut(_rescale(box, frames[0].size, frame.size),
                             video.shape[1:3])
    return video

  def _read_audio(self, clip: clip_lib.Clip, file: clip_lib.Media, start: float,
                  end: float) -> tuple[Example, str]:
    """Returns `audio` and `has_audio`, and the reason if the audio is masked."""
    window = self.window
    try:
      audio, no_audio = file.sound(start, window.num_samples, window.audio_hz), ''
    except media.MediaError as e:    # the video may be good: mask only the audio
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
    """Returns the ids of the captions nearest in time.  -> int32 [K, N]."""
    window = self.window
    text = np.zeros((window.num_candidates, window.max_tokens), np.int32)
    for i, caption in enumerate(nearest(clip.captions, middle, window.num_candidates)):
      text[i] = self.tokenizer.encode(caption.text, window.max_tokens)
    return text


def nearest(captions: Sequence[clip_lib.Caption], time: float, count: int
            ) -> list[clip_lib.Caption]:
  """Returns the `count` captions whose middle is nearest to `time`, nearest first."""
  return sorted(captions, key=lambda c: abs((c.start + c.end) / 2 - time))[:count]


def central_box(size: tuple[int, int], side: float = 0.5) -> media.Box:
  """Returns the largest square of a frame, by default in the middle.

  Args:
    size: width and height, pixels.
    side: position along the longer edge, from 0 to 1.

  Returns:
    left, top, right, bottom.
  """
  edge = min(size)
  return _box(size, edge, edge, side, side)


def jittered_box(size: tuple[int, int], jitter: float, rate: float,
                 rng: np.random.Generator) -> media.Box:
  """Returns the part of a frame that a random square of the rescaled frame shows.

  Rescaling a frame by f before cropping a square equals cropping 1/f of the square's
  width (DMVR's `scale_jitter_augm`). DMVR pads with zeros if the crop exceeds the
  frame; here the crop is limited to the frame.

  Args:
    size: width and height, pixels.
    jitter: the largest difference of the factors from 1; they are uniform.
    rate: the share of frames that are rescaled at all.
    rng: the source of random numbers.
  """
  stretched, wide, high, across, down = rng.random(5)
  factor = lambda u: 1 + jitter * (2 * u - 1) if stretched < rate else 1.0
  width, height = (min(min(size) / factor(u), most)
                   for u, most in zip((wide, high), size, strict=True))
  return _box(size, width, height, across, down)


def random_box(size: tuple[int, int], min_area: float, max_aspect: float,
               rng: np.random.Generator) -> media.Box:
  """Returns a random crop of a frame (VATT, section 4.3).

  Args:
    size: width and height, pixels.
    min_area: the smallest area, as a share of the frame's area.
    max_aspect: the largest ratio of width and height; the logarithm of the ratio is
      uniform.
    rng: the source of random numbers; it draws until a crop fits into the frame.

  Returns:
    left, top, right, bottom; the central square if no crop of many fits.
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
  """Returns a box w x h at the relative position `across`, `down` (0 to 1)."""
  left, top = (size[0] - w) * across, (size[1] - h) * down
  return left, top, left + w, top + h


def _rescale(box: media.Box, whole: tuple[int, int], size: tuple[int, int]
             ) -> media.Box:
  """Returns the same part of a frame of another size; some videos change theirs."""
  if whole == size:
    return box
  return tuple(v * size[i % 2] / whole[i % 2] for i, v in enumerate(box))


def spread(count: int) -> np.ndarray:
  """Returns evenly spaced places from 0 to 1; a single one is in the middle."""
  return np.linspace(0, 1, count) if count > 1 else np.array([0.5])


def train_batches(reader: Reader, batch_size: int, seed: int, first_step: int,
                  host: int = 0, num_hosts: int = 1) -> Iterator[dict[str, Any]]:
  """Yields endless batches; the batch of step s depends only on (clips, seed, s).

  Every epoch has its own order. In a mixture with weights every epoch of each source
  has its own order. Another clip of its source, chosen by (seed, epoch, index) alone,
  replaces a broken file.

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
  """Returns the number of rows of a batch that each host reads."""
  if batch_size % num_hosts:
    raise UserError(f'batch_size={batch_size}: expected a multiple of the {num_hosts} '
                    'hosts')
  return batch_size // num_hosts


def _place(i: tf.Tensor, share: int, batch_size: int, host: int) -> tf.Tensor:
  """Returns the place of a host's i-th row in the stream of all hosts."""
  return i // share * batch_size + host * share + i % share


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
    dataset: tuples of arguments.
    like: an example with the shapes and types of the results.
    read: arguments -> arrays.

  Returns:
    The dataset of results, and a list that receives the error that ends it.
  """
  keys, failure = sorted(like), []

  def read_flat(*args):
    try:
      example = read(*args)
    except UserError as e:    # TensorFlow would hide it in its own trace
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
  """Yields batches as arrays; raises the `failure` of `_map` if it has one."""
  dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2)
  try:
    yield from dataset.as_numpy_iterator()
  except Exception:
    if failure:
      raise failure[0] from None
    raise
