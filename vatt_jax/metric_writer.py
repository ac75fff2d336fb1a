"""Writes metrics to TensorBoard and to a JSONL file, using clu's writers."""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

from clu import metric_writers
import numpy as np

from vatt_jax.distributed import hosts

METRICS_FILE = 'metrics.jsonl'
RESULTS_FILE = 'results.json'


class JsonlWriter(metric_writers.MetricWriter):
  """Writes scalars as JSON, one object per line: {"step": 20, "train/loss": 4.1}.

  Images and histograms are ignored; they go to TensorBoard only.
  """

  def __init__(self, path: str | os.PathLike[str], first_step: int):
    """Opens a file to append to.

    Args:
      path: the file.
      first_step: the step that the run resumes from. Rows of an earlier process that
        will be written again are dropped: all rows of later steps, and the evaluations
        of this step.
    """
    def comes_again(row):
      training = any(k.startswith('train/') for k in row)
      return row['step'] >= first_step + training
    self._path = pathlib.Path(path)
    if self._path.exists():
      kept = [r for r in read_jsonl(self._path) if not comes_again(r)]
      partial = self._path.with_suffix('.partial')
      partial.write_text(''.join(json.dumps(r) + '\n' for r in kept))
      partial.rename(self._path)
    self._file = self._path.open('a', encoding='utf-8')

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    row = {k: float(np.asarray(v)) for k, v in scalars.items()}
    self._file.write(json.dumps({'step': step} | row) + '\n')
    self._file.flush()

  def _ignore(self, *args: Any, **kwargs: Any) -> None:
    pass

  write_summaries = write_images = write_videos = write_audios = _ignore
  write_texts = write_histograms = write_pointcloud = write_hparams = _ignore

  def flush(self) -> None:
    self._file.flush()

  def close(self) -> None:
    self._file.close()


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the complete rows; ignores a last line that a kill cut short."""
  text = pathlib.Path(path).read_text(encoding='utf-8')
  complete = text[:text.rfind('\n') + 1]
  return [json.loads(line) for line in complete.splitlines()]


def write_results(folder: pathlib.Path, results: Mapping[str, Any]) -> None:
  """Writes the final results as JSON: metric name -> number."""
  (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + '\n',
                                     encoding='utf-8')


def read_results(folder: pathlib.Path) -> dict[str, Any] | None:
  """Reads the results that `write_results` wrote; returns None without a file."""
  path = folder / RESULTS_FILE
  return json.loads(path.read_text(encoding='utf-8')) if path.exists() else None


def open_writers(workdir: str | os.PathLike[str], first_step: int
                 ) -> metric_writers.MultiWriter:
  """Opens TensorBoard event files and `metrics.jsonl` in the workdir, on one host."""
  if not hosts.is_first():
    return metric_writers.MultiWriter([])
  workdir = pathlib.Path(workdir)
  return metric_writers.MultiWriter([
      metric_writers.SummaryWriter(os.fspath(workdir / 'tensorboard')),
      JsonlWriter(workdir / METRICS_FILE, first_step)])
