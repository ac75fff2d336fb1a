"""Fine-tunes a small video tower on your own images: a folder or a manifest.

    python -m vatt_jax.main --config=configs/finetune_image_folder.py \
        --config.data.path=FOLDER_OR_CSV --config.evals.test.path=FOLDER_OR_CSV \
        --config.init_from=runs/mine --workdir=runs/my_pictures

A folder has a subfolder for each class; a manifest has a column `label`. An image is a
video of one frame, repeated to fill the patch (VATT, section 4.4.3). The rest is as in
`configs/finetune_video_folder.py`.
"""

from ml_collections import ConfigDict

from configs import finetune_video_folder


def get_config() -> ConfigDict:
  c = finetune_video_folder.get_config()
  c.batch_size = 64
  c.window.num_frames = 1
  c.evals.test.update(num_windows=1, num_crops=1)
  return c
