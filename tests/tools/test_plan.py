"""Tests vatt_jax/tools/tpu_plan/plan.py."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from configs import pretrain_mbs
from vatt_jax.errors import UserError
from vatt_jax.tools.tpu_plan import chips
from vatt_jax.tools.tpu_plan import hlo
from vatt_jax.tools.tpu_plan import plan

ROOT = pathlib.Path(__file__).parents[2]
V3 = chips.Slice(chips.CHIPS['v3'], (2, 2), 8)
LINE = str(ROOT / 'vatt_jax' / 'models' / 'layers.py')

PROGRAM = f'''HloModule jit_train_step

FileNames
1 "{LINE}"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=129 end_line=129 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %x = f32[256,256] parameter(0)
  %a = f32[4] fusion(%x), kind=kLoop, calls=%f, metadata={{op_name="jit(f)/tower/block_0/out/dot" stack_frame_id=1}}, backend_config={{"estimated_cycles":"940000"}}
  %b = f32[4] fusion(%x), kind=kLoop, calls=%f, metadata={{op_name="jit(f)/tower/block_1/out/dot" stack_frame_id=1}}, backend_config={{"estimated_cycles":"940000"}}
  %k = f32[4] custom-call(%a), custom_call_target="tpu_custom_call", backend_config={{"cost_estimate":{{"flops":"61500000000","bytes_accessed":"8"}}}}
  %m = f32[256,256] reverse(%x), dimensions={{0}}
  ROOT %r = f32[256,256] all-reduce(%m), replica_groups={{{{0,1,2,3,4,5,6,7}}}}, to_apply=%add
}}

%f (y: f32[256,256]) -> f32[4] {{
  %y = f32[256,256] parameter(0)
}}
'''    # noqa: E501 (instructions are lines)


def test_step_time_is_the_sum_of_its_parts():
  step = plan.predict(hlo.parse(PROGRAM), V3)
  assert step.kernel_cycles == 940_000    # a millisecond of a core
  assert step.estimated_cycles == 2 * 940_000 + 940_000
  moved = 2 * 2 ** 18 / 450e9
  collective = 2 * (2 ** 18 * 7 / 8 / (2 * 82e9) + 2e-6)
  assert step.unestimated_seconds == pytest.approx(moved)
  assert step.collective_seconds == pytest.approx(collective)
  assert step.predicted_step_seconds == pytest.approx(3e-3 + moved + collective)


def test_costliest_lines_merge_all_blocks():
  first, rest = plan.predict(hlo.parse(PROGRAM), V3).costliest
  assert (first.source, first.operation) == ('models/layers.py:129',
                                             'tower/block/out/dot')
  assert first.seconds == pytest.approx(2e-3)
  assert (rest.source, rest.operation) == ('the compiler', 'custom-call')
  assert first.share + rest.share == pytest.approx(1)


def test_topologies_and_batch_sizes_are_paired():
  assert plan.pair(['a'], [1]) == [('a', 1)]
  assert plan.pair(['a', 'b'], [1]) == [('a', 1), ('b', 1)]
  assert plan.pair(['a'], [1, 2]) == [('a', 1), ('a', 2)]
  assert plan.pair(['a', 'b'], [1, 2]) == [('a', 1), ('b', 2)]
  with pytest.raises(UserError, match=r'--batch_size: given 2 times; .* --topology, 3'):
    plan.pair(['a', 'b', 'c'], [1, 2])


SHORT = plan.Plan('v3:2x2', 2048, 8, 1000, fits=False, hbm_bytes_per_core=3 * 2 ** 34,
                  hbm_limit_bytes=2 ** 34, model_flops_per_step=10 ** 12)


def fitting(needed, refused=()):
  """Returns a maker of plans; bytes needed depend on the number of changed settings."""
  def make(config, topology):
    if refused and config.get(refused) is not None:
      raise UserError(f'config.{refused}: unknown key')
    changed = len([k for k in ('num_microbatches', 'mesh') if k in config])
    changed += 'remat' in config['model']
    size = needed[changed]
    return dataclasses.replace(SHORT, hbm_bytes_per_core=size,
                               fits=size < SHORT.hbm_limit_bytes)
  return make


def test_remedies_are_added_until_a_step_fits():
  config = dict(model=dict(), optim=dict(), batch_size=2048)
  g = 2 ** 30
  result = plan.try_to_fit(config, SHORT, fitting([48 * g, 20 * g, 15 * g]))
  assert [t['settings'] for t in result.tries] == [
      {'model.remat': 'dots'}, {'model.remat': 'dots', 'num_microbatches': 2}]
  assert [t['fits'] for t in result.tries] == [False, True]
  result = plan.try_to_fit(config, SHORT,
                           fitting([48 * g, 20 * g, 15 * g], 'num_microbatches'))
  assert result.tries[-1]['settings'] == {'model.remat': 'dots', 'mesh.fsdp': 8}
  nothing = plan.try_to_fit(config, SHORT, fitting([48 * g] * 4))
  assert nothing.tries == []
  assert 'model.remat' not in str(config)


def test_settings_of_the_config_are_no_remedies():
  config = pretrain_mbs.get_config().to_dict()
  keys = [key for key, _ in plan.remedies(config)]
  assert list(dict.fromkeys(keys)) == [
      'model.remat', 'num_microbatches', 'mesh.fsdp', 'optim.state_dtype', 'batch_size']
  assert dict(plan.remedies(config))['mesh.fsdp'] == 64    # 'auto' is at most 8
  config['model']['remat'] = 'blocks'
  assert 'model.remat' not in dict(plan.remedies(config))
  assert plan.set_key(dict(a=dict(b=1), c=2), 'a.d', 3) == dict(a=dict(b=1, d=3), c=2)


def test_plans_are_printed_side_by_side():
  good = dataclasses.replace(
      SHORT, fits=True, hbm_bytes_per_core=2 ** 33, memory_bytes=dict(
          arguments=2 ** 32, outputs=0, temporaries=2 ** 31, program=2 ** 31),
      prediction=plan.predict(hlo.parse(PROGRAM), V3), mfu=0.5, days=3.0,
      core_days=24.0)
  tried = dataclasses.replace(
      SHORT, tries=[dict(settings={'num_microbatches': 2}, hbm_bytes_per_core=2 ** 33,
                         fits=True)])
  text = plan.as_text([good, tried])
  memory = next(line for line in text.splitlines() if line.startswith('memory'))
  assert memory.split()[-2:] == ['8.00', '48.00']
  assert 'needs 48.00 GiB per core of 16.00, 32.00 too many' in text
  assert 'fits with config.num_microbatches=2: 8.00 GiB' in text
  assert 'models/layers.py:129' in text and '50.0%' in text
  names = good.as_json()
  assert names.keys() == tried.as_json().keys() >= {
      'predicted_step_seconds', 'mfu', 'model_flops_per_step', 'estimated_cycles',
      'hbm_bytes_per_core', 'hbm_limit_bytes', 'costliest', 'days', 'core_days'}
  assert tried.as_json()['predicted_step_seconds'] is None
  json.dumps(names)


def test_missing_libtpu_error_names_the_package(monkeypatch):
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'vatt_jax\[plan\]'"):
    plan.make_apart({}, 'v3:2x2')


def _crash(config, topology, dump_hlo):
  os.write(2, b'first\nlast word of the compiler\n')
  os.abort()


@pytest.mark.slow
def test_compiler_crash_is_reported_in_one_line(monkeypatch):
  monkeypatch.setenv('TPU_LIBRARY_PATH', 'assumed to exist')
  monkeypatch.setattr(plan, 'make', _crash)
  with pytest.raises(UserError, match=r'v3:2x2: the compiler crashed: last word of'):
    plan.make_apart(dict(batch_size=8), 'v3:2x2')


HAS_LIBTPU = 'TPU_LIBRARY_PATH' in os.environ or importlib.util.find_spec('libtpu')
needs_libtpu = pytest.mark.skipif(
    not HAS_LIBTPU, reason="libtpu is not installed: pip install 'vatt_jax[plan]'")
SMALL = ('--config=configs/pretrain_mbs.py:toy', '--config.model.video.depth=1',
         '--config.model.audio.depth=1', '--config.model.text.depth=1')


def run(*args):
  done = subprocess.run([sys.executable, '-m', 'vatt_jax', 'plan', *SMALL, *args],
                        cwd=ROOT, capture_output=True, text=True)
  return done.returncode, done.stdout, done.stderr


@needs_libtpu
def test_command_agrees_with_a_count_of_the_dumped_program(tmp_path):
  kept = tmp_path / 'step.hlo'
  code, out, err = run('--topology=v3:2x2', '--batch_size=64', '--json',
                       f'--dump_hlo={kept}')
  assert code == 0, err
  assert len(err.splitlines()) == 1 and 'compiling for v3:2x2' in err
  result = json.loads(out)
  text = kept.read_text()
  assert ' while(' not in text    # a loop would multiply its cycles
  counted = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
  assert result['estimated_cycles'] == counted > 100_000
  assert result['cores'] == 8 and result['fits']
  assert result['hbm_bytes_per_core'] == sum(result['memory_bytes'].values())
  assert result['predicted_step_seconds'] > counted / 940e6
  assert result['mfu'] == pytest.approx(
      result['model_flops_per_step'] / result['predicted_step_seconds']
      / (8 * 61.5e12))
  assert any(line['source'].startswith('models/') for line in result['costliest'])


@needs_libtpu
def test_kernel_time_replaces_estimates(tmp_path):
  """Uses 801 audio tokens, for which attention on a TPU v5e is a kernel."""
  kept = tmp_path / 'step.hlo'
  code, out, err = run('--topology=v5e:2x2', '--batch_size=64', '--json',
                       '--config.model.audio.patch=(16,)', f'--dump_hlo={kept}',
                       '--config.model.audio.drop_token_rate=0.0',
                       '--config.model.audio.width=128')
  assert code == 0, err
  result, text = json.loads(out), kept.read_text()
  assert text.count('custom_call_target="tpu_custom_call"') == 2    # both passes
  counted = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
  assert result['estimated_cycles'] == counted + result['kernel_cycles']
  # 16 clips of 2 heads a core, 801 tokens: queries are two blocks of 416, keys fill
  # tiles up to 896. Two of the seven products sum over queries, padded to 512.
  products = 16 * 2 * 2 * 2 * 128 * (5 * 416 * 896 + 2 * 801 * 512)
  assert result['kernel_cycles'] == pytest.approx(products / 197e12 * 1500e6, rel=1e-3)
  assert any('attend' in line['operation'] for line in result['costliest'])


@needs_libtpu
@pytest.mark.slow
def test_command_suggests_settings_with_which_a_step_fits():
  """Uses a word table that, with Adam's moments, fits only if it is sharded."""
  code, out, err = run('--topology=v3:2x2', '--batch_size=64', '--json',
                       '--config.model.text.vocabulary_size=33554432')
  assert code == 0, err
  result = json.loads(out)
  assert not result['fits'] and result['predicted_step_seconds'] is None
  assert result['hbm_bytes_per_core'] > result['hbm_limit_bytes'] > 15 * 2 ** 30
  last = result['tries'][-1]
  assert last['fits'] and last['settings']['mesh.fsdp'] == 8
  assert last['hbm_bytes_per_core'] < result['hbm_limit_bytes']


@pytest.mark.parametrize(('flag', 'message'), [
    pytest.param('--topology=v3-256',
                 '--topology=v3-256: expected v3, v4, v5e, v5p, v6e, a colon',
                 marks=pytest.mark.slow),
    pytest.param('--topology=v3:3x5', '--topology=v3:3x5: INVALID_ARGUMENT',
                 marks=needs_libtpu)])
def test_unknown_slice_is_reported_in_one_line(flag, message):
  code, out, err = run(flag)
  assert code == 2 and not out
  assert err.splitlines()[-1].startswith(f'vatt_jax: {message}'), err
