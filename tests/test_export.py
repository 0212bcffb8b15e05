"""Exported graphs, run by ONNX Runtime, against the networks that they were made of."""

import itertools
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession, SessionOptions

from cf_core import export as exports
from cf_core.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from cf_core.errors import BundleError, MelodyError
from cf_core.export import export_bundle
from cf_core.grid import make_segment, to_grid
from cf_core.heard import FREE, NEAR
from cf_core.ingest import read_builtin_tunes
from cf_core.melody import HOLD, REST, Melody, MelodyFormat, Note, bar_length, to_notes
from cf_core.readers import read_melodies
from cf_core.seeding import make_random
from tests.conftest import MakeBundle, make_once

pytestmark = pytest.mark.slow

BATCHES = [256] * 3 + [17] * 12 + [2] * 10 + [1] * 8
"""Sizes of the batches in which 1,000 pairs are fused."""
PAIRS = sum(BATCHES)
ROUNDING = float(np.finfo(np.float32).eps)
DOCS = Path(__file__).parent.parent / "docs" / "exporting.md"


class Graphs:
    """The graphs of an exported folder."""

    def __init__(self, folder: Path) -> None:
        options = SessionOptions()
        options.intra_op_num_threads = 1  # others would spin, and take the core of other tests
        self.sessions = {
            path.stem: InferenceSession(path, options) for path in folder.glob("*.onnx")
        }

    def run(self, name: str, **inputs: np.ndarray) -> list[Any]:
        named = {name.rstrip("_"): values for name, values in inputs.items()}
        return list(self.sessions[name].run(None, named))


@pytest.fixture(scope="module")
def ready() -> Bundle:
    return load_bundle()


@pytest.fixture(scope="module")
def folder(ready: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_once(tmp_path_factory, "onnx", lambda path: export_bundle(ready, path))


@pytest.fixture(scope="module")
def graphs(folder: Path) -> Graphs:
    return Graphs(folder)


@pytest.fixture(scope="module")
def card(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return found


def _assert_tied(ours: np.ndarray, theirs: np.ndarray, logits: np.ndarray) -> None:
    """Rows that differ are equally likely, as far as the last digits of 32-bit numbers tell."""
    for mine, other, own in zip(ours, theirs, logits, strict=True):
        if not np.array_equal(mine, other):
            steps = np.flatnonzero(mine >= REST)
            assert np.array_equal(mine < 0, other < 0), "they have other marks"
            assert not _hangs(other[steps])
            taken, instead = (own[steps, tokens[steps]] for tokens in (mine, other))
            assert taken.sum() - instead.sum() <= ROUNDING * np.abs(taken).sum()


def _hangs(tokens: np.ndarray) -> bool:
    before = np.concatenate(([REST], tokens[:-1]))
    return bool(((tokens == HOLD) & (before == REST)).any())


def _compare(bundle: Bundle, graphs: Graphs, halves: tuple[np.ndarray, np.ndarray]) -> None:
    """Fuse pairs in batches of several sizes by the graphs, and all at once by the networks."""
    kinds, random = bundle.form.find_kinds(halves[0]), make_random(0, "pairs of tests")
    count = len(kinds)
    style = torch.rand(count, bundle.generator.style_dim, generator=random)
    lambda_ = 10 ** (4 * torch.rand(count, generator=random) - 3)
    with torch.no_grad():
        latents = bundle.core.encode_mean(halves[0]), bundle.core.encode_mean(halves[1])
        own = torch.from_numpy(kinds)
        fused = bundle.generator.iterate(latents, style, [bundle.iterations], lambda_, own)
        expected = fused[bundle.iterations]
        logits = [bundle.core.decode(half, own).numpy() for half in expected]
    for rows, own_halves in _batches(halves):
        kind = kinds[rows]
        pair = [graphs.run("encode", tokens=h.astype(np.int64), kind=kind)[0] for h in own_halves]
        for z, mine in zip(pair, latents, strict=True):
            np.testing.assert_allclose(z, mine[rows], atol=1e-5)
        how = {"style": style[rows].numpy(), "lambda_": lambda_[rows].numpy(), "kind": kind}
        for _ in range(bundle.iterations):
            pair = graphs.run("apply", left=pair[0], right=pair[1], **how)
        for z, mine, own_logits in zip(pair, expected, logits, strict=True):
            tokens = graphs.run("decode", latents=z, kind=kind)[0]
            _assert_tied(bundle.core.decode_tokens(mine[rows], kind), tokens, own_logits[rows])


def test_tokens_of_random_pairs_in_all_meters_are_ours(ready: Bundle, graphs: Graphs) -> None:
    kinds = np.arange(PAIRS) % len(ready.form.kinds)
    z = torch.randn(2, PAIRS, ready.core.settings.latent_dim, generator=make_random(0, "drawn"))
    _compare(
        ready,
        graphs,
        (ready.core.decode_tokens(z[0], kinds), ready.core.decode_tokens(z[1], kinds)),
    )


def _read_tunes() -> Iterator[tuple[str, bytes]]:
    """Tunes of Nottingham where it is there, or those that are built in."""
    if "CF_DATA" not in os.environ:
        yield from read_builtin_tunes()
        return
    with zipfile.ZipFile(
        Path(os.environ["CF_DATA"], "nottingham", "nottingham-dataset.zip")
    ) as file:
        for name in sorted(name for name in file.namelist() if "/ABC_cleaned/" in name):
            if name.endswith(".abc"):
                yield name, file.read(name)


def _list_neighbours(form: MelodyFormat) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for name, data in _read_tunes():
        for song in read_melodies(name, data):
            bars = to_grid(song, form.steps_per_beat) if isinstance(song, Melody) else []
            for first in range(0, len(bars) - 3, 4):
                with suppress(MelodyError):
                    pair = (make_segment(bars[i : i + 2], form) for i in (first, first + 2))
                    left, right = pair
                    if left[-1] == right[-1]:
                        yield left, right


@pytest.fixture(scope="module")
def neighbours(ready: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """Left and right halves of 1,000 real pairs in several meters."""
    left, right = map(
        np.stack, zip(*itertools.islice(_list_neighbours(ready.form), PAIRS), strict=True)
    )
    assert len(left) == PAIRS
    assert len(np.unique(ready.form.find_kinds(left))) > 1
    return left.astype(np.int64), right.astype(np.int64)


def _batches(
    halves: tuple[np.ndarray, np.ndarray],
) -> Iterator[tuple[slice, tuple[np.ndarray, np.ndarray]]]:
    """Split pairs into batches of several sizes."""
    ends = list(itertools.accumulate(BATCHES))
    for start, end in zip([0, *ends], ends, strict=False):
        rows = slice(start, end)
        yield rows, (halves[0][rows], halves[1][rows])


def test_tokens_of_real_pairs_are_ours(
    ready: Bundle, graphs: Graphs, neighbours: tuple[np.ndarray, np.ndarray]
) -> None:
    _compare(ready, graphs, neighbours)


def test_what_notes_tell_of_each_other_is_ours(
    ready: Bundle, graphs: Graphs, neighbours: tuple[np.ndarray, np.ndarray]
) -> None:
    assert ready.heard is not None
    expected = ready.rate_all(*neighbours)
    kind = ready.form.find_kinds(neighbours[0])
    found = [
        graphs.run("rate", left=left, right=right, kind=kind[rows])[0]
        for rows, (left, right) in _batches(neighbours)
    ]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-3)
    assert expected.std() > 1


def test_notes_drawn_near_real_ones_are_ours(
    ready: Bundle, graphs: Graphs, neighbours: tuple[np.ndarray, np.ndarray]
) -> None:
    assert ready.heard is not None
    writer, random = ready.heard.writer, make_random(0, "draws")
    price = 6 * torch.rand(PAIRS, 2, generator=random)
    chance = torch.rand(PAIRS, 2, ready.form.steps, generator=random)
    left, right = map(torch.from_numpy, neighbours)
    expected = [half.numpy() for half in writer.rewrite((left, right), price, chance)]
    kind = ready.form.find_kinds(neighbours[0])
    changed, unlike = 0, 0
    for rows, (left_rows, right_rows) in _batches(neighbours):
        how = {"price": price[rows].numpy(), "chance": chance[rows].numpy(), "kind": kind[rows]}
        drawn = graphs.run("rewrite", left=left_rows, right=right_rows, **how)
        own = [half[rows] for half in expected]
        same = [np.array_equal(*pair) for pair in zip(own[1], drawn[1], strict=True)]
        both = zip(own[0], drawn[0], same, strict=True)
        unlike += sum(not (fits and np.array_equal(mine, other)) for mine, other, fits in both)
        changed += int((drawn[0] != left_rows).sum() + (drawn[1] != right_rows).sum())
    # A chance within rounding of where two tokens meet may fall to either side.
    assert unlike <= PAIRS // 500
    assert changed > 10 * PAIRS


def test_holds_have_notes_where_the_likeliest_tokens_would_hang(
    ready: Bundle, graphs: Graphs
) -> None:
    kinds = np.arange(700) % 7
    z = 3 * torch.randn(700, ready.core.settings.latent_dim, generator=make_random(0, "wild"))
    tokens, logits = graphs.run("decode", latents=z.numpy(), kind=kinds)
    assert sum(map(_hangs, logits.argmax(-1))) > 20
    assert not any(_hangs(row[row >= REST]) for row in tokens)
    own = ready.core.decode(z, torch.from_numpy(kinds)).detach().numpy()
    np.testing.assert_allclose(logits, own, atol=1e-4)
    _assert_tied(ready.core.decode_tokens(z, kinds), tokens, own)


def test_the_vectors_come_of_the_graphs(folder: Path, graphs: Graphs, card: dict[str, Any]) -> None:
    vectors = json.loads((folder / "vectors.json").read_text())
    inputs = {name: np.array(values) for name, values in vectors["inputs"].items()}
    kind = inputs["kind"]
    assert set(kind) == set(range(len(card["melody"]["kinds"])))
    how = {"kind": kind, "style": inputs["style"].astype(np.float32)}
    how["lambda_"] = inputs["lambda"].astype(np.float32)
    low, high = card["lambda_range"]
    assert ((inputs["lambda"] >= low) & (inputs["lambda"] <= high)).all()
    pair = [graphs.run("encode", tokens=inputs[half], kind=kind)[0] for half in ("left", "right")]
    stages = {"latents": pair}
    for count in range(1, vectors["iterations"] + 1):
        pair = graphs.run("apply", left=pair[0], right=pair[1], **how)
        stages["applied_once" if count == 1 else "applied"] = pair
    for stage, halves in stages.items():
        for half, z in zip(("left", "right"), halves, strict=True):
            np.testing.assert_allclose(z, vectors[stage][half], atol=1e-4, err_msg=stage)
    for half, z in zip(("left", "right"), pair, strict=True):
        tokens = graphs.run("decode", latents=z, kind=kind)[0]
        assert tokens.tolist() == vectors["outputs"][half]


def _read_notes(tokens: list[int], melody: dict[str, Any]) -> list[Note]:
    """Notes of a segment by what the card says alone."""
    marks = [kind["mark"] for kind in melody["kinds"]]
    kind = melody["kinds"][marks.index(tokens[-1])]
    bar = Fraction(4) * Fraction(kind["meters"][0])
    starts = [
        number * bar + Fraction(line, melody["steps_per_beat"])
        for number in range(melody["bars_per_segment"])
        for line in kind["bar"]
    ]
    assert len(starts) == kind["steps"]
    notes: list[Note] = []
    sounding = False
    ends = [*starts[1:], melody["bars_per_segment"] * bar]
    for token, start, end in zip(tokens, starts, ends, strict=False):
        if token >= melody["first_pitch"]:
            pitch = token - melody["first_pitch"] + melody["lowest"]
            notes.append(Note(start, end - start, pitch))
        elif token == melody["hold"] and sounding:
            notes[-1] = notes[-1]._replace(duration=end - notes[-1].onset)
        sounding = token != melody["rest"]
    return notes


def test_the_card_says_how_tokens_become_notes(
    folder: Path, ready: Bundle, card: dict[str, Any]
) -> None:
    vectors, form = json.loads((folder / "vectors.json").read_text()), ready.form
    for row in vectors["outputs"]["right"]:
        expected = to_notes(np.array(row), form)
        assert _read_notes(row, card["melody"]) == expected
    kinds = card["melody"]["kinds"]
    assert [meter for kind in kinds for meter in kind["meters"] if meter == "2/2"] == ["2/2"]
    assert {meter for kind in kinds for meter in kind["meters"]} == set(form.meters)
    assert all(len({bar_length(meter) for meter in kind["meters"]}) == 1 for kind in kinds)
    assert card["melody"]["tokens"] == len(vectors["outputs"]["right"][0])
    assert [kind["slots"][12] for kind in kinds if kind["meters"] == ["2/4"]] == [24]


def test_the_card_tells_of_ranges_files_and_origin(
    folder: Path, ready: Bundle, card: dict[str, Any], graphs: Graphs
) -> None:
    manifest = json.loads((DEFAULT_BUNDLE / "manifest.json").read_text())
    assert card["bundle"] == {"sha256": manifest["sha256"], "record": manifest["record"]}
    assert (card["lambda"], card["lambda_range"]) == (ready.lambda_, [0.001, 10.0])
    assert card["style"] == {"dimensions": 4, "low": 0.0, "high": 1.0}
    assert (card["scheme"], card["iterations"]) == ("heard", ready.iterations)
    assert ready.heard is not None
    told = {name: value for name, value in card["heard"].items() if name != "about"}
    own = {name: getattr(ready.heard, name) for name in ("price", "drafts", "imbalance", "lead")}
    assert told == {**own, "free": FREE, "near": NEAR}
    assert {path.name for path in folder.iterdir()} == {*card["sha256"], "card.json"}
    for name, digest in card["sha256"].items():
        assert sha256((folder / name).read_bytes()).hexdigest() == digest
    for name, session in graphs.sessions.items():
        told = card["graphs"][name]
        inputs = [(each.name, each.shape) for each in session.get_inputs()]
        assert inputs == [(each["name"], each["shape"]) for each in told["inputs"]]
        types = [each.type for each in session.get_inputs()]
        named = {"int64": "tensor(int64)", "float32": "tensor(float)"}
        assert types == [named[each["type"]] for each in told["inputs"]]
        outputs = [each.name for each in session.get_outputs()]
        assert outputs == [each["name"] for each in told["outputs"]]


def test_graphs_hold_standard_operators_and_no_paths(folder: Path, card: dict[str, Any]) -> None:
    for path in folder.glob("*.onnx"):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", card["opset"])]
        assert not model.functions
        assert b".py" not in path.read_bytes()


def test_a_bundle_of_one_meter_and_one_lambda_has_no_inputs_for_them(
    tmp_path: Path, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle(style_dim=0)
    export_bundle(bundle, tmp_path / "onnx")
    graphs = Graphs(tmp_path / "onnx")
    names = {
        name: [each.name for each in session.get_inputs()]
        for name, session in graphs.sessions.items()
    }
    assert names == {"encode": ["tokens"], "apply": ["left", "right"], "decode": ["latents"]}
    told = json.loads((tmp_path / "onnx" / "card.json").read_text())
    assert (told["lambda"], told["lambda_range"], told["heard"]) == (None, None, None)
    assert (told["scheme"], told["melody"]["kinds"][0]["mark"]) == ("poster", None)
    z = torch.randn(2, 5, 8, generator=make_random(0, "one meter"))
    pair = graphs.run("apply", left=z[0].numpy(), right=z[1].numpy())
    expected = bundle.generator.iterate((z[0], z[1]), torch.zeros(5, 0), [1])[1]
    for mine, half in zip(expected, pair, strict=True):
        np.testing.assert_allclose(half, mine.detach(), atol=1e-5)
        (tokens, logits) = graphs.run("decode", latents=half)
        _assert_tied(bundle.core.decode_tokens(torch.from_numpy(half)), tokens, logits)


def test_an_export_is_replaced_whole_and_nothing_else_is(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, path = make_bundle(), tmp_path / "x"
    path.mkdir()  # an empty folder is as good as none
    export_bundle(bundle, path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    sizes = export_bundle(bundle, path)
    assert {name: len(content) for name, content in before.items()} == sizes
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "_make_vectors", fail)
    monkeypatch.setattr(exports, "_serialise", lambda _: b"half")
    with pytest.raises(BundleError, match="No space left"):
        export_bundle(bundle, path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    (path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="exists and is not an export"):
        export_bundle(bundle, path)
    assert {file.name for file in path.iterdir()} == {*before, "notes.txt"}


@pytest.mark.parametrize("content", ["{}", "[]", "[" * 100_000, "\udcff", '{"kind": "a page"}'])
def test_a_folder_with_another_card_is_refused(
    tmp_path: Path, make_bundle: MakeBundle, content: str
) -> None:
    (tmp_path / "card.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(BundleError, match="exists and is not an export"):
        export_bundle(make_bundle(), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["card.json"]


@pytest.fixture(scope="module")
def program() -> str:
    """The example of the documentation."""
    (found,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


def test_the_example_fuses_as_we_do(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    ready: Bundle,
    neighbours: tuple[np.ndarray, np.ndarray],
) -> None:
    (tmp_path / "onnx").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    example: dict[str, Any] = {}
    exec(program, example)  # noqa: S102  it is ours
    vectors = json.loads((folder / "vectors.json").read_text())
    inputs, fused = vectors["inputs"], vectors["fused"]
    rows = zip(*(inputs[name] for name in ("left", "right", "style", "lambda")), strict=True)
    expected = list(zip(fused["left"], fused["right"], strict=True))
    pairs = [(np.array(left), np.array(right), *how) for left, right, *how in rows]
    for left, right in zip(*(half[::40] for half in neighbours), strict=True):
        pairs.append((left, right, [0.2, 0.4, 0.6, 0.8], 0.05))
        expected.append(ready.fuse(left, right, pairs[-1][2], ready.iterations, 0.05))
    unlike = 0
    for (left, right, style, lambda_), theirs in zip(pairs, expected, strict=True):
        kind = ready.form.find_kinds(left[None])
        how = np.array([style], np.float32), np.array([lambda_], np.float32), kind
        made = example["fuse"](left[None], right[None], *how)
        unlike += not all(map(np.array_equal, (half[0] for half in made), theirs))
    assert unlike <= len(pairs) // 100  # ties, to the last digits of 32-bit numbers


def test_the_example_runs_without_torch_and_prints_what_it_says(
    folder: Path, tmp_path: Path, program: str
) -> None:
    (tmp_path / "onnx").symlink_to(folder)
    page = DOCS.read_text(encoding="utf-8")
    (printed,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    absent = "import sys; sys.modules.update(torch=None, cf_core=None, onnx=None)\n"
    done = subprocess.run(
        [sys.executable, "-c", absent + program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == printed, done.stderr
    for path in folder.iterdir():
        assert f"\n  {path.name}: {path.stat().st_size / 1e6:.2f} MB\n" in page
