"""Builds the toy world: hundreds of narrated clips as real MP4 files, from a seed.

Colored shapes move over noisy backgrounds. A clip has two or three segments, each with
its own object and motion, so the sampled time matters. A shape has a timbre, a motion
has a pitch contour or a rhythm, and a larger object has a lower pitch. Narrations of
the training clips are as noisy as speech transcripts: some are early, some late, some
unrelated. The test split is annotated, like YouCook2 and MSR-VTT: one segment of every
clip, with one sentence that describes it.

    python -m data.toy_world --out=data/toy_world

writes

    clips/{train,test}/*.mp4   H.264 at 10 fps and, for most, AAC at 16 kHz
    train.csv                  path: the input of pre-training, with
    train_captions.csv         path,start,end,text: the timed narrations
    train_segments.csv         path,start,end,shape,colour,motion,sound_event
    test_segments.csv          the same and text: labels are for evaluation only

Times are in seconds; sound events of a segment are joined by `|`.

With --rooms every clip is in a room, which tints the background and hums at a pitch for
the whole clip. Video and audio then share a cue that says nothing about segments: a
shortcut for contrastive losses. Both lists of segments get the column `room`.
"""

from __future__ import annotations

from collections.abc import Iterable
import colorsys
import concurrent.futures
import csv
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import shutil

from absl import app
from absl import flags
import numpy as np

from vatt_jax.inputs import write_mp4 as encode_lib

SIZE_PIXELS = 64
FRAME_RATE_HZ = 10
AUDIO_HZ = 16_000

COLOURS = {
    'red': (230, 40, 40), 'green': (40, 200, 60), 'blue': (60, 90, 250),
    'yellow': (240, 220, 40), 'pink': (250, 110, 210), 'white': (245, 245, 245)}
# Each shape has the timbre of one instrument, which is its sound event.
TIMBRES = {'circle': 'flute', 'bar': 'organ', 'triangle': 'violin',
           'star': 'bell', 'cross': 'hiss', 'ring': 'buzz'}
SHAPES = tuple(TIMBRES)
MOTIONS = ('left', 'right', 'up', 'down', 'circle', 'shake', 'bounce', 'pulse')
BACKGROUND_EVENTS = {'knock': 0.25, 'hum': 0.25}  # name -> share of clips
NUM_ROOMS = 24

PHRASES = {
    'left': ('moves left', 'slides to the left', 'is going left'),
    'right': ('moves right', 'slides to the right', 'is going right'),
    'up': ('moves up', 'rises to the top', 'is going up'),
    'down': ('moves down', 'sinks to the bottom', 'is going down'),
    'circle': ('moves in a circle', 'goes round and round', 'is circling'),
    'shake': ('shakes', 'is shaking fast', 'trembles'),
    'bounce': ('bounces', 'is bouncing', 'jumps on the floor'),
    'pulse': ('grows and shrinks', 'is pulsing', 'swells again and again')}
FULL = ('a {colour} {shape} {motion}', 'the {colour} {shape} {motion}',
        'now the {colour} {shape} {motion}', 'see how a {colour} {shape} {motion}')
PARTIAL = ('the {shape} {motion}', 'look at this {colour} {shape}',
           'something {colour} {motion}')
CHATTER = (
    'welcome back to my channel', 'thanks for watching everyone',
    'do not forget to subscribe', 'let me know in the comments',
    'it is a lovely day today', 'i had toast for breakfast',
    'we will get to that in a minute', 'so anyway where was i',
    'you can find the link below', 'my dog is asleep under the table')

SHARE_WITHOUT_TEXT = 0.15
SHARE_WITHOUT_SOUND = 0.10
SHARE_DISPLACED = 0.15
SHARE_CHATTER = 0.15


@dataclasses.dataclass(frozen=True)
class Segment:
  """Describes one object with one motion, from `start` to `end` seconds of a clip."""
  start: float
  end: float
  shape: str
  colour: str
  motion: str
  radius: float       # pixels
  speed: float        # 1 is the motion's usual speed
  origin: tuple[float, float]   # pixels

  def sentence(self, template: str, rng: np.random.Generator) -> str:
    return template.format(colour=self.colour, shape=self.shape,
                           motion=rng.choice(PHRASES[self.motion]))


@dataclasses.dataclass(frozen=True)
class Clip:
  """Describes a clip completely before it is drawn."""
  path: str
  segments: tuple[Segment, ...]
  events: tuple[str, ...]                           # background sound events
  captions: tuple[tuple[float, float, str], ...]    # start, end, text
  has_sound: bool
  room: int | None = None

  @property
  def duration(self) -> float:
    return self.segments[-1].end


# ---------------------------------------------------------------- the script

def _generator(seed: int, split: str, index: int) -> np.random.Generator:
  """Returns a generator for one clip; no two clips or splits share a seed."""
  key = (('train', 'test').index(split), index)
  return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _script_segments(rng: np.random.Generator) -> tuple[Segment, ...]:
  duration = round(rng.uniform(6, 10), 1)
  count = 3 if duration >= 8.4 else 2
  cuts = np.linspace(0, duration, count + 1)
  cuts[1:-1] += rng.uniform(-0.3, 0.3, count - 1)
  cuts = np.round(cuts, 1)
  shapes = rng.choice(SHAPES, count, replace=False)
  motions = rng.choice(MOTIONS, count, replace=False)
  colours = rng.choice(list(COLOURS), count, replace=False)
  return tuple(
      Segment(float(start), float(end), str(shape), str(colour), str(motion),
              radius=rng.uniform(12, 18), speed=rng.uniform(0.8, 1.25),
              origin=tuple(rng.uniform(22, SIZE_PIXELS - 22, 2)))
      for start, end, shape, colour, motion
      in zip(cuts[:-1], cuts[1:], shapes, colours, motions, strict=True))


def _narrate(segments: Iterable[Segment], rng: np.random.Generator):
  """Yields noisy timed sentences, about one every 1.3 seconds."""
  for segment in segments:
    time = segment.start + rng.uniform(0, 0.5)
    while time < segment.end - 0.4:
      templates = FULL if rng.random() < 0.6 else PARTIAL
      text = segment.sentence(rng.choice(templates), rng)
      said = time
      fate = rng.random()
      if fate < SHARE_CHATTER:
        text = str(rng.choice(CHATTER))
      elif fate < SHARE_CHATTER + SHARE_DISPLACED:
        said = max(0.0, time + rng.choice([-1, 1]) * rng.uniform(1, 3))
      yield round(said, 2), round(said + 1.0, 2), text
      time += rng.uniform(1.0, 1.6)


def script(seed: int, split: str, index: int, rooms: bool = False) -> Clip:
  """Returns clip `index` of a split, as a pure function of the seed."""
  rng = _generator(seed, split, index)
  segments = _script_segments(rng)
  events = tuple(e for e, share in BACKGROUND_EVENTS.items()
                 if rng.random() < share)
  if split == 'test':  # annotated: one sentence about one segment
    segment = segments[rng.integers(len(segments))]
    captions = ((segment.start, segment.end,
                 segment.sentence(rng.choice(FULL), rng)),)
    has_sound = True
  else:
    captions = tuple(sorted(_narrate(segments, rng)))
    if rng.random() < SHARE_WITHOUT_TEXT:
      captions = ()
    has_sound = rng.random() >= SHARE_WITHOUT_SOUND
  # A stream of its own: rooms change nothing else of a clip.
  room = int(rng.spawn(2)[1].integers(NUM_ROOMS)) if rooms else None
  return Clip(f'clips/{split}/{index:04d}.mp4', segments, events, captions,
              bool(has_sound), room)


# ---------------------------------------------------------------- the frames

def _place(segment: Segment, t: np.ndarray):
  """Returns center x, y and radius in pixels at times t (seconds).  [T] each."""
  x, y = (np.full_like(t, v) for v in segment.origin)
  r = np.full_like(t, segment.radius)
  pace = segment.speed * t
  match segment.motion:
    case 'left': x = x - 24 * pace
    case 'right': x = x + 24 * pace
    case 'up': y = y - 24 * pace
    case 'down': y = y + 24 * pace
    case 'circle':
      x = x + 13 * np.cos(2 * np.pi * pace)
      y = y + 13 * np.sin(2 * np.pi * pace)
    case 'shake': x = x + 5 * np.sign(np.sin(2 * np.pi * 2.5 * pace + 0.1))
    case 'bounce': y = y + 14 - 28 * np.abs(np.sin(2 * np.pi * 0.75 * pace))
    case 'pulse': r = r * (1 + 0.55 * np.sin(2 * np.pi * 1.0 * pace))
  return x, y, r


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """Returns a unit shape's coverage in [0, 1] at offsets u (right), v (down)."""
  distance = np.hypot(u, v)
  match shape:
    case 'circle': edge = distance - 0.9
    case 'bar': edge = np.maximum(abs(u) - 1, abs(v) - 0.36)
    case 'triangle': edge = np.maximum(v - 0.7, 1.8 * abs(u) - v - 0.9)
    case 'star':
      # Five points: fold the angle onto half a point, whose side is a line.
      fifth = 2 * np.pi / 5
      angle = abs((np.arctan2(u, -v) + fifth / 2) % fifth - fifth / 2)
      edge = (distance * (np.cos(angle) + 3.2 * np.sin(angle)) - 1.2) / 2
    case 'cross':
      edge = np.minimum(np.maximum(abs(u) - 0.28, abs(v) - 1),
                        np.maximum(abs(v) - 0.28, abs(u) - 1))
    case 'ring': edge = abs(distance - 0.78) - 0.22
  return np.clip(0.5 - 8 * edge, 0, 1)


def _background(rng: np.random.Generator, frames: int) -> np.ndarray:
  """Draws a dim coarse texture that drifts, under fine noise.  [T, H, W, 3]."""
  coarse = rng.uniform(0, 110, (6, 6, 3)).astype(np.float32)
  grid = np.linspace(0, 5, SIZE_PIXELS, dtype=np.float32)
  low = np.minimum(grid.astype(int), 4)
  part = grid - low
  rows = (coarse[low] * (1 - part)[:, None, None]
          + coarse[low + 1] * part[:, None, None])
  image = (rows[:, low] * (1 - part)[None, :, None]
           + rows[:, low + 1] * part[None, :, None])
  drift = rng.integers(-1, 2, 2)
  video = np.stack([np.roll(image, tuple(drift * (i // 3)), (0, 1))
                    for i in range(frames)])
  noise = rng.standard_normal((frames, SIZE_PIXELS, SIZE_PIXELS, 1), np.float32)
  return video + rng.uniform(4, 12) * noise


def draw(clip: Clip, rng: np.random.Generator) -> np.ndarray:
  """Draws the frames of a clip.  -> uint8 [T, 64, 64, 3]."""
  frames = round(clip.duration * FRAME_RATE_HZ)
  time = np.arange(frames, dtype=np.float32) / FRAME_RATE_HZ
  video = _background(rng, frames)
  if clip.room is not None:
    tint = colorsys.hsv_to_rgb(clip.room / NUM_ROOMS, 1, 120)
    video = 0.5 * video + np.asarray(tint, np.float32)
  pixel = np.arange(SIZE_PIXELS, dtype=np.float32) + 0.5
  half = SIZE_PIXELS / 2
  for segment in clip.segments:
    now = (time >= segment.start - 1e-6) & (time < segment.end - 1e-6)
    x, y, r = (a[:, None, None]
               for a in _place(segment, time[now] - segment.start))
    # The world is a torus: objects that leave on one side return on the other.
    u = ((pixel[None, None, :] - x + half) % SIZE_PIXELS - half) / r
    v = ((pixel[None, :, None] - y + half) % SIZE_PIXELS - half) / r
    cover = _inside(segment.shape, u, v)[..., None]
    colour = np.asarray(COLOURS[segment.colour], np.float32)
    video[now] = (1 - cover) * video[now] + cover * colour
  return np.clip(video, 0, 255).astype(np.uint8)


# ----------------------------------------------------------------- the audio

def _contour(segment: Segment, t: np.ndarray):
  """Returns pitch in octaves above the object's own, and loudness, at times t.  [S]."""
  pace = segment.speed * t
  octaves, loudness = np.zeros_like(t), np.ones_like(t)
  match segment.motion:
    case 'left': loudness = ((1.5 * pace) % 1 < 0.5).astype(t.dtype)
    case 'right': loudness = ((6 * pace) % 1 < 0.5).astype(t.dtype)
    case 'up': octaves = 0.6 + (pace % 1)
    case 'down': octaves = 0.2 - (pace % 1)
    case 'circle': octaves = 0.4 * np.sin(2 * np.pi * 4 * pace)
    case 'shake': octaves = 0.6 * ((5 * pace) % 1 < 0.5)
    case 'bounce':
      since = (1.5 * pace) % 1
      octaves, loudness = 1.2 * np.sin(np.pi * since), np.exp(-4 * since)
    case 'pulse': loudness = 0.55 - 0.45 * np.sin(2 * np.pi * 1.0 * pace)
  return octaves, loudness


def _play(shape: str, phase: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Plays the timbre of a shape at a phase in cycles.  [S] -> [S] in [-1, 1]."""
  angle = 2 * np.pi * phase
  match TIMBRES[shape]:
    case 'flute': return np.sin(angle)
    case 'organ': return np.tanh(6 * np.sin(angle / 2)) * 0.7
    case 'violin': return 0.9 - 1.8 * (phase % 1)
    case 'bell':
      return sum(np.sin(k * angle) for k in (1, 2.76, 5.4)) / 2.2
    case 'hiss':  # noise, modulated with the pitch
      noise = rng.standard_normal(len(phase))
      return 0.4 * noise * (0.6 + 0.4 * np.sin(angle))
    case 'buzz': return np.sin(angle) * np.sign(np.sin(angle * 0.125))
  raise ValueError(f'no timbre for shape {shape!r}')


def sing(clip: Clip, rng: np.random.Generator) -> np.ndarray:
  """Returns the audio of a clip, mono at 16 kHz.  -> float32 [S] in [-1, 1]."""
  time = np.arange(round(clip.duration * AUDIO_HZ)) / AUDIO_HZ
  audio = 0.01 * rng.standard_normal(len(time))
  for segment in clip.segments:
    now = (time >= segment.start) & (time < segment.end)
    octaves, loudness = _contour(segment, time[now] - segment.start)
    base_hz = 5400 / segment.radius   # 300 Hz for the largest, 450 for the smallest
    phase = np.cumsum(base_hz * 2 ** octaves) / AUDIO_HZ
    audio[now] += 0.5 * loudness * _play(segment.shape, phase, rng)
  if 'knock' in clip.events:
    since = (time + rng.uniform()) % rng.uniform(0.7, 1.1)
    audio += 0.3 * np.exp(-60 * since) * np.sin(2 * np.pi * 120 * since)
  if 'hum' in clip.events:
    audio += 0.08 * np.sin(2 * np.pi * 100 * time) * np.sign(
        np.sin(2 * np.pi * 50 * time))
  if clip.room is not None:
    audio += 0.3 * np.sin(2 * np.pi * (400 + 130 * clip.room) * time)
  return np.clip(audio, -1, 1).astype(np.float32)


# ----------------------------------------------------------------- the files

def encode(path: str | os.PathLike[str], video: np.ndarray, frame_rate_hz: int,
           audio: np.ndarray | None = None, audio_hz: int = AUDIO_HZ) -> None:
  """Writes frames uint8 [T, H, W, 3] and mono audio float32 [S] as H.264 and AAC."""
  # No macroblock tree (its choices vary between runs): a seed gives the same bytes.
  # One keyframe per second: the reader seeks to the last one before its window.
  encode_lib.write(path, video, frame_rate_hz, audio, audio_hz, 64_000, {
      'preset': 'veryfast', 'tune': 'fastdecode', 'crf': '28',
      'x264-params': 'mbtree=0', 'g': str(frame_rate_hz)})


def _render(root: pathlib.Path, seed: int, split: str, rooms: bool, index: int
            ) -> Clip:
  clip = script(seed, split, index, rooms)
  rng = _generator(seed, split, index).spawn(1)[0]
  video = draw(clip, rng)
  encode(root / clip.path, video, FRAME_RATE_HZ,
         sing(clip, rng) if clip.has_sound else None)
  return clip


def _segment_row(clip: Clip, segment: Segment) -> dict[str, str | float]:
  room = {} if clip.room is None else dict(room=f'room {clip.room}')
  events = (TIMBRES[segment.shape], *clip.events) if clip.has_sound else ()
  return dict(path=clip.path, start=segment.start, end=segment.end,
              shape=segment.shape, colour=segment.colour, motion=segment.motion,
              sound_event='|'.join(events), **room)


def _write_csv(path: pathlib.Path, rows: list[dict[str, str | float]]) -> None:
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)


def build(out: str | os.PathLike[str], seed: int = 0, train_clips: int = 512,
          test_clips: int = 256, rooms: bool = False) -> None:
  """Builds the toy world in folder `out`, which must not exist yet.

  Args:
    out: the folder, which is written atomically.
    seed: the same seed gives the same clips.
    train_clips: number of clips to train on.
    test_clips: number of held-out clips, the retrieval pool.
    rooms: whether every clip is in a room.

  Raises:
    FileExistsError: `out` exists already.
  """
  out = pathlib.Path(out)
  if out.exists():
    raise FileExistsError(f'{out}: is there already; remove it to build it again')
  root = out.with_name(out.name + '.partial')
  shutil.rmtree(root, ignore_errors=True)
  clips = {}
  # Not forked: the caller may have threads, and forking threads can hang.
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
    for split, count in (('train', train_clips), ('test', test_clips)):
      (root / 'clips' / split).mkdir(parents=True)
      render = functools.partial(_render, root, seed, split, rooms)
      clips[split] = list(pool.map(render, range(count), chunksize=16))

  _write_csv(root / 'train.csv', [dict(path=c.path) for c in clips['train']])
  _write_csv(root / 'train_captions.csv', [
      dict(path=c.path, start=start, end=end, text=text)
      for c in clips['train'] for start, end, text in c.captions])
  _write_csv(root / 'train_segments.csv', [
      _segment_row(c, s) for c in clips['train'] for s in c.segments])
  _write_csv(root / 'test_segments.csv', [
      {**_segment_row(c, s), 'text': text}
      for c in clips['test'] for start, _, text in c.captions
      for s in c.segments if s.start == start])
  root.rename(out)


def main(_) -> None:
  build(flags.FLAGS.out, flags.FLAGS.seed, rooms=flags.FLAGS.rooms)


if __name__ == '__main__':
  flags.DEFINE_string('out', 'data/toy_world', 'The folder to create.')
  flags.DEFINE_integer('seed', 0, 'Seed of the clips.')
  flags.DEFINE_bool('rooms', False, 'Put every clip in a room.')
  app.run(main)
