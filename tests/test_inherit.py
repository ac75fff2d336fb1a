"""Tests vatt_jax/inherit.py: configs that take sizes from a checkpoint."""

import importlib
import json
import shutil

from absl import flags
from ml_collections import config_flags
import pytest

from vatt_jax import evaluate
from vatt_jax import inherit
from vatt_jax import train
from vatt_jax.errors import UserError
from vatt_jax.reports import run_figures

TOWER = dict(width=16, depth=1, num_heads=2, mlp_dim=24)
SIZES = dict(num_frames=4, frame_rate_hz=5.0, image_size=32, audio_hz=4000)
# A run's config as read from JSON; no config of configs/ has these sizes.
RUN = dict(
    total_steps=2, losses=dict(video_audio=dict(name='nce')),
    data=dict(path='clips', drop_stop_words=True),
    window=dict(SIZES, max_tokens=7, num_candidates=3, min_crop_area=0.4, num_shifts=2,
                num_views=2, min_shift_seconds=1.0),
    model=dict(variant='release',
               video=dict(TOWER, patch=[2, 8, 8], crops=dict(space_large=[2, 3])),
               audio=dict(TOWER, patch=[80], kind='spectrogram',
                          spectrogram=dict(name='vatt', audio_hz=4000)),
               text=dict(TOWER, vocabulary_size=64),
               head=dict(video_audio_dim=8, video_text_dim=6)),
    evals=dict(retrieval=dict(name='retrieval', path='', num_windows=1)))
FOLDER_CONFIGS = ('finetune_video_folder', 'finetune_audio_folder',
                  'finetune_image_folder', 'linear_folder', 'retrieval')


def config(name, *switches, init_from=''):
  c = importlib.import_module(f'configs.{name}').get_config(*switches)
  c.init_from = str(init_from)
  c.lock()
  return c


def from_command_line(name, *overrides):
  """Returns a config as `vatt_jax.main` gets it, and the command-line values."""
  values = flags.FlagValues()
  argv = ['main', *(f'--config.{override}' for override in overrides)]
  config_flags.DEFINE_config_dict('config', config(name), flag_values=values,
                                  sys_argv=argv)
  values(argv)
  return values.config.to_dict(), config_flags.get_override_values(values['config'])


@pytest.fixture
def source(tmp_path):
  folder = tmp_path / 'mine'
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(RUN))
  return folder


def test_empty_values_come_from_the_checkpoint(source):
  c = inherit.inherit(config('retrieval', 'manifest').to_dict(), source)
  assert 'defaults' not in c
  assert c['window'] == dict(SIZES, max_tokens=7, num_candidates=1)
  audio = RUN['model']['audio'] | dict(patch=(80,))
  assert c['model'] == RUN['model'] | dict(video=dict(TOWER, patch=(2, 8, 8)),
                                           audio=audio)
  assert c['data']['drop_stop_words'] is True and 'tokenizer' not in c['data']
  assert not c['data'].get('path')

  c = inherit.inherit(config('linear_folder', 'x=video').to_dict(), source)
  assert c['window'] == dict(SIZES, modalities=('video', 'audio'))
  assert c['model'].keys() == {'variant', 'video', 'audio'}

  c = inherit.inherit(config('finetune_audio_folder').to_dict(), source)
  assert c['window'] == dict(SIZES, modalities=('audio',), min_crop_area=0.3)
  assert c['model']['audio'] == audio | dict(drop_token_rate=0.0)
  assert c['model']['head']['name'] == 'classifier' and 'video' not in c['model']

  c = inherit.inherit(config('finetune_image_folder').to_dict(), source)
  assert c['window']['num_frames'] == 1 and c['window']['image_size'] == 32


def test_window_comes_from_defaults_if_the_checkpoint_has_none(source):
  """`vatt_jax import_vatt` writes such a checkpoint."""
  (source / 'config.json').write_text(json.dumps(dict(model=RUN['model'])))
  c = inherit.inherit(config('retrieval').to_dict(), source)
  assert c['model']['video']['width'] == 16
  assert c['window'] == dict(num_frames=32, frame_rate_hz=12.5, image_size=224,
                             audio_hz=48_000, audio_seconds=3.2, max_tokens=16,
                             num_candidates=1)


@pytest.mark.parametrize('name', FOLDER_CONFIGS)
def test_sizes_come_from_defaults_without_a_checkpoint(name):
  c = config(name).to_dict()
  resolved = inherit.inherit(c)
  towers = {m: resolved['model'][m] for m in ('video', 'audio') if m in c['model']}
  for modality, tower in towers.items():
    default = c['defaults']['model'][modality]
    assert {k: v for k, v in tower.items() if k != 'drop_token_rate'} == {
        k: v for k, v in default.items() if k != 'drop_token_rate'}
  # A TensorFlow checkpoint has no config either.
  assert inherit.inherit(c, '/nowhere/ckpt-1') == resolved


def test_command_line_values_take_precedence(source):
  c, _ = from_command_line(
      'finetune_video_folder', f'init_from={source}', 'window.image_size=64',
      'window.frame_rate_hz=2.5', 'model.dtype=bfloat16', 'model.video.patch=(2,8,8)')
  c = inherit.inherit(c, c['init_from'])
  assert c['window'] == dict(SIZES, image_size=64, frame_rate_hz=2.5, min_crop_area=0.3,
                             modalities=('video',))
  assert c['model']['dtype'] == 'bfloat16' and c['model']['video']['width'] == 16


def test_named_size_replaces_all_default_sizes():
  c, _ = from_command_line('finetune_video_folder', 'model.video.size=base')
  video = inherit.inherit(c)['model']['video']
  assert video == dict(size='base', patch=(4, 16, 16), drop_token_rate=0.0)


@pytest.mark.parametrize('override, message', [
    ('model.video.width=64', r'config\.model\.video\.width=64: the checkpoint .*mine '
     'has 16; leave it out, set it to that'),
    ('model.video.size=large', r"config\.model\.video\.size='large' \(depth=24\): the "
     'checkpoint .*mine has 1;'),
    ('model.video.patch=(4,8,8)', r'video\.patch=\(4, 8, 8\): the .* has \(2, 8, 8\)'),
    ('model.shared.depth=2', r'config\.model\.shared: the checkpoint .*mine has none')])
def test_wrong_size_error_names_the_size_of_the_checkpoint(override, message, source):
  c, _ = from_command_line('finetune_video_folder', override)
  with pytest.raises(UserError, match=message) as error:
    inherit.inherit(c, source)
  assert '\n' not in str(error.value)


def test_checkpoint_without_the_modality_is_an_error(source):
  model = {k: v for k, v in RUN['model'].items() if k != 'audio'}
  (source / 'config.json').write_text(json.dumps(RUN | dict(model=model)))
  with pytest.raises(UserError, match=r'config\.init_from=.*mine: the checkpoint has '
                                      'no audio; it has video, text'):
    inherit.inherit(config('finetune_audio_folder').to_dict(), source)
  retrieval = inherit.inherit(config('retrieval').to_dict(), source)
  assert retrieval['model'].keys() == model.keys()


def test_resumed_run_keeps_its_own_sizes(source, tmp_path):
  """The checkpoint that it started from may be deleted or replaced meanwhile."""
  c = config('finetune_video_folder').to_dict()
  workdir = tmp_path / 'run'
  (workdir / 'checkpoints' / '1').mkdir(parents=True)
  first = inherit.inherit(c, source, workdir)
  (workdir / 'config.json').write_text(json.dumps(first))
  model = RUN['model'] | dict(video=dict(RUN['model']['video'], width=32))
  (source / 'config.json').write_text(json.dumps(RUN | dict(model=model)))
  assert inherit.inherit(c, source, workdir) == first
  shutil.rmtree(source)
  assert inherit.inherit(c, source, workdir) == first


def test_config_without_defaults_is_unchanged(source):
  c = config('pretrain_folder').to_dict()
  assert inherit.inherit(c, source) is c


def test_modes_take_other_values_from_the_run(tmp_path):
  c, given = from_command_line('pretrain_folder', 'data.path=other',
                               'model.video.width=64', 'mesh.fsdp=2')
  run = json.loads(json.dumps(c | dict(
      total_steps=7, window=RUN['window'], data=RUN['data'])))
  (tmp_path / 'config.json').write_text(json.dumps(run))
  c['evals'] = dict(c['evals'], more=dict(name='retrieval'))
  new = inherit.of_run(c, given, tmp_path)
  assert (new['total_steps'], new['window']) == (7, RUN['window'])
  assert new['data'] == dict(RUN['data'], path='other')
  assert new['model']['video']['width'] == 64 and new['mesh']['fsdp'] == 2
  assert new['evals'].keys() == {'retrieval', 'more'}
  # Other configs are unchanged, and so is a config for a workdir without a run.
  for other in (config('retrieval').to_dict(), config('finetune_video').to_dict()):
    assert inherit.of_run(other, {}, tmp_path) is other
  assert inherit.of_run(c, given, tmp_path / 'none') is c


@pytest.fixture(scope='module')
def mine(toy_world, tmp_path_factory):
  """Returns a workdir of `configs/pretrain_folder.py` with other sizes."""
  workdir = tmp_path_factory.mktemp('runs') / 'mine'
  c = config('pretrain_folder')
  c.total_steps, c.batch_size, c.optim.warmup_steps = 1, 4, 0
  c.data.update(path=str(toy_world / 'train.csv'), captions='train_captions.csv',
                drop_stop_words=True)
  c.window.update(SIZES, max_tokens=6)
  c.model.text.vocabulary_size = 64
  for modality in ('video', 'audio', 'text'):
    c.model[modality].update(TOWER)
  c.evals.retrieval.num_windows = 1
  train.train(c.to_dict(), workdir)
  return workdir


def results(workdir):
  return json.loads((workdir / 'results.json').read_text())


def test_retrieval_needs_only_the_checkpoint(mine, toy_world, tmp_path, capsys):
  c = config('retrieval', 'manifest', init_from=mine)
  c.evals.manifest.path = str(toy_world / 'test_segments.csv')
  c.evals.manifest.num_windows = 1
  train.train(c.to_dict(), tmp_path / 'run')
  assert 'manifest/text_to_video/R@1' in results(tmp_path / 'run')
  written = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert written['model']['video']['width'] == 16 and 'defaults' not in written
  train.train(c.to_dict(), tmp_path / 'run')    # the same command, once more
  # The evaluation mode gives the same results in the run's workdir.
  evaluate.watch(c.to_dict() | dict(init_from='runs/mbs'), mine, 'retrieval')
  watched = results(mine / 'eval' / 'retrieval')
  assert watched['step'] == 1
  assert watched.items() >= {k: v for k, v in results(tmp_path / 'run').items()
                             if k.endswith(('R@1', 'MedR')) and 'chance' not in k
                             }.items()


def test_frozen_features_need_only_the_checkpoint(mine, toy_world, tmp_path, capsys):
  c = config('linear_folder', 'shape=video', init_from=mine)
  c.evals.linear.update(train=str(toy_world / 'train_segments.csv'), num_windows=1,
                        test=str(toy_world / 'test_segments.csv'), cache='')
  c = c.to_dict()
  c['evals']['linear']['classifiers'] = dict(logistic={})
  del c['evals']['neighbours']
  train.train(c, tmp_path / 'run')
  assert 'linear/shape/top1' in results(tmp_path / 'run')


def test_finetuning_needs_only_the_checkpoint(mine, toy_world, tmp_path, capsys,
                                              caplog):
  c = config('finetune_video_folder', init_from=mine)
  c.total_steps, c.batch_size, c.optim.warmup_steps = 1, 4, 0
  c.data.update(path=str(toy_world / 'train_segments.csv'), label='shape')
  c.evals.test.update(path=str(toy_world / 'test_segments.csv'), num_windows=1,
                      num_crops=1)
  train.train(c.to_dict(), tmp_path / 'run')
  assert 'test/top1' in results(tmp_path / 'run')
  assert f'{mine} has no head for this model' in caplog.text


@pytest.mark.slow
def test_eval_and_figures_need_no_flags_of_the_run(mine, capsys):
  c, given = from_command_line('pretrain_folder')
  c = inherit.of_run(c, given, mine)
  evaluate.watch(c, mine, 'pretrain_folder')
  assert 'retrieval/text_to_video/R@1' in results(mine / 'eval' / 'pretrain_folder')
  run_figures.draw(c | dict(figures=dict(num_clips=6)), mine)
  assert (mine / 'figures' / 'tsne_spaces.png').exists()
