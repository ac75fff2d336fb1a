"""Tests MMV: its networks and graphs beside the released code, and its contract."""

import json
import os
import pathlib
import subprocess
import sys
import types
import zlib

from flax import traverse_util
import jax
import numpy as np
import optax
import pytest

from vatt_jax import models
from vatt_jax import train_step
from vatt_jax.distributed import sharding
from vatt_jax.errors import UserError
from vatt_jax.inputs import augment
from vatt_jax.losses import contrastive
from vatt_jax.models import heads
from vatt_jax.models import resnet
from vatt_jax.weights import mmv as weights

ROOT = pathlib.Path(__file__).parents[2]
SPECTROGRAM = dict(audio_hz=4000, window_seconds=0.032, step_seconds=0.016,
                   fft_length=128, mel_bins=16, high_hz=2000.0)


@pytest.fixture(autouse=True)
def exact_products():
  with jax.default_matmul_precision('highest'):
    yield


def close(ours, expected, share=1e-4, least=1e-5):
  np.testing.assert_allclose(ours, expected, rtol=0,
                             atol=share * np.abs(expected).max() + least)


@pytest.fixture(scope='module', params=['tsm', 's3d'])
def small(request, shared):
  """Returns a random narrow model of the released code, and its outputs."""
  folder = shared / 'golden_mmv'
  arrays = dict(np.load(folder / f'{request.param}_small.npz'))
  settings = weights.find_settings({k: x.shape for k, x in arrays.items()}, 'golden')
  return types.SimpleNamespace(
      name=request.param, arrays=arrays,
      io=np.load(folder / f'{request.param}_small_io.npz'),
      model=models.from_config(settings),
      variables=weights.to_variables(arrays, settings, 'golden'))


def run(module, variables, name, *inputs, train=False):
  """Returns the outputs of a module of a model, and its new batch statistics."""
  own = {kind: tree[name] for kind, tree in variables.items() if name in tree}
  apply = jax.jit(lambda own, *inputs: module.apply(
      own, *inputs, None, train, mutable=['batch_stats']))
  return apply(own, *inputs)


def audio_features(small, train, **kwargs):
  """Returns the features of golden spectrograms, which stand for audio here."""
  net = resnet.AudioResNet50(lambda x: x[..., 0], small.model.backbones['audio'].width,
                             **kwargs)
  return run(net, small.variables, 'backbones_audio', small.io['in_spectrogram'],
             train=train)


@pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
def test_networks_match_the_released_code(small, train):
  mode, share = ('train', 1e-3) if train else ('eval', 1e-4)
  # Its last statistics are of eight numbers. Computed in float64, one feature differs
  # from the released code's by 1.3e-3, so that is the rounding of the reference.
  video_share = 2e-3 if train and small.name == 's3d' else share
  video, stats = run(small.model.backbones['video'], small.variables,
                     'backbones_video', small.io['in_video'] * 2 - 1, train=train)
  audio, audio_stats = audio_features(small, train)
  close(video.pooled, small.io[f'{mode}/vid_repr'], video_share)
  close(audio.pooled, small.io[f'{mode}/aud_repr'], share)
  if train:
    check_statistics(small, dict(backbones_video=stats['batch_stats'],
                                 backbones_audio=audio_stats['batch_stats']))
    return
  last, _ = audio_features(small, train, last_conv=True)
  close(last.grid[:, :, :, 0], small.io['eval/endpoint/audio/last_conv'])
  if small.name == 'tsm':
    close(video.grid.reshape(-1, *video.grid.shape[2:]),
          small.io['eval/endpoint/visual/last_conv'])


def check_statistics(small, stats):
  """Checks moving averages; `hidden` is the release's before it corrects the start."""
  flat = traverse_util.flatten_dict(dict(batch_stats=stats))
  for path, name in weights.names(flat).items():
    hidden = name.replace('/average', '/hidden')
    new = (small.io[f'train/new_{hidden}'] - 0.9 * small.arrays[hidden]) / 0.1
    expected = 0.9 * small.arrays[name] + 0.1 * new
    close(flat[path], expected.reshape(flat[path].shape), 1e-3)


def test_text_and_head_match_the_released_code(small):
  ids = small.io['in_word_ids'][:, None]
  text, _ = run(small.model.backbones['text'], small.variables, 'backbones_text', ids)
  pooled = dict(video=small.io['eval/vid_repr'], audio=small.io['eval/aud_repr'],
                text=text.pooled)
  own = {kind: tree['head'] for kind, tree in small.variables.items() if 'head' in tree}
  embed = small.model.head.apply(own, pooled, {})['embed']
  for space, modality, name in NAMES:
    close(embed[space][modality].reshape(-1, embed[space][modality].shape[-1]),
          heads.unit_norm(small.io[f'eval/{name}']), 2e-5, 0)


def draw(name):
  """Returns the reference's generator of an array."""
  return np.random.default_rng(zlib.crc32(f'A:{name}'.encode()))


def draw_full_width(path, gain):
  """Returns arrays of the released network of video, by the formula of the reference.

  Args:
    path: lists all arrays of a release, in a file of lines `kind module leaf shape`.
    gain: of the kernels.
  """
  arrays = {}
  for line in path.read_text().splitlines():
    kind, module, leaf, shape = line.split('\t')
    if 'visual_module' not in module or leaf in ('counter', 'hidden'):
      continue
    shape = tuple(map(int, shape.split(',')))
    z = draw(f'{module}/{leaf}').standard_normal(shape, np.float32)
    if leaf == 'w':
      x = z * np.sqrt(gain / np.prod(shape[:-1]))
    elif 'var_ema' in module:
      x = np.exp(0.2 * z)
    else:
      x = 0.1 * z + (leaf == 'scale')
    arrays[f'{kind}/{module}/{leaf}'] = np.float32(x)
  return arrays


FULL_WIDTH = {'s3d': dict(name='s3d_g'), 'tsm_resnet_x1': dict(name='tsm_resnet50'),
              'tsm_resnet_x2': dict(name='tsm_resnet50', width=2)}


@pytest.mark.slow
@pytest.mark.parametrize('name', FULL_WIDTH)
def test_full_width_networks_match_the_released_code(name, shared):
  golden = np.load(shared / 'golden_mmv' / 'full_width.npz')
  expected, shape = golden[f'{name}/out'], golden[f'{name}/in_shape']
  video = draw(f'{name}/in_video').random(shape, np.float32)
  np.testing.assert_array_equal(video.ravel()[:8], golden[f'{name}/in_first_values'])
  model = models.from_config(dict(name='mmv', video=FULL_WIDTH[name]))
  batch = dict(video=video * 2 - 1)
  variables = weights.convert(
      draw_full_width(shared / 'golden_mmv' / 'full_size' / f'mmv_{name}.txt',
                      golden[f'{name}/gain']),
      jax.eval_shape(model.init, jax.random.key(0), batch), 'golden')
  outputs = jax.jit(model.apply)(variables, batch)
  close(outputs['pooled']['video'], expected, 1e-5, 0)    # rounding is about 3e-7


def test_deflated_network_matches_the_released_code(small):
  """A still video's features follow from the image; see also `test_resnet`."""
  image = small.io['deflate/in_image'][:, None] * 2 - 1
  net, key = small.model.backbones['video'], dict(tsm='permuted', s3d='summed')
  share = dict(tsm=1e-4, s3d=5e-3)[small.name]    # sums of kernels are ill-conditioned
  still, _ = run(net.clone(still=True), small.variables, 'backbones_video', image)
  close(still.pooled, small.io[f'deflate/{key[small.name]}'], share)
  video, _ = run(net, small.variables, 'backbones_video', np.repeat(image, 32, axis=1))
  close(video.pooled, small.io['deflate/static32'])


# Space, modality, and the release's name.
NAMES = (('video_audio', 'video', 'vid_embd/toaud'),
         ('video_text', 'video', 'vid_embd/totxt'),
         ('video_audio', 'audio', 'aud_embd/tovid'),
         ('video_text', 'audio', 'aud_embd/totxt'),
         ('video_text', 'text', 'txt_embd/tovid'))


@pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('name', ['fac', 'fac_relu', 'fac_bnrelu', 'shared', 'disjoint',
                                  'fac_relu_audio_text'])
def test_graphs_match_the_released_code(name, train, shared):
  golden = np.load(shared / 'golden_mmv' / 'graphs.npz')
  arrays = {key.removeprefix(f'{name}/'): golden[key] for key in golden.files
            if key.startswith((f'{name}/params', f'{name}/state'))}
  audio_text = name.endswith('audio_text')
  head = heads.MmvHead(name.removesuffix('_audio_text'), 32, 16, 32, audio_text)
  pooled = {k: golden[f'in/{k}'] for k in ('video', 'audio', 'text')}
  shapes = jax.eval_shape(head.init, jax.random.key(0), pooled, {})
  named = {kind: dict(head=tree) for kind, tree in shapes.items()}
  variables = weights.convert(arrays, named, 'golden')
  variables = {kind: tree['head'] for kind, tree in variables.items()}
  outputs, new = head.apply(variables, pooled, {}, train, mutable=['batch_stats'])
  untrained = ('aud_embd/totxt',) if name == 'disjoint' or (
      train and not audio_text and name != 'shared') else ()
  for space, modality, key in NAMES:
    if key not in untrained:
      close(outputs['embed'][space][modality], heads.unit_norm(
          golden[f'{name}/{"train" if train else "eval"}/{key}']), 2e-5, 0)
  if train and name != 'shared':    # the release takes two steps of `shared`'s averages
    check_head_statistics(new['batch_stats'], golden, name, arrays)


def check_head_statistics(stats, golden, name, arrays):
  flat = traverse_util.flatten_dict(dict(batch_stats=dict(head=stats)))
  for path, key in weights.names(flat).items():
    hidden = key.replace('/average', '/hidden')
    steps = int(golden[f'{name}/new_{key.replace("/average", "/counter")}']) - int(
        arrays[key.replace('/average', '/counter')])
    kept = 0.9 ** steps
    added = golden[f'{name}/new_{hidden}'] - kept * arrays[hidden]
    close(flat[path], (kept * arrays[key] + added).reshape(flat[path].shape))


def section(**changes):
  """Returns the config section of a narrow model."""
  return dict(
      name='mmv', video=dict(name='tsm_resnet50', width=1 / 32),
      audio=dict(name='resnet50', width=1 / 32, spectrogram=SPECTROGRAM),
      text=dict(name='word_bag', vocabulary_size=32, table_width=8, width=16),
      head=dict(name='mmv', graph='fac', video_audio_dim=12, video_text_dim=10,
                hidden_dim=8)) | changes


def make_batch(b=4):
  rng = np.random.default_rng(0)
  return dict(video=rng.integers(0, 256, (b, 4, 32, 32, 3), np.uint8),
              audio=rng.integers(-2**15, 2**15, (b, 2048)).astype(np.int16),
              text=rng.integers(1, 32, (b, 2, 5)).astype(np.int32),
              has_audio=np.arange(b) % 2 == 0, has_video=np.ones(b, bool),
              has_text=np.ones(b, bool), id=np.arange(b, dtype=np.int32),
              mask=np.ones(b, bool))


TOWER = dict(name='vatt', width=16, depth=1, num_heads=2, mlp_dim=16)


@pytest.mark.parametrize('changes', [
    {}, dict(video=dict(name='s3d_g', width=1 / 16)),
    dict(video=dict(name='r2plus1d_18', width=1 / 32), head=dict(name='fac')),
    dict(video=dict(TOWER, patch=(2, 8, 8)), audio=dict(TOWER, patch=(64,)),
         text=dict(TOWER, vocabulary_size=32)),
    dict(text=dict(TOWER, vocabulary_size=32, variant='release'), remat='blocks'),
    dict(video=dict(name='r2plus1d_34', width=1 / 32), head=dict(name='projection'),
         audio=dict(name='resnet9', width=1 / 32, spectrogram=dict(
             SPECTROGRAM, name='gdt', variant='release'))),
    dict(dtype='bfloat16', text=None), dict(video=None, head=None)])
def test_any_combination_of_backbones_and_heads_is_a_config(changes):
  settings = section(**changes)
  model = models.from_config(settings)
  batch = augment.normalize(make_batch(2))
  outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), batch)
  given = {m for m in ('video', 'audio', 'text') if settings[m]}
  assert set(model.modalities) == outputs['pooled'].keys() == given
  assert outputs['grid'].keys() == given - {'text'}
  for modality, grid in outputs['grid'].items():
    assert grid.shape[-1] == outputs['pooled'][modality].shape[-1]
  if settings['head']:
    assert outputs['embed']['video_audio'].keys() == given - {'text'}
    assert outputs['embed']['video_text'].keys() >= given - {'audio'}


def test_vatt_takes_a_graph_of_mmv():
  towers = {m: {k: v for k, v in TOWER.items() if k != 'name'}
            for m in ('video', 'audio', 'text')}
  towers['video'] |= dict(patch=(2, 8, 8))
  towers['audio'] |= dict(patch=(64,))
  towers['text'] |= dict(vocabulary_size=32)
  model = models.from_config(dict(towers, head=dict(name='mmv', graph='shared')))
  assert model.head.graph == 'shared'
  outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0),
                              augment.normalize(make_batch(2)))
  assert outputs['embed']['video_text'].keys() == {'video', 'audio', 'text'}


@pytest.mark.parametrize('changes, message', [
    (dict(video=dict(name='s3dg')), "model.video: name='s3dg': did you mean s3d_g"),
    (dict(video=dict(name='s3d_g', widht=1)), 'model.video.widht: unknown key; did'),
    (dict(audio=dict(name='word_bag')), "model.audio: name='word_bag': expected"),
    (dict(head=dict(graph='fcc')), "model.head: graph='fcc': did you mean fac"),
    (dict(audio=dict(name='resnet50', spectrogram=dict(name='mvv'))),
     r"model\.audio\.spectrogram: name='mvv': did you mean mmv"),
    (dict(audio=dict(name='resnet9', spectrogram=dict(variant='code'))),
     r"model\.audio\.spectrogram: variant='code': expected one of paper"),
    (dict(audio=dict(name='resnet18', widht=1)), 'model.audio.widht: unknown key; did'),
    (dict(video=None, audio=None, text=None), 'model: no modality'),
    (dict(remat='block'), "model: remat='block': did you mean blocks"),
    (dict(dtype='float16'), "model: dtype='float16': did you mean")])
def test_wrong_keys_are_named(changes, message):
  with pytest.raises(UserError, match=f'config.{message}') as error:
    models.from_config(section(**changes))
  assert '\n' not in str(error.value)


def test_spectrogram_of_another_rate_than_the_audio_is_an_error():
  model = models.from_config(section())
  with pytest.raises(UserError, match=r'audio_hz=8000: the spectrogram of .* 4000'):
    model.check_window(types.SimpleNamespace(audio_hz=8000))


def test_layer_decay_reaches_towers_of_vatt():
  model = models.from_config(section(video=dict(TOWER, patch=(2, 8, 8))))
  assert model.layer_of('backbones_video/backbones_video/block_0/mlp_1/kernel') == 1
  assert model.layer_of('backbones_audio/resnet/stem/kernel') == 0
  assert model.layer_of('head/video_hidden/kernel') == 0


@pytest.fixture
def shallow(monkeypatch):
  """Leaves one block in each unit of a ResNet."""
  monkeypatch.setattr(resnet, '_NUM_BLOCKS', (1, 1, 1, 1))


def make_task(mesh=None, **kwargs):
  losses = {pair: loss(pair=pair, temperature=0.1) for pair, loss in (
      ('video_audio', contrastive.NCE), ('video_text', contrastive.MilNCE))}
  return train_step.Task(models.from_config(section()), losses, optax.sgd(0.1),
                         optax.constant_schedule(0.1), 0, mesh=mesh, **kwargs)


def _child():
  """Prints loss and statistics of a step on one device, and of one on eight."""
  jax.config.update('jax_num_cpu_devices', 8)
  resnet._NUM_BLOCKS = (1, 1, 1, 1)
  batch, results = make_batch(16), []
  for mesh in (None, sharding.make_mesh(16, data=4, fsdp=2)):
    task = make_task(mesh)
    state = task.init(batch)
    if mesh is not None:
      batch = sharding.to_devices(batch, mesh)
    state, metrics = task.train_step(state, batch)
    stats = [np.ravel(x) for x in jax.tree.leaves(state.model_state['batch_stats'])]
    results.append((float(metrics['loss']), np.concatenate(stats).tolist()))
  print(json.dumps(results))


@pytest.mark.slow
def test_batch_statistics_are_of_all_eight_devices():
  """Two rows a device, of which one has no audio."""
  done = subprocess.run([sys.executable, __file__], capture_output=True, text=True,
                        env=os.environ | dict(PYTHONPATH=str(ROOT)))
  assert done.returncode == 0, done.stderr
  (loss, stats), (split_loss, split_stats) = json.loads(done.stdout.splitlines()[-1])
  np.testing.assert_allclose(loss, split_loss, rtol=0, atol=1e-5)
  np.testing.assert_allclose(stats, split_stats, rtol=1e-3, atol=1e-5)


def test_fsdp_splits_every_large_parameter():
  model = models.from_config(section(
      video=dict(name='s3d_g'), audio=dict(name='resnet50', spectrogram=SPECTROGRAM)))
  variables = jax.eval_shape(model.init, jax.random.key(0),
                             augment.normalize(make_batch(1)))
  shardings = sharding.of_parameters(variables, sharding.make_mesh(2, data=1, fsdp=2))
  for x, split in zip(jax.tree.leaves(variables), jax.tree.leaves(shardings),
                      strict=True):
    if x.size >= 2 ** 16:
      assert 'fsdp' in split.spec


@pytest.mark.slow
def test_rows_without_audio_stay_out_of_its_statistics(shallow):
  model = models.from_config(section(text=None, video=None, head=None))
  batch = augment.normalize(make_batch())
  variables = jax.jit(model.init)(jax.random.key(0), batch)
  half = {k: x[::2] for k, x in batch.items()}    # those with audio
  encode = jax.jit(lambda batch: model.apply(variables, batch, True, method='encode',
                                             mutable=['batch_stats'])[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
               encode(batch), encode(half))


@pytest.mark.slow
def test_microbatches_train_and_keep_statistics(shallow):
  batch = make_batch()
  task = make_task(num_microbatches=2)
  before = task.init(batch).model_state['batch_stats']
  state, metrics = task.train_step(task.init(batch), batch)
  assert np.isfinite(metrics['loss'])
  for modality in ('video', 'audio'):
    old, new = (x[f'backbones_{modality}']['norm']['mean'] for x in (
        before, state.model_state['batch_stats']))
    assert (old != new).any()


def _with_pooling(**video):
  """Returns a model of VATT's tower of video, whose map is pooled, and a batch."""
  model = models.from_config(dict(name='mmv', head=None, video=dict(
      name='vatt', patch=(1, 4, 4), width=16, depth=1, num_heads=2, mlp_dim=32,
      **video)))
  return model, dict(video=np.zeros((2, 4, 8, 8, 3), np.float32),
                     key=jax.random.split(jax.random.key(0), 2))


def _trace(model, batch, train):
  key = jax.random.key(0)
  return jax.eval_shape(lambda batch: model.init_with_output(
      dict(params=key, dropout=key, drop_token=key), batch, train=train), batch)


CROPS = dict(space_large=(2, 2), space_small=(1, 1), time_large=(0, 1),
             time_small=(3, 2))


@pytest.mark.parametrize('pooling', ['average', 'transformer'])
def test_crops_are_pooled_in_training_by_the_parameters_of_the_whole_map(pooling):
  model, batch = _with_pooling(pooling=dict(name=pooling), crops=CROPS)
  outputs, variables = _trace(model, batch, train=True)
  assert {k: x.shape for k, x in outputs['pooled'].items()} == dict(
      video=(2, 16), video_crops=(2, 6, 16))
  assert model.num_crops() == dict(video=((2, 1), (0, 3)))
  outputs, same = _trace(model, batch, train=False)
  assert list(outputs['pooled']) == ['video'] and same == variables
  assert ('poolings_video' in variables['params']) == (pooling == 'transformer')


@pytest.mark.parametrize('video, message', [
    (dict(drop_token_rate=0.5), r'video\.pooling: needs .*video\.drop_token_rate=0'),
    (dict(), r'config\.model\.video\.crops: space_large=\(2, 6\): expected a size of')])
def test_map_that_is_missing_or_too_small_for_crops_is_named(video, message):
  model, batch = _with_pooling(**video, crops={})
  with pytest.raises(UserError, match=message):
    _trace(model, batch, train=True)


if __name__ == '__main__':
  _child()
