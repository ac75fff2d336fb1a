"""Pre-trains VATT-LBS: MBS with a Large Transformer for video (2104.11178, Table 1).

    python -m vatt_jax.main --config=configs/pretrain_lbs.py --workdir=runs/lbs

Switches as in `configs/pretrain_mbs.py`: `:release`, `:toy`, `:batch_8192`.
"""

from ml_collections import ConfigDict

from configs import common
from configs import pretrain_mbs


def get_config(arg: str = '') -> ConfigDict:
  c = pretrain_mbs.base()
  c.model.video.size = 'large'
  return common.switches(c, arg, *pretrain_mbs.GROUPS)
