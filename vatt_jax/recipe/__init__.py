"""From a config to the things it names; nothing else reads configs.

Every section of a config becomes the keyword arguments of one function, so a
key that nobody takes is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import inspect
import json
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from vatt_jax import checkpoint as checkpoint_lib
from vatt_jax import multi_host
from vatt_jax import sharding
from vatt_jax import step
from vatt_jax import weights
from vatt_jax.errors import UserError
from vatt_jax.inputs import augment
from vatt_jax.inputs import labels
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import text
from vatt_jax.inputs import word_vectors
from vatt_jax.models import build
from vatt_jax.models import layers
from vatt_jax.models import multimodal
from vatt_jax.recipe import data as data_section
from vatt_jax.recipe import evals as evals_section
from vatt_jax.recipe import task as task_section
from vatt_jax.settings import call
from vatt_jax.settings import check_keys
from vatt_jax.settings import Settings

# Of a config, while it runs: what is drawn, and how the same is computed.
_MAY_CHANGE = ('figures.', 'mesh', 'sharding_rules', 'model.attention', 'model.remat',
               'model.scan_layers')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that a config says, built.

  Of `initial`, the model's variables that a checkpoint gives the run, what is only
  a shape starts from random. `load(path, allow_random_head)` gives the same of any
  other checkpoint (`weights.read`, `weights.merge`).
  """
  seed: int
  total_steps: int
  batch_size: int
  log_every_steps: int
  initial: dict[str, Any] | None
  load: Callable[[str, bool], dict[str, Any]]
  checkpoint: dict[str, int]
  reader: pipeline.Reader
  task: step.Task
  evaluations: dict[str, evals_section.Evaluation]
  figures: evals_section.Figures


def make(config: Settings, workdir: pathlib.Path,
          check: Callable[[], None] = lambda: None, weights_from: str = '') -> Recipe:
  """Builds what a config says.

  Args:
    config: a recipe of `configs/`, as nested dicts.
    workdir: of the run; keeps the config, the vocabulary and notes on bad files.
    check: called before each batch of an evaluation, may raise to stop it.
    weights_from: in place of `init_from`, where weights will come from by and by,
      through `Recipe.load`; now it gives words and classes, and no weights.

  Raises:
    UserError: names the key or file that is wrong.
  """
  source = weights_from or config.get('init_from', '')
  config, classes = data_section.count_classes(config, source, workdir)
  _compare(config, workdir)
  given = dict(workdir=workdir, check=check, weights_from=weights_from, classes=classes)
  check_keys('', _build, config, given)
  run = _build(**config, **given)
  _claim(config, workdir, run)    # last: a mistyped config leaves no trace
  return run


def model_and_clip(config: Settings) -> tuple[multimodal.Vatt, dict[str, Any]]:
  """The model of a recipe, and the shapes of one clip as the model takes it."""
  window = call('window', pipeline.Window, config['window'])
  model = call('model', build.build_model, config['model'])
  return model, jax.eval_shape(augment.normalize, window.batch(1))


def make_step(config: Settings, devices: Sequence[Any] | None = None
              ) -> tuple[step.Task, step.State, dict[str, jax.ShapeDtypeStruct]]:
  """The step of a recipe, the very one that its run takes, without any data.

  Args:
    config: a recipe of `configs/`, as nested dicts.
    devices: by default all that there are; those of a topology can only be compiled
      for (`task.train_step.lower(task, state, batch)`).

  Returns:
    The task, and the shapes, types and shardings of its state and of its batch.

  Raises:
    UserError: names the key that is wrong, or that only the data would tell.
  """
  keys = inspect.signature(_task).parameters.keys() - {'devices'}
  task = _task(**{k: v for k, v in config.items() if k in keys}, devices=devices)
  batch = call('window', pipeline.Window, config['window']).batch(1)
  if step.LABEL in task.terms:
    if not task.model.head.num_classes:
      raise UserError('config.model.head.num_classes: missing; set it, for no data is '
                      'read that would tell')
    batch['label'] = np.zeros((1, task.model.head.num_classes), bool)
  rows = sharding.rows(task.mesh)
  batch = {k: jax.ShapeDtypeStruct((config['batch_size'], *v.shape[1:]), v.dtype,
                                   sharding=rows) for k, v in batch.items()}
  state = jax.eval_shape(task.init, batch)
  return task, jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      state, task.shardings(state)), batch


def _compare(config: Settings, workdir: pathlib.Path) -> None:
  """The config of a workdir that has one must be this one, but for what may change.

  A switch that one of them lacks is off there, and a file is not given.
  """
  path = workdir / checkpoint_lib.CONFIG_FILE
  if not path.exists():
    return
  # Through JSON, so that tuples equal the lists they are read back as.
  ours = _flat(json.loads(json.dumps(config)))
  theirs = _flat(json.loads(path.read_text(encoding='utf-8')))
  for key in sorted(ours.keys() | theirs.keys()):
    if key.startswith(_MAY_CHANGE):
      continue
    if (ours.get(key) or False) != (theirs.get(key) or False):
      raise UserError(
          f'{workdir}: holds a run of another config, {key}={theirs.get(key)!r} '
          f'where this one has {ours.get(key)!r}; choose another --workdir or '
          'move that folder away, or give the same config to go on with that run')


def _claim(config: Settings, workdir: pathlib.Path, run: Recipe) -> None:
  """Notes vocabulary and config in a new workdir, the config last and whole."""
  if (workdir / checkpoint_lib.CONFIG_FILE).exists() or not multi_host.is_first():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  tokenizer, classes = run.reader.tokenizer, run.reader.labels
  tokenizer.save(workdir / tokenizer.file_name)
  if classes is not None:
    classes.save(workdir / labels.FILE_NAME)
  checkpoint_lib.write_config(workdir, config)


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  return {k: v for name, branch in tree.items()
          for k, v in _flat(branch, f'{prefix}.{name}' if prefix else name).items()}


def _task(*, seed: int, total_steps: int, batch_size: int, window: Settings,
          model: Settings, losses: Mapping[str, Settings] | None = None,
          optim: Settings | None = None, augment: Settings | None = None,
          num_parts: int = 1, average_decay: float = 0.0,
          mesh: Settings | None = None,
          sharding_rules: Sequence[sharding.Rule] = sharding.RULES,
          devices: Sequence[Any] | None = None) -> step.Task:
  """The sections of a config that say what one step computes, and where."""
  return task_section.make(
      seed, total_steps, batch_size, call('window', pipeline.Window, window), model,
      losses or {}, optim, augment or {}, num_parts, average_decay,
      call('mesh', sharding.make_mesh, mesh or {}, batch_size=batch_size,
           devices=devices), sharding_rules)


def _build(*, workdir: pathlib.Path, check: Callable[[], None], weights_from: str,
           classes: labels.Labels | None, seed: int, total_steps: int, batch_size: int,
           log_every_steps: int, data: Settings, window: Settings, model: Settings,
           evals: Mapping[str, Settings],
           losses: Mapping[str, Settings] | None = None,
           optim: Settings | None = None, checkpoint: Settings | None = None,
           augment: Settings | None = None, figures: Settings | None = None,
           init_from: str = '', num_parts: int = 1, average_decay: float = 0.0,
           mesh: Settings | None = None,
           sharding_rules: Sequence[sharding.Rule] = sharding.RULES) -> Recipe:
  """The sections of a config; a run of no steps needs no losses, optim, checkpoint."""
  for name, section in dict(losses=losses, optim=optim, checkpoint=checkpoint).items():
    if total_steps and section is None:
      raise UserError(f'config.{name}: missing')
  _check_numbers(total_steps=(total_steps, 0), batch_size=(batch_size, 1),
                 log_every_steps=(log_every_steps, 1))
  sizes = call('window', pipeline.Window, window)
  task = _task(
      seed=seed, total_steps=total_steps, batch_size=batch_size, window=window,
      model=model, losses=losses, optim=optim, augment=augment, num_parts=num_parts,
      average_decay=average_decay, mesh=mesh, sharding_rules=sharding_rules)
  given, source = call('data', data_section.Data, data), weights_from or init_from
  # Then it goes on from there.
  begun = bool(total_steps and checkpoint_lib.steps(workdir))
  if total_steps and not (given.path or weights_from):
    raise UserError('config.data.path: is empty; expected a folder of media files, a '
                    'manifest or shards (docs/data.md)')
  if optim is None and not (source or begun):
    raise UserError('config.init_from: is empty; a recipe that trains nothing needs a '
                    'checkpoint to evaluate')
  if source and not begun:
    weights.check_exists(source)
  reader = data_section.open_reader(given, sizes, model.get('text'), classes, source,
                                    workdir)
  task_section.check_classes(reader.labels, task)
  if task.frozen is not None:    # rules must fit: told before anything is written
    jax.eval_shape(task.init, sizes.batch(batch_size))
  load = functools.partial(_load, task, sizes.batch(batch_size),
                           model.get('variant') == 'release', reader.labels)
  initial = None if begun or weights_from else _initial(
      init_from, load, model, task, sizes.batch(batch_size), reader.tokenizer)

  def predict(state, batch):
    check()
    return task.predict(state, sharding.to_devices(batch, task.mesh))

  evaluations = {
      name: call(f'evals.{name}', evals_section.make_evaluation, section,
                 where=f'evals.{name}', reader=reader, predict=predict,
                 batch_size=batch_size, model=model)
      for name, section in evals.items()}
  return Recipe(
      seed, total_steps, batch_size, log_every_steps, initial, load,
      call('checkpoint', _checkpoint, checkpoint or {}), reader, task,
      evaluations, call('figures', evals_section.Figures, figures or {}))


def _check_numbers(**numbers: tuple[int, int]) -> None:
  """Raises UserError unless each is at least as large as what stands beside it."""
  for name, (value, least) in numbers.items():
    if value < least:
      raise UserError(f'config.{name}={value}: expected {least} or more')


def _initial(init_from: str, load: Callable[..., Any], model: Settings,
             task: step.Task, batch: Mapping[str, Any], tokenizer: text.Tokenizer
             ) -> dict[str, Any] | None:
  """Returns `Recipe.initial`: of a checkpoint, of word vectors alone, or None."""
  if init_from:
    return load(init_from)
  if model.get('variant') != 'release' or not model.get('text'):
    return None
  if not model['text'].get('word_vectors'):
    logging.warning('The released code keeps its word vectors as they are, and here '
                    'they are random: set config.model.text.word_vectors to a file of '
                    'vectors, or give --config.init_from=CHECKPOINT')
    return None
  variables = step.variables(jax.eval_shape(task.init, batch))
  tables = variables['frozen']['tokenizers_text']
  table = layers.small_init(jax.random.key(task.seed), tables['embedding'].shape)
  tables['embedding'] = word_vectors.load(model['text']['word_vectors'], tokenizer,
                                          np.asarray(table))
  return variables


def _load(task: step.Task, batch: Mapping[str, Any], spline: bool,
          classes: labels.Labels | None, path: str, allow_random_head: bool = True
          ) -> dict[str, Any]:
  """The variables that a checkpoint gives the model; of the rest the shapes."""
  state = jax.eval_shape(task.init, batch)
  _, theirs = weights.read(path)
  known = checkpoint_lib.split(path)[0] / labels.FILE_NAME
  if classes is not None and known.exists() and (
      labels.read(known, classes.column, classes.several).names != classes.names):
    logging.warning('%s tells other classes apart (its %s)', path, labels.FILE_NAME)
    theirs['params'].pop('head', None)
  return weights.merge(step.variables(state), theirs, path, spline, allow_random_head)


def _checkpoint(every_steps: int = 1000, keep: int = 2) -> dict[str, int]:
  if min(every_steps, keep) < 1:
    raise ValueError(f'every_steps={every_steps}, keep={keep}: expected 1 or more')
  return dict(every_steps=every_steps, keep=keep)
