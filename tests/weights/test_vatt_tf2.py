"""Tests vatt_jax/weights/vatt_tf2.py and agreement with the released models."""

import json
import pathlib
import subprocess
import sys

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from vatt_jax import checkpoint
from vatt_jax.errors import UserError
from vatt_jax.models import vatt as vatt_lib
from vatt_jax.models.heads import unit_norm
from vatt_jax.models.vatt import Vatt
from vatt_jax.weights import load as weights
from vatt_jax.weights import vatt_tf2

FULL_SIZE = ('tx_fac_bbs', 'tx_fac_mbs', 'tx_fac_lbs', 'ut_fac_medium',
             'ft_vit_base_k400', 'ft_vit_medium_k400', 'ft_vit_large_k400',
             'ft_vit_medium_k400_agnostic', 'ft_wat_base_audioset',
             'ft_wat_medium_audioset_agnostic')

TINY = dict(depth=2, width=16, num_heads=2, mlp_dim=24)
SPECIFIC = dict(
    variant='release', video=dict(patch=(2, 4, 4), **TINY),
    audio=dict(patch=(8,), **TINY),
    text=dict(vocabulary_size=20, table_width=6, **TINY),
    head=dict(video_audio_dim=12, video_text_dim=10))
UNIFIED = dict(
    variant='release', video=dict(patch=(2, 4, 4)), audio=dict(patch=(8,)),
    text=dict(vocabulary_size=20, table_width=6, max_tokens=5),
    shared=dict(projected_width=14, **TINY), head=SPECIFIC['head'])
TUNED = dict(variant='release', audio=dict(patch=(8,)),
             shared=dict(projected_width=14, **TINY),
             head=dict(name='classifier', num_classes=7))
BATCH = dict(video=np.zeros((2, 4, 8, 12, 3), np.float32),
             audio=np.zeros((2, 40), np.float32), text=np.ones((2, 3, 5), np.int32))


def assert_close(value, golden, name):
  """Compares with the tolerance of the golden set."""
  tolerance = 2e-5 + 3e-6 * np.abs(golden).max()
  np.testing.assert_allclose(np.asarray(value).reshape(golden.shape), golden, rtol=0,
                             atol=tolerance, err_msg=name)


def random_variables(settings, seed=0):
  """Returns random values for all variables."""
  shapes = jax.eval_shape(Vatt.from_config(**settings).init, jax.random.key(0), BATCH)
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: rng.uniform(0.1, 1, s.shape).astype(np.float32), shapes)


def flat(variables):
  return traverse_util.flatten_dict(variables, sep='/')


def assert_same(actual, expected):
  actual, expected = flat(actual), flat(expected)
  assert actual.keys() == expected.keys()
  for key, value in actual.items():
    np.testing.assert_array_equal(value, expected[key], err_msg=key)


@pytest.fixture(scope='module', params=['tx_fac', 'ut_fac'])
def pretrained(request, shared):
  """Returns name, model, variables, golden inputs and outputs."""
  model, variables = vatt_tf2.load(shared / 'golden' / request.param / 'ckpt-500000')
  return (request.param, model, variables,
          np.load(shared / 'golden' / f'{request.param}_io.npz'))


def golden_batch(golden):
  return dict(video=golden['in_video'], audio=golden['in_audio'][..., 0],
              text=golden['in_text'].reshape(3, 5, -1))


def test_features_and_embeddings_match_the_release(pretrained):
  _, model, variables, golden = pretrained
  outputs = jax.jit(model.apply)(variables, golden_batch(golden))
  for m in ('video', 'audio', 'text'):
    assert_close(outputs['tokens'][m], golden[f'out_{m}_features'], f'tokens {m}')
    assert_close(outputs['pooled'][m], golden[f'out_{m}_features_pooled'], m)
  for space, modality, name in (
      ('video_audio', 'video', 'video_to_va'), ('video_audio', 'audio', 'audio_to_va'),
      ('video_text', 'video', 'video_to_vat'), ('video_text', 'text', 'text_to_vat')):
    assert_close(outputs['embed'][space][modality],
                 np.asarray(unit_norm(golden[f'out_{name}'])), name)


@pytest.mark.parametrize('name, modality', [('ft_vit', 'video'), ('ft_wat', 'audio')])
def test_classifiers_match_the_release(name, modality, shared):
  model, variables = vatt_tf2.load(shared / 'golden' / name)
  golden = np.load(shared / 'golden' / f'{name}_io.npz')
  x = golden['in_data'] if modality == 'video' else golden['in_data'][..., 0]
  outputs = model.apply(variables, {modality: x})
  assert_close(outputs['tokens'][modality], golden['out_features'], 'tokens')
  assert_close(outputs['pooled'][modality], golden['out_features_pooled'], 'pooled')
  logits = outputs['logits'].reshape(2, 2, -1).mean(axis=1)    # over clips
  assert_close(logits, golden['out_logits'], 'logits')


def test_head_in_training_matches_the_release(pretrained, shared):
  name, model, variables, _ = pretrained
  golden = np.load(shared / 'golden' / f'{name}_head_train.npz')
  head = {k: v['head'] for k, v in variables.items() if k != 'frozen'}
  pooled = {m: golden[f'in_{m}_features_pooled'] for m in ('video', 'audio', 'text')}
  outputs, updates = model.head.clone(parent=None).apply(
      head, pooled, {}, train=True, mutable=['batch_stats'])
  for space, modality, output in (
      ('video_audio', 'video', 'video_to_va'), ('video_audio', 'audio', 'audio_to_va'),
      ('video_text', 'video', 'video_to_vat'), ('video_text', 'text', 'text_to_vat')):
    assert_close(outputs['embed'][space][modality],
                 np.asarray(unit_norm(golden[output])), output)
  for name, golden_name in (('video_hidden_norm', 'hid_to_va_pre_bn'),
                            ('video_to_video_audio_norm', 'hid_to_va_bn'),
                            ('video_audio_to_video_text_norm', 'va_to_vat_bn')):
    for stat, moving in (('mean', 'moving_mean'), ('var', 'moving_variance')):
      assert_close(head['batch_stats'][name][stat],
                   golden[f'{golden_name}/{moving}_before'], f'{name} before')
      assert_close(updates['batch_stats'][name][stat],
                   golden[f'{golden_name}/{moving}_after'], f'{name} after')


def test_bfloat16_embeddings_stay_close(pretrained, shared):
  """Allows a cosine distance of 2e-2 from float32."""
  name, model, variables, golden = pretrained
  settings, _ = vatt_tf2.read(shared / 'golden' / name)
  half = Vatt.from_config(**settings, dtype='bfloat16')
  batch = golden_batch(golden)
  embeds = [jax.jit(m.apply)(variables, batch)['embed'] for m in (model, half)]
  for a, b in zip(*map(jax.tree.leaves, embeds), strict=True):
    assert a.dtype == b.dtype == jnp.float32
    assert (1 - jnp.sum(a * b, axis=-1)).max() < 2e-2
    assert (a != b).any()


@pytest.mark.parametrize('source, target', [
    ('tx_fac', 'ft_vit'), ('ut_fac', 'ft_wat')])
def test_fine_tuning_starts_from_the_weights_of_the_release(source, target, shared):
  """Resizes 2 x 2 video patches to 3 x 3, and 10 audio patches to 16."""
  _, pretrained = vatt_tf2.load(shared / 'golden' / source)
  model, tuned = vatt_tf2.load(shared / 'golden' / target)
  merged = weights.merge(model, tuned, pretrained, source)
  for path, value in flat(merged).items():
    if 'head/' not in path:
      # The release solves for the spline in float32; golden set A allows 5e-3.
      atol = 5e-3 if path.endswith('positions') else 0
      np.testing.assert_allclose(value, flat(tuned)[path], rtol=0, atol=atol,
                                 err_msg=path)


@pytest.mark.parametrize('name', ['tx_fac', 'ut_fac', 'ft_vit', 'ft_wat'])
def test_golden_checkpoint_survives_a_round_trip(name, shared, tmp_path):
  _, variables = vatt_tf2.load(shared / 'golden' / name)
  vatt_tf2.export(variables, tmp_path / 'ckpt-7')
  assert_same(vatt_tf2.load(tmp_path / 'ckpt-7')[1], variables)
  model_keys = lambda keys: {k: s for k, s in keys.items() if k.startswith('model/')
                             and 'OPTIMIZER_SLOT' not in k}
  lines = (shared / 'golden' / f'{name}_keys.txt').read_text().splitlines()
  released = {k: json.loads(s) for k, s in (line.split('\t') for line in lines)}
  exported = dict(tf.train.list_variables(str(tmp_path / 'ckpt-7')))
  assert model_keys(exported) == model_keys(released)


@pytest.mark.parametrize('name', FULL_SIZE)
def test_full_size_models_are_inferred_and_have_the_keys_of_the_release(name, shared):
  """Infers a model from keys, and compares its keys, shapes and trainable flags."""
  file = shared / 'golden' / 'full_size_keys' / f'{name}.txt'
  rows = [line.split('\t') for line in file.read_text().splitlines()]
  released = {key: (tuple(json.loads(shape)), kind) for key, shape, kind in rows}
  shapes = {vatt_tf2.short_name(key): shape for key, (shape, _) in released.items()}
  settings, example = vatt_tf2.find_settings(shapes)
  variables = traverse_util.flatten_dict(jax.eval_shape(
      Vatt.from_config(**settings).init, jax.random.key(0), example))
  actual = {
      vatt_tf2.full_name(key): (
          vatt_tf2.release_shape(path, variables[path].shape),
          'trainable' if path[0] == 'params' else 'frozen')
      for path, key in vatt_tf2.names(variables).items()}
  assert actual == released
  size = next(s for s in vatt_lib.SIZES if s in name or f'_{s[0]}bs' in name)
  tower = settings.get('shared') or settings.get('video') or settings['audio']
  assert tower.items() >= vatt_lib.SIZES[size].items()


@pytest.mark.parametrize('settings', [SPECIFIC, UNIFIED, TUNED],
                         ids=['specific', 'unified', 'tuned'])
def test_exported_checkpoint_is_loaded_unchanged(settings, tmp_path):
  variables = random_variables(settings)
  vatt_tf2.export(variables, tmp_path / 'ckpt-1')
  inferred, loaded = vatt_tf2.read(tmp_path / 'ckpt-1')
  assert_same(loaded, variables)
  assert inferred == settings
  outputs = jax.jit(Vatt.from_config(**inferred).apply)(loaded, BATCH)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(outputs))


def write_changed(settings, prefix, change):
  """Writes a checkpoint after `change` has changed its arrays, given by name."""
  variables = traverse_util.flatten_dict(random_variables(settings))
  names = vatt_tf2.names(variables)
  values = {name: variables[path].reshape(
      vatt_tf2.release_shape(path, variables[path].shape))
            for path, name in names.items()}
  change(values)
  vatt_tf2.write(values, prefix)


def test_head_dim_overrides_the_default(tmp_path):
  vatt_tf2.export(random_variables(TUNED), tmp_path / 'ckpt-1')
  assert vatt_tf2.read(tmp_path / 'ckpt-1', head_dim=4)[0]['shared']['num_heads'] == 4
  assert vatt_tf2.read(tmp_path / 'ckpt-1')[0]['shared']['num_heads'] == 2
  with pytest.raises(UserError, match='head_dim=3: expected a divisor of the width 16'):
    vatt_tf2.read(tmp_path / 'ckpt-1', head_dim=3)


# Heads of 10, 6 and 16: no single number fits all widths.
SEVERAL_WIDTHS = SPECIFIC | dict(
    video=dict(patch=(2, 4, 4), depth=1, width=20, num_heads=2, mlp_dim=24),
    audio=dict(patch=(8,), depth=1, width=18, num_heads=3, mlp_dim=24),
    text=dict(vocabulary_size=20, table_width=6, depth=1, width=32, num_heads=2,
              mlp_dim=24))


def test_each_tower_may_have_its_own_head_width(tmp_path):
  variables = random_variables(SEVERAL_WIDTHS)
  vatt_tf2.export(variables, tmp_path / 'ckpt-1')
  for head_dim in (dict(video=10, audio=6, text=16), dict(video=10, audio=6)):
    model, loaded = vatt_tf2.load(tmp_path / 'ckpt-1', head_dim=head_dim)
    assert_same(loaded, variables)
    assert {m: b.num_heads for m, b in model.backbones.items()} == dict(
        video=2, audio=3, text=2)
  # The table of relative biases determines the text tower only.
  with pytest.raises(UserError, match='head_dim=16: expected a divisor of the width'):
    vatt_tf2.load(tmp_path / 'ckpt-1')
  with pytest.raises(UserError, match="head_dim of 'shared': the checkpoint has no "
                                      'such tower; expected video, audio, text'):
    vatt_tf2.load(tmp_path / 'ckpt-1', head_dim=dict(shared=10))
  vatt_tf2.export(random_variables(TUNED), tmp_path / 'ckpt-2')
  settings, _ = vatt_tf2.read(tmp_path / 'ckpt-2', head_dim=dict(shared=4))
  assert settings['shared']['num_heads'] == 4


@pytest.mark.parametrize('flag, head_dim', [
    ('', None), ('64', 64), ('video=10,text=16', dict(video=10, text=16))])
def test_head_dim_flag_has_one_width_or_one_for_each_tower(flag, head_dim):
  assert vatt_tf2.parse_head_dim(flag) == head_dim


@pytest.mark.parametrize('flag', ['0', '-8', 'video', 'video=x', '64,32', 'text=0',
                                  'video=10,'])
def test_invalid_head_dim_flag_raises(flag):
  with pytest.raises(UserError, match=f'--head_dim={flag}: expected a number such as'):
    vatt_tf2.parse_head_dim(flag)


def test_folder_loads_its_newest_checkpoint(tmp_path):
  for step in (1, 2):
    vatt_tf2.export(random_variables(TUNED, seed=step), tmp_path / f'ckpt-{step}')
  assert_same(vatt_tf2.load(tmp_path)[1], vatt_tf2.load(tmp_path / 'ckpt-2')[1])


def test_unmatched_names_are_all_listed(tmp_path):
  place = '_base_layer/vid_backbone/_base/tx/layers/1/feed_forward/mlp/'

  def rename(values):
    values[f'{place}w9/kernel'] = values.pop(f'{place}wo/kernel')

  write_changed(SPECIFIC, tmp_path / 'ckpt-1', rename)
  with pytest.raises(UserError) as error:
    vatt_tf2.load(tmp_path / 'ckpt-1')
  message = str(error.value)
  assert f'checkpoint lacks: {place}wo/kernel. The checkpoint has' in message
  assert message.endswith(f'model lacks: {place}w9/kernel') and '\n' not in message


def test_tensor_of_another_shape_is_named(tmp_path):
  name = '_base/tx/final_layer_norm/gamma'
  write_changed(TUNED, tmp_path / 'ckpt-1',
                lambda values: values.update({name: values[name][:-1]}))
  with pytest.raises(UserError, match=r'gamma has shape \(15,\); expected \(16,\)'):
    vatt_tf2.load(tmp_path / 'ckpt-1')


@pytest.mark.parametrize('change', [
    dict(variant='paper', text=dict(vocabulary_size=20, **TINY)),
    dict(head=dict(SPECIFIC['head'], audio_text=True))], ids=['paper', 'audio_text'])
def test_model_outside_the_release_is_not_exported(change, tmp_path):
  with pytest.raises(UserError, match='the model to export'):
    vatt_tf2.export(random_variables(dict(SPECIFIC, **change)), tmp_path / 'ckpt-1')
  assert not list(tmp_path.iterdir())


def test_other_files_and_checkpoints_raise(tmp_path):
  with pytest.raises(UserError, match='not a TensorFlow 2 checkpoint'):
    vatt_tf2.load(tmp_path / 'none')
  (tmp_path / 'bad.index').write_bytes(b'not a checkpoint')
  with pytest.raises(UserError, match='not a TensorFlow 2 checkpoint'):
    vatt_tf2.load(tmp_path / 'bad')
  tf.train.Checkpoint(x=tf.Variable(1.0)).write(str(tmp_path / 'other'))
  with pytest.raises(UserError, match='other: not a checkpoint of the released VATT'):
    vatt_tf2.load(tmp_path / 'other')


@pytest.mark.slow
def test_import_command_writes_a_readable_model(tmp_path):
  variables = random_variables(UNIFIED)
  vatt_tf2.export(variables, tmp_path / 'ckpt-1')
  command = [sys.executable, '-m', 'vatt_jax', 'import_vatt']
  run = lambda *args: subprocess.run([*command, '--head_dim=shared=8', *args],
                                     capture_output=True, text=True)
  (tmp_path / 'words.txt').write_text('<pad>\n<unk>\ncat\n')
  done = run(str(tmp_path / 'ckpt-1'), f'--out={tmp_path / "out"}',
             f'--vocabulary={tmp_path / "words.txt"}')
  assert done.returncode == 0, done.stderr
  config, loaded = checkpoint.load_model(tmp_path / 'out')
  assert_same(loaded, variables)
  assert config == {'model': json.loads(json.dumps(UNIFIED))}
  assert (tmp_path / 'out' / 'vocabulary.txt').read_text() == '<pad>\n<unk>\ncat\n'
  from safetensors.numpy import load_file
  tensors = load_file(tmp_path / 'out' / 'model.safetensors')
  np.testing.assert_array_equal(
      tensors['params/head/video_hidden/kernel'],
      variables['params']['head']['video_hidden']['kernel'])
  again = run(str(tmp_path / 'ckpt-1'), f'--out={tmp_path / "out"}')
  assert again.returncode == 2 and 'out: is not empty' in again.stderr
  assert 'Traceback' not in again.stderr
  none = run(str(pathlib.Path('none')), f'--out={tmp_path / "more"}')
  assert none.returncode == 2 and len(none.stderr.strip().splitlines()) == 1


def test_missing_tensorflow_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'vatt_jax.inputs.host_tensorflow', None)
  with pytest.raises(UserError, match=r'need the package tensorflow, which is not'):
    vatt_tf2.read(tmp_path)
