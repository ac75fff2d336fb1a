"""Compares the time that DropToken saves with the operations that it saves.

    python benchmarks/drop_token.py [--json]

Times whole training steps of two Small towers, video and audio, 196 tokens each, at
four drop rates, one after the other in every round. Prints time and counted operations
(`vatt_jax cost`) as shares of their values without dropping.
"""

import dataclasses
import json
import statistics
import time

from absl import flags
import jax
import numpy as np

from vatt_jax import cli
from vatt_jax import optim
from vatt_jax import train_step
from vatt_jax.losses import contrastive
from vatt_jax.models.vatt import Vatt
from vatt_jax.tools import cost

RATES = (0.0, 0.25, 0.5, 0.75)


@dataclasses.dataclass(frozen=True)
class Row:
  """Holds the result of one drop rate; shares are relative to no dropping."""
  drop_token_rate: float
  seconds: float
  counted_gflops: float
  time_share: float
  counted_share: float
  time_over_counted: float


def make_task(rate: float) -> train_step.Task:
  model = Vatt.from_config(
      video=dict(size='small', drop_token_rate=rate),
      audio=dict(size='small', drop_token_rate=rate), head={})
  losses = {'video_audio': contrastive.NCE(pair='video_audio', temperature=0.07)}
  return train_step.Task(model, losses, *optim.build(100, 1e-4, 5e-5, 10)[:2], seed=0)


def make_batch(size: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return dict(
      video=rng.integers(0, 256, (size, 16, 112, 112, 3), np.uint8),
      audio=rng.integers(-2**15, 2**15, (size, 196 * 128)).astype(np.int16),
      has_audio=np.ones(size, bool))


def measure(batch_size: int, rounds: int) -> list[Row]:
  batch = make_batch(batch_size)
  tasks = {rate: make_task(rate) for rate in RATES}
  states, counted, seconds = {}, {}, {rate: [] for rate in RATES}
  for rate, task in tasks.items():
    states[rate] = task.init(batch)
    counted[rate] = cost.operations(task.train_step, states[rate], batch).true
    states[rate], _ = task.train_step(states[rate], batch)    # compiles
  for _ in range(rounds):
    for rate, task in tasks.items():
      begin = time.perf_counter()
      states[rate], metrics = task.train_step(states[rate], batch)
      jax.block_until_ready(metrics)
      seconds[rate].append(time.perf_counter() - begin)
  times = {rate: statistics.median(s) for rate, s in seconds.items()}
  rows = []
  for rate in RATES:
    share, work = times[rate] / times[0.0], counted[rate] / counted[0.0]
    rows.append(Row(rate, times[rate], counted[rate] / 1e9, share, work, share / work))
  return rows


def main() -> None:
  rows = measure(flags.FLAGS.batch_size, flags.FLAGS.rounds)
  if flags.FLAGS.json:
    print(json.dumps([dataclasses.asdict(r) for r in rows], indent=2))
    return
  print('dropped  seconds  GFLOPs  time share  counted share  time/counted')
  for r in rows:
    print(f'{r.drop_token_rate:7.0%}  {r.seconds:7.2f}  {r.counted_gflops:6.0f}  '
          f'{r.time_share:10.3f}  {r.counted_share:13.3f}  {r.time_over_counted:12.3f}')


if __name__ == '__main__':
  flags.DEFINE_integer('batch_size', 8, 'Number of clips.')
  flags.DEFINE_integer('rounds', 7, 'Number of rounds; results are medians.')
  flags.DEFINE_bool('json', False, 'Print JSON.')
  cli.run(main)
