"""Tests that runs of older versions resume; 0.5.0 wrote fixtures/run_0_5.tar.gz.

It holds two steps of a small VATT with microbatches and a learned temperature. Its
config has the key names of 0.5.0.
"""

import json
import pathlib
import tarfile

import pytest

from vatt_jax import train
from vatt_jax.weights import load as weights

FIXTURE = pathlib.Path(__file__).parent / 'fixtures' / 'run_0_5.tar.gz'


@pytest.fixture
def run(toy_world, tmp_path):
  """Returns the workdir, with the tests' data in its config."""
  with tarfile.open(FIXTURE) as archive:
    archive.extractall(tmp_path, filter='data')
  path = tmp_path / 'run_0_5' / 'config.json'
  config = json.loads(path.read_text())
  config['data']['path'] = str(toy_world / 'train.csv')
  path.write_text(json.dumps(config))
  return path.parent


def current_names(config):
  """Returns the same config with the key names of this version."""
  text = json.dumps(config).replace('num_parts', 'num_microbatches')
  config = json.loads(text.replace('max_words', 'max_tokens'))
  del config['data']['builder']
  config['losses']['video_text']['name'] = 'siglip'
  return config


def test_checkpoint_of_an_older_version_loads(run):
  model, variables = weights.load(run)
  assert model.modalities == ('video', 'audio', 'text')
  kernel = variables['params']['tokenizers_video']['projection']['kernel']
  assert kernel.shape == (4, 8, 8, 3, 8)


def test_run_of_an_older_version_resumes_with_its_parameters(run):
  config = json.loads((run / 'config.json').read_text())
  before = json.loads((run / 'results.json').read_text())['params/sha256']
  train.train(current_names(config), run)
  after = json.loads((run / 'results.json').read_text())['params/sha256']
  assert after == before


def test_older_run_rejects_another_config(run):
  config = current_names(json.loads((run / 'config.json').read_text()))
  with pytest.raises(train.UserError, match='another config, num_microbatches=2 where'):
    train.train(config | dict(num_microbatches=1), run)
