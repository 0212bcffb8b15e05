"""Transposition of the right half, against a slow loop over notes and scales."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.vae import MelodyVAE, VAESettings
from evaluation.classifier import ClassifierSettings, SearchClassifier
from evaluation.rivals import Tools
from evaluation.rivals.transpose import Transpose, find_shifts
from tests.arrays import lift

Z = 3
MAJOR = (0, 2, 4, 5, 7, 9, 11)


def core() -> MelodyVAE:
    form = MelodyFormat(bars_per_segment=1, lowest=60, highest=83)
    made = MelodyVAE(form, VAESettings(latent_dim=Z, hidden=16, embedding=8))
    initialise(made, make_random(0, "core"))
    return made


CORE = core()


def in_scale(row: list[int], shift: int, scale: int) -> int:
    """Steps at which a note of the scale sounds, after a transposition."""
    steps, pitch = 0, -1
    for token in row:
        pitch = pitch if token == HOLD else token - FIRST_PITCH + CORE.form.lowest
        steps += pitch >= CORE.form.lowest and (pitch + shift - scale) % 12 in MAJOR
    return steps


def slow_shift(left: list[int], right: list[int]) -> int:
    """The smallest transposition of the right half after which most fits one scale."""
    notes = [token for token in right if token >= FIRST_PITCH] or [FIRST_PITCH + 6]
    best = (-1, 0)
    for shift in (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6):
        if min(notes) + shift >= FIRST_PITCH and max(notes) + shift < CORE.form.vocabulary:
            fit = max(in_scale(left, 0, k) + in_scale(right, shift, k) for k in range(12))
            best = max(best, (fit, shift), key=lambda found: found[0])
    return best[1]


@given(arrays(np.uint8, (2, 3, 16), elements=st.integers(REST, CORE.form.vocabulary - 1)))
def test_the_right_half_is_moved_as_little_as_one_scale_asks_for(tokens: np.ndarray) -> None:
    left, right = tokens
    expected = [slow_shift(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    assert find_shifts(lift(left, right), CORE.form).tolist() == expected


def test_a_scale_of_another_key_is_moved_by_hand() -> None:
    tonic = FIRST_PITCH + 6
    scale = np.array([[*(tonic + step for step in MAJOR), tonic + 12, *[HOLD] * 8]])
    for moved in (0, 1, 3, 5, -2, -4, -5):
        other = np.where(scale == HOLD, HOLD, scale + moved)
        assert find_shifts(lift(scale, other), CORE.form).tolist() == [-moved]
    silent = np.zeros_like(scale)
    for halves in ((scale, silent), (silent, scale)):
        assert find_shifts(lift(*halves), CORE.form).tolist() == [0]


def test_a_scale_is_to_hold_what_sounds_longest_not_what_has_the_most_steps() -> None:
    form = MelodyFormat(
        meters=("2/4",), bars_per_segment=1, steps_per_beat=12, subdivisions=(4, 3), lowest=60,
        highest=83,
    )  # fmt: skip
    left = np.array([[*(FIRST_PITCH + step for step in MAJOR), FIRST_PITCH + 12, *[HOLD] * 4]])
    # F, C sharp, C, B flat, B flat and E, for 3, 1, 2, 2, 1 and 3 twelfths of a quarter note. A
    # semitone lower all but 3 twelfths are in C major, five semitones lower all but 1.
    pitches = np.array([17, 13, 12, 10, 10, 16])
    right = np.array([[*FIRST_PITCH + pitches, *[REST] * 6]])
    assert find_shifts(lift(left, right), form).tolist() == [-5]


def test_only_a_right_half_that_does_not_fit_is_encoded_anew() -> None:
    rows, rival = 6, Transpose()
    one, other = torch.randn(2, rows, Z, generator=make_random(0, "pair"))
    classifier = SearchClassifier(Z, ClassifierSettings(hidden=8))
    tools = Tools(classifier, CORE.sigma_bar, (one, other), CORE, np.zeros(rows, np.int64))
    transform = rival.transform(rival.settings(), tools.kinds, tools)
    (step,) = transform((one, other), (1,), make_random(0, "none"))
    left, right = CORE.decode_tokens(one), CORE.decode_tokens(other)
    shifts = find_shifts(lift(left, right), CORE.form)
    assert {0} < set(shifts.tolist())
    assert torch.equal(step.outputs[0], one)
    for row, shift in enumerate(shifts.tolist()):
        if shift == 0:
            assert torch.equal(step.outputs[1][row], other[row])
            continue
        notes = [token + shift if token >= FIRST_PITCH else token for token in right[row].tolist()]
        encoded = CORE.encode_mean(np.array([notes], np.uint8))[0]
        torch.testing.assert_close(step.outputs[1][row], encoded)
    assert (step.classifier_calls, step.decoder_calls) == (0, 2)
