"""Times MMV's networks of video on the CPU beside PyTorch.

    pip install -e '.[bench]'
    python benchmarks/convnets.py [--rounds=5] [--json]

A call computes features of 2 videos of 16 x 112 x 112, and gradients of all parameters,
with the batch's statistics, in float32. Every contender runs once in every round, as in
`benchmarks/step.py`; a ratio is the median of the rounds' ratios of processor time, so
other programs disturb it less.

- `s3d_g`: beside torchvision's S3D, which has no gates, and a separable first
  convolution.
- `tsm_resnet50`: beside the same network, written here.
"""

from __future__ import annotations

from collections.abc import Callable
import importlib.metadata
import os
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import step

from vatt_jax import cli
from vatt_jax.errors import UserError
from vatt_jax.models import resnet
from vatt_jax.models import s3d

try:
  import torch
  from torch import nn
  from torchvision.models import video as torch_video
except ImportError:    # `main` reports the missing package
  torch = None

_SHAPE = (2, 16, 112, 112, 3)


def main() -> None:
  """Measures and prints."""
  if torch is None:
    raise UserError("PyTorch or torchvision is missing; run: pip install -e '.[bench]'")
  threads = len(os.sched_getaffinity(0))
  torch.set_num_threads(threads)
  torch.manual_seed(0)
  x = np.random.default_rng(0).random(_SHAPE, np.float32)
  groups = {'s3d_g': {'vatt_jax': ours(s3d.S3DG(), x),
                      'torchvision': peer(torch_video.s3d().features, x)},
            'tsm_resnet50': {'vatt_jax': ours(resnet.TSMResNet50(), x),
                             'PyTorch': peer(TorchTSM(), x)}}
  rows = step.measure(groups, {}, flags.FLAGS.rounds, time.process_time)
  versions = {p: importlib.metadata.version(p) for p in ('jax', 'torch', 'torchvision')}
  step.show(rows, threads=threads, rounds=flags.FLAGS.rounds, **versions)


def ours(net: Any, x: np.ndarray) -> Callable[[], Any]:
  shapes = jax.eval_shape(net.init, jax.random.key(0), x)
  random = np.random.default_rng(0)
  variables = jax.tree.map(lambda like: jnp.asarray(
      random.uniform(0.01, 0.05, like.shape), jnp.float32), shapes)

  def loss(params, stats):
    features, new = net.apply(dict(params=params, batch_stats=stats), x, train=True,
                              mutable=['batch_stats'])
    return jnp.sum(features.pooled ** 2), new

  gradients = jax.jit(jax.grad(loss, has_aux=True))
  return lambda: jax.block_until_ready(gradients(*(
      variables[kind] for kind in ('params', 'batch_stats'))))


def peer(net: torch.nn.Module, x: np.ndarray) -> Callable[[], Any]:
  video = torch.from_numpy(x).permute(0, 4, 1, 2, 3).contiguous()

  def run():
    net.train()
    net.zero_grad()
    (net(video).mean((2, 3, 4)) ** 2).sum().backward()
  return run


if torch is not None:

  class TorchBottleneck(nn.Module):
    """Applies a block of ResNet v2.  [B * T, C, H, W] -> [B * T, D, h, w]."""

    def __init__(self, channels: int, features: int, stride: int, num_frames: int):
      super().__init__()
      mid = features // 4
      conv = lambda a, b, size, s=1: nn.Conv2d(a, b, size, s, size // 2, bias=False)
      self.num_frames = num_frames
      self.norms = nn.ModuleList(map(nn.BatchNorm2d, (channels, mid, mid)))
      self.convs = nn.ModuleList([conv(channels, mid, 1), conv(mid, mid, 3, stride),
                                  conv(mid, features, 1)])
      self.shortcut = conv(channels, features, 1, stride) if (
          channels != features) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
      y = torch.relu(self.norms[0](x))
      if self.shortcut is not None:
        x = self.shortcut(y)
      y = self.convs[0](self.shift(y))
      for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
        y = conv(torch.relu(norm(y)))
      return x + y

    def shift(self, x: torch.Tensor) -> torch.Tensor:
      n = x.shape[1] // 8
      x = x.unflatten(0, (-1, self.num_frames))
      first, middle, last = x[:, :, :n], x[:, :, n:-n], x[:, :, -n:]
      zeros = torch.zeros_like(first[:, :1])
      after, before = (torch.cat([last[:, 1:], zeros], 1),
                       torch.cat([zeros, first[:, :-1]], 1))
      return torch.cat([after, middle, before], 2).flatten(0, 1)

  class TorchTSM(nn.Module):
    """Computes the grid of features of TSM-ResNet-50.

    [B, 3, T, H, W] -> [B, 2048, T, h, w].
    """

    def __init__(self):
      super().__init__()
      blocks, channels = [], 64
      for unit, count in enumerate((3, 4, 6, 3)):
        for i in range(count):
          features = 256 * 2 ** unit
          stride = 2 if unit and not i else 1
          blocks.append(TorchBottleneck(channels, features, stride, _SHAPE[1]))
          channels = features
      self.net = nn.Sequential(
          nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1), *blocks,
          nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, video: torch.Tensor) -> torch.Tensor:
      x = self.net(video.transpose(1, 2).flatten(0, 1))
      return x.unflatten(0, (len(video), -1)).transpose(1, 2)


if __name__ == '__main__':
  flags.DEFINE_integer('rounds', 5, 'Number of rounds; results are medians.')
  flags.DEFINE_bool('json', False, 'Print JSON.')
  cli.run(main)
