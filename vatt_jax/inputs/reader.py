"""Reads examples of clips: windows, crops and captions; notes broken files."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import pathlib
import threading

from absl import logging
import numpy as np

from vatt_jax.errors import UserError
from vatt_jax.inputs import clip as clip_lib
from vatt_jax.inputs import media
from vatt_jax.inputs.labels import Labels
from vatt_jax.inputs.text import Tokenizer
from vatt_jax.inputs.window import central_box
from vatt_jax.inputs.window import Example
from vatt_jax.inputs.window import keep_apart
from vatt_jax.inputs.window import spread
from vatt_jax.inputs.window import Window

# A looped clip restarts when less than this is left, because containers round its
# length, at worst to a millisecond.
_LOOP_SLACK_SECONDS = 1e-3


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
    labels: the label map of each column; none without classification.
  """
  clips: Sequence[clip_lib.Clip]
  window: Window
  tokenizer: Tokenizer
  notes: FileNotes
  labels: Sequence[Labels] = ()

  def empty(self) -> Example:
    """Returns an example of zeros like those of `read`, with labels if it has them."""
    return self.window.empty() | _by_column(
        self.labels, lambda one: np.zeros(len(one.names), bool))

  def read(self, index: int, rng: np.random.Generator) -> list[Example] | None:
    """Reads the rows of a clip for training: random windows with random crops.

    Returns:
      `window.rows_per_clip` examples: all views of the first shift, then of the
      second. None, with a note, if the clip is broken.

    Raises:
      UserError: too many files are broken.
    """
    window = self.window
    return self._read(
        index, rng.random(window.num_shifts),
        lambda size: [window.random_box(size, rng) for _ in range(window.num_views)],
        self.labels)

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
    return self._read(index, [place],
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
    examples = self._read(index, [place], lambda size: [central_box(size, side)])
    if examples is None:
      return None
    (example,) = examples
    if flip < 0.5 and 'video' in example:
      example['video'] = np.ascontiguousarray(example['video'][:, :, ::-1])
    return example

  def _read(self, index: int, places: Sequence[float],
            choose: Callable[..., list[media.Box]], labels: Sequence[Labels] = ()
            ) -> list[Example] | None:
    """Reads all crops that `choose` makes of the window at each place."""
    try:
      clip = self.clips[index]
      with clip.open() as file:
        examples, lacks = [], {}
        for place in self._keep_apart(places, clip, file):
          crops, more = self._decode(clip, file, place, choose)
          examples += crops
          lacks |= more
    except media.MediaError as e:
      self.notes.add_bad(e.path, str(e))
      return None
    self.notes.add_good(clip.path, lacks)
    common = dict(id=np.int32(index), mask=np.bool_(True))
    common |= _by_column(labels, lambda one: one.encode(clip))
    return [example | common for example in examples]

  def _keep_apart(self, places: Sequence[float], clip: clip_lib.Clip,
                  file: clip_lib.Media) -> Sequence[float]:
    """Moves places in a clip apart by `min_shift_seconds`."""
    if not self.window.min_shift_seconds or len(places) == 1:
      return places
    room = clip.end_in(file) - clip.start - self.window.seconds
    return keep_apart(places, self.window.min_shift_seconds / max(room, 1e-6))

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

  def _cut(self, frames: Sequence[media.Frame], box: media.Box) -> np.ndarray:
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
      audio, no_audio = file.audio(start, window.num_samples, window.audio_hz), ''
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


def _by_column(labels: Sequence[Labels], encode: Callable[[Labels], np.ndarray]
               ) -> Example:
  """Returns `labels` of an example by column; {} without columns."""
  return dict(labels={one.column: encode(one) for one in labels}) if labels else {}


def nearest(captions: Sequence[clip_lib.Caption], time: float, count: int
            ) -> list[clip_lib.Caption]:
  """Returns the `count` captions whose middle is nearest to `time`, nearest first."""
  return sorted(captions, key=lambda c: abs((c.start + c.end) / 2 - time))[:count]


def _rescale(box: media.Box, whole: tuple[int, int], size: tuple[int, int]
             ) -> media.Box:
  """Returns the same part of a frame of another size; some videos change theirs."""
  if whole == size:
    return box
  return tuple(v * size[i % 2] / whole[i % 2] for i, v in enumerate(box))
