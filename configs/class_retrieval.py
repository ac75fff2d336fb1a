"""Retrieves videos of the same class by GDT's or STiCA's frozen features.

    python -m vatt_jax.main --config=configs/class_retrieval.py:ucf101,gdt \
        --config.init_from=runs/gdt --workdir=runs/class_retrieval

A test video is right at k if one of the k nearest training videos has its class. The
features are the largest of each channel over the last map, averaged over ten windows
(GDT, arXiv 2003.04298, appendix A.3). It expects `data/ucf101` or `data/hmdb51`. After
the file name stand the dataset, ucf101 or hmdb51, `gdt` or `stica`, and the switches of
that config, such as `ucf101,gdt,j`. Expected R@1, R@5, R@20 of fold 1:

                                  UCF101            HMDB51
    GDT (its Table 3)             62.8  79.0        26.1  51.7
    STiCA (arXiv 2103.10211)      59.1  76.2  88.1  26.3  49.2  76.4
"""

from ml_collections import ConfigDict

from configs import linear_ucf101


def get_config(arg: str = 'ucf101,gdt') -> ConfigDict:
  dataset, _, trained = arg.partition(',')
  if dataset not in ('ucf101', 'hmdb51') or (
      trained.partition(',')[0] not in ('gdt', 'stica')):
    raise ValueError(f'{arg!r}: expected ucf101 or hmdb51, and then gdt or stica and '
                     'its switches, if any')
  c = linear_ucf101.base(trained, dataset, 'video', num_splits=1)
  c.model.video.pooling = dict(name='max')
  del c.evals.linear
  c.evals.neighbours.shots = ()
  return c
