"""The sections `model`, `losses`, `optim` and `augment`: what one step computes."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

from absl import logging
from jax.sharding import Mesh
import optax

from vatt_jax import optim
from vatt_jax import sharding
from vatt_jax import step
from vatt_jax.errors import UserError
from vatt_jax.inputs import augment
from vatt_jax.inputs import labels
from vatt_jax.inputs import pipeline
from vatt_jax.models import build
from vatt_jax.models import heads
from vatt_jax.models import multimodal
from vatt_jax.objectives import classify
from vatt_jax.objectives import contrastive
from vatt_jax.settings import call
from vatt_jax.settings import check_keys
from vatt_jax.settings import choose
from vatt_jax.settings import nearest
from vatt_jax.settings import Settings


def make(seed: int, total_steps: int, batch_size: int, window: pipeline.Window,
         model: Settings, losses: Mapping[str, Settings],
         optim_settings: Settings | None, augment_settings: Settings, num_parts: int,
         average_decay: float, mesh: Mesh, rules: Sequence[sharding.Rule],
         extended: Sequence[tuple[int, int]] = ()) -> step.Task:
  """Builds the task of a config.

  Raises:
    UserError: names the key that is wrong, or does not fit the window.
  """
  if not 0 <= average_decay < 1:
    raise UserError(f'config.average_decay={average_decay}: expected 0 or more, less '
                    'than 1')
  network = call('model', build.build_model, model, device=mesh.devices.flat[0])
  terms = {name: _named_term(name, section, network, window.modalities)
           for name, section in losses.items()}
  _check_chunks(losses, batch_size)
  if optim_settings is None:    # nothing is trained
    optimizer = optim.Optimizer(optax.set_to_zero(), optax.constant_schedule(0.0), None)
  else:
    optimizer = call('optim', optim.build, optim_settings, total_steps=total_steps,
                     extended=extended)
  num_parts = _count_parts(num_parts, batch_size, optimizer, optim_settings or {})
  _check_rate(network, window.audio_hz)
  _check_words(model, window.max_words)
  return step.Task(network, terms, optimizer.update, optimizer.schedule, seed,
                   call('augment', augment.Augment, augment_settings), optimizer.frozen,
                   num_parts, average_decay, optimizer.clip, mesh,
                   sharding.check_rules(rules))


def _count_parts(num_parts: int, batch_size: int, optimizer: optim.Optimizer,
                 optim_settings: Settings) -> int:
  """Returns the number of parts, which is that of the replicas where each is clipped.

  Raises:
    UserError: it does not divide the batch, or is neither 1 nor that of the replicas.
  """
  if optimizer.clip is None:
    if num_parts < 1 or batch_size % num_parts:
      raise UserError(f'config.num_parts={num_parts}: expected a divisor of batch_size='
                      f'{batch_size}')
    return num_parts
  replicas = optim_settings['clip_replicas']
  if batch_size % replicas:
    raise UserError(f'config.optim.clip_replicas={replicas}: expected a divisor of '
                    f'batch_size={batch_size}')
  if num_parts not in (1, replicas):
    raise UserError(
        f'config.num_parts={num_parts}: expected 1 or config.optim.clip_replicas='
        f'{replicas}, because the gradient of each replica is clipped by itself')
  return replicas


def _named_term(name: str, section: Settings, network: multimodal.Vatt,
                modalities: Sequence[str]) -> step.Term:
  where = f'losses.{name}'
  if name == step.LABEL:
    _check_label(network, modalities)
    return call(where, _label_term, section)
  if name not in OBJECTIVES:
    known = (step.LABEL, *OBJECTIVES)
    raise UserError(f'config.{where}: unknown key; {nearest(name, known)}expected one '
                    f'of {", ".join(known)}')
  _check_pair(name, network, modalities)
  return call(where, _term, section, pair=name)


OBJECTIVES = {    # of each pair: a clip has one sound but several candidate texts
    'video_audio': {'nce': contrastive.nce, 'sigmoid': contrastive.sigmoid},
    'video_text': {'mil_nce': contrastive.mil_nce, 'sigmoid': contrastive.sigmoid},
    'audio_text': {'mil_nce': contrastive.mil_nce, 'sigmoid': contrastive.sigmoid}}


def _term(name: str, pair: str, temperature: float, weight: float = 1.0,
          learn_temperature: bool = False, **settings: Any) -> step.Term:
  """A term of the loss.

  Args:
    name: of `OBJECTIVES`.
    pair: of the modalities.
    temperature: tau, or where it starts.
    weight: in the sum of the terms.
    learn_temperature: train it; the sigmoid loss trains its bias too.
    **settings: `form` of NCE, `bias` of the sigmoid loss, `num_chunks`.
  """
  objective = choose(OBJECTIVES[pair], name)
  check_keys(f'losses.{pair}', objective, settings,
             ('anchors', 'others', 'present', 'temperature', 'anchored'))
  if settings.get('form', 'paper') not in contrastive.FORMS:
    raise ValueError(f'form={settings["form"]!r}: expected one of '
                     f'{", ".join(contrastive.FORMS)}')
  least = step.LEAST_TEMPERATURE if learn_temperature else 0.0
  if temperature <= least:
    raise ValueError(f'temperature={temperature}: expected more than {least}')
  numbers = dict(temperature=temperature)
  if 'bias' in settings:
    numbers['bias'] = settings.pop('bias')
  objective = functools.partial(objective, **settings)
  return step.Term(objective, weight, *(({}, numbers) if learn_temperature else
                                        (numbers, {})))


def _check_chunks(losses: Mapping[str, Settings], batch_size: int) -> None:
  """Raises UserError unless every loss's chunks are of one size."""
  for name, section in losses.items():
    num_chunks = section.get('num_chunks', 1)
    if num_chunks < 1 or batch_size % num_chunks:
      raise UserError(f'config.losses.{name}.num_chunks={num_chunks}: expected a '
                      f'divisor of batch_size={batch_size}')


CLASSIFIERS = {'softmax': classify.softmax, 'sigmoid': classify.sigmoid}


def _label_term(name: str, weight: float = 1.0, **settings: Any) -> step.Term:
  """The term of the labels: `name` of `CLASSIFIERS`, and its settings."""
  objective = choose(CLASSIFIERS, name)
  if not 0 <= settings.get('smoothing', 0) <= 1:
    raise ValueError(f'smoothing={settings["smoothing"]}: expected 0 to 1')
  check_keys(f'losses.{step.LABEL}', objective, settings,
             ('logits', 'labels', 'present'))
  return step.Term(functools.partial(objective, **settings), weight)


def _check_pair(pair: str, network: multimodal.Vatt, modalities: Sequence[str]) -> None:
  """Raises UserError unless both modalities are read, and embedded in one space."""
  where = f'config.losses.{pair}'
  for modality in step.PAIRS[pair][1:]:
    if modality not in modalities:
      raise UserError(f'{where}: no {modality} is read; remove this loss, or add '
                      f'{modality!r} to config.window.modalities')
    if modality not in network.tokenizers:
      raise UserError(f'{where}: the model has no {modality}; remove this loss, or add '
                      f'config.model.{modality}')
  if not isinstance(network.head, heads.FacHead):
    raise UserError(f'{where}: needs a model that embeds; set config.model.head to the '
                    'settings of a fac head')
  if pair == 'audio_text' and not network.head.audio_text:
    raise UserError(f'{where}: needs sound in the space of text; set '
                    'config.model.head.audio_text=True')


def _check_label(network: multimodal.Vatt, modalities: Sequence[str]) -> None:
  """Raises UserError unless there is a classifier of one modality that is read."""
  where = f'config.losses.{step.LABEL}'
  if not isinstance(network.head, heads.Classifier):
    raise UserError(f"{where}: needs a classifier; set config.model.head to name="
                    "'classifier'")
  used = set(network.tokenizers) & set(modalities)
  if len(used) != 1:
    raise UserError(f'{where}: classifies one modality; of the model\'s '
                    f'{", ".join(network.tokenizers)}, config.window.modalities reads '
                    f'{", ".join(sorted(used)) or "none"}')


def check_classes(classes: labels.Labels | None, task: step.Task) -> None:
  """Raises UserError unless labels, classifier and loss belong together.

  A single class is no error, yet worth a warning.
  """
  if classes is None:
    if step.LABEL in task.terms:
      raise UserError(f'config.losses.{step.LABEL}: needs labels; set config.data.'
                      'label to a column of the manifest')
    return
  head = task.model.head
  if isinstance(head, heads.Classifier) and head.num_classes != len(classes.names):
    raise UserError(
        f'config.model.head.num_classes={head.num_classes}: {classes.source} has '
        f'{len(classes.names)} classes; make them equal, or set config.data.label_map '
        'to the list of all classes')
  if isinstance(head, heads.Classifier) and len(classes.names) == 1 and (
      not classes.several):
    logging.warning('config.data.label=%r: %s has one class alone, %r, from which '
                    'nothing can be learnt; expected two or more', classes.column,
                    classes.source, classes.names[0])
  if classes.several and step.LABEL in task.terms and (
      task.terms[step.LABEL].objective.func is classify.softmax):
    raise UserError(f"config.losses.{step.LABEL}.name='softmax': a clip has one class; "
                    "of several (config.data.several_labels) 'sigmoid'")


def _check_rate(network: multimodal.Vatt, audio_hz: int) -> None:
  """Raises UserError unless a spectrogram is made for the sound that is read."""
  made_for = getattr(network.tokenizers.get('audio'), 'spectrogram', None)
  if made_for is not None and made_for.audio_hz != audio_hz:
    raise UserError(f'config.window.audio_hz={audio_hz}: the spectrogram of '
                    f'config.model.audio is made for {made_for.audio_hz}; make them '
                    'equal')


def _check_words(model: Settings, max_words: int) -> None:
  """Raises UserError if one Transformer for all has too few positions for words."""
  if not (model.get('shared') and model.get('text')):
    return
  known = model['text'].get('max_words', 0)
  if known < max_words:
    raise UserError(f'config.model.text.max_words={known}: expected '
                    f'window.max_words={max_words} or more')
