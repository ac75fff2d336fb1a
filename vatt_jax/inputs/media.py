"""Decodes a window of a media file: frames and audio by presentation time.

Time 0 of a file is the start time of its container. Frames and audio are placed by
their time stamps relative to it. Both stay in sync for all rates, even if their
streams do not begin together.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import io
import itertools
import os
import re
import struct
from typing import Any
from typing import Protocol

import av
from av.stream import Disposition
import numpy as np
import soxr

# A frame is on screen from its own time stamp. Containers round these to as
# coarse as a millisecond, so a frame may be this late (seconds) and still count.
_TIME_SLACK = 2e-3
# Audio decoders need some packets before their output is right (Opus: 80 ms).
_PRE_ROLL_SECONDS = 0.25
# If the time stamps of consecutive audio frames differ from the sample count by less
# than this, the cause is rounding; otherwise it is a gap.
_GAP_SECONDS = 0.01
# Limits of a file. A damaged or hostile one claims more than it holds.
MAX_PIXELS = 2 ** 26
_MAX_FRAMES = 5_000_000
_MAX_AUDIO_HZ = 768_000
_MAX_PACKET_BYTES = 2 ** 29    # from a keyframe to the end of a window
_PACKET_BYTES = 512    # memory of a packet beyond its content
_MAX_OPEN_SECONDS = 10.0
# The number of keyframes, each further back, from which decoding a window is tried.
_MAX_TRIES = 5
# The decoders that respect `skip_frame` for each packet.
_SKIPPING = frozenset({'h264', 'hevc', 'mpeg4', 'mpeg2video'})
# Arguments of FFmpeg's transpose filter for each rotation (degrees) of a frame.
_TURNS = {90: ['cclock'], 180: ['clock', 'clock'], 270: ['clock']}

# MP4's sample size box: the size of all samples, and their number.
_TABLE = re.compile(rb'stsz.{4}(.{8})', re.DOTALL)

Box = tuple[float, float, float, float]


class MediaError(Exception):
  """Reports a file that cannot be read; the message gives its path and the reason."""

  def __init__(self, path: str, reason: str):
    super().__init__(f'{path}: {reason}')
    self.path = path


class Frame(Protocol):
  """Gives the pixels of a frame, which is not yet decoded, cropped or scaled.

  Attributes:
    size: width and height in pixels, after rotation.
  """
  size: tuple[int, int]

  def cut(self, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Crops a box (left, top, right, bottom; pixels) and scales it to a size.

    Args:
      box: the part of the frame.
      size: width and height of the result.

    Returns:
      RGB, uint8 [height, width, 3].

    Raises:
      MediaError: the frame does not decode.
    """


class MediaFile:
  """Reads an open media file; use it as a context manager.

  Attributes:
    has_video: whether the file has a video stream.
    has_audio: whether the file has an audio stream.
    duration_seconds: duration of the video stream; of the audio if it has no video.
  """

  def __init__(self, path: str | os.PathLike[str], content: bytes | None = None):
    """Opens a file.

    Args:
      path: path of the file.
      content: the file's bytes if it is part of another file; `path` is then a name.

    Raises:
      MediaError: the file is missing, is not a media file, or claims an absurd size.
    """
    self._path = os.fspath(path)
    with self._naming():
      self._refuse_long_table(content)
      # A title in an old encoding must not make the file unreadable.
      self._container = av.open(
          self._path if content is None else io.BytesIO(content),
          metadata_errors='replace', timeout=_MAX_OPEN_SECONDS)
    with contextlib.ExitStack() as on_failure:
      on_failure.callback(self._container.close)
      self._zero = (self._container.start_time or 0) / av.time_base
      self._tick_seconds: dict[int, float] = {}    # by stream; fractions are slow
      self._video, self._audio = map(self._best_stream, ('video', 'audio'))
      self.has_video = self._video is not None
      self.has_audio = self._audio is not None
      # AVI stores only the order of its packets. FFmpeg guesses the times of frames,
      # wrongly if the codec is younger than the container.
      self._stampless = self._container.format.name == 'avi' and self.has_video and (
          self._video.codec_context.name in ('h264', 'hevc'))
      self._refuse_absurd()
      self.duration_seconds = self._duration()
      on_failure.pop_all()

  def __enter__(self) -> MediaFile:
    return self

  def __exit__(self, *_) -> None:
    self._container.close()

  @property
  def frame_rate_hz(self) -> float | None:
    """Returns the average frames per second; None if the file does not tell."""
    rate = self._video.average_rate if self.has_video else None
    return float(rate) if rate else None

  @property
  def audio_hz(self) -> int:
    """Returns the sample rate of the audio; 0 without audio."""
    return self._audio.codec_context.sample_rate if self.has_audio else 0

  def frames(self, times: Sequence[float]) -> list[Frame]:
    """Returns the frames on screen at given times.

    Decodes from the last keyframe before the first time, up to the last time. Times
    before the first frame give the first, times after the last frame the last.

    Args:
      times: seconds, increasing.

    Raises:
      MediaError: the file has no video, or one of these frames does not decode.
    """
    if self._video is None:
      raise MediaError(self._path, 'has no video stream')
    with self._naming():
      for packets in itertools.islice(
          self._packets(self._video, times[0], times[-1]), _MAX_TRIES):
        shown, frames = self._show(packets, times)
        # A packet marked as a keyframe need not give a frame at once.
        late = not shown or (
            self._seconds(self._video, shown[0]) > times[0] + _TIME_SLACK)
        if not late:
          break
      if not shown and not any(p.is_keyframe for p in packets):
        # The first frame that can be shown is after all of these times.
        times = [self._first_keyframe(times[-1])] * len(times)
        packets = next(self._packets(self._video, times[0], times[0]))
        shown, frames = self._show(packets, times)
    lost = [s for s in shown if s not in frames or frames[s].is_corrupt]
    if not shown or lost:
      at = self._seconds(self._video, lost[0]) if lost else times[0]
      raise MediaError(self._path,
                       f'Invalid data: no complete frame decodes at {at:.1f} s')
    cutter = _Cutter(self._path)
    wrapped = {stamp: _DecodedFrame(frame, cutter) for stamp, frame in frames.items()}
    return [wrapped[stamp] for stamp in shown]

  def audio(self, start: float, num_samples: int, rate_hz: int) -> np.ndarray | None:
    """Returns a window of the audio, mono.

    Args:
      start: seconds.
      num_samples: number of samples at `rate_hz`.
      rate_hz: the rate to resample to.

    Returns:
      float32 [num_samples] in [-1, 1], zero where the stream is silent, has not
      begun or has ended; None if the file has no audio stream.

    Raises:
      MediaError: the audio does not decode.
    """
    if self._audio is None:
      return None
    native_hz = self._audio.codec_context.sample_rate
    begin = round((start - _PRE_ROLL_SECONDS) * native_hz)
    length = round((num_samples / rate_hz + 2 * _PRE_ROLL_SECONDS) * native_hz)
    with self._naming():
      buffer = self._native_audio(begin, length, native_hz)
    return resample(buffer, begin, native_hz, start, num_samples, rate_hz)

  def _show(self, packets: list[av.Packet], times: Sequence[float]
            ) -> tuple[list[int], dict[int, av.VideoFrame]]:
    """Returns the time stamps on screen at each time, and the frames that decode."""
    stamps = [p.pts for p in packets if not p.is_discard]
    if stamps and None not in stamps and not self._stampless:
      shown = self._on_screen(stamps, times)
      frames = self._decode_frames(packets, set(shown))
      if all(stamp in frames for stamp in shown):
        return shown, frames
    # Some packets give no frame (a field, a hidden reference, a broken packet) or
    # have no time stamp: only decoding tells.
    shown = self._on_screen(self._stamps(packets), times)
    return shown, self._decode_frames(packets, set(shown))

  def _on_screen(self, stamps: list[int], times: Sequence[float]) -> list[int]:
    """Returns the time stamp of the frame on screen at each time."""
    stamps = sorted(stamps)
    if not stamps:
      return []
    seconds = [self._seconds(self._video, s) for s in stamps]
    return [stamps[max(bisect.bisect_right(seconds, t + _TIME_SLACK) - 1, 0)]
            for t in times]

  def _decode_frames(self, packets: list[av.Packet], wanted: set[int]
                       ) -> dict[int, av.VideoFrame]:
    """Decodes the wanted frames; returns time stamp -> frame of those that decode."""
    return {frame.pts: frame
            for frame in self._decode(self._video, packets, wanted)
            if isinstance(frame, av.VideoFrame) and frame.pts in wanted}

  def _stamps(self, packets: list[av.Packet]) -> list[int]:
    """Returns the time stamps of all frames, and of packets that do not decode."""
    frames = self._decode(self._video, packets)
    return [frame.pts for frame in frames if frame.pts is not None]

  def _decode(self, stream: Any, packets: list[av.Packet],
              wanted: set[int] | None = None) -> Iterator[av.frame.Frame | av.Packet]:
    """Yields the frames of packets, and the packets that do not decode.

    Skips frames that are neither `wanted` nor needed to decode another.
    """
    context = stream.codec_context
    context.flush_buffers()
    ordered = stream is self._video and self._stampless
    if wanted is not None and not ordered:
      last = max((i for i, p in enumerate(packets) if p.pts in wanted), default=-1)
      packets = packets[:last + 1]
    for packet in [*packets, None]:
      if context.name in _SKIPPING and not ordered:    # the order counts all frames
        needed = wanted is None or packet is None or packet.pts in wanted
        context.skip_frame = 'DEFAULT' if needed else 'NONREF'
      try:
        frames = context.decode(packet)
      except av.FFmpegError:
        if packet is not None:
          yield packet
        continue
      if ordered:    # one frame per packet; the last frames come after all packets
        for i, frame in enumerate(frames, 1):
          frame.pts = packets[-1].dts + i if packet is None else packet.dts
      yield from frames

  def _native_audio(self, begin: int, length: int, native_hz: int) -> np.ndarray:
    """Returns mono samples begin .. begin + length at the file's own rate."""
    for packets in itertools.islice(
        self._packets(self._audio, begin / native_hz, (begin + length) / native_hz),
        _MAX_TRIES):
      frames = [f for f in self._decode(self._audio, packets) if f.pts is not None]
      positions = [round(self._seconds(self._audio, f.pts) * native_hz) - begin
                   for f in frames]
      # A seek may end within a packet, the rest of which does not decode.
      margin = _PRE_ROLL_SECONDS * native_hz
      broken = [p for f, p in zip(frames, positions, strict=True)
                if isinstance(f, av.Packet) and margin <= p < length - margin]
      if not broken:
        break
    else:
      at = (begin + broken[0]) / native_hz
      raise MediaError(self._path, f'Invalid data: no audio decodes at {at:.1f} s')
    placed = [(p, f) for p, f in zip(positions, frames, strict=True)
              if isinstance(f, av.AudioFrame)]
    runs, expected, last_kind = [], 0, None    # position, frames without a gap
    for i, (position, frame) in enumerate(placed):
      kind = frame.format.name, frame.layout.nb_channels, frame.sample_rate
      num_samples = round(frame.samples * native_hz / frame.sample_rate)
      # A single time stamp is off when Vorbis' blocks change their length.
      by_next = placed[i + 1][0] - num_samples if i + 1 < len(placed) else position
      off = min(abs(position - expected), abs(by_next - expected))
      if kind != last_kind or off >= _GAP_SECONDS * native_hz:
        runs.append((position, []))
        expected, last_kind = position, kind
      runs[-1][1].append(frame)
      expected += num_samples
    buffer = np.zeros(length, np.float32)
    for position, frames in runs:
      samples = _mono(frames)
      if frames[0].sample_rate != native_hz:    # a stream may change its rate
        samples = soxr.resample(samples, frames[0].sample_rate, native_hz)
      low, high = max(position, 0), min(position + len(samples), length)
      if high > low:
        buffer[low:high] = samples[low - position:high - position]
    return buffer

  def _packets(self, stream: Any, first: float, last: float
               ) -> Iterator[list[av.Packet]]:
    """Yields the packets to decode for a stream from one time to another (seconds).

    Begins at the last keyframe, then at keyframes further back, down to the start of
    the stream.
    """
    begin = self._seconds(stream, stream.start_time or 0)
    # A second before the start, because packets that prime a decoder precede it.
    earliest, back = begin - 1, 0.0
    while True:
      target = max(first - back, earliest) if first > begin else earliest
      self._seek(stream, target)
      packets = self._read(stream, last)
      if target == earliest:
        yield packets
        return
      # A file's index may be wrong, and some containers have none.
      keys = (i for i, p in enumerate(packets) if p.is_keyframe)
      key = next(keys, None)
      if key is not None and (
          self._seconds(stream, _stamp(packets[key])) <= first + _TIME_SLACK):
        yield packets[key:]
      back = 2 * back + 1

  def _first_keyframe(self, default: float) -> float:
    """Returns the time of the first keyframe, seconds; `default` if none is marked."""
    start = self._seconds(self._video, self._video.start_time or 0)
    self._seek(self._video, start - 1)
    stamps = (_stamp(p) for p in self._demux(self._video)
              if p.is_keyframe and not p.is_discard)
    stamp = next(stamps, None)
    return default if stamp is None else self._seconds(self._video, stamp)

  def _seek(self, stream: Any, seconds: float) -> None:
    """Seeks to the last keyframe at or before a time, according to the index."""
    offset = int((seconds + self._zero) / self._tick_seconds[stream.index])
    try:
      self._container.seek(offset, stream=stream, backward=True)
    except av.FFmpegError:    # AVI's index knows nothing before the start
      self._container.seek(stream.start_time or 0, stream=stream, backward=True)

  def _read(self, stream: Any, last: float) -> list[av.Packet]:
    """Reads packets from here until none can be shown at or before `last` (seconds)."""
    packets, num_bytes = [], 0
    for packet in self._demux(stream):
      # No frame is shown before it is decoded. Packets that an edit list cuts out
      # may be followed by earlier ones.
      if packet.dts is not None and not packet.is_discard and (
          self._seconds(stream, packet.dts) > last + _TIME_SLACK):
        break
      if packet.size:
        packets.append(packet)
        num_bytes += packet.size + _PACKET_BYTES
      if num_bytes > _MAX_PACKET_BYTES:
        raise MediaError(self._path, f'more than {_MAX_PACKET_BYTES >> 20} MiB to '
                         f'decode for the frames until {last:.1f} s; re-encode it '
                         'with more keyframes')
    return packets

  def _demux(self, stream: Any) -> Iterator[av.Packet]:
    """Yields packets from here to the end of the file."""
    try:
      yield from self._container.demux(stream)
    except IndexError:    # PyAV raises it at the end if a stream appeared meanwhile
      return

  def _seconds(self, stream: Any, stamp: int | None) -> float:
    """Converts a stream's time stamp to seconds; None counts as zero."""
    return (stamp or 0) * self._tick_seconds[stream.index] - self._zero

  def _refuse_long_table(self, content: bytes | None) -> None:
    """Raises MediaError if an MP4 claims absurdly many samples of one size.

    FFmpeg allocates memory for this claim at once. It checks other claims against the
    size of the file.
    """
    with (open(self._path, 'rb') if content is None else io.BytesIO(content)) as file:
      end, at = file.seek(0, os.SEEK_END), 0
      while at < end:
        file.seek(at)
        head = file.read(16).ljust(16, b'\0')
        length, kind, long_length = struct.unpack('>I4sQ', head)
        length = long_length if length == 1 else length or end - at
        if length < 8 or not kind.isalnum():    # not an MP4
          return
        if kind == b'moov':
          for table in _TABLE.finditer(file.read(min(length, _MAX_PACKET_BYTES))):
            size, count = struct.unpack('>II', table[1])
            # Old audio codecs give up to 6 times the size of the file.
            if count > _MAX_FRAMES and size * count > 8 * end:
              raise MediaError(self._path, f'claims {count} samples of {size} bytes '
                               f'in a file of {end} bytes')
        at += length

  def _refuse_absurd(self) -> None:
    """Raises MediaError for claims that would take all memory or time."""
    if self._video is not None:
      context = self._video.codec_context
      if context.width * context.height > MAX_PIXELS:
        raise MediaError(self._path, f'claims {context.width} x {context.height} '
                         f'pixels; at most {MAX_PIXELS} are read')
      if self._video.frames > _MAX_FRAMES:
        raise MediaError(self._path, f'claims {self._video.frames} frames; at most '
                         f'{_MAX_FRAMES} are read')
    if self._audio is not None:
      rate = self._audio.codec_context.sample_rate
      if not 0 < rate <= _MAX_AUDIO_HZ:
        raise MediaError(self._path, f'claims audio at {rate} Hz; at most '
                         f'{_MAX_AUDIO_HZ} is read')

  def _duration(self) -> float:
    stream = self._video or self._audio
    if stream is None:
      raise MediaError(self._path, 'has neither video nor audio')
    if stream.duration:    # it may begin later than the other stream
      return self._seconds(stream, (stream.start_time or 0) + stream.duration)
    if self._container.duration:
      return self._container.duration / av.time_base
    with self._naming():
      last = max((p.pts + (p.duration or 0) for p in self._demux(stream)
                  if p.pts is not None), default=0)
    return self._seconds(stream, last)

  def _best_stream(self, kind: str) -> Any:
    """Returns the stream that `ffmpeg` chooses; None if none has a decoder."""
    streams = [s for s in getattr(self._container.streams, kind) if s.codec_context]
    if not streams:
      return None
    stream = max(streams, key=_merit)
    if stream.disposition & Disposition.attached_pic:    # the cover of an album
      return None
    # Many files are read in parallel, so threads within one file only slow down.
    stream.codec_context.thread_count = 1
    # Frames may grow later in the stream, too.
    stream.codec_context.options = {'max_pixels': f'{MAX_PIXELS}'}
    self._tick_seconds[stream.index] = float(stream.time_base)
    return stream

  @contextlib.contextmanager
  def _naming(self) -> Iterator[None]:
    """Turns FFmpeg's errors into MediaErrors that name the file."""
    try:
      yield
    except (OSError, av.FFmpegError, OverflowError, ValueError) as e:
      reason = getattr(e, 'strerror', '') or f'Invalid data ({type(e).__name__}: {e})'
      raise MediaError(self._path, reason) from e


def to_int16(audio: np.ndarray) -> np.ndarray:
  """Converts samples in [-1, 1] (others are clipped) to int16."""
  return np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)


def resample(buffer: np.ndarray, begin: int, native_hz: int, start: float,
             num_samples: int, rate_hz: int) -> np.ndarray:
  """Returns a window of a longer audio buffer, at another sample rate.

  Args:
    buffer: float32; mono, with a margin on both sides of the window.
    begin: position of the buffer's first sample in the file.
    native_hz: sample rate of the buffer.
    start: start of the window, seconds.
    num_samples: length of the window at `rate_hz`.
    rate_hz: sample rate of the window.

  Returns:
    float32 [num_samples].
  """
  audio = soxr.resample(buffer, native_hz, rate_hz)
  first = round((start - begin / native_hz) * rate_hz)
  window = audio[first:first + num_samples]
  return np.pad(window, (0, num_samples - len(window)))


def _merit(stream: Any) -> int:
  """Ranks a stream like `ffmpeg`: first the default stream, then pixels or channels."""
  context, disposition = stream.codec_context, stream.disposition
  if disposition & Disposition.attached_pic:    # a cover
    return 1
  size = context.width * context.height if stream.type == 'video' else context.channels
  return size + 5_000_000 * bool(disposition & Disposition.default)


def _stamp(packet: av.Packet) -> int | None:
  return packet.dts if packet.pts is None else packet.pts


@dataclasses.dataclass(frozen=True)
class _DecodedFrame:
  """Holds a decoded frame, in the file's own pixel format."""
  frame: av.VideoFrame
  cutter: _Cutter

  @property
  def size(self) -> tuple[int, int]:
    width, height = self.frame.width, self.frame.height
    return (height, width) if self.frame.rotation % 180 else (width, height)

  def cut(self, box: Box, size: tuple[int, int]) -> np.ndarray:
    return self.cutter(self.frame, box, size)


class _Cutter:
  """Rotates, crops, scales and converts frames in one pass of FFmpeg's filters.

  One instance serves all frames of a window, because filters are slow to set up.
  """

  def __init__(self, path: str):
    self._path = path
    self._made_for: Any = None
    self._graph: av.filter.Graph | None = None

  def __call__(self, frame: av.VideoFrame, box: Box, size: tuple[int, int]
               ) -> np.ndarray:
    """Returns RGB, uint8 [height, width, 3]."""
    key = (frame.width, frame.height, frame.format.name, frame.colorspace,
           frame.color_range, frame.rotation % 360, box, size)
    try:
      if key != self._made_for:
        self._graph, self._made_for = _filters(*key), key
      self._graph.push(frame)
      return self._graph.pull().to_ndarray()
    except (av.FFmpegError, ValueError) as e:
      reason = getattr(e, 'strerror', '') or f'Invalid data ({e})'
      raise MediaError(self._path, reason) from e


def _filters(width: int, height: int, pixels: str, space: int, color_range: int,
             rotation: int, box: Box, size: tuple[int, int]) -> av.filter.Graph:
  left, top, right, bottom = map(round, box)
  graph = av.filter.Graph()
  graph.threads = 1
  graph.link_nodes(
      graph.add('buffer', f'video_size={width}x{height}:pix_fmt={pixels}:time_base=1/1:'
                          f'colorspace={space}:range={color_range}'),
      *(graph.add('transpose', turn) for turn in _TURNS.get(rotation, ())),
      graph.add('crop', f'{max(right - left, 1)}:{max(bottom - top, 1)}:{left}:{top}:'
                        'exact=1'),
      # First the size, then the colors: both at once takes three times as long.
      graph.add('scale', f'{size[0]}:{size[1]}:flags=bilinear'),
      graph.add('format', pixels), graph.add('scale'),
      graph.add('format', 'rgb24'), graph.add('buffersink')).configure()
  return graph


def _mono(frames: Sequence[av.AudioFrame]) -> np.ndarray:
  """Returns the mean of the channels as float32 [S] in [-1, 1]; frames of one kind."""
  # [channels, S], or packed [1, S * channels]
  samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
  if not frames[0].format.is_planar:
    samples = samples.reshape(-1, frames[0].layout.nb_channels).T
  mean = samples.mean(axis=0, dtype=np.float32)
  if samples.dtype == np.uint8:
    return mean / 128 - 1
  if samples.dtype.kind == 'i':
    return mean / -float(np.iinfo(samples.dtype).min)
  return mean
