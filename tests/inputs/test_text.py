"""Tests of vatt_jax/inputs/text.py."""

import io

import numpy as np
import pytest
import sentencepiece

from vatt_jax.errors import UserError
from vatt_jax.inputs import text

# From FullTokenizerTest in tokenization_test.py of github.com/google-research/bert,
# with padding in front.
BERT = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', 'want', '##want', '##ed', 'wa', 'un',
        'runn', '##ing', ',')
CORPUS = [f'{a} {b} circle moves {c}' for a in ('a', 'one') for b in ('red', 'blue')
          for c in ('left', 'right', 'up')]


@pytest.fixture(scope='module')
def pieces():
  return text.SentencePieceTokenizer.train(CORPUS, 60)


def foreign_model(**settings):
  """Returns a model that another project might have trained."""
  file = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(CORPUS), model_writer=file, vocab_size=60,
      hard_vocab_limit=False, minloglevel=2, **settings)
  return file.getvalue()


def test_words_are_lower_case_without_punctuation():
  assert text.words("Don't  STOP, now: it's 5_o'clock!\tÉté") == [
      'dont', 'stop', 'now', 'its', '5oclock', 'été']


def test_most_frequent_words_get_ids_and_ties_are_alphabetical():
  tokenizer = text.WordTokenizer.build(['b a c', 'c a', 'd'], size=5)
  assert tokenizer.vocabulary == ('a', 'c', 'b') and tokenizer.size == 5
  assert tokenizer.encode('c b a d!', 6).tolist() == [3, 4, 2, 1, 0, 0]
  assert tokenizer.encode('a b c', 2).tolist() == [2, 4]
  assert tokenizer.encode('', 2).tolist() == [0, 0]


def test_sentences_are_truncated_and_padded(pieces):
  wordpiece = text.WordPieceTokenizer(BERT)
  for tokenizer in (text.WordTokenizer(['red']), wordpiece, pieces):
    long, short = (tokenizer.encode(' '.join(['red'] * n), 16) for n in (40, 1))
    assert long.dtype == short.dtype == np.int32
    assert long.shape == short.shape == (16,) and long.all()
    assert short[0] and not short[-1]
    assert not tokenizer.encode(' \t ', 16).any()


def test_drop_stop_words_removes_them_from_sentences_and_vocabularies():
  texts = ['The red circle', 'the red one']
  kept = text.WordTokenizer.build(texts, 9)
  dropped = text.WordTokenizer.build(texts, 9, drop_stop_words=True)
  assert kept.vocabulary == ('red', 'the', 'circle', 'one')
  assert dropped.vocabulary == ('red', 'circle')
  assert dropped.encode('That is the RED square.', 4).tolist() == [2, 1, 0, 0]
  assert not dropped.encode('This is it', 4).any()
  assert dropped.count_unknown('This is it') == (0, 0)
  assert kept.count_unknown('the red square') == (1, 3)


def test_wordpiece_matches_the_tests_of_bert():
  tokenizer = text.WordPieceTokenizer(BERT)
  assert tokenizer.ids('UNwant\u00E9d,running') == [8, 5, 6, 11, 9, 10]
  assert tokenizer.ids('wanted unwantedX running.') == [4, 6, 1, 9, 10, 1]
  assert tokenizer.count_unknown('wanted unwantedX running.') == (2, 6)
  # Text that looks like a special token of BERT is plain text.
  assert tokenizer.ids('[PAD]') == [1, 1, 1]


def test_cased_wordpiece_vocabulary_keeps_case():
  cased = text.WordPieceTokenizer((*BERT, 'Want', 'é'))
  assert cased.ids('Want want é') == [12, 4, 13]
  assert text.WordPieceTokenizer((*BERT, 'e')).ids('Want É') == [4, 12]


def test_wordpiece_ids_are_the_lines_of_the_file(tmp_path):
  """Published vocabularies have [UNK] as the hundredth piece."""
  (tmp_path / 'vocab.txt').write_bytes(b'[PAD]\r\n[unused0]\r\nred\r\n[UNK]\r\n')
  tokenizer = text.load('wordpiece', tmp_path / 'vocab.txt', 4)
  assert tokenizer.encode('red blue', 3).tolist() == [2, 3, 0]
  assert tokenizer.count_unknown('red blue') == (1, 2)


def test_sentencepiece_pads_with_0_and_unknown_is_1(pieces):
  assert pieces.unknown == 1
  ids = pieces.encode('Red circle', 16)
  assert 1 not in ids and 0 not in ids[:2] and ids[-1] == 0
  np.testing.assert_array_equal(ids, pieces.encode('red  CIRCLE', 16))
  assert max(pieces.ids(CORPUS[0])) < pieces.size <= 60
  unknown, total = pieces.count_unknown('red \u2603')
  assert unknown == 1 and total > 1


def test_training_is_deterministic(pieces, monkeypatch):
  again = text.SentencePieceTokenizer.train(iter(CORPUS), 60)
  assert again._content == pieces._content
  large = [f'{s} {chr(97 + i % 26)}{chr(97 + i // 26)}'
           for s in CORPUS for i in range(50)]
  every = text.SentencePieceTokenizer.train(large, 200)
  monkeypatch.setattr(text, '_MAX_TRAINING_SENTENCES', 101)    # so that it samples
  a, b = (text.SentencePieceTokenizer.train(large, 200) for _ in range(2))
  assert a._content == b._content != every._content


def test_foreign_sentencepiece_models_pad_with_0():
  t5 = foreign_model(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
  plain = foreign_model()    # 0 is unknown, without padding
  late = foreign_model(pad_id=3)
  for content, unknown, shift in ((t5, 2, 0), (plain, 1, 1), (late, 1, 1)):
    tokenizer = text.SentencePieceTokenizer(content)
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    assert tokenizer.unknown == unknown
    assert tokenizer.size == model.get_piece_size() + shift
    assert tokenizer.ids('red \u2603') == [
        i + shift for i in model.encode('red \u2603')]
    assert unknown in tokenizer.ids('\u2603') and 0 not in tokenizer.ids('red \u2603')


@pytest.mark.parametrize('kind', text.TOKENIZERS)
def test_saved_tokenizers_load_unchanged(kind, pieces, tmp_path):
  tokenizer = dict(
      words=text.WordTokenizer.build(['été zwei three'], size=9),
      wordpiece=text.WordPieceTokenizer(BERT), sentencepiece=pieces)[kind]
  path = tmp_path / tokenizer.file_name
  tokenizer.save(path)
  loaded = text.load(kind, path, tokenizer.size)
  assert type(loaded) is type(tokenizer)
  assert (loaded.size, loaded.unknown) == (tokenizer.size, tokenizer.unknown)
  for sentence in ('Été: three wanted', 'a red circle', 'un\u2603'):
    assert loaded.ids(sentence) == tokenizer.ids(sentence)
  with pytest.raises(UserError, match=rf'{path.name}: {tokenizer.size} ids, .*do not '
                                      r'fit model\.text\.vocabulary_size=4; raise it'):
    text.load(kind, path, 4)


def test_tokenizers_have_different_file_names():
  names = {t.file_name for t in text.TOKENIZERS.values()}
  assert len(names) == len(text.TOKENIZERS)


def test_load_sets_drop_stop_words(tmp_path):
  path = tmp_path / 'words.txt'
  path.write_text('red\n')
  assert text.load('words', path, 9).ids('the red') == [1, 2]
  assert text.load('words', path, 9, drop_stop_words=True).ids('the red') == [2]


@pytest.mark.parametrize('content', [
    '<pad>\n<bos>\n<eos>\n<unk>\ncat\n', '4 cat\n1 <bos>\n2 <eos>\n3 <unk>\n0 <pad>\n'])
def test_release_vocabularies_keep_their_ids(content, tmp_path):
  path = tmp_path / 'words.txt'
  path.write_text(content)
  tokenizer = text.load('words', path, 5)
  assert tokenizer.size == 5
  assert tokenizer.encode('cat dog', 3).tolist() == [4, 3, 0]
  tokenizer.save(path)
  assert text.load('words', path, 5).ids('cat dog') == [4, 3]


@pytest.mark.parametrize('kind, content, message', [
    ('words', b'[PAD]\n[UNK]\nred\n', r"WordPiece.*set config\.data\.tokenizer='wordp"),
    ('words', b'\x0a\x07\xff\xfe', r"expected UTF-8 .*data\.tokenizer='sentencepiece'"),
    ('words', b'red\ngreen tea\n', "line 2: expected one word, found 'green tea'"),
    ('words', b'<pad>\nred\n', 'begins with <pad>, but has no <unk>'),
    ('words', b'0 <pad>\n2 <unk>\n', r'expected the ids 0 \.\.\. 1, each once'),
    ('words', b'0 red\n1 <unk>\n', '0 for <pad>'),
    ('wordpiece', b'red\ngreen\n', r"expected a BERT vocabulary.*'\[PAD\]' first"),
    ('wordpiece', b'[PAD]\nred\n', r"with '\[UNK\]'"),
    ('wordpiece', b'', 'expected a BERT vocabulary'),
    ('sentencepiece', b'red\ngreen\n', 'expected a SentencePiece model'),
    ('sentencepiece', b'', 'expected a SentencePiece model')])
def test_vocabulary_of_another_kind_raises_with_reason(
    kind, content, message, tmp_path):
  (tmp_path / 'file').write_bytes(content)
  where = rf"file: as data\.tokenizer='{kind}': "
  with pytest.raises(UserError, match=f'{where}.*{message}'):
    text.load(kind, tmp_path / 'file', 100)


def test_missing_vocabulary_raises_with_its_path(tmp_path):
  with pytest.raises(UserError, match='none: no such vocabulary file'):
    text.load('words', tmp_path / 'none', 9)
