"""Draws figures from arrays; each has a table of its data, a title and a caption.

Colours are those of Okabe and Ito, which colour-blind people can distinguish. They are
never the only cue: classes also have markers, and curves have line styles.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import dataclasses
import functools
import io
import itertools
import math
import pathlib
from typing import Any

import matplotlib as mpl
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
from PIL import Image
from PIL import PngImagePlugin
from scipy import stats
from sklearn import manifold
import threadpoolctl

from vatt_jax.evaluators import metrics

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_MARKERS = 'o^s'
_LINES = ('-', '--', '-.', ':')
_OF_MODALITY = {'video': (COLOURS[0], 'o'), 'audio': (COLOURS[1], '^'),
                'text': (COLOURS[2], 's')}

_WIDTH = 7.2    # inches, of figures with many panels
_CURVE_WIDTH = 5.0    # of curves, legible at the width of a phone
_DPI = 200      # of the PNG; a page shows it at half size
STYLE = {
    'font.size': 8, 'axes.titlesize': 8, 'axes.labelsize': 8, 'legend.fontsize': 8,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.edgecolor': '#666666',
    'axes.grid': True, 'grid.alpha': 0.3, 'grid.linewidth': 0.6, 'lines.linewidth': 1.4,
    'legend.frameon': False}
_CURVE_STYLE = STYLE | dict.fromkeys(
    ('font.size', 'axes.titlesize', 'axes.labelsize', 'legend.fontsize'), 9)
_LEAST_POINTS = 5    # fewer are too few for t-SNE
_GRID_POINTS = 256    # of a density


class NothingToDraw(Exception):
  """Says why the model or the data do not allow a figure."""


@dataclasses.dataclass(frozen=True)
class Drawing:
  """Holds a figure with its title, caption and data.

  Attributes:
    name: stem of its file names.
    title: a short title.
    caption: a description of the figure and its data.
    figure: the Matplotlib figure.
    table: the data of the figure, one dict per row.
  """
  name: str
  title: str
  caption: str
  figure: Figure
  table: Sequence[Mapping[str, Any]]

  @functools.cached_property
  def png(self) -> bytes:
    """Returns a PNG of 256 colours, with title and caption in its metadata."""
    file, whole = io.BytesIO(), io.BytesIO()
    self.figure.savefig(whole, format='png', dpi=_DPI)
    metadata = PngImagePlugin.PngInfo()
    metadata.add_itxt('Title', self.title)
    metadata.add_itxt('Description', self.caption)
    image = Image.open(whole).convert('RGB').quantize(256, dither=Image.Dither.NONE)
    image.save(file, 'PNG', optimize=True, pnginfo=metadata)
    return file.getvalue()

  def save(self, folder: pathlib.Path) -> None:
    """Writes NAME.png and NAME.csv."""
    (folder / f'{self.name}.png').write_bytes(self.png)
    with (folder / f'{self.name}.csv').open('w', encoding='utf-8', newline='') as file:
      writer = csv.DictWriter(file, list(self.table[0]))
      writer.writeheader()
      writer.writerows(self.table)


@dataclasses.dataclass(frozen=True)
class Features:
  """Holds a model's features of N clips, one window of each.

  Attributes:
    clip: int [N], indices of the clips in their source.
    present: modality -> bool [N].
    inputs: modality -> [N, D], the mean of the tokens before the Transformer; D may
      differ between modalities.
    pooled: modality -> [N, D], the features after the Transformer.
    embed: space -> modality -> [N, dim]; empty for a model without common spaces.
  """
  clip: np.ndarray
  present: Mapping[str, np.ndarray]
  inputs: Mapping[str, np.ndarray]
  pooled: Mapping[str, np.ndarray]
  embed: Mapping[str, Mapping[str, np.ndarray]]

  def spaces(self) -> dict[str, Mapping[str, np.ndarray]]:
    """Returns title -> modality -> [N, D] of the input and the output spaces."""
    sides = {'input': self.inputs} | {
        f'output, {space.replace("_", " and ")}': x for space, x in self.embed.items()}
    return {title: {m: x[m] for m in _OF_MODALITY if m in x}
            for title, x in sides.items()}


def learning(history: Sequence[Mapping[str, float]]) -> Iterator[Drawing]:
  """Yields the drawings of training that the rows of `metrics.jsonl` allow."""
  for draw in (losses, measures):
    with contextlib.suppress(NothingToDraw):
      yield draw(history)


@mpl.rc_context(_CURVE_STYLE)
def losses(history: Sequence[Mapping[str, float]]) -> Drawing:
  """Draws the losses over the steps; leaves out losses without data.

  Args:
    history: rows of `metrics.jsonl`.

  Raises:
    NothingToDraw: the run trained no step, or no loss had data.
  """
  names = sorted({k for row in history for k in row if k.startswith('train/loss')})
  if not names:
    raise NothingToDraw('no step was trained')
  curves = {name: _loss_points(history, name) for name in names}
  empty = [name.removeprefix('train/') for name, points in curves.items() if not points]
  if len(empty) == len(names):
    raise NothingToDraw('no loss had data')
  figure, ((axes,),) = grid(1, 1, 2.6, _CURVE_WIDTH)
  table = []
  for (name, points), (colour, line) in zip(curves.items(), _styles(), strict=False):
    if not points:
      continue
    short = name.removeprefix('train/')
    axes.plot(*zip(*points, strict=True), line, color=colour, label=short)
    table += [dict(step=step, name=short, value=value) for step, value in points]
  axes.set(xlabel='step', ylabel='loss (nats)')
  axes.xaxis.set_major_formatter(_thousands())
  axes.legend()
  caption = 'Means between two log lines; loss is the weighted sum of the other losses.'
  if empty:
    caption += f' Not drawn, because they had no data: {", ".join(empty)}.'
  return Drawing('losses', 'Losses', caption, figure, table)


def _loss_points(history, name):
  """Returns [(step, value)] of a loss; empty if it had no data.

  A loss is exactly 0 for a batch without its pairs; with data, not all values are 0.
  """
  points = [(row['step'], row[name]) for row in history
            if row.get(name) is not None and math.isfinite(row[name])]
  return points if any(value for _, value in points) else []


@mpl.rc_context(_CURVE_STYLE)
def measures(history: Sequence[Mapping[str, float]]) -> Drawing:
  """Draws the evaluation metrics over training, one panel for each task.

  Leaves out ranks and d', which are not fractions of one.

  Args:
    history: rows of `metrics.jsonl`.

  Raises:
    NothingToDraw: the run had fewer than two evaluations.
  """
  curves = _measures_by_task(history)
  if not curves:
    raise NothingToDraw('fewer than two evaluations; set config.evals.*.every_steps')
  columns = min(2, len(curves))
  rows = -(-len(curves) // columns)
  figure, panels = grid(rows, columns, 1.9 * rows + 0.4, _CURVE_WIDTH, sharex=True,
                        sharey=True)
  names = dict.fromkeys(name for task in curves.values() for name in task)
  styles = dict(zip(names, _styles(), strict=False))
  table = []
  for axes, (task, named) in itertools.zip_longest(panels.flat, curves.items(),
                                                   fillvalue=(None, None)):
    if task is None:
      axes.remove()
      continue
    axes.set_title(task)
    for name, points in named.items():
      steps, values, chances = zip(*points, strict=True)
      colour, line = styles[name]
      axes.plot(steps, values, line, color=colour, marker='.', label=name)
      if None not in chances:
        axes.plot(steps, chances, color=colour, linewidth=0.6, alpha=0.6)
      table += [dict(step=step, name=f'{task}/{name}', value=value, chance=chance)
                for step, value, chance in points]
  for axes in figure.axes:
    axes.set(ylim=(0, 1.02), xlabel='step')
    axes.xaxis.set_major_formatter(_thousands())
    axes.xaxis.set_tick_params(labelbottom=True)
  _legend(figure, columns=4)
  return Drawing('measures', 'Metrics', 'Evaluation metrics during training, as '
                 'fractions of one; thin lines show chance.', figure, table)


def _measures_by_task(history):
  """Returns task -> metric -> [(step, value, chance or None)], of two steps or more."""
  curves: dict[str, dict[str, list[tuple[int, float, float | None]]]] = {}
  for row in history:
    for key, value in row.items():
      task, _, name = key.rpartition('/')
      if task in ('', 'train') or name.startswith('chance_') or (
          name.endswith('_random_init')):
        continue
      metric = metrics.find(name)
      if metric is not None and not metric.is_share:    # not on the scale of the axis
        continue
      curves.setdefault(task, {}).setdefault(name, []).append(
          (row['step'], value, row.get(f'{task}/chance_{name}')))
  several = {task: {k: v for k, v in named.items() if len({s for s, *_ in v}) > 1}
             for task, named in curves.items()}
  return {task: named for task, named in several.items() if named}


@mpl.rc_context(STYLE)
def by_class(features: Mapping[str, Features], labels: Sequence[str], label: str,
             seed: int) -> Drawing:
  """Draws t-SNE of the pooled features, coloured by class (VATT, figure 3).

  Args:
    features: title -> features of the same N clips (`draw_by_class`), one column of
      panels each.
    labels: label of each clip; the first one counts if several are joined by `|`.
    label: name of the labels; empty if the clips have none.
    seed: seed of t-SNE.

  Raises:
    NothingToDraw: the labels have fewer than two classes, or clips are too few.
  """
  if not label:
    raise NothingToDraw('the clips have no labels')
  first = np.asarray([_first_label(text) for text in labels])
  classes = sorted(set(first.tolist()) - {''})
  if len(classes) < 2:
    raise NothingToDraw(f'{label!r} has {len(classes)} classes; expected 2 or '
                        'more')
  modalities = [m for m in ('video', 'audio') if all(
      m in f.pooled for f in features.values())]
  figure, panels = grid(len(modalities), len(features),
                        _WIDTH / len(features) * len(modalities))
  table = []
  for row, modality in zip(panels, modalities, strict=True):
    for axes, (when, given) in zip(row, features.items(), strict=True):
      present = given.present[modality]
      points = tsne(given.pooled[modality][present], seed)
      _scatter_classes(axes, points, first[present], classes)
      axes.set_title(f'{modality}, {when}')
      table += [dict(when=when, modality=modality, clip=int(clip), label=name,
                     x=float(x), y=float(y))
                for clip, name, (x, y) in zip(given.clip[present], first[present],
                                              points, strict=True)]
  if len(classes) <= len(_class_styles()):
    _legend(figure)
  return Drawing(
      'tsne_classes', f'Features by {label}',
      f't-SNE of the features after the Transformer, coloured by {label} '
      f'({len(classes)} classes; after figure 3 of the paper).', figure, table)


def draw_by_class(labels: Sequence[str], num_classes: int, clips_per_class: int,
                  seed: int) -> np.ndarray:
  """Samples classes first, and then clips of each, to balance the classes.

  Args:
    labels: label of each clip, empty for none; the first one counts if several are
      joined by `|`.
    num_classes: maximum number of classes; chosen at random if the labels have more.
    clips_per_class: maximum number of clips of a class, likewise.
    seed: seed of the draws.

  Returns:
    The indices of the clips, in order.
  """
  rng = np.random.default_rng(seed)
  first = np.asarray([_first_label(text) for text in labels], str)
  classes = np.array(sorted(set(first.tolist()) - {''}), str)
  drawn = rng.permutation(len(classes))[:num_classes]
  members = [np.flatnonzero(first == name) for name in classes[drawn]]
  numbers = [rng.permutation(of_class)[:clips_per_class] for of_class in members]
  return np.sort(np.concatenate([np.array([], int), *numbers]))


def _first_label(text: str) -> str:
  return text.split('|')[0]


def _scatter_classes(axes, points, names, classes):
  styles = _class_styles()
  if len(classes) > len(styles):    # too many for a legend
    styles = [(colour, 'o') for colour in mpl.colormaps['turbo'](
        np.linspace(0, 1, len(classes)))]
  _bare(axes)
  for name, (colour, marker) in zip(classes, styles, strict=False):
    axes.scatter(*points[names == name].T, s=12, color=[colour], marker=marker,
                 linewidths=0, alpha=0.8, label=name)


def _class_styles() -> list[tuple[str, str]]:
  """Returns all distinct pairs of colour and marker."""
  count = math.lcm(len(COLOURS), len(_MARKERS))
  return list(itertools.islice(
      zip(itertools.cycle(COLOURS), itertools.cycle(_MARKERS), strict=False), count))


@mpl.rc_context(STYLE)
def by_modality(features: Mapping[str, Features], seed: int) -> Drawing:
  """Draws t-SNE of input and output space, coloured by modality (VATT, figure 4).

  The paper does not say how it maps modalities of different width to one plane. Here
  vectors are scaled to unit length and padded with zeros to the largest width. The
  paper does not say either how it shows both common spaces. Here each has a panel.

  Args:
    features: model -> features.
    seed: seed of t-SNE.

  Raises:
    NothingToDraw: a model has no common space, or clips are too few.
  """
  _check_embeds(features)
  spaces = list(dict.fromkeys(s for f in features.values() for s in f.spaces()))
  figure, panels = grid(len(features), len(spaces), 2.5 * len(features))
  table = []
  for row, (model, given) in zip(panels, features.items(), strict=True):
    for axes, space in zip(row, spaces, strict=True):
      _bare(axes)
      axes.set_title(space)
      sides = {m: x[given.present[m]] for m, x in given.spaces().get(space, {}).items()}
      if not sides:
        axes.remove()
        continue
      points = tsne(np.concatenate(common_width(list(sides.values()))), seed)
      ends = np.cumsum([len(x) for x in sides.values()])
      for modality, part in zip(sides, np.split(points, ends[:-1]), strict=True):
        colour, marker = _OF_MODALITY[modality]
        axes.scatter(*part.T, s=6, color=colour, marker=marker, linewidths=0, alpha=0.6,
                     label=modality)
        table += [dict(model=model, space=space, modality=modality, clip=int(clip),
                       x=float(x), y=float(y))
                  for clip, (x, y) in zip(given.clip[given.present[modality]], part,
                                          strict=True)]
    row[0].set_ylabel(model)
  _legend(figure)
  return Drawing(
      'tsne_spaces', 'Input and output space',
      't-SNE of the inputs of the Transformer (the mean of the tokens) and of the '
      'embeddings in the loss, a plane for each space (after figure 4 of the paper).'
      f'{_widths(features)}', figure, table)


@mpl.rc_context(STYLE)
def similarities(features: Mapping[str, Features]) -> Drawing:
  """Draws the densities of the similarity of pairs (VATT, figure 5).

  A positive pair is of one clip; all other pairs are negative. If the input widths of
  two modalities differ, the narrower vectors are padded with zeros.

  Args:
    features: model -> features.

  Raises:
    NothingToDraw: a model has no common space, or pairs are too few.
  """
  _check_embeds(features)
  rows = [(model, given, space, tuple(sides))
          for model, given in features.items()
          for space, sides in sorted(given.embed.items(), reverse=True)    # text first
          if len(sides) > 1]
  if not rows:
    raise NothingToDraw('no common space has two modalities')
  figure, panels = grid(len(rows), 2, 1.9 * len(rows))
  table = []
  for line, (model, given, space, sides) in zip(panels, rows, strict=True):
    a, b = ('video', next(m for m in ('text', 'audio') if m in sides))
    both = given.present[a] & given.present[b]
    for axes, (title, x) in zip(line, (('input', given.inputs),
                                       ('output', given.embed[space])), strict=True):
      if a not in x:    # a model without tokens
        axes.remove()
        continue
      one, other = common_width([x[a][both], x[b][both]])
      place, curves = _densities(one @ other.T)
      for (name, density), (colour, style) in zip(curves.items(), _styles(),
                                                  strict=False):
        axes.plot(place, density, style, color=colour, label=f'{name} pairs')
        axes.fill_between(place, density, color=colour, alpha=0.2, linewidth=0)
      axes.set_title(f'{a} and {b}, {title} space')
      axes.set(xlabel='cosine similarity', ylim=(0, None))
      table += [dict(model=model, pair=f'{a}_{b}', space=title,
                     similarity=float(s), positive=float(p), negative=float(n))
                for s, p, n in zip(place, *curves.values(), strict=True)]
    line[0].set_ylabel(f'{model}\ndensity')
  figure.align_ylabels()
  _legend(figure)
  return Drawing(
      'similarities', 'Similarity of pairs',
      'Kernel density estimates (Gaussian, by Scott\'s rule) of the cosine similarity '
      'of pairs of one clip (positive) and of all other pairs (negative; after figure '
      f'5 of the paper).{_widths(features)}', figure, table)


def _densities(similarity):
  """Estimates densities.  [N, N] -> places [P], kind of pairs -> densities [P]."""
  same = np.eye(len(similarity), dtype=bool)
  sides = dict(positive=similarity[same], negative=similarity[~same])
  for name, values in sides.items():
    if len(values) < 2 or np.ptp(values) < 1e-9:
      raise NothingToDraw(f'{len(values)} {name} pairs, or all with equal similarity')
  low, high = similarity.min(), similarity.max()
  margin = 0.1 * (high - low)
  place = np.linspace(max(low - margin, -1), min(high + margin, 1), _GRID_POINTS)
  return place, {name: stats.gaussian_kde(values)(place)
                 for name, values in sides.items()}


@mpl.rc_context(STYLE)
def cost_curve(runs: Sequence[Mapping[str, Any]], measure: str) -> Drawing:
  """Draws accuracy against cost for rates of DropToken (VATT, tables 13 and 14).

  Args:
    runs: dicts of `run`, `drop_token_rate`, `gflops` per clip, and the metric.
    measure: name of the metric.
  """
  runs = sorted(runs, key=lambda r: r['gflops'])
  figure, ((axes,),) = grid(1, 1, 3.2)
  means = []
  for cost, group in itertools.groupby(runs, key=lambda r: r['gflops']):
    same = list(group)
    values = [r[measure] for r in same]
    means.append((cost, np.mean(values)))
    axes.scatter([cost] * len(values), values, s=28, color=COLOURS[0], zorder=2)
    axes.annotate(f'{same[0]["drop_token_rate"]:.0%} dropped', (cost, min(values)),
                  (0, -7), ha='center', va='top', textcoords='offset points')
  axes.plot(*zip(*means, strict=True), color='#999999', linewidth=1, zorder=1)
  axes.set(xlabel='GFLOPs of a forward call on one clip', ylabel=measure)
  axes.margins(x=0.12, y=0.25)
  return Drawing(
      'drop_token', 'DropToken: accuracy and cost',
      'One point for each run; the line connects the means of runs of equal cost. '
      'Operations are counted on the kept tokens (two for each multiply-add); the '
      'metric is measured without dropping tokens (compare tables 13 and 14 of the '
      'paper).',
      figure, runs)


def common_width(sides: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Scales vectors to unit length and pads with zeros.  [N, D] each -> [N, max D]."""
  width = max(x.shape[1] for x in sides)
  return [np.pad(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12),
                 [(0, 0), (0, width - x.shape[1])]) for x in sides]


def tsne(x: np.ndarray, seed: int) -> np.ndarray:
  """Computes t-SNE with perplexity 30, or less for few points.  [N, D] -> [N, 2].

  Raises:
    NothingToDraw: points are too few, or all equal.
  """
  if len(x) < _LEAST_POINTS or not np.ptp(x, axis=0).any():
    raise NothingToDraw(f'{len(x)} points, or all points equal; expected '
                        f'{_LEAST_POINTS} or more distinct points')
  model = manifold.TSNE(perplexity=min(30.0, (len(x) - 1) / 3), init='pca',
                        random_state=seed)
  # The threads of t-SNE busy-wait. On a loaded machine they are ten times slower than
  # a single thread.
  with threadpoolctl.threadpool_limits(1):
    return model.fit_transform(x.astype(np.float32))


def _widths(features: Mapping[str, Features]) -> str:
  """Describes models whose input widths differ, for the caption."""
  differ = [f'{model}: ' + ', '.join(f'{m} {x.shape[1]}' for m, x in f.inputs.items())
            for model, f in features.items()
            if len({x.shape[1] for x in f.inputs.values()}) > 1]
  if not differ:
    return ''
  return (f' Where input widths differ ({"; ".join(differ)}), the narrower vectors are '
          'padded with zeros.')


def _check_embeds(features):
  for model, given in features.items():
    if not given.embed:
      raise NothingToDraw(f'the {model} model has no common space')


def grid(rows: int, columns: int, height: float, width: float = _WIDTH,
         **settings: Any) -> tuple[Figure, np.ndarray]:
  """Creates a figure with [rows, columns] panels; height and width in inches."""
  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def _bare(axes: Axes) -> None:
  """Draws a square frame without ticks, for axes without meaning."""
  axes.set(xticks=[], yticks=[], box_aspect=1)
  axes.spines[:].set_visible(True)
  axes.grid(False)


def _legend(figure: Figure, columns: int = 7) -> None:
  """Adds one legend for all panels, below them."""
  handles = {name: handle for axes in figure.axes
             for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
  figure.legend(handles.values(), handles.keys(), loc='outside lower center',
                ncols=min(len(handles), columns), markerscale=1.5)


def _styles() -> Iterator[tuple[str, str]]:
  """Returns an endless iterator of colours and line styles."""
  return zip(itertools.cycle(COLOURS), itertools.cycle(_LINES), strict=False)


def _thousands() -> ticker.Formatter:
  return ticker.FuncFormatter(
      lambda x, _: f'{x / 1000:g}k' if math.fabs(x) >= 10_000 else f'{x:g}')
