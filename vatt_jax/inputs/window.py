"""Describes an example: the lengths, sizes and rates of its arrays, and its crops."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from vatt_jax.inputs import media

# The number of random crops that are tried until one fits into the frame.
_MAX_CROP_DRAWS = 100

MODALITIES = ('video', 'audio', 'text')
# Fields of a window that need not be above 0.
_UNBOUNDED = ('modalities', 'scale_jitter', 'short', 'audio_seconds',
              'min_shift_seconds')
Example = dict[str, Any]    # arrays, and `labels`: arrays by column


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
    crop_share: in training, with `scale_jitter`, the side of the square as a share of
      the largest one (MMV: 200 of 224 pixels).
    modalities: the modalities to read; the others are not in the example.
    short: how to fill the window if the clip is shorter: 'hold' repeats the last frame,
      without audio; 'loop' repeats the clip from its start (MMV's evaluation of action
      recognition).
    num_shifts: in training, windows of a clip (GDT's K_tau). They start at random,
      independent times.
    num_views: in training, random crops of each window, which is decoded once (STiCA).
      They share the window's audio and text.
    min_shift_seconds: least time between the starts of two windows of a clip; with 0
      they may overlap (GDT). In a clip too short for it they are evenly spaced.

  In training a clip has `rows_per_clip` adjacent rows in a batch: row
  (clip * num_shifts + shift) * num_views + view. Evaluation has views of its own.

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
  crop_share: float = 1.0
  modalities: tuple[str, ...] = MODALITIES
  short: str = 'hold'
  num_shifts: int = 1
  num_views: int = 1
  min_shift_seconds: float = 0.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name not in _UNBOUNDED and value <= 0:
        raise ValueError(f'{field.name}={value}: expected more than 0')
    if self.audio_seconds < 0:
      raise ValueError(f'audio_seconds={self.audio_seconds}: expected a length, or 0 '
                       'for the length of the frames')
    if self.min_shift_seconds < 0:
      raise ValueError(f'min_shift_seconds={self.min_shift_seconds}: expected 0 or '
                       'more')
    if not 0 <= self.scale_jitter < 1:
      raise ValueError(f'scale_jitter={self.scale_jitter}: expected 0 to 1')
    if self.scale_jitter and (self.min_crop_area < 1 or self.max_crop_aspect > 1):
      raise ValueError(f'scale_jitter={self.scale_jitter}: is an alternative to '
                       'min_crop_area and max_crop_aspect; set both to 1')
    if self.crop_share > 1 or (self.crop_share < 1 and not self.scale_jitter):
      raise ValueError(f'crop_share={self.crop_share}: expected at most 1; less only '
                       'with scale_jitter')
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
  def rows_per_clip(self) -> int:
    """Returns the number of a clip's rows in a training batch."""
    return self.num_shifts * self.num_views

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
      return jittered_box(size, self.scale_jitter, self.scale_jitter_rate, rng,
                          self.crop_share)
    return random_box(size, self.min_crop_area, self.max_crop_aspect, rng)

  def batch(self, size: int) -> Example:
    """Returns a batch of zeros of this size."""
    return {k: np.zeros((size, *v.shape), v.dtype) for k, v in self.empty().items()}


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
                 rng: np.random.Generator, share: float = 1.0) -> media.Box:
  """Returns the part of a frame that a random square of the rescaled frame shows.

  Rescaling a frame by f before cropping a square equals cropping 1/f of the square's
  width (DMVR's `scale_jitter_augm`). DMVR pads with zeros if the crop exceeds the
  frame; here the crop is limited to the frame.

  Args:
    size: width and height, pixels.
    jitter: the largest difference of the factors from 1; they are uniform.
    rate: the share of frames that are rescaled at all.
    rng: the source of random numbers.
    share: the square's side as a share of the frame's shorter side.
  """
  stretched, wide, high, across, down = rng.random(5)
  factor = lambda u: 1 + jitter * (2 * u - 1) if stretched < rate else 1.0
  width, height = (min(share * min(size) / factor(u), most)
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


def spread(count: int) -> np.ndarray:
  """Returns evenly spaced places from 0 to 1; a single one is in the middle."""
  return np.linspace(0, 1, count) if count > 1 else np.array([0.5])


def keep_apart(places: np.ndarray, gap: float) -> np.ndarray:
  """Moves random places in [0, 1] apart, in the same order.

  Places that are independent and uniform become uniform among all places that are
  `gap` apart.

  Args:
    places: [K].
    gap: least distance of two places. If they do not fit, they are evenly spaced.
  """
  count = len(places)
  gap = min(gap, 1 / max(count - 1, 1))
  ranks = np.argsort(np.argsort(places))
  return places * (1 - (count - 1) * gap) + ranks * gap
