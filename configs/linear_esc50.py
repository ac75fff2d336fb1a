"""Evaluates frozen audio features on ESC-50: linear classifiers, nearest neighbors.

    python -m vatt_jax.main --config=configs/linear_esc50.py \
        --config.init_from=CHECKPOINT --workdir=runs/linear_esc50

It is `configs/linear_ucf101.py` for `data/esc50` (python -m data.esc50) and its five
official folds. Windows are those of pre-training, 3.2 s at 48 kHz, because the paper
does not change the audio input for evaluation (arXiv 2104.11178, section 4.3). Expected
top-1 (the paper's Table 8): MBS with the low-rank classifier 84.7, with the SVM 82.5,
MA with the low-rank classifier 81.2. MMV's features are those of the last convolution,
of 2 s (arXiv 2006.16228, section 4.1). Expected (its Table 2): TSM-ResNet-50 86.4, of
twice the width 88.9, S3D-G 87.7. GDT's and STiCA's are the largest of three steps of
the last map, of ten windows of 2 s (arXiv 2103.10211, appendix 6.1). Expected: STiCA
81.1.
"""

from ml_collections import ConfigDict

from configs import linear_ucf101


def get_config(arg: str = 'mbs') -> ConfigDict:
  return base(arg, 'esc50', num_splits=5)


def base(arg: str, dataset: str, num_splits: int) -> ConfigDict:
  """Returns the config of a dataset of audio; see `linear_ucf101.base`."""
  c = linear_ucf101.base(arg, dataset, 'audio', num_splits)
  c.window.frame_rate_hz = 10.0    # 3.2 s
  name = arg.partition(',')[0]
  if name in ('mmv', 'gdt', 'stica'):
    c.window.audio_seconds = 2.0
  if name == 'mmv':
    c.model.audio.last_conv = True
  elif name in ('gdt', 'stica'):
    max_of_last_map(c)
  return c


def max_of_last_map(c: ConfigDict) -> None:
  """Takes the features in which GDT and STiCA classify audio."""
  c.model.audio.pooling = dict(name='max', steps=3, stride=2)
