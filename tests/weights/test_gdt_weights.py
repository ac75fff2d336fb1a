"""Tests the import of released checkpoints of GDT and STiCA."""

import collections
import subprocess
import sys
import zlib

from flax import traverse_util
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors
import torch_files

from vatt_jax import models
from vatt_jax.errors import UserError
from vatt_jax.weights import gdt
from vatt_jax.weights import load


@pytest.fixture(scope='module')
def tables(shared):
  """Returns the names and shapes of the arrays of GDT and of STiCA."""
  def read(name):
    lines = (shared / 'golden_gdt_stica' / f'{name}_full_names.txt').read_text()
    rows = [line.split('\t') for line in lines.splitlines()]
    return {name: tuple(int(n) for n in shape.strip('()').split(',') if n)
            for name, shape in rows}
  return {name: read(name) for name in ('gdt', 'stica')}


def formula(name, shape, salt):
  """Returns a parameter of the reference, made of its name."""
  n, gold = int(np.prod(shape)), 0x9E3779B97F4A7C15
  start = (zlib.crc32(name.encode()) + salt * 2 ** 32) * gold % 2 ** 64
  with np.errstate(over='ignore'):
    z = np.uint64(start) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(gold)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
  u = (2 * (z >> np.uint64(40)).astype(np.float64) / 2 ** 24 - 1).reshape(shape)
  fan_in = np.prod(shape[1:])
  scale, offset = next((scale, offset) for fits, scale, offset in (
      (name.endswith('running_mean'), 0.2, 0), (name.endswith('running_var'), 0.5, 1),
      (name.endswith('bias'), 0.1, 0), (len(shape) == 1, 0.2, 1),
      (len(shape) == 2, np.sqrt(3 / fan_in), 0), (True, np.sqrt(6 / fan_in), 0)
      ) if fits)
  return (offset + scale * u).astype(np.float32)


def test_formula_gives_the_values_of_the_reference():
  np.testing.assert_allclose(
      formula('video_network.base.stem.0.weight', (45, 3, 1, 7, 7), 11).ravel()[:3],
      [-0.08298738, -0.07154644, 0.18595994], atol=1e-7)
  np.testing.assert_allclose(
      formula('mlp_a.block_forward.4.running_var', (512,), 11)[:2],
      [1.1507871, 0.6161512], atol=1e-6)


def make_variables(settings, arrays):
  """Returns a model, and its variables with the values of arrays."""
  model = models.from_config(settings)
  example = dict(video=np.zeros((1, 2, 32, 32, 3), np.float32),
                 audio=np.zeros((1, 24_000), np.float32))
  shapes = jax.eval_shape(model.init, jax.random.key(0), example)
  return model, gdt.convert(arrays, shapes, 'golden')


def zeros(shapes):
  return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def test_names_map_one_to_one_on_those_of_the_release(tables):
  shapes = tables['gdt']
  settings = gdt.find_settings(shapes, '')
  assert (settings['video']['name'], settings['audio']['name']) == (
      'r2plus1d_18', 'resnet9')
  assert settings['video']['torchvision'] and settings['head']['dim'] == 256
  _, variables = make_variables(settings, zeros(shapes))
  names = gdt.names(traverse_util.flatten_dict(variables)).values()
  assert len(set(names)) == len(names)
  assert {name.split('.')[-2] for name in shapes.keys() - set(names)
          if 'num_batches' not in name} == {'fc'}
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  params = variables['params']
  assert count(params['backbones_video']) == 31_300_125
  assert count(params['backbones_audio']) == 4_899_520
  assert count(params['head']) == 2 * 394_496


@pytest.mark.slow
def test_embeddings_of_the_whole_model_match_the_release(tables, shared, monkeypatch):
  golden = np.load(shared / 'golden_gdt_stica' / 'gdt_full_io.npz')
  arrays = {name: formula(name, shape, 11) for name, shape in tables['gdt'].items()
            if 'num_batches' not in name}
  settings = gdt.find_settings(tables['gdt'], '')
  settings['video'] |= dict(mean=0.5, std=0.5)    # the input is normalized
  model, variables = make_variables(settings, arrays)
  monkeypatch.setattr('vatt_jax.inputs.spectrograms.Spectrogram.__call__',
                      lambda self, x: x)    # the input is a spectrogram
  batch = dict(video=golden['in_video'].transpose(0, 2, 3, 4, 1),
               audio=golden['in_audio'][:, 0].transpose(0, 2, 1))
  with jax.default_matmul_precision('highest'):
    outputs = jax.jit(model.apply)(variables, batch)
  for modality in ('video', 'audio'):
    np.testing.assert_allclose(outputs['pooled'][modality],
                               golden[f'out_{modality}_pooled'], rtol=0, atol=1e-4)
    np.testing.assert_allclose(outputs['embed']['video_audio'][modality],
                               golden[f'out_{modality}'], rtol=0, atol=1e-6)


@pytest.fixture(scope='module')
def arrays():
  """Returns arrays of a narrow model under the release's names."""
  settings = dict(
      name='mmv', video=dict(name='r2plus1d_18', width=1 / 32, torchvision=True),
      audio=dict(name='resnet9', width=1 / 32, spectrogram=dict(variant='release')),
      head=dict(name='projection', hidden_dim=6, dim=4))
  example = dict(video=np.zeros((1, 2, 32, 32, 3), np.float32),
                 audio=np.zeros((1, 24_000), np.float32))
  flat = traverse_util.flatten_dict(jax.eval_shape(
      models.from_config(settings).init, jax.random.key(0), example))
  found = {}
  for path, name in gdt.names(flat).items():
    shape = flat[path].shape
    shape = ((*shape[:-3:-1], *shape[:-2]) if len(shape) == 5 else shape[::-1])
    found[name] = formula(name, shape, 1)
  norms = [name for name in found if name.endswith('running_mean')]
  counters = {name.replace('running_mean', 'num_batches_tracked'): np.int64(3)
              for name in norms}
  return found | {name: np.array(x) for name, x in counters.items()}


def test_every_form_of_the_released_file_holds_the_same(arrays, tmp_path):
  state = collections.OrderedDict((f'module.{name}', x) for name, x in arrays.items())
  torch_files.write_zip(tmp_path / 'gdt.pth', dict(model=state, epoch=100))
  torch_files.write_stream(tmp_path / 'gdt.pt', state)
  safetensors.save_file(arrays, tmp_path / 'gdt.safetensors')
  np.savez(tmp_path / 'gdt.npz', **arrays)
  model, variables = load.load(tmp_path / 'gdt.pth')
  assert type(model.backbones['audio']).__name__ == 'AudioResNet9'
  for suffix in ('.pt', '.safetensors', '.npz'):
    same, again = load.load(tmp_path / f'gdt{suffix}')
    assert same == model
    jax.tree.map(np.testing.assert_array_equal, variables, again)


@pytest.mark.slow
def test_embeddings_of_stica_match_the_release(tables, shared, monkeypatch):
  golden = np.load(shared / 'golden_gdt_stica' / 'stica_full_io.npz')
  arrays = {name: formula(name, shape, 21) for name, shape in tables['stica'].items()
            if 'num_batches' not in name}
  settings = gdt.find_settings(tables['stica'], '')
  settings['video'] |= dict(mean=0.5, std=0.5)    # the input is normalized
  model, variables = make_variables(settings, arrays)
  pooling = variables['params']['poolings_video']
  assert sum(x.size for x in jax.tree.leaves(pooling)) == 5_254_144
  monkeypatch.setattr('vatt_jax.inputs.spectrograms.Spectrogram.__call__',
                      lambda self, x: x)    # the input is a spectrogram
  video = golden['in_video_low'].repeat(3, 1).repeat(4, 2).repeat(4, 3)
  batch = dict(video=((video / 255 - 0.45) / 0.225).astype(np.float32),
               audio=golden['in_audio'][:, 0].transpose(0, 2, 1))
  with jax.default_matmul_precision('highest'):
    outputs = jax.jit(model.apply)(variables, batch)
  for modality in ('video', 'audio'):
    np.testing.assert_allclose(outputs['embed']['video_audio'][modality],
                               golden[f'out_{modality}'], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_command_writes_what_the_released_file_holds(arrays, tmp_path):
  np.savez(tmp_path / 'gdt.npz', **arrays)
  command = subprocess.run(
      [sys.executable, '-m', 'vatt_jax', 'import_gdt', str(tmp_path / 'gdt.npz'),
       f'--out={tmp_path / "out"}'], check=True, capture_output=True, text=True)
  assert 'CC BY-NC 4.0' in command.stderr
  model, variables = load.load(tmp_path / 'gdt.npz')
  converted, again = load.load(tmp_path / 'out')
  assert converted == model
  jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_kernels_get_their_sides_and_channels_in_our_order(arrays):
  settings = gdt.find_settings({k: x.shape for k, x in arrays.items()}, '')
  params = make_variables(settings, arrays)[1]['params']
  video = arrays['video_network.base.stem.3.weight']        # out, in, t, h, w
  np.testing.assert_array_equal(params['backbones_video']['stem']['time']['kernel'][2],
                                video[:, :, 2].transpose(2, 3, 1, 0))
  audio = arrays['audio_network.base.conv1.weight']         # out, in, frequency, time
  np.testing.assert_array_equal(params['backbones_audio']['stem']['kernel'][5, 1, 0],
                                audio[:, 0, 1, 5])
  np.testing.assert_array_equal(params['head']['audio']['out']['kernel'],
                                arrays['mlp_a.block_forward.8.weight'].T)


BIAS = 'mlp_v.block_forward.8.bias'


@pytest.mark.parametrize('change, message', [
    (lambda x: x.pop(BIAS), f'Missing: {BIAS}. Unknown: nothing'),
    (lambda x: x.update({f'{BIAS}2': x[BIAS]}), f'Unknown: {BIAS}2'),
    (lambda x: x.update({BIAS: x[BIAS][:-1]}), f'shape or type: {BIAS}'),
    (lambda x: x.update({BIAS: x[BIAS].astype(np.float64)}), f'or type: {BIAS}'),
    (lambda x: [x.pop(k) for k in list(x) if 'audio_network' in k],
     'no checkpoint of GDT or STiCA, because it lacks')])
def test_other_arrays_are_listed_in_one_line(change, message, arrays, tmp_path):
  changed = dict(arrays)
  change(changed)
  np.savez(tmp_path / 'changed.npz', **changed)
  with pytest.raises(UserError, match=rf'changed\.npz: .*{message}') as error:
    gdt.read(tmp_path / 'changed.npz')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('suffix', gdt.SUFFIXES)
def test_file_of_another_kind_is_named(suffix, tmp_path):
  (tmp_path / f'other{suffix}').write_bytes(b'no arrays')
  with pytest.raises(UserError, match=rf'other\{suffix}: is damaged') as error:
    load.load(tmp_path / f'other{suffix}')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('suffix', gdt.SUFFIXES)
def test_missing_file_is_named(tmp_path, suffix):
  with pytest.raises(UserError, match=rf'missing\{suffix}: cannot be read \(No such'):
    gdt.read(tmp_path / f'missing{suffix}')
