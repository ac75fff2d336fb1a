"""The language of vatt_jax: docstrings are plain sentences that begin with a verb."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'vatt_jax').rglob('*.py'))


def docstrings(path):
  """Yields (is a function or class, line, docstring) of a file."""
  tree = ast.parse(path.read_text(encoding='utf-8'))
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
        text := ast.get_docstring(node)):
      yield not isinstance(node, ast.Module), getattr(node, 'lineno', 1), text


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_docstring_begins_with_a_fragment(path):
  bad = [f'{path}:{line}: {text.splitlines()[0]}' for _, line, text in docstrings(path)
         if re.match(r'(Of|What|Those|That|As|So)\b', text)]
  assert not bad, '\n'.join(bad)


def test_docstrings_of_functions_begin_with_a_verb():
  first = [text.split()[0] for path in FILES
           for is_member, _, text in docstrings(path) if is_member]
  share = sum(bool(re.fullmatch(r'[A-Z][a-z]+s', word)) for word in first) / len(first)
  assert share > 0.8, f'{share:.2f} of {len(first)} docstrings begin with a verb in -s'
