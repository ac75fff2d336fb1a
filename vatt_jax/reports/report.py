"""Writes the report page of a run, and its table of results as text."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import io
import itertools
import math
import os
import pathlib
import textwrap
from typing import Any
import urllib.parse
import wave

import jinja2
import matplotlib as mpl
from matplotlib.axes import Axes
import numpy as np
from PIL import Image

from vatt_jax.evaluators import metrics
from vatt_jax.evaluators.retrieval import Hits
from vatt_jax.evaluators.retrieval import Retrieval
from vatt_jax.inputs import media
from vatt_jax.inputs import write_mp4
from vatt_jax.inputs.clip import IMAGE_SUFFIXES
from vatt_jax.inputs.sources import Clip
from vatt_jax.reports import plots
from vatt_jax.reports import run_info

_RANDOM_INIT = '_random_init'
_STRIP_FRAMES = 4
# The width of a card of the page in CSS pixels. A card shows two frames side by side:
# they are sharp on a display with two pixels per CSS pixel.
_FRAME_PIXELS = 176
_GAP_PIXELS = 4    # between frames
_AUDIO_HZ = 8000    # maximum sample rate of audio on the page
# Clips of files up to this size are embedded in the page; others are linked.
EMBED_FILE_BYTES = 300_000
_EMBED_SECONDS = 8.0    # maximum, like the next limits
_EMBED_PIXELS = 240    # shorter edge
_EMBED_FRAME_RATE_HZ = 15.0
_EMBED_AUDIO_HZ = 16_000


@dataclasses.dataclass(frozen=True)
class Row:
  """Holds a metric of the trained model, of a random one, and at chance level."""
  name: str
  value: float
  random_init: float | None
  chance: float | None

  @property
  def task(self) -> str:
    """Returns the evaluation and its task as readable text."""
    return self.name.rpartition('/')[0].replace('/', ' · ').replace('_', ' ')

  @property
  def metric(self) -> metrics.Metric:
    """Returns the metric; an unknown one has no direction and no meaning."""
    return metrics.find(self.name) or metrics.Metric(
        self.name.rpartition('/')[2], None, 3, (-math.inf, math.inf), '')

  @property
  def arrow(self) -> str:
    """Returns an arrow in the better direction."""
    return {True: '↑', False: '↓', None: ''}[self.metric.higher_is_better]

  @property
  def beats_all(self) -> bool:
    """Returns whether it is better than random init and chance, if these exist."""
    beside = [x for x in (self.random_init, self.chance) if x is not None]
    return all(self.metric.beats(self.value, other) for other in beside)


@dataclasses.dataclass(frozen=True)
class Strip:
  """Holds a clip of a gallery.

  Attributes:
    clip: index in its source.
    path: path of its file, or name of its record.
    start: start in seconds.
    end: end in seconds; infinite for the end of the file.
    caption: the clip's own caption.
    in_file: whether `path` is a file and not a record.
    video: a small MP4 as a data URI if the file is small; else empty.
    frames: uint8 [T, H, W, 3].
    right: whether it is the query's own clip.
    score: similarity with the query.
  """
  clip: int
  path: str
  start: float
  end: float
  caption: str
  in_file: bool
  video: str
  frames: np.ndarray
  right: bool = False
  score: float | None = None

  @property
  def name(self) -> str:
    """Returns file name and start."""
    return f'{pathlib.PurePath(self.path).name}, {self.start:.1f} s'

  def link(self, folder: pathlib.Path) -> str:
    """Returns a link to the clip from a page in `folder`; empty for a record."""
    if not self.in_file:
      return ''
    path = pathlib.Path(os.path.relpath(self.path, folder)).as_posix()
    end = f',{self.end:g}' if math.isfinite(self.end) else ''
    return f'{urllib.parse.quote(path)}#t={self.start:g}{end}'

  @property
  def row(self) -> np.ndarray:
    """Returns the frames side by side with white gaps, uint8 [H, ., 3]."""
    gap = [(0, 0), (0, 0), (0, _GAP_PIXELS), (0, 0)]
    wide = np.pad(self.frames, gap, constant_values=255)
    return np.concatenate(list(wide), axis=1)[:, :-_GAP_PIXELS]

  @property
  def image(self) -> str:
    """Returns the frames in two rows, a JPEG as a data URI."""
    edges = [(0, 0), (0, _GAP_PIXELS), (0, _GAP_PIXELS), (0, 0)]
    frames = np.pad(self.frames, edges, constant_values=255)
    half = len(frames) // 2
    rows = [np.concatenate(list(x), axis=1) for x in (frames[:half], frames[half:])]
    square = np.concatenate(rows)[:-_GAP_PIXELS, :-_GAP_PIXELS]
    file = io.BytesIO()
    Image.fromarray(square).save(file, 'JPEG', quality=80, optimize=True)
    return _data_uri('image/jpeg', file.getvalue())


@dataclasses.dataclass(frozen=True)
class Query:
  """Holds a query and the clips it retrieved, best first.

  Attributes:
    direction: one of `retrieval.GALLERIES`.
    own: the clip whose text or audio is the query.
    audio: the audio of an audio query as a data URI; empty for a text query.
    strips: the retrieved clips.
    rank: rank of the query's own clip among all clips, counted from 1.
  """
  direction: str
  own: Strip
  audio: str
  strips: list[Strip]
  rank: int

  @property
  def missed(self) -> bool:
    """Returns whether the query's own clip was not retrieved."""
    return not any(strip.right for strip in self.strips)

  @property
  def title(self) -> str:
    """Returns the caption, or path, of the query's own clip."""
    name = f'“{self.own.caption}”' if self.own.caption else self.own.path
    return f'Audio of {name}' if self.audio else name


def is_chance(name: str) -> bool:
  """Returns whether a metric is the chance level of another."""
  return name.rsplit('/', 1)[-1].startswith('chance_')


def as_rows(results: Mapping[str, Any]) -> Iterator[Row]:
  """Yields each metric that has a chance level or a value of random init beside it."""
  for name, value in results.items():
    if is_chance(name) or name.endswith(_RANDOM_INIT):
      continue
    head, _, measure = name.rpartition('/')
    chance = results.get(f'{head}/chance_{measure}')
    random_init = results.get(f'{name}{_RANDOM_INIT}')
    if chance is not None or random_init is not None:
      yield Row(name, value, random_init, chance)


def format_number(name: str, value: float | None) -> str:
  """Formats a value with the decimals of its metric; a dash for None."""
  if value is None:
    return '-'
  metric = metrics.find(name)
  return f'{value:.{metric.decimals if metric else 3}f}'


def as_text(results: Mapping[str, Any]) -> str:
  """Formats the table for a terminal, followed by metrics without a comparison."""
  rows = list(as_rows(results))
  width = max((len(r.name) for r in rows), default=0)
  lines = []
  if rows:
    lines.append(f'{"":{width}}  {"trained":>8}  {"random":>8}  {"chance":>8}')
  lines += [f'{r.name:{width}}' + ''.join(
      f'  {format_number(r.name, v):>8}' for v in (r.value, r.random_init, r.chance))
            for r in rows]
  lines += [f'{name}  {_plain(value)}' for name, value in _alone(results, rows)]
  return '\n'.join(lines)


def draw_galleries(evaluators: Mapping[str, Any], state: Any
                   ) -> dict[str, list[Query]]:
  """Returns name -> queries and hits of the evaluators that have a gallery."""
  return {name: draw_gallery(evaluator, evaluator.gallery(state))
          for name, evaluator in evaluators.items() if hasattr(evaluator, 'gallery')}


def draw_gallery(retrieval: Retrieval, hits: Sequence[Hits]) -> list[Query]:
  """Reads a few frames of every retrieved clip, and the audio of audio queries."""
  window = retrieval.reader.window
  reader = dataclasses.replace(retrieval.reader, window=dataclasses.replace(
      window, num_frames=_STRIP_FRAMES, image_size=_FRAME_PIXELS,
      frame_rate_hz=_STRIP_FRAMES / window.seconds,
      audio_hz=min(window.audio_hz, _AUDIO_HZ)))
  queries, examples, strips = [], {}, {}
  for hit in hits:
    for i in {hit.query, *hit.retrieved} - examples.keys():
      examples[i] = reader.views(i)
      if examples[i]:
        strips[i] = _strip(reader.clips[i], i, examples[i][0]['video'])
    if hit.query not in strips:
      continue
    audio = ''
    if hit.direction.startswith('audio'):
      audio = _wav(examples[hit.query][0]['audio'], reader.window.audio_hz)
    retrieved = [
        dataclasses.replace(strips[i], right=i == hit.query, score=score)
        for i, score in zip(hit.retrieved, hit.scores, strict=True) if i in strips]
    queries.append(Query(hit.direction, strips[hit.query], audio, retrieved, hit.rank))
  return queries


@mpl.rc_context(plots.STYLE)
def gallery_drawing(name: str, queries: Sequence[Query]) -> plots.Drawing:
  """Draws queries of one direction and their hits as a figure.

  Args:
    name: name of the evaluation.
    queries: one query or more.
  """
  direction = queries[0].direction
  query_modality, hit_modality = direction.split('_to_')
  rows = [[q.own, *q.strips] if q.audio else q.strips for q in queries]
  figure, panels = plots.grid(len(queries), max(map(len, rows)), 0.9 * len(queries))
  for line, query, strips in zip(panels, queries, rows, strict=True):
    line[0].set_title(query.title, loc='left', fontsize=7)
    for axes, strip in itertools.zip_longest(line, strips):
      if strip is None:
        axes.remove()
        continue
      _show(axes, strip)
    if query.audio:
      line[0].set_xlabel('audio query', fontsize=5, style='italic')
  table = [dict(query=query.own.clip, query_path=query.own.path,
                query_start=query.own.start, query_text=query.own.caption,
                query_rank=query.rank, rank=rank, clip=strip.clip, path=strip.path,
                start=strip.start, text=strip.caption, score=strip.score,
                right=strip.right)
           for query in queries for rank, strip in enumerate(query.strips, 1)]
  return plots.Drawing(
      f'gallery_{name}_{direction}',
      f'{query_modality.title()} to {hit_modality}: {name}',
      'The best clips for each query, best first, with their own captions; the '
      "query's own clip is framed.", figure, table)


def _show(axes: Axes, strip: Strip) -> None:
  axes.imshow(strip.row)
  axes.set(xticks=[], yticks=[])
  axes.grid(False)
  axes.spines[:].set(visible=True, linewidth=1.5,
                     color=plots.COLOURS[2] if strip.right else '#DDDDDD')
  axes.set_xlabel(textwrap.fill(strip.caption, 28), fontsize=5)


def write(path: pathlib.Path, title: str, results: Mapping[str, Any],
          curves: Sequence[plots.Drawing],
          galleries: Mapping[str, Sequence[Query]],
          drawings: Sequence[plots.Drawing] = (),
          info: run_info.RunInfo | None = None) -> None:
  """Writes one self-contained HTML file; only clips of large files are links.

  Args:
    path: path of the file.
    title: name of the run.
    results: flat name -> value.
    curves: curves of training (`plots.learning`).
    galleries: name -> queries and their hits.
    drawings: other figures.
    info: facts about the run; None if they are not recorded.
  """
  rows = list(as_rows(results))
  tasks: dict[str, list[Row]] = {}
  for row in rows:
    tasks.setdefault(row.task, []).append(row)
  explained = filter(None, (metrics.find(row.name, 'k') for row in rows))
  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
      autoescape=True, trim_blocks=True, lstrip_blocks=True)
  page = environment.get_template('report.html.jinja').render(
      title=title, facts=list(info.facts()) if info else [], tasks=tasks,
      meanings={metric.title: metric.meaning for metric in explained},
      number=format_number, png=_png, link=lambda strip: strip.link(path.parent),
      alone=[(name, _plain(value)) for name, value in _alone(results, rows)],
      curves=curves, drawings=drawings, galleries=galleries)
  path.write_text(page, encoding='utf-8')


def _alone(results, rows):
  in_table = {row.name for row in rows}
  return [(name, value) for name, value in results.items()
          if name not in in_table and not is_chance(name)
          and not name.endswith(_RANDOM_INIT)]


def _plain(value: Any) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def _caption(clip: Clip) -> str:
  """Returns the caption nearest to the clip's middle."""
  with clip.open() as file:
    middle = (clip.start + min(clip.end, file.duration_seconds)) / 2
  nearest = min(clip.captions, default=None,
                key=lambda c: abs((c.start + c.end) / 2 - middle))
  return nearest.text if nearest else ''


def _strip(clip: Clip, number: int, frames: np.ndarray) -> Strip:
  in_file, video = clip.content is None, ''
  if in_file and pathlib.Path(clip.path).suffix.lower() not in IMAGE_SUFFIXES and (
      os.path.getsize(clip.path) <= EMBED_FILE_BYTES):
    with contextlib.suppress(media.MediaError):    # a link is enough
      video = _data_uri('video/mp4', _mp4(clip))
  return Strip(number, clip.path, clip.start, clip.end, _caption(clip), in_file, video,
               frames)


def _mp4(clip: Clip) -> bytes:
  """Encodes the clip, from its start, as a small MP4.

  Raises:
    media.MediaError: the clip does not decode.
  """
  with clip.open() as file:
    seconds = min(clip.end_in(file) - clip.start, _EMBED_SECONDS)
    rate_hz = max(round(min(file.frame_rate_hz or _EMBED_FRAME_RATE_HZ,
                            _EMBED_FRAME_RATE_HZ)), 1)
    times = clip.start + np.arange(max(round(seconds * rate_hz), 1)) / rate_hz
    frames = file.frames(times)
    width, height = frames[0].size
    scale = min(_EMBED_PIXELS / min(width, height), 1)
    size = tuple(max(round(edge * scale / 2) * 2, 2) for edge in (width, height))
    small = [f.cut((0, 0, *f.size), size) for f in frames]
    audio = file.audio(clip.start, round(seconds * _EMBED_AUDIO_HZ), _EMBED_AUDIO_HZ)
  out = io.BytesIO()
  write_mp4.write(out, small, rate_hz, audio, _EMBED_AUDIO_HZ, 32_000, {'crf': '30'})
  return out.getvalue()


def _wav(samples: np.ndarray, rate_hz: int) -> str:
  """Encodes samples, int16 [S], as a WAV file in a data URI."""
  file = io.BytesIO()
  with wave.open(file, 'wb') as out:
    out.setnchannels(1)
    out.setsampwidth(2)
    out.setframerate(rate_hz)
    out.writeframes(samples.astype('<i2').tobytes())
  return _data_uri('audio/wav', file.getvalue())


def _png(drawing: plots.Drawing) -> str:
  return _data_uri('image/png', drawing.png)


def _data_uri(kind: str, content: bytes) -> str:
  return f'data:{kind};base64,' + base64.b64encode(content).decode()
