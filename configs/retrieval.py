"""Zero-shot retrieval: the sentence's clip, and back (arXiv 2104.11178, Table 7).

    python -m vatt_jax.main --config=configs/retrieval.py --workdir=runs/retrieval

evaluates `runs/mbs`, or --config.init_from=PATH: four windows of 32 frames at 12.5 Hz
of each clip of YouCook2 and of MSR-VTT's 1k split (section 4.3), whose manifests it
expects under `data/` (docs/data.md). Switches after the file's name, joined by commas:

    configs/retrieval.py:manifest   your own clips: --config.evals.manifest.path=FILE,
                                    of path,text (docs/data.md)
    configs/retrieval.py:ma         of `runs/ma`, one Transformer for all
    configs/retrieval.py:release    of a checkpoint of the released code, which needs
                                    --config.data.vocabulary=FILE, its list of words
    configs/retrieval.py:WORD       of `runs/ablation_WORD`, a run of
                                    configs/ablation.py:WORD (Tables 9 to 12)
    configs/retrieval.py:toy        of `runs/quickstart`, on the toy world

The sizes of the model and its tokenizer are the checkpoint's, and so is the window of
`manifest` and `toy`; a released checkpoint is taken for one of the paper's size.
--config.model.video.size=large or --config.window.image_size=200 say otherwise.
The views of a clip are averaged as the paper says, or, as its code does besides,
their similarities are: --config.evals.youcook2.average=similarities.

The paper's numbers, text to video (not ours):

                     YouCook2: R@10   MedR   MSR-VTT: R@10   MedR
    VATT-MBS                   45.5     13            29.7     49
    VATT-MA-Medium             40.6     17            23.6     67
"""

from ml_collections import ConfigDict

from configs import ablation
from configs import pretrain_folder
from configs import pretrain_ma
from configs import pretrain_mbs
from configs import quickstart
from vatt_jax.config import nearest

_SWITCHES = ('manifest', 'ma', 'release', 'toy')


def get_config(arg: str = '') -> ConfigDict:
  words = arg.split(',') if arg else []
  ablated = [word for word in words if word in ablation.VARIANTS]
  for word in words:
    if word not in (*_SWITCHES, *ablated):
      guess = nearest(word, (*_SWITCHES, *ablation.VARIANTS))
      raise ValueError(f'{word!r} after the recipe: {guess}expected some of '
                       f'{", ".join(_SWITCHES)}, or a word of configs/ablation.py')
  if 'toy' in words and len(words) > 1 + ('manifest' in words):
    raise ValueError('toy after the recipe: it has a model of its own, and goes with '
                     'manifest only')
  if 'ma' in words and ablated:
    raise ValueError(f'ma and {ablated[0]} after the recipe: the ablations are of mbs')
  trained, run = ((quickstart, 'quickstart') if 'toy' in words else
                  (pretrain_ma, 'ma') if 'ma' in words else
                  (ablation, '_'.join(['ablation', *ablated])) if ablated else
                  (pretrain_mbs, 'mbs'))
  switches = ablated + ['release'] * ('release' in words)
  trained = trained.get_config(*([','.join(switches)] if switches else []))

  c = ConfigDict()
  c.seed = 0
  c.total_steps = 0    # nothing is trained
  c.batch_size = 32
  c.log_every_steps = 1
  c.init_from = f'runs/{run}'
  c.data = dict(vocabulary='', max_bad_fraction=0.1)
  pretrain_folder.leave_to_checkpoint(c, trained)
  c.window.num_candidates = 1
  if not {'manifest', 'toy'} & set(words):
    # Frames of 2.56 s. "We do not change the input size for audio" (section 4.3), whose
    # positions were learnt for the seconds of the pre-training's frames.
    c.window.update(num_frames=32, frame_rate_hz=12.5,
                    audio_seconds=(trained.window.num_frames
                                   / trained.window.frame_rate_hz))
  pool = dict(name='retrieval', path='', captions='', num_windows=4, num_crops=1,
              average='embeddings')
  paths = dict(youcook2='data/youcook2/test.csv', msrvtt='data/msrvtt/test.csv')
  if 'toy' in words:
    paths = dict(toy_world=trained.evals.retrieval.path)
  if 'manifest' in words:
    paths = dict(manifest='')
  c.evals = {name: dict(pool, path=path) for name, path in paths.items()}
  return c
