"""Pictures that are encoded one by one: of prepared data sets, and images.

Only the part of a JPEG that is asked for is decoded, at the scale that is asked for
as near as its blocks allow.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import io
import math
import pathlib
import re
import struct
from typing import Any
import zlib

import cv2
import numpy as np
from PIL import Image
from PIL import ImageOps
import tensorflow as tf

from vatt_jax.inputs import media

# Many clips are read side by side: threads within one are in the way.
cv2.setNumThreads(1)

_ORIENTATION = 0x0112    # in EXIF; 1 is upright
# Pillow raises whatever it stumbles over in a damaged file.
_DAMAGED = (ArithmeticError, AssertionError, AttributeError, EOFError,
            Image.DecompressionBombError, LookupError, MemoryError, OSError,
            RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error,
            tf.errors.OpError)
# So much sound on both sides of a window lets a resampler ring out.
_MARGIN_SECONDS = 0.05


class Stills(contextlib.AbstractContextManager):
  """Pictures at a steady rate from time 0 on, and perhaps sound.

  Attributes:
    pictures: each an encoded image.
    frame_rate_hz: of these.
    waveform: int16, or float32 in [-1, 1]; [S], mono; None for no sound.
    audio_hz: its sample rate; 0 for no sound.
    has_video: there are any pictures.
    has_audio: there is sound.
    duration_seconds: of the pictures; of the sound where there are none.
  """

  def __init__(self, path: str, pictures: Sequence[bytes], frame_rate_hz: float,
               waveform: np.ndarray | None = None, audio_hz: int = 0):
    """Takes what a record holds.

    Args:
      path: for messages.
      pictures: JPEG, PNG, WebP, BMP or GIF.
      frame_rate_hz: of these.
      waveform: int16, or float32 in [-1, 1]; [S], mono.
      audio_hz: its sample rate.

    Raises:
      MediaError: a rate is not positive.
    """
    self._path = path
    self.pictures, self.frame_rate_hz = pictures, frame_rate_hz
    self.waveform, self.audio_hz = waveform, audio_hz
    self.has_video = len(pictures) > 0
    self.has_audio = waveform is not None and len(waveform) > 0
    if (self.has_video and frame_rate_hz <= 0) or (self.has_audio and audio_hz <= 0):
      raise media.MediaError(path, f'has rates of {frame_rate_hz} and {audio_hz} '
                             'Hz; expected more than 0')
    self.duration_seconds = (len(pictures) / frame_rate_hz if self.has_video else
                             len(waveform) / audio_hz if self.has_audio else 0.0)

  def __exit__(self, *_) -> None:
    """Nothing is open."""

  def frames(self, times: Sequence[float]) -> list[media.Picture]:
    """The pictures on screen at given times (seconds).

    Raises:
      MediaError: there is none, or one is no image.
    """
    if not self.has_video:
      raise media.MediaError(self._path, 'has no picture')
    shown = [min(max(int(t * self.frame_rate_hz + 1e-6), 0), len(self.pictures) - 1)
             for t in times]
    together = _Together()
    pictures = {i: _Still(self._path, self.pictures[i], together)
                for i in sorted(set(shown))}
    together.stills = list(pictures.values())
    return [pictures[i] for i in shown]

  def sound(self, start: float, num_samples: int, rate_hz: int) -> np.ndarray | None:
    """As `media.MediaFile.sound`."""
    if not self.has_audio:
      return None
    native_hz = self.audio_hz
    begin = round((start - _MARGIN_SECONDS) * native_hz)
    end = begin + round((num_samples / rate_hz + 2 * _MARGIN_SECONDS) * native_hz)
    samples = self.waveform[max(begin, 0):max(end, 0)]
    scale = 1 / 32768 if samples.dtype == np.int16 else 1
    buffer = np.zeros(end - begin, np.float32)
    offset = max(-begin, 0)
    buffer[offset:offset + len(samples)] = samples * np.float32(scale)
    return media.resample(buffer, begin, native_hz, start, num_samples, rate_hz)


def image(path: str, content: bytes | None = None) -> Stills:
  """An image as a film of one picture and one second.

  Raises:
    MediaError: there is no such file.
  """
  if content is None:
    try:
      content = pathlib.Path(path).read_bytes()
    except OSError as e:
      raise media.MediaError(path, f'{e.strerror}') from e
  return Stills(path, [content], 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class _Still:
  """An encoded image, one of those of a window."""
  path: str
  content: bytes
  together: _Together

  @functools.cached_property
  def header(self) -> Image.Image:
    """Format, size and orientation; the pixels are not decoded."""
    with self._naming():
      header = Image.open(io.BytesIO(self.content))
    if math.prod(header.size) > media.MAX_PIXELS:
      width, height = header.size
      raise media.MediaError(self.path, f'claims {width} x {height} pixels; at most '
                                        f'{media.MAX_PIXELS} are read')
    return header

  @functools.cached_property
  def size(self) -> tuple[int, int]:
    width, height = self.header.size
    turned = self._orientation in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)

  @functools.cached_property
  def plain(self) -> bool:
    """A JPEG that need not be turned or converted."""
    return (self.header.format == 'JPEG' and self.header.mode in ('RGB', 'L')
            and self._orientation == 1)

  def cut(self, box: media.Box, size: tuple[int, int]) -> np.ndarray:
    plain = self.plain
    with self._naming():
      if plain:
        return self._cut_jpeg(box, size)
      upright = _to_rgb(ImageOps.exif_transpose(self.header))
      return np.asarray(upright.resize(size, Image.Resampling.BILINEAR, box))

  @functools.cached_property
  def _orientation(self) -> int:
    header = self.header
    with self._naming():
      return header.getexif().get(_ORIENTATION, 1)

  @contextlib.contextmanager
  def _naming(self) -> Iterator[None]:
    """Errors within, with the file's name before them."""
    try:
      yield
    except _DAMAGED as e:
      reason = (str(e) or type(e).__name__).splitlines()[0]
      reason = re.sub(r'{{.*}} | \[Op:.*', '', reason)    # TensorFlow's own affairs
      raise media.MediaError(self.path,
                             f'Invalid data: no image decodes ({reason})') from e

  def _cut_jpeg(self, box: media.Box, size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    # Halved as long as it is not smaller than what is asked for.
    shrink = max(r for r in (1, 2, 4, 8) if r == 1 or (
        right - left >= r * size[0] and bottom - top >= r * size[1]))
    whole = [-(-n // shrink) for n in self.header.size]
    x, y = (min(round(v / shrink), n - 1) for v, n in zip((left, top), whole,
                                                         strict=True))
    w = min(max(round((right - left) / shrink), 1), whole[0] - x)
    h = min(max(round((bottom - top) / shrink), 1), whole[1] - y)
    part = self.together.parts(self.header.size, (y, x, h, w), shrink)[self]
    return part if (w, h) == size else cv2.resize(part, size,
                                                  interpolation=cv2.INTER_LINEAR)


class _Together:
  """The pictures of a window: parts of plain JPEGs of one size, decoded in one call.

  Attributes:
    stills: all of them.
  """

  def __init__(self):
    self.stills: list[_Still] = []
    self._key: Any = None
    self._parts: dict[_Still, np.ndarray] = {}

  def parts(self, size: tuple[int, int], window: tuple[int, int, int, int],
            shrink: int) -> dict[_Still, np.ndarray]:
    """The same part (top, left, height, width) of all of a size, shrunk before."""
    key = size, window, shrink
    if key != self._key:
      stills = [s for s in self.stills if s.plain and s.header.size == size]
      parts = _decoder(shrink)(tf.constant([s.content for s in stills]),
                               tf.constant(window)).numpy()
      self._parts, self._key = dict(zip(stills, parts, strict=True)), key
    return self._parts


@functools.cache
def _decoder(shrink: int) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
  """Decodes parts of JPEGs, while others may use Python."""
  @tf.function(input_signature=[tf.TensorSpec([None], tf.string),
                                tf.TensorSpec([4], tf.int32)])
  def decode(contents, window):
    part = functools.partial(tf.io.decode_and_crop_jpeg, crop_window=window, channels=3,
                             ratio=shrink)
    return tf.map_fn(part, contents, fn_output_signature=tf.uint8,
                     parallel_iterations=1)    # the other cores have other clips

  return decode


def _to_rgb(image: Image.Image) -> Image.Image:
  """What lies under any transparency; of 16 bits the upper eight."""
  if image.mode.startswith('I'):
    return image.point(lambda value: value / 256).convert('L').convert('RGB')
  if 'transparency' in image.info:
    image = image.convert('RGBA')
  return image.convert('RGB')
