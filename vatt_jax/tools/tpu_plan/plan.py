"""Predicts training speed and memory of a config on TPUs, without a TPU.

    python -m vatt_jax plan --config=configs/pretrain_mbs.py --topology=v3:8x16

Compiles the same step that the loop runs (`experiment.make_step`) with the TPU's own
compiler, from the package libtpu, and reads the compiled program. Give `--topology` or
`--batch_size` several times to see plans side by side; with several of both, the first
goes with the first, and so on.

The prediction is

    step = estimated cycles / clock + unestimated + collectives

- Cycles are the compiler's estimates of all executed instructions (`hlo.executed`).
  Pallas kernels take the roofline of their matrix products (`cost.kernels`) and bytes.
- Instructions without an estimate take the time that their bytes need to pass the
  memory.
- Collectives take their bytes over the links' bandwidth (`chips.Slice`). Overlap with
  other instructions, which some have, is not credited.

Input, evaluations and checkpoints are not included. MFU is the model's operations
(`cost.training_flops`) over the operations that all cores could do in that time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from concurrent import futures
import dataclasses
import importlib.util
import json
import math
import multiprocessing
import os
import pathlib
import tempfile
from typing import Any

from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from vatt_jax import cli
from vatt_jax import experiment
from vatt_jax.config import Settings
from vatt_jax.distributed import sharding
from vatt_jax.errors import UserError
from vatt_jax.models import layers
from vatt_jax.tools import cost
from vatt_jax.tools.tpu_plan import chips
from vatt_jax.tools.tpu_plan import hlo

_NUM_COSTLIEST = 10
_PACKAGE = pathlib.Path(__file__).parents[2]    # lines of its files are listed


@dataclasses.dataclass(frozen=True)
class Line:
  """Holds a line of the source and its cost in a step.

  Attributes:
    source: the line.
    operation: its most expensive operation; all blocks count as one.
    seconds: time of all its operations.
    share: their share of the whole step.
  """
  source: str
  operation: str
  seconds: float
  share: float


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Holds the predicted time of a step (see the module).

  Attributes:
    estimated_cycles: cycles of one core, including Pallas kernels.
    kernel_cycles: cycles of the Pallas kernels alone.
    unestimated_seconds: time of instructions without an estimate.
    collective_seconds: time of communication between the cores.
    predicted_step_seconds: the sum.
    costliest: the most expensive lines of the source.
  """
  estimated_cycles: int
  kernel_cycles: int
  unestimated_seconds: float
  collective_seconds: float
  predicted_step_seconds: float
  costliest: list[Line]


@dataclasses.dataclass(frozen=True)
class Plan:
  """Holds the plan of one config on one slice.

  Attributes:
    topology: name of the slice.
    batch_size: batch size over all cores.
    cores: number of devices of the slice.
    parameters: number of trained parameters.
    fits: whether a step fits into the memory; if not, it has no prediction.
    hbm_bytes_per_core: memory that a step needs, by kind in `memory_bytes`.
    hbm_limit_bytes: memory that the compiler gives to a program.
    model_flops_per_step: the model's own operations (`cost.training_flops`).
    mfu: their share of the operations that the cores could do.
    days: time of the config's `total_steps`.
    core_days: the same, times the cores.
    memory_bytes: kind -> bytes.
    prediction: predicted time of the step.
    tries: for a step that does not fit, `settings` with which it was compiled again,
      and its `hbm_bytes_per_core` and `fits`.
  """
  topology: str
  batch_size: int
  cores: int
  parameters: int
  fits: bool
  hbm_bytes_per_core: int
  hbm_limit_bytes: int
  model_flops_per_step: int
  mfu: float | None = None
  days: float | None = None
  core_days: float | None = None
  memory_bytes: dict[str, int] | None = None
  prediction: Prediction | None = None
  tries: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def as_json(self) -> dict[str, Any]:
    """Returns one flat dict with the prediction's fields, null without one."""
    own = dataclasses.asdict(self)
    nothing = dict.fromkeys(f.name for f in dataclasses.fields(Prediction))
    return own | (own.pop('prediction') or nothing)


def predict(program: hlo.Program, where: chips.Slice,
            kernels: chips.Kernels | None = None) -> Prediction:
  """Predicts the time of a compiled step; `kernels` come from the traced step."""
  costs = chips.costs(hlo.executed(program), where, kernels or {})
  seconds = Counter({kind: math.fsum(c.seconds for c in costs if c.kind == kind)
                     for kind in chips.KINDS})
  cycles = lambda kind: round(seconds[kind] * where.chip.clock_mhz * 1e6)
  return Prediction(
      cycles('estimated') + cycles('kernel'), cycles('kernel'), seconds['moved'],
      seconds['collective'], seconds.total(), costliest(program, costs))


def costliest(program: hlo.Program, costs: list[chips.Cost]) -> list[Line]:
  """Returns the lines of the source that cost most."""
  lines: dict[str, Counter[str]] = {}
  for c in costs:
    instruction = c.run.instruction
    source = program.source(instruction, str(_PACKAGE))
    of_line = lines.setdefault(source or 'the compiler', Counter())
    of_line[hlo.readable(instruction.op_name) or instruction.opcode] += c.seconds
  total = math.fsum(c.seconds for c in costs)
  dearest = sorted(lines.items(), key=lambda item: -item[1].total())[:_NUM_COSTLIEST]
  return [Line(source, operations.most_common(1)[0][0], operations.total(),
               operations.total() / total) for source, operations in dearest]


def make(config: Settings, topology: str, dump_hlo: str = '') -> Plan:
  """Compiles the step of a config for a slice; needs a process of its own.

  Args:
    config: a config of `configs/`, as nested dicts.
    topology: name of the slice, like `chips.EXAMPLES`.
    dump_hlo: a file to write the compiled program to.

  Raises:
    UserError: a key is wrong, or the compiler refuses the program.
  """
  # The compilation cache does not keep the program's text, which is needed here.
  jax.config.update('jax_enable_compilation_cache', False)
  where, devices = chips.find(topology)
  task, state, batch = experiment.make_step(config, devices)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  plan = Plan(topology, config['batch_size'], where.num_cores, parameters, False, 0,
              int(where.chip.hbm_gib * 2 ** 30), cost.training_flops(config))
  traced = type(task).train_step.trace(task, state, batch)
  compiled, memory = _compile(topology, traced)
  if compiled is None:
    needed, limit = memory
    return dataclasses.replace(plan, hbm_bytes_per_core=needed, hbm_limit_bytes=limit)
  text = compiled.as_text()
  if dump_hlo:
    pathlib.Path(dump_hlo).write_text(text, encoding='utf-8')
  try:
    kernels = cost.kernels(traced.jaxpr.jaxpr, where.chip.matrix_side)
    prediction = predict(hlo.parse(text), where, kernels)
  except ValueError as e:
    raise UserError(f'{topology}: the program cannot be read: {e}') from e
  memory = _memory(compiled.memory_analysis())
  return _finish(dataclasses.replace(
      plan, fits=True, memory_bytes=memory, hbm_bytes_per_core=sum(memory.values()),
      prediction=prediction), where.chip, config['total_steps'])


def _compile(topology: str, traced: Any) -> tuple[Any, tuple[int, int] | None]:
  """Returns the compiled step; or None, the bytes that it needs and the limit."""
  try:
    return traced.lower().compile(), None
  except jax.errors.JaxRuntimeError as e:
    memory = chips.read_out_of_memory(str(e))
    if memory is None:
      raise UserError(f'{topology}: the compiler refuses the step: '
                      f'{str(e).strip().splitlines()[0]}') from e
    return None, memory


def _memory(analysis: Any) -> dict[str, int]:
  return dict(
      arguments=analysis.argument_size_in_bytes,
      outputs=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
      temporaries=analysis.temp_size_in_bytes,
      program=analysis.generated_code_size_in_bytes)


def _finish(plan: Plan, chip: chips.Chip, total_steps: int) -> Plan:
  seconds = plan.prediction.predicted_step_seconds
  peak = chip.peak_tflops * 1e12 * plan.cores
  days = total_steps * seconds / 86_400
  return dataclasses.replace(
      plan, mfu=plan.model_flops_per_step / (seconds * peak), days=days,
      core_days=days * plan.cores)


# The child process needs these before it starts: it must not look for a TPU, neither
# here nor on the network, and other plans may be made at the same time.
_ENVIRONMENT = dict(JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1',
                    ALLOW_MULTIPLE_LIBTPU_LOAD='1')


def make_apart(config: Settings, topology: str, dump_hlo: str = '') -> Plan:
  """Calls `make` in a process of its own, because the compiler may crash.

  Raises:
    UserError: an error of `make`, libtpu is missing, or the compiler crashed.
  """
  chips.split_name(topology)
  if not (os.environ.get('TPU_LIBRARY_PATH') or importlib.util.find_spec('libtpu')):
    raise UserError("libtpu, the TPU's compiler, is not installed: "
                    "pip install 'vatt_jax[plan]'")
  os.environ.update(_ENVIRONMENT)
  logging.info('compiling for %s, batch %d: this takes some minutes', topology,
               config['batch_size'])
  spawn = multiprocessing.get_context('spawn')
  with (tempfile.NamedTemporaryFile('r', suffix='.log') as log,
        futures.ProcessPoolExecutor(1, spawn, _keep_stderr, (log.name,)) as pool):
    try:
      return pool.submit(make, config, topology, dump_hlo).result()
    except futures.process.BrokenProcessPool as e:
      last = (log.read().strip() or 'without a message').splitlines()[-1]
      raise UserError(f'{topology}: the compiler crashed: {last}') from e


def _keep_stderr(file: str) -> None:
  """Redirects stderr of the whole process to a file: libtpu writes much there."""
  os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), 2)


def remedies(config: Settings) -> Iterator[tuple[str, Any]]:
  """Yields settings that save memory, in the order in which to try them."""
  policies = list(layers.REMAT)    # each keeps less than the one before
  begin = policies.index(config['model'].get('remat', 'none')) + 1
  yield from (('model.remat', policy) for policy in policies[begin:])
  count = config.get('num_microbatches', 1)
  yield from (('num_microbatches', count * factor) for factor in (2, 4, 8))
  fsdp = config.get('mesh', {}).get('fsdp', 1)
  if fsdp != -1:    # 'auto' is no more than the largest
    yield 'mesh.fsdp', 8 * (sharding.AUTO_FSDP[0] if fsdp == 'auto' else int(fsdp))
  yield 'optim.state_dtype', 'bfloat16'
  yield from (('batch_size', config['batch_size'] // divisor) for divisor in (2, 4, 8))


def set_key(config: Settings, key: str, value: Any) -> dict[str, Any]:
  """Returns the config with another value at a key with dots."""
  head, _, rest = key.partition('.')
  return {**config, head: set_key(config.get(head) or {}, rest, value) if rest else
          value}


def try_to_fit(config: Settings, plan: Plan,
               make_plan: Callable[[Settings, str], Plan] = make_apart) -> Plan:
  """Adds remedies to the config of a plan that does not fit, until the step fits.

  One that this config or slice does not allow, or that does not help, is left out.
  """
  tries, settings, needed = [], {}, plan.hbm_bytes_per_core
  for key, value in remedies(config):
    logging.info('does not fit; trying config.%s=%r', key, value)
    changed = set_key(config, key, value)
    try:
      attempt = make_plan(changed, plan.topology)
    except UserError as e:
      logging.info('not possible here: %s', e)
      continue
    if attempt.fits or attempt.hbm_bytes_per_core < needed:
      config, needed = changed, attempt.hbm_bytes_per_core
      settings = settings | {key: value}
      tries.append(dict(settings=settings, hbm_bytes_per_core=needed,
                        fits=attempt.fits))
    if attempt.fits:
      break
  return dataclasses.replace(plan, tries=tries)


def as_text(plans: list[Plan]) -> str:
  """Formats the plans side by side, and the costliest lines of each."""
  columns = [('', *_NAMES), *map(_column, plans)]
  parts = [cost.align(list(zip(*columns, strict=True)))]
  for plan in plans:
    title = f'{plan.topology}, batch {plan.batch_size}'
    if plan.prediction is None:
      parts.append(f'{title}: {_shortage(plan)}')
    else:
      lines = [('costliest', 'ms', 'share')] + [
          (f'{line.source}  {line.operation}', f'{line.seconds * 1e3:.1f}',
           f'{line.share:.1%}') for line in plan.prediction.costliest]
      parts.append(f'{title}\n{cost.align(lines)}')
  return '\n\n'.join(parts)


_NAMES = (
    'cores', 'batch', 'parameters, M', 'memory a core, GiB', '  arguments',
    '  outputs, new', '  temporaries', '  program', '  limit',
    "model's operations, T", 'cycles, M', '  of Pallas kernels', 'step, s',
    '  estimated', '  unestimated', '  collectives', 'MFU', 'days', 'core-days')


def _column(plan: Plan) -> tuple[str, ...]:
  gib = lambda size: f'{size / 2 ** 30:.2f}'
  memory = [gib(size) for size in (plan.memory_bytes or {}).values()] or [''] * 4
  head = (plan.topology, str(plan.cores), str(plan.batch_size),
          f'{plan.parameters / 1e6:,.1f}', gib(plan.hbm_bytes_per_core), *memory,
          gib(plan.hbm_limit_bytes), f'{plan.model_flops_per_step / 1e12:,.1f}')
  step = plan.prediction
  if step is None:
    return (*head, *[''] * (len(_NAMES) + 1 - len(head)))
  estimated = (step.predicted_step_seconds - step.unestimated_seconds
               - step.collective_seconds)
  return (*head, f'{step.estimated_cycles / 1e6:,.1f}',
          f'{step.kernel_cycles / 1e6:,.1f}', f'{step.predicted_step_seconds:.4f}',
          f'{estimated:.4f}', f'{step.unestimated_seconds:.4f}',
          f'{step.collective_seconds:.4f}', f'{plan.mfu:.1%}', f'{plan.days:.2f}',
          f'{plan.core_days:,.0f}')


def _shortage(plan: Plan) -> str:
  gib = 2 ** 30
  text = (f'does not fit: needs {plan.hbm_bytes_per_core / gib:.2f} GiB per core of '
          f'{plan.hbm_limit_bytes / gib:.2f}, '
          f'{(plan.hbm_bytes_per_core - plan.hbm_limit_bytes) / gib:.2f} too many')
  for attempt in plan.tries:
    settings = ', '.join(f'config.{k}={v!r}' for k, v in attempt['settings'].items())
    text += (f'\n  {"fits" if attempt["fits"] else "does not fit"} with {settings}: '
             f'{attempt["hbm_bytes_per_core"] / gib:.2f} GiB')
  return text


def pair(topologies: list[str], batch_sizes: list[int]) -> list[tuple[str, int]]:
  """Pairs topologies and batch sizes in order; one of either goes with all others.

  Raises:
    UserError: the numbers of topologies and batch sizes do not match.
  """
  count = max(len(topologies), len(batch_sizes))
  if not {len(topologies), len(batch_sizes)} <= {1, count}:
    raise UserError(f'--batch_size: given {len(batch_sizes)} times; expected one, or '
                    f'as many as --topology, {len(topologies)}')
  repeat = lambda items: items * (count // len(items))
  return list(zip(repeat(topologies), repeat(batch_sizes), strict=True))


def main() -> None:
  config = flags.FLAGS.config.to_dict()
  cases = pair(flags.FLAGS.topology, flags.FLAGS.batch_size or [config['batch_size']])
  if flags.FLAGS.dump_hlo and len(cases) > 1:
    raise UserError(f'--dump_hlo={flags.FLAGS.dump_hlo}: one file cannot hold '
                    f'{len(cases)} plans; give one --topology and one --batch_size')
  plans = []
  for topology, batch_size in cases:
    changed = config | dict(batch_size=batch_size)
    plan = make_apart(changed, topology, flags.FLAGS.dump_hlo)
    if not plan.fits and flags.FLAGS.suggest:
      plan = try_to_fit(changed, plan)
    plans.append(plan)
  if flags.FLAGS.json:
    objects = [plan.as_json() for plan in plans]
    print(json.dumps(objects if len(objects) > 1 else objects[0], indent=2))
  else:
    print(as_text(plans))


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', None, 'The config, a file in configs/.')
  flags.DEFINE_multi_string('topology', None, f'The slice: {chips.EXAMPLES}.')
  flags.DEFINE_multi_integer('batch_size', None, "In place of the config's.")
  flags.DEFINE_string('dump_hlo', '', 'A file to write the compiled program to.')
  flags.DEFINE_bool('suggest', True,
                    'If a step does not fit, look for settings with which it fits.')
  flags.DEFINE_bool('json', False,
                    'Print JSON: an object, or a list for several plans.')
  flags.mark_flags_as_required(['config', 'topology'])
  cli.run(main)
