"""The one exception whose message is all that a user needs to read."""

import errno
import os


class UserError(Exception):
  """Bad input: one line with the file, key or value, what was expected, what to do.

  `main` prints the line and exits with status 2; anything else is a bug and
  keeps its traceback.
  """


def is_full_disk(e: BaseException) -> bool:
  """Returns whether an error says so, by its number or in the system's words."""
  full = errno.ENOSPC, errno.EDQUOT
  return getattr(e, 'errno', None) in full or any(
      os.strerror(number) in str(e) for number in full)
