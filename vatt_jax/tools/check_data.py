"""Reads a source from end to end and reports faulty clips.

    python -m vatt_jax check_data --source=FOLDER_OR_MANIFEST --captions=FILE \
        --vocabulary=FILE --config=configs/pretrain_folder.py

Decodes every frame and every audio sample of every clip. Prints a table, and below it
each clip that has a fault; `--json` prints all of it as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import json
import os
import pathlib
import time
from typing import Any

from absl import flags
from absl import logging
from ml_collections import config_flags
import numpy as np

from vatt_jax import cli
from vatt_jax import inherit
from vatt_jax.config import call
from vatt_jax.config import Settings
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip as clip_lib
from vatt_jax.inputs import media
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.window import Window

# Faults of a clip, in the order of the table.
FAULTS = {
    'broken': 'does not decode',
    'no_video': 'has no video',
    'no_audio': 'has no audio',
    'bad_audio': 'has audio that does not decode',
    'silent': 'has audio that is zero throughout',
    'no_text': 'has no caption',
    'short': 'is shorter than the window',
    'odd_frame_rate': 'has an odd frame rate'}
# A rate outside of this range is a slide show, or high speed.
_FRAME_RATES_HZ = (10.0, 120.0)
_AUDIO_HZ = 16_000
# Window length of configs/pretrain_folder.py, which is not part of the package.
WINDOW_SECONDS = 1.6
# A longer stretch of a video would not fit into memory.
_CHUNK_SECONDS = 5.0
_CHUNK_PIXELS = 2 ** 27
_THUMBNAIL = (32, 32)


@dataclasses.dataclass
class Finding:
  """Holds the contents and the faults of one clip.

  Attributes:
    path: path of its file, or name of its record.
    faults: key of `FAULTS` -> text.
    duration_seconds: duration of the clip; 0 if it is broken.
    num_captions: number of captions.
    num_words: number of words in all captions.
    num_unknown: number of these words outside the vocabulary.
  """
  path: str
  faults: dict[str, str] = dataclasses.field(default_factory=dict)
  duration_seconds: float = 0.0
  num_captions: int = 0
  num_words: int = 0
  num_unknown: int = 0


def check(clip: clip_lib.Clip, min_seconds: float,
          tokenizer: text.Tokenizer | None = None) -> Finding:
  """Decodes a whole clip and returns its faults.

  Args:
    clip: the clip to read.
    min_seconds: a shorter clip is `short`.
    tokenizer: counts unknown words; None counts none.
  """
  finding = Finding(clip.path, num_captions=len(clip.captions))
  for caption in clip.captions:
    unknown, total = (tokenizer.count_unknown(caption.text) if tokenizer else
                      (0, len(text.words(caption.text))))
    finding.num_words += total
    finding.num_unknown += unknown
  if not finding.num_words:
    finding.faults['no_text'] = FAULTS['no_text']
  try:
    with clip.open() as file:
      _check_media(clip, file, finding, min_seconds)
  except media.MediaError as e:
    finding.faults = {'broken': str(e).removeprefix(f'{clip.path}: ')}
    finding.duration_seconds = 0.0
  return finding


def _check_media(clip: clip_lib.Clip, file: clip_lib.Media, finding: Finding,
                 min_seconds: float) -> None:
  """Adds the faults of the media to a finding.

  Raises:
    MediaError: the video, or the only stream, does not decode.
  """
  end = clip.end_in(file)
  finding.duration_seconds = end - clip.start
  if finding.duration_seconds < min_seconds:
    finding.faults['short'] = (f'is {finding.duration_seconds:.2f} s long, less than '
                               f'{min_seconds:g} s')
  rate = file.frame_rate_hz
  if not file.has_video:
    finding.faults['no_video'] = FAULTS['no_video']
  elif not rate or not _FRAME_RATES_HZ[0] <= rate <= _FRAME_RATES_HZ[1]:
    finding.faults['odd_frame_rate'] = (f'has {rate:g} frames per second' if rate else
                                        'does not state its frame rate')
  if not file.has_audio:
    finding.faults['no_audio'] = FAULTS['no_audio']
  if file.has_video:
    _decode_video(file, clip.start, end,
                  min(rate or _FRAME_RATES_HZ[0], _FRAME_RATES_HZ[1]))
  try:
    if file.has_audio and not _decode_audio(file, clip.start, end):
      finding.faults['silent'] = FAULTS['silent']
  except media.MediaError as e:    # training masks the audio and uses the video
    if not file.has_video:
      raise
    finding.faults['bad_audio'] = str(e).removeprefix(f'{clip.path}: ')


def _decode_video(file: clip_lib.Media, start: float, end: float, rate_hz: float
                  ) -> None:
  """Decodes the frames between two times."""
  times = np.arange(start, end, 1 / rate_hz)
  while len(times):
    width, height = file.frames(times[:1])[0].size
    count = max(min(_CHUNK_PIXELS // (width * height),
                    round(_CHUNK_SECONDS * rate_hz)), 1)
    for frame in file.frames(times[:count]):
      frame.cut((0, 0, *frame.size), _THUMBNAIL)
    times = times[count:]


def _decode_audio(file: clip_lib.Media, start: float, end: float) -> bool:
  """Decodes the audio between two times; returns False if all of it is zero."""
  nonzero = False
  for now in np.arange(start, end, _CHUNK_SECONDS):
    num_samples = max(round(min(_CHUNK_SECONDS, end - now) * _AUDIO_HZ), 1)
    nonzero |= bool(np.any(file.audio(now, num_samples, _AUDIO_HZ)))
  return nonzero


def check_source(clips: Sequence[clip_lib.Clip], min_seconds: float,
                 tokenizer: text.Tokenizer | None = None) -> list[Finding]:
  """Checks every clip of a source in parallel threads."""
  def read(index):
    try:
      clip = clips[index]
    except media.MediaError as e:    # a malformed record
      return Finding(e.path, {'broken': str(e).removeprefix(f'{e.path}: ')})
    return check(clip, min_seconds, tokenizer)

  findings = []
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for finding in pool.map(read, range(len(clips))):
      findings.append(finding)
      if len(findings) % 1000 == 0:
        logging.info('%d of %d clips', len(findings), len(clips))
  return findings


def summarize(findings: list[Finding], seconds: float, knows_words: bool
              ) -> dict[str, Any]:
  """Computes the numbers of the table.

  Args:
    findings: the findings of all clips.
    seconds: the time that the check took.
    knows_words: whether words were compared with a vocabulary.
  """
  good = [f for f in findings if 'broken' not in f.faults]
  num_words = sum(f.num_words for f in findings)
  summary: dict[str, Any] = {'clips': len(findings)}
  summary |= {k: sum(k in f.faults for f in findings) for k in FAULTS}
  summary |= {f'duration_seconds/{k}': v for k, v in _spread(
      [f.duration_seconds for f in good]).items()}
  summary |= {f'captions_per_clip/{k}': v for k, v in _spread(
      [f.num_captions for f in findings]).items()}
  num_captions = sum(f.num_captions for f in findings)
  summary['words_per_caption'] = num_words / num_captions if num_captions else 0.0
  if knows_words:
    unknown = sum(f.num_unknown for f in findings)
    summary['unknown_words'] = unknown / num_words if num_words else 0.0
  # Seconds of video that all threads together decode in a second.
  summary['decode_speed'] = sum(f.duration_seconds for f in good) / max(seconds, 1e-9)
  summary['clips_per_second'] = len(findings) / max(seconds, 1e-9)
  return summary


def _spread(values: list[float]) -> dict[str, float]:
  if not values:
    return {}
  low, middle, high = np.percentile(values, [0, 50, 100])
  return dict(min=float(low), median=float(middle), max=float(high),
              mean=float(np.mean(values)), sum=float(np.sum(values)))


def as_text(summary: dict[str, Any], findings: list[Finding]) -> str:
  """Formats the table and the list of clips with faults."""
  width = max(map(len, summary))
  lines = []
  for key, value in summary.items():
    number = f'{value:.3f}' if isinstance(value, float) else str(value)
    lines.append(f'{key:{width}}  {number:>10}  {FAULTS.get(key, "")}'.rstrip())
  # A lack of text, audio or video in every clip is a property of the source.
  common = {k for k in ('no_video', 'no_audio', 'no_text')
            if summary[k] == summary['clips'] - summary['broken']}
  rows = [f'{f.path}: {"; ".join(v for k, v in f.faults.items() if k not in common)}'
          for f in findings if f.faults.keys() - common]
  return '\n'.join([*lines, *([''] if rows else []), *rows])


def least_seconds(config: Settings | None) -> float:
  """Returns the length of a config's window; None stands for `pretrain_folder`.

  Raises:
    UserError: the config has no window, or an invalid one.
  """
  if config is None:
    return WINDOW_SECONDS
  if 'window' not in config:
    raise UserError('config.window: missing; give a config that reads clips, or '
                    '--min_seconds')
  config = inherit.inherit(config, config.get('init_from', ''))
  return call('window', Window, config['window']).seconds


def main() -> None:
  f = flags.FLAGS
  if not f.source:
    raise UserError('--source: missing; give a folder of media files, a manifest, or '
                    'shards')
  min_seconds = f.min_seconds
  if min_seconds is None:
    min_seconds = least_seconds(f.config and f.config.to_dict())
  tokenizer = None
  if f.vocabulary:
    tokenizer = text.load(f.tokenizer, pathlib.Path(f.vocabulary), 2 ** 31 - 1, False)
  clips = sources.open_source(f.source, f.captions)
  began = time.perf_counter()
  findings = check_source(clips, min_seconds, tokenizer)
  summary = summarize(findings, time.perf_counter() - began, tokenizer is not None)
  if f.json:
    amiss = [dict(path=x.path, **x.faults) for x in findings if x.faults]
    print(json.dumps(summary | dict(amiss=amiss), indent=2))
  else:
    print(as_text(summary, findings))


if __name__ == '__main__':
  flags.DEFINE_string('source', '', 'A folder, a manifest, or shards.')
  flags.DEFINE_string('captions', '', 'A file of timed captions beside the source.')
  flags.DEFINE_string('vocabulary', '', 'Vocabulary file; counts unknown words.')
  flags.DEFINE_enum('tokenizer', 'words', list(text.TOKENIZERS),
                    'Kind of the vocabulary.')
  config_flags.DEFINE_config_file(
      'config', None, 'The config that will read the clips: clips shorter than its '
      'window count as short. Default: the window of configs/pretrain_folder.py.')
  flags.DEFINE_float('min_seconds', None, 'Least duration, in place of the window.')
  flags.DEFINE_bool('json', False, 'Print JSON, not a table.')
  cli.run(main)
