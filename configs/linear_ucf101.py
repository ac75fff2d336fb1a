"""Evaluates frozen video features on UCF101: linear classifiers, nearest neighbors.

    python -m vatt_jax.main --config=configs/linear_ucf101.py \
        --config.init_from=CHECKPOINT --workdir=runs/linear_ucf101

CHECKPOINT is a workdir of `configs/pretrain_mbs.py`, or a checkpoint of the released
code. For a checkpoint of another config, add that config and its switches after the
file name:

    configs/linear_ucf101.py:ma                configs/pretrain_ma.py
    configs/linear_ucf101.py:lbs,release       configs/pretrain_lbs.py:release
    configs/linear_ucf101.py:ablation,SWITCH   configs/ablation.py:SWITCH
    configs/linear_ucf101.py:mmv,s3d           configs/pretrain_mmv.py:s3d
    configs/linear_ucf101.py:gdt,j             configs/pretrain_gdt.py:j
    configs/linear_ucf101.py:stica             configs/pretrain_stica.py

It expects `data/ucf101` (python -m data.ucf101). Windows are the paper's for
evaluation, 32 frames of 320 x 320 pixels at 12.5 Hz (arXiv 2104.11178, section 4.3).
Shorter videos are repeated, as in MMV's evaluation. With --config.window.short=hold,
their last frame is repeated instead. Linear classifiers follow MMV's pipeline, as in
the paper (section 4.4.5): they are trained on single windows, for ten epochs of random
windows, crops and flips; the score of a test clip is the mean over ten windows. All
metrics are means over the three official splits. Expected top-1 (the paper's Table 8):
MBS with the low-rank classifier 89.6, with the SVM 89.2, MA with the low-rank
classifier 84.4.

For GDT and STiCA windows are 32 or 60 frames of 128 x 128 pixels at 30 Hz, and a linear
layer is trained by Adam on ten windows spread over each video. The number of steps,
10,000, is assumed. Expected: STiCA 77.0 (arXiv 2103.10211); few-shot, fold 1, GDT with
1 and 5 videos a class 26.7 and 44.6 (arXiv 2003.04298, Table 3). Retrieval, R@k, is
`configs/class_retrieval.py`.
"""

from ml_collections import ConfigDict

from configs import ablation
from configs import common
from configs import pretrain_bbs
from configs import pretrain_gdt
from configs import pretrain_lbs
from configs import pretrain_ma
from configs import pretrain_mbs
from configs import pretrain_mmv
from configs import pretrain_stica
from vatt_jax.config import nearest

PRETRAINED = dict(mbs=pretrain_mbs, bbs=pretrain_bbs, lbs=pretrain_lbs, ma=pretrain_ma,
                  ablation=ablation, mmv=pretrain_mmv, gdt=pretrain_gdt,
                  stica=pretrain_stica)


def get_config(arg: str = 'mbs') -> ConfigDict:
  return base(arg, 'ucf101', 'video', num_splits=3)


def base(arg: str, dataset: str, modality: str, num_splits: int) -> ConfigDict:
  """Returns the config of a dataset with column `label` and official splits."""
  name, _, switches = arg.partition(',')
  if name not in PRETRAINED:
    raise ValueError(f'{name!r}: unknown config after the file name; '
                     f'{nearest(name, PRETRAINED)}expected one of '
                     f'{", ".join(PRETRAINED)}, and then its switches, if any')
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 0    # the model is not trained
  c.batch_size = 32
  c.log_every_steps = 1
  c.init_from = ''

  c.data = dict(max_bad_fraction=0.1)
  c.window = dict(num_frames=32, frame_rate_hz=12.5, image_size=320, audio_hz=48_000,
                  modalities=(modality,),
                  short='loop' if modality == 'video' else 'hold')
  model = PRETRAINED[name].get_config(switches).model
  if modality not in model:
    raise ValueError(f'{arg!r}: has no {modality}; expected a config and switches that '
                     f'train {modality}')
  c.model = {k: v for k, v in model.items()
             if k in (modality, 'shared', 'variant', 'dtype', 'name')}

  splits = range(1, num_splits + 1)
  train, test = (tuple(f'data/{dataset}/{side}_{i}.csv' for i in splits)
                 for side in ('train', 'test'))
  c.evals = common.linear_evaluations(
      dict(label=modality), train=train, test=test, num_windows=10,
      classifiers=dict(low_rank=common.LOW_RANK, svm=dict(C=1e-3)))
  c.evals.linear.update(rows='windows', num_epochs=10, seed=0)
  if name == 'mmv':
    c.window.image_size = 224
    del c.evals.linear.classifiers.low_rank
  elif name in ('gdt', 'stica'):
    c.window.update(num_frames=60 if name == 'stica' else 32, frame_rate_hz=30.0,
                    image_size=128, audio_hz=24_000)
    c.evals.linear.classifiers = dict(mlp=dict(
        hidden_dim=0, learning_rate=1e-4, weight_decay=5e-4, batch_size=512,
        steps=10_000, seed=0))
    c.evals.linear.rows = 'spread'
  return c
