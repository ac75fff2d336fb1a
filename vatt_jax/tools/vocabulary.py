"""Builds a vocabulary for `--config.data.vocabulary` from a source's captions.

    python -m vatt_jax vocabulary --source=FOLDER_OR_MANIFEST_OR_TXT --captions=FILE \
        --kind=words --size=65536 --out=FILE

A source is any value of `--config.data.path`, or a `.txt` file of one sentence a line.
Prints the numbers of sentences and of words, and the share of the words that the
vocabulary covers.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Iterator
import pathlib

from absl import flags

from vatt_jax import cli
from vatt_jax.errors import UserError
from vatt_jax.inputs import sources
from vatt_jax.inputs import text


def build(source: str, captions: str, kind: str, size: int, out: pathlib.Path,
          drop_stop_words: bool = False) -> str:
  """Builds a vocabulary and writes it.

  Args:
    source: any source of `sources.open_source`, or a `.txt` file.
    captions: file of timed captions beside the source; empty for none.
    kind: 'words' or 'sentencepiece'.
    size: the largest number of ids, including padding and unknown words.
    out: the file to write; must not exist.
    drop_stop_words: leave stop words out; only with 'words'.

  Returns:
    A line that describes the result. The coverage is the share of spoken words
    (without the stop words, if they are dropped) whose parts are all known.

  Raises:
    UserError: the source is wrong or has no sentences, the file exists already, or no
      such vocabulary can be built.
  """
  if out.exists():
    raise UserError(f'--out={out}: exists already; choose another file')
  if not out.parent.is_dir():
    raise UserError(f'--out={out}: the folder {out.parent} does not exist; make it '
                    'first')
  if drop_stop_words and kind != 'words':
    raise UserError(f'--drop_stop_words: only --kind=words has stop words, not {kind}')
  sentences = _open(source, captions)
  counts: collections.Counter[str] = collections.Counter()
  num_sentences = 0
  for sentence in sentences():
    words = text.words(sentence)
    counts.update(words)
    num_sentences += bool(words)
  if not counts:
    raise UserError(f'{source}: has no sentences; give --captions=FILE, a manifest '
                    'with a text column, or a .txt file')
  if kind == 'words':
    tokenizer = text.WordTokenizer.rank(counts, size, drop_stop_words)
  else:
    try:
      tokenizer = text.SentencePieceTokenizer.train(sentences(), size)
    except ValueError as e:
      raise UserError(f'--size={size}: {e}') from e
  tokenizer.save(out)
  num_words = num_covered = 0
  for word, count in counts.items():
    unknown, total = tokenizer.count_unknown(word)
    num_words += count if total else 0    # a dropped stop word has a total of 0
    num_covered += count if total and not unknown else 0
  return (f'Wrote {out}: {num_sentences} sentences, {len(counts)} distinct words; '
          f'size {tokenizer.size}, coverage {num_covered / max(num_words, 1):.2%} of '
          f'{num_words} words')


def _open(source: str, captions: str) -> Callable[[], Iterator[str]]:
  """Returns a function that iterates over all sentences, from the start at each call.

  A media file's sentences come once for each of its clips, as a run would draw them.
  """
  path = pathlib.Path(source)
  if path.suffix == '.txt':
    if captions:
      raise UserError(f'--captions={captions}: a .txt source has no captions file; '
                      'leave the flag out')
    if not path.is_file():
      raise UserError(f'{source}: no such file')
    return lambda: _lines(path)
  clips = sources.open_source(source, captions)
  return lambda: (c.text for clip in sources.each(clips) for c in clip.captions)


def _lines(path: pathlib.Path) -> Iterator[str]:
  with path.open(encoding='utf-8') as file:
    try:
      yield from file
    except UnicodeDecodeError as e:
      raise UserError(f'{path}: expected UTF-8 text ({e.reason})') from e


def main() -> None:
  f = flags.FLAGS
  print(build(f.source, f.captions, f.kind, f.size, pathlib.Path(f.out),
              f.drop_stop_words))


if __name__ == '__main__':
  flags.DEFINE_string('source', None, 'A folder, a manifest or a .txt file.',
                      required=True)
  flags.DEFINE_string('captions', '', 'A file of timed captions beside the source.')
  flags.DEFINE_enum('kind', 'words', ['words', 'sentencepiece'],
                    'Kind of the vocabulary.')
  flags.DEFINE_integer('size', 2 ** 16, 'Largest number of ids.', lower_bound=3)
  flags.DEFINE_boolean('drop_stop_words', False, 'Leave stop words out.')
  flags.DEFINE_string('out', None, 'The file to write.', required=True)
  cli.run(main)
