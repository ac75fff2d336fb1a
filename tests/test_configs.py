"""Tests the configs of configs/: each loads, and trains a shrunk step."""

import importlib
import inspect
import itertools
import json
import pathlib
import re
import types

from flax import traverse_util
import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from vatt_jax import experiment
from vatt_jax import inherit
from vatt_jax import run_config
from vatt_jax import train
from vatt_jax.errors import UserError
from vatt_jax.inputs import sources
from vatt_jax.inputs.batches import train_batches
from vatt_jax.weights import load as weights
from vatt_jax.weights import vatt_tf2

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(set((ROOT / 'configs').glob('*.py')) - {ROOT / 'configs/common.py'})
# These configs train nothing.
LINEAR = [path for path in CONFIGS if path.stem.startswith('linear_')]
TRAINED = [path for path in CONFIGS if path not in LINEAR]

SHRUNK_TOWER = dict(width=16, depth=1, num_heads=2, mlp_dim=16)
SWITCHES = ('release', 'toy', 'release,toy')    # for configs with switches


def shrink(config: ConfigDict, toy_world: pathlib.Path) -> ConfigDict:
  """Shrinks a config to a small toy world: fewer steps, smaller towers and inputs."""
  config.total_steps, config.batch_size = 2, 4
  config.optim.warmup_steps = 1
  with config.unlocked(), config.ignore_type():
    config.data.path = str(toy_world / 'train.csv')
    config.data.captions = 'train_captions.csv'
    config.data.weights = ()    # a single source
    if 'youcook2' in config.evals:    # its data is not available in tests
      config.evals = {}
  config.window.update(num_frames=4, image_size=32, audio_hz=4000)
  towers = ('shared',) if 'shared' in config.model else ('video', 'audio', 'text')
  for tower in towers:
    with config.unlocked():
      config.model[tower].update(SHRUNK_TOWER)
  for evaluation in config.evals.values():
    for key, value in evaluation.items():
      if isinstance(value, str) and value.endswith('.csv'):
        evaluation[key] = str(toy_world / pathlib.Path(value).name)
  return config


def load(path: pathlib.Path, *switches: str) -> ConfigDict:
  config = importlib.import_module(f'configs.{path.stem}').get_config(*switches)
  config.lock()
  return config


# test_mmv_configs.py and test_gdt_configs.py have the others.
PRETRAINING = [path for path in CONFIGS
               if 'video_audio' in load(path).get('losses', {})
               and path.stem not in ('pretrain_mmv', 'pretrain_gdt')]


def takes_switches(path: pathlib.Path) -> bool:
  module = importlib.import_module(f'configs.{path.stem}')
  return bool(inspect.signature(module.get_config).parameters)


@pytest.mark.slow
@pytest.mark.parametrize('path, switches', [
    (path, switches) for path in PRETRAINING for switches in [(), ('release',)]
    if not switches or takes_switches(path)],
                         ids=lambda x: x.stem if isinstance(x, pathlib.Path) else
                         ','.join(x) or 'plain')
def test_every_config_trains_a_shrunk_step(path, switches, toy_world, tmp_path, capsys):
  config = shrink(load(path, *switches), toy_world)
  train.train(config.to_dict(), tmp_path)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert np.isfinite(results['train/loss'])
  assert results['input/skipped_files'] == 0
  assert re.fullmatch('[0-9a-f]{64}', results['params/sha256'])
  assert (tmp_path / 'report.html').stat().st_size > 10_000
  assert 'params/sha256' in capsys.readouterr().out


@pytest.mark.parametrize('path', [path for path in PRETRAINING if takes_switches(path)],
                         ids=lambda p: p.stem)
def test_switches_change_the_config_as_documented(path):
  whole = load(path)
  release = load(path, 'release')
  assert (whole.model.variant, release.model.variant) == ('paper', 'release')
  for loss in release.losses.values():
    assert (loss.form, loss.weight) == ('asymmetric', 0.5)
  assert (release.optim.decay, release.optim.warmup_steps) == ('half_cosine', 5000)
  assert release.augment.to_dict() == whole.augment.to_dict() | dict(noise=0.01)
  assert load(path, 'toy,release').to_dict() == load(path, 'release,toy').to_dict()
  sizes = {}
  for switch in SWITCHES:
    model, clip = experiment.model_and_clip(load(path, switch).to_dict())
    variables = jax.eval_shape(model.init, jax.random.key(0), clip)
    sizes[switch] = sum(x.size for x in jax.tree.leaves(variables['params']))
  assert sizes['toy'] < 1e6 < 1e8 < sizes['release']
  with pytest.raises(ValueError, match=r"'toys': unknown switch; did you mean toy\?"):
    load(path, 'toys')


@pytest.mark.slow
def test_toy_config_runs_unchanged(toy_world, tmp_path):
  """Except for the number of steps and clips; with the switch `release`, too."""
  config = load(pathlib.Path('configs/pretrain_mbs.py'), 'release,toy').to_dict()
  config['data'] |= dict(path=str(toy_world / 'train.csv'))
  config['optim']['warmup_steps'] = config['total_steps'] = 1
  for evaluation in config['evals'].values():
    evaluation |= {k: str(toy_world / pathlib.Path(v).name)
                   for k, v in evaluation.items() if str(v).endswith('.csv')}
  train.train(config, tmp_path / 'run')
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert 'retrieval/text_to_video/R@10' in results
  assert np.isfinite(results['train/loss'])


@pytest.mark.slow
def test_run_starts_from_a_released_checkpoint_of_another_input_size(toy_world,
                                                                     tmp_path):
  config = shrink(load(pathlib.Path('configs/pretrain_mbs.py'), 'release'), toy_world)
  config = config.to_dict() | dict(total_steps=0)
  model, clip = experiment.model_and_clip(config)
  smaller = {k: v if v.ndim < 5 else jax.ShapeDtypeStruct((1, 4, 16, 32, 3), v.dtype)
             for k, v in clip.items()}
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), smaller)
  vatt_tf2.export(jax.jit(model.init)(jax.random.key(3), zeros), tmp_path / 'ckpt-1')
  config['init_from'] = str(tmp_path / 'none' / 'ckpt-1')
  with pytest.raises(UserError, match='none/ckpt-1: no such folder or file'):
    train.train(config, tmp_path / 'run')
  config['init_from'] = str(tmp_path / 'ckpt-1')
  with pytest.raises(UserError, match=r'has no vocabulary file; set config\.data'):
    train.train(config, tmp_path / 'run')
  (tmp_path / 'words.txt').write_text('a\nred\n')
  config['data'] = config['data'] | dict(vocabulary=str(tmp_path / 'words.txt'))
  train.train(config, tmp_path / 'run')
  released, loaded = (weights.read(path)[1] for path in (
      config['init_from'], tmp_path / 'run'))
  towers = lambda v: v['params']['backbones_video']
  jax.tree.map(np.testing.assert_array_equal, towers(released), towers(loaded))
  rows = [v['params']['tokenizers_video']['vertical_positions'].shape[0]
          for v in (released, loaded)]
  assert rows == [1, 2]


@pytest.mark.slow
def test_release_variant_starts_from_word_vectors(toy_world, tmp_path, caplog):
  """Word vectors are not trained, are part of the checkpoint, and are read once."""
  config = shrink(load(pathlib.Path('configs/quickstart.py')), toy_world).to_dict()
  config |= dict(evals={}, total_steps=1)
  config['model'] |= dict(variant='release')
  config['model']['text'] |= dict(table_width=3)
  del config['model']['video'], config['losses']['video_audio']
  config['losses'] = {'audio_text': config['losses'].pop('video_text')}
  config['model']['head']['audio_text'] = True
  config['window']['modalities'] = ('audio', 'text')
  train.train(config, tmp_path / 'random')
  assert 'set config.model.text.word_vectors to a file' in caplog.text
  caplog.clear()
  path = tmp_path / 'vectors.txt'
  path.write_text('red 1 2 3\n')
  config['model']['text']['word_vectors'] = str(path)
  train.train(config, tmp_path / 'run')
  assert 'word_vectors' not in caplog.text
  tables = [weights.read(tmp_path / run)[1]['frozen']['tokenizers_text']['embedding']
            for run in ('random', 'run')]
  row = (tmp_path / 'run' / 'vocabulary.txt').read_text().split().index('red') + 2
  np.testing.assert_array_equal(tables[1][row], [1, 2, 3])
  assert np.abs(tables[0]).max() <= 0.05
  assert np.abs(np.delete(tables[1], row, axis=0)).max() <= 0.05
  path.unlink()
  train.train(config, tmp_path / 'run')
  train.train(config | dict(init_from=str(tmp_path / 'run')), tmp_path / 'second')
  with pytest.raises(UserError, match=r'vectors\.txt: no such file of word'):
    train.train(config, tmp_path / 'third')
  config['model']['variant'] = 'paper'
  del config['model']['text']['table_width']    # also a key of the release only
  with pytest.raises(UserError, match=r"text: word_vectors=.*: only variant='release'"):
    train.train(config, tmp_path / 'third')
  assert not (tmp_path / 'third').exists()


def test_run_resumes_if_a_new_key_is_off(toy_world, tmp_path):
  config = shrink(load(pathlib.Path('configs/quickstart.py')), toy_world).to_dict()
  (tmp_path / 'config.json').write_text(json.dumps(config))
  config['model']['text']['word_vectors'] = ''
  config['window']['audio_seconds'] = 0.0
  run_config.compare(config, tmp_path)
  config['window']['audio_seconds'] = 1.0
  with pytest.raises(UserError, match=r'window\.audio_seconds=None where this one'):
    run_config.compare(config, tmp_path)


@pytest.mark.parametrize('name, video, shared', [
    ('bbs', 'base', None), ('mbs', 'medium', None), ('lbs', 'large', None),
    ('ma', None, 'medium')])
def test_pretraining_configs_have_the_paper_values(name, video, shared):
  """Values of section 4.3 and Table 1."""
  c = load(pathlib.Path(f'configs/pretrain_{name}.py'))
  assert c.model.video.get('size') == video
  assert c.model.get('shared', {}).get('size') == shared
  if video:
    assert (c.model.audio.size, c.model.text.size) == ('base', 'small')
  assert (c.total_steps, c.batch_size) == (500_000, 2048)
  assert c.optim.to_dict() == dict(peak_rate=1e-4, final_rate=5e-5,
                                   warmup_steps=10_000, decay='quarter_cosine')
  model, clip = experiment.model_and_clip(c.to_dict())
  assert {k: v.shape[1:] for k, v in clip.items() if v.ndim > 1} == dict(
      video=(32, 224, 224, 3), audio=(153_600,), text=(5, 16))
  assert (c.window.frame_rate_hz, c.window.min_crop_area,
          c.window.max_crop_aspect) == (10, 0.08, 2)
  assert {k: c.augment[k] for k in ('brightness', 'saturation', 'contrast', 'hue')} == (
      dict(brightness=32 / 255, saturation=0.4, contrast=0.4, hue=0.2))
  assert {m: model.tokenizers[m].drop_token_rate for m in ('video', 'audio')} == dict(
      video=0.5, audio=0.5)
  assert model.tokenizers['text'].vocabulary_size == 2 ** 16
  assert (model.head.video_audio_dim, model.head.video_text_dim) == (512, 256)
  assert {(k, v.temperature, v.weight) for k, v in c.losses.items()} == {
      ('video_audio', 0.07, 1.0), ('video_text', 0.07, 1.0)}


@pytest.mark.parametrize('name', ['mbs', 'bbs', 'lbs', 'ma'])
def test_batch_8192_trains_for_six_epochs_of_howto100m(name):
  path = pathlib.Path(f'configs/pretrain_{name}.py')
  whole, larger = (flat(load(path, switches)) for switches in ('', 'batch_8192'))
  assert larger == whole | {'batch_size': 8192, 'total_steps': 199_218}
  # Half of each batch is from its 136 M clips (sections 4.1 and 4.4.4).
  epochs = [c['total_steps'] * c['batch_size'] / 2 / 136e6 for c in (whole, larger)]
  np.testing.assert_allclose(epochs, [4, 6], atol=0.25)
  assert load(path, 'batch_8192,release').batch_size == 8192
  with pytest.raises(ValueError, match='switches toy and batch_8192: expected'):
    load(path, 'toy,batch_8192')


@pytest.mark.parametrize('howto100m, audioset', [
    (1_200_000, 2_100_000), (136_000_000, 2_100_000), (10_000, 2_100_000)])
def test_each_dataset_gives_half_of_a_batch(howto100m, audioset):
  config = load(pathlib.Path('configs/pretrain_mbs.py'))
  for name in ('pretrain_bbs', 'pretrain_lbs', 'pretrain_ma', 'ablation'):
    for switches in ('', 'release'):
      other = load(pathlib.Path(f'configs/{name}.py'), switches)
      assert other.data.to_dict() == config.data.to_dict()
  assert [pathlib.Path(path).parent.name for path in config.data.path] == [
      'howto100m', 'audioset']
  reader = types.SimpleNamespace(
      clips=sources.Mixture([range(howto100m), range(audioset)], config.data.weights),
      window=types.SimpleNamespace(rows_per_clip=1),
      empty=lambda: dict(id=np.zeros((), np.int32)),
      read=lambda index, rng: [dict(id=np.int32(index))])
  batch = next(train_batches(reader, config.batch_size, seed=0, first_step=7))
  assert np.sum(batch['id'] < howto100m) == config.batch_size // 2


ABLATIONS = {    # the paper's Tables 9 to 13 -> changes of the config
    'video_32x200x200': {'window.image_size': 200, 'model.video.patch': (5, 16, 16)},
    'video_32x224x224': {'model.video.patch': (5, 16, 16)},
    'video_64x224x224': {'window.num_frames': 64, 'model.video.patch': (5, 16, 16)},
    'video_patch_4x16x16': {},
    'video_patch_5x16x16': {'model.video.patch': (5, 16, 16)},
    'video_patch_8x16x16': {'model.video.patch': (8, 16, 16)},
    'video_patch_8x32x32': {'model.video.patch': (8, 32, 32)},
    'audio_patch_128': {},
    'audio_patch_256': {'model.audio.patch': (256,)},
    'audio_patch_512': {'model.audio.patch': (512,)},
    'audio_patch_1024': {'model.audio.patch': (1024,)},
    'spectrogram': {'model.audio.kind': 'spectrogram', 'model.audio.patch': (16, 5),
                    'model.audio.spectrogram.name': 'vatt'},
    'drop_token_75': {f'model.{m}.drop_token_rate': 0.75 for m in ('video', 'audio')},
    'drop_token_50': {},
    'drop_token_25': {f'model.{m}.drop_token_rate': 0.25 for m in ('video', 'audio')},
    'drop_token_0': {f'model.{m}.drop_token_rate': 0.0 for m in ('video', 'audio')}}


def flat(config: ConfigDict) -> dict[str, object]:
  return {'.'.join(path): value for path, value in
          traverse_util.flatten_dict(config.to_dict(), keep_empty_nodes=True).items()}


# Number of tokens, if not 1568 for video and 1200 for audio.
ABLATED_TOKENS = {
    'video_32x200x200': dict(video=7 * 13 * 13), 'video_32x224x224': dict(video=1372),
    'video_64x224x224': dict(video=13 * 14 * 14, audio=2400),
    'video_patch_5x16x16': dict(video=1372), 'video_patch_8x16x16': dict(video=784),
    'video_patch_8x32x32': dict(video=196), 'audio_patch_256': dict(audio=600),
    'audio_patch_512': dict(audio=300), 'audio_patch_1024': dict(audio=150),
    'spectrogram': dict(audio=10 * 16)}


@pytest.mark.parametrize('variant', ABLATIONS)
def test_ablation_changes_only_the_documented_values(variant):
  ablation = pathlib.Path('configs/ablation.py')
  whole = flat(load(pathlib.Path('configs/pretrain_mbs.py')))
  # Section 4.3: ablations use batches of 512 and are otherwise the same.
  assert flat(load(ablation, variant)) == (
      whole | {'batch_size': 512} | ABLATIONS[variant])
  assert f' {variant} ' in importlib.import_module('configs.ablation').__doc__
  for switch in ('', ',release', ',toy', ',release,toy'):
    model, clip = experiment.model_and_clip(load(ablation, variant + switch).to_dict())
    tokens = {m: jax.eval_shape(model.tokenizers[m].init_with_output,
                                jax.random.key(0), clip[m])[0][0].shape[1]
              for m in ('video', 'audio')}
    assert min(tokens.values()) >= 1
    if not switch:
      assert tokens == dict(video=1568, audio=1200) | ABLATED_TOKENS.get(variant, {})


def test_only_one_ablation_at_a_time_and_toy_shrinks_it():
  module = importlib.import_module('configs.ablation')
  assert module.VARIANTS.keys() == ABLATIONS.keys()
  with pytest.raises(ValueError, match='switches spectrogram and drop_token_0: expe'):
    module.get_config('spectrogram,toy,drop_token_0')
  # On the toy world: a quarter of the frames and pixels, and the toy's sample rate.
  toy = flat(module.get_config('toy'))
  for variant, changes in {
      'video_64x224x224': {'window.num_frames': 16, 'window.image_size': 56,
                           'model.video.patch': (5, 16, 16)},
      'video_patch_8x32x32': ABLATIONS['video_patch_8x32x32'],
      'spectrogram': ABLATIONS['spectrogram'] | {
          'model.audio.spectrogram.audio_hz': 8000,
          'model.audio.spectrogram.high_hz': 4000.0}}.items():
    assert flat(module.get_config(f'{variant},toy')) == toy | changes


@pytest.mark.slow
@pytest.mark.parametrize('variant', ABLATIONS)
def test_ablation_trains_a_step_on_the_toy_world(variant, toy_world, tmp_path, capsys):
  config = load(pathlib.Path('configs/ablation.py'), f'{variant},toy').to_dict()
  config['data'] |= dict(path=str(toy_world / 'train.csv'))
  for tower in ('video', 'audio', 'text'):
    config['model'][tower] |= SHRUNK_TOWER
  config['optim']['warmup_steps'] = 1
  train.train(config | dict(evals={}, total_steps=1, batch_size=4), tmp_path / 'run')
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert np.isfinite(results['train/loss'])


def test_retrieval_config_has_the_paper_values():
  """Section 4.3: 4 windows of 32 frames, every second frame at 25 Hz, central crops."""
  path = pathlib.Path('configs/retrieval.py')
  c = load(path)
  window = inherit.inherit(c.to_dict())['window']
  assert (window['num_frames'], window['frame_rate_hz'], window['image_size']) == (
      32, 12.5, 224)
  # "We do not change the input size for audio": 1200 tokens, as in pre-training.
  shapes = experiment.model_and_clip(c.to_dict())[1]
  assert (shapes['audio'].shape, shapes['video'].shape) == (
      (1, 153_600), (1, 32, 224, 224, 3))
  assert load(path, 'video_64x224x224').window.audio_seconds == 6.4
  assert {name: (e.path, e.num_windows, e.num_crops, e.average)
          for name, e in c.evals.items()} == {
      name: (f'data/{name}/test.csv', 4, 1, 'embeddings')
      for name in ('youcook2', 'msrvtt')}
  for switches, trained, run in (
      ('', ('pretrain_mbs',), 'mbs'), ('ma', ('pretrain_ma',), 'ma'),
      ('release', ('pretrain_mbs', 'release'), 'mbs'),
      ('toy', ('quickstart',), 'quickstart')):
    config = load(path, switches)
    pretrained = load(pathlib.Path(f'{trained[0]}.py'), *trained[1:])
    filled = inherit.inherit(config.to_dict())['model']
    model = pretrained.model.to_dict()
    assert filled.items() <= model.items()
    assert model.keys() - filled.keys() <= {'attention', 'remat', 'scan_layers'}
    assert config.init_from == f'runs/{run}'
    model, clip = experiment.model_and_clip(config.to_dict())
    jax.eval_shape(model.init, jax.random.key(0), clip)
  for switches, message in (
      ('release,toy', 'switches release and toy: expected one of them'),
      ('mbs', "'mbs': unknown switch; expected some of manifest")):
    with pytest.raises(ValueError, match=message):
      load(path, switches)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_config_docstring_has_its_command(path):
  doc = importlib.import_module(f'configs.{path.stem}').__doc__
  assert f'--config=configs/{path.name}' in doc


def test_configs_are_found():
  assert {'quickstart', 'pretrain_folder'} <= {p.stem for p in CONFIGS}


@pytest.mark.slow
def test_results_have_the_documented_names(toy_world, tmp_path, capsys):
  train.train(shrink(load(pathlib.Path('configs/quickstart.py')), toy_world).to_dict(),
              tmp_path)
  results = json.loads((tmp_path / 'results.json').read_text())
  for a, b in itertools.permutations(('text', 'video', 'audio'), 2):
    if 'video' in (a, b):
      for measure in ('R@1', 'R@5', 'R@10', 'MedR'):
        assert {f'retrieval/{a}_to_{b}/{measure}',
                f'retrieval/{a}_to_{b}/chance_{measure}',
                f'retrieval/{a}_to_{b}/{measure}_random_init'} <= results.keys()
  for label in ('shape', 'motion', 'sound_event'):
    assert {f'probe/{label}/top1', f'probe/{label}/top1_random_init'} <= results.keys()
  assert {'input/skipped_files', 'input/no_video_files', 'input/no_audio_files',
          'train/loss', 'train/clips_per_second', 'params/sha256'} <= results.keys()
  assert all(isinstance(v, (int, float)) for k, v in results.items()
             if k != 'params/sha256')


@pytest.mark.slow
def test_run_of_zero_steps_evaluates_init_from(toy_world, tmp_path, capsys):
  config = shrink(load(pathlib.Path('configs/quickstart.py')), toy_world)
  with config.unlocked():
    del config.evals['probe']
  train.train(config.to_dict(), tmp_path / 'first')
  second = load(pathlib.Path('configs/retrieval.py'), 'toy,manifest').to_dict() | dict(
      model=config.model.to_dict(), window=config.window.to_dict(), batch_size=4)
  second |= dict(init_from=str(tmp_path / 'first'), seed=5)
  with pytest.raises(UserError, match=r"config\.evals\.manifest: path='': expected"):
    train.train(second, tmp_path / 'second')
  with pytest.raises(UserError, match=r'config\.losses: missing'):    # for training
    train.train(second | dict(total_steps=1), tmp_path / 'second')
  second['evals']['manifest']['path'] = config.evals.retrieval.path
  train.train(second, tmp_path / 'second')
  first, second = (json.loads((tmp_path / run / 'results.json').read_text())
                   for run in ('first', 'second'))
  assert first['params/sha256'] == second['params/sha256']
  same = [k for k in first if k.startswith('retrieval') and 'random' not in k]
  assert len(same) == 4 * 5 * 2    # directions, metrics, and their chance levels
  assert all(first[k] == second[k.replace('retrieval', 'manifest')] for k in same)
  assert 'train/loss' not in second


@pytest.mark.parametrize('key, value, message', [
    ('data.path', '', r'config\.data\.path: is empty; expected a folder'),
    ('data.captions', 'none.csv', r'none\.csv: no such captions file'),
    ('total_steps', -1, r'config\.total_steps=-1: expected 0 or more'),
    ('checkpoint.every_steps', 0, r'config\.checkpoint: every_steps=0'),
    ('losses.video_text.form', 'symetric', r"losses\.video_text: form='symetric'"),
    ('window.frame_rate_hz', 0.0, r'config\.window: frame_rate_hz=0'),
    ('batch_size', 3, 'batch_size=3: expected a multiple of the 2 devices'),
    ('losses.video_text.name', 'nec', r"video_text: name='nec': did you mean nce"),
    ('model.audio.num_heads', 3, r'model\.audio\.width=16: expected a multiple')])
def test_invalid_value_error_names_the_key(key, value, message, toy_world, tmp_path):
  config = shrink(load(pathlib.Path('configs/quickstart.py')), toy_world)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message) as error:
    train.train(config.to_dict(), tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('section, key', [
    (None, 'batchsize'), ('data', 'paths'), ('window', 'fps'), ('optim', 'lr'),
    ('checkpoint', 'every'), ('model', 'dtypes'), ('model.text', 'heads'),
    ('model.head', 'dim'), ('losses', 'video_adio'),
    ('losses.video_audio', 'tau'), ('evals.probe', 'columns')])
def test_unknown_key_error_names_the_key(section, key, toy_world, tmp_path):
  config = shrink(load(pathlib.Path('configs/quickstart.py')), toy_world).to_dict()
  place = config
  for name in (section or '').split('.'):
    place = place[name] if name else place
  place[key] = 1
  where = f'{section}.{key}' if section else key
  with pytest.raises(UserError, match=f'config.{where}: '):
    train.train(config, tmp_path)


@pytest.mark.parametrize('changes, message', [
    (dict(audio=None), r'video_audio: needs outputs\.embed\.video_audio\.audio'),
    (dict(head=None), r'needs outputs\.embed.*; the model and data provide outputs'),
    (dict(head=dict(name='classifier', num_classes=3)),
     'config.losses.video_audio: a classifier of video, audio, text: expected one')])
def test_loss_without_its_inputs_is_an_error(changes, message, toy_world, tmp_path):
  config = shrink(load(pathlib.Path('configs/quickstart.py')), toy_world).to_dict()
  for part, settings in changes.items():
    config['model'][part] = settings
  with pytest.raises(UserError, match=message):
    train.train(config, tmp_path / 'run')


def test_num_chunks_must_divide_the_batch(toy_world, tmp_path):
  config = shrink(load(pathlib.Path('configs/quickstart.py')), toy_world).to_dict()
  config['losses']['video_text']['num_chunks'] = 3
  with pytest.raises(UserError, match=r'video_text\.num_chunks=3: expected a div'):
    train.train(config, tmp_path / 'run')


def test_audio_text_loss_needs_audio_text_head(toy_world, tmp_path):
  config = shrink(load(pathlib.Path('configs/quickstart.py')), toy_world).to_dict()
  config['losses']['audio_text'] = dict(name='mil_nce', temperature=0.07)
  with pytest.raises(UserError, match=r'audio_text: needs outputs\.embed\.video_text'
                                      r'\.audio; .* add it to config\.model \(its'):
    train.train(config, tmp_path / 'run')


@pytest.mark.slow
def test_audio_text_loss_trains_with_audio_text_head(toy_world, tmp_path):
  config = shrink(load(pathlib.Path('configs/quickstart.py')), toy_world).to_dict()
  config['model']['head']['audio_text'] = True
  config['losses'] = {'audio_text': dict(name='mil_nce', temperature=0.07)}
  train.train(config | dict(evals={}), tmp_path / 'run')


@pytest.mark.slow
def test_model_without_text_trains_and_is_evaluated(toy_world, tmp_path):
  config = shrink(load(pathlib.Path('configs/quickstart.py')), toy_world).to_dict()
  del config['model']['text'], config['losses']['video_text'], config['evals']['probe']
  train.train(config, tmp_path / 'run')
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert 'retrieval/audio_to_video/R@1' in results
  assert not any('text' in name for name in results)
