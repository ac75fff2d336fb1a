# Sourced by the launch scripts: changes to the checkout, creates .venv, installs.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
  echo "launch: $PYTHON is not Python 3.11 to 3.13; set PYTHON to one that is" >&2
  exit 2
fi
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
# Installs only if the requirements have changed since the last time.
if [ setup.py -nt .venv/installed ]; then
  echo "Installing into .venv (about a minute)."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
  touch .venv/installed
fi
