"""From a config to the things it names: the only module that reads configs.

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
import subprocess
import sys
from typing import Any

from absl import logging
import jax
from jax.sharding import Mesh
import optax

from vatt_jax import checkpoint
from vatt_jax import optim
from vatt_jax import sharding
from vatt_jax import step
from vatt_jax import weights
from vatt_jax.errors import UserError
from vatt_jax.evaluators import frozen
from vatt_jax.evaluators import linear
from vatt_jax.evaluators import neighbours
from vatt_jax.evaluators import retrieval
from vatt_jax.inputs import augment
from vatt_jax.inputs import clip
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.models import build
from vatt_jax.models import heads
from vatt_jax.models import multimodal
from vatt_jax.objectives import contrastive
from vatt_jax.settings import call
from vatt_jax.settings import check_keys
from vatt_jax.settings import choose
from vatt_jax.settings import Settings


@dataclasses.dataclass(frozen=True)
class Data:
  """What to train on.

  Attributes:
    path: a folder of media, a manifest or shards (`inputs.sources`), or several,
      from whose clips together all are drawn alike; empty where nothing is trained.
    captions: a file of timed sentences beside it, or one for each path; empty for
      none.
    weights: how much of every batch each path gives, relative to the others; empty:
      all clips are drawn alike (VATT, section 4.3).
    tokenizer: what becomes an id, of `inputs.text.TOKENIZERS`.
    vocabulary: its file; empty for that of the checkpoint that the run starts from,
      or else the words of the captions.
    drop_stop_words: leave stop words out of sentences (of 'words' only).
    builder: the module of `data/` that makes the folder of `path`, which has its
      name, where it is missing; empty for none.
    max_bad_fraction: the share of broken files that ends the run.

  Raises:
    ValueError: not as many captions as paths, no such tokenizer, or one that knows
      no stop words.
  """
  path: str | Sequence[str] = ''
  captions: str | Sequence[str] = ''
  weights: Sequence[float] = ()
  tokenizer: str = 'words'
  vocabulary: str = ''
  drop_stop_words: bool = False
  builder: str = ''
  max_bad_fraction: float = 0.1

  def __post_init__(self):
    if isinstance(self.path, str) != isinstance(self.captions, str) or (
        not isinstance(self.path, str) and len(self.path) != len(self.captions)):
      raise ValueError('path and captions: expected one each, or as many of the one '
                       'as of the other')
    choose(text.TOKENIZERS, self.tokenizer, 'tokenizer')
    if self.drop_stop_words and self.tokenizer != 'words':
      raise ValueError('drop_stop_words=True: expected False with tokenizer='
                       f"{self.tokenizer!r}; only 'words' has stop words")

  @property
  def sources(self) -> list[tuple[str, str]]:
    """(path, captions) of each source."""
    if not self.path:
      return []
    if isinstance(self.path, str):
      return [(self.path, self.captions)]
    return list(zip(self.path, self.captions, strict=True))


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
  """All that a config says, built.

  Of `initial`, the model's variables that a checkpoint gives the run, what is only
  a shape starts from random.
  """
  seed: int
  total_steps: int
  batch_size: int
  log_every_steps: int
  initial: dict[str, Any] | None
  checkpoint: dict[str, int]
  mesh: Mesh
  reader: pipeline.Reader
  task: step.Task
  evaluations: dict[str, Evaluation]


def make(config: Settings, workdir: pathlib.Path,
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
  check_keys('', _build, config, given)
  run = _build(**config, **given)
  _claim(config, workdir, run)    # last: a mistyped config leaves no trace
  return run


def model_and_clip(config: Settings) -> tuple[multimodal.Vatt, dict[str, Any]]:
  """The model of a recipe, and the shapes of one clip as the model takes it."""
  window = call('window', pipeline.Window, config['window'])
  model = call('model', build.build_model, config['model'])
  return model, jax.eval_shape(augment.normalize, window.batch(1))


def _compare(config: Settings, workdir: pathlib.Path) -> None:
  """The config of a workdir that has one must be this one."""
  path = workdir / checkpoint.CONFIG_FILE
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
  if (workdir / checkpoint.CONFIG_FILE).exists():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  tokenizer = run.reader.tokenizer
  tokenizer.save(workdir / tokenizer.file_name)
  checkpoint.write_config(workdir, config)


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  return {k: v for name, branch in tree.items()
          for k, v in _flat(branch, f'{prefix}.{name}' if prefix else name).items()}


def _build(*, workdir: pathlib.Path, check: Callable[[], None], seed: int,
           total_steps: int, batch_size: int, log_every_steps: int, data: Settings,
           window: Settings, model: Settings, evals: Mapping[str, Settings],
           losses: Mapping[str, Settings] | None = None,
           optim: Settings | None = None, checkpoint: Settings | None = None,
           augment: Settings | None = None, init_from: str = '') -> Recipe:
  """The sections of a config; a run of no steps needs no losses, optim, checkpoint."""
  trained = dict(losses=losses, optim=optim, checkpoint=checkpoint)
  for name, section in trained.items():
    if total_steps and section is None:
      raise UserError(f'config.{name}: missing')
  for name, value, least in (
      ('total_steps', total_steps, 0), ('batch_size', batch_size, 1),
      ('log_every_steps', log_every_steps, 1)):
    if value < least:
      raise UserError(f'config.{name}={value}: expected {least} or more')
  mesh = sharding.make_mesh(batch_size)
  sizes, words = call('window', pipeline.Window, window), model.get('text')
  task = _task(seed, total_steps, model, losses or {}, optim, augment or {},
               sizes.modalities)
  _check_rate(task.model, sizes.audio_hz)
  max_words = words.get('max_words', 0) if words else sizes.max_words
  if model.get('shared') and max_words < sizes.max_words:
    raise UserError(f'config.model.text.max_words={max_words}: expected '
                    f'window.max_words={sizes.max_words} or more')
  begun = any((workdir / 'checkpoints').glob('*'))    # then it goes on from there
  if optim is None and not (init_from or begun):
    raise UserError('config.init_from: is empty; a recipe that trains nothing needs a '
                    'checkpoint to evaluate')
  initial = None if begun else _initial(init_from, task, sizes.batch(batch_size), model)
  sources = call('data', Data, data)
  if total_steps and not sources.path:
    raise UserError('config.data.path: is empty; expected a folder of media files, a '
                    'manifest or shards (docs/data.md)')
  reader = _reader(sources, sizes, words, init_from, workdir)

  def predict(state, batch):
    check()
    return task.predict(state, sharding.to_devices(batch, mesh))

  evaluations = {
      name: call(f'evals.{name}', _evaluation, section, where=f'evals.{name}',
                 reader=reader, predict=predict, batch_size=batch_size, model=model)
      for name, section in evals.items()}
  return Recipe(
      seed, total_steps, batch_size, log_every_steps, initial,
      call('checkpoint', _checkpoint, checkpoint or {}), mesh, reader, task,
      evaluations)


def _initial(init_from: str, task: step.Task, batch: Mapping[str, Any],
             model: Settings) -> dict[str, Any] | None:
  """The variables that a checkpoint gives the run; of the rest the shapes."""
  release = model.get('variant') == 'release'
  if not init_from:
    if release and model.get('text'):
      logging.warning('The released code keeps its word vectors as they are, and here '
                      'they are random: give --config.init_from=CHECKPOINT')
    return None
  state = jax.eval_shape(task.init, batch)
  _, theirs = weights.read(init_from)
  return weights.merge(step.variables(state), theirs, init_from, spline=release)


def _checkpoint(every_steps: int = 1000, keep: int = 2) -> dict[str, int]:
  if min(every_steps, keep) < 1:
    raise ValueError(f'every_steps={every_steps}, keep={keep}: expected 1 or more')
  return dict(every_steps=every_steps, keep=keep)


def _reader(data: Data, window: pipeline.Window, words: Settings | None,
            init_from: str, workdir: pathlib.Path) -> pipeline.Reader:
  """Opens the sources; `words` are the model's settings for text, if it has any."""
  _build_data(data)
  clips = sources.Mixture([sources.open_source(path, captions)
                           for path, captions in data.sources], data.weights)
  notes = pipeline.FileNotes(data.max_bad_fraction, clips.num_files or None,
                             workdir / 'file_notes.jsonl')
  size = 2 if words is None else words['vocabulary_size']
  return pipeline.Reader(clips, window,
                         _words(data, clips, size, init_from, workdir), notes)


def _build_data(data: Data) -> None:
  if not data.sources:
    return
  folder = pathlib.Path(data.sources[0][0]).parent
  if data.builder.endswith(f'.{folder.name}') and not folder.exists():
    logging.info('Making %s (python -m %s --out=%s)', folder, data.builder, folder)
    made = subprocess.run([sys.executable, '-m', data.builder, f'--out={folder}'])
    if made.returncode:
      raise UserError(f'config.data.builder={data.builder!r}: failed to make {folder}; '
                      'its own words are above')


def _words(data: Data, clips: Sequence[clip.Clip], size: int, init_from: str,
           workdir: pathlib.Path) -> text.Tokenizer:
  """That of the run, else the one asked for, else the one the checkpoint knows."""
  if size == 2:    # a model without text
    return text.WordTokenizer(())
  own = text.TOKENIZERS[data.tokenizer].file_name
  path = data.vocabulary
  if (workdir / checkpoint.CONFIG_FILE).exists():
    path = workdir / own
  elif init_from and not path:
    path = pathlib.Path(init_from) / own
    _check_words(data, init_from, path)
  if path:
    return text.load(data.tokenizer, path, size, data.drop_stop_words)
  if data.tokenizer != 'words':
    raise UserError(f'config.data.tokenizer={data.tokenizer!r}: needs its file; set '
                    'config.data.vocabulary to it (docs/data.md, "Words")')
  captions = (c.text for clip in sources.each(clips) for c in clip.captions)
  return text.WordTokenizer.build(captions, size, data.drop_stop_words)


def _check_words(data: Data, init_from: str, path: pathlib.Path) -> None:
  """Raises UserError unless a checkpoint brings its words, made as the run's are."""
  config = pathlib.Path(init_from) / checkpoint.CONFIG_FILE
  theirs = (json.loads(config.read_text(encoding='utf-8')).get('data', {})
            if config.exists() else {})
  for key in ('tokenizer', 'drop_stop_words'):
    value = theirs.get(key, getattr(Data, key))    # its default
    if value != getattr(data, key):
      raise UserError(f'{init_from}: was trained with data.{key}={value!r}; set config.'
                      f'data.{key} to that, or config.data.vocabulary to another file')
  if not path.exists():
    raise UserError(f'{init_from}: comes without its words; set config.data.'
                    'vocabulary to their file')


def _check_rate(network: multimodal.Vatt, audio_hz: int) -> None:
  """Raises UserError unless a spectrogram is made for the sound that is read."""
  made_for = getattr(network.tokenizers.get('audio'), 'spectrogram', None)
  if made_for is not None and made_for.audio_hz != audio_hz:
    raise UserError(f'config.window.audio_hz={audio_hz}: the spectrogram of '
                    f'config.model.audio is made for {made_for.audio_hz}; make them '
                    'equal')


def _check_pair(pair: str, network: multimodal.Vatt, modalities: Sequence[str]) -> None:
  """Raises UserError unless both modalities are read, and embedded in one space."""
  where = f'config.losses.{pair}'
  for modality in step.PAIRS[pair][1:]:
    if modality not in modalities:
      raise UserError(f'{where}: no {modality} is read; remove this loss, or add '
                      f'{modality!r} to config.window.modalities')
    if modality not in network.tokenizers:
      raise UserError(f'{where}: the model has no {modality}; remove this loss, or add '
                      f'config.model.{modality}')
  if not isinstance(network.head, heads.FacHead):
    raise UserError(f'{where}: needs a model that embeds; set config.model.head to the '
                    'settings of a fac head')
  if pair == 'audio_text' and not network.head.audio_text:
    raise UserError(f'{where}: needs sound in the space of text; set '
                    'config.model.head.audio_text=True')


def _task(seed: int, total_steps: int, model: Settings,
          losses: Mapping[str, Settings], optim_settings: Settings | None,
          augment_settings: Settings, modalities: Sequence[str]) -> step.Task:
  network = call('model', build.build_model, model)
  for pair in losses:
    if pair not in OBJECTIVES:
      raise UserError(f'config.losses.{pair}: nobody takes this key; expected one of '
                      f'{", ".join(OBJECTIVES)}')
    _check_pair(pair, network, modalities)
  terms = {pair: call(f'losses.{pair}', _term, section, pair=pair)
           for pair, section in losses.items()}
  if optim_settings is None:    # nothing is trained
    optimizer, schedule = optax.set_to_zero(), optax.constant_schedule(0.0)
  else:
    optimizer, schedule = call('optim', optim.adam, optim_settings,
                               total_steps=total_steps)
  return step.Task(network, terms, optimizer, schedule, seed,
                   call('augment', augment.Augment, augment_settings))


OBJECTIVES = {    # of each pair: a clip has one sound but several candidate texts
    'video_audio': {'nce': contrastive.nce, 'sigmoid': contrastive.sigmoid},
    'video_text': {'mil_nce': contrastive.mil_nce, 'sigmoid': contrastive.sigmoid},
    'audio_text': {'mil_nce': contrastive.mil_nce, 'sigmoid': contrastive.sigmoid}}


def _term(name: str, pair: str, temperature: float, weight: float = 1.0,
          learn_temperature: bool = False, **settings: Any) -> step.Term:
  """A term of the loss.

  Args:
    name: of `OBJECTIVES`.
    pair: of the modalities.
    temperature: tau, or where it starts.
    weight: in the sum of the terms.
    learn_temperature: train it; the sigmoid loss trains its bias too.
    **settings: `form` of NCE, `bias` of the sigmoid loss.
  """
  objective = choose(OBJECTIVES[pair], name)
  check_keys(f'losses.{pair}', objective, settings,
             ('anchors', 'others', 'present', 'temperature', 'anchored'))
  if settings.get('form', 'paper') not in contrastive.FORMS:
    raise ValueError(f'form={settings["form"]!r}: expected one of '
                     f'{", ".join(contrastive.FORMS)}')
  least = step.LEAST_TEMPERATURE if learn_temperature else 0.0
  if temperature <= least:
    raise ValueError(f'temperature={temperature}: expected more than {least}')
  numbers = dict(temperature=temperature)
  if 'bias' in settings:
    numbers['bias'] = settings.pop('bias')
  objective = functools.partial(objective, **settings)
  return step.Term(objective, weight, *(({}, numbers) if learn_temperature else
                                        (numbers, {})))


def _retrieval(reader: pipeline.Reader, predict: Callable[..., Any], batch_size: int,
               path: str = '', captions: str = '', num_windows: int = 1,
               num_crops: int = 1) -> retrieval.Retrieval:
  """Over the clips of `path`; empty: over those that the run trains on."""
  clips = sources.open_source(path, captions) if path else reader.clips
  return retrieval.Retrieval(predict, dataclasses.replace(reader, clips=clips),
                             batch_size, num_windows, num_crops)


def _frozen(reader: pipeline.Reader, predict: Callable[..., Any], batch_size: int,
            model: Settings, train: str | Sequence[str], test: str | Sequence[str],
            labels: Mapping[str, str], multi_labels: Sequence[str] = (),
            num_windows: int = 1, num_crops: int = 1, cache: str = '') -> frozen.Frozen:
  """Of one split, or of several: as many paths to learn from as to measure on."""
  if isinstance(train, str) and isinstance(test, str):
    train, test = [train], [test]
  if isinstance(train, str) or isinstance(test, str) or len(train) != len(test):
    raise ValueError('train and test: expected one each, or as many of the one as of '
                     'the other')
  opened = {path: (path, sources.open_source(path)) for path in (*train, *test)}
  splits = [(opened[a], opened[b]) for a, b in zip(train, test, strict=True)]
  return frozen.Frozen(predict, reader, batch_size, model, splits, labels, multi_labels,
                       num_windows, num_crops, cache)


def _linear_probe(where: str, reader: pipeline.Reader, predict: Callable[..., Any],
                  batch_size: int, model: Settings,
                  classifiers: Mapping[str, Settings] | None = None,
                  **features: Any) -> linear.LinearProbe:
  """Of `linear.CLASSIFIERS` those with a section; by default logistic regression."""
  built = {
      name: call(f'{where}.classifiers.{name}',
                 choose(linear.CLASSIFIERS, name, 'classifiers'), section)
      for name, section in (classifiers or {'logistic': {}}).items()}
  return linear.LinearProbe(
      call(where, _frozen, features, reader=reader, predict=predict,
           batch_size=batch_size, model=model), built)


def _neighbours(where: str, reader: pipeline.Reader, predict: Callable[..., Any],
                batch_size: int, model: Settings, ks: Sequence[int] = (1, 5, 20),
                shots: Sequence[int] = (), num_draws: int = 10, seed: int = 0,
                **features: Any) -> neighbours.Neighbours:
  return neighbours.Neighbours(
      call(where, _frozen, features, reader=reader, predict=predict,
           batch_size=batch_size, model=model), ks, shots, num_draws, seed)


EVALUATORS = {'retrieval': _retrieval, 'linear_probe': _linear_probe,
              'neighbours': _neighbours}


def _evaluation(name: str, where: str, reader: pipeline.Reader,
                predict: Callable[..., Any], batch_size: int, model: Settings,
                every_steps: int = 0, **settings: Any) -> Evaluation:
  """An evaluator; of what is not the section's, it is given what it takes."""
  make = choose(EVALUATORS, name)
  given = dict(where=where, reader=reader, predict=predict, batch_size=batch_size,
               model=model)
  takes = inspect.signature(make).parameters
  return Evaluation(call(where, make, settings, **{
      key: value for key, value in given.items() if key in takes}), every_steps)
