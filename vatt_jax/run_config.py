"""Compares the config of a workdir with a new one, extends its run, and writes it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
from typing import Any

from absl import logging

from vatt_jax import checkpoint
from vatt_jax.config import Settings
from vatt_jax.distributed import hosts
from vatt_jax.errors import UserError
from vatt_jax.inputs import labels
from vatt_jax.inputs.reader import Reader

# Keys that set the length of a run.
LENGTH = ('total_steps', 'extended')
# Keys that may change during a run: figures, and settings that do not change results.
_MAY_CHANGE = ('figures.', 'mesh', 'sharding_rules', 'model.attention', 'model.remat',
               'model.scan_layers')
# Keys that older configs lack -> the values that reproduce the older behavior.
_ABSENT = {'optim.clip_replicas': 1, 'window.short': 'hold'}


def extended(config: Settings, workdir: pathlib.Path, extend: bool) -> Settings:
  """Returns the config with `extended`, the extensions of its run.

  Each extension is a pair: the step reached, and `total_steps` until then. The
  workdir's config keeps them, so that an extended run resumes without the flag.

  Raises:
    UserError: no run to extend, or `total_steps` is not larger.
  """
  exists = (workdir / checkpoint.CONFIG_FILE).exists()
  run_config = checkpoint.read_config(workdir) if exists else {}
  old, new = run_config.get('total_steps', 0), config.get('total_steps', 0)
  history = run_config.get('extended', [])
  if extend and new != old:
    steps = checkpoint.steps(workdir)
    if not (old and steps):
      raise UserError(f'--extend: {workdir} holds no checkpoint of a run to extend; '
                      'remove the flag')
    if new < old:
      raise UserError(f'--extend: config.total_steps={new}: expected more than '
                      f'{old}, the total_steps of the run in {workdir}')
    history = [*history, [steps[-1], old]]
    logging.info('Extending the run from step %d: the rest of its learning-rate '
                 'schedule, up to step %d, is spread up to step %d', *history[-1], new)
  return {**config, 'extended': history} if history else config


def compare(config: Settings, workdir: pathlib.Path, may_change: Sequence[str] = ()
            ) -> None:
  """Raises UserError if the workdir has a config that differs from this one.

  Keys in `_MAY_CHANGE` and `may_change` are not compared. A key that is absent or
  empty in a config has its value in `_ABSENT`, or counts as off.
  """
  path = workdir / checkpoint.CONFIG_FILE
  if not path.exists():
    return
  # Through JSON, so that tuples compare equal to the lists that JSON returns.
  new = _flat(json.loads(json.dumps(config)))
  old = _flat(checkpoint.read_config(workdir))
  value = lambda flat, key: flat.get(key, _ABSENT.get(key)) or False
  other = [key for key in sorted(new.keys() | old.keys())
           if not key.startswith((*_MAY_CHANGE, *may_change))
           and value(new, key) != value(old, key)]
  if other == ['total_steps'] and new.get(*other, 0) > old.get(*other, 0) > 0:
    raise UserError(
        f'{workdir}: holds a run of total_steps={old["total_steps"]}, and with '
        f'total_steps={new["total_steps"]} its learning rates would change; use '
        '--extend, which spreads the rest of the schedule over the remaining steps, '
        f'or set --config.init_from={workdir} and another --workdir')
  if other:
    key = other[0]
    raise UserError(
        f'{workdir}: holds a run of another config, '
        f'{key}={old.get(key, _ABSENT.get(key))!r} where this one has '
        f'{new.get(key, _ABSENT.get(key))!r}; choose another --workdir, move that '
        'folder away, or use the same config to resume that run')


def claim(config: Settings, workdir: pathlib.Path, reader: Reader,
          extend: bool = False) -> None:
  """Writes vocabulary, classes and config to a new workdir; the config last.

  An extended run keeps its vocabulary, and its config is rewritten.
  """
  exists = (workdir / checkpoint.CONFIG_FILE).exists()
  if not hosts.is_first() or (exists and not extend):
    return
  if exists:
    checkpoint.write_config(workdir, config)
    return
  workdir.mkdir(parents=True, exist_ok=True)
  reader.tokenizer.save(workdir / reader.tokenizer.file_name)
  if reader.labels:
    labels.save(workdir / labels.FILE_NAME, reader.labels)
  checkpoint.write_config(workdir, config)


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  return {k: v for name, branch in tree.items()
          for k, v in _flat(branch, f'{prefix}.{name}' if prefix else name).items()}
