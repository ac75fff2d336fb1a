"""The one exception whose message is all that a user needs to read."""


class UserError(Exception):
  """Bad input: one line with the file, key or value, what was expected, what to do.

  `main` prints the line and exits with status 2; anything else is a bug and
  keeps its traceback.
  """
