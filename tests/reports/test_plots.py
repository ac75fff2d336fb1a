"""Tests vatt_jax/reports/plots.py."""

import collections
import csv

import numpy as np
from PIL import Image
import pytest

from vatt_jax.reports import plots


def features(count=12, text=True, **settings):
  """Returns clips whose video, audio and text match and differ from other clips."""
  truth = np.eye(count, dtype=np.float32)
  sides = dict(video=truth, audio=truth + 0.1, **(dict(text=truth) if text else {}))
  inputs = {m: np.random.default_rng(i).normal(size=(count, 4 + i)).astype(np.float32)
            for i, m in enumerate(sides)}
  given = dict(
      clip=np.arange(count) * 10, present={m: np.ones(count, bool) for m in sides},
      inputs=inputs, pooled=inputs,
      embed={f'video_{m}': unit_norm(dict(video=truth, **{m: x}))
             for m, x in sides.items() if m != 'video'})
  return plots.Features(**given | settings)


def unit_norm(sides):
  return {m: x / np.linalg.norm(x, axis=1, keepdims=True) for m, x in sides.items()}


def column(drawing, name):
  return [row[name] for row in drawing.table]


def test_losses_are_drawn_with_all_points():
  history = [{'step': s, 'train/loss': 3.0 / s, 'train/loss_a': 1.0 / s}
             for s in (1, 2)] + [{'step': 2, 'x/R@1': 0.5}]
  drawing = plots.losses(history)
  assert [tuple(row.values()) for row in drawing.table] == [
      (1, 'loss', 3.0), (2, 'loss', 1.5), (1, 'loss_a', 1.0), (2, 'loss_a', 0.5)]
  (axes,) = drawing.figure.axes
  assert [line.get_label() for line in axes.lines] == ['loss', 'loss_a']
  np.testing.assert_array_equal(axes.lines[1].get_ydata(), [1.0, 0.5])
  with pytest.raises(plots.NothingToDraw, match='no step'):
    plots.losses(history[2:])


@pytest.mark.parametrize('value', [0.0, float('nan'), None])
def test_loss_without_data_has_no_curve(value):
  history = [{'step': s, 'train/loss': 3.0 / s, 'train/loss_a': 3.0 / s,
              'train/loss_b': value} for s in (1, 2)]
  drawing = plots.losses(history)
  (axes,) = drawing.figure.axes
  assert [line.get_label() for line in axes.lines] == ['loss', 'loss_a']
  assert set(column(drawing, 'name')) == {'loss', 'loss_a'}
  assert 'Not drawn, because they had no data: loss_b.' in drawing.caption
  assert 'Not drawn' not in plots.losses([{'step': 1, 'train/loss': 1.0}]).caption
  with pytest.raises(plots.NothingToDraw, match='no loss had data'):
    plots.losses([{'step': 1, 'train/loss': value}])


def test_loss_with_data_in_some_steps_keeps_all_points():
  history = [{'step': s, 'train/loss': loss} for s, loss in enumerate((0.0, 2.0, 0.0))]
  assert column(plots.losses(history), 'value') == [0.0, 2.0, 0.0]


def test_metrics_have_a_panel_for_each_task_and_no_ranks():
  history = [{'step': s, 'a/x/R@1': s / 10, 'a/x/chance_R@1': 0.01, 'a/x/MedR': 9.0,
              'a/x/R@1_random_init': 0.0, 'b/top1': 0.5} for s in (1, 2, 3)]
  history += [{'step': 3, 'c/top1': 0.5}, {'step': 3, 'train/loss': 0.5}]
  drawing = plots.measures(history)
  assert [axes.get_title() for axes in drawing.figure.axes] == ['a/x', 'b']
  assert set(column(drawing, 'name')) == {'a/x/R@1', 'b/top1'}
  assert drawing.table[0] == dict(step=1, name='a/x/R@1', value=0.1, chance=0.01)
  assert len(drawing.figure.axes[0].lines) == 2    # and chance
  with pytest.raises(plots.NothingToDraw, match='two evaluations'):
    plots.measures(history[2:])


def test_tsne_keeps_clusters_and_is_reproducible():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(40, 6)) + np.repeat([[0.0], [30.0]], 20, axis=0)
  points = plots.tsne(x, seed=1)
  apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
  assert apart[:20, :20].max() < apart[:20, 20:].min()
  np.testing.assert_array_equal(points, plots.tsne(x, seed=1))
  for few in (x[:4], np.ones((40, 6))):
    with pytest.raises(plots.NothingToDraw, match='points'):
      plots.tsne(few, seed=1)


def test_each_model_has_a_panel_coloured_by_class():
  given = features(14)
  given.present['audio'][3] = False
  labels = ['a|b', 'b', 'c', 'b'] * 3 + ['c', 'a']
  drawing = plots.by_class({'before': given, 'one': given, 'other': given}, labels,
                             'kind', 0)
  assert [axes.get_title() for axes in drawing.figure.axes] == [
      'video, before', 'video, one', 'video, other',
      'audio, before', 'audio, one', 'audio, other']
  rows = [r for r in drawing.table if r['when'] == 'one' and r['modality'] == 'audio']
  assert [r['clip'] for r in rows] == [i * 10 for i in range(14) if i != 3]
  assert [r['label'] for r in rows[:3]] == ['a', 'b', 'c']
  legend = drawing.figure.legends[0]
  assert [text.get_text() for text in legend.get_texts()] == ['a', 'b', 'c']
  of_a = drawing.figure.axes[0].collections[0].get_offsets()
  assert of_a.tolist() == [[r['x'], r['y']] for r in drawing.table
                           if r['when'] == 'before' and r['modality'] == 'video'
                           and r['label'] == 'a']


def test_too_many_classes_have_no_legend():
  given = features(60, text=False)
  labels = [str(i % 30) for i in range(60)]
  assert not plots.by_class({'now': given}, labels, 'kind', 3).figure.legends
  with pytest.raises(plots.NothingToDraw, match="'kind' has 1 classes"):
    plots.by_class({'now': given}, ['a'] * 60, 'kind', 3)


def test_sample_balances_classes():
  """Checks that a rare class is as likely as a frequent one and keeps all its clips."""
  labels = np.array(['rare|x'] * 3 + [f'c{i % 6}' for i in range(600)] + [''] * 50)
  first = lambda numbers: [labels[i].split('|')[0] for i in numbers]
  counts = collections.Counter()
  for seed in range(100):
    numbers = plots.draw_by_class(labels, 4, 20, seed)
    assert np.all(np.diff(numbers) > 0)
    drawn = collections.Counter(first(numbers))
    assert len(drawn) == 4 and '' not in drawn
    assert set(drawn.values()) <= {3, 20} and drawn.get('rare', 3) == 3
    counts.update(drawn.keys())
  assert all(35 < n < 80 for n in counts.values())    # 4 / 7 of 100
  np.testing.assert_array_equal(numbers, plots.draw_by_class(labels, 4, 20, 99))
  assert len(plots.draw_by_class(labels, 100, 1000, 0)) == 603
  assert not len(plots.draw_by_class([''] * 5, 4, 20, 0))


def test_class_styles_are_distinct():
  styles = plots._class_styles()
  assert len(styles) == len(set(styles)) == 21


def test_each_space_has_a_panel_and_each_model_a_row():
  agnostic = features(text=False)
  agnostic.present['audio'][:5] = False
  drawing = plots.by_modality({'one': features(), 'other': agnostic}, 0)
  assert [axes.get_title() for axes in drawing.figure.axes] == [
      'input', 'output, video and audio', 'output, video and text', 'input',
      'output, video and audio']
  count = lambda **wish: sum(wish.items() <= row.items() for row in drawing.table)
  assert count(model='one', space='input') == 36
  assert count(model='one', space='output, video and text', modality='text') == 12
  assert count(model='other', space='input', modality='audio') == 7
  assert 'one: video 4, audio 5, text 6' in drawing.caption


def test_narrow_vectors_are_padded_with_zeros():
  wide, narrow = plots.common_width([np.array([[3., 0., 4.]]), np.array([[0., 2.]])])
  np.testing.assert_allclose(wide, [[0.6, 0, 0.8]])
  np.testing.assert_array_equal(narrow, [[0, 1, 0]])


def test_model_without_common_spaces_is_not_drawn():
  for draw in (lambda f: plots.by_modality(f, 0), plots.similarities):
    with pytest.raises(plots.NothingToDraw, match='the mine model has no common'):
      draw({'mine': features(embed={})})


def test_densities_use_all_pairs_and_integrate_to_one():
  rng = np.random.default_rng(0)
  video = rng.normal(size=(50, 8))
  embed = {'video_text': unit_norm(dict(
      video=video, text=video + 0.5 * rng.normal(size=(50, 8))))}
  drawing = plots.similarities({'mine': features(50, embed=embed)})
  assert [axes.get_title() for axes in drawing.figure.axes] == [
      'video and text, input space', 'video and text, output space']
  rows = [r for r in drawing.table if r['space'] == 'output']
  place, positive, negative = (np.array([r[k] for r in rows])
                               for k in ('similarity', 'positive', 'negative'))
  sides = embed['video_text']
  similarity = sides['video'] @ sides['text'].T
  mean = lambda density: np.trapezoid(place * density, place)
  assert np.trapezoid(negative, place) == pytest.approx(1, abs=0.02)
  assert mean(positive) == pytest.approx(np.diag(similarity).mean(), abs=0.05)
  off = similarity[~np.eye(50, dtype=bool)]
  assert mean(negative) == pytest.approx(off.mean(), abs=0.02)


def test_incomplete_or_equal_pairs_are_not_drawn():
  given = features(text=False)
  given.present['audio'][1:] = False
  with pytest.raises(plots.NothingToDraw, match='1 positive pairs'):
    plots.similarities({'mine': given})
  equal = np.ones((12, 3)) / np.sqrt(3)
  given = features(embed={'video_audio': dict(video=equal, audio=equal)})
  with pytest.raises(plots.NothingToDraw, match='all with equal similarity'):
    plots.similarities({'mine': given})


def test_cost_curve_connects_means_of_runs_of_equal_cost():
  runs = [dict(run=n, drop_token_rate=r, gflops=g, top1=v) for n, r, g, v in (
      ('b', 0.0, 4.0, 0.8), ('a', 0.5, 2.0, 0.6), ('c', 0.5, 2.0, 0.7))]
  drawing = plots.cost_curve(runs, 'top1')
  (axes,) = drawing.figure.axes
  np.testing.assert_allclose(axes.lines[0].get_xydata(), [[2, 0.65], [4, 0.8]])
  assert [t.get_text() for t in axes.texts] == ['50% dropped', '0% dropped']
  assert column(drawing, 'run') == ['a', 'c', 'b']


def test_drawing_is_saved_as_png_and_csv(tmp_path):
  drawing = plots.losses([{'step': s, 'train/loss': 1 / 3} for s in (1, 2)])
  drawing.save(tmp_path)
  with Image.open(tmp_path / 'losses.png') as image:
    assert image.width == 1000
    assert image.info['Title'] == 'Losses'
    assert image.info['Description'] == drawing.caption
    assert image.convert('RGB').getpixel((0, 0)) == (255, 255, 255)
  with (tmp_path / 'losses.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert [(int(r['step']), float(r['value'])) for r in rows] == [(1, 1 / 3), (2, 1 / 3)]
