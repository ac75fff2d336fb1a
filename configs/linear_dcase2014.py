"""Evaluates GDT's or STiCA's frozen audio features on DCASE-2014.

    python -m vatt_jax.main --config=configs/linear_dcase2014.py:gdt \
        --config.init_from=CHECKPOINT --workdir=runs/linear_dcase2014

It is `configs/linear_esc50.py` for `data/dcase2014` (python -m data.dcase2014), with 60
windows of 1 s (arXiv 2103.10211, appendix 6.1). Expected top-1: STiCA 94 (its Table 6).
"""

from ml_collections import ConfigDict

from configs import linear_esc50
from configs import linear_ucf101


def get_config(arg: str = 'gdt') -> ConfigDict:
  name = arg.partition(',')[0]
  if name not in ('gdt', 'stica'):
    raise ValueError(f'{name!r}: expected gdt or stica, and then its switches, if any')
  c = linear_ucf101.base(arg, 'dcase2014', 'audio', num_splits=1)
  c.window.audio_seconds = 1.0
  c.evals.linear.update(train=('data/dcase2014/train.csv',),
                        test=('data/dcase2014/test.csv',), num_windows=60)
  linear_esc50.max_of_last_map(c)
  return c
