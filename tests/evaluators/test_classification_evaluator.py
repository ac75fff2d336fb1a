"""Tests vatt_jax/evaluators/classification.py with a synthetic model."""

import collections
import dataclasses

import numpy as np
import pytest

from vatt_jax.errors import UserError
from vatt_jax.evaluators import classification
from vatt_jax.evaluators import metrics
from vatt_jax.evaluators.views import mean_over_views
from vatt_jax.inputs import labels
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window

COUNT = 16


@pytest.fixture(scope='module')
def reader(toy_world):
  clips = sources.open_source(str(toy_world / 'test_segments.csv'))
  window = Window(1, 5.0, 8, 2000, modalities=('video',))
  return Reader(clips, window, text.WordTokenizer(()),
                FileNotes(0.1, COUNT))


def labelled(reader, column, multi_label=False):
  return dataclasses.replace(reader, labels=labels.find(
      reader.clips, [column], multi_label, 'test.csv'))


def _oracle(reader, wrong=()):
  """Returns a model with correct scores, except the first view of the clips `wrong`."""
  (classes,) = reader.labels
  truth = np.stack([classes.encode(clip) for clip in reader.clips]).astype(float)
  counts = {}

  def predict(state, batch):
    rows = []
    for index in batch['id']:
      counts[int(index)] = counts.get(int(index), 0) + 1
      row = truth[index].copy()
      if index in wrong:
        row = -9 * row if counts[int(index)] == 1 else row
      rows.append(row)
    return dict(logits=np.stack(rows), pooled=dict(video=None))

  return predict


def test_scores_are_averaged_over_views(reader):
  reader = labelled(reader, 'shape')
  evaluator = classification.Classify(_oracle(reader), reader, 5, num_windows=2,
                                      num_crops=3)
  results = dict(evaluator.run(None))
  assert results['top1'] == 1 and 0 < results['chance_top1'] < 1
  # The score -9 of one view outweighs the 1 of the other five.
  evaluator = classification.Classify(_oracle(reader, wrong=(3, 8)), reader, 5,
                                      num_windows=2, num_crops=3)
  assert dict(evaluator.run(None))['top1'] == 1 - 2 / COUNT


def test_columns_of_labels_are_measured_one_by_one_and_jointly(reader):
  clips = [dataclasses.replace(clip, labels=clip.labels | dict(motion=''))
           if i == 5 else clip for i, clip in enumerate(reader.clips)]
  reader = dataclasses.replace(reader, clips=clips, labels=labels.find(
      clips, ['shape', 'motion'], False, 'test.csv'))
  truth = {one.column: np.stack([one.encode(clip) for clip in reader.clips]).astype(
      float) for one in reader.labels}
  # The shapes of clips 0 and 1 and the motions of 1 and 2 are wrong.
  scores = {column: np.where(np.isin(np.arange(COUNT), wrong)[:, None], -x, x)
            for (column, x), wrong in zip(truth.items(), ([0, 1], [1, 2]), strict=True)}
  predict = lambda state, batch: dict(
      logits={column: x[batch['id']] for column, x in scores.items()},
      pooled=dict(video=None))
  evaluator = classification.Classify(predict, reader, COUNT)
  results = dict(evaluator.run(None))
  assert results['shape/top1'] == 1 - 2 / COUNT
  assert results['motion/top1'] == 1 - 2 / (COUNT - 1)    # one clip has no motion
  assert results['all/top1'] == 1 - 3 / (COUNT - 1)
  pairs = collections.Counter((clip.labels['shape'], clip.labels['motion'])
                              for clip in clips if clip.labels['motion'])
  assert results['all/chance_top1'] == max(pairs.values()) / (COUNT - 1)
  assert 0 < results['shape/chance_top1'] < 1 and 'top1' not in results


def test_logits_of_windows_are_averaged_as_in_the_release_of_gdt(shared):
  path = shared / 'golden_gdt_stica' / 'video_accuracy.npz'
  if not path.exists():
    pytest.skip(f'{path} is missing: it holds the reference values of this test')
  golden = np.load(path)
  logits = golden['logits']                                          # [V, windows, C]
  scores = mean_over_views(logits, np.ones(logits.shape[:2], bool))
  measured = dict(metrics.top_k(scores, golden['labels']))
  for name in ('top1', 'top5'):
    assert 100 * measured[name] == pytest.approx(golden[name])


def test_multi_label_clips_are_measured_by_average_precision(reader):
  reader = labelled(reader, 'sound_event', multi_label=True)
  evaluator = classification.Classify(_oracle(reader), reader, 5)
  results = dict(evaluator.run(None))
  assert results['mAP'] == results['AUC'] == 1
  assert results['d_prime'] > 1 and results['chance_AUC'] == 0.5


def test_equal_scores_have_zero_accuracy(reader):
  reader = labelled(reader, 'motion')
  constant = lambda state, batch: dict(logits=np.ones((len(batch['id']), 8)),
                                       pooled=dict(video=None))
  results = dict(classification.Classify(constant, reader, 5).run(None))
  assert results['top1'] == results['top5'] == 0


def test_clips_without_a_label_are_left_out_and_counted(reader, caplog):
  reader = labelled(reader, 'shape')
  clips = [dataclasses.replace(clip, labels=clip.labels | dict(shape=''))
           if i in (1, 2) else clip for i, clip in enumerate(reader.clips)]
  some = dataclasses.replace(reader, clips=clips)
  evaluator = classification.Classify(_oracle(reader, wrong=(1, 4)), some, 5)
  assert dict(evaluator.run(None))['top1'] == 1 - 1 / (COUNT - 2)
  assert 'config.data.path: 2 of 16 clips have no label' in caplog.text


def test_no_metrics_if_all_clips_lack_a_label_or_video(reader, caplog):
  reader = labelled(reader, 'shape')

  class Blind(Reader):
    def views(self, index, *args):
      return [view | dict(has_video=np.bool_(False))
              for view in super().views(index, *args)]

  blind = Blind(**{f.name: getattr(reader, f.name) for f in dataclasses.fields(reader)})
  evaluator = classification.Classify(_oracle(reader), blind, 5)
  assert not dict(evaluator.run(None))
  assert ("path: 16 of 16 clips have no label in the column 'shape' or nothing to "
          'classify') in caplog.text


def test_wrong_label_map_or_unlabelled_split_raises(reader):
  reader = labelled(reader, 'shape')
  (classes,) = reader.labels
  few = dataclasses.replace(reader, labels=[dataclasses.replace(
      classes, names=classes.names[1:])])
  with pytest.raises(UserError, match=r"clips/test/\d+\.mp4: shape='bar' is none of"):
    classification.Classify(_oracle(reader), few, 5)
  other = dataclasses.replace(reader, labels=[dataclasses.replace(
      classes, column='size')])
  with pytest.raises(UserError, match=r"data\.path: no column 'size'; found colour"):
    classification.Classify(_oracle(reader), other, 5)
  empty = dataclasses.replace(reader, clips=[
      Clip(clip.path, labels=dict(shape='')) for clip in reader.clips])
  with pytest.raises(UserError, match=r"data\.path: no clip has a label in its column"):
    classification.Classify(_oracle(reader), empty, 5)


def test_model_without_classifier_raises(reader):
  evaluator = classification.Classify(lambda state, batch: dict(embed={}),
                                labelled(reader, 'shape'), 5)
  with pytest.raises(UserError, match=r"'classify' needs a classifier"):
    list(evaluator.run(None))
