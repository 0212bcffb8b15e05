"""Melodies played backwards, and the writer, against enumeration."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cf_core.continuation import drop_hanging_holds, reverse
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat, to_notes
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.training import train
from cf_core.vae import MelodyVAE, VAESettings
from cf_core.writer import Writer, WriterSettings, make_trainer

FORM = MelodyFormat(meters=("2/4",), steps_per_beat=2, bars_per_segment=1, lowest=60, highest=61)
WIDE = MelodyFormat(meters=("2/4",), bars_per_segment=2, lowest=55, highest=80)
HALVES = st.lists(st.integers(0, FORM.vocabulary - 1), min_size=FORM.steps, max_size=FORM.steps)


def made(form: MelodyFormat) -> Writer:
    writer = Writer(form, WriterSettings(hidden=16))
    initialise(writer, make_random(0, "writer"))
    return writer


def alike(price: float, count: int) -> Tensor:
    """The same price for both halves of all pairs."""
    return torch.full((count, 2), price)


def chance(count: int, form: MelodyFormat) -> Tensor:
    return torch.rand(count, 2, form.steps, generator=make_random(0, "chance"))


def melodies(count: int, form: MelodyFormat, seed: int = 0) -> Tensor:
    drawn = torch.randint(form.vocabulary, (count, form.steps), generator=make_random(seed, "m"))
    return drop_hanging_holds(drawn)


# ---- backwards -----------------------------------------------------------------------------------


@given(HALVES)
def test_backwards_each_note_sounds_at_the_mirrored_time(tokens: list[int]) -> None:
    melody = drop_hanging_holds(torch.tensor([tokens]))
    length = len(tokens) * 1 / FORM.steps_per_beat
    found = to_notes(reverse(melody)[0].numpy(), FORM)
    mirrored = [
        (length - note.onset - note.duration, note.duration, note.pitch)
        for note in to_notes(melody[0].numpy(), FORM)
    ]
    assert [tuple(note) for note in found] == mirrored[::-1]


@given(HALVES)
def test_twice_backwards_is_forwards(tokens: list[int]) -> None:
    melody = drop_hanging_holds(torch.tensor([tokens]))
    assert torch.equal(reverse(reverse(melody)), melody)


def test_backwards_by_hand() -> None:
    a, b = FIRST_PITCH, FIRST_PITCH + 1
    assert reverse(torch.tensor([[a, HOLD, b, REST]])).tolist() == [[REST, b, a, HOLD]]
    assert reverse(torch.tensor([[a, a, HOLD, HOLD]])).tolist() == [[a, HOLD, HOLD, a]]


# ---- writing -------------------------------------------------------------------------------------


def favour(chances: list[float], token: int, price: float) -> list[float]:
    """Weigh the token by the price, and all onsets by half of it at least where it is one (H4)."""
    weights = [*chances]
    weights[token] *= math.exp(price)
    onsets, weighed = sum(chances[FIRST_PITCH:]), sum(weights[FIRST_PITCH:])
    if token >= FIRST_PITCH and weighed < onsets * math.exp(price / 2):
        rise = onsets * math.exp(price / 2) / weighed
        weights[FIRST_PITCH:] = [each * rise for each in weights[FIRST_PITCH:]]
    return [each / sum(weights) for each in weights]


@pytest.mark.parametrize("price", [0.0, 1.5])
def test_halves_are_drawn_as_often_as_models_and_price_say(price: float) -> None:
    """Each token in turn, by the definition written out; all pairs of halves of two steps."""
    form, count = replace(FORM, meters=("1/4",)), 40_000
    writer = made(form)
    every = sorted(
        {
            tuple(drop_hanging_holds(torch.tensor([half]))[0].tolist())
            for half in product(range(form.vocabulary), repeat=form.steps)
        }
    )
    left, right = (3, HOLD), (2, 3)

    def likelihood(
        model: str, before: tuple[int, ...], near: tuple[int, ...], new: Tensor
    ) -> float:
        network, found = getattr(writer, model), 1.0
        for step in range(form.steps):
            seen = torch.tensor([[*before, *new.tolist()[: step + 1]]])
            weights = favour(network(seen, 0, 1)[0, 0].exp().tolist(), near[step], price)
            found *= weights[int(new[step])]
        return found

    def turned(half: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(reverse(torch.tensor([half]))[0].tolist())

    expected = {}
    for new_right in every:
        first = likelihood("forwards", left, right, torch.tensor(new_right))
        for new_left in every:
            second = likelihood(
                "backwards", turned(new_right), turned(left), torch.tensor(turned(new_left))
            )
            expected[new_left + new_right] = first * second
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
    halves = torch.tensor(left).expand(count, -1), torch.tensor(right).expand(count, -1)
    drawn = torch.cat(writer.rewrite(halves, alike(price, count), chance(count, form)), dim=1)
    for pair, likely in expected.items():
        share = float((drawn == torch.tensor(pair)).all(1).double().mean())
        assert abs(share - likely) < 5 * (likely * (1 - likely) / count) ** 0.5 + 1e-6


def test_what_is_dear_stays_and_what_is_written_is_a_melody() -> None:
    halves = melodies(40, WIDE), melodies(40, WIDE, 1)
    writer = made(WIDE)
    draws = chance(40, WIDE)
    kept = writer.rewrite(halves, alike(200.0, 40), draws)
    assert all(torch.equal(one, other) for one, other in zip(kept, halves, strict=True))
    changed = [
        int(sum((new != old).sum() for new, old in zip(written, halves, strict=True)))
        for price in (6.0, 3.0, 0.0)
        for written in [writer.rewrite(halves, alike(price, 40), draws)]
    ]
    assert changed == sorted(changed)
    assert changed[0] < changed[2]
    for half in writer.rewrite(halves, alike(0.0, 40), draws):
        assert torch.equal(drop_hanging_holds(half), half)


@pytest.mark.parametrize("count", [1, 3, 40, 700])  # from all steps at one time to one by one
@pytest.mark.parametrize("price", [0.0, 1.0, 4.0])
def test_tokens_are_those_that_are_drawn_one_after_another(price: float, count: int) -> None:
    model = made(WIDE).forwards.double()
    left, right = melodies(count, WIDE), melodies(count, WIDE, 1)
    draws = torch.rand(count, WIDE.steps, generator=make_random(0, "chance"), dtype=torch.float64)
    prices = torch.full((count,), price, dtype=torch.float64)
    found = model.rewrite(left, right, prices, draws)
    melody = torch.cat((left, torch.zeros_like(right)), 1)
    for step in range(WIDE.steps):
        until = melody[:, : WIDE.steps + step + 1]
        chances = model(until, 0, 1)[:, 0].exp()
        near = zip(chances.tolist(), right[:, step].tolist(), strict=True)
        up_to = torch.tensor([favour(own, token, price) for own, token in near]).cumsum(1)
        melody[:, WIDE.steps + step] = (up_to <= draws[:, step, None]).sum(1)
    assert torch.equal(found, melody[:, WIDE.steps :])


def test_each_half_of_each_row_has_its_own_price_and_sees_no_other() -> None:
    halves, draws = (melodies(6, WIDE), melodies(6, WIDE, 1)), chance(6, WIDE)
    price = torch.tensor([[0.0, 200.0], [200.0, 200.0], [200.0, 0.0]] * 2)
    written = made(WIDE).rewrite(halves, price, draws)
    for half, (new, old) in enumerate(zip(written, halves, strict=True)):
        changed = (new != old).any(1)
        assert changed.tolist() == (price[:, half] == 0).tolist()
    other = halves[0].clone(), halves[1].clone()
    other[0][2], other[1][2] = melodies(1, WIDE, 2)[0], melodies(1, WIDE, 3)[0]
    rows = [0, 1, 3, 4, 5]
    again = made(WIDE).rewrite(other, price, draws)
    fewer = made(WIDE).rewrite((halves[0][rows], halves[1][rows]), price[rows], draws[rows])
    for one, two, three in zip(written, again, fewer, strict=True):
        assert torch.equal(one[rows], two[rows])
        assert torch.equal(one[rows], three)


def test_latents_are_rewritten_as_notes_and_kept_where_none_changes() -> None:
    core = MelodyVAE(WIDE, VAESettings(latent_dim=4, hidden=16, embedding=8))
    initialise(core, make_random(0, "core"))
    pair = tuple(torch.randn(2, 30, 4, generator=make_random(0, "z")))
    price = torch.tensor([0.0, 200.0]).repeat(15)[:, None].repeat(1, 2)
    tokens = [torch.from_numpy(core.decode_tokens(z)) for z in pair]
    given = (pair[0], pair[1]), (tokens[0], tokens[1])
    left, right = made(WIDE).write(core, *given, price, chance(30, WIDE))
    drawn = made(WIDE).rewrite((tokens[0], tokens[1]), price, chance(30, WIDE))
    for z, new, after, old in zip(pair, drawn, (left, right), tokens, strict=True):
        assert torch.equal(after[1::2], z[1::2])
        for row in range(0, 30, 2):
            changed = bool((new[row] != old[row]).any())
            encoded = core.encode_mean(new[row : row + 1].numpy().astype("uint8"))[0]
            torch.testing.assert_close(after[row], encoded if changed else z[row])
        assert not torch.equal(after[::2], z[::2])


@pytest.mark.slow
def test_both_directions_learn_what_follows_and_what_precedes() -> None:
    """Right halves repeat left ones, which are random; so each side tells the other."""
    rows = 400
    lefts = melodies(rows, WIDE)
    tokens, pairs = torch.cat((lefts, lefts)), torch.stack((torch.arange(rows),) * 2, 1)
    pairs[:, 1] += rows
    settings = WriterSettings(hidden=64, steps=150, batch=32)
    writer = Writer(WIDE, settings)
    for direction in ("forwards", "backwards"):
        trainer = make_trainer(direction, tokens, pairs, WIDE, settings, 0)
        list(train(trainer, 50))
        setattr(writer, direction, trainer.continuation)
    unseen, other = melodies(60, WIDE, 5), melodies(60, WIDE, 6)
    for network, melody in ((writer.forwards, unseen), (writer.backwards, reverse(unseen))):
        told = network.log_probability(melody, melody) - network.log_probability(melody, None)
        assert float(told.mean()) > 10
    # Left and right halves start out unrelated, and end up more alike.
    left, right = writer.rewrite((other, unseen), alike(3.0, 60), chance(60, WIDE))
    before = float((other == unseen).double().mean())
    assert float((left == right).double().mean()) > before + 0.1
