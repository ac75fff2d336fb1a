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
from vatt_jax import hooks as hooks_lib
from vatt_jax import models
from vatt_jax import train_step
from vatt_jax.config import call
from vatt_jax.config import check_keys
from vatt_jax.config import choose
from vatt_jax.config import Settings
from vatt_jax.distributed import hosts
from vatt_jax.distributed import sharding
from vatt_jax.errors import UserError
from vatt_jax.inputs import augment
from vatt_jax.inputs import labels
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import text
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.models import multimodal
from vatt_jax.recipe import data as data_section
from vatt_jax.recipe import evals as evals_section
from vatt_jax.recipe import inherit as inherit_lib
from vatt_jax.recipe import task as task_section
from vatt_jax.weights import load as weights
from vatt_jax.weights import word_vectors

# Of a config, while it runs: what is drawn, and how the same is computed.
_MAY_CHANGE = ('figures.', 'mesh', 'sharding_rules', 'model.attention', 'model.remat',
               'model.scan_layers')
# What says how long a run is.
_LENGTH = ('total_steps', 'extended')
# Keys that older configs lack, and the values that mean what these configs meant.
_ABSENT = {'optim.clip_replicas': 1, 'window.short': 'hold'}


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
  task: train_step.Task
  evaluations: dict[str, evals_section.Evaluation]
  figures: evals_section.Figures
  hooks: dict[str, hooks_lib.Hook]


def make(config: Settings, workdir: pathlib.Path,
          check: Callable[[], None] = lambda: None, weights_from: str = '',
          extend: bool = False) -> Recipe:
  """Builds what a config says.

  Args:
    config: a recipe of `configs/`, as nested dicts.
    workdir: of the run; keeps the config, the vocabulary and notes on bad files.
    check: called before each batch of an evaluation, may raise to stop it.
    weights_from: in place of `init_from`, where weights will come from by and by,
      through `Recipe.load`; now it gives words and classes, and no weights.
    extend: go on with the run of the workdir to a larger `total_steps` (`_extended`).

  Raises:
    UserError: names the key or file that is wrong.
  """
  source = weights_from or config.get('init_from', '')
  config = inherit_lib.inherit(config, source, workdir)
  config, classes = data_section.count_classes(config, source, workdir)
  config = _extended(config, workdir, extend)
  # An evaluation may go on where its run was made longer.
  _compare(config, workdir, (_LENGTH if extend or weights_from else ()))
  given = dict(workdir=workdir, check=check, weights_from=weights_from, classes=classes)
  check_keys('', _build, config, given)
  run = _build(**config, **given)
  _claim(config, workdir, run, extend)    # last: a mistyped config leaves no trace
  return run


def is_begun(config: Settings, workdir: pathlib.Path) -> bool:
  """Returns whether `make` finds all that it would make, so that no process waits."""
  if not (workdir / checkpoint_lib.CONFIG_FILE).exists():
    return False
  config = inherit_lib.inherit(config, config.get('init_from', ''), workdir)
  return data_section.is_prepared(
      call('data', data_section.Data, config.get('data', {})))


def model_and_clip(config: Settings
                   ) -> tuple[multimodal.MultimodalModel, dict[str, Any]]:
  """The model of a recipe, and the shapes of one clip as the model takes it."""
  config = inherit_lib.inherit(config, config.get('init_from', ''))
  window = call('window', pipeline.Window, config['window'])
  model = models.from_config(config['model'])
  return model, jax.eval_shape(augment.normalize, window.batch(1))


def make_step(config: Settings, devices: Sequence[Any] | None = None
              ) -> tuple[train_step.Task, train_step.State,
                         dict[str, jax.ShapeDtypeStruct]]:
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
  config = inherit_lib.inherit(config, config.get('init_from', ''))
  keys = inspect.signature(_task).parameters.keys() - {'devices'}
  task = _task(**{k: v for k, v in config.items() if k in keys}, devices=devices)
  batch = call('window', pipeline.Window, config['window']).batch(1)
  if isinstance(task.model.head, heads.Classifier):
    if not task.model.head.num_classes:
      raise UserError('config.model.head.num_classes: missing; set it, for no data is '
                      'read that would tell')
    batch['label'] = np.zeros((1, task.model.head.num_classes), bool)
  task_section.check_losses(task, batch)
  rows = sharding.rows(task.mesh)
  batch = {k: jax.ShapeDtypeStruct((config['batch_size'], *v.shape[1:]), v.dtype,
                                   sharding=rows) for k, v in batch.items()}
  state = jax.eval_shape(task.init, batch)
  return task, jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      state, task.shardings(state)), batch


def _extended(config: Settings, workdir: pathlib.Path, extend: bool) -> Settings:
  """Returns the config with `extended`, the times that its run was made longer.

  Each is a pair, the step that had been reached and `total_steps` until then. The
  workdir keeps them, so that a run that was extended once goes on without a flag.

  Raises:
    UserError: there is no run to extend, or it is not made longer.
  """
  known = (workdir / checkpoint_lib.CONFIG_FILE).exists()
  theirs = checkpoint_lib.read_config(workdir) if known else {}
  old, new = theirs.get('total_steps', 0), config['total_steps']
  history = theirs.get('extended', [])
  if extend and new != old:
    steps = checkpoint_lib.steps(workdir)
    if not (old and steps):
      raise UserError(f'--extend: {workdir} holds no checkpoint of a run to go on '
                      'from; leave out the flag')
    if new < old:
      raise UserError(f'--extend: config.total_steps={new}: expected more than '
                      f'{old}, which the run in {workdir} has')
    history = [*history, [steps[-1], old]]
    logging.info('Extending the run from step %d: what is left of its learning-rate '
                 'schedule, up to step %d, is spread to step %d', *history[-1], new)
  return {**config, 'extended': history} if history else config


def _compare(config: Settings, workdir: pathlib.Path, may_change: Sequence[str] = ()
             ) -> None:
  """The config of a workdir that has one must be this one, but for what may change.

  A key that one of them lacks, or leaves empty, has the value of `_ABSENT`, or is off.
  """
  path = workdir / checkpoint_lib.CONFIG_FILE
  if not path.exists():
    return
  # Through JSON, so that tuples equal the lists they are read back as.
  ours = _flat(json.loads(json.dumps(config)))
  theirs = _flat(checkpoint_lib.read_config(workdir))
  value = lambda flat, key: flat.get(key, _ABSENT.get(key)) or False
  other = [key for key in sorted(ours.keys() | theirs.keys())
           if not key.startswith((*_MAY_CHANGE, *may_change))
           and value(ours, key) != value(theirs, key)]
  if other == ['total_steps'] and ours['total_steps'] > theirs.get(*other, 0) > 0:
    raise UserError(
        f'{workdir}: holds a run of total_steps={theirs["total_steps"]}, and with '
        f'total_steps={ours["total_steps"]} its learning rates would change; go on '
        'with --extend, which spreads the rest of the schedule over the steps to come, '
        f'or give --config.init_from={workdir} and another --workdir')
  if other:
    key = other[0]
    raise UserError(
        f'{workdir}: holds a run of another config, '
        f'{key}={theirs.get(key, _ABSENT.get(key))!r} where this one has '
        f'{ours.get(key, _ABSENT.get(key))!r}; choose another --workdir or '
        'move that folder away, or give the same config to go on with that run')


def _claim(config: Settings, workdir: pathlib.Path, run: Recipe,
           extend: bool = False) -> None:
  """Notes vocabulary and config in a new workdir, the config last and whole.

  A run that is made longer keeps its vocabulary, and its config is written anew.
  """
  begun = (workdir / checkpoint_lib.CONFIG_FILE).exists()
  if not hosts.is_first() or (begun and not extend):
    return
  if begun:
    checkpoint_lib.write_config(workdir, config)
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
          num_microbatches: int = 1, average_decay: float = 0.0,
          mesh: Settings | None = None,
          sharding_rules: Sequence[sharding.Rule] = sharding.RULES,
          extended: Sequence[tuple[int, int]] = (),
          devices: Sequence[Any] | None = None) -> train_step.Task:
  """The sections of a config that say what one step computes, and where."""
  return task_section.make(
      seed, total_steps, batch_size, call('window', pipeline.Window, window), model,
      losses or {}, optim, augment or {}, num_microbatches, average_decay,
      call('mesh', sharding.make_mesh, mesh or {}, batch_size=batch_size,
           devices=devices), sharding_rules, extended)


def _build(*, workdir: pathlib.Path, check: Callable[[], None], weights_from: str,
           classes: labels.Labels | None, seed: int, total_steps: int, batch_size: int,
           log_every_steps: int, data: Settings, window: Settings, model: Settings,
           evals: Mapping[str, Settings],
           losses: Mapping[str, Settings] | None = None,
           optim: Settings | None = None, checkpoint: Settings | None = None,
           augment: Settings | None = None, figures: Settings | None = None,
           hooks: Mapping[str, Settings] | None = None,
           init_from: str = '', num_microbatches: int = 1, average_decay: float = 0.0,
           mesh: Settings | None = None,
           sharding_rules: Sequence[sharding.Rule] = sharding.RULES,
           extended: Sequence[tuple[int, int]] = ()) -> Recipe:
  """The sections of a config; a run of no steps needs no losses, optim, checkpoint."""
  for name, section in dict(losses=losses, optim=optim, checkpoint=checkpoint).items():
    if total_steps and section is None:
      raise UserError(f'config.{name}: missing')
  _check_numbers(total_steps=(total_steps, 0), batch_size=(batch_size, 1),
                 log_every_steps=(log_every_steps, 1))
  sizes = call('window', pipeline.Window, window)
  task = _task(
      seed=seed, total_steps=total_steps, batch_size=batch_size, window=window,
      model=model, losses=losses, optim=optim, augment=augment,
      num_microbatches=num_microbatches, average_decay=average_decay, mesh=mesh,
      sharding_rules=sharding_rules, extended=extended)
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
  task = dataclasses.replace(task, num_clips=len(reader.clips))
  task_section.check_classes(reader.labels, task)
  task_section.check_losses(task, {k: v[None] for k, v in reader.empty().items()})
  if task.frozen is not None:    # rules must fit: told before anything is written
    jax.eval_shape(task.init, sizes.batch(batch_size))
  load = functools.partial(_load, task, sizes.batch(batch_size), model, reader.labels)
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
      evaluations, call('figures', evals_section.Figures, figures or {}),
      {name: _hook(name, section, reader=reader, predict=predict,
                   batch_size=batch_size, seed=seed)
       for name, section in (hooks or {}).items()})


def _hook(section_name: str, section: Settings, **given: Any) -> hooks_lib.Hook:
  """Builds a hook, with those of the given arguments that it takes."""
  where = f'hooks.{section_name}'

  def make(name: str, **fields: Any) -> hooks_lib.Hook:
    kind = choose(hooks_lib.HOOKS, name)
    takes = inspect.signature(kind).parameters
    return call(where, kind, fields, **{k: v for k, v in given.items() if k in takes})
  return call(where, make, section)


def _check_numbers(**numbers: tuple[int, int]) -> None:
  """Raises UserError unless each is at least as large as what stands beside it."""
  for name, (value, least) in numbers.items():
    if value < least:
      raise UserError(f'config.{name}={value}: expected {least} or more')


def _initial(init_from: str, load: Callable[..., Any], model: Settings,
             task: train_step.Task, batch: Mapping[str, Any], tokenizer: text.Tokenizer
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
  variables = train_step.variables(jax.eval_shape(task.init, batch))
  tables = variables['frozen']['tokenizers_text']
  table = layers.small_init(jax.random.key(task.seed), tables['embedding'].shape)
  tables['embedding'] = word_vectors.load(model['text']['word_vectors'], tokenizer,
                                          np.asarray(table))
  return variables


def _load(task: train_step.Task, batch: Mapping[str, Any], model: Settings,
          classes: labels.Labels | None, path: str, allow_random_head: bool = True
          ) -> dict[str, Any]:
  """The variables that a checkpoint gives the model; of the rest the shapes."""
  state = jax.eval_shape(task.init, batch)
  config, theirs = weights.read(path)
  inherit_lib.check_fits(model, config['model'], path)
  spline = model.get('variant') == 'release'
  known = checkpoint_lib.split(path)[0] / labels.FILE_NAME
  if classes is not None and known.exists() and (
      labels.read(known, classes.column, classes.several).names != classes.names):
    logging.warning('%s tells other classes apart (its %s)', path, labels.FILE_NAME)
    theirs['params'].pop('head', None)
  return weights.merge(train_step.variables(state), theirs, path, spline,
                       allow_random_head)


def _checkpoint(every_steps: int = 1000, keep: int = 2) -> dict[str, int]:
  if min(every_steps, keep) < 1:
    raise ValueError(f'every_steps={every_steps}, keep={keep}: expected 1 or more')
  return dict(every_steps=every_steps, keep=keep)
