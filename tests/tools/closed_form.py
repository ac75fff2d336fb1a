"""Computes VATT's cost by formula: an oracle for the counts of tools/cost.py.

A Transformer of L layers, width D and hidden width M on n tokens (including AGG) has

    parameters  L (4 D^2 + 2 D M + 9 D + M) + 2 D
    operations  L (8 n D^2 + 4 n D M + 4 n^2 D)

The term 8 n D^2 stands for the projections of queries, keys, values and outputs,
4 n^2 D for the two products of attention (for any number of heads: A heads of D/A),
and 4 n D M for the two layers of the MLP. The tokenizer adds the projection of N
patches of P numbers, with P D + D parameters and 2 N P D operations, D parameters for
each position along each side, and D for AGG. Every multiply-add counts as two
operations; nothing else counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax

from vatt_jax.inputs import clip_keys
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.models import tokenization
from vatt_jax.models import vatt


@dataclasses.dataclass(frozen=True)
class Cost:
  """Holds the trained parameters and the operations of a forward call on one clip."""
  parameters: int = 0
  operations: int = 0

  def __add__(self, other: Cost) -> Cost:
    return Cost(self.parameters + other.parameters, self.operations + other.operations)

  def __mul__(self, times: int) -> Cost:
    """Multiplies the operations; the parameters stay the same."""
    return Cost(self.parameters, self.operations * times)


def linear(inputs: int, outputs: int, rows: int, bias: bool = True) -> Cost:
  """Returns the cost of a linear layer."""
  return Cost(inputs * outputs + bias * outputs, 2 * rows * inputs * outputs)


def transformer(tower: layers.Transformer, width: int, n: int) -> Cost:
  """Returns the cost of a Transformer on n tokens of this width."""
  before, biases = Cost(), 5 * width + tower.mlp_dim
  norms, last_norm = 4 * width, 2 * width
  if tower.t5_style:
    before, biases = linear(width, tower.width, n, bias=False), 0
    width = tower.width
    norms, last_norm = 3 * width, width    # root-mean-square norms have no bias
  d, m = width, tower.mlp_dim
  relative = 32 * tower.num_heads if tower.relative_bias else 0
  return before + Cost(
      tower.depth * (4 * d * d + 2 * d * m + biases + norms) + last_norm + relative,
      tower.depth * (8 * n * d * d + 4 * n * d * m + 4 * n * n * d))


def parts(model: vatt.Vatt, batch: Mapping[str, Any], train: bool) -> dict[str, Cost]:
  """Returns the cost of each modality, of a shared Transformer and of the head.

  Args:
    model: the model.
    batch: shapes of one clip.
    train: count only the tokens that DropToken keeps.
  """
  features = jax.eval_shape(functools.partial(_features, model, train=train), batch)
  costs = {m: modality(model, m, batch[m].shape, tokens.shape[-2])
           for m, tokens in features['tokens'].items()}
  if 'shared' in model.backbones:
    costs['shared'] = shared(model)
  if model.head is not None:
    widths = {m: x.shape[-1] for m, x in features['pooled'].items()}
    num_sentences = batch['text'].shape[1] if 'text' in batch else 0
    costs['head'] = head(model, widths, num_sentences)
  return costs


def _features(model, batch, train):
  key = jax.random.key(0)
  if train:
    batch = batch | dict(key=clip_keys.make(0, 0, 1))
  return model.init_with_output(dict(params=key, drop_token=key, dropout=key), batch,
                                train, method='encode')[0]


def modality(model: vatt.Vatt, name: str, shape: Sequence[int], num_tokens: int
             ) -> Cost:
  """Returns the cost of a modality, from the tokenizer up to the head.

  The parameters are the modality's own; `shared` counts a shared Transformer's.

  Args:
    model: the model.
    name: the modality.
    shape: shape of a batch of one clip.
    num_tokens: number of tokens that enter the Transformer, without AGG.
  """
  tokenizer = model.tokenizers[name]
  times = shape[1] if name == 'text' else 1
  tower = model.backbones.get(name) or model.backbones['shared']
  cost = (_text(tokenizer, num_tokens) if name == 'text' else
          _raw(tokenizer, shape, num_tokens))
  width = tokenizer.width
  if name == 'text' and tokenizer.release and not tokenizer.max_tokens:
    width = tokenizer.table_width    # the tower projects it
  if isinstance(tower, layers.WordMean):
    if tower.width:
      cost += linear(width, tower.width, num_tokens, bias=False)
    return cost * times
  cost += Cost(width)    # AGG
  through = transformer(tower, width, num_tokens + 1)
  cost += through if name in model.backbones else Cost(0, through.operations)
  if name in model.projectors:
    cost += linear(width, model.projectors[name].width, num_tokens + 1)
  cost *= times
  if name == 'text' and tokenizer.release and num_tokens != tokenizer.max_tokens:
    # The table of positions is resized once for all captions.
    cost += Cost(0, 2 * num_tokens * tokenizer.max_tokens * tokenizer.width)
  return cost


def _raw(tokenizer: tokenization.RawTokenizer, shape: Sequence[int], n: int) -> Cost:
  spectrogram = Cost()
  if isinstance(tokenizer, tokenization.VideoTokenizer):
    sides, channels = shape[1:-1], shape[-1]
    sides = [max(sides[0], tokenizer.patch[0]) if sides[0] == 1 else sides[0],
             *sides[1:]]
  else:
    sides, channels = shape[1:2], 1
    if isinstance(tokenizer, tokenization.SpectrogramTokenizer):
      sides, spectrogram = _spectrogram(tokenizer.spectrogram, shape[1])
  cut = (lambda a, b: a // b) if tokenizer.release else (lambda a, b: -(-a // b))
  places = sum(cut(a, b) for a, b in zip(sides, tokenizer.patch, strict=True))
  d = tokenizer.width
  cost = spectrogram + Cost(places * d)
  cost += linear(math.prod(tokenizer.patch) * channels, d, n)
  if tokenizer.release:
    cost += Cost(2 * d)    # the norm of positions
  return cost + (linear(d, d, n) if tokenizer.pre_projection else Cost())


def _spectrogram(constants: Any, samples: int) -> tuple[list[int], Cost]:
  """Returns a spectrogram's sides and the cost of the mel product."""
  windows, bins = constants.num_windows(samples), constants.mel_bins
  return [windows, bins], Cost(0, 2 * windows * (constants.fft_length // 2 + 1) * bins)


def _text(tokenizer: tokenization.TextTokenizer, n: int) -> Cost:
  d = tokenizer.width
  cost = Cost(tokenizer.max_tokens * d)
  if not tokenizer.release:
    return cost + Cost(tokenizer.vocabulary_size * d)
  if tokenizer.max_tokens:
    cost += linear(tokenizer.table_width, d, n) + Cost(2 * d)
  return cost


def shared(model: vatt.Vatt) -> Cost:
  """Returns the parameters of a Transformer shared by all modalities."""
  width = next(iter(model.tokenizers.values())).width
  return Cost(transformer(model.backbones['shared'], width, 0).parameters)


def head(model: vatt.Vatt, widths: Mapping[str, int], num_sentences: int) -> Cost:
  """Returns the cost of the head, for pooled features of these widths."""
  if isinstance(model.head, heads.Classifier):
    (width,) = widths.values()
    return linear(width, model.head.num_classes, 1)
  return _fac(model.head, widths, num_sentences)


def _fac(fac: heads.FacHead, widths: Mapping[str, int], num_sentences: int) -> Cost:
  a, t = fac.video_audio_dim, fac.video_text_dim
  norm = lambda dim: Cost(2 * dim)
  plain = lambda inputs, dim: linear(inputs, dim, 1, bias=fac.release) + (
      Cost() if fac.release else norm(dim))
  cost = Cost()
  if 'video' in widths:
    cost += linear(widths['video'], a, 1, bias=False) + linear(a, a, 1, bias=False)
    cost += linear(a, t, 1, bias=False) + norm(a) + norm(a) + norm(t)
  if 'audio' in widths:
    cost += plain(widths['audio'], a)
    if fac.audio_text:
      coarser = linear(a, t, 1, bias=False)
      cost += Cost(0 if 'video' in widths else coarser.parameters, coarser.operations)
      cost += norm(t)
  if 'text' in widths:
    cost += plain(widths['text'], t) * num_sentences
  return cost
