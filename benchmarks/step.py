"""Times training steps on the CPU beside PyTorch and beside matrix products.

    pip install -e '.[bench]'
    python benchmarks/step.py [--json]

Both libraries use all cores, in float32; PyTorch runs eagerly, as its users would write
it. Every contender runs once in every round, one after the other. A time is the median;
a ratio is the median of the rounds' ratios.

- `encoder`: Small's Transformer (6 layers, width 512, 8 heads, MLP 2048) on 4 rows of
  393 tokens, forward alone and with the gradients of parameters and tokens, beside
  `nn.TransformerEncoder` and timm's `Block`. The share of the machine's rate divides
  the rate of its multiply-adds (times 3 with the gradients) by the rate of a product of
  2048 x 2048 matrices through JAX in the same round.
- `contrastive`: a whole step (`Task.train_step`; Adam) of three towers, each of 2
  layers, width 128, 4 heads, MLP 256, with the patches, the head and the losses of
  configs/quickstart.py: video of 8 x 64 x 64 in patches of (4, 8, 8), 0.8 s of audio at
  16 kHz in patches of 128, one caption of 16 tokens. No DropToken and no augmentation.
  PyTorch's text tower has positions in place of the relative bias.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import importlib.metadata
import json
import os
import statistics
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from vatt_jax import cli
from vatt_jax import optim
from vatt_jax import train_step
from vatt_jax.errors import UserError
from vatt_jax.losses import contrastive
from vatt_jax.models import attention
from vatt_jax.models import layers
from vatt_jax.models.vatt import Vatt
from vatt_jax.tools import cost

try:
  from timm.models import vision_transformer
  import torch
except ImportError:    # `main` reports the missing package
  torch = None

_ENCODER = dict(depth=6, num_heads=8, mlp_dim=2048)
_TOKENS = (4, 393, 512)
_PRODUCT = 2048
_TOWER = dict(width=128, depth=2, num_heads=4, mlp_dim=256)
_WORDS = 256
_TEMPERATURE = 0.07
_BATCH_SIZES = (8, 32)

Contenders = dict[str, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Row:
  """Holds the result of one contender.

  Attributes:
    group: the computation.
    name: the contender.
    seconds: time of a call.
    ours: its time as a multiple of vatt_jax's.
    share: share of the machine's rate of matrix products; None if not counted.
  """
  group: str
  name: str
  seconds: float
  ours: float
  share: float | None = None


def main() -> None:
  """Measures and prints."""
  if torch is None:
    raise UserError("PyTorch or timm is missing; run: pip install -e '.[bench]'")
  torch.set_num_threads(os.cpu_count())
  torch.manual_seed(0)
  groups, flops = encoder_groups()
  for size in _BATCH_SIZES:
    groups[f'contrastive, batch {size}'] = contrastive_contenders(size)
  rows = measure(groups, flops, flags.FLAGS.rounds)
  versions = {p: importlib.metadata.version(p) for p in ('jax', 'torch', 'timm')}
  show(rows, threads=os.cpu_count(), rounds=flags.FLAGS.rounds, **versions)


def show(rows: list[Row], **about: Any) -> None:
  """Prints results, and facts about the measurement, as a table or as JSON."""
  if flags.FLAGS.json:
    about['rows'] = [dataclasses.asdict(r) for r in rows]
    print(json.dumps(about, indent=2))
    return
  print(', '.join(f'{k} {v}' for k, v in about.items()))
  for r in rows:
    share = '' if r.share is None else f'  {r.share:.2f} of the rate'
    print(f'{r.group:22}{r.name:24}{r.seconds * 1e3:8.1f} ms  {r.ours:5.2f}{share}')


def measure(groups: dict[str, Contenders], flops: dict[str, float], rounds: int,
            clock: Callable[[], float] = time.perf_counter) -> list[Row]:
  """Runs all contenders in turn; the first of a group is vatt_jax.

  Args:
    groups: group -> contender -> function to time.
    flops: group -> floating-point operations, for groups where they are counted.
    rounds: number of timed rounds; one more warms up.
    clock: in seconds.
  """
  product = matrix_product()
  seconds = {group: {name: [] for name in contenders}
             for group, contenders in groups.items()}
  rates = []
  for number in range(-1, rounds):
    rate = 2 * _PRODUCT ** 3 / min(_time(product, clock) for _ in range(2))
    if number >= 0:
      rates.append(rate)
    for group, contenders in groups.items():
      for name, run in contenders.items():
        elapsed = _time(run, clock)
        if number >= 0:
          seconds[group][name].append(elapsed)
  rows = []
  for group, contenders in seconds.items():
    ours = next(iter(contenders.values()))
    for name, times in contenders.items():
      share = None if group not in flops else statistics.median(
          flops[group] / t / rate for t, rate in zip(times, rates, strict=True))
      rows.append(Row(group, name, statistics.median(times), statistics.median(
          t / o for t, o in zip(times, ours, strict=True)), share))
  return rows


def _time(run: Callable[[], Any], clock: Callable[[], float]) -> float:
  began = clock()
  run()
  return clock() - began


def matrix_product() -> Callable[[], Any]:
  x = jnp.asarray(np.random.default_rng(0).normal(size=(_PRODUCT, _PRODUCT)),
                  jnp.float32)
  product = jax.jit(jnp.matmul)
  return lambda: jax.block_until_ready(product(x, x))


def encoder_groups() -> tuple[dict[str, Contenders], dict[str, float]]:
  """Returns the encoder forward and with gradients, and their operations."""
  x = np.random.default_rng(0).normal(size=_TOKENS).astype(np.float32)
  form = attention.choose_form(jax.devices()[0])    # the default of a config
  model = layers.Transformer(
      **_ENCODER, attention=functools.partial(layers.Attention, form=form))
  params = model.init(jax.random.key(0), x)
  forward = jax.jit(model.apply)
  gradients = jax.jit(jax.grad(lambda params, x: jnp.sum(model.apply(params, x) ** 2),
                               argnums=(0, 1)))
  groups = {
      'encoder, forward': {
          'vatt_jax': lambda: jax.block_until_ready(forward(params, x))},
      'encoder, gradients': {
          'vatt_jax': lambda: jax.block_until_ready(gradients(params, x))}}
  for name, peer in torch_encoders().items():
    groups['encoder, forward'][name] = torch_forward(peer, x)
    groups['encoder, gradients'][name] = torch_gradients(peer, x)
  count = cost.operations(model.apply, params, x).true
  return groups, {'encoder, forward': count, 'encoder, gradients': 3 * count}


def torch_encoders() -> dict[str, torch.nn.Module]:
  """Builds the same encoder from PyTorch's and timm's modules."""
  width, heads, mlp_dim = _TOKENS[-1], _ENCODER['num_heads'], _ENCODER['mlp_dim']
  blocks = [vision_transformer.Block(width, heads, mlp_dim / width, qkv_bias=True)
            for _ in range(_ENCODER['depth'])]
  return {'nn.TransformerEncoder': torch_tower(width, **_ENCODER),
          'timm': torch.nn.Sequential(*blocks, torch.nn.LayerNorm(width))}


def torch_tower(width: int, depth: int, num_heads: int, mlp_dim: int
                ) -> torch.nn.Module:
  """Builds a Transformer in PyTorch.  [B, N, D] -> [B, N, D]."""
  layer = torch.nn.TransformerEncoderLayer(
      width, num_heads, mlp_dim, dropout=0.0, activation='gelu', batch_first=True,
      norm_first=True)
  return torch.nn.TransformerEncoder(layer, depth, torch.nn.LayerNorm(width),
                                     enable_nested_tensor=False)


def torch_forward(model: torch.nn.Module, x: np.ndarray) -> Callable[[], Any]:
  tokens = torch.from_numpy(x)

  def run():
    model.eval()
    with torch.inference_mode():
      model(tokens)
  return run


def torch_gradients(model: torch.nn.Module, x: np.ndarray) -> Callable[[], Any]:
  tokens = torch.from_numpy(x).clone().requires_grad_()

  def run():
    model.train()
    model.zero_grad()
    tokens.grad = None
    (model(tokens) ** 2).sum().backward()
  return run


def contrastive_contenders(size: int) -> Contenders:
  """Returns training steps whose state continues from round to round."""
  batch = make_batch(size)
  task = make_task()
  state = task.init(batch)

  def ours():
    nonlocal state
    state, metrics = task.train_step(state, batch)
    jax.block_until_ready((state, metrics))

  model = TorchVatt()
  optimizer = torch.optim.Adam(model.parameters(), 1e-4)
  tensors = {k: torch.from_numpy(v) for k, v in batch.items()}

  def peer():
    optimizer.zero_grad()
    model(tensors).backward()
    optimizer.step()
  return {'vatt_jax': ours, 'PyTorch': peer}


def make_batch(size: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return dict(
      video=rng.integers(0, 256, (size, 8, 64, 64, 3), np.uint8),
      audio=rng.integers(-2**15, 2**15, (size, 12_800)).astype(np.int16),
      has_audio=np.ones(size, bool),
      text=rng.integers(1, _WORDS, (size, 1, 16)).astype(np.int32))


def make_task() -> train_step.Task:
  model = Vatt.from_config(
      video=dict(patch=(4, 8, 8), **_TOWER), audio=dict(patch=(128,), **_TOWER),
      text=dict(vocabulary_size=_WORDS, **_TOWER),
      head=dict(video_audio_dim=128, video_text_dim=128))
  losses = {
      pair: loss(pair=pair, temperature=_TEMPERATURE)
      for pair, loss in (('video_audio', contrastive.NCE),
                         ('video_text', contrastive.MilNCE))}
  return train_step.Task(model, losses, *optim.build(1000, 1e-4, 5e-5, 10)[:2], seed=0)


if torch is not None:

  class TorchVatt(torch.nn.Module):
    """Computes the loss of the same model in PyTorch.  batch -> loss."""

    def __init__(self):
      super().__init__()
      width = _TOWER['width']
      linear = lambda: torch.nn.Sequential(
          torch.nn.Linear(width, 128, bias=False), torch.nn.BatchNorm1d(128))
      table = lambda *shape: torch.nn.Parameter(torch.randn(*shape, width) * 0.02)
      self.video = torch.nn.Conv3d(3, width, (4, 8, 8), (4, 8, 8))
      self.audio = torch.nn.Conv1d(1, width, 128, 128)
      self.text = torch.nn.Embedding(_WORDS, width)
      self.places = torch.nn.ParameterDict(dict(
          time=table(2, 1, 1), vertical=table(8, 1), horizontal=table(8),
          audio=table(100), text=table(16)))
      self.agg = torch.nn.ParameterDict(
          {m: table(1, 1) for m in ('video', 'audio', 'text')})
      self.towers = torch.nn.ModuleDict({m: torch_tower(**_TOWER) for m in self.agg})
      self.hidden = torch.nn.Sequential(linear(), torch.nn.ReLU(), linear())
      self.audio_head, self.coarser, self.text_head = linear(), linear(), linear()

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
      video, audio, text = self.pooled(batch)
      video = self.hidden(video)
      return (self.nce(video, self.audio_head(audio))
              + self.nce(self.coarser(video), self.text_head(text)))

    def pooled(self, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
      """Returns the pooled features of each modality, [B, D]."""
      video = self.video((batch['video'].float() / 127.5 - 1).permute(0, 4, 1, 2, 3))
      place = sum(self.places[side] for side in ('time', 'vertical', 'horizontal'))
      video = (video.permute(0, 2, 3, 4, 1) + place).flatten(1, 3)   # [B, N, D]
      audio = self.audio((batch['audio'].float() / 32768)[:, None]).transpose(1, 2)
      ids = batch['text'][:, 0]
      mask = torch.nn.functional.pad(ids == 0, (1, 0))
      text = self.text(ids) + self.places['text']
      tokens = dict(video=video, audio=audio + self.places['audio'], text=text)
      pooled = []
      for modality, x in tokens.items():
        x = torch.cat([self.agg[modality].expand(len(x), -1, -1), x], dim=1)
        padded = mask if modality == 'text' else None
        x = self.towers[modality](x, src_key_padding_mask=padded)
        pooled.append(x[:, 0])
      return pooled

    def nce(self, anchors: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
      normalize = torch.nn.functional.normalize
      logits = normalize(anchors) @ normalize(others).T / _TEMPERATURE
      return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)))


if __name__ == '__main__':
  flags.DEFINE_integer('rounds', 15, 'Number of rounds; results are medians.')
  flags.DEFINE_bool('json', False, 'Print JSON.')
  cli.run(main)
