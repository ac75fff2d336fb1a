"""Fine-tunes a video tower on the images of ImageNet (VATT, sections 4.3 and 4.4.3).

    python -m vatt_jax.main --config=configs/finetune_image.py \
        --config.init_from=runs/bbs --workdir=runs/imagenet

Trains 50 epochs of 1,281,167 images in batches of 512. An image is repeated to fill the
patch in time. It starts from a workdir of vatt_jax or from a released checkpoint, and
expects `data/imagenet/train.csv` (docs/data.md). Switches after the file name, joined
by commas:

    medium, large, ma    the tower (default: base)
    release              a checkpoint of the released code: its dropout, positions and
                         gradient clipping
    toy                  the toy world's shapes, on a laptop, from the quickstart's run
                         in runs/quickstart

Expected top-1 / top-5 (the paper's Table 6): Base 78.7 / 93.9, from scratch 64.7 /
83.9.
"""

from ml_collections import ConfigDict

from configs import common
from configs import finetune_video


def get_config(arg: str = '') -> ConfigDict:
  c = finetune_video.get_config('base')
  c.total_steps = 50 * 1_281_167 // 512
  c.batch_size = 512
  c.data.update(path='data/imagenet/train.csv', label_map='data/imagenet/labels.csv')
  c.window.update(num_frames=1, image_size=384)
  c.model.head.num_classes = 1000
  c.optim.update(peak_rate=0.08, warmup_steps=0)
  c.evals.test.update(path='data/imagenet/val.csv', num_windows=1, num_crops=1)
  return common.switches(c, arg, *GROUPS)


def toy(c: ConfigDict) -> None:
  """Trains on the shapes of the toy world, one frame of each video."""
  common.toy_tower(c, 'video')
  c.data.label = 'shape'
  c.window.num_frames = 1
  c.window.min_crop_area = 0.8
  c.model.video.drop_token_rate = 0.0
  c.optim.update(peak_rate=0.05, warmup_steps=20)


# `toy` has its own tower.
GROUPS = (
    {'toy': toy, 'medium': finetune_video.size('medium'),
     'large': finetune_video.size('large'), 'ma': common.agnostic},
    {'release': finetune_video.release})
