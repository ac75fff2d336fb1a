"""What the device does to a batch before the model sees it."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np

from vatt_jax.inputs import clip_keys


def normalize(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Video uint8 -> float32 in [-1, 1]; audio int16 -> float32 in [-1, 1]."""
  batch = dict(batch)
  if 'video' in batch:
    batch['video'] = batch['video'].astype(jnp.float32) / 127.5 - 1
  if 'audio' in batch:
    batch['audio'] = batch['audio'].astype(jnp.float32) / 32768
  return batch


# What a clip draws, uniformly in [0, 1).
_DRAWS = ('reverse', 'flip', 'color', 'brightness', 'saturation', 'contrast', 'hue',
          'color_drop', 'blur', 'blur_sigma', 'volume')


@dataclasses.dataclass(frozen=True)
class Augment:
  """What training changes at random, by default nothing; in this order.

  Each clip draws its own, all its frames alike. VATT (section 4.3) flips and changes
  colours; its released code, as MMV (section 4.2), adds noise to the sound.

  Attributes:
    reverse_rate: the share of clips that run backwards, pictures and sound together
      (GDT, section 3.3; its code reverses both); text stays.
    flip_rate: the share of clips that are mirrored, left and right.
    color_rate: the share of clips whose colours change: brightness, saturation,
      contrast and hue, in this order; then they are clipped to [0, 1] (MMV, by its
      authors' library DMVR).
    brightness: most that is added to values in [0, 1].
    saturation: most by which the factor differs from 1.
    contrast: likewise.
    hue: most that is added to an angle in [0, 1).
    color_drop_rate: the share of clips that turn grey, whether their colours have
      changed or not (DMVR: 0; SimCLR, which STiCA follows: 0.2).
    blur_rate: the share of clips that a Gaussian blurs (STiCA, appendix 6.1, which
      follows SimCLR, arXiv 2002.05709, appendix A: 0.5).
    blur_sigma: least and most standard deviation, in pixels.
    blur_size: of the kernel, a share of the height; at the edges pictures are
      continued by reflection, as in STiCA's code (SimCLR's darkens them).
    volume: most by which the factor of the sound differs from 1 (GDT, appendix
      A.3.3, and STiCA: 0.1).
    noise: standard deviation of what is added to the sound, a share of its largest
      sample (VATT's code: 0.01).
    mixup: both parameters of the Beta distribution from which a labelled clip draws
      its share in a mixture with another of the batch, labels likewise (VATT,
      section 4.3: 5 for sound events; arXiv 1710.09412); 0 for none. After all else.
  """
  reverse_rate: float = 0.0
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
    low, high = self.blur_sigma
    if not 0 < low <= high:
      raise ValueError(f'blur_sigma={self.blur_sigma}: expected two numbers above 0, '
                       'the least and the most')
    if self.mixup < 0:
      raise ValueError(f'mixup={self.mixup}: expected 0 or more')

  def pair(self, key: jax.Array, batch: Mapping[str, jax.Array]
           ) -> dict[str, jax.Array]:
    """Adds to each clip its partner for mixup, from anywhere in the batch.

    Args:
      key: of the step.
      batch: the whole batch, with `key` [B].

    Returns:
      The batch, with the partners' arrays under `partner` if there is a mixup. Every
      row is now complete: augmenting some of the rows gives those rows of the whole.
    """
    if not self.mixup or 'label' not in batch:
      return dict(batch)
    order = jax.random.permutation(key, len(batch['label']))
    return dict(batch, partner={k: x[order] for k, x in batch.items()})

  def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Normalises (`normalize`) and changes a batch, or some rows of one.

    Args:
      batch: with `key` [B], from which each clip draws; of `pair` if there is a mixup.

    Returns:
      The batch, and under `draws` what each clip drew: name -> [B], uniform in [0, 1).
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
    """Changes the rows as they are, without mixup."""
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
    """Changes one clip, [T, H, W, C] in [-1, 1]."""
    if self.reverse_rate:
      video = jnp.where(draw['reverse'] < self.reverse_rate, video[::-1], video)
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
    """Changes the audio of one clip, [S] in [-1, 1]; silence stays silent."""
    if self.reverse_rate:
      audio = jnp.where(draw['reverse'] < self.reverse_rate, audio[::-1], audio)
    if self.volume:
      audio = audio * (1 + self.volume * (2 * draw['volume'] - 1))
    if self.noise:
      noise = jax.random.normal(jax.random.fold_in(key, 1), audio.shape)
      audio = audio + self.noise * jnp.abs(audio).max() * noise
    return audio


def _mix(ours: dict[str, jax.Array], theirs: Mapping[str, jax.Array], share: jax.Array
         ) -> dict[str, jax.Array]:
  """Every clip with a partner, the same for pictures, sound and label.

  A clip stays as it is where one of the two lacks what the other has.

  Args:
    ours: of clips.
    theirs: of their partners.
    share: [B], of the clip in the mixture.
  """
  media = [m for m in ('video', 'audio') if m in ours]

  def has(clips):
    return jnp.stack([jnp.any(clips['label'].astype(jnp.float32) > 0, axis=-1),
                      *(clips[f'has_{m}'] for m in media)])

  share = jnp.where(jnp.all(has(ours) == has(theirs), axis=0), share, 1.0)

  def mix(name):
    x, y = (clips[name].astype(jnp.float32) for clips in (ours, theirs))
    by_row = share.reshape(-1, *[1] * (x.ndim - 1))
    return by_row * x + (1 - by_row) * y

  return ours | {name: mix(name) for name in (*media, 'label')}


def _draw(key: jax.Array) -> dict[str, jax.Array]:
  """Returns a clip's draws, the same for its video and its audio."""
  return dict(zip(_DRAWS, jax.random.uniform(key, (len(_DRAWS),)), strict=True))


def _blur(video: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
  """Gaussian blur of every frame, [T, H, W, C].

  A sum of shifted pictures: where each clip has its own kernel, a convolution has a
  group for each clip and channel, which is some 30 times slower on a CPU.
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
