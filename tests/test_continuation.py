"""The autoregressive model of notes, against enumeration, and the hard negatives."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cf_core.continuation import (
    Continuation,
    ContinuationSettings,
    ContinuationTrainer,
    drop_hanging_holds,
)
from cf_core.corpus import Corpus, Split
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.training import limit_threads, train
from evaluation.negatives import KINDS, LabelledTokens, draw_hard_pairs

FORM = MelodyFormat(meters=("2/4",), steps_per_beat=2, bars_per_segment=1, lowest=60, highest=61)
WIDE = MelodyFormat(meters=("2/4",), bars_per_segment=2, lowest=55, highest=80)


def network(form: MelodyFormat) -> Continuation:
    made = Continuation(form, ContinuationSettings(hidden=16))
    initialise(made, make_random(0, "network"))
    return made


def repaired(tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Rests instead of holds that have no note, one step at a time."""
    found: list[int] = []
    for token in tokens:
        hangs = token == HOLD and (not found or found[-1] == REST)
        found.append(REST if hangs else token)
    return tuple(found)


def every_half(form: MelodyFormat) -> Tensor:
    halves = product(range(form.vocabulary), repeat=form.steps)
    return torch.tensor(sorted({repaired(half) for half in halves}))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_holds_without_a_note_become_rests(tokens: list[int]) -> None:
    expected = list(repaired(tuple(tokens)))
    assert drop_hanging_holds(torch.tensor([tokens])).tolist() == [expected]


@pytest.mark.parametrize("left", [None, (2, HOLD, REST, 3), (REST, REST, REST, REST)])
def test_probabilities_of_all_right_halves_sum_to_one(left: tuple[int, ...] | None) -> None:
    rights = every_half(FORM)
    lefts = None if left is None else torch.tensor([left]).expand(len(rights), -1)
    found = network(FORM).log_probability(rights, lefts)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert torch.isfinite(found).all()


def test_a_hold_without_a_note_is_as_likely_as_a_rest() -> None:
    left = torch.tensor([[2, HOLD, 3, HOLD]] * 2)
    rights = torch.tensor([[HOLD, HOLD, 2, HOLD], [REST, REST, 2, HOLD]])
    hanging, resting = network(FORM).per_step(rights, left)
    assert torch.equal(hanging, resting)


def melodies(count: int, form: MelodyFormat, seed: int = 0) -> Tensor:
    drawn = torch.randint(form.vocabulary, (count, form.steps), generator=make_random(seed, "m"))
    return drop_hanging_holds(drawn)


def test_what_comes_later_changes_nothing() -> None:
    net, left, right = network(WIDE), melodies(30, WIDE), melodies(30, WIDE, 1)
    before = net.per_step(right, left)
    for step in (1, 7, 15):
        changed = right.clone()
        changed[:, step:] = FIRST_PITCH + 5
        assert torch.equal(net.per_step(changed, left)[:, :step], before[:, :step])


def test_all_steps_at_once_are_each_step_by_itself() -> None:
    net = network(WIDE)
    tokens = torch.cat((melodies(20, WIDE), melodies(20, WIDE, 1)), dim=1)
    whole = net(tokens, 0, 2 * WIDE.steps)
    for step in (0, 3, WIDE.steps, 2 * WIDE.steps - 1):
        alone = net(tokens[:, : step + 1], 0, 1)[:, 0]
        torch.testing.assert_close(alone, whole[:, step])


def test_a_half_without_a_left_one_is_rated_as_the_start_of_a_melody() -> None:
    net, left, right = network(WIDE), melodies(9, WIDE), melodies(9, WIDE, 1)
    joined = net(torch.cat((left, right), dim=1), 0, 2 * WIDE.steps)
    expected = joined[:, : WIDE.steps].gather(2, left[..., None])[..., 0]
    torch.testing.assert_close(net.per_step(left, None), expected)
    later = joined[:, WIDE.steps :].gather(2, right[..., None])[..., 0]
    torch.testing.assert_close(net.per_step(right, left), later)
    assert (net.per_step(right, left) != net.per_step(right, None)).any()


def test_samples_are_as_frequent_as_they_are_likely() -> None:
    form = replace(FORM, meters=("1/4",))
    net, left, count = network(form), torch.tensor([[3, HOLD], [REST, 2]]), 20_000
    rights = every_half(form)
    drawn = net.sample(left, count, make_random(0, "samples"))
    assert drawn.shape == (count, 2, form.steps)
    for which in (0, 1):
        likely = net.log_probability(rights, left[which].expand(len(rights), -1)).exp()
        equal = (drawn[:, which, None] == rights).all(-1).double()
        assert float(equal.sum()) == count  # each is one of the valid halves
        error = (likely * (1 - likely) / count).sqrt()
        assert ((equal.mean(0) - likely).abs() < 4 * error).all()


def test_samples_hold_only_notes() -> None:
    left = melodies(40, WIDE)
    drawn = network(WIDE).sample(left, 5, make_random(0, "samples")).flatten(0, 1)
    assert torch.equal(drop_hanging_holds(drawn), drawn)


def test_the_number_of_threads_changes_no_bit() -> None:
    tokens = melodies(60, WIDE)
    pairs = torch.stack((torch.arange(59), torch.arange(59) + 1), 1)
    found = []
    for threads in (1, 2):
        settings = ContinuationSettings(hidden=64, steps=3, batch=32)
        with limit_threads(threads):
            trainer = ContinuationTrainer(tokens, pairs, WIDE, settings, 0)
            list(train(trainer, 3))
            rated = trainer.continuation.per_step(tokens, tokens.roll(1, 0))
            drawn = trainer.continuation.sample(tokens, 2, make_random(0, "samples"))
        found.append([*trainer.state().values(), rated, drawn])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.slow
def test_a_model_of_repeats_expects_repeats() -> None:
    half = melodies(300, WIDE)
    pairs = torch.arange(300)[:, None].expand(-1, 2)
    settings = ContinuationSettings(hidden=64, steps=150, dropout=0.0)
    trainer = ContinuationTrainer(half, pairs, WIDE, settings, 0)
    list(train(trainer, 150))
    unseen, other = melodies(100, WIDE, 2), melodies(100, WIDE, 3)
    alone = trainer.continuation.log_probability(unseen, None)
    assert (trainer.continuation.log_probability(unseen, unseen) > alone + 5).all()
    assert (trainer.continuation.log_probability(unseen, other) < alone).float().mean() > 0.9


def corpus() -> Corpus:
    """Twelve songs of nine segments, one at each bar, so that they overlap."""
    songs, length = 12, 9
    song, bar = np.repeat(np.arange(songs), length), np.tile(np.arange(length), songs)
    first = np.arange(songs * length)[bar < length - 2]
    return Corpus(
        form=WIDE,
        tokens=melodies(songs * length, WIDE).numpy().astype(np.uint8),
        song=song,
        bar=bar,
        song_ids=tuple(map(str, range(songs))),
        split=np.arange(songs) % 3,
        pairs=np.stack((first, first + 2), 1),
        struck_again=0,
        content_hash="0",
    )


COUNT = 400


@pytest.fixture(scope="module")
def hard() -> dict[str, LabelledTokens]:
    return draw_hard_pairs(corpus(), Split.TEST, COUNT, network(WIDE), np.random.default_rng(0))


def rows_of(tokens: np.ndarray) -> list[int]:
    """The segment that each row is; -1 for none."""
    own = corpus().tokens
    return [int(np.append(np.flatnonzero((own == row).all(1)), -1)[0]) for row in tokens]


def test_hard_negatives_are_of_songs_of_the_split(hard: dict[str, LabelledTokens]) -> None:
    assert tuple(hard) == KINDS
    for pairs in hard.values():
        assert set(corpus().split[pairs.songs.ravel()]) == {Split.TEST}
        for half in pairs.tokens:
            assert half.shape == (COUNT, WIDE.steps)
            assert half.dtype == np.uint8
            assert torch.equal(
                drop_hanging_holds(torch.as_tensor(half).long()), torch.as_tensor(half).long()
            )


def test_repeats_are_a_segment_twice(hard: dict[str, LabelledTokens]) -> None:
    left, right = hard["repeat"].tokens
    assert np.array_equal(left, right)
    assert -1 not in rows_of(left)


def test_near_repeats_differ_in_few_steps_or_in_the_order_of_beats(
    hard: dict[str, LabelledTokens],
) -> None:
    left, right = hard["near_repeat"].tokens
    changed = (left != right).sum(1)
    kept = np.isin(np.sort(right, 1), [REST, HOLD]) | (np.sort(left, 1) == np.sort(right, 1))
    # An exchanged step can leave holds without their note behind it.
    assert ((changed <= 4 + (right == REST).sum(1)) | kept.all(1)).all()
    assert 0.2 < (changed <= 4).mean() < 0.9


def test_pairs_of_one_song_neither_touch_nor_overlap(hard: dict[str, LabelledTokens]) -> None:
    left, right = (np.array(rows_of(half)) for half in hard["same_song"].tokens)
    own = corpus()
    assert (own.song[left] == own.song[right]).all()
    gaps = own.bar[right] - own.bar[left]
    assert set(abs(gaps).tolist()) == set(range(3, 9))
    assert 0.4 < (gaps > 0).mean() < 0.6


def test_one_half_of_an_adjacent_pair_is_transposed(hard: dict[str, LabelledTokens]) -> None:
    halves = hard["transposed"].tokens
    kept = np.array([[row >= 0 for row in rows_of(half)] for half in halves])
    assert (kept.sum(0) == 1).all()
    assert 0.4 < kept[0].mean() < 0.6


def test_mixtures_are_of_two_segments_and_often_the_same(hard: dict[str, LabelledTokens]) -> None:
    pairs = hard["mixture"]
    own = corpus()
    same = (pairs.tokens[0] == pairs.tokens[1]).all(1)
    assert 0.4 < same.mean() < 0.6
    for index in range(40):
        segments = own.tokens[np.isin(own.song, pairs.songs[index])]
        for half in pairs.tokens:
            found = (segments == half[index]) | (half[index] == REST)
            assert found.any(0).all()


def test_continuations_are_drawn_after_a_segment(hard: dict[str, LabelledTokens]) -> None:
    left, right = hard["continued"].tokens
    assert -1 not in rows_of(left)
    net, draws = network(WIDE), make_random(0, "draws")
    again = net.sample(torch.as_tensor(left), 1, draws)[0]
    rated = [
        net.log_probability(torch.as_tensor(half).long(), torch.as_tensor(left)).mean()
        for half in (right, again.numpy(), left[::-1].copy())
    ]
    # As likely as other draws, and likelier than halves that have nothing to do with the left one.
    assert abs(rated[0] - rated[1]) < 0.5
    assert rated[0] > rated[2] + 5
