"""Tests frozen features, linear probes and nearest neighbours on synthetic features."""

import dataclasses
import io
import os
import pathlib

import jax
import numpy as np
from PIL import Image
import pytest
from sklearn import linear_model
from sklearn import svm

from vatt_jax import train_step
from vatt_jax.errors import UserError
from vatt_jax.evaluators import frozen_features
from vatt_jax.evaluators import linear_probe
from vatt_jax.evaluators import metrics
from vatt_jax.evaluators import nearest_neighbours
from vatt_jax.evaluators.views import mean_over_views
from vatt_jax.inputs import images
from vatt_jax.inputs import labels
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.batches import eval_batches
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window
from vatt_jax.tools import prepare

COUNT = 16
STATE = train_step.State(0, {'w': np.ones(3)}, {}, ())


@pytest.fixture(scope='module')
def reader(toy_world):
  clips = sources.open_source(str(toy_world / 'test_segments.csv'))
  window = Window(2, 5.0, 8, 2000, modalities=('video', 'audio'))
  return Reader(clips, window, text.WordTokenizer(()),
                FileNotes(0.1, COUNT))


class Model:
  """Returns given features by the index of a clip; counts the clips it runs on."""

  def __init__(self, features):
    self.features, self.num_clips = np.asarray(features, np.float32), 0

  def __call__(self, state, batch):
    self.num_clips += int(batch['mask'].sum())
    features = self.features[batch['id']]
    return dict(pooled=dict(video=features, audio=features))


def make(model, reader, *splits, columns=None, width=3, **settings):
  """Builds `frozen_features.Frozen` of splits of indices of the reader's clips."""
  named = [tuple((f'{side}.csv', [reader.clips[i] for i in numbers])
                 for side, numbers in zip(('train', 'test'), split, strict=True))
           for split in splits or [(range(COUNT), range(COUNT))]]
  return frozen_features.Frozen(model, reader, 8, dict(width=width), named,
                       columns or dict(colour='video'), **settings)


def labelled(reader, label, values):
  """Returns the reader with `values` as labels of its clips; '' for none."""
  return dataclasses.replace(reader, clips=[
      dataclasses.replace(clip, labels={label: value} if value else {'x': 'y'})
      for clip, value in zip(reader.clips, values, strict=False)])


def classes_of(reader, label):
  names = sorted({name for c in reader.clips for name in c.labels[label].split('|')})
  return names, np.asarray([[name in c.labels[label].split('|') for name in names]
                            for c in reader.clips])


def noisy(truth, seed=0):
  rng = np.random.default_rng(seed)
  return np.concatenate([truth + 0.1 * rng.normal(size=truth.shape),
                         rng.normal(size=(len(truth), 2))], axis=1)


# Few steps suffice for so few clips.
FAST = dict(logistic=linear_probe.Logistic(), svm=linear_probe.SVM(C=0.1),
            low_rank=linear_probe.LowRank(steps=300, learning_rate=1e-2),
            mlp=linear_probe.MLP(steps=100, learning_rate=1e-2, hidden_dim=16))


# -------------------------------------------------------- features, splits, the cache

def test_clip_in_several_splits_is_run_once(reader):
  model = Model(np.arange(COUNT)[:, None])
  data = make(model, reader, (range(8), range(8, 16)), (range(4, 12), [0, 1, 2]))
  (label, (first, second)), = data.splits(STATE)
  assert model.num_clips == COUNT and label == 'colour'
  assert first.x[:, 0].tolist() == list(range(8))
  assert first.x_test[:, 0].tolist() == list(range(8, 16))
  # The model indexes clips in order of their first occurrence, here that of the reader.
  assert second.x[:, 0].tolist() == list(range(4, 12))
  assert second.x_test[:, 0].tolist() == [0, 1, 2]
  names = [first.classes[row.argmax()] for row in first.targets]
  assert names == [c.labels['colour'] for c in reader.clips[:8]]


def test_splits_do_not_use_the_classes_of_the_trained_model(reader):
  trained = labels.Labels('colour', ('none of these',), False, 'elsewhere')
  data = make(Model(np.eye(COUNT)), dataclasses.replace(reader, labels=trained))
  (_, (split,)), = data.splits(STATE)
  assert split.classes == sorted({c.labels['colour'] for c in reader.clips})


def test_metrics_are_averaged_over_splits_and_given_for_each():
  measured = frozen_features.over_splits([dict(a=1.0, b=4.0), dict(a=2.0)])
  assert dict(measured) == {'a': 1.5, 'split_1/a': 1.0, 'split_1/b': 4.0,
                            'split_2/a': 2.0}
  assert dict(frozen_features.over_splits([dict(a=1.0)])) == dict(a=1.0)


def test_second_run_reads_the_cache(reader, tmp_path, caplog):
  model = Model(np.random.default_rng(0).normal(size=(COUNT, 3)))
  first, = make(model, reader, cache=str(tmp_path / 'new' / 'kept')).splits(STATE)
  with caplog.at_level('INFO', logger='absl'):
    second, = make(model, reader, cache=str(tmp_path / 'new' / 'kept')).splits(STATE)
  assert f'Read the features of {COUNT} clips from' in caplog.text
  assert model.num_clips == COUNT
  np.testing.assert_array_equal(first[1][0].x, second[1][0].x)
  plain, = make(model, reader).splits(STATE)
  np.testing.assert_array_equal(first[1][0].x, plain[1][0].x)
  assert [p.suffix for p in (tmp_path / 'new' / 'kept').iterdir()] == ['.npz']


def _other_weights(reader, settings):
  return reader, settings, STATE.replace(params={'w': np.array([1, 1, 1 + 1e-7])})


def _other_average(reader, settings):
  return reader, settings, STATE.replace(average={'w': np.zeros(3)})


def _other_model(reader, settings):
  return reader, settings | dict(width=4), STATE


def _other_window(reader, settings):
  return dataclasses.replace(reader, window=dataclasses.replace(
      reader.window, frame_rate_hz=4.0)), settings, STATE


def _other_views(reader, settings):
  return reader, settings | dict(num_windows=2), STATE


def _other_epochs(reader, settings):
  return reader, settings | dict(augmentation=frozen_features.Augmentation(1, 0)), STATE


def _other_stretch(reader, settings):
  clips = [dataclasses.replace(c, end=c.end - 0.1) for c in reader.clips]
  return dataclasses.replace(reader, clips=clips), settings, STATE


def _other_file(reader, settings):
  path = pathlib.Path(reader.clips[3].path)
  os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
  return reader, settings, STATE


@pytest.mark.parametrize('change', [_other_weights, _other_model, _other_window,
                                    _other_views, _other_stretch, _other_file,
                                    _other_average, _other_epochs])
def test_cache_is_not_used_after_a_change_of_features(change, reader, tmp_path):
  model, settings = Model(np.zeros((COUNT, 2))), dict(cache=str(tmp_path))
  list(make(model, reader, **settings).splits(STATE))
  model.num_clips = 0
  reader, settings, state = change(reader, settings)
  list(make(model, reader, **settings).splits(state))
  assert model.num_clips >= COUNT


def test_cache_is_not_used_for_a_changed_record(reader, toy_world, tmp_path):
  plan = prepare.Plan(str(toy_world / 'test_segments.csv'), '', 'untouched')
  records = tmp_path / 'records'
  records.mkdir()
  prepare.make_shard(plan, records, 1, 0)
  clips = list(sources.open_source(str(records)))
  model = Model(np.zeros((COUNT, 2)))
  for shift, expected in ((0, COUNT), (0, 0), (1, COUNT)):
    clips[1] = dataclasses.replace(clips[1], content=clips[1].content + b'\0' * shift)
    model.num_clips = 0
    source = dataclasses.replace(reader, clips=clips)
    list(make(model, source, cache=str(tmp_path / 'kept')).splits(STATE))
    assert model.num_clips == expected


@pytest.mark.parametrize('damage', [
    lambda b: b[:len(b) // 2], lambda b: b'', lambda b: b'no numbers',
    lambda b: b.replace(b'has_video', b'had_video')],
                         ids=['cut', 'empty', 'other', 'key'])
def test_damaged_cache_is_rebuilt(damage, reader, tmp_path, caplog):
  model = Model(np.arange(COUNT)[:, None])
  read = lambda: dict(make(model, reader, cache=str(tmp_path)).splits(STATE))
  first = read()['colour'][0].x
  kept, = tmp_path.iterdir()
  kept.write_bytes(damage(kept.read_bytes()))
  np.testing.assert_array_equal(read()['colour'][0].x, first)
  assert f'{kept}: is damaged' in caplog.text
  read()
  assert model.num_clips == 2 * COUNT


@pytest.mark.parametrize('settings, message', [
    (dict(columns=dict(size='video')), r"train\.csv: no column 'size' to evaluate; "),
    (dict(columns=dict(colour='text')), r"'colour': modality 'text'; expected one of"),
    (dict(columns=dict(sound_event='audio')),
     r"train\.csv: sound_event='.*\|.*' joins several labels; expected one, or"),
    (dict(multi_labels=('color',)), r"multi_labels: 'color' is not one of the labels"),
    (dict(cache=__file__), r'test_frozen_features\.py: is a file; expected a folder')])
def test_invalid_setting_raises_one_line(settings, message, reader):
  with pytest.raises(UserError, match=message) as error:
    make(Model([]), reader, **settings)
  assert '\n' not in str(error.value)


def test_split_without_the_label_raises(reader):
  with pytest.raises(UserError, match=r"test\.csv: no column 'k' to evaluate; found x"):
    make(Model([]), labelled(reader, 'k', ['a', 'b', 'a', '']), ([0, 1, 2], [3]),
         columns=dict(k='video'))


def test_single_class_logs_a_warning_and_is_left_out(reader, caplog):
  data = make(Model(np.eye(COUNT)), labelled(reader, 'k', ['a', 'a', 'a', 'b']),
              ([0, 1, 2], [3]), columns=dict(k='video'))
  assert "train.csv: column 'k' has only one class, 'a'" in caplog.text
  assert not dict(linear_probe.LinearProbe(data, dict(svm=FAST['svm'])).run(STATE))
  assert 'Left out: k, ' in caplog.text


def test_empty_column_raises(reader):
  clips = [dataclasses.replace(c, labels=dict(k='')) for c in reader.clips]
  with pytest.raises(UserError, match=r"train\.csv: column 'k' is empty; exp"):
    make(Model([]), dataclasses.replace(reader, clips=clips), columns=dict(k='video'))


def test_modality_without_features_raises(reader):
  model = lambda state, batch: dict(pooled={})
  with pytest.raises(UserError, match="'colour': the model has no features of video"):
    list(make(model, reader).splits(STATE))


class NoAudio(Reader):
  """Reads every second clip without audio."""

  def views(self, index, *args):
    return [view | dict(has_audio=np.bool_(index % 2 == 0))
            for view in super().views(index, *args)]


def test_clips_without_the_modality_are_not_in_a_split(reader, caplog):
  values = ['a', 'a', 'b', 'b'] * 4
  no_audio = NoAudio(labelled(reader, 'k', values).clips, reader.window,
                     reader.tokenizer, reader.notes)
  data = make(Model(np.arange(COUNT)[:, None]), no_audio, columns=dict(k='audio'))
  (_, (split,)), = data.splits(STATE)
  assert split.x[:, 0].tolist() == list(range(0, COUNT, 2))
  # All clips with audio have one class: no class is left to distinguish.
  no_audio = dataclasses.replace(
      no_audio, clips=labelled(reader, 'k', ['a', 'b'] * 8).clips)
  data = make(Model(np.eye(COUNT)), no_audio, columns=dict(k='audio'))
  assert not list(data.splits(STATE))
  assert 'Left out: k, ' in caplog.text


# ----------------------------------------------------------------------- single windows

class Recorded:
  """Returns the frames of windows as features; records the batches."""

  def __init__(self):
    self.batches = []

  def __call__(self, state, batch):
    self.batches.append(batch)
    video = batch['video'].reshape(len(batch['id']), -1).astype(np.float32)
    return dict(pooled=dict(video=video[:, :50]))


WINDOWS = frozen_features.Augmentation(num_epochs=3, seed=5)


def test_augmented_windows_differ_between_epochs_and_are_reproducible(reader):
  draw = lambda seed, size: list(eval_batches(
      reader, size, num_windows=3, augment_seed=seed))
  (batch,) = draw(5, 3 * COUNT)
  assert batch['id'].tolist() == np.repeat(np.arange(COUNT), 3).tolist()
  video = batch['video'].reshape(COUNT, 3, -1)
  # Two windows of a static video may have equal frames, but not equal audio.
  audio = batch['audio'].reshape(COUNT, 3, -1)
  for first, second in ((0, 1), (0, 2), (1, 2)):
    assert np.mean(np.all(video[:, first] == video[:, second], axis=1)) < 0.2
    assert np.any(audio[:, first] != audio[:, second], axis=1).all()
  again = np.concatenate([b['video'] for b in draw(5, 8)])    # for any batch size
  np.testing.assert_array_equal(again, batch['video'])
  assert np.any(draw(6, 3 * COUNT)[0]['video'] != batch['video'])


def test_augmentation_crops_at_random_and_flips_half(reader):
  """Uses a frame 24 wide and 8 high with numbered columns; each crop is 8 wide."""
  columns = np.arange(24, dtype=np.uint8) * 10
  file = io.BytesIO()
  Image.fromarray(np.tile(columns[:, None], (8, 1, 3))).save(file, 'PNG')
  content = images.Stills('striped', [file.getvalue()], 1.0)
  clip = Clip('striped', content=content)
  striped = dataclasses.replace(reader, clips=[clip], window=dataclasses.replace(
      reader.window, modalities=('video',)))
  examples = [striped.augmented(0, np.random.default_rng(seed)) for seed in range(200)]
  rows = np.stack([example['video'][0, 0, :, 0] for example in examples]).astype(int)
  mirrored = rows[:, 0] > rows[:, -1]
  assert 0.4 < mirrored.mean() < 0.6
  left = np.minimum(rows[:, 0], rows[:, -1]) / 10
  # Crops are not scaled and reach both ends of the frame.
  assert np.all(np.abs(rows[:, 0] - rows[:, -1]) == pytest.approx(70, abs=2))
  assert left.min() < 1 and left.max() > 15 and np.ptp(left[mirrored]) > 12


def test_rows_are_single_windows_grouped_by_clip(reader):
  model = Recorded()
  data = make(model, reader, (range(8), range(8, 12)), num_windows=2,
              augmentation=WINDOWS)
  (_, (split,)), = data.splits(STATE)
  assert split.x.shape == (8 * 3, 50) and split.x_test.shape == (4 * 2, 50)
  assert split.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
  names = [split.classes[row.argmax()] for row in split.targets]
  assert names == [c.labels['colour'] for c in reader.clips[:8] for _ in range(3)]
  np.testing.assert_array_equal(split.x_test[2:4], np.stack([
      reader.views(9, place)[0]['video'].ravel()[:50] for place in (0, 1)]))
  augmented = reader.augmented(2, np.random.default_rng((5, 1, 2)))['video']
  np.testing.assert_array_equal(split.x[2 * 3 + 1], augmented.ravel()[:50])


def test_training_clips_of_a_single_split_have_only_augmented_windows(reader):
  model = Model(np.eye(COUNT))
  data = make(model, reader, (range(8), range(8, 12)), num_windows=2,
              augmentation=WINDOWS)
  list(data.splits(STATE))
  assert model.num_clips == 8 * 3 + 4 * 2


def test_rows_are_the_spread_windows_without_average(reader):
  data = make(Recorded(), reader, (range(8), range(8, 12)), num_windows=2,
              average=False)
  (_, (split,)), = data.splits(STATE)
  windows = lambda clips: np.stack([
      reader.views(i, place)[0]['video'].ravel()[:50] for i in clips
      for place in (0, 1)])
  np.testing.assert_array_equal(split.x, windows(range(8)))
  np.testing.assert_array_equal(split.x_test, windows(range(8, 12)))
  assert len(split.targets) == 16 and len(split.targets_test) == 4


def test_windows_without_the_modality_are_left_out(reader):
  """Removes the audio of some windows of one clip and of all windows of others."""
  class NoWindowAudio(Reader):
    def views(self, index, place, num_crops):
      absent = index == 1 or (index == 0 and place == 0)    # of the test clips
      return [view | dict(has_audio=np.bool_(not absent))
              for view in super().views(index, place, num_crops)]

    def augmented(self, index, rng):
      return super().augmented(index, rng) | dict(has_audio=np.bool_(index != 3))

  no_audio = NoWindowAudio(labelled(reader, 'k', 'ab' * 8).clips, reader.window,
                           reader.tokenizer, reader.notes)
  data = make(Model(np.eye(COUNT)), no_audio, (range(8), range(8, 12)),
              columns=dict(k='audio'), num_windows=2, augmentation=WINDOWS)
  (_, (split,)), = data.splits(STATE)
  assert len(split.x) == 7 * 3 and len(split.targets_test) == 3
  assert split.groups.tolist() == [0, 1, 1, 2, 2]


def synthetic_windows(multi_label=False):
  rng = np.random.default_rng(0)
  y, y_test = rng.integers(3, size=40), rng.integers(3, size=9)
  groups = np.repeat(np.arange(9), rng.integers(1, 4, size=9))
  make_x = lambda y: (np.eye(3, 6)[y] * 3 + 5 + rng.normal(size=(len(y), 6))).astype(
      np.float32)
  targets, targets_test = (np.eye(3, dtype=bool)[v] for v in (y, y_test))
  if multi_label:
    targets[::3, 0] = True
  return frozen_features.Split(make_x(y), targets, make_x(y_test[groups]), groups,
                        targets_test, list('abc'), multi_label), y


def test_clip_scores_are_means_of_window_decisions():
  split, y = synthetic_windows()
  scores = linear_probe._scores(linear_probe.SVM(C=0.1),
                                linear_probe._standardise(split))
  mean, deviation = split.x.mean(axis=0), split.x.std(axis=0)
  model = svm.LinearSVC(C=0.1, random_state=0).fit((split.x - mean) / deviation, y)
  for clip in range(9):
    rows = split.x_test[split.groups == clip]
    expected = np.mean([model.decision_function([(row - mean) / deviation])[0]
                        for row in rows], axis=0)
    np.testing.assert_allclose(scores[clip], expected, rtol=1e-3, atol=1e-4)


def test_multi_label_windows_are_averaged():
  split, _ = synthetic_windows(multi_label=True)
  split = linear_probe._standardise(split)
  scores = linear_probe._scores(linear_probe.Logistic(), split)
  model = linear_model.LogisticRegression(C=0.1).fit(split.x, split.targets[:, 0])
  expected = [model.decision_function(split.x_test[split.groups == i]).mean()
              for i in range(9)]
  np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_svm_of_windows_matches_the_mmv_code(shared):
  path = shared / 'golden_mmv' / 'eval_ucf101.npz'
  if not path.exists():
    pytest.skip(f'{path} is missing: it holds the reference values of this test')
  golden = {k.removeprefix('linear/'): v for k, v in np.load(path).items()
            if k.startswith('linear/')}
  count, views, width = golden['x_test'].shape
  one_hot = lambda y: np.eye(5, dtype=bool)[y]
  split = frozen_features.Split(
      golden['x'], one_hot(golden['y']), golden['x_test'].reshape(-1, width),
      np.repeat(np.arange(count), views), one_hot(golden['y_test']), list('abcde'),
      False)
  scores = linear_probe._scores(linear_probe.SVM(C=1e-3),
                                linear_probe._standardise(split))
  np.testing.assert_allclose(scores, golden['decision_C_0.001'], atol=2e-2)
  measured = dict(linear_probe._measure(scores, split))
  assert measured['top1'] == golden['top1_top5_C_0.001'][0]


# ------------------------------------------------------------------ linear classifiers

@pytest.mark.parametrize('name', FAST)
def test_probe_finds_the_label_only_in_features_that_have_it(name, reader):
  _, truth = classes_of(reader, 'colour')
  probe = lambda x: dict(linear_probe.LinearProbe(
      make(Model(x), reader), {name: FAST[name]}).run(STATE))
  results = probe(noisy(truth))
  assert results['colour/top1'] == results['colour/top5'] == 1
  assert results['colour/chance_top1'] == truth.sum(0).max() / COUNT
  collapsed = probe(np.ones((COUNT, 4)))
  assert collapsed['colour/top1'] <= results['colour/chance_top1']


@pytest.mark.parametrize('name', FAST)
def test_probe_of_multi_label_clips(name, reader):
  _, truth = classes_of(reader, 'sound_event')
  data = make(Model(noisy(truth)), reader, columns=dict(sound_event='audio'),
              multi_labels=('sound_event',))
  results = dict(linear_probe.LinearProbe(data, {name: FAST[name]}).run(STATE))
  assert results['sound_event/top1'] == results['sound_event/mAP'] == 1
  assert results['sound_event/chance_top1'] == truth.mean(0).max()
  assert results['sound_event/AUC'] == 1 and results['sound_event/chance_AUC'] == 0.5


def test_two_classes_are_not_swapped(reader):
  values = ['a', 'b'] * 8
  x = np.array([[-1.], [1.]] * 8)
  for name, classifier in FAST.items():
    data = make(Model(x), labelled(reader, 'k', values), columns=dict(k='video'))
    probe = linear_probe.LinearProbe(data, {name: classifier})
    assert dict(probe.run(STATE))['k/top1'] == 1


def test_classifiers_and_splits_have_distinct_names(reader):
  _, truth = classes_of(reader, 'colour')
  data = make(Model(noisy(truth)), reader, (range(COUNT), range(8)),
              (range(COUNT), range(8, 16)))
  classifiers = {k: FAST[k] for k in ('logistic', 'svm')}
  results = dict(linear_probe.LinearProbe(data, classifiers).run(STATE))
  for measure in ('top1', 'chance_top1', 'top5'):
    for name in classifiers:
      each = [results[f'colour/{name}/split_{i}/{measure}'] for i in (1, 2)]
      assert results[f'colour/{name}/{measure}'] == np.mean(each)


def test_class_without_training_clips_is_never_correct(reader, caplog):
  """Checks that the other classes are still correct."""
  values = ['a', 'b', 'a', 'b', 'new', 'a', 'b', 'new']
  x = np.eye(3)[[0, 1, 0, 1, 2, 0, 1, 2]]
  data = make(Model(x), labelled(reader, 'k', values), (range(4), range(4, 8)),
              columns=dict(k='video'))
  results = dict(linear_probe.LinearProbe(data, FAST).run(STATE))
  for name in FAST:
    assert results[f'k/{name}/top1'] == 0.5
  assert 'k: 1 of 3 classes occur only in the test set' in caplog.text
  results = dict(nearest_neighbours.Neighbours(data, ks=(1, 3), shots=(1,)).run(STATE))
  assert results['k/R@1'] == results['k/R@3'] == results['k/1_shot/top1'] == 0.5


def test_label_of_every_training_clip_has_the_highest_score(reader):
  values = ['all|a', 'all|b', 'all|a', 'all|b', 'all', 'a']
  x = np.array([[0., 1], [1, 0]])[[0, 1, 0, 1, 1, 0]]
  data = make(Model(x), labelled(reader, 'k', values), (range(4), range(4, 6)),
              columns=dict(k='video'), multi_labels=('k',))
  for name, classifier in FAST.items():
    results = dict(linear_probe.LinearProbe(data, {name: classifier}).run(STATE))
    assert results['k/top1'] == 0.5    # 'all' is the best guess for both


def low_rank_scores(seed=0, multi_label=False, **settings):
  rng = np.random.default_rng(0)
  y = rng.integers(3, size=60)
  x = (np.eye(3, 6)[y] * 2 + rng.normal(size=(60, 6))).astype(np.float32)
  return linear_probe.LowRank(seed=seed, steps=200, **settings).scores(
      x, np.eye(3, dtype=bool)[y], x, multi_label), y


def test_adam_adds_the_decay_to_the_gradient_as_pytorch_does():
  classifier = linear_probe.MLP(hidden_dim=0, steps=1, learning_rate=1e-3,
                                weight_decay=0.1)
  targets = np.tile([True, False], (4, 1))
  init, _ = jax.random.split(jax.random.key(0))
  before = jax.nn.initializers.glorot_uniform()(jax.random.split(init, 1)[0], (3, 2))
  # Only the decay moves the kernel, and Adam's first step has the length of the rate.
  [(kernel, bias)] = classifier._train(np.zeros((4, 3), np.float32), targets, False)
  np.testing.assert_allclose(kernel, before - 1e-3 * np.sign(before), atol=1e-6)
  np.testing.assert_allclose(bias, [1e-3, -1e-3], rtol=1e-3)


def test_low_rank_classifier_is_reproducible():
  first, _ = low_rank_scores()
  np.testing.assert_array_equal(first, low_rank_scores()[0])
  assert not np.allclose(first, low_rank_scores(seed=1)[0])


def test_low_rank_classifier_trains_the_drawn_components():
  """Compares U and V after one and two steps."""
  x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
  targets = np.eye(3, dtype=bool)[np.arange(20) % 3]
  train = lambda steps: linear_probe.LowRank(steps=steps)._train(x, targets, False)
  (u0, v0, _), (u1, v1, _) = train(1), train(2)
  moved = np.any(np.abs(u1 - u0) > 0, axis=0), np.any(np.abs(v1 - v0) > 0, axis=1)
  # Adam's momentum also moves the components of the first step: at most 13 more.
  assert linear_probe.LowRank().num_drawn == 13
  for components in moved:
    assert 13 < components.sum() <= 26


def test_mean_over_components_is_the_full_classifier():
  rng = np.random.default_rng(0)
  u, v, bias, x = (rng.normal(size=shape) for shape in ((6, 20), (20, 3), 3, (5, 6)))
  parts = rng.permutation(20).reshape(10, 2)
  logits = [linear_probe.LowRank(rank=20)._part((u, v, bias), x, part)
            for part in parts]
  np.testing.assert_allclose(np.mean(logits, axis=0), x @ (u @ v) + bias)


def test_low_rank_classifier_with_all_components_takes_a_plain_step():
  """Draws every component, so that the step has no sampling noise."""
  x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  targets = np.eye(2, dtype=bool)[np.arange(8) % 2]
  low_rank = linear_probe.LowRank(rank=5, sample_rate=1.0, steps=1, batch_size=4)
  u, v, bias = low_rank._train(x, targets, False)
  other = dataclasses.replace(low_rank, learning_rate=1e-12)
  u0, v0, _ = other._train(x, targets, False)
  # The first step of Adam is the learning rate times the sign of the gradient.
  for before, after in ((u0, u), (v0, v), (np.zeros(2), bias)):
    np.testing.assert_allclose(np.abs(after - before), 5e-4, rtol=1e-2)
  loss = lambda u, v, bias: -np.mean(
      jax.nn.log_softmax(x @ u @ v + bias)[targets])
  assert loss(u, v, bias) < loss(u0, v0, np.zeros(2))


@pytest.mark.parametrize('settings, message', [
    (dict(sample_rate=0.0), 'sample_rate=0.0: expected'),
    (dict(sample_rate=1.5), 'sample_rate=1.5: expected at most 1'),
    (dict(rank=4), 'sample_rate=0.1: .* enough for one of the 4'),
    (dict(steps=0), 'steps=0: expected more than 0'),
    (dict(weight_decay=-0.1), 'weight_decay=-0.1: expected 0 or more')])
def test_invalid_classifier_setting_raises(settings, message):
  with pytest.raises(ValueError, match=message):
    linear_probe.LowRank(**settings)


# -------------------------------------------------------------------------- neighbours

def naive(split, ks):
  """Computes class retrieval by full sorts; wrong candidates come first in a tie."""
  x, x_test = (v / np.linalg.norm(v, axis=1, keepdims=True)
               for v in (split.x, split.x_test))
  hits = []
  for query, target in zip(x_test, split.targets_test, strict=True):
    right = (split.targets & target).any(axis=1)
    order = np.lexsort((right, -np.round(x @ query, 5)))
    hits.append([right[order[:k]].any() for k in ks])
  return np.mean(hits, axis=0)


def test_class_retrieval_matches_full_sorts(reader):
  rng = np.random.default_rng(0)
  model = Model(rng.integers(-1, 2, size=(COUNT, 3)) + [0, 0, 2])    # many ties
  data = make(model, reader, (range(10), range(10, 16)),
              columns=dict(colour='video', sound_event='audio'),
              multi_labels=('sound_event',))
  splits = dict(data.splits(STATE))
  results = dict(nearest_neighbours.Neighbours(data, ks=(1, 2, 5)).run(STATE))
  for label, (split,) in splits.items():
    np.testing.assert_allclose([results[f'{label}/R@{k}'] for k in (1, 2, 5)],
                               naive(split, (1, 2, 5)))


def test_chance_of_class_retrieval_matches_random_draws(reader):
  results = [dict(nearest_neighbours.Neighbours(
      make(Model(np.random.default_rng(seed).normal(size=(COUNT, 8))), reader,
           (range(10), range(6, 16))), shots=(1,), num_draws=3).run(STATE))
             for seed in range(3)]
  assert all('colour/R@20' not in r for r in results)    # only ten clips
  right = np.array([0, 1, 4, 10])
  chance = nearest_neighbours._chance(right, 10, 3)
  rng = np.random.default_rng(0)
  drawn = np.argsort(rng.random((4000, 10)), axis=1)[:, :3]
  for value, number in zip(chance, right, strict=True):
    assert value == pytest.approx(np.mean((drawn < number).any(axis=1)), abs=0.03)


@pytest.mark.parametrize('features', [np.zeros((COUNT, 4)), np.ones((COUNT, 4)),
                                      np.full((COUNT, 4), np.nan)],
                         ids=['zero', 'one', 'nan'])
def test_collapsed_features_have_zero_accuracy(features, reader):
  data = make(Model(features), reader, (range(8), range(8, 16)))
  results = dict(nearest_neighbours.Neighbours(data, shots=(1, 2)).run(STATE))
  for name in ('R@1', '1_shot/top1', '2_shot/top1'):
    assert results[f'colour/{name}'] == 0


@pytest.fixture(scope='module')
def published(shared):
  """Returns the arrays of class retrieval and few-shot of GDT's protocol."""
  path = shared / 'golden_gdt_stica' / 'retrieval.npz'
  if not path.exists():
    pytest.skip(f'{path} is missing: it holds the reference values of this test')
  return dict(np.load(path))


def protocol(published, pool):
  """Returns the split of 10 windows, whose feature maps `pool` reduces."""
  names = np.unique(np.concatenate([published[f'{side}_labels']
                                    for side in ('train', 'test')]))
  rows, targets = {}, {}
  for side in ('train', 'test'):
    windows = pool(published[f'{side}_maps'], axis=(3, 4, 5))        # [N, 10, C]
    rows[side] = mean_over_views(windows, np.ones(windows.shape[:2], bool))
    targets[side] = published[f'{side}_labels'][:, None] == names
  return frozen_features.Split(
      rows['train'], targets['train'], rows['test'], np.arange(len(rows['test'])),
      targets['test'], list(map(str, names)), False)


def test_class_retrieval_has_the_published_recall_by_max_pooled_features(published):
  split = protocol(published, np.max)
  evaluator = nearest_neighbours.Neighbours(None)
  measured = dict(evaluator._measure(split))
  for k in (1, 5, 20):
    assert measured[f'R@{k}'] == published[f'R@{k}']


def test_few_shot_has_the_published_accuracy_by_mean_pooled_features(published):
  split = protocol(published, np.mean)
  for shots in (1, 5):
    rank, _ = nearest_neighbours._rank(split, published[f'few_{shots}_indices'])
    assert np.mean(rank < 1) == published[f'few_{shots}_top1_cosine']


def test_few_shot_draws_clips_of_each_class_repeatedly(reader):
  values = ['a'] * 5 + ['b'] * 3 + ['a', 'b'] * 4
  # Only the first training clip of each class is informative.
  x = np.ones((COUNT, 2))
  x[0], x[5], x[8::2], x[9::2] = (1, 0), (0, 1), (1, 0), (0, 1)
  data = make(Model(x), labelled(reader, 'k', values), (range(8), range(8, 16)),
              columns=dict(k='video'))
  run = lambda **settings: dict(nearest_neighbours.Neighbours(
      data, shots=(1, 3, 9), num_draws=40, **settings).run(STATE))
  results = run()
  assert results['k/9_shot/top1'] == 1 and results['k/9_shot/top1_std'] == 0
  # One shot draws the informative clip of a with probability 1/5, and of b with 1/3.
  # A class is correct only if its clip is nearer than that of the other class.
  assert 0 < results['k/1_shot/top1'] < results['k/3_shot/top1'] < 1
  assert results['k/1_shot/top1_std'] > 0
  assert results['k/1_shot/chance_top1'] == 0.5
  assert results['k/9_shot/chance_top1'] == pytest.approx((5 / 8 + 3 / 8) / 2)
  assert run() == results != run(seed=1)


def test_too_few_training_clips_log_a_warning(reader, caplog):
  data = make(Model(np.eye(COUNT)), labelled(reader, 'k', 'ab' * 8), ([0, 1], [2, 3]),
              columns=dict(k='video'))
  assert not dict(nearest_neighbours.Neighbours(data, ks=(2, 5)).run(STATE))
  assert 'k: 2 training clips are too few for ks=(2, 5)' in caplog.text


def test_few_shot_draws_without_replacement():
  targets = np.eye(3, dtype=bool)[[0, 0, 0, 0, 1, 1, 2]]
  drawn = nearest_neighbours._draw(targets, 2, np.random.default_rng(0))
  assert sorted(targets[drawn].argmax(axis=1)) == [0, 0, 1, 1, 2]
  assert len(set(drawn.tolist())) == len(drawn)


@pytest.mark.parametrize('settings', [dict(ks=(0,)), dict(shots=(5, 0)),
                                      dict(num_draws=0)], ids=str)
def test_invalid_number_of_neighbours_raises(settings, reader):
  with pytest.raises(ValueError, match=f'{next(iter(settings))}=.*: expected 1'):
    nearest_neighbours.Neighbours(None, **settings)


def test_best_of_several_correct_candidates_counts():
  scores = np.array([[3., 1, 2], [3, 1, 2], [1, 1, 1], [np.nan, 2, 1], [2, np.nan, 1]])
  right = np.array([[0, 1, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0]], bool)
  assert metrics.rank_of_best(scores, right).tolist() == [1, 3, 1, 1, 1]
