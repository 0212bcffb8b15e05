"""The scheme `heard` against a literal loop, pair by pair."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cf_core.fusion import Generator, condition_on, share_step
from cf_core.heard import Heard, choose_by_edits, find_price
from cf_core.losses import Pair
from cf_core.melody import MelodyFormat
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.vae import MelodyVAE, VAESettings
from cf_core.writer import Writer, WriterSettings

FORM = MelodyFormat(meters=("2/4",), bars_per_segment=2, lowest=55, highest=80)
Z, ROWS, DRAFTS, COUNTS = 6, 40, 3, (1, 2, 5)
WRITTEN_OUT = 20
"""So many rows are fused by the literal loop, which is slow."""
DEAR = 1e5
"""A price at which the writer changes nothing."""


def network(size: float | None = None) -> Generator:
    """G as it is before training, or one that takes steps of about this size."""
    made = Generator(Z, 2, 16, 2, conditional=True, gated=size is None)
    initialise(made, make_random(0, "G"))
    if size is not None:
        made.net.weights[-1].data.mul_(size)
    return made


def heard(price: float = 4.0, lead: float = 0.5, imbalance: float = 0.05) -> Heard:
    core = MelodyVAE(FORM, VAESettings(latent_dim=Z, hidden=32, embedding=8))
    initialise(core, make_random(0, "core"))
    writer = Writer(FORM, WriterSettings(hidden=16))
    initialise(writer, make_random(0, "writer"))
    return Heard(core, writer, price, DRAFTS, imbalance, lead)


def inputs() -> tuple[Pair, Tensor, Tensor]:
    random = make_random(0, "inputs")
    left, right = torch.randn(2, ROWS, Z, generator=random)
    lambda_ = torch.tensor([0.01, 0.1, 1.0, 10.0]).repeat(ROWS // 4)
    return (left, right), torch.rand(ROWS, 2, generator=random), lambda_


def run(how: Heard, counts: Sequence[int] = COUNTS, size: float | None = None) -> dict[int, Pair]:
    pair, style, lambda_ = inputs()
    chance = how.draw_chance(ROWS, make_random(0, "chance"))
    return dict(how.fuse(network(size), pair, style, counts, lambda_, chance))


def decode(how: Heard, pair: Pair) -> tuple[Tensor, Tensor]:
    left, right = (torch.from_numpy(how.core.decode_tokens(z).astype(np.int64)) for z in pair)
    return left, right


def fit(how: Heard, pair: Pair) -> Tensor:
    """Log p(right | left) - log p(right), token by token."""
    left, right = decode(how, pair)
    model, total = how.writer.forwards, torch.zeros(len(left))
    with torch.no_grad():
        for step in range(FORM.steps):
            rows = torch.arange(len(left)), right[:, step]
            after = model(torch.cat((left, right[:, : step + 1]), 1), 0, 1)[:, 0]
            alone = model(right[:, : step + 1], 0, 1)[:, 0]
            total += after[rows] - alone[rows]
    return total


def rate(how: Heard, pair: Pair, before: Pair) -> Tensor:
    """J: the fit, at once, less what the uneven edits of outputs cost.

    `test_a_fit_is_that_of_the_tokens_one_by_one` has the first term.
    """
    tokens, inputs = decode(how, pair), decode(how, before)
    shares, charges = (min(1, 2 * how.lead), min(1, 2 - 2 * how.lead)), []
    for row in range(len(pair[0])):
        left, right = (
            count_edits(old[row], new[row]) for old, new in zip(inputs, tokens, strict=True)
        )
        charges.append(how.imbalance * abs(shares[1] * left - shares[0] * right))
    return how.writer.rate(tokens) - torch.tensor(charges)


def count_edits(before: Tensor, after: Tensor) -> int:
    """Levenshtein distance, by the textbook's table."""
    row = list(range(len(after) + 1))
    for i, old in enumerate(before.tolist()):
        last, row[0] = row[0], i + 1
        for j, new in enumerate(after.tolist()):
            last, row[j + 1] = row[j + 1], min(row[j] + 1, row[j + 1] + 1, last + (old != new))
    return row[-1]


@dataclass
class Cases:
    """How often each thing happened that can."""

    kept: int = 0
    undone: int = 0
    drafted: int = 0
    refused: int = 0


def one_by_one(how: Heard, counts: Sequence[int], cases: Cases) -> dict[int, Tensor]:
    """The outputs of each pair by itself, as the module's docstring says."""
    pair, style, lambda_ = inputs()
    generator, chance = network(), how.draw_chance(ROWS, make_random(0, "chance"))
    left_share, right_share = min(1, 2 * how.lead), min(1, 2 - 2 * how.lead)
    found: dict[int, list[Tensor]] = {count: [] for count in counts}
    for row in range(WRITTEN_OUT):
        one = slice(row, row + 1)
        left, right = left_in, right_in = before = pair[0][one], pair[1][one]
        score = rate(how, before, before)
        decades = math.log10(float(lambda_[row]))
        at_lambda = max(0.0, how.price * (1 + min(decades, 0) / 3) + 4.0 * max(decades, 0))
        price = torch.tensor([[at_lambda / left_share, at_lambda / right_share]])
        for count in range(1, max(counts) + 1):
            with torch.no_grad():
                moved = generator((left, right), style[one], condition_on(lambda_[one]))
            new = (
                left + left_share * (moved[0] - left),
                right + right_share * (moved[1] - right),
            )
            if (after := rate(how, new, before)) >= score:
                left, right, score = *new, after
                cases.kept += 1
            else:
                cases.undone += 1
            if count in counts:
                halves = left.repeat(DRAFTS, 1), right.repeat(DRAFTS, 1)
                prices = price.repeat(DRAFTS, 1)
                heard = decode(how, halves)
                written = how.writer.write(how.core, halves, heard, prices, chance[:, row])
                best, best_score = torch.cat((left, right), 1)[0], score
                rated = rate(how, written, (left_in.repeat(DRAFTS, 1), right_in.repeat(DRAFTS, 1)))
                for draft, after in zip(torch.cat(written, 1), rated, strict=True):
                    if after > best_score:
                        best, best_score = draft, after
                found[count].append(best)
                cases.drafted += bool(best_score > score)
                cases.refused += bool(best_score == score)
    return {count: torch.stack(outputs) for count, outputs in found.items()}


@pytest.mark.parametrize("lead", [0.5, 0.2, 0.9])
def test_each_pair_is_fused_by_itself_as_written_down(lead: float) -> None:
    how, cases = heard(lead=lead), Cases()
    outputs = run(how)
    for count, expected in one_by_one(how, (1, 5), cases).items():
        found = torch.cat(outputs[count], 1)[:WRITTEN_OUT]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # The test is of something: proposals are kept and undone, drafts are kept and refused.
    assert min(astuple(cases)) > 0
    assert not torch.equal(*(outputs[count][0][:WRITTEN_OUT] for count in (5, 1)))


def test_a_fit_is_that_of_the_tokens_one_by_one() -> None:
    how = heard()
    for pair in (inputs()[0], *run(how).values()):
        found = how.writer.rate(decode(how, pair))
        torch.testing.assert_close(found, fit(how, pair), rtol=1e-4, atol=1e-4)


def test_proposals_and_drafts_are_both_kept_and_refused() -> None:
    pair, style, lambda_ = inputs()
    plain = network().iterate(pair, style, [1], lambda_)[1]
    kept = (run(heard(price=DEAR), [1])[1][0] == plain[0]).all(1)
    assert 0 < int(kept.sum()) < ROWS
    drafted = (run(heard(), [1])[1][0] != run(heard(price=DEAR), [1])[1][0]).any(1)
    assert 0 < int(drafted.sum()) < ROWS


def test_what_sounds_as_when_it_was_last_written_is_not_drafted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 0.05
    # Where writing changes nothing, outputs are what the applications came to.
    plain = run(heard(price=DEAR), COUNTS, size)
    notes = [torch.cat(decode(heard(), plain[count]), 1) for count in COUNTS]
    sounds_other = [(a != b).any(1) for a, b in pairwise(notes)]
    moved = [(plain[a][0] != plain[b][0]).any(1) for a, b in pairwise(COUNTS)]
    assert any((went & ~other).any() for went, other in zip(moved, sounds_other, strict=True))

    how, drafted, write = heard(), list[int](), Writer.write

    def counted(self: Writer, core: MelodyVAE, pair: Pair, *others: Any) -> Pair:
        drafted.append(len(pair[0]) // DRAFTS)
        return write(self, core, pair, *others)

    monkeypatch.setattr(Writer, "write", counted)
    together = run(how, COUNTS, size)
    assert drafted == [ROWS, *(int(other.sum()) for other in sounds_other)]
    for count in COUNTS:
        for found, expected in zip(together[count], run(how, [count], size)[count], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("imbalance", [0.0, 0.05])
def test_no_application_makes_pairs_score_less(imbalance: float) -> None:
    how, before = heard(price=DEAR, imbalance=imbalance), inputs()[0]
    pairs = [before, *run(how, (1, 2, 3, 8)).values()]
    scores = [rate(how, pair, before) for pair in pairs]
    for earlier, later in pairwise(scores):
        assert (later >= earlier - 1e-4).all()
    assert float((scores[-1] - scores[0]).mean()) > 0


def test_halves_share_their_edits_as_dearly_as_asked() -> None:
    """Where an uneven token costs more than any fit is worth, edits are even."""
    before = decode(heard(), inputs()[0])
    uneven = []
    for imbalance in (0.0, 1e4):
        after = decode(heard(), run(heard(imbalance=imbalance))[5])
        edits = [
            [count_edits(old, new) for old, new in zip(*halves, strict=True)]
            for halves in zip(before, after, strict=True)
        ]
        uneven.append(sum(left != right for left, right in zip(*edits, strict=True)))
    assert uneven[0] > ROWS // 2
    assert uneven[1] == 0


def test_what_is_undone_once_is_a_fixed_point() -> None:
    outputs = run(heard(), (1, 2, 3, 30, 31))
    still = (outputs[1][0] == outputs[2][0]).all(1) & (outputs[1][1] == outputs[2][1]).all(1)
    assert still.any()
    for later in (3, 30, 31):
        for before, after in zip(outputs[2], outputs[later], strict=True):
            assert torch.equal(before[still], after[still])


@pytest.mark.parametrize(("lead", "half"), [(0.0, 0), (1.0, 1)])
def test_the_half_that_leads_stays_bit_for_bit(lead: float, half: int) -> None:
    pair, outputs = inputs()[0], run(heard(lead=lead))
    for after in outputs.values():
        assert torch.equal(after[half], pair[half])
        assert not torch.equal(after[1 - half], pair[1 - half])


def test_shares_fall_from_the_middle_to_the_ends() -> None:
    shares = {0.0: (0, 1), 0.25: (0.5, 1), 0.5: (1, 1), 0.75: (1, 0.5), 1.0: (1, 0)}
    assert {lead: share_step(lead) for lead in shares} == shares
    for lead in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"lead: must be in 0…1"):
            share_step(lead)


def test_the_price_rises_with_every_factor_of_ten() -> None:
    rising = {1e-4: 0, 1e-3: 0, 1e-2: 2, 0.1: 4, 1.0: 6, 10.0: 10, 100.0: 14}
    for lambda_, price in rising.items():
        assert find_price(6.0, lambda_) == pytest.approx(price)
    assert find_price(3.0, 0.1) == pytest.approx(2)
    assert find_price(3.0, 10.0) == pytest.approx(7)


def test_of_outputs_near_enough_to_the_edits_asked_for_the_best_is_taken() -> None:
    """Worked by hand: rows are λ, columns are pairs, and 20 edits are asked for."""
    changed = np.array([[0, 17, 0, 22], [17, 20, 10, 18], [23, 24, 31, 22], [24, 40, 30, 40]])
    score = np.array([[9.0, 1.0, 9.0, 5.0], [1.0, 0.5, 3.0, 5.0], [2.0, 8.0, 7.0, 4.0], [8.0] * 4])
    # 17 to 23 are near; of two that are equally far off, 10 and 30, the better one; else the first.
    assert choose_by_edits(changed, score, 20).tolist() == [2, 0, 3, 0]
    assert choose_by_edits(changed, score, 0).tolist() == [0, 0, 0, 1]
