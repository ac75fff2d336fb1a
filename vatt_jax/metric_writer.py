"""Where numbers go: TensorBoard and a JSONL file, through clu's writers."""

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
  """Scalars as JSON, one object a line: {"step": 20, "train/loss": 4.1}.

  Only scalars: pictures and histograms are TensorBoard's.
  """

  def __init__(self, path: str | os.PathLike[str], first_step: int):
    """Opens a file to append to.

    Args:
      path: the file.
      first_step: the step that a run goes on from; what an earlier process wrote
        and will come again is dropped: all of later steps, of this one the
        evaluations, which stand between two steps.
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
  """The rows that are whole; a last line cut short by a kill is left out."""
  text = pathlib.Path(path).read_text(encoding='utf-8')
  whole = text[:text.rfind('\n') + 1]
  return [json.loads(line) for line in whole.splitlines()]


def write_results(folder: pathlib.Path, results: Mapping[str, Any]) -> None:
  """Writes the final numbers, flat names to numbers, for a machine."""
  (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + '\n',
                                     encoding='utf-8')


def read_results(folder: pathlib.Path) -> dict[str, Any] | None:
  """What `write_results` wrote; None if there is nothing."""
  path = folder / RESULTS_FILE
  return json.loads(path.read_text(encoding='utf-8')) if path.exists() else None


def open_writers(workdir: str | os.PathLike[str], first_step: int
                 ) -> metric_writers.MultiWriter:
  """TensorBoard event files and `metrics.jsonl`, both in the workdir, from one host."""
  if not hosts.is_first():
    return metric_writers.MultiWriter([])
  workdir = pathlib.Path(workdir)
  return metric_writers.MultiWriter([
      metric_writers.SummaryWriter(os.fspath(workdir / 'tensorboard')),
      JsonlWriter(workdir / METRICS_FILE, first_step)])
