"""Evaluates frozen audio features on AudioSet by a small network on top.

    python -m vatt_jax.main --config=configs/linear_audioset.py \
        --config.init_from=CHECKPOINT --workdir=runs/linear_audioset

CHECKPOINT is a workdir of `configs/pretrain_mmv.py` (or of the config named after the
file name, as for `configs/linear_ucf101.py`), or a released checkpoint of MMV. As in
its evaluation (arXiv 2006.16228, section 4.1), the features are those of the last
convolution, of 2 s, and an MLP classifies them. The text of the paper does not state
its size and training: a layer of 512 and 50,000 steps of 512 rows are assumed, on one
random window of each training clip. It expects `data/audioset` (python -m
data.audioset). The features of its two million clips take 16 GB of memory; those of
--config.evals.linear.train=data/audioset/balanced_train.csv take 170 MB. Expected mAP
(the paper's Table 2, all training clips): TSM-ResNet-50 30.6, of twice the width 30.9,
S3D-G 30.3.
"""

from ml_collections import ConfigDict

from configs import linear_esc50


def get_config(arg: str = 'mmv') -> ConfigDict:
  c = linear_esc50.base(arg, 'audioset', num_splits=1)
  del c.evals.neighbours
  c.evals.linear.update(
      train=('data/audioset/train.csv',), test=('data/audioset/eval.csv',),
      multi_labels=('label',), num_epochs=1)
  c.evals.linear.classifiers = dict(mlp=dict(
      hidden_dim=512, steps=50_000, learning_rate=5e-4, batch_size=512, seed=0))
  return c
