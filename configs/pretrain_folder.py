"""Pre-trains a small VATT on your own clips: a folder of media files or a manifest.

    python -m vatt_jax.main --config=configs/pretrain_folder.py \
        --config.data.path=FOLDER_OR_CSV --workdir=runs/mine

A folder provides video and audio. For text, use a manifest with a `text` column, or
timed captions with --config.data.captions=FILE (README, "Train on your own videos").
Clips have 1.6 s: 16 frames of 96 x 96 pixels at 10 Hz, audio at 16 kHz. By default the
final retrieval uses the training clips, which only shows that training works. To
measure generalization, set held-out clips with --config.evals.retrieval.path=FILE.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.total_steps = 2000
  c.batch_size = 16
  c.log_every_steps = 20
  c.mesh = dict(data=-1, fsdp=1, model=1)
  c.init_from = ''

  # Users' folders also contain files that are not media.
  c.data = dict(path='', captions='', tokenizer='words', vocabulary='',
                drop_stop_words=False, max_bad_fraction=0.5)
  c.window = dict(num_frames=16, frame_rate_hz=10.0, image_size=96, audio_hz=16_000,
                  num_candidates=5, max_tokens=16, min_crop_area=0.3)

  tower = dict(width=192, depth=4, num_heads=6, mlp_dim=768)
  c.model = dict(
      video=dict(patch=(4, 16, 16), drop_token_rate=0.5, **tower),
      audio=dict(patch=(128,), drop_token_rate=0.5, **tower),
      text=dict(vocabulary_size=8192, width=128, depth=2, num_heads=4, mlp_dim=512),
      head=dict(video_audio_dim=256, video_text_dim=256))
  c.losses = dict(
      video_audio=dict(name='nce', temperature=0.07, weight=1.0, form='paper'),
      video_text=dict(name='mil_nce', temperature=0.07, weight=1.0, form='paper'))
  c.optim = dict(peak_rate=5e-4, final_rate=1e-4, warmup_steps=200)

  c.evals = dict(retrieval=dict(name='retrieval', every_steps=0, path='', captions='',
                                num_windows=4))
  c.checkpoint = dict(every_steps=200, keep=2)
  return c
