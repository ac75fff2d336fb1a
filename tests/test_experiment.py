"""Tests vatt_jax/experiment.py."""

from vatt_jax import experiment
from vatt_jax.inputs import caption_index
from vatt_jax.inputs import sources


def test_is_begun_if_all_files_exist(tmp_path, monkeypatch):
  """In this case its processes open the sources at the same time."""
  monkeypatch.setattr(caption_index, 'MIN_BYTES', 0)
  (tmp_path / 'd').mkdir()
  (tmp_path / 'd' / 'm.csv').write_text('path\na.mp4\n')
  (tmp_path / 'd' / 'c.csv').write_text('path,text\na.mp4,hi\n')
  manifest = str(tmp_path / 'd' / 'm.csv')
  data = dict(path=manifest, captions='c.csv')
  begun = lambda **changes: experiment.is_begun(dict(data=data | changes), tmp_path)
  assert not begun(captions='')    # no config yet
  (tmp_path / 'config.json').write_text('{}')
  assert begun(captions='') and not begun()
  sources.open_source(manifest, 'c.csv')
  assert begun() and begun(path='', captions='')
