"""Fine-tunes MMV's video network on UCF101 or HMDB51 (arXiv 2006.16228, section 4.3).

    python -m vatt_jax.main --config=configs/finetune_mmv.py:ucf101 \
        --config.init_from=runs/mmv --workdir=runs/ucf101_1

Trains the whole network on an official split. It starts from a workdir of
`configs/pretrain_mmv.py` or from a released checkpoint, and expects `data/ucf101` or
`data/hmdb51` (docs/data.md). Switches after the file name, joined by commas, at most
one of each line:

    ucf101, hmdb51              the dataset (default: ucf101)
    split_2, split_3            the official split (default: the first)
    s3d, tsm_x2, r2plus1d       the network (default: TSM-ResNet-50)
    toy                         the toy world's motions, on a laptop, from the run of
                                `configs/pretrain_mmv.py:toy` in runs/mmv_toy

The text of the paper does not state the settings of fine-tuning. Windows are those of
its linear evaluation, and the optimizer is VATT's for Kinetics. Expected top-1, mean of
three splits (its Table 2):

              TSM-ResNet-50  twice the width  S3D-G  R(2+1)D-18 (AudioSet alone)
    UCF101    94.9           95.2             92.5   91.5
    HMDB51    73.2           75.0             69.6   70.1
"""

import functools

from ml_collections import ConfigDict

from configs import common
from configs import finetune_video
from configs import pretrain_mmv
from configs import quickstart

_CLASSES = dict(ucf101=101, hmdb51=51)


def get_config(arg: str = '') -> ConfigDict:
  c = finetune_video.get_config()
  c.total_steps = 10_000
  c.window.update(image_size=224, min_crop_area=1.0, max_crop_aspect=1.0,
                  scale_jitter=0.2)
  c.model = dict(name='mmv', dtype='bfloat16', remat='none',
                 video=pretrain_mmv.base().model.video, head=c.model.head)
  c.optim.warmup_steps = 500
  c.evals.test.update(num_windows=10, num_crops=1)
  learn(c, 'ucf101')
  return common.switches(c, arg, *GROUPS)


def learn(c: ConfigDict, name: str) -> None:
  """Sets the dataset and its number of classes."""
  c.data.update(path=f'data/{name}/train_1.csv', label_map=f'data/{name}/labels.csv')
  c.model.head.num_classes = _CLASSES[name]
  c.evals.test.path = f'data/{name}/test_1.csv'


def split(c: ConfigDict, number: int) -> None:
  """Sets the official split."""
  for section in (c.data, c.evals.test):
    section.path = section.path.replace('_1.csv', f'_{number}.csv')


def toy(c: ConfigDict) -> None:
  """Trains on the motions of the toy world."""
  small = pretrain_mmv.get_config('toy')
  c.total_steps, c.batch_size, c.log_every_steps = 60, 32, 20
  c.init_from = 'runs/mmv_toy'
  c.data.update(path=f'{quickstart.ROOT}/train_segments.csv', label='motion',
                label_map='')
  c.window = dict(modalities=('video',), min_crop_area=0.8, **{
      key: small.window[key]
      for key in ('num_frames', 'frame_rate_hz', 'image_size', 'audio_hz')})
  c.augment = {}    # a flip would swap left and right motions
  c.model.dtype = 'float32'
  c.model.video.width = small.model.video.width
  c.model.head.num_classes = 0
  c.optim.update(peak_rate=0.05, warmup_steps=20)
  c.evals.test.update(path=f'{quickstart.ROOT}/test_segments.csv', num_windows=4)
  c.checkpoint.update(every_steps=100, keep=1)


# `toy` has its own classes and its own width.
GROUPS = (
    {'toy': toy, **{name: functools.partial(learn, name=name) for name in _CLASSES}},
    {'toy': toy, **{f'split_{n}': functools.partial(split, number=n) for n in (2, 3)}},
    {'toy': toy, 'tsm_x2': lambda c: c.model.video.update(width=2.0),
     's3d': pretrain_mmv.video_network('s3d_g'),
     'r2plus1d': pretrain_mmv.video_network('r2plus1d_18')})
