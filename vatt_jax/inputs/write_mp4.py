"""Writing films: the way back from pictures and sound to a file."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import fractions
import itertools
import os
from typing import BinaryIO

import av
import numpy as np


def film(out: str | os.PathLike[str] | BinaryIO, pictures: Iterable[np.ndarray],
         frame_rate_hz: int | fractions.Fraction, sound: np.ndarray | None,
         audio_hz: int, audio_bit_rate: int, options: Mapping[str, str]) -> None:
  """Writes an MP4 of H.264 and AAC.

  Args:
    out: path, or a file open for writing that can seek.
    pictures: uint8 [H, W, 3], RGB, of even height and width.
    frame_rate_hz: of these.
    sound: float32 [S] in [-1, 1], mono; None for none.
    audio_hz: its sample rate.
    audio_bit_rate: bits a second.
    options: of x264.
  """
  pictures = iter(pictures)
  first = next(pictures)
  with av.open(out if hasattr(out, 'write') else os.fspath(out), 'w',
               format='mp4') as container:
    picture = container.add_stream('h264', rate=frame_rate_hz)
    picture.height, picture.width = first.shape[:2]
    picture.pix_fmt = 'yuv420p'
    # With one thread the same pictures make the same bytes.
    picture.codec_context.thread_count = 1
    picture.options = dict(options)
    packets = []
    if sound is not None:
      voice = container.add_stream('aac', rate=audio_hz, layout='mono')
      voice.bit_rate = audio_bit_rate
    for image in itertools.chain([first], pictures):
      packets += picture.encode(av.VideoFrame.from_ndarray(image, format='rgb24'))
    packets += picture.encode(None)
    if sound is not None:
      frame = av.AudioFrame.from_ndarray(sound[None], format='fltp', layout='mono')
      frame.sample_rate = audio_hz
      frame.pts = 0
      packets += voice.encode(frame) + voice.encode(None)
    container.mux(packets)
