"""vatt_jax/models/multimodal.py and heads.py"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax import models
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip_keys
from vatt_jax.models import heads
from vatt_jax.models import layers
from vatt_jax.models.vatt import Vatt

SIZE = dict(width=16, depth=2, num_heads=2, mlp_dim=32)
HEAD = dict(video_audio_dim=12, video_text_dim=10)
SPECIFIC = dict(
    video=dict(patch=(2, 4, 4), drop_token_rate=0.5, **SIZE),
    audio=dict(patch=(16,), drop_token_rate=0.5, **SIZE),
    text=dict(vocabulary_size=32, width=8, depth=1, num_heads=2, mlp_dim=16),
    head=HEAD)
AGNOSTIC = dict(
    video=dict(patch=(2, 4, 4), drop_token_rate=0.5),
    audio=dict(patch=(16,), drop_token_rate=0.5),
    text=dict(vocabulary_size=32, max_tokens=5), head=HEAD, shared=SIZE)


def _apply(model, variables, batch):
  return jax.jit(model.apply)(variables, batch)


def _batch(b=4):
  keys = jax.random.split(jax.random.key(0), 3)
  return dict(
      video=jax.random.uniform(keys[0], (b, 4, 8, 8, 3), minval=-1),
      audio=jax.random.uniform(keys[1], (b, 128), minval=-1),
      text=jax.random.randint(keys[2], (b, 3, 5), 1, 32),
      has_audio=jnp.array([True, True, False, True][:b]))


@pytest.fixture(scope='module', params=[SPECIFIC, AGNOSTIC],
                ids=['specific', 'agnostic'])
def model_and_variables(request):
  model = Vatt.from_config(**request.param)
  return model, jax.jit(model.init)(jax.random.key(1), _batch())


def test_outputs_have_the_shapes_of_the_interface(model_and_variables):
  model, variables = model_and_variables
  out = _apply(model, variables, _batch())
  shapes = jax.tree.map(jnp.shape, out)
  text = model.tokenizers['text'].width
  assert shapes == dict(
      tokens=dict(video=(4, 8, 16), audio=(4, 8, 16), text=(4, 3, 5, text)),
      grid=dict(video=(4, 2, 2, 2, 16), audio=(4, 8, 1, 1, 16)),
      pooled=dict(video=(4, 16), audio=(4, 16), text=(4, 3, text)),
      embed=dict(video_audio=dict(video=(4, 12), audio=(4, 12)),
                 video_text=dict(video=(4, 10), text=(4, 3, 10))))
  for x in jax.tree.leaves(out['embed']):
    np.testing.assert_allclose(jnp.linalg.norm(x, axis=-1), 1, rtol=1e-5)


def test_mean_inputs_average_the_input_tokens_of_the_transformer(
    model_and_variables):
  """The mean is over tokens without AGG and padding, and none is dropped."""
  model, variables = model_and_variables
  batch = _batch()
  batch['text'] = batch['text'].at[0, 1, 2:].set(0).at[2, 0].set(0)
  _, state = model.apply(variables, batch, mutable='intermediates',
                         capture_intermediates=True)
  mean_inputs = jax.jit(functools.partial(model.apply, method='mean_inputs'))
  means = mean_inputs(variables, batch)
  for modality in ('video', 'audio'):
    (tokens, *_), = state['intermediates'][f'tokenizers_{modality}']['__call__']
    assert tokens.shape[1] == 8
    np.testing.assert_allclose(means[modality], tokens.mean(axis=1), atol=1e-6)
  (text, *_), = state['intermediates']['tokenizers_text']['__call__']
  text = text.reshape(4, 3, 5, -1)
  np.testing.assert_allclose(means['text'][1], text[1].mean(axis=1), atol=1e-6)
  np.testing.assert_allclose(means['text'][0, 1], text[0, 1, :2].mean(axis=0),
                             atol=1e-6)
  assert not means['text'][2, 0].any()    # only padding


def test_absent_modality_does_not_change_the_others(model_and_variables):
  model, variables = model_and_variables
  batch = _batch()
  whole = _apply(model, variables, batch)
  alone = _apply(model, variables, {'video': batch['video']})
  assert alone['pooled'].keys() == {'video'}
  assert alone['embed']['video_audio'].keys() == {'video'}
  np.testing.assert_allclose(alone['embed']['video_text']['video'],
                             whole['embed']['video_text']['video'], atol=1e-6)


def test_text_padding_does_not_change_features(model_and_variables):
  model, variables = model_and_variables
  text = jnp.zeros((1, 1, 5), int).at[0, 0, :2].set(jnp.array([7, 9]))
  long = _apply(model, variables, {'text': text})['pooled']['text']
  short = _apply(model, variables, {'text': text[..., :2]})['pooled']['text']
  np.testing.assert_allclose(long, short, atol=1e-6)


def test_token_order_changes_text_features(model_and_variables):
  model, variables = model_and_variables
  variables = jax.tree.map(     # initial tables are too small
      lambda x: x + 0.5 * jax.random.normal(jax.random.key(3), x.shape), variables)
  pooled = [_apply(model, variables, {'text': jnp.array([[tokens]])})['pooled']['text']
            for tokens in ([7, 9, 11], [11, 9, 7])]
  assert abs(pooled[0] - pooled[1]).max() > 1e-3


def test_agnostic_model_has_one_backbone_and_specific_model_three():
  batch = _batch()
  specific, agnostic = (
      jax.eval_shape(Vatt.from_config(**kind).init, jax.random.key(0),
                     batch)['params'] for kind in (SPECIFIC, AGNOSTIC))
  assert {k for k in specific if 'backbone' in k} == {
      'backbones_video', 'backbones_audio', 'backbones_text'}
  assert {k for k in agnostic if 'backbone' in k} == {'backbones_shared'}


def test_training_drops_tokens_and_evaluation_does_not(model_and_variables):
  model, variables = model_and_variables
  out, _ = jax.eval_shape(functools.partial(
      model.apply, train=True, mutable=['batch_stats'],
      rngs={'drop_token': jax.random.key(0)}), variables,
                          dict(_batch(), key=clip_keys.make(0, 0, 4)))
  assert out['tokens']['video'].shape[1] == out['tokens']['audio'].shape[1] == 4
  assert out['tokens']['text'].shape[2] == 5
  assert not out['grid']    # tokens are missing


def test_absent_rows_do_not_change_batch_statistics():
  """Clips without audio do not change the embeddings of the others."""
  head = heads.FacHead(**HEAD)
  audio = jax.random.normal(jax.random.key(0), (4, 16))
  present = dict(audio=jnp.array([True, True, False, True]))
  variables = head.init(jax.random.key(1), dict(audio=audio), present)
  results = [head.apply(variables, dict(audio=x), present, True,
                        mutable=['batch_stats'])
             for x in (audio, audio.at[2].set(100.0))]
  kept = np.array([0, 1, 3])
  a, b = (r[0]['embed']['video_audio']['audio'][kept] for r in results)
  np.testing.assert_allclose(a, b, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, results[0][1], results[1][1])


def test_batch_without_audio_gives_finite_outputs():
  head = heads.FacHead(**HEAD)
  pooled, present = dict(audio=jnp.ones((4, 16))), dict(audio=jnp.zeros(4, bool))
  variables = head.init(jax.random.key(1), pooled, present)
  out, updates = head.apply(variables, pooled, present, True, mutable=['batch_stats'])
  assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((out, updates)))


def test_fac_head_computes_equation_3():
  """Two layers with a ReLU map to video-audio, one more to video-text; batch norms."""
  head = heads.FacHead(**HEAD)
  pooled = dict(video=jax.random.normal(jax.random.key(0), (6, 16)))
  variables = head.init(jax.random.key(1), pooled, {})
  out, _ = head.apply(variables, pooled, {}, True, mutable=['batch_stats'])
  p = variables['params']

  def layer(x, name):
    x = x @ p[name]['kernel']
    return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)

  hidden = jnp.maximum(layer(pooled['video'], 'video_hidden'), 0)
  va = layer(hidden, 'video_to_video_audio')
  vt = layer(va, 'video_audio_to_video_text')
  for space, x in dict(video_audio=va, video_text=vt).items():
    np.testing.assert_allclose(out['embed'][space]['video'],
                               x / jnp.linalg.norm(x, axis=-1, keepdims=True),
                               atol=1e-5)


def test_unit_norm_of_zero_is_zero():
  np.testing.assert_array_equal(heads.unit_norm(jnp.zeros((2, 3))), 0)
  assert jnp.isfinite(jax.grad(lambda x: heads.unit_norm(x).sum())(jnp.zeros(3))).all()


RELEASED = dict(SPECIFIC, variant='release')
RELEASED_AGNOSTIC = dict(AGNOSTIC, variant='release',
                         shared=dict(SIZE, projected_width=20))


@pytest.mark.parametrize('settings', [RELEASED, RELEASED_AGNOSTIC],
                         ids=['specific', 'agnostic'])
def test_release_variant_has_the_parameters_of_the_release(settings):
  params = jax.eval_shape(Vatt.from_config(**settings).init, jax.random.key(0),
                          _batch())
  agnostic = 'shared' in settings
  assert params['frozen']['tokenizers_text']['embedding'].shape == (32, 300)
  assert params['batch_stats']['head'].keys() == {
      'video_hidden_norm', 'video_to_video_audio_norm',
      'video_audio_to_video_text_norm'}
  params = params['params']
  assert {'position_norm'} <= params['tokenizers_video'].keys()
  assert ('pre_projection' in params['tokenizers_video']) == agnostic
  assert ('projectors_text' in params) == agnostic
  if agnostic:
    assert params['projectors_video']['projection']['kernel'].shape == (16, 20)
    return
  text = params['backbones_text']
  assert params['aggregators_text']['agg'].shape == (300,)
  assert text['projection'].keys() == text['block_0']['mlp_1'].keys() == {'kernel'}
  assert text['block_0']['norm_1'].keys() == text['norm'].keys() == {'scale'}
  assert text['block_0']['norm_2'].keys() == {'scale', 'bias'}


def test_only_the_release_variant_has_dropout():
  batch = _batch()
  for settings, same in ((SPECIFIC, True), (RELEASED, False)):
    model = Vatt.from_config(text=settings['text'], head=HEAD,
                              variant=settings.get('variant', 'paper'))
    variables = jax.jit(model.init)(jax.random.key(0), {'text': batch['text']})
    apply = jax.jit(lambda v, key, model=model: model.apply(
        v, {'text': batch['text'], 'key': clip_keys.make(0, 0, 4)}, train=True,
        rngs={'dropout': key}, mutable=['batch_stats'])[0])
    a, b = (apply(variables, jax.random.key(k)) for k in (1, 2))
    assert bool((a['pooled']['text'] == b['pooled']['text']).all()) == same


@pytest.mark.parametrize('modality, places', [
    ('video', 4 * 2 + 2), ('audio', 4 * 2 + 2), ('text', 4 * 1 + 2)])
def test_release_variant_has_dropout_in_all_its_places(modality, places, monkeypatch):
  """Four places in each block (attention weights and output, MLP), input and output.
  """
  tower = Vatt.from_config(variant='release', **{
      modality: {k: v for k, v in SPECIFIC[modality].items() if 'drop' not in k}})
  batch = {modality: _batch()[modality]}
  variables = jax.eval_shape(tower.init, jax.random.key(0), batch)
  rates = []
  monkeypatch.setattr(layers, 'dropout',
                      lambda x, rate, clips: rates.append(rate) or x)
  batch['key'] = clip_keys.make(0, 0, 4)
  jax.eval_shape(lambda v, b: tower.apply(v, b, train=True), variables, batch)
  assert rates == [0.1] * places


def test_initial_scales_match_the_release():
  """Kernels are Glorot, patches by their convolution; tables have scale D^-0.5."""
  model = Vatt.from_config(variant='release', video=dict(
      patch=(2, 4, 4), width=64, depth=1, num_heads=4, mlp_dim=256))
  params = jax.jit(model.init)(
      jax.random.key(0), dict(video=jnp.zeros((1, 64, 64, 64, 3))))['params']
  kernels = {'mlp_1': (64, 256), 'mlp_2': (256, 64)}
  for name, (i, o) in kernels.items():
    kernel = params['backbones_video']['block_0'][name]['kernel']
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (i + o)), rtol=0.05)
  patch = params['tokenizers_video']['projection']['kernel']
  np.testing.assert_allclose(patch.std(), np.sqrt(2 / (32 * (3 + 64))), rtol=0.05)
  positions = params['tokenizers_video']['time_positions']
  # A normal distribution cut off at two deviations has 0.88 of its deviation.
  np.testing.assert_allclose(positions.std(), 0.88 * 64 ** -0.5, rtol=0.1)


def test_release_variant_keeps_the_same_tokens_in_all_rows():
  """Their number follows from the table of positions."""
  tower = Vatt.from_config(variant='release', audio=dict(
      patch=(4,), drop_token_rate=0.5, **SIZE), dropout_rate=0.0)
  variables = tower.init(jax.random.key(0), dict(audio=jnp.zeros((1, 40))))
  same = jnp.tile(jax.random.normal(jax.random.key(1), (1, 48)), (3, 1))
  outputs = tower.apply(variables, dict(audio=same, key=clip_keys.make(0, 0, 3)),
                        train=True, rngs={'drop_token': jax.random.key(2)})
  tokens = outputs['tokens']['audio']
  assert tokens.shape == (3, 5, 16)
  np.testing.assert_allclose(tokens[0], tokens[1], atol=1e-6)


@pytest.mark.parametrize('modality', ['video', 'audio', 'text'])
def test_model_of_one_modality_works(modality):
  tower = Vatt.from_config(**{modality: SPECIFIC[modality]})
  batch = _batch()
  variables = tower.init(jax.random.key(0), batch)
  outputs = tower.apply(variables, batch)
  assert outputs.keys() == {'tokens', 'grid', 'pooled'}
  assert outputs['pooled'].keys() == {modality}


def test_image_equals_a_video_of_one_repeated_frame():
  tower = Vatt.from_config(video=dict(patch=(2, 4, 4), **SIZE))
  images = jax.random.uniform(jax.random.key(0), (3, 1, 8, 8, 3))
  variables = tower.init(jax.random.key(1), dict(video=jnp.zeros((1, 4, 8, 8, 3))))
  outputs = tower.apply(variables, dict(video=images))
  assert outputs['tokens']['video'].shape == (3, 1 * 2 * 2, 16)
  repeated = tower.apply(variables, dict(video=jnp.repeat(images, 2, axis=1)))
  np.testing.assert_array_equal(outputs['pooled']['video'],
                                repeated['pooled']['video'])


def test_spectrogram_tokenizer_has_the_expected_shapes():
  """For VATT 3.2 s of 48 kHz are 153 windows: 9 patches of 16 windows, 16 of 5 bins.
  """
  tower = Vatt.from_config(
      variant='release', audio=dict(kind='spectrogram', drop_token_rate=0.5, **SIZE))
  variables = jax.eval_shape(tower.init, jax.random.key(0),
                             dict(audio=jnp.zeros((1, 153_600))))
  tables = variables['params']['tokenizers_audio']
  assert tables['time_positions'].shape == (9, 16)
  assert tables['frequency_positions'].shape == (16, 16)
  assert tables['projection']['kernel'].shape == (16, 5, 1, 16)
  outputs = jax.eval_shape(functools.partial(
      tower.apply, train=True, rngs={k: jax.random.key(0) for k in (
          'drop_token', 'dropout')}), variables, dict(
              audio=jnp.zeros((2, 153_600)), key=clip_keys.make(0, 0, 2)))
  assert outputs['tokens']['audio'].shape == (2, 9 * 16 // 2, 16)


def test_spectrogram_is_chosen_by_name_and_its_constants_can_change():
  """STiCA has 257 bins and 199 windows per second; patches are 16 windows x 5 bins."""
  for changes, bins in ((dict(), 257), (dict(mel_bins=128), 128)):
    tower = Vatt.from_config(audio=dict(
        kind='spectrogram', spectrogram=dict(name='stica', **changes), **SIZE))
    variables = jax.eval_shape(tower.init, jax.random.key(0),
                               dict(audio=jnp.zeros((1, 24_000))))
    tables = variables['params']['tokenizers_audio']
    assert tables['time_positions'].shape == (-(-199 // 16), 16)
    assert tables['frequency_positions'].shape == (-(-bins // 5), 16)


def test_spectrogram_normalization_follows_name_and_settings():
  def spectrogram(**settings):
    audio = dict(kind='spectrogram', spectrogram=settings, **SIZE)
    return Vatt.from_config(audio=audio).tokenizers['audio'].spectrogram
  assert spectrogram().normalize == 'min_max'
  assert spectrogram(name='mmv').normalize == 'none'
  # Settings that are older than `normalize`.
  standardized = spectrogram(name='vatt', mean=3.0, std=3.5)
  assert (standardized.normalize, standardized.std) == ('standardize', 3.5)
  assert spectrogram(name='gdt', normalize='min_max').mean == 0
  with pytest.raises(UserError, match=r"spectrogram: mean=2\.0, std=1\.0: unused with"):
    spectrogram(normalize='none', mean=2.0)


def test_spectrograms_are_masked_only_in_training():
  masks = dict(time_masks=2, time_width=10, frequency_masks=0, frequency_width=0)
  plain, masking = (Vatt.from_config(audio=dict(
      kind='spectrogram', spectrogram=dict(name='gdt'), patch=(1, 40), **more, **SIZE))
                    for more in ({}, dict(spec_augment=masks)))
  audio = dict(audio=jax.random.uniform(jax.random.key(0), (3, 24_000), minval=-1.0))
  variables = plain.init(jax.random.key(1), audio)
  tokenizers = [m.bind(variables).tokenizers['audio'] for m in (plain, masking)]
  whole, evaluated = (t(audio['audio']).x for t in tokenizers)
  np.testing.assert_array_equal(whole, evaluated)
  masked = tokenizers[1](audio['audio'], clip_keys.make(2, 0, 3)).x
  changed = (abs(masked - whole) > 1e-6).any(-1)                     # [3, 99]
  assert changed.any() and changed.sum(1).max() <= 20
  assert (changed[0] != changed[1]).any()    # each clip draws its own


def _mean_of_tokens(variant, **text):
  """Returns a model of text by the mean of tokens, its variables and sentences."""
  settings = dict(vocabulary_size=32, width=8, depth=0) | text
  model = Vatt.from_config(text=settings, head=HEAD, variant=variant)
  sentences = jnp.array([[[3, 4, 0, 0, 0], [5, 6, 7, 8, 9], [0, 0, 0, 0, 0]]])
  return model, model.init(jax.random.key(0), {'text': sentences}), sentences


def test_text_of_depth_0_is_the_mean_of_its_tokens():
  """Padding does not count, although it has a vector."""
  model, variables, text = _mean_of_tokens('paper', num_heads=3, mlp_dim=5)
  out = model.apply(variables, {'text': text})
  table = variables['params']['tokenizers_text']['embedding']['embedding']
  pooled = out['pooled']['text']
  np.testing.assert_allclose(pooled[0, 0], (table[3] + table[4]) / 2, atol=1e-6)
  np.testing.assert_allclose(pooled[0, 1], table[5:10].mean(0), atol=1e-6)
  assert table[0].any() and not pooled[0, 2].any()
  np.testing.assert_allclose(out['tokens']['text'][0, 0, :2], table[3:5], atol=1e-6)
  short = model.apply(variables, {'text': text[:, :1, :2]})
  np.testing.assert_allclose(short['pooled']['text'][0, 0], pooled[0, 0], atol=1e-6)
  size = Vatt.from_config(text=dict(size='small', vocabulary_size=9, depth=0))
  assert size.tokenizers['text'].width == 512


def test_text_of_depth_0_in_the_release_averages_projected_frozen_vectors():
  model, variables, text = _mean_of_tokens('release', table_width=6)
  projection = variables['params']['backbones_text']['projection']['kernel']
  table = variables['frozen']['tokenizers_text']['embedding']
  assert projection.shape == (6, 8) and table.shape == (32, 6)
  pooled = model.apply(variables, {'text': text})['pooled']['text']
  np.testing.assert_allclose(pooled[0, 1], (table[5:10] @ projection).mean(0),
                             atol=1e-6)


@pytest.mark.parametrize('variant, trained', [
    ('paper', {'tokenizers_text'}), ('release', {'backbones_text'})])
def test_text_of_depth_0_trains_only_its_vectors_and_has_no_agg(variant, trained):
  model, variables, text = _mean_of_tokens(variant)
  assert variables['params'].keys() - {'head'} == trained

  def loss(params, text):
    batch = {'text': text, 'key': clip_keys.make(0, 0, 1)}
    out = model.apply(variables | {'params': params}, batch, train=True,
                      rngs={'dropout': jax.random.key(0)}, mutable='batch_stats')[0]
    return (out['embed']['video_text']['text'] ** 3).sum()

  grads = jax.grad(loss)(variables['params'], text)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
  if variant == 'paper':
    moved = np.asarray(grads['tokenizers_text']['embedding']['embedding']).any(1)
    assert set(np.flatnonzero(moved)) <= set(range(3, 10)) and moved.any()
  # The same holds for a batch without sentences.
  empty = jax.grad(loss)(variables['params'], jnp.zeros_like(text))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(empty))


def test_classifier_gives_logits_of_one_modality_by_column():
  settings = dict(video=SPECIFIC['video'],
                  head=dict(name='classifier', num_classes=7, dropout_rate=0.5))
  model, batch = Vatt.from_config(**settings), _batch()
  variables = model.init(jax.random.key(0), batch)
  outputs = model.apply(variables, batch)
  assert outputs['logits'].shape == (4, 7) and 'embed' not in outputs
  kernel, bias = (variables['params']['head']['logits'][k] for k in ('kernel', 'bias'))
  np.testing.assert_allclose(outputs['logits'],
                             outputs['pooled']['video'] @ kernel + bias, atol=1e-5)
  columns = model.clone(head=model.head.clone(num_classes=dict(verb=7, noun=3)))
  head = columns.init(jax.random.key(0), batch)['params']['head']
  head['logits_verb'] = variables['params']['head']['logits']
  by_column = columns.apply({'params': variables['params'] | dict(head=head)}, batch)
  np.testing.assert_array_equal(by_column['logits']['verb'], outputs['logits'])
  kernel, bias = (head['logits_noun'][k] for k in ('kernel', 'bias'))
  np.testing.assert_allclose(by_column['logits']['noun'],
                             outputs['pooled']['video'] @ kernel + bias, atol=1e-5)
  two = Vatt.from_config(audio=SPECIFIC['audio'], **settings)
  with pytest.raises(ValueError, match='classifier of video, audio: expected one'):
    two.init(jax.random.key(0), batch)


@pytest.mark.parametrize('settings, message', [
    (dict(), 'model: no modality'),
    (dict(video=dict(size='huge')), r"model\.video: size='huge': expected one of"),
    (dict(video=dict(width=8)), r'model\.video\.depth: missing; give it, or a size'),
    (dict(SPECIFIC, variant='peper'), r"model: variant='peper': did you mean paper"),
    (dict(audio=dict(size='small', kind='wave')), r"model\.audio: kind='wave'"),
    (dict(audio=dict(SIZE, kind='spectrogram', spectrogram=dict(name='ast'))),
     r"model\.audio\.spectrogram: name='ast': expected one of vatt, mmv, gdt, stica"),
    (dict(audio=dict(SIZE, kind='spectrogram', spectrogram=dict(bins=9))),
     r'model\.audio\.spectrogram\.bins: unknown key; '),
    (dict(audio=dict(SIZE, kind='spectrogram', spectrogram=dict(audio_hz=8000))),
     r'model\.audio\.spectrogram: low_hz=80\.0, high_hz=7600\.0: expected'),
    (dict(audio=dict(SIZE, kind='spectrogram', spec_augment=dict(time_masks=1))),
     r'model\.audio\.spec_augment\.time_width: missing'),
    (dict(AGNOSTIC, shared=dict(SIZE, depht=1)),
     r'model\.shared\.depht: unknown key; did you mean depth\?'),
    (dict(AGNOSTIC, shared=dict(SIZE, projected_width=9)), 'projected_width: unknown'),
    (dict(AGNOSTIC, text=dict(vocabulary_size=9)), r'model\.text\.max_tokens: missing'),
    (dict(video=dict(SIZE, depth=0)), r'model\.video\.depth=0: expected 1 or more'),
    (dict(AGNOSTIC, shared=dict(SIZE, depth=0)), r'shared\.depth=0: expected 1 or'),
    (dict(text=dict(SIZE, depth=-1)), r'model\.text\.depth=-1: expected 0 or more'),
    (dict(SPECIFIC, dtype='int32'), r"model: dtype='int32': expected one of float32"),
    (dict(video=dict(SIZE, drop_token_rate=1.0)), r'video: drop_token_rate=1\.0: exp'),
    (dict(SPECIFIC, head=dict(name='fcc')), r"model\.head: name='fcc': ")])
def test_wrong_model_setting_is_named(settings, message):
  with pytest.raises(UserError, match=message):
    models.from_config(settings)
