"""Defines UserError, the exception for invalid user input."""

import errno
import os


class UserError(Exception):
  """Signals bad input: one line with the file, key or value, expectation and remedy.

  `main` prints the line and exits with status 2. Any other exception is a bug and
  keeps its traceback.
  """


def is_full_disk(e: BaseException) -> bool:
  """Returns whether an error reports a full disk, by error number or by message."""
  full = errno.ENOSPC, errno.EDQUOT
  return getattr(e, 'errno', None) in full or any(
      os.strerror(number) in str(e) for number in full)
