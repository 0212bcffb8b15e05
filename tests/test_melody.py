from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cf_core.errors import MelodyError
from cf_core.grid import TOLERANCE, GridBar, join_bars, make_segment, to_grid
from cf_core.melody import (
    FIRST_PITCH,
    HOLD,
    MAX_STEPS_PER_BEAT,
    REST,
    Bar,
    Melody,
    MelodyFormat,
    Note,
    bar_length,
    is_melody,
    to_notes,
)

C4, D4 = FIRST_PITCH + 60, FIRST_PITCH + 62
FORM = MelodyFormat()


def melody(notes: list[Note], lengths: list[Fraction | int], meter: str = "2/4") -> Melody:
    starts = [sum(lengths[:i], Fraction(0)) for i in range(len(lengths))]
    bars = tuple(
        Bar(Fraction(s), Fraction(length), meter) for s, length in zip(starts, lengths, strict=True)
    )
    return Melody("song", "Song", tuple(notes), bars)


def note(onset: Fraction | str | int, duration: Fraction | str | int, pitch: int = 60) -> Note:
    return Note(Fraction(onset), Fraction(duration), pitch)


def test_tokens_of_a_bar_worked_by_hand() -> None:
    bars = to_grid(melody([note(0, 1), note("5/4", "1/4", 62)], [2]))
    assert bars == [GridBar("2/4", (C4, HOLD, HOLD, HOLD, REST, D4, REST, REST), None, 2, None)]


def test_a_note_over_the_bar_line_is_held_and_struck_again_at_a_segments_start() -> None:
    bars = to_grid(melody([note(0, 3)], [2, 2, 2]))
    assert [bar.held for bar in bars] == [None, 60, None]
    assert [bar.onsets for bar in bars] == [1, 0, 0]
    assert bars[1].tokens == (HOLD,) * 4 + (REST,) * 4
    form = MelodyFormat(meters=("2/4",))
    model_c4 = FIRST_PITCH + 60 - form.lowest
    assert make_segment(bars[:2], form).tolist() == [model_c4] + [HOLD] * 11 + [REST] * 4
    assert make_segment(bars[1:], form).tolist() == [model_c4] + [HOLD] * 3 + [REST] * 12


@pytest.mark.parametrize("error", [TOLERANCE, -TOLERANCE])
def test_an_error_of_the_tolerance_snaps_at_onset_end_and_bar_line(error: Fraction) -> None:
    exact = melody([note(0, 2), note(2, 1, 62)], [2, 2])
    shifted = [Note(n.onset + error, n.duration, n.pitch) for n in exact.notes]
    assert to_grid(melody(shifted, [2, 2])) == to_grid(exact)


def test_an_error_above_the_tolerance_is_off_the_grid() -> None:
    error = TOLERANCE * Fraction(101, 100)
    assert to_grid(melody([note(error, 1)], [2]))[0].reason == "off grid"
    assert to_grid(melody([note(0, 1 + error)], [2]))[0].reason == "off grid"


def test_triplets_are_off_the_16th_grid_and_on_the_grid_of_12() -> None:
    # 1/3 as 341 and 683 of 1024 ticks: neighbours may overlap by one tick.
    triplet = melody(
        [note(0, Fraction(342, 1024)), note(Fraction(341, 1024), Fraction(342, 1024), 62)], [2]
    )
    assert to_grid(triplet)[0].reason == "off grid"
    tokens = to_grid(triplet, 12)[0].tokens
    assert tokens == (C4, HOLD, HOLD, HOLD, D4, HOLD, HOLD, HOLD, *[REST] * 16)


def test_a_note_that_would_vanish_is_off_the_grid() -> None:
    assert to_grid(melody([note(0, "1/200")], [2]))[0].reason == "off grid"


def test_notes_together_reject_their_bars_only() -> None:
    bars = to_grid(melody([note(0, 1), note(1, 2, 62), note("3/2", "1/2"), note(4, 1)], [2, 2, 2]))
    assert [bar.reason for bar in bars] == ["chord", None, None]
    assert bars[1].held == 62


def test_bars_of_another_length_than_their_meters() -> None:
    bars = to_grid(melody([note(0, 1)], [Fraction(1, 2), 2, Fraction(5, 2)]))
    assert [bar.reason for bar in bars] == ["short bar", None, "long bar"]


def test_a_bar_that_is_no_whole_number_of_steps_is_off_the_grid() -> None:
    assert to_grid(melody([note(0, "1/4")], [Fraction(1, 8)], "1/32"))[0].reason == "off grid"


def test_a_tolerance_that_could_swap_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="a third of a step"):
        to_grid(melody([note(0, 1)], [2]), 4, Fraction(1, 12))


@st.composite
def segments(draw: st.DrawFn) -> np.ndarray:
    """Tokens without a hold that sounds nothing, which notes can't write down."""
    tokens: list[int] = []
    for _ in range(FORM.steps):
        hold = [HOLD] if tokens and tokens[-1] != REST else []
        pitch = draw(st.integers(FIRST_PITCH, FORM.vocabulary - 1))
        tokens.append(draw(st.sampled_from([REST, pitch, *hold])))
    return np.array(tokens, dtype=np.uint8)


@pytest.mark.slow
@settings(max_examples=40)
@given(segments(), st.lists(st.fractions(-TOLERANCE / 2, TOLERANCE / 2), min_size=32, max_size=32))
def test_tokens_to_notes_to_grid_and_back(tokens: np.ndarray, errors: list[Fraction]) -> None:
    notes = [
        Note(max(n.onset + e, Fraction(0)), n.duration, n.pitch)
        for n, e in zip(to_notes(tokens, FORM), errors, strict=False)
    ]
    bars = to_grid(melody(notes, [4, 4], "4/4"))
    assert make_segment(bars, FORM).tolist() == tokens.tolist()


@settings(max_examples=40)
@given(segments())
def test_join_leaves_its_input_as_it_was(tokens: np.ndarray) -> None:
    absolute = np.where(tokens >= FIRST_PITCH, tokens + FORM.lowest, tokens).astype(np.uint8)
    bars = absolute.reshape(1, 2, 16)
    bars[0, 0, 0] = HOLD
    before = bars.copy()
    joined, struck_again, in_range, on_grid = join_bars(bars, np.array([64]), 0, FORM)
    assert (bars == before).all()
    assert struck_again.tolist() == [True]
    assert in_range.tolist() == on_grid.tolist() == [True]
    assert joined[0, 0] == FIRST_PITCH + 64 - FORM.lowest
    assert joined[0, 1:].tolist() == tokens[1:].tolist()


def full_bar(pitch: int, meter: str = "4/4") -> GridBar:
    return GridBar(meter, (FIRST_PITCH + pitch, *[HOLD] * 15), None, 1, None)


def test_a_segment_spans_exactly_the_models_pitches() -> None:
    tokens = make_segment([full_bar(FORM.lowest), full_bar(FORM.highest)], FORM)
    assert tokens[[0, 16]].tolist() == [FIRST_PITCH, FORM.vocabulary - 1]


@pytest.mark.parametrize(
    ("bars", "message"),
    [
        ([full_bar(60)], "has 2 bars, but 1"),
        ([full_bar(60), GridBar("4/4", None, None, 3, "chord")], "bar 2 .* chord"),
        ([full_bar(60, "3/4"), full_bar(60)], "bar 1 .* 3/4"),
        ([full_bar(60), full_bar(FORM.highest + 1)], "pitches 36 to 96"),
        ([full_bar(FORM.lowest - 1), full_bar(60)], "pitches 36 to 96"),
    ],
)
def test_segments_that_a_model_does_not_know(bars: list[GridBar], message: str) -> None:
    with pytest.raises(MelodyError, match=message):
        make_segment(bars, FORM)


def test_bar_lengths_and_formats() -> None:
    assert [bar_length(m) for m in ("3/4", "6/8", "2/2", "5/16")] == [3, 3, 4, Fraction(5, 4)]
    assert (FORM.lengths, FORM.steps, FORM.vocabulary) == ((32,), 32, 63)
    with pytest.raises(ValueError, match="a whole number"):
        MelodyFormat(meters=("4/4", "1/32"))
    assert MelodyFormat(steps_per_beat=MAX_STEPS_PER_BEAT).steps == 8 * MAX_STEPS_PER_BEAT
    to_grid(melody([note(0, 1)], [2]), MAX_STEPS_PER_BEAT)
    with pytest.raises(ValueError, match="steps_per_beat: 25 is above 24"):
        MelodyFormat(steps_per_beat=25)


@pytest.mark.parametrize(
    ("tokens", "valid"),
    [
        ([C4, HOLD, D4, REST], True),
        ([REST, C4, HOLD, C4], True),
        ([HOLD, C4, D4, REST], False),  # nothing to hold at the start
        ([C4, REST, HOLD, D4], False),  # nor after a rest
        ([C4, HOLD, HOLD, HOLD], False),  # one onset is no melody
        ([REST, REST, REST, REST], False),
    ],
)
def test_what_a_melody_is(tokens: list[int], valid: bool) -> None:
    assert is_melody(np.array([tokens])).tolist() == [valid]


# ---- played notes


def played(*notes: tuple[float, float, int], bars: int = 2, steps: int = 4) -> list[GridBar]:
    """Bars of 4/4 with played notes as `(onset, end, pitch)`, in ticks of 480."""
    return to_grid(
        Melody(
            "a",
            "A",
            tuple(
                Note(Fraction(onset) / 480, Fraction(end - onset) / 480, pitch)
                for onset, end, pitch in notes
            ),
            tuple(Bar(Fraction(4 * n), Fraction(4), "4/4") for n in range(bars)),
            played=True,
        ),
        steps,
    )


TUNE = [(0, 480, 60), (480, 720, 62), (720, 960, 64), (960, 1920, 65), (1920, 3840, 67)]


@pytest.mark.parametrize(
    ("share", "ticks", "moved"),
    [
        (0, 0, 0),
        (0.01, 0, 2),  # within the tolerance but for the long ones
        (0.05, 0, 5),
        (0.10, 0, 5),
        (0, 10, 5),
        (0, -10, 5),
        (0, -59, 5),
    ],
)
def test_ends_of_played_notes_mean_the_next_onset(share: float, ticks: int, moved: int) -> None:
    straight = [bar.tokens for bar in played(*TUNE)]
    bars = played(*((o, e - share * (e - o) - ticks, p) for o, e, p in TUNE))
    assert [bar.tokens for bar in bars] == straight
    assert [bar.moved for bar in bars] == [moved - (moved > 0), int(moved > 0)]


def test_written_notes_are_not_moved() -> None:
    notes = tuple(Note(Fraction(o, 480), Fraction(e - o - 24, 480), p) for o, e, p in TUNE)
    bars = tuple(Bar(Fraction(4 * n), Fraction(4), "4/4") for n in range(2))
    assert [bar.reason for bar in to_grid(Melody("a", "A", notes, bars))] == ["off grid"] * 2


def test_rests_between_played_notes_stay() -> None:
    rests = [(0, 360, 60), (480, 600, 62), (720, 960, 64), (960, 1800, 65), (1920, 3720, 67)]
    assert [bar.moved for bar in played(*rests)] == [0, 0]
    straight = [bar.tokens for bar in played(*rests)]
    # A note before a rest is as much too short as most notes are.
    cut = [(o, e - round(0.08 * (e - o)), p) for o, e, p in [*TUNE[:3], *rests[3:]]]
    gated = played(*cut)
    assert gated[0].tokens is not None
    assert gated[0].tokens[8:] == straight[0][8:]  # type: ignore[index]
    assert gated[1].tokens == straight[1]


def tune_with_rests(seed: int) -> list[tuple[int, int, int]]:
    """Eight bars of notes of many lengths; a quarter of them end a sixteenth or an eighth early."""
    chance, notes, at = np.random.default_rng(seed), list[tuple[int, int, int]](), 0
    while at < 8 * 1920:
        length = min(int(chance.choice([120, 240, 240, 480, 480, 360, 720, 960])), 8 * 1920 - at)
        rest = int(chance.choice([120, 240])) if chance.random() < 0.25 else 0
        notes.append(
            (at, at + length - (rest if rest < length else 0), int(chance.integers(60, 72)))
        )
        at += length
    return notes


GATES = [0.85, 0.87, 0.88, 0.9, 0.92, 0.94, 0.95, 0.98, 0.99, 1]


@pytest.mark.parametrize(
    ("steps", "share"),
    # Below 0.88 a step of the finer grid is lost, and nothing tells what was meant.
    [(4, share) for share in GATES] + [(12, share) for share in GATES if share >= 0.88],
)
def test_every_gate_gives_the_notes_as_they_were_meant(steps: int, share: float) -> None:
    for seed in range(3):
        notes = tune_with_rests(seed)
        meant = [bar.tokens for bar in played(*notes, bars=8, steps=steps)]
        cut = ((o, o + round(share * (e - o)), p) for o, e, p in notes)
        assert [bar.tokens for bar in played(*cut, bars=8, steps=steps)] == meant


@pytest.mark.parametrize("ticks", [-30, -20, -10, -2, 2, 5, 10, 20, 30])
def test_every_lateness_gives_the_notes_as_they_were_meant(ticks: int) -> None:
    for seed in range(3):
        notes = tune_with_rests(seed)
        meant = [bar.tokens for bar in played(*notes, bars=8)]
        off = ((o, e + ticks, p) for o, e, p in notes)
        assert [bar.tokens for bar in played(*off, bars=8)] == meant


def test_rests_of_one_step_stay_where_keys_are_released_late() -> None:
    lengths = [1, 0.75, 0.75, 1, 1, 0.25, 0.5, 2]
    starts = [0, 1, 2, 3, 4, 5, 5.5, 6]
    straight = [(480 * o, 480 * (o + d), 60) for o, d in zip(starts, lengths, strict=True)]
    expected = [bar.tokens for bar in played(*straight)]
    for late in (5, 10, 30):
        assert [
            bar.tokens for bar in played(*((o, e + late, p) for o, e, p in straight))
        ] == expected


def test_long_notes_show_the_gate_too() -> None:
    long = [(0, 960, 60), (960, 1920, 62), (1920, 3840, 64), (3840, 5280, 65), (5760, 7680, 67)]
    expected = [bar.tokens for bar in played(*long, bars=4)]
    cut = ((o, e - round(0.1 * (e - o)), p) for o, e, p in long)
    assert [bar.tokens for bar in played(*cut, bars=4)] == expected


def test_the_end_of_a_last_note_makes_no_bar() -> None:
    notes = [*TUNE[:4], (1920, 3850, 67)]
    for bars in (2, 3):
        assert [bar.reason for bar in played(*notes, bars=bars)] == [None, None]
    melody = Melody(
        "a",
        "A",
        tuple(Note(Fraction(o, 480), Fraction(e - o, 480), p) for o, e, p in notes),
        (
            *(Bar(Fraction(4 * n), Fraction(4), "4/4") for n in range(3)),
            Bar(Fraction(12), Fraction(3), "3/4"),
        ),
        played=True,
    )
    # Bars that a later time signature closes stay, each with its own meter.
    assert [(bar.meter, bar.reason) for bar in to_grid(melody)] == [("4/4", None)] * 3 + [
        ("3/4", None)
    ]
    staccato = played(*TUNE[:4], (1920, 2400, 67), (3360, 3370, 69))
    assert staccato[1].reason == "off grid"


def test_short_notes_and_double_stops_are_not_stretched() -> None:
    staccato = [(onset, onset + 60, pitch) for onset, _, pitch in TUNE]
    assert [bar.reason for bar in played(*staccato)] == ["off grid", "off grid"]
    stops = [(0, 1910, 60), (0, 1910, 64), (1920, 3840, 62)]
    assert [bar.reason for bar in played(*stops)] == ["chord", None]
