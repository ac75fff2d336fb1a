"""Reads clips from files that hold many: shards of records, and tar files.

All support random access. An ArrayRecord file has an index of its records; the others
are indexed by one pass over the headers (docs/decisions/0004-one-way-to-read.md).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import struct
import tarfile
from typing import Any

from absl import logging
from google.protobuf.message import DecodeError
import numpy as np

from vatt_jax.errors import UserError
from vatt_jax.inputs import images
from vatt_jax.inputs import tables
from vatt_jax.inputs.clip import Caption
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.clip import IMAGE_SUFFIXES
from vatt_jax.inputs.clip import MEDIA_SUFFIXES
from vatt_jax.inputs.clip import SOUND_SUFFIXES
from vatt_jax.inputs.host_tensorflow import tf
from vatt_jax.inputs.media import MediaError

# Defaults for the release's SequenceExamples that do not give their rates.
_DMVR_FRAME_RATE_HZ = 10.0
_DMVR_AUDIO_HZ = 48_000
# TFDS stores no frame rate. With audio, both are assumed to have the same duration.
_TFDS_FRAME_RATE_HZ = 25.0
# Errors that readers and parsers raise for a damaged record.
_MALFORMED = (DecodeError, KeyError, IndexError, ValueError, RuntimeError, OSError,
              tf.errors.OpError)


@dataclasses.dataclass(frozen=True)
class Records(Sequence[Clip]):
  """Gives the clips of shards; each is one record, read on access.

  Attributes:
    records: the bytes of the records.
    names: the name of their files, for messages.
    parse: a record and its name -> clip.
  """
  records: Sequence[bytes]
  names: str
  parse: Callable[[bytes, str], Clip]

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Clip:
    """Reads a clip; raises MediaError if its record is damaged or of another kind."""
    if not 0 <= index < len(self):    # ends an iteration
      raise IndexError(index)
    name = f'{self.names}[{index}]'
    try:
      return self.parse(self.records[index], name)
    except _MALFORMED as e:
      reason = str(e).splitlines()[0] if str(e) else type(e).__name__
      raise MediaError(name, f'is not a record of the expected kind ({reason}); '
                             'docs/data.md describes the kinds') from e


def open_array_records(paths: Sequence[pathlib.Path]) -> Records:
  """Opens shards that `vatt_jax prepare` wrote."""
  return Records(_array_records(paths), _common_name(paths), from_example)


def open_sequence_examples(paths: Sequence[pathlib.Path]) -> Records:
  """Opens TFRecord files of SequenceExamples, as of DMVR and the released code."""
  return Records(TFRecords(paths), _common_name(paths), from_sequence_example)


def open_tfds(folder: pathlib.Path, split: str) -> Records:
  """Opens a split of a dataset that TFDS prepared.

  Raises:
    UserError: the split does not exist, or it has neither video, image nor audio.
  """
  import tensorflow_datasets as tfds
  builder = tfds.builder_from_directory(os.fspath(folder))
  if split not in builder.info.splits:
    raise UserError(f'{folder}: has no split {split!r}; expected one of '
                    f'{", ".join(sorted(builder.info.splits))}')
  features = builder.info.features
  if not {'video', 'image', 'audio'} & features.keys():
    raise UserError(f'{folder}: has the features {", ".join(features)}; expected '
                    'video, image or audio among them')
  paths = [pathlib.Path(p) for p in builder.info.splits[split].filepaths]
  by_index = builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
  records = _array_records(paths) if by_index else TFRecords(paths)
  return Records(records, _common_name(paths),
                 functools.partial(_from_tfds, features=features))


def to_example(clip: Clip, name: str, **content: Any) -> bytes:
  """Serializes a clip as a packed record (docs/data.md).

  Args:
    clip: the clip, for its captions and labels.
    name: name of the record; its suffix tells an image from a video.
    **content: either `media`, a file's bytes, with `start` and `end` of the clip in
      it; or `frames`, a list of JPEGs, with `frame_rate_hz`, and `sound`, the bytes of
      little-endian int16 samples, with `sound_hz`.

  Returns:
    A serialized tf.train.Example.
  """
  example = tf.train.Example()
  add = example.features.feature
  for key, value in {'id': name, **content}.items():
    if key in ('start', 'end', 'frame_rate_hz'):
      add[key].float_list.value.append(value)
    elif key == 'sound_hz':
      add[key].int64_list.value.append(value)
    else:
      values = value if key == 'frames' else [value]
      add[key].bytes_list.value.extend(
          v.encode() if isinstance(v, str) else v for v in values)
  for key, value in clip.labels.items():
    add[f'label/{key}'].bytes_list.value.append(value.encode())
  for caption in clip.captions:
    add['caption/text'].bytes_list.value.append(caption.text.encode())
    add['caption/start'].float_list.value.append(caption.start)
    add['caption/end'].float_list.value.append(caption.end)
  return example.SerializeToString(deterministic=True)


def from_example(record: bytes, name: str) -> Clip:
  """Parses a packed record, as `to_example` writes it, to a clip."""
  feature = tf.train.Example.FromString(record).features.feature
  text = lambda key: [v.decode() for v in feature[key].bytes_list.value]
  times = lambda key: feature[key].float_list.value
  number = lambda key, default: (*feature[key].float_list.value, default)[0]
  if 'id' not in feature or not {'media', 'frames', 'sound'} & feature.keys():
    raise ValueError(f'has the keys {_names(feature)}; expected id, and media, frames '
                     'or sound')
  path = f'{name}/{text("id")[0]}'
  captions = itertools.starmap(Caption, zip(
      times('caption/start'), times('caption/end'), text('caption/text'), strict=True))
  if feature['media'].bytes_list.value:
    content = feature['media'].bytes_list.value[0]
  else:
    content = images.Stills(
        path, feature['frames'].bytes_list.value, number('frame_rate_hz', 1.0),
        np.frombuffer(b''.join(feature['sound'].bytes_list.value), '<i2'),
        (*feature['sound_hz'].int64_list.value, 1)[0])
  labels = {k.removeprefix('label/'): text(k)[0] for k in sorted(feature)
            if k.startswith('label/')}
  return Clip(path, number('start', 0.0), number('end', math.inf), tuple(captions),
              labels, content)


def from_sequence_example(record: bytes, name: str) -> Clip:
  """Parses a SequenceExample with DMVR's keys (docs/data.md) to a clip."""
  example = tf.train.SequenceExample.FromString(record)
  context, lists = example.context.feature, example.feature_lists.feature_list
  number = lambda key, default: (*context[key].float_list.value,
                                 *context[key].int64_list.value, default)[0]
  both = lambda key: [*context[key].bytes_list.value, *(
      v for f in lists[key].feature for v in f.bytes_list.value)]
  if not {*context, *lists} & {'image/encoded', 'WAVEFORM/feature/floats'}:
    raise ValueError(f'has the keys {_names([*context, *lists])}; expected '
                     'image/encoded or WAVEFORM/feature/floats')
  waveform = np.concatenate([np.zeros(0, np.float32), *(
      np.asarray(f.float_list.value, np.float32)
      for f in lists['WAVEFORM/feature/floats'].feature)])
  if not np.isfinite(waveform).all():
    # DMVR's example script asks FFmpeg for s32le, and stores it as floats.
    raise ValueError('WAVEFORM/feature/floats are not finite; write them as FFmpeg\'s '
                     'f32le')
  path = name + ''.join(f'/{v.decode()}' for v in both('video/filename'))
  content = images.Stills(
      path, both('image/encoded'), number('image/frame_rate', _DMVR_FRAME_RATE_HZ),
      waveform, int(number('WAVEFORM/feature/sample_rate', _DMVR_AUDIO_HZ)))
  captions = tuple(Caption(0.0, content.duration_seconds, v.decode())
                   for v in both('caption/string'))
  indices = context['clip/label/index'].int64_list.value
  texts = [v.decode() for v in both('clip/label/text') or both('clip/label/string')]
  labels = {}
  if indices:
    labels['label_index'] = '|'.join(map(str, indices))
  if texts:
    labels['label'] = '|'.join(texts)
  return Clip(path, captions=captions, labels=labels, content=content)


def _from_tfds(record: bytes, name: str, features: Mapping[str, Any]) -> Clip:
  """Parses TFDS's tf.train.Example to a clip; its frames stay encoded."""
  import tensorflow_datasets as tfds
  example = tf.train.Example.FromString(record).features.feature
  frames = example['video' if 'video' in features else 'image'].bytes_list.value
  waveform, rate_hz = np.zeros(0, np.float32), 1
  if 'audio' in features:
    waveform, rate_hz = _tfds_audio(example['audio'], features['audio'])
  if not len(frames) and not len(waveform):
    raise ValueError(f'has the keys {_names(example)}; expected video, image or audio')
  frame_rate_hz = 1.0
  if 'video' in features:
    frame_rate_hz = (len(frames) * rate_hz / len(waveform) if len(waveform) else
                     _TFDS_FRAME_RATE_HZ)
  content = images.Stills(name, frames, frame_rate_hz, waveform, rate_hz)
  captions, labels = [], {}
  for key, feature in features.items():
    kind = getattr(feature, 'feature', feature)    # a sequence: its elements' feature
    if isinstance(kind, tfds.features.ClassLabel):
      labels[key] = '|'.join(kind.int2str(i) for i in example[key].int64_list.value
                             if i >= 0)    # -1: not published, in some test splits
    elif isinstance(kind, tfds.features.Text):
      texts = [v.decode() for v in example[key].bytes_list.value]
      if key in ('text', 'caption', 'captions'):
        captions += [Caption(0.0, content.duration_seconds, t) for t in texts]
      else:
        labels[key] = '|'.join(texts)
  return Clip(name, captions=tuple(captions), labels=labels, content=content)


def _tfds_audio(values: tf.train.Feature, feature: Any) -> tuple[np.ndarray, int]:
  """Returns the mono samples of an audio feature, and their rate in Hz."""
  if values.bytes_list.value:
    raise ValueError('its audio is stored encoded; prepare it with Audio(lazy_decode='
                     'False, encoding=None)')
  rate_hz = getattr(feature, 'sample_rate', None)
  if not rate_hz:
    raise ValueError('its feature "audio" has no sample_rate')
  whole = values.int64_list.value
  samples = np.asarray(whole or values.float_list.value, np.float32)
  if len(feature.shape) == 2:    # time, channels
    samples = samples.reshape(-1, feature.shape[1]).mean(axis=1)
  if whole:
    if np.abs(samples).max() > 32768:
      raise ValueError('its audio has integers of more than 16 bits')
    samples = np.clip(np.round(samples), -32768, 32767).astype(np.int16)
  return samples, int(rate_hz)


class TFRecords(Sequence[bytes]):
  """Gives random access to the records of TFRecord files by an index in memory."""

  def __init__(self, paths: Sequence[pathlib.Path]):
    """Builds the index from the length before each record.

    Raises:
      UserError: a file is compressed, truncated, or not a TFRecord file.
    """
    self._paths = list(paths)
    self._places = [_tfrecord_places(path) for path in self._paths]
    self._ends = np.cumsum([len(p) for p in self._places])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> bytes:
    shard = bisect.bisect_right(self._ends, index)
    offset, length = self._places[shard][index - int(self._ends[shard])]
    return _read(self._paths[shard], offset, length)


def _tfrecord_places(path: pathlib.Path) -> np.ndarray:
  """Returns offset and length of every record.  -> [N, 2]."""
  places, size, offset = [], path.stat().st_size, 0
  with path.open('rb', buffering=0) as file:
    while offset < size:
      header = file.read(12)    # length, and a checksum of it
      length = struct.unpack('<Q', header[:8])[0] if len(header) == 12 else size
      if offset + 16 + length > size:
        raise UserError(f'{path}: no complete record at byte {offset}; expected a '
                        'complete, uncompressed TFRecord file')
      places.append((offset + 12, length))
      offset = file.seek(length + 4, os.SEEK_CUR)
  return np.asarray(places, np.int64).reshape(-1, 2)


class TarClips(Sequence[Clip]):
  """Gives the clips of tar files in the layout of WebDataset.

  Files with the same name up to the first dot are one clip: a media file; `.txt`, a
  sentence; `.cls`, a label; `.json`, an object like a line of a JSONL manifest,
  without the path.
  """

  def __init__(self, paths: Sequence[pathlib.Path]):
    """Reads the headers of the tar files.

    Raises:
      UserError: a file is compressed or is not a tar file.
    """
    self._clips = [c for path in paths for c in _tar_members(path)]

  def __len__(self) -> int:
    return len(self._clips)

  def __getitem__(self, index: int) -> Clip:
    """Reads a clip; raises MediaError if a text does not have its suffix's format."""
    shard, name, members = self._clips[index]
    # A video takes precedence over its thumbnail and over a separate audio file.
    media = min(filter(_is_media, members), key=lambda s: (
        f'.{s}' in IMAGE_SUFFIXES, f'.{s}' in SOUND_SUFFIXES))
    path = f'{shard}/{name}.{media}'
    read = lambda suffix: _read(shard, *members[suffix])
    row: dict[str, Any] = {}
    try:
      for suffix in sorted(members.keys() & {'json', 'txt', 'cls'}):
        text = read(suffix).decode().strip()
        row |= json.loads(text) if suffix == 'json' else {
            {'txt': 'text', 'cls': 'label'}[suffix]: text}
      clip = tables.to_clip('the text beside it', path, row)
      return dataclasses.replace(clip, content=read(media))
    except UserError as e:
      raise MediaError(path, str(e)) from e
    except (ValueError, TypeError) as e:
      raise MediaError(path, f'the file {name}.{suffix} beside it is not '
                             f'{"a JSON object" if suffix == "json" else "UTF-8 text"} '
                             f'({e})') from e
    except OSError as e:
      raise MediaError(path, e.strerror or str(e)) from e


def _tar_members(path: pathlib.Path) -> list[tuple[pathlib.Path, str, dict]]:
  """Returns (shard, name, suffix -> offset and size) of each clip."""
  clips: dict[str, dict[str, tuple[int, int]]] = {}
  dotted = []
  try:
    with tarfile.open(path, 'r:') as archive:
      for member in archive:
        folder, _, file = member.name.rpartition('/')
        stem, _, suffix = file.partition('.')
        if member.isfile():
          name = f'{folder}/{stem}' if folder else stem
          clips.setdefault(name, {})[suffix.lower()] = member.offset_data, member.size
          if '.' in suffix and _is_media(suffix.rpartition('.')[2].lower()):
            dotted.append(file)
        archive.members.clear()    # otherwise tarfile keeps all in memory
  except tarfile.TarError as e:
    raise UserError(f'{path}: expected a complete, uncompressed tar file ({e})') from e
  if dotted:
    logging.warning('%s: skipped %d media files with dots in their names; the first '
                    'is %s', path, len(dotted), dotted[0])
  return [(path, name, members) for name, members in clips.items()
          if any(map(_is_media, members))]


def _is_media(suffix: str) -> bool:
  return f'.{suffix}' in MEDIA_SUFFIXES


def _array_records(paths: Sequence[pathlib.Path]) -> Sequence[bytes]:
  try:    # imported here, because it is not available on all platforms
    from array_record.python import array_record_data_source
  except ImportError as e:
    raise UserError(f'{_common_name(paths)}: reading it needs the package '
                    'array_record, which is not installed; it runs on Linux') from e
  try:
    return array_record_data_source.ArrayRecordDataSource([os.fspath(p) for p in paths])
  except (RuntimeError, ValueError) as e:
    reason = (str(e).splitlines() or ['no index at its end'])[0]
    raise UserError(f'{_common_name(paths)}: expected complete ArrayRecord files '
                    f'({reason})') from e


def _names(keys: Iterable[str]) -> str:
  return ', '.join(sorted(keys)) or 'nothing'


def _common_name(paths: Sequence[pathlib.Path]) -> str:
  """Returns a single path, or the folder of many."""
  return os.fspath(paths[0] if len(paths) == 1 else paths[0].parent)


def _read(path: pathlib.Path, offset: int, length: int) -> bytes:
  with path.open('rb') as file:
    file.seek(offset)
    return file.read(length)


# Kind of shards -> the function that opens them.
OPENERS: dict[str, Callable[[Sequence[pathlib.Path]], Sequence[Clip]]] = {
    'array_record': open_array_records, 'tar': TarClips,
    'tfrecord': open_sequence_examples}
