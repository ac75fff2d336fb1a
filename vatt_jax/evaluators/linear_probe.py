"""Trains classifiers on frozen features (linear probing), most of them linear."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import itertools
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import linear_model
from sklearn import preprocessing
from sklearn import svm

from vatt_jax.config import build
from vatt_jax.config import choose
from vatt_jax.config import Settings
from vatt_jax.evaluators import extract
from vatt_jax.evaluators import frozen_features
from vatt_jax.evaluators import metrics
from vatt_jax.inputs.clip import Clip
from vatt_jax.inputs.reader import Reader

_glorot = jax.nn.initializers.glorot_uniform()


class Classifier(Protocol):
  """Describes a classifier that is not trained yet."""

  def scores(self, x: np.ndarray, targets: np.ndarray, x_test: np.ndarray,
             multi_label: bool) -> np.ndarray:
    """Trains on x, and scores x_test.

    Args:
      x: float32 [N, D], standardised.
      targets: bool [N, C]; every class has a positive and a negative row.
      x_test: float32 [M, D].
      multi_label: whether a clip may have several classes; else it has exactly one.

    Returns:
      Scores [M, C]; a higher score is more likely.
    """


@dataclasses.dataclass(frozen=True)
class Logistic:
  """Fits logistic regression; for multi-label targets, one for each class.

  Attributes:
    C: inverse strength of the L2 penalty.
  """
  C: float = 0.1

  def __post_init__(self):
    _check_positive(C=self.C)

  def scores(self, x, targets, x_test, multi_label):
    """Implements `Classifier.scores`."""
    return _decide(linear_model.LogisticRegression(C=self.C, max_iter=2000),
                   x, targets, x_test, multi_label)


@dataclasses.dataclass(frozen=True)
class SVM:
  """Fits a linear support vector machine, one class against the rest.

  Attributes:
    C: inverse strength of the L2 penalty. The default is the one in MMV's code (arXiv
      2006.16228); VATT follows MMV's pipeline (section 4.4.5).
  """
  C: float = 1e-3

  def __post_init__(self):
    _check_positive(C=self.C)

  def scores(self, x, targets, x_test, multi_label):
    """Implements `Classifier.scores`."""
    return _decide(svm.LinearSVC(C=self.C, random_state=0), x, targets, x_test,
                   multi_label)


@dataclasses.dataclass(frozen=True)
class _ByGradient:
  """Trains a classifier by gradients: base of those with parameters of their own.

  The loss is softmax cross-entropy, or sigmoid cross-entropy for multi-label targets.
  The optimizer is Adam at a constant rate.

  Attributes:
    steps: number of training steps.
    learning_rate: learning rate of Adam.
    weight_decay: added to the gradient, times the parameters (an L2 penalty).
    batch_size: rows of a step, drawn with replacement.
    seed: seed of the initial weights and all draws.
  """
  steps: int = 50_000
  learning_rate: float = 5e-4
  weight_decay: float = 0.0
  batch_size: int = 64
  seed: int = 0

  def __post_init__(self):
    _check_positive(steps=self.steps, learning_rate=self.learning_rate,
                    batch_size=self.batch_size)
    if self.weight_decay < 0:
      raise ValueError(f'weight_decay={self.weight_decay}: expected 0 or more')

  def scores(self, x, targets, x_test, multi_label):
    """Implements `Classifier.scores`."""
    params = jax.device_get(self._train(x, targets, multi_label))
    return np.asarray(self._logits(params, x_test))

  def _init(self, key: jax.Array, dim: int, num_classes: int) -> Any:
    """Returns the initial parameters for features of a width."""
    raise NotImplementedError

  def _logits(self, params: Any, x: jax.Array, key: jax.Array | None = None
              ) -> jax.Array:
    """Computes logits, in training with a random key.  [B, D] -> [B, C]."""
    raise NotImplementedError

  @functools.partial(jax.jit, static_argnums=(0, 3))
  def _train(self, x, targets, multi_label):
    """Returns the trained parameters."""
    init, run = jax.random.split(jax.random.key(self.seed))
    params = self._init(init, x.shape[1], targets.shape[1])
    optimizer = optax.chain(optax.add_decayed_weights(self.weight_decay),
                            optax.adam(self.learning_rate))

    def loss(params, x, y, key):
      logits = self._logits(params, x, key)
      if multi_label:
        return optax.sigmoid_binary_cross_entropy(logits, y).sum(axis=1).mean()
      return optax.softmax_cross_entropy(logits, y).mean()

    def take_step(i, carry):
      params, opt_state = carry
      draw_rows, key = jax.random.split(jax.random.fold_in(run, i))
      rows = jax.random.randint(draw_rows, (self.batch_size,), 0, len(x))
      grads = jax.grad(loss)(params, x[rows], targets[rows].astype(x.dtype), key)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    return jax.lax.fori_loop(0, self.steps, take_step,
                             (params, optimizer.init(params)))[0]


@dataclasses.dataclass(frozen=True)
class LowRank(_ByGradient):
  """Trains the paper's factorised classifier, C = U V (VATT, section 4.3).

  Each step draws some of the n components of U and V at random and computes the loss
  with these alone. Their product is scaled by n / (number drawn): its expectation is
  the product of all components, which is used for prediction. The classifier has a
  bias, like the released code. The defaults of training are the paper's.

  Attributes:
    steps: number of training steps.
    learning_rate: learning rate of Adam.
    weight_decay: added to the gradient, times the parameters (an L2 penalty).
    batch_size: rows of a step, drawn with replacement.
    seed: seed of the initial weights and all draws.
    rank: n, the number of components.
    sample_rate: the fraction of the components that a step draws.
  """
  rank: int = 128
  sample_rate: float = 0.1

  def __post_init__(self):
    super().__post_init__()
    _check_positive(rank=self.rank)
    if not 0 < self.sample_rate <= 1 or not self.num_drawn:
      raise ValueError(f'sample_rate={self.sample_rate}: expected at most 1, and '
                       f'enough for one of the {self.rank} components')

  @property
  def num_drawn(self) -> int:
    """Returns the number of components that a step trains."""
    return round(self.sample_rate * self.rank)

  def _init(self, key, dim, num_classes):
    """Returns U [D, n], V [n, C] and bias [C]."""
    init_u, init_v = jax.random.split(key)
    return (_glorot(init_u, (dim, self.rank)),
            _glorot(init_v, (self.rank, num_classes)), jnp.zeros(num_classes))

  def _logits(self, params, x, key=None):
    if key is None:
      return self._part(params, x, np.arange(self.rank))
    return self._part(params, x,
                      jax.random.permutation(key, self.rank)[:self.num_drawn])

  def _part(self, params, x, part):
    """Computes logits from some of the components.  [B, D], int [P] -> [B, C]."""
    u, v, bias = params
    return x @ u[:, part] @ v[part] * (self.rank / len(part)) + bias


@dataclasses.dataclass(frozen=True)
class MLP(_ByGradient):
  """Trains a layer with ReLU and a linear layer, both with biases (MMV, section 4.1).

  Without the first layer it is the classifier of STiCA (arXiv 2103.10211, appendix).

  Attributes:
    steps: number of training steps.
    learning_rate: learning rate of Adam.
    weight_decay: added to the gradient, times the parameters (an L2 penalty).
    batch_size: rows of a step, drawn with replacement.
    seed: seed of the initial weights and all draws.
    hidden_dim: width of the layer in between; 0 for a linear classifier.
  """
  hidden_dim: int = 512

  def __post_init__(self):
    super().__post_init__()
    if self.hidden_dim < 0:
      raise ValueError(f'hidden_dim={self.hidden_dim}: expected 0 or more')

  def _init(self, key, dim, num_classes):
    """Returns the matrix and the bias of each layer."""
    dims = [dim, *[self.hidden_dim] * bool(self.hidden_dim), num_classes]
    keys = jax.random.split(key, len(dims) - 1)
    return [(_glorot(k, shape), jnp.zeros(shape[1]))
            for k, shape in zip(keys, itertools.pairwise(dims), strict=True)]

  def _logits(self, params, x, key=None):
    *hidden, (kernel, bias) = params
    for layer_kernel, layer_bias in hidden:
      x = jax.nn.relu(x @ layer_kernel + layer_bias)
    return x @ kernel + bias


CLASSIFIERS = {'logistic': Logistic, 'svm': SVM, 'low_rank': LowRank, 'mlp': MLP}


class LinearProbe:
  """Trains linear classifiers on frozen, standardised features.

  With `rows='clips'` a training row is the mean of a clip's windows. With
  `rows='windows'` it is a single augmented window, as in MMV's pipeline, which VATT
  follows (section 4.4.5), and with `rows='spread'` one of the windows spread over the
  clip, as in STiCA (arXiv 2103.10211, appendix). The scores of a clip are then the
  means over its windows (`frozen_features.Frozen`).
  """

  def __init__(self, data: frozen_features.Frozen,
               classifiers: Mapping[str, Classifier]):
    """Stores the features, and the classifiers by name."""
    self._data = data
    self._classifiers = dict(classifiers)

  @classmethod
  def from_config(cls, where: str, predict: extract.Predict, reader: Reader,
                  batch_size: int, model: Settings, train: str | Sequence[str],
                  test: str | Sequence[str],
                  classifiers: Mapping[str, Settings] | None = None,
                  rows: str = 'clips', num_epochs: int = 10, seed: int = 0,
                  **features: Any) -> LinearProbe:
    """Builds a linear probe.

    Args:
      where: the section's name.
      predict: the model.
      reader: reads clips.
      batch_size: the batch size of feature extraction.
      model: the model's settings.
      train: the sources of training clips, one or a source for each split.
      test: the sources of test clips.
      classifiers: name in `CLASSIFIERS` -> settings; by default logistic regression.
      rows: 'clips', 'windows' or 'spread' (`LinearProbe`).
      num_epochs: the number of augmented training windows per clip (rows='windows').
      seed: the seed of these windows.
      **features: other arguments of `frozen_features.Frozen`.
    """
    augmentation = frozen_features.Augmentation(num_epochs, seed)
    if choose(('clips', 'windows', 'spread'), rows, 'rows') != 'windows':
      augmentation = None
    built = {name: build(f'{where}.classifiers.{name}', CLASSIFIERS,
                         {**section, 'name': name})
             for name, section in (classifiers or {'logistic': {}}).items()}
    data = frozen_features.open_section(
        where, features, train, test, predict=predict, reader=reader,
        batch_size=batch_size, model=model, augmentation=augmentation,
        average=rows == 'clips')
    return cls(data, built)

  @property
  def measured(self) -> Sequence[Clip]:
    """Returns the clips whose labels are measured."""
    return self._data.measured

  def run(self, state: Any) -> Iterator[tuple[str, float]]:
    """Yields `LABEL/top1`, `LABEL/top5`, and the chance level of both.

    Names are `LABEL/CLASSIFIER/top1` and so on if there are several classifiers.
    Several splits give the mean, and `split_1/top1` and so on after the same prefix.
    For a multi-label column, top1 is how often the highest score is one of the clip's
    classes; mAP, AUC and d_prime replace top5 (`metrics.multi_label`). Chance always
    predicts the most frequent training classes.
    """
    for label, splits in self._data.splits(state):
      splits = [_standardise(split) for split in splits]
      for name, classifier in self._classifiers.items():
        prefix = f'{label}/{name}' if len(self._classifiers) > 1 else label
        measured = [dict(_measure(_scores(classifier, split), split))
                    for split in splits]
        for measure, value in frozen_features.over_splits(measured):
          yield f'{prefix}/{measure}', value


def _check_positive(**settings: float) -> None:
  for name, value in settings.items():
    if value <= 0:
      raise ValueError(f'{name}={value}: expected more than 0')


def _decide(model, x, targets, x_test, multi_label):
  """Returns the test decisions of a scikit-learn model.  -> [M, C]."""
  if multi_label:
    return np.stack([model.fit(x, target).decision_function(x_test)
                     for target in targets.T], axis=1)
  scores = model.fit(x, targets.argmax(axis=1)).decision_function(x_test)
  return scores if scores.ndim > 1 else np.stack([-scores, scores], axis=1)


def _standardise(split: frozen_features.Split) -> frozen_features.Split:
  """Scales every feature to mean 0 and variance 1 over the training rows."""
  scaler = preprocessing.StandardScaler().fit(split.x.astype(np.float64))
  x, x_test = (scaler.transform(x.astype(np.float64)).astype(np.float32)
               for x in (split.x, split.x_test))
  return dataclasses.replace(split, x=x, x_test=x_test)


def _scores(classifier: Classifier, split: frozen_features.Split) -> np.ndarray:
  """Returns the scores of clips, the means over their rows.  -> [M, C].

  A class scores -inf if no training row has it, and inf if every training row has it.
  """
  everyone = np.where(split.targets.all(axis=0), np.inf, -np.inf)
  scores = np.tile(everyone, (len(split.targets_test), 1))
  by_row = classifier.scores(
      split.x, split.targets[:, split.learnable], split.x_test, split.multi_label)
  total = np.zeros((len(scores), by_row.shape[1]))
  np.add.at(total, split.groups, by_row)
  scores[:, split.learnable] = total / np.bincount(split.groups)[:, None]
  return scores


def _measure(scores: np.ndarray, split: frozen_features.Split
             ) -> Iterator[tuple[str, float]]:
  counts, targets = split.targets.sum(axis=0), split.targets_test
  if split.multi_label:
    rank = metrics.rank_of_best(scores, targets)
    measures = [('top1', float(np.mean(rank < 1))),
                *metrics.multi_label(scores, targets, split.classes)]
    chance = [('top1', float(np.mean(targets[:, counts.argmax()]))),
              *metrics.multi_label_by_chance(targets)]
  else:
    labels = targets.argmax(axis=1)
    measures = metrics.top_k(scores, labels)
    chance = metrics.top_k_by_chance(labels, counts)
  yield from measures
  for name, value in chance:
    yield f'chance_{name}', value
