"""vatt_jax/train_step.py and vatt_jax/distributed/sharding.py"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vatt_jax import losses as losses_lib
from vatt_jax import models
from vatt_jax import optim
from vatt_jax import train_step
from vatt_jax.distributed import sharding
from vatt_jax.errors import UserError
from vatt_jax.inputs import augment
from vatt_jax.losses import classification
from vatt_jax.losses import contrastive
from vatt_jax.models.vatt import Vatt

SIZE = dict(width=16, depth=1, num_heads=2, mlp_dim=32)


def make_model(variant='paper', agnostic=False, dtype='float32', head=()):
  size, text = ({}, dict(max_tokens=5)) if agnostic else (SIZE, SIZE)
  return Vatt.from_config(
      video=dict(patch=(2, 4, 4), drop_token_rate=0.5, **size),
      audio=dict(patch=(16,), drop_token_rate=0.5, **size),
      text=dict(vocabulary_size=32, **text), shared=SIZE if agnostic else None,
      head=dict(head, video_audio_dim=12, video_text_dim=10), variant=variant,
      dtype=dtype)


def make_task(seed=0, optimizer=None, variant='paper', temperature=0.1, mesh=None,
              **weights):
  """Makes a task; with `temperature=None` the temperature is trained, from 0.1."""
  losses = {
      pair: loss(pair=pair, weight=weights.get(pair, 1.0),
                 temperature=temperature or 0.1, learn_temperature=not temperature)
      for pair, loss in (('video_audio', contrastive.NCE),
                         ('video_text', contrastive.MilNCE))}
  return train_step.Task(make_model(variant), losses, optimizer or optax.adam(1e-2),
                   optax.constant_schedule(1e-2), seed, mesh=mesh)


def make_batch(b=8, seed=0):
  rng = np.random.default_rng(seed)
  return dict(
      video=rng.integers(0, 256, (b, 4, 8, 8, 3), np.uint8),
      audio=rng.integers(-2**15, 2**15, (b, 128)).astype(np.int16),
      text=rng.integers(1, 32, (b, 3, 5)).astype(np.int32),
      has_audio=np.arange(b) != 2, has_text=np.ones(b, bool),
      id=np.arange(b, dtype=np.int32), mask=np.ones(b, bool))


@pytest.fixture(scope='module')
def task():
  return make_task()


def _flat(tree):
  return {jax.tree_util.keystr(k): np.asarray(v)
          for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def test_training_lowers_the_loss(task):
  state, batch, losses = task.init(make_batch()), make_batch(), []
  for _ in range(30):
    state, metrics = task.train_step(state, batch)
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.7 * losses[0]
  assert int(state.step) == 30


def test_loss_is_the_weighted_sum_of_its_terms():
  task = make_task(video_audio=2.0, video_text=0.5)
  _, metrics = task.train_step(task.init(make_batch()), make_batch())
  np.testing.assert_allclose(
      metrics['loss'],
      2 * metrics['loss_video_audio'] + 0.5 * metrics['loss_video_text'], rtol=1e-6)


def test_same_seed_and_step_give_the_same_bits(task):
  results = [task.train_step(task.init(make_batch()), make_batch()) for _ in (0, 1)]
  jax.tree.map(np.testing.assert_array_equal, *results)
  other = make_task(seed=1).init(make_batch()).params
  kernels = [p['tokenizers_video']['projection']['kernel']
             for p in (other, results[0][0].params)]
  assert (kernels[0] != kernels[1]).all()


@pytest.mark.slow
def test_dropped_tokens_differ_from_step_to_step():
  """With a learning rate of 0 only the draw can change the loss."""
  task = make_task(optimizer=optax.sgd(0.0))
  state, losses = task.init(make_batch()), []
  for _ in range(3):
    state, metrics = task.train_step(state, make_batch())
    losses.append(float(metrics['loss']))
  assert len(set(losses)) == 3


@pytest.mark.parametrize('absent', ['audio', 'text'])
def test_missing_modality_gets_no_gradient(absent):
  task = make_task(optimizer=optax.sgd(1.0))
  batch = make_batch()
  if absent == 'audio':
    batch['has_audio'] = np.zeros(8, bool)
  else:
    batch['text'] = np.zeros_like(batch['text'])
  before, stats = (_flat(x) for x in (task.init(batch).params,
                                      task.init(batch).model_state))
  state, metrics = task.train_step(task.init(batch), batch)
  stale = {k for k, v in _flat(state.model_state).items() if (v == stats[k]).all()}
  norms = f"['batch_stats']['head']['{absent}_"
  assert stale == {k for k in stats if k.startswith(norms)}
  changed = {k for k, v in _flat(state.params).items() if (v != before[k]).any()}
  assert metrics[f'loss_video_{absent}'] == 0
  assert changed and not any(f's_{absent}' in k for k in changed)
  assert any('backbones_video' in k for k in changed)


def test_clip_without_audio_does_not_change_the_step():
  """Every parameter is the same for any samples in its place."""
  task = make_task()
  batch, other = make_batch(), make_batch()
  other['audio'][2] = 1234
  one, two = (task.train_step(task.init(b), b)[0] for b in (batch, other))
  for key, value in _flat(one.params).items():
    np.testing.assert_allclose(value, _flat(two.params)[key], atol=1e-7)


@pytest.mark.parametrize('video_audio, video_text', [
    ('paper', 'symmetric'),
    pytest.param('asymmetric', 'siglip', marks=pytest.mark.slow)])
def test_step_with_absent_rows_equals_a_step_without_them(video_audio,
                                                                   video_text):
  """Clips that lack all modalities count in no loss."""
  losses = dict(
      video_audio=contrastive.NCE(pair='video_audio', temperature=0.1,
                                  form=video_audio),
      video_text=contrastive.SigLIP(pair='video_text', temperature=0.1, bias=-2.0)
      if video_text == 'siglip' else contrastive.MilNCE(
          pair='video_text', temperature=0.1, form=video_text))
  model = Vatt.from_config(    # drops no tokens: draws depend on the rows' places
      video=dict(patch=(2, 4, 4), **SIZE), audio=dict(patch=(16,), **SIZE),
      text=dict(vocabulary_size=32, **SIZE),
      head=dict(video_audio_dim=12, video_text_dim=10))
  task = train_step.Task(model, losses, optax.sgd(0.1), optax.constant_schedule(0.1), 0)
  whole = make_batch(10) | dict(has_video=np.ones(10, bool))
  absent = np.isin(np.arange(10), (4, 7))
  for modality in ('video', 'audio'):
    whole[f'has_{modality}'] = whole[f'has_{modality}'] & ~absent
  whole['has_text'] = ~absent
  whole['text'][absent] = 0
  rest = {k: v[~absent] for k, v in whole.items()}
  (state, metrics), (expected_state, expected) = (
      task.train_step(task.init(b), b) for b in (whole, rest))
  np.testing.assert_allclose(metrics['loss'], expected['loss'], rtol=1e-5)
  for key, value in _flat(expected_state).items():
    np.testing.assert_allclose(_flat(state)[key], value, rtol=1e-4, atol=1e-5,
                               err_msg=key)


def test_clip_without_video_does_not_change_the_step():
  """Every parameter is the same for any frames in its place."""
  task = make_task()
  batch = make_batch() | dict(has_video=np.arange(8) != 5)
  other = make_batch() | dict(has_video=np.arange(8) != 5)
  other['video'][5] = 77
  one, two = (task.train_step(task.init(b), b)[0] for b in (batch, other))
  for key, value in _flat(one.params).items():
    np.testing.assert_allclose(value, _flat(two.params)[key], atol=1e-7)


@pytest.mark.slow
def test_two_devices_take_the_same_step_as_one():
  """The loss and batch statistics are over the whole batch, not a device's rows."""
  assert jax.device_count() == 2
  batch = make_batch()
  task = make_task(optimizer=optax.sgd(0.01))
  one, metrics_one = task.train_step(task.init(batch), batch)
  mesh = sharding.make_mesh(8)
  split = dataclasses.replace(task, mesh=mesh)
  two, metrics_two = split.train_step(split.init(batch),
                                      sharding.to_devices(batch, mesh))
  assert len(jax.tree.leaves(two.params)[0].sharding.device_set) == 2
  np.testing.assert_allclose(metrics_one['loss'], metrics_two['loss'], rtol=1e-6)
  for key, value in _flat(one).items():
    np.testing.assert_allclose(value, _flat(two)[key], rtol=1e-5, atol=1e-5,
                               err_msg=key)


def test_batch_that_does_not_split_is_refused():
  with pytest.raises(UserError, match=r'batch_size=7: expected .* such as 6'):
    sharding.make_mesh(7)


def test_bfloat16_towers_are_close_to_float32_and_keep_float32_parameters():
  batch = make_batch()
  sizes = dict(video=dict(patch=(2, 4, 4), **SIZE), audio=dict(patch=(16,), **SIZE),
               text=dict(vocabulary_size=32, **SIZE),
               head=dict(video_audio_dim=12, video_text_dim=10))
  embeds = []
  for dtype in ('float32', 'bfloat16'):
    task = train_step.Task(Vatt.from_config(**sizes, dtype=dtype), {}, optax.sgd(0.1),
                     optax.constant_schedule(0.1), 0)
    state = task.init(batch)
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {'float32'}
    embeds.append(task.predict(state, batch)['embed'])
  for a, b in zip(*map(jax.tree.leaves, embeds), strict=True):
    assert jnp.sum(a * b, -1).min() > 0.98


def test_bfloat16_step_sums_in_float32_and_donates_the_old_state():
  """Loss, gradients and parameters are float32, while products are bfloat16."""
  gradients = []
  spy = optax.stateless(lambda grads, _: gradients.append(grads) or grads)
  task = make_task(optimizer=optax.chain(spy, optax.adam(1e-2)))
  task = dataclasses.replace(task, model=make_model(dtype='bfloat16'))
  state = task.init(make_batch())
  program = str(jax.make_jaxpr(task.train_step)(state, make_batch()))
  assert re.search(r'bf16\[[\d,]*\] = dot_general', program)
  new, metrics = task.train_step(state, make_batch())
  trees = (new.params, metrics, gradients[0])
  assert {x.dtype.name for x in jax.tree.leaves(trees)} == {'float32'}
  assert all(x.is_deleted() for x in jax.tree.leaves(state))


def test_learnable_temperature_is_trained_and_reported():
  task = make_task(temperature=None)
  state, metrics = task.train_step(task.init(make_batch()), make_batch())
  for _ in range(2):
    state, later = task.train_step(state, make_batch())
  np.testing.assert_allclose(metrics['temperature_video_audio'], 0.1, rtol=1e-6)
  assert later['temperature_video_audio'] != metrics['temperature_video_audio']
  assert state.params['losses'].keys() == {'video_audio', 'video_text'}
  assert task.predict(state, make_batch()).keys() == {'pooled', 'embed'}


def test_learnable_temperature_stops_at_its_bound_and_can_rise_again():
  """At the bound it can still follow its gradient upwards."""

  class Pull(contrastive.NCE):
    sign = 1.0

    def _loss(self, anchors, others, present, anchor_mask, numbers):
      return self.sign * numbers['temperature']

  pull = Pull(pair='video_audio', temperature=0.1, learn_temperature=True)
  task = train_step.Task(make_model(), dict(video_audio=pull), optax.sgd(50.0),
                   optax.constant_schedule(50.0), 0)
  state, batch = task.init(make_batch()), make_batch()
  for _ in range(2):
    state, _ = task.train_step(state, batch)
  least = state.params['losses']['video_audio']['temperature']
  np.testing.assert_allclose(jnp.exp(least), 0.01, rtol=1e-5)
  Pull.sign = -1.0
  outputs = dict(embed={'video_audio': dict(video=None, audio=None)})
  gradient = jax.grad(lambda p: losses_lib.total_loss(
      task.losses, {'video_audio': {'temperature': p}}, outputs, batch)[0])(least)
  assert gradient < 0


def test_audio_and_text_are_paired_where_both_are_present():
  """Text of a clip without audio is left out of the audio-text pairs."""
  model = make_model(head=dict(audio_text=True))
  losses = {'audio_text': contrastive.MilNCE(pair='audio_text', temperature=0.1)}
  batch = make_batch()
  outputs = jax.jit(model.init_with_output)(
      jax.random.key(0), augment.normalize(batch))[0]
  embed = outputs['embed']
  loss, metrics, _ = losses_lib.total_loss(losses, {}, outputs, batch)
  kept = np.arange(8) != 2
  alone = contrastive.mil_nce(
      embed['video_text']['audio'][kept], embed['video_text']['text'][kept],
      jnp.ones((7, 3), bool), 0.1)
  np.testing.assert_allclose(loss, alone, rtol=1e-5)
  assert metrics.keys() == {'loss_audio_text'}


def make_classifier(optimizer=None, **more):
  """Makes a task that classifies videos into three classes."""
  model = Vatt.from_config(video=dict(patch=(2, 4, 4), **SIZE),
                            head=dict(name='classifier', num_classes=3))
  losses = {'label': classification.Softmax()}
  return train_step.Task(model, losses, optimizer or optax.sgd(0.1),
                   optax.constant_schedule(0.1), 0, **more)


def labeled_batch():
  """Returns a batch in which each class has another brightness."""
  batch = {k: v for k, v in make_batch().items() if k in ('video', 'mask')}
  label = np.arange(8) % 3
  batch['video'] = (batch['video'] // 4 + 80 * label[:, None, None, None, None]).astype(
      np.uint8)
  return batch | dict(has_video=np.ones(8, bool),
                      labels=dict(label=np.eye(3, dtype=bool)[label]))


def test_classifier_learns_its_labels():
  task, batch = make_classifier(), labeled_batch()
  state = task.init(batch)
  for _ in range(40):
    state, metrics = task.train_step(state, batch)
  assert float(metrics['loss']) == float(metrics['loss_label']) < 0.3
  np.testing.assert_array_equal(task.predict(state, batch)['logits'].argmax(axis=1),
                                np.arange(8) % 3)


def test_absent_video_does_not_count_in_classification():
  task, batch = make_classifier(), labeled_batch()
  batch['has_video'][3] = False
  _, metrics = task.train_step(task.init(batch), batch)
  logits = task.predict(task.init(batch), batch)['logits']
  kept = np.arange(8) != 3
  expected = classification.softmax(logits[kept], batch['labels']['label'][kept],
                                    np.ones(7, bool))
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)


def assert_moved_alike(actual, expected, before):
  """Compares to 1e-4 of the update of a parameter by plain gradient descent.

  The same step differs by so much if the compiler optimizes it differently.
  """
  actual, expected, before = map(_flat, (actual, expected, before))
  for key, value in expected.items():
    scale = abs(value - before[key]).max()
    np.testing.assert_allclose(actual[key], value, rtol=1e-6,
                               atol=max(1e-4 * scale, 5e-6), err_msg=key)


def assert_microbatches_change_nothing(task, batch, num_microbatches=4):
  task = dataclasses.replace(task, optimizer=optax.sgd(1.0))
  (whole, expected), (split, metrics) = (
      dataclasses.replace(task, num_microbatches=n).train_step(task.init(batch), batch)
      for n in (1, num_microbatches))
  assert_moved_alike(split, whole, task.init(batch))
  for key, value in metrics.items():
    np.testing.assert_allclose(value, expected[key], rtol=2e-5, err_msg=key)


@pytest.mark.parametrize('variant', [
    'paper', pytest.param('release', marks=pytest.mark.slow)])
def test_microbatches_do_not_change_the_step(variant):
  """Losses and statistics are of the whole batch; each clip's draws stay the same."""
  task = make_task(variant=variant, temperature=None)
  backbones = {m: x.clone(dropout_rate=0.0) for m, x in task.model.backbones.items()}
  tokenizers = {m: x.clone(dropout_rate=0.0) for m, x in task.model.tokenizers.items()}
  change = augment.Augment(copies=('forward', 'reversed'), flip_rate=0.5, noise=0.1)
  assert_microbatches_change_nothing(dataclasses.replace(
      task, model=task.model.clone(backbones=backbones, tokenizers=tokenizers),
      augment=change), make_batch())


def make_crops_task():
  """Makes a task of GDT and STiCA on VATT's towers: eight rows of each clip."""
  model = models.from_config(dict(
      name='mmv', head=dict(name='projection', hidden_dim=8, dim=8),
      audio=dict(name='vatt', patch=(16,), **SIZE), video=dict(
          name='vatt', patch=(2, 4, 4), **SIZE,
          pooling=dict(name='transformer', depth=1, num_heads=2, mlp_dim=16),
          crops=dict(space_large=(1, 2), space_small=(2, 1), time_large=(1, 2),
                     time_small=(1, 1)))))
  kinds = dict(gdt=dict(shift='distinctive', reversal='invariant'), stica={})
  losses = {f'{name}_{n}': losses_lib.build(
      'video_audio', dict(name=name, num_chunks=n, **kind), num_shifts=2, num_views=2,
      num_copies=2, crops=model.num_crops())
            for name, kind in kinds.items() for n in (1, 2)}
  change = augment.Augment(copies=('forward', 'reversed'), flip_rate=0.5, noise=0.1)
  return train_step.Task(model, losses, optax.sgd(1.0), optax.constant_schedule(1.0), 0,
                         change, rows_per_clip=4)


def crops_batch():
  return {k: v for k, v in make_batch().items() if k not in ('text', 'has_text')}


@pytest.mark.slow
def test_step_of_copies_shifts_views_and_crops_trains_by_losses_in_chunks():
  task, batch = make_crops_task(), crops_batch()
  outputs = task.trace_outputs(batch)
  assert outputs['pooled']['video_crops'].shape == (16, 5, 16)
  assert outputs['embed']['video_audio']['audio'].shape == (16, 8)
  state = task.init(batch)
  before = jax.device_get(state.params)
  state, metrics = task.train_step(state, batch)
  for name in ('gdt', 'stica'):
    whole, chunked = (metrics[f'loss_{name}_{n}'] for n in (1, 2))
    assert 0 < whole < 10
    np.testing.assert_allclose(chunked, whole, rtol=1e-6)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.params)
  assert moved['poolings_video']['positions']
  assert moved['head']['audio']['out']['kernel']


@pytest.mark.slow
def test_microbatches_do_not_change_the_step_of_copies_and_crops():
  assert_microbatches_change_nothing(make_crops_task(), crops_batch(),
                                     num_microbatches=2)


@pytest.mark.slow
def test_microbatches_do_not_change_the_step_of_a_classifier():
  """It has mixup across microbatches, masks, dropout in the head and label counts."""
  model = Vatt.from_config(
      audio=dict(kind='spectrogram', patch=(2, 2), drop_token_rate=0.5,
                 spec_augment=dict(time_masks=1, time_width=3, frequency_masks=1,
                                   frequency_width=3), **SIZE),
      head=dict(name='classifier', num_classes=3, dropout_rate=0.5))
  losses = {'label': classification.BCE(balance=True)}
  frozen = lambda params: {k: jax.tree.map(lambda _, k=k: k == 'aggregators_audio', v)
                           for k, v in params.items()}
  task = train_step.Task(model, losses, optax.sgd(0.1), optax.constant_schedule(0.1), 0,
                   augment.Augment(noise=0.1, mixup=5.0), frozen)
  rng = np.random.default_rng(0)
  batch = dict(audio=rng.integers(-2**15, 2**15, (8, 8192)).astype(np.int16),
               has_audio=np.arange(8) != 2,
               labels=dict(label=np.eye(3, dtype=bool)[np.arange(8) % 3]))
  assert_microbatches_change_nothing(task, batch, num_microbatches=2)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [dict(), dict(data=1, fsdp=2)])
def test_memory_savings_together_do_not_change_the_step(mesh):
  """Two devices use microbatches, chunks, a loop over layers and recomputation."""
  size = dict(width=16, depth=3, num_heads=2, mlp_dim=32)
  batch = make_batch()
  states = []
  for saving in (False, True):
    model = Vatt.from_config(
        video=dict(patch=(2, 4, 4), drop_token_rate=0.5, **size),
        audio=dict(patch=(16,), drop_token_rate=0.5, **size),
        text=dict(vocabulary_size=32, **size),
        head=dict(video_audio_dim=12, video_text_dim=10),
        **(dict(remat='blocks', scan_layers=True) if saving else {}))
    losses = {pair: loss(pair=pair, temperature=0.1, form='asymmetric',
                         num_chunks=2 if saving else 1)
              for pair, loss in (('video_audio', contrastive.NCE),
                                 ('video_text', contrastive.MilNCE))}
    task = train_step.Task(model, losses, optax.sgd(1.0),
                           optax.constant_schedule(1.0), 0,
                           num_microbatches=2 if saving else 1)
    placed = batch
    if saving:
      task = dataclasses.replace(task, mesh=sharding.make_mesh(8, **mesh))
      placed = sharding.to_devices(batch, task.mesh)
    states.append(task.train_step(task.init(batch), placed)[0])
  assert_moved_alike(*states[::-1], task.init(batch))


@pytest.mark.slow
def test_microbatches_take_less_memory():
  """The towers take most of the memory."""
  size = dict(width=64, depth=2, num_heads=2, mlp_dim=256)
  model = Vatt.from_config(
      video=dict(patch=(2, 4, 4), **size), audio=dict(patch=(4,), **size),
      head=dict(video_audio_dim=12, video_text_dim=10))
  losses = {'video_audio': contrastive.NCE(pair='video_audio', temperature=0.1)}
  task = train_step.Task(model, losses, optax.sgd(0.1), optax.constant_schedule(0.1), 0)
  batch = {k: v for k, v in make_batch(64).items() if k not in ('text', 'has_text')}
  state = jax.eval_shape(task.init, batch)
  memory = [train_step.Task.train_step.lower(
      dataclasses.replace(task, num_microbatches=n), state, batch).compile(
          ).memory_analysis().temp_size_in_bytes for n in (1, 8)]
  assert memory[1] < memory[0] / 4


@pytest.mark.parametrize('replicas, clip_norm', [
    pytest.param(1, 0.3, marks=pytest.mark.slow), (4, 2.0)])
def test_gradient_of_each_replica_is_clipped_before_the_sum(replicas, clip_norm):
  """The step equals the formula for each group of rows; one row is absent."""
  built = optim.build(10, 1.0, 1.0, 0, name='sgd', momentum=0.0, clip_norm=clip_norm,
                      clip_replicas=replicas)
  assert (built.clip is None) == (replicas == 1)
  task = make_classifier(built.update, clip=built.clip, num_microbatches=replicas)
  batch = labeled_batch()
  batch['has_video'][3] = False
  params = jax.device_get(task.init(batch).params)
  state, _ = task.train_step(task.init(batch), batch)
  groups = [np.arange(8)[r::replicas] for r in range(replicas)]
  images = augment.normalize(batch)['video']

  def loss(of_groups, head):
    logits = jnp.zeros((8, 3))
    for rows, own in zip(groups, of_groups, strict=True):
      logits = logits.at[rows].set(task.model.apply(
          {'params': own | {'head': head}}, dict(video=images[rows]))['logits'])
    return classification.softmax(logits, batch['labels']['label'], batch['has_video'])

  below = {k: v for k, v in params.items() if k != 'head'}
  shares, head = jax.jit(jax.grad(loss, argnums=(0, 1)))(
      [below] * replicas, params['head'])
  norms = np.array([optax.tree.norm(share) for share in shares])
  assert (norms > clip_norm).any() and ((norms < clip_norm).any() or replicas == 1)
  clipped = [optax.clip_by_global_norm(clip_norm).update(share, optax.EmptyState())[0]
             for share in shares]
  expected = jax.tree.map(lambda *x: sum(x), *clipped) | {'head': head}
  moved = jax.tree.map(lambda a, b: a - b, params, jax.device_get(state.params))
  for key, value in _flat(expected).items():
    np.testing.assert_allclose(_flat(moved)[key], value, rtol=1e-4, atol=1e-6,
                               err_msg=key)


def test_averaged_parameters_are_evaluated():
  task, batch = make_classifier(average_decay=0.9), labeled_batch()
  state = task.init(batch)
  expected = jax.device_get(state.params)
  for _ in range(3):
    state, _ = task.train_step(state, batch)
    expected = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, expected,
                            jax.device_get(state.params))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
               state.average, expected)
  plain = make_classifier()
  averaged = plain.predict(train_step.State(state.step, expected, {}, ()),
                           batch)['logits']
  np.testing.assert_allclose(task.predict(state, batch)['logits'], averaged, rtol=1e-4)


def test_frozen_parameters_stay_and_the_rest_moves():
  built = optim.build(10, 0.1, 0.1, 0, rules=(('head', 1.0), ('.*', 0.0)))
  task, batch = make_classifier(built.update, frozen=built.frozen), labeled_batch()
  before = task.init(batch).params
  state, metrics = task.train_step(task.init(batch), batch)
  moved = {k: any(np.any(a != b) for a, b in zip(
      jax.tree.leaves(before[k]), jax.tree.leaves(state.params[k]), strict=True))
           for k in before}
  assert moved == {k: k == 'head' for k in before}
  head = jax.grad(lambda p: classification.softmax(
      task.model.apply({'params': before | {'head': p}}, augment.normalize(batch))
      ['logits'], batch['labels']['label'], batch['has_video']))(before['head'])
  np.testing.assert_allclose(metrics['gradient_norm'], optax.tree.norm(head), rtol=1e-5)


@pytest.fixture
def strict_jax():
  """Sets JAX's checks of type promotion, leaked tracers and NaN."""
  flags = {'jax_numpy_dtype_promotion': 'strict', 'jax_check_tracer_leaks': True,
           'jax_debug_nans': True}
  before = {name: getattr(jax.config, name) for name in flags}
  for name, value in flags.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.mark.slow
@pytest.mark.parametrize('variant, agnostic, dtype', [
    ('paper', True, 'float32'), ('release', False, 'bfloat16')])
def test_step_passes_the_strictest_checks_of_jax(variant, agnostic, dtype, strict_jax):
  model = make_model(variant, agnostic, dtype, head=dict(audio_text=True))
  pairs = dict(video_audio=contrastive.NCE, video_text=contrastive.MilNCE)
  losses = {pair: loss(pair=pair, temperature=0.1, form='asymmetric')
            for pair, loss in pairs.items()}
  losses['audio_text'] = contrastive.SigLIP(
      pair='audio_text', temperature=0.1, bias=-10.0, learn_temperature=True)
  task = train_step.Task(model, losses, *optim.build(10, 1e-3, 1e-4, 2)[:2], 0,
                   augment.Augment(('forward', 'reversed'), flip_rate=0.5,
                                   color_rate=0.8, color_drop_rate=0.2, blur_rate=0.5,
                                   blur_size=0.5, volume=0.1, noise=0.01))
  batch = make_batch()
  batch['text'][1] = 0
  before = _flat(task.init(batch).model_state)
  state, metrics = task.train_step(task.init(batch), batch)
  assert metrics['loss'].dtype == jnp.float32 and metrics['loss'] > 0
  frozen = {k: v for k, v in _flat(state.model_state).items() if 'frozen' in k}
  assert len(frozen) == (variant == 'release')
  for key, table in frozen.items():
    np.testing.assert_array_equal(table, before[key])


def test_start_from_sets_parameters_and_average():
  random = dict(tower=jnp.zeros(3), head=jnp.ones(2), losses=jnp.ones(1))
  average = jax.tree.map(jnp.copy, random)
  state = train_step.State(jnp.int32(0), random, {}, (), average=average)
  initial = dict(params=dict(tower=jnp.full(3, 7.0),
                             head=jax.ShapeDtypeStruct((2,), jnp.float32)))
  begun = train_step.start_from(initial, state)
  for params in (begun.params, begun.average):
    assert {k: x[0] for k, x in params.items()} == dict(tower=7, head=1, losses=1)
  assert train_step.start_from(initial, state.replace(average=None)).average is None
  jax.jit(lambda state: state, donate_argnums=0)(begun)    # fails if buffers are shared
