"""Distances against slow definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cf_core.distance import SegmentBank, count_edits, edit_distance, z_weighted
from tests import pretended


def levenshtein(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return levenshtein(a[1:], b[1:])
    return 1 + min(levenshtein(a[1:], b), levenshtein(a, b[1:]), levenshtein(a[1:], b[1:]))


words = st.lists(st.tuples(*[st.integers(0, 2)] * 5), min_size=1, max_size=6)


@given(words, st.randoms(use_true_random=False))
def test_edit_distance_is_levenshtein(before: list[tuple[int, ...]], random: object) -> None:
    after = before.copy()
    random.shuffle(after)  # type: ignore[attr-defined]
    expected = [levenshtein(a, b) for a, b in zip(before, after, strict=True)]
    assert edit_distance(np.array(before), np.array(after)).tolist() == expected


@given(words, st.randoms(use_true_random=False))
def test_edits_are_counted_alike_on_other_devices(
    before: list[tuple[int, ...]], random: object
) -> None:
    after = before.copy()
    random.shuffle(after)  # type: ignore[attr-defined]
    one, other = torch.tensor(before), torch.tensor(after)
    expected = count_edits(one, other)
    assert expected.tolist() == edit_distance(one.numpy(), other.numpy()).tolist()
    with pretended.device() as log:
        one, other = one.to(pretended.NAME), other.to(pretended.NAME)
        log.waits.clear()
        found = count_edits(one, other)
        assert found.device.type == pretended.NAME
        assert log.waits == []
    torch.testing.assert_close(found.cpu(), expected)


def test_edit_distance_worked_by_hand() -> None:
    before = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1], [1, 2, 3, 4]])
    after = np.array([[1, 2, 3, 4], [9, 1, 2, 3], [2, 2, 2, 2], [1, 9, 3, 4]])
    assert edit_distance(before, after).tolist() == [0, 2, 4, 1]


def test_edit_distance_of_long_segments_with_high_tokens() -> None:
    before, after = np.full((1, 300), 130, np.uint8), np.full((1, 300), 2, np.uint8)
    assert edit_distance(before, after).tolist() == [300]


def mark(segment: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """Leave so many steps; the marks behind them depend on their number, as of kinds of bars."""
    return segment[:steps] + (-1 - steps % 2,) * (len(segment) - steps)


marked = st.lists(
    st.builds(mark, st.tuples(*[st.integers(0, 2)] * 5), st.integers(1, 5)), min_size=1, max_size=6
)


@given(marked, marked, marked)
def test_nearest_segment_by_looking_at_all(
    bank: list[tuple[int, ...]], segments: list[tuple[int, ...]], later: list[tuple[int, ...]]
) -> None:
    filled = SegmentBank(np.array(bank))
    for asked in (segments, later, segments):  # what was asked before is answered from memory
        expected = [min(levenshtein(one, other) for other in bank) for one in asked]
        assert filled.nearest(np.array(asked)).tolist() == expected


def test_a_bank_forgets_what_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cf_core.distance._KNOWN", 2)
    bank = SegmentBank(np.array([[2, 3, 4], [5, 5, 5]]))
    for _ in range(2):
        assert bank.nearest(np.array([[2, 3, 4], [5, 5, 6], [9, 9, 9]])).tolist() == [0, 1, 3]
        assert bank.nearest(np.array([[5, 5, 6], [8, 3, 8]])).tolist() == [1, 2]


def test_segments_of_a_bank_are_at_no_distance() -> None:
    bank = np.array([[1, 2, 3, 4], [5, 5, 5, 5], [1, 2, 3, 4]])
    segments = np.array([[5, 5, 5, 5], [1, 2, 3, 4], [2, 3, 4, 1], [9, 9, 9, 9]])
    assert SegmentBank(bank).nearest(segments).tolist() == [0, 0, 2, 4]


def test_weighted_distance_worked_by_hand() -> None:
    before = (torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    after = (torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
    # ((1/0.5)² + (2/1)² + 0 + (1/1)²) / 4
    assert z_weighted(before, after, torch.tensor([0.5, 1.0])).tolist() == pytest.approx([2.25])
