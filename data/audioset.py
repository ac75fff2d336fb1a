"""Builds AudioSet: ten seconds of YouTube with some of 527 sound events.

    python -m data.audioset --annotations=DIR --media=DIR --out=data/audioset

reads the owners' lists from https://research.google.com/audioset/download.html:
`class_labels_indices.csv` (index,mid,display_name) and those of these files that exist:
`balanced_train_segments.csv`, `unbalanced_train_segments.csv` and `eval_segments.csv`
(lines of comment, then YTID, start_seconds, end_seconds, "MID,MID,...").

Media files, video or audio, are found by name in any folders. A file is either the
clip, `YID.wav`, `ID_30000_40000.flac`, `ID_30.0-40.0.wav` and so on
(`manifests.youtube_clip`), or the whole video, `ID.mp4`; then the manifest gives the
clip's seconds. With --trimmed `ID.mp4` is a clip, too.

It writes balanced_train.csv, unbalanced_train.csv and eval.csv, the official splits,
and train.csv, the first two together, for pre-training. `label` is the names of a
clip's events, joined by `|`. labels.csv has their official order and their MIDs.
"""

import os

from absl import flags

from data import manifests

_LISTS = {split: (f'{split}_segments.csv',)
          for split in ('balanced_train', 'unbalanced_train', 'eval')}


def build(annotations: str | os.PathLike[str], media: str | os.PathLike[str],
          out: str | os.PathLike[str], trimmed: bool = False) -> None:
  """Writes the manifests; with `trimmed` `ID.mp4` is a clip, not the whole video."""
  names = {row['mid']: row['display_name'] for _, row in manifests.rows(
      manifests.owners_file(annotations, 'class_labels_indices.csv'),
      ('index', 'mid', 'display_name'))}
  lists = manifests.owners_files(annotations, _LISTS)
  files = manifests.Media(media)
  splits: dict[str, list[manifests.Entry]] = {}
  for split, path in lists.items():
    splits[split] = []
    for where, row in manifests.rows(path, ('YTID', 'start_seconds', 'end_seconds',
                                            'positive_labels'),
                                     has_header=False, comment='#'):
      mids = row['positive_labels'].split(',')
      for mid in mids:
        manifests.check_label(where, mid, names)
      start, end = (manifests.number(where, key, row[key])
                    for key in ('start_seconds', 'end_seconds'))
      splits[split].append(manifests.youtube_clip(
          files, where, row['YTID'], start, end,
          {'label': '|'.join(names[mid] for mid in mids)}, trimmed))
  train = [e for split in splits if split != 'eval' for e in splits[split]]
  if train:
    splits['train'] = train
  manifests.write(out, files, splits, [
      {'label': name, 'mid': mid} for mid, name in names.items()])


if __name__ == '__main__':
  flags.DEFINE_bool('trimmed', False, 'ID.mp4 is the clip, not the whole video.')
  manifests.command(lambda *folders: build(*folders, flags.FLAGS.trimmed))
