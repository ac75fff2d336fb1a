"""Values that a config leaves to the checkpoint that it starts from.

One rule: a value that is given is the config's. An empty one (None) is that of the
checkpoint's own config, and where that says nothing, or no checkpoint is given, that of
the config's section `defaults`.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from vatt_jax import checkpoint
from vatt_jax.config import Settings
from vatt_jax.errors import UserError
from vatt_jax.inputs import pipeline
from vatt_jax.models import build

# Of the model, besides its towers and its head.
_OF_MODEL = ('variant', 'dtype')
# Of a window, what only training reads, and which modalities a config is about.
_NOT_INHERITED = ('min_crop_area', 'max_crop_aspect', 'scale_jitter',
                  'scale_jitter_rate', 'modalities')
_OF_DATA = ('tokenizer', 'drop_stop_words')
# What looks at a run, and where, is not the run's.
_OF_PROCESS = ('figures', 'mesh', 'sharding_rules')
# Sizes that weights of one model cannot have in another.
_FIXED = ('depth', 'width', 'mlp_dim', 'num_heads', 'patch', 'kind', 'vocabulary_size',
          'video_audio_dim', 'video_text_dim', 'projected_width')


def inherit(config: Settings, source: str | os.PathLike[str] = '',
            workdir: pathlib.Path | None = None) -> Settings:
  """Returns a config whose empty values are filled in, without `defaults`.

  A config without a section `defaults` is returned as it is.

  Args:
    config: as nested dicts.
    source: the checkpoint that it starts from; empty for none.
    workdir: of the run; where it goes on, or where the source is gone, the config
      that it was begun with says what is empty in this one.

  Raises:
    UserError: the checkpoint has no tower for the config's modalities, or one of
      another size than the config gives.
  """
  if 'defaults' not in config:
    return config
  config = dict(config)
  defaults = config.pop('defaults') or {}
  own = _read(workdir) if workdir else None
  theirs = _read(source) if source else None
  begun = bool(own and config.get('total_steps') and checkpoint.steps(workdir))
  found = (own if begun else theirs) or own or {}
  base = {**defaults, **found}
  where = str(source) or 'config.defaults'
  if 'model' in config and 'model' in base:
    config['model'] = _model(config['model'], base['model'], where)
    if found is theirs:
      check_fits(config['model'], base['model'], where, 'leave it out, ')
  if 'window' in config:
    config['window'] = _window(config['window'], base.get('window', {}))
  if 'data' in config:
    config['data'] = _filled(config['data'], {
        k: v for k, v in base.get('data', {}).items() if k in _OF_DATA})
  return config


def of_run(config: Settings, given: Mapping[str, Any], workdir: pathlib.Path
           ) -> Settings:
  """Returns a training config as the run of a workdir was trained with it.

  So `--mode=eval` and `--mode=figures` need no repetition of what a run was told.
  Figures, mesh, and evaluations that the run did not have are the config's.

  Args:
    config: as nested dicts. One that trains nothing, or other losses than the run,
      is returned as it is.
    given: values of the command line by their keys (`model.video.width`); they win.
    workdir: of the run.
  """
  run = _read(workdir)
  if not run or not config.get('total_steps') or (
      dict(config.get('losses') or {}).keys() != dict(run.get('losses') or {}).keys()):
    return config
  new = {**run, **{name: config[name] for name in _OF_PROCESS if name in config}}
  new['evals'] = {**config.get('evals', {}), **run['evals']}    # more than there were
  for key, value in given.items():
    *sections, last = key.split('.')
    place = new
    for section in sections:
      place[section] = dict(place.get(section) or {})
      place = place[section]
    place[last] = value
  return new


def check_fits(ours: Settings, theirs: Settings, where: str, advice: str = '') -> None:
  """Raises UserError unless a model has the sizes of the checkpoint that it takes.

  Args:
    ours: section `model` of the config.
    theirs: of the checkpoint; what it does not say is not checked.
    where: the checkpoint, for the message.
    advice: likewise.
  """
  if bool(ours.get('shared')) != bool(theirs.get('shared')):
    has = 'one' if theirs.get('shared') else 'none'
    raise UserError(f'config.model.shared: the checkpoint {where} has {has} (a single '
                    'Transformer for all modalities); take the config that fits it')
  for name in ('shared', *pipeline.MODALITIES, 'head'):
    mine, other = (model.get(name) or {} for model in (ours, theirs))
    if name == 'head' and mine.get('name', 'fac') != other.get('name', 'fac'):
      continue
    sizes, known = (build.SIZES.get(x.get('size'), {}) | x for x in (mine, other))
    for key in _FIXED:
      if key not in sizes or key not in known:
        continue
      if _tuples(sizes[key]) != _tuples(known[key]):
        shown = (f'{key}={sizes[key]!r}' if key in mine else
                 f'size={mine["size"]!r} ({key}={sizes[key]!r})')
        raise UserError(
            f'config.model.{name}.{shown}: the checkpoint {where} has {known[key]!r}; '
            f'{advice}set it to that, or start from another checkpoint')


def _read(path: str | os.PathLike[str]) -> dict[str, Any] | None:
  """The config beside a checkpoint; None if it has none."""
  folder, _ = checkpoint.split(path)
  if not (folder / checkpoint.CONFIG_FILE).exists():
    return None
  return _tuples(checkpoint.read_config(folder))


def _model(ours: Settings, theirs: Settings, where: str) -> dict[str, Any]:
  model = {k: v for k, v in ours.items()
           if k not in (*pipeline.MODALITIES, 'shared', 'head') and v is not None}
  model = {k: theirs[k] for k in _OF_MODEL if theirs.get(k) is not None} | model
  asked = [m for m in pipeline.MODALITIES if ours.get(m) is not None]
  for name in asked:
    if theirs.get(name) is not None:
      model[name] = _filled(ours[name], theirs[name])
  if not model.keys() & set(asked):
    has = [m for m in pipeline.MODALITIES if theirs.get(m) is not None]
    raise UserError(f'config.init_from={where}: the checkpoint has no '
                    f'{" or ".join(asked)}; it has {", ".join(has) or "no modality"}')
  shared = _filled(ours.get('shared') or {}, theirs.get('shared') or {})
  if shared:
    model['shared'] = shared
  if 'head' in ours:
    model['head'] = _head(ours['head'], theirs.get('head'))
  return model


def _window(ours: Settings, theirs: Settings) -> dict[str, Any]:
  read = ours.get('modalities') or pipeline.MODALITIES
  unused = () if 'text' in read else ('num_candidates', 'max_tokens')
  return _filled(ours, {k: v for k, v in theirs.items()
                        if k not in (*_NOT_INHERITED, *unused)})


def _head(ours: Settings | None, theirs: Settings | None) -> dict[str, Any] | None:
  """That of the checkpoint, unless the config gives one of another kind, or None."""
  if ours is None:
    return None
  given = _filled(ours, {})
  if theirs is None:    # a head of the config's own, if it has more than empty values
    return given or None
  kind = theirs.get('name', 'fac')
  return _filled(given, theirs) if given.get('name', kind) == kind else given


def _filled(ours: Settings, theirs: Settings) -> dict[str, Any]:
  """A section with their values for its empty ones; empty in both: left out."""
  ours, theirs = ({k: v for k, v in section.items() if v is not None}
                  for section in (ours, theirs))
  if 'size' in ours:    # stands for all the sizes of a tower
    theirs = {k: v for k, v in theirs.items() if k not in build.SIZE_KEYS}
  return theirs | ours


def _tuples(tree: Any) -> Any:
  """Sequences as JSON gives them back become tuples again."""
  if isinstance(tree, Mapping):
    return {k: _tuples(v) for k, v in tree.items()}
  return tuple(_tuples(x) for x in tree) if isinstance(tree, (list, tuple)) else tree
