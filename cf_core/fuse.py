"""Two melody files fused into one melody."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Integer

from cf_core.bundle import Bundle
from cf_core.distance import edit_distance
from cf_core.errors import BundleError, MelodyError
from cf_core.melody import FIRST_PITCH, FREE, Bar, MelodyFormat, Note, bar_length, to_notes
from cf_core.piece import BarRange, Chords, Passage, Piece, Segment

__all__ = ["BarRange", "Fused", "Tune", "fuse_files"]

SLOWEST, FASTEST = 10.0, 500.0
"""Slowest and fastest tempo that can be written, in quarter notes per minute."""
LEADS = {"left": 0.0, "even": 0.5, "right": 1.0}
"""Names of leads: who stays as it is, the left segment, neither or the right one."""
_NEAR_SEAM = 4
"""How many of the last bars of the left piece, and of the first of the right one, may be where it
is left and entered, if the bundle chooses."""
_SHIFTS = sorted(range(-5, 7), key=abs)
"""Transpositions that are tried, in semitones, the smallest first."""


class Tune(NamedTuple):
    """A whole melody, for `write_midi`: its notes, and what stands at which quarter note."""

    notes: list[Note]
    meters: list[tuple[Fraction, str]]
    """Where a time signature begins."""
    markers: list[tuple[Fraction, str]]


@dataclass(frozen=True, eq=False)
class Fused:
    """Two segments, the fused segments, and the settings used. `T` is a segment's grid steps."""

    form: MelodyFormat
    inputs: Integer[np.ndarray, "2 T"]
    outputs: Integer[np.ndarray, "2 T"]
    bars: tuple[BarRange, BarRange]
    """Bars taken from the left and from the right piece."""
    meter: str
    """Time signature of the left segment as written, such as "4/4"."""
    tempo: float
    """Quarter notes per minute."""
    seed: int
    """What decided which notes were drawn, and the style where none was given."""
    style: tuple[float, ...]
    lambda_: float | None
    """λ; None where it is not an input of the bundle's generator."""
    iterations: int
    lead: float | None
    """Which half gave way: 0 the right one, 1 the left one; None in a bundle that knows none."""
    tunes: tuple[str | None, str | None] = (None, None)
    """Which tune was taken of a file that holds several, by its number and title."""
    transposed: int = 0
    """By how many semitones the right piece was moved before."""
    around: tuple[Passage, Passage] = (Passage(), Passage())
    """What stands before the left segment in its piece, and after the right one in its own."""
    left_out: tuple[BarRange | None, BarRange | None] = (None, None)
    """Bars behind the left segment and ahead of the right one, which the whole tune leaves out."""
    fit: float | None = None
    """How much the fused halves tell of each other, log p(right | left) - log p(right), in nats;
    None for a bundle without models of notes."""

    @property
    def edits(self) -> tuple[int, int]:
        """How many grid steps of the left and of the right segment were edited."""
        left, right = edit_distance(self.inputs, self.outputs).tolist()
        return left, right

    @property
    def input_notes(self) -> list[Note]:
        """The two input segments, one after the other."""
        return self._joined(self.inputs)

    @property
    def output_notes(self) -> list[Note]:
        """The fused melody."""
        return self._joined(self.outputs)

    @property
    def bars_in_tune(self) -> BarRange:
        """Numbers of the first and the last fused bar in the whole tune; a pickup is bar 0."""
        before = self.around[0].bars
        has_pickup = bool(before) and before[0].length < bar_length(before[0].meter)
        first = len(before) + 1 - has_pickup
        return first, first + 2 * self.form.bars_per_segment - 1

    @property
    def tune(self) -> Tune:
        """The whole tune: the left piece, the fused segments in place of its last, the right piece.

        Each bar keeps its own meter. Markers say where fused segments begin, meet and end.
        """
        length = bar_length(self.meter)
        many = self.form.bars_per_segment
        start = sum((bar.length for bar in self.around[0].bars), Fraction(0))
        end = start + 2 * many * length
        fused = [Bar(start + n * length, length, self.meter) for n in range(2 * many)]
        later = [bar._replace(start=bar.start + end) for bar in self.around[1].bars]
        meters: list[tuple[Fraction, str]] = []
        fits = True
        for bar in (*self.around[0].bars, *fused, *later):
            signature = _signature(bar)
            # After a bar that no signature fits, programs can't know where the next one begins.
            if not (fits and meters and meters[-1][1] == signature):
                meters.append((bar.start, signature))
            fits = bar.length == bar_length(signature)
        markers = [(start, "fused"), (start + many * length, "seam"), (end, "end of fused")]
        return Tune(
            [
                *self.around[0].notes,
                *_shift(self.output_notes, start),
                *_shift(self.around[1].notes, end),
            ],
            meters,
            markers,
        )

    def redraw(
        self,
        bundle: Bundle,
        seed: int,
        style: Sequence[float] | None = None,
        edits: int | None = None,
    ) -> "Fused":
        """The same segments, fused by the same bundle with another seed.

        The seed decides which notes are drawn, and the style if none is given. λ stays as it is,
        unless it is found anew for a number of `edits`. Raises `BundleError` as `fuse_files` does.
        """
        (left, right), count, lambda_ = self.inputs, self.iterations, self.lambda_
        style = bundle.draw_style(seed) if style is None else tuple(style)
        if edits is not None:
            lambda_ = bundle.find_lambda(left, right, style, count, edits, self.lead, seed)
        outputs = bundle.fuse(left, right, style, count, lambda_, self.lead, seed)
        return replace(
            self,
            outputs=np.stack(outputs),
            seed=seed,
            style=style,
            lambda_=lambda_,
            fit=bundle.rate(outputs),
        )

    @property
    def excerpt(self) -> Tune:
        """The fused segments alone."""
        return Tune(self.output_notes, [(Fraction(0), self.meter)], [])

    def _joined(self, halves: Integer[np.ndarray, "2 T"]) -> list[Note]:
        left, right = (to_notes(half, self.form) for half in halves)
        return left + _shift(right, bar_length(self.meter) * self.form.bars_per_segment)


def fuse_files(
    left: Path | Piece,
    right: Path | Piece,
    bundle: Bundle,
    *,
    left_bars: BarRange | None = None,
    right_bars: BarRange | None = None,
    seam: Literal["ends", "auto"] = "ends",
    left_part: str | None = None,
    right_part: str | None = None,
    chords: Chords = "reject",
    transpose_right: int | Literal["auto"] = 0,
    style: Sequence[float] | None = None,
    lambda_: float | None = None,
    edits: int | None = None,
    lead: float | None = None,
    iterations: int | None = None,
    seed: int = 0,
    tempo: float | None = None,
) -> Fused:
    """Fuse the last whole segment of one melody file with the first of another.

    Files are MIDI, MusicXML or ABC. A `Piece` stands for a file that was read before; parts and
    chords are then as it was read.

    *What is fused.* Where a piece has several meters, these are the last and the first segment that
    have bars of one kind. `left_bars` and `right_bars` choose other segments. With `seam` "auto",
    the bundle chooses among the segments that end in the last four bars of the left piece and begin
    in the first four of the right one: the two that fit best as they are. Where none of these are
    of one kind, it takes the last and the first that are. `left_part` and
    `right_part` choose a part of a file that has several, by name or by number from 1. `chords`
    says what becomes of notes that sound together. The right piece is moved by `transpose_right`
    semitones, or by the interval with which its segment fits the left one best ("auto").

    *How.* `style` holds one number in 0…1 per style dimension; without it, a style is drawn from
    `seed`, which also decides the notes that a bundle with models of notes draws. `lambda_` (a
    small one goes far from the inputs, a large one stays near), `lead` (0: the left segment stays,
    1: the right one stays) and `iterations` default to the bundle's. `edits`, in place of
    `lambda_`, is the number of grid steps to edit, about (`Bundle.find_lambda`). `tempo` (quarter
    notes per minute, 10…500) defaults to the tempo at the left segment.

    Raises `MelodyError` where a file can't be read, where it has no segment that the bundle can
    take, where the chosen bars are not such a segment, where there are no two of one meter, where
    the right piece can't be moved as far as asked, and for a tempo out of range. Raises
    `BundleError` for a style, a λ, a lead, an iteration count or a number of edits that the bundle
    can't take, where both `lambda_` and `edits` are given, and where a bundle without models of
    notes is to choose.

    >>> from pathlib import Path
    >>> from cf_core.bundle import load_bundle
    >>> from cf_core.fuse import fuse_files
    >>> from cf_core.render import write_midi
    >>> fused = fuse_files(Path("left.mid"), Path("right.mid"), load_bundle(), lambda_=0.3)
    >>> fused.bars  # first and last bar taken from each file
    ((3, 4), (1, 2))
    >>> write_midi(fused.output_notes, Path("fused.mid"), fused.tempo, fused.meter)
    """
    before, after = (
        source if isinstance(source, Piece) else Piece.read(source, part, bundle.form, chords)
        for source, part in ((left, left_part), (right, right_part))
    )
    lasts = before.list_segments() if left_bars is None else [before.take_chosen(left_bars)]
    firsts = after.list_segments() if right_bars is None else [after.take_chosen(right_bars)]
    _check_meters(before, after, lasts, firsts)
    near = _find_nearest if seam == "ends" else _find_near
    lasts, firsts = near(lasts, firsts)
    shifts = _SHIFTS if transpose_right == "auto" else [transpose_right]
    last, first, shift = _choose(lasts, firsts, shifts, bundle)
    speed = last.tempo if tempo is None else tempo
    if not SLOWEST <= speed <= FASTEST:
        raise MelodyError(
            f"{before.name if tempo is None else 'tempo'}: {speed:g} quarter notes per minute can't"
            f" be written; give a tempo of {SLOWEST:g} to {FASTEST:g}"
        )
    right_tokens = _transpose(first.tokens, shift, bundle.form)
    if right_tokens is None:
        raise MelodyError(
            f"{after.name}: {shift} semitones would move its notes out of the bundle's pitches"
            f" {bundle.form.lowest} to {bundle.form.highest}; give another interval"
        )
    if edits is not None and lambda_ is not None:
        raise BundleError("edits: λ is given, too, and each says how far to go; give one")
    inputs = np.stack((last.tokens, right_tokens))
    unfused = Fused(
        form=bundle.form,
        inputs=inputs,
        outputs=inputs,
        bars=(last.bars, first.bars),
        meter=last.meter,
        tempo=speed,
        seed=seed,
        style=(),
        lambda_=bundle.lambda_ if lambda_ is None else lambda_,
        iterations=bundle.iterations if iterations is None else iterations,
        lead=bundle.lead if lead is None else lead,
        tunes=(before.tune, after.tune),
        transposed=shift,
        around=(before.before(last), _move(after.after(first), shift)),
        left_out=(before.leave_out(last, is_left=True), after.leave_out(first, is_left=False)),
    )
    return unfused.redraw(bundle, seed, style, edits)


def _check_meters(
    left: Piece, right: Piece, lasts: Sequence[Segment], firsts: Sequence[Segment]
) -> None:
    if {each.kind for each in lasts} & {each.kind for each in firsts}:
        return
    meters = [" and ".join(dict.fromkeys(each.meter for each in some)) for some in (lasts, firsts)]
    raise MelodyError(
        f"{left.name} can be taken in {meters[0]}, {right.name} in {meters[1]}: a bundle fuses two"
        " segments of one meter; choose another file or other bars"
    )


def _find_nearest(
    lasts: Sequence[Segment], firsts: Sequence[Segment]
) -> tuple[list[Segment], list[Segment]]:
    """The two segments of one kind nearest to the end of one piece and the start of the other."""
    last = {each.kind: each for each in lasts}  # of each kind the last one
    first = {each.kind: each for each in reversed(firsts)}  # and the first one
    common = last.keys() & first.keys()
    kind = min(common, key=lambda kind: (first[kind].start - last[kind].start, kind))
    return [last[kind]], [first[kind]]


def _find_near(
    lasts: Sequence[Segment], firsts: Sequence[Segment]
) -> tuple[list[Segment], list[Segment]]:
    """The segments near to where the pieces end and begin; the nearest two if none share a kind."""
    near_lasts = [each for each in lasts if each.start > lasts[-1].start - _NEAR_SEAM]
    near_firsts = [each for each in firsts if each.start < firsts[0].start + _NEAR_SEAM]
    if {each.kind for each in near_lasts} & {each.kind for each in near_firsts}:
        return near_lasts, near_firsts
    return _find_nearest(lasts, firsts)


def _choose(
    lasts: Sequence[Segment], firsts: Sequence[Segment], shifts: Sequence[int], bundle: Bundle
) -> tuple[Segment, Segment, int]:
    """The two segments, and the transposition of the right one, that fit best as they are."""
    if len(lasts) == len(firsts) == len(shifts) == 1:
        return lasts[0], firsts[0], shifts[0]
    tried = [
        (last, first, shift, moved)
        for last, first, shift in product(reversed(lasts), firsts, shifts)
        if last.kind == first.kind
        and (moved := _transpose(first.tokens, shift, bundle.form)) is not None
    ]
    if not tried:
        raise MelodyError(
            "the right piece can't be moved to pitches that the bundle knows; choose other bars, or"
            " another interval"
        )
    fits = bundle.rate_all(
        np.stack([last.tokens for last, *_ in tried]), np.stack([moved for *_, moved in tried])
    )
    last, first, shift, _ = tried[int(fits.argmax())]  # of equal ones the first
    return last, first, shift


def _transpose(
    tokens: Integer[np.ndarray, "T"], shift: int, form: MelodyFormat
) -> Integer[np.ndarray, "T"] | None:
    """The same notes `shift` semitones higher; None where the format does not have them."""
    onset = tokens >= FIRST_PITCH
    lowest, highest = (int(note) + shift for note in (tokens[onset].min(), tokens[onset].max()))
    if not FIRST_PITCH <= lowest <= highest < form.vocabulary:
        return None
    return np.where(onset, tokens + shift, tokens).astype(tokens.dtype)


def _move(passage: Passage, shift: int) -> Passage:
    """A passage `shift` semitones higher; notes that MIDI does not have are octaves nearer."""
    notes = []
    for note in passage.notes:
        pitch = note.pitch + shift
        if pitch < 0:
            pitch %= 12
        elif pitch > 127:
            pitch = 127 - (127 - pitch) % 12
        notes.append(note._replace(pitch=pitch))
    return Passage(tuple(notes), passage.bars)


def _shift(notes: Sequence[Note], by: Fraction) -> list[Note]:
    return [note._replace(onset=note.onset + by) for note in notes]


def _signature(bar: Bar) -> str:
    """Time signature of a bar as it is: a pickup of one quarter in 3/4 is 1/4."""
    if bar.length == bar_length(bar.meter):
        return bar.meter
    whole = bar.length / 4
    unit = max(4, whole.denominator)
    if unit in (4, 8, 16, 32) and 0 < whole * unit < 100:
        return f"{whole * unit}/{unit}"
    return "4/4" if bar.meter == FREE else bar.meter
