"""The page that a person reads after a run, and the same table as text."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import io
import pathlib
from typing import Any

import jinja2
from matplotlib.figure import Figure
import numpy as np
from PIL import Image

from vatt_jax.evaluators.retrieval import Hits
from vatt_jax.evaluators.retrieval import Retrieval
from vatt_jax.inputs.sources import Clip

_RANDOM_INIT = '_random_init'
_STRIP_FRAMES = 4
_FRAME_PIXELS = 72


@dataclasses.dataclass(frozen=True)
class Row:
  """A measure: of the trained model, of a random one, of chance."""
  name: str
  value: float
  random_init: float | None
  chance: float | None


@dataclasses.dataclass(frozen=True)
class Strip:
  """A clip in a gallery: its pictures as a data URI, its own words, is it right."""
  image: str
  caption: str
  right: bool


@dataclasses.dataclass(frozen=True)
class Query:
  """A sentence and the clips that it found, best first."""
  text: str
  strips: list[Strip]


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


def draw_gallery(retrieval: Retrieval, hits: Sequence[Hits]) -> list[Query]:
  """Reads a few pictures of every clip that was found."""
  window = retrieval.reader.window
  reader = dataclasses.replace(retrieval.reader, window=dataclasses.replace(
      window, num_frames=_STRIP_FRAMES, image_size=_FRAME_PIXELS,
      frame_rate_hz=_STRIP_FRAMES / window.seconds))
  clips = reader.clips
  queries = []
  for hit in hits:
    strips = []
    for index in hit.found:
      views = reader.views(index)
      if views:
        strips.append(Strip(_strip(views[0]['video']), _caption(clips[index]),
                            index == hit.query))
    queries.append(Query(_caption(clips[hit.query]), strips))
  return queries


def write(path: pathlib.Path, title: str, results: Mapping[str, Any],
          history: Sequence[Mapping[str, float]],
          galleries: Mapping[str, Sequence[Query]]) -> None:
  """Writes one self-contained HTML file.

  Args:
    path: of the file.
    title: the run's name.
    results: flat names to numbers.
    history: rows of `metrics.jsonl`.
    galleries: name -> queries and what they found.
  """
  rows = list(as_rows(results))
  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
      autoescape=True, trim_blocks=True, lstrip_blocks=True)
  page = environment.get_template('report.html.jinja').render(
      title=title, rows=rows, number=format_number,
      alone=[(name, _plain(value)) for name, value in _alone(results, rows)],
      curves=_curves(history), galleries=galleries)
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


def _strip(video: np.ndarray) -> str:
  """Pictures side by side.  uint8 [T, H, W, 3] -> data URI."""
  file = io.BytesIO()
  Image.fromarray(np.concatenate(list(video), axis=1)).save(file, 'JPEG', quality=85)
  return 'data:image/jpeg;base64,' + base64.b64encode(file.getvalue()).decode()


def _curves(history: Sequence[Mapping[str, float]]) -> str:
  """The losses over the steps, as SVG."""
  names = sorted({k for row in history for k in row if k.startswith('train/loss')})
  figure = Figure(figsize=(8, 3.2), layout='constrained')
  axes = figure.subplots()
  for name in names:
    points = [(row['step'], row[name]) for row in history if name in row]
    axes.plot(*zip(*points, strict=True), label=name.removeprefix('train/'))
  axes.set(xlabel='step', ylabel='loss')
  axes.grid(alpha=0.3)
  axes.spines[['top', 'right']].set_visible(False)
  if names:
    axes.legend(frameon=False)
  file = io.StringIO()
  figure.savefig(file, format='svg')
  svg = file.getvalue()
  return svg[svg.index('<svg'):]
