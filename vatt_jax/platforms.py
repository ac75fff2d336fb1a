"""Checks that JAX can use the requested accelerator."""

from __future__ import annotations

import jax

from vatt_jax.errors import UserError

_EXTRAS = {'cuda': 'cuda', 'gpu': 'cuda', 'tpu': 'tpu'}    # in setup.py


def check() -> None:
  """Initializes the devices that JAX_PLATFORMS requests.

  Raises:
    UserError: no such device; names the platform, and the one that is available.
  """
  requested = jax.config.jax_platforms
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as e:    # the latter without CUDA's plugin
    reason = str(e).split(' (set JAX_PLATFORMS')[0] or 'its plugin is not installed'
    if not requested:
      raise UserError(f'JAX cannot use the devices of this machine: {reason}') from e
    jax.config.update('jax_platforms', '')    # lets JAX choose an available backend
    available = jax.default_backend()
    jax.config.update('jax_platforms', requested)
    install = ''.join(f"install the extra for it, pip install -e '.[{extra}]', or "
                      for name, extra in _EXTRAS.items() if name in requested)
    raise UserError(
        f'JAX_PLATFORMS={requested}: JAX finds no such device ({reason}); available: '
        f'{available}; {install}set JAX_PLATFORMS={available}') from e
