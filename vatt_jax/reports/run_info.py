"""Facts about a run for its report: when, how, where and on which clips it ran."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from typing import Any

import jax

from vatt_jax.inputs import sources
from vatt_jax.inputs.clip import Clip

FILE_NAME = 'run_info.json'
_ROOT = pathlib.Path(__file__).parents[2]
_GIT_SECONDS = 10.0    # on a slow network disk


@dataclasses.dataclass(frozen=True)
class Measured:
  """Describes the clips of an evaluation.

  Attributes:
    clips: how many there are.
    also_trained: how many of them overlap with a clip that the run trains on; None
      where that cannot be told.
  """
  clips: int
  also_trained: int | None

  def __str__(self) -> str:
    count = _count(self.clips)
    if self.also_trained is None:
      return f'{count}, not compared with the training clips: records name no files'
    if not self.also_trained:
      return f'{count}, held out'
    if self.also_trained == self.clips:
      return f'{count}, the very clips trained on'
    return f'{count}, {self.also_trained:,} of them also trained on'


@dataclasses.dataclass(frozen=True)
class RunInfo:
  """Holds the facts about a run.

  Attributes:
    date: the start, ISO 8601 with the zone.
    command: the command line.
    code: the commit of a checkout, or else the version of the package.
    device: kind and number of the devices.
    first_step: the step it began with; not 0 for a run that goes on.
    init_from: the checkpoint it began with; empty for random weights.
    clips: how many it trains on; 0 where nothing is trained.
    evaluations: name -> the clips that are evaluated.
  """
  date: str
  command: str
  code: str
  device: str
  first_step: int
  init_from: str
  clips: int
  evaluations: Mapping[str, Measured]

  def facts(self) -> Iterator[tuple[str, str]]:
    """Yields name and text of each fact, for people."""
    date = datetime.datetime.fromisoformat(self.date).strftime('%Y-%m-%d %H:%M %Z')
    goes_on = f', resumed at step {self.first_step:,}' if self.first_step else ''
    yield 'Started', date + goes_on
    yield 'Command', self.command
    yield 'Code', self.code
    yield 'Device', self.device
    if self.init_from:
      yield 'Initial weights', self.init_from
    yield 'Training clips', f'{self.clips:,}' if self.clips else 'none in this run'
    for name, measured in self.evaluations.items():
      yield f'Evaluation: {name}', (
          str(measured) if self.clips else _count(measured.clips))


def gather(config: Mapping[str, Any], first_step: int, training: sources.Mixture,
           evaluators: Mapping[str, Any]) -> RunInfo:
  """Gathers the facts at the start of a run.

  Args:
    config: of the run.
    first_step: the step it begins with.
    training: the clips of `config.data`.
    evaluators: name -> evaluator; its `measured` are the clips.
  """
  trained = training if config['total_steps'] else sources.Mixture([])
  evaluations = {
      name: Measured(len(e.measured), _count_overlap(e.measured, trained))
      for name, e in evaluators.items()}
  return RunInfo(
      datetime.datetime.now().astimezone().isoformat(timespec='seconds'), _command(),
      _code(), _device(), first_step, config.get('init_from', ''), len(trained),
      evaluations)


def save(workdir: pathlib.Path, info: RunInfo) -> None:
  """Writes the facts into a workdir, in place of those of an earlier start."""
  (workdir / FILE_NAME).write_text(
      json.dumps(dataclasses.asdict(info), indent=2) + '\n', encoding='utf-8')


def read(workdir: pathlib.Path) -> RunInfo | None:
  """Reads the facts of a workdir; None for a run of an older version without them."""
  path = workdir / FILE_NAME
  if not path.exists():
    return None
  given = json.loads(path.read_text(encoding='utf-8'))
  evaluations = {k: Measured(**v) for k, v in given.pop('evaluations').items()}
  return RunInfo(**given, evaluations=evaluations)


def _count(clips: int) -> str:
  return f'{clips:,} {"clip" if clips == 1 else "clips"}'


def _command() -> str:
  interpreter, *arguments = sys.orig_argv
  return shlex.join([pathlib.Path(interpreter).name, *arguments])


def _code() -> str:
  """Returns the commit of the package's own checkout, or else its version."""
  try:
    folder = pathlib.Path(_git('rev-parse', '--show-toplevel'))
    if folder.samefile(_ROOT):
      changed = _git('status', '--porcelain', '--untracked-files=no')
      return f'commit {_git("rev-parse", "--short=10", "HEAD")}' + (
          ', with uncommitted changes' if changed else '')
  except (OSError, subprocess.SubprocessError):    # no git, or no checkout
    pass
  try:
    return f'version {importlib.metadata.version("vatt_jax")}'
  except importlib.metadata.PackageNotFoundError:
    return 'unknown version'


def _git(*arguments: str) -> str:
  return subprocess.run(['git', '-C', _ROOT, *arguments], check=True, text=True,
                        capture_output=True, timeout=_GIT_SECONDS).stdout.strip()


def _device() -> str:
  device, processes = jax.devices()[0], jax.process_count()
  if device.platform == 'cpu':
    text = f'{_processor()}, {os.cpu_count()} cores'
  else:
    text = f'{device.device_kind}, {jax.device_count()} devices'
  return text + (f', {processes} processes' if processes > 1 else '')


def _processor() -> str:
  """Returns the model of the CPU, as far as the system tells."""
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    model = re.search(r'^model name\s*:\s*(.+)$', cpuinfo.read_text(), re.MULTILINE)
    if model:
      return model[1].strip()
  return platform.processor() or platform.machine()


def _count_overlap(clips: Sequence[Clip], training: sources.Mixture) -> int | None:
  """Returns how many clips share a stretch of a file with a training clip.

  None where records are among them, unless both are the same source.
  """
  asked, trained = _spans(clips), _spans(training)
  if asked is None or trained is None:
    same = any(_is_same(clips, part) for part in (training, *training.parts))
    return len(clips) if same else None
  # Millions of clips may be trained on: only what has a name asked for is resolved.
  names = {os.path.basename(path) for path, _, _ in asked}
  known: dict[str, list[tuple[float, float]]] = {}
  for path, start, end in trained:
    if os.path.basename(path) in names:
      known.setdefault(os.path.realpath(path), []).append((start, end))
  return sum(any(start < their_end and their_start < end
                 for their_start, their_end in known.get(os.path.realpath(path), ()))
             for path, start, end in asked)


def _is_same(clips: Sequence[Clip], others: Sequence[Clip]) -> bool:
  """Returns whether two sources have one size and one first record."""
  return 0 < len(clips) == len(others) and (
      next(sources.each(clips)).path == next(sources.each(others)).path)


def _spans(clips: Sequence[Clip]) -> list[tuple[str, float, float]] | None:
  """Returns file, start and end of each clip; None if some are in records."""
  if isinstance(clips, sources.Mixture):
    parts = [_spans(part) for part in clips.parts]
    return None if None in parts else [span for part in parts for span in part]
  if isinstance(clips, sources.Captioned):
    return _spans(clips.plain)
  if isinstance(clips, list):
    return [(clip.path, clip.start, clip.end) for clip in clips]
  return None
