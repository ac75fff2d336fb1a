"""What README.md names is there."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def test_every_file_that_it_names_is_there():
  names = re.findall(r'(?:bash|--config=|\]\()\s*((?:launch|configs|docs)/[\w./-]+)',
                     README)
  assert {'launch/quickstart.sh', 'launch/test.sh', 'configs/quickstart.py',
          'configs/pretrain_folder.py'} <= set(names)
  for name in names:
    assert (ROOT / name).exists(), name


def test_no_number_is_missing():
  assert '@@' not in README


def test_ci_calls_the_test_command_as_it_stands_there():
  assert 'bash launch/test.sh\n' in README
  assert 'bash launch/test.sh\n' in (ROOT / '.ci' / 'run').read_text()
