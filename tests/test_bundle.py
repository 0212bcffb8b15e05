"""It is long, since every way to damage a bundle is tried on one bundle."""

import json
import math
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cf_core import bundle as bundles
from cf_core.bundle import DEFAULT_BUNDLE, load_bundle, save_bundle
from cf_core.distance import edit_distance
from cf_core.errors import BundleError
from cf_core.fusion import Generator
from cf_core.melody import MelodyFormat, is_melody
from cf_core.seeding import make_random
from cf_core.training import load_tensors, save_tensors
from study.config import load_config
from study.search import list_first_trials
from tests.conftest import MakeBundle

LEFT = np.array([26, 1, 1, 1, 28, 1, 1, 1] * 4, dtype=np.uint8)
RIGHT = np.array([40, 1, 0, 0] * 8, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, make_bundle: MakeBundle) -> Path:
    save_bundle(make_bundle(), tmp_path / "bundle")
    return tmp_path / "bundle"


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any], *, resign: bool = False) -> None:
    """Change the manifest; with `resign`, also its checksums, as one who means harm would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if resign:
        for name in manifest["sha256"]:
            manifest["sha256"][name] = sha256((folder / name).read_bytes()).hexdigest()
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("heard", [False, True])
def test_round_trip(
    tmp_path: Path, make_bundle: MakeBundle, *, gated: bool, conditional: bool, heard: bool
) -> None:
    form = MelodyFormat(meters=("3/4", "6/8"), lowest=40)
    bundle = make_bundle(form, gated=gated, conditional=conditional, heard=heard)
    save_bundle(bundle, tmp_path / "deep" / "bundle")
    loaded = load_bundle(tmp_path / "deep" / "bundle")
    assert loaded.form == bundle.form
    assert loaded.core.settings == bundle.core.settings
    assert (loaded.iterations, loaded.record) == (3, {"study": "tiny"})
    assert (loaded.lambda_, loaded.lambda_range) == (
        (0.1, (1e-3, 10.0)) if conditional else (None, None)
    )
    assert (loaded.generator.gated, loaded.generator.conditional) == (gated, conditional)
    assert (loaded.heard is not None, loaded.lead) == (heard, 0.5 if heard else None)
    networks = [(bundle.core, loaded.core), (bundle.generator, loaded.generator)]
    if bundle.heard is not None and loaded.heard is not None:
        networks.append((bundle.heard.writer, loaded.heard.writer))
        assert loaded.heard.core is loaded.core
        assert (loaded.heard.price, loaded.heard.drafts) == (4.0, 2)
        assert loaded.heard.imbalance == 0.01
    for before, after in networks:
        assert before.state_dict().keys() == after.state_dict().keys()
        for name, tensor in before.state_dict().items():
            assert torch.equal(tensor, after.state_dict()[name]), name
    padded = np.stack((LEFT[:25], RIGHT[:25]))
    left, right = form.put_marks(padded, np.array([1, 1]))
    for one, other in zip(
        bundle.fuse(left, right, [0.1, 0.9], 2),
        loaded.fuse(left, right, [0.1, 0.9], 2),
        strict=True,
    ):
        assert np.array_equal(one, other)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["bundle"]


def test_loaded_networks_are_for_use_and_draw_nothing(folder: Path) -> None:
    before = torch.random.get_rng_state()
    loaded = load_bundle(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    for network in (loaded.core, loaded.generator):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_no_weight_is_drawn_that_a_file_replaces(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        assert tensor.is_meta, "weights were drawn for a network that is read from a file"
        return tensor

    monkeypatch.setattr(torch.Tensor, "uniform_", draw)
    monkeypatch.setattr(torch.Tensor, "normal_", draw)
    loaded = load_bundle(folder)
    for network in (loaded.core, loaded.generator):
        assert not any(tensor.is_meta for tensor in network.state_dict().values())


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("lead", [None, 0.2])
def test_what_a_heard_bundle_fuses_is_as_its_scheme_has_it(
    make_bundle: MakeBundle, *, conditional: bool, lead: float | None
) -> None:
    bundle = make_bundle(conditional=conditional, heard=True)
    assert bundle.heard is not None
    lambda_ = 10.0 if conditional else None
    how = replace(bundle.heard, lead=lead or 0.5)
    latents = bundle.core.encode_mean(np.stack((LEFT, RIGHT)))
    chance = how.draw_chance(1, make_random(0, "fuse", "writing"))
    # A generator that takes no λ has the price of its own, so that nothing is to be added for λ.
    pair, style, at = (latents[:1], latents[1:]), torch.tensor([[0.25, 0.75]]), lambda_ or 1.0
    outputs = how.fuse(bundle.generator, pair, style, [2], torch.tensor([at]), chance)
    found = bundle.fuse(LEFT, RIGHT, [0.25, 0.75], 2, lambda_, lead)
    unmoved = bundle.core.decode_tokens(latents)
    for given, same, half, z in zip((LEFT, RIGHT), unmoved, found, dict(outputs)[2], strict=True):
        decoded = bundle.core.decode_tokens(z)[0]
        assert np.array_equal(half, given if np.array_equal(decoded, same) else decoded)


@pytest.mark.parametrize(("lead", "half"), [(0.0, LEFT), (1.0, RIGHT)])
def test_a_half_that_stays_keeps_its_notes_although_the_core_cannot_decode_them(
    make_bundle: MakeBundle, lead: float, half: np.ndarray
) -> None:
    bundle = make_bundle(conditional=True, heard=True)
    decoded = bundle.core.decode_tokens(bundle.core.encode_mean(half[None]))[0]
    assert not np.array_equal(decoded, half)
    found = bundle.fuse(LEFT, RIGHT, [0.25, 0.75], 3, 1e-3, lead)
    assert np.array_equal(found[int(lead)], half)
    assert not np.array_equal(found[1 - int(lead)], (LEFT, RIGHT)[1 - int(lead)])


@pytest.mark.parametrize("heard", [False, True])
def test_the_lambda_for_edits_fits_best_of_those_near_enough(
    make_bundle: MakeBundle, *, heard: bool
) -> None:
    bundle = make_bundle(conditional=True, heard=heard)
    tried = [float(f"{10 ** (1 - step / 8):.3g}") for step in range(33)]
    changes, fits = [], []
    for lambda_ in tried:
        fused = bundle.fuse(LEFT, RIGHT, [0.25, 0.75], 1, lambda_)
        each = [
            int(edit_distance(before[None], after[None])[0])
            for before, after in zip((LEFT, RIGHT), fused, strict=True)
        ]
        changes.append(sum(each))
        if bundle.heard is not None:
            x, y = (torch.from_numpy(half[None]) for half in fused)
            told = bundle.heard.writer.rate((x, y)).item()
            fits.append(told - bundle.heard.imbalance * abs(each[0] - each[1]))
    assert len(set(changes)) > 3
    for edits in (0, 10, 20, 30, 40, 64, 10**30):
        found = bundle.find_lambda(LEFT, RIGHT, [0.25, 0.75], 1, edits)
        gaps = [abs(each - min(edits, 64)) for each in changes]
        near = [at for at, gap in enumerate(gaps) if gap <= max(min(gaps), 0.15 * min(edits, 64))]
        best = max(near, key=lambda at: fits[at]) if heard else gaps.index(min(gaps))
        assert found == tried[best]


def test_edits_and_leads_that_a_bundle_cannot_take_are_refused(make_bundle: MakeBundle) -> None:
    fixed, plain, heard = (
        make_bundle(conditional=conditional, heard=heard)
        for conditional, heard in ((False, True), (True, False), (True, True))
    )
    style = [0.25, 0.75]
    with pytest.raises(BundleError, match="edits: this bundle has one λ"):
        fixed.find_lambda(LEFT, RIGHT, style, 1, 8)
    with pytest.raises(BundleError, match="edits: -1 is too few"):
        heard.find_lambda(LEFT, RIGHT, style, 1, -1)
    with pytest.raises(BundleError, match="lead: in this bundle both halves change"):
        plain.fuse(LEFT, RIGHT, style, 1, None, 0.0)
    for lead in (-0.1, 1.1, math.nan):
        with pytest.raises(BundleError, match=f"lead: must be in 0…1, got {lead}"):
            heard.fuse(LEFT, RIGHT, style, 1, None, lead)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m["heard"].update(price=-1.0), "price -1.0 is not a number of 0 or more"),
        (lambda m: m["heard"].update(price="7"), "price '7' is not a number"),
        (lambda m: m["heard"].update(price=math.nan), "price nan is not a number"),
        (lambda m: m["heard"].update(lead=1.5), "lead: must be in 0…1, got 1.5"),
        (lambda m: m["heard"].update(lead=None), "lead None is not a number"),
        (lambda m: m["heard"].update(imbalance=-1), "imbalance -1 is not a number of 0 or more"),
        (lambda m: m["heard"].pop("imbalance"), "imbalance"),
        (lambda m: m["heard"].update(drafts=0), "heard drafts 0 is not in 1"),
        (lambda m: m["heard"].update(hidden=9), "other names, shapes or types"),
        (lambda m: m["heard"].update(hidden=True), "heard hidden True"),
        (lambda m: m.update(heard=[]), "do not fit"),
        (lambda m: m["sha256"].pop("writer.safetensors"), "writer.safetensors: altered"),
    ],
)
def test_a_writer_that_is_not_right_is_refused(
    tmp_path: Path, make_bundle: MakeBundle, change: Callable[[dict[str, Any]], Any], problem: str
) -> None:
    folder = tmp_path / "bundle"
    save_bundle(make_bundle(heard=True), folder)
    _edit(folder, change)
    with pytest.raises(BundleError, match=problem):
        load_bundle(folder)


def test_a_bundle_without_a_writer_replaces_one_that_has_it(
    tmp_path: Path, make_bundle: MakeBundle
) -> None:
    for heard in (True, False):
        save_bundle(make_bundle(heard=heard), tmp_path / "bundle")
        assert (tmp_path / "bundle" / "writer.safetensors").exists() is heard
        assert (load_bundle(tmp_path / "bundle").heard is not None) is heard


@pytest.mark.parametrize("lambda_", [1e-3, 0.1, 10.0])
def test_fuse_is_the_iterated_map_between_encoder_and_decoder(
    make_bundle: MakeBundle, lambda_: float
) -> None:
    bundle = make_bundle(conditional=True)
    generator = bundle.generator
    seen = torch.tensor([[(1 + math.log10(lambda_)) / 2, 0.25, 0.75]])
    with torch.no_grad():
        z = torch.cat([bundle.core.encode(torch.tensor(half[None]))[0] for half in (LEFT, RIGHT)])
        for _ in range(3):
            gate, delta = generator.net(torch.cat((z.reshape(1, -1), seen), 1)).reshape(2, 2, -1)
            z = (1 - gate.sigmoid()) * z + gate.sigmoid() * delta
        slow = bundle.core.decode(z).argmax(-1).numpy()
    assert np.array_equal(np.stack(bundle.fuse(LEFT, RIGHT, [0.25, 0.75], 3, lambda_)), slow)


def test_lambda_decides_what_comes_out_and_is_the_bundles_unless_given(
    make_bundle: MakeBundle,
) -> None:
    bundle = make_bundle(conditional=True)
    low, own, high, unsaid = (
        np.stack(bundle.fuse(LEFT, RIGHT, [0.25, 0.75], 2, lambda_))
        for lambda_ in (1e-3, 0.1, 10.0, None)
    )
    assert np.array_equal(own, unsaid)
    assert not np.array_equal(low, own)
    assert not np.array_equal(high, own)


def test_a_larger_lambda_stays_nearer(make_bundle: MakeBundle) -> None:
    # Gates that only λ moves: half open at the smallest, all but shut at the largest.
    bundle = make_bundle(conditional=True)
    first, *_, last = bundle.generator.net.weights
    with torch.no_grad():
        for layer in bundle.generator.net.weights:
            layer.zero_()
        first[16, 0] = bundle.generator.net.weights[1][0, 0] = 1.0
        last[0, :16] = -20.0
        bundle.generator.net.biases[-1][0, 16:] = 3.0
    latents = torch.zeros(1, 8), torch.zeros(1, 8)
    style = torch.zeros(1, 2)
    moved = [
        float(bundle.generator.iterate(latents, style, [1], lambda_)[1][0].detach().norm())
        for lambda_ in (0.1, 1.0, 10.0)
    ]
    assert moved == sorted(moved, reverse=True)
    assert np.array_equal(np.stack(bundle.fuse(LEFT, RIGHT, [0.5, 0.5], 1, 10.0)), (LEFT, RIGHT))


@pytest.mark.parametrize(
    ("lambda_", "lambda_range"),
    [(None, None), (0.1, None), (None, (0.01, 1.0)), (2.0, (0.01, 1.0)), (0.1, (1.0, 0.01)),
     (1.0, (1.0, 1.0)), (0.1, (0.0, 1.0)), (0.1, (0.01, math.inf)), (math.nan, (0.01, 1.0))],
)  # fmt: skip
def test_lambdas_that_are_none_of_a_conditional_generator(
    make_bundle: MakeBundle, lambda_: float | None, lambda_range: tuple[float, float] | None
) -> None:
    with pytest.raises(ValueError, match="not fit a conditional generator"):
        replace(make_bundle(conditional=True), lambda_=lambda_, lambda_range=lambda_range)


@pytest.mark.parametrize(("lambda_", "lambda_range"), [(0.1, None), (None, (0.01, 1.0))])
def test_lambdas_that_an_unconditional_generator_cannot_have(
    make_bundle: MakeBundle, lambda_: float | None, lambda_range: tuple[float, float] | None
) -> None:
    with pytest.raises(ValueError, match="not fit an unconditional generator"):
        replace(make_bundle(), lambda_=lambda_, lambda_range=lambda_range)


def test_a_drawn_style_depends_on_the_seed_alone_and_survives_print(
    make_bundle: MakeBundle,
) -> None:
    bundle = make_bundle(style_dim=4)
    style = bundle.draw_style(7)
    assert style == make_bundle(style_dim=4).draw_style(7) != bundle.draw_style(8)
    assert all(0 <= value <= 1 and float(f"{value:g}") == value for value in style)
    assert make_bundle(style_dim=0).draw_style(7) == ()


def test_saving_twice_gives_equal_bytes(tmp_path: Path, make_bundle: MakeBundle) -> None:
    for name in ("a", "b"):
        save_bundle(make_bundle(), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_an_earlier_bundle_is_replaced(folder: Path, make_bundle: MakeBundle) -> None:
    save_bundle(make_bundle(style_dim=5), folder)
    assert load_bundle(folder).generator.style_dim == 5
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kept", ["notes.txt", "manifest.json"])
def test_what_is_no_bundle_is_never_replaced(
    tmp_path: Path, make_bundle: MakeBundle, kept: str
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / kept).write_text("{}")
    with pytest.raises(BundleError, match="is not a bundle"):
        save_bundle(make_bundle(), tmp_path / "work")
    assert (tmp_path / "work" / kept).read_text() == "{}"


def test_a_bundle_with_other_files_in_it_is_never_replaced(
    folder: Path, make_bundle: MakeBundle
) -> None:
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="is not a bundle"):
        save_bundle(make_bundle(), folder)
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_nothing_half_written(
    folder: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cf_core.bundle._describe", full)
    with pytest.raises(BundleError, match="No space left"):
        save_bundle(make_bundle(style_dim=5), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_the_earlier_bundle_comes_back_where_the_new_one_cant_take_its_place(
    folder: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename = Path.rename

    def broken(source: Path, target: Path) -> Path:
        if target == folder and "earlier" not in source.name:
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(BundleError, match="Input/output error"):
        save_bundle(make_bundle(style_dim=5), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_name_that_no_folder_can_have(tmp_path: Path, make_bundle: MakeBundle) -> None:
    with pytest.raises(BundleError, match="can't be read"):
        load_bundle(tmp_path / ("x" * 300))
    with pytest.raises(BundleError, match="can't be written"):
        save_bundle(make_bundle(), tmp_path / ("x" * 300))


@pytest.mark.parametrize("name", ["core.safetensors", "generator.safetensors"])
def test_one_altered_byte_is_noticed(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: altered"):
        load_bundle(folder)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [pickle.dump, torch.save])
def test_a_pickle_is_never_opened(folder: Path, save: Callable[..., None]) -> None:
    struck = folder.parent / "struck"
    with (folder / "generator.safetensors").open("wb") as file:
        save(_Bomb(struck), file)
    _edit(folder, lambda _: None, resign=True)
    with pytest.raises(BundleError, match="not a safetensors file"):
        load_bundle(folder)
    assert not struck.exists()


def test_weights_of_other_shapes(folder: Path) -> None:
    tensors = load_tensors(folder / "core.safetensors") or {}
    tensors["sigma_bar"] = tensors["sigma_bar"][:-1].clone()
    save_tensors(tensors, folder / "core.safetensors")
    _edit(folder, lambda _: None, resign=True)
    with pytest.raises(
        BundleError, match=r"core\.safetensors holds weights of other names, shapes"
    ):
        load_bundle(folder)


def test_names_in_a_manifest_are_no_paths(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "core.safetensors").rename(outside)

    def point_outside(manifest: dict[str, Any]) -> None:
        digest = manifest["sha256"].pop("core.safetensors")
        manifest["sha256"]["../outside.safetensors"] = digest

    _edit(folder, point_outside)
    with pytest.raises(BundleError, match=r"core\.safetensors is missing"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["manifest.json", "core.safetensors", "generator.safetensors"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(folder)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "later version": (
        lambda m: m.update(version=8),
        "has version 8, but this program reads version 7; get one of that",
    ),
    "earlier version": (lambda m: m.update(version=1), "has version 1, .*; get one of that"),
    "no version": (lambda m: m.pop("version"), "has version None"),
    "other kind": (lambda m: m.update(kind="web app"), "not the manifest of"),
    "no checksums": (lambda m: m.pop("sha256"), "no checksums"),
    "checksum gone": (lambda m: m["sha256"].clear(), "altered"),
    "other width": (lambda m: m["core"].update(hidden=32), "other names, shapes"),
    "other style": (lambda m: m["generator"].update(style_dim=3), "other names, shapes"),
    "other pitches": (lambda m: m["melody"].update(highest=90), "other names, shapes"),
    "huge width": (lambda m: m["core"].update(hidden=10**12), "hidden 1000000000000 is not in"),
    "wide": (lambda m: m["core"].update(hidden=60_000), "other names, shapes"),
    "huge depth": (lambda m: m["generator"].update(depth=10**9), "depth 1000000000 is not in"),
    "huge count": (lambda m: m.update(iterations=10**9), "iterations 1000000000 is not in"),
    "deep core": (lambda m: m["core"].update(depth=60_000), "depth 60000 is not in 1 to 1023"),
    "true for a number": (lambda m: m["core"].update(depth=True), "depth True is not in"),
    "one for true": (lambda m: m["generator"].update(gated=1), "generator gated 1 is not in"),
    "a word for true": (lambda m: m["generator"].update(conditional="no"), "conditional 'no' is"),
    "kind unsaid": (lambda m: m["generator"].pop("gated"), "do not fit .*gated"),
    "other kind of map": (lambda m: m["generator"].update(gated=False), "other names, shapes"),
    "several maps": (lambda m: m["generator"].update(trials=2), "trials"),
    "low pitch a text": (lambda m: m["melody"].update(lowest="36"), "lowest '36' is not in"),
    "λ of a fixed one": (
        lambda m: m.update({"lambda": 0.1, "lambda_range": [0, 1]}),
        "not fit an uncond",
    ),
    "no iterations": (lambda m: m.update(iterations=0), "iterations 0 is not in"),
    "text for a number": (lambda m: m["core"].update(depth="1"), "depth '1' is not in"),
    "fractional steps": (lambda m: m["melody"].update(steps_per_beat=4.0), "beat 4.0 is not in"),
    "fine steps": (lambda m: m["melody"].update(steps_per_beat=32), "32 is above 24"),
    "infinite rate": (lambda m: m["core"].update(learning_rate=float("inf")), "must be finite"),
    "endless bars": (lambda m: m["melody"].update(meters=["999999999999/4"]), "do not fit"),
    "endless segments": (lambda m: m["melody"].update(bars_per_segment=65535), "more than 4096"),
    "odd parts": (lambda m: m["melody"].update(subdivisions=[5]), "5 parts of a quarter"),
    "impossible meter": (lambda m: m["melody"].update(meters=["4/0"]), "do not fit"),
    "unknown setting": (lambda m: m["core"].update(colour="red"), "unexpected keyword"),
    "section gone": (lambda m: m.pop("generator"), "do not fit"),
    "section a list": (lambda m: m.update(core=[1, 2]), "do not fit"),
    "record a number": (lambda m: m.update(record=3), "do not fit"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_manifest_is_refused_in_one_line(folder: Path, case: str) -> None:
    change, message = CHANGES[case]
    _edit(folder, change)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


WEIGHTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "gone": (lambda m: m.pop("lambda"), "lambda"),
    "range gone": (lambda m: m.pop("lambda_range"), "lambda_range"),
    "none": (lambda m: m.update({"lambda": None}), "λ None is not a number"),
    "no range": (lambda m: m.update(lambda_range=None), "do not fit"),
    "true": (lambda m: m.update({"lambda": True}), "λ True is not a number"),
    "text": (lambda m: m.update({"lambda": "0.1"}), "λ '0.1' is not a number"),
    "text as range": (lambda m: m.update(lambda_range="19"), "λ '1' is not a number"),
    "one end": (lambda m: m.update(lambda_range=[1]), "do not fit"),
    "three ends": (lambda m: m.update(lambda_range=[0.01, 0.1, 1]), "do not fit"),
    "negative": (lambda m: m.update(lambda_range=[-1.0, 1.0]), "not fit a conditional"),
    "zero": (lambda m: m.update(lambda_range=[0, 1.0]), "not fit a conditional"),
    "endless": (lambda m: m.update(lambda_range=[0.01, math.inf]), "not fit a conditional"),
    "nan": (lambda m: m.update({"lambda": math.nan}), "not fit a conditional"),
    "turned round": (lambda m: m.update(lambda_range=[10.0, 0.001]), "not fit a conditional"),
    "outside": (lambda m: m.update({"lambda": 11.0}), "λ 11.0 in range .* does not fit"),
    "made fixed": (
        lambda m: (
            m["generator"].update(conditional=False),
            m.update({"lambda": None, "lambda_range": None}),
        ),
        "other names, shapes",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_changed_weights_are_refused_in_one_line(
    tmp_path: Path, make_bundle: MakeBundle, case: str
) -> None:
    save_bundle(make_bundle(conditional=True), tmp_path / "bundle")
    change, message = WEIGHTS[case]
    _edit(tmp_path / "bundle", change)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(tmp_path / "bundle")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["manifest.json", "core.safetensors", "generator.safetensors"])
def test_a_huge_file_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (folder / name).write_bytes(b"")
    os.truncate(folder / name, (1 << 30) + 1)
    read = Path.read_bytes

    def small_only(path: Path) -> bytes:
        assert path.name != name
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", small_only)
    with pytest.raises(BundleError, match=f"{name}: too large"):
        load_bundle(folder)


def test_each_file_of_weights_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is used is what was checked, even if a file is swapped in between.
    reads: list[str] = []
    read = Path.read_bytes

    def swapped_afterwards(path: Path) -> bytes:
        content = read(path)
        reads.append(path.name)
        path.write_bytes(b"other")
        return content

    monkeypatch.setattr(Path, "read_bytes", swapped_afterwards)
    assert load_bundle(folder).generator.style_dim == 2
    assert reads == ["core.safetensors", "generator.safetensors"]


def test_the_ready_made_bundle_is_what_is_loaded_unless_told_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "DEFAULT_BUNDLE", folder)
    assert load_bundle().record == {"study": "tiny"}
    monkeypatch.setattr(bundles, "DEFAULT_BUNDLE", folder / "nil")
    with pytest.raises(
        BundleError, match=r"no ready-made bundle .*`make bundle`.*folder of another"
    ):
        load_bundle()


def test_a_bundle_of_an_earlier_version_is_replaced(folder: Path, make_bundle: MakeBundle) -> None:
    _edit(folder, lambda m: m.update(version=1))
    save_bundle(make_bundle(style_dim=5), folder)
    assert load_bundle(folder).generator.style_dim == 5


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000, '"kind"'])
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"not JSON|not the manifest"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("style", "iterations", "message"),
    [
        ([0.5], 1, "1 numbers given; this bundle takes 2"),
        ([0.5, 1.5], 1, "must lie in 0…1"),
        ([0.5, float("nan")], 1, "must lie in 0…1"),
        ([0.5, 0.5], 0, "iterations: 0 is too few"),
        ([0.5, 0.5], 10**30, "iterations: 10+ is too many; give 1 to 65535"),
    ],
)
def test_fuse_refuses(
    make_bundle: MakeBundle, style: list[float], iterations: int, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        make_bundle().fuse(LEFT, RIGHT, style, iterations)


def test_a_pair_at_rest_is_not_moved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, moves = load_bundle(), 0
    quavers = np.array([[26, 1, 1, 28, 1, 1] * 8, [33, 1, 1, 31, 1, 1] * 8])
    left, right = bundle.form.put_marks(np.pad(quavers, ((0, 0), (0, 1))), np.zeros(2, dtype=int))
    iterate = Generator.iterate

    def count(*arguments: Any) -> Any:
        nonlocal moves
        moves += 1
        return iterate(*arguments)

    monkeypatch.setattr(Generator, "iterate", count)
    style = bundle.draw_style(seed=0)
    few = bundle.fuse(left, right, style, 200)
    assert 1 < moves < 200
    many = bundle.fuse(left, right, style, 65_535)
    assert moves < 400
    assert np.array_equal(few, many)


@pytest.mark.parametrize("lambda_", [0.0, -1.0, 1e-4, 10.1, math.inf, math.nan])
def test_a_lambda_it_was_not_trained_for(make_bundle: MakeBundle, lambda_: float) -> None:
    message = rf"λ: this bundle was trained for 0\.001 to 10, not {lambda_}"
    with pytest.raises(BundleError, match=message):
        make_bundle(conditional=True).fuse(LEFT, RIGHT, [0.5, 0.5], 1, lambda_)


def test_a_lambda_for_a_bundle_that_has_one(make_bundle: MakeBundle) -> None:
    with pytest.raises(BundleError, match=r"has one λ, .*; give none, or another bundle"):
        make_bundle().fuse(LEFT, RIGHT, [0.5, 0.5], 1, 0.1)


# --- the ready-made bundle ------------------------------------------------------------------------


def test_the_ready_made_bundle_is_small_and_says_where_it_comes_from() -> None:
    files = sorted(DEFAULT_BUNDLE.iterdir())
    assert [file.name for file in files] == [
        "core.safetensors", "generator.safetensors", "manifest.json", "writer.safetensors"
    ]  # fmt: skip
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    record = load_bundle().record
    config = load_config("bundle")
    assert (record["study"], record["trial"]) == (config.name, list_first_trials(config)[0].id)


def test_the_ready_made_bundle_changes_melodies_less_the_larger_lambda_is() -> None:
    bundle = load_bundle()
    random = torch.Generator().manual_seed(0)
    prior = torch.randn(40, bundle.core.settings.latent_dim, generator=random)
    tokens = bundle.core.decode_tokens(prior, np.arange(40) % 20 % 5)
    style = bundle.draw_style(0)
    assert bundle.lambda_range is not None
    edits = []
    for lambda_ in (bundle.lambda_range[0], 0.1, 1.0, bundle.lambda_range[1]):
        pairs = zip(tokens[:20], tokens[20:], strict=True)
        halves = zip(*(bundle.fuse(*pair, style, 4, lambda_) for pair in pairs), strict=True)
        after = np.concatenate([np.stack(half) for half in halves])
        assert is_melody(after).mean() > 0.98
        edits.append(int((after != tokens).sum()))
    assert edits == sorted(edits, reverse=True)
    assert edits[-1] < 0.5 * edits[0]
