"""Tests the ResNets of videos and of audio."""

from flax import traverse_util
import jax
import numpy as np
import pytest

from vatt_jax.inputs import clip_keys
from vatt_jax.inputs import spectrograms
from vatt_jax.models import resnet
from vatt_jax.tools import cost
from vatt_jax.weights import gdt


def shapes(module, *shape):
  return jax.eval_shape(module.init, jax.random.key(0),
                        jax.ShapeDtypeStruct(shape, np.float32))


def count(variables):
  return sum(x.size for x in jax.tree.leaves(variables['params']))


def gflops(module, *shape):
  x = jax.ShapeDtypeStruct((1, *shape), np.float32)
  return cost.operations(module.apply, shapes(module, 1, *shape), x).true / 1e9


def test_shift_matches_the_released_code(shared):
  golden = np.load(shared / 'golden_mmv' / 'tsm_shift.npz')
  for i in range(3):
    x, expected = golden[f'{i}/in_batch_major'], golden[f'{i}/out_batch_major']
    ours = resnet.shift(x.reshape(-1, *x.shape[2:]), x.shape[1])
    np.testing.assert_array_equal(ours.reshape(x.shape), expected)


def test_still_shift_only_exchanges_channels():
  x = np.arange(2 * 16.0, dtype=np.float32).reshape(2, 1, 1, 16)
  ours = resnet.shift(x, num_frames=2, still=True)
  order = [14, 15, *range(2, 14), 0, 1]
  np.testing.assert_array_equal(ours, x[..., order])


@pytest.mark.slow
def test_middle_frame_of_a_still_video_has_the_features_of_the_image():
  """The paper's deflation (section 3.2): only frames near the ends see the zeros."""
  image = np.random.default_rng(0).uniform(-1, 1, (1, 1, 32, 32, 3)).astype(np.float32)
  video = np.repeat(image, 41, axis=1)
  net = resnet.TSMResNet50(width=1 / 8)
  variables = jax.jit(net.init)(jax.random.key(0), video[:, :2])
  whole = jax.jit(net.apply)(variables, video).grid[:, 20]
  one = jax.jit(net.clone(still=True).apply)(variables, image).grid[:, 0]
  np.testing.assert_allclose(whole, one, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize('net, channels, parameters', [
    (resnet.TSMResNet50(), 3, 23_500_352), (resnet.TSMResNet50(2), 3, 93_891_712)])
def test_networks_of_video_have_the_released_number_of_parameters(
    net, channels, parameters):
  assert count(shapes(net, 1, 2, 32, 32, channels)) == parameters


def audio_net():
  constants = spectrograms.SPECTROGRAMS['mmv'] | dict(pad_end=True)
  return resnet.AudioResNet50(spectrograms.Spectrogram(**constants))


def test_network_of_audio_has_the_released_number_of_parameters():
  assert count(shapes(audio_net(), 1, 48_000)) == 23_494_080


@pytest.mark.parametrize('net, shape, expected', [
    (resnet.TSMResNet50(), (32, 200, 200, 3), 223.8),
    (resnet.TSMResNet50(), (32, 224, 224, 3), 261.6),
    (resnet.TSMResNet50(), (16, 200, 200, 3), 111.9),
    (resnet.TSMResNet50(still=True), (1, 224, 224, 3), 8.2),
    (resnet.TSMResNet50(2), (32, 200, 200, 3), 883.1)])
def test_operations_of_video_follow_from_the_layers(net, shape, expected):
  np.testing.assert_allclose(gflops(net, *shape), expected, rtol=0.01)


@pytest.mark.parametrize('windows, expected', [(150, 2.07), (93, 1.27)])
def test_operations_of_audio_follow_from_the_layers(windows, expected):
  net = resnet.ResNet50()
  np.testing.assert_allclose(gflops(net, windows, 80, 1), expected, rtol=0.01)


def test_audio_grid_has_time_and_frequency():
  constants = spectrograms.SPECTROGRAMS['mmv'] | dict(pad_end=True)
  net = resnet.AudioResNet50(spectrograms.Spectrogram(**constants), width=1 / 8)
  audio = jax.ShapeDtypeStruct((2, 150 * 1024), np.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), audio)
  features = jax.eval_shape(net.apply, variables, audio)
  assert (features.pooled.shape, features.grid.shape) == ((2, 256), (2, 5, 3, 1, 256))


@pytest.mark.parametrize('net, parameters', [
    (resnet.AudioResNet9, 4_899_520), (resnet.AudioResNet18, 11_170_240)])
def test_networks_of_gdt_have_their_number_of_parameters(net, parameters):
  """The release has 513,000 more, of a classifier that it never uses."""
  assert count(shapes(net(lambda x: x), 1, 40, 99)) == parameters


GDT_NETS = dict(resnet9=resnet.AudioResNet9, resnet18_audio=resnet.AudioResNet18)


@pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('name', [
    'resnet9', pytest.param('resnet18_audio', marks=pytest.mark.slow)])
def test_network_of_audio_matches_the_release_of_gdt(name, train, shared):
  golden = np.load(shared / 'golden_gdt_stica' / f'{name}_narrow.npz')
  net = GDT_NETS[name](lambda x: x, width=1 / 8)    # a spectrogram stands for audio
  x = golden['in'][:, 0].transpose(0, 2, 1)
  weights = {f'audio_network.base.{key[2:]}': golden[key] for key in golden.files
             if key.startswith('p/')}
  named = {kind: dict(backbones_audio=tree)
           for kind, tree in shapes(net, *x.shape).items()}
  variables = gdt.convert(weights, named, 'golden')
  own = {kind: tree['backbones_audio'] for kind, tree in variables.items()}
  features, new = jax.jit(lambda own: net.apply(
      own, x, None, train, mutable=['batch_stats']))(own)
  close(features.pooled, golden['out_train' if train else 'out_eval'])
  if train:
    check_statistics(new['batch_stats'], golden)
  elif 'out_eval_layer4' in golden:
    close(features.grid[:, :, :, 0].transpose(0, 3, 2, 1), golden['out_eval_layer4'])


def close(ours, expected):
  np.testing.assert_allclose(ours, expected, rtol=0,
                             atol=2e-6 * np.abs(expected).max() + 2e-5)


def check_statistics(stats, golden):
  """Checks moving averages; the release has n / (n - 1) times the batch's variance."""
  areas = dict(bn1=1000, layer1=250, layer2=65, layer3=21, layer4=8)
  flat = traverse_util.flatten_dict(dict(batch_stats=dict(backbones_audio=stats)))
  for path, name in gdt.names(flat).items():
    name, ours = name.removeprefix('audio_network.base.'), flat[path]
    if path[-1] == 'var':
      n, old = 3 * areas[name.split('.')[0]], golden[f'p/{name}']
      ours = 0.9 * old + (ours - 0.9 * old) * n / (n - 1)
    np.testing.assert_allclose(ours, golden[f'after/{name}'], rtol=0, atol=3e-6)


def test_masks_of_a_spectrogram_follow_the_clips_keys():
  masks = spectrograms.SpecAugment(1, 5, 1, 2, zeros=True)
  shallow = type('Shallow', (resnet.AudioResNet9,), dict(num_blocks=(1,)))
  net = shallow(lambda x: x, masks, width=1 / 32)
  x = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)
  variables = jax.jit(net.init)(jax.random.key(0), x)
  apply = jax.jit(net.apply)
  keys = clip_keys.make(0, 0, 2)
  plain, masked, swapped = (apply(variables, x, keys=k).pooled
                            for k in (None, keys, keys[::-1]))
  assert (plain != masked).any() and (masked != swapped).any()
  again = apply(variables, x[::-1], keys=keys[::-1]).pooled[::-1]
  np.testing.assert_allclose(masked, again, rtol=1e-5, atol=1e-6)
