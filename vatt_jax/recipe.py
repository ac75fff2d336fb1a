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
from vatt_jax.evaluators import classify as evaluate_classes
from vatt_jax.evaluators import frozen
from vatt_jax.evaluators import linear
from vatt_jax.evaluators import neighbours
from vatt_jax.evaluators import retrieval
from vatt_jax.inputs import augment
from vatt_jax.inputs import clip
from vatt_jax.inputs import labels
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.models import build
from vatt_jax.models import heads
from vatt_jax.models import multimodal
from vatt_jax.objectives import classify
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
    label: the column of the manifest with what a clip is classified as, in which a
      folder has the names of its subfolders; empty: nothing is classified.
    label_map: a CSV file of all classes in order (`inputs.labels`); empty for that of
      the checkpoint that the run starts from, if it has all of the clips' labels, or
      else these in alphabetical order.
    several_labels: a clip may have several at once, joined by `|`.
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
  label: str = ''
  label_map: str = ''
  several_labels: bool = False
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
class Figures:
  """What `--mode=figures` draws (VATT, section 4.4.6).

  Attributes:
    path: a source of clips; empty for that of the first evaluation that has one, or
      else what the run trains on.
    captions: of the source.
    label: the label by which features are coloured; empty for that which the run
      learns, or else the first there is.
    num_clips: at most, drawn at random.
    num_classes: at most, drawn at random; the paper has 100, of which more than 21
      are not named.
    beside: the workdir of another run, shown beside this one: of the other kind, say,
      modality-specific or agnostic.
    runs: a pattern of workdirs of finished runs, whose cost is held against
    measure: a name of their `results.json`; both empty for no such figure.
    seed: of what is drawn at random, and of t-SNE.

  Raises:
    ValueError: a number is too small, or of `runs` and `measure` there is but one.
  """
  path: str = ''
  captions: str = ''
  label: str = ''
  num_clips: int = 1000
  num_classes: int = 20
  beside: str = ''
  runs: str = ''
  measure: str = ''
  seed: int = 0

  def __post_init__(self):
    for key, least in (('num_clips', 1), ('num_classes', 2), ('seed', 0)):
      if getattr(self, key) < least:
        raise ValueError(f'{key}={getattr(self, key)}: expected {least} or more')
    if bool(self.runs) != bool(self.measure):
      raise ValueError(f'runs={self.runs!r}, measure={self.measure!r}: expected both '
                       'or none')


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluator, and how often it runs during training (0: only at the end).

  Features of a random model tell something; classes of a random head are chance.
  """
  evaluator: Any
  every_steps: int
  beside_random: bool

  def due(self, step_number: int) -> bool:
    return (self.every_steps > 0 and step_number > 0
            and step_number % self.every_steps == 0)


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
  mesh: Mesh
  reader: pipeline.Reader
  task: step.Task
  evaluations: dict[str, Evaluation]
  figures: Figures


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
  config = _count_classes(config, weights_from or config.get('init_from', ''), workdir)
  _compare(config, workdir)
  given = dict(workdir=workdir, check=check, weights_from=weights_from)
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
  """The config of a workdir that has one must be this one, but for its figures."""
  path = workdir / checkpoint.CONFIG_FILE
  if not path.exists():
    return
  # Through JSON, so that tuples equal the lists they are read back as.
  ours = _flat(json.loads(json.dumps(config)))
  theirs = _flat(json.loads(path.read_text(encoding='utf-8')))
  for key in sorted(ours.keys() | theirs.keys()):
    if not key.startswith('figures.') and ours.get(key) != theirs.get(key):
      raise UserError(
          f'{workdir}: holds a run of another config, {key}={theirs.get(key)!r} '
          f'where this one has {ours.get(key)!r}; choose another --workdir or '
          'move that folder away, or give the same config to go on with that run')


def _claim(config: Settings, workdir: pathlib.Path, run: Recipe) -> None:
  """Notes vocabulary and config in a new workdir, the config last and whole."""
  if (workdir / checkpoint.CONFIG_FILE).exists():
    return
  workdir.mkdir(parents=True, exist_ok=True)
  tokenizer, classes = run.reader.tokenizer, run.reader.labels
  tokenizer.save(workdir / tokenizer.file_name)
  if classes is not None:
    classes.save(workdir / labels.FILE_NAME)
  checkpoint.write_config(workdir, config)


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  return {k: v for name, branch in tree.items()
          for k, v in _flat(branch, f'{prefix}.{name}' if prefix else name).items()}


def _build(*, workdir: pathlib.Path, check: Callable[[], None], weights_from: str,
           seed: int, total_steps: int, batch_size: int, log_every_steps: int,
           data: Settings, window: Settings, model: Settings,
           evals: Mapping[str, Settings],
           losses: Mapping[str, Settings] | None = None,
           optim: Settings | None = None, checkpoint: Settings | None = None,
           augment: Settings | None = None, figures: Settings | None = None,
           init_from: str = '', num_parts: int = 1, average_decay: float = 0.0
           ) -> Recipe:
  """The sections of a config; a run of no steps needs no losses, optim, checkpoint."""
  trained = dict(losses=losses, optim=optim, checkpoint=checkpoint)
  for name, section in trained.items():
    if total_steps and section is None:
      raise UserError(f'config.{name}: missing')
  for name, value, least in (
      ('total_steps', total_steps, 0), ('batch_size', batch_size, 1),
      ('log_every_steps', log_every_steps, 1), ('num_parts', num_parts, 1)):
    if value < least:
      raise UserError(f'config.{name}={value}: expected {least} or more')
  if batch_size % num_parts:
    raise UserError(f'config.num_parts={num_parts}: expected a divisor of batch_size='
                    f'{batch_size}')
  if not 0 <= average_decay < 1:
    raise UserError(f'config.average_decay={average_decay}: expected 0 or more, less '
                    'than 1')
  mesh = sharding.make_mesh(batch_size)
  sizes, words = call('window', pipeline.Window, window), model.get('text')
  task = dataclasses.replace(
      _task(seed, total_steps, model, losses or {}, optim, augment or {},
            sizes.modalities), num_parts=num_parts, average_decay=average_decay)
  _check_rate(task.model, sizes.audio_hz)
  max_words = words.get('max_words', 0) if words else sizes.max_words
  if model.get('shared') and max_words < sizes.max_words:
    raise UserError(f'config.model.text.max_words={max_words}: expected '
                    f'window.max_words={sizes.max_words} or more')
  given, source = call('data', Data, data), weights_from or init_from
  if total_steps and not given.path:
    raise UserError('config.data.path: is empty; expected a folder of media files, a '
                    'manifest or shards (docs/data.md)')
  reader = _reader(given, sizes, words, source, workdir)
  _check_classes(reader.labels, task)
  begun = any((workdir / 'checkpoints').glob('*'))    # then it goes on from there
  if optim is None and not (source or begun):
    raise UserError('config.init_from: is empty; a recipe that trains nothing needs a '
                    'checkpoint to evaluate')
  if task.frozen is not None:    # rules must fit: told before anything is written
    jax.eval_shape(task.init, sizes.batch(batch_size))
  load = functools.partial(_load, task, sizes.batch(batch_size),
                           model.get('variant') == 'release', reader.labels)
  initial = None if begun or weights_from else _initial(init_from, load, model)

  def predict(state, batch):
    check()
    return task.predict(state, sharding.to_devices(batch, mesh))

  evaluations = {
      name: call(f'evals.{name}', _evaluation, section, where=f'evals.{name}',
                 reader=reader, predict=predict, batch_size=batch_size, model=model)
      for name, section in evals.items()}
  return Recipe(
      seed, total_steps, batch_size, log_every_steps, initial, load,
      call('checkpoint', _checkpoint, checkpoint or {}), mesh, reader, task,
      evaluations, call('figures', Figures, figures or {}))


def _initial(init_from: str, load: Callable[..., Any], model: Settings
             ) -> dict[str, Any] | None:
  if not init_from:
    if model.get('variant') == 'release' and model.get('text'):
      logging.warning('The released code keeps its word vectors as they are, and here '
                      'they are random: give --config.init_from=CHECKPOINT')
    return None
  return load(init_from)


def _load(task: step.Task, batch: Mapping[str, Any], spline: bool,
          classes: labels.Labels | None, path: str, allow_random_head: bool = True
          ) -> dict[str, Any]:
  """The variables that a checkpoint gives the model; of the rest the shapes."""
  state = jax.eval_shape(task.init, batch)
  _, theirs = weights.read(path)
  known = checkpoint.split(path)[0] / labels.FILE_NAME
  if classes is not None and known.exists() and (
      labels.read(known, classes.column, classes.several).names != classes.names):
    del theirs['params']['head']    # a classifier of other classes
  return weights.merge(step.variables(state), theirs, path, spline, allow_random_head)


def _checkpoint(every_steps: int = 1000, keep: int = 2) -> dict[str, int]:
  if min(every_steps, keep) < 1:
    raise ValueError(f'every_steps={every_steps}, keep={keep}: expected 1 or more')
  return dict(every_steps=every_steps, keep=keep)


def _reader(data: Data, window: pipeline.Window, words: Settings | None,
            init_from: str, workdir: pathlib.Path) -> pipeline.Reader:
  """Opens the sources; `words` are the model's settings for text, if it has any."""
  _build_data(data)
  clips = _clips(data)
  notes = pipeline.FileNotes(data.max_bad_fraction, clips.num_files or None,
                             workdir / 'file_notes.jsonl')
  size = 2 if words is None else words['vocabulary_size']
  return pipeline.Reader(clips, window,
                         _words(data, clips, size, init_from, workdir), notes,
                         _labels(data, clips, init_from, workdir))


def _clips(data: Data) -> sources.Mixture:
  return sources.Mixture([sources.open_source(path, captions)
                          for path, captions in data.sources], data.weights)


def _labels(data: Data, clips: Sequence[clip.Clip], init_from: str,
            workdir: pathlib.Path) -> labels.Labels | None:
  """Those of the run, else the ones asked for, else the checkpoint's or the clips'.

  Raises:
    UserError: no such file or column, or a clip has a label that is no class.
  """
  if not data.label:
    return None
  begun = (workdir / checkpoint.CONFIG_FILE).exists()
  path = workdir / labels.FILE_NAME if begun else data.label_map
  if path:
    classes = labels.read(path, data.label, data.several_labels)
    if all(isinstance(part, list) for part in clips.parts):    # others take too long
      for one in clips:
        classes.encode(one)
    return classes
  path = checkpoint.split(init_from)[0] / labels.FILE_NAME
  theirs = (labels.read(path, data.label, data.several_labels)
            if init_from and path.exists() else None)
  if theirs is not None and not len(clips):    # only evaluated
    return theirs
  found = labels.find(sources.each(clips), data.label, data.several_labels,
                      ', '.join(path for path, _ in data.sources))
  return theirs if theirs and set(found.names) <= set(theirs.names) else found


def _count_classes(config: Settings, init_from: str, workdir: pathlib.Path
                   ) -> Settings:
  """A classifier without `num_classes` gets one for every class there is."""
  head = config.get('model', {}).get('head') or {}
  if head.get('name') != 'classifier' or head.get('num_classes'):
    return config
  data = call('data', Data, config.get('data', {}))
  if not data.label:
    raise UserError('config.model.head.num_classes: missing; set it, or config.data.'
                    'label to the column of the manifest that has the classes')
  _build_data(data)
  classes = _labels(data, _clips(data), init_from, workdir)
  head = head | {'num_classes': len(classes.names)}
  return config | {'model': config['model'] | {'head': head}}


def _check_classes(classes: labels.Labels | None, task: step.Task) -> None:
  """Raises UserError unless labels, classifier and loss belong together."""
  if classes is None:
    if step.LABEL in task.terms:
      raise UserError(f'config.losses.{step.LABEL}: needs labels; set config.data.'
                      'label to a column of the manifest')
    return
  head = task.model.head
  if isinstance(head, heads.Classifier) and head.num_classes != len(classes.names):
    raise UserError(
        f'config.model.head.num_classes={head.num_classes}: {classes.source} has '
        f'{len(classes.names)} classes; make them equal, or set config.data.label_map '
        'to the list of all classes')
  if classes.several and step.LABEL in task.terms and (
      task.terms[step.LABEL].objective.func is classify.softmax):
    raise UserError(f"config.losses.{step.LABEL}.name='softmax': a clip has one class; "
                    "of several (config.data.several_labels) 'sigmoid'")


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
    path = checkpoint.split(init_from)[0] / own
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
  folder, _ = checkpoint.split(init_from)
  theirs = (checkpoint.read_config(folder).get('data', {})
            if (folder / checkpoint.CONFIG_FILE).exists() else {})
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


def _check_label(network: multimodal.Vatt, modalities: Sequence[str]) -> None:
  """Raises UserError unless there is a classifier of one modality that is read."""
  where = f'config.losses.{step.LABEL}'
  if not isinstance(network.head, heads.Classifier):
    raise UserError(f"{where}: needs a classifier; set config.model.head to name="
                    "'classifier'")
  used = set(network.tokenizers) & set(modalities)
  if len(used) != 1:
    raise UserError(f'{where}: classifies one modality; of the model\'s '
                    f'{", ".join(network.tokenizers)}, config.window.modalities reads '
                    f'{", ".join(sorted(used)) or "none"}')


def _task(seed: int, total_steps: int, model: Settings,
          losses: Mapping[str, Settings], optim_settings: Settings | None,
          augment_settings: Settings, modalities: Sequence[str]) -> step.Task:
  network = call('model', build.build_model, model)
  terms = {}
  for name, section in losses.items():
    if name not in (step.LABEL, *OBJECTIVES):
      raise UserError(f'config.losses.{name}: nobody takes this key; expected one of '
                      f'{", ".join((step.LABEL, *OBJECTIVES))}')
    if name == step.LABEL:
      _check_label(network, modalities)
      terms[name] = call(f'losses.{name}', _label_term, section)
    else:
      _check_pair(name, network, modalities)
      terms[name] = call(f'losses.{name}', _term, section, pair=name)
  if optim_settings is None:    # nothing is trained
    optimizer = optim.Optimizer(optax.set_to_zero(), optax.constant_schedule(0.0), None)
  else:
    optimizer = call('optim', optim.build, optim_settings, total_steps=total_steps)
  return step.Task(network, terms, optimizer.update, optimizer.schedule, seed,
                   call('augment', augment.Augment, augment_settings), optimizer.frozen)


CLASSIFIERS = {'softmax': classify.softmax, 'sigmoid': classify.sigmoid}


def _label_term(name: str, weight: float = 1.0, **settings: Any) -> step.Term:
  """The term of the labels: `name` of `CLASSIFIERS`, and its settings."""
  objective = choose(CLASSIFIERS, name)
  check_keys(f'losses.{step.LABEL}', objective, settings,
             ('logits', 'labels', 'present'))
  return step.Term(functools.partial(objective, **settings), weight)


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
               num_crops: int = 1, average: str = 'embeddings'
               ) -> retrieval.Retrieval:
  """Over the clips of `path`; empty: over those that the run trains on."""
  clips = sources.open_source(path, captions) if path else reader.clips
  if not len(clips):
    raise ValueError("path='': expected the clips to retrieve from, for there are "
                     'none to train on')
  return retrieval.Retrieval(predict, dataclasses.replace(reader, clips=clips),
                             batch_size, num_windows, num_crops, average)


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


def _classify(reader: pipeline.Reader, predict: Callable[..., Any], batch_size: int,
              path: str = '', num_windows: int = 1, num_crops: int = 1
              ) -> evaluate_classes.Classify:
  """Of the clips of `path`; empty: of those that the run trains on."""
  if reader.labels is None:
    raise ValueError('needs labels; set config.data.label to a column of the manifest')
  if path:
    reader = dataclasses.replace(reader, clips=sources.open_source(path))
  where = path or 'config.data.path'
  return evaluate_classes.Classify(predict, reader, batch_size, where, num_windows,
                                   num_crops)


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
              'neighbours': _neighbours, 'classify': _classify}


def _evaluation(name: str, where: str, reader: pipeline.Reader,
                predict: Callable[..., Any], batch_size: int, model: Settings,
                every_steps: int = 0, **settings: Any) -> Evaluation:
  """An evaluator; of what is not the section's, it is given what it takes."""
  make = choose(EVALUATORS, name)
  given = dict(where=where, reader=reader, predict=predict, batch_size=batch_size,
               model=model)
  takes = inspect.signature(make).parameters
  evaluator = call(where, make, settings, **{
      key: value for key, value in given.items() if key in takes})
  return Evaluation(evaluator, every_steps, beside_random=name != 'classify')
