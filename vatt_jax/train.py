"""Trains a model: the training loop."""

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
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import experiment
from vatt_jax import metric_writer
from vatt_jax import train_step
from vatt_jax import workdir_lock
from vatt_jax.distributed import hosts
from vatt_jax.distributed import interrupt
from vatt_jax.distributed import sharding
from vatt_jax.errors import UserError
from vatt_jax.inputs import sources
from vatt_jax.inputs.batches import train_batches
from vatt_jax.reports import plots
from vatt_jax.reports import report
from vatt_jax.reports import run_info
from vatt_jax.train_step import State

_LAST_SECONDS = 3.0    # from a signal to the exit, once everything is saved


def train(config: Mapping[str, Any], workdir: pathlib.Path,
          resume_from: int | None = None, extend: bool = False) -> None:
  """Trains a config to its last step, resuming from the newest checkpoint if any.

  Args:
    config: a config of `configs/`, as nested dicts.
    workdir: the experiment directory. The final results are in `results.json` and
      `report.html`.
    resume_from: the step to resume from, in place of the newest checkpoint; later
      checkpoints are moved to `checkpoints_discarded`.
    extend: continue the run of the workdir to a larger `total_steps`
      (`experiment.make`).

  Raises:
    UserError: bad input, a full disk, or another run in the workdir; the message names
      the key or file.
    interrupt.Interrupted: SIGTERM or Ctrl-C; the state is saved.
  """
  with (workdir_lock.held(workdir) as unlock, checkpoint.naming_a_full_disk(workdir),
        interrupt.Interrupt(hosts.agreement()) as stop):
    # The first host writes the files that the others read: config, vocabulary, index
    # of captions. If they exist already, all hosts start at once.
    exists = (resume_from is None and not extend
              and experiment.is_begun(config, workdir))
    with hosts.first_alone(unless=exists):
      run = experiment.make(config, workdir, stop.check, extend=extend)
      if resume_from is not None and hosts.is_first():
        checkpoint.go_back(workdir, resume_from)
    with (checkpoint.Checkpoints(workdir / 'checkpoints', run.checkpoint.keep,
                                  run.checkpoint.every_steps) as saved,
          contextlib.ExitStack() as stack):
      state = _first_state(run, saved)
      first_step = int(state.step)
      _note_start(config, run, first_step, workdir)
      writer = metric_writer.open_writers(workdir, first_step)
      stack.callback(writer.close)
      try:
        state = _take_steps(run, state, saved, writer, stop)
        saved.wait()    # reports a full disk now, and signals need not wait any more
        end_soon(stop, unlock)
        _finish(run, state, writer, workdir, stop.check)
      except interrupt.Interrupted as e:
        saved.wait()
        logging.info('%s: saved step %d in %s; the same command resumes from it',
                     e, saved.latest(), workdir)
        raise


def _note_start(config: Mapping[str, Any], run: experiment.Experiment, first_step: int,
                workdir: pathlib.Path) -> None:
  """Saves the facts about the run, and warns of a dataset smaller than a batch."""
  if run.config.total_steps:
    _warn_of_repeats(run.reader.clips, run.config.batch_size, run.task.rows_per_clip)
  if hosts.is_first():
    run_info.save(workdir, run_info.gather(
        config, first_step, run.reader.clips,
        {name: e.evaluator for name, e in run.evaluations.items()}))


def _take_steps(run: experiment.Experiment, state: State, saved: checkpoint.Checkpoints,
                writer: Any, stop: interrupt.Interrupt) -> State:
  """Trains to the last step.

  Returns:
    The last state, which is also saved.

  Raises:
    interrupt.Interrupted: a signal arrived; the state is saved.
  """
  first_step = int(state.step)
  progress = _Progress(run, first_step)
  with contextlib.closing(train_batches(    # ends its threads, too
      run.reader, run.config.batch_size, run.config.seed, first_step,
      jax.process_index(), jax.process_count())) as batches:
    try:
      for step in range(first_step, run.config.total_steps):
        stop.check()
        with progress.paused():
          for name, evaluation in run.evaluations.items():
            if evaluation.due(step):
              writer.write_scalars(step, {
                  f'{name}/{k}': v for k, v in evaluation.run(state).items()})
          if saved.due(step):
            saved.save(step, state)
          for hook in run.hooks.values():    # after saving: a resumed run repeats it
            if hook.due(step):
              state = hook.run(state)
        batch = sharding.to_devices(next(batches), run.task.mesh)
        state, metrics = run.task.train_step(state, batch)
        progress.add(metrics)
        if progress.due(step + 1):
          writer.write_scalars(step + 1, progress.report(step + 1))
    except interrupt.Interrupted:
      saved.save(int(state.step), state)
      raise
  saved.save(run.config.total_steps, state)
  return state


def end_soon(stop: interrupt.Interrupt, unlock: Callable[[], None]) -> None:
  """Makes a signal end the process within seconds, as the state is saved."""
  def end(number: int) -> None:
    logging.info('%s: ended; all saved files are kept, and the same command resumes',
                 signal.Signals(number).name)
    unlock()
    hosts.leave(128 + number, at_once=True)

  if jax.process_count() == 1:    # several processes must agree first
    stop.end_within(_LAST_SECONDS, end)


def _first_state(run: experiment.Experiment, saved: checkpoint.Checkpoints) -> State:
  state = run.random_state()
  logging.info('%s parameters, %d clips',
               f'{sum(x.size for x in jax.tree.leaves(state.params)):,}',
               len(run.reader.clips))
  if not run.config.total_steps:    # `init_from` may have changed since then
    saved.clear()
  if saved.latest() is not None:
    state = saved.restore(state)
    logging.info('Resuming from step %d', int(state.step))
  elif run.initial is not None:
    state = train_step.start_from(run.initial, state)
  return state


def _warn_of_repeats(clips: sources.Mixture, batch_size: int, rows_per_clip: int = 1
                     ) -> None:
  """Warns if a source has fewer clips than a batch takes from it."""
  # Without shares, the clips of all sources are drawn with equal probability.
  parts, shares = (clips.parts, clips.shares) if clips.shares else ([clips], [1])
  for number, (part, share) in enumerate(zip(parts, shares, strict=True), 1):
    taken = math.ceil(batch_size // rows_per_clip * share / sum(shares))
    if taken > len(part):
      source = f'source {number} of config.data.path' if clips.shares else (
          'config.data.path')
      logging.warning('config.batch_size=%d: takes %d clips from %s, which has %d, so '
                      'every batch repeats some clips; lower it, or add clips',
                      batch_size, taken, source, len(part))


class _Progress:
  """Logs means of the metrics between two log lines, the speed, and the time left."""

  def __init__(self, run: experiment.Experiment, first_step: int):
    self._run = run
    self._rows: list[dict[str, jax.Array]] = []
    self._since = time.monotonic()
    self._first_step = first_step

  def add(self, metrics: dict[str, jax.Array]) -> None:
    self._rows.append(metrics)     # not fetched: the device is still computing them

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Excludes the time spent in the context from the training speed."""
    begin = time.monotonic()
    yield
    self._since += time.monotonic() - begin

  def due(self, step: int) -> bool:
    """Returns whether to log: at multiples, the last step, and the run's first step."""
    config = self._run.config
    return (step % config.log_every_steps == 0 or step == config.total_steps
            or step == self._first_step + 1)

  def report(self, step: int) -> dict[str, float]:
    """Logs a line and returns the mean metrics since the last line.

    Raises:
      UserError: the loss is not finite.
    """
    rows = jax.device_get(self._rows)
    means = {f'train/{k}': float(np.mean([row[k] for row in rows])) for k in rows[0]}
    now = time.monotonic()
    seconds_per_step = (now - self._since) / len(rows)
    num_clips = self._run.config.batch_size // self._run.task.rows_per_clip
    means['train/clips_per_second'] = num_clips / seconds_per_step
    loss = means['train/loss']
    if not math.isfinite(loss):
      raise UserError(f'train/loss={loss} at step {step}: expected a finite number; '
                      'lower config.optim.peak_rate and start in another --workdir')
    total = self._run.config.total_steps
    line = f'step {step:{len(str(total))}}/{total}  loss {loss:.3f}'
    if step == self._first_step + 1:    # includes compilation: no estimate of speed
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


def _finish(run: experiment.Experiment, state: State, writer: Any,
            workdir: pathlib.Path, check: Callable[[], None]) -> None:
  """Evaluates the model and a randomly initialized one; writes results and report."""
  beside = {name for name, e in run.evaluations.items() if e.beside_random}
  # A complete state, like the trained one: prediction is compiled once for both.
  random = run.random_state() if beside else None
  results = {}
  for name, evaluation in run.evaluations.items():
    check()    # its first batch may take long
    logging.info('Evaluating: %s', name)
    measures = evaluation.run(state)
    results |= {f'{name}/{k}': v for k, v in measures.items()}
    if name in beside and measures:
      results |= {f'{name}/{k}_random_init': v
                  for k, v in evaluation.run(random).items()
                  if not report.is_chance(k)}
  if results:
    writer.write_scalars(run.config.total_steps, results)
  digest = checkpoint.digest(state.params)
  if hosts.is_first():
    results |= _of_input(run, workdir) | {'params/sha256': digest}
    history = metric_writer.read_jsonl(workdir / metric_writer.METRICS_FILE)
    training = [row for row in history if 'train/loss' in row]
    if training:
      results |= {
          'train/loss': training[-1]['train/loss'],
          'train/clips_per_second': float(np.median(
              [row['train/clips_per_second'] for row in training]))}
    metric_writer.write_results(workdir, results)
  galleries = report.draw_galleries(
      {name: e.evaluator for name, e in run.evaluations.items()}, state)
  if hosts.is_first():
    page = workdir / 'report.html'
    report.write(page, workdir.name, results, list(plots.learning(history)),
                 galleries, info=run_info.read(workdir))
    print(report.as_text(results))
    print(f'Report: {page.resolve()}')


def _of_input(run: experiment.Experiment, workdir: pathlib.Path) -> dict[str, int]:
  """Counts skipped files and files without video or audio, over all hosts."""
  notes = run.reader.notes
  for path in workdir.glob('file_notes_*.jsonl'):
    notes.read(path)
  return {'input/skipped_files': len(notes.skipped),
          'input/no_video_files': len(notes.no_video),
          'input/no_audio_files': len(notes.no_audio)}
