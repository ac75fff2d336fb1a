"""Fine-tunes GDT's or STiCA's video network on HMDB51 or UCF101 (appendix A.3).

    python -m vatt_jax.main --config=configs/finetune_gdt.py:ucf101,fold_2 \
        --config.init_from=runs/gdt --workdir=runs/gdt_ucf101_2

Trains the whole network on an official fold for 12 epochs, in each of which a video is
shown ten times, and evaluates 10 windows of 3 crops. It starts from a workdir of
`configs/pretrain_gdt.py` or from a converted checkpoint of the released code, and
expects `data/hmdb51` or `data/ucf101` (docs/data.md). Switches after the file name,
joined by commas, at most one of each line:

    hmdb51, ucf101        the dataset (default: hmdb51)
    fold_2, fold_3        the official fold (default: the first)
    stica                 a run of `configs/pretrain_stica.py`: windows of 60 frames,
                          and its pooling
    release               as in the released code, the body learns at a tenth of the
                          head's rate; with stica the pooling is that of its `release`
    toy                   the toy world's motions, on a laptop, from the run of
                          `configs/pretrain_gdt.py:toy` in runs/gdt_toy

The score of a video is the mean of its windows' logits, and a training crop is 128 of
128 to 160 pixels, as in the released code. The paper averages probabilities. Expected
top-1, mean of three folds: GDT (arXiv 2003.04298, Table 4) HMDB51 62.3, UCF101 90.9;
STiCA (arXiv 2103.10211, Table 4) 67.0 and 93.1.
"""

import functools

from ml_collections import ConfigDict

from configs import common
from configs import finetune_video
from configs import pretrain_gdt
from configs import pretrain_stica
from configs import quickstart

# Dataset -> number of classes, and steps of an epoch: ten windows of each video of fold
# 1, in batches of 32.
_SETS = dict(hmdb51=(51, 1115), ucf101=(101, 2980))


def get_config(arg: str = '') -> ConfigDict:
  c = finetune_video.get_config()
  c.batch_size = 32
  trained = pretrain_gdt.get_config()
  c.window = dict(num_frames=32, frame_rate_hz=30.0, image_size=128, audio_hz=24_000,
                  modalities=('video',), short='loop', scale_jitter=0.11,
                  scale_jitter_rate=1.0, crop_share=128 / 144)
  c.augment = {key: value for key, value in trained.augment.items()
               if key not in ('copies', 'volume')}
  c.model = dict(name='mmv', dtype='bfloat16', remat='none', video=trained.model.video,
                 head=dict(c.model.head))
  c.losses = dict(label=dict(name='softmax', smoothing=0.0))
  c.optim = dict(name='sgd', momentum=0.9, weight_decay=5e-3, rules=())
  c.evals.test.update(num_windows=10, num_crops=3)
  learn(c, 'hmdb51')
  return common.switches(c, arg, *GROUPS)


def learn(c: ConfigDict, name: str) -> None:
  """Sets the dataset, its number of classes and the length of its epochs."""
  num_classes, epoch_steps = _SETS[name]
  c.data.update(path=f'data/{name}/train_1.csv', label_map=f'data/{name}/labels.csv')
  c.model.head.num_classes = num_classes
  c.evals.test.path = f'data/{name}/test_1.csv'
  schedule(c, epoch_steps)


def schedule(c: ConfigDict, epoch_steps: int) -> None:
  """Warms up for 2 epochs, and multiplies the rate by 0.05 at epochs 6 and 10 of 12."""
  c.total_steps = 12 * epoch_steps
  c.optim.update(decay='multi_step', start_rate=0.0025, peak_rate=0.02,
                 final_rate=0.02 * 0.05 ** 2, warmup_steps=2 * epoch_steps,
                 drop_steps=(6 * epoch_steps, 10 * epoch_steps))


def fold(c: ConfigDict, number: int) -> None:
  """Sets the official fold."""
  for section in (c.data, c.evals.test):
    section.path = section.path.replace('_1.csv', f'_{number}.csv')


def stica(c: ConfigDict) -> None:
  """Takes the windows and the pooling of STiCA."""
  c.window.num_frames = 60
  c.model.video.pooling = pretrain_stica.get_config().model.video.pooling


def release(c: ConfigDict) -> None:
  """Follows the released code."""
  c.optim.rules = (('head/', 1.0), ('.*', 0.1))
  if 'pooling' in c.model.video:
    c.model.video.pooling.variant = 'release'


def toy(c: ConfigDict) -> None:
  """Trains on the motions of the toy world, 60 steps of 32 clips."""
  small = pretrain_gdt.get_config('toy')
  c.batch_size, c.log_every_steps, c.init_from = 32, 20, 'runs/gdt_toy'
  c.data.update(path=f'{quickstart.ROOT}/train_segments.csv', label='motion',
                label_map='')
  c.window = dict(modalities=('video',), **{
      key: small.window[key] for key in ('num_frames', 'frame_rate_hz', 'image_size',
                                         'audio_hz', 'min_crop_area')})
  c.augment = {}    # a flip would swap left and right motions
  c.model.dtype = 'float32'
  # Not by `update`, which would keep the keys of R(2+1)D.
  c.model.video = dict(small.model.video, drop_token_rate=0.0)
  c.model.head.num_classes = 0
  c.evals.test.update(path=f'{quickstart.ROOT}/test_segments.csv', num_windows=4,
                      num_crops=1)
  c.checkpoint.update(every_steps=100, keep=1)
  schedule(c, 5)


# `toy` has its own classes and its own tower.
GROUPS = (
    {'toy': toy, **{name: functools.partial(learn, name=name) for name in _SETS}},
    {'toy': toy, **{f'fold_{n}': functools.partial(fold, number=n) for n in (2, 3)}},
    {'toy': toy, 'stica': stica}, {'release': release})
