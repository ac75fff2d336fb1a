"""Builds the objects of a run from its config."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np
import optax

from vatt_jax import checkpoint as checkpoint_lib
from vatt_jax import hooks as hooks_lib
from vatt_jax import inherit
from vatt_jax import losses as losses_lib
from vatt_jax import models
from vatt_jax import optim as optim_lib
from vatt_jax import run_config
from vatt_jax import train_step
from vatt_jax.config import build
from vatt_jax.config import call
from vatt_jax.config import Settings
from vatt_jax.distributed import sharding
from vatt_jax.errors import UserError
from vatt_jax.evaluators import evaluation
from vatt_jax.inputs import augment as augment_lib
from vatt_jax.inputs import dataset
from vatt_jax.inputs import labels
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window
from vatt_jax.losses import classification
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.weights import load as weights
from vatt_jax.weights import word_vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Holds the top-level keys of a config.

  A run without steps needs no `losses`, `optim` and `checkpoint`.
  """
  seed: int
  total_steps: int
  batch_size: int
  log_every_steps: int
  data: Settings
  window: Settings
  model: Settings
  evals: Mapping[str, Settings]
  losses: Mapping[str, Settings] | None = None
  optim: Settings | None = None
  checkpoint: Settings | None = None
  augment: Settings | None = None
  figures: Settings | None = None
  hooks: Mapping[str, Settings] | None = None
  init_from: str = ''
  num_microbatches: int = 1
  average_decay: float = 0.0
  mesh: Settings | None = None
  sharding_rules: Sequence[sharding.Rule] = sharding.RULES
  extended: Sequence[tuple[int, int]] = ()

  def __post_init__(self):
    for key, least in dict(total_steps=0, batch_size=1, log_every_steps=1).items():
      if getattr(self, key) < least:
        raise UserError(f'config.{key}={getattr(self, key)}: expected {least} or more')
    if not 0 <= self.average_decay < 1:
      raise UserError(f'config.average_decay={self.average_decay}: expected 0 or more, '
                      'and less than 1')
    for key in ('losses', 'optim', 'checkpoint'):
      if self.total_steps and getattr(self, key) is None:
        raise UserError(f'config.{key}: missing')


@dataclasses.dataclass(frozen=True)
class Figures:
  """Describes the figures of `--mode=figures` (VATT, section 4.4.6).

  Attributes:
    path: a source of clips; empty: the source of the first evaluation that has one, or
      else the training clips.
    captions: the captions of the source.
    label: the label that sets the colors of features; empty: the label that the run
      is trained on (its first column), or else the first label.
    num_clips: the maximum number of randomly drawn clips, in figures without labels.
    num_classes: the maximum number of randomly drawn classes; more than 21 classes are
      not named in the figure.
    clips_per_class: the maximum number of randomly drawn clips of each class.
    beside: workdirs of other runs, joined by commas, shown beside this one, such as
      modality-specific beside modality-agnostic models.
    runs: a pattern of workdirs of finished runs, whose cost is plotted against
      `measure`.
    measure: a name in their `results.json`; empty, like `runs`, for no such figure.
    seed: the seed of random draws and of t-SNE.

  Raises:
    ValueError: a number is too small, or only one of `runs` and `measure` is set.
  """
  path: str = ''
  captions: str = ''
  label: str = ''
  num_clips: int = 1000
  num_classes: int = 100
  clips_per_class: int = 50
  beside: str = ''
  runs: str = ''
  measure: str = ''
  seed: int = 0

  def __post_init__(self):
    for key, least in (('num_clips', 1), ('num_classes', 2), ('clips_per_class', 1),
                       ('seed', 0)):
      if getattr(self, key) < least:
        raise ValueError(f'{key}={getattr(self, key)}: expected {least} or more')
    if bool(self.runs) != bool(self.measure):
      raise ValueError(f'runs={self.runs!r}, measure={self.measure!r}: expected both '
                       'or none')


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Describes the checkpoints of a run: the section `checkpoint` of a config.

  Attributes:
    every_steps: the number of steps between two checkpoints.
    keep: the number of newest checkpoints to keep.
  """
  every_steps: int = 1000
  keep: int = 2

  def __post_init__(self):
    if min(self.every_steps, self.keep) < 1:
      raise ValueError(f'every_steps={self.every_steps}, keep={self.keep}: expected 1 '
                       'or more')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Holds all objects that a config describes.

  Attributes:
    config: the config.
    task: model, losses and optimizer.
    reader: reads the training clips.
    checkpoint: when to save.
    evaluations: by section name.
    figures: of `--mode=figures`.
    hooks: by section name.
    initial: the model's variables from the checkpoint that the run starts from. Entries
      that are shapes only are initialized randomly. None for a random start, and for a
      run that resumes.
  """
  config: Config
  task: train_step.Task
  reader: Reader
  checkpoint: Checkpoint
  evaluations: Mapping[str, evaluation.Evaluation]
  figures: Figures
  hooks: Mapping[str, hooks_lib.Hook]
  initial: dict[str, Any] | None = None

  def random_state(self) -> train_step.State:
    """Returns the randomly initialized state of step 0."""
    return self.task.init(self.reader.window.batch(self.config.batch_size))

  def untrained(self) -> train_step.State:
    """Returns a randomly initialized state without optimizer state and average.

    Weights of a checkpoint that replace its parameters are averaged ones if available.
    """
    return self.random_state().replace(opt_state=(), average=None)

  def load(self, path: str, allow_random_head: bool = True) -> dict[str, Any]:
    """Returns the model's variables from a checkpoint, and shapes for missing ones.

    Args:
      path: of the checkpoint (`weights.read`).
      allow_random_head: accept a checkpoint without a head for the model.

    Raises:
      UserError: the checkpoint does not fit the model.
    """
    config, loaded = weights.read(path)
    inherit.check_fits(self.config.model, config['model'], path)
    classes = self.reader.labels
    label_file = checkpoint_lib.split(path)[0] / labels.FILE_NAME
    if classes and label_file.exists() and [one.names for one in labels.read(
        label_file, [one.column for one in classes], classes[0].multi_label)] != [
            one.names for one in classes]:
      logging.warning('%s was trained on other classes (its %s)', path,
                      labels.FILE_NAME)
      loaded['params'].pop('head', None)
    return weights.merge(self.task.model, self._shapes(), loaded, path,
                         allow_random_head)

  def read_initial(self) -> dict[str, Any] | None:
    """Returns `initial`: from a checkpoint, from word vectors only, or None."""
    if self.config.init_from:
      return self.load(self.config.init_from)
    tables, variables = self.task.model.word_tables(), None
    for (*path, name), file in tables.items():
      if not file:
        logging.warning('The released code does not train its word vectors, but here '
                        'they are random; set config.model.text.word_vectors to a file '
                        'of vectors, or set --config.init_from=CHECKPOINT')
        continue
      variables = variables or self._shapes()
      table = variables
      for key in path:
        table = table[key]
      random = layers.small_init(jax.random.key(self.config.seed), table[name].shape)
      table[name] = word_vectors.load(file, self.reader.tokenizer, np.asarray(random))
    return variables

  def _shapes(self) -> dict[str, Any]:
    """Returns the shapes of the model's variables."""
    return train_step.variables(jax.eval_shape(self.random_state))


def make(config: Settings, workdir: pathlib.Path,
         check: Callable[[], None] = lambda: None, weights_from: str = '',
         extend: bool = False) -> Experiment:
  """Builds the objects that a config describes.

  Args:
    config: a config of `configs/`, as nested dicts.
    workdir: the run's workdir; keeps config, vocabulary and notes on bad files.
    check: called before each batch of an evaluation; may raise to stop it.
    weights_from: a checkpoint that replaces `init_from` as the source of vocabulary
      and classes. No weights are loaded now; the caller uses `Experiment.load`.
    extend: continue the run of the workdir to a larger `total_steps`
      (`run_config.extended`).

  Raises:
    UserError: names the invalid key or file.
  """
  source = weights_from or config.get('init_from', '')
  config = inherit.inherit(config, source, workdir)
  config, classes = dataset.count_classes(config, source, workdir)
  config = run_config.extended(config, workdir, extend)
  # An evaluation may resume after its run was extended.
  run_config.compare(config, workdir,
                     run_config.LENGTH if extend or weights_from else ())
  c = call('', Config, config)
  task = make_task(c)
  # A run with a checkpoint resumes from it.
  begun = bool(c.total_steps and checkpoint_lib.steps(workdir))
  data = call('data', dataset.Data, c.data)
  if c.total_steps and not (data.path or weights_from):
    raise UserError('config.data.path: is empty; expected a folder of media files, a '
                    'manifest or shards (docs/data.md)')
  if c.optim is None and not (source or begun):
    raise UserError('config.init_from: is empty; a config without training needs a '
                    'checkpoint to evaluate')
  if task.model.needs_checkpoint and not (source or begun):
    raise UserError(f'config.init_from: is empty; the model {c.model["name"]} needs a '
                    'checkpoint to start from')
  if source and not begun:
    weights.check_exists(source)
  window = call('window', Window, c.window)
  reader = dataset.open_reader(data, window, task.model.vocabulary_size, classes,
                               source, workdir)
  run = _join(c, task, reader, check)
  if not (begun or weights_from):
    run = dataclasses.replace(run, initial=run.read_initial())
  run_config.claim(config, workdir, reader, extend)    # last: an error writes no file
  return run


def is_begun(config: Settings, workdir: pathlib.Path) -> bool:
  """Returns whether all files that `make` writes exist, so no process must wait."""
  if not (workdir / checkpoint_lib.CONFIG_FILE).exists():
    return False
  config = inherit.inherit(config, config.get('init_from', ''), workdir)
  return dataset.is_prepared(call('data', dataset.Data, config.get('data', {})))


def model_and_clip(config: Settings
                   ) -> tuple[models.MultimodalModel, dict[str, Any]]:
  """Returns the model of a config, and the shapes of a batch of one clip."""
  config = inherit.inherit(config, config.get('init_from', ''))
  window = call('window', Window, config['window'])
  model = models.from_config(config['model'])
  return model, jax.eval_shape(augment_lib.normalize, window.batch(1))


def make_step(config: Settings, devices: Sequence[Any] | None = None
              ) -> tuple[train_step.Task, train_step.State,
                         dict[str, jax.ShapeDtypeStruct]]:
  """Builds the training step of a config as in a run, without reading data.

  Args:
    config: a config of `configs/`, as nested dicts.
    devices: by default all devices. For devices of a topology the step can only be
      compiled (`task.train_step.lower(task, state, batch)`).

  Returns:
    The task, and the shapes, types and shardings of its state and of its batch.

  Raises:
    UserError: names a key that is invalid, or whose value would come from the data.
  """
  c = call('', Config, inherit.inherit(config, config.get('init_from', '')))
  task = make_task(c, devices)
  batch = call('window', Window, c.window).batch(1)
  if isinstance(task.model.head, heads.Classifier):
    if not task.model.head.num_classes:
      raise UserError('config.model.head.num_classes: missing; set it, because no data '
                      'is read to count the classes')
    columns = call('data', dataset.Data, c.data).columns or ('label',)
    batch['labels'] = {column: np.zeros((1, count), bool)
                       for column, count in _by_column(task.model.head, columns)}
  batch = _shapes(batch, c.batch_size)
  _check_losses(task, batch)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding.rows(task.mesh)), batch)
  state = jax.eval_shape(task.init, batch)
  return task, jax.tree.map(
      lambda x, sharding_: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_),
      state, task.shardings(state)), batch


def make_task(c: Config, devices: Sequence[Any] | None = None) -> train_step.Task:
  """Builds model, losses and optimizer of a config.

  Raises:
    UserError: names a key that is invalid or does not fit the others.
  """
  mesh = call('mesh', sharding.make_mesh, c.mesh or {}, batch_size=c.batch_size,
              devices=devices)
  model = models.from_config(c.model, mesh.devices.flat[0])
  window = call('window', Window, c.window)
  if c.batch_size % window.rows_per_clip:
    raise UserError(
        f'config.batch_size={c.batch_size}: counts rows; expected a multiple of '
        f'window.num_shifts * window.num_views={window.rows_per_clip}')
  model.check_window(window)
  augment = call('augment', augment_lib.Augment, c.augment or {})
  losses = {name: losses_lib.build(name, section, num_shifts=window.num_shifts,
                                   num_views=window.num_views,
                                   num_copies=len(augment.copies),
                                   crops=model.num_crops())
            for name, section in (c.losses or {}).items()}
  for name, loss in losses.items():
    num_chunks = getattr(loss, 'num_chunks', 1)
    if c.batch_size % num_chunks:
      raise UserError(f'config.losses.{name}.num_chunks={num_chunks}: expected a '
                      f'divisor of batch_size={c.batch_size}')
  if c.optim is None:    # nothing is trained
    optimizer = optim_lib.Optimizer(optax.set_to_zero(), optax.constant_schedule(0.0),
                                    None)
  else:
    optimizer = call('optim', optim_lib.build, c.optim, total_steps=c.total_steps,
                     layer_of=model.layer_of, extended=c.extended)
  return train_step.Task(
      model, losses, optimizer.update, optimizer.schedule, c.seed,
      augment, optimizer.frozen,
      _count_microbatches(c, c.batch_size // window.rows_per_clip, optimizer),
      c.average_decay, optimizer.clip, mesh, sharding.check_rules(c.sharding_rules),
      rows_per_clip=window.rows_per_clip)


def _join(c: Config, task: train_step.Task, reader: Reader,
          check: Callable[[], None]) -> Experiment:
  """Joins task and reader, checks that they fit, and builds what uses both."""
  task = dataclasses.replace(task, num_clips=len(reader.clips))
  _check_classes(reader.labels, task)
  _check_losses(task, _shapes(jax.tree.map(lambda x: x[None], reader.empty()),
                              c.batch_size))
  if task.frozen is not None:    # checks the rules before any file is written
    jax.eval_shape(task.init, reader.window.batch(c.batch_size))

  def predict(state, batch):
    check()
    return task.predict(state, sharding.to_devices(batch, task.mesh))

  given = dict(reader=reader, predict=predict, batch_size=c.batch_size)
  return Experiment(
      c, task, reader, call('checkpoint', Checkpoint, c.checkpoint or {}),
      {name: evaluation.build(name, section, model=c.model, **given)
       for name, section in c.evals.items()},
      call('figures', Figures, c.figures or {}),
      {name: build(f'hooks.{name}', hooks_lib.HOOKS, section, seed=c.seed, **given)
       for name, section in (c.hooks or {}).items()})


def _count_microbatches(c: Config, num_clips: int, optimizer: optim_lib.Optimizer
                        ) -> int:
  """Returns the number of microbatches: one per replica if replicas are clipped.

  Raises:
    UserError: it does not divide the batch, or is neither 1 nor `clip_replicas`.
  """
  number = c.num_microbatches
  if optimizer.clip is None:
    if number < 1 or num_clips % number:
      raise UserError(f'config.num_microbatches={number}: expected a divisor of the '
                      f'{num_clips} clips of a batch')
    return number
  replicas = c.optim['clip_replicas']
  if num_clips % replicas:
    raise UserError(f'config.optim.clip_replicas={replicas}: expected a divisor of the '
                    f'{num_clips} clips of a batch')
  if number not in (1, replicas):
    raise UserError(
        f'config.num_microbatches={number}: expected 1 or config.optim.clip_replicas='
        f'{replicas}, because the gradient of each replica is clipped separately')
  return replicas


def _shapes(batch: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
  """Returns the shapes and types of a batch of `batch_size` such rows."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), batch)


def _check_losses(task: train_step.Task, batch: Mapping[str, Any]) -> None:
  """Raises UserError unless model and batch provide all arrays that the losses need."""
  outputs = None    # traced once, where an error can name a loss
  for name in task.losses:
    try:
      if outputs is None:
        outputs = task.trace_outputs(batch)
      task.trace_loss(name, outputs, batch)
    except losses_lib.MissingOutput as e:
      raise UserError(
          f'config.losses.{name}: needs {e.needed}; the model and data provide '
          f'{", ".join(e.available) or "none"}; add it to config.model (its modalities '
          'and head), config.window.modalities or config.data (its label), or remove '
          'this loss') from e
    except ValueError as e:
      raise UserError(f'config.losses.{name}: {e}') from e


def _by_column(head: heads.Classifier, columns: Sequence[str]
               ) -> list[tuple[str, int]]:
  """Returns the columns of labels, and the number of classes of each.

  Raises:
    UserError: the classifier has other columns.
  """
  count = head.num_classes
  if not isinstance(count, Mapping) and len(columns) == 1:
    return [(columns[0], count)]
  if not isinstance(count, Mapping) or count.keys() != set(columns):
    shown = dict(count) if isinstance(count, Mapping) else count
    raise UserError(f'config.model.head.num_classes={shown}: expected a number for '
                    f'each column of config.data.label, {", ".join(columns)}')
  return [(column, count[column]) for column in columns]


def _check_classes(classes: Sequence[labels.Labels], task: train_step.Task) -> None:
  """Raises UserError unless labels, classifier and loss fit together.

  A single class only causes a warning.
  """
  if classes and isinstance(task.model.head, heads.Classifier):
    counts = _by_column(task.model.head, [one.column for one in classes])
    for one, (column, count) in zip(classes, counts, strict=True):
      if count != len(one.names):
        place = f'.{column}' if len(counts) > 1 else ''
        raise UserError(
            f'config.model.head.num_classes{place}={count}: {one.source} has '
            f'{len(one.names)} classes; make them equal, or set config.data.label_map '
            'to the list of all classes')
      if len(one.names) == 1 and not one.multi_label:
        logging.warning('config.data.label=%r: %s has only one class, %r, so there is '
                        'nothing to learn; expected two or more', column, one.source,
                        one.names[0])
  for name, loss in task.losses.items():
    if classes and classes[0].multi_label and isinstance(loss, classification.Softmax):
      raise UserError(f"config.losses.{name}.name='softmax': needs one class per clip; "
                      "with config.data.multi_label use 'bce'")
