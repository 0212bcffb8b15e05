"""Fusing files. It is long, for every option is tried on tunes of its own."""

import os
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import fields
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest

from cf_core.bundle import Bundle, load_bundle, save_bundle
from cf_core.errors import BundleError, MelodyError
from cf_core.fuse import Fused, fuse_files
from cf_core.melody import HOLD, REST, MelodyFormat, Note
from cf_core.piece import Piece, thin_out
from cf_core.readers import read_file
from cf_core.render import write_midi
from tests.conftest import MakeBundle

# Bar 0 is a pickup, bar 3 has a triplet, bar 8 is short: bars 6-7 are the last whole segment.
# The tie holds the A of bar 5 over the start of bar 6.
LEFT = """X:1
T:Left
M:4/4
L:1/4
Q:1/4=90
K:C
G | C D E F | G A B c | (3CDE F G | c2 G2 | E2 A2- | A2 z2 | d4 | C2 |]
"""
LOWEST = 36


def _onset(pitch: int) -> int:
    return 2 + pitch - LOWEST


def _tokens(*spans: tuple[int | None, int]) -> list[int]:
    """Tokens of (pitch or rest, steps)."""
    return [
        token
        for pitch, steps in spans
        for token in ([REST] * steps if pitch is None else [_onset(pitch)] + [HOLD] * (steps - 1))
    ]


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Bundle:
    return make_bundle()


@pytest.fixture
def left(tmp_path: Path) -> Path:
    path = tmp_path / "left.abc"
    path.write_text(LEFT)
    return path


def _midi(path: Path, *pitches: int, meter: str = "4/4", tempo: float = 120.0) -> Path:
    """A file of half notes."""
    notes = [Note(Fraction(2 * i), Fraction(2), pitch) for i, pitch in enumerate(pitches)]
    write_midi(notes, path, tempo, meter)
    return path


@pytest.fixture
def right(tmp_path: Path) -> Path:
    return _midi(tmp_path / "right.mid", 60, 61, 62, 63, 64, 65, 66, 67, tempo=150.0)


def test_the_last_segment_of_left_meets_the_first_of_right(
    left: Path, right: Path, bundle: Bundle
) -> None:
    fused = fuse_files(left, right, bundle)
    assert fused.bars == ((6, 7), (1, 2))
    assert fused.inputs[0].tolist() == _tokens((69, 8), (None, 8), (74, 16))
    assert fused.inputs[1].tolist() == _tokens((60, 8), (61, 8), (62, 8), (63, 8))
    assert (fused.tempo, fused.meter, fused.iterations) == (90.0, "4/4", 3)
    assert fused.style == bundle.draw_style(0)
    assert fused.lambda_ is None
    again = bundle.fuse(fused.inputs[0], fused.inputs[1], fused.style, 3)
    assert np.array_equal(fused.outputs, np.stack(again))


def test_bars_are_chosen_as_the_piece_counts_them(left: Path, right: Path, bundle: Bundle) -> None:
    fused = fuse_files(left, right, bundle, left_bars=(1, 2), right_bars=(3, 4))
    assert fused.bars == ((1, 2), (3, 4))
    assert fused.left_out == ((3, 8), (1, 2))
    scale = [(pitch, 4) for pitch in (60, 62, 64, 65, 67, 69, 71, 72)]
    assert fused.inputs[0].tolist() == _tokens(*scale)
    assert fused.inputs[1].tolist() == _tokens((64, 8), (65, 8), (66, 8), (67, 8))


def test_notes_of_both_halves_follow_one_another(left: Path, right: Path, bundle: Bundle) -> None:
    fused = fuse_files(left, right, bundle)
    assert fused.input_notes == [
        Note(Fraction(0), Fraction(2), 69),
        Note(Fraction(4), Fraction(4), 74),
        *(Note(Fraction(8 + 2 * i), Fraction(2), 60 + i) for i in range(4)),
    ]
    halves = [
        [(pitch - LOWEST + 2) for pitch in (note.pitch for note in fused.output_notes)],
        [int(token) for token in fused.outputs.reshape(-1) if token >= 2],
    ]
    assert halves[0] == halves[1]


def test_what_is_given_is_used(left: Path, right: Path, bundle: Bundle) -> None:
    fused = fuse_files(left, right, bundle, style=[0.2, 0.8], iterations=7, tempo=60.0)
    assert (fused.style, fused.iterations, fused.tempo) == ((0.2, 0.8), 7, 60.0)
    outputs = bundle.fuse(fused.inputs[0], fused.inputs[1], [0.2, 0.8], 7)
    assert np.array_equal(fused.outputs, np.stack(outputs))


def test_the_weight_is_the_bundles_unless_given(
    left: Path, right: Path, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle(conditional=True)
    unsaid, same, other = (
        fuse_files(left, right, bundle, lambda_=weight) for weight in (None, 0.1, 10.0)
    )
    assert (unsaid.lambda_, same.lambda_, other.lambda_) == (0.1, 0.1, 10.0)
    assert np.array_equal(unsaid.outputs, same.outputs)
    expected = bundle.fuse(other.inputs[0], other.inputs[1], other.style, 3, 10.0)
    assert np.array_equal(other.outputs, np.stack(expected))
    assert not np.array_equal(other.outputs, same.outputs)


def test_a_weight_that_the_bundle_cannot_take(
    left: Path, right: Path, make_bundle: MakeBundle
) -> None:
    with pytest.raises(BundleError, match=r"λ: this bundle was trained for 0\.001 to 10, not 20"):
        fuse_files(left, right, make_bundle(conditional=True), lambda_=20.0)
    with pytest.raises(BundleError, match=r"λ: this bundle has one λ"):
        fuse_files(left, right, make_bundle(), lambda_=0.1)


def test_how_far_is_said_in_edits_too(left: Path, right: Path, make_bundle: MakeBundle) -> None:
    bundle = make_bundle(conditional=True, heard=True)
    # This core is not trained, so that much changes by decoding alone.
    near, far = (fuse_files(left, right, bundle, edits=edits, iterations=1) for edits in (0, 64))
    assert sum(near.edits) < sum(far.edits)
    again = fuse_files(left, right, bundle, lambda_=near.lambda_, iterations=1)
    assert np.array_equal(again.outputs, near.outputs)
    with pytest.raises(BundleError, match="edits: λ is given, too"):
        fuse_files(left, right, bundle, edits=0, lambda_=0.1)


def test_the_lead_is_the_bundles_unless_given(
    left: Path, right: Path, make_bundle: MakeBundle
) -> None:
    bundle, plain = make_bundle(conditional=True, heard=True), make_bundle(conditional=True)
    leads = {lead: fuse_files(left, right, bundle, lead=lead) for lead in (None, 0.5, 0.0)}
    assert [fused.lead for fused in leads.values()] == [0.5, 0.5, 0.0]
    assert np.array_equal(leads[None].outputs, leads[0.5].outputs)
    assert not np.array_equal(leads[0.0].outputs, leads[0.5].outputs)
    assert fuse_files(left, right, plain).lead is None


def test_the_seed_draws_the_style(left: Path, right: Path, bundle: Bundle) -> None:
    styles = {fuse_files(left, right, bundle, seed=seed).style for seed in (1, 1, 2)}
    assert styles == {bundle.draw_style(1), bundle.draw_style(2)}


def test_the_seed_draws_the_notes_of_one_style(
    left: Path, right: Path, make_bundle: MakeBundle
) -> None:
    written, plain = make_bundle(heard=True), make_bundle()
    for bundle, different in ((written, 2), (plain, 1)):  # nothing is drawn without a writer
        fused = [fuse_files(left, right, bundle, style=(0.1, 0.9), seed=seed) for seed in (1, 1, 2)]
        assert [each.seed for each in fused] == [1, 1, 2]
        assert {each.style for each in fused} == {(0.1, 0.9)}
        assert len({each.outputs.tobytes() for each in fused}) == different


def test_a_bundle_without_style_draws_none(
    left: Path, right: Path, make_bundle: MakeBundle
) -> None:
    assert fuse_files(left, right, make_bundle(style_dim=0)).style == ()


@pytest.mark.parametrize(
    ("bars", "message"),
    [
        ((2, 3), r"bars 2-3: bar 2 of the segment can't be used: off grid; choose other bars"),
        ((0, 1), r"bars 0-1: bar 1 of the segment can't be used: short bar"),
        ((8, 9), r"bars 8-9: the piece has bars 0 to 8; choose among them"),
        ((-1, 0), r"the piece has bars 0 to 8"),
        ((3, 3), r"a segment of this bundle has 2 bars; give as many bars, such as 3-4"),
        ((5, 4), r"a segment of this bundle has 2 bars"),
    ],
)
def test_bars_that_cannot_be_taken(
    left: Path, right: Path, bundle: Bundle, bars: tuple[int, int], message: str
) -> None:
    with pytest.raises(MelodyError, match=message):
        fuse_files(left, right, bundle, left_bars=bars)


def test_what_the_piece_has_is_said(left: Path, right: Path, bundle: Bundle) -> None:
    with pytest.raises(MelodyError, match=r"its bars: 6 of 4/4, 2 short bar, 1 off grid"):
        fuse_files(left, right, bundle, left_bars=(2, 3))


def test_silent_bars_are_skipped_and_refused(tmp_path: Path, left: Path, bundle: Bundle) -> None:
    late = tmp_path / "late.mid"
    write_midi([Note(Fraction(12), Fraction(8), 60)], late, 120.0)
    assert fuse_files(left, late, bundle).bars[1] == (3, 4)
    with pytest.raises(MelodyError, match=r"late.mid: bars 1-2: there are no notes"):
        fuse_files(left, late, bundle, right_bars=(1, 2))


def test_a_meter_that_the_bundle_does_not_know(tmp_path: Path, left: Path, bundle: Bundle) -> None:
    waltz = _midi(tmp_path / "waltz.mid", *range(60, 72), meter="3/4")
    with pytest.raises(
        MelodyError, match=r"waltz.mid: no 2 neighbouring .* knows 4/4 and 2/2, .*8 of 3/4"
    ):
        fuse_files(left, waltz, bundle)
    with pytest.raises(MelodyError, match=r"bars 1-2: .* 3/4; the model takes .* of 4/4 or 2/2"):
        fuse_files(left, waltz, bundle, right_bars=(1, 2))


def test_a_bundle_of_that_meter_takes_it(tmp_path: Path, make_bundle: MakeBundle) -> None:
    waltz = _midi(tmp_path / "waltz.mid", *range(60, 72), meter="3/4")
    fused = fuse_files(waltz, waltz, make_bundle(MelodyFormat(meters=("3/4",))))
    assert fused.bars == ((7, 8), (1, 2))
    assert fused.meter == "3/4"
    assert {note.onset for note in fused.input_notes} == {Fraction(2 * i) for i in range(6)}


def test_pitches_out_of_range(tmp_path: Path, left: Path, bundle: Bundle) -> None:
    low = _midi(tmp_path / "low.mid", 30, 31, 32, 33)
    with pytest.raises(MelodyError, match=r"MIDI pitches 36 to 96"):
        fuse_files(left, low, bundle)
    with pytest.raises(MelodyError, match=r"transpose it"):
        fuse_files(left, low, bundle, right_bars=(1, 2))


def test_the_tempo_is_that_where_the_left_segment_is(
    tmp_path: Path, right: Path, bundle: Bundle
) -> None:
    path = tmp_path / "slowing.abc"
    bars = "CDEF|GABc|"
    path.write_text(
        f"X:1\nL:1/4\nM:4/4\nQ:1/4=100\nK:C\n{bars}{bars}[Q:1/4=60]{bars}[Q:1/4=40]{bars}\n"
    )
    for chosen, tempo in ((None, 40.0), ((1, 2), 100.0), ((5, 6), 60.0), ((4, 5), 100.0)):
        assert fuse_files(path, right, bundle, left_bars=chosen).tempo == tempo
    late = tmp_path / "late.abc"
    late.write_text(f"X:1\nL:1/4\nM:4/4\nK:C\n{bars}[Q:1/4=60]{bars}\n")
    assert fuse_files(late, right, bundle, left_bars=(1, 2)).tempo == 120.0


@pytest.mark.parametrize("tempo", [0.0, -90.0, 9.0, 501.0, float("nan"), float("inf")])
def test_tempos_that_no_file_can_have(
    left: Path, right: Path, bundle: Bundle, tempo: float
) -> None:
    with pytest.raises(MelodyError, match=r"tempo: .* give a tempo of 10 to 500"):
        fuse_files(left, right, bundle, tempo=tempo)


def test_a_file_with_no_complete_bar(tmp_path: Path, left: Path, bundle: Bundle) -> None:
    short = tmp_path / "short.abc"
    short.write_text("X:1\nT:Short\nM:4/4\nL:1/4\nK:C\nC D |]\n")
    with pytest.raises(MelodyError, match=r"short.abc: can't read .* melody: no complete bar"):
        fuse_files(left, short, bundle)


@pytest.mark.slow
def test_deployment_needs_no_polars_ray_or_matplotlib(
    tmp_path: Path, right: Path, bundle: Bundle
) -> None:
    save_bundle(bundle, tmp_path / "bundle")
    program = """
import sys
for name in ("polars", "ray", "optuna", "matplotlib", "pyarrow", "evaluation", "study"):
    sys.modules[name] = None
from pathlib import Path
from cf_core.bundle import load_bundle
from cf_core.fuse import fuse_files
from cf_core.render import write_midi, write_wav
folder = Path(sys.argv[1])
fused = fuse_files(folder / "right.mid", folder / "right.mid", load_bundle(folder / "bundle"))
write_midi(fused.output_notes, folder / "out.mid", fused.tempo)
write_wav(fused.output_notes, folder / "out.wav", fused.tempo)
"""
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=True)
    fused = fuse_files(right, right, bundle)
    write_midi(fused.output_notes, tmp_path / "here.mid", fused.tempo)
    assert (tmp_path / "out.mid").read_bytes() == (tmp_path / "here.mid").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif("CF_DATA" not in os.environ, reason="needs the corpora in $CF_DATA")
@pytest.mark.parametrize(
    ("archive", "folder", "every"),
    [
        ("nottingham/nottingham-dataset.zip", "/MIDI/", 20),
        ("cre/cre-midi-volumes-1-3.zip", "", 15),
        ("openscore-lieder/openscore-lieder-vocal-midi.zip", "", 25),
    ],
)
def test_most_files_of_any_meter_can_be_taken(
    tmp_path: Path, archive: str, folder: str, every: int
) -> None:
    form = load_bundle().form
    with zipfile.ZipFile(Path(os.environ["CF_DATA"]) / archive) as songs:
        names = sorted(n for n in songs.namelist() if n.endswith(".mid") and folder in n)[::every]
        paths = [Path(songs.extract(name, tmp_path)) for name in names]
    taken = 0
    for path in paths:
        with suppress(MelodyError):
            taken += bool(Piece.read(path, None, form).list_segments())
    assert len(paths) > 45
    assert taken >= 0.95 * len(paths)


@pytest.mark.skipif("CF_DATA" not in os.environ, reason="needs the corpora in $CF_DATA")
def test_real_tunes_of_nottingham(tmp_path: Path, bundle: Bundle) -> None:
    archive = Path(os.environ["CF_DATA"]) / "nottingham" / "nottingham-dataset.zip"
    with zipfile.ZipFile(archive) as songs:
        names = [name for name in songs.namelist() if "/MIDI/reels" in name][:2]
        left, right = (Path(songs.extract(name, tmp_path)) for name in names)
    fused = fuse_files(left, right, bundle)
    for half, (first, last) in zip(fused.inputs, fused.bars, strict=True):
        assert last - first == 1
        assert (half >= 2).sum() >= 4
    # The same bars, asked for by number, are the same segments.
    same = fuse_files(left, right, bundle, left_bars=fused.bars[0], right_bars=fused.bars[1])
    assert np.array_equal(same.inputs, fused.inputs)
    assert np.array_equal(same.outputs, fused.outputs)


# ---- the whole tune ------------------------------------------------------------------------------


def test_the_whole_tune_is_left_the_fused_segments_and_right(
    left: Path, right: Path, bundle: Bundle
) -> None:
    fused = fuse_files(left, right, bundle, left_bars=(4, 5), right_bars=(1, 2))
    notes, meters, markers = fused.tune
    # A pickup of a quarter, three bars, four fused ones, and two of the right piece.
    start, end = Fraction(13), Fraction(29)
    assert markers == [(start, "fused"), (Fraction(21), "seam"), (end, "end of fused")]
    assert meters == [(Fraction(0), "1/4"), (Fraction(1), "4/4")]
    assert fused.bars_in_tune == (4, 7)  # as left's bars are numbered
    assert fused.left_out == ((6, 8), None)
    before = [note for note in notes if note.onset < start]
    assert [note.pitch for note in before[:5]] == [67, 60, 62, 64, 65]
    assert before[-1].onset + before[-1].duration <= start
    assert [note for note in notes if note.onset >= end] == [
        Note(end + 2 * i, Fraction(2), 64 + i) for i in range(4)
    ]
    middle = [note for note in notes if start <= note.onset < end]
    assert middle == [note._replace(onset=note.onset + start) for note in fused.output_notes]


def test_a_note_over_the_start_of_a_segment_ends_there(
    left: Path, right: Path, bundle: Bundle
) -> None:
    # The A of bar 5 is tied over the start of bar 6, where the segment strikes it again.
    before = fuse_files(left, right, bundle).around[0]
    assert before.notes[-1] == Note(Fraction(19), Fraction(2), 69)
    assert len(before.bars) == 6


def test_each_bar_keeps_its_meter(tmp_path: Path, make_bundle: MakeBundle) -> None:
    mixed = tmp_path / "mixed.abc"
    mixed.write_text("X:1\nM:4/4\nL:1/4\nK:C\nCDEF|GABc|[M:3/4]CDE|FGA|[M:4/4]CDEF|GABc|]\n")
    form = MelodyFormat(meters=("4/4", "3/4"))
    fused = fuse_files(mixed, mixed, make_bundle(form), left_bars=(3, 4), right_bars=(3, 4))
    assert fused.meter == "3/4"
    assert fused.tune.meters == [
        (Fraction(0), "4/4"),
        (Fraction(8), "3/4"),
        (Fraction(20), "4/4"),
    ]


def test_bars_begin_anew_after_one_that_no_signature_fits(
    tmp_path: Path, right: Path, bundle: Bundle
) -> None:
    # A pickup of a third of a quarter, which is 1/12 of a whole note.
    odd = tmp_path / "odd.abc"
    for meter, change in (("4/4", ""), ("none", "[M:4/4]")):
        odd.write_text(f"X:1\nM:{meter}\nL:1/12\nK:C\nG|{change}C3D3E3F3|G3A3B3c3|c3B3A3G3|\n")
        fused = fuse_files(odd, right, bundle)
        assert fused.tune.markers[0] == (Fraction(1, 3) + 4, "fused")
        assert fused.tune.meters == [(Fraction(0), "4/4"), (Fraction(1, 3), "4/4")]


def test_a_whole_tune_is_written_with_its_meters_and_markers(
    tmp_path: Path, left: Path, right: Path, bundle: Bundle
) -> None:
    fused = fuse_files(left, right, bundle)
    write_midi(fused.tune.notes, tmp_path / "a.mid", 120.0, fused.tune.meters, fused.tune.markers)
    midi = mido.MidiFile(str(tmp_path / "a.mid"))
    found, tick = [], 0
    for message in mido.merge_tracks(midi.tracks):
        tick += message.time
        if message.type == "marker":
            found.append((Fraction(tick, midi.ticks_per_beat), message.text))
    assert found == fused.tune.markers
    again = read_file(tmp_path / "a.mid")
    assert [note.pitch for note in again.notes] == [note.pitch for note in fused.tune.notes]
    assert again.bars[1].start == 1


# ---- where the seam is, intervals, chords --------------------------------------------------------


def test_the_two_nearest_segments_of_one_meter_are_taken(
    tmp_path: Path, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle(MelodyFormat(meters=("4/4", "3/4")))
    song, waltz = tmp_path / "song.abc", tmp_path / "waltz.abc"
    song.write_text("X:1\nM:4/4\nL:1/4\nK:C\nCDEF|GABc|[M:3/4]CDE|FGA|[M:4/4]cBAG|FEDC|]\n")
    waltz.write_text("X:1\nM:3/4\nL:1/4\nK:C\nCDE|FGA|]\n")
    fused = fuse_files(song, waltz, bundle)
    assert (fused.bars, fused.meter) == (((3, 4), (1, 2)), "3/4")
    many = " | ".join(["cBAG FEDC"] * 3)  # so many that the waltz is not near the end
    song.write_text(f"X:1\nM:4/4\nL:1/8\nK:C\n[M:3/4]C2D2E2|F2G2A2|[M:4/4]{many}|]\n")
    far = fuse_files(song, waltz, make_bundle(bundle.form, heard=True), seam="auto")
    assert (far.bars, far.meter) == (((1, 2), (1, 2)), "3/4")
    song.write_text("X:1\nM:4/4\nL:1/4\nK:C\nCDEF|GABc|]\n")
    with pytest.raises(MelodyError, match=r"taken in 4/4, .*waltz.abc in 3/4: a bundle fuses two"):
        fuse_files(song, waltz, bundle)


def test_the_interval_and_the_seam_that_fit_best(
    left: Path, right: Path, make_bundle: MakeBundle
) -> None:
    """Each pair of segments and each interval in turn, by the bundle's own rating."""
    bundle = make_bundle(conditional=True, heard=True)
    assert bundle.heard is not None
    quick = make_bundle(conditional=True)  # it takes the same inputs, and writes nothing
    chosen = fuse_files(left, right, bundle, seam="auto", transpose_right="auto")
    rated = {}
    for last, first, shift in product((4, 5, 6), (1, 2, 3), range(-5, 7)):
        one = fuse_files(
            left,
            right,
            quick,
            left_bars=(last, last + 1),
            right_bars=(first, first + 1),
            transpose_right=shift,
        )
        rated[one.bars, shift] = bundle.rate((one.inputs[0], one.inputs[1]))
        assert one.transposed == shift
    best = max(rated.values(), key=lambda fit: fit or 0.0)
    assert rated[chosen.bars, chosen.transposed] == pytest.approx(best, abs=1e-4)
    alone = fuse_files(left, right, bundle, transpose_right="auto")
    assert alone.bars == ((6, 7), (1, 2))
    assert chosen.fit == pytest.approx(bundle.rate((chosen.outputs[0], chosen.outputs[1])))


@pytest.mark.parametrize(
    ("wanted", "edits"),
    [
        ({"seam": "auto", "transpose_right": "auto", "lambda_": 0.003}, None),
        ({"lead": 0.2, "iterations": 2}, None),
        ({"edits": 30}, 30),
    ],
)
def test_a_fusion_drawn_again_is_that_of_its_seed(
    left: Path, right: Path, make_bundle: MakeBundle, wanted: dict[str, Any], edits: int | None
) -> None:
    bundle = make_bundle(conditional=True, heard=True)
    first, other = (fuse_files(left, right, bundle, seed=seed, **wanted) for seed in (0, 1))
    again = first.redraw(bundle, 1, edits=edits)
    assert not np.array_equal(first.outputs, other.outputs)
    for field in fields(Fused):
        ours, theirs = getattr(again, field.name), getattr(other, field.name)
        same = np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs
        assert same, field.name
    assert (first.lambda_ != other.lambda_) == (edits is not None)


def test_a_bundle_without_models_of_notes_cannot_choose(
    left: Path, right: Path, bundle: Bundle
) -> None:
    for wanted in ({"seam": "auto"}, {"transpose_right": "auto"}):
        with pytest.raises(BundleError, match="no models of notes"):
            fuse_files(left, right, bundle, **wanted)  # type: ignore[arg-type]
    assert fuse_files(left, right, bundle).fit is None


def test_the_right_piece_is_moved_as_a_whole(left: Path, right: Path, bundle: Bundle) -> None:
    plain, moved = (fuse_files(left, right, bundle, transpose_right=by) for by in (0, 7))
    onset = plain.inputs[1] >= 2
    assert (moved.inputs[1] == np.where(onset, plain.inputs[1] + 7, plain.inputs[1])).all()
    assert [n.pitch for n in moved.around[1].notes] == [n.pitch + 7 for n in plain.around[1].notes]
    assert moved.around[0] == plain.around[0]
    with pytest.raises(MelodyError, match="-30 semitones would move its notes out"):
        fuse_files(left, right, bundle, transpose_right=-30)


@pytest.mark.parametrize(
    ("within", "beyond", "by", "found"), [(96, 15, -60, 3), (36, 120, 60, 120), (96, 4, -10, 6)]
)
def test_notes_moved_out_of_midi_are_brought_back_by_octaves(
    tmp_path: Path, left: Path, within: int, beyond: int, by: int, found: int
) -> None:
    right = _midi(tmp_path / "right.mid", *[within] * 4, beyond, beyond)
    fused = fuse_files(left, right, load_bundle(), transpose_right=by)
    notes, meters, markers = fused.tune
    write_midi(notes, tmp_path / "fused.mid", fused.tempo, meters, markers)
    pitches = [note.pitch for note in read_file(tmp_path / "fused.mid").notes]
    assert pitches[-2:] == [found, found]


def test_chords_are_thinned_out_or_refused(tmp_path: Path, left: Path, bundle: Bundle) -> None:
    chords = tmp_path / "chords.abc"
    chords.write_text("X:1\nM:4/4\nL:1/4\nK:C\n[CEG]D[Ec]F|[G,G]ABc|]\n")
    with pytest.raises(MelodyError, match="set chords to top"):
        fuse_files(left, chords, bundle)
    top = fuse_files(left, chords, bundle, chords="top")
    assert [n.pitch for n in top.input_notes[-8:]] == [67, 62, 72, 65, 67, 69, 71, 72]
    bottom = fuse_files(left, chords, bundle, chords="bottom")
    assert [n.pitch for n in bottom.input_notes[-8:]] == [60, 62, 64, 65, 55, 69, 71, 72]


def test_a_line_of_notes_that_overlap() -> None:
    def note(onset: int, duration: int, pitch: int) -> Note:
        return Note(Fraction(onset, 4), Fraction(duration, 4), pitch)

    held_below = [note(0, 16, 48), note(0, 4, 60), note(4, 4, 62), note(8, 8, 64)]
    assert thin_out(held_below, "top") == (note(0, 4, 60), note(4, 4, 62), note(8, 8, 64))
    assert thin_out(held_below, "bottom") == (note(0, 16, 48),)
    held_above = [note(0, 8, 72), note(2, 2, 60), note(8, 4, 71)]
    assert thin_out(held_above, "top") == (note(0, 8, 72), note(8, 4, 71))
    late_release = [note(0, 5, 64), note(4, 4, 62)]
    assert thin_out(late_release, "top") == (note(0, 4, 64), note(4, 4, 62))
