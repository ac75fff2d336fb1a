"""Helps the configs: switches, sizes that a checkpoint sets, and evaluation sets."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict
from ml_collections import ConfigDict
from ml_collections import FieldReference

from configs import quickstart
from vatt_jax.config import nearest

Change = Callable[[ConfigDict], Any]

# The paper's values (section 4.3).
LOW_RANK = dict(rank=128, sample_rate=0.1, steps=50_000, learning_rate=5e-4,
                batch_size=64, seed=0)
RETRIEVAL_SETS = dict(youcook2='data/youcook2/test.csv', msrvtt='data/msrvtt/test.csv')


def parse_switches(arg: str, *groups: Collection[str]) -> list[str]:
  """Parses the switches after a file name, joined by commas.

  Args:
    arg: the text after the colon.
    *groups: names of switches, at most one of each group.

  Raises:
    ValueError: a switch is unknown, or two are of one group.
  """
  requested = arg.split(',') if arg else []
  known = list(dict.fromkeys(name for group in groups for name in group))
  for name in requested:
    if name not in known:
      raise ValueError(f'{name!r}: unknown switch; {nearest(name, known)}expected some '
                       f'of {", ".join(known)}, joined by commas')
  for group in groups:
    chosen = [name for name in requested if name in group]
    if len(chosen) > 1:
      raise ValueError(f'switches {" and ".join(chosen)}: expected one of them')
  return requested


def switches(c: ConfigDict, arg: str, *groups: Mapping[str, Change]) -> ConfigDict:
  """Applies the switches after a file name to a config, in the order of the groups."""
  requested = parse_switches(arg, *groups)
  for name, change in {k: v for group in groups for k, v in group.items()}.items():
    if name in requested:
      change(c)
  return c


def leave_to_checkpoint(c: ConfigDict, trained: ConfigDict,
                        modalities: Sequence[str] = ('video', 'audio', 'text')) -> None:
  """Leaves the sizes of model and window to the checkpoint that a config starts from.

  Every key is present but empty, so that the command line can set it
  (docs/recipes.md, "Sizes"). Without a checkpoint, the sizes are those of `trained`.
  """
  c.defaults = dict(model=trained.model, window=trained.window)
  size = dict(size=str, width=int, depth=int, num_heads=int, mlp_dim=int)
  tower = dict(
      video=dict(size, patch=tuple), audio=dict(size, patch=tuple, kind=str),
      text=dict(size, vocabulary_size=int, max_tokens=int))
  model = dict(variant=str, dtype=str, attention=str, shared=size,
               **{modality: tower[modality] for modality in modalities})
  window = dict(num_frames=int, frame_rate_hz=float, image_size=int, audio_hz=int)
  if 'text' in modalities:
    model['head'] = dict(video_audio_dim=int, video_text_dim=int)
    window['max_tokens'] = int
    c.data.update(_empty(dict(tokenizer=str, drop_stop_words=bool)))
  c.model, c.window = _empty(model), _empty(window)


def _empty(types: dict) -> dict:
  return {key: _empty(value) if isinstance(value, dict) else
          config_dict.placeholder(value) for key, value in types.items()}


def linear_evaluations(labels: Mapping[str, str], classifiers: Mapping[str, dict],
                       **features: Any) -> dict[str, dict]:
  """Returns two evaluations of the same features, which share the features' values."""
  features = {key: FieldReference(value) for key, value in (
      dict(cache='runs/features', **features)).items()}
  return dict(
      linear=dict(name='linear_probe', every_steps=0, labels=labels,
                  classifiers=classifiers, **features),
      neighbours=dict(name='neighbours', every_steps=0, labels=labels, ks=(1, 5, 20),
                      shots=(1, 5, 20), num_draws=10, seed=0, **features))


def agnostic(c: ConfigDict) -> None:
  """Fine-tunes the Medium tower that was trained for all modalities."""
  (modality,) = c.window.modalities
  del c.model[modality]['size']
  c.model.shared = dict(size='medium')


def clip_on_replicas(c: ConfigDict) -> None:
  """Clips the gradients of each replica separately, as the released code does.

  The number of replicas in the published fine-tuning is not documented. 64 is assumed,
  the largest number for the paper's 64 clips a step. Here a replica is a microbatch.
  Microbatches run one after the other, so fewer replicas use the devices better.
  """
  c.optim.update(clip_norm=0.75, clip_replicas=min(64, c.batch_size))


def toy_tower(c: ConfigDict, modality: str) -> None:
  """Fine-tunes the quickstart's tower on its data, 60 steps of 32 clips.

  The run is short, because after some hundreds of steps training from scratch is as
  good.
  """
  small = quickstart.get_config()
  c.total_steps, c.batch_size, c.log_every_steps = 60, 32, 20
  c.init_from = 'runs/quickstart'
  c.data.update(path=f'{quickstart.ROOT}/train_segments.csv', label_map='')
  c.window = dict(modalities=(modality,), **{
      key: small.window[key]
      for key in ('num_frames', 'frame_rate_hz', 'image_size', 'audio_hz')})
  c.augment = {}    # a flip would swap left and right motions
  c.model = dict(variant=c.model.variant, dtype='float32', head=c.model.head)
  c.model[modality] = small.model[modality]
  c.model.head.num_classes = 0
  c.optim.clip_norm = 0.75    # helps short training from scratch
  c.evals.test.update(path=f'{quickstart.ROOT}/test_segments.csv', num_crops=1)
  c.checkpoint.update(every_steps=100, keep=1)
