"""Evaluates frozen video features on HMDB51: linear classifiers, nearest neighbors.

    python -m vatt_jax.main --config=configs/linear_hmdb51.py \
        --config.init_from=CHECKPOINT --workdir=runs/linear_hmdb51

It is `configs/linear_ucf101.py` for `data/hmdb51` (python -m data.hmdb51) and its three
official splits. Expected top-1 (the paper's, arXiv 2104.11178, Table 8): MBS with the
low-rank classifier 65.2, with the SVM 63.3, MA with the low-rank classifier 63.1.
"""

from ml_collections import ConfigDict

from configs import linear_ucf101


def get_config(arg: str = 'mbs') -> ConfigDict:
  return linear_ucf101.base(arg, 'hmdb51', 'video', num_splits=3)
