"""Tests vatt_jax/__main__.py."""

import importlib.util
import sys

from vatt_jax import __main__ as commands


def test_no_command_lists_all_commands(capsys):
  assert commands.main([]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len([line for line in lines if line.startswith('  ')]) == len(
      commands.COMMANDS)
  assert all(len(line) <= 80 for line in lines)


def test_every_command_is_a_module():
  for module, _ in commands.COMMANDS.values():
    assert importlib.util.find_spec(module), module


def test_mistyped_command_error_suggests_the_nearest(capsys):
  assert commands.main(['chek_data']) == 2
  assert capsys.readouterr().err.startswith(
      'vatt_jax: chek_data: unknown command; did you mean check_data? expected one of')


def test_command_runs_with_its_own_flags(monkeypatch, capsys):
  ran = []
  monkeypatch.setattr(commands.runpy, 'run_module',
                      lambda module, **kwargs: ran.append((module, list(sys.argv))))
  monkeypatch.setattr(sys, 'argv', ['python'])
  assert commands.main(['cost', '--json']) == 0
  assert ran == [('vatt_jax.tools.cost', ['python -m vatt_jax cost', '--json'])]
