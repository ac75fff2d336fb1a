"""vatt_jax/inputs/media.py, stills.py: damaged files, absurd claims, what is left over.

Files are read in a process of their own, watched from here: a crash, a hang or memory
without bound in the libraries beneath would otherwise take the tests with it.
"""

import fractions
import gc
import io
import multiprocessing
import os
import pathlib
import resource
import struct
import threading
import time
import traceback
import wave

import av
import numpy as np
from PIL import Image
import pytest

from data import toy_world
from vatt_jax.inputs import clip
from vatt_jax.inputs import media
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import text

WINDOW = pipeline.Window(num_frames=8, frame_rate_hz=5.0, image_size=32, audio_hz=8000)
MAX_SECONDS = 10.0    # for one file
MAX_BYTES = 2 ** 30    # more than a process with nothing read
_START_SECONDS = 120.0


def _reader(clips):
  tokenizer = text.WordTokenizer.build(['a word'], 8)
  return pipeline.Reader(clips, WINDOW, tokenizer, pipeline.FileNotes(1.0, len(clips)))


def _peak_bytes():
  """Of this process since `_forget_peak`; getrusage's begins with the parent's."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) * 1024


def _forget_peak():
  pathlib.Path('/proc/self/clear_refs').write_text('5')


def _read_all(reports, sources, seeds, folder):
  """The child's part: reads what `_damaged` makes, and reports on each file."""
  _forget_peak()
  before = _peak_bytes()
  in_use = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  limit = in_use * resource.getpagesize() + 4 * MAX_BYTES
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  reports.send(None)
  for seed in seeds:
    name, content = _damaged(sources, seed)
    path = pathlib.Path(folder) / f'{seed:03d}_{name}'
    in_record = seed % 2 == 1    # the file stands in another one
    if not in_record:
      path.write_bytes(content)
    begin = time.monotonic()
    reader = _reader([clip.Clip(str(path), content=content if in_record else None)])
    try:
      example = reader.read(0, np.random.default_rng(seed))
      fault = ''
    except Exception:    # nothing else may come out: this is what is tested
      example, fault = None, traceback.format_exc()
    reports.send(dict(
        path=str(path), seconds=time.monotonic() - begin, fault=fault,
        was_read=example is not None, skipped=reader.notes.skipped,
        peak_bytes=_peak_bytes() - before))
    path.unlink(missing_ok=True)


def _watch(sources, seeds, folder):
  """Reads damaged files in a child.  -> its reports."""
  context = multiprocessing.get_context('spawn')
  receiver, sender = context.Pipe(duplex=False)
  child = context.Process(target=_read_all, args=(sender, sources, seeds, str(folder)))
  child.start()
  sender.close()
  reports = []
  try:
    assert receiver.poll(_START_SECONDS) and receiver.recv() is None
    for seed in seeds:
      at = f'seed {seed}, {_damaged(sources, seed)[0]}'
      assert receiver.poll(MAX_SECONDS), f'{at}: hangs'
      try:
        reports.append(receiver.recv())
      except EOFError:
        child.join()
        pytest.fail(f'{at}: ended the process with {child.exitcode}')
  finally:
    child.kill()
    child.join()
    receiver.close()
  return reports


def _damaged(sources, seed):
  """Name and content of a file with bytes flipped, cut off or set to zero."""
  rng = np.random.default_rng(seed)
  path = sources[rng.integers(len(sources))]
  content = bytearray(path.read_bytes())
  # Half of the damage where headers are: at the begin and the end.
  edge = rng.random() < 0.5

  def place():
    at = int(rng.integers(min(2000, len(content)) if edge else len(content)))
    return at if rng.random() < 0.5 else len(content) - 1 - at

  kind = rng.choice(['flip', 'cut', 'zero', 'drop'])
  if kind == 'flip':
    for _ in range(rng.integers(1, 100)):
      content[place()] = rng.integers(256)
  elif kind == 'cut':
    del content[rng.integers(len(content)):]
  else:
    at, length = place(), int(rng.integers(1, 5000))
    content[at:at + length] = b'' if kind == 'drop' else bytes(
        len(content[at:at + length]))
  return path.name, bytes(content)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Small files of every kind."""
  folder = tmp_path_factory.mktemp('made')
  rng = np.random.default_rng(0)
  video = np.kron(rng.integers(256, size=(40, 6, 8, 3), dtype=np.uint8),
                  np.ones((1, 16, 16, 1), np.uint8))
  sound = rng.uniform(-0.5, 0.5, 4 * 16_000).astype(np.float32)
  toy_world.encode(folder / 'plain.mp4', video, 10, sound)
  for name, picture, voice in [
      ('a.mkv', 'h264', 'libopus'), ('a.webm', 'libvpx-vp9', 'libopus'),
      ('a.ts', 'mpeg2video', 'mp2'), ('a.avi', 'mpeg4', 'libmp3lame'),
      ('b.mkv', 'libx265', 'flac'), ('a.mpg', 'mpeg1video', 'ac3'),
      ('a.flac', None, 'flac'), ('a.ogg', None, 'libopus'), ('a.mp3', None, 'libmp3lame')]:
    _encode(folder / name, video, sound, picture, voice)
  with wave.open(str(folder / 'a.wav'), 'wb') as file:
    file.setparams((1, 2, 16_000, 0, 'NONE', ''))
    file.writeframes((sound * 32767).astype('<i2').tobytes())
  image = Image.fromarray(video[0])
  for name in ('a.jpg', 'a.png', 'a.webp', 'a.gif', 'a.bmp'):
    image.save(folder / name)
  exif = Image.Exif()
  exif[0x0112] = 6
  image.save(folder / 'turned.jpg', exif=exif)
  image.convert('CMYK').save(folder / 'print.jpg')
  image.save(folder / 'gradual.jpg', progressive=True)
  return sorted(folder.iterdir())


def _encode(path, video, sound, picture, voice):
  with av.open(path, 'w') as container:
    if picture:
      stream = container.add_stream(picture, rate=25)
      stream.width, stream.height, stream.pix_fmt = 128, 96, 'yuv420p'
      if picture == 'libx265':
        stream.options = {'x265-params': 'log-level=none:pools=1'}
    audio = container.add_stream(voice, rate=48_000, layout='mono')
    packets = []
    for i, image in enumerate(video if picture else ()):
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      frame.pts, frame.time_base = i, fractions.Fraction(1, 25)
      packets += stream.encode(frame)
    if picture:
      packets += stream.encode(None)
    audio.open()
    resampler = av.AudioResampler(audio.format, 'mono', 48_000, audio.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(sound[None], 'fltp', 'mono')
    frame.sample_rate, frame.pts = 16_000, 0
    for part in resampler.resample(frame) + resampler.resample(None):
      packets += audio.encode(part)
    for packet in packets + audio.encode(None):
      container.mux(packet)


def _check(reports):
  for report in reports:
    assert not report['fault'], f'{report["path"]}: {report["fault"]}'
    assert report['seconds'] < MAX_SECONDS
    if report['was_read']:
      assert not report['skipped']
    else:
      (path, reason), = report['skipped'].items()
      assert path == report['path']
      assert reason.startswith(f'{path}: ') and len(reason) > len(path) + 10
  assert reports[-1]['peak_bytes'] < MAX_BYTES
  # Not so much damage that nothing can be read, nor so little that all can.
  read = sum(report['was_read'] for report in reports)
  assert 0.2 < read / len(reports) < 0.95
  print(f'{len(reports)} damaged files: {read} read, {len(reports) - read} skipped, the '
        f'slowest in {max(r["seconds"] for r in reports):.2f} s, '
        f'{reports[-1]["peak_bytes"] >> 20} MiB at most')


def test_some_damaged_files_are_read_or_named(made, tmp_path):
  _check(_watch(made, range(100), tmp_path))


@pytest.mark.slow
def test_many_damaged_files_are_read_or_named(made, tmp_path):
  _check(_watch(made, range(100, 1000), tmp_path))


def test_some_damaged_real_files_are_read_or_named(shared, tmp_path):
  _check(_watch(_real(shared), range(60), tmp_path))


@pytest.mark.slow
def test_many_damaged_real_files_are_read_or_named(shared, tmp_path):
  _check(_watch(_real(shared), range(500), tmp_path))


def _real(shared):
  return sorted(p for p in (shared / 'media').iterdir() if p.suffix != '.md')
