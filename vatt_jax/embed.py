"""A trained model at work: embeddings of files and sentences.

    from vatt_jax import embed
    vatt = embed.Embedder('runs/quickstart')
    film = vatt.file('data/toy_world/clips/test/0000.mp4', end=3.2)
    words = vatt.text('a red cross slides to the right')
    print(embed.similarities(film, words))
"""

from __future__ import annotations

from collections.abc import Mapping
import itertools
import os
from typing import Any

import jax
import numpy as np

from vatt_jax import checkpoint
from vatt_jax import weights
from vatt_jax.errors import UserError
from vatt_jax.evaluators import extract
from vatt_jax.inputs import augment
from vatt_jax.inputs import clip
from vatt_jax.inputs import pipeline
from vatt_jax.inputs import text as text_lib
from vatt_jax.models import build
from vatt_jax.models import heads

Embedding = Mapping[str, Mapping[str, np.ndarray]]    # space -> modality -> [D]

# What the paper's models are trained on (section 4.3).
PAPER_WINDOW = pipeline.Window(num_frames=32, frame_rate_hz=10.0, image_size=224,
                               audio_hz=48_000)


class Embedder:
  """Embeds media files and sentences in the common spaces of a model."""

  def __init__(self, path: str | os.PathLike[str],
               window: pipeline.Window | None = None,
               vocabulary: str | os.PathLike[str] | None = None):
    """Loads a model.

    Args:
      path: of a workdir, of one of its checkpoints (WORKDIR/checkpoints/STEP), of
        what `vatt_jax.released` wrote, or of a released checkpoint.
      window: what to read of a file; by default what the workdir's run was trained
        on, or else what the paper's models were.
      vocabulary: a file of what `data.tokenizer` of the workdir's config says, of
        words where there is none; by default the workdir's.

    Raises:
      UserError: there is nothing to load, or the model embeds nothing.
    """
    config, variables = weights.read(path)
    self._model = build.build_model(**config['model'])
    if not isinstance(self._model.head, heads.FacHead):
      raise UserError(f'{path}: holds a model without common spaces, which embeds '
                      'nothing')
    self._variables = jax.device_put(variables)
    self._apply = jax.jit(lambda v, batch: self._model.apply(v, batch)['embed'])
    self._window = window or (pipeline.Window(**config['window'])
                              if 'window' in config else PAPER_WINDOW)
    self._path = path
    self._tokenizer = None
    data = config.get('data', {})
    kind = data.get('tokenizer', 'words')
    known = checkpoint.split(path)[0] / text_lib.TOKENIZERS[kind].file_name
    if 'text' in self._model.tokenizers and (vocabulary or known.exists()):
      self._tokenizer = text_lib.load(
          kind, vocabulary or known, config['model']['text']['vocabulary_size'],
          data.get('drop_stop_words', False))

  def file(self, path: str | os.PathLike[str], start: float = 0.0,
           end: float = float('inf'), num_windows: int = 4) -> Embedding:
    """Embeds the picture and sound of a media file.

    Args:
      path: of the file.
      start: of the stretch to embed, seconds.
      end: of it, seconds.
      num_windows: spread over the stretch, whose embeddings are averaged (VATT,
        section 4.3).

    Returns:
      space -> of `video` and `audio` what there is -> [D] of unit norm.

    Raises:
      UserError: the file cannot be read.
    """
    reader = pipeline.Reader(
        [clip.Clip(os.fspath(path), start, end)], self._window,
        text_lib.WordTokenizer(()), pipeline.FileNotes(1.0, 1))
    examples = []
    for place in pipeline.spread(num_windows):
      views = reader.views(0, place)
      if views is None:
        raise UserError(reader.notes.skipped[os.fspath(path)])
      examples += views
    modalities = [m for m in ('video', 'audio') if m in examples[0]]
    batch = {m: np.stack([e[m] for e in examples]) for m in modalities}
    embed = jax.tree.map(lambda x: x[None],                           # [1, V, D]
                         self._embed(augment.normalize(batch)))
    present = {m: np.array([[e[f'has_{m}'] for e in examples]])       # [1, V]
               for m in modalities}
    return {space: {m: x[0] for m, x in sides.items() if present[m].any()}
            for space, sides in extract.of_clips(embed, present).items()}

  def text(self, sentence: str) -> Embedding:
    """Embeds a sentence.  -> space -> `text` -> [D] of unit norm.

    Raises:
      UserError: the model has no text, came without its words, or the sentence is
        empty.
    """
    if 'text' not in self._model.tokenizers:
      raise UserError(f'{self._path}: holds a model without text')
    if self._tokenizer is None:
      raise UserError(f'{self._path}: comes without its words; give '
                      'Embedder(..., vocabulary=FILE), their file')
    words = self._tokenizer.encode(sentence, self._window.max_words)
    if not words.any():
      raise UserError(f'{sentence!r}: expected a sentence with at least one word')
    embed = self._embed({'text': words[None, None]})
    return {space: {'text': sides['text'][0, 0]} for space, sides in embed.items()
            if 'text' in sides}

  def _embed(self, batch: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    return jax.device_get(self._apply(self._variables, batch))


def similarities(*embeddings: Embedding) -> dict[str, float]:
  """Cosine similarities of what shares a space.

  Args:
    *embeddings: of one file and one sentence, say; of a modality in a space there
      must be one.

  Returns:
    `MODALITY~MODALITY` -> similarity in [-1, 1].
  """
  spaces: dict[str, dict[str, np.ndarray]] = {}
  for embedding in embeddings:
    for space, sides in embedding.items():
      spaces.setdefault(space, {}).update(sides)
  return {f'{a}~{b}': float(sides[a] @ sides[b])
          for sides in spaces.values() for a, b in itertools.combinations(sides, 2)}
