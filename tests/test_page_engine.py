"""The page's scripts, run by node, against what they stand for in Python.

`CF_PAGE_PAIRS` says how many pairs of the ready-made bundle are fused, by default 70.
This file is long, because all its tests ask one process of node, which has the model loaded.
"""

import base64
import copy
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import mido
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cf_core.vae
from cf_core.bundle import Bundle, load_bundle
from cf_core.distance import edit_distance, z_distance
from cf_core.export import export_bundle
from cf_core.melody import FIRST_PITCH, Melody, MelodyFormat, Note, to_notes
from cf_core.piece import Piece, thin_out
from cf_core.readers import read_melodies
from cf_core.readers.midi import read as read_midi
from cf_core.render import write_midi
from cf_core.seeding import make_random
from cf_core.vae import MelodyVAE
from cf_core.writer import Writer
from study.page.model import pack_model
from tests.conftest import MakeBundle
from tests.melodies import meter, midi, sound

PAGE = Path(__file__).parent.parent / "study" / "page"
PAIRS = int(os.environ.get("CF_PAGE_PAIRS", "70"))
COUNTS, LEADS = (1, 2, 4, 16), (0.0, 0.2, 0.5, 0.9, 1.0)
TIE = 1e-4
"""Choices whose logits, fits or probabilities are no farther apart are as good as each other."""
VECTORS = 1e-4
"""How far latents may be from those of an export's test vectors: see docs/exporting.md."""

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


class Node:
    """The page's scripts, in one process that answers requests."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def try_to(self, ask: str, **request: Any) -> dict[str, Any]:
        """The `value` of an answer, or the `error` and whether it was `meant`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"ask": ask, **request}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def __call__(self, ask: str, **request: Any) -> Any:
        answer = self.try_to(ask, **request)
        assert "value" in answer, answer
        return answer["value"]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    command = ["node", str(Path(__file__).with_name("page_engine.cjs")), str(PAGE)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield Node(process)
        assert process.stdin is not None
        process.stdin.close()


def round_weights(bundle: Bundle) -> Bundle:
    """The same bundle with weights of half precision, as the page has them."""
    rounded = copy.deepcopy(bundle)
    networks = [rounded.core, rounded.generator]
    for network in networks if rounded.heard is None else [*networks, rounded.heard.writer]:
        for weight in network.state_dict().values():
            weight.copy_(weight.half())
    return rounded


@pytest.fixture(scope="module")
def ready(node: Node) -> Bundle:
    """The ready-made bundle, which `node` knows as "ready"."""
    bundle = load_bundle()
    node("load", name="ready", packed=pack_model(bundle))
    return round_weights(bundle)


@dataclass(frozen=True)
class Case:
    """What is asked of `fuse`."""

    left: np.ndarray
    right: np.ndarray
    style: list[float]
    iterations: int
    lambda_: float | None
    lead: float | None

    def fuse(self, bundle: Bundle) -> np.ndarray:
        given = (self.left, self.right, self.style, self.iterations, self.lambda_, self.lead)
        return np.stack(bundle.fuse(*given))

    def ask(self, node: Node, name: str) -> dict[str, Any]:
        return dict(
            node(
                "fuse",
                name=name,
                left=self.left.tolist(),
                right=self.right.tolist(),
                style=self.style,
                iterations=self.iterations,
                **({} if self.lambda_ is None else {"lambda": self.lambda_}),
                **({} if self.lead is None else {"lead": self.lead}),
            )
        )


def draw_cases(bundle: Bundle, count: int, seed: int = 0) -> Iterator[Case]:
    """Pairs in each meter in turn, decoded from the prior, with settings of all sizes.

    Of meters, counts and leads, any two values meet: their numbers have no common divisor.
    """
    draws, form = np.random.default_rng(seed), bundle.form
    z = torch.randn(count, 2, bundle.core.settings.latent_dim, generator=make_random(seed, "page"))
    for number in range(count):
        kinds = np.full(2, number % len(form.kinds))
        left, right = bundle.core.decode_tokens(z[number], kinds)
        low, high = np.log(bundle.lambda_range or (1, 1))
        yield Case(
            left,
            right,
            draws.random(bundle.generator.style_dim).tolist(),
            COUNTS[number % len(COUNTS)],
            # At the ends of the range, the logarithm's rounding must not lead out of it.
            float(np.exp(draws.uniform(low, high))) if bundle.lambda_range else None,
            None if bundle.heard is None else LEADS[number % len(LEADS)],
        )


@dataclass
class Margins:
    """How near to each other the choices of one fusion were, the nearest two of each sort."""

    logits: float = np.inf
    chances: float = np.inf
    rated: dict[bytes, float] = field(default_factory=dict)
    """The fit of each pair of halves."""

    def nearest(self) -> float:
        fits = np.diff(sorted(self.rated.values()))
        return min(self.logits, self.chances, float(fits.min(initial=np.inf)))


def watch(case: Case, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Margins:
    """Fuse again, and note how near the choices were."""
    margins, decode, rate, search = (
        Margins(),
        cf_core.vae.decode_likeliest,
        Writer.rate,
        torch.searchsorted,
    )

    def decode_watched(logits: torch.Tensor) -> Any:
        best = logits.topk(2, -1).values
        margins.logits = min(margins.logits, float((best[..., 0] - best[..., 1]).min()))
        return decode(logits)

    def rate_watched(self: Writer, halves: Any) -> Any:
        rated = rate(self, halves)
        keys = torch.cat(halves, 1).numpy()
        margins.rated |= {key.tobytes(): float(fit) for key, fit in zip(keys, rated, strict=True)}
        return rated

    def search_watched(up_to: torch.Tensor, bound: torch.Tensor, **how: Any) -> Any:
        margins.chances = min(margins.chances, float((up_to - bound).abs().min()))
        return search(up_to, bound, **how)

    with monkeypatch.context() as patched:
        patched.setattr(cf_core.vae, "decode_likeliest", decode_watched)
        patched.setattr(Writer, "rate", rate_watched)
        patched.setattr(torch, "searchsorted", search_watched)
        case.fuse(bundle)
    return margins


@pytest.mark.slow
def test_the_ready_made_bundle_fuses_as_in_python_but_for_ties(
    node: Node, ready: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    different = []
    for number, case in enumerate(draw_cases(ready, PAIRS)):
        found, expected = case.ask(node, "ready"), case.fuse(ready)
        if [found["left"], found["right"]] != expected.tolist():
            different.append(number)
            nearest = watch(case, ready, monkeypatch).nearest()
            assert nearest < TIE, f"pair {number} differs, and no choice was near ({nearest})"
        else:
            inputs = np.stack((case.left, case.right))
            assert found["edits"] == edit_distance(inputs, expected).tolist()
    print(f"{len(different)} of {PAIRS} pairs differ: {different}")  # noqa: T201
    assert len(different) <= PAIRS / 100


FORMS = {
    "one meter": MelodyFormat(),
    "odd": MelodyFormat(("2/4",), steps_per_beat=3, bars_per_segment=1, lowest=60, highest=66),
    "several": MelodyFormat(("3/8", "4/4", "3/4"), 12, (4, 3), lowest=50, highest=80),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_every_kind_of_bundle_fuses_as_in_python(
    node: Node,
    make_bundle: MakeBundle,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    *,
    conditional: bool,
    heard: bool,
    gated: bool,
) -> None:
    whole = make_bundle(FORMS[form], 3, gated=gated, conditional=conditional, heard=heard)
    node("load", name="small", packed=pack_model(whole))
    bundle = round_weights(whole)
    changed = False
    for case in draw_cases(bundle, 9):
        found = case.ask(node, "small")
        expected, distance = fuse_and_measure(case, bundle, monkeypatch)
        assert [found["left"], found["right"]] == expected.tolist()
        changed |= sum(found["edits"]) > 0
        assert found["zDistance"] == pytest.approx(distance, rel=1e-3, abs=1e-6)
    assert changed


@pytest.mark.parametrize("heard", [False, True])
def test_each_map_of_a_model_fuses_as_its_bundle(
    node: Node, make_bundle: MakeBundle, *, heard: bool
) -> None:
    """One λ, and any λ with another number of styles, on one core; in turn, as one may switch."""
    form = FORMS["several"]
    wholes = [
        make_bundle(form, 3, heard=heard),
        replace(make_bundle(form, 2, conditional=True, heard=heard), iterations=2),
    ]
    if wholes[0].heard is not None:
        wholes[0] = replace(wholes[0], heard=replace(wholes[0].heard, price=0.5))
    node("load", name="both", packed=pack_model(*wholes))
    bundles = [round_weights(whole) for whole in wholes]
    cases = [list(draw_cases(bundle, 9)) for bundle in bundles]
    for place in (1, 0, 1):
        bundle = bundles[place]
        told = node("choose", name="both", place=place)
        assert (told["styleDim"], told["lambda"], told["iterations"]) == (
            bundle.generator.style_dim,
            bundle.lambda_,
            bundle.iterations,
        )
        assert told["lambdaRange"] == (list(bundle.lambda_range) if bundle.lambda_range else None)
        for case in cases[place]:
            found = case.ask(node, "both")
            assert [found["left"], found["right"]] == case.fuse(bundle).tolist()


@torch.no_grad()
def fuse_and_measure(
    case: Case, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray, float]:
    """What `Bundle.fuse` gives, and the distance of the latents that it decodes, by equation 7."""
    decode, decoded = MelodyVAE.decode_tokens, []

    def decode_watched(self: MelodyVAE, z: torch.Tensor, kinds: Any) -> np.ndarray:
        decoded.append(z)
        return decode(self, z, kinds)

    with monkeypatch.context() as patched:
        patched.setattr(MelodyVAE, "decode_tokens", decode_watched)
        outputs = case.fuse(bundle)
    left, right = bundle.core.encode_mean(np.stack((case.left, case.right))).split(1)
    distance = z_distance((left, right), (decoded[-2], decoded[-1]), bundle.core.sigma_bar)
    return outputs, float(distance)


@pytest.mark.parametrize(("form", "conditional"), [("one meter", False), ("several", True)])
def test_the_vectors_of_an_export_come_of_the_engine(
    node: Node,
    make_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    *,
    conditional: bool,
) -> None:
    bundle = round_weights(make_bundle(FORMS[form], 3, conditional=conditional))
    node("load", name="exported", packed=pack_model(bundle))
    monkeypatch.setattr("cf_core.export._serialise", lambda _: b"")  # the graphs take long
    export_bundle(bundle, tmp_path / "onnx")
    vectors = json.loads((tmp_path / "onnx" / "vectors.json").read_text())
    given, sides = vectors["inputs"], ("left", "right")
    assert sorted(set(given["kind"])) == list(range(len(bundle.form.kinds)))
    for row, (kind, style) in enumerate(zip(given["kind"], given["style"], strict=True)):
        pair = [vectors["latents"][side][row] for side in sides]
        for side, latent in zip(sides, pair, strict=True):
            found = node("encode", name="exported", tokens=given[side][row])
            np.testing.assert_allclose(found, latent, atol=VECTORS)
            ended = vectors["applied"][side][row]
            tokens = node("decode", name="exported", latent=ended, kind=kind)
            assert tokens == vectors["outputs"][side][row]
        how = {"style": style, "lambda": given["lambda"][row] if conditional else None}
        moved = node("apply", name="exported", pair=pair, kind=kind, **how)
        once = [vectors["applied_once"][side][row] for side in sides]
        np.testing.assert_allclose(moved, once, atol=VECTORS)
        assert np.abs(np.subtract(once, pair)).max() > 100 * VECTORS


def test_what_a_style_changes_is_not_forgotten(node: Node, ready: Bundle) -> None:
    """What is remembered of one fusion must not answer for another."""
    (case,) = draw_cases(ready, 1)
    styles = [[0.0] * 4, [1.0] * 4, [0.0, 1.0, 0.0, 1.0]]
    cases = [
        Case(case.left, case.right, style, 4, lambda_, lead)
        for style in styles
        for lambda_ in (0.001, 1.0)
        for lead in (0.5, 0.6)
    ]
    found = [each.ask(node, "ready") for each in [*cases, *reversed(cases)]]
    halves = [(each["left"], each["right"]) for each in found]
    assert halves == halves[::-1]
    expected = [tuple(case.fuse(ready).tolist()) for case in cases]
    assert halves[: len(cases)] == [(left, right) for left, right in expected]
    assert len(set(map(str, halves))) > 2


def test_a_half_that_stays_keeps_its_notes_although_the_core_cannot_decode_them(
    node: Node, ready: Bundle
) -> None:
    form = ready.form
    drawn = np.random.default_rng(0).integers(FIRST_PITCH, form.vocabulary, (2, form.steps))
    left, right = form.put_marks(drawn, np.zeros(2, dtype=int))
    style = [0.5] * ready.generator.style_dim
    for place, (side, half) in enumerate((("left", left), ("right", right))):
        found = Case(left, right, style, 4, 0.001, float(place)).ask(node, "ready")
        assert found[side] == half.tolist()
        assert found["edits"][place] == 0


def test_the_defaults_are_those_of_the_bundle(node: Node, ready: Bundle) -> None:
    assert node("load", name="again", packed=pack_model(load_bundle())) == {
        "meters": list(ready.form.meters),
        "styleDim": 4,
        "lambda": 0.1,
        "lambdaRange": [0.001, 10.0],
        "iterations": 4,
        "lead": 0.5,
    }
    (case,) = draw_cases(ready, 1)
    plain = Case(case.left, case.right, case.style, ready.iterations, None, None)
    found = plain.ask(node, "ready")
    assert [found["left"], found["right"]] == plain.fuse(ready).tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"style": [0.1] * 3}, "style: give 4 numbers"),
        ({"style": [0.1, 0.2, 0.3, 1.1]}, "style: give 4 numbers"),
        ({"lambda": 11}, "λ: give one of 0.001 to 10"),
        ({"lambda": "none"}, "λ: give one of 0.001 to 10"),
        ({"iterations": 0}, "iterations: give 1 or more"),
        ({"lead": -0.1}, "lead: give a number in 0…1"),
        ({"left": [0] * 49}, "a segment is not one of this model's"),
        ({"left": [0] * 48 + [-1]}, "the left segment is in 4/4, the right one in 2/4"),
        ({"right": [99] * 24 + [-2] * 25}, "a segment is not one of this model's"),
        ({"right": [0] * 24 + [-2] * 24}, "a segment is not one of this model's"),
    ],
)
def test_what_a_model_cannot_take_is_refused(
    node: Node, ready: Bundle, change: dict[str, Any], says: str
) -> None:
    assert ready.generator.style_dim == 4
    half = [0] * 24 + [-2] * 25
    request = {"left": half, "right": half, "style": [0.5] * 4} | change
    answer = node.try_to("fuse", name="ready", **request)
    assert answer["meant"]
    assert says in answer["error"]


def test_a_damaged_model_is_refused(node: Node, make_bundle: MakeBundle) -> None:
    packed = pack_model(make_bundle())
    for damaged in ("", "?", packed["weights"][:400], base64.b64encode(b"no zlib").decode()):
        answer = node.try_to("load", name="damaged", packed=packed | {"weights": damaged})
        assert answer == {
            "error": "the model of this page is damaged: get the page again",
            "meant": True,
        }


def test_weights_that_half_precision_lacks_are_refused(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    bundle.core.sigma_bar[0] = 1e6
    with pytest.raises(ValueError, match="too large for half precision"):
        pack_model(bundle)


def test_the_ready_made_bundle_takes_less_than_7_mb() -> None:
    assert len(json.dumps(pack_model(load_bundle()))) < 7e6


# ---- notes and MIDI ----------------------------------------------------------------------------


def as_numbers(notes: Any) -> list[tuple[float, float, int]]:
    """Notes of either language, times rounded to what both can tell apart."""
    rows = [(n["onset"], n["duration"], n["pitch"]) if isinstance(n, dict) else n for n in notes]
    return [(round(float(on), 9), round(float(long), 9), pitch) for on, long, pitch in rows]


def test_notes_are_those_of_the_tokens(node: Node, ready: Bundle) -> None:
    for number, case in enumerate(draw_cases(ready, 21)):
        answer = node("notes", name="ready", tokens=case.left.tolist())
        assert as_numbers(answer["notes"]) == as_numbers(to_notes(case.left, ready.form))
        assert answer["kind"] == number % 7
    # A hold without a note is silent.
    tokens = np.array([1, 1, 0, 1, 30, 1] + [0] * 18 + [-2] * 25, np.int16)
    notes = node("notes", name="ready", tokens=tokens.tolist())["notes"]
    assert as_numbers(notes) == as_numbers(to_notes(tokens, ready.form))
    assert len(notes) == 1


TICKS = st.integers(6, 2000)  # shorter ones would count as notes of a chord
TUNES = st.lists(st.tuples(st.integers(0, 500), TICKS, st.integers(0, 127)), min_size=1)


@settings(max_examples=100)
@given(TUNES, st.integers(10, 500), st.sampled_from(["4/4", "3/4", "6/8", "12/8", "2/2", "7/16"]))
def test_what_is_written_is_read_again(
    node: Node, gaps: list[tuple[int, int, int]], tempo: int, signature: str
) -> None:
    at, notes = Fraction(0), []
    for gap, length, pitch in gaps:
        notes.append(Note(at + Fraction(gap, 480), Fraction(length, 480), pitch))
        at = notes[-1].onset + notes[-1].duration
    asked = [{"onset": float(o), "duration": float(d), "pitch": p} for o, d, p in notes]
    data = node("write", notes=asked, how={"tempo": tempo, "meter": signature})
    found = node("read", bytes=data)
    assert as_numbers(found["notes"]) == as_numbers(notes)
    assert found["meters"] == [{"onset": 0, "meter": signature}]
    assert found["tempo"] == pytest.approx(tempo, rel=1e-5)
    song = read_midi("tune", base64.b64decode(data), None)
    assert as_numbers(song.notes) == as_numbers(notes)
    assert song.tempo == pytest.approx(tempo, rel=1e-5)


def test_a_tempo_that_no_file_has_is_refused(node: Node) -> None:
    for tempo in (0, 9, 501, "fast", None):
        answer = node.try_to("write", notes=[], how={"tempo": tempo})
        assert answer["meant"]
        assert "10 to 500" in answer["error"]


def read_alike(node: Node, name: str, data: bytes) -> bool:
    """Whether a file is one that can be read; then it must be read as Python does."""
    (song,) = read_melodies(name, data)
    if not isinstance(song, Melody):
        return False
    found = node("read", bytes=base64.b64encode(data).decode())
    assert as_numbers(found["notes"]) == as_numbers(thin_out(song.notes, "top")), name
    assert found["tempo"] == pytest.approx(song.tempo)
    return True


def test_files_of_all_sorts_are_read_as_in_python(node: Node, tmp_path: Path) -> None:
    tune = [Note(Fraction(n, 3), Fraction(1, 3), 60 + n % 7) for n in range(40)]
    write_midi(tune, tmp_path / "tune.mid", 93.0, [(Fraction(0), "3/4"), (Fraction(6), "6/8")])
    line = [*sound(0, 480, 60), *sound(480, 960, 62), *sound(960, 1440, 64)]
    files = [
        (tmp_path / "tune.mid").read_bytes(),
        midi([*line, *sound(480, 960, 55)]),  # a chord
        midi([*sound(0, 480, 60), *sound(480, 960, 60), *sound(960, 1440, 60)], shuffled=True),
        midi([*sound(0, 500, 60), *sound(480, 970, 62), *sound(960, 1440, 64)]),  # let go late
        midi(
            [*sound(0, 1440, 60), *sound(480, 960, 72), *sound(1440, 1920, 60)]
        ),  # a higher note begins within
        midi([meter(0, 3, 4)], [meter(0, 6, 8), *line]),
        midi([*sound(0, 480, 36, channel=9)], line),
        midi([*line, *sound(7680, 8640, 72)[:1], *sound(8640, 9600, 71)]),  # never let go
        midi([*sound(0, 480, 36, channel=3), *line], quarter=96),
        midi([(3, mido.MetaMessage("set_tempo", tempo=400_000)), *line]),  # nearly at the start
        midi([meter(0, 3, 4)], line).replace(b"\0\1\0\2", b"\0\1\0\1"),  # counts too few tracks
    ]
    for number, data in enumerate(files):
        assert read_alike(node, f"{number}.mid", data)
    found = node("read", bytes=base64.b64encode(files[0]).decode())
    assert [each["meter"] for each in found["meters"]] == ["3/4", "6/8"]
    first = [meter(0, 3, 4), meter(1440, 6, 8)]
    for own, expected in ((meter(0, 3, 4), ["3/4", "6/8"]), (meter(0, 4, 4), ["4/4"])):
        found = node("read", bytes=base64.b64encode(midi(first, [own, *line])).decode())
        assert [each["meter"] for each in found["meters"]] == expected


@pytest.mark.skipif("CF_DATA" not in os.environ, reason="needs the corpora in $CF_DATA")
def test_real_files_are_read_as_in_python(node: Node) -> None:
    data = Path(os.environ["CF_DATA"])
    read = 0
    with ZipFile(data / "cre" / "cre-midi-volumes-1-3.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith(".mid"))
        for name in names[:: len(names) // 60]:
            read += read_alike(node, name, archive.read(name))
    assert read > 50
    for path in (data / "faults").glob("*.mid"):
        read_alike(node, path.name, path.read_bytes())


def ask_segment(node: Node, data: bytes, which: str) -> dict[str, Any]:
    request = {"name": "ready", "bytes": base64.b64encode(data).decode(), "which": which}
    return node.try_to("segment", **request)


def test_segments_are_those_that_python_takes(node: Node, ready: Bundle, tmp_path: Path) -> None:
    for number, case in enumerate(draw_cases(ready, 28)):
        signature = ready.form.kinds[number % 7]
        left, right = (to_notes(half, ready.form) for half in (case.left, case.right))
        length = Fraction(4 * int(signature.split("/")[0]), int(signature.split("/")[1]))
        moved = [note._replace(onset=note.onset + 2 * length) for note in right]
        path = tmp_path / f"{number}.mid"
        write_midi([*left, *moved], path, 120.0, signature)
        segments = Piece.read(path, None, ready.form).list_segments()
        data = path.read_bytes()
        assert ask_segment(node, data, "first")["value"] == segments[0].tokens.tolist()
        assert ask_segment(node, data, "last")["value"] == segments[-1].tokens.tolist()


def test_notes_off_the_grid_move_to_the_nearest_step(node: Node, ready: Bundle) -> None:
    assert ready.form.bars[0][:6] == (0, 3, 4, 6, 8, 9)  # twelfths of a quarter note
    notes = (15, 470, 60), (490, 790, 62), (800, 1919, 64)
    played = midi([meter(0, 2, 4), *(event for note in notes for event in sound(*note))])
    answer = ask_segment(node, played, "first")
    c, d, e = (2 + pitch - 36 for pitch in (60, 62, 64))
    held = [c, 1, 1, 1, 1, 1, d, 1, 1, 1, e, 1] + [1] * 12
    assert answer["value"] == held + [-2] * 25


def test_a_note_over_the_start_is_struck_again_and_other_meters_are_passed(
    node: Node, ready: Bundle
) -> None:
    assert "5/4" not in ready.form.meters
    song = midi(
        [meter(0, 5, 4), *sound(0, 480 * 6, 60), meter(480 * 5, 2, 4), *sound(480 * 6, 480 * 9, 62)]
    )
    c, d = 2 + 60 - 36, 2 + 62 - 36
    first = [c] + [1] * 5 + [d] + [1] * 17 + [-2] * 25
    assert ask_segment(node, song, "first")["value"] == first
    only = midi([meter(0, 5, 4), *sound(0, 480 * 20, 60)])
    answer = ask_segment(node, only, "first")
    assert answer["meant"]
    assert "4/4" in answer["error"]
    low = midi([*sound(0, 480 * 16, 20)])
    assert "MIDI pitches 36 to 96" in ask_segment(node, low, "last")["error"]


def mutate(data: bytes, draws: np.random.Generator) -> bytes:
    """Change, cut, double or insert some bytes."""
    for _ in range(draws.integers(1, 7)):
        at, many = int(draws.integers(len(data) + 1)), int(draws.integers(1, 10))
        noise = draws.bytes(many)
        inserted = (noise[:1], b"", data[at : at + 4 * many] * 2, noise, b"\xff\xff\xff\x7f")
        data = data[:at] + inserted[draws.integers(5)] + data[at + many % 3 :]
    return data


def test_no_bytes_do_more_than_fail(node: Node, ready: Bundle) -> None:
    assert ready.form.meters
    draws, read = np.random.default_rng(0), 0
    line = [event for n in range(12) for event in sound(240 * n, 240 * n + 200, 60 + n)]
    whole = midi([meter(0, 4, 4), *line], [meter(480, 3, 4), *sound(0, 960, 40)])
    alone = midi([meter(0, 4, 4), *line, meter(1920, 3, 4)])
    for number in range(1500):
        if number % 3:  # only the content of a track: as it is cut off nowhere, it is read on
            body = mutate(alone[22:], draws)
            data = alone[:18] + len(body).to_bytes(4) + body
        else:
            data = mutate(whole, draws)
        for which in ("first", "last"):
            answer = ask_segment(node, data, which)
            read += "value" in answer
            assert answer.get("meant", True), (answer, data)
    assert 300 < read < 2000  # many survive, and many do not
