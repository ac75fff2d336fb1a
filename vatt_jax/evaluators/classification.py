"""Measures a trained classifier on held-out clips."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from absl import logging
import numpy as np

from vatt_jax.errors import UserError
from vatt_jax.evaluators import extract
from vatt_jax.evaluators import metrics
from vatt_jax.evaluators.views import mean_over_views
from vatt_jax.inputs import labels as labels_lib
from vatt_jax.inputs import sources
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.reader import Reader


class Classify:
  """Measures a classifier; a clip's scores are the means over its views.

  The paper uses 4 windows of 3 crops each (VATT, section 4.3).
  """

  beside_random = False    # its random head is at chance

  def __init__(self, predict: extract.Predict, reader: Reader,
               batch_size: int, path: str = '', num_windows: int = 1,
               num_crops: int = 1):
    """Opens the clips and reads their labels.

    Args:
      predict: `predict(state, batch)` returns `logits` (`train_step.Task.predict`).
      reader: reads clips; has labels.
      batch_size: rows per batch.
      path: the source of the clips (`sources.open_source`); empty for the reader's.
      num_windows: windows spread over each clip.
      num_crops: crops spread over the frames of each window.

    Raises:
      ValueError: the reader has no labels, or neither it nor `path` has clips.
      UserError: a label is not in the label map, or no clip has a label in a column.
    """
    if not reader.labels:
      raise ValueError('needs labels; set config.data.label to a column of the '
                       'manifest')
    if path:
      reader = dataclasses.replace(reader, clips=sources.open_source(path))
    elif not len(reader.clips):
      raise ValueError("path='': expected the clips to classify, because the config "
                       'has no training clips')
    else:
      logging.warning('The classifier is evaluated on the training clips, because the '
                      'path of the evaluation is empty')
    where = path or 'config.data.path'
    targets, columns = [], set()
    for clip in sources.each(reader.clips):    # one at a time: a record may be large
      targets.append([one.encode(clip) for one in reader.labels])
      columns.update(clip.labels)
    self._targets = list(map(np.stack, zip(*targets, strict=True)))    # by column
    for one, encoded in zip(reader.labels, self._targets, strict=True):
      labels_lib.check_column(columns, one.column, where)
      if not encoded.any():
        raise UserError(f'{where}: no clip has a label in its column {one.column!r}')
    self._predict, self._batch_size, self._where = predict, batch_size, where
    self._views = num_windows, num_crops
    self.reader = reader

  @property
  def measured(self) -> Sequence[Clip]:
    """Returns the clips whose classes are measured."""
    return self.reader.clips

  def run(self, state: Any) -> Iterator[tuple[str, float]]:
    """Yields `top1` and `top5`, or `mAP`, `AUC` and `d_prime` for multi-label clips.

    Yields the chance level of each as `chance_NAME`. For accuracies, chance always
    predicts the most frequent classes of these same clips. Leaves out clips that are
    broken or lack a label or the modality to classify. Yields nothing if no clip is
    left.

    With several columns of labels, the names are `COLUMN/top1` and so on. `all/top1` is
    then the fraction of clips with all columns correct, among those with all labels.
    """
    logits, present = extract.by_clip(self._predict, state, self.reader,
                                      self._batch_size, *self._views, _pick)
    classes = self.reader.labels
    by_column = [logits[one.column] if isinstance(logits, Mapping) else logits
                 for one in classes]
    scores = [mean_over_views(x, present) for x in by_column]
    counted = [self._counted(one.column, targets, present)
               for one, targets in zip(classes, self._targets, strict=True)]
    for one, rows, *arrays in zip(classes, counted, scores, self._targets, strict=True):
      if rows.any():
        prefix = f'{one.column}/' if len(classes) > 1 else ''
        for name, value in _measure(one, *(x[rows] for x in arrays)):
          yield prefix + name, value
    rows = np.all(counted, axis=0)
    if len(classes) > 1 and not classes[0].multi_label and rows.any():
      yield from _measure_jointly(*([x[rows] for x in arrays]
                                    for arrays in (scores, self._targets)))

  def _counted(self, column: str, targets: np.ndarray, present: np.ndarray
               ) -> np.ndarray:
    """Returns which clips have a label and their modality; logs if some do not."""
    counted = targets.any(axis=1) & present.any(axis=1)
    if not counted.all():
      logging.warning('%s: %d of %d clips have no label in the column %r or nothing to '
                      'classify and are left out', self._where, np.sum(~counted),
                      len(counted), column)
    return counted


def _pick(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
  """Returns the class scores, and whether their modality is present."""
  if 'logits' not in outputs:
    raise UserError("the evaluator 'classify' needs a classifier; set config.model."
                    "head to name='classifier'")
  (modality,) = outputs['pooled']
  return outputs['logits'], batch[f'has_{modality}']


def _measure(classes: labels_lib.Labels, scores: np.ndarray, targets: np.ndarray
             ) -> Iterator[tuple[str, float]]:
  """Yields the metrics of a column of labels, and their chance levels."""
  if classes.multi_label:
    yield from metrics.multi_label(scores, targets, classes.names)
    chance = metrics.multi_label_by_chance(targets)
  else:
    label = targets.argmax(axis=1)
    yield from metrics.top_k(scores, label)
    chance = metrics.top_k_by_chance(label, targets.sum(axis=0))
  for name, value in chance:
    yield f'chance_{name}', value


def _measure_jointly(scores: Sequence[np.ndarray], targets: Sequence[np.ndarray]
                     ) -> Iterator[tuple[str, float]]:
  """Yields how often all columns are correct, and how often by chance."""
  labels = np.stack([x.argmax(axis=1) for x in targets])
  right = [metrics.rank_of_match(x, label) == 0
           for x, label in zip(scores, labels, strict=True)]
  _, counts = np.unique(labels, axis=1, return_counts=True)
  yield 'all/top1', float(np.mean(np.all(right, axis=0)))
  yield 'all/chance_top1', float(counts.max() / counts.sum())
