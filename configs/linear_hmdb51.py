"""Evaluates frozen video features on HMDB51: linear classifiers, nearest neighbors.

    python -m vatt_jax.main --config=configs/linear_hmdb51.py \
        --config.init_from=CHECKPOINT --workdir=runs/linear_hmdb51

It is `configs/linear_ucf101.py` for `data/hmdb51` (python -m data.hmdb51) and its three
official splits. Expected top-1 (the paper's, arXiv 2104.11178, Table 8): MBS with the
low-rank classifier 65.2, with the SVM 63.3, MA with the low-rank classifier 63.1.
MMV's windows are every frame at 25 Hz, of 200 x 200 pixels, as its authors publish
them. Expected (arXiv 2006.16228, Table 2): TSM-ResNet-50 66.7, of twice the width 67.1,
S3D-G 62.6. STiCA's: 48.2 (arXiv 2103.10211); few-shot, fold 1, GDT with 1 and 5 videos
a class: 14.3 and 15.4 (arXiv 2003.04298, Table 3).
"""

from ml_collections import ConfigDict

from configs import linear_ucf101


def get_config(arg: str = 'mbs') -> ConfigDict:
  c = linear_ucf101.base(arg, 'hmdb51', 'video', num_splits=3)
  if arg.partition(',')[0] == 'mmv':
    c.window.update(frame_rate_hz=25.0, image_size=200)
    is_tsm = (c.model.video.name, c.model.video.width) == ('tsm_resnet50', 1)
    c.evals.linear.classifiers.svm.C = 1e-4 if is_tsm else 3e-4
  return c
