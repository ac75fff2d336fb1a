"""Deflates MMV's network of video with training (arXiv 2006.16228, sections 3.2, 4.4).

    python -m vatt_jax.main --config=configs/deflate_mmv.py \
        --config.init_from=CHECKPOINT --workdir=runs/mmv_deflated

CHECKPOINT is a workdir of `configs/pretrain_mmv.py`, or a released checkpoint of MMV.
Only scales and offsets of batch norm learn, so that the deflated network gives an image
the features that the network of video gives to 32 copies of it. `train/loss` is the
mean absolute difference, at step 1 that of deflation without training. Then

    python -m vatt_jax.main --config=configs/linear_image.py \
        --config.init_from=runs/mmv_deflated --workdir=runs/linear_voc2007

evaluates it. Images are random frames of HowTo100M (`data/howto100m`). The paper takes
100 epochs of 45,981 frames; here every step draws new ones, and their number is the
paper's. It does not state the batch size, so 256 is assumed. Moving statistics stay
those of the checkpoint. Switches after the file name, joined by commas:

    s3d, tsm_x2    the network, as in `configs/pretrain_mmv.py` (default: tsm)
    toy            frames of the toy world, from the run of
                   `configs/pretrain_mmv.py:toy` in runs/mmv_toy

Expected in linear evaluation, mAP of VOC2007, top-1 and top-5 of ImageNet (the paper's
Table 3): TSM-ResNet-50 74.8, 50.4, 76.0; twice the width 77.4, 56.6, 81.4; S3D-G 71.4,
45.2, 71.3.
"""

from ml_collections import ConfigDict

from configs import common
from configs import linear_image
from configs import pretrain_mmv

_FRAMES, _EPOCHS = 45_981, 100


def get_config(arg: str = '') -> ConfigDict:
  c = linear_image.get_config()
  c.batch_size = 256
  c.total_steps = _EPOCHS * _FRAMES // c.batch_size
  c.log_every_steps = 50
  c.data.path = 'data/howto100m/train.csv'
  c.augment = {}
  c.model = dict(name='deflation', dtype=c.model.dtype, num_frames=32,
                 video=pretrain_mmv.base().model.video)
  c.losses = dict(video=dict(name='l1'))
  c.optim = dict(
      peak_rate=1e-2, final_rate=1e-5, warmup_steps=0, decay='multi_step',
      rules=((r'backbones_video/(.*/)?norm\w*/(scale|bias)$', 1.0), ('.*', 0.0)))
  c.evals = {}
  c.checkpoint = dict(every_steps=1000, keep=2)
  c = common.switches(c, arg, *GROUPS)
  c.optim.drop_steps = tuple(epoch * c.total_steps // _EPOCHS for epoch in (30, 60, 90))
  return c


def toy(c: ConfigDict) -> None:
  """Fits the network of the toy world to its frames."""
  small = pretrain_mmv.get_config('toy')
  c.total_steps, c.batch_size, c.log_every_steps = 100, 32, 20
  c.init_from = 'runs/mmv_toy'
  c.data.path = small.data.path
  c.window.image_size = small.window.image_size
  c.model.dtype = 'float32'
  c.model.num_frames = small.window.num_frames
  c.model.video.width = small.model.video.width


GROUPS = (linear_image.NETWORKS, {'toy': toy})
