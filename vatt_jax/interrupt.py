"""SIGTERM and Ctrl-C as something a loop can ask about."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import os
import signal
import threading
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
    self._at_exit = contextlib.ExitStack()

  def __enter__(self) -> Interrupt:
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_) -> None:
    self._restore()
    self._at_exit.close()

  def check(self) -> None:
    """Raises Interrupted if a signal has come."""
    if number := self._agree(self._number):
      raise Interrupted(number)

  def end_within(self, seconds: float, end: Callable[[int], None]) -> None:
    """Makes a signal end the process from now on, even if nothing checks for it.

    A compilation or the fit of a classifier takes long and is one call, in which
    Python runs no handler of signals. Only for a single process, and where nothing is
    left to save.

    Args:
      seconds: from the signal to the end, unless the context of this object ends
        before.
      end: called in another thread with the number of the signal.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    left = threading.Event()

    def wait() -> None:
      while number := os.read(reader, 1):
        if number[0] in (signal.SIGTERM, signal.SIGINT) and not left.wait(seconds):
          end(number[0])

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def stop_waiting() -> None:
      signal.set_wakeup_fd(before)
      left.set()
      os.close(writer)    # ends the thread
      waiting.join()
      os.close(reader)

    self._at_exit.callback(stop_waiting)

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    self._number = number
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}
