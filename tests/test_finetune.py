"""Tests fine-tuning from files to accuracy: configs/finetune_*.py on a toy world."""

import csv
import importlib
import json
import pathlib
import shutil

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from vatt_jax import evaluate
from vatt_jax import experiment
from vatt_jax import inherit
from vatt_jax import metric_writer
from vatt_jax import train
from vatt_jax.errors import UserError
from vatt_jax.inputs import labels
from vatt_jax.weights import load as weights
from vatt_jax.weights import vatt_tf2

TOWER = dict(width=16, depth=1, num_heads=2, mlp_dim=16)
WINDOW = dict(num_frames=4, image_size=16, audio_hz=4000)


def load(name: str, switches: str = '') -> ConfigDict:
  module = importlib.import_module(f'configs.{name}')
  config = module.get_config(switches) if switches else module.get_config()
  config.lock()
  return config


def shrunk(toy_world: pathlib.Path, name: str, switches: str = 'toy') -> dict:
  """Returns a config of two steps, with small clips and a small tower, from scratch."""
  config = inherit.inherit(load(name, switches).to_dict())
  config |= dict(total_steps=2, batch_size=4, init_from='')
  config['window'] |= WINDOW | dict(
      num_frames=min(config['window']['num_frames'], WINDOW['num_frames']))
  config['optim']['warmup_steps'] = 1
  config['optim']['clip_replicas'] = min(config['optim']['clip_replicas'], 2)
  for modality in config['window']['modalities']:
    config['model'][modality] |= TOWER
  config['data'] |= dict(path=str(toy_world / 'train_segments.csv'))
  config['evals']['test'] |= dict(path=str(toy_world / 'test_segments.csv'),
                                  num_windows=1)
  return config


def results(workdir: pathlib.Path) -> dict:
  return json.loads((workdir / 'results.json').read_text())


@pytest.fixture(scope='module')
def pretrained(toy_world, tmp_path_factory):
  """Returns a workdir of an untrained model of three modalities."""
  workdir = tmp_path_factory.mktemp('runs') / 'pretrained'
  config = load('quickstart').to_dict()
  config |= dict(total_steps=0, batch_size=4, evals={})
  config['window'] |= WINDOW
  for modality in ('video', 'audio', 'text'):
    config['model'][modality] |= TOWER
  config['data'] |= dict(path=str(toy_world / 'train.csv'))
  train.train(config, workdir)
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize('name, measures', [
    ('finetune_audio', {'mAP', 'AUC', 'd_prime'}),
    ('finetune_video', {'top1', 'top5'}),
    ('finetune_image', {'top1', 'top5'})])
def test_tower_starts_from_pretrained_weights(name, measures, toy_world, pretrained,
                                              tmp_path, caplog, capsys):
  config = shrunk(toy_world, name) | dict(init_from=str(pretrained))
  train.train(config | dict(total_steps=0), tmp_path / 'start')
  assert f'{pretrained} has no head for this model' in caplog.text
  (modality,) = config['window']['modalities']
  loaded, expected = (weights.read(path)[1]['params'][f'backbones_{modality}']
                      for path in (tmp_path / 'start', pretrained))
  jax.tree.map(np.testing.assert_array_equal, loaded, expected)
  train.train(config, tmp_path / 'run')
  trained = results(tmp_path / 'run')
  chances = {f'chance_{m}' for m in measures}
  assert {k.removeprefix('test/') for k in trained if k.startswith('test/')} == (
      measures | chances)
  assert np.isfinite(trained['train/loss']) and trained['params/sha256'] != results(
      tmp_path / 'start')['params/sha256']
  assert (tmp_path / 'run' / 'labels.csv').exists()


@pytest.mark.slow
def test_tower_starts_from_a_released_checkpoint_at_a_larger_size(toy_world, tmp_path,
                                                                  capsys):
  config = shrunk(toy_world, 'finetune_video', 'toy,release')
  smaller = config | dict(window=config['window'] | dict(image_size=8))
  smaller['model'] = config['model'] | dict(head=dict(name='classifier', num_classes=3))
  model, clip = experiment.model_and_clip(smaller)
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), clip)
  vatt_tf2.export(jax.jit(model.init)(jax.random.key(3), zeros), tmp_path / 'ckpt-1')
  train.train(config | dict(init_from=str(tmp_path / 'ckpt-1')), tmp_path / 'run')
  assert np.isfinite(results(tmp_path / 'run')['train/loss'])


@pytest.fixture
def folder(toy_world, tmp_path):
  """Returns a folder of training and test videos, with a subfolder for each class."""
  with open(toy_world / 'train_segments.csv', encoding='utf-8') as file:
    paths = sorted({row['path'] for row in csv.DictReader(file)})
  for i, path in enumerate(paths[:12]):
    subfolder = tmp_path / 'mine' / ('test' if i < 4 else 'train') / ('ab'[i % 2] * 3)
    subfolder.mkdir(parents=True, exist_ok=True)
    shutil.copy(toy_world / path, subfolder / f'{i}.mp4')
  return tmp_path / 'mine'


def test_folder_of_own_classes_is_trained_and_evaluated(folder, tmp_path, caplog,
                                                        capsys):
  """The run is resumed, evaluated elsewhere, and used to start with other classes."""
  config = shrunk(folder, 'finetune_video_folder', '')
  config['data']['path'] = str(folder / 'train')
  config['evals']['test']['path'] = str(folder / 'test')
  config |= dict(average_decay=0.5, num_microbatches=2)
  train.train(config, tmp_path / 'run')
  first = results(tmp_path / 'run')
  written = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert written['model']['head']['num_classes'] == 2
  assert (tmp_path / 'run' / 'labels.csv').read_text() == 'index,label\n0,aaa\n1,bbb\n'
  train.train(config, tmp_path / 'run')    # the same command, once more
  assert results(tmp_path / 'run') == first | dict(
      {k: v for k, v in results(tmp_path / 'run').items() if k.startswith('train/')})

  # Evaluation only, with the averaged weights.
  again = config | dict(total_steps=0, init_from=str(tmp_path / 'run'), average_decay=0)
  again['data'] = config['data'] | dict(path='')
  again['evals'] = dict(test=config['evals']['test'])
  caplog.clear()
  train.train(again, tmp_path / 'again')
  assert 'random' not in caplog.text
  assert results(tmp_path / 'again')['test/top1'] == first['test/top1']
  evaluate.watch(again | dict(init_from=''), tmp_path / 'run', 'again')
  assert results(tmp_path / 'run' / 'eval' / 'again')['test/top1'] == first['test/top1']

  # The same number of classes, but other ones: the head is not loaded.
  for split in ('train', 'test'):
    (folder / split / 'bbb').rename(folder / split / 'ccc')
  other = config | dict(total_steps=0, init_from=str(tmp_path / 'run'), evals={})
  train.train(other, tmp_path / 'other')
  assert 'has no head for this model' in caplog.text
  with pytest.raises(UserError, match='has no head for this model, whose head would'):
    evaluate.watch(config, tmp_path / 'run', 'other')


def by_motion_and_shape(toy_world):
  """Returns a config that classifies motions and shapes at once."""
  config = shrunk(toy_world, 'finetune_video')
  config['data'] |= dict(label=('motion', 'shape'))
  config['losses'] = {column: dict(name='softmax', label=column)
                      for column in ('motion', 'shape')}
  return config | dict(augment={}, log_every_steps=1)


def test_columns_of_labels_are_learned_and_evaluated_together(toy_world, tmp_path,
                                                              capsys, caplog):
  config = by_motion_and_shape(toy_world)
  train.train(config, tmp_path / 'run')
  first = results(tmp_path / 'run')
  logged = metric_writer.read_jsonl(tmp_path / 'run' / metric_writer.METRICS_FILE)[0]
  np.testing.assert_allclose(logged['train/loss'], logged['train/loss_motion'] +
                             logged['train/loss_shape'], rtol=1e-6)
  assert {k for k in first if k.startswith('test/') and 'chance' not in k} == {
      'test/motion/top1', 'test/motion/top5', 'test/shape/top1', 'test/shape/top5',
      'test/all/top1'}
  written = json.loads((tmp_path / 'run' / 'config.json').read_text())
  counts = written['model']['head']['num_classes']
  lines = (tmp_path / 'run' / 'labels.csv').read_text().splitlines()
  assert lines[0] == 'column,index,label' and {
      column: sum(line.startswith(f'{column},') for line in lines)
      for column in counts} == counts
  again = experiment.make(config, tmp_path / 'run')    # resumes with these classes
  assert {one.column: len(one.names) for one in again.reader.labels} == counts
  assert again.reader.labels[0].source == str(tmp_path / 'run' / 'labels.csv')
  other = config | dict(data=config['data'] | dict(label=('motion', 'colour')))
  with pytest.raises(UserError, match=r"labels\.csv: has no classes of 'colour', .* "
                     'choose another --workdir'):
    experiment.make(other, tmp_path / 'run')
  # With the weights of this run all of them are loaded, and for one of the columns
  # all but the head.
  start = dict(total_steps=0, evals={}, init_from=str(tmp_path / 'run'))
  experiment.make(config | start, tmp_path / 'both')
  assert 'has no head' not in caplog.text
  experiment.make(shrunk(toy_world, 'finetune_video') | start, tmp_path / 'one')
  assert 'has no head for this model (it is a classifier of 8 and ' in caplog.text
  assert 'was trained on other classes' not in caplog.text


@pytest.mark.parametrize('changes, message', [
    (('data', dict(label=('motion', 'size'))), r"csv: no column 'size'; found colour"),
    (('losses', dict(motion=dict(name='softmax'))),
     r"losses\.motion: label='': expected a column of labels, one of motion, shape"),
    (('losses', dict(motion=dict(name='softmax', label='colour'))),
     r'needs batch\.labels\.colour; .* provide batch\.labels\.motion, batch\.lab'),
    (('model', dict(head=dict(name='classifier', num_classes=8))),
     r'num_classes=8: expected a number for each column of config\.data\.label, moti'),
    (('model', dict(head=dict(name='classifier', num_classes=dict(motion=8)))),
     r"num_classes=\{'motion': 8\}: expected a number for each column of config"),
    (('model', dict(head=dict(name='classifier', num_classes=dict(
        motion=8, shape=5)))), r'num_classes\.shape=5: .*segments\.csv has 6 classes'),
    (('data', dict(label_map='map.csv')),
     r"map\.csv: has no classes of 'motion', a column of config\.data\.label; ")])
def test_columns_of_labels_must_fit_losses_head_and_map(changes, message, toy_world,
                                                        tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'map.csv').write_text('label\nleft\nright\n')
  section, values = changes
  config = by_motion_and_shape(toy_world)
  config[section] = config[section] | values
  with pytest.raises(UserError, match=message):
    experiment.make(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_step_of_columns_of_labels_is_made_without_data(toy_world):
  config = by_motion_and_shape(toy_world)
  config['model']['head'] |= dict(num_classes=dict(motion=3, shape=2))
  _, state, batch = experiment.make_step(config)
  assert {k: x.shape for k, x in batch['labels'].items()} == dict(
      motion=(4, 3), shape=(4, 2))
  assert state.params['head']['logits_motion']['bias'].shape == (3,)


def test_single_class_and_large_batch_are_warnings(toy_world, tmp_path, caplog, capsys):
  """The run trains and finishes; the log names the useless settings."""
  with open(toy_world / 'train_segments.csv', encoding='utf-8') as file:
    rows = [row for row in csv.DictReader(file)][:3]
  (tmp_path / 'one.csv').write_text('path,start,end,kind\n' + ''.join(
      f'{toy_world / row["path"]},{row["start"]},{row["end"]},walk\n' for row in rows))
  config = shrunk(toy_world, 'finetune_video')
  config['data'] |= dict(path=str(tmp_path / 'one.csv'), label='kind')
  config['evals']['test']['path'] = str(tmp_path / 'one.csv')
  train.train(config, tmp_path / 'run')
  assert results(tmp_path / 'run')['train/loss'] == 0
  warnings = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']
  assert [w for w in warnings if w.startswith('config.')] == [
      f"config.data.label='kind': {tmp_path}/one.csv has only one class, 'walk', so "
      'there is nothing to learn; expected two or more',
      'config.batch_size=4: takes 4 clips from config.data.path, which has 3, so every '
      'batch repeats some clips; lower it, or add clips',
      'config.evals.test: returned no metrics; expected two classes or more, and clips '
      'that have all evaluated modalities']


@pytest.mark.parametrize('changes, message', [
    (('data', dict(label='size')), r"train_segments\.csv: no column 'size'; found c"),
    (('data', dict(label='moton', label_map='MAP')), r"no column 'moton'; found "),
    (('augment', dict(mixup=-1.0)), r'config\.augment: mixup=-1\.0: expected 0 '),
    (('losses', dict(label=dict(name='softmax', smoothing=3))), r'smoothing=3: expec'),
    (('evals', dict(test=dict(name='classify', num_windows=0))), r'num_windows=0: exp'),
    (('data', dict(label='')), r'num_classes: missing; set it, or set config\.dat'),
    (('data', dict(multi_label=True)), r"name='softmax': needs one class per clip"),
    (('data', dict(label='sound_event')), r'joins several labels; expected one, or'),
    (('model', dict(head=dict(name='classifier', num_classes=5))),
     r'num_classes=5: .*train_segments\.csv has 8 classes; make them equal'),
    (('model', dict(head=None)), r'losses\.label: needs outputs\.logits; '),
    (('window', dict(modalities=('audio',))), r'label: a classifier of : expected one'),
    (('losses', dict(label=dict(name='hinge'))), r"name='hinge': expected one of nce"),
    (('losses', dict(label=dict(name='softmax', smooth=1))), r'label\.smooth: unknown'),
    (('optim', dict(rules=(('head', 1.0),))), r'rules: none fits the parameter'),
    (('optim', dict(b1=0.9)), r'config\.optim\.b1: unknown key'),
    (('evals', dict(test=dict(name='classify', path='none.csv'))), r'none\.csv: no')])
def test_invalid_value_error_names_the_key(changes, message, toy_world, tmp_path):
  section, values = changes
  config = shrunk(toy_world, 'finetune_video')
  config[section] = config[section] | values
  if config['data']['label_map']:
    (tmp_path / 'map.csv').write_text('label\nleft\nright\n')
    config['data'] |= dict(label_map=str(tmp_path / 'map.csv'))
    config['model']['head'] |= dict(num_classes=2)
  with pytest.raises(UserError, match=message) as error:
    train.train(config, tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


def test_label_missing_in_the_label_map_is_an_error(toy_world, tmp_path):
  (tmp_path / 'map.csv').write_text('label\nleft\nright\n')
  config = shrunk(toy_world, 'finetune_video')
  config['data']['label_map'] = str(tmp_path / 'map.csv')
  with pytest.raises(UserError, match=r"motion='\w+' is none of the 2 classes of .*ma"):
    train.train(config, tmp_path / 'run')


def test_extended_run_is_bit_exact_after_a_restart(toy_world, tmp_path, capsys, caplog):
  config = shrunk(toy_world, 'finetune_audio') | dict(evals={})
  config['checkpoint'] |= dict(every_steps=1, keep=9)
  train.train(config, tmp_path / 'run')
  longer = config | dict(total_steps=5)
  with pytest.raises(UserError, match=r'run of total_steps=2, .*change; use --extend,'):
    train.train(longer, tmp_path / 'run')
  with caplog.at_level('INFO'):
    train.train(longer, tmp_path / 'run', extend=True)
  assert 'Extending the run from step 2' in caplog.text
  written = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert (written['total_steps'], written['extended']) == (5, [[2, 2]])
  shutil.copytree(tmp_path / 'run', tmp_path / 'stopped')
  for step in (4, 5):
    shutil.rmtree(tmp_path / 'stopped' / 'checkpoints' / str(step))
  caplog.clear()
  with caplog.at_level('INFO'):
    train.train(longer, tmp_path / 'stopped')    # without the flag
  assert 'Resuming from step 3' in caplog.text
  digests = [results(tmp_path / run)['params/sha256'] for run in ('run', 'stopped')]
  assert digests[0] == digests[1]
  with pytest.raises(UserError, match='another config, total_steps=5 where this one'):
    train.train(config, tmp_path / 'run')


def test_classes_are_searched_once(toy_world, tmp_path, monkeypatch):
  """For shards, the search reads all records."""
  calls = []
  find = labels.find
  monkeypatch.setattr(labels, 'find', lambda *args: calls.append(args) or find(*args))
  run = experiment.make(shrunk(toy_world, 'finetune_video'), tmp_path / 'run')
  assert len(calls) == 1 and len(run.reader.labels[0].names) == 8


def test_incomplete_checkpoint_is_not_resumed(toy_world, pretrained, tmp_path, capsys):
  """A kill during the first save leaves such a folder."""
  config = shrunk(toy_world, 'finetune_audio') | dict(
      total_steps=0, evals={}, init_from=str(pretrained))
  (tmp_path / 'run' / 'checkpoints' / '100.orbax-checkpoint-tmp').mkdir(parents=True)
  train.train(config | dict(total_steps=1), tmp_path / 'run')
  train.train(config, tmp_path / 'start')
  trained, start = (weights.read(path)[1]['params']['backbones_audio']['norm']['scale']
                    for path in (tmp_path / 'run', tmp_path / 'start'))
  np.testing.assert_allclose(trained, start, atol=1e-2)    # one step apart
  assert np.abs(start - weights.read(pretrained)[1]['params']['backbones_audio'][
      'norm']['scale']).max() == 0


VIDEO = {    # switches -> their changes
    'base': {'size': 'base'}, 'large': {'size': 'large'},
    'drop_token_75': {'drop_token_rate': 0.75}, 'ma': {'size': None}}


def test_video_config_has_the_paper_values():
  """Values of section 4.3."""
  c = load('finetune_video')
  assert (c.total_steps, c.batch_size, c.model.head.num_classes) == (100_000, 64, 400)
  assert c.optim.to_dict() == dict(
      name='sgd', momentum=0.9, peak_rate=0.005, final_rate=0, warmup_steps=2500,
      decay='half_cosine', clip_norm=0, clip_replicas=1, rules=(), layer_decay=1)
  assert c.losses.label.to_dict() == dict(name='softmax', smoothing=0.1)
  assert (c.window.num_frames, c.window.frame_rate_hz, c.window.image_size) == (
      32, 25 / 2, 320)
  assert (c.evals.test.num_windows, c.evals.test.num_crops) == (4, 3)
  assert c.model.video.drop_token_rate == 0
  for switches, changes in VIDEO.items():
    changed = load('finetune_video', switches).model
    assert {k: changed.video.get(k) for k in changes} == changes
  assert load('finetune_video', 'ma').model.shared.size == 'medium'
  for switches, count in (('k600', 600), ('k700', 700), ('moments', 339)):
    assert load('finetune_video', switches).model.head.num_classes == count
  assert load('finetune_video', 'toy,drop_token_50').model.video.drop_token_rate == 0.5
  for switches in ('ma,toy', 'k400,k600', 'base,large', 'toy,64x224'):
    with pytest.raises(ValueError, match=f'{switches.replace(",", " and ")}: expected'):
      load('finetune_video', switches)
  with pytest.raises(ValueError, match=r"'k500': unknown switch; did you mean k.00\?"):
    load('finetune_video', 'k500')


@pytest.mark.parametrize('name', ['finetune_video', 'finetune_audio', 'finetune_image'])
def test_only_release_clips_gradients_per_replica(name):
  for switches, norm, replicas in (('', 0, 1), ('toy', 0.75, 1), ('release', 0.75, 64),
                                   ('toy,release', 0.75, 32)):
    optim = load(name, switches).optim
    assert (optim.clip_norm, optim.clip_replicas) == (norm, replicas)


@pytest.mark.parametrize('changes, message', [
    (dict(num_microbatches=2), r'num_microbatches=2: expected 1 or config\.optim'),
    (dict(batch_size=6), r'config\.optim\.clip_replicas=4: expected a divisor')])
def test_replicas_must_fit_batch_and_microbatches(changes, message):
  config = load('finetune_video', 'toy').to_dict() | dict(batch_size=8)
  config['optim'] |= dict(clip_norm=0.75, clip_replicas=4)
  config['model']['head'] |= dict(num_classes=3)
  for count in (1, 4):
    task, *_ = experiment.make_step(config | dict(num_microbatches=count))
    assert task.num_microbatches == 4
  with pytest.raises(UserError, match=message):
    experiment.make_step(config | changes)
  config['optim']['clip_norm'] = 0.0    # no clipping: any number of microbatches
  task, *_ = experiment.make_step(config | dict(num_microbatches=2))
  assert task.num_microbatches == 2


def test_audio_and_image_configs_have_the_paper_values():
  """Values of section 4.3."""
  c = load('finetune_audio')
  assert (c.total_steps, c.batch_size, c.model.head.num_classes) == (50_000, 1024, 527)
  assert (c.optim.peak_rate, c.optim.warmup_steps, c.augment.mixup) == (0.2, 5000, 5)
  assert c.losses.label.to_dict() == dict(name='bce', balance=True)
  _, clip = experiment.model_and_clip(c.to_dict())
  assert clip['audio'].shape == (1, 153_600)    # 6.4 s at 24 kHz
  c = load('finetune_image')
  assert (c.batch_size, c.model.head.num_classes) == (512, 1000)
  assert c.window.image_size == 384
  assert c.total_steps == 125_113    # 50 epochs
  assert (c.optim.peak_rate, c.losses.label.smoothing) == (0.08, 0.1)
  _, clip = experiment.model_and_clip(c.to_dict())
  assert clip['video'].shape == (1, 1, 384, 384, 3)
