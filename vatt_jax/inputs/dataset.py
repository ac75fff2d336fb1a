"""Opens the section `data` of a config: clips, their tokenizer and classes."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import itertools
import pathlib

from absl import logging
import jax

from vatt_jax import checkpoint
from vatt_jax.config import call
from vatt_jax.config import choose
from vatt_jax.config import Settings
from vatt_jax.errors import UserError
from vatt_jax.inputs import clip
from vatt_jax.inputs import labels
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window

_NUM_TRIED = 10
# Number of clips of a source whose captions make a vocabulary, if captions are read
# clip by clip: all shards of HowTo100M are terabytes.
VOCABULARY_CLIPS = 10_000


@dataclasses.dataclass(frozen=True)
class Data:
  """Describes the training data: the section `data` of a config.

  Attributes:
    path: a folder of media files, a manifest or shards (`inputs.sources`), or several
      of these; empty if nothing is trained.
    captions: a file of timed captions beside `path`, or one for each path; empty for
      none.
    weights: the relative share of each path in every batch. The paper samples its two
      datasets uniformly, (1.0, 1.0): half of every batch each (VATT, section 4.1).
      Empty: all clips have the same probability, so a larger dataset has a larger
      share.
    tokenizer: the tokenizer's name in `inputs.text.TOKENIZERS`.
    vocabulary: the tokenizer's file. Empty: the file of the checkpoint that the run
      starts from, or else the words of the captions (for large sources, of
      `VOCABULARY_CLIPS` clips).
    drop_stop_words: remove stop words from captions (tokenizer 'words' only).
    label: the manifest's column of class labels, or the columns; for a folder, the
      column `label` has the names of its subfolders. Empty: no classification.
    label_map: a CSV file of all classes in order, of all columns (`inputs.labels`).
      Empty: the classes of the checkpoint that the run starts from, if these include
      all labels of the clips, or else the labels in alphabetical order.
    multi_label: a clip may have several labels in a column, joined by `|`; holds for
      all columns.
    max_bad_fraction: the fraction of broken files that ends the run.

  Raises:
    ValueError: the numbers of captions and paths differ, an unknown tokenizer, or a
      tokenizer without stop words.
  """
  path: str | Sequence[str] = ''
  captions: str | Sequence[str] = ''
  weights: Sequence[float] = ()
  tokenizer: str = 'words'
  vocabulary: str = ''
  drop_stop_words: bool = False
  label: str | Sequence[str] = ''
  label_map: str = ''
  multi_label: bool = False
  max_bad_fraction: float = 0.1

  def __post_init__(self):
    if isinstance(self.path, str) != isinstance(self.captions, str) or (
        not isinstance(self.path, str) and len(self.path) != len(self.captions)):
      raise ValueError('path and captions: expected one each, or the same number of '
                       'both')
    choose(text.TOKENIZERS, self.tokenizer, 'tokenizer')
    if self.drop_stop_words and self.tokenizer != 'words':
      raise ValueError('drop_stop_words=True: expected False with tokenizer='
                       f"{self.tokenizer!r}; only 'words' has stop words")

  @property
  def columns(self) -> tuple[str, ...]:
    """Returns the columns of labels; () without classification."""
    return (self.label,) if self.label and isinstance(self.label, str) else (
        tuple(self.label))

  @property
  def sources(self) -> list[tuple[str, str]]:
    """Returns (path, captions) of each source."""
    if not self.path:
      return []
    if isinstance(self.path, str):
      return [(self.path, self.captions)]
    return list(zip(self.path, self.captions, strict=True))


def open_reader(data: Data, window: Window, vocabulary_size: int,
                classes: Sequence[labels.Labels], init_from: str,
                workdir: pathlib.Path) -> Reader:
  """Opens the sources of clips.

  Args:
    data: the section `data`.
    window: the window that is read from each clip.
    vocabulary_size: the number of ids of text; 0 for a model without text.
    classes: the classes that `count_classes` returned; may be empty.
    init_from: the checkpoint that may provide the vocabulary and the classes.
    workdir: the run's workdir.
  """
  clips = _clips(data)
  host = jax.process_index()    # each host writes its own file of notes
  notes = FileNotes(
      data.max_bad_fraction, clips.num_files or None,
      workdir / f'file_notes{f"_{host}" if host else ""}.jsonl')
  tokenizer = open_tokenizer(data, clips, vocabulary_size, init_from, workdir)
  return Reader(clips, window, tokenizer, notes,
                classes or _labels(data, clips, init_from, workdir))


def _clips(data: Data, captions: bool = True) -> sources.Mixture:
  return sources.Mixture([sources.open_source(path, file if captions else '')
                          for path, file in data.sources], data.weights)


def is_prepared(data: Data) -> bool:
  """Returns whether the sources open without building an index of captions."""
  return all(itertools.starmap(sources.is_indexed, data.sources))


def _labels(data: Data, clips: Sequence[clip.Clip], init_from: str,
            workdir: pathlib.Path) -> tuple[labels.Labels, ...]:
  """Returns the classes of each column of labels.

  They are those of the workdir, the label map, the checkpoint or the clips; the first
  given.

  Raises:
    UserError: no such file or column, or a clip has an unknown label.
  """
  if not data.columns:
    return ()
  paths = ', '.join(path for path, _ in data.sources)
  begun = (workdir / checkpoint.CONFIG_FILE).exists()
  path = workdir / labels.FILE_NAME if begun else data.label_map
  if path:
    classes = labels.read(path, data.columns, data.multi_label)
    if missing := set(data.columns) - {one.column for one in classes}:
      remedy = ('choose another --workdir, or use the columns of its run' if begun else
                "expected its name in a column 'column' beside each of its classes")
      raise UserError(f'{path}: has no classes of {min(missing)!r}, a column of config.'
                      f'data.label; {remedy}')
    _check_clips(clips, classes, paths)
    return classes
  path = checkpoint.split(init_from)[0] / labels.FILE_NAME
  pretrained = {one.column: one for one in labels.read(
      path, data.columns, data.multi_label)} if init_from and path.exists() else {}
  if len(pretrained) == len(data.columns) and not len(clips):    # evaluation only
    return tuple(pretrained.values())
  if not len(clips):
    raise UserError('config.data.path: is empty; set it, because the classes are read '
                    'from it, or set config.data.label_map to a list of classes')
  present = labels.find(sources.each(clips), data.columns, data.multi_label, paths)
  return tuple(
      pretrained[one.column] if one.column in pretrained and
      set(one.names) <= set(pretrained[one.column].names) else one for one in present)


def _check_clips(clips: sources.Mixture, classes: Sequence[labels.Labels], paths: str
                 ) -> None:
  """Raises UserError unless clips have the columns, and all their labels are classes.

  Reading all records of shards would take too long, so only the first are checked.
  """
  listed = all(isinstance(part, list) for part in clips.parts)
  checked = list(itertools.islice(sources.each(clips), None if listed else _NUM_TRIED))
  existing = {column for one in checked for column in one.labels}
  for one in classes:
    if checked:
      labels.check_column(existing, one.column, paths)
    for labeled in checked:
      one.encode(labeled)


def count_classes(config: Settings, init_from: str, workdir: pathlib.Path
                  ) -> tuple[Settings, tuple[labels.Labels, ...]]:
  """Sets `num_classes` of a classifier without it to the number of classes.

  With several columns of labels it is the number by column.

  Returns:
    The config, and the classes of each column if they were counted.
  """
  head = config.get('model', {}).get('head') or {}
  if head.get('name') != 'classifier' or head.get('num_classes'):
    return config, ()
  data = call('data', Data, config.get('data', {}))
  if not data.label:
    raise UserError('config.model.head.num_classes: missing; set it, or set config.'
                    "data.label to the manifest's column of classes")
  classes = _labels(data, _clips(data, captions=False), init_from, workdir)
  counts = {one.column: len(one.names) for one in classes}
  head = head | {'num_classes': counts if len(counts) > 1 else len(classes[0].names)}
  return config | {'model': config['model'] | {'head': head}}, classes


def open_tokenizer(data: Data, clips: Sequence[clip.Clip], size: int, init_from: str,
                   workdir: pathlib.Path) -> text.Tokenizer:
  """Opens the tokenizer: the workdir's, else the config's, else the checkpoint's."""
  if not size:    # a model without text
    return text.WordTokenizer(())
  own = text.TOKENIZERS[data.tokenizer].file_name
  path = data.vocabulary
  if (workdir / checkpoint.CONFIG_FILE).exists():
    path = workdir / own
  elif init_from and not path:
    path = checkpoint.split(init_from)[0] / own
    _check_vocabulary(data, init_from, path)
  if path:
    return text.load(data.tokenizer, path, size, data.drop_stop_words)
  if data.tokenizer != 'words':
    raise UserError(f'config.data.tokenizer={data.tokenizer!r}: needs a file; set '
                    'config.data.vocabulary to it (docs/data.md, "Tokenizers")')
  parts = clips.parts if isinstance(clips, sources.Mixture) else [clips]
  captions = (c.text for part in parts for clip in _vocabulary_clips(part)
              for c in clip.captions)
  return text.WordTokenizer.build(captions, size, data.drop_stop_words)


def _vocabulary_clips(clips: Sequence[clip.Clip]) -> Iterator[clip.Clip]:
  """Yields the clips of a source whose captions make the vocabulary."""
  if isinstance(clips, list) or len(clips) <= VOCABULARY_CLIPS:
    return sources.each(clips)
  logging.warning(
      'config.data.vocabulary: is empty; using the words of %d clips, spread over the '
      '%d of a source; for the words of all clips, set it to the file that `python -m '
      'vatt_jax vocabulary` writes', VOCABULARY_CLIPS, len(clips))
  # Spread evenly, because shards may be sorted by subject.
  return sources.each(clips, (i * len(clips) // VOCABULARY_CLIPS
                              for i in range(VOCABULARY_CLIPS)))


def _check_vocabulary(data: Data, init_from: str, path: pathlib.Path) -> None:
  """Raises UserError unless a checkpoint has a vocabulary file made in the same way."""
  folder, _ = checkpoint.split(init_from)
  pretrained = (checkpoint.read_config(folder).get('data', {})
                if (folder / checkpoint.CONFIG_FILE).exists() else {})
  for key in ('tokenizer', 'drop_stop_words'):
    value = pretrained.get(key, getattr(Data, key))    # its default
    if value != getattr(data, key):
      raise UserError(f'{init_from}: was trained with data.{key}={value!r}; set config.'
                      f'data.{key} to that, or config.data.vocabulary to another file')
  if not path.exists():
    raise UserError(f'{init_from}: has no vocabulary file; set config.data.vocabulary '
                    'to it')
