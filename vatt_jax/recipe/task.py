"""Builds the training step from sections `model`, `losses`, `optim` and `augment`."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import logging
from jax.sharding import Mesh
import optax

from vatt_jax import losses as losses_lib
from vatt_jax import models
from vatt_jax import optim
from vatt_jax import train_step
from vatt_jax.config import call
from vatt_jax.config import Settings
from vatt_jax.distributed import sharding
from vatt_jax.errors import UserError
from vatt_jax.inputs import augment
from vatt_jax.inputs import labels
from vatt_jax.inputs.window import Window
from vatt_jax.losses import classification
from vatt_jax.models import heads
from vatt_jax.models import multimodal


def make(seed: int, total_steps: int, batch_size: int, window: Window,
         model: Settings, losses: Mapping[str, Settings],
         optim_settings: Settings | None, augment_settings: Settings,
         num_microbatches: int, average_decay: float, mesh: Mesh,
         rules: Sequence[sharding.Rule],
         extended: Sequence[tuple[int, int]] = ()) -> train_step.Task:
  """Builds the task of a config.

  Raises:
    UserError: names a key that is invalid or does not fit the window.
  """
  if not 0 <= average_decay < 1:
    raise UserError(f'config.average_decay={average_decay}: expected 0 or more, and '
                    'less than 1')
  network = models.from_config(model, mesh.devices.flat[0])
  built = {name: losses_lib.build(name, section, num_shifts=window.num_shifts,
                                  num_views=window.num_views)
           for name, section in losses.items()}
  _check_chunks(built, batch_size)
  if optim_settings is None:    # nothing is trained
    optimizer = optim.Optimizer(optax.set_to_zero(), optax.constant_schedule(0.0), None)
  else:
    optimizer = call('optim', optim.build, optim_settings, total_steps=total_steps,
                     layer_of=network.layer_of, extended=extended)
  if batch_size % window.rows_per_clip:
    raise UserError(f'config.batch_size={batch_size}: counts rows; expected a multiple '
                    f'of window.num_shifts * window.num_views={window.rows_per_clip}')
  num_microbatches = _count_microbatches(
      num_microbatches, batch_size // window.rows_per_clip, optimizer,
      optim_settings or {})
  _check_rate(network, window.audio_hz)
  _check_positions(model, window.max_tokens)
  return train_step.Task(network, built, optimizer.update, optimizer.schedule, seed,
                   call('augment', augment.Augment, augment_settings), optimizer.frozen,
                   num_microbatches, average_decay, optimizer.clip, mesh,
                   sharding.check_rules(rules), rows_per_clip=window.rows_per_clip)


def _count_microbatches(num_microbatches: int, num_clips: int,
                        optimizer: optim.Optimizer, optim_settings: Settings) -> int:
  """Returns the number of microbatches: one per replica if replicas are clipped.

  Raises:
    UserError: it does not divide the batch, or is neither 1 nor `clip_replicas`.
  """
  if optimizer.clip is None:
    if num_microbatches < 1 or num_clips % num_microbatches:
      raise UserError(f'config.num_microbatches={num_microbatches}: expected a '
                      f'divisor of the {num_clips} clips of a batch')
    return num_microbatches
  replicas = optim_settings['clip_replicas']
  if num_clips % replicas:
    raise UserError(f'config.optim.clip_replicas={replicas}: expected a divisor of '
                    f'the {num_clips} clips of a batch')
  if num_microbatches not in (1, replicas):
    raise UserError(
        f'config.num_microbatches={num_microbatches}: expected 1 or config.optim.'
        f'clip_replicas={replicas}, because the gradient of each replica is clipped '
        'separately')
  return replicas


def check_losses(task: train_step.Task, batch: Mapping[str, Any]) -> None:
  """Raises UserError unless model and batch provide all arrays that the losses need."""
  outputs = None    # traced once, where an error can name a loss
  for name in task.losses:
    try:
      if outputs is None:
        outputs = task.trace_outputs(batch)
      task.trace_loss(name, outputs, batch)
    except losses_lib.MissingOutput as e:
      raise UserError(
          f'config.losses.{name}: needs {e.needed}; the model and data provide '
          f'{", ".join(e.available) or "none"}; add it to config.model (its modalities '
          'and head), config.window.modalities or config.data (its label), or remove '
          'this loss') from e
    except ValueError as e:
      raise UserError(f'config.losses.{name}: {e}') from e


def _check_chunks(losses: Mapping[str, losses_lib.Loss], batch_size: int) -> None:
  """Raises UserError unless every loss's `num_chunks` divides the batch."""
  for name, loss in losses.items():
    num_chunks = getattr(loss, 'num_chunks', 1)
    if batch_size % num_chunks:
      raise UserError(f'config.losses.{name}.num_chunks={num_chunks}: expected a '
                      f'divisor of batch_size={batch_size}')


def check_classes(classes: labels.Labels | None, task: train_step.Task) -> None:
  """Raises UserError unless labels, classifier and loss fit together.

  A single class only causes a warning.
  """
  if classes is None:
    return
  head = task.model.head
  if isinstance(head, heads.Classifier) and head.num_classes != len(classes.names):
    raise UserError(
        f'config.model.head.num_classes={head.num_classes}: {classes.source} has '
        f'{len(classes.names)} classes; make them equal, or set config.data.label_map '
        'to the list of all classes')
  if isinstance(head, heads.Classifier) and len(classes.names) == 1 and (
      not classes.multi_label):
    logging.warning('config.data.label=%r: %s has only one class, %r, so there is '
                    'nothing to learn; expected two or more', classes.column,
                    classes.source, classes.names[0])
  for name, loss in task.losses.items():
    if classes.multi_label and isinstance(loss, classification.Softmax):
      raise UserError(f"config.losses.{name}.name='softmax': needs one class per clip; "
                      "with config.data.multi_label use 'bce'")


def _check_rate(network: multimodal.MultimodalModel, audio_hz: int) -> None:
  """Raises UserError unless the spectrogram has the sample rate of the audio."""
  tokenizer = getattr(network, 'tokenizers', {}).get('audio')
  spectrogram = getattr(tokenizer, 'spectrogram', None)
  if spectrogram is not None and spectrogram.audio_hz != audio_hz:
    raise UserError(f'config.window.audio_hz={audio_hz}: the spectrogram of '
                    f'config.model.audio expects {spectrogram.audio_hz}; make them '
                    'equal')


def _check_positions(model: Settings, max_tokens: int) -> None:
  """Raises UserError if a shared Transformer has too few positions for text tokens."""
  if not (model.get('shared') and model.get('text')):
    return
  positions = model['text'].get('max_tokens', 0)
  if positions < max_tokens:
    raise UserError(f'config.model.text.max_tokens={positions}: expected '
                    f'window.max_tokens={max_tokens} or more')
