"""Tests vatt_jax/tools/tpu_plan/chips.py."""

import pytest

from vatt_jax.errors import UserError
from vatt_jax.tools.tpu_plan import chips
from vatt_jax.tools.tpu_plan import hlo

V3 = chips.Slice(chips.CHIPS['v3'], (8, 16), 256)    # 82 GB/s a link, no rings
V5E = chips.Slice(chips.CHIPS['v5e'], (16, 16), 256)    # 50 GB/s a link, two rings


def test_collective_time_is_bytes_over_link_bandwidth():
  share, hops = 255 / 256, 22e-6
  size = 82_000_000_000
  assert V3.collective_seconds('all-reduce', size, 256) == pytest.approx(
      2 * (share / 2 + hops))
  for kind in ('all-gather', 'reduce-scatter', 'all-to-all'):
    assert V3.collective_seconds(kind, size, 256) == pytest.approx(share / 2 + hops)
    assert V3.collective_seconds(kind, size, 8) == pytest.approx(7 / 8 + 7e-6)
  assert V3.collective_seconds('collective-permute', size, 256) == pytest.approx(
      1 + 1e-6)
  assert V5E.collective_seconds('all-gather', size, 256) == pytest.approx(
      share * 82 / 50 / 4 + 30e-6)


def cost(text, times=1, kernels=(), **operands):
  """Returns kind and seconds of the instruction x; operands: name -> shape."""
  parameters = ''.join(f'  %{name} = {shape} parameter(0)\n'
                       for name, shape in operands.items())
  program = hlo.parse(f'ENTRY %main () -> f32[] {{\n{parameters}  {text}\n}}\n')
  computation = program.computations['main']
  run = hlo.Run(computation['x'], times, computation)
  costs = chips.costs([run], V3, dict(kernels))
  return (costs[0].kind, costs[0].seconds) if costs else None


def test_estimated_instruction_takes_its_cycles():
  fusion = ('%x = f32[4] fusion(%y), kind=kLoop, calls=%f, backend_config={'
            '"window_config":{"estimated_cycles":"470"}}')
  assert cost(fusion, times=2_000_000, y='f32[4]') == ('estimated', pytest.approx(1))


def test_kernel_takes_the_longer_of_its_operations_and_its_bytes():
  text = ('%x = f32[1] custom-call(%y), custom_call_target="tpu_custom_call", '
          'backend_config={"custom_call_config":{"cost_estimate":{"flops":"%s",'
          '"bytes_accessed":"900000000"}}}')
  assert cost(text.replace('%s', '1'), y='f32[1]') == ('kernel', pytest.approx(2e-3))
  assert cost(text.replace('%s', '61500000000000'), y='f32[1]') == (
      'kernel', pytest.approx(1))
  unstated = ('%x = f32[1] custom-call(%y), custom_call_target="tpu_custom_call", '
              'metadata={op_name="jit(f)/dot/pallas_call"}')
  assert cost(unstated, y='f32[450000000]') == (
      'kernel', pytest.approx(4e-3, rel=1e-6))
  counted = {('dot', ((1,),)): 61_500_000_000_000}
  assert cost(unstated, kernels=counted, y='f32[450000000]') == (
      'kernel', pytest.approx(1))
  assert cost(unstated, kernels={('dot', ((2,),)): 10 ** 18}, y='f32[450000000]') == (
      'kernel', pytest.approx(4e-3, rel=1e-6))


def test_instruction_without_estimate_takes_its_bytes():
  gib = 'f32[268435456]'
  second = 450e9 / 2 ** 30
  assert cost(f'%x = {gib} reverse(%y), dimensions={{0}}', y=gib) == (
      'moved', pytest.approx(2 / second))
  assert cost('%x = f32[45] dynamic-slice(%y, %i), dynamic_slice_sizes={45}',
              y=gib, i='s32[]') == ('moved', pytest.approx(2 * 180 / 450e9))
  assert cost(f'%x = {gib} dynamic-update-slice(%y, %z, %i)', y=gib, z='f32[45]',
              i='s32[]') == ('moved', pytest.approx(2 * 180 / 450e9))
  for free in (f'%x = {gib} parameter(0)', f'%x = {gib} bitcast(%y)',
               f'%x = ({gib}, {gib}, u32[]) copy-start(%y)',
               f'%x = {gib} copy-done(%y)'):
    assert cost(free, y=gib) is None


def test_slice_names_are_parsed_or_refused():
  assert chips.split_name('v3:8x16') == (chips.CHIPS['v3'], (8, 16))
  assert chips.split_name('v4:4x8x8')[1] == (4, 8, 8)
  for wrong in ('v3', 'v3-256', 'v9:2x2', 'v3:8', 'v3:8x16x', 'v3:2x2x2x2'):
    with pytest.raises(UserError, match=r'--topology=.*expected v3.*as v3:8x16'):
      chips.split_name(wrong)


@pytest.mark.parametrize('message', [
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
    'temporaries (17.50G) exceeds available HBM (15.48G).',
    'XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used '
    '17.50G of 15.48G hbm. Exceeded hbm capacity by 2.02G.\n\nTotal hbm usage >= 18G:'])
def test_out_of_memory_error_is_parsed(message):
  needed, limit = chips.read_out_of_memory(message)
  assert needed == pytest.approx(17.5 * 2 ** 30)
  assert limit == pytest.approx(15.48 * 2 ** 30)
  assert chips.read_out_of_memory('UNIMPLEMENTED: something else') is None
