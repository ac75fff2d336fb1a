"""Decoding a window of a media file: pictures and sound by presentation time.

Time 0 of a file is the start time of its container; pictures and sound are
placed by their time stamps relative to it, so the two stay in step whatever
their rates, and whether or not their streams begin together.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import os
from typing import Any

import av
from av.video.reformatter import VideoReformatter
import numpy as np
from PIL import Image
import soxr

# A frame is on screen from its own time stamp. Containers round these to as
# coarse as a millisecond, so a frame may be this late (seconds) and still count.
_TIME_SLACK = 2e-3
# Decoders of sound need some packets before their output is right (Opus: 80 ms).
_PRE_ROLL_SECONDS = 0.25
# Time stamps of consecutive sound frames that differ from the sample count by
# less than this are rounding, by more a gap.
_GAP_SECONDS = 0.02
_ROTATIONS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180,
              270: Image.Transpose.ROTATE_270}


class MediaError(Exception):
  """A file that does not give what it should; the message names it and says why."""


class MediaFile:
  """An open media file; use it as a context manager.

  Attributes:
    has_video: there is a picture stream.
    has_audio: there is a sound stream.
    duration_seconds: of the picture stream; of the sound where there is none.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens a file.

    Raises:
      MediaError: it is not there or is no media file.
    """
    self._path = os.fspath(path)
    with self._naming():
      # A title in some old encoding is no reason not to read the film.
      self._container = av.open(self._path, metadata_errors='replace')
    self._zero = (self._container.start_time or 0) / av.time_base
    self._video, self._audio = map(self._best_stream, ('video', 'audio'))
    self.has_video = self._video is not None
    self.has_audio = self._audio is not None
    self.duration_seconds = self._duration()

  def __enter__(self) -> 'MediaFile':
    return self

  def __exit__(self, *_) -> None:
    self._container.close()

  def frames(self, times: Sequence[float]) -> list[Image.Image]:
    """The pictures on screen at given times.

    Decodes from the last keyframe before the first time, and no further than
    the last time. Before the first picture the first is shown, after the last
    the last.

    Args:
      times: seconds, increasing.

    Raises:
      MediaError: there is no picture, or it does not decode.
    """
    if self._video is None:
      raise MediaError(f'{self._path}: has no picture')
    with self._naming():
      chosen = self._on_screen(times)
      convert = VideoReformatter()    # one for all frames: it is dear to set up
      images = {id(frame): _upright(frame, convert) for frame in chosen}
    return [images[id(frame)] for frame in chosen]

  def sound(self, start: float, num_samples: int, rate_hz: int) -> np.ndarray | None:
    """The sound from a time on, mono.

    Args:
      start: seconds.
      num_samples: how many samples at `rate_hz`.
      rate_hz: the rate to resample to.

    Returns:
      float32 [num_samples] in [-1, 1], zero where the file has none; None if
      there is no sound at all in the window, or nothing but digital silence.

    Raises:
      MediaError: the sound does not decode.
    """
    if self._audio is None:
      return None
    native_hz = self._audio.codec_context.sample_rate
    begin = round((start - _PRE_ROLL_SECONDS) * native_hz)
    length = round((num_samples / rate_hz + 2 * _PRE_ROLL_SECONDS) * native_hz)
    with self._naming():
      buffer = self._native_sound(begin, length, native_hz)
    if buffer is None:
      return None
    resampled = soxr.resample(buffer, native_hz, rate_hz)
    first = round((start - begin / native_hz) * rate_hz)
    window = resampled[first:first + num_samples]
    window = np.pad(window, (0, num_samples - len(window)))
    return window if np.any(window) else None

  def _on_screen(self, times: Sequence[float]) -> list[av.VideoFrame]:
    """The frame shown at each time."""
    shown, chosen = None, []
    for now, frame in self._decode(self._video, times[0]):
      while len(chosen) < len(times) and now > times[len(chosen)] + _TIME_SLACK:
        chosen.append(frame if shown is None else shown)
      shown = frame
      if len(chosen) == len(times):
        break
    if shown is None:
      raise MediaError(f'{self._path}: no picture decodes')
    return chosen + [shown] * (len(times) - len(chosen))

  def _native_sound(self, begin: int, length: int, native_hz: int
                    ) -> np.ndarray | None:
    """Mono samples begin .. begin + length at the file's own rate."""
    buffer, filled, expected = np.zeros(length, np.float32), False, None
    for now, frame in self._decode(self._audio, begin / native_hz):
      position = round(now * native_hz) - begin
      if expected is not None and abs(position - expected) < _GAP_SECONDS * native_hz:
        position = expected
      samples = _mono(frame)
      expected = position + len(samples)
      if position >= length:
        break
      low, high = max(position, 0), min(expected, length)
      if high > low:
        buffer[low:high] = samples[low - position:high - position]
        filled = True
    return buffer if filled else None

  def _decode(self, stream, seconds: float) -> Iterator[tuple[float, av.frame.Frame]]:
    """(time, frame) in order of presentation, from at or before `seconds` on."""
    first_seconds = (stream.start_time or 0) * stream.time_base - self._zero
    if seconds > first_seconds:
      offset = int((seconds + self._zero) / stream.time_base)
      self._container.seek(offset, stream=stream, backward=True)
      frames = self._timed(stream)
      first = next(frames, None)
      if first is not None and first[0] <= seconds + _TIME_SLACK:
        yield first
        yield from frames
        return
    # The window is at the start, or the file's index led astray. A second before
    # the start, for the packets that only prime a decoder stand before it.
    start = stream.start_time or 0
    try:
      self._container.seek(start - int(1 / stream.time_base), stream=stream,
                           backward=True)
    except av.FFmpegError:    # AVI's index knows nothing before the start
      self._container.seek(start, stream=stream, backward=True)
    yield from self._timed(stream)

  def _timed(self, stream):
    for frame in self._container.decode(stream):
      if frame.pts is not None:
        yield float(frame.pts * frame.time_base) - self._zero, frame

  def _duration(self) -> float:
    stream = self._video or self._audio
    if stream is None:
      raise MediaError(f'{self._path}: has neither picture nor sound')
    if stream.duration:
      return float(stream.duration * stream.time_base)
    if self._container.duration:
      return self._container.duration / av.time_base
    with self._naming():
      last = max((p.pts + (p.duration or 0) for p in self._container.demux(stream)
                  if p.pts is not None), default=0)
    return float(last * stream.time_base) - self._zero

  def _best_stream(self, kind: str) -> Any:
    """The stream that players choose, or None if there is none with a decoder."""
    stream = self._container.streams.best(kind)
    if stream is None or stream.codec_context is None:
      return None
    # Many files are read side by side: threads within one are in the way.
    stream.codec_context.thread_count = 1
    return stream

  @contextlib.contextmanager
  def _naming(self) -> Iterator[None]:
    """FFmpeg's errors within, with the file's name before them."""
    try:
      yield
    except av.FFmpegError as e:
      raise MediaError(f'{self._path}: {e.strerror or type(e).__name__}') from e


def _upright(frame: av.VideoFrame, convert: VideoReformatter) -> Image.Image:
  """The picture as it is meant to be seen, RGB."""
  image = convert.reformat(frame, format='rgb24', threads=1).to_image()
  turn = frame.rotation % 360
  return image.transpose(_ROTATIONS[turn]) if turn in _ROTATIONS else image


def _mono(frame: av.AudioFrame) -> np.ndarray:
  """The mean of the channels.  -> float32 [S] in [-1, 1]."""
  samples = frame.to_ndarray()    # [channels, S], or packed [1, S * channels]
  if not frame.format.is_planar:
    samples = samples.reshape(-1, frame.layout.nb_channels).T
  mean = samples.mean(axis=0, dtype=np.float32)
  if samples.dtype == np.uint8:
    return mean / 128 - 1
  if samples.dtype.kind == 'i':
    return mean / -float(np.iinfo(samples.dtype).min)
  return mean
