"""The section `data` of a config: clips, and the words and classes they come with."""

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
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import sources
from vatt_jax.inputs import text

_NUM_TRIED = 10
# Clips of a source whose captions make a vocabulary, where captions are read clip by
# clip: all records of a packed HowTo100M are terabytes.
VOCABULARY_CLIPS = 10_000


@dataclasses.dataclass(frozen=True)
class Data:
  """What to train on.

  Attributes:
    path: a folder of media, a manifest or shards (`inputs.sources`), or several;
      empty where nothing is trained.
    captions: a file of timed sentences beside it, or one for each path; empty for
      none.
    weights: how much of every batch each path gives, relative to the others. The
      paper samples its two datasets uniformly, (1.0, 1.0): half of every batch each
      (VATT, section 4.1). Empty: all clips are drawn alike, so the larger dataset
      gives more.
    tokenizer: what becomes an id, of `inputs.text.TOKENIZERS`.
    vocabulary: its file; empty for that of the checkpoint that the run starts from,
      or else the words of the captions (of large sources, of `VOCABULARY_CLIPS` clips).
    drop_stop_words: leave stop words out of sentences (of 'words' only).
    label: the column of the manifest with what a clip is classified as, in which a
      folder has the names of its subfolders; empty: nothing is classified.
    label_map: a CSV file of all classes in order (`inputs.labels`); empty for that of
      the checkpoint that the run starts from, if it has all of the clips' labels, or
      else these in alphabetical order.
    multi_label: a clip may have several at once, joined by `|`.
    max_bad_fraction: the share of broken files that ends the run.

  Raises:
    ValueError: not as many captions as paths, no such tokenizer, or one that knows
      no stop words.
  """
  path: str | Sequence[str] = ''
  captions: str | Sequence[str] = ''
  weights: Sequence[float] = ()
  tokenizer: str = 'words'
  vocabulary: str = ''
  drop_stop_words: bool = False
  label: str = ''
  label_map: str = ''
  multi_label: bool = False
  max_bad_fraction: float = 0.1

  def __post_init__(self):
    if isinstance(self.path, str) != isinstance(self.captions, str) or (
        not isinstance(self.path, str) and len(self.path) != len(self.captions)):
      raise ValueError('path and captions: expected one each, or as many of the one '
                       'as of the other')
    choose(text.TOKENIZERS, self.tokenizer, 'tokenizer')
    if self.drop_stop_words and self.tokenizer != 'words':
      raise ValueError('drop_stop_words=True: expected False with tokenizer='
                       f"{self.tokenizer!r}; only 'words' has stop words")

  @property
  def sources(self) -> list[tuple[str, str]]:
    """(path, captions) of each source."""
    if not self.path:
      return []
    if isinstance(self.path, str):
      return [(self.path, self.captions)]
    return list(zip(self.path, self.captions, strict=True))


def open_reader(data: Data, window: pipeline.Window, words: Settings | None,
                classes: labels.Labels | None, init_from: str, workdir: pathlib.Path
                ) -> pipeline.Reader:
  """Opens the sources.

  Args:
    data: the section.
    window: what is read of each clip.
    words: the model's settings for text, if it has any.
    classes: what `count_classes` found, if it had to.
    init_from: the checkpoint that words and classes may come from.
    workdir: of the run.
  """
  clips = _clips(data)
  host = jax.process_index()    # each writes a file of its own
  notes = pipeline.FileNotes(
      data.max_bad_fraction, clips.num_files or None,
      workdir / f'file_notes{f"_{host}" if host else ""}.jsonl')
  size = 2 if words is None else words['vocabulary_size']
  return pipeline.Reader(clips, window,
                         open_words(data, clips, size, init_from, workdir), notes,
                         classes or _labels(data, clips, init_from, workdir))


def _clips(data: Data, captions: bool = True) -> sources.Mixture:
  return sources.Mixture([sources.open_source(path, file if captions else '')
                          for path, file in data.sources], data.weights)


def is_prepared(data: Data) -> bool:
  """Returns whether the sources open as they are, without an index to build."""
  return all(itertools.starmap(sources.is_indexed, data.sources))


def _labels(data: Data, clips: Sequence[clip.Clip], init_from: str,
            workdir: pathlib.Path) -> labels.Labels | None:
  """Those of the run, else the ones asked for, else the checkpoint's or the clips'.

  Raises:
    UserError: no such file or column, or a clip has a label that is no class.
  """
  if not data.label:
    return None
  where = ', '.join(path for path, _ in data.sources)
  begun = (workdir / checkpoint.CONFIG_FILE).exists()
  path = workdir / labels.FILE_NAME if begun else data.label_map
  if path:
    classes = labels.read(path, data.label, data.multi_label)
    # Of records, of which to read all takes too long, the first must do.
    listed = all(isinstance(part, list) for part in clips.parts)
    known = list(itertools.islice(sources.each(clips), None if listed else _NUM_TRIED))
    if known:
      labels.check_column({c for one in known for c in one.labels}, data.label, where)
    for one in known:
      classes.encode(one)
    return classes
  path = checkpoint.split(init_from)[0] / labels.FILE_NAME
  theirs = (labels.read(path, data.label, data.multi_label)
            if init_from and path.exists() else None)
  if theirs is not None and not len(clips):    # only evaluated
    return theirs
  if not len(clips):
    raise UserError('config.data.path: is empty; the classes are found there, or set '
                    'config.data.label_map to a list of them')
  found = labels.find(sources.each(clips), data.label, data.multi_label, where)
  return theirs if theirs and set(found.names) <= set(theirs.names) else found


def count_classes(config: Settings, init_from: str, workdir: pathlib.Path
                  ) -> tuple[Settings, labels.Labels | None]:
  """A classifier without `num_classes` gets one for every class there is.

  Returns:
    The config with it, and the classes if they were counted.
  """
  head = config.get('model', {}).get('head') or {}
  if head.get('name') != 'classifier' or head.get('num_classes'):
    return config, None
  data = call('data', Data, config.get('data', {}))
  if not data.label:
    raise UserError('config.model.head.num_classes: missing; set it, or config.data.'
                    'label to the column of the manifest that has the classes')
  classes = _labels(data, _clips(data, captions=False), init_from, workdir)
  head = head | {'num_classes': len(classes.names)}
  return config | {'model': config['model'] | {'head': head}}, classes


def open_words(data: Data, clips: Sequence[clip.Clip], size: int, init_from: str,
               workdir: pathlib.Path) -> text.Tokenizer:
  """That of the run, else the one asked for, else the one the checkpoint knows."""
  if size == 2:    # a model without text
    return text.WordTokenizer(())
  own = text.TOKENIZERS[data.tokenizer].file_name
  path = data.vocabulary
  if (workdir / checkpoint.CONFIG_FILE).exists():
    path = workdir / own
  elif init_from and not path:
    path = checkpoint.split(init_from)[0] / own
    _check_words(data, init_from, path)
  if path:
    return text.load(data.tokenizer, path, size, data.drop_stop_words)
  if data.tokenizer != 'words':
    raise UserError(f'config.data.tokenizer={data.tokenizer!r}: needs its file; set '
                    'config.data.vocabulary to it (docs/data.md, "Words")')
  parts = clips.parts if isinstance(clips, sources.Mixture) else [clips]
  captions = (c.text for part in parts for clip in _with_words(part)
              for c in clip.captions)
  return text.WordTokenizer.build(captions, size, data.drop_stop_words)


def _with_words(clips: Sequence[clip.Clip]) -> Iterator[clip.Clip]:
  """Yields the clips of a source that a vocabulary is made from."""
  if isinstance(clips, list) or len(clips) <= VOCABULARY_CLIPS:
    return sources.each(clips)
  logging.warning(
      'config.data.vocabulary is empty: taking the words of %d clips, spread over the '
      '%d of a source; for those of all, set it to the file that `python -m '
      'vatt_jax vocabulary` writes', VOCABULARY_CLIPS, len(clips))
  # Evenly, for shards may be sorted by subject.
  return sources.each(clips, (i * len(clips) // VOCABULARY_CLIPS
                              for i in range(VOCABULARY_CLIPS)))


def _check_words(data: Data, init_from: str, path: pathlib.Path) -> None:
  """Raises UserError unless a checkpoint brings its words, made as the run's are."""
  folder, _ = checkpoint.split(init_from)
  theirs = (checkpoint.read_config(folder).get('data', {})
            if (folder / checkpoint.CONFIG_FILE).exists() else {})
  for key in ('tokenizer', 'drop_stop_words'):
    value = theirs.get(key, getattr(Data, key))    # its default
    if value != getattr(data, key):
      raise UserError(f'{init_from}: was trained with data.{key}={value!r}; set config.'
                      f'data.{key} to that, or config.data.vocabulary to another file')
  if not path.exists():
    raise UserError(f'{init_from}: comes without its words; set config.data.'
                    'vocabulary to their file')
