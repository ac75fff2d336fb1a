"""Hooks: actions of a run between steps, such as relabeling clips by clustering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import Protocol


class Hook(Protocol):
  """Changes the state of a run between some of its steps.

  A hook is built with the keys of its section, and with those of `reader`, `predict`,
  `batch_size` and `seed` that are its arguments. It must be a pure function of state
  and step, because a resumed run calls it again at the step from which it resumes.
  """

  def due(self, step: int) -> bool:
    """Returns whether the hook runs before this training step."""

  def run(self, state: Any) -> Any:
    """Computes the new state."""


HOOKS: dict[str, Callable[..., Hook]] = {}
