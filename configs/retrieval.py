"""Evaluates zero-shot retrieval between captions and clips (2104.11178, Table 7).

    python -m vatt_jax.main --config=configs/retrieval.py --workdir=runs/retrieval

evaluates `runs/mbs`, or --config.init_from=PATH, on four windows of 32 frames at 12.5
Hz of each clip of YouCook2 and of MSR-VTT's 1k split (section 4.3). It expects their
manifests under `data/` (docs/data.md). Switches after the file name, joined by commas:

    configs/retrieval.py:manifest   your own clips: --config.evals.manifest.path=FILE
                                    with columns path,text (docs/data.md)
    configs/retrieval.py:ma         `runs/ma`, one Transformer for all modalities
    configs/retrieval.py:release    a checkpoint of the released code; it needs
                                    --config.data.vocabulary=FILE, its list of words
    configs/retrieval.py:SWITCH     `runs/ablation_SWITCH`, a run of
                                    configs/ablation.py:SWITCH (Tables 9 to 12)
    configs/retrieval.py:toy        `runs/quickstart`, on the toy world

The sizes of the model and its tokenizer are the checkpoint's, and so is the window of
`manifest` and `toy`. A released checkpoint is assumed to have the paper's sizes.
--config.model.video.size=large or --config.window.image_size=200 override them.
The embeddings of a clip's windows are averaged, as in the paper. To average their
similarities, as its code can, set --config.evals.youcook2.average=similarities.

A workdir of `configs/pretrain_mmv.py` is evaluated by --config.init_from=runs/mmv; its
docstring has MMV's numbers. Expected, text to video (the paper's numbers):

                     YouCook2: R@10   MedR   MSR-VTT: R@10   MedR
    VATT-MBS                   45.5     13            29.7     49
    VATT-MA-Medium             40.6     17            23.6     67
"""

from ml_collections import ConfigDict

from configs import ablation
from configs import common
from configs import pretrain_ma
from configs import pretrain_mbs
from configs import quickstart


def get_config(arg: str = '') -> ConfigDict:
  # A run of the toy world, of one Transformer, or of one ablation.
  requested = common.parse_switches(
      arg, ('manifest',), ('toy', 'ma', *ablation.VARIANTS), ('toy', 'release'))
  ablated = [name for name in requested if name in ablation.VARIANTS]
  trained, run = ((quickstart, 'quickstart') if 'toy' in requested else
                  (pretrain_ma, 'ma') if 'ma' in requested else
                  (ablation, '_'.join(['ablation', *ablated])) if ablated else
                  (pretrain_mbs, 'mbs'))
  switches = ablated + ['release'] * ('release' in requested)
  trained = trained.get_config(*([','.join(switches)] if switches else []))

  c = ConfigDict()
  c.seed = 0
  c.total_steps = 0    # no training
  c.batch_size = 32
  c.log_every_steps = 1
  c.init_from = f'runs/{run}'
  c.data = dict(vocabulary='', max_bad_fraction=0.1)
  common.leave_to_checkpoint(c, trained)
  c.window.num_candidates = 1
  if not {'manifest', 'toy'} & set(requested):
    # The frames cover 2.56 s. The audio does not change: "We do not change the input
    # size for audio" (section 4.3). Its positions were learned in pre-training.
    c.window.update(num_frames=32, frame_rate_hz=12.5,
                    audio_seconds=(trained.window.num_frames
                                   / trained.window.frame_rate_hz))
  paths = (dict(manifest='') if 'manifest' in requested else
           dict(toy_world=trained.evals.retrieval.path) if 'toy' in requested else
           common.RETRIEVAL_SETS)
  c.evals = {name: dict(name='retrieval', path=path, captions='', num_windows=4,
                        num_crops=1, average='embeddings')
             for name, path in paths.items()}
  return c
