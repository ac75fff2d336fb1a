"""Lets one process at a time write in an experiment directory.

The lock is an advisory lock of the operating system (`flock`) on a file that names
its owner. The system releases it when the owner dies, however it dies, so that
neither a dead process nor a reused process id keeps a directory locked. Some disks
shared by several hosts do not pass such locks on. For these the owner also touches
the file, and a file of another host that was touched lately is respected.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import errno
import fcntl
import functools
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any

from absl import logging

from vatt_jax import multi_host
from vatt_jax.errors import UserError

LOCK_FILE = 'run.lock'

_TOUCH_SECONDS = 15.0     # from one sign of life to the next
_STALE_SECONDS = 120.0    # without one, an owner on another host is taken for dead


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[Callable[[], None]]:
  """Holds the lock of a directory within the context; makes the directory.

  A directory that did not exist is deleted again if it is empty in the end.

  Yields:
    A function that deletes the lock file, for a process that ends within the context.

  Raises:
    UserError: another process holds the lock, or the directory cannot be written.
  """
  if not multi_host.is_first():    # process 0 holds it for all
    yield lambda: None
    return
  made = _make(folder)
  path = folder / LOCK_FILE
  delete = functools.partial(path.unlink, missing_ok=True)
  done = threading.Event()
  try:
    file = _acquire(path)
    toucher = threading.Thread(target=_touch, args=(path, done), daemon=True)
    toucher.start()
    try:
      yield delete
    finally:
      done.set()
      toucher.join()
      delete()    # before it is released: no other can hold it
      os.close(file)
  finally:
    for parent in made:
      with contextlib.suppress(OSError):    # it holds something now
        parent.rmdir()


def _make(folder: pathlib.Path) -> list[pathlib.Path]:
  """Makes a directory; returns those of it and its parents that did not exist."""
  try:
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise _unwritable(folder, e) from e
  return made


def _acquire(path: pathlib.Path) -> int:
  """Locks the file, names this process in it, and returns its descriptor."""
  while True:
    try:
      file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
      raise _unwritable(path.parent, e) from e
    try:
      if not _lock(file, path):
        raise UserError(f'{path.parent}: is in use by {_name(_owner(file))}; wait '
                        'until it ends, or give another --workdir')
      if not _is_current(file, path):    # the owner before released it just now
        os.close(file)
        continue
      _check_other_host(file, path)
      _write_owner(file, path)
      return file
    except BaseException:
      os.close(file)
      raise


def _lock(file: int, path: pathlib.Path) -> bool:
  """Returns whether the file could be locked, or the disk knows no locks."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as e:
    logging.warning('%s: this disk has no locks (%s); a second run in the same '
                    'directory would not be noticed', path.parent, e.strerror)
  return True


def _is_current(file: int, path: pathlib.Path) -> bool:
  """Returns whether the open file is still the one at the path."""
  try:
    return os.path.samestat(os.fstat(file), os.stat(path))
  except FileNotFoundError:
    return False


def _check_other_host(file: int, path: pathlib.Path) -> None:
  """Raises UserError if a process of another host gave a sign of life lately."""
  owner = _owner(file)
  if not owner:
    return
  silent = max(time.time() - os.fstat(file).st_mtime, 0.0)
  if owner['host'] != socket.gethostname() and silent < _STALE_SECONDS:
    raise UserError(
        f'{path.parent}: is in use by {_name(owner)}, which was alive {silent:.0f} s '
        f'ago; if it is gone, delete {path}, or wait {_STALE_SECONDS - silent:.0f} s')
  logging.info('%s: taking over from %s, which is gone', path.parent, _name(owner))


def _owner(file: int) -> dict[str, Any]:
  """Returns the owner that a lock file names; empty if it names none."""
  try:
    return json.loads(os.pread(file, 4096, 0))
  except ValueError:    # empty, or cut short by a kill
    return {}


def _name(owner: dict[str, Any]) -> str:
  if not owner:
    return 'another process'
  return f'process {owner["pid"]} on {owner["host"]} (since {owner["since"]})'


def _write_owner(file: int, path: pathlib.Path) -> None:
  owner = dict(host=socket.gethostname(), pid=os.getpid(),
               since=time.strftime('%Y-%m-%d %H:%M:%S'))
  try:
    os.ftruncate(file, 0)
    os.pwrite(file, (json.dumps(owner) + '\n').encode(), 0)
  except OSError as e:
    raise _unwritable(path.parent, e) from e


def _touch(path: pathlib.Path, done: threading.Event) -> None:
  while not done.wait(_TOUCH_SECONDS):
    with contextlib.suppress(OSError):    # the run itself will say it
      os.utime(path)


def _unwritable(folder: pathlib.Path, e: OSError) -> UserError:
  if e.errno in (errno.EEXIST, errno.ENOTDIR):
    return UserError(f'{folder}: is a file, or lies below one; expected a folder; give '
                     'another --workdir')
  return UserError(f'{folder}: cannot be written ({e.strerror}); give another '
                   '--workdir, or free what is in the way')
