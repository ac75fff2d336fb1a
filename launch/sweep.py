"""Runs a recipe once for every point of a grid, and puts the results in one table.

    python launch/sweep.py --config=configs/quickstart.py --out=runs/rates \
        --grid=optim.peak_rate=3e-4,1e-3 --grid=seed=0,1,2

runs the recipe six times, each in a folder of its own under `--out`. What holds for
all of them is given as to the main command, `--config.total_steps=500`.

    python launch/sweep.py --config=configs/quickstart.py --out=runs/over_time \
        --checkpoints=runs/quickstart

runs the recipe's `evals` with `--mode=eval` on every checkpoint of a run; or on one,
`--checkpoints=runs/quickstart/checkpoints/500`. Both flags may be there several times.

`results.csv` and `results.html` hold a row for each point. One that fails is a row
too, with its last words, and the others go on. The same command runs what has no
results yet, and again what failed; with more values it adds points. `--launcher` says
where the points run: here, as an array of Slurm's, or on Cloud TPU virtual machines.
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
# What stands beside a measure in `results.json`, and is in the CSV alone.
_BESIDE = re.compile(r'(^|/)chance_|_random_init$|_std$|^input/|^step$')


@dataclasses.dataclass(frozen=True)
class Point:
  """One run of the recipe.

  Attributes:
    number: its place in `sweep.json`.
    values: key -> value, as given.
    arguments: of the main command.
    workdir: of the run.
    results: the file that it writes when it is done.
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
    """Flat names to numbers; None if it is not done."""
    try:
      return json.loads(pathlib.Path(self.results).read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):    # none yet, or half of it
      return None


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
  """`KEY=VALUE,VALUE` of each text; commas within brackets divide nothing.

  Raises:
    UserError: no such thing, or a key or a value twice.
  """
  grid: dict[str, list[str]] = {}
  for text in texts:
    key, equals, values = text.partition('=')
    if not (key and equals):
      raise UserError(f'--grid={text}: expected KEY=VALUE,VALUE,...')
    listed = re.split(r',(?![^(\[{]*[)\]}])', values)
    if key in grid or len(set(listed)) < len(listed):
      raise UserError(f'--grid={text}: expected every key and every value once')
    grid[key] = listed
  return grid


def check_grid(recipe: str, grid: Mapping[str, Sequence[str]]) -> None:
  """Raises UserError unless the recipe has the keys, and takes the values."""
  for key, values in grid.items():
    for value in values:
      argv = ['sweep', f'--config={recipe}', f'--config.{key}={value}']
      flag_values = flags.FlagValues()
      config_flags.DEFINE_config_file('config', None, '', flag_values, sys_argv=argv)
      cli.parse(argv, flag_values)


def list_checkpoints(paths: Sequence[str]) -> list[str]:
  """The paths, in place of a workdir those of all its steps.

  Raises:
    UserError: a workdir holds none, or there is no such path.
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
      listed.append(path)    # the release's is the beginning of several files' names
    else:
      raise UserError(f'--checkpoints={path}: no such workdir or checkpoint')
  return listed


def plan(out: pathlib.Path, recipe: str, arguments: Sequence[str],
         grid: Mapping[str, Sequence[str]]) -> list[Point]:
  """Every point of a sweep: those that `sweep.json` holds, and those of a grid.

  Args:
    out: the sweep's folder; `sweep.json` in it is brought up to date.
    recipe: its file, and switches.
    arguments: of the main command, which all points share.
    grid: key -> values.

  Raises:
    UserError: the folder holds a sweep of another recipe or other arguments.
  """
  path = out / 'sweep.json'
  common = [f'--config={recipe}', *arguments]
  points = []
  if path.exists():
    theirs = json.loads(path.read_text(encoding='utf-8'))
    if theirs['common'] != common:
      raise UserError(f'{out}: holds a sweep of {shlex.join(theirs["common"])}, and '
                      f'this is one of {shlex.join(common)}; choose another --out')
    points = [Point(**point) for point in theirs['points']]
  known = [point.values for point in points]
  for values in itertools.product(*grid.values()):
    chosen = dict(zip(grid, values, strict=True))
    if chosen in known:
      continue
    workdir = out / _file_name(chosen)
    results = workdir
    if '--mode=eval' in arguments:
      results = workdir / 'eval' / cli.recipe_name(recipe)
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
  """A point of `sweep.json`."""
  plan = json.loads((out / 'sweep.json').read_text(encoding='utf-8'))
  return Point(**plan['points'][number])


def _title(values: Mapping[str, str]) -> str:
  return ','.join(f'{key}={value}' for key, value in values.items())


def _file_name(values: Mapping[str, str]) -> str:
  """The title, if need be shortened and without odd characters, but unlike others."""
  title = _title(values)
  name = re.sub(r'[^\w.,=+-]+', '_', title)[:_LONGEST_NAME]
  if name != title:
    name += '-' + hashlib.sha256(title.encode()).hexdigest()[:8]
  return name


class Launcher(Protocol):
  """Where points run."""

  def run(self, points: Sequence[Point]) -> Iterator[Point]:
    """Runs points, and yields each when it has ended, well or not."""


class Local:
  """On this machine, so many at once."""

  def __init__(self, jobs: int, check: Callable[[], None]):
    """Takes `check`, which is called while points run and may raise to stop them."""
    self._jobs, self._check = jobs, check

  def run(self, points: Sequence[Point]) -> Iterator[Point]:
    def start(point, slot):
      return _start([sys.executable, '-m', 'vatt_jax.main', *point.arguments], point)

    for point, _, _ in _work_through(points, range(self._jobs), start, self._check):
      yield point


class Slurm:
  """As an array of Slurm's; returns when all of it has ended."""

  def __init__(self, out: pathlib.Path, jobs: int | None, options: Sequence[str],
               check: Callable[[], None]):
    """Takes the sweep's folder, how many run at once, options of sbatch."""
    _need('sbatch')
    self._out, self._jobs, self._options, self._check = out, jobs, options, check

  def run(self, points: Sequence[Point]) -> Iterator[Point]:
    script = self._out / 'slurm.sh'
    script.write_text(self._script(points), encoding='utf-8')
    # Its own words are for the terminal; it fails if one point fails.
    process = subprocess.Popen(['sbatch', '--wait', str(script)],
                               start_new_session=True)
    try:
      while process.poll() is None:
        self._check()
        time.sleep(_POLL_SECONDS)
    finally:
      process.terminate()    # ends the waiting; scancel ends the array
    yield from points

  def _script(self, points: Sequence[Point]) -> str:
    tasks = ','.join(str(point.number) for point in points)
    if self._jobs:
      tasks += f'%{self._jobs}'
    options = [f'--array={tasks}', f'--output={self._out / "slurm-%A_%a.txt"}',
               '--signal=B:TERM@120',    # seconds for a last checkpoint
               *self._options]
    command = shlex.join([sys.executable, str(pathlib.Path(__file__).resolve()),
                          f'--out={self._out}'])
    return ('#!/usr/bin/env bash\n'
            + ''.join(f'#SBATCH {shlex.quote(option)}\n' for option in options)
            + f'exec {command} --point="$SLURM_ARRAY_TASK_ID"\n')


class Tpu:
  """On Cloud TPU virtual machines, one point at a time on each.

  The files that a recipe names must be there. The results are fetched, checkpoints
  stay there: a point that failed begins anew if it comes to another machine, unless
  `--out` is on a disk that they share. One that is interrupted here may run on there.
  """

  def __init__(self, names: Sequence[str], zone: str | None, checkout: str,
               check: Callable[[], None]):
    """Takes the machines, and the folder of this project on them."""
    _need('gcloud')
    if not (names and zone):
      raise UserError('--launcher=tpu: needs --tpu=NAME,NAME,... and --zone=ZONE')
    self._names, self._zone, self._check = names, zone, check
    self._checkout = pathlib.PurePosixPath(checkout)

  def run(self, points: Sequence[Point]) -> Iterator[Point]:
    for point, name, status in _work_through(points, self._names, self._start,
                                             self._check):
      if status == 0 and point.read_results() is None:
        self._fetch(point, name)
      yield point

  def _start(self, point: Point, name: str) -> subprocess.Popen:
    command = shlex.join(['env', '-C', str(self._checkout), '.venv/bin/python', '-m',
                          'vatt_jax.main', *point.arguments])
    return _start(self._gcloud('ssh', name, '--worker=all', f'--command={command}'),
                  point)

  def _fetch(self, point: Point, name: str) -> None:
    results = pathlib.Path(point.results)
    results.parent.mkdir(parents=True, exist_ok=True)
    _start(self._gcloud('scp', f'{name}:{self._checkout / results}', str(results),
                        '--worker=0'), point).wait()

  def _gcloud(self, verb: str, *arguments: str) -> list[str]:
    return ['gcloud', 'compute', 'tpus', 'tpu-vm', verb, *arguments,
            f'--zone={self._zone}', '--quiet']


def _need(program: str) -> None:
  if shutil.which(program) is None:
    raise UserError(f'{program}: no such program here; choose another --launcher, or '
                    'a machine that has it')


def _start(argv: Sequence[str], point: Point) -> subprocess.Popen:
  """Starts a command that writes to the point's log.

  In a session of its own: of Ctrl-C it hears through us, once.
  """
  point.log.parent.mkdir(parents=True, exist_ok=True)
  with point.log.open('a', encoding='utf-8') as log:
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log,
                            stderr=subprocess.STDOUT, start_new_session=True)


def _work_through(points: Sequence[Point], slots: Sequence[Any],
                  start: Callable[[Point, Any], subprocess.Popen],
                  check: Callable[[], None]) -> Iterator[tuple[Point, Any, int]]:
  """Runs points, one at a time in each slot; yields point, slot and exit status.

  What still runs when this ends is asked to stop, and waited for.
  """
  waiting, running = collections.deque(points), {}
  try:
    while waiting or running:
      check()
      for slot in slots:
        if waiting and slot not in running:
          point = waiting.popleft()
          running[slot] = point, start(point, slot)
      ended = [s for s, (_, process) in running.items() if process.poll() is not None]
      for slot in ended:
        point, process = running.pop(slot)
        yield point, slot, process.returncode
      if not ended:
        time.sleep(_POLL_SECONDS)
  finally:
    for _, process in running.values():
      process.terminate()
    for _, process in running.values():
      process.wait()


@dataclasses.dataclass(frozen=True)
class Row:
  """What is known of a point: `status` is done, failed or open."""
  point: Point
  status: str
  error: str
  results: dict[str, Any]


def read_row(point: Point, still_open: bool) -> Row:
  """Looks up how a point ended, unless it has not."""
  results = point.read_results()
  if results is not None:
    return Row(point, 'done', '', results)
  if still_open:
    return Row(point, 'open', '', {})
  words = (point.log.read_text(encoding='utf-8', errors='replace').split('\n')
           if point.log.exists() else [])
  last = next((w for w in reversed(words) if w.strip()), 'it never began')
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
  """A cell for each group and measure: mean ± sample deviation, and is it the best?"""
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
  """Returns whether the lowest value is the best; of an unknown measure the highest is.
  """
  metric = metrics.find(measure)
  return metric is not None and metric.higher_is_better is False


def _over_seeds(rows: Sequence[Row], keys: Sequence[str], measures: Sequence[str]
                ) -> list[tuple[tuple[str, ...], int, list[tuple[str, bool]]]]:
  """(values of the other keys, how many are done, cells), if seeds are in the grid."""
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
  """Runs what is not done, keeps the tables up to date.  -> how many failed."""
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
  match f.launcher:
    case 'slurm':
      return Slurm(out, f.jobs, f.sbatch, check)
    case 'tpu':
      return Tpu(f.tpu, f.zone, f.tpu_checkout, check)
    case _:
      return Local(f.jobs or 1, check)


def _plan(out: pathlib.Path) -> list[Point]:
  """What the command line asks for."""
  f = flags.FLAGS
  if f.config is None:
    raise UserError('--config: missing; the recipe, a file of configs/')
  recipe = config_flags.get_config_filename(f['config'])
  overrides = config_flags.get_override_values(f['config'])
  arguments = [f'--config.{key}={value}' for key, value in overrides.items()]
  grid = parse_grid(f.grid)
  if f.checkpoints:
    grid = {'init_from': list_checkpoints(f.checkpoints)} | grid
    arguments.append('--mode=eval')
    if f.allow_random_head:
      arguments.append('--allow_random_head')
  if not grid:
    raise UserError('--grid, --checkpoints: both missing; say what to vary')
  check_grid(recipe, grid)
  return plan(out, recipe, arguments, grid)


def main() -> None:
  f = flags.FLAGS
  if not f.out:
    raise UserError("--out: missing; the sweep's folder")
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
    print(f'{failed} of {len(points)} points failed; the same command tries them again',
          file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  sys.path.insert(0, '')    # as `python -m` has it: recipes import each other
  config_flags.DEFINE_config_file('config', None, 'The recipe, a file of configs/.')
  flags.DEFINE_string('out', None, "The sweep's folder.")
  flags.DEFINE_multi_string(
      'grid', [], 'KEY=VALUE,VALUE,... of the recipe; several of them are multiplied.')
  flags.DEFINE_multi_string(
      'checkpoints', [], 'Whose weights to evaluate: a workdir, of which every step, '
      'WORKDIR/checkpoints/STEP, or a released checkpoint.')
  flags.DEFINE_bool('allow_random_head', False,
                    'With --checkpoints: as of the main command.')
  flags.DEFINE_enum('launcher', 'local', ['local', 'slurm', 'tpu'],
                    'Where the points run.')
  flags.DEFINE_integer(
      'jobs', None, 'How many points run at once (local: 1; slurm: all that there is '
      'room for; tpu: always one on each machine).', lower_bound=1)
  flags.DEFINE_multi_string(
      'sbatch', [], 'An option of sbatch for every point, --sbatch=--gres=gpu:1.')
  flags.DEFINE_list(
      'tpu', [], 'Names of TPU virtual machines, which work through the points.')
  flags.DEFINE_string('zone', None, 'Their zone.')
  flags.DEFINE_string('tpu_checkout', 'vatt_jax',
                      'Where on them this project is, installed in its .venv.')
  flags.DEFINE_integer('point', None,
                       "Run this point of --out alone; for Slurm's tasks.")
  cli.run(main)
