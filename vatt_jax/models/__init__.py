"""Models: a table from a config's model name to its class."""

from __future__ import annotations

from collections.abc import Callable

import jax

from vatt_jax import config
from vatt_jax.models.deflation import Deflation
from vatt_jax.models.mmv import Mmv
from vatt_jax.models.multimodal import MultimodalModel
from vatt_jax.models.vatt import Vatt

__all__ = ['MODELS', 'Deflation', 'Mmv', 'MultimodalModel', 'Vatt', 'family',
           'from_config']

MODELS: dict[str, Callable[..., MultimodalModel]] = {
    'vatt': Vatt, 'mmv': Mmv, 'deflation': Deflation}
_DEFAULT = 'vatt'


def from_config(section: config.Settings, device: jax.Device | None = None
                ) -> MultimodalModel:
  """Builds the model of a config's section `model`.

  Args:
    section: `name`, a key of `MODELS`, by default 'vatt', and the model's arguments.
    device: the device that the model will run on; None for this machine's.

  Raises:
    UserError: names the key that is unknown, missing or out of range.
  """
  return config.build('model', MODELS, {'name': _DEFAULT, **section}, device=device,
                      parent=None, name=None)    # the last two are linen's


def family(section: config.Settings) -> type[MultimodalModel]:
  """Returns the class of a section `model`, without building it.

  Raises:
    UserError: the name is unknown.
  """
  with config.naming('model'):
    kind = config.choose(MODELS, section.get('name', _DEFAULT))
  return kind if isinstance(kind, type) else MultimodalModel
