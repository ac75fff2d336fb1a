"""Fine-tunes a small audio tower on your own sound events: a folder or a manifest.

    python -m vatt_jax.main --config=configs/finetune_audio_folder.py \
        --config.data.path=FOLDER_OR_CSV --config.evals.test.path=FOLDER_OR_CSV \
        --config.init_from=runs/mine --workdir=runs/my_sounds

A folder has a subfolder for each class. A manifest has a column `label`; set another
one with --config.data.label=COLUMN. If a clip may have several labels, joined by `|`,
add the switch `several`: configs/finetune_audio_folder.py:several. The rest is as in
`configs/finetune_video_folder.py`.
"""

from ml_collections import ConfigDict

from configs import common
from configs import finetune_video_folder


def get_config(arg: str = '') -> ConfigDict:
  c = finetune_video_folder.base('audio')
  c.augment.flip_rate = 0.0
  c.evals.test.num_crops = 1
  return common.switches(c, arg, {'several': several})


def several(c: ConfigDict) -> None:
  """Trains multi-label classification as in `configs/finetune_audio.py`."""
  c.data.multi_label = True
  c.augment.mixup = 5.0
  c.model.head.rare = True
  c.losses.label = dict(name='bce', balance=True)
