"""Trains a small VATT on the toy world, on a laptop's CPU.

    python -m vatt_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Clips have 1.6 s: 8 frames of 48 x 48 pixels at 5 Hz, audio at 8 kHz. The losses, the
schedule and the DropToken rate are the paper's (arXiv 2104.11178, sections 3 and 4.3);
the sizes are smaller. The README lists the expected results.
"""

from ml_collections import ConfigDict

ROOT = 'data/toy_world'


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 2600
  c.batch_size = 32
  c.log_every_steps = 50
  c.mesh = dict(data=-1, fsdp=1, model=1)
  c.init_from = ''

  c.data = dict(path=f'{ROOT}/train.csv', captions='train_captions.csv',
                max_bad_fraction=0.1)
  c.window = dict(num_frames=8, frame_rate_hz=5.0, image_size=48, audio_hz=8000,
                  num_candidates=5, max_tokens=12, min_crop_area=0.8)

  tower = dict(width=128, depth=4, num_heads=4, mlp_dim=256)
  c.model = dict(
      video=dict(patch=(4, 8, 8), drop_token_rate=0.5, **tower),
      audio=dict(patch=(128,), drop_token_rate=0.5, **tower),
      text=dict(vocabulary_size=256, width=64, depth=2, num_heads=2, mlp_dim=128),
      head=dict(video_audio_dim=128, video_text_dim=128))
  c.losses = dict(
      video_audio=dict(name='nce', temperature=0.07, weight=1.0, form='paper'),
      video_text=dict(name='mil_nce', temperature=0.07, weight=1.0, form='paper'))
  c.optim = dict(peak_rate=1e-3, final_rate=1e-4, warmup_steps=200)

  c.evals = dict(
      retrieval=dict(name='retrieval', every_steps=0,
                     path=f'{ROOT}/test_segments.csv', num_windows=4),
      probe=dict(name='linear_probe', every_steps=0,
                 train=f'{ROOT}/train_segments.csv', test=f'{ROOT}/test_segments.csv',
                 labels=dict(shape='video', motion='video', sound_event='audio'),
                 multi_labels=('sound_event',), num_windows=4))
  c.checkpoint = dict(every_steps=500, keep=2)
  c.figures = dict(label='shape', beside='', runs='', measure='')
  return c
