"""Tests of vatt_jax/inputs/media.py, images.py: damaged files, absurd claims, leaks.

Files are read in a process of their own, watched from here: a crash, a hang or memory
without bound in the libraries beneath would otherwise take the tests with it.
"""

import fractions
import functools
import gc
import multiprocessing
import os
import pathlib
import re
import resource
import struct
import time
import traceback
import wave
import zlib

import av
import numpy as np
from PIL import Image
import pytest

from data import toy_world
from vatt_jax.inputs import clip
from vatt_jax.inputs import media
from vatt_jax.inputs import text
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window

WINDOW = Window(num_frames=8, frame_rate_hz=5.0, image_size=32, audio_hz=8000)
MAX_SECONDS = 10.0    # for one file
MAX_BYTES = 2 ** 30    # above the memory of the empty process
_START_SECONDS = 120.0


def _reader(clips):
  tokenizer = text.WordTokenizer.build(['a word'], 8)
  return Reader(clips, WINDOW, tokenizer, FileNotes(1.0, len(clips)))


def _peak_bytes():
  """Returns this process's peak since `_forget_peak`, without the parent's."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) * 1024


def _forget_peak():
  pathlib.Path('/proc/self/clear_refs').write_text('5')


def _read_all(reports, makers, folder):
  """Runs in the child: reads the generated files, and reports on each."""
  _forget_peak()
  before = _peak_bytes()
  in_use = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  limit = in_use * resource.getpagesize() + 4 * MAX_BYTES
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  reports.send(None)
  for i, make in enumerate(makers):
    name, content = make()
    path = pathlib.Path(folder) / f'{i:03d}_{name}'
    in_record = i % 2 == 1    # the file is part of another one
    if not in_record:
      path.write_bytes(content)
    begin = time.monotonic()
    reader = _reader([clip.Clip(str(path), content=content if in_record else None)])
    try:
      examples = reader.read(0, np.random.default_rng(i))
      fault = ''
    except Exception:    # the test: no other error may escape
      examples, fault = None, traceback.format_exc()
    reports.send(dict(
        path=str(path), seconds=time.monotonic() - begin, fault=fault,
        was_read=examples is not None, skipped=reader.notes.skipped,
        peak_bytes=_peak_bytes() - before))
    path.unlink(missing_ok=True)


def _watch(makers, folder):
  """Reads files in a child process; each function returns name and content."""
  context = multiprocessing.get_context('spawn')
  receiver, sender = context.Pipe(duplex=False)
  child = context.Process(target=_read_all, args=(sender, makers, str(folder)))
  child.start()
  sender.close()
  reports = []
  try:
    assert receiver.poll(_START_SECONDS) and receiver.recv() is None
    for make in makers:
      at = f'{make.func.__name__}, {make.args[1]}'
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


def _damaged_files(sources, seeds):
  return [functools.partial(_damaged, sources, seed) for seed in seeds]


def _damaged(sources, seed):
  """Returns name and content of a file with bytes flipped, cut off or set to zero."""
  rng = np.random.default_rng(seed)
  path = sources[rng.integers(len(sources))]
  content = bytearray(path.read_bytes())
  # Half of the damage is at the begin and the end, at the headers.
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
  """Writes small files of every kind."""
  folder = tmp_path_factory.mktemp('made')
  rng = np.random.default_rng(0)
  video = np.kron(rng.integers(256, size=(40, 6, 8, 3), dtype=np.uint8),
                  np.ones((1, 16, 16, 1), np.uint8))
  sound = rng.uniform(-0.5, 0.5, 4 * 16_000).astype(np.float32)
  toy_world.encode(folder / 'plain.mp4', video, 10, sound)
  for name, picture, voice in [
      ('a.mkv', 'h264', 'libopus'), ('a.webm', 'libvpx-vp9', 'libopus'),
      ('a.ts', 'mpeg2video', 'mp2'), ('a.avi', 'mpeg4', 'libmp3lame'),
      ('b.mkv', 'libx265', 'flac'), ('b.webm', 'libvpx', 'libopus'),
      ('a.mpg', 'mpeg1video', 'ac3'), ('a.flac', None, 'flac'),
      ('raw.avi', 'rawvideo', 'pcm_s16le'), ('a.ogg', None, 'libopus'),
      ('a.mp3', None, 'libmp3lame')]:
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
    resampler = av.AudioResampler(audio.format, 'mono', 48_000,
                                  audio.frame_size or 1024)
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
  # Some of the damaged files can be read, others cannot.
  read = sum(report['was_read'] for report in reports)
  assert 0.2 < read / len(reports) < 0.95
  print(f'{len(reports)} damaged files: {read} read, the others skipped, the slowest '
        f'in {max(r["seconds"] for r in reports):.2f} s, '
        f'{reports[-1]["peak_bytes"] >> 20} MiB at most')


def test_some_damaged_files_are_read_or_raise_with_their_name(made, tmp_path):
  _check(_watch(_damaged_files(made, range(100)), tmp_path))


@pytest.mark.slow
def test_many_damaged_files_are_read_or_raise_with_their_name(made, tmp_path):
  _check(_watch(_damaged_files(made, range(100, 1000)), tmp_path))


def test_some_damaged_real_files_are_read_or_raise_with_their_name(shared, tmp_path):
  _check(_watch(_damaged_files(_real(shared), range(60)), tmp_path))


@pytest.mark.slow
def test_many_damaged_real_files_are_read_or_raise_with_their_name(shared, tmp_path):
  _check(_watch(_damaged_files(_real(shared), range(500)), tmp_path))


def _real(shared):
  return sorted(p for p in (shared / 'media').iterdir() if p.suffix != '.md')


def _claim(made, kind):
  """Returns name and content of a file that claims more than it holds."""
  source = next(p for p in made if p.name == CLAIMS[kind][0])
  content = bytearray(source.read_bytes())

  def write(at, layout, *values):
    struct.pack_into(layout, content, at, *values)

  if kind == 'pixels of an MP4':
    write(content.index(b'avc1') + 28, '>HH', 65_535, 65_535)
    write(content.index(b'tkhd') + 80, '>II', 65_535 << 16, 65_535 << 16)
  elif kind == 'pixels of a stream':    # not stated by the container
    for key in re.finditer(re.escape(b'\x9d\x01\x2a'), bytes(content)):
      write(key.end(), '<HH', 16_383, 16_383)
  elif kind == 'pixels of an AVI':
    write(content.index(b'strf') + 12, '<II', 100_000, 100_000)
  elif kind == 'fewer of an AVI':
    write(content.index(b'strf') + 12, '<II', 12_000, 12_000)
  elif kind == 'pixels of a Matroska':
    # Width, height and another element, of a byte each: now two of three bytes.
    at = content.index(b'\xb0\x81\x80\xba\x81\x60\x54\xb2\x81')
    content[at:at + 10] = (b'\xb0\x83' + (100_000).to_bytes(3, 'big') +
                           b'\xba\x83' + (100_000).to_bytes(3, 'big'))
  elif kind == 'pictures':    # all of one size, without a table
    write(content.index(b'stsz') + 8, '>II', 16, 10_000_000)
    write(content.index(b'stts') + 12, '>I', 10_000_000)
    write(content.index(b'stsc') + 16, '>I', 10_000_000)
  elif kind == 'durations':
    write(content.index(b'stts') + 12, '>I', 10_000_000)
  elif kind == 'places':
    write(content.index(b'stco') + 8, '>I', 2 ** 32 - 1)
  elif kind == 'seconds':
    write(content.index(b'mvhd') + 20, '>I', 2 ** 32 - 1)
    write(content.index(b'mdhd') + 20, '>I', 2 ** 32 - 1)
  elif kind == 'pixels of a PNG':
    write(16, '>II', 100_000, 100_000)
    write(29, '>I', zlib.crc32(content[12:29]))
  elif kind == 'pixels of a JPEG':
    write(content.index(b'\xff\xc0') + 5, '>HH', 65_500, 65_500)
  elif kind == 'hertz':
    write(24, '<II', 2_000_000_000, 4_000_000_000)
  elif kind == 'more hertz':
    write(24, '<II', 4_000_000_000, 4_000_000_000)
  return source.name, bytes(content)


CLAIMS = {    # kind -> file, error message; '' if the file is readable
    'pixels of an MP4': ('plain.mp4', ''),    # H.264's own header knows better
    'pixels of an AVI': ('raw.avi', 'complete frame'),
    'fewer of an AVI': ('raw.avi', 'claims 12000 x 12000 pixels'),
    'pixels of a Matroska': ('a.mkv', ''),
    'pixels of a stream': ('b.webm', 'pixels|complete frame'),
    'pixels of a PNG': ('a.png', 'claims 100000 x 100000|exceeds limit'),
    'pixels of a JPEG': ('a.jpg', 'claims 65500 x 65500|exceeds limit'),
    'pictures': ('plain.mp4', 'claims 10000000 samples'),
    'durations': ('plain.mp4', 'claims 10000000 frames'),
    'places': ('plain.mp4', ''), 'seconds': ('plain.mp4', ''),
    'hertz': ('a.wav', r'claims audio at 2000000000 Hz'),
    'more hertz': ('a.wav', r'Invalid data')}


def test_absurd_claims_raise_before_memory_is_allocated(made, tmp_path):
  reports = _watch([functools.partial(_claim, made, kind) for kind in CLAIMS], tmp_path)
  for report, (kind, (_, why)) in zip(reports, CLAIMS.items(), strict=True):
    assert not report['fault'], report['fault']
    assert report['peak_bytes'] < 2 ** 26, kind
    assert report['seconds'] < 2
    if why:
      reason, = report['skipped'].values()
      assert re.search(why, reason)


def _open_files():
  return sorted(os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')
                if os.path.exists(f'/proc/self/fd/{fd}'))


def test_reading_leaves_no_thread_and_no_open_file(made, tmp_path):
  """Covers files that are read to the end, broken, missing or with absurd claims."""
  films = [p for p in made if p.suffix in ('.mp4', '.webm', '.mkv', '.ogg', '.wav')]
  broken = tmp_path / 'broken.mp4'
  broken.write_bytes(films[0].read_bytes()[:5000])
  for kind in ('pixels of an MP4', 'pictures', 'hertz'):
    name, content = _claim(made, kind)
    films.append(tmp_path / f'{kind}_{name}')
    films[-1].write_bytes(content)
  gc.collect()
  gc.disable()    # a handle that waits for the collector counts as open
  try:
    threads, files = len(os.listdir('/proc/self/task')), _open_files()
    failures = []
    for path in [*films, broken, tmp_path / 'absent.mp4']:
      try:
        with media.MediaFile(path) as file:
          file.audio(0.0, 1000, 8000)
          file.frames([0.0, 0.5])
      except media.MediaError as e:
        failures.append(e)    # with all its references
    assert len(failures) >= 5
    assert _open_files() == files
    assert len(os.listdir('/proc/self/task')) == threads
  finally:
    gc.enable()


def _resident_bytes():
  return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * (
      resource.getpagesize())


def _read_2000(made):
  """Reads videos, audio files, images and a broken file in turn.

  Returns:
    The memory in use after each hundred clips, and the files that stay open.
  """
  reader = _reader([clip.Clip(str(p)) for p in made] + [
      clip.Clip('absent.mp4'), clip.Clip('r.mp4', content=made[0].read_bytes()[:900])])
  used, files = [], _open_files()
  for i in range(2000):
    reader.read(i % len(reader.clips), np.random.default_rng(i))
    if i % 100 == 99:
      used.append(_resident_bytes())
  return used, set(_open_files()) - set(files)


@pytest.mark.slow
def test_memory_stays_flat_over_2000_clips(made):
  # In a process of its own: the heap of one that has run other tests is fragmented.
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    used, left_open = pool.apply(_read_2000, (made,))
  # The first hundred clips allocate memory that is reused.
  assert max(used) - used[4] < 16 * 2 ** 20, np.diff(used)
  assert not left_open
