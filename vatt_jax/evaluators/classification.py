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
      UserError: a label is not in the label map, or no clip has a label.
    """
    if reader.labels is None:
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
      targets.append(reader.labels.encode(clip))
      columns.update(clip.labels)
    labels_lib.check_column(columns, reader.labels.column, where)
    self._targets = np.stack(targets)
    if not self._targets.any():
      raise UserError(f'{where}: no clip has a label in its column '
                      f'{reader.labels.column!r}')
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
    """
    logits, present = extract.by_clip(self._predict, state, self.reader,
                                    self._batch_size, *self._views, _pick)
    counted = self._targets.any(axis=1) & present.any(axis=1)
    if not counted.all():
      logging.warning('%s: %d of %d clips have no label or nothing to classify and '
                      'are left out', self._where, np.sum(~counted), len(counted))
    if not counted.any():
      return
    scores = mean_over_views(logits, present)[counted]
    targets = self._targets[counted]
    if self.reader.labels.multi_label:
      measures = metrics.multi_label(scores, targets, self.reader.labels.names)
      chance = metrics.multi_label_by_chance(targets)
    else:
      label = targets.argmax(axis=1)
      measures = metrics.top_k(scores, label)
      chance = metrics.top_k_by_chance(label, targets.sum(axis=0))
    yield from measures
    for name, value in chance:
      yield f'chance_{name}', value


def _pick(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
  """Returns the class scores, and whether their modality is present."""
  if 'logits' not in outputs:
    raise UserError("the evaluator 'classify' needs a classifier; set config.model."
                    "head to name='classifier'")
  (modality,) = outputs['pooled']
  return outputs['logits'], batch[f'has_{modality}']
