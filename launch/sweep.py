"""Runs a config once for every point of a grid, and writes all results to one table.

    python launch/sweep.py --config=configs/quickstart.py --out=runs/rates \
        --grid=optim.peak_rate=3e-4,1e-3 --grid=seed=0,1,2

runs the config six times, each in its own folder under `--out`. Values for all points
are set as in the main command, `--config.total_steps=500`.

    python launch/sweep.py --config=configs/quickstart.py --out=runs/over_time \
        --checkpoints=runs/quickstart

runs the config's `evals` with `--mode=eval` on every checkpoint of a run, or on one,
`--checkpoints=runs/quickstart/checkpoints/500`. Both flags can be repeated.

`results.csv` and `results.html` have a row for each point. The row of a failed point
has the last line of its log; the other points continue. The same command runs the
points that have no results yet or failed. With more values it adds points. `--launcher`
sets where the points run: on this machine, or as a Slurm array.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any
from typing import Protocol

from absl import flags
import jinja2
from ml_collections import config_flags

from vatt_jax import checkpoint
from vatt_jax import cli
from vatt_jax import metric_writer
from vatt_jax.distributed import interrupt
from vatt_jax.errors import UserError
from vatt_jax.evaluators import metrics

_POLL_SECONDS = 0.2
_LONGEST_NAME = 120
# Numbers of `results.json` that are not metrics of the model; they are only in the CSV.
_BESIDE = re.compile(r'(^|/)chance_|_random_init$|_std$|^input/|^step$')


@dataclasses.dataclass(frozen=True)
class Point:
  """Describes one run of the config.

  Attributes:
    number: its index in `sweep.json`.
    values: key -> value, as on the command line.
    arguments: the arguments of the main command.
    workdir: the run's workdir.
    results: the file that the run writes at its end.
  """
  number: int
  values: dict[str, str]
  arguments: list[str]
  workdir: str
  results: str

  @property
  def log(self) -> pathlib.Path:
    return pathlib.Path(self.workdir) / 'log.txt'

  def read_results(self) -> dict[str, Any] | None:
    """Returns the results, name -> number; None if the run has not finished."""
    try:
      return json.loads(pathlib.Path(self.results).read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):    # no file yet, or an incomplete one
      return None


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
  """Parses `KEY=VALUE,VALUE` texts; commas within brackets do not separate values.

  Raises:
    UserError: invalid syntax, or a repeated key or value.
  """
  grid: dict[str, list[str]] = {}
  for text in texts:
    key, equals, values = text.partition('=')
    if not (key and equals):
      raise UserError(f'--grid={text}: expected KEY=VALUE,VALUE,...')
    listed = re.split(r',(?![^(\[{]*[)\]}])', values)
    if key in grid or len(set(listed)) < len(listed):
      raise UserError(f'--grid={text}: repeated; expected every key and every value '
                      'once')
    grid[key] = listed
  return grid


def check_grid(config_file: str, grid: Mapping[str, Sequence[str]]) -> None:
  """Raises UserError unless the config has the keys and accepts the values."""
  for key, values in grid.items():
    for value in values:
      argv = ['sweep', f'--config={config_file}', f'--config.{key}={value}']
      flag_values = flags.FlagValues()
      config_flags.DEFINE_config_file('config', None, '', flag_values, sys_argv=argv)
      cli.parse(argv, flag_values)


def list_checkpoints(paths: Sequence[str]) -> list[str]:
  """Returns the paths, with every workdir replaced by the paths of all its steps.

  Raises:
    UserError: a workdir holds no checkpoint, or a path does not exist.
  """
  listed = []
  for path in paths:
    folder, step = checkpoint.split(path)
    if step is None and (folder / checkpoint.CONFIG_FILE).exists():
      steps = checkpoint.steps(folder)
      if not steps:
        raise UserError(f'{folder}: holds no checkpoint yet')
      listed += [str(checkpoint.of_step(folder, step)) for step in steps]
    elif any(pathlib.Path(path).parent.glob(f'{pathlib.Path(path).name}*')):
      listed.append(path)    # a released checkpoint is a prefix of several file names
    else:
      raise UserError(f'--checkpoints={path}: no such workdir or checkpoint')
  return listed


def plan(out: pathlib.Path, config_file: str, arguments: Sequence[str],
         grid: Mapping[str, Sequence[str]]) -> list[Point]:
  """Returns every point of a sweep: the points in `sweep.json`, then new ones.

  Args:
    out: the sweep's folder; `sweep.json` in it is updated.
    config_file: the config file and its switches.
    arguments: the arguments of the main command that all points share.
    grid: key -> values.

  Raises:
    UserError: the folder holds a sweep of another config or other arguments.
  """
  path = out / 'sweep.json'
  common = [f'--config={config_file}', *arguments]
  points = []
  if path.exists():
    saved = json.loads(path.read_text(encoding='utf-8'))
    if saved['common'] != common:
      raise UserError(f'{out}: holds a sweep of {shlex.join(saved["common"])}, but '
                      f'this is one of {shlex.join(common)}; choose another --out')
    points = [Point(**point) for point in saved['points']]
  existing = [point.values for point in points]
  for values in itertools.product(*grid.values()):
    chosen = dict(zip(grid, values, strict=True))
    if chosen in existing:
      continue
    workdir = out / _file_name(chosen)
    results = workdir
    if '--mode=eval' in arguments:
      results = workdir / 'eval' / cli.run_name(config_file)
    points.append(Point(
        len(points), chosen,
        [*common, *(f'--config.{k}={v}' for k, v in chosen.items()),
         f'--workdir={workdir}'], str(workdir),
        str(results / metric_writer.RESULTS_FILE)))
  out.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(dict(
      common=common, points=[dataclasses.asdict(p) for p in points]), indent=2) + '\n',
                     encoding='utf-8')
  partial.rename(path)
  return points


def read_point(out: pathlib.Path, number: int) -> Point:
  """Reads a point of `sweep.json`."""
  plan = json.loads((out / 'sweep.json').read_text(encoding='utf-8'))
  return Point(**plan['points'][number])


def _title(values: Mapping[str, str]) -> str:
  return ','.join(f'{key}={value}' for key, value in values.items())


def _file_name(values: Mapping[str, str]) -> str:
  """Returns a unique file name: the title, shortened and without special characters."""
  title = _title(values)
  name = re.sub(r'[^\w.,=+-]+', '_', title)[:_LONGEST_NAME]
  if name != title:
    name += '-' + hashlib.sha256(title.encode()).hexdigest()[:8]
  return name


class Launcher(Protocol):
  """Runs points somewhere."""

  def run(self, points: Sequence[Point]) -> Iterator[Point]:
    """Runs points, and yields each when it has ended or failed."""


class Local:
  """Runs points on this machine; those that still run at the end are terminated."""

  def __init__(self, jobs: int, check: Callable[[], None]):
    """Sets the number of points at a time, and a check.

    Args:
      jobs: the number of points that run at the same time.
      check: called while points run; may raise to stop them.
    """
    self._jobs, self._check = jobs, check

  def run(self, points: Sequence[Point]) -> Iterator[Point]:
    waiting, running = collections.deque(points), {}
    try:
      while waiting or running:
        self._check()
        while waiting and len(running) < self._jobs:
          point = waiting.popleft()
          running[point.number] = point, _start(point)
        ended = [n for n, (_, process) in running.items() if process.poll() is not None]
        for number in ended:
          yield running.pop(number)[0]
        if not ended:
          time.sleep(_POLL_SECONDS)
    finally:
      for _, process in running.values():
        process.terminate()
      for _, process in running.values():
        process.wait()


def _start(point: Point) -> subprocess.Popen:
  """Starts a point, with its output in its log.

  It runs in its own session, so that Ctrl-C reaches it once, through this process.
  """
  point.log.parent.mkdir(parents=True, exist_ok=True)
  with point.log.open('a', encoding='utf-8') as log:
    return subprocess.Popen(
        [sys.executable, '-m', 'vatt_jax.main', *point.arguments],
        stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        start_new_session=True)


class Slurm:
  """Runs points as a Slurm array; returns when the whole array has ended."""

  def __init__(self, out: pathlib.Path, jobs: int | None, options: Sequence[str],
               check: Callable[[], None]):
    """Sets the sweep's folder, the number of points at a time and sbatch options."""
    if shutil.which('sbatch') is None:
      raise UserError('sbatch: no such program here; choose another --launcher, or use '
                      'a machine that has it')
    self._out, self._jobs, self._options, self._check = out, jobs, options, check

  def run(self, points: Sequence[Point]) -> Iterator[Point]:
    script = self._out / 'slurm.sh'
    script.write_text(self._script(points), encoding='utf-8')
    # sbatch prints to the terminal. Its status is not used: it fails if a point fails.
    process = subprocess.Popen(['sbatch', '--wait', str(script)],
                               start_new_session=True)
    try:
      while process.poll() is None:
        self._check()
        time.sleep(_POLL_SECONDS)
    finally:
      process.terminate()    # ends only the waiting; scancel ends the array
    yield from points

  def _script(self, points: Sequence[Point]) -> str:
    tasks = ','.join(str(point.number) for point in points)
    if self._jobs:
      tasks += f'%{self._jobs}'
    options = [f'--array={tasks}', f'--output={self._out / "slurm-%A_%a.txt"}',
               '--signal=B:TERM@120',    # leaves 120 s for a last checkpoint
               *self._options]
    command = shlex.join([sys.executable, str(pathlib.Path(__file__).resolve()),
                          f'--out={self._out}'])
    return ('#!/usr/bin/env bash\n'
            + ''.join(f'#SBATCH {shlex.quote(option)}\n' for option in options)
            + f'exec {command} --point="$SLURM_ARRAY_TASK_ID"\n')


@dataclasses.dataclass(frozen=True)
class Row:
  """Holds the outcome of a point: `status` is done, failed or open."""
  point: Point
  status: str
  error: str
  results: dict[str, Any]


def read_row(point: Point, still_open: bool) -> Row:
  """Reads the outcome of a point from its results or its log."""
  results = point.read_results()
  if results is not None:
    return Row(point, 'done', '', results)
  if still_open:
    return Row(point, 'open', '', {})
  lines = (point.log.read_text(encoding='utf-8', errors='replace').split('\n')
           if point.log.exists() else [])
  last = next((line for line in reversed(lines) if line.strip()), 'it never started')
  return Row(point, 'failed', last, {})


def write_tables(out: pathlib.Path, rows: Sequence[Row]) -> None:
  """Writes `results.csv` and `results.html`."""
  keys = list(dict.fromkeys(k for row in rows for k in row.point.values))
  names = list(dict.fromkeys(k for row in rows for k in row.results))
  with (out / 'results.csv').open('w', newline='', encoding='utf-8') as file:
    table = csv.DictWriter(file, [*keys, 'status', 'error', 'workdir', *names])
    table.writeheader()
    table.writerows(
        row.point.values | row.results | dict(
            status=row.status, error=row.error, workdir=row.point.workdir)
        for row in rows)
  measures = [n for n in names if not _BESIDE.search(n) and all(
      isinstance(row.results.get(n, 0.0), (int, float)) for row in rows)]
  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
      autoescape=True, trim_blocks=True, lstrip_blocks=True)
  page = environment.get_template('sweep.html.jinja').render(
      title=out.name, keys=keys, measures=measures,
      rows=list(zip(rows, mark([[row] for row in rows], measures), strict=True)),
      groups=_over_seeds(rows, keys, measures))
  (out / 'results.html').write_text(page, encoding='utf-8')


def mark(groups: Sequence[Sequence[Row]], measures: Sequence[str]
         ) -> list[list[tuple[str, bool]]]:
  """Returns (mean ± sample deviation, is it the best?) for each group and metric."""
  values = [{m: [row.results[m] for row in rows if m in row.results] for m in measures}
            for rows in groups]
  means = [{m: statistics.mean(x) for m, x in group.items() if x} for group in values]
  best = {m: (min if _less_is_better(m) else max)(
      (mean[m] for mean in means if m in mean), default=None) for m in measures}

  def text(x):
    spread = f' ± {statistics.stdev(x):.2g}' if len(x) > 1 else ''
    return f'{statistics.mean(x):.4g}{spread}' if x else ''

  return [[(text(group[m]), m in mean and mean[m] == best[m]) for m in measures]
          for group, mean in zip(values, means, strict=True)]


def _less_is_better(measure: str) -> bool:
  """Returns whether the lowest value is the best; False for unknown metrics."""
  metric = metrics.find(measure)
  return metric is not None and metric.higher_is_better is False


def _over_seeds(rows: Sequence[Row], keys: Sequence[str], measures: Sequence[str]
                ) -> list[tuple[tuple[str, ...], int, list[tuple[str, bool]]]]:
  """Groups points by all keys but `seed`; empty if the grid has no seeds.

  Returns:
    (values of the other keys, number of finished seeds, cells) of each group.
  """
  if 'seed' not in keys:
    return []
  groups: dict[tuple[str, ...], list[Row]] = {}
  for row in rows:
    others = tuple(row.point.values.get(k, '') for k in keys if k != 'seed')
    groups.setdefault(others, []).append(row)
  done = [[row for row in group if row.results] for group in groups.values()]
  return [(others, len(group), cells) for others, group, cells in
          zip(groups, done, mark(done, measures), strict=True)]


def sweep(points: Sequence[Point], out: pathlib.Path, launcher: Launcher) -> int:
  """Runs unfinished points and updates the tables.  -> the number of failed points."""
  waiting = {p.number: p for p in points if p.read_results() is None}
  print(f'{len(points)} points, {len(points) - len(waiting)} of them done', flush=True)

  def write():
    rows = [read_row(point, point.number in waiting) for point in points]
    write_tables(out, rows)
    return rows

  write()
  for point in launcher.run(list(waiting.values())):
    del waiting[point.number]
    row = write()[point.number]
    print(f'{_title(point.values)}: {row.status} {row.error}'.rstrip(), flush=True)
  return sum(row.status == 'failed' for row in write())


def _launcher(out: pathlib.Path, check: Callable[[], None]) -> Launcher:
  f = flags.FLAGS
  if f.launcher == 'slurm':
    return Slurm(out, f.jobs, f.sbatch, check)
  return Local(f.jobs or 1, check)


def _plan(out: pathlib.Path) -> list[Point]:
  """Returns the points that the command line requests."""
  f = flags.FLAGS
  if f.config is None:
    raise UserError('--config: missing; set it to a file of configs/')
  config_file = config_flags.get_config_filename(f['config'])
  overrides = config_flags.get_override_values(f['config'])
  arguments = [f'--config.{key}={value}' for key, value in overrides.items()]
  grid = parse_grid(f.grid)
  if f.checkpoints:
    grid = {'init_from': list_checkpoints(f.checkpoints)} | grid
    arguments.append('--mode=eval')
    if f.allow_random_head:
      arguments.append('--allow_random_head')
  if not grid:
    raise UserError('--grid, --checkpoints: both missing; set the values to vary')
  check_grid(config_file, grid)
  return plan(out, config_file, arguments, grid)


def main() -> None:
  f = flags.FLAGS
  if not f.out:
    raise UserError("--out: missing; set it to the sweep's folder")
  out = pathlib.Path(f.out)
  with interrupt.Interrupt() as stop:
    if f.point is not None:
      point = read_point(out, f.point)
      list(Local(1, stop.check).run([point]))
      sys.exit(int(point.read_results() is None))
    points = _plan(out)
    failed = sweep(points, out, _launcher(out, stop.check))
  print(f'Results: {out / "results.csv"}, {out / "results.html"}')
  if failed:
    print(f'{failed} of {len(points)} points failed; the same command retries them',
          file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  sys.path.insert(0, '')    # like `python -m`: config files import each other
  config_flags.DEFINE_config_file('config', None, 'The config, a file of configs/.')
  flags.DEFINE_string('out', None, "The sweep's folder.")
  flags.DEFINE_multi_string(
      'grid', [], 'KEY=VALUE,VALUE,... of the config; repeated flags form a product.')
  flags.DEFINE_multi_string(
      'checkpoints', [], 'Checkpoints to evaluate: a workdir (all its steps), '
      'WORKDIR/checkpoints/STEP, or a released checkpoint.')
  flags.DEFINE_bool('allow_random_head', False,
                    'With --checkpoints: as in the main command.')
  flags.DEFINE_enum('launcher', 'local', ['local', 'slurm'], 'Where the points run.')
  flags.DEFINE_integer(
      'jobs', None, 'The number of points that run at the same time (local: 1; slurm: '
      'unlimited).', lower_bound=1)
  flags.DEFINE_multi_string(
      'sbatch', [], 'An option of sbatch for every point, --sbatch=--gres=gpu:1.')
  flags.DEFINE_integer('point', None,
                       'Run only this point of --out; used by Slurm tasks.')
  cli.run(main)
