"""Fills empty values of a config from the checkpoint that it starts from.

A value in the config is kept. An empty value (None) is taken from the checkpoint's own
config. If that has no value, or without a checkpoint, it is taken from the config's
section `defaults`.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import os
import pathlib
from typing import Any

from vatt_jax import checkpoint
from vatt_jax import models
from vatt_jax.config import Settings
from vatt_jax.errors import UserError
from vatt_jax.inputs.window import MODALITIES

# Keys of the model that are not inherited: they set speed, or only training uses them.
_NOT_OF_MODEL = ('attention', 'remat', 'scan_layers', 'dropout_rate')
# Keys of a window that only training reads, and the modalities of a config.
_NOT_INHERITED = ('min_crop_area', 'max_crop_aspect', 'scale_jitter',
                  'scale_jitter_rate', 'crop_share', 'modalities', 'num_shifts',
                  'num_views', 'min_shift_seconds')
# Keys of a tower that only its own loss uses.
_NOT_OF_TOWER = ('crops',)
_OF_DATA = ('tokenizer', 'drop_stop_words')
# Sections that belong to the process rather than to the run.
_OF_PROCESS = ('figures', 'mesh', 'sharding_rules')


def inherit(config: Settings, source: str | os.PathLike[str] = '',
            workdir: pathlib.Path | None = None) -> Settings:
  """Returns a config with its empty values filled in, without `defaults`.

  A config without a section `defaults` is returned unchanged.

  Args:
    config: nested dicts.
    source: the checkpoint that it starts from; empty for none.
    workdir: the run's workdir. If the run resumes, or if the source has no config, the
      workdir's config fills the empty values.

  Raises:
    UserError: the checkpoint has no tower for the config's modalities, or a tower of
      another size.
  """
  if 'defaults' not in config:
    return config
  config = dict(config)
  defaults = config.pop('defaults') or {}
  own = _read(workdir) if workdir else None
  pretrained = _read(source) if source else None
  begun = bool(own and config.get('total_steps') and checkpoint.steps(workdir))
  inherited = (own if begun else pretrained) or own or {}
  base = {**defaults, **inherited}
  where = str(source) or 'config.defaults'
  if 'model' in config and 'model' in base:
    config['model'] = _model(config['model'], base['model'], where)
    if inherited is pretrained:
      check_fits(config['model'], base['model'], where, 'leave it out, ')
  if 'window' in config:
    config['window'] = _window(config['window'], base.get('window', {}))
  if 'data' in config:
    config['data'] = _filled(config['data'], {
        k: v for k, v in base.get('data', {}).items() if k in _OF_DATA})
  return config


def of_run(config: Settings, given: Mapping[str, Any], workdir: pathlib.Path
           ) -> Settings:
  """Returns a training config with the values that the run of a workdir used.

  With it, `--mode=eval` and `--mode=figures` need no flags of the training command.
  Figures, mesh, and evaluations that the run did not have come from the config.

  Args:
    config: nested dicts. A config without training, or with other losses than the
      run, is returned unchanged.
    given: command-line values by key (`model.video.width`); they take precedence.
    workdir: the run's workdir.
  """
  run = _read(workdir)
  if not run or not config.get('total_steps') or (
      dict(config.get('losses') or {}).keys() != dict(run.get('losses') or {}).keys()):
    return config
  new = {**run, **{name: config[name] for name in _OF_PROCESS if name in config}}
  new['evals'] = {**config.get('evals', {}), **run['evals']}    # may add evaluations
  for key, value in given.items():
    *sections, last = key.split('.')
    node = new
    for section in sections:
      node[section] = dict(node.get(section) or {})
      node = node[section]
    node[last] = value
  return new


def check_fits(ours: Settings, theirs: Settings, where: str, advice: str = '') -> None:
  """Raises UserError unless a model has the sizes of the checkpoint that it loads.

  Args:
    ours: section `model` of the config.
    theirs: section `model` of the checkpoint's config; absent keys are not checked.
    where: the checkpoint, for the message.
    advice: the first remedy, for the message.
  """
  if bool(ours.get('shared')) != bool(theirs.get('shared')):
    has = 'one' if theirs.get('shared') else 'none'
    raise UserError(f'config.model.shared: the checkpoint {where} has {has} (a single '
                    'Transformer for all modalities); use a config that fits it')
  fixed_values = models.family(theirs).fixed_values
  for name in ('shared', *MODALITIES, 'head'):
    section, other = (model.get(name) or {} for model in (ours, theirs))
    if name == 'head' and section.get('name', 'fac') != other.get('name', 'fac'):
      continue
    values, fixed = fixed_values(section), fixed_values(other)
    for key in values:
      if key in fixed and _tuples(values[key]) != _tuples(fixed[key]):
        shown = (f'{key}={values[key]!r}' if key in section else
                 f'size={section["size"]!r} ({key}={values[key]!r})')
        raise UserError(
            f'config.model.{name}.{shown}: the checkpoint {where} has {fixed[key]!r}; '
            f'{advice}set it to that, or start from another checkpoint')


def _read(path: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Reads the config of a checkpoint's workdir; returns None without one."""
  folder, _ = checkpoint.split(path)
  if not (folder / checkpoint.CONFIG_FILE).exists():
    return None
  return _tuples(checkpoint.read_config(folder))


def _model(config: Settings, base: Settings, where: str) -> dict[str, Any]:
  """Fills the section `model`.

  Raises:
    UserError: `base` has none of the config's modalities.
  """
  sections = (*MODALITIES, 'shared', 'head')
  model = {k: v for k, v in base.items()
           if k not in (*sections, *_NOT_OF_MODEL) and v is not None}
  model |= {k: v for k, v in config.items() if k not in sections and v is not None}
  fixed_values = models.family(model).fixed_values
  requested = [m for m in MODALITIES if config.get(m) is not None]
  for name in requested:
    if base.get(name) is not None:
      model[name] = _tower(config[name], base[name], fixed_values)
  has = [m for m in MODALITIES if base.get(m) is not None]
  if has and not model.keys() & set(requested):
    raise UserError(f'config.init_from={where}: the checkpoint has no '
                    f'{" or ".join(requested)}; it has {", ".join(has)}')
  shared = _tower(config.get('shared') or {}, base.get('shared') or {}, fixed_values)
  if shared:
    model['shared'] = shared
  if 'head' in config:
    model['head'] = _head(config['head'], base.get('head'))
  return model


def _tower(config: Settings, base: Settings,
           fixed_values: Callable[[Settings], Settings]) -> dict[str, Any]:
  """Fills a tower's section; a named size sets all sizes."""
  config = _filled(config, {})
  named = fixed_values(config).keys() - config.keys()
  return _filled(config, {k: v for k, v in base.items()
                          if k not in named and k not in _NOT_OF_TOWER})


def _window(config: Settings, base: Settings) -> dict[str, Any]:
  """Fills the section `window`."""
  read = config.get('modalities') or MODALITIES
  unused = () if 'text' in read else ('num_candidates', 'max_tokens')
  return _filled(config, {k: v for k, v in base.items()
                          if k not in (*_NOT_INHERITED, *unused)})


def _head(config: Settings | None, base: Settings | None) -> dict[str, Any] | None:
  """Fills the head from `base`, unless the config has no head or one of another kind.
  """
  if config is None:
    return None
  given = _filled(config, {})
  if base is None:    # the config's own head, unless all its values are empty
    return given or None
  kind = base.get('name', 'fac')
  return _filled(given, base) if given.get('name', kind) == kind else given


def _filled(config: Settings, base: Settings) -> dict[str, Any]:
  """Fills empty values of a section from `base`; omits keys that are empty in both."""
  config, base = ({k: v for k, v in section.items() if v is not None}
                  for section in (config, base))
  return base | config


def _tuples(tree: Any) -> Any:
  """Converts sequences, which JSON returns as lists, back to tuples."""
  if isinstance(tree, Mapping):
    return {k: _tuples(v) for k, v in tree.items()}
  return tuple(_tuples(x) for x in tree) if isinstance(tree, (list, tuple)) else tree
