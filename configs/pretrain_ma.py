"""Pre-trains VATT-MA-Medium: MBS with one Transformer for video, audio and text.

    python -m vatt_jax.main --config=configs/pretrain_ma.py --workdir=runs/ma

Only tokenization is specific to a modality. Text has learnable positions, because the
shared Transformer has no relative bias (arXiv 2104.11178, sections 3 and 4.3).
Switches as in `configs/pretrain_mbs.py`: `:release`, `:toy`, `:batch_8192`.
"""

from ml_collections import ConfigDict

from configs import common
from configs import pretrain_mbs


def get_config(arg: str = '') -> ConfigDict:
  c = pretrain_mbs.base()
  for modality in ('video', 'audio', 'text'):
    del c.model[modality]['size']
  c.model.shared = dict(size='medium')
  c.model.text.max_tokens = c.window.max_tokens
  return common.switches(c, arg, *pretrain_mbs.GROUPS)
