"""Normalizes and augments batches on the device, before the model."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np

from vatt_jax.inputs import clip_keys


def normalize(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Returns the batch with video and audio as float32 in [-1, 1].

  Video is uint8 before, audio int16.
  """
  batch = dict(batch)
  if 'video' in batch:
    batch['video'] = batch['video'].astype(jnp.float32) / 127.5 - 1
  if 'audio' in batch:
    batch['audio'] = batch['audio'].astype(jnp.float32) / 32768
  return batch


# The ways in which the rows of `Augment.copies` show a clip.
COPIES = ('forward', 'reversed')

# The random numbers of a clip, each uniform in [0, 1).
_DRAWS = ('flip', 'color', 'brightness', 'saturation', 'contrast', 'hue',
          'color_drop', 'blur', 'blur_sigma', 'volume')


@dataclasses.dataclass(frozen=True)
class Augment:
  """Augments training batches; every augmentation is off by default.

  The augmentations run in the order of the attributes. Each row has its own random
  numbers, and all frames of a clip change alike. VATT (section 4.3) flips and changes
  colors. Its released code adds noise to the audio, as MMV does (section 4.2).

  Attributes:
    copies: of each row, some of `COPIES`. In a reversed copy video and audio run
      backwards (GDT, section 3.3); the text stays. GDT has both copies, and each draws
      its own augmentation. Its released code reverses the windows of the spectrogram
      instead of the samples, so that both copies share volume and masks.
    flip_rate: share of clips that are mirrored, left and right.
    color_rate: share of clips whose colors change: brightness, saturation, contrast
      and hue, in this order. The result is clipped to [0, 1] (MMV, by its authors'
      library DMVR).
    brightness: largest offset of values in [0, 1].
    saturation: largest difference of the factor from 1.
    contrast: largest difference of the factor from 1.
    hue: largest offset of an angle in [0, 1).
    color_drop_rate: share of clips that become gray, whether or not their colors
      have changed (DMVR: 0; SimCLR, which STiCA follows: 0.2).
    blur_rate: share of clips with a Gaussian blur (STiCA, appendix 6.1, which follows
      SimCLR, arXiv 2002.05709, appendix A: 0.5).
    blur_sigma: smallest and largest standard deviation, in pixels.
    blur_size: size of the kernel as a share of the height. Frames are padded by
      reflection, as in STiCA's code (SimCLR's darkens the edges).
    volume: largest difference of the audio's factor from 1 (GDT, appendix A.3.3, and
      STiCA: 0.1).
    noise: standard deviation of the noise that is added to the audio, as a share of
      the largest sample (VATT's code: 0.01).
    mixup: both parameters of the Beta distribution from which a labeled clip draws
      its share in a mixture with another clip of the batch. Labels are mixed alike
      (VATT, section 4.3: 5 for sound events; arXiv 1710.09412). 0 for none. Mixup
      runs last.
  """
  copies: Sequence[str] = ('forward',)
  flip_rate: float = 0.0
  color_rate: float = 0.0
  brightness: float = 32 / 255
  saturation: float = 0.4
  contrast: float = 0.4
  hue: float = 0.2
  color_drop_rate: float = 0.0
  blur_rate: float = 0.0
  blur_sigma: Sequence[float] = (0.1, 2.0)
  blur_size: float = 0.1
  volume: float = 0.0
  noise: float = 0.0
  mixup: float = 0.0

  def __post_init__(self):
    if not self.copies or len(set(self.copies)) < len(self.copies) or (
        not set(self.copies) <= set(COPIES)):
      raise ValueError(f'copies={self.copies}: expected some of {", ".join(COPIES)}, '
                       'each once')
    low, high = self.blur_sigma
    if not 0 < low <= high:
      raise ValueError(f'blur_sigma={self.blur_sigma}: expected two numbers above 0, '
                       'the smallest and the largest')
    if self.mixup < 0:
      raise ValueError(f'mixup={self.mixup}: expected 0 or more')

  def copy(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces every row by adjacent rows, one for each of `copies`.

    Args:
      batch: the whole batch, before it is normalized and before it has keys.
    """
    def copies(name, x):
      backwards = x[:, ::-1] if name in ('video', 'audio') else x
      each = [backwards if kind == 'reversed' else x for kind in self.copies]
      return jnp.stack(each, axis=1).reshape(-1, *x.shape[1:])

    if tuple(self.copies) == ('forward',):
      return dict(batch)
    return {name: jax.tree.map(functools.partial(copies, name), x)
            for name, x in batch.items()}

  def pair(self, key: jax.Array, batch: Mapping[str, jax.Array]
           ) -> dict[str, jax.Array]:
    """Adds each clip's mixup partner, another row of the batch.

    Args:
      key: the random key of the step.
      batch: the whole batch, with `key` [B].

    Returns:
      The batch, with the partners' arrays under `partner` if mixup is on. Every row
      is now complete: some rows augmented alone equal the same rows of the whole
      batch augmented.
    """
    if not self.mixup or 'labels' not in batch:
      return dict(batch)
    order = jax.random.permutation(key, len(batch['key']))
    return dict(batch, partner=jax.tree.map(lambda x: x[order], dict(batch)))

  def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Normalizes (`normalize`) and augments a batch, or some rows of one.

    Args:
      batch: with `key` [B], the clips' random keys. With mixup, the output of `pair`.

    Returns:
      The batch, with each clip's random numbers under `draws`: name -> [B], uniform
      in [0, 1).
    """
    batch = dict(batch)
    partner = batch.pop('partner', None)
    changed = self._augment_rows(batch)
    if partner is None:
      return changed
    keys = clip_keys.derive(batch['key'], 'mixup')
    share = jax.vmap(lambda key: jax.random.beta(key, self.mixup, self.mixup))(keys)
    return _mix(changed, self._augment_rows(partner), share)

  def _augment_rows(self, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Augments the rows, without mixup."""
    keys = clip_keys.derive(batch['key'], 'augment')
    draws = jax.vmap(_draw)(keys)
    changed = normalize(batch) | dict(draws=draws)
    if 'video' in batch:
      changed['video'] = jax.vmap(self._change_video)(draws, changed['video'])
    if 'audio' in batch:
      changed['audio'] = jax.vmap(self._change_audio)(keys, draws, changed['audio'])
    return changed

  def _change_video(self, draw: Mapping[str, jax.Array], video: jax.Array
                    ) -> jax.Array:
    """Augments the video of one clip, [T, H, W, C] in [-1, 1]."""
    if self.flip_rate:
      video = jnp.where(draw['flip'] < self.flip_rate, video[:, :, ::-1], video)
    if self.color_rate:
      video = jnp.where(draw['color'] < self.color_rate,
                        self._change_colors(draw, video), video)
    if self.color_drop_rate:
      gray = pix.rgb_to_grayscale(video, keep_dims=True)
      video = jnp.where(draw['color_drop'] < self.color_drop_rate, gray, video)
    if self.blur_rate:
      low, high = self.blur_sigma
      sigma = low + (high - low) * draw['blur_sigma']
      radius = int(self.blur_size * video.shape[1]) // 2
      video = jnp.where(draw['blur'] < self.blur_rate, _blur(video, sigma, radius),
                        video)
    return video

  def _change_colors(self, draw: Mapping[str, jax.Array], video: jax.Array
                     ) -> jax.Array:
    around = lambda name: getattr(self, name) * (2 * draw[name] - 1)
    with jax.numpy_dtype_promotion('standard'):    # PIX multiplies by truth values
      x = pix.adjust_brightness((video + 1) / 2, around('brightness'))
      x = pix.adjust_saturation(x, 1 + around('saturation'))
      x = pix.adjust_contrast(x, 1 + around('contrast'))
      x = pix.adjust_hue(x, around('hue'))
    return 2 * jnp.clip(x, 0, 1) - 1

  def _change_audio(self, key: jax.Array, draw: Mapping[str, jax.Array],
                    audio: jax.Array) -> jax.Array:
    """Augments the audio of one clip, [S] in [-1, 1]; silence stays silent."""
    if self.volume:
      audio = audio * (1 + self.volume * (2 * draw['volume'] - 1))
    if self.noise:
      noise = jax.random.normal(jax.random.fold_in(key, 1), audio.shape)
      audio = audio + self.noise * jnp.abs(audio).max() * noise
    return audio


def _mix(clips: dict[str, jax.Array], partners: Mapping[str, jax.Array],
         share: jax.Array) -> dict[str, jax.Array]:
  """Mixes each clip with its partner: video, audio and labels by the same share.

  A clip stays unchanged if only one of the two has video, audio or a label in one of
  the columns.

  Args:
    clips: arrays of the clips.
    partners: arrays of their partners.
    share: [B], the clip's share in the mixture.
  """
  media = [m for m in ('video', 'audio') if m in clips]

  def has(batch):
    return jnp.stack([*(jnp.any(x.astype(jnp.float32) > 0, axis=-1)
                        for x in batch['labels'].values()),
                      *(batch[f'has_{m}'] for m in media)])

  share = jnp.where(jnp.all(has(clips) == has(partners), axis=0), share, 1.0)

  def mix(x, y):
    by_row = share.reshape(-1, *[1] * (x.ndim - 1))
    return by_row * x.astype(jnp.float32) + (1 - by_row) * y.astype(jnp.float32)

  return clips | {name: jax.tree.map(mix, clips[name], partners[name])
                  for name in (*media, 'labels')}


def _draw(key: jax.Array) -> dict[str, jax.Array]:
  """Returns a clip's random numbers, the same for its video and its audio."""
  # The first number is not used, so that runs go on with the draws of earlier versions.
  numbers = jax.random.uniform(key, (1 + len(_DRAWS),))[1:]
  return dict(zip(_DRAWS, numbers, strict=True))


def _blur(video: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
  """Blurs every frame, [T, H, W, C], with a Gaussian kernel.

  Computes a sum of shifted frames. Each clip has its own kernel, and a convolution
  with a group for each clip and channel is some 30 times slower on a CPU.
  """
  offset = np.arange(-radius, radius + 1, dtype=np.float32)
  kernel = jax.nn.softmax(-0.5 * (offset / sigma) ** 2)
  for axis in (1, 2):
    size = video.shape[axis]
    around = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
    x = jnp.pad(video, around, mode='reflect')
    video = sum(kernel[i] * jax.lax.slice_in_dim(x, i, i + size, axis=axis)
                for i in range(2 * radius + 1))
  return video
