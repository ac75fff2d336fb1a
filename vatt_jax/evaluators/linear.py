"""Linear probes: how much a linear classifier reads off frozen features."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import logging
import numpy as np
from sklearn import linear_model
from sklearn import metrics
from sklearn import multiclass
from sklearn import pipeline as sklearn_pipeline
from sklearn import preprocessing

from vatt_jax.errors import UserError
from vatt_jax.evaluators import extract
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import sources

_MODALITIES = ('video', 'audio')


class LinearProbe:
  """Logistic regression on the pooled features of clips, the mean of some windows.

  A label is a column of the manifests; several at once are joined by `|`, and
  then each has a classifier of its own.
  """

  def __init__(self, predict: extract.Predict, train: pipeline.Reader,
               test: pipeline.Reader, batch_size: int, labels: Mapping[str, str],
               multi_labels: Sequence[str] = (), num_windows: int = 1,
               num_crops: int = 1):
    """Prepares the probes.

    Args:
      predict: `predict(state, batch)` gives `pooled` (`step.Task.predict`).
      train: what the classifiers learn from.
      test: what they are measured on.
      batch_size: of feature extraction.
      labels: column -> the modality whose features are probed.
      multi_labels: those of the columns that hold several labels at once.
      num_windows: spread over each clip.
      num_crops: spread over each window's pictures.

    Raises:
      UserError: a manifest has no such column.
    """
    for label, modality in labels.items():
      if modality not in _MODALITIES:
        raise UserError(f'linear probe of {label!r}: modality {modality!r}; expected '
                        f'one of {", ".join(_MODALITIES)}')
    # Once: of a container, this reads all of it.
    self._train_rows, self._test_rows = (
        [clip.labels for clip in sources.each(reader.clips)]
        for reader in (train, test))
    for rows, which in ((self._train_rows, 'train'), (self._test_rows, 'test')):
      columns = {c for row in rows for c in row}
      missing = [c for c in labels if c not in columns]
      if missing:
        raise UserError(
            f'{which} manifest of a linear probe: no column {missing[0]!r}; found '
            f'{", ".join(sorted(columns)) or "no label"}')
    self._predict = predict
    self._train, self._test = train, test
    self._batch_size = batch_size
    self._views = num_windows, num_crops
    self._labels = dict(labels)
    self._multi_labels = frozenset(multi_labels)

  def run(self, state: Any) -> Iterator[tuple[str, float]]:
    """Yields `LABEL/top1` and `LABEL/chance_top1`, and `LABEL/mAP` of multi-labels.

    top1 of a multi-label is how often the highest score is one of the labels.
    Chance always answers with the commonest training label. Clips without the
    modality, or without a label, are left out; with fewer than two labels left
    there is no probe.
    """
    train = self._features(state, self._train)
    test = self._features(state, self._test)
    for label, modality in self._labels.items():
      if modality not in train:
        raise UserError(f'linear probe of {label!r}: the model has no {modality}')
      (x, y), (x_test, y_test) = (
          _labelled(features, rows, label, modality)
          for features, rows in ((train, self._train_rows), (test, self._test_rows)))
      if len(set(y)) < 2 or not len(y_test):
        logging.warning('No probe of %s: %d labels to train on, %d clips to test',
                        label, len(set(y)), len(y_test))
        continue
      probe = _probe_many if label in self._multi_labels else _probe_one
      for name, value in probe(x, y, x_test, y_test):
        yield f'{label}/{name}', value

  def _features(self, state, reader):
    """modality -> ([N, D], bool [N])."""
    features = extract.by_clip(self._predict, state, reader, self._batch_size,
                               *self._views, _pick)
    return {m: (extract.mean_over_views(x, there), there.any(axis=1))
            for m, (x, there) in features.items()}


def _pick(outputs, batch):
  """Pooled features, and whether they are of anything."""
  pooled = outputs['pooled']
  return {m: (pooled[m], batch[f'has_{m}']) for m in ('video', 'audio') if m in pooled}


def _labelled(features, rows, label, modality):
  """The features of clips that have modality and label, and the labels."""
  x, there = features[modality]
  y = np.asarray([row.get(label, '') for row in rows], dtype=object)
  there = there & (y != '')
  return x[there], y[there]


def _classifier() -> sklearn_pipeline.Pipeline:
  return sklearn_pipeline.make_pipeline(
      preprocessing.StandardScaler(),
      linear_model.LogisticRegression(C=0.1, max_iter=2000))


def _probe_one(x, y, x_test, y_test):
  guess = _classifier().fit(x, y.astype(str)).predict(x_test)
  names, counts = np.unique(y.astype(str), return_counts=True)
  yield 'top1', float(np.mean(guess == y_test))
  yield 'chance_top1', float(np.mean(names[counts.argmax()] == y_test))


def _probe_many(x, y, x_test, y_test):
  binarizer = preprocessing.MultiLabelBinarizer()
  targets = binarizer.fit_transform([v.split('|') for v in y])
  known = set(binarizer.classes_)
  targets_test = binarizer.transform(
      [[v for v in row.split('|') if v in known] for row in y_test])
  model = multiclass.OneVsRestClassifier(_classifier()).fit(x, targets)
  scores = model.predict_proba(x_test)
  yield 'top1', float(np.mean(targets_test[np.arange(len(scores)), scores.argmax(1)]))
  yield 'chance_top1', float(np.mean(targets_test[:, targets.sum(0).argmax()]))
  there = targets_test.any(axis=0)    # average precision needs a positive
  yield 'mAP', float(metrics.average_precision_score(
      targets_test[:, there], scores[:, there], average='macro'))
