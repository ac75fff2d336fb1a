"""Tests vatt_jax/distributed/interrupt.py."""

import hashlib
import os
import signal
import threading
import time

import pytest

from vatt_jax.distributed import interrupt


def test_signal_is_raised_at_the_next_check():
  with interrupt.Interrupt() as stop:
    stop.check()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(interrupt.Interrupted, match='SIGTERM'):
      stop.check()


def test_signal_during_a_long_call_ends_the_process():
  """Python runs no signal handler until the call returns."""
  ended = []
  with interrupt.Interrupt() as stop:
    stop.end_within(0.05, lambda number: ended.append((number, time.monotonic())))
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    hashlib.pbkdf2_hmac('sha256', b'', b'', 5_000_000)
    returned = time.monotonic()
  [(number, at)] = ended
  assert number == signal.SIGTERM and at < returned


def test_signal_checked_in_time_does_not_end_the_process():
  ended, before = [], threading.active_count()
  with pytest.raises(interrupt.Interrupted), interrupt.Interrupt() as stop:
    stop.end_within(30, ended.append)
    os.kill(os.getpid(), signal.SIGINT)
    stop.check()
  assert not ended and threading.active_count() == before
  assert signal.set_wakeup_fd(-1) == -1
