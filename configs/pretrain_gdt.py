"""Pre-trains GDT as in the paper (arXiv 2003.04298, section 3.3 and appendix A.3).

    python -m vatt_jax.main --config=configs/pretrain_gdt.py --workdir=runs/gdt

R(2+1)D-18 for video and ResNet-9 for audio. It trains on Kinetics-400 for 100 epochs of
batches of 512 clips, on 64 GPUs in the paper, and expects `data/kinetics400` (python -m
data.kinetics). Its rows are windows: clips times shifts; copies that are reversed in
time are made on the device. Switches after the file name, joined by commas, at most one
of each line:

    e, f, g, h, i, j, k, l, m    the row of the paper's Table 1 (default: l)
    vt                           video and text, on HowTo100M, 40 epochs; expects word
                                 vectors in --config.model.text.word_vectors=FILE
    release                      follows the released code where it differs
    toy                          VATT's towers of the quickstart, on the toy world;
                                 batches of 32 rows for all rows of the table
    rooms                        with toy: the toy world with rooms, of
                                 python -m data.toy_world --rooms --out=data/toy_rooms

A loss is invariant to a factor or distinctive of it, or the factor is not sampled.
Expected accuracy of fine-tuning on HMDB51 and R@1 of retrieval, fold 1, after 50 epochs
(Table 1):

    row   reversal      shift         accuracy  R@1
    e     -             -             52.4      21.8
    f     invariant     -             58.8      22.6
    g     -             invariant     57.4      23.5
    h     invariant     invariant     59.9      24.8
    i     distinctive   -             57.8      26.1
    j     -             distinctive   58.7      22.1
    k     distinctive   invariant     61.1      25.4
    l     invariant     distinctive   61.4      27.1
    m     distinctive   distinctive   57.2      20.5

After 100 epochs (Table 4): HMDB51 62.3, UCF101 90.9 (`configs/finetune_gdt.py`).

The paper crops the center, and the code at random. Here the crop is random, with the
code's range of sizes: 112 of 128 to 160 pixels. Width and height are drawn separately,
in the code together. Brightness changes by an offset, in the code by a factor. Without
--config.window.min_shift_seconds=3.3 the two windows of a clip of the toy world often
show the same segment, a false negative for j.
"""

import functools

from ml_collections import ConfigDict

from configs import common
from configs import quickstart

# Row of Table 1 -> kind of the factors reversal and shift; None: not sampled.
HYPOTHESES = dict(
    e=(None, None), f=('invariant', None), g=(None, 'invariant'),
    h=('invariant', 'invariant'), i=('distinctive', None), j=(None, 'distinctive'),
    k=('distinctive', 'invariant'), l=('invariant', 'distinctive'),
    m=('distinctive', 'distinctive'))
_CLIPS = 512
EPOCH_STEPS = 470    # of Kinetics-400: 240k clips
_TOY_ROOMS = 'data/toy_rooms'


def get_config(arg: str = '') -> ConfigDict:
  return common.switches(base(), arg, *GROUPS)


def base() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 100 * EPOCH_STEPS
  c.batch_size = _CLIPS    # rows: `hypothesis` multiplies them by the shifts
  c.log_every_steps = 100
  c.mesh = dict(data=-1, fsdp='auto', model=1)
  c.init_from = ''

  c.data = dict(path='data/kinetics400/train.csv', captions='', max_bad_fraction=0.1)
  c.window = dict(num_frames=30, frame_rate_hz=30.0, image_size=112, audio_hz=24_000,
                  modalities=('video', 'audio'), short='loop', scale_jitter=0.11,
                  scale_jitter_rate=1.0, crop_share=112 / 144, num_shifts=1,
                  num_views=1, min_shift_seconds=0.0)
  c.augment = dict(copies=('forward',), flip_rate=0.5, color_rate=1.0, brightness=0.4,
                   saturation=0.4, contrast=0.4, hue=0.0, volume=0.1)
  c.model = dict(
      name='mmv', dtype='bfloat16', remat='none',
      video=dict(name='r2plus1d_18', torchvision=True, width=1.0, mean=0.45, std=0.225),
      audio=dict(name='resnet9', width=1.0,
                 spectrogram=dict(name='gdt', variant='paper'),
                 spec_augment=dict(time_masks=1, time_width=6, frequency_masks=1,
                                   frequency_width=3)),
      head=dict(name='projection', hidden_dim=512, dim=256, dropout_rate=0.0))
  c.losses = dict(video_audio=dict(
      name='gdt', temperature=0.07, weight=1.0, variant='paper', num_chunks=1))
  hypothesis(c, 'l')
  # Constant after the warm-up of 10 epochs.
  c.optim = dict(name='sgd', momentum=0.9, weight_decay=1e-5, start_rate=0.01,
                 peak_rate=0.64, final_rate=0.64, warmup_steps=10 * EPOCH_STEPS,
                 decay='multi_step')
  c.evals = {}
  c.checkpoint = dict(every_steps=1000, keep=3)
  c.figures = dict(path='', label='', beside='', runs='', measure='')
  return c


def hypothesis(c: ConfigDict, row: str) -> None:
  """Samples the factors of a row of Table 1, two values of each."""
  reversal, shift = HYPOTHESES[row]
  c.augment.copies = ('forward', 'reversed') if reversal else ('forward',)
  c.window.num_shifts = 2 if shift else 1
  c.batch_size = _CLIPS * c.window.num_shifts
  for loss in c.losses.values():
    loss.update(reversal=reversal or '', shift=shift or '')


def vt(c: ConfigDict) -> None:
  """Trains on video and text of HowTo100M: 40 epochs of 1.2M videos."""
  epoch_steps = 1_200_000 // _CLIPS
  c.total_steps, c.optim.warmup_steps = 40 * epoch_steps, 10 * epoch_steps
  c.data.update(path='data/howto100m/train.csv', captions='captions.csv',
                tokenizer='words', vocabulary='', drop_stop_words=True)
  c.window.update(frame_rate_hz=16.0, modalities=('video', 'text'), num_candidates=1,
                  max_tokens=16)
  del c.model.audio
  c.model.text = dict(name='word_bag', vocabulary_size=2 ** 16, table_width=300,
                      width=2048, word_vectors='')
  c.losses = dict(video_text=c.losses.video_audio)


def release(c: ConfigDict) -> None:
  """Follows the released code (docs/decisions/0003-two-readings.md)."""
  c.model.head.dropout_rate = 0.3
  for loss in c.losses.values():
    loss.update(variant='release', num_groups=64)
  if 'audio' in c.model:
    c.total_steps = 201 * EPOCH_STEPS
    c.model.audio.spectrogram.variant = 'release'
    c.model.audio.spec_augment.update(time_width=5, frequency_width=2, zeros=True)
  else:
    c.data.drop_stop_words = False
    c.window.max_tokens = 20


def toy(c: ConfigDict) -> None:
  """Trains VATT's towers of the quickstart on the toy world."""
  small = quickstart.get_config()
  c.total_steps, c.batch_size = small.total_steps, small.batch_size
  c.log_every_steps, c.mesh, c.checkpoint = (
      small.log_every_steps, small.mesh, small.checkpoint)
  c.data, c.optim, c.evals, c.figures = (
      small.data, small.optim, small.evals, small.figures)
  window = {key: c.window[key] for key in ('modalities', 'num_shifts', 'num_views',
                                           'min_shift_seconds')}
  c.window = {**small.window, **window}
  c.augment = dict(copies=c.augment.copies)    # its labels name directions and colors
  c.model = dict(
      name='mmv', dtype='float32', remat='none',
      head=dict(name='projection', hidden_dim=128, dim=128, dropout_rate=0.0),
      **{m: dict(small.model[m], name='vatt') for m in window['modalities']})
  for loss in c.losses.values():
    if 'num_groups' in loss:
      loss.num_groups = 2
  labels = dict(shape='video', motion='video', colour='video', sound_event='audio')
  c.evals.probe.labels = {label: modality for label, modality in labels.items()
                          if modality in window['modalities']}
  if 'audio' not in window['modalities']:
    c.evals.probe.multi_labels = ()


def rooms(c: ConfigDict) -> None:
  """Takes the toy world with rooms."""
  if not c.data.path.startswith(quickstart.ROOT):
    raise ValueError('switch rooms: expected with toy')
  c.data.path = f'{_TOY_ROOMS}/train.csv'
  c.evals.retrieval.path = f'{_TOY_ROOMS}/test_segments.csv'
  c.evals.probe.update(train=f'{_TOY_ROOMS}/train_segments.csv',
                       test=f'{_TOY_ROOMS}/test_segments.csv')
  c.evals.probe.labels.room = 'video'


# Applied in this order.
GROUPS = (
    {row: functools.partial(hypothesis, row=row) for row in HYPOTHESES},
    {'vt': vt}, {'release': release}, {'toy': toy}, {'rooms': rooms})
