"""Your own classes of films: fine-tunes a small video tower on a folder or a manifest.

    python -m vatt_jax.main --config=configs/finetune_video_folder.py \
        --config.data.path=FOLDER_OR_CSV --config.evals.test.path=FOLDER_OR_CSV \
        --config.init_from=runs/mine --workdir=runs/my_classes

A folder has a subfolder for each class, a manifest a column `label` (another:
--config.data.label=COLUMN). Without --config.init_from it trains from scratch. The
tower is that of `configs/pretrain_folder.py`: to start from another checkpoint, give
its sizes as --config.model.video.KEY. Without a path to test on, accuracy is that on
the very clips trained on.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 1000
  c.batch_size = 16
  c.num_parts = 1
  c.log_every_steps = 20
  c.mesh = dict(data=-1, fsdp=1, model=1)
  c.init_from = ''
  c.average_decay = 0.0

  c.data = dict(path='', label='label', label_map='', several_labels=False,
                max_bad_fraction=0.5)
  c.window = dict(num_frames=16, frame_rate_hz=10.0, image_size=96, audio_hz=16_000,
                  min_crop_area=0.3, modalities=('video',))
  c.augment = dict(flip_rate=0.5, mixup=0.0)
  c.model = dict(
      video=dict(patch=(4, 16, 16), drop_token_rate=0.0, width=192, depth=4,
                 num_heads=6, mlp_dim=768),
      head=dict(name='classifier', num_classes=0, dropout_rate=0.0))
  c.losses = dict(label=dict(name='softmax', smoothing=0.1))
  # The paper does not clip. This limit makes short runs on little data robust to the
  # large gradients at the start.
  c.optim = dict(name='sgd', momentum=0.9, peak_rate=0.02, final_rate=0.0,
                 warmup_steps=50, decay='half_cosine', clip_norm=0.75, clip_replicas=1,
                 rules=(), layer_decay=1.0)
  c.evals = dict(test=dict(name='classify', every_steps=0, path='', num_windows=4,
                           num_crops=3))
  c.checkpoint = dict(every_steps=100, keep=2)
  return c
