"""Models: a table from a config's model name to its builder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from vatt_jax.config import call
from vatt_jax.config import choose
from vatt_jax.config import Settings
from vatt_jax.models import build
from vatt_jax.models.multimodal import MultimodalModel

__all__ = ['MODELS', 'MultimodalModel', 'from_config']

# The keys of the config's section are the builder's arguments; `device` is one more.
MODELS: dict[str, Callable[..., MultimodalModel]] = {'vatt': build.build_model}


def from_config(section: Settings, device: jax.Device | None = None) -> MultimodalModel:
  """Builds the model of a config's section `model`.

  Args:
    section: `name`, a key of `MODELS`, by default 'vatt', and the builder's arguments.
    device: the device that the model will run on; None for this machine's.

  Raises:
    UserError: names the key that is unknown, missing or out of range.
  """
  def make(name: str = 'vatt', **fields: Any) -> MultimodalModel:
    return call('model', choose(MODELS, name), fields, device=device)
  return call('model', make, section)
