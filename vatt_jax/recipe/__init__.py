"""Builds the objects that a config describes; no other module reads configs.

Every section of a config becomes the keyword arguments of one function, so an
unknown key is an error.
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
from vatt_jax.inputs import text
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.models import multimodal
from vatt_jax.recipe import data as data_section
from vatt_jax.recipe import evals as evals_section
from vatt_jax.recipe import inherit as inherit_lib
from vatt_jax.recipe import task as task_section
from vatt_jax.weights import load as weights
from vatt_jax.weights import word_vectors

# Keys that may change during a run: figures, and settings that do not change results.
_MAY_CHANGE = ('figures.', 'mesh', 'sharding_rules', 'model.attention', 'model.remat',
               'model.scan_layers')
# Keys that set the length of a run.
_LENGTH = ('total_steps', 'extended')
# Keys that older configs lack -> the values that reproduce the older behavior.
_ABSENT = {'optim.clip_replicas': 1, 'window.short': 'hold'}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Holds all objects that a config describes.

  `initial` has the model's variables from the checkpoint that the run starts from.
  Entries that are shapes only are initialized randomly. `load(path,
  allow_random_head)` returns the same for any other checkpoint (`weights.read`,
  `weights.merge`).
  """
  seed: int
  total_steps: int
  batch_size: int
  log_every_steps: int
  initial: dict[str, Any] | None
  load: Callable[[str, bool], dict[str, Any]]
  checkpoint: dict[str, int]
  reader: Reader
  task: train_step.Task
  evaluations: dict[str, evals_section.Evaluation]
  figures: evals_section.Figures
  hooks: dict[str, hooks_lib.Hook]


def make(config: Settings, workdir: pathlib.Path,
          check: Callable[[], None] = lambda: None, weights_from: str = '',
          extend: bool = False) -> Recipe:
  """Builds the objects that a config describes.

  Args:
    config: a config of `configs/`, as nested dicts.
    workdir: the run's workdir; keeps config, vocabulary and notes on bad files.
    check: called before each batch of an evaluation; may raise to stop it.
    weights_from: a checkpoint that replaces `init_from` as the source of vocabulary
      and classes. No weights are loaded now; the caller uses `Recipe.load`.
    extend: continue the run of the workdir to a larger `total_steps` (`_extended`).

  Raises:
    UserError: names the invalid key or file.
  """
  source = weights_from or config.get('init_from', '')
  config = inherit_lib.inherit(config, source, workdir)
  config, classes = data_section.count_classes(config, source, workdir)
  config = _extended(config, workdir, extend)
  # An evaluation may resume after its run was extended.
  _compare(config, workdir, (_LENGTH if extend or weights_from else ()))
  given = dict(workdir=workdir, check=check, weights_from=weights_from, classes=classes)
  check_keys('', _build, config, given)
  run = _build(**config, **given)
  _claim(config, workdir, run, extend)    # last: an invalid config writes no file
  return run


def is_begun(config: Settings, workdir: pathlib.Path) -> bool:
  """Returns whether all files that `make` writes exist, so no process must wait."""
  if not (workdir / checkpoint_lib.CONFIG_FILE).exists():
    return False
  config = inherit_lib.inherit(config, config.get('init_from', ''), workdir)
  return data_section.is_prepared(
      call('data', data_section.Data, config.get('data', {})))


def model_and_clip(config: Settings
                   ) -> tuple[multimodal.MultimodalModel, dict[str, Any]]:
  """Returns the model of a config, and the shapes of a batch of one clip."""
  config = inherit_lib.inherit(config, config.get('init_from', ''))
  window = call('window', Window, config['window'])
  model = models.from_config(config['model'])
  return model, jax.eval_shape(augment.normalize, window.batch(1))


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
  config = inherit_lib.inherit(config, config.get('init_from', ''))
  keys = inspect.signature(_task).parameters.keys() - {'devices'}
  task = _task(**{k: v for k, v in config.items() if k in keys}, devices=devices)
  batch = call('window', Window, config['window']).batch(task.rows_per_clip)
  if isinstance(task.model.head, heads.Classifier):
    if not task.model.head.num_classes:
      raise UserError('config.model.head.num_classes: missing; set it, because no data '
                      'is read to count the classes')
    batch['label'] = np.zeros((task.rows_per_clip, task.model.head.num_classes), bool)
  task_section.check_losses(task, batch)
  rows = sharding.rows(task.mesh)
  batch = {k: jax.ShapeDtypeStruct((config['batch_size'], *v.shape[1:]), v.dtype,
                                   sharding=rows) for k, v in batch.items()}
  state = jax.eval_shape(task.init, batch)
  return task, jax.tree.map(
      lambda x, sharding_: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_),
      state, task.shardings(state)), batch


def _extended(config: Settings, workdir: pathlib.Path, extend: bool) -> Settings:
  """Returns the config with `extended`, the extensions of its run.

  Each extension is a pair: the step reached, and `total_steps` until then. The
  workdir's config keeps them, so that an extended run resumes without the flag.

  Raises:
    UserError: no run to extend, or `total_steps` is not larger.
  """
  exists = (workdir / checkpoint_lib.CONFIG_FILE).exists()
  run_config = checkpoint_lib.read_config(workdir) if exists else {}
  old, new = run_config.get('total_steps', 0), config['total_steps']
  history = run_config.get('extended', [])
  if extend and new != old:
    steps = checkpoint_lib.steps(workdir)
    if not (old and steps):
      raise UserError(f'--extend: {workdir} holds no checkpoint of a run to extend; '
                      'remove the flag')
    if new < old:
      raise UserError(f'--extend: config.total_steps={new}: expected more than '
                      f'{old}, the total_steps of the run in {workdir}')
    history = [*history, [steps[-1], old]]
    logging.info('Extending the run from step %d: the rest of its learning-rate '
                 'schedule, up to step %d, is spread up to step %d', *history[-1], new)
  return {**config, 'extended': history} if history else config


def _compare(config: Settings, workdir: pathlib.Path, may_change: Sequence[str] = ()
             ) -> None:
  """Raises UserError if the workdir has a config that differs from this one.

  Keys in `_MAY_CHANGE` and `may_change` are not compared. A key that is absent or
  empty in a config has its value in `_ABSENT`, or counts as off.
  """
  path = workdir / checkpoint_lib.CONFIG_FILE
  if not path.exists():
    return
  # Through JSON, so that tuples compare equal to the lists that JSON returns.
  new = _flat(json.loads(json.dumps(config)))
  old = _flat(checkpoint_lib.read_config(workdir))
  value = lambda flat, key: flat.get(key, _ABSENT.get(key)) or False
  other = [key for key in sorted(new.keys() | old.keys())
           if not key.startswith((*_MAY_CHANGE, *may_change))
           and value(new, key) != value(old, key)]
  if other == ['total_steps'] and new['total_steps'] > old.get(*other, 0) > 0:
    raise UserError(
        f'{workdir}: holds a run of total_steps={old["total_steps"]}, and with '
        f'total_steps={new["total_steps"]} its learning rates would change; use '
        '--extend, which spreads the rest of the schedule over the remaining steps, '
        f'or set --config.init_from={workdir} and another --workdir')
  if other:
    key = other[0]
    raise UserError(
        f'{workdir}: holds a run of another config, '
        f'{key}={old.get(key, _ABSENT.get(key))!r} where this one has '
        f'{new.get(key, _ABSENT.get(key))!r}; choose another --workdir, move that '
        'folder away, or use the same config to resume that run')


def _claim(config: Settings, workdir: pathlib.Path, run: Recipe,
           extend: bool = False) -> None:
  """Writes vocabulary, classes and config to a new workdir; the config last.

  An extended run keeps its vocabulary, and its config is rewritten.
  """
  exists = (workdir / checkpoint_lib.CONFIG_FILE).exists()
  if not hosts.is_first() or (exists and not extend):
    return
  if exists:
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
  """Builds the task from the sections of a config that define a training step."""
  return task_section.make(
      seed, total_steps, batch_size, call('window', Window, window), model,
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
  """Builds a Recipe from the sections of a config.

  A run without steps needs no sections `losses`, `optim` and `checkpoint`.
  """
  for name, section in dict(losses=losses, optim=optim, checkpoint=checkpoint).items():
    if total_steps and section is None:
      raise UserError(f'config.{name}: missing')
  _check_numbers(total_steps=(total_steps, 0), batch_size=(batch_size, 1),
                 log_every_steps=(log_every_steps, 1))
  sizes = call('window', Window, window)
  task = _task(
      seed=seed, total_steps=total_steps, batch_size=batch_size, window=window,
      model=model, losses=losses, optim=optim, augment=augment,
      num_microbatches=num_microbatches, average_decay=average_decay, mesh=mesh,
      sharding_rules=sharding_rules, extended=extended)
  given, source = call('data', data_section.Data, data), weights_from or init_from
  # A run with a checkpoint resumes from it.
  begun = bool(total_steps and checkpoint_lib.steps(workdir))
  if total_steps and not (given.path or weights_from):
    raise UserError('config.data.path: is empty; expected a folder of media files, a '
                    'manifest or shards (docs/data.md)')
  if optim is None and not (source or begun):
    raise UserError('config.init_from: is empty; a config without training needs a '
                    'checkpoint to evaluate')
  if source and not begun:
    weights.check_exists(source)
  reader = data_section.open_reader(given, sizes, model.get('text'), classes, source,
                                    workdir)
  task = dataclasses.replace(task, num_clips=len(reader.clips))
  task_section.check_classes(reader.labels, task)
  task_section.check_losses(task, jax.tree.map(
      lambda x: np.stack([x] * sizes.rows_per_clip), reader.empty()))
  if task.frozen is not None:    # checks the rules before any file is written
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
  """Builds a hook, passing those of the given arguments that it accepts."""
  where = f'hooks.{section_name}'

  def make(name: str, **fields: Any) -> hooks_lib.Hook:
    kind = choose(hooks_lib.HOOKS, name)
    takes = inspect.signature(kind).parameters
    return call(where, kind, fields, **{k: v for k, v in given.items() if k in takes})
  return call(where, make, section)


def _check_numbers(**numbers: tuple[int, int]) -> None:
  """Raises UserError for a value below its minimum: name=(value, minimum)."""
  for name, (value, least) in numbers.items():
    if value < least:
      raise UserError(f'config.{name}={value}: expected {least} or more')


def _initial(init_from: str, load: Callable[..., Any], model: Settings,
             task: train_step.Task, batch: Mapping[str, Any], tokenizer: text.Tokenizer
             ) -> dict[str, Any] | None:
  """Returns `Recipe.initial`: from a checkpoint, from word vectors only, or None."""
  if init_from:
    return load(init_from)
  if model.get('variant') != 'release' or not model.get('text'):
    return None
  if not model['text'].get('word_vectors'):
    logging.warning('The released code does not train its word vectors, but here they '
                    'are random; set config.model.text.word_vectors to a file of '
                    'vectors, or set --config.init_from=CHECKPOINT')
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
  """Returns the model's variables from a checkpoint, and shapes for missing ones."""
  state = jax.eval_shape(task.init, batch)
  config, loaded = weights.read(path)
  inherit_lib.check_fits(model, config['model'], path)
  spline = model.get('variant') == 'release'
  label_file = checkpoint_lib.split(path)[0] / labels.FILE_NAME
  if classes is not None and label_file.exists() and (
      labels.read(label_file, classes.column, classes.multi_label).names
      != classes.names):
    logging.warning('%s was trained on other classes (its %s)', path, labels.FILE_NAME)
    loaded['params'].pop('head', None)
  return weights.merge(train_step.variables(state), loaded, path, spline,
                       allow_random_head)


def _checkpoint(every_steps: int = 1000, keep: int = 2) -> dict[str, int]:
  if min(every_steps, keep) < 1:
    raise ValueError(f'every_steps={every_steps}, keep={keep}: expected 1 or more')
  return dict(every_steps=every_steps, keep=keep)
