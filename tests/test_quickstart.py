"""Tests that the quickstart reaches the README's results on the full toy world."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_quickstart_reaches_the_documented_results(tmp_path):
  # Compiled with optimization, unlike the other tests (conftest.py).
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  # The config reads data/toy_world of the current directory.
  for command in (
      ['data.toy_world', '--out=data/toy_world'],
      ['vatt_jax.main', f'--config={ROOT}/configs/quickstart.py', '--workdir=run']):
    done = subprocess.run(
        [sys.executable, '-m', *command], cwd=tmp_path, capture_output=True, text=True,
        env=environment | {'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  retrieval = lambda way: results[f'retrieval/{way}/R@10']
  assert results['retrieval/text_to_video/chance_R@10'] == 10 / 256
  assert retrieval('text_to_video') >= 0.80
  assert retrieval('video_to_text') >= 0.80
  assert retrieval('audio_to_video') >= 10 * 10 / 256
  assert retrieval('video_to_audio') >= 10 * 10 / 256
  for label in ('shape', 'motion', 'sound_event'):
    error, error_random = (1 - results[f'probe/{label}/top1{kind}']
                           for kind in ('', '_random_init'))
    assert error <= error_random / 2, label
