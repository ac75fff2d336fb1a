"""Your own classes of pictures: fine-tunes a small video tower on a folder, a manifest.

    python -m vatt_jax.main --config=configs/finetune_image_folder.py \
        --config.data.path=FOLDER_OR_CSV --config.evals.test.path=FOLDER_OR_CSV \
        --config.init_from=runs/mine --workdir=runs/my_pictures

A folder has a subfolder for each class, a manifest a column `label`. A picture is a
film of one frame, repeated to fill the patch (VATT, section 4.4.3). All else is as for
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
