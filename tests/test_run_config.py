"""Tests vatt_jax/run_config.py."""

import json

import numpy as np
import pytest

from vatt_jax import checkpoint
from vatt_jax import run_config
from vatt_jax.errors import UserError


def test_workdir_accepts_only_its_own_config(tmp_path):
  config = dict(seed=0, model=dict(patch=(2, 4)), evals=dict())
  run_config.compare(config, tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  run_config.compare(config, tmp_path)
  with pytest.raises(UserError, match=r'another config, model\.patch=\[2, 4\] where '
                                      r'this one has \[2, 8\]; choose another'):
    run_config.compare(config | dict(model=dict(patch=(2, 8))), tmp_path)
  # Figures may change, because they do not affect the run. An absent switch is off.
  run_config.compare(config | dict(figures=dict(label='shape')), tmp_path)
  run_config.compare(config | dict(switch=False), tmp_path)
  with pytest.raises(UserError, match='another config, switch=None'):
    run_config.compare(config | dict(switch=True), tmp_path)


def test_window_short_of_an_older_workdir_is_hold(tmp_path):
  config = dict(window=dict(num_frames=4))
  (tmp_path / 'config.json').write_text(json.dumps(config))
  short = lambda value: dict(window=dict(num_frames=4, short=value))
  run_config.compare(short('hold'), tmp_path)
  with pytest.raises(UserError, match=r"another config, window\.short='hold' where "
                                      r"this one has 'loop'"):
    run_config.compare(short('loop'), tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(short('hold')))
  run_config.compare(config, tmp_path)


def test_older_workdir_without_a_key_resumes(tmp_path):
  config = dict(seed=0, optim=dict(clip_norm=0.75))
  (tmp_path / 'config.json').write_text(json.dumps(config))
  run_config.compare(config, tmp_path)
  run_config.compare(config | dict(optim=dict(clip_norm=0.75, clip_replicas=1)),
                     tmp_path)
  with pytest.raises(UserError, match=r'another config, optim\.clip_replicas=1'):
    run_config.compare(config | dict(optim=dict(clip_norm=0.75, clip_replicas=8)),
                    tmp_path)


def test_longer_run_error_suggests_extend(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(dict(total_steps=12, seed=0)))
  with pytest.raises(UserError, match=r'holds a run of total_steps=12, and with total_'
                                      r'steps=24 its learning rates would .* --extend, '
                                      r'.* --config\.init_from='):
    run_config.compare(dict(total_steps=24, seed=0), tmp_path)
  for config in (dict(total_steps=24, seed=1), dict(total_steps=6, seed=0)):
    with pytest.raises(UserError, match='holds a run of another config'):
      run_config.compare(config, tmp_path)


def test_extend_needs_a_checkpoint_and_more_steps(tmp_path):
  config = dict(total_steps=24)
  assert run_config.extended(config, tmp_path, False) == config
  with pytest.raises(UserError, match=r'--extend: .* holds no checkpoint of'):
    run_config.extended(config, tmp_path, True)
  (tmp_path / 'config.json').write_text(json.dumps(dict(total_steps=12)))
  with pytest.raises(UserError, match=r'--extend: .* holds no checkpoint of'):
    run_config.extended(config, tmp_path, True)
  with checkpoint.Checkpoints(tmp_path / 'checkpoints', keep=1, every_steps=1) as saved:
    saved.save(9, dict(x=np.zeros(1)))
  longer = run_config.extended(config, tmp_path, True)
  assert longer == config | dict(extended=[[9, 12]])
  with pytest.raises(UserError, match=r'--extend: config\.total_steps=6: expected'):
    run_config.extended(dict(total_steps=6), tmp_path, True)
  (tmp_path / 'config.json').write_text(json.dumps(longer))
  for again in (False, True):    # the same command, or without the flag
    assert run_config.extended(config, tmp_path, again) == longer
  assert run_config.extended(dict(total_steps=30), tmp_path, True) == dict(
      total_steps=30, extended=[[9, 12], [9, 24]])
