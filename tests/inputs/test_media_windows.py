"""Tests of vatt_jax/inputs/media.py: a window equals a decode from the start.

Films are made here of whatever made other readers return wrong pictures. Each picture
bears its own number as a bar code, so that what is right is known without a decoder.
"""

import fractions
import struct
import subprocess

import av
import imageio_ffmpeg
import numpy as np
import pytest
import soxr

from vatt_jax.inputs import media

RATE_HZ = 25
NUM_FRAMES = 150
_GRID = 3, 4    # blocks of a bar code: rows, columns
_BLOCK = 16    # pixels: larger than the blur of codecs

REGULAR = tuple(range(NUM_FRAMES))
# Frames of 1 to 7 ticks, and one that stays for 3 seconds.
IRREGULAR = tuple(np.cumsum([0] + [75 if i == 60 else 1 + i * i % 7
                                   for i in range(1, NUM_FRAMES)]).tolist())
X264 = {'x264-params': 'keyint=24:min-keyint=24:scenecut=0:bframes=3:b-adapt=0:'
                       'b-pyramid=normal:ref=4', 'crf': '23'}
X264_OPEN = {'x264-params': X264['x264-params'] + ':open-gop=1', 'crf': '23'}
X265 = {'x265-params': 'keyint=24:min-keyint=24:scenecut=0:bframes=3:b-pyramid=1:'
                       'open-gop=1:log-level=none:pools=1:frame-threads=1'}
X265_CLOSED = {'x265-params': X265['x265-params'].replace('open-gop=1', 'open-gop=0')}
# Frames of more than 2 KB: only the first frame of a pack has a time.
GRAINY = {'g': '15', 'bf': '2', 'qmax': '2', 'b': '4M'}
VPX = {'auto-alt-ref': '1', 'lag-in-frames': '16', 'arnr-maxframes': '7', 'g': '40',
       'deadline': 'good', 'cpu-used': '4', 'b': '300k'}


def _bar_code(number):
  """Returns a frame, uint8 [48, 64, 3], that shows a number's twelve bits."""
  bits = np.reshape([number >> i & 1 for i in range(12)], _GRID)
  grey = (40 + 135 * bits).astype(np.uint8)
  return np.repeat(np.kron(grey, np.ones((_BLOCK, _BLOCK), np.uint8))[..., None], 3, 2)


def _number(picture):
  """Returns the number that a frame of `_bar_code` shows."""
  block = _BLOCK * round(picture.shape[1] / 64)
  middle = picture[block // 2::block, block // 2::block].mean(-1) > 128
  middle = middle[:_GRID[0], :_GRID[1]]
  return int(middle.ravel() @ (1 << np.arange(12)))


def _film(path, codec='h264', stamps=REGULAR, options=None, pixels='yuv420p',
          muxer=None, muxer_options=None, first=0, noise=0):
  """Encodes bar codes; frame i at stamps[i] frames of 1/25 s after `first`."""
  rng = np.random.default_rng(0)
  with av.open(path, 'w', format=muxer, options=muxer_options or {}) as container:
    stream = container.add_stream(codec, rate=RATE_HZ)
    stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
    stream.codec_context.time_base = fractions.Fraction(1, RATE_HZ)
    stream.codec_context.thread_count = 1
    stream.options = options or {}
    for i, stamp in enumerate(stamps):
      grain = rng.integers(noise + 1, size=(48, 64, 3), dtype=np.uint8)
      frame = av.VideoFrame.from_ndarray(_bar_code(i) + grain, format='rgb24')
      frame.pts, frame.time_base = first + stamp, fractions.Fraction(1, RATE_HZ)
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


FILMS = {    # name -> arguments of _film
    'plain.mp4': dict(options=X264),
    'b_frames.mkv': dict(options=X264),
    'open_gop.mp4': dict(options=X264_OPEN),
    'open_gop.mkv': dict(options=X264_OPEN),
    'open_gop.ts': dict(options=X264_OPEN),
    'hevc.mp4': dict(codec='libx265', options=X265),
    'hevc.mkv': dict(codec='libx265', options=X265),
    'hevc.ts': dict(codec='libx265', options=X265),
    'hevc_closed.mkv': dict(codec='libx265', options=X265_CLOSED),
    'no_index.ts': dict(options=X264, first=1000),
    'late.mp4': dict(options=X264, first=70),
    'late.mkv': dict(options=X264, first=70),
    'fragments.mp4': dict(options=X264, muxer_options={
        'movflags': 'frag_keyframe+empty_moov+default_base_moof'}),
    'irregular.mp4': dict(options=X264, stamps=IRREGULAR),
    'irregular.mkv': dict(options=X264, stamps=IRREGULAR),
    'irregular_open.mkv': dict(options=X264_OPEN, stamps=IRREGULAR),
    'irregular.ts': dict(options=X264, stamps=IRREGULAR),
    'vp8.webm': dict(codec='libvpx', options=VPX),
    'vp9.webm': dict(codec='libvpx-vp9', options=VPX),
    'irregular_vp9.webm': dict(codec='libvpx-vp9', options=VPX, stamps=IRREGULAR),
    'av1.mkv': dict(codec='libsvtav1', options={
        'preset': '10', 'svtav1-params': 'keyint=40:lp=1'}),
    'av1.mp4': dict(codec='libsvtav1', options={
        'preset': '10', 'svtav1-params': 'keyint=40:lp=1'}),
    'no_stamps.avi': dict(codec='mpeg4', options={'g': '24', 'qscale': '3'}),
    'b_frames.avi': dict(codec='mpeg4', options={'g': '24', 'bf': '2'}),
    'h264.avi': dict(options=X264),
    'mjpeg.avi': dict(codec='mjpeg', pixels='yuvj420p'),
    'mpeg2.mpg': dict(codec='mpeg2video', noise=80, options=GRAINY),
    'mpeg2.ts': dict(codec='mpeg2video', options={'g': '15', 'bf': '2'}),
    # The clock overflows within the video.
    'overflow.ts': dict(options=X264_OPEN, first=2 ** 33 * RATE_HZ // 90_000 - 60),
    'fields.mp4': dict(options={'x264-params': 'interlaced=1:keyint=24:bframes=2'}),
    'fields.ts': dict(options={'x264-params': 'interlaced=1:keyint=24:bframes=2'}),
    'before_zero.mkv': dict(options=X264, first=-13),
    'moving.gif': dict(codec='gif', pixels='rgb8'),
    'flash.flv': dict(options=X264),
    'windows.wmv': dict(codec='wmv2', options={'g': '24'}),
    '444.mp4': dict(options=X264, pixels='yuv444p'),
    '10_bit.mkv': dict(options=X264, pixels='yuv420p10le'),
    '10_bit_hevc.mp4': dict(codec='libx265', options=X265, pixels='yuv420p10le'),
    '422_10.mov': dict(codec='prores_ks', pixels='yuv422p10le'),
    'refresh.mkv': dict(options={'x264-params': 'keyint=24:intra-refresh=1'}),
    'refresh.ts': dict(options={'x264-params': 'keyint=24:intra-refresh=1'}),
    'endless_gop.mp4': dict(options={'x264-params': 'keyint=1000:scenecut=0'}),
}


def _whole(path):
  """Returns time and RGB of every frame, decoded from the start."""
  with av.open(path) as container:
    stream = container.streams.best('video')
    stream.codec_context.thread_count = 1
    zero = (container.start_time or 0) / av.time_base
    frames = list(container.decode(stream))
    stamps = [f.pts for f in frames]
    if None in stamps or stamps != sorted(stamps):    # as FFmpeg does
      stamps = [f.dts for f in frames if f.dts is not None]
      stamps += range(stamps[-1] + 1, stamps[-1] + 1 + len(frames) - len(stamps))
    seconds = [float(s * stream.time_base) - zero for s in stamps]
    return np.asarray(seconds), [f.to_ndarray(format='rgb24') for f in frames]


def _pixels(picture):
  return picture.cut((0, 0, *picture.size), picture.size)


def _assert_windows_are_of_the_whole(path, count=20):
  """Reads windows anywhere, beyond both ends too; returns the numbers with their times.

  Returns:
    Seconds and number of every picture.
  """
  seconds, whole = _whole(path)
  rng = np.random.default_rng(0)
  for _ in range(count):
    times = rng.uniform(-0.2, seconds[-1] + 0.1) + np.cumsum(rng.uniform(0, 0.15, 8))
    with media.MediaFile(path) as file:
      pictures = [_pixels(picture) for picture in file.frames(times)]
    on_screen = np.searchsorted(seconds, times + 2e-3, side='right') - 1
    expected = [whole[max(i, 0)] for i in on_screen]
    assert [_number(p) for p in pictures] == [_number(p) for p in expected]
    for picture, like in zip(pictures, expected, strict=True):
      np.testing.assert_array_equal(picture, like)
  return seconds, [_number(picture) for picture in whole]


@pytest.mark.parametrize('name', FILMS)
def test_video_window_equals_decoding_from_the_start(tmp_path, name):
  _film(tmp_path / name, **FILMS[name])
  seconds, numbers = _assert_windows_are_of_the_whole(tmp_path / name)
  assert numbers == list(range(NUM_FRAMES))
  stamps = np.asarray(FILMS[name].get('stamps', REGULAR))
  np.testing.assert_allclose(seconds - seconds[0], stamps / RATE_HZ, atol=2e-3)


def _delayed(path, codec, seconds):
  """Writes a file with audio from 0 on and a later first frame."""
  millisecond = fractions.Fraction(1, 1000)
  with av.open(path, 'w') as container:
    video = container.add_stream(codec, rate=RATE_HZ)
    video.width, video.height, video.pix_fmt = 64, 48, 'yuv420p'
    video.codec_context.time_base = millisecond
    audio = container.add_stream('libopus', rate=48_000, layout='mono')
    audio.open()
    packets = []
    for i in range(10):
      frame = av.VideoFrame.from_ndarray(_bar_code(i), format='rgb24')
      frame.pts, frame.time_base = round(1000 * seconds) + 40 * i, millisecond
      packets += video.encode(frame)
    packets += video.encode(None)
    for first in range(0, 48_000, 960):
      frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), 'flt', 'mono')
      frame.sample_rate, frame.pts = 48_000, first
      packets += audio.encode(frame)
    packets += audio.encode(None)
    for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
      container.mux(packet)


@pytest.mark.parametrize('name, codec', [
    ('vp8.webm', 'libvpx'), ('vp9.webm', 'libvpx-vp9'), ('h264.mkv', 'h264'),
    ('h264.mp4', 'h264')])
@pytest.mark.parametrize('seconds', [0.007, 0.5])
def test_times_before_the_first_frame_show_the_first_frame(name, codec, seconds,
                                                           tmp_path):
  _delayed(tmp_path / name, codec, seconds)
  for times in ([0.0], [0.0, 0.001, 0.002], [-3.0, -2.0], [0.0, seconds + 0.05]):
    with media.MediaFile(tmp_path / name) as file:
      numbers = [_number(_pixels(picture)) for picture in file.frames(times)]
    assert numbers == [int(t > seconds) for t in times]


def test_real_file_that_starts_late_shows_its_first_frame_before(shared):
  path = shared / 'media' / 'test_non_zero_start.mp4'
  _, whole = _whole(path)
  for times in ([0.0], [-1.0], [-1.0, 0.0]):
    with media.MediaFile(path) as file:
      for picture in file.frames(times):
        np.testing.assert_array_equal(_pixels(picture), whole[0])


def test_generated_videos_have_the_properties_of_their_names(tmp_path):
  packets = {}
  for name in ('plain.mp4', 'open_gop.mkv'):
    _film(tmp_path / name, **FILMS[name])
    with av.open(tmp_path / name) as container:
      packets[name] = [p for p in container.demux(video=0) if p.size]

  def leading(name):
    """Counts frames shown before the keyframe that they follow in the file."""
    found = zip(packets[name], packets[name][1:], strict=False)
    return sum(key.is_keyframe and after.pts < key.pts for key, after in found)

  assert leading('open_gop.mkv') > 3 and not leading('plain.mp4')
  assert any(a.pts > b.pts for a, b in zip(packets['plain.mp4'],
                                           packets['plain.mp4'][1:], strict=False))


def test_hidden_vp8_frames_are_not_shown(tmp_path):
  """VP8's encoder makes them in a second pass, for slow motion."""
  rng, raw = np.random.default_rng(0), b''
  tiles = np.kron(rng.integers(60, 180, (16, 16, 3)), np.ones((10, 10, 1), int))
  for i in range(NUM_FRAMES):
    picture = np.roll(tiles, i // 2, 1) + rng.integers(-6, 7, tiles.shape)
    picture[:48, :64] = _bar_code(i)
    raw += picture[:96, :64].astype(np.uint8).tobytes()
  path = tmp_path / 'hidden.webm'
  for number in '12':
    subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), '-y', '-v', 'error', '-f', 'rawvideo',
         '-pix_fmt', 'rgb24', '-s', '64x96', '-r', f'{RATE_HZ}', '-i', '-', '-c:v',
         'libvpx', '-pix_fmt', 'yuv420p', '-b:v', '400k', '-auto-alt-ref', '1',
         '-lag-in-frames', '16', '-g', '60', '-pass', number, '-passlogfile',
         str(tmp_path / 'log'), str(path)], input=raw, check=True)
  with av.open(path) as container:
    assert sum(p.size > 0 for p in container.demux(video=0)) > NUM_FRAMES
  _, numbers = _assert_windows_are_of_the_whole(path)
  assert numbers == list(range(NUM_FRAMES))


def _with_edits(content, edits):
  """Writes an MP4 of one stream that shows these parts: (first frame, length)."""
  at = content.index(b'elst') - 4
  size, _, _, _, _, shift = struct.unpack_from('>I4sIIIi', content, at)
  tick = 512    # of 12,800 per second
  box = struct.pack('>I4sII', 16 + 12 * len(edits), b'elst', 0, len(edits))
  for first, length in edits:
    box += struct.pack('>IiI', length * 1000 // RATE_HZ, shift + first * tick, 1 << 16)
  edited = bytearray(content[:at] + box + content[at + size:])
  for parent in (b'moov', b'trak', b'edts'):
    place = edited.rindex(parent, 0, at) - 4
    length, = struct.unpack_from('>I', edited, place)
    struct.pack_into('>I', edited, place, length + len(box) - size)
  return bytes(edited)


@pytest.mark.parametrize('edits', [[(31, 119)], [(31, 40)], [(31, 40), (100, 20)],
                                   [(100, 20), (31, 40)]])
@pytest.mark.parametrize('source', ['plain.mp4', 'open_gop.mp4', 'hevc.mp4'])
def test_edit_lists_that_cut_into_a_gop_are_respected(tmp_path, source,
                                                                  edits):
  if source == 'hevc.mp4' and edits[0][0] > edits[-1][0]:
    pytest.skip('FFmpeg loses pictures of HEVC where an edit goes back')
  _film(tmp_path / source, **FILMS[source])
  path = tmp_path / 'edited.mp4'
  path.write_bytes(_with_edits((tmp_path / source).read_bytes(), edits))
  seconds, numbers = _assert_windows_are_of_the_whole(path)
  assert numbers == [n for first, length in edits for n in range(first, first + length)]
  np.testing.assert_allclose(seconds, np.arange(len(seconds)) / RATE_HZ, atol=0.041)


def test_recording_that_begins_within_a_gop_is_read(tmp_path):
  """No frame of the first GOP decodes; the cut may even split a packet."""
  _film(tmp_path / 'whole.ts', **FILMS['no_index.ts'])
  content = (tmp_path / 'whole.ts').read_bytes()
  for cut in (188 * 40, 188 * 41 + 77):
    path = tmp_path / 'cut.ts'
    path.write_bytes(content[cut:])
    _, numbers = _assert_windows_are_of_the_whole(path)
    assert numbers[0] > 0 and numbers[-1] == NUM_FRAMES - 1
    with media.MediaFile(path) as file:
      assert _number(_pixels(file.frames([0.0])[0])) == numbers[0]


def test_file_without_keyframe_flags_is_read(tmp_path):
  _film(tmp_path / 'plain.mp4', **FILMS['plain.mp4'])
  path = tmp_path / 'no_keys.mp4'
  path.write_bytes((tmp_path / 'plain.mp4').read_bytes().replace(b'stss', b'free'))
  _, numbers = _assert_windows_are_of_the_whole(path)
  assert numbers == list(range(NUM_FRAMES))


def test_frame_size_may_change_within_a_file(tmp_path):
  content = b''
  for part, (width, height) in enumerate([(64, 48), (128, 96)]):
    with av.open(tmp_path / 'part.ts', 'w') as container:
      stream = container.add_stream('h264', rate=RATE_HZ)
      stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
      stream.options = X264
      for i in range(72 * part, 72 * part + 72):
        frame = av.VideoFrame.from_ndarray(_bar_code(i), format='rgb24')
        frame = frame.reformat(width, height)
        # A muxer's clock begins with the first packet, not the first frame.
        frame.pts, frame.time_base = i + 10 * part, fractions.Fraction(1, RATE_HZ)
        container.mux(stream.encode(frame))
      container.mux(stream.encode(None))
    content += (tmp_path / 'part.ts').read_bytes()
  path = tmp_path / 'sizes.ts'
  path.write_bytes(content)
  _, numbers = _assert_windows_are_of_the_whole(path)
  assert numbers == list(range(144))
  with media.MediaFile(path) as file:
    assert {p.size for p in file.frames([2.0, 2.5, 3.5, 4.0])} == {(64, 48), (128, 96)}


@pytest.mark.parametrize('turn', [90, 180, 270])
def test_frames_are_rotated_by_the_display_matrix(tmp_path, turn):
  """The matrix in an MP4's track header rotates clockwise."""
  _film(tmp_path / 'plain.mp4', **FILMS['plain.mp4'])
  content = bytearray((tmp_path / 'plain.mp4').read_bytes())
  cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
  struct.pack_into('>iiiii', content, content.index(b'tkhd') + 44, cos << 16, sin << 16,
                   0, -sin << 16, cos << 16)
  path = tmp_path / 'turned.mp4'
  path.write_bytes(content)
  with media.MediaFile(tmp_path / 'plain.mp4') as file:
    upright = _pixels(file.frames([2.0])[0])
  with media.MediaFile(path) as file:
    turned = _pixels(file.frames([2.0])[0])
  like = np.rot90(upright, -turn // 90)
  assert turned.shape == like.shape
  assert np.abs(turned.astype(int) - like).mean() < 2    # half color resolution


SOUNDS = {    # name -> codecs, start of video and audio (frames, seconds), and more
    'aac.mp4': ('h264', 'aac', 0, 0.0), 'late.mp4': ('h264', 'aac', 0, 1.3),
    'early.mp4': ('h264', 'aac', 20, 0.0), 'late.mkv': ('h264', 'aac', 0, 1.3),
    'early.mkv': ('h264', 'aac', 20, 0.0), 'late.ts': ('h264', 'aac', 0, 1.3),
    'early.ts': ('h264', 'aac', 20, 0.0), 'opus.webm': ('libvpx', 'libopus', 0, 0.0),
    'late.webm': ('libvpx', 'libopus', 0, 1.3), 'flac.mkv': ('h264', 'flac', 0, 0.7),
    'mp3.mkv': ('h264', 'libmp3lame', 0, 0.0),
    'mp3.mp4': ('h264', 'libmp3lame', 0, 0.0),
    'ac3.ts': ('mpeg2video', 'ac3', 0, 0.0), 'ac3.mpg': ('mpeg2video', 'ac3', 0, 0.0),
    'mp2.mpg': ('mpeg2video', 'mp2', 10, 0.0), 'aac.flv': ('h264', 'aac', 0, 0.0),
    'pcm.avi': ('mpeg4', 'pcm_s16le', 0, 0.0), 'wma.wmv': ('wmv2', 'wmav2', 0, 0.0)}
_SOUND_HZ = 48_000


def _noise(seconds=6):
  """Returns noise below 3 kHz, which correlates with itself only at the same time."""
  noise = np.random.default_rng(3).uniform(-0.5, 0.5, seconds * 6000)
  return soxr.resample(noise.astype(np.float32), 6000, _SOUND_HZ)


def _film_with_noise(path, picture, sound, first_picture, first_sound):
  """Writes bar codes and noise on one clock, each with its start."""
  with av.open(path, 'w') as container:
    video = container.add_stream(picture, rate=RATE_HZ)
    video.width, video.height, video.pix_fmt = 64, 48, 'yuv420p'
    layout = 'stereo' if sound == 'wmav2' else 'mono'
    audio = container.add_stream(sound, rate=_SOUND_HZ, layout=layout)
    audio.bit_rate = 128_000
    if path.suffix == '.mpg':
      video.options = GRAINY
    packets, rng = [], np.random.default_rng(0)
    for i in range(first_picture, NUM_FRAMES):
      grain = rng.integers(81, size=(48, 64, 3), dtype=np.uint8)
      frame = av.VideoFrame.from_ndarray(_bar_code(i) + grain, format='rgb24')
      frame.pts, frame.time_base = i, fractions.Fraction(1, RATE_HZ)
      packets += video.encode(frame)
    packets += video.encode(None)
    audio.open()
    resampler = av.AudioResampler(audio.format, layout, _SOUND_HZ,
                                  audio.frame_size or 1024)
    skipped = round(first_sound * _SOUND_HZ)
    frame = av.AudioFrame.from_ndarray(_noise()[None, skipped:], 'fltp', 'mono')
    frame.sample_rate, frame.pts = _SOUND_HZ, skipped
    for part in resampler.resample(frame) + resampler.resample(None):
      packets += audio.encode(part)
    packets += audio.encode(None)
    for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
      container.mux(packet)


@pytest.mark.parametrize('name', SOUNDS)
def test_audio_is_within_10_ms_of_the_frame(tmp_path, name):
  """Compares the audio with the time that the number of the frame gives."""
  _film_with_noise(tmp_path / name, *SOUNDS[name])
  noise = soxr.resample(_noise(), _SOUND_HZ, 8000)
  rng = np.random.default_rng(0)
  for _ in range(6):
    start = rng.uniform(1.5, 4.0)
    times = start + np.arange(80) / 1000
    with media.MediaFile(tmp_path / name) as file:
      numbers = [_number(_pixels(picture)) for picture in file.frames(times)]
      change = int(np.flatnonzero(np.diff(numbers))[0]) + 1
      heard = file.audio(times[change], 4000, 8000)
    place = numbers[change] * 8000 // RATE_HZ
    around = noise[place - 400:place + 4400]    # 50 ms earlier and later
    likeness = np.correlate(around, heard)
    assert likeness.max() > 0.7 * np.sum(heard**2)
    assert abs(int(np.argmax(likeness)) - 400) <= 80    # 10 ms


@pytest.mark.parametrize('name', ['aac.mp4', 'late.mp4', 'ac3.ts', 'mp2.mpg',
                                  'pcm.avi'])
def test_audio_window_equals_decoding_from_the_start(tmp_path, name):
  _film_with_noise(tmp_path / name, *SOUNDS[name])
  with media.MediaFile(tmp_path / name) as file:
    whole = file.audio(0.0, 6 * 16_000, 16_000)
  rng = np.random.default_rng(0)
  for place in rng.integers(1.5 * 16_000, 5 * 16_000, size=10):
    with media.MediaFile(tmp_path / name) as file:
      sound = file.audio(place / 16_000, 8000, 16_000)
    np.testing.assert_allclose(sound, whole[place:place + 8000], atol=2e-3)


def test_audio_after_a_small_gap_follows_its_time_stamp(tmp_path):
  """The file lacks 15 ms after the second second."""
  path = tmp_path / 'gap.mkv'
  noise = (_noise()[None] * 32767).astype(np.int16)
  with av.open(path, 'w') as container:
    stream = container.add_stream('pcm_s16le', rate=_SOUND_HZ, layout='mono')
    for first in range(0, 4 * _SOUND_HZ, 960):
      frame = av.AudioFrame.from_ndarray(noise[:, first:first + 960], 's16', 'mono')
      frame.sample_rate = _SOUND_HZ
      frame.pts = first + (720 if first >= 2 * _SOUND_HZ else 0)
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  with media.MediaFile(path) as file:
    sound = file.audio(1.0, 2 * _SOUND_HZ, _SOUND_HZ)
  before, after = (noise[0, n * _SOUND_HZ:(n + 1) * _SOUND_HZ] / 32768 for n in (1, 2))
  np.testing.assert_allclose(sound[:_SOUND_HZ], before, atol=1e-3)
  assert not sound[_SOUND_HZ + 50:_SOUND_HZ + 670].any()
  place = _SOUND_HZ + 720    # Matroska's time stamps are in milliseconds
  errors = [np.abs(sound[place + lag:][:40_000] - after[:40_000]).max()
            for lag in range(-48, 49)]
  assert min(errors) < 1e-3


def test_sample_rate_may_change_within_a_file(tmp_path):
  """A tone stays the same when a recording goes on at half the rate."""
  content = b''
  for part, rate in enumerate((48_000, 24_000)):
    with av.open(tmp_path / 'part.ts', 'w') as container:
      stream = container.add_stream('aac', rate=rate, layout='mono')
      tone = 0.5 * np.sin(2 * np.pi * 700 * np.arange(3 * rate) / rate)
      for first in range(0, 3 * rate - 1023, 1024):
        frame = av.AudioFrame.from_ndarray(
            tone[None, first:first + 1024].astype(np.float32), 'fltp', 'mono')
        frame.sample_rate, frame.pts = rate, first + 3 * part * rate
        container.mux(stream.encode(frame))
      container.mux(stream.encode(None))
    content += (tmp_path / 'part.ts').read_bytes()
  path = tmp_path / 'rates.ts'
  path.write_bytes(content)
  with media.MediaFile(path) as file:
    for start in (0.5, 2.5, 3.5, 4.5):
      spectrum = np.abs(np.fft.rfft(file.audio(start, 8000, 8000)))
      assert abs(int(np.argmax(spectrum)) - 700) <= 1    # windows of 1 s
