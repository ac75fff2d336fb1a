"""Tests vatt_jax/metric_writer.py."""

import numpy as np

from vatt_jax import metric_writer


def test_scalars_are_written_to_jsonl_and_tensorboard(tmp_path):
  writer = metric_writer.open_writers(tmp_path, 0)
  writer.write_scalars(3, {'train/loss': np.float32(0.5), 'n': 2})
  writer.close()
  assert metric_writer.read_jsonl(tmp_path / 'metrics.jsonl') == [
      {'step': 3, 'train/loss': 0.5, 'n': 2.0}]
  assert list((tmp_path / 'tensorboard').glob('events.out.tfevents.*'))


def test_resuming_does_not_duplicate_rows(tmp_path):
  path = tmp_path / 'm.jsonl'
  writer = metric_writer.JsonlWriter(path, 0)
  for step in (1, 2, 3):
    writer.write_scalars(step, {'train/x': step})
    writer.write_scalars(step, {'retrieval/y': step})
  writer.close()
  path.write_text(path.read_text() + '{"step": 4, "x"')    # killed while writing
  writer = metric_writer.JsonlWriter(path, 2)
  writer.write_scalars(2, {'retrieval/y': 20})
  writer.write_scalars(3, {'train/x': 30})
  writer.close()
  assert metric_writer.read_jsonl(path) == [
      {'step': 1, 'train/x': 1.0}, {'step': 1, 'retrieval/y': 1.0},
      {'step': 2, 'train/x': 2.0}, {'step': 2, 'retrieval/y': 20.0},
      {'step': 3, 'train/x': 30.0}]
