"""A trained classifier on held-out clips."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import logging
import numpy as np

from vatt_jax.errors import UserError
from vatt_jax.evaluators import extract
from vatt_jax.evaluators import metrics
from vatt_jax.inputs import labels as labels_lib
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import sources
from vatt_jax.inputs.clip import Clip


class Classify:
  """Accuracy of the class scores of clips, the mean over their views.

  The paper's are 4 windows of 3 crops each (VATT, section 4.3).
  """

  def __init__(self, predict: extract.Predict, reader: pipeline.Reader,
               batch_size: int, where: str, num_windows: int = 1, num_crops: int = 1):
    """Reads the labels.

    Args:
      predict: `predict(state, batch)` gives `logits` (`step.Task.predict`).
      reader: the source, with labels.
      batch_size: rows at a time.
      where: the source's name, for messages.
      num_windows: spread over each clip.
      num_crops: spread over each window's pictures.

    Raises:
      UserError: a label that is no class of the label map, or no clip has one.
    """
    targets, columns = [], set()
    for clip in sources.each(reader.clips):    # not kept: a record may be large
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
    """Yields `top1` and `top5`; of several labels a clip `mAP`, `AUC`, `d_prime`.

    Beside them what chance reaches, `chance_NAME`: of the accuracies, who knows which
    of these very clips' classes are the commonest. Clips without a label, broken ones
    and those that lack what is classified are left out; nothing is yielded if none is
    left.
    """
    logits, there = extract.by_clip(self._predict, state, self.reader,
                                    self._batch_size, *self._views, _pick)
    counted = self._targets.any(axis=1) & there.any(axis=1)
    if not counted.all():
      logging.warning('%s: %d of %d clips have no label or nothing to classify, and '
                      'are left out', self._where, np.sum(~counted), len(counted))
    if not counted.any():
      return
    scores = extract.mean_over_views(logits, there)[counted]
    targets = self._targets[counted]
    if self.reader.labels.several:
      reached = metrics.multi_label(scores, targets, self.reader.labels.names)
      by_chance = metrics.multi_label_by_chance(targets)
    else:
      label = targets.argmax(axis=1)
      reached = metrics.top_k(scores, label)
      by_chance = metrics.top_k_by_chance(label, targets.sum(axis=0))
    yield from reached
    for name, value in by_chance:
      yield f'chance_{name}', value


def _pick(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
  """Class scores, and whether they are of anything."""
  if 'logits' not in outputs:
    raise UserError("the evaluator 'classify' needs a classifier; set config.model."
                    "head to name='classifier'")
  (modality,) = outputs['pooled']
  return outputs['logits'], batch[f'has_{modality}']
