"""The loop."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import math
import pathlib
import signal
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import interrupt
from vatt_jax import multi_host
from vatt_jax import recipe
from vatt_jax import sharding
from vatt_jax import step
from vatt_jax import workdir_lock
from vatt_jax import writers
from vatt_jax.errors import UserError
from vatt_jax.evaluators import figures
from vatt_jax.evaluators import report
from vatt_jax.inputs import pipeline
from vatt_jax.step import State

_LAST_SECONDS = 3.0    # from a signal to the end, where nothing is left to save


def train(config: Mapping[str, Any], workdir: pathlib.Path,
          resume_from: int | None = None) -> None:
  """Runs a recipe to its end, or on from its newest checkpoint.

  Args:
    config: a recipe of `configs/`, as nested dicts.
    workdir: the run's folder; of it `results.json` and `report.html` are for you.
    resume_from: the step of the checkpoint to go on from, in place of the newest;
      later ones are moved to `checkpoints_discarded`.

  Raises:
    UserError: bad input, a full disk, or another run in the workdir; names what is
      wrong.
    interrupt.Interrupted: SIGTERM or Ctrl-C; the state is saved.
  """
  with (workdir_lock.held(workdir) as unlock, checkpoint.naming_a_full_disk(workdir),
        interrupt.Interrupt(multi_host.agreement()) as stop):
    with multi_host.first_alone():    # the others find what it makes
      run = recipe.make(config, workdir, stop.check)
      if resume_from is not None and multi_host.is_first():
        checkpoint.go_back(workdir, resume_from)
    with checkpoint.Checkpoints(workdir / 'checkpoints', **run.checkpoint) as saved:
      state = _first_state(run, saved)
      first_step = int(state.step)
      writer = writers.open_writers(workdir, first_step)
      progress = _Progress(run, first_step)
      batches = pipeline.train_batches(run.reader, run.batch_size, run.seed,
                                       first_step, jax.process_index(),
                                       jax.process_count())
      try:
        for step in range(first_step, run.total_steps):
          stop.check()
          with progress.paused():
            for name, evaluation in run.evaluations.items():
              if evaluation.due(step):
                writer.write_scalars(step, {
                    f'{name}/{k}': v for k, v in evaluation.evaluator.run(state)})
            if saved.due(step):
              saved.save(step, state)
          batch = sharding.to_devices(next(batches), run.task.mesh)
          state, metrics = run.task.train_step(state, batch)
          progress.add(metrics)
          if progress.due(step + 1):
            writer.write_scalars(step + 1, progress.report(step + 1))
        saved.save(run.total_steps, state)
        saved.wait()    # then a signal need not wait for it, nor is a full disk late
        end_soon(stop, unlock)
        _finish(run, state, writer, workdir, stop.check)
      except interrupt.Interrupted as e:
        saved.save(int(state.step), state)
        saved.wait()
        logging.info('%s: saved step %d in %s; the same command goes on from there',
                     e, int(state.step), workdir)
        raise
      finally:
        batches.close()    # its threads must not outlive the interpreter
        writer.close()


def end_soon(stop: interrupt.Interrupt, unlock: Callable[[], None]) -> None:
  """Makes a signal end the process in seconds, now that all is saved."""
  def end(number: int) -> None:
    logging.info('%s: ended; what was saved is kept, and the same command goes on',
                 signal.Signals(number).name)
    unlock()
    multi_host.leave(128 + number, at_once=True)

  if jax.process_count() == 1:    # several must agree first
    stop.end_within(_LAST_SECONDS, end)


def _first_state(run: recipe.Recipe, saved: checkpoint.Checkpoints) -> State:
  state = _random_state(run)
  logging.info('%s parameters, %d clips',
               f'{sum(x.size for x in jax.tree.leaves(state.params)):,}',
               len(run.reader.clips))
  if not run.total_steps:    # what was evaluated before may have changed since
    saved.clear()
  if saved.latest() is not None:
    state = saved.restore(state)
    logging.info('Going on from step %d', int(state.step))
  elif run.initial is not None:
    state = start_from(run.initial, state)
  return state


def start_from(initial: dict[str, Any], state: State) -> State:
  """The state of step 0 with the weights of a checkpoint (`recipe.Recipe.initial`)."""
  def choose(given, random):
    if isinstance(given, jax.ShapeDtypeStruct):
      return random
    return jax.device_put(given, random.sharding)

  chosen = jax.tree.map(choose, initial, step.variables(state))
  params = state.params | chosen.pop('params')
  # In memory of its own, for the step consumes both.
  average = None if state.average is None else jax.tree.map(jnp.copy, params)
  return state.replace(params=params, model_state=chosen, average=average)


def untrained(run: recipe.Recipe) -> State:
  """A randomly initialised model, without what only training needs.

  A checkpoint that is put in its place gives the average, if it has one.
  """
  return _random_state(run).replace(opt_state=(), average=None)


def _random_state(run: recipe.Recipe) -> State:
  """The state of step 0."""
  return run.task.init(run.reader.window.batch(run.batch_size))


class _Progress:
  """Means of the metrics between two log lines, the speed, and the time left."""

  def __init__(self, run: recipe.Recipe, first_step: int):
    self._run = run
    self._rows: list[dict[str, jax.Array]] = []
    self._since = time.monotonic()
    self._first_step = first_step

  def add(self, metrics: dict[str, jax.Array]) -> None:
    self._rows.append(metrics)     # not fetched: the device is still at work on them

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """What is done within is no training, and does not count as its time."""
    begin = time.monotonic()
    yield
    self._since += time.monotonic() - begin

  def due(self, step: int) -> bool:
    """At every multiple, at the end, and once early: is it running, how fast?"""
    return (step % self._run.log_every_steps == 0 or step == self._run.total_steps
            or step == self._first_step + 1)

  def report(self, step: int) -> dict[str, float]:
    """Logs a line and returns the metrics since the last one.

    Raises:
      UserError: the loss is no longer a number.
    """
    rows = jax.device_get(self._rows)
    means = {f'train/{k}': float(np.mean([row[k] for row in rows])) for k in rows[0]}
    now = time.monotonic()
    seconds_per_step = (now - self._since) / len(rows)
    means['train/clips_per_second'] = self._run.batch_size / seconds_per_step
    loss = means['train/loss']
    if not math.isfinite(loss):
      raise UserError(f'train/loss={loss} at step {step}: expected a number; lower '
                      'config.optim.peak_rate and start in another --workdir')
    total = self._run.total_steps
    line = f'step {step:{len(str(total))}}/{total}  loss {loss:.3f}'
    if step == self._first_step + 1:    # its speed foretells nothing
      line += f'  compiled in {_duration(now - self._since)}'
    else:
      line += (f'  {means["train/clips_per_second"]:.1f} clips/s'
               f'  {_duration((total - step) * seconds_per_step)} left')
    logging.info(line)
    self._rows, self._since = [], now
    return means


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (f'{hours} h {minutes:02d} min' if hours else
          f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s')


def _finish(run: recipe.Recipe, state: State, writer: Any,
            workdir: pathlib.Path, check: Callable[[], None]) -> None:
  """Evaluates, beside a randomly initialised model; writes results and report."""
  evaluators = {name: e.evaluator for name, e in run.evaluations.items()}
  beside = {name for name, e in run.evaluations.items() if e.beside_random}
  # Whole, as the trained state is: so prediction is compiled for both at once.
  random = _random_state(run) if beside else None
  results = {}
  for name, evaluator in evaluators.items():
    check()    # it may be long until its first batch
    logging.info('Evaluating: %s', name)
    results |= {f'{name}/{k}': v for k, v in evaluator.run(state)}
    if name in beside:
      results |= {f'{name}/{k}_random_init': v for k, v in evaluator.run(random)
                  if not report.is_chance(k)}
  if results:
    writer.write_scalars(run.total_steps, results)
  digest = checkpoint.digest(state.params)
  if multi_host.is_first():
    results |= _of_input(run, workdir) | {'params/sha256': digest}
    history = writers.read_jsonl(workdir / writers.METRICS_FILE)
    training = [row for row in history if 'train/loss' in row]
    if training:
      results |= {
          'train/loss': training[-1]['train/loss'],
          'train/clips_per_second': float(np.median(
              [row['train/clips_per_second'] for row in training]))}
    writers.write_results(workdir, results)
  galleries = report.draw_galleries(evaluators, state)
  if multi_host.is_first():
    page = workdir / 'report.html'
    report.write(page, workdir.name, results, list(figures.learning(history)),
                 galleries)
    print(report.as_text(results))
    print(f'Report: {page.resolve()}')


def _of_input(run: recipe.Recipe, workdir: pathlib.Path) -> dict[str, int]:
  """What was wrong with files, by all that any host has noted."""
  notes = run.reader.notes
  for path in workdir.glob('file_notes_*.jsonl'):
    notes.read(path)
  return {'input/skipped_files': len(notes.skipped),
          'input/pictureless_files': len(notes.pictureless),
          'input/soundless_files': len(notes.soundless)}
