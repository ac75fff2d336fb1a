"""Decodes frames that are encoded one by one: of prepared datasets, and images.

Only the requested part of a JPEG is decoded, at a scale as near to the requested one
as its blocks allow.
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

from vatt_jax.inputs import media

# Many clips are read in parallel, so threads within one clip only slow down.
cv2.setNumThreads(1)

_ORIENTATION = 0x0112    # in EXIF; 1 is upright
# Pillow raises many kinds of errors for a damaged file.
_DAMAGED = (ArithmeticError, AssertionError, AttributeError, EOFError,
            Image.DecompressionBombError, LookupError, MemoryError, OSError,
            RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error)
# Extra audio on both sides of a window, longer than the resampler's filter rings.
_MARGIN_SECONDS = 0.05


class Stills(contextlib.AbstractContextManager):
  """Holds encoded frames at a constant rate from time 0 on, and optionally audio.

  Attributes:
    encoded_frames: frames, each an encoded image.
    frame_rate_hz: rate of the frames.
    waveform: int16, or float32 in [-1, 1]; [S], mono; None for no audio.
    audio_hz: sample rate of the waveform; 0 for no audio.
    has_video: whether the clip has frames.
    has_audio: whether the clip has audio.
    duration_seconds: duration of the frames; of the audio if it has no frames.
  """

  def __init__(self, path: str, encoded_frames: Sequence[bytes], frame_rate_hz: float,
               waveform: np.ndarray | None = None, audio_hz: int = 0):
    """Takes the content of a record.

    Args:
      path: a name for messages.
      encoded_frames: frames as JPEG, PNG, WebP, BMP or GIF.
      frame_rate_hz: rate of the frames.
      waveform: int16, or float32 in [-1, 1]; [S], mono.
      audio_hz: sample rate of the waveform.

    Raises:
      MediaError: a rate is not positive.
    """
    self._path = path
    self.encoded_frames, self.frame_rate_hz = encoded_frames, frame_rate_hz
    self.waveform, self.audio_hz = waveform, audio_hz
    self.has_video = len(encoded_frames) > 0
    self.has_audio = waveform is not None and len(waveform) > 0
    if (self.has_video and frame_rate_hz <= 0) or (self.has_audio and audio_hz <= 0):
      raise media.MediaError(path, f'has rates of {frame_rate_hz} and {audio_hz} '
                             'Hz; expected more than 0')
    self.duration_seconds = (len(encoded_frames) / frame_rate_hz if self.has_video else
                             len(waveform) / audio_hz if self.has_audio else 0.0)

  def __exit__(self, *_) -> None:
    """Closes nothing, because everything is in memory."""

  def frames(self, times: Sequence[float]) -> list[media.Frame]:
    """Returns the frames on screen at given times (seconds).

    Raises:
      MediaError: the clip has no frames, or one is not an image.
    """
    if not self.has_video:
      raise media.MediaError(self._path, 'has no frames')
    last = len(self.encoded_frames) - 1
    shown = [min(max(int(t * self.frame_rate_hz + 1e-6), 0), last) for t in times]
    batch = _JpegBatch()
    frames = {i: _EncodedFrame(self._path, self.encoded_frames[i], batch)
              for i in sorted(set(shown))}
    batch.stills = list(frames.values())
    return [frames[i] for i in shown]

  def audio(self, start: float, num_samples: int, rate_hz: int) -> np.ndarray | None:
    """Returns a window of the audio, like `media.MediaFile.audio`."""
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
  """Returns an image as a video of one frame and one second.

  Raises:
    MediaError: the file does not exist.
  """
  if content is None:
    try:
      content = pathlib.Path(path).read_bytes()
    except OSError as e:
      raise media.MediaError(path, f'{e.strerror}') from e
  return Stills(path, [content], 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class _EncodedFrame:
  """Holds an encoded frame of a window."""
  path: str
  content: bytes
  batch: _JpegBatch

  @functools.cached_property
  def header(self) -> Image.Image:
    """Reads format, size and orientation; the pixels are not decoded."""
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
    """Tells whether it is a JPEG that needs no rotation and no conversion."""
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
    """Turns errors of decoders into MediaErrors that name the file."""
    try:
      yield
    except _DAMAGED as e:
      reason = (str(e) or type(e).__name__).splitlines()[0]
      raise media.MediaError(self.path,
                             f'Invalid data: the image does not decode ({reason})'
                             ) from e

  def _cut_jpeg(self, box: media.Box, size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    # Decode at the largest reduction that is not below the requested size.
    shrink = max(r for r in (1, 2, 4, 8) if r == 1 or (
        right - left >= r * size[0] and bottom - top >= r * size[1]))
    whole = [-(-n // shrink) for n in self.header.size]
    x, y = (min(round(v / shrink), n - 1) for v, n in zip((left, top), whole,
                                                         strict=True))
    w = min(max(round((right - left) / shrink), 1), whole[0] - x)
    h = min(max(round((bottom - top) / shrink), 1), whole[1] - y)
    part = self.batch.parts(self.header.size, (y, x, h, w), shrink)[self]
    return part if (w, h) == size else cv2.resize(part, size,
                                                  interpolation=cv2.INTER_LINEAR)


class _JpegBatch:
  """Decodes the same part of all plain JPEGs of a window in one call.

  Attributes:
    stills: all frames of the window.
  """

  def __init__(self):
    self.stills: list[_EncodedFrame] = []
    self._key: Any = None
    self._parts: dict[_EncodedFrame, np.ndarray] = {}

  def parts(self, size: tuple[int, int], window: tuple[int, int, int, int],
            shrink: int) -> dict[_EncodedFrame, np.ndarray]:
    """Returns a part (top, left, height, width) of all JPEGs of one size.

    The JPEGs are reduced by the factor `shrink` before they are cropped.
    """
    key = size, window, shrink
    if key != self._key:
      stills = [s for s in self.stills if s.plain and s.header.size == size]
      parts = _decode_jpegs([s.content for s in stills], window, shrink)
      self._parts, self._key = dict(zip(stills, parts, strict=True)), key
    return self._parts


def _decode_jpegs(contents: list[bytes], window: tuple[int, int, int, int], shrink: int
                  ) -> np.ndarray:
  """Decodes the same part of JPEGs of one size.  -> uint8 [N, height, width, 3].

  TensorFlow decodes a part without the rest of the image. Its values differ from those
  of Pillow, by up to 3 within the part and more at its edges.

  Raises:
    ValueError: an image does not decode.
  """
  from vatt_jax.inputs.host_tensorflow import tf
  try:
    return _decoder(shrink)(tf.constant(contents), tf.constant(window)).numpy()
  except tf.errors.OpError as e:
    # Without the names of TensorFlow's node and op.
    raise ValueError(re.sub(r'{{.*}} | \[Op:.*', '', str(e))) from e


@functools.cache
def _decoder(shrink: int) -> Callable[..., Any]:
  """Returns a function that decodes parts of JPEGs without holding Python's GIL."""
  from vatt_jax.inputs.host_tensorflow import tf

  @tf.function(input_signature=[tf.TensorSpec([None], tf.string),
                                tf.TensorSpec([4], tf.int32)])
  def decode(contents, window):
    part = functools.partial(tf.io.decode_and_crop_jpeg, crop_window=window, channels=3,
                             ratio=shrink)
    return tf.map_fn(part, contents, fn_output_signature=tf.uint8,
                     parallel_iterations=1)    # other cores decode other clips

  return decode


def _to_rgb(image: Image.Image) -> Image.Image:
  """Converts to RGB without the transparency; keeps the upper eight of 16 bits."""
  if image.mode.startswith('I'):
    return image.point(lambda value: value / 256).convert('L').convert('RGB')
  if 'transparency' in image.info:
    image = image.convert('RGBA')
  return image.convert('RGB')
