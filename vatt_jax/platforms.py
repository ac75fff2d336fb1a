"""Checks that JAX can use the accelerator that it is told to use."""

from __future__ import annotations

import jax

from vatt_jax.errors import UserError

_EXTRAS = {'cuda': 'cuda', 'gpu': 'cuda', 'tpu': 'tpu'}    # of setup.py


def check() -> None:
  """Initialises the devices that JAX_PLATFORMS asks for.

  Raises:
    UserError: there are none; names the platform, and which one there is.
  """
  asked = jax.config.jax_platforms
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as e:    # the latter without CUDA's plugin
    reason = str(e).split(' (set JAX_PLATFORMS')[0] or 'its plugin is not installed'
    if not asked:
      raise UserError(f'JAX cannot use the devices of this machine: {reason}') from e
    jax.config.update('jax_platforms', '')    # to see what there is
    found = jax.default_backend()
    jax.config.update('jax_platforms', asked)
    install = ''.join(f"install the extra for it, pip install -e '.[{extra}]', or "
                      for name, extra in _EXTRAS.items() if name in asked)
    raise UserError(
        f'JAX_PLATFORMS={asked}: JAX finds no such device ({reason}), but {found}; '
        f'{install}set JAX_PLATFORMS={found}') from e
