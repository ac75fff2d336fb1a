"""Tests launch/sweep.py with fake runs."""

import csv
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from vatt_jax import checkpoint
from vatt_jax import cli
from vatt_jax import evaluate
from vatt_jax.errors import UserError
from vatt_jax.evaluators import evaluation
from vatt_jax.models.vatt import Vatt

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = 'configs/quickstart.py'
GRID = {'optim.peak_rate': ['1e-3', '0.01'], 'seed': ['0', '1']}

# Replaces Python and the main command: fails on seed 1 unless a file `mended` exists,
# else writes results. HERE is its folder.
MADE_UP = r"""#!/usr/bin/env bash
[ "$1" = -m ] && [ "$2" = vatt_jax.main ] || exit 3
for a in "$@"; do case "$a" in
  --workdir=*) w=${a#*=} ;; --config.seed=*) s=${a#*=} ;;
  --config.optim.peak_rate=*) r=${a#*=} ;; esac; done
echo "$@" >> HERE/ran
if [ "$s" = 1 ] && [ ! -e HERE/mended ]; then
  echo 'Traceback'; echo "vatt_jax: no luck with seed 1" >&2; exit 2
fi
[ "$r" = 1e-3 ] && x=0.25 || x=0.75
echo "{\"a/R@1\": $x$s, \"a/chance_R@1\": 0.1, \"a/MedR\": $x, \"id\": \"f\"}" \
  > "$w/results.json"
"""


@pytest.fixture(scope='module')
def sweep():
  spec = importlib.util.spec_from_file_location('sweep', ROOT / 'launch' / 'sweep.py')
  module = importlib.util.module_from_spec(spec)
  sys.modules['sweep'] = module    # dataclasses look it up
  spec.loader.exec_module(module)
  return module


def _program(path, text):
  path.parent.mkdir(exist_ok=True)
  path.write_text(text.replace('HERE', str(path.parent)))
  path.chmod(0o755)
  return path


@pytest.fixture
def python(sweep, tmp_path, monkeypatch):
  path = _program(tmp_path / 'bin' / 'python', MADE_UP)
  monkeypatch.setattr(sweep.sys, 'executable', str(path))
  return path


@pytest.fixture
def plan(sweep, tmp_path):
  return lambda grid=GRID, **given: sweep.plan(
      tmp_path / 'out', **dict(config_file=CONFIG, arguments=['--config.total_steps=5'],
                               grid=grid) | given)


def _table(out):
  with (out / 'results.csv').open(newline='') as file:
    return list(csv.DictReader(file))


def test_grid_is_parsed(sweep):
  assert sweep.parse_grid(['a.b=1,x y', 'patch=(1,2),[3, 4]', 'path=']) == {
      'a.b': ['1', 'x y'], 'patch': ['(1,2)', '[3, 4]'], 'path': ['']}
  for texts, message in ((['a'], '--grid=a: expected KEY=VALUE'),
                         (['a=1', 'a=2'], 'every key and every value once'),
                         (['a=1,1'], 'every key and every value once')):
    with pytest.raises(UserError, match=message):
      sweep.parse_grid(texts)


# The warning is from ml_collections.
@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
@pytest.mark.parametrize('key, value, message', [
    ('seed.x', '1', r"--config\.seed\.x=0: unknown key 'x'"),
    ('optim.rate', '1', r"--config\.optim\.rate=0: unknown key 'rate'"),
    ('sede', '1', r"--config\.sede=0: unknown key 'sede'; did you mean seed"),
    ('seed', 'x', r"--config\.seed=x: expected a whole number")])
def test_invalid_grid_key_or_value_is_an_error(sweep, key, value, message):
  sweep.check_grid(str(ROOT / CONFIG), GRID | {'model.video.patch': ['(2,4,4)']})
  with pytest.raises(UserError, match=message):
    sweep.check_grid(str(ROOT / CONFIG), GRID | {key: ['0', value]})


def test_points_have_valid_unique_file_names(sweep, plan):
  points = plan({'data.path': ['a/b c', 'a/b_c'], 'seed': ['0']})
  names = [pathlib.Path(p.workdir).name for p in points]
  assert re.fullmatch(r'data\.path=a_b_c,seed=0-[0-9a-f]{8}', names[0])
  assert len(set(names)) == 2
  assert points[0].arguments == [
      f'--config={CONFIG}', '--config.total_steps=5', '--config.data.path=a/b c',
      '--config.seed=0', f'--workdir={points[0].workdir}']
  [point] = plan({'data.vocabulary': ['x' * 300]})[2:]
  assert len(pathlib.Path(point.workdir).name) < 140


def test_failed_point_is_a_row_and_the_others_continue(sweep, plan, python, tmp_path,
                                                       capsys):
  out, points, launcher = tmp_path / 'out', plan(), sweep.Local(1, lambda: None)
  assert sweep.sweep(points, out, launcher) == 2
  rows = _table(out)
  assert [(r['optim.peak_rate'], r['seed'], r['status'], r['a/R@1'], r['error'])
          for r in rows] == [
      ('1e-3', '0', 'done', '0.25', ''),    # 0.250
      ('1e-3', '1', 'failed', '', 'vatt_jax: no luck with seed 1'),
      ('0.01', '0', 'done', '0.75', ''),
      ('0.01', '1', 'failed', '', 'vatt_jax: no luck with seed 1')]
  assert rows[0]['a/chance_R@1'] == '0.1'
  assert 'no luck with seed 1' in capsys.readouterr().out
  (python.parent / 'mended').touch()
  (python.parent / 'ran').unlink()
  assert sweep.sweep(plan(), out, launcher) == 0
  ran = (python.parent / 'ran').read_text().splitlines()
  assert len(ran) == 2 and all('--config.seed=1' in line for line in ran)
  assert [r['status'] for r in _table(out)] == ['done'] * 4


def test_more_values_add_points_and_other_arguments_are_an_error(sweep, plan, python,
                                                                 tmp_path):
  (python.parent / 'mended').touch()
  out, launcher = tmp_path / 'out', sweep.Local(3, lambda: None)
  sweep.sweep(plan(), out, launcher)
  points = plan({'optim.peak_rate': ['0.01'], 'seed': ['1', '2']})
  assert [p.number for p in points] == [0, 1, 2, 3, 4]
  sweep.sweep(points, out, launcher)
  assert len((python.parent / 'ran').read_text().splitlines()) == 5
  assert len(_table(out)) == 5
  with pytest.raises(UserError, match=r'out: holds a sweep of .*total_steps=5.*=6; '
                                      'choose another --out'):
    plan(arguments=['--config.total_steps=6'])


def test_stopped_sweep_stops_its_points_once(sweep, plan, tmp_path, monkeypatch):
  """Each process gets one SIGTERM, so that training can save its state."""
  python = _program(tmp_path / 'bin' / 'python', r"""#!/usr/bin/env bash
trap 'echo TERM >> HERE/signals; exit 143' TERM
trap 'echo INT >> HERE/signals' INT
touch HERE/begun; while true; do sleep 0.05; done
""")
  monkeypatch.setattr(sweep.sys, 'executable', str(python))

  class Stopped(Exception):
    pass

  def check():
    if (python.parent / 'begun').exists():
      raise Stopped

  with pytest.raises(Stopped):
    sweep.sweep(plan(), tmp_path / 'out', sweep.Local(1, check))
  assert (python.parent / 'signals').read_text() == 'TERM\n'
  assert [r['status'] for r in _table(tmp_path / 'out')] == ['open'] * 4


def test_page_marks_the_best_and_shows_means_over_seeds(sweep, plan, tmp_path):
  points = plan()
  for point, x in zip(points, (0.2, 0.4, 0.5, 0.7), strict=True):
    pathlib.Path(point.workdir).mkdir()
    pathlib.Path(point.results).write_text(json.dumps(
        {'a/R@1': x, 'a/MedR': 10 * x, 'a/chance_R@1': 0.1, 'sha': 'beef'}))
  rows = [sweep.read_row(point, still_open=False) for point in points]
  rows[0] = sweep.Row(points[0], 'failed', 'because <b>', {})
  sweep.write_tables(tmp_path / 'out', rows)
  page = (tmp_path / 'out' / 'results.html').read_text()
  cells = [re.findall(r'<td[^>]*>(.*?)</td>', row, re.S)
           for row in re.findall(r'<tr>(.*?)</tr>', page, re.S)]
  assert [row for row in cells if row] == [
      ['1e-3', '0', 'failed', 'because &lt;b&gt;'],
      ['1e-3', '1', 'done', '0.4', '<b>4</b>'],
      ['0.01', '0', 'done', '0.5', '5'],
      ['0.01', '1', 'done', '<b>0.7</b>', '7'],
      ['1e-3', '1', '0.4', '<b>4</b>'],
      ['0.01', '2', '<b>0.6 ± 0.14</b>', '6 ± 1.4']]
  assert 'chance_R@1' not in page and 'beef' not in page


def test_every_checkpoint_of_a_run_is_a_point(sweep, plan, tmp_path, monkeypatch):
  class Sum:
    def run(self, state):
      yield 'R@1', 0.5

  monkeypatch.setitem(evaluation.EVALUATORS, 'sum', Sum)
  model = dict(video=dict(patch=(2, 8, 8), depth=1, width=8, num_heads=2, mlp_dim=8))
  config = dict(seed=0, total_steps=0, batch_size=2, log_every_steps=1, data={},
                window=dict(num_frames=2, frame_rate_hz=5.0, image_size=16,
                            audio_hz=4000, modalities=('video',)),
                model=model, evals=dict(sum=dict(name='sum')))
  run = tmp_path / 'run'
  checkpoint.save_model(run, model, Vatt.from_config(**model).init(
      jax.random.key(0), dict(video=np.zeros((1, 2, 16, 16, 3), np.float32))))
  (run / 'checkpoints' / '7').mkdir()    # only listed
  released = tmp_path / 'ckpt-500'
  with pytest.raises(UserError, match='ckpt-500: no such workdir or checkpoint'):
    sweep.list_checkpoints([str(released)])
  released.with_suffix('.index').touch()
  listed = sweep.list_checkpoints([str(run), str(released)])
  assert listed == [f'{run}/checkpoints/0', f'{run}/checkpoints/7', str(released)]
  point, *others = plan({'init_from': listed}, arguments=['--mode=eval'])
  assert len(others) == 2 and f'--config.init_from={listed[0]}' in point.arguments
  evaluate.watch(config | dict(init_from=listed[0]), pathlib.Path(point.workdir),
                 cli.run_name(CONFIG))
  assert point.read_results() == {'step': 0, 'sum/R@1': 0.5}


SBATCH = """#!/usr/bin/env bash
echo "$@" > HERE/sbatch_ran
[ "$1" = --wait ] && bash -n "$2" || exit 1
status=0
for task in $(sed -n 's/^#SBATCH --array=\\([0-9,]*\\).*/\\1/p' "$2" | tr , ' '); do
  SLURM_ARRAY_TASK_ID=$task bash "$2" || status=1
done
exit $status
"""


def test_slurm_without_sbatch_is_refused(sweep, tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', '')
  with pytest.raises(UserError, match='sbatch: no such program here'):
    sweep.Slurm(tmp_path, None, [], lambda: None)


def test_slurm_runs_unfinished_points_as_one_array(sweep, plan, tmp_path, monkeypatch):
  """The tasks run the script with a fake Python."""
  task = _program(tmp_path / 'bin' / 'python', r"""#!/usr/bin/env bash
[ "$(basename "$1")" = sweep.py ] || exit 3
out=${2#--out=}; name=optim.peak_rate=0.01,seed=0
[ "$3" = --point=2 ] || exit 1
mkdir "$out/$name" && echo '{"a/R@1": 1}' > "$out/$name/results.json"
""")
  _program(tmp_path / 'bin' / 'sbatch', SBATCH)
  monkeypatch.setenv('PATH', str(tmp_path / 'bin'), prepend=os.pathsep)
  monkeypatch.setattr(sweep.sys, 'executable', str(task))
  out, points = tmp_path / 'out', plan()
  for point in points[:2]:
    pathlib.Path(point.workdir).mkdir()
    pathlib.Path(point.results).write_text('{}')
  launcher = sweep.Slurm(out, 4, ['--gres=gpu:1', '--comment=a b'], lambda: None)
  assert sweep.sweep(points, out, launcher) == 1
  script = (out / 'slurm.sh').read_text()
  assert '#SBATCH --array=2,3%4\n' in script and '#SBATCH --gres=gpu:1\n' in script
  assert "#SBATCH '--comment=a b'\n" in script
  assert [(r['status'], r['error']) for r in _table(out)] == [
      ('done', ''), ('done', ''), ('done', ''), ('failed', 'it never started')]


@pytest.mark.slow
@pytest.mark.parametrize('flags, message', [
    (['--grid=sede=1'], "--config.sede=1: unknown key 'sede'; did you mean seed"),
    ([], '--grid, --checkpoints: both missing')])
def test_user_error_is_one_line_before_any_point_runs(flags, message, tmp_path):
  done = subprocess.run(
      [sys.executable, 'launch/sweep.py', f'--config={CONFIG}',
       f'--out={tmp_path / "out"}', *flags], cwd=ROOT, capture_output=True, text=True,
      env=os.environ | dict(PYTHONPATH=str(ROOT)))
  assert done.returncode == 2
  assert message in done.stderr and len(done.stderr.splitlines()) == 1
  assert not (tmp_path / 'out').exists()
