"""Pre-trains variants of VATT-MBS: the paper's ablations (2104.11178, section 4.5).

    python -m vatt_jax.main --config=configs/ablation.py:audio_patch_256 --workdir=DIR

trains `configs/pretrain_mbs.py` with batches of 512, as in all of the paper's ablations
(section 4.3), and with one change. It can be combined with the switches `release` and
`toy` (`:audio_patch_256,toy`). The table lists the paper's numbers: top-1 of linear
classification on UCF101, HMDB51 and ESC-50, and R@10 of zero-shot retrieval on YouCook2
and MSR-VTT.

                            UCF101  HMDB51  YouCook2  MSR-VTT   ESC-50
    video_32x200x200         87.16   67.08     23.98    17.84    86.25   Table 9
    video_32x224x224         87.74   67.6      27.47    17.96    87
    video_64x224x224         86.57   63.09     18.52    12.5     86.25
    video_patch_4x16x16      87.8    67.7      27.53    17.99    87      Table 10
    video_patch_5x16x16      88.4    67.02     26.45    16.83    88
    video_patch_8x16x16      86.52   65.64     23.43    16.14    84
    video_patch_8x32x32      82.68   60.73     15.27    13.79    87
    audio_patch_128          88.14   68.13     25.72    17.31    87.75   Tables 11, 12
    audio_patch_256          87.74   66.1      24.19    16.55    83.75   Table 11
    audio_patch_512          87.21   67.34     26.11    16.91    82.5
    audio_patch_1024         86.41   66.36     24.46    16.38    82.5
    spectrogram              88.3    67.52     26.62    16.86    88      Table 12
    drop_token_75            84.0    62.5                        78.9    Table 13
    drop_token_50            85.5    64.8                        84.1
    drop_token_25            87.2    65.6                        84.6
    drop_token_0             87.6    66.4                        84.9

Table 9 uses patches of 5 x 16 x 16. Its 64 frames are assumed to cover 6.4 s, and the
audio as well. `python benchmarks/paper_tables.py` prints the cost of the drop rates.
DropToken in fine-tuning (Table 14) is a switch of `configs/finetune_video.py`.
"""

from collections.abc import Callable
import functools

from ml_collections import ConfigDict

from configs import common
from configs import pretrain_mbs

_TOY_SCALE = 4    # divides frames and pixels


def get_config(arg: str = '') -> ConfigDict:
  c = pretrain_mbs.base()
  c.batch_size = 512
  toy = 'toy' in arg.split(',')
  return common.switches(
      c, arg, {'release': pretrain_mbs.release}, {'toy': pretrain_mbs.toy},
      {name: functools.partial(change, toy=toy) for name, change in VARIANTS.items()})


def _video(frames: int, pixels: int, c: ConfigDict, toy: bool) -> None:
  scale = _TOY_SCALE if toy else 1
  c.window.update(num_frames=frames // scale, image_size=pixels // scale)
  c.model.video.patch = (5, 16, 16)


def _patch(modality: str, patch: tuple[int, ...], c: ConfigDict, toy: bool) -> None:
  c.model[modality].patch = patch


def _spectrogram(c: ConfigDict, toy: bool) -> None:
  """Uses 80 mel bins of 42 ms every 21 ms; tokens and DropToken as in the release."""
  c.model.audio.update(kind='spectrogram', patch=(16, 5),
                       spectrogram=dict(name='vatt'))
  if toy:    # its audio has a lower sample rate
    c.model.audio.spectrogram.update(audio_hz=c.window.audio_hz,
                                     high_hz=c.window.audio_hz / 2)


def _drop_token(rate: float, c: ConfigDict, toy: bool) -> None:
  for modality in ('video', 'audio'):
    c.model[modality].drop_token_rate = rate


VARIANTS: dict[str, Callable[..., None]] = {
    **{f'video_{frames}x{pixels}x{pixels}': functools.partial(_video, frames, pixels)
       for frames, pixels in ((32, 200), (32, 224), (64, 224))},
    **{f'video_patch_{t}x{h}x{w}': functools.partial(_patch, 'video', (t, h, w))
       for t, h, w in ((4, 16, 16), (5, 16, 16), (8, 16, 16), (8, 32, 32))},
    **{f'audio_patch_{s}': functools.partial(_patch, 'audio', (s,))
       for s in (128, 256, 512, 1024)},
    'spectrogram': _spectrogram,
    **{f'drop_token_{percent}': functools.partial(_drop_token, percent / 100)
       for percent in (75, 50, 25, 0)}}
