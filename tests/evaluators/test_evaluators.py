"""Tests vatt_jax/evaluators/retrieval.py and report.py with a synthetic model."""

import base64
import dataclasses
import io
import re

import av
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax.evaluators import extract
from vatt_jax.evaluators import retrieval
from vatt_jax.evaluators.views import AVERAGES
from vatt_jax.evaluators.views import mean_over_views
from vatt_jax.evaluators.views import of_clips
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window
from vatt_jax.reports import plots
from vatt_jax.reports import report
from vatt_jax.tools import prepare

COUNT = 16


@pytest.fixture(scope='module')
def reader(toy_world):
  clips = sources.open_source(str(toy_world / 'test_segments.csv'))
  window = Window(2, 5.0, 8, 2000, num_candidates=2, max_tokens=8)
  tokenizer = text.WordTokenizer.build([c.captions[0].text for c in clips], 256)
  return Reader(clips, window, tokenizer, FileNotes(0.1, COUNT))


def _oracle(state, batch):
  """Embeds clip i as unit vector i; the videos of clips in `state` as the next one."""
  ids = np.asarray(batch['id'])
  truth = np.eye(COUNT, dtype=np.float32)
  shifted = ids + np.isin(ids, state)
  embed = truth[shifted % COUNT]
  texts = np.stack([truth[ids], np.full_like(embed, 9.0)], axis=1)
  text_side = dict(text=texts) if 'text' in batch else {}
  return dict(embed=dict(video_audio=dict(video=embed, audio=truth[ids]),
                         video_text=dict(video=embed, audio=truth[ids], **text_side)))


def test_retrieval_metrics_count_confused_clips(reader):
  evaluator = retrieval.Retrieval(_oracle, reader, batch_size=5)
  perfect = dict(evaluator.run([]))
  for direction in retrieval.DIRECTIONS:
    assert perfect[f'{direction}/R@1'] == 1 and perfect[f'{direction}/MedR'] == 1
    assert perfect[f'{direction}/MeanR'] == 1
    assert perfect[f'{direction}/chance_MeanR'] == (COUNT + 1) / 2
    assert perfect[f'{direction}/chance_R@5'] == 5 / COUNT
  worse = dict(evaluator.run([3]))
  # Neither of two equal videos ranks first: a tie counts against the model.
  assert worse['text_to_video/R@1'] == (COUNT - 2) / COUNT
  assert worse['video_to_audio/R@1'] == (COUNT - 1) / COUNT
  # Caption 3 has no matching video, so that all tie; caption 4 has two.
  assert worse['text_to_video/MeanR'] == pytest.approx(
      (COUNT - 2 + COUNT + 2) / COUNT)


def test_clips_without_audio_are_not_in_the_audio_pool(reader):
  class NoAudio(Reader):
    def views(self, index, *args):
      return [view | dict(has_audio=np.bool_(index > 3))
              for view in super().views(index, *args)]

  no_audio = NoAudio(reader.clips, reader.window, reader.tokenizer, reader.notes)
  results = dict(retrieval.Retrieval(_oracle, no_audio, 8).run([]))
  assert results['audio_to_video/chance_R@1'] == 1 / (COUNT - 4)
  assert results['text_to_video/chance_R@1'] == 1 / COUNT


def test_gallery_shows_correct_clip_first_and_marks_it(reader):
  evaluator = retrieval.Retrieval(_oracle, reader, batch_size=8)
  hits = evaluator.gallery([5], num_queries=COUNT, num_hits=3)
  assert [h.direction for h in hits] == (
      ['text_to_video'] * COUNT + ['audio_to_video'] * COUNT)
  for direction in retrieval.GALLERIES:
    of_direction = [h for h in hits if h.direction == direction]
    assert [h.query for h in of_direction] == list(range(COUNT))
    assert all(h.retrieved[0] == h.query for h in of_direction if h.query not in (5, 6))
    assert of_direction[5].retrieved[0] != 5
  by_text, by_audio = report.draw_gallery(evaluator, [hits[0], hits[COUNT + 1]])
  assert [s.right for s in by_text.strips] == [True, False, False]
  assert by_text.title == f'“{reader.clips[0].captions[0].text}”'
  assert by_text.strips[0].image.startswith('data:image/jpeg;base64,')
  assert by_text.audio == '' and by_audio.audio.startswith('data:audio/wav;base64,')
  assert by_audio.title == f'Audio of “{reader.clips[1].captions[0].text}”'
  assert by_audio.own.clip == 1


def test_gallery_has_scores_and_rank_of_correct_clip(reader):
  """Embeds video 3 like video 4: query 3 has no match, query 4 has two."""
  evaluator = retrieval.Retrieval(_oracle, reader, batch_size=8)
  hits = evaluator.gallery([3], num_queries=COUNT, num_hits=3)
  results = dict(evaluator.run([3]))
  for direction in retrieval.GALLERIES:
    of_direction = [h for h in hits if h.direction == direction]
    assert of_direction[2].scores == [1, 0, 0] and of_direction[2].rank == 1
    assert of_direction[3].scores == [0, 0, 0] and of_direction[3].rank == COUNT
    assert 3 not in of_direction[3].retrieved
    assert of_direction[4].scores == [1, 1, 0] and of_direction[4].rank == 2
    assert of_direction[4].retrieved[:2] == [3, 4]    # a tie counts against the model
    assert np.mean([h.rank for h in of_direction]) == results[f'{direction}/MeanR']


def test_gallery_audio_is_the_audio_of_the_clip(reader):
  """Decodes the WAV file of a gallery."""
  evaluator = retrieval.Retrieval(_oracle, reader, batch_size=8)
  (query,) = report.draw_gallery(evaluator, [
      retrieval.Hits('audio_to_video', 2, [2], [1.0], 1)])
  file = io.BytesIO(base64.b64decode(query.audio.partition(',')[2]))
  with av.open(file) as container:
    (stream,) = container.streams
    samples = np.concatenate([f.to_ndarray()[0] for f in container.decode(stream)])
    assert stream.rate == reader.window.audio_hz
  np.testing.assert_array_equal(samples, reader.views(2)[0]['audio'])


def test_gallery_drawing_has_table_and_panels(reader):
  evaluator = retrieval.Retrieval(_oracle, reader, batch_size=8)
  queries = report.draw_gallery(evaluator, [
      retrieval.Hits('audio_to_video', 2, [7, 2], [0.9, 0.8], 2),
      retrieval.Hits('audio_to_video', 3, [3], [0.9], 1)])
  drawing = report.gallery_drawing('mine', queries)
  assert drawing.name == 'gallery_mine_audio_to_video'
  assert [(r['query'], r['rank'], r['clip'], r['right']) for r in drawing.table] == [
      (2, 1, 7, False), (2, 2, 2, True), (3, 1, 3, True)]
  # The clip of the audio query comes first and is not a hit.
  shown = [axes.images[0].get_array() for axes in drawing.figure.axes]
  assert len(shown) == 5
  np.testing.assert_array_equal(shown[0], queries[0].own.row)
  np.testing.assert_array_equal(shown[2], queries[0].own.row)


def test_gallery_reads_clips_of_records(reader, toy_world, tmp_path):
  plan = prepare.Plan(str(toy_world / 'test_segments.csv'), '', 'untouched')
  prepare.make_shard(plan, tmp_path, 1, 0)
  records = dataclasses.replace(reader, clips=sources.open_source(str(tmp_path)))
  evaluator = retrieval.Retrieval(_oracle, records, batch_size=8)
  queries = report.draw_gallery(evaluator, evaluator.gallery([], num_queries=2))
  assert queries[0].own.caption == reader.clips[0].captions[0].text


def test_no_metrics_and_no_gallery_if_clips_have_one_modality(reader, caplog):
  class NoAudio(Reader):
    def views(self, index, *args):
      return [view | dict(has_audio=np.bool_(False), text=np.zeros_like(view['text']))
              for view in super().views(index, *args)]

  no_audio = NoAudio(reader.clips, reader.window, reader.tokenizer, reader.notes)
  evaluator = retrieval.Retrieval(_oracle, no_audio, 8)
  assert not dict(evaluator.run([])) and not evaluator.gallery([])
  assert f'None of the {COUNT} clips to retrieve from has two' in caplog.text


def test_incomplete_clips_are_left_out_and_logged_once(toy_world, tmp_path, caplog):
  """Uses a broken video, one without caption, one without audio, and seven intact."""
  rows = (toy_world / 'test_segments.csv').read_text().splitlines()[1:11]
  lines = ['path,start,end,text']
  for i, row in enumerate(rows):
    path, start, end, *_, caption = row.split(',')
    path = tmp_path / 'broken.mp4' if i == 2 else toy_world / path
    lines.append(f'{path},{start},{end},{"" if i == 4 else caption}')
  (tmp_path / 'broken.mp4').write_bytes(b'not a video')
  (tmp_path / 'pool.csv').write_text('\n'.join(lines) + '\n')
  clips = sources.open_source(str(tmp_path / 'pool.csv'))

  class NoAudio(Reader):
    def views(self, index, *args):
      views = super().views(index, *args)
      return views and [view | dict(has_audio=view['has_audio'] & (index != 6))
                        for view in views]

  tokenizer = text.WordTokenizer.build([c.captions[0].text for c in clips
                                        if c.captions], 256)
  window = Window(2, 5.0, 8, 2000, num_candidates=2, max_tokens=8)
  pool = NoAudio(clips, window, tokenizer, FileNotes(1.0, 10))
  evaluator = retrieval.Retrieval(_oracle, pool, 4)
  with caplog.at_level('INFO'):
    results = dict(evaluator.run([]))
    assert dict(evaluator.run([])) == results
  sizes = dict(text_to_video=8, video_to_audio=8, text_to_audio=7)
  for direction, size in sizes.items():
    assert results[f'{direction}/R@1'] == 1
    assert results[f'{direction}/chance_R@1'] == 1 / size
  logged = [r.getMessage() for r in caplog.records if 'to retrieve' in r.getMessage()]
  assert logged == ['10 clips to retrieve from; left out where needed: 1 broken, '
                    '1 without audio, 1 without text']


def test_fraction_of_unknown_words_is_logged_once(reader, caplog):
  captions = [clip.captions[0].text for clip in reader.clips]
  tokenizer = text.WordTokenizer.build(captions, 7)
  ids = np.stack([tokenizer.encode(c, reader.window.max_tokens) for c in captions])
  unknown, total = (ids == tokenizer.unknown).sum(), (ids != 0).sum()
  assert 0 < unknown < total
  evaluator = retrieval.Retrieval(
      _oracle, dataclasses.replace(reader, tokenizer=tokenizer), 5, num_windows=2)
  with caplog.at_level('INFO'):
    list(evaluator.run([]))
    list(evaluator.run([]))
  logged = [r.getMessage() for r in caplog.records if 'nknown' in r.getMessage()]
  assert logged == [f'Unknown words: {100 * unknown / total:.1f} % of those in the '
                    'captions']


def test_similarities_average_is_the_mean_over_all_pairs_of_views():
  """Compares with brute force, for clips with none to all of their views."""
  rng = np.random.default_rng(0)
  sizes = dict(video=(9, 4), audio=(9, 3))
  embed = {m: rng.normal(size=(*size, 5)).astype(np.float32)
           for m, size in sizes.items()}
  present = {m: rng.random(size) < 0.7 for m, size in sizes.items()}
  present['audio'][3] = False
  clips = of_clips(dict(s=embed), present, 'similarities')['s']
  unit = {m: x / np.linalg.norm(x, axis=-1, keepdims=True) for m, x in embed.items()}
  for i in range(9):
    for j in range(9):
      pairs = [a @ b for a in unit['video'][i][present['video'][i]]
               for b in unit['audio'][j][present['audio'][j]]]
      assert clips['video'][i] @ clips['audio'][j] == pytest.approx(
          np.mean(pairs) if pairs else 0, abs=1e-6)


def test_two_averages_give_different_ranks(reader):
  truth = np.eye(COUNT, dtype=np.float32)

  def predict(state, batch):
    video = truth[batch['id']]
    # The second view of clip 0 cancels the first, except for a small part of clip 1.
    second = (np.asarray(batch['id']) == 0) & (np.arange(4) % 2 == 1)
    video[second] = 0.01 * truth[1] - truth[0]
    return dict(embed=dict(video_audio={}, video_text=dict(
        video=video, text=truth[batch['id']][:, None])))

  r1 = {average: dict(retrieval.Retrieval(
      predict, reader, 4, num_windows=2, average=average).run(None))
      ['text_to_video/R@1'] for average in AVERAGES}
  # Scaled to unit length, this part is all of clip 0, which ties with clip 1.
  assert r1 == dict(embeddings=(COUNT - 2) / COUNT, similarities=1)
  with pytest.raises(ValueError, match="average='cosine': expected one of embeddings"):
    retrieval.Retrieval(predict, reader, 4, average='cosine')


def test_video_and_audio_are_compared_without_text(reader):
  no_text = dataclasses.replace(reader, window=dataclasses.replace(
      reader.window, modalities=('video', 'audio')))
  results = dict(retrieval.Retrieval(_oracle, no_text, 8).run([]))
  assert results['video_to_audio/R@1'] == 1
  assert not any('text' in name for name in results)


def test_windows_of_a_clip_are_averaged(reader):
  """Averages the present windows; a clip without any gets zeros."""
  x = np.array([[[3., 0.], [0., 1.]], [[2., 2.], [9., 9.]], [[1., 1.], [1., 1.]]])
  present = np.array([[True, True], [True, False], [False, False]])
  np.testing.assert_array_equal(mean_over_views(x, present),
                                [[1.5, 0.5], [2, 2], [0, 0]])
  many = np.linspace(0, 1, 1000).astype(jnp.bfloat16)[None, :, None]
  assert mean_over_views(many, np.ones((1, 1000), bool)) == pytest.approx(
      0.5, abs=1e-3)    # not with a sum in bfloat16
  videos = []

  def pick(outputs, batch):
    videos.append(batch['video'])
    return dict(id=batch['id'])

  ids = extract.by_clip(lambda state, batch: {}, None, reader, 10, 3, 1, pick)['id']
  np.testing.assert_array_equal(ids, np.repeat(np.arange(COUNT)[:, None], 3, axis=1))
  video = np.concatenate(videos)
  assert (video[0] != video[2]).any()    # start and end of the first clip
  ids = extract.by_clip(lambda state, batch: {}, None, reader, 10, 2, 3, pick)['id']
  np.testing.assert_array_equal(ids, np.repeat(np.arange(COUNT)[:, None], 6, axis=1))
  results = dict(retrieval.Retrieval(_oracle, reader, 5, num_windows=3).run([]))
  assert results['text_to_video/R@1'] == results['video_to_audio/R@1'] == 1


RESULTS = {
    'a/R@1': 0.5, 'a/chance_R@1': 0.01, 'a/R@1_random_init': 0.02, 'a/MedR': 2.0,
    'a/chance_MedR': 128.5, 'a/MeanR': 3.25, 'a/chance_MeanR': 128.5,
    'train/loss': 1.23456, 'params/sha256': 'beef'}


def test_table_has_chance_and_random_init_beside_each_metric():
  lines = report.as_text(RESULTS).splitlines()
  assert [line.split() for line in lines] == [
      ['trained', 'random', 'chance'], ['a/R@1', '0.500', '0.020', '0.010'],
      ['a/MedR', '2.0', '-', '128.5'], ['a/MeanR', '3.2', '-', '128.5'],
      ['train/loss', '1.235'], ['params/sha256', 'beef']]


def test_report_is_one_self_contained_file(tmp_path, reader):
  evaluator = retrieval.Retrieval(_oracle, reader, batch_size=8)
  gallery = report.draw_gallery(evaluator, evaluator.gallery([], 2, 2))
  history = [{'step': s, 'train/loss': 5 / s, 'train/loss_video_text': 2 / s}
             for s in (1, 2, 3)] + [{'step': 3, 'a/R@1': 0.5}]
  extra = dataclasses.replace(plots.losses(history), title='One <more>')
  report.write(tmp_path / 'r.html', 'runs <b>', RESULTS,
               list(plots.learning(history)), dict(a=gallery), [extra])
  page = (tmp_path / 'r.html').read_text()
  assert '<h1>runs &lt;b&gt;</h1>' in page and '<h3>One &lt;more&gt;</h3>' in page
  assert page.count('data:image/png') == 2    # the losses, and the other
  assert page.index('Text to video: a') < page.index('Audio to video: a')
  assert page.count('class="right"') == 4 and page.count('data:image/jpeg') == 10
  assert page.count('<audio') == 2
  assert '0.500' in page and '128.5' in page
  links = re.findall(r'(?:src|poster)="([^"]*)"', page)
  assert all(link.startswith('data:') for link in links)
