"""Tests of vatt_jax/losses/__init__.py."""

import dataclasses

import pytest

from vatt_jax import losses
from vatt_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OverShifts(losses.Loss):
  num_shifts: int


def test_loss_gets_the_shifts_and_views_that_it_has_fields_for(monkeypatch):
  monkeypatch.setitem(losses.LOSSES, 'over_shifts', _OverShifts)
  rows = dict(num_shifts=2, num_views=3, num_copies=1)
  assert losses.build('one', dict(name='over_shifts'), **rows).num_shifts == 2
  nce = losses.build('video_text', dict(name='nce', temperature=0.1), **rows)
  assert nce.pair == 'video_text'
  with pytest.raises(UserError, match=r'config\.losses\.one\.num_shifts: unknown key'):
    losses.build('one', dict(name='over_shifts', num_shifts=4), **rows)


def test_one_modality_contrasted_with_itself_is_an_error():
  with pytest.raises(UserError, match=r"config\.losses\.video_video: pair='video_video'"
                                      ': expected two different modalities'):
    losses.build('video_video', dict(name='nce', temperature=0.1))
