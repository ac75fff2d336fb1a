"""Fine-tuning a video tower on Kinetics or Moments in Time (VATT, section 4.3).

    python -m vatt_jax.main --config=configs/finetune_video.py:k400 \
        --config.init_from=runs/mbs --workdir=runs/k400

100k steps of 64 clips, the whole tower trained; evaluated on 4 windows of 3 crops.
Videos shorter than a window repeat, as in the released code, in training too. It
starts from a workdir of ours or from a released checkpoint, and expects manifests such
as `data/kinetics400/train.csv` (docs/data.md). Words after the file's name, joined by
commas, one of each line:

    k400, k600, k700, moments           what is learnt (default: k400)
    medium, base, large, ma             the tower (default: medium)
    drop_token_25, _50, _75             DropToken, as in Table 14; and for that table
    32x224, 64x224                      smaller pictures, more of them
    release                             from a checkpoint of the released code: its
                                        dropout, positions and clipping of gradients;
                                        DropToken stays off
    toy                                 the toy world's motions, on a laptop, from the
                                        quickstart's run in runs/quickstart

The paper's top-1 / top-5, in percent:

                       Base         Medium       Large        MA-Medium
    k400 (Table 2)     79.6 / 94.9  81.1 / 95.6  82.1 / 95.5  79.9 / 94.9
    k600 (Table 3)     80.5 / 95.5  82.4 / 96.1  83.6 / 96.6  80.8 / 95.5
    moments (Table 4)  38.7 / 67.5  39.5 / 68.2  41.1 / 67.7  37.8 / 65.9

and of k400 from scratch 26.4 / 51.8 (section 4.4.1); of k400 with DropToken of 75, 50
and 25 % 79.3, 80.2 and 80.7, at 32x224 79.9, at 64x224 80.8 (Table 14).
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

from ml_collections import ConfigDict

from configs import quickstart
from vatt_jax.config import nearest

# Folder of data/, number of classes.
_SETS = {'k400': ('kinetics400', 400), 'k600': ('kinetics600', 600),
         'k700': ('kinetics700', 700), 'moments': ('moments', 339)}


def get_config(arg: str = '') -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 100_000
  c.batch_size = 64
  c.num_microbatches = 1
  c.log_every_steps = 100
  c.mesh = dict(data=-1, fsdp=1, model=1)
  c.init_from = ''
  c.average_decay = 0.0

  c.data = dict(path='', label='label', label_map='', max_bad_fraction=0.1)
  # Stride 2 at 25 fps.
  c.window = dict(num_frames=32, frame_rate_hz=12.5, image_size=320, audio_hz=48_000,
                  min_crop_area=0.08, max_crop_aspect=2.0, modalities=('video',),
                  short='loop')
  c.augment = dict(flip_rate=0.5, color_rate=0.8, brightness=32 / 255, saturation=0.4,
                   contrast=0.4, hue=0.2)
  c.model = dict(
      variant='paper', dtype='bfloat16',
      video=dict(size='medium', patch=(4, 16, 16), drop_token_rate=0.0),
      head=dict(name='classifier', num_classes=0, dropout_rate=0.0))
  c.losses = dict(label=dict(name='softmax', smoothing=0.1))
  c.optim = dict(name='sgd', momentum=0.9, peak_rate=0.005, final_rate=0.0,
                 warmup_steps=2500, decay='half_cosine', clip_norm=0.0,
                 clip_replicas=1, rules=(), layer_decay=1.0)
  c.evals = dict(test=dict(name='classify', every_steps=0, path='', num_windows=4,
                           num_crops=3))
  c.checkpoint = dict(every_steps=1000, keep=3)
  # Figure 3.
  c.figures = dict(num_classes=100, clips_per_class=50, beside='', runs='', measure='')
  learn(c, 'k400')
  return switch(c, arg, *GROUPS)


def learn(c: ConfigDict, name: str) -> None:
  """Sets what is learnt."""
  folder, num_classes = _SETS[name]
  c.data.update(path=f'data/{folder}/train.csv', label_map=f'data/{folder}/labels.csv')
  c.model.head.num_classes = num_classes
  c.evals.test.path = f'data/{folder}/val.csv'


def agnostic(c: ConfigDict) -> None:
  """The Medium tower that was trained for all modalities."""
  (modality,) = c.window.modalities
  del c.model[modality]['size']
  c.model.shared = dict(size='medium')


def size(name: str) -> Callable[[ConfigDict], None]:
  return lambda c: c.model.video.update(size=name)


def drop_token(percent: int) -> Callable[[ConfigDict], None]:
  return lambda c: c.model.video.update(drop_token_rate=percent / 100)


def release(c: ConfigDict) -> None:
  """What the released code does otherwise (docs/decisions/0003-two-readings.md)."""
  c.model.variant = 'release'
  c.model.head.dropout_rate = 0.5
  clip_on_replicas(c)


def clip_on_replicas(c: ConfigDict) -> None:
  """Clips gradients as the released code does, replica by replica.

  Nothing records on how many replicas the published checkpoints were fine-tuned. 64 is
  assumed, the most over which the paper's 64 clips a step can be split. A replica here
  is a part of the batch, one after the other, so fewer replicas keep more devices busy.
  """
  c.optim.update(clip_norm=0.75, clip_replicas=min(64, c.batch_size))


def toy(c: ConfigDict) -> None:
  """Motions of the toy world."""
  toy_tower(c, 'video')
  c.data.label = 'motion'
  c.model.video.drop_token_rate = 0.0
  c.window.min_crop_area = 0.8
  c.optim.update(peak_rate=0.05, warmup_steps=20)


def toy_tower(c: ConfigDict, modality: str) -> None:
  """The quickstart's tower, data and sizes, and 60 steps of 32 clips.

  So few, for after some hundreds all of this is learnt from scratch as well.
  """
  small = quickstart.get_config()
  c.total_steps, c.batch_size, c.log_every_steps = 60, 32, 20
  c.init_from = 'runs/quickstart'
  c.data.update(path=f'{quickstart.ROOT}/train_segments.csv', label_map='')
  c.window = dict(modalities=(modality,), **{
      key: small.window[key]
      for key in ('num_frames', 'frame_rate_hz', 'image_size', 'audio_hz')})
  c.augment = {}    # its motions tell left from right
  c.model = dict(variant=c.model.variant, dtype='float32', head=c.model.head)
  c.model[modality] = small.model[modality]
  c.model.head.num_classes = 0
  c.optim.clip_norm = 0.75    # helps where so little is trained from scratch
  c.evals.test.update(path=f'{quickstart.ROOT}/test_segments.csv', num_crops=1)
  c.checkpoint.update(every_steps=100, keep=1)


def switch(c: ConfigDict, arg: str, *groups: Mapping[str, Callable[[ConfigDict], Any]]
           ) -> ConfigDict:
  """Changes a recipe as the words after the file's name say, at most one of a group."""
  words = arg.split(',') if arg else []
  switches = {word: change for group in groups for word, change in group.items()}
  for word in words:
    if word not in switches:
      raise ValueError(f'{word!r} after the recipe: {nearest(word, switches)}expected '
                       f'some of {", ".join(switches)}, joined by commas')
  for group in groups:
    chosen = [word for word in words if word in group]
    if len(chosen) > 1:
      raise ValueError(f'{" and ".join(chosen)} after the recipe: expected one of them')
  for word, change in switches.items():
    if word in words:
      change(c)
  return c


# The toy world has its own classes and its own tower.
GROUPS = (
    {'toy': toy, **{name: functools.partial(learn, name=name) for name in _SETS}},
    {'toy': toy, 'medium': size('medium'), 'base': size('base'), 'large': size('large'),
     'ma': agnostic},
    {f'drop_token_{percent}': drop_token(percent) for percent in (25, 50, 75)},
    {'toy': toy, '32x224': lambda c: c.window.update(image_size=224),
     '64x224': lambda c: c.window.update(num_frames=64, image_size=224)},
    {'release': release})
