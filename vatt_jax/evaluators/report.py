"""The page that a person reads after a run, and the same table as text."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import io
import itertools
import pathlib
import textwrap
from typing import Any
import wave

import jinja2
import matplotlib as mpl
from matplotlib.axes import Axes
import numpy as np
from PIL import Image

from vatt_jax.evaluators import figures
from vatt_jax.evaluators.retrieval import Hits
from vatt_jax.evaluators.retrieval import Retrieval
from vatt_jax.inputs.sources import Clip

_RANDOM_INIT = '_random_init'
_STRIP_FRAMES = 4
_FRAME_PIXELS = 72
_GAP_PIXELS = 2    # between pictures
_SOUND_HZ = 8000    # at most, of the sounds on the page


@dataclasses.dataclass(frozen=True)
class Row:
  """A measure: of the trained model, of a random one, of chance."""
  name: str
  value: float
  random_init: float | None
  chance: float | None


@dataclasses.dataclass(frozen=True)
class Strip:
  """A clip in a gallery.

  Attributes:
    clip: number in its source.
    path: of its file.
    start: seconds.
    caption: its own words.
    right: whether it is the query's own clip.
    pictures: uint8 [T, H, W, 3].
  """
  clip: int
  path: str
  start: float
  caption: str
  right: bool
  pictures: np.ndarray

  @property
  def row(self) -> np.ndarray:
    """The pictures side by side, white between them.  -> uint8 [H, ., 3]."""
    gap = [(0, 0), (0, 0), (0, _GAP_PIXELS), (0, 0)]
    wide = np.pad(self.pictures, gap, constant_values=255)
    return np.concatenate(list(wide), axis=1)[:, :-_GAP_PIXELS]

  @property
  def image(self) -> str:
    """The same as a data URI."""
    file = io.BytesIO()
    Image.fromarray(self.row).save(file, 'JPEG', quality=85)
    return _data_uri('image/jpeg', file.getvalue())


@dataclasses.dataclass(frozen=True)
class Query:
  """What was asked, and the clips that it found, best first.

  Attributes:
    direction: of `retrieval.GALLERIES`.
    own: the clip whose words or sound ask.
    sound: of a sound that asks, a data URI; empty for words.
    strips: what was found.
  """
  direction: str
  own: Strip
  sound: str
  strips: list[Strip]

  @property
  def title(self) -> str:
    """The sentence; of a sound, that of its clip."""
    words = f'“{self.own.caption}”' if self.own.caption else self.own.path
    return f'Sound of {words}' if self.sound else words


def is_chance(name: str) -> bool:
  """Whether a metric is what chance would reach."""
  return name.rsplit('/', 1)[-1].startswith('chance_')


def as_rows(results: Mapping[str, Any]) -> Iterator[Row]:
  """The evaluators' numbers, chance and random initialisation beside each."""
  for name, value in results.items():
    if is_chance(name) or name.endswith(_RANDOM_INIT):
      continue
    head, _, measure = name.rpartition('/')
    chance = results.get(f'{head}/chance_{measure}')
    random_init = results.get(f'{name}{_RANDOM_INIT}')
    if chance is not None or random_init is not None:
      yield Row(name, value, random_init, chance)


def format_number(name: str, value: float | None) -> str:
  """Ranks to a tenth, shares to a thousandth, and a dash for none."""
  if value is None:
    return '-'
  return f'{value:.1f}' if name.endswith(('MedR', 'MeanR')) else f'{value:.3f}'


def as_text(results: Mapping[str, Any]) -> str:
  """The table for a terminal, and below it the numbers that stand alone."""
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
  """Name -> queries and what they found, of the evaluators that have a gallery."""
  return {name: draw_gallery(evaluator, evaluator.gallery(state))
          for name, evaluator in evaluators.items() if hasattr(evaluator, 'gallery')}


def draw_gallery(retrieval: Retrieval, hits: Sequence[Hits]) -> list[Query]:
  """Reads a few pictures of every clip that was found, and the sounds that asked."""
  window = retrieval.reader.window
  reader = dataclasses.replace(retrieval.reader, window=dataclasses.replace(
      window, num_frames=_STRIP_FRAMES, image_size=_FRAME_PIXELS,
      frame_rate_hz=_STRIP_FRAMES / window.seconds,
      audio_hz=min(window.audio_hz, _SOUND_HZ)))
  queries = []
  for hit in hits:
    examples = {i: reader.views(i) for i in {hit.query, *hit.found}}
    strips = {i: _strip(reader.clips[i], i, views[0]['video'], i == hit.query)
              for i, views in examples.items() if views}
    if hit.query not in strips:
      continue
    sound = ''
    if hit.direction.startswith('audio'):
      sound = _sound(examples[hit.query][0]['audio'], reader.window.audio_hz)
    queries.append(Query(hit.direction, strips[hit.query], sound,
                         [strips[i] for i in hit.found if i in strips]))
  return queries


@mpl.rc_context(figures.STYLE)
def gallery_drawing(name: str, queries: Sequence[Query]) -> figures.Drawing:
  """Queries of one direction and what they found, as a figure.

  Args:
    name: of the evaluation.
    queries: at least one.
  """
  direction = queries[0].direction
  asks, finds = direction.split('_to_')
  rows = [[dataclasses.replace(q.own, right=False), *q.strips] if q.sound else q.strips
          for q in queries]
  figure, panels = figures.grid(len(queries), max(map(len, rows)), 0.9 * len(queries))
  for line, query, strips in zip(panels, queries, rows, strict=True):
    line[0].set_title(query.title, loc='left', fontsize=7)
    for axes, strip in itertools.zip_longest(line, strips):
      if strip is None:
        axes.remove()
        continue
      _show(axes, strip)
    if query.sound:
      line[0].set_xlabel('heard here', fontsize=5, style='italic')
  table = [dict(query=query.own.clip, query_path=query.own.path,
                query_start=query.own.start, query_text=query.own.caption, rank=rank,
                clip=strip.clip, path=strip.path, start=strip.start,
                text=strip.caption, right=strip.right)
           for query in queries for rank, strip in enumerate(query.strips, 1)]
  return figures.Drawing(
      f'gallery_{name}_{direction}', f'{asks.title()} to {finds}: {name}',
      'The best clips for each query, best first, with their own captions; the '
      "query's own clip is framed.", figure, table)


def _show(axes: Axes, strip: Strip) -> None:
  axes.imshow(strip.row)
  axes.set(xticks=[], yticks=[])
  axes.grid(False)
  axes.spines[:].set(visible=True, linewidth=1.5,
                     color=figures.COLOURS[2] if strip.right else '#DDDDDD')
  axes.set_xlabel(textwrap.fill(strip.caption, 28), fontsize=5)


def write(path: pathlib.Path, title: str, results: Mapping[str, Any],
          curves: Sequence[figures.Drawing],
          galleries: Mapping[str, Sequence[Query]],
          drawings: Sequence[figures.Drawing] = ()) -> None:
  """Writes one self-contained HTML file.

  Args:
    path: of the file.
    title: the run's name.
    results: flat names to numbers.
    curves: of training (`figures.learning`).
    galleries: name -> queries and what they found.
    drawings: other figures.
  """
  rows = list(as_rows(results))
  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
      autoescape=True, trim_blocks=True, lstrip_blocks=True)
  page = environment.get_template('report.html.jinja').render(
      title=title, rows=rows, number=format_number, png=_png,
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
  """The caption nearest to the clip's middle."""
  with clip.open() as file:
    middle = (clip.start + min(clip.end, file.duration_seconds)) / 2
  nearest = min(clip.captions, default=None,
                key=lambda c: abs((c.start + c.end) / 2 - middle))
  return nearest.text if nearest else ''


def _strip(clip: Clip, number: int, pictures: np.ndarray, right: bool) -> Strip:
  return Strip(number, clip.path, clip.start, _caption(clip), right, pictures)


def _sound(samples: np.ndarray, rate_hz: int) -> str:
  """int16 [S] -> a WAV file as a data URI."""
  file = io.BytesIO()
  with wave.open(file, 'wb') as out:
    out.setnchannels(1)
    out.setsampwidth(2)
    out.setframerate(rate_hz)
    out.writeframes(samples.astype('<i2').tobytes())
  return _data_uri('audio/wav', file.getvalue())


def _png(drawing: figures.Drawing) -> str:
  return _data_uri('image/png', drawing.png)


def _data_uri(kind: str, content: bytes) -> str:
  return f'data:{kind};base64,' + base64.b64encode(content).decode()
