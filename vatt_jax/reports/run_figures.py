"""Draws the figures of a run: python -m vatt_jax.main --mode=figures

Uses the newest checkpoint of the workdir. Writes PNG and CSV files to its `figures/`,
and `report.html`. The section `figures` of the config chooses clips and labels
(`experiment.Figures`).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import glob
import itertools
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import experiment
from vatt_jax import metric_writer
from vatt_jax import train_step
from vatt_jax.distributed import interrupt
from vatt_jax.distributed import sharding
from vatt_jax.errors import UserError
from vatt_jax.evaluators import extract
from vatt_jax.evaluators.views import find_present
from vatt_jax.evaluators.views import nearest_text
from vatt_jax.inputs import augment
from vatt_jax.inputs import clip
from vatt_jax.inputs import sources
from vatt_jax.reports import plots
from vatt_jax.reports import report
from vatt_jax.reports import run_info
from vatt_jax.tools import cost


@dataclasses.dataclass(frozen=True)
class Model:
  """Holds a run, and its model before training and now.

  Attributes:
    run: the experiment built from its config.
    workdir: workdir of the run.
    before: state at the start of training.
    now: state of the newest checkpoint.
    step: step of the newest checkpoint.
  """
  run: experiment.Experiment
  workdir: pathlib.Path
  before: train_step.State
  now: train_step.State
  step: int


class Sample(Sequence[clip.Clip]):
  """Selects clips of a source by index."""

  def __init__(self, clips: Sequence[clip.Clip], numbers: np.ndarray):
    self._clips, self.numbers = clips, numbers

  def __len__(self) -> int:
    return len(self.numbers)

  def __getitem__(self, index: int) -> clip.Clip:
    return self._clips[int(self.numbers[index])]


def draw(config: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Draws the figures of a run.

  Args:
    config: the run's config, as nested dicts; its section `figures` may differ from
      that of the training.
    workdir: the run's folder.

  Raises:
    UserError: `workdir` holds no run or no checkpoint, or the input is invalid.
    interrupt.Interrupted: the process got SIGTERM or Ctrl-C.
  """
  with interrupt.Interrupt() as stop:
    model = _load(config, workdir, stop.check)
    history = metric_writer.read_jsonl(workdir / metric_writer.METRICS_FILE)
    feature_drawings = list(_drawn(config, model, stop.check))
    logging.info('Drawing galleries')
    galleries = report.draw_galleries(
        {name: e.evaluator for name, e in model.run.evaluations.items()}, model.now)
  folder = workdir / 'figures'
  folder.mkdir(exist_ok=True)
  curves = list(filter(None, (_try(f.__name__, functools.partial(f, history))
                              for f in (plots.losses, plots.measures))))
  drawings = [*curves, *feature_drawings, *_of_galleries(galleries)]
  for drawing in drawings:
    drawing.save(folder)
  page = workdir / 'report.html'
  report.write(page, workdir.name, metric_writer.read_results(workdir) or {}, curves,
               galleries, feature_drawings, run_info.read(workdir))
  print(f'{folder.resolve()}: {", ".join(d.name for d in drawings)}')
  print(f'Report: {page.resolve()}')


def _load(config: Mapping[str, Any], workdir: pathlib.Path,
          check: Callable[[], None]) -> Model:
  if not (workdir / checkpoint.CONFIG_FILE).exists():
    raise UserError(f'{workdir}: holds no run; train one there first (--mode=train)')
  newest = checkpoint.newest(workdir)
  run = experiment.make(config, workdir, check)
  random = run.untrained()
  start = config.get('init_from')
  before = train_step.start_from(run.load(start), random) if start else random
  path = checkpoint.of_step(workdir, newest)
  now = train_step.start_from(run.load(str(path)), random)
  return Model(run, workdir, before, now, newest)


def _drawn(config: Mapping[str, Any], model: Model, check: Callable[[], None]
           ) -> Iterator[plots.Drawing]:
  """Yields the figures of features and of costs that the model allows."""
  wish = model.run.figures
  clips = _clips(model.run)
  if not len(clips):
    raise UserError('config.figures.path: is empty; set it to a source of clips, '
                    'because this config has no clips')
  labels, label = _labels(clips, wish.num_clips, wish.label or (
      model.run.reader.labels[0].column if model.run.reader.labels else ''))
  costs = _costs(wish.runs, wish.measure) if wish.runs else []
  models = _models(model, wish.beside, check)
  steps = [f'{name} of step {other.step}' for name, other in models.items()][1:]
  steps = ', '.join([f'Step {model.step}', *steps])
  start = config.get('init_from') or 'random weights'

  sample = Sample(clips, _sample(len(clips), labels, wish))
  logging.info('Reading %d clips', len(sample))
  read = functools.partial(_features, clips=sample, check=check)
  now = {name: read(other.run, other.now) for name, other in models.items()}
  when = {'before training': read(model.run, model.before)} | {
      f'{name}, step {models[name].step}': features for name, features in now.items()}
  some = _some(len(sample), wish.num_clips, wish.seed)
  less = {name: _take(features, some) for name, features in now.items()}
  tasks = dict(
      tsne_classes=(sample.numbers, lambda: plots.by_class(
          when, [labels[i] for i in sample.numbers] if label else [], label,
          wish.seed)),
      tsne_spaces=(some, lambda: plots.by_modality(less, wish.seed)),
      similarities=(some, lambda: plots.similarities(less)))
  for name, (numbers, task) in tasks.items():
    check()
    drawing = _try(name, task)
    if drawing:
      yield dataclasses.replace(drawing, caption=(
          f'{drawing.caption} {steps}; training began with {start}; {len(numbers)} '
          'clips.'))
  if costs:
    yield plots.cost_curve(costs, wish.measure)


def _sample(count: int, labels: Sequence[str], wish: experiment.Figures) -> np.ndarray:
  """Samples indices of clips: by class, or any clips if none has a label."""
  numbers = plots.draw_by_class(labels, wish.num_classes, wish.clips_per_class,
                                  wish.seed)
  return numbers if len(numbers) else _some(count, wish.num_clips, wish.seed)


def _some(count: int, at_most: int, seed: int) -> np.ndarray:
  """Samples up to `at_most` of the first `count` indices, in order."""
  return np.sort(np.random.default_rng(seed).permutation(count)[:at_most])


def _take(features: plots.Features, rows: np.ndarray) -> plots.Features:
  """Returns the features of some of the clips."""
  return plots.Features(**{
      field.name: jax.tree.map(lambda x: x[rows], getattr(features, field.name))
      for field in dataclasses.fields(features)})


def _try(name: str, task: Callable[[], plots.Drawing]) -> plots.Drawing | None:
  logging.info('Drawing %s', name)
  try:
    return task()
  except plots.NothingToDraw as e:
    logging.info('No figure %r: %s', name, e)
    return None


def _clips(run: experiment.Experiment) -> Sequence[clip.Clip]:
  """Returns the source of `figures`, else of the first evaluation, else of training."""
  if run.figures.path:
    return sources.open_source(run.figures.path, run.figures.captions)
  return next((e.evaluator.reader for e in run.evaluations.values()
               if hasattr(e.evaluator, 'reader')), run.reader).clips


def _features(run: experiment.Experiment, state: train_step.State, clips: Sample,
              check: Callable[[], None]) -> plots.Features:
  """Returns the features of the middle of each clip."""
  inputs = jax.jit(lambda state, batch: run.task.model.apply(
      train_step.variables(state), augment.normalize(batch), method='mean_inputs'))

  def predict(state, batch):
    check()
    batch = sharding.to_devices(batch, run.task.mesh)
    return dict(run.task.predict(state, batch), inputs=inputs(state, batch))

  reader = dataclasses.replace(run.reader, clips=clips)
  features = extract.by_clip(predict, state, reader, run.config.batch_size, 1, 1, _pick)
  features = jax.tree.map(lambda x: x[:, 0], features)    # the only view
  return plots.Features(clip=clips.numbers, **features)


def _pick(outputs, batch):
  """Picks features of each clip and its nearest caption; drops a head's `logits`."""
  present = find_present(batch)
  return dict(present={m: present[m] for m in outputs['pooled']},
              inputs=nearest_text(outputs['inputs']),
              pooled=nearest_text(outputs['pooled']),
              embed={space: nearest_text(sides)
                     for space, sides in outputs.get('embed', {}).items()})


def _models(model: Model, beside: str, check: Callable[[], None]) -> dict[str, Model]:
  """Returns the model and the models of other runs, by name.

  Names are the models' titles, or their workdirs if the titles are not distinct.
  """
  models = [model]
  for folder in filter(None, beside.split(',')):
    workdir = pathlib.Path(folder)
    if not (workdir / checkpoint.CONFIG_FILE).exists():
      raise UserError(f'config.figures.beside={folder!r}: holds no run')
    models.append(_load(checkpoint.read_config(workdir), workdir, check))
  for names in ([m.run.task.model.title for m in models],
                [m.workdir.name for m in models]):
    if len(set(names)) == len(models):
      break
  else:
    names = [str(m.workdir) for m in models]
  return dict(zip(names, models, strict=True))


def _labels(clips: Sequence[clip.Clip], num_tried: int, label: str
            ) -> tuple[list[str], str]:
  """Returns the label of each clip, and its name.

  Both are empty if no label is requested and the first clips have none. Reading all
  records of a large source would take too long.

  Raises:
    UserError: none of the first clips has the requested label.
  """
  first = itertools.islice(sources.each(clips), num_tried)
  columns = list(dict.fromkeys(name for c in first for name in c.labels))
  label = label or ''.join(columns[:1])
  if not label:
    return [], ''
  if label not in columns:
    raise UserError(f'config.figures.label={label!r}: the clips have no such label; '
                    f'found {", ".join(columns) or "none"}')
  return [c.labels.get(label, '') for c in sources.each(clips)], label


def _costs(pattern: str, measure: str) -> list[dict[str, Any]]:
  """Returns cost and metric of each finished run."""
  rows, measures = [], set()
  for folder in map(pathlib.Path, sorted(glob.glob(pattern))):
    results, path = metric_writer.read_results(folder), folder / checkpoint.CONFIG_FILE
    if results is None or not path.exists():
      logging.info('%s: left out of figure %r, because it has no results', folder,
                   'drop_token')
      continue
    measures |= results.keys()
    if measure in results:
      rows.append(_cost(folder, checkpoint.read_config(folder)) |
                  {measure: results[measure]})
  if not rows:
    raise UserError(
        f'config.figures.measure={measure!r}: no run of figures.runs={pattern!r} has '
        f'it; found {", ".join(sorted(measures)) or "no results"}')
  return rows


def _cost(folder: pathlib.Path, config: Mapping[str, Any]) -> dict[str, Any]:
  model, batch = experiment.model_and_clip(config)
  rates = [config['model'][m].get('drop_token_rate', 0.0) for m in ('video', 'audio')
           if config['model'].get(m)]
  operations = cost.forward(model, batch, train=True)
  return dict(run=str(folder), drop_token_rate=rates[0], gflops=operations.true / 1e9)


def _of_galleries(galleries: Mapping[str, Sequence[report.Query]]
                  ) -> Iterator[plots.Drawing]:
  for name, queries in galleries.items():
    for direction in dict.fromkeys(q.direction for q in queries):
      yield report.gallery_drawing(
          name, [q for q in queries if q.direction == direction])
