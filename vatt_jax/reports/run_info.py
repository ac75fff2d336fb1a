"""Records facts about a run for its report: date, command, device and clips."""

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
    clips: number of clips.
    also_trained: number of them that overlap with a training clip; None if unknown.
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
      return f'{count}, the same clips as in training'
    return f'{count}, {self.also_trained:,} of them also trained on'


@dataclasses.dataclass(frozen=True)
class RunInfo:
  """Holds the facts about a run.

  Attributes:
    date: start of the run, ISO 8601 with the time zone.
    command: the command line.
    code: commit of the checkout, or else the version of the package.
    device: kind and number of the devices.
    first_step: step at the start; not 0 for a resumed run.
    init_from: checkpoint of the initial weights; empty for random weights.
    clips: number of training clips; 0 without training.
    evaluations: name -> clips of the evaluation.
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
    """Yields the name and the readable text of each fact."""
    date = datetime.datetime.fromisoformat(self.date).strftime('%Y-%m-%d %H:%M %Z')
    resumed = f', resumed at step {self.first_step:,}' if self.first_step else ''
    yield 'Started', date + resumed
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
    config: config of the run.
    first_step: step at the start.
    training: clips of `config.data`.
    evaluators: name -> evaluator; its `measured` holds its clips.
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
  """Writes the facts to a workdir; replaces those of an earlier start."""
  (workdir / FILE_NAME).write_text(
      json.dumps(dataclasses.asdict(info), indent=2) + '\n', encoding='utf-8')


def read(workdir: pathlib.Path) -> RunInfo | None:
  """Reads the facts of a workdir; returns None for a run of an older version."""
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
  """Returns the model of the CPU if the system reports it."""
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    model = re.search(r'^model name\s*:\s*(.+)$', cpuinfo.read_text(), re.MULTILINE)
    if model:
      return model[1].strip()
  return platform.processor() or platform.machine()


def _count_overlap(clips: Sequence[Clip], training: sources.Mixture) -> int | None:
  """Counts the clips that overlap with a training clip in the same file.

  Returns None if some clips are records, unless both sources are the same.
  """
  evaluated, trained = _spans(clips), _spans(training)
  if evaluated is None or trained is None:
    same = any(_is_same(clips, part) for part in (training, *training.parts))
    return len(clips) if same else None
  # Training may use millions of clips: resolve only paths with a matching file name.
  names = {os.path.basename(path) for path, _, _ in evaluated}
  spans_by_path: dict[str, list[tuple[float, float]]] = {}
  for path, start, end in trained:
    if os.path.basename(path) in names:
      spans_by_path.setdefault(os.path.realpath(path), []).append((start, end))
  return sum(any(start < other_end and other_start < end
                 for other_start, other_end in spans_by_path.get(
                     os.path.realpath(path), ()))
             for path, start, end in evaluated)


def _is_same(clips: Sequence[Clip], others: Sequence[Clip]) -> bool:
  """Returns whether two sources have the same size and the same first record."""
  return 0 < len(clips) == len(others) and (
      next(sources.each(clips)).path == next(sources.each(others)).path)


def _spans(clips: Sequence[Clip]) -> list[tuple[str, float, float]] | None:
  """Returns file, start and end of each clip; None if some clips are records."""
  if isinstance(clips, sources.Mixture):
    parts = [_spans(part) for part in clips.parts]
    return None if None in parts else [span for part in parts for span in part]
  if isinstance(clips, sources.Captioned):
    return _spans(clips.plain)
  if isinstance(clips, list):
    return [(clip.path, clip.start, clip.end) for clip in clips]
  return None
