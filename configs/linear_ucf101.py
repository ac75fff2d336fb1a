"""Frozen video features on UCF101: linear classifiers and nearest neighbours.

    python -m vatt_jax.main --config=configs/linear_ucf101.py \
        --config.init_from=CHECKPOINT --workdir=runs/linear_ucf101

CHECKPOINT is a workdir of `configs/pretrain_mbs.py`, or a checkpoint of the released
code. After the file's name comes which recipe made it, if another, and its switches:

    configs/linear_ucf101.py:ma                of configs/pretrain_ma.py
    configs/linear_ucf101.py:lbs,release       of configs/pretrain_lbs.py:release
    configs/linear_ucf101.py:ablation,WORD     of configs/ablation.py:WORD

It expects `data/ucf101` (python -m data.ucf101). Windows are the paper's for
evaluation, 32 frames of 320 x 320 pixels at 12.5 Hz (arXiv 2104.11178, section 4.3).
Shorter videos repeat, as in MMV's evaluation; with --config.window.short=hold their
last frame is held. Linear classifiers learn and are measured as in MMV, whose pipeline
the paper follows (section 4.4.5): they are fitted to single windows, ten epochs of
random windows, crops and flips; the score of a test clip is the mean over ten windows.
All measures are means over the three official splits. The paper's top-1 (Table 8): MBS
with the low-rank classifier 89.6, with the SVM 89.2, MA with the low-rank classifier
84.4.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections import FieldReference

from configs import ablation
from configs import pretrain_bbs
from configs import pretrain_lbs
from configs import pretrain_ma
from configs import pretrain_mbs
from vatt_jax.config import nearest

# Of the paper (section 4.3).
LOW_RANK = dict(rank=128, sample_rate=0.1, steps=50_000, learning_rate=5e-4,
                batch_size=64, seed=0)
PRETRAINED = dict(mbs=pretrain_mbs, bbs=pretrain_bbs, lbs=pretrain_lbs, ma=pretrain_ma,
                  ablation=ablation)


def get_config(arg: str = 'mbs') -> ConfigDict:
  return recipe(arg, 'ucf101', 'video', num_splits=3)


def recipe(arg: str, dataset: str, modality: str, num_splits: int) -> ConfigDict:
  """Of a data set with the column `label` in official splits, whose mean counts."""
  name, _, switches = arg.partition(',')
  if name not in PRETRAINED:
    raise ValueError(f'{name!r} after the recipe: {nearest(name, PRETRAINED)}expected '
                     f'one of {", ".join(PRETRAINED)}, and perhaps a comma and its '
                     'switches')
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 0    # nothing of the model is trained
  c.batch_size = 32
  c.log_every_steps = 1
  c.init_from = ''

  c.data = dict(max_bad_fraction=0.1)
  c.window = dict(num_frames=32, frame_rate_hz=12.5, image_size=320, audio_hz=48_000,
                  modalities=(modality,),
                  short='loop' if modality == 'video' else 'hold')
  model = PRETRAINED[name].get_config(switches).model
  c.model = {k: v for k, v in model.items()
             if k in (modality, 'shared', 'variant', 'dtype')}

  splits = range(1, num_splits + 1)
  train, test = (tuple(f'data/{dataset}/{side}_{i}.csv' for i in splits)
                 for side in ('train', 'test'))
  c.evals = evaluations(
      dict(label=modality), train=train, test=test, num_windows=10,
      classifiers=dict(low_rank=LOW_RANK, svm=dict(C=1e-3)))
  c.evals.linear.update(rows='windows', num_epochs=10, seed=0)
  return c


def evaluations(labels: Mapping[str, str], classifiers: Mapping[str, dict],
                **features: Any) -> dict[str, dict]:
  """Of the same features; what is set for one evaluator is set for the other."""
  features = {key: FieldReference(value) for key, value in (
      dict(cache='runs/features', **features)).items()}
  return dict(
      linear=dict(name='linear_probe', every_steps=0, labels=labels,
                  classifiers=classifiers, **features),
      neighbours=dict(name='neighbours', every_steps=0, labels=labels, ks=(1, 5, 20),
                      shots=(1, 5, 20), num_draws=10, seed=0, **features))
