"""Tests that files and commands named in README.md exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def test_every_named_file_exists():
  names = re.findall(r'(?:bash|--config=|\]\()\s*((?:launch|configs|docs)/[\w./-]+)',
                     README)
  assert {'launch/quickstart.sh', 'launch/test.sh', 'configs/quickstart.py',
          'configs/pretrain_folder.py'} <= set(names)
  for name in names:
    assert (ROOT / name).exists(), name


def test_no_placeholder_is_left():
  assert '@@' not in README


def test_ci_runs_the_documented_test_command():
  assert 'bash launch/test.sh\n' in README
  assert 'bash launch/test.sh\n' in (ROOT / '.ci' / 'run').read_text()
