"""Shared fixtures: a small toy world, the folder of test media, two fake devices."""

import gc
import importlib.metadata
import os
import pathlib
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))    # data/ and configs/ are not installed

# Most of the time is spent compiling, so optimization is off, and compiled programs are
# cached for all processes of the tests and the commands that they start.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _COMPILED = tempfile.TemporaryDirectory(prefix='vatt_jax_compiled_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _COMPILED.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
os.environ['XLA_FLAGS'] = ('--xla_backend_optimization_level=0 '
                           '--xla_llvm_disable_expensive_passes=true')
if importlib.metadata.version('jaxlib') < '0.12':    # 0.12 ends at unknown flags
  # The older emitters compile a train step in less than half the time.
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
import jax  # noqa: E402 (reads the variables above)

# Batches are split over two devices, except in the commands that tests start.
jax.config.update('jax_num_cpu_devices', 2)


# A compiled program takes three memory mappings or more, and Linux ends a process that
# asks for more than 65,530.
_MAX_MAPPINGS = 30_000


@pytest.fixture(autouse=True)
def few_mappings():
  """Drops compiled programs after a test if the process holds too many of them."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > _MAX_MAPPINGS:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope='session')
def toy_world(tmp_path_factory):
  """Returns the folder of a toy world with 24 training clips and 16 test clips."""
  from data import toy_world
  folder = tmp_path_factory.mktemp('data') / 'toy_world'
  toy_world.build(folder, seed=1, train_clips=24, test_clips=16)
  return folder


@pytest.fixture(scope='session')
def shared():
  """Returns the folder of real media and reference outputs outside the project."""
  folder = ROOT.parent / 'shared'
  if not folder.is_dir():
    pytest.skip(f'{folder} is absent: it holds the reference data of this test')
  return folder
