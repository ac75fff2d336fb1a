"""Packs a source into ArrayRecord shards, which train faster and move more easily.

    python -m vatt_jax prepare --source=FOLDER_OR_MANIFEST --captions=FILE \
        --out=DIR --form=video --beam=--direct_num_workers=8

A source is what `--config.data.path` takes; `--out`, once made, is one too. Forms:

    video       H.264 of short side 256, a keyframe a second, and AAC
    frames      JPEGs of short side 256 at 10 Hz, and samples of the sound: the fastest
                to read at random, and the largest
    untouched   the files' own bytes, or a record's own pictures

Runs on Apache Beam (`pip install -e '.[prep]'`): as many processes here as the
machine has cores, or a cluster by --beam=--runner=... (one --beam for each of Beam's
own flags). Killed and started again, it goes on: a shard appears whole, and is not
made twice. Clips that don't decode are left out, and named in `skipped.jsonl`.
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
# Of AAC.
_AUDIO_RATES_HZ = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_AUDIO_BIT_RATE = 96_000
_MAX_VIDEO_HZ = 30
# So much of a film is decoded at a time: all of it would not fit into memory.
_CHUNK_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Plan:
  """What to pack, and how.

  Attributes:
    source: what `sources.open_source` takes; absolute.
    captions: timed sentences beside it; empty for none.
    form: of `FORMS`.
    segment_seconds: longer clips become several; 0 leaves them whole.
    clips_per_shard: of the source, before they are cut into segments.
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
  """Makes the shards that are not there yet.

  Args:
    plan: what to do; a folder that was begun with another one is refused.
    out: the folder.
    beam_options: Beam's own flags.

  Returns:
    A line that says what is there.

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
  for partial in out.glob('*.partial'):    # of a run that was killed
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
    except RuntimeError as e:    # what a worker met, at the end of its own trace
      raise UserError(f'{out}: a worker failed, {str(e).strip().splitlines()[-1]}; '
                      'the same command goes on from here') from e
  notes = [json.loads((_shard(out, i, count).with_suffix('.json')).read_text('utf-8'))
           for i in range(count)]
  skipped = [row for note in notes for row in note['skipped']]
  (out / 'skipped.jsonl').write_text(
      ''.join(json.dumps(row) + '\n' for row in skipped), encoding='utf-8')
  return (f'{out}: {sum(n["records"] for n in notes)} records in {count} shards, '
          f'{sum(n["bytes"] for n in notes) / 1e6:.1f} MB; {len(skipped)} clips skipped'
          + (', named in skipped.jsonl' if skipped else ''))


def make_shard(plan: Plan, out: pathlib.Path, count: int, number: int) -> None:
  """Writes one shard, and beside it what it holds and lacks; it appears whole."""
  from array_record.python import array_record_module
  clips = _open(plan.source, plan.captions)
  path = _shard(out, number, count)
  # A name of its own, for Beam may start a slow shard a second time.
  partial = path.with_suffix(f'.{uuid.uuid4().hex}.partial')
  first = number * plan.clips_per_shard
  note: dict[str, Any] = dict(records=0, bytes=0, skipped=[])
  # Films and JPEGs are compressed already.
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
  """Notes plan and source in the folder; whoever goes on must have the same."""
  settings = dataclasses.asdict(plan) | _fingerprint(
      _open(plan.source, plan.captions))
  path = out / checkpoint.CONFIG_FILE
  if path.exists():
    theirs = json.loads(path.read_text(encoding='utf-8'))
    for key, value in settings.items():
      if theirs.get(key) != value:
        raise UserError(f'{out}: was begun with {key}={theirs.get(key)!r}, now it is '
                        f'{value!r}; choose another --out, or the same to go on')
    return
  out.mkdir(parents=True, exist_ok=True)
  if any(out.iterdir()):
    raise UserError(f'{out}: is not empty, and not begun by this command; choose '
                    'another --out')
  checkpoint.write_config(out, settings)


def _fingerprint(clips: Sequence[clip_lib.Clip]) -> dict[str, Any]:
  """What tells a source from what it was: of records, how many, of files also which."""
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
  """The records that a clip becomes."""
  name = f'{index:08d}/{pathlib.Path(clip.path).name}'
  if plan.form == 'untouched':
    yield records.to_example(clip, name, **_untouched(clip))
    return
  with clip.open() as file:
    end = clip.end_in(file)
    length = plan.segment_seconds or end - clip.start
    # A last piece of less than half is left to the one before it.
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
  """A stretch as a clip of its own: its captions' times from its begin on.

  Of the captions of a clip that is cut, each keeps those that touch it.
  """
  captions = tuple(
      clip_lib.Caption(c.start - clip.start, c.end - clip.start, c.text)
      for c in clip.captions if whole or (c.start < clip.end and c.end > clip.start))
  return dataclasses.replace(clip, start=0.0, end=math.inf, captions=captions)


def _untouched(clip: clip_lib.Clip) -> dict[str, Any]:
  if isinstance(clip.content, images.Stills):
    return _as_they_are(clip.content)
  content = clip.content
  if content is None:
    try:
      content = pathlib.Path(clip.path).read_bytes()
    except OSError as e:
      raise media.MediaError(clip.path, e.strerror or 'does not read') from e
  with dataclasses.replace(clip, content=content).open():    # no media, no record
    times = dict(start=clip.start)
    if math.isfinite(clip.end):
      times['end'] = clip.end
    return dict(media=content, **times)


def _as_they_are(content: images.Stills) -> dict[str, Any]:
  """A record's own pictures and sound."""
  record: dict[str, Any] = {}
  if content.has_video:
    record |= dict(frames=content.pictures, frame_rate_hz=content.frame_rate_hz)
  if content.has_audio:
    samples = content.waveform
    if samples.dtype != np.int16:
      samples = media.to_int16(samples)
    record |= dict(sound=samples.astype('<i2').tobytes(), sound_hz=content.audio_hz)
  return record


def _frames(file: clip_lib.Media, start: float, end: float) -> dict[str, Any]:
  """JPEGs and samples of a stretch."""
  record: dict[str, Any] = {}
  if file.has_video:
    rate = file.frame_rate_hz if isinstance(file, images.Stills) else FRAME_RATE_HZ
    encoded = []
    for image in _pictures(file, start, end, rate):
      _, jpeg = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
                             [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
      encoded.append(jpeg.tobytes())
    record |= dict(frames=encoded, frame_rate_hz=rate)
  sound = _sound(file, start, end)
  if sound is not None:
    record |= dict(sound=media.to_int16(sound).astype('<i2').tobytes(),
                   sound_hz=_audio_hz(file))
  return record


def _video(file: clip_lib.Media, start: float, end: float) -> dict[str, Any]:
  """A stretch as a film of its own; of sound alone, or a single picture, samples."""
  if not file.has_video or isinstance(file, images.Stills):
    return _frames(file, start, end)
  rate = fractions.Fraction(min(file.frame_rate_hz or _MAX_VIDEO_HZ, _MAX_VIDEO_HZ)
                            ).limit_denominator(1001)
  out = io.BytesIO()
  write_mp4.film(out, _pictures(file, start, end, float(rate)), rate,
              _sound(file, start, end), _audio_hz(file),
              # As good for little as for much: 8 kHz take no more than so many bits.
              min(_AUDIO_BIT_RATE, 2 * _audio_hz(file)), {
                  'preset': 'veryfast', 'crf': '23', 'g': str(math.ceil(rate))})
  return dict(media=out.getvalue())


def _audio_hz(file: clip_lib.Media) -> int:
  """The file's own rate, or the next higher one that there is."""
  return next((rate for rate in _AUDIO_RATES_HZ if rate >= file.audio_hz),
              _AUDIO_RATES_HZ[-1])


def _sound(file: clip_lib.Media, start: float, end: float) -> np.ndarray | None:
  """None if there is none, or, beside pictures, none that decodes: as in training."""
  rate = _audio_hz(file)
  try:
    return file.sound(start, max(round((end - start) * rate), 1), rate)
  except media.MediaError:
    if not file.has_video:
      raise
    return None


def _pictures(file: clip_lib.Media, start: float, end: float, rate_hz: float
              ) -> Iterator[np.ndarray]:
  """The pictures of a stretch at a steady rate, of short side 256 or as they are."""
  count = max(math.ceil((end - start) * rate_hz - 1e-6), 1)
  at_once = max(round(_CHUNK_SECONDS * rate_hz), 1)
  size = None
  for first in range(0, count, at_once):
    numbers = np.arange(first, min(first + at_once, count))
    for picture in file.frames(start + numbers / rate_hz):
      width, height = picture.size
      if size is None:    # all of a film are of one size, and even
        scale = min(SHORT_SIDE_PIXELS / min(width, height), 1)
        size = tuple(max(round(v * scale / 2) * 2, 2) for v in (width, height))
      yield picture.cut((0, 0, width, height), size)


def main() -> None:
  f = flags.FLAGS
  for name in ('source', 'out'):
    if not f[name].value:
      raise UserError(f'--{name}: missing')
  # By its own name, for that is how Beam's workers import it.
  from vatt_jax.tools import prepare as importable
  plan = importable.Plan(os.path.abspath(f.source), f.captions, f.form,
                         f.segment_seconds, f.clips_per_shard)
  print(importable.prepare(plan, pathlib.Path(f.out).absolute(), f.beam))


if __name__ == '__main__':
  flags.DEFINE_string('source', '', 'A folder, a manifest, or files of many clips.')
  flags.DEFINE_string('captions', '', 'Timed sentences beside it.')
  flags.DEFINE_string('out', '', 'The folder to write.')
  flags.DEFINE_string('form', 'video', f'One of {", ".join(FORMS)}.')
  flags.DEFINE_float('segment_seconds', 0.0, 'Longer clips become several; 0: none.')
  flags.DEFINE_integer('clips_per_shard', 64, "Of the source's clips.")
  flags.DEFINE_multi_string('beam', [], "One of Beam's own flags.")
  cli.run(main)
