"""Peak rates of TPUs, and the time that a compiled program takes on them.

A core is a device in JAX's terms: a v3 chip has two, and the two of v4 and v5p work as
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

from jax.experimental import topologies

from vatt_jax.errors import UserError
from vatt_jax.tools.tpu_plan import hlo


@dataclasses.dataclass(frozen=True)
class Chip:
  """Holds the rates of one core, except for the links, which a chip's cores share.

  Attributes:
    clock_mhz: clock rate.
    peak_tflops: peak rate of matrix products in bfloat16.
    hbm_gib: memory that the compiler gives to programs; it keeps some.
    hbm_gb_per_second: bandwidth of the memory.
    link_gb_per_second: bandwidth of one link to a neighbor, one way.
    ring: a side of a slice closes to a ring if it is a multiple of this.
    matrix_side: numbers along a side of a matrix unit.
    options: compiler options that make one core of a chip.
  """
  clock_mhz: int
  peak_tflops: float
  hbm_gib: float
  hbm_gb_per_second: float
  link_gb_per_second: float
  ring: int
  matrix_side: int = 128
  options: dict[str, str] = dataclasses.field(default_factory=dict)


# Sources. Peaks, bandwidths and links of v4 and later: docs.cloud.google.com/tpu/docs/
# v4, v5e, v5p, v6e (links are given both ways and summed over a chip). v3: Jouppi et
# al. 2020, "A Domain-Specific Supercomputer for Training Deep Neural Networks",
# Table 3. A clock is the peak divided by the size of the matrix units. Memory is the
# limit that libtpu 0.0.42 names when it refuses a program.
CHIPS = {
    'v3': Chip(940, 61.5, 15.48, 450, 82, ring=32),
    'v4': Chip(1050, 275, 30.75, 1200, 50, ring=4,
               options=dict(chip_config_name='megacore')),
    'v5e': Chip(1500, 197, 15.75, 819, 50, ring=16),
    'v5p': Chip(1750, 459, 95.74, 2765, 100, ring=4),
    'v6e': Chip(1750, 918, 31.25, 1638, 100, ring=16, matrix_side=256)}

EXAMPLES = 'v3:8x16, v4:4x8x8, v5e:16x16, v5p:4x8x8 or v6e:16x16'

# Latency from chip to chip for any size (jax-ml.github.io/scaling-book/tpus).
_HOP_SECONDS = 1e-6


@dataclasses.dataclass(frozen=True)
class Slice:
  """Describes a slice: chips in a two- or three-dimensional grid."""
  chip: Chip
  sides: tuple[int, ...]
  num_cores: int

  def collective_seconds(self, kind: str, size: int, group: int) -> float:
    """Returns the time of one collective operation alone.

    For S bytes in n cores and links of B bytes a second, all-reduce takes
    2 S (n-1)/n / B. All-gather (S: the output), reduce-scatter and all-to-all take
    half of that. A permutation takes S / B, over one link. If all cores are in one
    group, B is the sum over all links of a chip: two along each side of the slice
    that is a ring, one along a line. A smaller group is taken for a line along one
    side. Each chip that the furthest data pass adds a microsecond, both ways for
    all-reduce.

    Args:
      kind: one of `hlo.COLLECTIVES`.
      size: S.
      group: n.
    """
    link = self.chip.link_gb_per_second * 1e9
    if kind == 'collective-permute':
      return size / link + _HOP_SECONDS
    whole = group == self.num_cores
    links = sum(1 + (side % self.chip.ring == 0) for side in self.sides if side > 1)
    passes = 2 if kind == 'all-reduce' else 1
    hops = sum(side - 1 for side in self.sides) if whole else group - 1
    bandwidth = link * (max(links, 1) if whole else 1)
    return passes * (size * (group - 1) / group / bandwidth + hops * _HOP_SECONDS)

  def kernel_seconds(self, operations: int, size: int) -> float:
    """Returns the roofline: the longer of the times at peak rate and for the memory."""
    return max(operations / (self.chip.peak_tflops * 1e12), self.memory_seconds(size))

  def memory_seconds(self, size: int) -> float:
    return size / (self.chip.hbm_gb_per_second * 1e9)


def split_name(topology: str) -> tuple[Chip, tuple[int, ...]]:
  """Parses a name like `v3:8x16`.  -> the chip, and the sides of the slice.

  Raises:
    UserError: the name is malformed, or the chip unknown.
  """
  name, _, sides = topology.partition(':')
  if name not in CHIPS or not re.fullmatch(r'\d+(x\d+){1,2}', sides):
    raise UserError(f'--topology={topology}: expected {", ".join(CHIPS)}, a colon and '
                    f'the sides of the slice in chips, such as {EXAMPLES}')
  return CHIPS[name], tuple(map(int, sides.split('x')))


def find(topology: str) -> tuple[Slice, list[Any]]:
  """Returns a slice and its devices as a target for the compiler.

  Raises:
    UserError: no such slice exists.
  """
  chip, sides = split_name(topology)
  try:
    devices = topologies.get_topology_desc(
        topology_name=topology, platform='tpu', **chip.options).devices
  except RuntimeError as e:
    raise UserError(f'--topology={topology}: {str(e).strip().splitlines()[0]}; '
                    f'expected a slice such as {EXAMPLES}') from e
  return Slice(chip, sides, len(devices)), devices


# (Name of a Pallas kernel, shapes of its outputs) -> operations of one call
# (`cost.kernels`).
Kernels = Mapping[tuple[str, hlo.Shapes], int]


@dataclasses.dataclass(frozen=True)
class Cost:
  """Holds the cost of all executions of an instruction.

  Attributes:
    run: the instruction.
    kind: one of `KINDS`.
    seconds: time without any overlap.
  """
  run: hlo.Run
  kind: str
  seconds: float


# Estimated by the compiler; Pallas kernels; neither; between cores.
KINDS = ('estimated', 'kernel', 'moved', 'collective')

# No data moves, or it moves in parallel: copies from and to the fast memory.
_FREE = ('parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'after-all',
         'partition-id', 'replica-id', 'custom-call')


def costs(runs: Sequence[hlo.Run], where: Slice, kernels: Kernels) -> list[Cost]:
  """Returns the costs of executed instructions (`hlo.executed`), without free ones.

  Instructions without an estimate are few and small. Each takes the time that its
  operands and values need to pass the memory. For an instruction that cuts out or
  updates a part, only that part counts.
  """
  every = (_cost(run, where, kernels) for run in runs)
  return [cost for cost in every if cost.seconds]


def _cost(run: hlo.Run, where: Slice, kernels: Kernels) -> Cost:
  instruction, times = run.instruction, run.times
  kind = hlo.collective_kind(instruction)
  if kind is not None:
    group = hlo.group_size(instruction, where.num_cores)
    size = run.operand_bytes * (group if kind == 'all-gather' else 1)
    return Cost(run, 'collective', times * where.collective_seconds(kind, size, group))
  if instruction.cycles is not None:
    return Cost(run, 'estimated',
                times * instruction.cycles / (where.chip.clock_mhz * 1e6))
  if instruction.kernel is not None:
    operations, size = instruction.kernel
    operations = max(operations, kernels.get(
        (instruction.kernel_name, instruction.shapes), 0))
    size = max(size, run.operand_bytes + instruction.bytes)
    return Cost(run, 'kernel', times * where.kernel_seconds(operations, size))
  return Cost(run, 'moved', times * where.memory_seconds(_moved_bytes(run)))


def _moved_bytes(run: hlo.Run) -> int:
  instruction = run.instruction
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith(('-start', '-done')):
    return 0
  if opcode in ('slice', 'dynamic-slice', 'gather'):
    return 2 * instruction.bytes
  if opcode == 'dynamic-update-slice':
    return 2 * run.computation[instruction.operands[1]].bytes
  return run.operand_bytes + instruction.bytes


_UNITS = {'': 1, 'K': 2 ** 10, 'M': 2 ** 20, 'G': 2 ** 30, 'T': 2 ** 40}


def read_out_of_memory(message: str) -> tuple[int, int] | None:
  """Parses the compiler's error.  -> bytes that a program needs, bytes available.

  Returns None for another error.
  """
  size = r'([\d.]+)([KMGT]?)B?'
  match = (re.search(rf'Used {size} of {size} hbm', message)
           or re.search(rf'HLO temporaries \({size}\) exceeds available HBM \({size}\)',
                        message))
  if match is None:
    return None
  needed, needed_unit, limit, limit_unit = match.groups()
  return (math.ceil(float(needed) * _UNITS[needed_unit]),
          math.floor(float(limit) * _UNITS[limit_unit]))
