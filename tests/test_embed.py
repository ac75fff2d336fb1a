"""vatt_jax/embed.py"""

import json
import shutil

import jax
import numpy as np
import pytest

from vatt_jax import checkpoint
from vatt_jax import embed
from vatt_jax.errors import UserError
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.models import build

TINY = dict(depth=1, width=8, num_heads=2, mlp_dim=8)
SETTINGS = dict(video=dict(patch=(2, 16, 16), **TINY), audio=dict(patch=(64,), **TINY),
                text=dict(vocabulary_size=9, **TINY),
                head=dict(video_audio_dim=6, video_text_dim=4))
WINDOW = dict(num_frames=4, frame_rate_hz=5.0, image_size=32, audio_hz=8000,
              max_words=5)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """What a run leaves: here of a model that was never trained."""
  folder = tmp_path_factory.mktemp('runs') / 'one'
  batch = dict(video=np.zeros((1, 4, 32, 32, 3), np.float32),
               audio=np.zeros((1, 6400), np.float32), text=np.ones((1, 1, 5), np.int32))
  model = build.build_model(**SETTINGS)
  checkpoint.save_model(folder, SETTINGS, jax.jit(model.init)(jax.random.key(0), batch))
  (folder / 'config.json').write_text(json.dumps(dict(model=SETTINGS, window=WINDOW)))
  (folder / 'vocabulary.txt').write_text('a\nred\ncircle\n')
  return folder


@pytest.fixture(scope='module')
def vatt(workdir):
  return embed.Embedder(workdir)


def test_a_file_and_a_sentence_meet_in_the_spaces(vatt, toy_world):
  clips = sources.open_source(str(toy_world / 'train.csv'))
  film = vatt.file(clips[0].path)
  words = vatt.text('A red circle!')
  assert {s: set(sides) for s, sides in film.items()} == {
      'video_audio': {'video', 'audio'}, 'video_text': {'video'}}
  for sides in (*film.values(), *words.values()):
    for x in sides.values():
      np.testing.assert_allclose(np.linalg.norm(x), 1, rtol=1e-5)
  found = embed.similarities(film, words)
  assert found.keys() == {'audio~video', 'video~text'}
  np.testing.assert_allclose(
      found['video~text'], film['video_text']['video'] @ words['video_text']['text'])


def test_words_and_stretches_matter(vatt, toy_world):
  path = sources.open_source(str(toy_world / 'train.csv'))[0].path
  a, b = (vatt.text(t)['video_text']['text'] for t in ('red circle', 'circle red a'))
  assert abs(a - b).max() > 1e-6
  a, b = (vatt.file(path, end=end, num_windows=1)['video_text']['video']
          for end in (0.9, 3.0))
  assert abs(a - b).max() > 1e-6


def test_what_cannot_be_embedded_is_said(vatt, workdir, tmp_path):
  (tmp_path / 'no.mp4').write_text('no film')
  with pytest.raises(UserError, match=r'no\.mp4'):
    vatt.file(tmp_path / 'no.mp4')
  mute = tmp_path / 'mute'
  shutil.copytree(workdir, mute)
  (mute / 'vocabulary.txt').unlink()
  with pytest.raises(UserError, match='comes without its words; give'):
    embed.Embedder(mute).text('red')
  words = embed.Embedder(mute, vocabulary=workdir / 'vocabulary.txt').text('red')
  np.testing.assert_array_equal(words['video_text']['text'],
                                vatt.text('red')['video_text']['text'])


@pytest.mark.parametrize('kind', text.TOKENIZERS)
def test_a_workdir_says_how_sentences_become_ids(kind, workdir, tmp_path):
  tokenizer = dict(
      words=text.WordTokenizer(['red'], drop_stop_words=True),
      wordpiece=text.WordPieceTokenizer(['[PAD]', '[UNK]', 'the', 'red']),
      sentencepiece=text.SentencePieceTokenizer.train(['the red'], 9))[kind]
  folder = tmp_path / kind
  shutil.copytree(workdir, folder)
  (folder / 'vocabulary.txt').unlink()
  tokenizer.save(folder / tokenizer.file_name)
  data = dict(tokenizer=kind, drop_stop_words=kind == 'words')
  (folder / 'config.json').write_text(
      json.dumps(dict(model=SETTINGS, window=WINDOW, data=data)))
  vatt = embed.Embedder(folder)
  assert vatt._tokenizer.ids('the red') == tokenizer.ids('the red')
  assert vatt.text('the red')['video_text']['text'].shape == (4,)
  if kind == 'words':
    with pytest.raises(UserError, match="'of the': expected a sentence with at least"):
      vatt.text('of the')
