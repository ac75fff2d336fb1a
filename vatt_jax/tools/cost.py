"""Counts a model's parameters and the operations of a forward call on one clip.

    python -m vatt_jax cost --config=configs/pretrain_mbs.py

Operations are counted in the program that JAX traces, in two ways:

- `true`: two for every multiply-add of a matrix product or convolution, nothing
  else. This is the meaning of "FLOPs" in hardware utilisation.
- `paper`: the way of the paper's tables. Their figures come from TensorFlow's graph
  profiler on the released code. That profiler does not count `Einsum`, with which
  the released attention multiplies queries with keys. It therefore leaves out the
  scores, half of attention's multiply-adds. The product of weights and values is a
  `MatMul` and counts. Elementwise operations and reductions also count, one for each
  element; most of them belong to the softmax over the scores. The list of counted
  operations is the profiler's own as far as JAX has the same operation
  (`_ELEMENTWISE`, `_REDUCTIONS`; erf, for example, is missing).

The table also has XLA's own analysis of the program before optimisation, which adds
elementwise operations and reductions (but not exp, erf and similar ones). The paper's
tables, counted in this way, are `benchmarks/paper_tables.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import json
import math
from typing import Any

from absl import flags
import jax
from ml_collections import config_flags

from vatt_jax import cli
from vatt_jax import experiment
from vatt_jax.config import Settings
from vatt_jax.inputs import augment
from vatt_jax.inputs import clip_keys
from vatt_jax.models import attention
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.models import multimodal
from vatt_jax.models import vatt
from vatt_jax.tools.tpu_plan import hlo

_ELEMENTWISE = frozenset((
    'add', 'sub', 'mul', 'div', 'max', 'min', 'neg', 'exp', 'log', 'rsqrt', 'sqrt',
    'square', 'integer_pow', 'pow', 'select_n'))
_REDUCTIONS = frozenset(('reduce_sum', 'reduce_max', 'reduce_min'))


@dataclasses.dataclass(frozen=True)
class Operations:
  """Holds operations counted in two ways (see the module)."""
  true: int = 0
  paper: int = 0

  def __add__(self, other: Operations) -> Operations:
    return Operations(self.true + other.true, self.paper + other.paper)

  def __mul__(self, times: int) -> Operations:
    return Operations(self.true * times, self.paper * times)


def operations(function: Callable[..., Any], *args: Any) -> Operations:
  """Counts the operations of a function; only the arguments' shapes matter.

  Raises:
    ValueError: the program has a loop of unknown length.
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr)


def kernels(jaxpr: Any, side: int) -> dict[tuple[str, hlo.Shapes], int]:
  """Counts the operations of one call of each Pallas kernel of a traced program.

  Only matrix products count, as a matrix unit of `side` x `side` computes them. The
  right operand stands in the unit, and both of its sizes are rounded up to multiples
  of the unit's side.

  Returns:
    (name of a kernel, shapes of its outputs) -> operations.
  """
  kernel_operations = {}
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'pallas_call':
      shapes = tuple(tuple(x.aval.shape) for x in equation.outvars)
      steps = math.prod(equation.params['grid_mapping'].grid)
      kernel_operations[equation.params['name'], shapes] = steps * _count(
          equation.params['jaxpr'], side).true
    else:
      for inner in _within(equation):
        kernel_operations |= kernels(inner, side)
  return kernel_operations


def _count(jaxpr: Any, side: int = 1) -> Operations:
  total = Operations()
  for equation in jaxpr.eqns:
    total += _count_one(equation, side)
  return total


def _count_one(equation: Any, side: int) -> Operations:
  name = equation.primitive.name
  if name == 'dot_general':
    (left_summed, right_summed), (_, batch) = equation.params['dimension_numbers']
    left, right = (x.aval.shape for x in equation.invars)
    width = math.prod(n for i, n in enumerate(right)
                      if i not in (*right_summed, *batch))
    rows = equation.outvars[0].aval.size // width
    each = _up(math.prod(left[i] for i in left_summed), side)
    flops = 2 * rows * _up(width, side) * each
  elif name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    out_dim = equation.params['dimension_numbers'].rhs_spec[0]
    flops = 2 * math.prod(kernel) // kernel[out_dim] * equation.outvars[0].aval.size
  else:
    return _count_other(equation, side)
  is_score = attention.SCORES in str(equation.source_info.name_stack)
  return Operations(flops, 0 if is_score else flops)


def _up(size: int, side: int) -> int:
  return math.ceil(size / side) * side


def _count_other(equation: Any, side: int) -> Operations:
  name = equation.primitive.name
  if name in _ELEMENTWISE:
    return Operations(0, equation.outvars[0].aval.size)
  if name in _REDUCTIONS:
    return Operations(0, equation.invars[0].aval.size)
  inner = [_count(jaxpr, side) for jaxpr in _within(equation)]
  if not inner:
    return Operations()
  if name == 'while':
    raise ValueError('a loop of unknown length cannot be counted')
  if name == 'cond':
    return max(inner, key=lambda x: x.true)
  return sum(inner, Operations()) * (equation.params['length'] if name == 'scan' else 1)


def _within(equation: Any) -> list[Any]:
  """Returns the inner programs of an equation."""
  inner = [getattr(x, 'jaxpr', x) for x in jax.tree.leaves(
      tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns'))]
  return [jaxpr for jaxpr in inner if hasattr(jaxpr, 'eqns')]


def forward(model: multimodal.MultimodalModel, batch: Mapping[str, Any],
            train: bool = False) -> Operations:
  """Counts one forward call; with `train`, on the tokens that DropToken keeps."""
  return operations(*_call(model, batch, train))


def training_flops(config: Settings) -> int:
  """Returns the operations of one training step of a config, by the true count.

  They are three times the forward call's, on the tokens that DropToken keeps, for all
  rows of the batch and their copies: the backward pass takes twice as many.
  Recomputation that saves memory, losses and the optimizer do not count.
  """
  model, clip = experiment.model_and_clip(config)
  copies = augment.Augment(**(config.get('augment') or {})).copies
  rows = config['batch_size'] * len(copies)
  return 3 * forward(model, clip, train=True).true * rows


def _call(model, batch, train, method='__call__'):
  """Returns a function and its arguments, the variables as shapes only."""
  model = _as_counted(model)
  rows = jax.tree.leaves(batch)[0].shape[0]

  def apply(variables, batch):
    keys = dict(key=clip_keys.make(0, 0, rows)) if train else {}
    return model.apply(variables, batch | keys, train=train, mutable=['batch_stats'],
                       rngs={'drop_token': jax.random.key(0)}, method=method)[0]

  init = functools.partial(model.init, method=method)
  return apply, jax.eval_shape(init, jax.random.key(0), batch), batch


def _as_counted(model):
  """Returns the model without dropout and with XLA's attention, as it is counted."""
  if isinstance(model.head, heads.Classifier):
    model = model.clone(head=model.head.clone(dropout_rate=0.0))
  if not isinstance(model, vatt.Vatt):
    return model
  without_dropout = lambda modules: {
      k: m.clone(dropout_rate=0.0) for k, m in modules.items()
      if not isinstance(m, layers.WordMean)}
  backbones = dict(model.backbones) | without_dropout(model.backbones)
  for name, backbone in backbones.items():
    if 'form' in getattr(getattr(backbone, 'attention', None), 'keywords', ()):
      xla = functools.partial(backbone.attention, form='xla')
      backbones[name] = backbone.clone(attention=xla)
  return model.clone(tokenizers=without_dropout(model.tokenizers), backbones=backbones)


@dataclasses.dataclass(frozen=True)
class Row:
  """Holds one row of the table of costs.

  Attributes:
    part: a modality, `shared`, `head` or `total`.
    parameters: number of trained parameters.
    frozen: number of parameters that are not trained, including batch statistics.
    tokens: number of tokens in training, after DropToken, without AGG.
    train: operations of a forward call on the tokens that DropToken keeps, by each
      count: `true`, `xla` and `paper` (see the module).
    evaluate: the same of a forward call on all tokens.
  """
  part: str
  parameters: int
  frozen: int
  tokens: int | None = None
  train: dict[str, int] | None = None
  evaluate: dict[str, int] | None = None


def table(model: multimodal.MultimodalModel, batch: Mapping[str, Any]) -> list[Row]:
  """Returns the cost of each part of a model and the total, for a batch of clips."""
  trained, frozen = _parameters(model, batch)
  rows = []
  for part in dict.fromkeys([*model.modalities, *trained, *frozen]):
    row = Row(part, trained.get(part, 0), frozen.get(part, 0))
    if part in model.modalities:
      row = dataclasses.replace(
          row, tokens=_num_tokens(model, part, batch),
          **_counts(model, {part: batch[part]}, 'encode'))
    rows.append(row)
  return [*rows, Row('total', sum(r.parameters for r in rows),
                     sum(r.frozen for r in rows), **_counts(model, batch))]


def _num_tokens(model, modality, batch):
  alone = {modality: batch[modality]}
  tokens = jax.eval_shape(*_call(model, alone, True, 'encode'))['tokens']
  return tokens[modality].shape[-2] if modality in tokens else None


def _counts(model, batch, method='__call__'):
  """Counts a forward call in training and evaluation, each in three ways."""
  counts = {}
  for name, train in (('train', True), ('evaluate', False)):
    call, variables, x = _call(model, batch, train, method)
    count = operations(call, variables, x)
    xla = jax.jit(call).lower(variables, x).cost_analysis()['flops']
    counts[name] = dict(true=count.true, xla=round(xla), paper=count.paper)
  return counts


def _parameters(model, batch):
  """Counts trained and other parameters.  -> two dicts, part -> number."""
  variables = jax.eval_shape(model.init, jax.random.key(0), batch)
  counts = {}, {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    collection, module = path[:2]
    part = multimodal.modality_of((module,)) or module.key.rpartition('_')[2]
    of_kind = counts[collection.key != 'params']
    of_kind[part] = of_kind.get(part, 0) + leaf.size
  return counts


def parameters(model: multimodal.MultimodalModel, batch: Mapping[str, Any]) -> int:
  """Counts the trained parameters of a model."""
  trained, _ = _parameters(model, batch)
  return sum(trained.values())


def as_text(rows: list[Row]) -> str:
  """Formats the table of a model; operations in GFLOPs."""
  counts = ('XLA', 'paper')
  lines = [('', 'parameters', 'frozen', 'tokens', 'train, true', *counts,
            'evaluate, true', *counts)]
  for r in rows:
    flops = [f'{x / 1e9:,.1f}' for count in (r.train, r.evaluate) if count
             for x in count.values()]
    lines.append((r.part, f'{r.parameters:,}', f'{r.frozen:,}',
                  '' if r.tokens is None else str(r.tokens), *(flops or [''] * 6)))
  return align(lines) + ('\n\nGFLOPs of a forward call on one clip; train: on the '
                         'tokens that DropToken keeps.')


def align(lines: Sequence[Sequence[str]]) -> str:
  """Aligns the lines of a table, the first column left and the others right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
      '  '.join(x.ljust(w) if i < 1 else x.rjust(w)
                for i, (x, w) in enumerate(zip(line, widths, strict=True))).rstrip()
      for line in lines)


def main() -> None:
  rows = table(*experiment.model_and_clip(flags.FLAGS.config.to_dict()))
  print(json.dumps([dataclasses.asdict(r) for r in rows], indent=2)
        if flags.FLAGS.json else as_text(rows))


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', None, 'The config, a file in configs/.')
  flags.DEFINE_bool('json', False, 'Print JSON.')
  flags.mark_flag_as_required('config')
  cli.run(main)
