"""Packs a source into ArrayRecord shards, which are faster to read and easier to move.

    python -m vatt_jax prepare --source=FOLDER_OR_MANIFEST --captions=FILE \
        --out=DIR --form=video --beam=--direct_num_workers=8

A source is any value of `--config.data.path`; the finished `--out` is a source too.
Forms:

    video       H.264 of short side 256, a keyframe a second, and AAC
    frames      JPEGs of short side 256 at 10 Hz, and audio samples: the fastest form
                for random access, and the largest
    untouched   the files' own bytes, or a record's own frames

Runs on Apache Beam (`pip install -e '.[prep]'`): with one process per core of this
machine, or on a cluster by --beam=--runner=... (one --beam for each of Beam's own
flags). After a kill the same command resumes: a shard appears whole, and is not
written twice. Clips that do not decode are left out and named in `skipped.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import fractions
import functools
import hashlib
import io
import json
import math
import os
import pathlib
from typing import Any
import uuid

from absl import flags
from absl import logging
import av
import cv2
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import cli
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip as clip_lib
from vatt_jax.inputs import images
from vatt_jax.inputs import media
from vatt_jax.inputs import records
from vatt_jax.inputs import sources
from vatt_jax.inputs import write_mp4

FORMS = ('video', 'frames', 'untouched')
SHORT_SIDE_PIXELS = 256
FRAME_RATE_HZ = 10.0
_JPEG_QUALITY = 90
# Sample rates of AAC.
_AUDIO_RATES_HZ = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_AUDIO_BIT_RATE = 96_000
_MAX_VIDEO_HZ = 30
# A longer stretch of decoded video would not fit into memory.
_CHUNK_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Plan:
  """Describes a packing job: the source and the form of the records.

  Attributes:
    source: any source of `sources.open_source`; absolute.
    captions: file of timed captions beside the source; empty for none.
    form: one of `FORMS`.
    segment_seconds: longer clips are cut into segments; 0 leaves them whole.
    clips_per_shard: number of the source's clips, before they are cut into segments.
  """
  source: str
  captions: str
  form: str
  segment_seconds: float = 0.0
  clips_per_shard: int = 64

  def __post_init__(self):
    if self.form not in FORMS:
      raise UserError(f'--form={self.form}: expected one of {", ".join(FORMS)}')
    if self.form == 'untouched' and self.segment_seconds:
      raise UserError('--segment_seconds: --form=untouched cannot cut files; choose '
                      'video or frames, or give segments as rows of a manifest')
    if self.segment_seconds < 0 or self.clips_per_shard < 1:
      raise UserError(f'--segment_seconds={self.segment_seconds}, --clips_per_shard='
                      f'{self.clips_per_shard}: expected 0 or more, and 1 or more')

  def num_shards(self) -> int:
    return math.ceil(len(_open(self.source, self.captions)) / self.clips_per_shard)


def prepare(plan: Plan, out: pathlib.Path, beam_options: Sequence[str] = ()) -> str:
  """Writes the shards that are missing.

  Args:
    plan: the job; a folder that was begun with another plan is refused.
    out: the folder.
    beam_options: Beam's own flags.

  Returns:
    A line that describes the contents of the folder.

  Raises:
    UserError: the plan is wrong, or Beam is not installed.
  """
  count = plan.num_shards()
  try:
    import apache_beam as beam
    from apache_beam.options import pipeline_options
  except ImportError as e:
    raise UserError("vatt_jax prepare needs Apache Beam: pip install -e '.[prep]'"
                    ) from e
  _claim(plan, out)
  missing = [i for i in range(count) if not _shard(out, i, count).exists()]
  logging.info('%s: %d of %d shards to make', out, len(missing), count)
  for partial in out.glob('*.partial'):    # left by a run that was killed
    partial.unlink()
  options = pipeline_options.PipelineOptions([
      '--runner=DirectRunner', '--direct_running_mode=multi_processing',
      f'--direct_num_workers={os.cpu_count()}',
      '--default_sdk_harness_log_level=WARNING', *beam_options])
  if missing:
    try:
      with beam.Pipeline(options=options) as pipeline:
        _ = (pipeline | beam.Create(missing) | beam.Reshuffle()
             | beam.Map(functools.partial(make_shard, plan, out, count)))
    except RuntimeError as e:    # ends with the last line of the worker's own trace
      raise UserError(f'{out}: a worker failed: {str(e).strip().splitlines()[-1]}; '
                      'run the same command again to resume') from e
  notes = [json.loads((_shard(out, i, count).with_suffix('.json')).read_text('utf-8'))
           for i in range(count)]
  skipped = [row for note in notes for row in note['skipped']]
  (out / 'skipped.jsonl').write_text(
      ''.join(json.dumps(row) + '\n' for row in skipped), encoding='utf-8')
  return (f'{out}: {sum(n["records"] for n in notes)} records in {count} shards, '
          f'{sum(n["bytes"] for n in notes) / 1e6:.1f} MB; {len(skipped)} clips skipped'
          + (', named in skipped.jsonl' if skipped else ''))


def make_shard(plan: Plan, out: pathlib.Path, count: int, number: int) -> None:
  """Writes one shard, which appears whole, and a note of its contents beside it."""
  from array_record.python import array_record_module
  clips = _open(plan.source, plan.captions)
  path = _shard(out, number, count)
  # The name is unique because Beam may start a slow shard a second time.
  partial = path.with_suffix(f'.{uuid.uuid4().hex}.partial')
  first = number * plan.clips_per_shard
  note: dict[str, Any] = dict(records=0, bytes=0, skipped=[])
  # Videos and JPEGs are compressed already.
  writer = array_record_module.ArrayRecordWriter(
      os.fspath(partial), 'group_size:1,uncompressed')
  with contextlib.closing(writer) as file:
    for index in range(first, min(first + plan.clips_per_shard, len(clips))):
      try:
        records = list(_records(plan, clips[index], index))
      except media.MediaError as e:
        note['skipped'].append(dict(path=e.path, reason=str(e)))
        continue
      for record in records:
        file.write(record)
      note['records'] += len(records)
      note['bytes'] += sum(map(len, records))
  path.with_suffix('.json').write_text(json.dumps(note) + '\n', encoding='utf-8')
  partial.rename(path)


def _claim(plan: Plan, out: pathlib.Path) -> None:
  """Writes plan and source into the folder; a resumed run must have the same."""
  settings = dataclasses.asdict(plan) | _fingerprint(
      _open(plan.source, plan.captions))
  path = out / checkpoint.CONFIG_FILE
  if path.exists():
    previous = json.loads(path.read_text(encoding='utf-8'))
    for key, value in settings.items():
      if previous.get(key) != value:
        raise UserError(f'{out}: was begun with {key}={previous.get(key)!r}, now it is '
                        f'{value!r}; choose another --out, or resume with the same '
                        f'{key}')
    return
  out.mkdir(parents=True, exist_ok=True)
  if any(out.iterdir()):
    raise UserError(f'{out}: is not empty, and was not begun by this command; choose '
                    'another --out')
  checkpoint.write_config(out, settings)


def _fingerprint(clips: Sequence[clip_lib.Clip]) -> dict[str, Any]:
  """Identifies a source: by the number of its clips, for files also by their names."""
  digest = hashlib.sha256()
  if not isinstance(clips, records.Records | records.TarClips):
    for clip in getattr(clips, 'plain', clips):
      digest.update(f'{clip.path}\0{clip.start}\0{clip.end}\n'.encode())
  return dict(num_clips=len(clips), clips_sha256=digest.hexdigest())


def _shard(out: pathlib.Path, number: int, count: int) -> pathlib.Path:
  return out / f'clips-{number:05d}-of-{count:05d}.array_record'


@functools.lru_cache(maxsize=1)    # a worker makes many shards of one source
def _open(source: str, captions: str) -> Sequence[clip_lib.Clip]:
  return sources.open_source(source, captions)


def _records(plan: Plan, clip: clip_lib.Clip, index: int) -> Iterator[bytes]:
  """Yields the records of a clip."""
  name = f'{index:08d}/{pathlib.Path(clip.path).name}'
  if plan.form == 'untouched':
    yield records.to_example(clip, name, **_untouched(clip))
    return
  with clip.open() as file:
    end = clip.end_in(file)
    length = plan.segment_seconds or end - clip.start
    # A remainder of less than half a segment belongs to the segment before it.
    num_segments = max(round((end - clip.start) / length), 1)
    for i in range(num_segments):
      start = clip.start + i * length
      stop = end if i == num_segments - 1 else start + length
      segment = _shift(dataclasses.replace(clip, start=start, end=stop), whole=(
          num_segments == 1))
      suffix = f'{name}/{i}' if num_segments > 1 else name
      pack = _frames if plan.form == 'frames' else _video
      try:
        content = pack(file, start, stop)
      except av.FFmpegError as e:
        raise media.MediaError(clip.path, f'does not encode: {e.strerror}') from e
      yield records.to_example(segment, suffix, **content)


def _shift(clip: clip_lib.Clip, whole: bool) -> clip_lib.Clip:
  """Returns a segment as a clip of its own, with times relative to its start.

  A segment of a longer clip keeps the captions that overlap it.
  """
  captions = tuple(
      clip_lib.Caption(c.start - clip.start, c.end - clip.start, c.text)
      for c in clip.captions if whole or (c.start < clip.end and c.end > clip.start))
  return dataclasses.replace(clip, start=0.0, end=math.inf, captions=captions)


def _untouched(clip: clip_lib.Clip) -> dict[str, Any]:
  if isinstance(clip.content, images.Stills):
    return _own_content(clip.content)
  content = clip.content
  if content is None:
    try:
      content = pathlib.Path(clip.path).read_bytes()
    except OSError as e:
      raise media.MediaError(clip.path, e.strerror or 'cannot be read') from e
  with dataclasses.replace(clip, content=content).open():    # raises for other files
    times = dict(start=clip.start)
    if math.isfinite(clip.end):
      times['end'] = clip.end
    return dict(media=content, **times)


def _own_content(content: images.Stills) -> dict[str, Any]:
  """Returns a record's own frames and audio, unchanged."""
  record: dict[str, Any] = {}
  if content.has_video:
    record |= dict(frames=content.encoded_frames, frame_rate_hz=content.frame_rate_hz)
  if content.has_audio:
    samples = content.waveform
    if samples.dtype != np.int16:
      samples = media.to_int16(samples)
    record |= dict(sound=samples.astype('<i2').tobytes(), sound_hz=content.audio_hz)
  return record


def _frames(file: clip_lib.Media, start: float, end: float) -> dict[str, Any]:
  """Returns JPEGs and audio samples of a segment."""
  record: dict[str, Any] = {}
  if file.has_video:
    rate = file.frame_rate_hz if isinstance(file, images.Stills) else FRAME_RATE_HZ
    encoded = []
    for image in _video_frames(file, start, end, rate):
      _, jpeg = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
                             [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
      encoded.append(jpeg.tobytes())
    record |= dict(frames=encoded, frame_rate_hz=rate)
  audio = _audio(file, start, end)
  if audio is not None:
    record |= dict(sound=media.to_int16(audio).astype('<i2').tobytes(),
                   sound_hz=_audio_hz(file))
  return record


def _video(file: clip_lib.Media, start: float, end: float) -> dict[str, Any]:
  """Encodes a segment as MP4; audio files and single images become `_frames`."""
  if not file.has_video or isinstance(file, images.Stills):
    return _frames(file, start, end)
  rate = fractions.Fraction(min(file.frame_rate_hz or _MAX_VIDEO_HZ, _MAX_VIDEO_HZ)
                            ).limit_denominator(1001)
  out = io.BytesIO()
  write_mp4.write(out, _video_frames(file, start, end, float(rate)), rate,
                  _audio(file, start, end), _audio_hz(file),
                  # The bit rate follows the sample rate: AAC at 8 kHz takes no more.
                  min(_AUDIO_BIT_RATE, 2 * _audio_hz(file)), {
                      'preset': 'veryfast', 'crf': '23', 'g': str(math.ceil(rate))})
  return dict(media=out.getvalue())


def _audio_hz(file: clip_lib.Media) -> int:
  """Returns the file's own sample rate, or the next higher rate of AAC."""
  return next((rate for rate in _AUDIO_RATES_HZ if rate >= file.audio_hz),
              _AUDIO_RATES_HZ[-1])


def _audio(file: clip_lib.Media, start: float, end: float) -> np.ndarray | None:
  """Decodes the audio of a segment.

  Returns None without an audio stream, and, as in training, for audio beside video
  that does not decode.
  """
  rate = _audio_hz(file)
  try:
    return file.audio(start, max(round((end - start) * rate), 1), rate)
  except media.MediaError:
    if not file.has_video:
      raise
    return None


def _video_frames(file: clip_lib.Media, start: float, end: float, rate_hz: float
                  ) -> Iterator[np.ndarray]:
  """Yields the frames of a segment at a steady rate, of short side 256 at most."""
  count = max(math.ceil((end - start) * rate_hz - 1e-6), 1)
  at_once = max(round(_CHUNK_SECONDS * rate_hz), 1)
  size = None
  for first in range(0, count, at_once):
    numbers = np.arange(first, min(first + at_once, count))
    for frame in file.frames(start + numbers / rate_hz):
      width, height = frame.size
      if size is None:    # the encoder needs one even size for all frames
        scale = min(SHORT_SIDE_PIXELS / min(width, height), 1)
        size = tuple(max(round(v * scale / 2) * 2, 2) for v in (width, height))
      yield frame.cut((0, 0, width, height), size)


def main() -> None:
  f = flags.FLAGS
  for name in ('source', 'out'):
    if not f[name].value:
      raise UserError(f'--{name}: missing')
  # Beam's workers import the module by its own name, not as __main__.
  from vatt_jax.tools import prepare as importable
  plan = importable.Plan(os.path.abspath(f.source), f.captions, f.form,
                         f.segment_seconds, f.clips_per_shard)
  print(importable.prepare(plan, pathlib.Path(f.out).absolute(), f.beam))


if __name__ == '__main__':
  flags.DEFINE_string('source', '', 'A folder, a manifest, or shards.')
  flags.DEFINE_string('captions', '', 'A file of timed captions beside the source.')
  flags.DEFINE_string('out', '', 'The folder to write.')
  flags.DEFINE_string('form', 'video', f'One of {", ".join(FORMS)}.')
  flags.DEFINE_float('segment_seconds', 0.0,
                     'Cuts longer clips into segments of this length; 0: no cuts.')
  flags.DEFINE_integer('clips_per_shard', 64, "Number of the source's clips a shard.")
  flags.DEFINE_multi_string('beam', [], "One of Beam's own flags.")
  cli.run(main)
