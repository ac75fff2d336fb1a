"""Evaluates frozen video features on Kinetics-600 by a linear classifier.

    python -m vatt_jax.main --config=configs/linear_kinetics600.py \
        --config.init_from=CHECKPOINT --workdir=runs/linear_kinetics600

CHECKPOINT is a workdir of `configs/pretrain_mmv.py` (or of the config named after the
file name, as for `configs/linear_ucf101.py`), or a released checkpoint of MMV. The
windows are those of `configs/linear_ucf101.py`: a random one of each training clip, and
ten of each test clip. The text of the paper (arXiv 2006.16228, section 4.3) does not
state the classifier: a linear layer trained by Adam for 50,000 steps of 512 rows is
assumed. It expects `data/kinetics600` (python -m data.kinetics). Expected top-1 (its
Table 2): TSM-ResNet-50 67.8, of twice the width 70.5, S3D-G 68.0.
"""

from ml_collections import ConfigDict

from configs import linear_ucf101


def get_config(arg: str = 'mmv') -> ConfigDict:
  c = linear_ucf101.base(arg, 'kinetics600', 'video', num_splits=1)
  del c.evals.neighbours
  c.evals.linear.update(train=('data/kinetics600/train.csv',),
                        test=('data/kinetics600/val.csv',), rows='windows',
                        num_epochs=1)
  c.evals.linear.classifiers = dict(mlp=dict(
      hidden_dim=0, steps=50_000, learning_rate=5e-4, batch_size=512, seed=0))
  return c
