"""Evaluates MMV's video network, deflated, on images (arXiv 2006.16228, section 4.4).

    python -m vatt_jax.main --config=configs/linear_image.py \
        --config.init_from=CHECKPOINT --workdir=runs/linear_voc2007

CHECKPOINT is a workdir of `configs/pretrain_mmv.py`, or a released checkpoint of MMV;
for deflation with training, a workdir of `configs/deflate_mmv.py`. The features are
frozen, and an SVM classifies them: on PASCAL VOC2007, several classes an image, from
`data/voc2007` (python -m data.voc2007). Switches after the file name, joined by commas:

    imagenet           ImageNet, by logistic regression, from `data/imagenet`
    s3d, tsm_x2        the network, as in `configs/pretrain_mmv.py` (default: tsm)
    inflated           the network of videos, for a video of 32 equal frames

The paper does not state the classifiers' settings. Expected mAP of VOC2007, top-1 and
top-5 of ImageNet (its Table 3): TSM-ResNet-50 deflated without training 34.4, 10.9,
24.6; inflated input 75.7, 51.5, 77.3; S3D-G 41.8, 20.7, 40.5; 72.1, 46.7, 72.5.
"""

from ml_collections import ConfigDict

from configs import common
from configs import pretrain_mmv


def get_config(arg: str = '') -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 0    # the model is not trained
  c.batch_size = 32
  c.log_every_steps = 1
  c.init_from = ''
  c.data = dict(max_bad_fraction=0.1)
  c.window = dict(num_frames=1, frame_rate_hz=10.0, image_size=224, audio_hz=48_000,
                  modalities=('video',))
  model = pretrain_mmv.base().model
  c.model = dict(name='mmv', dtype=model.dtype, video=dict(model.video, still=True))
  c.evals = dict(linear=dict(
      name='linear_probe', every_steps=0, train='data/voc2007/trainval.csv',
      test='data/voc2007/test.csv', labels=dict(label='video'),
      multi_labels=('label',), num_windows=1, cache='runs/features',
      classifiers=dict(svm=dict(C=1e-3))))
  return common.switches(c, arg, *GROUPS)


def imagenet(c: ConfigDict) -> None:
  """Classifies the images of ImageNet."""
  c.evals.linear.update(train='data/imagenet/train.csv', test='data/imagenet/val.csv',
                        multi_labels=())
  c.evals.linear.classifiers = dict(logistic=dict())


def tsm_x2(c: ConfigDict) -> None:
  """Takes the network of twice the width."""
  c.model.video.width = 2.0


def inflated(c: ConfigDict) -> None:
  """Repeats each image in place of deflating the network."""
  c.model.video.still = False
  c.window.num_frames = 32


NETWORKS = {'s3d': pretrain_mmv.video_network('s3d_g'), 'tsm_x2': tsm_x2}
GROUPS = (NETWORKS, {'imagenet': imagenet}, {'inflated': inflated})
