"""SIGTERM and Ctrl-C as something a loop can ask about."""

from __future__ import annotations

from collections.abc import Callable
import signal
from types import FrameType
from typing import Any


class Interrupted(Exception):
  """A signal asked the run to stop.

  Attributes:
    signal: which.
  """

  def __init__(self, number: int):
    super().__init__(signal.Signals(number).name)
    self.signal = signal.Signals(number)


class Interrupt:
  """Within this context a first SIGTERM or Ctrl-C only sets a flag.

  A second one does what it always did.
  """

  def __init__(self, agree: Callable[[int], int] = lambda number: number):
    """Takes what makes several processes stop at the same check.

    Args:
      agree: the number of this process's signal, or 0 -> that of any (`multi_host.
        agreement`).
    """
    self._agree = agree
    self._number = 0
    self._before: dict[int, Any] = {}

  def __enter__(self) -> Interrupt:
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_) -> None:
    self._restore()

  def check(self) -> None:
    """Raises Interrupted if a signal has come."""
    if number := self._agree(self._number):
      raise Interrupted(number)

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    self._number = number
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}
