"""Trains the quickstart with one Transformer for all modalities (VATT, section 3).

    python -m vatt_jax.main --config=configs/quickstart_agnostic.py

Only tokenization is specific to a modality. Text has learnable positions, because the
shared Transformer has no relative bias.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
  c = quickstart.get_config()
  tower = ('width', 'depth', 'num_heads', 'mlp_dim')
  shared = {key: c.model.video[key] for key in tower}
  for modality in ('video', 'audio', 'text'):
    for key in tower:
      del c.model[modality][key]
  c.model.shared = shared
  c.model.text.max_tokens = c.window.max_tokens
  return c
