"""Embeds media files and sentences with a trained model.

    from vatt_jax import embed
    vatt = embed.Embedder('runs/quickstart')
    videos = vatt.videos(['data/toy_world/clips/test/0000.mp4'])
    texts = vatt.texts(['a red cross slides to the right', 'a blue star falls'])
    print(vatt.similarity(videos, texts)['video_text'])    # [1, 2]
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import dataclasses
import os
from typing import Any

from absl import logging
import jax
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import models
from vatt_jax.errors import UserError
from vatt_jax.evaluators.views import of_clips
from vatt_jax.inputs import augment
from vatt_jax.inputs import clip
from vatt_jax.inputs import text as text_lib
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import spread
from vatt_jax.inputs.window import Window
from vatt_jax.models import heads
from vatt_jax.weights import load as weights

# A media file, or a segment of one: path, start and end in seconds.
File = str | os.PathLike[str] | tuple[str | os.PathLike[str], float, float]

# The default for a checkpoint without a window of its own (section 4.3 of the paper).
PAPER_WINDOW = Window(num_frames=32, frame_rate_hz=10.0, image_size=224,
                      audio_hz=48_000)

_BATCH_SIZE = 32    # windows, or sentences, per call of the model


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """Holds embeddings of N items of one modality.

  Attributes:
    modality: 'video', 'audio' or 'text'.
    spaces: name of a common space -> float32 [N, D], rows of unit norm.
  """
  modality: str
  spaces: Mapping[str, np.ndarray]

  def __len__(self) -> int:
    return len(next(iter(self.spaces.values())))


class Embedder:
  """Embeds media files and sentences in the common spaces of a model."""

  def __init__(self, path: str | os.PathLike[str],
               window: Window | None = None,
               vocabulary: str | os.PathLike[str] | None = None):
    """Loads a model.

    Args:
      path: a workdir, one of its checkpoints (WORKDIR/checkpoints/STEP), a folder
        written by `vatt_jax import_vatt`, or a released checkpoint.
      window: how to read a file. The default is the window of the workdir's training
        config, or else the window of the paper's models.
      vocabulary: a vocabulary file for `data.tokenizer` of the workdir's config, or
        for words if the config has none. The default is the workdir's file.

    Raises:
      UserError: `path` holds no checkpoint, or the model has no projection head.
    """
    config, variables = weights.read(path)
    self._model = models.from_config(config['model'])
    if isinstance(self._model.head, (type(None), heads.Classifier)):
      raise UserError(f'{path}: holds a model without a projection head, which '
                      'cannot embed')
    self._variables = jax.device_put(variables)
    self._apply = jax.jit(lambda v, batch: self._model.apply(
        v, augment.normalize(batch))['embed'])
    self._window = window or (Window(**config['window'])
                              if 'window' in config else PAPER_WINDOW)
    self._path = path
    self._tokenizer = None
    data = config.get('data', {})
    kind = data.get('tokenizer', 'words')
    default = checkpoint.split(path)[0] / text_lib.TOKENIZERS[kind].file_name
    if 'text' in self._model.modalities and (vocabulary or default.exists()):
      self._tokenizer = text_lib.load(
          kind, vocabulary or default, self._model.vocabulary_size,
          data.get('drop_stop_words', False))

  def videos(self, files: Sequence[File], num_windows: int = 4) -> Embeddings:
    """Embeds the frames of media files.

    Args:
      files: paths, or (path, start, end) for a segment of a file, in seconds.
      num_windows: windows spread over each file; their embeddings are averaged (VATT,
        section 4.3).

    Raises:
      UserError: a file cannot be read or has no video, or the model has none.
    """
    return self._files('video', files, num_windows)

  def audios(self, files: Sequence[File], num_windows: int = 4) -> Embeddings:
    """Embeds the audio of video files or audio files.

    Args:
      files: as for `videos`.
      num_windows: as for `videos`.

    Raises:
      UserError: a file cannot be read or has no audio, or the model has none.
    """
    return self._files('audio', files, num_windows)

  def texts(self, sentences: Sequence[str]) -> Embeddings:
    """Embeds sentences, and logs a warning for those without any known word.

    Raises:
      UserError: the model has no text tower or no vocabulary, or a sentence has no
        words.
    """
    self._check('text', sentences)
    if self._tokenizer is None:
      raise UserError(f'{self._path}: has no vocabulary file; give '
                      'Embedder(..., vocabulary=FILE)')
    ids = np.stack([self._tokenizer.encode(sentence, self._window.max_tokens)
                    for sentence in sentences])
    for sentence, row in zip(sentences, ids, strict=True):
      if not row.any():
        raise UserError(f'{sentence!r}: expected a sentence with at least one word')
      if set(row) <= {0, self._tokenizer.unknown}:
        logging.warning(
            'The vocabulary of %s has none of the words of %r: %s. The embedding '
            'depends only on their number', self._path, sentence,
            ', '.join(text_lib.words(sentence)))
    whole = self._embed('text', _batches(ids[:, None]))
    return Embeddings('text', {space: x[:, 0] for space, x in whole.items()})

  def similarity(self, a: Embeddings, b: Embeddings) -> dict[str, np.ndarray]:
    """Computes the cosine similarity of every item of `a` with every item of `b`.

    Returns:
      Name of each space that both are embedded in -> float32 [len(a), len(b)].

    Raises:
      UserError: `a` and `b` share no space.
    """
    shared = [space for space in a.spaces if space in b.spaces]
    if not shared:
      raise UserError(
          f'{a.modality} is embedded in {", ".join(a.spaces)}, {b.modality} in '
          f'{", ".join(b.spaces)}: they share no space, so no similarity is defined')
    return {space: a.spaces[space] @ b.spaces[space].T for space in shared}

  def _check(self, modality: str, items: Sequence[Any]) -> None:
    """Raises UserError if `items` is no list, or the model has no such modality."""
    if modality not in self._model.modalities:
      raise UserError(f'{self._path}: the model has no {modality}; it has '
                      f'{", ".join(self._model.modalities)}')
    if isinstance(items, (str, os.PathLike)):
      raise UserError(f'{os.fspath(items)}: expected a list, [{items!r}]')
    if not len(items):
      raise UserError(f'no {modality} to embed: expected a list of one or more')

  def _files(self, modality: str, files: Sequence[File], num_windows: int
             ) -> Embeddings:
    self._check(modality, files)
    reader = Reader(
        [_clip(file) for file in files],
        dataclasses.replace(self._window, modalities=(modality,)),
        text_lib.WordTokenizer(()), FileNotes(1.0, len(files)))
    windows = [(index, place) for index in range(len(files))
               for place in spread(num_windows)]
    present = []

    def read(window):
      views = reader.views(*window)
      return reader.empty() if views is None else views[0]

    def read_batches(pool):
      for part in _batches(windows):
        examples = list(pool.map(read, part))
        present.extend(example['mask'] for example in examples)
        yield np.stack([example[modality] for example in examples])

    with futures.ThreadPoolExecutor() as pool:
      embed = self._embed(modality, read_batches(pool))
    by_file = lambda x: np.reshape(x, (len(files), num_windows, *np.shape(x)[1:]))
    for i, ok in enumerate(by_file(present).any(axis=1)):
      if not ok:
        raise UserError(reader.notes.skipped[reader.clips[i].path])
    clips = of_clips({space: {modality: by_file(x)} for space, x in embed.items()},
                     {modality: by_file(present)})
    return Embeddings(modality, {space: x[modality].astype(np.float32)
                                 for space, x in clips.items()})

  def _embed(self, modality: str, batches: Iterable[np.ndarray]
             ) -> dict[str, np.ndarray]:
    """Embeds batches of one modality.

    All batches but the last have the same size. The last one is padded to it, so that
    one compiled program serves all.

    Returns:
      Space -> float32 [N, ..., D].
    """
    size, count, embeds = 0, 0, []
    for batch in batches:
      size, count = max(size, len(batch)), count + len(batch)
      padding = [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
      # The host reads the next batch while the device computes this one.
      jax.block_until_ready(embeds[-1:])
      embeds.append(self._apply(self._variables, {modality: np.pad(batch, padding)}))
    embeds = jax.device_get(embeds)
    return {space: np.concatenate([embed[space][modality] for embed in embeds])[
        :count].astype(np.float32) for space, x in embeds[0].items() if modality in x}


def _clip(file: File) -> clip.Clip:
  if isinstance(file, (str, os.PathLike)):
    return clip.Clip(os.fspath(file))
  try:
    path, start, end = file
    return clip.Clip(os.fspath(path), float(start), float(end))
  except (TypeError, ValueError) as e:
    raise UserError(f'{file!r}: expected a path, or (path, start, end)') from e


def _batches(items: Any) -> Iterator[Any]:
  """Yields slices of a sequence; all but the last have `_BATCH_SIZE` items."""
  for begin in range(0, len(items), _BATCH_SIZE):
    yield items[begin:begin + _BATCH_SIZE]
