"""Pre-trains MMV as in the paper (arXiv 2006.16228, sections 3 and 4.1).

    python -m vatt_jax.main --config=configs/pretrain_mmv.py --workdir=runs/mmv

TSM-ResNet-50 for video, ResNet-50 for audio and a bag of words for text, in the graph
FAC. It trains on HowTo100M and AudioSet for 500k steps of 4096 clips, which took the
paper 3 days on 32 Cloud TPUs. It expects the manifests under `data/` (docs/data.md),
and word vectors in --config.model.text.word_vectors=FILE, such as word2vec's, because
they are not trained. Switches after the file name, joined by commas:

    configs/pretrain_mmv.py:tsm_x2     TSM-ResNet-50 of twice the width, batches of 2048
    configs/pretrain_mmv.py:s3d        S3D-G for video
    configs/pretrain_mmv.py:r2plus1d   R(2+1)D-18 for video
    configs/pretrain_mmv.py:va         video and audio only, on AudioSet alone
    configs/pretrain_mmv.py:vt         video and text only, on HowTo100M alone
    configs/pretrain_mmv.py:howto100m  HowTo100M alone, with weights 1:10
    configs/pretrain_mmv.py:shared     one common space for all modalities
    configs/pretrain_mmv.py:disjoint   two spaces that are apart
    configs/pretrain_mmv.py:release    FAC with the released models' ReLU
    configs/pretrain_mmv.py:toy        the same config, smaller, on the toy world

`tsm` and `vat` name the defaults. Expected (the paper's Tables 2 and 3): UCF101 by a
linear classifier 91.5 (tsm_x2 91.8, s3d 89.6), HMDB51 66.7 (67.1, 62.6), ESC-50 86.4
(88.9, 87.7); zero-shot text-to-video R@10 on YouCook2 41.5 (45.4, 37.2), on MSR-VTT
31.1 (31.1, 29.3).
"""

from ml_collections import ConfigDict

from configs import common
from configs import pretrain_mbs
from configs import quickstart

_WIDTH = 1 / 8    # of the toy's networks


def get_config(arg: str = '') -> ConfigDict:
  return common.switches(base(), arg, *GROUPS)


def base() -> ConfigDict:
  c = pretrain_mbs.base()
  c.batch_size = 4096
  c.data.drop_stop_words = True
  # A random square of the frame, after a random change of its width and height.
  c.window.update(image_size=200, min_crop_area=1.0, max_crop_aspect=1.0,
                  scale_jitter=0.2, crop_share=200 / 224)
  c.augment.noise = 0.01
  c.model = dict(
      name='mmv', dtype='bfloat16', remat='none',
      video=dict(name='tsm_resnet50', width=1.0),
      audio=dict(name='resnet50', width=1.0,
                 spectrogram=dict(name='mmv', pad_end=True)),
      text=dict(name='word_bag', vocabulary_size=2 ** 16, table_width=300, width=2048,
                word_vectors=''),
      head=dict(name='mmv', graph='fac', video_audio_dim=512, video_text_dim=256,
                hidden_dim=512, audio_text=False))
  c.optim = dict(peak_rate=2e-3, final_rate=0.0, warmup_steps=5000,
                 decay='half_cosine')
  return c


def tsm_x2(c: ConfigDict) -> None:
  """Doubles all channels of the network of video."""
  c.model.video.width = 2.0
  c.batch_size = 2048


def video_network(name: str) -> common.Change:
  """Returns a switch to another network of video."""
  return lambda c: c.model.video.update(name=name)


def va(c: ConfigDict) -> None:
  """Trains on video and audio of AudioSet."""
  c.data.update(path=('data/audioset/train.csv',), captions=('',), weights=(1.0,))
  c.window.modalities = ('video', 'audio')
  del c.model.text, c.losses.video_text
  c.evals = {}
  c.figures.path = ''


def vt(c: ConfigDict) -> None:
  """Trains on video and text of HowTo100M."""
  howto100m(c)
  c.window.modalities = ('video', 'text')
  del c.model.audio, c.losses.video_audio


def howto100m(c: ConfigDict) -> None:
  """Trains on HowTo100M alone, with the weights of section 4.1."""
  c.data.update(path=('data/howto100m/train.csv',), captions=('captions.csv',),
                weights=(1.0,))
  c.losses.video_text.weight = 10.0


def graph(name: str) -> common.Change:
  """Returns a switch to another graph."""
  return lambda c: c.model.head.update(graph=name)


def disjoint(c: ConfigDict) -> None:
  """Gives video-text a space of its own, as wide as video-audio's."""
  c.model.head.update(graph='disjoint', video_text_dim=512)


def toy(c: ConfigDict) -> None:
  """Shrinks the config to the toy world, and to the clips of the quickstart."""
  small = quickstart.get_config()
  c.total_steps, c.batch_size = small.total_steps, small.batch_size
  c.log_every_steps, c.mesh = small.log_every_steps, small.mesh
  modalities = c.window.get('modalities')
  c.data, c.window = small.data, small.window
  if modalities:
    c.window.modalities = modalities
  c.augment = {}    # its captions name directions and colors
  c.evals, c.checkpoint, c.figures = small.evals, small.checkpoint, small.figures
  c.model.dtype = 'float32'
  c.model.video.width *= _WIDTH
  if 'audio' in c.model:
    c.model.audio.update(width=_WIDTH, spectrogram=dict(
        name='mmv', audio_hz=8000, window_seconds=0.064, step_seconds=0.016,
        fft_length=512, mel_bins=40, high_hz=4000.0, pad_end=True))
  if 'text' in c.model:
    c.model.text.update(vocabulary_size=256, table_width=64, width=256)
  c.model.head.update(video_audio_dim=128, video_text_dim=128, hidden_dim=128)
  c.optim.warmup_steps = small.optim.warmup_steps


GROUPS = (
    {'tsm': lambda c: None, 'tsm_x2': tsm_x2, 's3d': video_network('s3d_g'),
     'r2plus1d': video_network('r2plus1d_18')},
    {'vat': lambda c: None, 'va': va, 'vt': vt, 'howto100m': howto100m},
    {'shared': graph('shared'), 'disjoint': disjoint, 'release': graph('fac_relu')},
    {'toy': toy})
