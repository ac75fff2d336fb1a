"""Counts a model's parameters and the operations of a forward call on one clip.

    python -m vatt_jax cost --config=configs/pretrain_mbs.py
    python -m vatt_jax cost --paper

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

The table also has the closed form (`vatt_jax.tools.closed_form`), which must equal
the true count, and XLA's own analysis of the program before optimisation. XLA adds
elementwise operations and reductions (but not exp, erf and similar ones).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import json
import math
from typing import Any

from absl import flags
from flax import linen as nn
import jax
import jax.numpy as jnp
from ml_collections import config_flags

from vatt_jax import cli
from vatt_jax import experiment
from vatt_jax.config import Settings
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip_keys
from vatt_jax.models import attention
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.models import vatt
from vatt_jax.models.vatt import Vatt
from vatt_jax.tools import closed_form
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


def forward(model: vatt.Vatt, batch: Mapping[str, Any], train: bool = False
            ) -> Operations:
  """Counts one forward call; with `train`, on the tokens that DropToken keeps."""
  return operations(*_call(_as_counted(model), batch, train))


def training_flops(config: Settings) -> int:
  """Returns the operations of one training step of a config, by the true count.

  They are three times the forward call's, on the tokens that DropToken keeps, for all
  clips of the batch: the backward pass takes twice as many. Recomputation that saves
  memory, losses and the optimizer do not count.
  """
  model, clip = experiment.model_and_clip(config)
  return 3 * forward(model, clip, train=True).true * config['batch_size']


def _call(module: nn.Module, x: Any, train: bool) -> tuple[Any, ...]:
  """Returns a function and its arguments, the variables as shapes only."""
  rows = jax.tree.leaves(x)[0].shape[0]

  def apply(variables, x):
    keys = clip_keys.make(0, 0, rows) if train else None
    if isinstance(x, Mapping):    # a whole model
      x, draws = dict(x, key=keys), dict(train=train)
    else:    # a tokenizer
      draws = dict(keys=keys)
    return module.apply(variables, x, **draws, mutable=['batch_stats'],
                        rngs={'drop_token': jax.random.key(0)})[0]

  return apply, jax.eval_shape(module.init, jax.random.key(0), x), x


def _as_counted(model):
  """Returns the model without dropout and with plain attention, as it is counted."""
  without_dropout = lambda modules: {
      k: m.clone(dropout_rate=0.0) for k, m in modules.items()
      if not isinstance(m, layers.WordMean)}
  backbones = dict(model.backbones) | without_dropout(model.backbones)
  for name, backbone in backbones.items():
    if 'form' in getattr(getattr(backbone, 'attention', None), 'keywords', ()):
      plain = functools.partial(backbone.attention, form='plain')
      backbones[name] = backbone.clone(attention=plain)
  head = model.head
  if isinstance(head, heads.Classifier):
    head = head.clone(dropout_rate=0.0)
  return model.clone(tokenizers=without_dropout(model.tokenizers),
                     backbones=backbones, head=head)


@dataclasses.dataclass(frozen=True)
class Figures:
  """Holds the operations of a forward call, counted in four ways (see the module)."""
  true: int
  closed_form: int
  xla: int
  paper: int


@dataclasses.dataclass(frozen=True)
class Row:
  """Holds one row of the table of costs.

  Attributes:
    part: a modality, `shared`, `head` or `total`.
    parameters: number of trained parameters.
    closed_form: the same number by formula.
    frozen: number of parameters that are not trained, including batch statistics.
    tokens: number of tokens in training, after DropToken, without AGG.
    train: operations of a forward call on the tokens that DropToken keeps.
    evaluate: operations of a forward call on all tokens.
  """
  part: str
  parameters: int
  closed_form: int
  frozen: int
  tokens: int | None = None
  train: Figures | None = None
  evaluate: Figures | None = None


def table(model: vatt.Vatt, batch: Mapping[str, Any]) -> list[Row]:
  """Returns the cost of each part of a model and the total, for a batch of clips."""
  trained, frozen = _parameters(model, batch)
  train, evaluate = (closed(model, batch, mode) for mode in (True, False))
  rows, bare = [], model.clone(head=None)
  for part in train:
    row = Row(part, trained.get(part, 0), train[part].parameters, frozen.get(part, 0))
    if part in model.tokenizers:
      alone = {part: batch[part]}
      row = dataclasses.replace(
          row, tokens=_features(model, alone, True)['tokens'][part].shape[-2],
          train=_figures(bare, alone, True, [train[part]]),
          evaluate=_figures(bare, alone, False, [evaluate[part]]))
    rows.append(row)
  return [*rows, Row(
      'total', sum(r.parameters for r in rows), sum(r.closed_form for r in rows),
      sum(r.frozen for r in rows), None, _figures(model, batch, True, train.values()),
      _figures(model, batch, False, evaluate.values()))]


def closed(model: vatt.Vatt, batch: Mapping[str, Any], train: bool
           ) -> dict[str, closed_form.Cost]:
  """Returns each part's cost by formula, for a forward call on a batch of clips."""
  features = _features(model, batch, train)
  parts = {m: closed_form.modality(model, m, batch[m].shape,
                                   features['tokens'][m].shape[-2])
           for m in model.tokenizers}
  if 'shared' in model.backbones:
    parts['shared'] = closed_form.shared(model)
  if model.head is not None:
    widths = {m: x.shape[-1] for m, x in features['pooled'].items()}
    sentences = batch['text'].shape[1] if 'text' in widths else 0
    parts['head'] = closed_form.head(model, widths, sentences)
  return parts


def _features(model, batch, train):
  bare = _as_counted(model.clone(head=None))
  return jax.eval_shape(*_call(bare, batch, train))


def _figures(model, batch, train, parts):
  call, variables, x = _call(_as_counted(model), batch, train)
  count = operations(call, variables, x)
  xla = jax.jit(call).lower(variables, x).cost_analysis()['flops']
  return Figures(count.true, sum(part.operations for part in parts), round(xla),
                 count.paper)


def _parameters(model, batch):
  """Counts trained and other parameters.  -> two dicts, part -> number."""
  variables = jax.eval_shape(model.init, jax.random.key(0), batch)
  counts = {}, {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    collection, module = (key.key for key in path[:2])
    part = module.rpartition('_')[2]
    of_kind = counts[collection != 'params']
    of_kind[part] = of_kind.get(part, 0) + leaf.size
  return counts


def parameters(model: vatt.Vatt, batch: Mapping[str, Any]) -> int:
  """Counts the trained parameters of a model."""
  trained, _ = _parameters(model, batch)
  return sum(trained.values())


def _video(size, shape, drop_token_rate=0.0, num_classes=600):
  """Builds a video tower with a classifier, and a clip of shape [T, H, W]."""
  model = Vatt.from_config(
      video=dict(size=size, drop_token_rate=drop_token_rate),
      head=dict(name='classifier', num_classes=num_classes))
  return model, dict(video=jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32))


def _mbs(drop_token_rate):
  """Builds VATT-MBS, and a clip with its five candidate captions."""
  model = Vatt.from_config(
      video=dict(size='medium', drop_token_rate=drop_token_rate),
      audio=dict(size='base', drop_token_rate=drop_token_rate),
      text=dict(size='small', vocabulary_size=2 ** 16), head={})
  shapes = dict(video=(1, 32, 224, 224, 3), audio=(1, 153_600))
  batch = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
  return model, batch | dict(text=jax.ShapeDtypeStruct((1, 5, 16), jnp.int32))


@dataclasses.dataclass(frozen=True)
class Cell:
  """Holds one figure of the paper beside ours."""
  table: str
  cell: str
  unit: str
  paper: float
  ours: float
  true: float | None = None    # operations by the true count


def paper_cells() -> Iterator[Cell]:
  """Yields Tables 1, 13, 14 and the TFLOPs of Table 2, by the paper's reading.

  Table 1's figures are those of a video tower for 32 x 320 x 320 with a classifier
  of 600 classes (Kinetics-600). By that count Small has 20.8 M; the paper uses Small
  for text only. With 700 classes (Kinetics-700) it has the paper's 20.9 M.
  """
  for size, figure in (('small', 20.9), ('base', 87.9), ('medium', 155.0),
                       ('large', 306.1)):
    count = parameters(*_video(size, (32, 320, 320)))
    yield Cell('1', f'{size.title()} parameters', 'M', figure, count / 1e6)
  views = 12    # 4 windows x 3 crops
  for size, figure in (('base', 9.09), ('medium', 15.02), ('large', 29.80)):
    count = forward(*_video(size, (32, 320, 320))) * views
    yield Cell('2', f'VATT-{size.title()}', 'TFLOPs', figure, count.paper / 1e12,
               count.true / 1e12)
    if size == 'medium':    # agnostic or not, its video tower is the same
      yield Cell('2', 'VATT-MA-Medium', 'TFLOPs', 15.02, count.paper / 1e12,
                 count.true / 1e12)
  for rate, figure in ((0.75, 188.1), (0.5, 375.4), (0.25, 574.2), (0.0, 784.8)):
    yield _dropped('13', f'MBS, {rate:.0%} dropped', figure, *_mbs(rate))
  for shape, rate, figure in (
      ((32, 224, 224), 0.0, 548.1), ((64, 224, 224), 0.0, 1222.1),
      ((32, 320, 320), 0.75, 279.8), ((32, 320, 320), 0.5, 572.5),
      ((32, 320, 320), 0.25, 898.9), ((32, 320, 320), 0.0, 1252.3)):
    yield _dropped('14', f'{" x ".join(map(str, shape))}, {rate:.0%} dropped', figure,
                   *_video('medium', shape, rate))


def _dropped(table_name, name, figure, model, batch):
  """Returns a cell that counts the projection of all tokens, as the paper does.

  The released code drops tokens after their projection.
  """
  count = forward(model, batch, train=True)
  paper = count.paper
  for modality in ('video', 'audio'):
    if modality in batch:
      tokenizer = model.tokenizers[modality].clone(parent=None)
      every, kept = (operations(*_call(tokenizer, batch[modality], train))
                     for train in (False, True))
      paper += every.paper - kept.paper
  return Cell(table_name, name, 'GFLOPs', figure, paper / 1e9, count.true / 1e9)


def as_text(rows: list[Row]) -> str:
  """Formats the table of a model; operations in GFLOPs."""
  head = ('', 'parameters', 'closed form', 'frozen', 'tokens')
  names = ('closed form', 'XLA', 'paper')
  lines = [(*head, 'train, true', *names, 'evaluate, true', *names)]
  for r in rows:
    flops = [f'{x / 1e9:,.1f}' for figures in (r.train, r.evaluate) if figures
             for x in dataclasses.astuple(figures)]
    lines.append((r.part, f'{r.parameters:,}', f'{r.closed_form:,}', f'{r.frozen:,}',
                  '' if r.tokens is None else str(r.tokens),
                  *(flops or [''] * 8)))
  return align(lines) + ('\n\nGFLOPs of a forward call on one clip; train: on the '
                         'tokens that DropToken keeps.')


def paper_as_text(cells: list[Cell]) -> str:
  """Formats the paper's figures beside ours."""
  lines = [('table', '', '', 'paper', 'ours', 'ours/paper', 'true')]
  for c in cells:
    digits = 2 if c.unit == 'TFLOPs' else 1
    lines.append((c.table, c.cell, c.unit, f'{c.paper:,.{digits}f}',
                  f'{c.ours:,.{digits}f}', f'{c.ours / c.paper:.4f}',
                  '' if c.true is None else f'{c.true:,.{digits}f}'))
  return align(lines) + (
      '\n\nours: counted as the paper counts. true: two operations for each '
      'multiply-add,\nwhere tokens are dropped before their projection. Small has '
      "the paper's 20.9 M\nwith a classifier of 700 classes, not 600 like the others.")


def align(lines: Sequence[Sequence[str]]) -> str:
  """Aligns the lines of a table, the first column left and the others right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
      '  '.join(x.ljust(w) if i < 1 else x.rjust(w)
                for i, (x, w) in enumerate(zip(line, widths, strict=True))).rstrip()
      for line in lines)


def main() -> None:
  if flags.FLAGS.paper:
    rows, text = list(paper_cells()), paper_as_text
  elif flags.FLAGS['config'].present:
    model, batch = experiment.model_and_clip(flags.FLAGS.config.to_dict())
    rows, text = table(model, batch), as_text
  else:
    raise UserError('expected --config=FILE or --paper')
  print(json.dumps([dataclasses.asdict(r) for r in rows], indent=2)
        if flags.FLAGS.json else text(rows))


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', None, 'The config, a file in configs/.')
  flags.DEFINE_bool('paper', False, "Print the paper's tables beside ours.")
  flags.DEFINE_bool('json', False, 'Print JSON.')
  cli.run(main)
