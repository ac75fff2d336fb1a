"""Tests of vatt_jax/inputs/records.py, through sources.open_source."""

import csv
import gzip
import io
import itertools
import json
import pathlib
import tarfile

from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from vatt_jax.errors import UserError
from vatt_jax.inputs import clip as clip_lib
from vatt_jax.inputs import media
from vatt_jax.inputs import records
from vatt_jax.inputs import sources
from vatt_jax.inputs import text
from vatt_jax.inputs.batches import eval_batches
from vatt_jax.inputs.batches import train_batches
from vatt_jax.inputs.reader import FileNotes
from vatt_jax.inputs.reader import Reader
from vatt_jax.inputs.window import Window

WINDOW = Window(num_frames=4, frame_rate_hz=5.0, image_size=32, audio_hz=4000,
                num_candidates=3, max_tokens=6, min_crop_area=0.5)
WORDS = text.WordTokenizer(('red', 'blue', 'circle', 'square', 'a', 'star', 'left'))
NUM_CLIPS = 6
SOUND_HZ = 16_000
KINDS = ('array_record of media', 'array_record of frames', 'tar', 'tfrecord',
         'tfds array_record', 'tfds tfrecord')
# Two of these hold the files unchanged, so the batches have the same bits.
AS_THEY_ARE = ('array_record of media', 'tar')


def _reader(clips, max_bad_fraction=0.1, window=WINDOW):
  return Reader(clips, window, WORDS,
                FileNotes(max_bad_fraction, len(clips)))


def _take(reader, count, first_step=0, batch_size=4, **hosts):
  return list(itertools.islice(
      train_batches(reader, batch_size, 3, first_step, **hosts), count))


def _assert_same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], key)


@pytest.fixture(scope='module')
def plain(toy_world):
  """Writes the clips as files, each with its captions and a label."""
  clips = sources.open_source(str(toy_world / 'train.csv'), 'train_captions.csv')
  return [clip_lib.Clip(c.path, 0.5, 7.0, c.captions, {'side': 'ab'[i % 2]})
          for i, c in enumerate(itertools.islice(clips, NUM_CLIPS))]


def _frames(clip):
  """Returns the frames of a clip as JPEG, ten per second."""
  encoded = []
  with media.MediaFile(clip.path) as file:
    for picture in file.frames(
        clip.start + np.arange(round(10 * (clip.end - clip.start))) / 10):
      whole = io.BytesIO()
      Image.fromarray(picture.cut((0, 0, *picture.size), picture.size)).save(
          whole, 'JPEG', quality=95, subsampling=0)
      encoded.append(whole.getvalue())
  return encoded


def _sound(clip):
  """Returns float32 samples at SOUND_HZ; empty without audio."""
  with media.MediaFile(clip.path) as file:
    samples = round((clip.end - clip.start) * SOUND_HZ)
    sound = file.audio(clip.start, samples, SOUND_HZ)
  return np.zeros(0, np.float32) if sound is None else sound


def _int16(sound):
  return np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)


def _write_array_record(path, records):
  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()


def _write_tar(path, files):
  with tarfile.open(path, 'w') as archive:
    for name, content in files:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))


def _write_tfrecord(path, records):
  with tf.io.TFRecordWriter(str(path)) as writer:
    for record in records:
      writer.write(record)


def _sequence_example(frames, sound, captions, context=()):
  """Writes like DMVR's script: lists with a feature per element, or a single one."""
  lists = tf.train.FeatureLists()
  for frame in frames:
    lists.feature_list['image/encoded'].feature.add().bytes_list.value.append(frame)
  if len(sound):
    lists.feature_list['WAVEFORM/feature/floats'].feature.add(
        ).float_list.value.extend(sound)
  example = tf.train.SequenceExample(feature_lists=lists)
  feature = example.context.feature
  feature['caption/string'].bytes_list.value.extend(c.encode() for c in captions)
  for key, value in dict(context).items():
    values = value if isinstance(value, list) else [value]
    kind = {bytes: 'bytes_list', int: 'int64_list', float: 'float_list'}
    getattr(feature[key], kind[type(values[0])]).value.extend(values)
  return example.SerializeToString()


def _prepare_tfds(folder, file_format, features, examples):
  """Prepares a dataset like TFDS; returns its folder."""

  class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
      return {'train': enumerate(examples)}

    def _generate_examples(self):
      raise NotImplementedError

  Toy(data_dir=str(folder), file_format=file_format).download_and_prepare()
  return folder / 'toy' / '1.0.0'


@pytest.fixture(scope='module')
def packs(plain, tmp_path_factory):
  """Writes the clips to each kind of container; returns kind -> `data.path`."""
  root = tmp_path_factory.mktemp('packs')
  half = NUM_CLIPS // 2
  contents = [pathlib.Path(c.path).read_bytes() for c in plain]
  frames, sounds = [_frames(c) for c in plain], [_sound(c) for c in plain]
  folders = {}
  for kind in KINDS:
    folders[kind] = root / kind.replace(' ', '_')
    folders[kind].mkdir()

  rows = [records.to_example(c, f'{i:04d}.mp4', media=m, start=c.start, end=c.end)
             for i, (c, m) in enumerate(zip(plain, contents, strict=True))]
  for shard, part in enumerate((rows[:half], rows[half:])):
    _write_array_record(folders['array_record of media']
                        / f'train-{shard:05d}-of-00002.array_record', part)
  _write_array_record(folders['array_record of frames'] / 'train.array_record', [
      records.to_example(clip_lib.Clip('', captions=tuple(
          clip_lib.Caption(s.start - c.start, s.end - c.start, s.text)
          for s in c.captions), labels=c.labels),
          f'{i:04d}', frames=f, frame_rate_hz=10.0, sound=_int16(s).tobytes(),
          sound_hz=SOUND_HZ)
      for i, (c, f, s) in enumerate(zip(plain, frames, sounds, strict=True))])

  members = []
  for i, (c, m) in enumerate(zip(plain, contents, strict=True)):
    row = dict(start=c.start, end=c.end, captions=[vars(s) for s in c.captions],
               side=c.labels['side'])
    members.append([(f'{i // 2}/{i:04d}.jpg', frames[i][0]),    # a thumbnail
                    (f'{i // 2}/{i:04d}.mp4', m),
                    (f'{i // 2}/{i:04d}.json', json.dumps(row).encode())])
  for shard, part in enumerate((members[:half], members[half:])):
    _write_tar(folders['tar'] / f'{shard:06d}.tar', itertools.chain(*part))

  examples = [_sequence_example(
      f, s, [t.text for t in c.captions],
      {'clip/label/text': c.labels['side'].encode(), 'clip/label/index': i % 2,
       'WAVEFORM/feature/sample_rate': SOUND_HZ, 'video/filename': b'x%d.mp4' % i})
              for i, (c, f, s) in enumerate(zip(plain, frames, sounds, strict=True))]
  for shard in range(10):    # some of these are empty
    _write_tfrecord(folders['tfrecord'] / f'train-{shard:05d}-of-00010',
                    examples[shard:shard + 1])

  features = tfds.features.FeaturesDict(dict(
      video=tfds.features.Video(shape=(None, 64, 64, 3), encoding_format='jpeg'),
      audio=tfds.features.Audio(sample_rate=SOUND_HZ, dtype=np.int64),
      side=tfds.features.ClassLabel(names=['a', 'b']),
      sounds=tfds.features.Sequence(tfds.features.ClassLabel(names=['x', 'y', 'z'])),
      text=tfds.features.Text(), source=tfds.features.Text()))
  rows = [dict(
      video=[np.asarray(Image.open(io.BytesIO(f))) for f in frames[i]],
      audio=_int16(sounds[i]).astype(np.int64), side='ab'[i % 2], sounds=['z', 'x'],
      text=(c.captions[0].text if c.captions else ''), source=str(i))
      for i, c in enumerate(plain)]
  for name in ('array_record', 'tfrecord'):
    kind = f'tfds {name}'
    folders[kind] = f'{_prepare_tfds(folders[kind], name, features, rows)}:train'
  return {kind: str(folder) for kind, folder in folders.items()}


@pytest.mark.parametrize('kind', KINDS)
def test_each_container_gives_the_expected_batches(kind, packs):
  reader = _reader(sources.open_source(packs[kind]))
  batches = _take(reader, 6)
  assert {k: (v.shape, v.dtype.name) for k, v in batches[0].items()} == {
      'video': ((4, 4, 32, 32, 3), 'uint8'), 'audio': ((4, 3200), 'int16'),
      'text': ((4, 3, 6), 'int32'), 'has_video': ((4,), 'bool'),
      'has_audio': ((4,), 'bool'), 'has_text': ((4,), 'bool'),
      'id': ((4,), 'int32'), 'mask': ((4,), 'bool')}
  ids = np.concatenate([b['id'] for b in batches]).reshape(-1, NUM_CLIPS)
  np.testing.assert_array_equal(np.sort(ids), [range(NUM_CLIPS)] * 4)
  for b in batches:
    assert b['mask'].all() and b['has_video'].all() and b['video'].std() > 10
    assert b['audio'][b['has_audio']].any(1).all()
  assert not reader.notes.skipped


@pytest.mark.parametrize('kind', KINDS)
def test_each_container_resumes_at_a_step_on_any_number_of_hosts(kind, packs):
  third = _take(_reader(sources.open_source(packs[kind])), 4)[3]
  parts = [_take(_reader(sources.open_source(packs[kind])), 1, 3, host=h, num_hosts=2)
           for h in (0, 1)]
  _assert_same(third, {k: np.concatenate([p[0][k] for p in parts]) for k in third})


@pytest.mark.parametrize('kind', AS_THEY_ARE)
def test_files_in_a_container_give_the_same_bits_as_the_files(kind, packs, plain):
  clips = sources.open_source(packs[kind])
  for ours, theirs in zip(_take(_reader(clips), 3), _take(_reader(plain), 3),
                          strict=True):
    _assert_same(ours, theirs)
  assert [c.labels for c in clips] == [c.labels for c in plain]
  # float32 in an ArrayRecord: a ten-thousandth of a second in an hour.
  for a, b in zip(clips, plain, strict=True):
    np.testing.assert_allclose([(s.start, s.end) for s in a.captions],
                               [(s.start, s.end) for s in b.captions], rtol=1e-6)
    assert [s.text for s in a.captions] == [s.text for s in b.captions]


@pytest.mark.parametrize('kind', [k for k in KINDS if k not in AS_THEY_ARE])
def test_frames_and_audio_of_records_match_the_video(kind, packs, plain):
  """Allows for the noise of JPEG (twice, in TFDS) and of another resizer.

  TFDS keeps no frame rate: it is as many pictures as there is sound.
  """
  clips = sources.open_source(packs[kind])
  order = [int(c.labels['source']) if 'source' in c.labels else i
           for i, c in enumerate(clips)]    # TFDS shuffles
  ours, = eval_batches(_reader(clips), NUM_CLIPS)
  theirs, = eval_batches(_reader([plain[i] for i in order]), NUM_CLIPS)
  np.testing.assert_array_equal(ours['has_audio'], theirs['has_audio'])
  difference = np.abs(ours['video'].astype(int) - theirs['video'])
  other = np.abs(ours['video'].astype(int) - np.roll(theirs['video'], 1, 1))
  assert difference.mean() < min(6, 0.5 * other.mean())
  for a, b in zip(ours['audio'][ours['has_audio']], theirs['audio'][ours['has_audio']],
                  strict=True):
    assert np.corrcoef(a, b)[0, 1] > 0.99


def test_packed_records_keep_times_labels_and_names(packs, plain):
  clips = sources.open_source(packs['array_record of frames'])
  assert [c.labels for c in clips] == [c.labels for c in plain]
  spoken = next(i for i, c in enumerate(plain) if c.captions)
  assert clips[spoken].captions[0].text == plain[spoken].captions[0].text
  assert clips[spoken].captions[0].start == pytest.approx(
      plain[spoken].captions[0].start - 0.5, abs=1e-5)
  assert clips[3].path.endswith('train.array_record[3]/0003')
  ours, = eval_batches(_reader(clips), NUM_CLIPS)
  theirs, = eval_batches(_reader(plain), NUM_CLIPS)
  np.testing.assert_array_equal(ours['text'], theirs['text'])


def test_sequence_examples_give_captions_labels_and_name(packs, plain):
  clips = sources.open_source(packs['tfrecord'])
  assert len(clips) == NUM_CLIPS
  assert [c.labels for c in clips] == [
      {'label_index': str(i % 2), 'label': 'ab'[i % 2]} for i in range(NUM_CLIPS)]
  assert [[s.text for s in c.captions] for c in clips] == [
      [s.text for s in c.captions] for c in plain]
  assert clips[2].path.endswith('[2]/x2.mp4')


def test_sequence_examples_default_to_10_hz_and_48_khz():
  second = np.linspace(-1, 1, 48_000)
  record = _sequence_example([b'x'] * 15, second, [])
  content = records.from_sequence_example(record, 'r').content
  assert content.duration_seconds == 1.5
  half = content.audio(0.5, 24_000, 48_000)
  np.testing.assert_allclose(half, second[24_000:], atol=1e-6)
  record = _sequence_example([b'x'] * 15, second, [], {
      'image/frame_rate': 5.0, 'WAVEFORM/feature/sample_rate': 24_000.0})
  content = records.from_sequence_example(record, 'r').content
  assert content.duration_seconds == 3
  np.testing.assert_allclose(content.audio(1.0, 24_000, 24_000), second[24_000:],
                             atol=1e-6)


def test_tfds_dataset_gives_class_names_and_text(packs, plain):
  for kind in ('tfds array_record', 'tfds tfrecord'):
    for clip in sources.open_source(packs[kind]):
      of = plain[int(clip.labels['source'])]
      assert clip.labels | {'source': ''} == {
          'side': of.labels['side'], 'sounds': 'z|x', 'source': ''}
      assert [c.text for c in clip.captions] == [
          of.captions[0].text if of.captions else '']


def test_tfds_images_without_labels_are_videos_of_one_frame(tmp_path):
  pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
  features = tfds.features.FeaturesDict(dict(
      image=tfds.features.Image(shape=(32, 32, 3), encoding_format='png'),
      label=tfds.features.ClassLabel(names=['x'])))
  folder = _prepare_tfds(tmp_path, 'tfrecord', features,
                         [dict(image=p, label=-1) for p in pictures])
  clips = sources.open_source(f'{folder}:train')
  assert [c.labels for c in clips] == [{'label': ''}] * 3
  batch, = eval_batches(_reader(clips), 3)
  seen = {p.tobytes() for p in batch['video'].reshape(-1, 32, 32, 3)}
  assert seen == {p.tobytes() for p in pictures}
  assert not batch['has_audio'].any() and batch['has_video'].all()


def test_tfds_stereo_audio_is_mixed_to_mono(tmp_path):
  features = tfds.features.FeaturesDict(dict(audio=tfds.features.Audio(
      shape=(None, 2), sample_rate=4000, dtype=np.float32)))
  left = np.linspace(0, 0.8, 4000, dtype=np.float32)
  folder = _prepare_tfds(tmp_path, 'array_record', features,
                         [dict(audio=np.stack([left, np.zeros(4000)], 1))])
  clip, = sources.open_source(f'{folder}:train')
  np.testing.assert_allclose(clip.content.audio(0.0, 4000, 4000), left / 2, atol=1e-6)


def test_tar_member_suffix_determines_its_meaning(tmp_path):
  image = io.BytesIO()
  Image.new('RGB', (32, 32), (255, 0, 0)).save(image, 'PNG')
  _write_tar(tmp_path / 'a.tar', [
      ('deep/er/0.png', image.getvalue()), ('deep/er/0.txt', b'a red square\n'),
      ('deep/er/0.cls', b'7'), ('deep/1.PNG', image.getvalue()),
      ('deep/2.txt', b'no media'), ('README', b'none either')])
  first, second = sources.open_source(str(tmp_path / 'a.tar'))
  assert [c.text for c in first.captions] == ['a red square']
  assert first.labels == {'label': '7'} and not second.captions
  assert first.path == f'{tmp_path}/a.tar/deep/er/0.png'
  batch, = eval_batches(_reader([first, second]), 2)
  assert (batch['video'] == [255, 0, 0]).all()


def test_video_in_a_tar_precedes_thumbnail_and_separate_audio(packs, plain, tmp_path):
  film = pathlib.Path(plain[0].path).read_bytes()
  for names in itertools.permutations(('a.jpg', 'a.mp4', 'a.wav')):
    _write_tar(tmp_path / 'a.tar', [(n, film) for n in names])
    clip, = sources.open_source(str(tmp_path / 'a.tar'))
    assert clip.path.endswith('a.tar/a.mp4')


def _junk(kind, tmp_path, packs):
  """Writes a source of `kind` whose second of twelve rows is malformed."""
  if kind == 'array_record':
    good = [records.to_example(clip_lib.Clip(''), f'{i}.mp4', media=_film(packs))
            for i in range(12)]
    _write_array_record(tmp_path / 'a.array_record', [good[0], b'junk', *good[2:]])
    return str(tmp_path / 'a.array_record')
  if kind == 'tar':
    files = [(f'{i:02d}.mp4', _film(packs)) for i in range(12)]
    _write_tar(tmp_path / 'a.tar', [*files, ('01.json', b'{"start": "soon"}')])
    return str(tmp_path / 'a.tar')
  clip = sources.open_source(packs['tfrecord'])[0]
  good = _sequence_example(clip.content.encoded_frames, [], [])
  if kind == 'tfrecord':
    _write_tfrecord(tmp_path / 'a.tfrecord', [good, b'junk', *[good] * 10])
    return str(tmp_path / 'a.tfrecord')
  features = tfds.features.FeaturesDict(
      dict(image=tfds.features.Image(shape=(8, 8, 3))))
  folder = _prepare_tfds(tmp_path, 'tfrecord', features,
                         [dict(image=np.full((8, 8, 3), 99, np.uint8))] * 12)
  shard = next(folder.glob('*tfrecord*'))
  rows = [r.numpy() for r in tf.data.TFRecordDataset(str(shard))]
  _write_tfrecord(shard, [rows[0], b'junk', *rows[2:]])
  return f'{folder}:train'


def _film(packs):
  return sources.open_source(packs['array_record of media'])[0].content


@pytest.mark.parametrize('kind', ['array_record', 'tar', 'tfrecord', 'tfds'])
def test_malformed_record_is_skipped_and_noted(kind, tmp_path, packs):
  clips = sources.open_source(_junk(kind, tmp_path, packs))
  reader = _reader(clips)
  ids = np.concatenate([b['id'] for b in _take(reader, 6)])
  assert 1 not in ids and set(ids) == {0, *range(2, 12)}
  (path, reason), = reader.notes.skipped.items()
  assert ('01.mp4' if kind == 'tar' else '[1]') in path
  assert 'soon' in reason if kind == 'tar' else 'not a record of the expected' in reason
  # The search for words and labels reads all of them.
  every = list(sources.each(clips))
  assert len(every) == 12 and every[1] == clip_lib.Clip(path)


def _cut(content, tmp_path):
  return content[:len(content) * 2 // 3]


def _zip(content, tmp_path):
  return gzip.compress(content)


def _text(content, tmp_path):
  return b'path,start,end\n' * 9


@pytest.mark.parametrize('kind, name, message', [
    ('tar', 'a.tar', 'expected a complete, uncompressed tar file'),
    ('tfrecord', 'a.tfrecord', 'expected a complete, uncompressed TFRecord file'),
    ('array_record of media', 'a.array_record', 'expected complete ArrayRecord files')])
@pytest.mark.parametrize('harm', [_cut, _zip, _text])
def test_damaged_container_raises_with_file_and_reason(kind, name, message, harm,
                                                         packs, tmp_path):
  file = sorted(pathlib.Path(packs[kind]).iterdir())[0]
  path = tmp_path / (name + '.gz' if harm is _zip else name)
  path.write_bytes(harm(file.read_bytes(), tmp_path))
  with pytest.raises(UserError, match=f'{path}: .*{message}') as error:
    sources.open_source(str(path))
  assert '\n' not in str(error.value)


def test_records_of_another_kind_raise_with_their_keys(tmp_path):
  other = tf.train.Example(features=tf.train.Features(feature={
      'pixels': tf.train.Feature(bytes_list=tf.train.BytesList(value=[b'x']))}))
  records = [other.SerializeToString()] * 3
  _write_tfrecord(tmp_path / 'a.tfrecord', records)
  _write_array_record(tmp_path / 'a.array_record', records)
  for name, expected in (('a.tfrecord', 'image/encoded or WAVEFORM/feature/floats'),
                         ('a.array_record', 'id, and media, frames or sound')):
    with pytest.raises(UserError, match=f'has the keys pixels; expected {expected}'):
      sources.open_source(str(tmp_path / name))


def test_audio_that_dmvr_s_script_garbled_raises():
  """The script stores FFmpeg's s32le as floats: small negative samples become NaN."""
  garbled = np.array([-3, 5, 1 << 20], '<i4').view('<f4')
  with pytest.raises(ValueError, match=r'are not finite; write them as .* f32le'):
    records.from_sequence_example(_sequence_example([], garbled, []), 'r')


def test_file_that_vanishes_is_skipped_and_noted(packs, tmp_path):
  _write_tar(tmp_path / 'a.tar', [('a.mp4', _film(packs))])
  reader = _reader(sources.open_source(str(tmp_path / 'a.tar')), 1.0)
  (tmp_path / 'a.tar').unlink()
  assert reader.views(0) is None
  assert reader.notes.skipped == {
      f'{tmp_path}/a.tar/a.mp4': f'{tmp_path}/a.tar/a.mp4: No such file or directory'}


@pytest.mark.parametrize('split, message', [
    ('', 'add a split after a colon'),
    (':test', "no split 'test'; expected one of train"),
])
def test_tfds_dataset_needs_one_of_its_splits(split, message, packs):
  folder = packs['tfds tfrecord'].removesuffix(':train')
  with pytest.raises(UserError, match=message):
    sources.open_source(folder + split)


def test_tfds_dataset_without_media_raises_with_its_features(tmp_path):
  features = tfds.features.FeaturesDict(dict(words=tfds.features.Text()))
  folder = _prepare_tfds(tmp_path, 'tfrecord', features, [dict(words='a')])
  with pytest.raises(UserError, match='has the features words; expected video, image'):
    sources.open_source(f'{folder}:train')


def test_folder_with_files_of_several_kinds_raises(packs, plain, tmp_path):
  (tmp_path / 'a.tar').write_bytes(b'')
  (tmp_path / 'clips').mkdir()
  (tmp_path / 'clips' / 'a.mp4').write_bytes(b'')
  with pytest.raises(UserError, match=r'several kinds, tar, media; give .*\*\.tar'):
    sources.open_source(str(tmp_path))
  (tmp_path / 'clips' / 'a.mp4').unlink()
  (tmp_path / 'a.tfrecord').write_bytes(b'')
  with pytest.raises(UserError, match='several kinds, tar, tfrecord'):
    sources.open_source(str(tmp_path))


@pytest.mark.parametrize('name', [
    'train-00000-of-00001', 'train-00000-of-00001.tfrecord', 'train.tfrecords',
    'train.tfrecord-00000-of-00001'])
def test_shards_are_recognized_by_all_suffixes(name, tmp_path, packs):
  _write_tfrecord(tmp_path / name, [_sequence_example([b'x'], [], [])])
  assert len(sources.open_source(str(tmp_path))) == 1
  assert len(sources.open_source(f'{tmp_path}/train*')) == 1


def test_shards_without_records_raise(tmp_path):
  _write_tfrecord(tmp_path / 'a.tfrecord', [])
  with pytest.raises(UserError, match='holds no clips'):
    sources.open_source(str(tmp_path))


def test_captions_file_with_records_raises(packs, tmp_path):
  with (tmp_path / 'c.csv').open('w', newline='') as file:
    csv.writer(file).writerows([['path', 'text'], ['a.mp4', 'hi']])
  with pytest.raises(UserError, match=r'have their own captions; remove .*c\.csv'):
    sources.open_source(packs['tar'], str(tmp_path / 'c.csv'))


def test_iteration_over_a_container_ends(packs):
  """The end of the iteration is not an unreadable record."""
  for kind in KINDS:
    assert len(list(sources.open_source(packs[kind]))) == NUM_CLIPS
