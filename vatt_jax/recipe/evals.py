"""The sections `evals` and `figures` of a config: how a model is looked at."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import inspect
from typing import Any

from absl import logging

from vatt_jax.config import call
from vatt_jax.config import choose
from vatt_jax.config import Settings
from vatt_jax.evaluators import classification
from vatt_jax.evaluators import frozen_features
from vatt_jax.evaluators import linear_probe
from vatt_jax.evaluators import nearest_neighbours
from vatt_jax.evaluators import retrieval
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import sources


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluator, and how often it runs during training (0: only at the end).

  Features of a random model tell something; classes of a random head are chance.
  `where` names its section of the config.
  """
  evaluator: Any
  every_steps: int
  beside_random: bool
  where: str

  def run(self, state: Any) -> dict[str, float]:
    """Returns the measures of a state; warns if there are none."""
    measures = dict(self.evaluator.run(state))
    if not measures:
      logging.warning('config.%s: measured nothing; expected two classes or more, and '
                      'clips with all that is compared', self.where)
    return measures

  def due(self, step_number: int) -> bool:
    return (self.every_steps > 0 and step_number > 0
            and step_number % self.every_steps == 0)


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


def _classify(reader: pipeline.Reader, predict: Callable[..., Any], batch_size: int,
              path: str = '', num_windows: int = 1, num_crops: int = 1
              ) -> classification.Classify:
  """Of the clips of `path`; empty: of those that the run trains on."""
  if reader.labels is None:
    raise ValueError('needs labels; set config.data.label to a column of the manifest')
  if path:
    reader = dataclasses.replace(reader, clips=sources.open_source(path))
  elif not len(reader.clips):
    raise ValueError("path='': expected the clips to classify, for there are none to "
                     'train on')
  else:
    logging.warning('Classes will be measured on the very clips trained on: the path '
                    'of the evaluation is empty')
  return classification.Classify(predict, reader, batch_size,
                                 path or 'config.data.path', num_windows, num_crops)


def _frozen(reader: pipeline.Reader, predict: Callable[..., Any], batch_size: int,
            model: Settings, train: str | Sequence[str], test: str | Sequence[str],
            labels: Mapping[str, str], multi_labels: Sequence[str] = (),
            num_windows: int = 1, num_crops: int = 1, cache: str = '',
            *, augmentation: frozen_features.Augmentation | None
            ) -> frozen_features.Frozen:
  """Of one split, or of several: as many paths to learn from as to measure on."""
  if isinstance(train, str) and isinstance(test, str):
    train, test = [train], [test]
  if isinstance(train, str) or isinstance(test, str) or len(train) != len(test):
    raise ValueError('train and test: expected one each, or as many of the one as of '
                     'the other')
  opened = {path: (path, sources.open_source(path)) for path in (*train, *test)}
  splits = [(opened[a], opened[b]) for a, b in zip(train, test, strict=True)]
  return frozen_features.Frozen(predict, reader, batch_size, model, splits, labels,
                         multi_labels, num_windows, num_crops, cache, augmentation)


def _linear_probe(where: str, reader: pipeline.Reader, predict: Callable[..., Any],
                  batch_size: int, model: Settings,
                  classifiers: Mapping[str, Settings] | None = None,
                  rows: str = 'clips', num_epochs: int = 10, seed: int = 0,
                  **features: Any) -> linear_probe.LinearProbe:
  """Builds a linear probe.

  Args:
    where: the section.
    reader: how clips are read.
    predict: the model.
    batch_size: of feature extraction.
    model: its settings.
    classifiers: those of `linear_probe.CLASSIFIERS` that learn, by default logistic
      regression.
    rows: of `linear_probe.ROWS`; 'windows' is MMV's pipeline, which VATT follows.
    num_epochs: how many augmented windows of each clip are learnt from (of 'windows').
    seed: of these.
    **features: the arguments of `_frozen`.
  """
  if rows not in linear_probe.ROWS:
    raise ValueError(f'rows={rows!r}: expected one of {", ".join(linear_probe.ROWS)}')
  augmentation = frozen_features.Augmentation(num_epochs, seed)
  built = {
      name: call(f'{where}.classifiers.{name}',
                 choose(linear_probe.CLASSIFIERS, name, 'classifiers'), section)
      for name, section in (classifiers or {'logistic': {}}).items()}
  return linear_probe.LinearProbe(
      call(where, _frozen, features, reader=reader, predict=predict,
           batch_size=batch_size, model=model,
           augmentation=augmentation if rows == 'windows' else None), built)


def _neighbours(where: str, reader: pipeline.Reader, predict: Callable[..., Any],
                batch_size: int, model: Settings, ks: Sequence[int] = (1, 5, 20),
                shots: Sequence[int] = (), num_draws: int = 10, seed: int = 0,
                **features: Any) -> nearest_neighbours.Neighbours:
  return nearest_neighbours.Neighbours(
      call(where, _frozen, features, reader=reader, predict=predict,
           batch_size=batch_size, model=model, augmentation=None),
      ks, shots, num_draws, seed)


EVALUATORS = {'retrieval': _retrieval, 'linear_probe': _linear_probe,
              'neighbours': _neighbours, 'classify': _classify}


def make_evaluation(name: str, where: str, reader: pipeline.Reader,
                    predict: Callable[..., Any], batch_size: int, model: Settings,
                    every_steps: int = 0, **settings: Any) -> Evaluation:
  """An evaluator; of what is not the section's, it is given what it takes."""
  make = choose(EVALUATORS, name)
  for key in ('num_windows', 'num_crops'):
    if settings.get(key, 1) < 1:
      raise ValueError(f'{key}={settings[key]}: expected 1 or more')
  given = dict(where=where, reader=reader, predict=predict, batch_size=batch_size,
               model=model)
  takes = inspect.signature(make).parameters
  evaluator = call(where, make, settings, **{
      key: value for key, value in given.items() if key in takes})
  return Evaluation(evaluator, every_steps, name != 'classify', where)


@dataclasses.dataclass(frozen=True)
class Figures:
  """What `--mode=figures` draws (VATT, section 4.4.6).

  Attributes:
    path: a source of clips; empty for that of the first evaluation that has one, or
      else what the run trains on.
    captions: of the source.
    label: the label by which features are coloured; empty for that which the run
      learns, or else the first there is.
    num_clips: at most, drawn at random; of the figures that need no labels.
    num_classes: at most, drawn at random; more than 21 are not named.
    clips_per_class: at most, drawn at random of each of these classes.
    beside: workdirs of other runs, joined by commas, shown beside this one: of the
      other kind, say, modality-specific or agnostic.
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
