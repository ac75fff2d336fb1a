"""Heads on pooled features: common spaces (VATT, section 3.3) and class scores."""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from vatt_jax import config
from vatt_jax.models import layers
from vatt_jax.models.convolutions import BatchNorm

# Graphs of `MmvHead`.
GRAPHS = ('fac', 'fac_relu', 'fac_bnrelu', 'shared', 'disjoint')


def unit_norm(x: jax.Array) -> jax.Array:
  """Scales rows to unit norm in float32; zero stays zero.  [..., D] -> [..., D]."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))


class FacHead(nn.Module):
  """Embeds modalities in a fine-grained space and in a coarse-grained space above it.

  The fine-grained space is video-audio, the coarse-grained space is video-text:
  video -> (two layers, ReLU between) -> video_audio -> (linear) -> video_text;
  audio -> (linear) -> video_audio; text -> (linear) -> video_text; batch norm
  after every linear layer (equation 3). Rows that only fill the batch (no audio,
  no text) do not count in the batch statistics.

  Attributes:
    video_audio_dim: width of the video-audio space.
    video_text_dim: width of the video-text space.
    audio_text: embed audio in the video_text space too, by the linear layer that
      maps video to it (as in MMV, arXiv 2006.16228, section 3.1).
    release: follow the released code: batch norm for video only; a bias in the linear
      layers of audio and text; a ReLU before video_audio -> video_text.
    norm_momentum: of the moving statistics.
    dtype: compute type of the linear layers.
  """
  video_audio_dim: int = 512
  video_text_dim: int = 256
  audio_text: bool = False
  release: bool = False
  norm_momentum: float = 0.9
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, pooled: Mapping[str, jax.Array],
               present: Mapping[str, jax.Array], train: bool = False,
               clips: jax.Array | None = None) -> dict[str, Any]:
    """Embeds the modalities that are present.

    Args:
      pooled: modality -> [..., D].
      present: modality -> bool [...], False for rows that only fill the batch.
      train: normalize by the batch's statistics, and update the moving ones.
      clips: not used.

    Returns:
      `embed`: space -> modality -> [..., dim] of unit norm.
    """
    del clips

    def norm(x, modality, name):
      return BatchNorm(momentum=self.norm_momentum, name=f'{name}_norm')(
          x.astype(jnp.float32), present.get(modality), train)

    def linear(x, dim, modality, name):
      plain = self.release and modality != 'video'
      x = layers.dense(dim, name, self.dtype, use_bias=plain)(x)
      return x if plain else norm(x, modality, name)

    space = {'video_audio': {}, 'video_text': {}}
    coarser = layers.dense(self.video_text_dim, 'video_audio_to_video_text',
                           self.dtype, use_bias=False)
    before = nn.relu if self.release else lambda x: x
    if 'video' in pooled:
      x = linear(pooled['video'], self.video_audio_dim, 'video', 'video_hidden')
      x = linear(nn.relu(x), self.video_audio_dim, 'video', 'video_to_video_audio')
      space['video_audio']['video'] = x
      space['video_text']['video'] = norm(coarser(before(x)), 'video',
                                          'video_audio_to_video_text')
    if 'audio' in pooled:
      x = linear(pooled['audio'], self.video_audio_dim, 'audio', 'audio_to_video_audio')
      space['video_audio']['audio'] = x
      if self.audio_text:
        space['video_text']['audio'] = norm(coarser(before(x)), 'audio',
                                            'audio_in_video_text')
    if 'text' in pooled:
      space['video_text']['text'] = linear(
          pooled['text'], self.video_text_dim, 'text', 'text_to_video_text')
    return dict(embed=jax.tree.map(unit_norm, space))


class MmvHead(nn.Module):
  """Embeds modalities in the common spaces of a graph (arXiv 2006.16228, section 3.1).

  Video has two layers, with batch norm after each and a ReLU between. Audio and text
  have one layer. In the graphs `fac*` video goes on by a layer with batch norm from
  video_audio to video_text, as audio does by the same layer. In `shared` both spaces
  are the same, and in `disjoint` video has two layers for each.

  Attributes:
    graph: one of `GRAPHS`. Before the layer from video_audio to video_text, `fac` (the
      paper) has nothing, `fac_relu` (the released models) a ReLU, and `fac_bnrelu`
      batch norm and a ReLU.
    video_audio_dim: width of the video_audio space, and of the one of `shared`.
    video_text_dim: width of the video_text space.
    hidden_dim: width of the layer in between.
    audio_text: train the way from audio to text: audio in the video_text space has the
      statistics of its batch, and updates the moving ones, which are video's. Without
      it audio has video's moving statistics there.
    dtype: compute type of the linear layers.
  """
  graph: str = 'fac'
  video_audio_dim: int = 512
  video_text_dim: int = 256
  hidden_dim: int = 512
  audio_text: bool = False
  dtype: Any = jnp.float32

  def __post_init__(self):
    config.choose(GRAPHS, self.graph, 'graph')
    super().__post_init__()

  def setup(self):
    linear = lambda dim, use_bias=True: layers.Dense(dim, use_bias, dtype=self.dtype)
    shared = self.graph == 'shared'
    self.video_hidden = linear(self.hidden_dim)
    self.video_hidden_norm = BatchNorm()
    self.video_to_video_audio = linear(self.video_audio_dim, False)
    self.video_to_video_audio_norm = BatchNorm()
    self.audio_to_video_audio = linear(self.video_audio_dim)
    self.text_to_video_text = linear(
        self.video_audio_dim if shared else self.video_text_dim)
    if self.graph == 'disjoint':
      self.video_text_hidden = linear(self.hidden_dim)
      self.video_text_hidden_norm = BatchNorm()
      self.video_to_video_text = linear(self.video_text_dim, False)
      self.video_to_video_text_norm = BatchNorm()
    elif not shared:
      self.video_audio_to_video_text = linear(self.video_text_dim)
      self.video_audio_to_video_text_norm = BatchNorm()
    if self.graph == 'fac_bnrelu':
      self.video_audio_norm = BatchNorm()

  def __call__(self, pooled: Mapping[str, jax.Array],
               present: Mapping[str, jax.Array], train: bool = False,
               clips: jax.Array | None = None) -> dict[str, Any]:
    """Embeds the modalities that are present.

    Args:
      pooled: modality -> [..., D].
      present: modality -> bool [...], False for rows that only fill the batch.
      train: normalize by the batch's statistics, and update the moving ones.
      clips: not used.

    Returns:
      `embed`: space -> modality -> [..., dim] of unit norm.
    """
    del clips
    video_audio, video_text = {}, {}
    if 'video' in pooled:
      given = pooled['video'], present.get('video'), train
      x = self._mlp(*given, self.video_hidden, self.video_hidden_norm,
                    self.video_to_video_audio, self.video_to_video_audio_norm)
      video_audio['video'] = x
      video_text['video'] = (
          self._coarser(x, *given[1:]) if self.graph != 'disjoint' else
          self._mlp(*given, self.video_text_hidden, self.video_text_hidden_norm,
                    self.video_to_video_text, self.video_to_video_text_norm))
    if 'audio' in pooled:
      x = self.audio_to_video_audio(pooled['audio']).astype(jnp.float32)
      video_audio['audio'] = x
      if self.graph != 'disjoint':
        video_text['audio'] = self._coarser(x, present.get('audio'),
                                            train and self.audio_text)
    if 'text' in pooled:
      video_text['text'] = self.text_to_video_text(pooled['text'])
    embed = dict(video_audio=video_audio, video_text=video_text)
    return dict(embed=jax.tree.map(unit_norm, embed))

  def _mlp(self, x, mask, train, hidden, hidden_norm, out, out_norm):
    """Applies two linear layers with batch norm, and a ReLU between.

    [B, D] -> float32 [B, dim].
    """
    x = hidden_norm(hidden(x).astype(jnp.float32), mask, train)
    return out_norm(out(nn.relu(x)).astype(jnp.float32), mask, train)

  def _coarser(self, x, mask, train):
    """Maps from video_audio to video_text.  [B, dim] -> float32 [B, dim]."""
    if self.graph == 'shared':
      return x
    if self.graph == 'fac_bnrelu':
      x = self.video_audio_norm(x, mask, train)
    if self.graph != 'fac':
      x = nn.relu(x)
    x = self.video_audio_to_video_text(x).astype(jnp.float32)
    return self.video_audio_to_video_text_norm(x, mask, train)


class ProjectionHead(nn.Module):
  """Embeds each modality by two linear layers of its own (GDT, appendix A.3).

  Dropout, a layer without a bias, batch norm, a ReLU, dropout, and a layer with a bias.
  All modalities share one space, whose embeddings have the names of the spaces of other
  heads.

  Attributes:
    hidden_dim: width of the layer in between.
    dim: width of the space.
    dropout_rate: before either layer.
    dtype: compute type of the linear layers.
  """
  hidden_dim: int = 512
  dim: int = 256
  dropout_rate: float = 0.3
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, pooled: Mapping[str, jax.Array],
               present: Mapping[str, jax.Array], train: bool = False,
               clips: jax.Array | None = None) -> dict[str, Any]:
    """Embeds the modalities that are present.

    Args:
      pooled: a modality -> [..., D]; also a modality and a suffix, such as
        `video_crops`, for more features [B, n, D] of a clip's modality.
      present: modality -> bool [...], False for rows that only fill the batch.
      train: normalize by the batch's statistics, and update the moving ones.
      clips: for `Dropout`.

    Returns:
      `embed`: space -> key of `pooled` -> [..., dim] of unit norm.
    """
    mlps, embed = {}, {}
    for key, x in pooled.items():
      modality, *_ = key.split('_')
      if modality not in mlps:
        mlps[modality] = _Mlp(self.hidden_dim, self.dim, self.dropout_rate, self.dtype,
                              name=modality)
      embed[key] = unit_norm(mlps[modality](x, present.get(modality), train, clips))
    no_text = {key: x for key, x in embed.items() if key != 'text'}
    return dict(embed=dict(video_audio=no_text, video_text=embed))


class _Mlp(nn.Module):
  """Applies the layers of `ProjectionHead`.  [..., D] -> [..., dim]."""
  hidden_dim: int
  dim: int
  dropout_rate: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool,
               clips: jax.Array | None) -> jax.Array:
    drop = lambda x: layers.dropout(x, self.dropout_rate, clips)
    x = layers.dense(self.hidden_dim, 'hidden', self.dtype, use_bias=False)(drop(x))
    x = BatchNorm(name='norm')(x.astype(jnp.float32), mask, train)
    return layers.dense(self.dim, 'out', self.dtype)(drop(nn.relu(x)))


class Classifier(nn.Module):
  """Classifies features of one modality by dropout and a linear layer.

  Attributes:
    num_classes: number of classes; or, by column of labels, of a linear layer each.
    dropout_rate: of the features.
    rare: initialize scores to -log(C - 1), whose sigmoid is 1/C for every class. The
      release does so for audio events, which are mostly absent.
    dtype: of the features; the layer computes in float32.
  """
  num_classes: int | Mapping[str, int]
  dropout_rate: float = 0.0
  rare: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, pooled: Mapping[str, jax.Array],
               present: Mapping[str, jax.Array], train: bool = False,
               clips: jax.Array | None = None) -> dict[str, jax.Array]:
    """Computes class scores before softmax or sigmoid.

    Args:
      pooled: the modality -> [..., D].
      present: not used.
      train: not used.
      clips: for `Dropout` of the features.

    Returns:
      `logits`: [..., num_classes], float32; by column if `num_classes` is.

    Raises:
      ValueError: more than one modality.
    """
    del present, train
    if len(pooled) != 1:
      raise ValueError(f'a classifier of {", ".join(pooled)}: expected one modality')
    (x,) = pooled.values()
    x = layers.dropout(x.astype(jnp.float32), self.dropout_rate, clips)
    if not isinstance(self.num_classes, Mapping):
      return dict(logits=self._layer(self.num_classes, 'logits')(x))
    return dict(logits={column: self._layer(count, f'logits_{column}')(x)
                        for column, count in self.num_classes.items()})

  def _layer(self, num_classes: int, name: str) -> nn.Dense:
    start = -math.log(max(num_classes - 1, 1)) if self.rare else 0.0
    return nn.Dense(num_classes, dtype=jnp.float32, name=name,
                    kernel_init=layers.kernel_init,
                    bias_init=nn.initializers.constant(start))


HEADS = {'fac': FacHead, 'mmv': MmvHead, 'projection': ProjectionHead,
         'classifier': Classifier}


def from_config(section: config.Settings | None, **given: Any) -> nn.Module | None:
  """Builds the head of a config's section `model.head`; returns None without one.

  Args:
    section: `name`, a key of `HEADS`, by default 'fac', and the head's fields.
    **given: fields that the model sets, such as `dtype`, for heads that have them.

  Raises:
    UserError: names the key that is unknown, missing or out of range.
  """
  if section is None:
    return None
  return config.build('model.head', HEADS, {'name': 'fac', **section}, parent=None,
                      name=None, **given)    # the first two are linen's
