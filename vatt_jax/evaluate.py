"""Evaluates every checkpoint of a run as it appears."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import pathlib
import time
from typing import Any

from absl import logging

from vatt_jax import checkpoint
from vatt_jax import experiment
from vatt_jax import metric_writer
from vatt_jax import train
from vatt_jax import train_step
from vatt_jax import workdir_lock
from vatt_jax.distributed import hosts
from vatt_jax.distributed import interrupt
from vatt_jax.errors import UserError
from vatt_jax.reports import report

_POLL_SECONDS = 1.0
_HEADLINES = ('R@10', 'top1', 'mAP')    # the only metrics in the log, for brevity


def watch(config: Mapping[str, Any], workdir: pathlib.Path, name: str,
          allow_random_head: bool = False) -> None:
  """Runs the evaluators of a config on every checkpoint of a run, oldest first.

  Waits for new checkpoints, and returns after the run's last step. Checkpoints that
  are deleted before they are evaluated are skipped. If the workdir holds no run, the
  weights of `init_from` are evaluated once instead. After an interruption, the same
  command resumes.

  Args:
    config: a config of `configs/`, as nested dicts: the run's own, or another one
      whose model can load the run's weights.
    workdir: the run's workdir. Results go to `eval/NAME` in it: `metrics.jsonl` and
      `tensorboard` for all steps, `results.json` for the newest step.
    name: the name of the evaluation.
    allow_random_head: evaluate a randomly initialized head if a checkpoint has none.

  Raises:
    UserError: bad input; the message names the key or file.
    interrupt.Interrupted: SIGTERM or Ctrl-C.
  """
  folder = workdir / 'eval' / name
  with (workdir_lock.held(folder) as unlock, checkpoint.naming_a_full_disk(workdir),
        interrupt.Interrupt(hosts.agreement()) as stop):
    train.end_soon(stop, unlock)
    source = _source(config, workdir)
    with hosts.first_alone():    # the other processes read the files it writes
      newest = _newest(folder)
      if newest is None and hosts.is_first():
        # Without results, the config of an earlier attempt may still be corrected.
        (folder / checkpoint.CONFIG_FILE).unlink(missing_ok=True)
      run = experiment.make(config, folder, stop.check, weights_from=str(source))
    if not run.evaluations:
      raise UserError('config.evals: is empty; expected one evaluator or more')
    done = hosts.from_first(-1 if newest is None else newest['step'])
    random = run.untrained()
    writer = metric_writer.open_writers(folder, done + 1)
    try:
      for step, path in _checkpoints(source, workdir, done, stop):
        variables = _load(run, path, allow_random_head, asked_for=source != workdir)
        if variables is None:
          continue
        state = train_step.start_from(variables, random)
        measures = {f'{which}/{k}': v for which, evaluation in run.evaluations.items()
                    for k, v in evaluation.run(state).items()}
        writer.write_scalars(step, measures)
        logging.info('step %d  %s', step, _in_short(measures))
        if hosts.is_first():
          _write_results(folder)
    finally:
      writer.close()
    if hosts.is_first():
      results = _write_results(folder)    # again: it may be missing after a kill
      print(report.as_text(results))
      print(f'Results: {(folder / metric_writer.RESULTS_FILE).resolve()}')


def _load(run: experiment.Experiment, path: pathlib.Path, allow_random_head: bool,
          asked_for: bool) -> dict[str, Any] | None:
  """Returns a checkpoint's variables, or None in all processes if it is deleted."""
  variables, gone = None, None
  try:
    variables = run.load(str(path), allow_random_head)
  except checkpoint.Gone as e:
    if asked_for:
      raise
    gone = e
  if hosts.all_of(gone is None):
    return variables
  logging.info('Skipped: %s', gone or f'{path}: is gone for another process')
  return None


def _source(config: Mapping[str, Any], workdir: pathlib.Path) -> pathlib.Path:
  """Returns the path of the weights to evaluate: the workdir, or `init_from`."""
  if (workdir / checkpoint.CONFIG_FILE).exists():
    return workdir
  if not config.get('init_from'):
    raise UserError(f'{workdir}: holds no run to evaluate; set --workdir to the folder '
                    'of a run, or --config.init_from=CHECKPOINT')
  return pathlib.Path(config['init_from'])


def _checkpoints(source: pathlib.Path, workdir: pathlib.Path, done: int,
                 stop: interrupt.Interrupt) -> Iterator[tuple[int, pathlib.Path]]:
  """Yields (step, path) of each checkpoint to evaluate."""
  if source != workdir:
    folder, step = checkpoint.split(source)
    if step is None:    # the newest step of a workdir; 0 for any other checkpoint
      step = hosts.from_first(max(checkpoint.steps(folder), default=0))
      if checkpoint.of_step(folder, step).exists():    # the same for all processes
        source = checkpoint.of_step(folder, step)
    if step > done:
      yield step, source
    return
  last = checkpoint.read_config(workdir).get('total_steps', 0)
  logging.info('Evaluating every checkpoint of %s, up to step %d', workdir, last)

  def wait():
    stop.check()
    time.sleep(_POLL_SECONDS)

  for step in checkpoint.follow(workdir, done, last, wait, hosts.from_first):
    yield step, checkpoint.of_step(workdir, step)


def _newest(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns the row of the newest evaluated step, or None."""
  path = folder / metric_writer.METRICS_FILE
  rows = metric_writer.read_jsonl(path) if path.exists() else []
  return rows[-1] if rows else None


def _write_results(folder: pathlib.Path) -> dict[str, Any]:
  results = _newest(folder)
  if results is None:
    raise UserError(f'{folder}: nothing was evaluated; every checkpoint was deleted '
                    'before its turn')
  metric_writer.write_results(folder, results)
  return results


def _in_short(measures: Mapping[str, float]) -> str:
  shown = {k: v for k, v in measures.items() if not report.is_chance(k)}
  headlines = {k: v for k, v in shown.items() if k.endswith(_HEADLINES)}
  return '  '.join(f'{k} {report.format_number(k, v)}'
                   for k, v in (headlines or shown).items())
