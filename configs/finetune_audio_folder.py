"""Your own sound events: fine-tunes a small audio tower on a folder or a manifest.

    python -m vatt_jax.main --config=configs/finetune_audio_folder.py \
        --config.data.path=FOLDER_OR_CSV --config.evals.test.path=FOLDER_OR_CSV \
        --config.init_from=runs/mine --workdir=runs/my_sounds

A folder has a subfolder for each class, a manifest a column `label` (another:
--config.data.label=COLUMN). Where a clip may have several, joined by `|`, add a word:
configs/finetune_audio_folder.py:several. All else is as for
`configs/finetune_video_folder.py`.
"""

from ml_collections import ConfigDict

from configs import finetune_video
from configs import finetune_video_folder


def get_config(arg: str = '') -> ConfigDict:
  c = finetune_video_folder.recipe('audio')
  c.augment.flip_rate = 0.0
  c.evals.test.num_crops = 1
  return finetune_video.switch(c, arg, {'several': several})


def several(c: ConfigDict) -> None:
  """As AudioSet is learnt in `configs/finetune_audio.py`."""
  c.data.multi_label = True
  c.augment.mixup = 5.0
  c.model.head.rare = True
  c.losses.label = dict(name='bce', balance=True)
