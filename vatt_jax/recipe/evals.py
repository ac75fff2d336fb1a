"""Builds the evaluators and figures of a config: its sections `evals` and `figures`."""

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
from vatt_jax.inputs import sources
from vatt_jax.inputs.reader import Reader


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Holds an evaluator and its schedule.

  Attributes:
    evaluator: the evaluator.
    every_steps: the interval in training steps; 0: only at the end.
    beside_random: also evaluate a randomly initialized model. It is off for
      classifiers, whose random head is at chance.
    where: the evaluator's section of the config.
  """
  evaluator: Any
  every_steps: int
  beside_random: bool
  where: str

  def run(self, state: Any) -> dict[str, float]:
    """Returns the metrics of a state; warns if it returns none."""
    measures = dict(self.evaluator.run(state))
    if not measures:
      logging.warning('config.%s: returned no metrics; expected two classes or more, '
                      'and clips that have all evaluated modalities', self.where)
    return measures

  def due(self, step_number: int) -> bool:
    return (self.every_steps > 0 and step_number > 0
            and step_number % self.every_steps == 0)


def _retrieval(reader: Reader, predict: Callable[..., Any], batch_size: int,
               path: str = '', captions: str = '', num_windows: int = 1,
               num_crops: int = 1, average: str = 'embeddings'
               ) -> retrieval.Retrieval:
  """Builds a retrieval evaluator over the clips of `path`, or the training clips."""
  clips = sources.open_source(path, captions) if path else reader.clips
  if not len(clips):
    raise ValueError("path='': expected the clips to retrieve from, because the config "
                     'has no training clips')
  return retrieval.Retrieval(predict, dataclasses.replace(reader, clips=clips),
                             batch_size, num_windows, num_crops, average)


def _classify(reader: Reader, predict: Callable[..., Any], batch_size: int,
              path: str = '', num_windows: int = 1, num_crops: int = 1
              ) -> classification.Classify:
  """Builds a classification evaluator on the clips of `path`, or the training clips."""
  if reader.labels is None:
    raise ValueError('needs labels; set config.data.label to a column of the manifest')
  if path:
    reader = dataclasses.replace(reader, clips=sources.open_source(path))
  elif not len(reader.clips):
    raise ValueError("path='': expected the clips to classify, because the config has "
                     'no training clips')
  else:
    logging.warning('The classifier is evaluated on the training clips, because the '
                    'path of the evaluation is empty')
  return classification.Classify(predict, reader, batch_size,
                                 path or 'config.data.path', num_windows, num_crops)


def _frozen(reader: Reader, predict: Callable[..., Any], batch_size: int,
            model: Settings, train: str | Sequence[str], test: str | Sequence[str],
            labels: Mapping[str, str], multi_labels: Sequence[str] = (),
            num_windows: int = 1, num_crops: int = 1, cache: str = '',
            *, augmentation: frozen_features.Augmentation | None
            ) -> frozen_features.Frozen:
  """Builds frozen features of one split (train, test), or of several."""
  if isinstance(train, str) and isinstance(test, str):
    train, test = [train], [test]
  if isinstance(train, str) or isinstance(test, str) or len(train) != len(test):
    raise ValueError('train and test: expected one each, or the same number of both')
  opened = {path: (path, sources.open_source(path)) for path in (*train, *test)}
  splits = [(opened[a], opened[b]) for a, b in zip(train, test, strict=True)]
  return frozen_features.Frozen(predict, reader, batch_size, model, splits, labels,
                         multi_labels, num_windows, num_crops, cache, augmentation)


def _linear_probe(where: str, reader: Reader, predict: Callable[..., Any],
                  batch_size: int, model: Settings,
                  classifiers: Mapping[str, Settings] | None = None,
                  rows: str = 'clips', num_epochs: int = 10, seed: int = 0,
                  **features: Any) -> linear_probe.LinearProbe:
  """Builds a linear probe.

  Args:
    where: the section's name.
    reader: reads clips.
    predict: the model.
    batch_size: the batch size of feature extraction.
    model: the model's settings.
    classifiers: name in `linear_probe.CLASSIFIERS` -> settings; by default logistic
      regression.
    rows: a name in `linear_probe.ROWS`; 'windows' is MMV's pipeline, which VATT uses.
    num_epochs: the number of augmented training windows per clip (rows='windows').
    seed: the seed of these windows.
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


def _neighbours(where: str, reader: Reader, predict: Callable[..., Any],
                batch_size: int, model: Settings, ks: Sequence[int] = (1, 5, 20),
                shots: Sequence[int] = (), num_draws: int = 10, seed: int = 0,
                **features: Any) -> nearest_neighbours.Neighbours:
  return nearest_neighbours.Neighbours(
      call(where, _frozen, features, reader=reader, predict=predict,
           batch_size=batch_size, model=model, augmentation=None),
      ks, shots, num_draws, seed)


EVALUATORS = {'retrieval': _retrieval, 'linear_probe': _linear_probe,
              'neighbours': _neighbours, 'classify': _classify}


def make_evaluation(name: str, where: str, reader: Reader,
                    predict: Callable[..., Any], batch_size: int, model: Settings,
                    every_steps: int = 0, **settings: Any) -> Evaluation:
  """Builds an evaluator; passes those of the other arguments that it accepts."""
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
  """Describes the figures of `--mode=figures` (VATT, section 4.4.6).

  Attributes:
    path: a source of clips; empty: the source of the first evaluation that has one, or
      else the training clips.
    captions: the captions of the source.
    label: the label that sets the colors of features; empty: the label that the run
      is trained on, or else the first label.
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
