"""Tests of data/*.py: each dataset from a tiny folder in exactly its owners' layout."""

import csv
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.io

from data import audioset
from data import dcase2014
from data import esc50
from data import hmdb51
from data import howto100m
from data import imagenet
from data import kinetics
from data import manifests
from data import moments_in_time
from data import msrvtt
from data import ucf101
from data import voc2007
from data import youcook2
from vatt_jax.errors import UserError
from vatt_jax.inputs.clip import Caption
from vatt_jax.inputs.sources import open_source

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path):
  """Returns empty folders of lists and media, and the output folder."""
  return World(tmp_path)


class World:

  def __init__(self, root):
    self.root, self.lists, self.media = root, root / 'lists', root / 'media'
    self.out = root / 'out'
    self.lists.mkdir()
    self.media.mkdir()

  def write(self, files):
    for name, text in files.items():
      path = self.lists / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)

  def touch(self, *names):
    for name in names:
      (self.media / name).parent.mkdir(parents=True, exist_ok=True)
      (self.media / name).touch()

  def build(self, module, **kwargs):
    module.build(self.lists, self.media, self.out, **kwargs)

  def clips(self, split):
    """Reads (path below media, start, end, label) of a manifest, like training."""
    clips = open_source(str(self.out / f'{split}.csv'))
    return [(str(pathlib.Path(c.path).relative_to(self.media)), c.start, c.end,
             c.labels.get('label')) for c in clips]

  def labels(self):
    with (self.out / 'labels.csv').open(newline='') as file:
      return list(csv.DictReader(file))

  def missing(self, split):
    return (self.out / f'missing_{split}.txt').read_text().splitlines()


# ------------------------------------------------------------- one after another

HEAD = 'label,youtube_id,time_start,time_end,split\n'


def test_kinetics_uses_times_only_for_whole_videos(world):
  world.write({
      'train.csv': HEAD + 'playing chess,-cutcutcut0,10,20,train\n'
      'abseiling,-wholewhol0,10,20,train\nabseiling,-gonegoneg0,3,13,train\n',
      'validate.csv': 'label,youtube_id,time_start,time_end,split,is_cc\n'
      'abseiling,-cutcutcut0,30,40,val,0\n',
      'test.csv': 'youtube_id,time_start,time_end,split\n-heldheldh0,0,10,test\n'})
  world.touch('train/playing chess/-cutcutcut0_000010_000020.mp4',
              'replacement/-cutcutcut0_000010_000020.mp4',
              'train/abseiling/-wholewhol0.mkv', '-cutcutcut0_30_40.webm',
              '-heldheldh0.mp4')
  world.build(kinetics)
  assert world.clips('train') == [
      ('replacement/-cutcutcut0_000010_000020.mp4', 0, math.inf, 'playing chess'),
      ('train/abseiling/-wholewhol0.mkv', 10, 20, 'abseiling')]
  assert world.clips('val') == [('-cutcutcut0_30_40.webm', 0, math.inf, 'abseiling')]
  assert world.clips('test') == [('-heldheldh0.mp4', 0, 10, '')]
  assert world.missing('train') == ['-gonegoneg0_000003_000013']
  assert world.labels() == [{'index': '0', 'label': 'abseiling'},
                            {'index': '1', 'label': 'playing chess'}]
  world.build(kinetics, trimmed=True)
  assert world.clips('test') == [('-heldheldh0.mp4', 0, math.inf, '')]


def test_audioset_joins_labels_whose_names_have_commas(world, capsys):
  header = '# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=3, ...\n' \
           '# YTID, start_seconds, end_seconds, positive_labels\n'
  world.write({
      'class_labels_indices.csv': 'index,mid,display_name\n0,/m/09x0r,"Speech"\n'
      '1,/m/05zppz,"Male speech, man speaking"\n2,/t/dd00088,"Gargling"\n',
      'balanced_train_segments.csv': header
      + '--aaaaaaaaa, 30.000, 40.000, "/m/09x0r,/m/05zppz"\n'
      '--bbbbbbbbb, 0.000, 9.500, "/t/dd00088"\n',
      'unbalanced_train_segments.csv': header
      + '--ccccccccc, 20.000, 30.000, "/m/09x0r"\n'
      '--ddddddddd, 20.000, 30.000, "/m/09x0r"\n'
      '--eeeeeeeee, 20.000, 30.000, "/m/09x0r"\n',
      'eval_segments.csv': header + '--fffffffff, 20.000, 30.000, "/m/09x0r"\n'})
  world.touch('video/--aaaaaaaaa.mp4', 'audio/--aaaaaaaaa.wav', 'Y--bbbbbbbbb.wav',
              '--ccccccccc_20000_30000.flac', '--ddddddddd_20.0-30.0.wav')
  world.build(audioset)
  speech = 'Speech|Male speech, man speaking'
  assert world.clips('balanced_train') == [
      ('video/--aaaaaaaaa.mp4', 30, 40, speech),
      ('Y--bbbbbbbbb.wav', 0, math.inf, 'Gargling')]
  assert world.clips('unbalanced_train') == [
      ('--ccccccccc_20000_30000.flac', 0, math.inf, 'Speech'),
      ('--ddddddddd_20.0-30.0.wav', 0, math.inf, 'Speech')]
  assert len(world.clips('train')) == 4
  assert world.missing('train') == ['--eeeeeeeee_000020_000030']
  assert world.missing('eval') == ['--fffffffff_000020_000030']
  assert world.labels()[1] == {
      'index': '1', 'label': 'Male speech, man speaking', 'mid': '/m/05zppz'}
  printed = capsys.readouterr().out
  assert 'train: 4 of 5 clips; 1 of 5 files missing (20.0%), listed in' in printed


VIDEOS = 'video_id,category_1,category_2,rank,task_id\n' \
         'aaaaaaaaaaa,Food,Soup,1,7\nbbbbbbbbbbb,,,2,7\naaaaaaaaaaa,Food,Stew,9,8\n' \
         'ccccccccccc,Health,,1,9\n'


@pytest.mark.parametrize('captions', [
    {'raw_caption.json':
     '{"bbbbbbbbbbb": {"start": [0], "end": [1], "text": ["not here"]},'
     ' "aaaaaaaaaaa": {"start": [0.5, 3, 5], "end": [2.25, 4, 6],'
     ' "text": ["heat\\nthe \\"oil\\", gently", "", "stir"]}}'},
    {'howto100m_captions/aaaaaaaaaaa.csv':
     ',start,end,text\n0,0.5,2.25,"heat the ""oil"", gently"\n1,3,4,\n2,5,6,stir\n',
     'howto100m_captions/bbbbbbbbbbb.csv': 'start,end,text\n0,1,not here\n'}])
def test_howto100m_has_a_row_per_video_and_captions_of_existing_videos(world, captions):
  world.write({'HowTo100M_v1.csv': VIDEOS, **captions})
  world.touch('a/aaaaaaaaaaa.webm', 'ccccccccccc.mp4')
  world.build(howto100m)
  first, silent = open_source(str(world.out / 'train.csv'), 'captions.csv')
  assert first.path == str(world.media / 'a/aaaaaaaaaaa.webm')
  assert first.captions == (Caption(0.5, 2.25, 'heat the "oil", gently'),
                            Caption(5, 6, 'stir'))
  assert silent.captions == ()
  assert world.missing('train') == ['bbbbbbbbbbb']


def test_howto100m_prefers_raw_captions(world):
  said = '{"aaaaaaaaaaa": {"start": [0], "end": [1], "text": ["%s"]}}'
  world.write({'HowTo100M_v1.csv': VIDEOS, 'caption.json': said % 'heat oil',
               'raw_caption.json': said % 'now heat the oil'})
  world.touch('aaaaaaaaaaa.mp4')
  world.build(howto100m)
  clip, = open_source(str(world.out / 'train.csv'), 'captions.csv')
  assert [c.text for c in clip.captions] == ['now heat the oil']


def test_moments_distinguishes_equal_names_by_folder(world):
  world.write({'moments_categories.txt': 'clapping,1\nadult+male+singing,0\n',
              'trainingSet.csv': 'clapping/yt-a.b_1.mp4,clapping,3,1\n'
              'adult+male+singing/yt-a.b_1.mp4,adult+male+singing,4,0\n',
              'validationSet.csv': 'clapping/yt-a.b_1.mp4,clapping,3,0\n'
              'clapping/gone.mp4,clapping,3,0\n'})
  world.touch('training/clapping/yt-a.b_1.mp4', 'validation/clapping/yt-a.b_1.mp4',
              'training/adult+male+singing/yt-a.b_1.mp4')
  world.build(moments_in_time)
  assert [c[0] for c in world.clips('train')] == [
      'training/clapping/yt-a.b_1.mp4', 'training/adult+male+singing/yt-a.b_1.mp4']
  assert [c[0] for c in world.clips('val')] == ['validation/clapping/yt-a.b_1.mp4']
  assert world.missing('val') == ['validation/clapping/gone.mp4']
  assert [r['label'] for r in world.labels()] == ['adult+male+singing', 'clapping']


def test_ucf101_has_three_splits_and_the_owners_order(world):
  film = 'v_HandStandPushups_g01_c01'    # the owners' spelling, not the label's
  world.write({'classInd.txt': '1 WallPushups\r\n2 HandstandPushups\r\n'})
  for i in (1, 2, 3):
    world.write({
        f'trainlist0{i}.txt': f'WallPushups/v_WallPushups_g0{i}_c01.avi 1\r\n',
        f'testlist0{i}.txt': f'HandstandPushups/{film}.avi\r\n'})
  world.touch(f'UCF-101/HandstandPushups/{film}.avi', 'v_WallPushups_g02_c01.avi')
  world.build(ucf101)
  assert world.clips('test_3') == [
      (f'UCF-101/HandstandPushups/{film}.avi', 0, math.inf, 'HandstandPushups')]
  assert world.clips('train_2') == [
      ('v_WallPushups_g02_c01.avi', 0, math.inf, 'WallPushups')]
  assert world.missing('train_1') == ['v_WallPushups_g01_c01.avi']
  assert [r['label'] for r in world.labels()] == ['WallPushups', 'HandstandPushups']


def test_hmdb51_assigns_videos_to_splits_by_number(world):
  for i, uses in ((1, '120'), (2, '201'), (3, '012')):
    world.write({f'brush_hair_test_split{i}.txt': ''.join(
        f'{name}_brush_hair_u.avi {use} \n'
        for name, use in zip(('A!', 'B_(x)', 'C'), uses, strict=True))})
    world.write({f'wave_test_split{i}.txt': 'w.avi 1 \n'})
  world.touch('brush_hair/A!_brush_hair_u.avi', 'B_(x)_brush_hair_u.avi',
              'brush_hair/C_brush_hair_u.avi', 'w.avi')
  world.build(hmdb51)
  used = {split: [c[0].split('/')[-1][0] for c in world.clips(split)]
          for split in ('train_1', 'test_1', 'train_2', 'test_2', 'train_3', 'test_3')}
  assert used == {'train_1': ['A', 'w'], 'test_1': ['B'], 'train_2': ['C', 'w'],
                  'test_2': ['A'], 'train_3': ['B', 'w'], 'test_3': ['C']}
  assert [r['label'] for r in world.labels()] == ['brush_hair', 'wave']


def test_published_hmdb51_list_has_the_official_numbers(world, shared):
  world.write({'hmdb51.csv': (shared / 'captions' / 'hmdb51.csv').read_text()})
  with (world.lists / 'hmdb51.csv').open() as file:
    rows = list(csv.DictReader(file))
  world.touch(*(r['video_id'] for r in rows[1:]))
  world.build(hmdb51)
  for split in '123':
    use = rows[0][f'split{split}']    # of the film that is missing
    assert len(world.clips(f'train_{split}')) == 3570 - (use == '1')
    assert len(world.clips(f'test_{split}')) == 1530 - (use == '2')
  assert world.missing('train_1') == world.missing('test_3') == [rows[0]['video_id']]
  names = [r['label'] for r in world.labels()]
  assert len(names) == 51
  assert names[:2] == ['brush_hair', 'cartwheel']


def test_esc50_tests_on_a_fold_and_trains_on_the_others(world):
  world.write({'esc50.csv': 'filename,fold,target,category,esc10,src_file,take\n'
              + ''.join(f'{fold}-100-A-0.wav,{fold},0,dog,True,100,A\n'
                        for fold in range(1, 6))
              + '1-200-A-36.wav,1,36,vacuum_cleaner,False,200,A\n'
              '2-300-A-14.wav,2,14,chirping_birds,False,300,A\n'})
  world.touch(*(f'audio/{fold}-100-A-0.wav' for fold in range(1, 6)),
              'audio/1-200-A-36.wav')
  world.build(esc50)
  assert [c[0] for c in world.clips('test_1')] == [
      'audio/1-100-A-0.wav', 'audio/1-200-A-36.wav']
  assert [c[0] for c in world.clips('train_1')] == [
      f'audio/{fold}-100-A-0.wav' for fold in (2, 3, 4, 5)]
  assert world.missing('train_1') == world.missing('test_2') == ['2-300-A-14.wav']
  assert world.missing('train_2') == []
  assert [r['label'] for r in world.labels()] == [
      'dog', 'chirping_birds', 'vacuum_cleaner']


def test_dcase2014_takes_scenes_from_names_that_occur_in_both_folders(world):
  world.write({f'{folder}/{name}.wav': '' for folder, name in [
      ('scenes_stereo', 'bus01'), ('scenes_stereo', 'busystreet07'),
      ('scenes_stereo_testset', 'bus01'), ('scenes_stereo_testset', 'tube09')]})
  world.touch('scenes_stereo/bus01.wav', 'scenes_stereo/busystreet07.flac',
              'scenes_stereo_testset/bus01.wav')
  world.build(dcase2014)
  assert [(c[0], c[3]) for c in world.clips('train')] == [
      ('scenes_stereo/bus01.wav', 'bus'),
      ('scenes_stereo/busystreet07.flac', 'busystreet')]
  assert [(c[0], c[3]) for c in world.clips('test')] == [
      ('scenes_stereo_testset/bus01.wav', 'bus')]
  assert world.missing('test') == ['scenes_stereo_testset/tube09.wav']
  assert len(world.labels()) == 10


def test_voc2007_joins_the_classes_of_an_image(world):
  values = {'cat': ' 1', 'dog': ' 1', 'sheep': ' 0'}
  world.write({f'{name}_{split}.txt': f'000005 {values.get(name, "-1")}\n'
               for name in voc2007.CLASSES for split in ('trainval', 'test')})
  world.touch('000005.jpg')
  world.build(voc2007)
  for split in ('trainval', 'test'):
    assert [(c[0], c[3]) for c in world.clips(split)] == [('000005.jpg', 'cat|dog')]
  assert [row['label'] for row in world.labels()] == list(voc2007.CLASSES)


def test_youcook2_has_a_row_per_step_of_the_whole_video(world):
  world.write({
      'youcookii_annotations_trainval.json': """{"database": {
        "aaaaaaaaaaa": {"duration": 241.62, "subset": "training", "recipe_type": "113",
          "annotations": [{"segment": [41, 54], "id": 0, "sentence": "place beans"},
                          {"segment": [84, 122], "id": 1, "sentence": "add oil "}],
          "video_url": "https://www.youtube.com/watch?v=aaaaaaaaaaa"},
        "bbbbbbbbbbb": {"duration": 90, "subset": "validation", "recipe_type": "226",
          "annotations": [{"segment": [1, 5], "id": 0, "sentence": "stir"}]}}}""",
      'label_foodtype.csv': '226,fattoush\n113,bangers and mash\n'})
  world.touch('raw_videos/training/113/aaaaaaaaaaa.mp4',
              'raw_videos/validation/226/bbbbbbbbbbb.webm')
  world.build(youcook2)
  film = 'raw_videos/training/113/aaaaaaaaaaa.mp4'
  assert world.clips('train') == [(film, 41, 54, '113'), (film, 84, 122, '113')]
  assert open_source(str(world.out / 'train.csv'))[1].captions == (
      Caption(84, 122, 'add oil'),)
  assert [c[3] for c in world.clips('val')] == ['226']
  assert world.labels()[0] == {'index': '0', 'label': '226', 'name': 'fattoush'}


def test_published_youcook2_list_gives_every_step_of_existing_videos(
    world, shared, capsys):
  world.write({'youcook2_validation.csv': (
      shared / 'captions' / 'youcook2_validation.csv').read_text()})
  with (world.lists / 'youcook2_validation.csv').open() as file:
    rows = list(csv.DictReader(file))
  films = list(dict.fromkeys(r['video_id'] for r in rows))
  gone = films[5]
  world.touch(*(f'{film}.mp4' for film in films if film != gone))
  world.build(youcook2)
  kept = [r for r in rows if r['video_id'] != gone]
  clips = open_source(str(world.out / 'test.csv'))
  assert [(c.start, c.end, c.captions[0].text) for c in clips] == [
      (float(r['start']), float(r['end']), r['text'].strip()) for r in kept]
  assert world.missing('test') == [gone]
  assert f'test: {len(kept):,} of 3,350 clips; 1 of 436 files missing (0.2%)' in (
      capsys.readouterr().out)


MSRVTT_VIDEOS = {
    'train': {'category': 9, 'url': 'https://www.youtube.com/watch?v=9lZi22qLlEo',
              'video_id': 'video0', 'start time': 137.72, 'end time': 149.44,
              'split': 'train', 'id': 0},
    'val': {'category': 0, 'video_id': 'video6513', 'split': 'validate', 'id': 6513},
    'test': {'category': 16, 'video_id': 'video7010', 'split': 'test', 'id': 7010}}
MSRVTT_SENTENCES = {
    'train': [{'caption': 'a car is shown', 'video_id': 'video0', 'sen_id': 0},
              {'caption': 'a car is shown', 'video_id': 'video0', 'sen_id': 1}],
    'val': [{'caption': 'a man sings', 'video_id': 'video6513', 'sen_id': 2}],
    'test': [{'caption': 'someone cooks', 'video_id': 'video7010', 'sen_id': 3}]}


@pytest.mark.parametrize('files', [
    {'MSRVTT_data.json': ('train', 'val', 'test')},
    {'train_val_videodatainfo.json': ('train', 'val'),
     'test_videodatainfo.json': ('test',)}])
def test_msrvtt_has_a_row_per_sentence_even_for_equal_sentences(world, files):
  for name, splits in files.items():
    world.write({name: json.dumps({
        'info': {}, 'videos': [MSRVTT_VIDEOS[split] for split in splits],
        'sentences': [s for split in splits for s in MSRVTT_SENTENCES[split]]})})
  world.touch('TrainValVideo/video0.mp4', 'TestVideo/video7010.mp4', 'video6513.mp4')
  world.build(msrvtt)
  clip = ('TrainValVideo/video0.mp4', 0, math.inf, 'vehicles/autos')
  assert world.clips('train') == [clip, clip]
  assert [c[3] for c in world.clips('val') + world.clips('test_full')] == [
      'music', 'food/drink']
  assert len(world.labels()) == 20


def test_published_msrvtt_list_is_a_pool_of_a_thousand(world, shared):
  world.write({
      'msrvtt_test.csv': (shared / 'captions' / 'msrvtt_test.csv').read_text()})
  with (world.lists / 'msrvtt_test.csv').open() as file:
    rows = list(csv.DictReader(file))
  world.touch(*(f'{r["video_id"]}.mp4' for r in rows))
  world.build(msrvtt)
  clips = open_source(str(world.out / 'test.csv'))
  assert [(pathlib.Path(c.path).stem, c.captions[0].text) for c in clips] == [
      (r['video_id'], r['sentence']) for r in rows]
  assert world.missing('test') == []


def _pictures(world):
  world.touch('train/n02012849/n02012849_10.JPEG', 'train/n01440764/n01440764_7.JPEG',
              'val/ILSVRC2012_val_00000001.JPEG',
              'val/n01440764/ILSVRC2012_val_00000002.JPEG', 'val/n02012849_10.xml')


CRANE, TENCH = 'n02012849', 'n01440764'


def test_imagenet_reads_the_kaggle_archive(world):
  world.write({
      'LOC_synset_mapping.txt': 'n01440764 tench, Tinca tinca\nn02012849 crane\n',
      'ILSVRC/ImageSets/CLS-LOC/train_cls.txt': 'n01440764/n01440764_7 1\n'
      'n02012849/n02012849_10 2\nn02012849/n02012849_11 3\n',
      'LOC_val_solution.csv': 'ImageId,PredictionString\n'
      'ILSVRC2012_val_00000001,n02012849 1 2 3 4 n02012849 5 6 7 8 \n'
      'ILSVRC2012_val_00000002,n01440764 1 2 3 4 \n'})
  _pictures(world)
  world.build(imagenet)
  assert [c[3] for c in world.clips('train')] == [TENCH, CRANE]
  assert [c[3] for c in world.clips('val')] == [CRANE, TENCH]
  assert world.missing('train') == ['n02012849_11.JPEG']
  assert world.labels()[1] == {'index': '1', 'label': CRANE, 'name': 'crane'}


def test_imagenet_reads_the_numbers_of_the_development_kit(world):
  synsets = np.array(
      [(1, CRANE, 'crane', 0), (2, TENCH, 'tench, Tinca tinca', 0),
       (1001, 'n00001740', 'entity', 2)],
      dtype=[(name, object) for name in ('ILSVRC2012_ID', 'WNID', 'words',
                                         'num_children')])
  world.write({'data/ILSVRC2012_validation_ground_truth.txt': '1\n2\n'})
  scipy.io.savemat(world.lists / 'data/meta.mat', {'synsets': synsets})
  _pictures(world)
  world.build(imagenet)
  assert [c[3] for c in world.clips('train')] == [TENCH, CRANE]
  assert [c[3] for c in world.clips('val')] == [CRANE, TENCH]
  assert [r['name'] for r in world.labels()] == ['tench, Tinca tinca', 'crane']


# -------------------------------------------------------------------- all of them

def test_manifests_move_together_with_their_media(world):
  world.write({'msrvtt_test.csv': 'key,vid_key,video_id,sentence\nr0,m1,video1,hi\n'})
  world.touch('video1.mp4')
  world.build(msrvtt)
  moved = world.root.with_name('elsewhere')
  world.root.rename(moved)
  clip, = open_source(str(moved / 'out/test.csv'))
  assert clip.path == str(moved / 'media/video1.mp4')


def test_media_on_another_disk_have_absolute_paths():
  out = pathlib.Path('/home/me/data/msrvtt')
  assert manifests.relative('/mnt/films/a.mp4', out) == '/mnt/films/a.mp4'
  assert manifests.relative('/home/films/a.mp4', out) == '../../../films/a.mp4'


def test_cyclic_links_of_folders_are_searched_once(world):
  world.write({'msrvtt_test.csv': 'key,vid_key,video_id,sentence\nr0,m1,video1,hi\n'})
  other = world.root / 'other disk'
  other.mkdir()
  (other / 'video1.mp4').touch()
  (other / 'back').symlink_to(world.media)
  (world.media / 'more').symlink_to(other)
  world.build(msrvtt)
  assert world.clips('test')[0][0] == 'more/video1.mp4'


@pytest.mark.parametrize('module, files, message', [
    (kinetics, {}, r'lists: expected train\.csv or val\.csv or .* in this folder'),
    (kinetics, {'train.csv': HEAD + 'a,x,0,ten,train\n'},
     r"train\.csv:2: time_end='ten': expected a number"),
    (kinetics, {'train.csv': HEAD + 'a,x,0,10,train\na,x,0,10\n'},
     r'train\.csv:3: expected 5 cells, label,.*; found 4'),
    (kinetics, {'train.csv': HEAD + 'a,x,0,10,train\nb,y,0,9,train\na,x,0,10,train\n'},
     r'train\.csv:4: is a duplicate of .*train\.csv:2'),
    (kinetics, {'train.csv': HEAD + 'a,x,10,10,train\n'},
     r'train\.csv:2: end=10\.0 is not after start=10\.0'),
    (kinetics, {'train.csv': HEAD + 'a,x,0,10,train\n',
                'val.csv': HEAD + 'b,x,0,10,val\n'},
     r"val\.csv:2: unknown label 'b'"),
    (kinetics, {'train.csv': HEAD}, r'train\.csv: holds no rows'),
    (kinetics, {'train.csv': HEAD + 'a,gone,0,10,train\n'},
     r"media: holds none of the files .* 'gone_000000_000010' \(.*train\.csv:2\)"),
    (audioset, {'class_labels_indices.csv': 'index,mid,display_name\n0,/m/0,S\n',
                'eval_segments.csv': '# c\nx, 0.0, 10.0, "/m/0,/m/1"\n'},
     r"eval_segments\.csv:2: unknown label '/m/1'"),
    (howto100m, {'HowTo100M_v1.csv': VIDEOS},
     r'lists: expected raw_caption\.json or caption\.json or howto100m_captions'),
    (howto100m, {'HowTo100M_v1.csv': 'video_id,task_id\nx,1\nx,1\n',
                 'caption.json': '{}'}, r'v1\.csv:3: is a duplicate of .*v1\.csv:2'),
    (howto100m, {'HowTo100M_v1.csv': 'video_id,task_id\nx,1\n',
                 'caption.json': '{"x": {"start": [0], "end": [1, 2], "text": [""]}}'},
     r'caption\.json: x: expected start, end and text, lists of one length'),
    (howto100m, {'HowTo100M_v1.csv': 'video_id,task_id\nx,1\n',
                 'caption.json': '{"x": {"start": ['},
     r'caption\.json: expected start'),
    (moments_in_time, {'moments_categories.txt': 'a,0\na,1\n'},
     r"categories\.txt:2: label 'a' occurs twice"),
    (moments_in_time, {'moments_categories.txt': 'a,0\n',
                       'trainingSet.csv': 'b/x.mp4,b,3,0\n'},
     r"trainingSet\.csv:1: unknown label 'b'"),
    (ucf101, {'classInd.txt': '1 A\n2 B\n', 'trainlist01.txt': 'A/x.avi 2\n'},
     r'trainlist01\.txt:1: A has number 2; expected 1, as in classInd\.txt'),
    (ucf101, {'classInd.txt': '1 A\n', 'testlist01.txt': 'x.avi\n'},
     r'testlist01\.txt:1: expected NAME/FILE\.avi'),
    (hmdb51, {'wave_test_split1.txt': 'x.avi 3\n'},
     r"wave_test_split1\.txt:1: expected 1 \(train\), .* found '3'"),
    (esc50, {'esc50.csv': 'filename,fold,target,category\nx.wav,6,0,dog\n'},
     r"esc50\.csv:2: fold='6': expected 1 to 5"),
    (esc50, {'esc50.csv': 'filename,fold,target,category\nx.wav,1,0,dog\n'
             'y.wav,1,1,dog\n'},
     r"esc50\.csv:3: label 'dog' has target 1, but an earlier line has 0"),
    (dcase2014, {'scenes_stereo/bus01.wav': ''},
     'lists/scenes_stereo_testset: expected the recordings of this archive'),
    (dcase2014, {'scenes_stereo/train01.wav': ''},
     r"train01\.wav: unknown label 'train'; expected one of 10"),
    (youcook2, {'youcook2_validation.csv': 'start,task,text,video_id\n1,2,a,b\n'},
     r"validation\.csv: no column 'end' in its first line; found start, task"),
    (youcook2, {'youcookii_annotations_trainval.json': '{"database": {"x": {}}}'},
     r'trainval\.json: database/x: expected subset'),
    (youcook2, {'youcookii_annotations_trainval.json': '{'},
     r'trainval\.json: not JSON'),
    (msrvtt, {'MSRVTT_data.json': '{"videos": [{"video_id": "v", "split": "train",'
              ' "category": 20}], "sentences": []}'},
     r'data\.json: videos\[0\]: unknown category 20; expected 0 to 19'),
    (msrvtt, {'MSRVTT_data.json': '{"videos": [], "sentences": [{"video_id": "v"}]}'},
     r"data\.json: sentences\[0\]: expected .*KeyError\('v'\)"),
    (voc2007, {'aeroplane_trainval.txt': '000005 2\n'},
     r"aeroplane_trainval\.txt:1: expected IMAGE and 1, 0 or -1; found '000005 2'"),
    (imagenet, {'LOC_synset_mapping.txt': 'n1\n'},
     r'mapping\.txt:1: expected WNID NAMES'),
])
def test_invalid_list_raises_with_one_line(world, module, files, message):
  world.write(files)
  world.touch('x.mp4')
  with pytest.raises(UserError, match=message) as error:
    world.build(module)
  assert '\n' not in str(error.value)


@pytest.mark.slow
def test_command_builds_and_reports_an_error_in_one_line(world):
  world.write({'msrvtt_test.csv': 'key,vid_key,video_id,sentence\nr0,m1,video1,hi\n'})
  world.touch('video1.mp4')
  command = [sys.executable, '-m', 'data.msrvtt', f'--annotations={world.lists}',
             f'--out={world.out}']
  done, wrong = (subprocess.run([*command, f'--media={media}'], cwd=ROOT, text=True,
                                capture_output=True)
                 for media in (world.media, world.root / 'absent'))
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'test: 1 of 1 clips; 0 of 1 files missing (0.0%)\n'
  assert wrong.returncode == 2
  assert wrong.stderr == (f'vatt_jax: {world.root}/absent: no such folder; set --media '
                          'to the folder of the media files\n')
