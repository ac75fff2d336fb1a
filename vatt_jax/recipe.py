"""From a config to the things it names: the only module that reads configs.

Every section of a config becomes the keyword arguments of one function, so a
key that nobody takes is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import functools
import inspect
import json
import pathlib
import subprocess
import sys
from typing import Any

from absl import logging
from flax import linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh

from vatt_jax import optim
from vatt_jax import sharding
from vatt_jax import step
from vatt_jax.errors import UserError
from vatt_jax.evaluators import linear
from vatt_jax.evaluators import retrieval
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.models import multimodal
from vatt_jax.models import vatt
from vatt_jax.objectives import contrastive

Settings = Mapping[str, Any]

_CONFIG_FILE, _VOCABULARY_FILE = 'config.json', 'vocabulary.txt'


@dataclasses.dataclass(frozen=True)
class Data:
  """What to train on.

  Attributes:
    path: a folder of media or a manifest (`inputs.sources`).
    captions: a file of timed sentences beside it; empty for none.
    builder: the module of `data/` that makes the folder of `path`, which has its
      name, where it is missing; empty for none.
    max_bad_fraction: the share of broken files that ends the run.
  """
  path: str
  captions: str = ''
  builder: str = ''
  max_bad_fraction: float = 0.1


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluator, and how often it runs during training (0: only at the end)."""
  evaluator: Any
  every_steps: int

  def due(self, step_number: int) -> bool:
    return (self.every_steps > 0 and step_number > 0
            and step_number % self.every_steps == 0)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that a config says, built."""
  seed: int
  total_steps: int
  batch_size: int
  log_every_steps: int
  checkpoint: dict[str, int]
  mesh: Mesh
  reader: pipeline.Reader
  task: step.Task
  evaluations: dict[str, Evaluation]


def build(config: Settings, workdir: pathlib.Path,
          check: Callable[[], None] = lambda: None) -> Recipe:
  """Builds what a config says.

  Args:
    config: a recipe of `configs/`, as nested dicts.
    workdir: of the run; keeps the config, the vocabulary and notes on bad files.
    check: called before each batch of an evaluation, may raise to stop it.

  Raises:
    UserError: names the key or file that is wrong.
  """
  _compare(config, workdir)
  given = dict(workdir=workdir, check=check)
  _check_keys('', _build, config, given)
  run = _build(**config, **given)
  _claim(config, workdir, run)    # last: a mistyped config leaves no trace
  return run


def call(where: str, function: Callable[..., Any], settings: Settings, /,
         **given: Any) -> Any:
  """Calls a function with a section of the config.

  Args:
    where: the section's name.
    function: takes the section's keys as arguments.
    settings: the section.
    **given: arguments that are not the config's.

  Raises:
    UserError: a key that the function doesn't take, one that it needs and is
      missing, or a ValueError of the function's.
  """
  _check_keys(where, function, settings, given)
  try:
    return function(**settings, **given)
  except ValueError as e:
    raise UserError(f'config.{where}: {e}') from e


def _check_keys(where: str, function: Callable[..., Any], settings: Settings,
                given: Collection[str]) -> None:
  """Raises UserError unless the settings are just what else the function needs."""
  dot = f'{where}.' if where else ''
  parameters = inspect.signature(function).parameters.values()
  takes = [p.name for p in parameters
           if p.name not in given and p.kind is not p.VAR_KEYWORD]
  if not any(p.kind is p.VAR_KEYWORD for p in parameters):
    for key in settings:
      if key not in takes:
        raise UserError(f'config.{dot}{key}: nobody takes this key; expected one of '
                        f'{", ".join(takes)}')
  for p in parameters:
    if p.name in takes and p.name not in settings and p.default is p.empty:
      raise UserError(f'config.{dot}{p.name}: missing')


def _compare(config: Settings, workdir: pathlib.Path) -> None:
  """The config of a workdir that has one must be this one."""
  path = workdir / _CONFIG_FILE
  if not path.exists():
    return
  # Through JSON, so that tuples equal the lists they are read back as.
  ours = _flat(json.loads(json.dumps(config)))
  theirs = _flat(json.loads(path.read_text(encoding='utf-8')))
  for key in sorted(ours.keys() | theirs.keys()):
    if ours.get(key) != theirs.get(key):
      raise UserError(
          f'{workdir}: holds a run of another config, {key}={theirs.get(key)!r} '
          f'where this one has {ours.get(key)!r}; choose another --workdir, or '
          'the same config to go on with that run')


def _claim(config: Settings, workdir: pathlib.Path, run: Recipe) -> None:
  """Notes vocabulary and config in a new workdir, the config last and whole."""
  path = workdir / _CONFIG_FILE
  if path.exists():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  run.reader.tokenizer.save(workdir / _VOCABULARY_FILE)
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
  partial.rename(path)


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  return {k: v for name, branch in tree.items()
          for k, v in _flat(branch, f'{prefix}.{name}' if prefix else name).items()}


def _build(*, workdir: pathlib.Path, check: Callable[[], None], seed: int,
           total_steps: int, batch_size: int, log_every_steps: int, data: Settings,
           window: Settings, model: Settings, losses: Mapping[str, Settings],
           optim: Settings, evals: Mapping[str, Settings], checkpoint: Settings
           ) -> Recipe:
  for name, value in (('total_steps', total_steps), ('batch_size', batch_size),
                      ('log_every_steps', log_every_steps)):
    if value < 1:
      raise UserError(f'config.{name}={value}: expected 1 or more')
  mesh = sharding.make_mesh(batch_size)
  task = _task(seed, total_steps, model, losses, optim)
  reader = _reader(call('data', Data, data), call('window', pipeline.Window, window),
                   model['text']['vocabulary_size'], workdir)
  max_words = model['text'].get('max_words', 0)
  if 'shared' in model and max_words < reader.window.max_words:
    raise UserError(f'config.model.text.max_words={max_words}: expected '
                    f'window.max_words={reader.window.max_words} or more')

  def predict(state, batch):
    check()
    return task.predict(state, sharding.to_devices(batch, mesh))

  evaluations = {
      name: call(f'evals.{name}', _evaluation, section, where=f'evals.{name}',
                 reader=reader, predict=predict, batch_size=batch_size)
      for name, section in evals.items()}
  return Recipe(seed, total_steps, batch_size, log_every_steps,
                call('checkpoint', _checkpoint, checkpoint), mesh, reader, task,
                evaluations)


def _checkpoint(every_steps: int, keep: int = 2) -> dict[str, int]:
  if min(every_steps, keep) < 1:
    raise ValueError(f'every_steps={every_steps}, keep={keep}: expected 1 or more')
  return dict(every_steps=every_steps, keep=keep)


def _reader(data: Data, window: pipeline.Window, vocabulary_size: int,
            workdir: pathlib.Path) -> pipeline.Reader:
  folder = pathlib.Path(data.path).parent
  if data.builder.endswith(f'.{folder.name}') and not folder.exists():
    logging.info('Making %s (python -m %s --out=%s)', folder, data.builder, folder)
    made = subprocess.run([sys.executable, '-m', data.builder, f'--out={folder}'])
    if made.returncode:
      raise UserError(f'config.data.builder={data.builder!r}: failed to make {folder}; '
                      'its own words are above')
  clips = sources.open_source(data.path, data.captions)
  vocabulary = workdir / _VOCABULARY_FILE
  if vocabulary.exists():
    tokenizer = text.WordTokenizer.load(vocabulary, vocabulary_size)
  else:
    tokenizer = text.WordTokenizer.build(
        (caption.text for clip in clips for caption in clip.captions),
        vocabulary_size)
  notes = pipeline.FileNotes(data.max_bad_fraction, len({c.path for c in clips}),
                             workdir / 'file_notes.jsonl')
  return pipeline.Reader(clips, window, tokenizer, notes)


def _task(seed: int, total_steps: int, model: Settings,
          losses: Mapping[str, Settings], optim_settings: Settings) -> step.Task:
  network = call('model', build_model, model)
  for space in losses:
    if space not in OBJECTIVES:
      raise UserError(f'config.losses.{space}: nobody takes this key; expected one of '
                      f'{", ".join(OBJECTIVES)}')
  terms = {space: call(f'losses.{space}', _term, section, space=space)
           for space, section in losses.items()}
  optimizer, schedule = call('optim', optim.adam, optim_settings,
                             total_steps=total_steps)
  return step.Task(network, terms, optimizer, schedule, seed)


def build_model(video: Settings, audio: Settings, text: Settings, head: Settings,
                shared: Settings | None = None, dtype: str = 'float32'
                ) -> multimodal.Vatt:
  """VATT, modality-specific, or modality-agnostic where there is a `shared` tower.

  Args:
    video: of `vatt.VideoTokenizer`, and the tower's `depth`, `num_heads`, `mlp_dim`.
    audio: of `vatt.AudioTokenizer`, likewise.
    text: of `vatt.TextTokenizer`, likewise.
    head: of `heads.FacHead`.
    shared: `width` and size of the one Transformer for all; then the modalities
      give neither, and text gives `max_words`.
    dtype: compute type; parameters are always float32.

  Raises:
    UserError: names the key that is wrong.
  """
  dtype = jnp.dtype(dtype)
  kinds = dict(video=(vatt.VideoTokenizer, video), audio=(vatt.AudioTokenizer, audio),
               text=(vatt.TextTokenizer, text))
  tokenizers, backbones = {}, {}
  for modality, (kind, settings) in kinds.items():
    where, settings = f'model.{modality}', dict(settings)
    if shared is None:
      tower = {k: settings.pop(k) for k in ('depth', 'num_heads', 'mlp_dim')
               if k in settings}
      backbones[modality] = _tower(where, tower, settings.get('width', 0),
                                   relative_bias=modality == 'text', dtype=dtype)
    width = {} if shared is None else {'width': shared['width']}
    tokenizers[modality] = _module(where, kind, settings, dtype=dtype, **width)
  if shared is not None:
    tower = {k: v for k, v in shared.items() if k != 'width'}
    backbones['shared'] = _tower('model.shared', tower, shared['width'], dtype=dtype)
  return multimodal.Vatt(tokenizers, backbones,
                         _module('model.head', heads.FacHead, head, dtype=dtype))


def _tower(where: str, settings: Settings, width: int, **given: Any) -> nn.Module:
  tower = _module(where, layers.Transformer, settings, **given)
  if width % tower.num_heads:
    raise UserError(f'config.{where}.width={width}: expected a multiple of num_heads='
                    f'{tower.num_heads}')
  return tower


def _module(where: str, kind: Callable[..., nn.Module], settings: Settings,
            **given: Any) -> nn.Module:
  _check_keys(where, kind, settings, {*given, 'parent', 'name'})    # linen's own
  return kind(**settings, **given)


OBJECTIVES = {    # of each space: a clip has one sound but several candidate texts
    'video_audio': {'nce': contrastive.nce},
    'video_text': {'mil_nce': contrastive.mil_nce}}


def _term(name: str, space: str, weight: float = 1.0, **settings: Any) -> step.Term:
  objective = _choose(OBJECTIVES[space], name)
  _check_keys(f'losses.{space}', objective, settings, ('anchors', 'others', 'present'))
  if settings.get('form', 'paper') not in contrastive.FORMS:
    raise ValueError(f'form={settings["form"]!r}: expected one of '
                     f'{", ".join(contrastive.FORMS)}')
  return step.Term(functools.partial(objective, **settings), weight)


def _choose(table: Mapping[str, Callable[..., Any]], name: str) -> Callable[..., Any]:
  if name not in table:
    raise ValueError(f'name={name!r}: expected one of {", ".join(table)}')
  return table[name]


def _retrieval(reader: pipeline.Reader, predict: Callable[..., Any], batch_size: int,
               path: str = '', captions: str = '', num_windows: int = 1
               ) -> retrieval.Retrieval:
  """Over the clips of `path`; empty: over those that the run trains on."""
  clips = sources.open_source(path, captions) if path else reader.clips
  return retrieval.Retrieval(predict, dataclasses.replace(reader, clips=clips),
                             batch_size, num_windows)


def _linear_probe(reader: pipeline.Reader, predict: Callable[..., Any],
                  batch_size: int, train: str, test: str, labels: Mapping[str, str],
                  multi_labels: tuple[str, ...] = (), num_windows: int = 1
                  ) -> linear.LinearProbe:
  sides = (dataclasses.replace(reader, clips=sources.open_source(path))
           for path in (train, test))
  return linear.LinearProbe(predict, *sides, batch_size, labels, multi_labels,
                            num_windows)


EVALUATORS = {'retrieval': _retrieval, 'linear_probe': _linear_probe}


def _evaluation(name: str, where: str, reader: pipeline.Reader,
                predict: Callable[..., Any], batch_size: int, every_steps: int = 0,
                **settings: Any) -> Evaluation:
  return Evaluation(call(where, _choose(EVALUATORS, name), settings, reader=reader,
                         predict=predict, batch_size=batch_size), every_steps)
