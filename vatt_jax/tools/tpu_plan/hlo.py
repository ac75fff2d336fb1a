"""Reads the text of a program that XLA has compiled for a TPU (optimized HLO).

The text holds the compiler's estimate of each operation in cycles, and for a Pallas
kernel the operations and bytes that its author stated. It also holds the trip count
of each loop. All executed instructions can thus be counted without running them.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import math
import re

Shapes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Instruction:
  """Holds one line of a program.

  Attributes:
    name: name of the computed value.
    shape: shape of that value, as the program writes it.
    opcode: the operation.
    operands: names of the values that it takes.
    rest: the text after the operands.
    literal: for a constant, the text in place of operands.
    is_root: whether it is the value of its computation.
  """
  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str
  literal: str = ''
  is_root: bool = False

  @property
  def cycles(self) -> int | None:
    """Returns the compiler's estimate of one execution."""
    return self._number(r'"estimated_cycles":"(\d+)"')

  @property
  def kernel(self) -> tuple[int, int] | None:
    """Returns a Pallas kernel's stated operations and bytes, 0 if not stated."""
    if 'custom_call_target="tpu_custom_call"' not in self.rest:
      return None
    return (self._number(r'"cost_estimate":\{[^}]*"flops":"(\d+)"') or 0,
            self._number(r'"cost_estimate":\{[^}]*"bytes_accessed":"(\d+)"') or 0)

  @property
  def kernel_name(self) -> str:
    """Returns the name that its author gave to a Pallas kernel."""
    match = re.search(r'(\w+)\)*/pallas_call$', self.op_name)
    return match[1] if match else ''

  @property
  def shapes(self) -> Shapes:
    """Returns the shape of its value, or the shapes of a tuple's values."""
    return tuple(tuple(map(int, filter(None, sizes.split(','))))
                 for _, sizes in _arrays(self.shape))

  @property
  def bytes(self) -> int:
    """Returns the size of its value."""
    return shape_bytes(self.shape)

  @property
  def op_name(self) -> str:
    """Returns JAX's name of its place in the model."""
    match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
    return match[1] if match else ''

  def called(self, attribute: str) -> str | None:
    """Returns the computation that an attribute names."""
    match = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.rest)
    return match[1] if match else None

  def _number(self, pattern: str) -> int | None:
    match = re.search(pattern, self.rest)
    return int(match[1]) if match else None


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
  """Holds all computations by name; `entry` is the one that runs.

  `frames` are the places in Python that instructions come from: number -> file, line
  and number of the caller's frame.
  """
  entry: str
  computations: Mapping[str, Computation]
  frames: Mapping[int, tuple[str, int, int]]

  def source(self, instruction: Instruction, folder: str) -> str:
    """Returns the innermost `file:line` in a folder, or else the innermost of all."""
    number = instruction._number(r'stack_frame_id=(\d+)')
    innermost = self.frames.get(number, ('', 0, 0))
    while number in self.frames:
      file, line, number = self.frames[number]
      if file.startswith(folder):
        return f'{file.removeprefix(folder).lstrip("/")}:{line}'
    return f'{innermost[0].rpartition("/")[2]}:{innermost[1]}' if innermost[1] else ''


@dataclasses.dataclass(frozen=True)
class Run:
  """Holds an executed instruction, its number of executions and its computation."""
  instruction: Instruction
  times: int
  computation: Computation

  @property
  def operand_bytes(self) -> int:
    return sum(self.computation[name].bytes for name in self.instruction.operands
               if name in self.computation)


# Bits of types whose name has no number.
_BITS = {'pred': 8, 'token': 0, 'opaque': 0}


def shape_bytes(shape: str) -> int:
  """Returns the bytes of a shape, without the padding of tiles.

  `(bf16[8,128]{1,0:T(8,128)}, u32[])` -> 2052.
  """
  total = 0
  for dtype, sizes in _arrays(shape):
    bits = _BITS.get(dtype)
    if bits is None:
      bits = int(re.search(r'\d+', dtype)[0])
    elements = math.prod(int(size.strip('<=')) for size in sizes.split(',') if size)
    total += -(-bits * elements // 8)
  return total


def _arrays(shape: str) -> list[tuple[str, str]]:
  return re.findall(r'\b([a-z]\w*)\[([\d,<=]*)\]', shape)


def parse(text: str) -> Program:
  """Parses the text of a program.

  Raises:
    ValueError: the text is not a program.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  current: dict[str, Instruction] = {}
  entry = ''
  # Metadata that the author of a kernel adds stands on separate lines.
  for line in re.sub(r'\n(?="|\}\})', ' ', text).splitlines():
    if line.startswith('  '):
      instruction = _instruction(line)
      if instruction is not None:
        current[instruction.name] = instruction
    elif header := re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line):
      current = computations[header[2]] = {}
      entry = header[2] if header[1] else entry
  if not entry:
    raise ValueError('no program: expected the text of a compiled program, with an '
                     'ENTRY')
  return Program(entry, computations, _frames(text))


def _instruction(line: str) -> Instruction | None:
  head = re.match(r'\s+(ROOT )?%?([\w.\-]+) = ', line)
  if head is None:
    return None
  begin = head.end()
  end = _closing(line, begin) if line[begin] == '(' else line.index(' ', begin)
  shape = line[begin:end]
  opcode, _, _ = line[end:].strip().partition('(')
  begin = line.index('(', end + len(opcode))
  end = _closing(line, begin)
  inside = line[begin + 1:end - 1]
  operands = tuple(re.findall(r'%([\w.\-]+)', inside)) if opcode != 'constant' else ()
  return Instruction(head[2], shape, opcode, operands, line[end:],
                     inside if opcode == 'constant' else '', bool(head[1]))


def _closing(line: str, begin: int) -> int:
  """Returns the index after the bracket that closes the bracket at `begin`."""
  depth = 0
  for bracket in re.finditer(r'[()]', line[begin:]):
    depth += 1 if bracket[0] == '(' else -1
    if not depth:
      return begin + bracket.end()
  return len(line)


def _frames(text: str) -> dict[int, tuple[str, int, int]]:
  """Joins the tables at a program's head.  -> frame number -> file, line, caller."""
  files = {int(n): name for n, name in re.findall(
      r'^(\d+) "(.*)"$', _section(text, 'FileNames', 'FunctionNames'), re.M)}
  locations = {int(n): (files[int(file)], int(line)) for n, file, line in re.findall(
      r'^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)',
      _section(text, 'FileLocations', 'StackFrames'), re.M)}
  # XLA writes a parent's number plus one.
  return {int(n): (*locations[int(place)], int(parent) - 1) for n, place, parent in
          re.findall(r'^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)\}',
                     _section(text, 'StackFrames', '\n\n'), re.M)}


def _section(text: str, begin: str, end: str) -> str:
  header = re.search(rf'^{begin}\n', text, re.M)
  return text[header.end():].partition(end)[0] if header else ''


def executed(program: Program) -> list[Run]:
  """Lists all executed instructions, with the number of their executions.

  Instructions in a loop count as often as the loop runs. A conditional counts as its
  most expensive branch. Asynchronous operations (`async-start`) count where they
  start. A fusion is one operation; only the collectives within it are listed besides.

  Raises:
    ValueError: the program has a loop of unknown length.
  """
  return list(_executed(program, program.entry, 1))


def _executed(program: Program, name: str, times: int) -> Iterator[Run]:
  computation = program.computations[name]
  for instruction in computation.values():
    if instruction.opcode == 'while':
      trips = times * _trips(program, computation, instruction)
      for part in ('condition', 'body'):
        yield from _executed(program, instruction.called(part), trips)
    elif instruction.opcode == 'conditional':
      yield from max(([*_executed(program, branch, times)]
                      for branch in _branches(instruction)), key=_cycles)
    elif instruction.opcode in ('call', 'async-start'):
      inner = instruction.called('to_apply') or instruction.called('calls')
      yield from _executed(program, inner, times)
    else:
      yield Run(instruction, times, computation)
      if instruction.opcode == 'fusion':
        yield from _fused_collectives(program, instruction, times)


def _cycles(runs: Iterable[Run]) -> int:
  return sum(run.times * (run.instruction.cycles or 0) for run in runs)


def _branches(conditional: Instruction) -> list[str]:
  branches = re.search(r'branch_computations=\{([^}]*)\}', conditional.rest)
  if branches:
    return re.findall(r'[\w.\-]+', branches[1])
  return [conditional.called('true_computation'),
          conditional.called('false_computation')]


def _fused_collectives(program: Program, fusion: Instruction, times: int
                       ) -> Iterator[Run]:
  name = fusion.called('calls')
  computation = program.computations[name]
  starts = any('"AsyncCollectiveStart"' in i.rest for i in computation.values())
  for instruction in computation.values():
    if collective_kind(instruction) is not None:
      # A collective that overlaps other fusions stands in each of them.
      if 'chain_id=' in instruction.rest and not starts:
        continue
      if name.startswith('all-reduce-scatter'):    # the compiler's reduce-scatter
        instruction = dataclasses.replace(instruction, opcode='reduce-scatter')
      yield Run(instruction, times, computation)
    elif instruction.opcode == 'fusion':
      yield from _fused_collectives(program, instruction, times)


def _trips(program: Program, around: Computation, loop: Instruction) -> int:
  """Returns the trip count of a loop.

  It comes from the compiler's note, or from the loop's condition: an element of the
  carried tuple is less than a constant. The element counts up by one. If its initial
  constant is hidden in another loop's tuple it is 0, as in all loops of JAX.
  """
  trip_count = loop._number(r'"known_trip_count":\{"n":"(\d+)"')
  if trip_count is not None:
    return trip_count
  condition = program.computations[loop.called('condition')]
  test = next(i for i in condition.values() if i.is_root)
  counter, limit = (condition.get(name) for name in (*test.operands, '', '')[:2])
  if (test.opcode != 'compare' or 'direction=LT' not in test.rest
      or limit.opcode != 'constant' or counter.opcode != 'get-tuple-element'):
    raise ValueError(f'{loop.name}: a loop of unknown length cannot be counted')
  carried = around[loop.operands[0]]
  start = _constant(around, carried.operands[counter._number(r'index=(\d+)')]
                    if carried.opcode == 'tuple' else '')
  return int(limit.literal) - start


def _constant(computation: Computation, name: str) -> int:
  while name in computation and computation[name].opcode == 'copy':
    (name,) = computation[name].operands
  value = computation.get(name)
  return int(value.literal) if value and value.opcode == 'constant' else 0


COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
               'collective-permute')


def collective_kind(instruction: Instruction) -> str | None:
  """Returns one of `COLLECTIVES` or None; an asynchronous one counts at its start."""
  kind = instruction.opcode.removesuffix('-start')
  return kind if kind in COLLECTIVES else None


def group_size(instruction: Instruction, num_devices: int) -> int:
  """Returns the number of devices in each group of a collective."""
  groups = re.search(r'replica_groups=(.*?)(?:, \w+=|$)', instruction.rest)
  text = groups[1] if groups else ''
  if listed := re.match(r'\{\{([\d,]*)\}', text):
    return listed[1].count(',') + 1
  if iota := re.match(r'\[\d+,(\d+)\]', text):
    return int(iota[1])
  if mesh := re.match(r'mesh\[([^\]]*)\]', text):
    return _mesh_group_size(dict(re.findall(r"'(\w+)'=(\d+)", mesh[1])),
                            instruction.rest[groups.start(1) + mesh.end():])
  return num_devices


def _mesh_group_size(sizes: Mapping[str, str], rest: str) -> int:
  """Returns a group's size, as in `mesh['a'=4,'b'=8] {'a', 'b':(2)4}`.

  Each entry in braces is an axis, or a part of one with its size.
  """
  axes = re.search(r"\{('[^}]*)\}", rest)
  parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[1]) if axes else []
  return math.prod(int(part or sizes[axis]) for axis, part in parts)


@functools.cache
def readable(op_name: str) -> str:
  """Shortens JAX's name of an operation: merges blocks and appends the pass.

  `jit(train_step)/transpose(jvp(Vatt.encode))/video/block_3/out/dot_general` ->
  `video/block/out/dot_general, backward`.
  """
  first = op_name.partition(';')[0]
  skipped = ('while', 'body', 'closed_call', 'checkpoint', 'rematted_computation')
  parts = [re.sub(r'^block_\d+$', 'block', part) for part in first.split('/')
           if '(' not in part and part not in skipped and not part.startswith('Vatt.')]
  backward = 'again' if 'rematted_computation' in first else (
      'backward' if 'transpose(' in first else '')
  return ', '.join(filter(None, ('/'.join(parts), backward)))
