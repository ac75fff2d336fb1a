"""Hooks: actions of a run between steps, such as relabelling clips by clustering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import Protocol


class Hook(Protocol):
  """Changes the state of a run now and then.

  A hook is built with its section's keys, and with those of `reader`, `predict`,
  `batch_size` and `seed` that it names as arguments. It must be a pure function of
  state and step, because a resumed run calls it again at the step it resumes from.
  """

  def due(self, step: int) -> bool:
    """Returns whether to run before the training step of this number."""

  def run(self, state: Any) -> Any:
    """Returns the new state."""


HOOKS: dict[str, Callable[..., Hook]] = {}
