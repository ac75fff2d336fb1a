"""Features of a frozen model beside their labels: what its evaluations learn from."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any
import zipfile

from absl import logging
import numpy as np
from sklearn import preprocessing

from vatt_jax import checkpoint
from vatt_jax import train_step
from vatt_jax.distributed import hosts
from vatt_jax.errors import UserError
from vatt_jax.evaluators import extract
from vatt_jax.inputs import labels as labels_lib
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import sources
from vatt_jax.inputs.clip import Clip

_MODALITIES = ('video', 'audio')
_NAMED = 5    # classes, in a warning

Source = tuple[str, Sequence[Clip]]
# [N, V, D] of V views of N clips, and bool [N, V], which of these are present.
_Array = tuple[np.ndarray, np.ndarray]
Features = dict[str, _Array]
_Rows = list[tuple[int, Mapping[str, str]]]


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Says how training clips are augmented (`pipeline.Reader.augmented`).

  Attributes:
    num_epochs: how many windows are drawn of each clip.
    seed: of windows, crops and flips.

  Raises:
    ValueError: `num_epochs` is less than 1.
  """
  num_epochs: int = 10
  seed: int = 0

  def __post_init__(self):
    if self.num_epochs < 1:
      raise ValueError(f'num_epochs={self.num_epochs}: expected 1 or more')


@dataclasses.dataclass(frozen=True)
class Split:
  """Holds rows to learn a label from, and rows of clips to measure it on.

  Attributes:
    x: float32 [N, D], features to learn from: a row for each clip, or for each window.
    targets: bool [N, C], which classes each has.
    x_test: float32 [R, D], likewise of M clips.
    groups: int [R], the clip of each of these rows; every clip has one or more.
    targets_test: bool [M, C].
    classes: names of the C, those of both sides.
    several: whether a clip may have several at once.
  """
  x: np.ndarray
  targets: np.ndarray
  x_test: np.ndarray
  groups: np.ndarray
  targets_test: np.ndarray
  classes: list[str]
  several: bool

  @property
  def learnable(self) -> np.ndarray:
    """The classes that some to learn from have, and some have not.  bool [C]."""
    return self.targets.any(axis=0) & ~self.targets.all(axis=0)


class Frozen:
  """Computes pooled features of clips, by label and split.

  A row is the mean of a clip's windows, or with an augmentation a single window. A
  label is a column of the manifests. A clip that stands in several of them (the
  official splits of UCF101 are the same films) is read and run once.

  Attributes:
    measured: the clips to measure on, of all splits.
  """

  def __init__(self, predict: extract.Predict, reader: pipeline.Reader, batch_size: int,
               model: Mapping[str, Any], splits: Sequence[tuple[Source, Source]],
               labels: Mapping[str, str], multi_labels: Sequence[str] = (),
               num_windows: int = 1, num_crops: int = 1, cache: str = '',
               augmentation: Augmentation | None = None):
    """Looks through the manifests.

    Args:
      predict: `predict(state, batch)` gives `pooled` (`train_step.Task.predict`).
      reader: how to read clips; which, the splits say.
      batch_size: of feature extraction.
      model: its settings, by which the cache tells models apart.
      splits: of each what to learn from and what to measure on: name and clips.
      labels: column -> the modality whose features are asked.
      multi_labels: those of the columns that hold several labels at once, joined
        by `|`.
      num_windows: spread over each clip.
      num_crops: spread over each window's pictures.
      cache: a folder that keeps features, under a digest of all that they come from:
        the weights and settings of the model, the window, the clips, and their files'
        sizes and times of change; empty for none.
      augmentation: if given, rows are single windows: to learn from augmented ones,
        to measure on those spread over each clip.

    Raises:
      UserError: names the label, modality, manifest or folder that cannot be.
    """
    tests = {name: clips for _, (name, clips) in splits}
    self.measured = sources.Mixture(list(tests.values()))
    self._labels, self._multi_labels = dict(labels), frozenset(multi_labels)
    for label, modality in labels.items():
      if modality not in _MODALITIES:
        raise UserError(f'label {label!r}: modality {modality!r}; expected one of '
                        f'{", ".join(_MODALITIES)}')
    if unknown := sorted(self._multi_labels - labels.keys()):
      raise UserError(f'multi_labels: {unknown[0]!r} is none of the labels; expected '
                      f'some of {", ".join(labels)}')
    self._cache = pathlib.Path(cache) if cache else None
    if self._cache is not None and self._cache.exists() and not self._cache.is_dir():
      raise UserError(f'{cache}: is a file; expected a folder to keep features in')
    self._predict, self._batch_size = predict, batch_size
    self._views = num_windows, num_crops
    self._augmentation = augmentation
    # Of both sides even where those to learn from are augmented: the nearest
    # neighbours of the same splits then find all of these features in the cache.
    self._clips = _Union(identify=bool(cache))
    self._train_clips = _Union(identify=bool(cache))
    # These have labels of their own, not the classes of what is trained.
    self._reader = dataclasses.replace(reader, labels=None)
    self._model = json.dumps(model, sort_keys=True)
    self._splits = []
    for train, test in splits:
      rows = self._add(train, learn=True), self._add(test, learn=False)
      if augmentation:
        rows = self._train_clips.add(train[1]), rows[1]
      self._splits.append(rows)

  def splits(self, state: Any) -> Iterator[tuple[str, list[Split]]]:
    """Yields each label and its splits.

    Clips without the modality, or without the label, are left out; a label of which
    nothing is left to tell apart, in whatever split, is left out and named.

    Raises:
      UserError: the model has no features of a modality.
    """
    to_learn, to_measure = self._features(state)
    for label, modality in self._labels.items():
      if modality not in to_measure:
        raise UserError(f'label {label!r}: there are no features of {modality}; add it '
                        'to config.model and to config.window.modalities')
      splits = [self._split(to_learn[modality], to_measure[modality], label, *sides)
                for sides in self._splits]
      if all(split.learnable.any() and len(split.targets_test) for split in splits):
        yield label, splits
      else:
        logging.warning('Left out: %s, for of the clips that have %s too few have it',
                        label, modality)

  def _add(self, source: Source, learn: bool) -> _Rows:
    """Adds a source to learn from or to measure on.

    Returns:
      The labels of its clips, and which of all clips they are.
    """
    name, clips = source
    rows = self._clips.add(clips)
    columns = {column for _, row in rows for column in row}
    for label in self._labels:
      values = {row.get(label, '') for _, row in rows} - {''}
      if label not in columns:
        raise UserError(f'{name}: no column {label!r} to evaluate; found '
                        f'{", ".join(sorted(columns)) or "no label"}')
      if not values:
        raise UserError(f'{name}: column {label!r} holds nothing; expected '
                        f'{"two labels" if learn else "a label"} or more')
      if learn and len(values) == 1:
        logging.warning('%s: column %r holds one class alone, %r, from which nothing '
                        'can be learnt; expected two or more', name, label,
                        min(values))
      joined = next((v for v in sorted(values) if '|' in v), '')
      if joined and label not in self._multi_labels:
        raise UserError(f'{name}: {label}={joined!r} joins several labels; expected '
                        f'one, or {label!r} among the multi_labels')
    return rows

  def _split(self, to_learn: _Array, to_measure: _Array, label: str, train: _Rows,
             test: _Rows) -> Split:
    values, x, groups = zip(_rows_of_label(to_learn, train, label),
                            _rows_of_label(to_measure, test, label), strict=True)
    names = [list(map(labels_lib.separate, side)) for side in values]
    classes = sorted({name for side in names for values in side for name in values})
    binarizer = preprocessing.MultiLabelBinarizer(classes=classes)
    targets, targets_test = (
        binarizer.fit_transform(side).astype(bool).reshape(len(side), len(classes))
        for side in names)
    unknown = [c for c, known in zip(classes, targets.any(axis=0), strict=True)
               if not known]
    if unknown:
      logging.warning('%s: %d of %d classes stand in the test alone, and none of their '
                      'clips can be right: %s', label, len(unknown), len(classes),
                      ', '.join(unknown[:_NAMED] + ['...'] * (len(unknown) > _NAMED)))
    return Split(x[0], targets[groups[0]], x[1], groups[1], targets_test, classes,
                 label in self._multi_labels)

  def _features(self, state: Any) -> tuple[Features, Features]:
    """Returns the features of the clips to learn from, and of those to measure on."""
    spread = self._kept(state, self._clips, *self._views, None)
    if self._augmentation:
      drawn = self._kept(state, self._train_clips, self._augmentation.num_epochs, 1,
                         self._augmentation.seed)
      return drawn, spread
    means = {m: (extract.mean_over_views(x, present)[:, None].astype(np.float32),
                 present.any(axis=1, keepdims=True))
             for m, (x, present) in spread.items()}
    return means, means

  def _kept(self, state: Any, clips: _Union, num_windows: int, num_crops: int,
            augment_seed: int | None) -> Features:
    """Returns the features of every view, from the cache if they are kept there."""
    views = num_windows, num_crops, augment_seed
    if self._cache is None:
      return self._extract(state, clips, *views)
    path = self._cache / f'{self._digest(state, clips, views)}.npz'
    features = _read(path)
    if not hosts.all_of(features is not None):
      features = self._extract(state, clips, *views)
      if hosts.is_first():
        _write(path, features)
      logging.info('Kept the features of %d clips as %s', len(clips), path)
    else:
      logging.info('Read the features of %d clips from %s', len(clips), path)
    return features

  def _extract(self, state: Any, clips: _Union, num_windows: int, num_crops: int,
               augment_seed: int | None) -> Features:
    features = extract.by_clip(
        self._predict, state, dataclasses.replace(self._reader, clips=clips),
        self._batch_size, num_windows, num_crops, _pick, augment_seed)
    return {m: (x.astype(np.float32), present) for m, (x, present) in features.items()}

  def _digest(self, state: Any, clips: _Union, views: tuple[int | None, ...]) -> str:
    sha = hashlib.sha256()
    for part in (checkpoint.digest(train_step.evaluated(state)), self._model,
                 self._reader.window, views, *clips.identities):
      sha.update(f'{part}\n'.encode())
    return sha.hexdigest()


def _rows_of_label(features: _Array, rows: _Rows, label: str
                   ) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Returns the clips that have a label and features, and their rows.

  Args:
    features: of clips, [N, V, D], and which of the views are present, bool [N, V].
    rows: places among the N, and labels.
    label: a column.

  Returns:
    The labels of the M clips that have both; rows [R, D]; int [R], the clip of each.
  """
  x, present = features
  labelled = [(place, row[label]) for place, row in rows if row.get(label)]
  kept = [(place, value) for place, value in labelled if present[place].any()]
  if len(kept) < len(labelled):
    logging.warning('%s: %d of %d clips are broken or have nothing to classify, and '
                    'are left out', label, len(labelled) - len(kept), len(labelled))
  places = np.array([place for place, _ in kept], int)
  clip, view = np.nonzero(present[places])
  return [value for _, value in kept], x[places[clip], view], clip


def over_splits(measured: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, float]]:
  """The mean of what every split has a measure of; and of several, each one's own.

  Yields:
    `NAME` and, as `split_1/NAME` and so on, what the splits say.
  """
  for name in measured[0]:
    if all(name in split for split in measured):
      yield name, float(np.mean([split[name] for split in measured]))
  if len(measured) > 1:
    for number, split in enumerate(measured, 1):
      for name, value in split.items():
        yield f'split_{number}/{name}', value


def _pick(outputs, batch):
  """Pooled features, and whether they are of anything."""
  pooled = outputs['pooled']
  return {m: (pooled[m], batch[f'has_{m}']) for m in _MODALITIES if m in pooled}


class _Union(Sequence[Clip]):
  """The clips of several sources, each once.

  Attributes:
    identities: of each clip what tells it, and its file as it is now, from others.
  """

  def __init__(self, identify: bool):
    """Starts empty; without `identify` there are no identities."""
    self.identities: list[str] = []
    self._identify = identify
    self._sources: list[Sequence[Clip]] = []
    self._first: list[tuple[int, int]] = []    # source, and number there
    self._places: dict[tuple[str, float, float], int] = {}

  def __len__(self) -> int:
    return len(self._first)

  def __getitem__(self, place: int) -> Clip:
    source, index = self._first[place]
    return self._sources[source][index]

  def add(self, clips: Sequence[Clip]) -> _Rows:
    """Adds what is new of a source.  -> of each of its clips: the place, the labels."""
    rows = []
    for index, clip in enumerate(sources.each(clips)):
      key = clip.path, clip.start, clip.end
      place = self._places.setdefault(key, len(self._first))
      if place == len(self._first):
        self._first.append((len(self._sources), index))
        if self._identify:
          self.identities.append(f'{key} {_content(clip)}')
      rows.append((place, clip.labels))
    self._sources.append(clips)
    return rows


def _content(clip: Clip) -> str:
  """What changes when a clip's file does: size and time, or a digest of its record."""
  if clip.content is None:
    try:
      stat = os.stat(clip.path)
    except OSError as e:
      return str(e.errno)
    return f'{stat.st_size} {stat.st_mtime_ns}'
  if isinstance(clip.content, bytes):
    return hashlib.sha256(clip.content).hexdigest()
  stills = clip.content
  sha = hashlib.sha256(f'{stills.frame_rate_hz} {stills.audio_hz}'.encode())
  for picture in stills.pictures:
    sha.update(picture)
  if stills.waveform is not None:
    sha.update(np.ascontiguousarray(stills.waveform).tobytes())
  return sha.hexdigest()


def _read(path: pathlib.Path) -> Features | None:
  """What `_write` wrote; None if there is nothing, or it is damaged."""
  try:
    # Opened here: of a damaged file, NumPy leaves that to the garbage collector.
    with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
      return {m: (arrays[m], arrays[f'has_{m}']) for m in _MODALITIES if m in arrays}
  except FileNotFoundError:
    return None
  except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as e:
    logging.warning('%s: is damaged (%s); its features are made anew', path, e)
    return None


def _write(path: pathlib.Path, features: Features) -> None:
  """Writes features, whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(f'.{os.getpid()}.partial')    # others may write it too
  with partial.open('wb') as file:
    np.savez(file, **{m: x for m, (x, _) in features.items()},
             **{f'has_{m}': there for m, (_, there) in features.items()})
  partial.replace(path)
