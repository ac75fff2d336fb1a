"""Evaluators: a table from a config's evaluator name to its class, and schedules."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
from typing import Any
from typing import Protocol

from absl import logging

from vatt_jax import config
from vatt_jax.evaluators import classification
from vatt_jax.evaluators import linear_probe
from vatt_jax.evaluators import nearest_neighbours
from vatt_jax.evaluators import retrieval


class Evaluator(Protocol):
  """Measures a model.

  An evaluator is built with the keys of its section, and with those of `predict`,
  `reader`, `batch_size`, `model` (the config's section) and `where` (the name of its
  own section) that are its arguments. It may have `measured`, the clips that it
  measures on, and `beside_random = False`, to measure no random model for comparison.
  """

  def run(self, state: Any) -> Iterator[tuple[str, float]]:
    """Yields metrics and their values."""


EVALUATORS: dict[str, Callable[..., Evaluator]] = {
    'retrieval': retrieval.Retrieval, 'linear_probe': linear_probe.LinearProbe,
    'neighbours': nearest_neighbours.Neighbours, 'classify': classification.Classify}


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Holds an evaluator and its schedule.

  Attributes:
    evaluator: the evaluator.
    every_steps: the interval in training steps; 0: only at the end.
    where: the evaluator's section of the config.
  """
  evaluator: Evaluator
  every_steps: int
  where: str

  @property
  def beside_random(self) -> bool:
    """Returns whether to evaluate a randomly initialized model too."""
    return getattr(self.evaluator, 'beside_random', True)

  def run(self, state: Any) -> dict[str, float]:
    """Returns the metrics of a state; warns if it returns none."""
    measures = dict(self.evaluator.run(state))
    if not measures:
      logging.warning('config.%s: returned no metrics; expected two classes or more, '
                      'and clips that have all evaluated modalities', self.where)
    return measures

  def due(self, step_number: int) -> bool:
    """Returns whether to evaluate before this training step."""
    return (self.every_steps > 0 and step_number > 0
            and step_number % self.every_steps == 0)


def build(section_name: str, section: config.Settings, **given: Any) -> Evaluation:
  """Builds the evaluation of a config section.

  Args:
    section_name: the section's key under `config.evals`.
    section: `name`, a key of `EVALUATORS`; `every_steps`, by default 0; and arguments
      of the evaluator.
    **given: other arguments (`Evaluator`).

  Raises:
    UserError: names the key that is unknown, missing or out of range.
  """
  where = f'evals.{section_name}'
  fields = dict(section)
  every_steps = fields.pop('every_steps', 0)
  for key in ('num_windows', 'num_crops'):
    if fields.get(key, 1) < 1:
      raise config.UserError(f'config.{where}: {key}={fields[key]}: expected 1 or more')
  return Evaluation(config.build(where, EVALUATORS, fields, where=where, **given),
                    every_steps, where)
