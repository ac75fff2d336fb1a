"""Fine-tunes a small video tower on your own classes: a folder or a manifest.

    python -m vatt_jax.main --config=configs/finetune_video_folder.py \
        --config.data.path=FOLDER_OR_CSV --config.evals.test.path=FOLDER_OR_CSV \
        --config.init_from=runs/mine --workdir=runs/my_classes

A folder has a subfolder for each class. A manifest has a column `label`; set another
one with --config.data.label=COLUMN. Tower and window are the checkpoint's, unless set
with --config.model.video.KEY and --config.window.KEY. Without --config.init_from it
trains from scratch, with the sizes of `configs/pretrain_folder.py`. Without a test
path, the accuracy is measured on the training clips.
"""

from ml_collections import ConfigDict

from configs import common
from configs import pretrain_folder


def get_config() -> ConfigDict:
  return base('video')


def base(modality: str) -> ConfigDict:
  """Returns the config of a tower for one modality."""
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 1000
  c.batch_size = 16
  c.num_microbatches = 1
  c.log_every_steps = 20
  c.mesh = dict(data=-1, fsdp=1, model=1)
  c.init_from = ''
  c.average_decay = 0.0

  c.data = dict(path='', label='label', label_map='', multi_label=False,
                max_bad_fraction=0.5)
  common.leave_to_checkpoint(c, pretrain_folder.get_config(), (modality,))
  c.window.update(min_crop_area=0.3, modalities=(modality,))
  c.augment = dict(flip_rate=0.5, mixup=0.0)
  c.model[modality].drop_token_rate = 0.0
  c.model.head = dict(name='classifier', num_classes=0, dropout_rate=0.0)
  c.losses = dict(label=dict(name='softmax', smoothing=0.1))
  # The paper does not clip gradients. The limit makes short runs on small datasets
  # robust to the large gradients at the start.
  c.optim = dict(name='sgd', momentum=0.9, peak_rate=0.02, final_rate=0.0,
                 warmup_steps=50, decay='half_cosine', clip_norm=0.75, clip_replicas=1,
                 rules=(), layer_decay=1.0)
  c.evals = dict(test=dict(name='classify', every_steps=0, path='', num_windows=4,
                           num_crops=3))
  c.checkpoint = dict(every_steps=100, keep=2)
  return c
