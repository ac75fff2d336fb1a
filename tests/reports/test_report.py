"""Tests the page of vatt_jax/reports/report.py as a browser parses it."""

import base64
import dataclasses
import html.parser
import io
import math
import pathlib
import urllib.parse

import av
import numpy as np
from PIL import Image
import pytest

from vatt_jax.evaluators import metrics
from vatt_jax.evaluators import retrieval
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window
from vatt_jax.reports import plots
from vatt_jax.reports import report
from vatt_jax.reports import run_info
from vatt_jax.tools import prepare


class Page(html.parser.HTMLParser):
  """Collects table rows, definition lists, tags, and all text."""

  def __init__(self, path):
    super().__init__()
    self.rows, self.facts, self.tags, self.words = [], {}, [], []
    self._open = []
    self.feed(path.read_text(encoding='utf-8'))
    self.text = ' '.join(' '.join(self.words).split())

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self._open.append(tag)
    if tag == 'tr':
      self.rows.append([])
    elif tag in ('td', 'th'):
      self.rows[-1].append('')
    elif tag == 'dt':
      self._name = ''

  def handle_endtag(self, tag):
    while self._open.pop() != tag:
      pass

  def handle_data(self, data):
    if 'style' in self._open:
      return
    self.words.append(data)
    if {'td', 'th'} & set(self._open):
      self.rows[-1][-1] += f'*{data}*' if 'b' in self._open else data.strip('\n')
    elif 'dt' in self._open:
      self._name += data
    elif 'dd' in self._open:
      self.facts[self._name] = self.facts.get(self._name, '') + data

  def all(self, tag):
    return [attrs for name, attrs in self.tags if name == tag]


def written(path, results=None, curves=(), galleries=None, info=None):
  report.write(path, 'run', results or {}, curves, galleries or {}, info=info)
  return Page(path)


def test_only_values_better_than_random_init_and_chance_are_bold(tmp_path):
  results = {}
  for name, *values in (
      ('a/R@1', 0.5, 0.2, 0.1), ('a/R@5', 0.5, 0.6, 0.1), ('a/R@10', 0.5, 0.2, 0.5),
      ('a/MedR', 2.0, 9.0, 9.0), ('a/MeanR', 9.0, 8.0, 9.5),
      ('b/top1', math.nan, 0.2, 0.1), ('b/top1_std', 0.9, 0.1, 0.1),
      ('b/novel', 0.9, 0.1, 0.1)):
    head, _, measure = name.rpartition('/')
    results |= dict(zip((name, f'{name}_random_init', f'{head}/chance_{measure}'),
                        values, strict=True))
  results |= {'c/top1': 0.4, 'c/chance_top1': 0.3}    # no value of random init
  rows = written(tmp_path / 'r.html', results).rows
  cells = {row[0].split()[0]: row[1] for row in rows[1:6] if len(row) > 1}
  assert cells == {'R@1': '*0.500*', 'R@5': '0.500', 'R@10': '0.500', 'MedR': '*2.0*'}
  rest = [row[1] for row in rows[6:] if len(row) > 1]
  assert rest == ['9.0', 'nan', '0.900', '0.900', '*0.400*']


def test_metrics_are_grouped_by_task_and_have_arrows(tmp_path):
  results = {f'{name}{suffix}': 1.0 for suffix in ('', '_random_init') for name in (
      'x/text_to_video/R@1', 'y/top5', 'x/text_to_video/MedR', 'y/d_prime')}
  page = written(tmp_path / 'r.html', results)
  assert [row[0].strip() for row in page.rows[1:]] == [
      'x · text to video', 'R@1 ↑', 'MedR ↓', 'y', 'top-5 ↑', "d' ↑"]
  titles = [a['title'] for a in page.all('abbr')]
  assert titles[0] == ('Recall at 1: fraction of queries with a correct result in the '
                       'top 1.')
  assert 'median rank' in titles[1].lower()
  assert page.facts['R@k'].startswith('Recall at k')    # for devices without hover


def test_every_metric_has_an_explanation():
  for name in ('R@1', 'R@20', 'MedR', 'MeanR', 'top1', 'top5', 'mAP', 'AUC', 'd_prime',
               '5_shot/top1', '5_shot/top1_std', 'train/loss'):
    assert metrics.find(f'task/{name}').meaning, name
  assert metrics.find('input/skipped_files') is None
  assert metrics.find('params/sha256') is None
  assert metrics.find('a/R@50').title == 'R@50'
  assert not metrics.find('a/d_prime').is_share and metrics.find('a/AUC').is_share


def test_header_has_facts_about_the_run(tmp_path):
  info = run_info.RunInfo(
      '2025-03-01T12:30:00+00:00', 'python -m x --a="<b>"', 'commit abc', 'TPU v4, 8 '
      'devices', 0, '', 1200, {'mine': run_info.Measured(3, 0)})
  page = written(tmp_path / 'r.html', info=info)
  assert page.facts == {
      'Started': '2025-03-01 12:30 UTC', 'Command': 'python -m x --a="<b>"',
      'Code': 'commit abc', 'Device': 'TPU v4, 8 devices', 'Training clips': '1,200',
      'Evaluation: mine': '3 clips, held out'}
  assert written(tmp_path / 'r.html').facts == {}    # a run of an older version


def test_wide_table_scrolls_in_a_box_without_script(tmp_path):
  page = written(tmp_path / 'r.html', {'a/R@1': 1.0, 'a/chance_R@1': 0.1})
  names = [tag for tag, _ in page.tags]
  box = page.tags[names.index('table') - 1]
  assert box[1]['class'] == 'scroll'
  assert 'script' not in names
  assert any(a.get('content', '').startswith('width=device-width')
             for a in page.all('meta'))


@pytest.fixture(scope='module')
def reader(toy_world):
  clips = sources.open_source(str(toy_world / 'test_segments.csv'))
  window = Window(2, 5.0, 8, 2000, num_candidates=2, max_tokens=8)
  return Reader(clips, window, text.WordTokenizer(('a',)),
                FileNotes(0.1, len(clips)))


def drawn(reader, *hits):
  evaluator = retrieval.Retrieval(lambda *_: {}, reader, batch_size=8)
  return {'mine': report.draw_gallery(evaluator, hits)}


def test_page_gives_rank_of_correct_clip_only_if_it_was_not_retrieved(
    reader, tmp_path):
  missed = drawn(reader, retrieval.Hits('text_to_video', 2, [7, 3], [0.9, -0.8], 11))
  page = written(tmp_path / 'r.html', galleries=missed)
  name = pathlib.Path(reader.clips[2].path).name
  assert f'The correct clip, {name}, {reader.clips[2].start:.1f} s , has rank 11.' in (
      page.text)
  assert 'similarity 0.900' in page.text and 'similarity -0.800' in page.text
  for i in (7, 3):
    clip = reader.clips[i]
    assert f'{pathlib.Path(clip.path).name}, {clip.start:.1f} s' in page.text
  assert not any(a.get('class') == 'right' for a in page.all('figure'))
  hits = drawn(reader, retrieval.Hits('text_to_video', 2, [7, 2], [0.9, 0.8], 2))
  page = written(tmp_path / 'r.html', galleries=hits)
  assert 'has rank' not in page.text
  assert [a.get('class') for a in page.all('figure')] == [None, 'right']


def test_link_is_relative_to_the_page_and_has_times(reader, tmp_path):
  odd = tmp_path / 'a b #1:.mp4'
  odd.write_bytes(pathlib.Path(reader.clips[5].path).read_bytes())
  clips = list(reader.clips)
  clips[5] = dataclasses.replace(clips[5], path=str(odd), start=0.5, end=2.25)
  hit = retrieval.Hits('text_to_video', 5, [5], [1.0], 1)
  gallery = drawn(dataclasses.replace(reader, clips=clips), hit)
  (tmp_path / 'runs').mkdir()
  page = written(tmp_path / 'runs' / 'r.html', galleries=gallery)
  (link,) = {a['href'] for a in page.all('a')}
  path, _, times = link.partition('#')
  assert times == 't=0.5,2.25'
  assert not urllib.parse.urlsplit(path).scheme and not path.startswith('/')
  assert (tmp_path / 'runs' / urllib.parse.unquote(path)).samefile(odd)


def test_clips_of_small_files_are_embedded_and_of_large_ones_linked(
    reader, tmp_path, monkeypatch):
  hit = retrieval.Hits('text_to_video', 4, [4], [1.0], 1)
  page = written(tmp_path / 'r.html', galleries=drawn(reader, hit))
  (video,) = page.all('video')
  content = base64.b64decode(video['src'].removeprefix('data:video/mp4;base64,'))
  clip = reader.clips[4]
  with av.open(io.BytesIO(content)) as file:
    assert file.duration / av.time_base == pytest.approx(clip.end - clip.start, abs=0.2)
    frame = next(file.decode(video=0)).to_ndarray(format='rgb24')
  with clip.open() as file:
    (first,) = file.frames([clip.start])
    whole = first.cut((0, 0, *first.size), first.size)
  assert np.abs(frame.astype(int) - whole).mean() < 20    # the start of the clip
  assert np.abs(frame.astype(int) - whole[:, ::-1]).mean() > 20
  monkeypatch.setattr(report, 'EMBED_FILE_BYTES', 100)
  page = written(tmp_path / 'r.html', galleries=drawn(reader, hit))
  assert not page.all('video') and page.all('a')


def test_clip_of_a_record_has_no_link_or_video(reader, toy_world, tmp_path):
  plan = prepare.Plan(str(toy_world / 'test_segments.csv'), '', 'untouched')
  prepare.make_shard(plan, tmp_path, 1, 0)
  records = dataclasses.replace(reader, clips=sources.open_source(str(tmp_path)))
  page = written(tmp_path / 'r.html', galleries=drawn(
      records, retrieval.Hits('text_to_video', 1, [0], [1.0], 3)))
  assert not page.all('a') and not page.all('video') and page.all('img')
  name = pathlib.PurePath(records.clips[0].path).name
  assert name in page.text


def test_frames_are_sharp_on_a_display_with_two_pixels_per_css_pixel(reader):
  (query,) = drawn(reader, retrieval.Hits('text_to_video', 1, [1], [1.0], 1))['mine']
  image = base64.b64decode(query.strips[0].image.partition(',')[2])
  with Image.open(io.BytesIO(image)) as opened:
    assert min(opened.size) >= 2 * 176    # card width in CSS pixels
  assert len(image) < 50_000


def test_gallery_table_has_scores_and_ranks(reader):
  queries = drawn(reader, retrieval.Hits(
      'text_to_video', 2, [7, 3], [0.9, 0.8], 11))['mine']
  rows = report.gallery_drawing('mine', queries).table
  assert [(r['score'], r['query_rank']) for r in rows] == [(0.9, 11), (0.8, 11)]


def test_curves_fit_a_narrow_page_and_wide_figures_scroll(tmp_path):
  history = [{'step': s, 'train/loss': 1.0 / s} for s in (1, 2)]
  figure, _ = plots.grid(1, 3, 2.0)
  wide = plots.Drawing('a', 'A', '', figure, [])
  page = written(tmp_path / 'r.html', curves=[plots.losses(history), wide])
  assert [a.get('class') for a in page.all('img')] == [None, 'wide']
