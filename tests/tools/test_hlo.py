"""Tests vatt_jax/tools/tpu_plan/hlo.py."""

import pytest

from vatt_jax.tools.tpu_plan import hlo

HEAD = '''HloModule jit_step, is_scheduled=true

FileNames
1 "/lib/flax/linear.py"
2 "/home/vatt_jax/models/layers.py"
3 "/home/vatt_jax/train_step.py"

FunctionNames
1 "Dense.__call__"

FileLocations
1 {file_name_id=3 function_name_id=1 line=200 end_line=200 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=126 end_line=126 column=1 end_column=2}
3 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

'''


def config(cycles):
  return f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'


TRIPS = 'backend_config={"known_trip_count":{"n":"7"}}'

LOOPS = HEAD + f'''%inner_body (p.1: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %p.1 = (s32[], f32[4]) parameter(0)
  ROOT %f.1 = (s32[], f32[4]) fusion(%p.1), kind=kLoop, calls=%fused, {config(10)}
}}

%inner_condition (p.2: (s32[], f32[4])) -> pred[] {{
  %p.2 = (s32[]{{:T(128)}}, f32[4]{{0:T(128)}}) parameter(0)
  %limit.2 = s32[]{{:T(128)}} constant(5)
  %i.2 = s32[]{{:T(128)}} get-tuple-element(%p.2), index=0
  ROOT %lt.2 = pred[]{{:T(512)}} compare(%i.2, %limit.2), direction=LT
}}

%outer_body (p.3: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %p.3 = (s32[], f32[4]) parameter(0)
  %two = s32[] constant(2)
  %start.3 = s32[] copy(%two)
  %x.3 = f32[4] get-tuple-element(%p.3), index=1
  %t.3 = (s32[], f32[4]) tuple(%start.3, %x.3)
  %g.3 = f32[4] fusion(%x.3), kind=kLoop, calls=%fused, {config(100)}
  ROOT %w.3 = (s32[], f32[4]) while(%t.3), condition=%inner_condition, body=%inner_body
}}

%outer_test (p.4: (s32[], f32[4])) -> pred[] {{
  ROOT %p.4 = pred[] parameter(0)
}}

%small_one (p.5: f32[4]) -> f32[4] {{
  ROOT %b.5 = f32[4] fusion(%p.5), kind=kLoop, calls=%fused, {config(3)}
}}

%dear_one (p.6: f32[4]) -> f32[4] {{
  ROOT %b.6 = f32[4] fusion(%p.6), kind=kLoop, calls=%fused, {config(4000)}
}}

%async (p.7: f32[4]) -> f32[4] {{
  ROOT %a.7 = f32[4] fusion(%p.7), kind=kLoop, calls=%fused, {config(20_000)}
}}

%fused (p.8: f32[4]) -> f32[4] {{
  ROOT %n.8 = f32[4] negate(%p.8), {config(999_999)}
}}

ENTRY %main (x: f32[4], which: s32[]) -> f32[4] {{
  %x = f32[4] parameter(0)
  %which = s32[] parameter(1)
  %zero = s32[] constant(0)
  %t = (s32[], f32[4]) tuple(%zero, %x)
  %loop = (s32[], f32[4]) while(%t), condition=%outer_test, body=%outer_body, {TRIPS}
  %c = f32[4] conditional(%which, %x), branch_computations={{%small_one, %dear_one}}
  %s = ((f32[4]), f32[4], s32[]) async-start(%c), calls=%async
  ROOT %d = f32[4] async-done(%s), calls=%async
}}
'''


def cycles(text):
  return sum(run.times * (run.instruction.cycles or 0)
             for run in hlo.executed(hlo.parse(text)))


def test_instructions_in_loops_count_once_per_iteration():
  """Runs the inner loop from 2 to 5 in each of 7 iterations of the outer.

  The expensive branch and the asynchronous call count once. The instructions within a
  fusion are part of the fusion's own estimate.
  """
  assert cycles(LOOPS) == 7 * (100 + 3 * 10) + 4000 + 20_000


def test_loop_of_unknown_length_is_an_error():
  endless = LOOPS.replace('direction=LT', 'direction=EQ')
  with pytest.raises(ValueError, match=r'w\.3: a loop of unknown length'):
    hlo.executed(hlo.parse(endless))
  with pytest.raises(ValueError, match='no program'):
    hlo.parse('nothing of the kind')


def test_shape_bytes_sums_all_arrays():
  assert hlo.shape_bytes('(bf16[8,128]{1,0:T(8,128)(2,1)}, u32[], /*index=2*/pred[3])'
                         ) == 8 * 128 * 2 + 4 + 3
  assert hlo.shape_bytes('f8e4m3fn[10]') == 10
  assert hlo.shape_bytes('s4[3]') == 2
  assert hlo.shape_bytes('token[]') == 0


def line(text, name='x'):
  program = hlo.parse(
      HEAD + f'ENTRY %main (x: f32[4]) -> f32[4] {{\n  {text}\n}}\n')
  return program.computations['main'][name], program


def test_instruction_with_nested_brackets_is_parsed_whole():
  instruction, _ = line('%x = (bf16[4,8]{1,0:T(8,128)(2,1)}, /*index=1*/f32[]) '
                        'all-reduce(%fusion.5, %a-b.1), channel_id=1, to_apply=%add, '
                        'metadata={op_name="jit(f)/a/reduce_sum"}')
  assert instruction.opcode == 'all-reduce'
  assert instruction.operands == ('fusion.5', 'a-b.1')
  assert instruction.bytes == 4 * 8 * 2 + 4
  assert instruction.called('to_apply') == 'add'
  assert instruction.op_name == 'jit(f)/a/reduce_sum'
  assert instruction.cycles is None and instruction.kernel is None


def test_source_is_the_innermost_line_in_the_folder():
  instruction, program = line('%x = f32[4] negate(%y), metadata={stack_frame_id=3}')
  assert program.source(instruction, '/home/vatt_jax') == 'models/layers.py:126'
  assert program.source(instruction, '/elsewhere') == 'linear.py:7'
  instruction, program = line('%x = f32[4] negate(%y)')
  assert program.source(instruction, '/home/vatt_jax') == ''


def test_stated_cost_of_a_pallas_kernel_is_parsed():
  stated = ('%x = bf16[4] custom-call(%q), custom_call_target="tpu_custom_call", '
            'backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":'
            '{"flops":"2155872256","transcendentals":"4","bytes_accessed":"8388608"}}}')
  assert line(stated)[0].kernel == (2155872256, 8388608)
  unstated = '%x = bf16[4] custom-call(%q), custom_call_target="tpu_custom_call"'
  assert line(unstated)[0].kernel == (0, 0)
  named, _ = line('%x = (f32[256,64]{1,0:T(8,128)}, bf16[]) custom-call(%q), '
                  'metadata={op_name="jit(f)/transpose(jvp(dot))/pallas_call"}')
  assert named.kernel_name == 'dot'
  assert named.shapes == ((256, 64), ())
  several_lines = ('%x = bf16[4] custom-call(%q), '
                   'frontend_attributes={kernel_metadata={\n"block":"{\\"q\\": 1}"\n}}'
                   ', metadata={op_name="jit(f)/dot"}')
  assert line(several_lines)[0].op_name == 'jit(f)/dot'
  other = '%x = bf16[4] custom-call(), custom_call_target="AllocateBuffer"'
  assert line(other)[0].kernel is None


@pytest.mark.parametrize(('groups', 'size'), [
    ('replica_groups={{0,1,2},{3,4,5}}', 3),
    ('replica_groups=[8,32]<=[256]', 32),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=8] {'axis_1'}", 8),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=8] {'axis_0','axis_1'}", 32),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}",
     4),
    ("replica_groups=mesh['axis_0'=16] {'axis_0':(1)4}", 4),
    ('replica_groups={}', 256),
    ('source_target_pairs={{0,1},{1,0}}', 256)])
def test_group_size_of_a_collective(groups, size):
  instruction, _ = line(f'%x = f32[4] all-reduce(%y), channel_id=1, {groups}, '
                        'use_global_device_ids=true, to_apply=%add')
  assert hlo.group_size(instruction, 256) == size


def test_collectives_in_fusions_count_once_where_they_start():
  text = HEAD + '''%all-reduce-scatter (p.1: f32[64]) -> f32[16] {
  %p.1 = f32[64] parameter(0)
  %r.1 = f32[64] all-reduce(%p.1), replica_groups=[1,4]<=[4], to_apply=%add
  %i.1 = u32[] partition-id()
  ROOT %d.1 = f32[16] dynamic-slice(%r.1, %i.1), dynamic_slice_sizes={16}
}

%begins (p.2: f32[8]) -> f32[64] {
  %p.2 = f32[8] parameter(0)
  %g.2 = f32[64] all-gather(%p.2), frontend_attributes={chain_id="0"}
  ROOT %a.2 = f32[64] custom-call(%g.2), custom_call_target="AsyncCollectiveStart"
}

%goes_on (p.3: f32[8]) -> f32[64] {
  %p.3 = f32[8] parameter(0)
  %g.3 = f32[64] all-gather(%p.3), frontend_attributes={chain_id="0"}
}

ENTRY %main (x: f32[64]) -> f32[16] {
  %x = f32[64] parameter(0)
  %y = f32[8] parameter(1)
  %b = f32[64] fusion(%y), kind=kCustom, calls=%begins
  %c = f32[64] fusion(%y), kind=kCustom, calls=%goes_on
  %f = f32[16] fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  %s = (f32[16], f32[64]) all-gather-start(%f), replica_groups=[1,4]<=[4]
  ROOT %g = f32[64] all-gather-done(%s)
}
'''
  collectives = [(hlo.collective_kind(run.instruction), run.operand_bytes)
                 for run in hlo.executed(hlo.parse(text))
                 if hlo.collective_kind(run.instruction)]
  assert collectives == [
      ('all-gather', 32), ('reduce-scatter', 256), ('all-gather', 64)]


def test_readable_names_merge_blocks_and_state_the_pass():
  assert hlo.readable(
      'jit(train_step)/jvp(Vatt)/Vatt.encode/backbones_video/block_11/mlp_1/dot_general'
  ) == 'backbones_video/block/mlp_1/dot_general'
  assert hlo.readable(
      'jit(train_step)/transpose(jvp(Vatt))/video/block_3/out/add;jit(x)/y'
  ) == 'video/block/out/add, backward'
  assert hlo.readable(
      'jit(f)/transpose(jvp())/while/body/checkpoint/rematted_computation/blocks/dot'
  ) == 'blocks/dot, again'
