"""Tests vatt_jax/embed.py."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
import wave

import jax
import numpy as np
import pytest

from vatt_jax import checkpoint
from vatt_jax import embed
from vatt_jax.errors import UserError
from vatt_jax.inputs import media
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.models.vatt import Vatt

TINY = dict(depth=1, width=8, num_heads=2, mlp_dim=8)
SETTINGS = dict(video=dict(patch=(2, 16, 16), **TINY), audio=dict(patch=(64,), **TINY),
                text=dict(vocabulary_size=9, **TINY),
                head=dict(video_audio_dim=6, video_text_dim=4))
WINDOW = dict(num_frames=4, frame_rate_hz=5.0, image_size=32, audio_hz=8000,
              max_tokens=5)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Returns the workdir of an untrained model."""
  folder = tmp_path_factory.mktemp('runs') / 'one'
  batch = dict(video=np.zeros((1, 4, 32, 32, 3), np.float32),
               audio=np.zeros((1, 6400), np.float32), text=np.ones((1, 1, 5), np.int32))
  model = Vatt.from_config(**SETTINGS)
  checkpoint.save_model(folder, SETTINGS, jax.jit(model.init)(jax.random.key(0), batch))
  (folder / 'config.json').write_text(json.dumps(dict(model=SETTINGS, window=WINDOW)))
  (folder / 'vocabulary.txt').write_text('a\nred\ncircle\n')
  return folder


@pytest.fixture(scope='module')
def vatt(workdir):
  return embed.Embedder(workdir)


@pytest.fixture(scope='module')
def paths(toy_world):
  return [clip.path for clip in sources.open_source(str(toy_world / 'train.csv'))]


def test_files_and_sentences_are_embedded_in_shared_spaces(vatt, paths):
  videos, audios = vatt.videos(paths[:3]), vatt.audios(paths[:2])
  texts = vatt.texts(['A red circle!', 'red', 'a', 'circle'])
  assert [(x.modality, len(x), {s: v.shape[1] for s, v in x.spaces.items()})
          for x in (videos, audios, texts)] == [
      ('video', 3, dict(video_audio=6, video_text=4)),
      ('audio', 2, dict(video_audio=6)), ('text', 4, dict(video_text=4))]
  for embeddings in (videos, audios, texts):
    for x in embeddings.spaces.values():
      assert x.dtype == np.float32
      np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
  similarity = vatt.similarity(videos, texts)
  assert similarity.keys() == {'video_text'}
  assert similarity['video_text'].shape == (3, 4)
  np.testing.assert_allclose(
      similarity['video_text'][2, 1],
      videos.spaces['video_text'][2] @ texts.spaces['video_text'][1], rtol=1e-5)
  assert vatt.similarity(videos, audios)['video_audio'].shape == (3, 2)


def test_items_of_one_modality_are_compared_with_each_other(vatt, paths):
  """Regression test: one file used to overwrite the other."""
  a, b = vatt.videos(paths[:2]), vatt.videos(paths[1:3])
  similarity = vatt.similarity(a, b)
  assert similarity.keys() == {'video_audio', 'video_text'}
  for space, x in similarity.items():
    np.testing.assert_allclose(x, a.spaces[space] @ b.spaces[space].T, rtol=1e-5)
    assert x[1, 0] == pytest.approx(1, abs=1e-5) and x[0, 1] < 1


def test_modalities_without_a_shared_space_raise(vatt, paths):
  with pytest.raises(UserError, match='audio is embedded in video_audio, text in '
                                      'video_text: they share no space'):
    vatt.similarity(vatt.audios(paths[:1]), vatt.texts(['red']))


def test_batches_give_the_same_values_as_single_items(vatt, paths, monkeypatch):
  """Includes a padded last batch, and a file whose windows span two batches."""
  sentences = ['red circle', 'circle red a', 'a']
  one_by_one = [vatt.videos([p], num_windows=3).spaces['video_text'] for p in paths[:3]]
  single_texts = [vatt.texts([s]).spaces['video_text'] for s in sentences]
  monkeypatch.setattr(embed, '_BATCH_SIZE', 2)
  np.testing.assert_allclose(
      vatt.videos(paths[:3], num_windows=3).spaces['video_text'],
      np.concatenate(one_by_one), atol=1e-5)
  np.testing.assert_allclose(vatt.texts(sentences).spaces['video_text'],
                             np.concatenate(single_texts), atol=1e-5)


def test_word_order_and_segments_change_embeddings(vatt, paths):
  a, b = vatt.texts(['red circle', 'circle red a']).spaces['video_text']
  assert abs(a - b).max() > 1e-6
  segments = [(paths[0], 0, 0.9), (paths[0], 0, 3.0), paths[0]]
  for modality, embed_files in dict(video=vatt.videos, audio=vatt.audios).items():
    a, b, _ = embed_files(segments, num_windows=1).spaces['video_audio']
    assert abs(a - b).max() > 1e-6, modality


def test_bfloat16_model_gives_float32(workdir, paths, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(workdir, folder)
  (folder / 'config.json').write_text(json.dumps(
      dict(model=SETTINGS | dict(dtype='bfloat16'), window=WINDOW)))
  vatt = embed.Embedder(folder)
  videos, texts = vatt.videos(paths[:2]), vatt.texts(['red'])
  for x in (*videos.spaces.values(), *texts.spaces.values(),
            *vatt.similarity(videos, texts).values()):
    assert x.dtype == np.float32


def test_sentence_of_only_unknown_words_logs_a_warning(vatt, caplog):
  vatt.texts(['a zebra', 'red'])
  assert not caplog.records
  vatt.texts(['Zebras gallop!', 'red'])
  assert len(caplog.records) == 1
  assert "none of the words of 'Zebras gallop!': zebras, gallop" in caplog.text


def test_files_that_cannot_be_embedded_raise(vatt, paths, tmp_path):
  (tmp_path / 'no.mp4').write_text('no video')
  with pytest.raises(UserError, match=r'no\.mp4') as error:
    vatt.videos([paths[0], tmp_path / 'no.mp4'])
  assert '\n' not in str(error.value)
  no_audio = next(p for p in paths if not media.MediaFile(p).has_audio)
  assert len(vatt.videos([no_audio])) == 1
  with pytest.raises(UserError, match=f'{re.escape(no_audio)}: has no audio stream'):
    vatt.audios([no_audio])
  with wave.open(str(tmp_path / 'a.wav'), 'wb') as file:
    file.setparams((1, 2, 8000, 0, 'NONE', ''))
    file.writeframes(np.arange(16000, dtype=np.int16).tobytes())
  assert len(vatt.audios([tmp_path / 'a.wav'])) == 1
  with pytest.raises(UserError, match=r'a\.wav'):
    vatt.videos([tmp_path / 'a.wav'])


@pytest.mark.parametrize('call, message', [
    (lambda v, p: v.videos(p), r'expected a list, \['),
    (lambda v, p: v.texts('red'), r"red: expected a list, \['red'\]"),
    (lambda v, p: v.videos((p, 0.0, 1.0)), r'0\.0: expected a path, or \(path, start'),
    (lambda v, p: v.audios([(p, 1.0)]), r'expected a path, or \(path, start, end\)'),
    (lambda v, p: v.texts([]), 'no text to embed: expected a list of one or more'),
    (lambda v, p: v.texts(['red', '?']), r"'\?': expected a sentence with at least")])
def test_arguments_other_than_a_list_raise(call, message, vatt, paths):
  with pytest.raises(UserError, match=message):
    call(vatt, paths[0])


def test_missing_modality_raises(workdir, paths, tmp_path):
  folder = tmp_path / 'no_text'
  model = {k: v for k, v in SETTINGS.items() if k != 'text'}
  batch = dict(video=np.zeros((1, 4, 32, 32, 3), np.float32),
               audio=np.zeros((1, 6400), np.float32))
  checkpoint.save_model(folder, model, jax.jit(Vatt.from_config(**model).init)(
      jax.random.key(0), batch))
  with pytest.raises(UserError, match='no_text: the model has no text; it has video'):
    embed.Embedder(folder).texts(['red'])


def test_vocabulary_can_be_given(workdir, vatt, tmp_path):
  bare = tmp_path / 'bare'
  shutil.copytree(workdir, bare)
  (bare / 'vocabulary.txt').unlink()
  with pytest.raises(UserError, match='has no vocabulary file; give'):
    embed.Embedder(bare).texts(['red'])
  given = embed.Embedder(bare, vocabulary=workdir / 'vocabulary.txt').texts(['red'])
  np.testing.assert_array_equal(given.spaces['video_text'],
                                vatt.texts(['red']).spaces['video_text'])


@pytest.mark.parametrize('kind', text.TOKENIZERS)
def test_workdir_config_chooses_the_tokenizer(kind, workdir, tmp_path):
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
  assert vatt.texts(['the red']).spaces['video_text'].shape == (1, 4)
  if kind == 'words':
    with pytest.raises(UserError, match="'of the': expected a sentence with at least"):
      vatt.texts(['of the'])


def test_import_and_embedding_load_no_tensorflow(workdir, paths):
  """TensorFlow and its datasets take seconds to import."""
  code = textwrap.dedent(f'''
      import sys

      from vatt_jax import embed
      import vatt_jax.models
      import vatt_jax.weights.load

      vatt = embed.Embedder({str(workdir)!r})
      assert len(vatt.videos([{paths[0]!r}])) == len(vatt.texts(['a red circle'])) == 1
      print(*sorted(sys.modules))
  ''')
  loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          check=True).stdout.split()
  assert 'vatt_jax.inputs.reader' in loaded
  assert not [name for name in loaded if name.partition('.')[0] in (
      'tensorflow', 'tensorflow_datasets', 'clu', 'array_record')]
