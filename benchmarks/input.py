"""Times the reading of clips beside FFmpeg's decoder and beside plain tf.data.

    python benchmarks/input.py --media=FOLDER [--json]

Makes two comparisons, on as many threads as the machine has cores. Every contender runs
once in every round, one after the other. A speed is the median of the rounds' ratios.

- `mp4`: random clips of 32 frames at 10 Hz, short side 224, with their audio at 48 kHz,
  from all videos of a folder that are long enough. 1 is FFmpeg's decoder (through
  PyAV): it decodes the same spans of video and audio, from the keyframe before to the
  end, and discards the frames. If decord or torchcodec is installed, the comparison is
  repeated on the videos that it can read; both also return frames of that size and the
  audio.
- `packed`: the same videos packed as JPEGs at 10 Hz, random clips of 32 frames, cropped
  by area [0.08, 1] and aspect [0.5, 2] to 224 x 224, with their audio. 1 is the
  ordinary way: TFRecord files of SequenceExamples with the audio as a list of floats,
  through tf.data. It decodes whole frames, then crops, resizes, flips and changes
  colors in float. vatt_jax leaves flips and colors to the accelerator.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

from absl import flags
import av
import numpy as np
import tensorflow as tf

from vatt_jax import cli
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip
from vatt_jax.inputs import media
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.batches import train_batches
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window
from vatt_jax.tools import prepare

WINDOW = Window(num_frames=32, frame_rate_hz=10.0, image_size=224,
                audio_hz=48_000, min_crop_area=0.08, max_crop_aspect=2.0)
Job = tuple[str, float]    # path, start (seconds)


@dataclasses.dataclass(frozen=True)
class Row:
  """Holds the speed of a contender; 1 is the first of its group."""
  group: str
  name: str
  clips_per_second: float
  speed: float


def main() -> None:
  """Measures and prints."""
  folder = pathlib.Path(flags.FLAGS.media)
  videos = [c.path for c in sources.open_source(str(folder)) if _is_long(c)]
  if not videos:
    raise UserError(f'--media={folder}: holds no video of {WINDOW.seconds} s or more')
  rows = []
  for group, contenders in mp4_groups(videos):
    rows += measure(group, contenders, flags.FLAGS.rounds)
  with tempfile.TemporaryDirectory() as scratch:
    contenders = packed_contenders(videos, pathlib.Path(scratch))
    rows += measure('packed', contenders, flags.FLAGS.rounds)
  if flags.FLAGS.json:
    print(json.dumps([dataclasses.asdict(r) for r in rows], indent=2))
    return
  for row in rows:
    print(f'{row.group:18}{row.name:26}{row.clips_per_second:8.2f} clips/s  '
          f'{row.speed:6.2f}')


def measure(group: str, contenders: dict[str, Callable[[int], float]], rounds: int
            ) -> list[Row]:
  """Runs contenders in turn; each maps a round's number to its clips per second."""
  speeds: dict[str, list[float]] = {name: [] for name in contenders}
  for number in range(-1, rounds):    # the first warms up
    for name, run in contenders.items():
      speed = run(number)
      if number >= 0:
        speeds[name].append(speed)
  first = next(iter(speeds.values()))
  return [Row(group, name, statistics.median(s), statistics.median(
      a / b for a, b in zip(s, first, strict=True))) for name, s in speeds.items()]


def _is_long(source: clip.Clip) -> bool:
  """Returns whether a video decodes whole and is longer than a window."""
  try:
    with source.open() as file:
      file.frames(np.arange(0, file.duration_seconds, 0.02))
      return file.duration_seconds > WINDOW.seconds
  except media.MediaError:
    return False


def mp4_groups(videos: Sequence[str]
               ) -> Iterator[tuple[str, dict[str, Callable[[int], float]]]]:
  """Yields FFmpeg with vatt_jax, then the same with each installed peer."""
  readers = {'FFmpeg, decoding alone': decode_alone, 'vatt_jax': read_window}
  yield 'mp4', _contenders(videos, readers)
  for name, read in PEERS.items():
    if importlib.util.find_spec(name):
      readable = [path for path in videos if _reads(read, path)]
      yield f'mp4, {name}', _contenders(readable, readers | {name: read})


def _reads(read: Callable[[str, float], Any], path: str) -> bool:
  try:
    read(path, 0.0)
  except media.MediaError:
    return False
  return True


def _contenders(videos: Sequence[str], readers: dict[str, Callable[[str, float], Any]]
                ) -> dict[str, Callable[[int], float]]:
  lengths = {}
  for path in videos:
    with media.MediaFile(path) as file:
      lengths[path] = file.duration_seconds - WINDOW.seconds

  def jobs(number: int) -> list[Job]:
    rng = np.random.default_rng(number + 1)
    return [(p, rng.random() * lengths[p]) for p in videos for _ in range(2)]

  def contender(read: Callable[[str, float], Any]) -> Callable[[int], float]:
    def run(number: int) -> float:
      began = time.perf_counter()
      with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        count = len([None for _ in pool.map(lambda job: read(*job), jobs(number))])
      return count / (time.perf_counter() - began)
    return run

  return {name: contender(read) for name, read in readers.items()}


def decode_alone(path: str, start: float) -> None:
  """Runs FFmpeg's decoders over the video and audio of a window."""
  with av.open(path, metadata_errors='replace') as container:
    zero = (container.start_time or 0) / av.time_base
    streams = [s for s in map(container.streams.best, ('video', 'audio')) if s]
    for stream in streams:
      stream.codec_context.thread_count = 1
    container.seek(int((start + zero) / streams[0].time_base), stream=streams[0])
    unfinished = {s.index for s in streams}
    for packet in container.demux(streams):
      late = packet.dts is not None and (
          float(packet.dts * packet.time_base) - zero > start + WINDOW.seconds)
      if late:
        unfinished.discard(packet.stream_index)
        if not unfinished:
          break
      elif packet.size:
        packet.decode()
    for stream in streams:
      stream.codec_context.decode(None)


def read_window(path: str, start: float) -> tuple[np.ndarray, np.ndarray | None]:
  """Reads a whole window with vatt_jax's reader."""
  with media.MediaFile(path) as file:
    frames = file.frames(start + np.arange(WINDOW.num_frames) / WINDOW.frame_rate_hz)
    size = _short_side(*frames[0].size)
    video = np.empty((len(frames), size[1], size[0], 3), np.uint8)
    for i, frame in enumerate(frames):
      video[i] = frame.cut((0, 0, *frame.size), size)
    return video, file.audio(start, WINDOW.num_samples, WINDOW.audio_hz)


def _short_side(width: int, height: int) -> tuple[int, int]:
  scale = WINDOW.image_size / min(width, height)
  return round(width * scale), round(height * scale)


def read_by_decord(path: str, start: float) -> Any:
  """Reads with decord, which picks frames by number and reads the audio whole."""
  import decord
  with av.open(path) as container:
    stream = container.streams.best('video')
    size = _short_side(stream.width, stream.height)
    has_audio = container.streams.best('audio') is not None
  try:
    video = decord.VideoReader(path, width=size[0], height=size[1], num_threads=1)
  except decord.DECORDError as e:
    raise media.MediaError(path, str(e)) from e
  numbers = (start + np.arange(WINDOW.num_frames) / WINDOW.frame_rate_hz
             ) * video.get_avg_fps()
  frames = video.get_batch(np.minimum(numbers, len(video) - 1).astype(int)).asnumpy()
  audio = None
  if has_audio:
    audio = decord.AudioReader(path, sample_rate=WINDOW.audio_hz, mono=True)
    first = round(start * WINDOW.audio_hz)
    audio = audio[first:first + WINDOW.num_samples].asnumpy()
  return frames, audio


def read_by_torchcodec(path: str, start: float) -> Any:
  """Reads with torchcodec, which picks frames by time."""
  from torchcodec import decoders
  from torchcodec import transforms
  try:
    video = decoders.VideoDecoder(path)
  except (RuntimeError, ValueError) as e:
    raise media.MediaError(path, str(e)) from e
  size = _short_side(video.metadata.width, video.metadata.height)
  video = decoders.VideoDecoder(path, num_ffmpeg_threads=1, transforms=[
      transforms.Resize(size[::-1])])
  times = start + np.arange(WINDOW.num_frames) / WINDOW.frame_rate_hz
  times = np.clip(times, video.metadata.begin_stream_seconds,
                  video.metadata.end_stream_seconds - 1e-3)
  frames = video.get_frames_played_at(times.tolist()).data
  try:
    audio = decoders.AudioDecoder(path, sample_rate=WINDOW.audio_hz, num_channels=1)
  except ValueError:    # no audio stream
    return frames, None
  return frames, audio.get_samples_played_in_range(start, start + WINDOW.seconds)


PEERS = {'decord': read_by_decord, 'torchcodec': read_by_torchcodec}


def packed_contenders(videos: Sequence[str], scratch: pathlib.Path
                      ) -> dict[str, Callable[[int], float]]:
  """Returns the ordinary way and vatt_jax, over the same frames."""
  (scratch / 'videos').mkdir()
  for i, path in enumerate(videos * 4):
    (scratch / 'videos' / f'{i:02d}{pathlib.Path(path).suffix}').symlink_to(
        pathlib.Path(path).resolve())
  plan = prepare.Plan(str(scratch / 'videos'), '', 'frames', clips_per_shard=10_000)
  (scratch / 'packed').mkdir()
  prepare.make_shard(plan, scratch / 'packed', 1, 0)
  clips = sources.open_source(str(scratch / 'packed'))
  with tf.io.TFRecordWriter(str(scratch / 'ordinary.tfrecord')) as file:
    for i in range(len(clips)):
      file.write(as_sequence_example(clips[i]))
  reader = Reader(clips, WINDOW, text.WordTokenizer(()),
                  FileNotes(1.0, len(clips)))

  def take(make: Callable[[], Any], number: int) -> float:
    """Times 60 batches after 10; closes the iterator, which would read ahead."""
    del number
    with contextlib.closing(make()) as batches:
      for _ in itertools.islice(batches, 10):
        pass
      began = time.perf_counter()
      count = sum(len(b['video']) for b in itertools.islice(batches, 60))
      return count / (time.perf_counter() - began)

  ordinary = functools.partial(ordinary_batches, str(scratch / 'ordinary.tfrecord'), 4)
  return {'the ordinary way': functools.partial(take, ordinary),
          'vatt_jax': functools.partial(take, functools.partial(
              train_batches, reader, 4, 0, 0))}


def as_sequence_example(source: clip.Clip) -> bytes:
  """Serializes a packed clip in DMVR's layout, its audio at 48 kHz as floats."""
  example = tf.train.SequenceExample()
  for jpeg in source.content.encoded_frames:
    example.feature_lists.feature_list['image/encoded'].feature.add(
        ).bytes_list.value.append(jpeg)
  num_samples = round(source.content.duration_seconds * WINDOW.audio_hz)
  audio = source.content.audio(0.0, num_samples, WINDOW.audio_hz)
  audio = np.zeros(num_samples, np.float32) if audio is None else audio
  example.feature_lists.feature_list['WAVEFORM/feature/floats'].feature.add(
      ).float_list.value.extend(audio)
  return example.SerializeToString()


def ordinary_batches(path: str, batch_size: int) -> Iterator[Any]:
  """Yields batches by tf.data as in DMVR and the released code (crop, flip, colors)."""
  size, num_frames = WINDOW.image_size, WINDOW.num_frames
  samples_per_frame = WINDOW.audio_hz // int(WINDOW.frame_rate_hz)

  def parse(record):
    _, lists = tf.io.parse_single_sequence_example(record, sequence_features={
        'image/encoded': tf.io.FixedLenSequenceFeature([], tf.string),
        'WAVEFORM/feature/floats': tf.io.VarLenFeature(tf.float32)})
    jpegs = lists['image/encoded']
    audio = tf.sparse.to_dense(lists['WAVEFORM/feature/floats'])[0]
    first = tf.random.uniform([], 0, tf.shape(jpegs)[0] - num_frames + 1, tf.int32)
    audio = audio[first * samples_per_frame:][:num_frames * samples_per_frame]
    audio = tf.pad(audio, [[0, num_frames * samples_per_frame - tf.shape(audio)[0]]])
    return jpegs[first:first + num_frames], audio

  def process(jpegs, audio):
    video = tf.map_fn(functools.partial(tf.io.decode_jpeg, channels=3), jpegs,
                      fn_output_signature=tf.uint8)
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(video)[1:], tf.zeros([1, 1, 4]) + [0.0, 0.0, 1.0, 1.0],
        area_range=(0.08, 1.0), aspect_ratio_range=(0.5, 2.0), min_object_covered=0.1,
        use_image_if_no_bounding_boxes=True)
    video = tf.slice(video, [0, begin[0], begin[1], 0],
                     [num_frames, extent[0], extent[1], 3])
    video = tf.cast(tf.image.resize(video, (size, size)), tf.uint8)
    video = tf.cond(tf.random.uniform([]) < 0.5, lambda: video[:, :, ::-1],
                    lambda: video)
    video = tf.cast(video, tf.float32) / 255
    video = tf.image.random_brightness(video, 32 / 255)
    video = tf.image.random_saturation(video, 0.6, 1.4)
    video = tf.image.random_contrast(video, 0.6, 1.4)
    video = tf.clip_by_value(tf.image.random_hue(video, 0.2), 0, 1)
    return {'video': tf.ensure_shape(video, (num_frames, size, size, 3)),
            'audio': tf.ensure_shape(audio, (num_frames * samples_per_frame,))}

  dataset = tf.data.TFRecordDataset(path).repeat()
  dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
  dataset = dataset.map(process, num_parallel_calls=tf.data.AUTOTUNE)
  yield from dataset.batch(batch_size).prefetch(2).as_numpy_iterator()


if __name__ == '__main__':
  flags.DEFINE_string('media', '', 'A folder with videos.')
  flags.DEFINE_integer('rounds', 5, 'Number of rounds.')
  flags.DEFINE_bool('json', False, 'Print JSON, not a table.')
  cli.run(main)
