"""Extracts features of a frozen model and pairs them with labels."""

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
from vatt_jax.config import call
from vatt_jax.config import Settings
from vatt_jax.distributed import hosts
from vatt_jax.errors import UserError
from vatt_jax.evaluators import extract
from vatt_jax.evaluators.views import mean_over_views
from vatt_jax.inputs import labels as labels_lib
from vatt_jax.inputs import sources
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.reader import Reader

_MODALITIES = ('video', 'audio')
_NAMED = 5    # classes, in a warning

Source = tuple[str, Sequence[Clip]]
# Features [N, V, D] of V views of N clips, and bool [N, V]: which views are present.
_Array = tuple[np.ndarray, np.ndarray]
Features = dict[str, _Array]
_Rows = list[tuple[int, Mapping[str, str]]]


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Describes how training clips are augmented (`Reader.augmented`).

  Attributes:
    num_epochs: number of windows drawn from each clip.
    seed: seed of windows, crops and flips.

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
  """Holds training rows and test rows for one label.

  Attributes:
    x: float32 [N, D], training features: a row for each clip, or for each window.
    targets: bool [N, C], the classes of each row.
    x_test: float32 [R, D], test features of M clips, likewise.
    groups: int [R], the clip of each test row; every clip has one row or more.
    targets_test: bool [M, C], the classes of each test clip.
    classes: names of the C classes of both sides.
    multi_label: whether the label is multi-label.
  """
  x: np.ndarray
  targets: np.ndarray
  x_test: np.ndarray
  groups: np.ndarray
  targets_test: np.ndarray
  classes: list[str]
  multi_label: bool

  @property
  def learnable(self) -> np.ndarray:
    """Returns the classes that some, but not all, training rows have.  bool [C]."""
    return self.targets.any(axis=0) & ~self.targets.all(axis=0)


class Frozen:
  """Computes pooled features of clips, by label and split.

  A row is the mean of a clip's windows, or a single window. A label is a column of the
  manifests. A clip in several manifests is read and run once (the official splits of
  UCF101 share their videos).

  Attributes:
    measured: the test clips of all splits.
  """

  def __init__(self, predict: extract.Predict, reader: Reader, batch_size: int,
               model: Mapping[str, Any], splits: Sequence[tuple[Source, Source]],
               labels: Mapping[str, str], multi_labels: Sequence[str] = (),
               num_windows: int = 1, num_crops: int = 1, cache: str = '',
               augmentation: Augmentation | None = None, average: bool = True):
    """Reads and checks the labels of the manifests.

    Args:
      predict: `predict(state, batch)` returns `pooled` (`train_step.Task.predict`).
      reader: how to read clips; the splits name the clips.
      batch_size: batch size of feature extraction.
      model: the model's settings, by which the cache distinguishes models.
      splits: (training source, test source) of each split; a source is name and clips.
      labels: column -> the modality whose features predict it.
      multi_labels: the columns that are multi-label, with labels joined by `|`.
      num_windows: windows spread over each clip.
      num_crops: crops spread over the frames of each window.
      cache: folder for features; empty for none. The key is a digest of everything
        that determines them: the model's weights and settings, the window, the clips,
        and the sizes and modification times of their files.
      augmentation: if given, rows are single windows: augmented ones for training,
        and for testing those spread over each clip.
      average: without an augmentation, whether a row is the mean of a clip's windows
        rather than one of them.

    Raises:
      UserError: names the invalid label, modality, manifest or folder.
    """
    tests = {name: clips for _, (name, clips) in splits}
    self.measured = sources.Mixture(list(tests.values()))
    self._labels, self._multi_labels = dict(labels), frozenset(multi_labels)
    for label, modality in labels.items():
      if modality not in _MODALITIES:
        raise UserError(f'label {label!r}: modality {modality!r}; expected one of '
                        f'{", ".join(_MODALITIES)}')
    if unknown := sorted(self._multi_labels - labels.keys()):
      raise UserError(f'multi_labels: {unknown[0]!r} is not one of the labels; '
                      f'expected some of {", ".join(labels)}')
    self._cache = pathlib.Path(cache) if cache else None
    if self._cache is not None and self._cache.exists() and not self._cache.is_dir():
      raise UserError(f'{cache}: is a file; expected a folder for the feature cache')
    self._predict, self._batch_size = predict, batch_size
    self._views = num_windows, num_crops
    self._augmentation, self._average = augmentation, average
    # Clips whose spread windows are taken, and clips whose windows are augmented.
    self._clips = _Union(identify=bool(cache))
    self._train_clips = _Union(identify=bool(cache))
    # The splits have their own labels, not the classes of the trained model.
    self._reader = dataclasses.replace(reader, labels=())
    self._model = json.dumps(model, sort_keys=True)
    self._splits = []
    # A training clip of one of many splits is a test clip of another. With the spread
    # windows of all clips in the cache, the nearest-neighbour evaluation of the same
    # splits finds them there. For a single split, often a large one, it is not worth
    # the time and memory.
    spread_all = len(splits) > 1 or not augmentation
    for train, test in splits:
      rows = (self._add(train, self._clips if spread_all else self._train_clips,
                        learn=True),
              self._add(test, self._clips, learn=False))
      if augmentation and spread_all:
        rows = self._train_clips.add(train[1]), rows[1]
      self._splits.append(rows)

  def splits(self, state: Any) -> Iterator[tuple[str, list[Split]]]:
    """Yields each label and its splits.

    Leaves out clips without the modality or the label. Leaves out and logs a label if
    a split has no test clip or no class to distinguish.

    Raises:
      UserError: the model has no features of a modality.
    """
    to_learn, to_measure = self._features(state)
    for label, modality in self._labels.items():
      if modality not in to_measure:
        raise UserError(f'label {label!r}: the model has no features of {modality}; '
                        'add it to config.model and to config.window.modalities')
      splits = [self._split(to_learn[modality], to_measure[modality], label, *sides)
                for sides in self._splits]
      if all(split.learnable.any() and len(split.targets_test) for split in splits):
        yield label, splits
      else:
        logging.warning('Left out: %s, because too few clips have both the label and '
                        '%s', label, modality)

  def _add(self, source: Source, union: _Union, learn: bool) -> _Rows:
    """Adds a training source (`learn`) or a test source to a union of clips.

    Returns:
      The places of its clips in the union, and their labels.
    """
    name, clips = source
    rows = union.add(clips)
    columns = {column for _, row in rows for column in row}
    for label in self._labels:
      values = {row.get(label, '') for _, row in rows} - {''}
      if label not in columns:
        raise UserError(f'{name}: no column {label!r} to evaluate; found '
                        f'{", ".join(sorted(columns)) or "no label"}')
      if not values:
        raise UserError(f'{name}: column {label!r} is empty; expected '
                        f'{"two labels" if learn else "a label"} or more')
      if learn and len(values) == 1:
        logging.warning('%s: column %r has only one class, %r, and nothing can be '
                        'learned from it; expected two or more', name, label,
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
    unknown = [c for c, in_train in zip(classes, targets.any(axis=0), strict=True)
               if not in_train]
    if unknown:
      logging.warning('%s: %d of %d classes occur only in the test set, and their '
                      'clips cannot be classified correctly: %s',
                      label, len(unknown), len(classes),
                      ', '.join(unknown[:_NAMED] + ['...'] * (len(unknown) > _NAMED)))
    return Split(x[0], targets[groups[0]], x[1], groups[1], targets_test, classes,
                 label in self._multi_labels)

  def _features(self, state: Any) -> tuple[Features, Features]:
    """Returns the features of the training clips, and of the test clips."""
    spread = self._kept(state, self._clips, *self._views, None)
    if self._augmentation:
      drawn = self._kept(state, self._train_clips, self._augmentation.num_epochs, 1,
                         self._augmentation.seed)
      return drawn, spread
    if not self._average:
      return spread, spread
    means = {m: (mean_over_views(x, present)[:, None].astype(np.float32),
                 present.any(axis=1, keepdims=True))
             for m, (x, present) in spread.items()}
    return means, means

  def _kept(self, state: Any, clips: _Union, num_windows: int, num_crops: int,
            augment_seed: int | None) -> Features:
    """Returns the features of every view, from the cache if it has them."""
    views = num_windows, num_crops, augment_seed
    if self._cache is None:
      return self._extract(state, clips, *views)
    path = self._cache / f'{self._digest(state, clips, views)}.npz'
    features = _read(path)
    if not hosts.all_of(features is not None):
      features = self._extract(state, clips, *views)
      if hosts.is_first():
        _write(path, features)
      logging.info('Cached the features of %d clips as %s', len(clips), path)
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


def open_section(where: str, section: Settings, train: str | Sequence[str],
                 test: str | Sequence[str], **given: Any) -> Frozen:
  """Builds the features of an evaluator's section.

  Args:
    where: the section's name.
    section: arguments of `Frozen`.
    train: the training source (`sources.open_source`), or that of each split.
    test: the test source, or that of each split.
    **given: other arguments of `Frozen`.

  Raises:
    ValueError: the numbers of training and test sources differ.
    UserError: names the invalid key, label or source.
  """
  if isinstance(train, str) and isinstance(test, str):
    train, test = [train], [test]
  if isinstance(train, str) or isinstance(test, str) or len(train) != len(test):
    raise ValueError('train and test: expected one each, or the same number of both')
  opened = {path: (path, sources.open_source(path)) for path in (*train, *test)}
  splits = [(opened[a], opened[b]) for a, b in zip(train, test, strict=True)]
  return call(where, Frozen, section, splits=splits, **given)


def _rows_of_label(features: _Array, rows: _Rows, label: str
                   ) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Returns the clips that have both a label and features, and their rows.

  Args:
    features: features [N, V, D] of clips, and bool [N, V]: which views are present.
    rows: places among the N clips, and labels.
    label: a column.

  Returns:
    The labels of the M clips that have both; rows [R, D]; int [R], the clip of each.
  """
  x, present = features
  labelled = [(place, row[label]) for place, row in rows if row.get(label)]
  kept = [(place, value) for place, value in labelled if present[place].any()]
  if len(kept) < len(labelled):
    logging.warning('%s: %d of %d clips are broken or have nothing to classify and '
                    'are left out', label, len(labelled) - len(kept), len(labelled))
  places = np.array([place for place, _ in kept], int)
  clip, view = np.nonzero(present[places])
  return [value for _, value in kept], x[places[clip], view], clip


def over_splits(measured: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, float]]:
  """Yields the mean over splits of each measure that all splits have.

  Yields:
    `NAME`, and for several splits also each split's own value, `split_1/NAME` and so
    on.
  """
  for name in measured[0]:
    if all(name in split for split in measured):
      yield name, float(np.mean([split[name] for split in measured]))
  if len(measured) > 1:
    for number, split in enumerate(measured, 1):
      for name, value in split.items():
        yield f'split_{number}/{name}', value


def _pick(outputs, batch):
  """Returns the pooled features, and whether their modality is present."""
  pooled = outputs['pooled']
  return {m: (pooled[m], batch[f'has_{m}']) for m in _MODALITIES if m in pooled}


class _Union(Sequence[Clip]):
  """Joins the clips of several sources, each clip once.

  Attributes:
    identities: a text for each clip that identifies it and its file's current content.
  """

  def __init__(self, identify: bool):
    """Starts empty; collects identities only with `identify`."""
    self.identities: list[str] = []
    self._identify = identify
    self._sources: list[Sequence[Clip]] = []
    self._first: list[tuple[int, int]] = []    # source, and index in it
    self._places: dict[tuple[str, float, float], int] = {}

  def __len__(self) -> int:
    return len(self._first)

  def __getitem__(self, place: int) -> Clip:
    source, index = self._first[place]
    return self._sources[source][index]

  def add(self, clips: Sequence[Clip]) -> _Rows:
    """Adds the new clips of a source; returns (place, labels) of each of its clips."""
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
  """Identifies a clip's content: size and time of its file, or digest of its record."""
  if clip.content is None:
    try:
      stat = os.stat(clip.path)
    except OSError as e:
      return str(e.errno)
    return f'{stat.st_size} {stat.st_mtime_ns}'
  if isinstance(clip.content, bytes):
    return hashlib.sha256(clip.content).hexdigest()
  images = clip.content
  sha = hashlib.sha256(f'{images.frame_rate_hz} {images.audio_hz}'.encode())
  for frame in images.encoded_frames:
    sha.update(frame)
  if images.waveform is not None:
    sha.update(np.ascontiguousarray(images.waveform).tobytes())
  return sha.hexdigest()


def _read(path: pathlib.Path) -> Features | None:
  """Reads a file of `_write`; returns None if it is missing or damaged."""
  try:
    # NumPy leaves a damaged file open until garbage collection, so open it here.
    with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
      return {m: (arrays[m], arrays[f'has_{m}']) for m in _MODALITIES if m in arrays}
  except FileNotFoundError:
    return None
  except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as e:
    logging.warning('%s: is damaged (%s); its features are extracted again', path, e)
    return None


def _write(path: pathlib.Path, features: Features) -> None:
  """Writes features atomically."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(f'.{os.getpid()}.partial')    # one per process
  with partial.open('wb') as file:
    np.savez(file, **{m: x for m, (x, _) in features.items()},
             **{f'has_{m}': present for m, (_, present) in features.items()})
  partial.replace(path)
