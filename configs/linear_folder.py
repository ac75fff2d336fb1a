"""Frozen features on labelled clips of your own; as it is, on the toy world.

    python -m vatt_jax.main --config=configs/linear_folder.py --workdir=runs/linear

evaluates `runs/quickstart`. For your own, name the columns of the manifests that hold
labels, and the modality whose features each is read off:

    python -m vatt_jax.main --config=configs/linear_folder.py:action=video,noise=audio \
        --config.init_from=runs/mine --config.evals.linear.train=TRAIN.csv \
        --config.evals.linear.test=TEST.csv --workdir=runs/linear_mine

which evaluates a workdir of `configs/pretrain_folder.py` or of another config: the
sizes are the checkpoint's. What is set for one evaluator is set for both. Of folders
with a subfolder for each class the column is `label`. All three linear classifiers
learn, and the nearest neighbours of the same clips are found.
"""

from ml_collections import ConfigDict

from configs import linear_ucf101
from configs import pretrain_folder
from configs import quickstart


def get_config(labels: str = '') -> ConfigDict:
  base = (pretrain_folder if labels else quickstart).get_config()
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 0    # nothing of the model is trained
  c.batch_size = 32
  c.log_every_steps = 1
  c.init_from = '' if labels else 'runs/quickstart'

  c.data = dict(max_bad_fraction=base.data.max_bad_fraction)
  pretrain_folder.leave_to_checkpoint(c, base, ('video', 'audio'))
  c.window.modalities = ('video', 'audio')

  classifiers = dict(logistic=dict(C=0.1), svm=dict(C=1e-3),
                     low_rank=linear_ucf101.LOW_RANK)
  root = quickstart.ROOT
  if labels:
    c.evals = linear_ucf101.evaluations(_parse(labels), classifiers, train='', test='',
                                        multi_labels=(), num_windows=4)
  else:
    c.evals = linear_ucf101.evaluations(
        dict(shape='video', motion='video', sound_event='audio'), classifiers,
        train=f'{root}/train_segments.csv', test=f'{root}/test_segments.csv',
        multi_labels=('sound_event',), num_windows=4)
  return c


def _parse(labels: str) -> dict[str, str]:
  """'action=video,noise=audio' -> column: modality."""
  pairs = [pair.split('=') for pair in labels.split(',')]
  if any(len(pair) != 2 for pair in pairs):
    raise ValueError(f'{labels!r} after the recipe: expected COLUMN=MODALITY, and more '
                     'of them with commas between')
  return dict(pairs)
