"""Draws what a run has learnt: python -m vatt_jax.main --mode=figures

Of the newest checkpoint, into `figures/` of the workdir as PNG and CSV, and into
`report.html`. The section `figures` of the recipe says of what
(`recipe.evals.Figures`).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import glob
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import cost
from vatt_jax import interrupt
from vatt_jax import recipe
from vatt_jax import run_info
from vatt_jax import sharding
from vatt_jax import step
from vatt_jax import train
from vatt_jax import writers
from vatt_jax.errors import UserError
from vatt_jax.evaluators import extract
from vatt_jax.evaluators import figures
from vatt_jax.evaluators import report
from vatt_jax.inputs import augment
from vatt_jax.inputs import clip
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import sources


@dataclasses.dataclass(frozen=True)
class Model:
  """A run, and its model before training and now.

  Attributes:
    run: what its recipe says.
    before: what it started from.
    now: of its newest checkpoint.
    step: of that.
  """
  run: recipe.Recipe
  before: step.State
  now: step.State
  step: int

  @property
  def kind(self) -> str:
    shared = 'shared' in self.run.task.model.backbones
    return 'modality-agnostic' if shared else 'modality-specific'


class Sample(Sequence[clip.Clip]):
  """Some clips of a source, at random and in order; all if there are no more."""

  def __init__(self, clips: Sequence[clip.Clip], count: int, seed: int):
    self._clips = clips
    rng = np.random.default_rng(seed)
    self.numbers = np.sort(rng.permutation(len(clips))[:count])

  def __len__(self) -> int:
    return len(self.numbers)

  def __getitem__(self, index: int) -> clip.Clip:
    return self._clips[int(self.numbers[index])]


def draw(config: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Draws the figures of a run.

  Args:
    config: its recipe, as nested dicts; of `figures` it may say other things than
      when it was trained.
    workdir: the run's folder.

  Raises:
    UserError: there is no such run, it has no checkpoint, or bad input.
    interrupt.Interrupted: SIGTERM or Ctrl-C.
  """
  with interrupt.Interrupt() as stop:
    model = _load(config, workdir, stop.check)
    history = writers.read_jsonl(workdir / writers.METRICS_FILE)
    learnt = list(_drawn(config, model, stop.check))
    logging.info('Drawing galleries')
    galleries = report.draw_galleries(
        {name: e.evaluator for name, e in model.run.evaluations.items()}, model.now)
  folder = workdir / 'figures'
  folder.mkdir(exist_ok=True)
  curves = list(filter(None, (_try(f.__name__, functools.partial(f, history))
                              for f in (figures.losses, figures.measures))))
  drawings = [*curves, *learnt, *_of_galleries(galleries)]
  for drawing in drawings:
    drawing.save(folder)
  page = workdir / 'report.html'
  report.write(page, workdir.name, writers.read_results(workdir) or {}, curves,
               galleries, learnt, run_info.read(workdir))
  print(f'{folder.resolve()}: {", ".join(d.name for d in drawings)}')
  print(f'Report: {page.resolve()}')


def _load(config: Mapping[str, Any], workdir: pathlib.Path,
          check: Callable[[], None]) -> Model:
  if not (workdir / checkpoint.CONFIG_FILE).exists():
    raise UserError(f'{workdir}: holds no run; train one there first (--mode=train)')
  newest = checkpoint.newest(workdir)
  run = recipe.make(config, workdir, check)
  random = train.untrained(run)
  start = config.get('init_from')
  before = train.start_from(run.load(start), random) if start else random
  path = checkpoint.of_step(workdir, newest)
  return Model(run, before, train.start_from(run.load(str(path)), random), newest)


def _drawn(config: Mapping[str, Any], model: Model, check: Callable[[], None]
           ) -> Iterator[figures.Drawing]:
  """The figures of features and of costs that there are."""
  wish = model.run.figures
  reader = _reader(model.run)
  if not len(reader.clips):
    raise UserError('config.figures.path: is empty; expected a source of clips, for '
                    'this recipe has none')
  clips = Sample(reader.clips, wish.num_clips, wish.seed)
  labels, label = _labels(clips, wish.label or (
      reader.labels.column if reader.labels else ''))
  costs = _costs(wish.runs, wish.measure) if wish.runs else []
  beside = _beside(wish.beside, model, check) if wish.beside else None
  logging.info('Reading %d clips', len(clips))
  features = functools.partial(_features, clips=clips, check=check)
  now, before = (features(model.run, s, reader) for s in (model.now, model.before))
  when = {'before training': before, f'at step {model.step}': now}
  models, steps = {model.kind: now}, f'Step {model.step}'
  if beside:
    name, other = beside
    models[name] = features(other.run, other.now, other.run.reader)
    steps += f', {name} of step {other.step}'
  start = config.get('init_from') or 'random weights'
  whose = f' {steps}; training began with {start}; {len(clips)} clips.'
  tasks = dict(
      tsne_classes=lambda: figures.by_class(
          when, labels, label, wish.num_classes, wish.seed),
      tsne_spaces=lambda: figures.by_modality(models, wish.seed),
      similarities=lambda: figures.similarities(models))
  for name, task in tasks.items():
    check()
    drawing = _try(name, task)
    if drawing:
      yield dataclasses.replace(drawing, caption=drawing.caption + whose)
  if costs:
    yield figures.cost_curve(costs, wish.measure)


def _try(name: str, task: Callable[[], figures.Drawing]) -> figures.Drawing | None:
  logging.info('Drawing %s', name)
  try:
    return task()
  except figures.NothingToDraw as e:
    logging.info('No figure %r: %s', name, e)
    return None


def _reader(run: recipe.Recipe) -> pipeline.Reader:
  """Of the source that the recipe names, or of its first evaluation that has one."""
  if run.figures.path:
    clips = sources.open_source(run.figures.path, run.figures.captions)
    return dataclasses.replace(run.reader, clips=clips)
  return next((e.evaluator.reader for e in run.evaluations.values()
               if hasattr(e.evaluator, 'reader')), run.reader)


def _features(run: recipe.Recipe, state: step.State, reader: pipeline.Reader,
              clips: Sample, check: Callable[[], None]) -> figures.Features:
  """What a model makes of the middle of each clip."""
  inputs = jax.jit(lambda state, batch: run.task.model.apply(
      step.variables(state), augment.normalize(batch), method='mean_inputs'))

  def predict(state, batch):
    check()
    batch = sharding.to_devices(batch, run.task.mesh)
    return dict(run.task.predict(state, batch), inputs=inputs(state, batch))

  found = extract.by_clip(predict, state, dataclasses.replace(reader, clips=clips),
                          run.batch_size, 1, 1, _pick)
  found = jax.tree.map(lambda x: x[:, 0], found)    # there is but one view
  return figures.Features(clip=clips.numbers, **found)


def _pick(outputs, batch):
  """Of a clip's sentences the nearest; without the `logits` of a classifier."""
  present = extract.find_present(batch)
  return dict(present={m: present[m] for m in outputs['inputs']},
              inputs=extract.nearest_text(outputs['inputs']),
              pooled=extract.nearest_text(outputs['pooled']),
              embed={space: extract.nearest_text(sides)
                     for space, sides in outputs.get('embed', {}).items()})


def _beside(folder: str, model: Model, check: Callable[[], None]) -> tuple[str, Model]:
  """Another run's model, and its name: its kind, or if that is the same its folder."""
  workdir = pathlib.Path(folder)
  if not (workdir / checkpoint.CONFIG_FILE).exists():
    raise UserError(f'config.figures.beside={folder!r}: holds no run')
  other = _load(checkpoint.read_config(workdir), workdir, check)
  return workdir.name if other.kind == model.kind else other.kind, other


def _labels(clips: Sequence[clip.Clip], label: str) -> tuple[list[str], str]:
  """The label of each clip, and its name; empty where none is asked for or there."""
  rows = [c.labels for c in sources.each(clips)]
  columns = list(dict.fromkeys(name for row in rows for name in row))
  label = label or ''.join(columns[:1])
  if label and label not in columns:
    raise UserError(f'config.figures.label={label!r}: the clips have no such label; '
                    f'found {", ".join(columns) or "none"}')
  return [row.get(label, '') for row in rows], label


def _costs(pattern: str, measure: str) -> list[dict[str, Any]]:
  """Of each finished run what it cost and reached."""
  rows, known = [], set()
  for folder in map(pathlib.Path, sorted(glob.glob(pattern))):
    results, path = writers.read_results(folder), folder / checkpoint.CONFIG_FILE
    if results is None or not path.exists():
      logging.info('%s: left out of figure %r, for it has no results', folder,
                   'drop_token')
      continue
    known |= results.keys()
    if measure in results:
      rows.append(_cost(folder, checkpoint.read_config(folder)) |
                  {measure: results[measure]})
  if not rows:
    raise UserError(
        f'config.figures.measure={measure!r}: no run of figures.runs={pattern!r} has '
        f'it; found {", ".join(sorted(known)) or "no results"}')
  return rows


def _cost(folder: pathlib.Path, config: Mapping[str, Any]) -> dict[str, Any]:
  model, batch = recipe.model_and_clip(config)
  rates = [config['model'][m].get('drop_token_rate', 0.0) for m in ('video', 'audio')
           if config['model'].get(m)]
  operations = cost.forward(model, batch, train=True)
  return dict(run=str(folder), drop_token_rate=rates[0], gflops=operations.true / 1e9)


def _of_galleries(galleries: Mapping[str, Sequence[report.Query]]
                  ) -> Iterator[figures.Drawing]:
  for name, queries in galleries.items():
    for direction in dict.fromkeys(q.direction for q in queries):
      yield report.gallery_drawing(
          name, [q for q in queries if q.direction == direction])
