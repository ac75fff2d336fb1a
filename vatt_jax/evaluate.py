"""The evaluation loop: every checkpoint of a run, as they come."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import pathlib
import time
from typing import Any

from absl import logging

from vatt_jax import checkpoint
from vatt_jax import interrupt
from vatt_jax import multi_host
from vatt_jax import recipe
from vatt_jax import train
from vatt_jax import workdir_lock
from vatt_jax import writers
from vatt_jax.errors import UserError
from vatt_jax.evaluators import report

_POLL_SECONDS = 1.0
_HEADLINES = ('R@10', 'top1', 'mAP')    # for the log, where all would be too long


def watch(config: Mapping[str, Any], workdir: pathlib.Path, name: str,
          allow_random_head: bool = False) -> None:
  """Runs the evaluators of a recipe on every checkpoint of a run, oldest first.

  Waits for new ones, and ends with that of the run's last step. What is deleted
  before its turn comes is left out. Where the workdir holds no run, the weights of
  `init_from` are evaluated instead, once. The same command goes on where it was
  stopped.

  Args:
    config: a recipe of `configs/`, as nested dicts: the run's own, or another whose
      model takes weights from it.
    workdir: the run's; in `eval/NAME` of it are `metrics.jsonl` and `tensorboard`,
      of all steps, and `results.json`, of the newest.
    name: of the evaluation.
    allow_random_head: evaluate a head of random weights where a checkpoint has none.

  Raises:
    UserError: bad input; names what is wrong.
    interrupt.Interrupted: SIGTERM or Ctrl-C.
  """
  folder = workdir / 'eval' / name
  with (workdir_lock.held(folder) as unlock, checkpoint.naming_a_full_disk(workdir),
        interrupt.Interrupt(multi_host.agreement()) as stop):
    train.end_soon(stop, unlock)
    source = _source(config, workdir)
    with multi_host.first_alone():    # the others find what it makes
      newest = _newest(folder)
      if newest is None and multi_host.is_first():
        # Its config vouches for nothing yet, and may be mended.
        (folder / checkpoint.CONFIG_FILE).unlink(missing_ok=True)
      run = recipe.make(config, folder, stop.check, weights_from=str(source))
    if not run.evaluations:
      raise UserError('config.evals: is empty; expected what to evaluate')
    done = multi_host.from_first(-1 if newest is None else newest['step'])
    random = train.untrained(run)
    writer = writers.open_writers(folder, done + 1)
    try:
      for step, path in _checkpoints(source, workdir, done, stop):
        variables = _load(run, path, allow_random_head, asked_for=source != workdir)
        if variables is None:
          continue
        state = train.start_from(variables, random)
        measures = {f'{which}/{k}': v for which, evaluation in run.evaluations.items()
                    for k, v in evaluation.evaluator.run(state)}
        writer.write_scalars(step, measures)
        logging.info('step %d  %s', step, _in_short(measures))
        if multi_host.is_first():
          _write_results(folder)
    finally:
      writer.close()
    if multi_host.is_first():
      results = _write_results(folder)    # again, for a kill may have come before it
      print(report.as_text(results))
      print(f'Results: {(folder / writers.RESULTS_FILE).resolve()}')


def _load(run: recipe.Recipe, path: pathlib.Path, allow_random_head: bool,
          asked_for: bool) -> dict[str, Any] | None:
  """Reads a checkpoint; returns None in all processes if it is gone for any."""
  variables, gone = None, None
  try:
    variables = run.load(str(path), allow_random_head)
  except checkpoint.Gone as e:
    if asked_for:
      raise
    gone = e
  if multi_host.all_of(gone is None):
    return variables
  logging.info('Left out: %s', gone or f'{path}: is gone for another process')
  return None


def _source(config: Mapping[str, Any], workdir: pathlib.Path) -> pathlib.Path:
  """Whose weights to evaluate: those of the run, or of what the recipe starts from."""
  if (workdir / checkpoint.CONFIG_FILE).exists():
    return workdir
  if not config.get('init_from'):
    raise UserError(f'{workdir}: holds no run to evaluate; give the --workdir of one, '
                    'or --config.init_from=CHECKPOINT')
  return pathlib.Path(config['init_from'])


def _checkpoints(source: pathlib.Path, workdir: pathlib.Path, done: int,
                 stop: interrupt.Interrupt) -> Iterator[tuple[int, pathlib.Path]]:
  """Yields what is to be evaluated: step, and path."""
  if source != workdir:
    folder, step = checkpoint.split(source)
    if step is None:    # the newest, or 0 of what is no workdir
      step = multi_host.from_first(max(checkpoint.steps(folder), default=0))
      if checkpoint.of_step(folder, step).exists():    # the same for all processes
        source = checkpoint.of_step(folder, step)
    if step > done:
      yield step, source
    return
  last = checkpoint.read_config(workdir).get('total_steps', 0)
  logging.info('Evaluating every checkpoint of %s, to step %d', workdir, last)

  def wait():
    stop.check()
    time.sleep(_POLL_SECONDS)

  for step in checkpoint.follow(workdir, done, last, wait, multi_host.from_first):
    yield step, checkpoint.of_step(workdir, step)


def _newest(folder: pathlib.Path) -> dict[str, Any] | None:
  """The row of the newest step that was evaluated."""
  path = folder / writers.METRICS_FILE
  rows = writers.read_jsonl(path) if path.exists() else []
  return rows[-1] if rows else None


def _write_results(folder: pathlib.Path) -> dict[str, Any]:
  results = _newest(folder)
  if results is None:
    raise UserError(f'{folder}: nothing was evaluated; every checkpoint was gone '
                    'before its turn')
  writers.write_results(folder, results)
  return results


def _in_short(measures: Mapping[str, float]) -> str:
  shown = {k: v for k, v in measures.items() if not report.is_chance(k)}
  headlines = {k: v for k, v in shown.items() if k.endswith(_HEADLINES)}
  return '  '.join(f'{k} {report.format_number(k, v)}'
                   for k, v in (headlines or shown).items())
