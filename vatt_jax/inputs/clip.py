"""A clip: the location of its video and audio, its captions and its labels."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import math
import pathlib
from typing import Protocol

import numpy as np

from vatt_jax.inputs import images
from vatt_jax.inputs import media

IMAGE_SUFFIXES = frozenset({'.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif'})
SOUND_SUFFIXES = frozenset({'.wav', '.flac', '.ogg', '.mp3', '.m4a', '.aac', '.opus'})
MEDIA_SUFFIXES = IMAGE_SUFFIXES | SOUND_SUFFIXES | {
    '.mp4', '.m4v', '.mkv', '.webm', '.mov', '.avi', '.mpg', '.mpeg', '.ts', '.flv',
    '.wmv', '.3gp', '.ogv'}


class Media(contextlib.AbstractContextManager, Protocol):
  """Gives frames and audio by time; `media.MediaFile` is the main implementation."""
  has_video: bool
  has_audio: bool
  audio_hz: int
  frame_rate_hz: float | None
  duration_seconds: float

  def frames(self, times: Sequence[float]) -> list[media.Frame]:
    """Returns the frames on screen at given times (seconds, increasing)."""

  def audio(self, start: float, num_samples: int, rate_hz: int) -> np.ndarray | None:
    """Returns mono float32 [num_samples] in [-1, 1]; None if the file has no audio."""


@dataclasses.dataclass(frozen=True)
class Caption:
  """Holds a sentence spoken, or true, from `start` to `end` (seconds of the file)."""
  start: float
  end: float
  text: str


@dataclasses.dataclass(frozen=True)
class Clip:
  """Describes a segment of a media file, which is not read yet.

  Attributes:
    path: the path of the file, or the name of a record with its shard.
    start: seconds.
    end: seconds; infinite for the end of the file.
    captions: sentences with their times.
    labels: the manifest's other columns, by name.
    content: for a record, the bytes of its media file or its encoded frames; None to
      read the file at `path`.
  """
  path: str
  start: float = 0.0
  end: float = math.inf
  captions: tuple[Caption, ...] = ()
  labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
  content: bytes | images.Stills | None = dataclasses.field(default=None, repr=False)

  def open(self) -> Media:
    """Opens the clip's media.

    Raises:
      media.MediaError: the file is missing or is not a media file.
    """
    if isinstance(self.content, images.Stills):
      return self.content
    if pathlib.Path(self.path).suffix.lower() in IMAGE_SUFFIXES:
      return images.image(self.path, self.content)
    return media.MediaFile(self.path, self.content)

  def end_in(self, file: Media) -> float:
    """Returns the clip's end in its file in seconds, at most the file's duration.

    Raises:
      media.MediaError: the file ends before the clip begins.
    """
    end = min(self.end, file.duration_seconds)
    if self.start >= end:
      raise media.MediaError(self.path, f'ends at {end:.1f} s, before the clip begins '
                                        f'at {self.start:.1f} s')
    return end
