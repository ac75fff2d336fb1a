"""Evaluates frozen features on your own labeled clips; by default on the toy world.

    python -m vatt_jax.main --config=configs/linear_folder.py --workdir=runs/linear

evaluates `runs/quickstart`. For your own clips, name the label columns of the
manifests, and for each column the modality of its features:

    python -m vatt_jax.main --config=configs/linear_folder.py:action=video,noise=audio \
        --config.init_from=runs/mine --config.evals.linear.train=TRAIN.csv \
        --config.evals.linear.test=TEST.csv --workdir=runs/linear_mine

This evaluates a workdir of `configs/pretrain_folder.py` or of another config, with the
sizes of the checkpoint. A value that is set for one evaluator applies to both. For
folders with a subfolder for each class, the column is `label`. It fits all three linear
classifiers, and finds the nearest neighbors of the same clips.
"""

from ml_collections import ConfigDict

from configs import common
from configs import pretrain_folder
from configs import quickstart


def get_config(labels: str = '') -> ConfigDict:
  base = (pretrain_folder if labels else quickstart).get_config()
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 0    # the model is not trained
  c.batch_size = 32
  c.log_every_steps = 1
  c.init_from = '' if labels else 'runs/quickstart'

  c.data = dict(max_bad_fraction=base.data.max_bad_fraction)
  common.leave_to_checkpoint(c, base, ('video', 'audio'))
  c.window.modalities = ('video', 'audio')

  classifiers = dict(logistic=dict(C=0.1), svm=dict(C=1e-3),
                     low_rank=common.LOW_RANK)
  root = quickstart.ROOT
  if labels:
    c.evals = common.linear_evaluations(_parse(labels), classifiers, train='', test='',
                                        multi_labels=(), num_windows=4)
  else:
    c.evals = common.linear_evaluations(
        dict(shape='video', motion='video', sound_event='audio'), classifiers,
        train=f'{root}/train_segments.csv', test=f'{root}/test_segments.csv',
        multi_labels=('sound_event',), num_windows=4)
  return c


def _parse(labels: str) -> dict[str, str]:
  """Parses 'action=video,noise=audio'.  -> column: modality."""
  pairs = [pair.split('=') for pair in labels.split(',')]
  if any(len(pair) != 2 for pair in pairs):
    raise ValueError(f'{labels!r}: invalid labels after the file name; expected '
                     'COLUMN=MODALITY,COLUMN=MODALITY,...')
  return dict(pairs)
