"""Fine-tunes an audio tower on the sound events of AudioSet (VATT, section 4.3).

    python -m vatt_jax.main --config=configs/finetune_audio.py \
        --config.init_from=runs/mbs --workdir=runs/audioset

Trains 50k steps of 1024 clips of 6.4 s at 24 kHz, with mixup and with losses balanced
by the frequency of the labels in the batch. It starts from a workdir of vatt_jax or
from a released checkpoint, and expects `data/audioset/train.csv` (docs/data.md).
Switches after the file name, joined by commas:

    ma             the modality-agnostic Medium tower instead of Base
    spectrogram    a tower that was trained on spectrograms (VATT, Table 12)
    release        a checkpoint of the released code: its dropout, positions and
                   gradient clipping
    toy            the toy world's sound events, on a laptop, from the quickstart's run
                   in runs/quickstart

Expected mAP / AUC / d-prime (the paper's Table 5): Base 39.4 / 97.1 / 2.895, MA-Medium
39.3 / 97.0 / 2.884.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = '') -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 50_000
  c.batch_size = 1024
  c.num_microbatches = 1
  c.log_every_steps = 100
  c.mesh = dict(data=-1, fsdp=1, model=1)
  c.init_from = ''
  c.average_decay = 0.0

  c.data = dict(path='data/audioset/train.csv', label='label',
                label_map='data/audioset/labels.csv', multi_label=True,
                max_bad_fraction=0.1)
  c.window = dict(num_frames=64, frame_rate_hz=10.0, image_size=224, audio_hz=24_000,
                  modalities=('audio',))
  c.augment = dict(mixup=5.0)
  c.model = dict(
      variant='paper', dtype='bfloat16',
      audio=dict(size='base', patch=(128,), drop_token_rate=0.0),
      head=dict(name='classifier', num_classes=527, dropout_rate=0.0, rare=True))
  c.losses = dict(label=dict(name='bce', balance=True))
  c.optim = dict(name='sgd', momentum=0.9, peak_rate=0.2, final_rate=0.0,
                 warmup_steps=5000, decay='half_cosine', clip_norm=0.0,
                 clip_replicas=1, rules=(), layer_decay=1.0)
  c.evals = dict(test=dict(name='classify', every_steps=0,
                           path='data/audioset/eval.csv', num_windows=4))
  c.checkpoint = dict(every_steps=1000, keep=3)
  return common.switches(c, arg, *GROUPS)


def spectrogram(c: ConfigDict) -> None:
  """Uses mel spectrograms in place of the waveform (VATT, section 4.5.1)."""
  c.model.audio.update(kind='spectrogram', patch=(16, 5))
  c.model.audio.spectrogram = dict(audio_hz=c.window.audio_hz)


def release(c: ConfigDict) -> None:
  """Follows the released code (docs/decisions/0003-two-readings.md)."""
  c.model.variant = 'release'
  common.clip_on_replicas(c)


def toy(c: ConfigDict) -> None:
  """Trains on the sound events of the toy world."""
  common.toy_tower(c, 'audio')
  c.data.update(label='sound_event', max_bad_fraction=0.3)    # many lack audio
  c.augment.mixup = 5.0
  c.model.audio.drop_token_rate = 0.0
  c.optim.warmup_steps = 20


# `toy` has its own tower.
GROUPS = (
    {'toy': toy, 'ma': common.agnostic},
    {'toy': toy, 'spectrogram': spectrogram}, {'release': release})
