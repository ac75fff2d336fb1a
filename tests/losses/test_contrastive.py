"""vatt_jax/losses/contrastive.py"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vatt_jax.losses import contrastive


def _embeddings(b=5, k=3, d=8, seed=0):
  keys = jax.random.split(jax.random.key(seed), 2)
  video, text = (jax.random.normal(key, shape)
                 for key, shape in zip(keys, ((b, d), (b, k, d)), strict=True))
  return (video / jnp.linalg.norm(video, axis=-1, keepdims=True),
          text / jnp.linalg.norm(text, axis=-1, keepdims=True))


def _naive(video, text, present, tau, form):
  """Computes equation 5 and the other forms by loops."""
  video, text = np.asarray(video, np.float64), np.asarray(text, np.float64)
  b, k, _ = text.shape
  similar = lambda i, j, n: np.exp(video[i] @ text[j, n] / tau) * present[j, n]
  losses = []
  for i in range(b):
    if not present[i].any():
      continue
    hit = sum(similar(i, i, n) for n in range(k))
    row = sum(similar(i, j, n) for j in range(b) for n in range(k))
    loss = -np.log(hit / row)
    column = sum(similar(j, i, n) for j in range(b) for n in range(k))
    if form == 'symmetric':
      loss -= np.log(hit / column)
    if form == 'asymmetric':
      loss = -np.log(hit / (row + column))
    losses.append(loss)
  return np.mean(losses)


@pytest.mark.parametrize('over', ['any', 'each'])
def test_contrast_equals_its_formula_with_counts(over):
  """Candidates that stand in the sums twice, never, or as positives with weights."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(4, 6)).astype(np.float32)
  counts = rng.integers(0, 3, (4, 6), np.int32)
  counts[:, :2] = (1, 2)
  positives = np.zeros((4, 6), np.float32)
  positives[:, :2] = (1.0, 1.0) if over == 'any' else (0.5, 2.0)
  rows = np.array([True, True, False, True])
  expected = 0.0
  for r in np.flatnonzero(rows):
    every = counts[r] * np.exp(logits[r])
    if over == 'any':
      expected -= np.log(every[:2].sum() / every.sum())
    else:
      each = np.log(every.sum()) - logits[r, :2]
      expected += (positives[r, :2] * each).sum() / positives[r, :2].sum()
  loss, gradient = jax.value_and_grad(contrastive.contrast)(
      logits, positives, counts, rows, over)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert np.isfinite(gradient).all() and not gradient[2].any()


@pytest.mark.parametrize('b', [2, 5])
def test_nce_of_orthonormal_pairs_matches_its_closed_form(b):
  """One score is 1/tau, the others are 0."""
  x = jnp.eye(b)
  expected = np.log(1 + (b - 1) * np.exp(-1 / 0.5))
  present = jnp.ones(b, bool)
  np.testing.assert_allclose(contrastive.nce(x, x, present, 0.5), expected, rtol=1e-6)
  np.testing.assert_allclose(contrastive.nce(x, x, present, 0.5, 'symmetric'),
                             2 * expected, rtol=1e-6)


def test_mil_nce_of_equal_candidates_matches_its_closed_form():
  """If all are equal, K of B * K candidates are positives at any temperature."""
  video = jnp.ones((4, 2)) / np.sqrt(2)
  text = jnp.ones((4, 5, 2)) / np.sqrt(2)
  loss = contrastive.mil_nce(video, text, jnp.ones((4, 5), bool), 0.07)
  np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)


@pytest.mark.parametrize('form', contrastive.FORMS)
def test_mil_nce_computes_equation_5(form):
  video, text = _embeddings()
  present = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]], bool)
  np.testing.assert_allclose(
      contrastive.mil_nce(video, text, present, 0.2, form),
      _naive(video, text, present, 0.2, form), rtol=1e-5)


@pytest.mark.parametrize('form', contrastive.FORMS)
def test_nce_equals_mil_nce_of_one_candidate(form):
  video, text = _embeddings(k=1)
  present = np.array([1, 1, 0, 1, 1], bool)
  np.testing.assert_allclose(
      contrastive.nce(video, text[:, 0], present, 0.07, form),
      _naive(video, text, present[:, None], 0.07, form), rtol=1e-5)


@pytest.mark.parametrize('form', contrastive.FORMS)
def test_absent_candidates_change_no_loss_and_get_no_gradient(form):
  video, text = _embeddings()
  present = jnp.ones((5, 3), bool).at[1].set(False).at[3, 0].set(False)
  loss = lambda v, t: contrastive.mil_nce(v, t, present, 0.07, form)
  other = text.at[1].set(9.0).at[3, 0].set(-9.0)
  assert loss(video, text) == loss(video, other)
  gradient = jax.grad(loss, argnums=1)(video, text)
  assert not gradient[1].any() and not gradient[3, 0].any()
  assert abs(gradient[3, 1:]).min() > 0


def test_loss_is_the_mean_over_the_present_rows():
  """It equals the loss of a batch of the present rows only."""
  video, text = _embeddings(k=1)
  present = jnp.array([True, True, False, True, False])
  kept = np.flatnonzero(present)
  np.testing.assert_allclose(
      contrastive.nce(video, text[:, 0], present, 0.07),
      contrastive.nce(video[kept], text[kept, 0], jnp.ones(3, bool), 0.07), rtol=1e-5)


@pytest.mark.parametrize('form', [*contrastive.FORMS, 'siglip'])
def test_absent_anchor_does_not_change_the_loss_of_the_rest(form):
  """The loss is that of a batch without the anchor and its candidates."""
  video, text = _embeddings(b=7)
  anchor_mask = np.array([1, 0, 1, 1, 1, 0, 1], bool)
  present = np.array([[1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1],
                      [0, 0, 0], [0, 1, 0]], bool)

  def loss(video, text, present, anchor_mask=None):
    if form == 'siglip':
      return contrastive.siglip(video, text, present, 0.2, -3.0, anchor_mask)
    return contrastive.mil_nce(video, text, present, 0.2, form, anchor_mask)

  alone = loss(video[anchor_mask], text[anchor_mask], present[anchor_mask])
  np.testing.assert_allclose(loss(video, text, present, anchor_mask), alone, rtol=1e-6)
  other = video.at[~anchor_mask].set(7.0), text.at[~present].set(-7.0)
  value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(
      *other, present, anchor_mask)
  np.testing.assert_allclose(value, alone, rtol=1e-6)
  assert not gradients[0][~anchor_mask].any() and not gradients[1][~anchor_mask].any()
  assert abs(gradients[0][anchor_mask & present.any(1)]).min() > 0


@pytest.mark.parametrize('form', contrastive.FORMS)
def test_loss_and_gradient_of_an_absent_batch_are_zero(form):
  video, text = _embeddings()
  loss, gradients = jax.value_and_grad(contrastive.mil_nce, argnums=(0, 1))(
      video, text, jnp.zeros((5, 3), bool), 0.07, form)
  assert loss == 0
  assert all((g == 0).all() for g in gradients)


def test_loss_of_bfloat16_embeddings_is_float32():
  video, text = _embeddings()
  loss = contrastive.mil_nce(video.astype(jnp.bfloat16), text.astype(jnp.bfloat16),
                             jnp.ones((5, 3), bool), 0.07)
  assert loss.dtype == jnp.float32


@pytest.mark.parametrize('form', [*contrastive.FORMS, 'siglip'])
def test_similarities_and_their_gradients_are_float32_products_on_every_device(form):
  video, text = (x.astype(jnp.bfloat16) for x in _embeddings())
  gradient = jax.value_and_grad(_loss(form), argnums=(0, 1))
  program = jax.jit(gradient).lower(video, text, jnp.ones((5, 3), bool)).as_text()
  products = [line for line in program.splitlines() if 'dot_general' in line]
  assert len(products) >= 3    # forward, and for each of the two gradients
  for line in products:
    assert 'precision = [HIGHEST, HIGHEST]' in line and 'bf16' not in line, line


def test_unknown_form_is_named():
  video, text = _embeddings()
  with pytest.raises(ValueError, match="form='other': expected one of paper, sy"):
    contrastive.mil_nce(video, text, jnp.ones((5, 3), bool), 0.07, 'other')


def test_minimum_of_the_asymmetric_loss_is_log_2():
  """Its denominator contains the positives twice."""
  x = jnp.eye(4)
  loss = contrastive.nce(x, x, jnp.ones(4, bool), 0.1, 'asymmetric')
  np.testing.assert_allclose(loss, np.log(2 + 6 * np.exp(-10)), rtol=3e-6)


@pytest.mark.parametrize('k', [1, 3])
def test_siglip_sums_over_all_pairs(k):
  """It equals equation 1 of SigLIP by loops."""
  video, text = _embeddings(k=k)
  present = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]], bool)
  present = present[:, :k]
  tau, bias = 0.3, -1.5
  total = 0
  rows = present.any(axis=1)
  for i, j, n in np.ndindex(5, 5, k):
    if rows[i] and present[j, n]:
      log_odds = float(video[i] @ text[j, n]) / tau + bias
      total += np.log(1 + np.exp(-log_odds if i == j else log_odds))
  loss = contrastive.siglip(video, text, present, tau, bias)
  np.testing.assert_allclose(loss, total / rows.sum(), rtol=1e-5)
  if k == 1:
    np.testing.assert_allclose(
        contrastive.siglip(video, text[:, 0], present[:, 0], tau, bias),
        total / rows.sum(), rtol=1e-5)


def test_siglip_of_an_absent_batch_is_zero():
  video, text = _embeddings()
  assert contrastive.siglip(video, text, jnp.zeros((5, 3), bool), 0.1, -10.0) == 0


def _loss(form, num_chunks=1):
  if form == 'siglip':
    return functools.partial(contrastive.siglip, temperature=0.1, bias=-5.0,
                             num_chunks=num_chunks)
  return functools.partial(contrastive.mil_nce, temperature=0.1, form=form,
                           num_chunks=num_chunks)


@pytest.mark.parametrize('anchor_mask', [None, np.arange(24) % 5 != 1])
@pytest.mark.parametrize('form', [*contrastive.FORMS, 'siglip'])
def test_loss_in_chunks_equals_the_whole_loss(form, anchor_mask):
  """Gradients are equal too, with items and candidates missing."""
  video, text = _embeddings(b=24)
  present = jax.random.bernoulli(jax.random.key(1), 0.7, (24, 3)).at[5].set(False)
  whole, chunked = (
      jax.value_and_grad(_loss(form, n), argnums=(0, 1))(
          video, text, present, anchor_mask=anchor_mask) for n in (1, 6))
  np.testing.assert_allclose(chunked[0], whole[0], rtol=1e-6)
  for actual, expected in zip(chunked[1], whole[1], strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-6,
                               atol=1e-6 * abs(expected).max())


@pytest.mark.parametrize('form', [*contrastive.FORMS, 'siglip'])
def test_loss_in_chunks_takes_a_twentieth_of_the_memory(form):
  """The memory is that of value and gradients, without arguments and results."""
  shapes = (jax.ShapeDtypeStruct((8192, 512), jnp.float32),
            jax.ShapeDtypeStruct((8192, 5, 512), jnp.float32),
            jax.ShapeDtypeStruct((8192, 5), bool))
  whole, chunked = (
      jax.jit(jax.value_and_grad(_loss(form, n), argnums=(0, 1))).lower(*shapes)
      .compile().memory_analysis().temp_size_in_bytes for n in (1, 64))
  assert whole > 20 * chunked


FORMS = {'sym': 'symmetric', 'asym': 'asymmetric'}


def _unit(x):
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _losses(embeddings, audio_mask, text_mask, tau, form):
  """Computes NCE and MIL-NCE of golden embeddings, which are not of unit norm."""
  video_va, audio, video_vt, text = (
      _unit(embeddings[k]) for k in ('video_to_va', 'audio_to_va', 'video_to_vat',
                                     'text_to_vat'))
  b = len(video_va)
  present = jnp.repeat(text_mask[:, None] > 0, 5, axis=1)
  return (contrastive.nce(video_va, audio, audio_mask > 0, tau, form),
          contrastive.mil_nce(video_vt, text.reshape(b, 5, -1), present, tau, form))


def _masks(golden, case):
  if case == 'nomask':
    return np.ones(3), np.ones(3)
  return golden[f'{case}/audio_mask'], golden[f'{case}/text_mask']


@pytest.mark.parametrize('model', ['tx_fac', 'ut_fac'])
@pytest.mark.parametrize('short', FORMS)
@pytest.mark.parametrize('case, weight_audio, weight_text', [
    ('masked', 1, 1), ('allvalid', 1, 1), ('notext', 1, 1), ('nomask', 1, 1),
    ('weighted', 2, 0.5)])
def test_forms_match_the_release(shared, model, short, case, weight_audio,
                                     weight_text):
  golden = np.load(shared / 'golden' / f'{model}_losses.npz')
  tau = 0.2 if case == 'weighted' else 0.07
  masks = _masks(golden, 'masked' if case == 'weighted' else case)
  video_audio, video_text = _losses(golden, *masks, tau, FORMS[short])
  np.testing.assert_allclose(weight_audio * video_audio,
                             golden[f'{case}/{short}_vidaud_loss'], rtol=0, atol=5e-6)
  np.testing.assert_allclose(weight_text * video_text,
                             golden[f'{case}/{short}_vidtxt_loss'], rtol=0, atol=5e-6)
  total = (weight_audio * video_audio + weight_text * video_text) / (
      weight_audio + weight_text)
  np.testing.assert_allclose(total, golden[f'{case}/{short}'], rtol=0, atol=5e-6)


@pytest.mark.parametrize('model', ['tx_fac', 'ut_fac'])
@pytest.mark.parametrize('short', FORMS)
def test_gradients_match_the_release(shared, model, short):
  golden = np.load(shared / 'golden' / f'{model}_losses.npz')
  embeddings = {k: jnp.asarray(golden[k]) for k in (
      'video_to_va', 'audio_to_va', 'video_to_vat', 'text_to_vat')}
  mean = lambda e: sum(_losses(e, *_masks(golden, 'masked'), 0.07, FORMS[short])) / 2
  for name, gradient in jax.grad(mean)(embeddings).items():
    np.testing.assert_allclose(gradient, golden[f'masked/grad_{short}/{name}'], rtol=0,
                               atol=1e-5, err_msg=name)


@pytest.mark.parametrize('short', FORMS)
def test_loss_is_the_mean_over_all_rows_of_all_replicas(shared, short):
  """The golden losses are those of two replicas, with the negatives of both.

  The release averages over the rows of each replica; vatt_jax averages over all rows.
  """
  golden = np.load(shared / 'golden' / 'losses_two_replicas.npz')
  join = lambda k: golden[k].reshape(-1, *golden[k].shape[2:])
  embeddings = {k: join(k) for k in ('video_to_va', 'audio_to_va', 'video_to_vat',
                                     'text_to_vat')}
  losses = _losses(embeddings, join('audio_mask'), join('text_mask'),
                   float(golden['temperature']), FORMS[short])
  for loss, name, mask in zip(losses, ('vidaud', 'vidtxt'), ('audio_mask', 'text_mask'),
                              strict=True):
    rows = golden[mask].sum(axis=1)
    golden_losses = [golden[f'replica{r}/{short}_{name}_loss'] for r in (0, 1)]
    np.testing.assert_allclose(loss, np.sum(rows * golden_losses) / rows.sum(), rtol=0,
                               atol=5e-6)
