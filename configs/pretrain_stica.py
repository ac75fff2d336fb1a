"""Pre-trains STiCA as in the paper (arXiv 2103.10211, sections 3 and 4, appendix 6.1).

    python -m vatt_jax.main --config=configs/pretrain_stica.py --workdir=runs/stica

R(2+1)D-18 with a Transformer over time for video, and ResNet-9 for audio. It trains on
Kinetics-400 for 100 epochs of batches of 512 clips, each in two crops, which took 64
GPUs in the paper, and expects `data/kinetics400` (python -m data.kinetics). Switches
after the file name, joined by commas, at most one of each line:

    frames_30, frames_90         frames at 30 Hz (default: 60)
    no_crops, space, time        crops of features: none, of space, of time alone
                                 (default: of both)
    average, depth_4             pooling over time (default: a Transformer of 2 layers)
    across, within               only the cross-modal loss, only the within-modal one
    release                      follows the released code where it differs
    toy                          VATT's towers of the quickstart with windows of 16
                                 frames, on the toy world

Expected accuracy of fine-tuning (Table 4): HMDB51 67.0, UCF101 93.1. Ablations, HMDB51,
fold 1 (Tables 1 to 3), with as many frames in pre-training as in fine-tuning:

                               frames_30   60     frames_90
    average,across             54.0        62.4   58.0
    across                     60.3        66.1   66.9
    depth_4,across             58.3
    average,within,no_crops    43.3
    average,no_crops           58.6
    average,space              59.9
    average                    60.4
    none of these              62.0

In the tables `across` has one crop of a clip; here it has two.
"""

import functools

from ml_collections import ConfigDict

from configs import common
from configs import pretrain_gdt

_NO_CROPS = (0, 1)
_KINDS = ('space', 'time')


def get_config(arg: str = '') -> ConfigDict:
  return common.switches(base(), arg, *GROUPS)


def base() -> ConfigDict:
  c = pretrain_gdt.get_config('e')
  c.window.update(num_views=2, min_crop_area=0.14, max_crop_aspect=4 / 3,
                  scale_jitter=0.0, crop_share=1.0)
  c.batch_size *= c.window.num_views
  c.augment.update(color_rate=0.8, color_drop_rate=0.2, blur_rate=0.5, blur_size=0.1)
  c.model.video.update(
      pooling=dict(name='transformer', depth=2, num_heads=4, mlp_dim=2048,
                   variant='paper'),
      crops=dict(space_large=(2, 6), space_small=(4, 4), time_large=(2, 3),
                 time_small=(1, 2), variant='paper'))
  c.model.audio.spectrogram.name = 'stica'
  del c.model.audio.spec_augment
  c.losses = dict(views=dict(
      name='stica', temperature_within=0.5, temperature_across=0.1, weight_within=0.5,
      weight=1.0, variant='paper', num_chunks=1))
  frames(c, 60)
  return c


def frames(c: ConfigDict, number: int) -> None:
  """Sets the length of the windows, at 30 Hz."""
  c.window.num_frames = number


def crop_only(c: ConfigDict, *kinds: str) -> None:
  """Leaves only crops of these kinds."""
  for kind in set(_KINDS) - set(kinds):
    c.model.video.crops.update({f'{kind}_large': _NO_CROPS, f'{kind}_small': _NO_CROPS})
  if not kinds:
    del c.model.video.crops


def average(c: ConfigDict) -> None:
  """Averages over time."""
  c.model.video.pooling = dict(name='average')


def release(c: ConfigDict) -> None:
  """Follows the released code (docs/decisions/0003-two-readings.md)."""
  c.total_steps = 151 * pretrain_gdt.EPOCH_STEPS
  c.losses.views.variant = 'release'
  c.model.head.dropout_rate = 0.3
  c.model.audio.spectrogram.variant = 'release'
  if c.model.video.pooling.name == 'transformer':
    c.model.video.pooling.variant = 'release'
  crops = c.model.video.get('crops')
  if crops:
    crops.variant = 'release'
    if c.window.num_frames == 60 and crops.time_large[0]:
      crops.update(time_large=(2, 6), time_small=(1, 4))


def toy(c: ConfigDict) -> None:
  """Trains VATT's towers of the quickstart on windows of 16 frames of the toy world."""
  video, losses = c.model.video, c.losses
  pretrain_gdt.toy(c)
  c.losses = losses
  c.batch_size *= c.window.num_views
  c.window.update(num_frames=16, frame_rate_hz=10.0, min_crop_area=0.3)
  # Crops need the map of all tokens: 4 x 6 x 6.
  c.model.video.update(drop_token_rate=0.0, pooling=video.pooling)
  if video.pooling.name == 'transformer':
    c.model.video.pooling.mlp_dim = 256
  if 'crops' in video:
    c.model.video.crops = video.crops
    for name, size in dict(space_large=5, space_small=3, time_large=3,
                           time_small=2).items():
      c.model.video.crops[name] = (video.crops[name][0], size)


# Applied in this order.
GROUPS = (
    {f'frames_{n}': functools.partial(frames, number=n) for n in (30, 90)},
    {'no_crops': crop_only, 'space': lambda c: crop_only(c, 'space'),
     'time': lambda c: crop_only(c, 'time')},
    {'average': average, 'depth_4': lambda c: c.model.video.pooling.update(depth=4)},
    {'across': lambda c: c.losses.views.update(weight_within=0.0),
     'within': lambda c: c.losses.views.update(weight_within=1.0)},
    {'release': release}, {'toy': toy})
