"""Writes MP4 files from frames and audio."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import fractions
import itertools
import os
from typing import BinaryIO

import av
import numpy as np


def write(out: str | os.PathLike[str] | BinaryIO, frames: Iterable[np.ndarray],
          frame_rate_hz: int | fractions.Fraction, audio: np.ndarray | None,
          audio_hz: int, audio_bit_rate: int, options: Mapping[str, str]) -> None:
  """Writes an MP4 of H.264 and AAC.

  Args:
    out: path, or a seekable file open for writing.
    frames: uint8 [H, W, 3], RGB, of even height and width.
    frame_rate_hz: rate of the frames.
    audio: float32 [S] in [-1, 1], mono; None for no audio stream.
    audio_hz: sample rate of the audio.
    audio_bit_rate: bits per second.
    options: options of x264.
  """
  frames = iter(frames)
  first = next(frames)
  with av.open(out if hasattr(out, 'write') else os.fspath(out), 'w',
               format='mp4') as container:
    video_stream = container.add_stream('h264', rate=frame_rate_hz)
    video_stream.height, video_stream.width = first.shape[:2]
    video_stream.pix_fmt = 'yuv420p'
    # With one thread the same frames give the same bytes.
    video_stream.codec_context.thread_count = 1
    video_stream.options = dict(options)
    packets = []
    if audio is not None:
      audio_stream = container.add_stream('aac', rate=audio_hz, layout='mono')
      audio_stream.bit_rate = audio_bit_rate
    for image in itertools.chain([first], frames):
      packets += video_stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24'))
    packets += video_stream.encode(None)
    if audio is not None:
      frame = av.AudioFrame.from_ndarray(audio[None], format='fltp', layout='mono')
      frame.sample_rate = audio_hz
      frame.pts = 0
      packets += audio_stream.encode(frame) + audio_stream.encode(None)
    container.mux(packets)
