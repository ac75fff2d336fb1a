"""Logical axes of arrays: the table from which shardings are made."""

from __future__ import annotations

from collections.abc import Callable
import re
from typing import Any

import jax
from jax.sharding import PartitionSpec

# Sharding of the rows of a batch, by the axes of the mesh (`distributed.sharding`).
ROWS = PartitionSpec(('data', 'fsdp'))

# Pattern of a parameter's name, and its axes. 'features' is the width of arrays that
# are too small to be split.
_TABLE = (
    (r'.*/attention/(query|key|value)/kernel', ('width', 'heads', 'head')),
    (r'.*/attention/(query|key|value)/bias', ('heads', 'head')),
    (r'.*/attention/out/kernel', ('heads', 'head', 'width')),
    (r'.*/mlp_1/kernel', ('width', 'mlp')),
    (r'.*/mlp_1/bias', ('mlp',)),
    (r'.*/mlp_2/kernel', ('mlp', 'width')),
    (r'.*/relative_bias/table', ('buckets', 'heads')),
    (r'.*/(attention/out|mlp_2)/bias', ('features',)),
    (r'.*/(position_norm|norm|norm_1|norm_2)/(scale|bias)', ('features',)),
    (r'.*aggregators_\w+/agg', ('features',)),
    (r'.*tokenizers_text/embedding(/embedding)?', ('vocabulary', 'features')),
    (r'.*tokenizers_\w+/(\w+_)?positions', ('positions', 'features')),
    (r'.*(pre_projection|projectors_\w+|backbones_\w+)/projection/kernel',
     ('inputs', 'width')),
    (r'.*tokenizers_\w+/projection/kernel', ('patch', ..., 'width')),
    (r'.*/projection/bias', ('features',)),
    (r'.*head/logits(_[^/]+)?/kernel', ('width', 'classes')),
    (r'.*head/logits(_[^/]+)?/bias', ('classes',)),
    (r'.*head/\w+_norm/(scale|bias|mean|var)', ('features',)),
    (r'.*head/\w+/kernel', ('width', 'space')),
    (r'.*head/\w+/bias', ('features',)))

# An axis of a parameter that the table lacks and that is large enough to be split.
OTHER = 'other'
_MIN_SPLIT_SIZE = 2 ** 16    # elements

NAMES = (*dict.fromkeys(
    name for _, axes in _TABLE for name in axes if name is not ...), OTHER)


def logical_axes(tree: Any) -> Any:
  """Returns the names of the axes of arrays.

  Args:
    tree: of arrays or their shapes: parameters, a model's other variables, or a tree
      that contains them, such as the state of an optimizer. Names are made of the keys
      of dicts in a path.

  Returns:
    The tree, with a tuple for each array: a name for each axis. It is empty for a
    scalar. An array that the table lacks gets axes by its size: all are `OTHER` if it
    is large, 'features' otherwise.

  Raises:
    ValueError: an array has another number of axes than in the table.
  """
  return jax.tree_util.tree_map_with_path(_axes, tree)


def _axes(path: tuple[Any, ...], array: Any) -> tuple[str, ...]:
  if not array.ndim:
    return ()
  name = '/'.join(str(step.key) for step in path
                  if isinstance(step, jax.tree_util.DictKey))
  axes = next((axes for pattern, axes in _TABLE if re.fullmatch(pattern, name)), None)
  if axes is None:
    return (OTHER if array.size >= _MIN_SPLIT_SIZE else 'features',) * array.ndim
  if ... in axes:    # repeats the axis before it
    first, _, last = axes
    axes = (first,) * (array.ndim - 1) + (last,)
  if len(axes) != array.ndim:
    raise ValueError(f'{name}: expected axes {", ".join(axes)}, found the shape '
                     f'{array.shape}; change its line in {__file__}')
  return axes


def split_rows(x: jax.Array) -> jax.Array:
  """Splits an activation by rows, like the batch, in a step on a mesh.

  [B, ...] -> [B, ...]. Without this constraint the compiler may split activations like
  the parameters, and hold the whole batch on every device.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, ROWS)


def gathered(kernel: jax.Array) -> jax.Array:
  """Gathers a kernel on every device, once for the forward and backward pass.

  Without this constraint the compiler gathers a kernel that `fsdp` splits for every
  product. If `model` splits kernels too, the choice is left to the compiler.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.shape['fsdp'] == 1 or mesh.shape['model'] > 1:
    return kernel
  return jax.lax.with_sharding_constraint(kernel, PartitionSpec())


def on_each_device(function: Callable[..., jax.Array], *operands: jax.Array
                   ) -> jax.Array:
  """Runs a function on each device's rows and heads, which must be independent.

  Args:
    function: of the operands; its result has their axes.
    *operands: [B, N, A, D] each. Axes that the mesh does not divide are on all devices.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function(*operands)
  num_rows, _, num_heads, _ = operands[0].shape
  rows = ROWS[0] if num_rows % (mesh.shape['data'] * mesh.shape['fsdp']) == 0 else None
  heads = 'model' if num_heads % mesh.shape['model'] == 0 else None
  spec = PartitionSpec(rows, None, heads)
  # The check that copies are equal does not support kernels.
  return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(
      *operands)
