"""Measures zero-shot retrieval between video, audio and text."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from absl import logging
import numpy as np

from vatt_jax.config import choose
from vatt_jax.errors import UserError
from vatt_jax.evaluators import extract
from vatt_jax.evaluators import metrics
from vatt_jax.evaluators.views import AVERAGES
from vatt_jax.evaluators.views import find_present
from vatt_jax.evaluators.views import nearest_text
from vatt_jax.evaluators.views import of_clips
from vatt_jax.inputs import sources
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.reader import Reader

# direction -> (space, query, candidate)
DIRECTIONS = {
    'text_to_video': ('video_text', 'text', 'video'),
    'video_to_text': ('video_text', 'video', 'text'),
    'audio_to_video': ('video_audio', 'audio', 'video'),
    'video_to_audio': ('video_audio', 'video', 'audio'),
    # Needs a head that embeds audio in this space (`heads.FacHead.audio_text`).
    'text_to_audio': ('video_text', 'text', 'audio'),
    'audio_to_text': ('video_text', 'audio', 'text')}
GALLERIES = ('text_to_video', 'audio_to_video')    # people can judge these at a glance


@dataclasses.dataclass(frozen=True)
class Hits:
  """Holds a query and the clips it retrieved.

  Attributes:
    direction: one of `GALLERIES`.
    query: index of the clip whose text or audio is the query.
    retrieved: indices of these clips, best first; the query's own clip comes last
      among equal scores.
    scores: similarity of each retrieved clip with the query.
    rank: rank of the query's own clip among all clips, counted from 1; ties count
      against the model.
  """
  direction: str
  query: int
  retrieved: list[int]
  scores: list[float]
  rank: int


class Retrieval:
  """Ranks the clips of a source by similarity.

  Windows are spread over a clip, and averaged (`of_clips`). A window's text
  is the caption nearest to its middle. The pool of a direction is every clip that has
  both modalities. Logs how many clips lack one, and the fraction of unknown words in
  the captions.
  """

  def __init__(self, predict: extract.Predict, reader: Reader,
               batch_size: int, path: str = '', captions: str = '',
               num_windows: int = 1, num_crops: int = 1, average: str = 'embeddings'):
    """Opens the clips.

    Args:
      predict: `predict(state, batch)` returns `embed` (`train_step.Task.predict`).
      reader: reads clips.
      batch_size: batch size of embedding.
      path: the source of the clips (`sources.open_source`); empty for the reader's.
      captions: the captions of the source.
      num_windows: windows spread over each clip.
      num_crops: crops spread over the frames of each window.
      average: one of `AVERAGES`.

    Raises:
      ValueError: `average` is unknown, or neither `path` nor the reader has clips.
    """
    if path:
      reader = dataclasses.replace(reader, clips=sources.open_source(path, captions))
    elif not len(reader.clips):
      raise ValueError("path='': expected the clips to retrieve from, because the "
                       'config has no training clips')
    self._predict = predict
    self._batch_size = batch_size
    self._views = num_windows, num_crops
    self._average = choose(AVERAGES, average, 'average')
    self._logged: str | None = None
    self.reader = reader

  @property
  def measured(self) -> Sequence[Clip]:
    """Returns the clips that are ranked."""
    return self.reader.clips

  def run(self, state: Any) -> Iterator[tuple[str, float]]:
    """Yields `DIRECTION/R@k`, `DIRECTION/MedR`, `DIRECTION/MeanR`, and chance levels.

    Leaves out directions for which the model or every clip lacks a modality.
    """
    embed, present = self._embed(state)
    measured = False
    for direction, (space, query, candidate) in DIRECTIONS.items():
      if not {query, candidate} <= embed[space].keys() & present.keys():
        continue
      both = present[query] & present[candidate]
      if not both.any():
        continue
      measured = True
      queries, pool = (embed[space][m][both] for m in (query, candidate))
      for name, value in metrics.retrieval(metrics.rank_in_pool(queries, pool)):
        yield f'{direction}/{name}', value
      for name, value in metrics.retrieval_by_chance(int(both.sum())):
        yield f'{direction}/chance_{name}', value
    if not measured:
      logging.warning('None of the %d clips to retrieve from has two modalities that '
                      'the model compares', len(self.reader.clips))

  def gallery(self, state: Any, num_queries: int = 5, num_hits: int = 5) -> list[Hits]:
    """Returns the best clips for text and audio queries, spread over the source."""
    embed, present = self._embed(state)
    hits = []
    for direction in GALLERIES:
      space, query, candidate = DIRECTIONS[direction]
      if not {query, candidate} <= embed[space].keys() & present.keys():
        continue
      both = np.flatnonzero(present[query] & present[candidate])
      if not len(both):
        continue
      places = np.linspace(0, len(both) - 1, min(num_queries, len(both)), dtype=int)
      queries, pool = (embed[space][m][both] for m in (query, candidate))
      ranks = metrics.rank_in_pool(queries, pool)
      for place in places:
        scores = metrics.similarities(queries[place:place + 1], pool)[0]
        own = np.arange(len(pool)) == place
        best = np.lexsort((own, -scores))[:num_hits]
        hits.append(Hits(direction, int(both[place]), both[best].tolist(),
                         scores[best].tolist(), int(ranks[place]) + 1))
    return hits

  def _embed(self, state):
    """Returns embeddings (space -> modality -> [N, D]) and modality -> bool [N]."""
    embed, present, words = extract.by_clip(
        self._predict, state, self.reader, self._batch_size, *self._views,
        functools.partial(_pick, unknown=self.reader.tokenizer.unknown))
    clips = of_clips(embed, present, self._average)
    present = {m: x.any(axis=1) for m, x in present.items()}
    embedded = {m for sides in clips.values() for m in sides}
    if 'text' in embedded and self._logged is None:
      _log_unknown_words(words)
    self._log_missing(present, embedded)
    return clips, present

  def _log_missing(self, present, embedded):
    """Logs, once, how many clips are broken or lack a modality that is embedded."""
    whole = present.get('video', False) | present.get('audio', False)
    counts = {'broken': ~whole} | {
        f'without {m}': whole & ~x for m, x in present.items() if m in embedded}
    lacks = ', '.join(f'{x.sum()} {lack}' for lack, x in counts.items() if x.any())
    if lacks and lacks != self._logged:
      logging.info('%d clips to retrieve from; left out where needed: %s', len(whole),
                   lacks)
    self._logged = lacks


def _pick(outputs, batch, unknown):
  """Returns embeddings, present modalities, and counts [B, 2] of unknown and all words.

  Text is the nearest caption of each clip.
  """
  if 'embed' not in outputs:
    raise UserError('retrieval needs a model with a projection head; set '
                    'config.model.head to the settings of a fac head')
  embed = {space: nearest_text(sides)
           for space, sides in outputs['embed'].items()}
  ids = batch['text'][:, 0] if 'text' in batch else np.zeros((len(batch['mask']), 0))
  words = np.stack([(ids == unknown).sum(axis=-1), (ids != 0).sum(axis=-1)], axis=-1)
  return embed, find_present(batch), words


def _log_unknown_words(words):
  """Logs the fraction of unknown words.  [N, V, 2]: counts of unknown and all words."""
  unknown, total = words.sum(axis=(0, 1))
  if total:
    log = logging.warning if unknown == total else logging.info
    log('Unknown words: %.1f %% of those in the captions', 100 * unknown / total)
