"""A trained fusion as a folder to hand over: safetensors files and a JSON manifest.

Nothing in a bundle is ever unpickled, and no name in it is ever used as a path. This file is long,
because everything that a received manifest says is checked before anything is built from it.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Integer
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor, nn

from cf_core.distance import edit_distance
from cf_core.errors import BundleError
from cf_core.files import AnyPath, RemotePath, replacing, replacing_folder
from cf_core.fusion import Generator
from cf_core.heard import Heard, choose_by_edits
from cf_core.melody import MelodyFormat
from cf_core.seeding import make_random
from cf_core.training import collect_weights
from cf_core.vae import MelodyVAE, VAESettings
from cf_core.writer import Writer, WriterSettings

DEFAULT_BUNDLE = Path(__file__).parent / "bundles" / "default"
"""The ready-made bundle that comes with this package."""

VERSION = 7
_KIND = "connective-fusion bundle"
_CORE, _GENERATOR, _WRITER = "core.safetensors", "generator.safetensors", "writer.safetensors"
_MANIFEST = "manifest.json"
_MAX_MANIFEST, _MAX_FILE = 1 << 20, 1 << 30
"""Largest manifest and largest file of weights that are read, in bytes."""
_WIDTHS, _DEPTHS = range(1, 1 << 16), range(1, 1 << 10)
_SIZES: dict[tuple[str, ...], Sequence[int]] = {
    ("melody", "steps_per_beat"): _WIDTHS,
    ("melody", "bars_per_segment"): _WIDTHS,
    ("melody", "lowest"): range(128),
    ("melody", "highest"): range(128),
    ("core", "latent_dim"): _WIDTHS,
    ("core", "hidden"): _WIDTHS,
    ("core", "embedding"): _WIDTHS,
    ("core", "depth"): _DEPTHS,
    ("generator", "style_dim"): range(1 << 16),
    ("generator", "hidden"): _WIDTHS,
    ("generator", "depth"): _DEPTHS,
    ("generator", "gated"): (False, True),
    ("generator", "conditional"): (False, True),
    ("iterations",): _WIDTHS,
}
"""Allowed values of the manifest's numbers, by their path in the manifest."""
_HEARD_SIZES: dict[tuple[str, ...], Sequence[int]] = {
    ("heard", "hidden"): _WIDTHS,
    ("heard", "drafts"): range(1, 1 << 10),
}
"""The same, of a bundle in the scheme `heard`."""
_TRIED = 33
"""Number of λ that are tried for a number of edits."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Bundle:
    """A core VAE and a fusion map that belong together, ready to transform melodies.

    Raises `ValueError` where λ does not fit the generator. A conditional generator needs a
    `lambda_range` and a `lambda_` within it; any other generator needs None for both.

    >>> import numpy as np
    >>> from cf_core.bundle import load_bundle
    >>> bundle = load_bundle()
    >>> quavers = np.array([[26, 1, 1, 28, 1, 1] * 8, [33, 1, 1, 31, 1, 1] * 8])
    >>> marked = np.pad(quavers, ((0, 0), (0, 1)))  # two bars of 4/4, and place for a mark
    >>> left, right = bundle.form.put_marks(marked, np.zeros(2, dtype=int))
    >>> style = bundle.draw_style(seed=0)
    >>> fused_left, fused_right = bundle.fuse(left, right, style, bundle.iterations, lambda_=0.3)
    >>> fused_left.shape
    (49,)
    """

    form: MelodyFormat
    core: MelodyVAE
    generator: Generator
    iterations: int
    """Iteration count that the selection chose, the default of `fuse_files`."""
    lambda_: float | None
    """λ that the selection chose, the default of `fuse`. None where the generator does not take λ
    as an input."""
    lambda_range: tuple[float, float] | None
    """Smallest and largest λ that the generator was trained for. None where it takes no λ."""
    record: Mapping[str, Any]
    """Where the bundle comes from: study, trial, selection, training figures, versions."""
    heard: Heard | None = None
    """How outputs become notes; None where they are decoded as they are. Where the generator takes
    no λ, the price is that of its one λ."""

    def __post_init__(self) -> None:
        if not self.generator.conditional:
            fits = self.lambda_ is None and self.lambda_range is None
        elif self.lambda_ is None or self.lambda_range is None:
            fits = False
        else:
            low, high = self.lambda_range
            fits = 0 < low < high < math.inf and low <= self.lambda_ <= high
        if not fits:
            kind = "a conditional" if self.generator.conditional else "an unconditional"
            raise ValueError(
                f"λ {self.lambda_} in range {self.lambda_range} does not fit {kind} generator"
            )

    @property
    def lead(self) -> float | None:
        """Which half gives way unless a call says otherwise; None where it can't be chosen."""
        return None if self.heard is None else self.heard.lead

    def draw_style(self, seed: int) -> tuple[float, ...]:
        """Draw a style from `seed`, in steps of 1/10,000 so that it can be written down."""
        random = make_random(seed, "fuse", "style")
        drawn = torch.randint(10_001, (self.generator.style_dim,), generator=random)
        return tuple(step / 10_000 for step in drawn.tolist())

    def fuse(
        self,
        left: Integer[np.ndarray, "T"],
        right: Integer[np.ndarray, "T"],
        style: Sequence[float],
        iterations: int,
        lambda_: float | None = None,
        lead: float | None = None,
        seed: int = 0,
    ) -> tuple[Integer[np.ndarray, "T"], Integer[np.ndarray, "T"]]:
        """Transform two segments' tokens, of bars of one kind, so that they join.

        `style` holds one number in 0…1 per style dimension. Only a bundle with a `lambda_range`
        accepts `lambda_`; the default is the bundle's own. A small λ goes far from the inputs, a
        large one stays near. `lead` says which half gives way: at 0 the left half stays, at 1 the
        right one, at 0.5 both may change; the default is the bundle's own, and a bundle that is not
        `heard` accepts none. `seed` decides which notes a `heard` bundle draws. A half that is
        decoded as its input is keeps the input's notes, for not every segment comes back from the
        core as it went in. Raises `BundleError` for segments of different meters, for a style of
        the wrong length or out of range, for iterations outside 1…65535, for a λ that the generator
        was not trained for, and for a lead that the bundle can't take.
        """
        if lambda_ is None:
            lambda_ = self.lambda_ or 1.0
        elif self.lambda_range is None:
            raise BundleError(
                "λ: this bundle has one λ, fixed in training; give none, or another bundle"
            )
        elif not self.lambda_range[0] <= lambda_ <= self.lambda_range[1]:
            low, high = self.lambda_range
            raise BundleError(
                f"λ: this bundle was trained for {low:g} to {high:g}, not {lambda_}; give a λ in"
                " this range"
            )
        fused = self._fuse_at(left, right, style, iterations, (lambda_,), lead, seed)
        return fused[0, 0], fused[1, 0]

    def find_lambda(
        self,
        left: Integer[np.ndarray, "T"],
        right: Integer[np.ndarray, "T"],
        style: Sequence[float],
        iterations: int,
        edits: int,
        lead: float | None = None,
        seed: int = 0,
    ) -> float:
        """The λ at which about `edits` grid steps of this pair change, both halves together.

        Many λ are tried, evenly over the logarithm of the bundle's range. In the scheme `heard`, it
        is the one whose outputs have the highest J (H1 in docs/concepts.md), of those that change
        as many steps to within 15 %; else, and where none does, the one that comes nearest. Of
        equal ones it is the largest. Raises `BundleError` as `fuse` does, for edits below 0, and
        where the bundle has one λ.
        """
        if self.lambda_range is None:
            raise BundleError(
                "edits: this bundle has one λ, fixed in training, and so can't go as far as asked;"
                " leave edits out, or give another bundle"
            )
        if edits < 0:
            raise BundleError(f"edits: {edits} is too few; give 0 or more")
        high, low = reversed(self.lambda_range)
        # Rounded, so that what is told can be typed in again.
        tried = [
            min(max(float(f"{each:.3g}"), low), high) for each in np.geomspace(high, low, _TRIED)
        ]
        fused = self._fuse_at(left, right, style, iterations, tried, lead, seed)
        inputs = np.stack((left, right))[:, None].repeat(len(tried), 1)
        halves = zip(inputs, fused, strict=True)
        changed = np.sum([edit_distance(old, new) for old, new in halves], axis=0)
        wanted = min(edits, len(left) + len(right))  # no more can change
        score = -np.abs(changed - wanted).astype(float)
        if (heard := self._lead(lead)) is not None:
            tokens, before = (torch.from_numpy(each).transpose(0, 1) for each in (fused, inputs))
            score = heard.rate(tokens.long(), before.long()).numpy()
        (chosen,) = choose_by_edits(changed[:, None], score[:, None], wanted)
        return float(tried[chosen])

    @torch.no_grad()
    def _fuse_at(
        self,
        left: Integer[np.ndarray, "T"],
        right: Integer[np.ndarray, "T"],
        style: Sequence[float],
        iterations: int,
        lambdas: Sequence[float],
        lead: float | None,
        seed: int,
    ) -> Integer[np.ndarray, "2 L T"]:
        """Fuse one pair at `L` λ, side by side."""
        count, chosen = len(lambdas), _style(style, self.generator.style_dim)
        if iterations not in _WIDTHS:
            wrong = "few" if iterations < 1 else "many"
            raise BundleError(
                f"iterations: {iterations} is too {wrong}; give {_WIDTHS[0]} to {_WIDTHS[-1]}"
            )
        segments = np.stack((left, right))
        kinds = self.form.find_kinds(segments)
        if kinds[0] != kinds[1]:
            named = [self.form.kinds[kind] for kind in kinds]
            raise BundleError(
                f"the left segment is in {named[0]}, the right one in {named[1]}; give two of one"
                " meter"
            )
        latents = self.core.encode_mean(segments)
        unmoved = self.core.decode_tokens(latents, kinds)[:, None]
        kinds = kinds[:1].repeat(count)
        pair = latents[:1].repeat(count, 1), latents[1:].repeat(count, 1)
        styles, lambda_ = chosen.repeat(count, 1), torch.tensor(lambdas)
        if (heard := self._lead(lead)) is None:
            kept = self.generator.iterate(
                pair, styles, [iterations], lambda_, torch.from_numpy(kinds)
            )
            outputs = kept[iterations]
        else:
            chance = heard.fix_chance(seed).expand(-1, count, -1, -1)
            ((_, outputs),) = heard.fuse(
                self.generator, pair, styles, [iterations], lambda_, chance, kinds
            )
        tokens = np.stack([self.core.decode_tokens(half, kinds) for half in outputs])
        # Not every segment comes back from the core as it went in. What stays, stays as it was.
        stays = (tokens == unmoved).all(axis=-1, keepdims=True)
        return np.where(stays, segments[:, None], tokens)

    def rate(self, pair: tuple[Integer[np.ndarray, "T"], Integer[np.ndarray, "T"]]) -> float | None:
        """How much two segments tell of each other, log p(right | left) - log p(right), in nats.

        None for a bundle that is not `heard`, which has no models of notes.
        """
        if self.heard is None:
            return None
        return float(self.rate_all(pair[0][None], pair[1][None])[0])

    def rate_all(
        self, left: Integer[np.ndarray, "B T"], right: Integer[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B"]:
        """`rate` of many pairs. Raises `BundleError` for a bundle that has no models of notes."""
        if self.heard is None:
            raise BundleError(
                "this bundle has no models of notes, and so can't tell what fits; choose bars and"
                " interval yourself, or give a bundle of the scheme heard"
            )
        with torch.no_grad():
            rated = self.heard.writer.rate((torch.from_numpy(left), torch.from_numpy(right)))
        return np.asarray(rated.numpy())

    def _lead(self, lead: float | None) -> Heard | None:
        """How outputs are heard, with another lead if one is given."""
        if lead is None:
            return self.heard
        if self.heard is None:
            raise BundleError(
                "lead: in this bundle both halves change, as on the poster; give no lead, or a"
                " bundle of the scheme heard"
            )
        try:
            return replace(self.heard, lead=lead)
        except ValueError as error:
            raise BundleError(str(error)) from None


def save_bundle(bundle: Bundle, path: AnyPath) -> None:
    """Write a bundle folder, whole or not at all; an earlier bundle at `path` is replaced.

    Where folders can't be renamed, as in an object store, an interrupted call leaves a bundle that
    `load_bundle` refuses and that the next call replaces. Raises `BundleError` where `path` holds
    anything else or can't be written.
    """
    if not isinstance(path, Path):
        _upload(bundle, path)
        return
    with replacing_folder(path, "a bundle", _is_bundle, BundleError) as temporary:
        weights = _serialise(bundle)
        for name, content in weights.items():
            (temporary / name).write_bytes(content)
        manifest = _describe(bundle, _checksums(weights))
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """The manifest with which `save_bundle` writes a bundle, with the checksums of its weights."""
    return _describe(bundle, _checksums(_serialise(bundle)))


def _upload(bundle: Bundle, path: RemotePath) -> None:
    if path.exists() and not _is_bundle(path):
        raise BundleError(f"{path}: exists and is not a bundle; choose another place")
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "bundle"
        save_bundle(bundle, whole)
        # The manifest goes first: its checksums fit only the new weights, so a reader refuses a
        # bundle that is half uploaded.
        for name in (_MANIFEST, *_networks(bundle)):
            with replacing(path / name, BundleError) as temporary:
                shutil.copyfile(whole / name, temporary)


def _serialise(bundle: Bundle) -> dict[str, bytes]:
    """The files of weights by their names."""
    named = _networks(bundle).items()
    return {name: serialise(collect_weights(network)) for name, network in named}


def _checksums(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {name: sha256(content).hexdigest() for name, content in contents.items()}


def _networks(bundle: Bundle) -> dict[str, nn.Module]:
    """The networks by the names of their files."""
    named = {_CORE: bundle.core, _GENERATOR: bundle.generator}
    return named if bundle.heard is None else {**named, _WRITER: bundle.heard.writer}


def load_bundle(path: AnyPath | None = None) -> Bundle:
    """Read a bundle folder and check every byte of it. The default is the ready-made bundle.

    Raises `BundleError` where the folder is not a bundle, can't be read, has another version, was
    altered after its manifest was written, or holds weights of other shapes than the manifest says.

    >>> from cf_core.bundle import load_bundle
    >>> bundle = load_bundle()
    >>> bundle.form.kinds, bundle.form.bars_per_segment, bundle.lambda_range
    (('4/4', '2/4', '3/4', '3/8', '6/8', '9/8', '12/8'), 2, (0.001, 10.0))
    """
    if path is None:
        path = DEFAULT_BUNDLE
        if not path.exists():
            raise BundleError(
                f"{path}: no ready-made bundle here; make it with `make bundle` in a checkout of"
                " the project, or give the folder of another bundle"
            )
    try:
        return _checked(path)
    except OSError as error:
        raise BundleError(f"{path}: can't be read ({error.strerror or error})") from error


def _checked(path: AnyPath) -> Bundle:
    manifest = _manifest(path)
    if manifest.get("version") != VERSION:
        raise BundleError(
            f"{path}: the bundle has version {manifest.get('version')!r}, but this program reads"
            f" version {VERSION}; get one of that version, or select it again"
        )
    if not isinstance(manifest.get("sha256"), dict):
        raise BundleError(f"{path / _MANIFEST}: has no checksums; get the bundle again")
    try:
        _check_numbers(manifest)
        lists = {name: tuple(manifest["melody"][name]) for name in ("meters", "subdivisions")}
        form = MelodyFormat(**{**manifest["melody"], **lists})
        settings = VAESettings(**manifest["core"])
        core = partial(MelodyVAE, form, settings)
        fusion = partial(
            Generator,
            settings.latent_dim,
            trials=None,
            kinds=len(form.kinds),
            **manifest["generator"],
        )
        lambda_, lambda_range = _read_lambdas(manifest)
        network, heard = _filled(core, path / _CORE, manifest["sha256"]), None
        if (how := manifest["heard"]) is not None:
            writes = partial(Writer, form, WriterSettings(hidden=how["hidden"]))
            writer = _filled(writes, path / _WRITER, manifest["sha256"])
            price, imbalance, lead = (
                _read_number(name, how[name]) for name in ("price", "imbalance", "lead")
            )
            heard = Heard(network, writer, price, how["drafts"], imbalance, lead)
        return Bundle(
            form=form,
            core=network,
            generator=_filled(fusion, path / _GENERATOR, manifest["sha256"]),
            iterations=manifest["iterations"],
            lambda_=lambda_,
            lambda_range=lambda_range,
            record=dict(manifest["record"]),
            heard=heard,
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise BundleError(
            f"{path}: manifest and weights do not fit ({reason}); get the bundle again"
        ) from error


def _describe(bundle: Bundle, checksums: Mapping[str, str]) -> dict[str, Any]:
    """Make the manifest."""
    generator, layers = bundle.generator, bundle.generator.net.weights
    heard = None
    if (how := bundle.heard) is not None:
        heard = {
            "hidden": how.writer.forwards.window.embedding_dim,
            "price": how.price,
            "drafts": how.drafts,
            "imbalance": how.imbalance,
            "lead": how.lead,
        }
    return {
        "kind": _KIND,
        "version": VERSION,
        "melody": asdict(bundle.form),
        "core": asdict(bundle.core.settings),
        "generator": {
            "style_dim": generator.style_dim,
            "hidden": layers[0].shape[-1],
            "depth": len(layers) - 1,
            "gated": generator.gated,
            "conditional": generator.conditional,
        },
        "heard": heard,
        "iterations": bundle.iterations,
        "lambda": bundle.lambda_,
        "lambda_range": bundle.lambda_range,
        "record": bundle.record,
        "sha256": checksums,
    }


def _is_bundle(path: AnyPath) -> bool:
    """Whether a folder holds a bundle of any version and nothing else, and so may be replaced."""
    try:
        _manifest(path)
    except BundleError:
        return False
    return {entry.name for entry in path.glob("*")} <= {_MANIFEST, _CORE, _GENERATOR, _WRITER}


def _manifest(path: AnyPath) -> dict[str, Any]:
    file = path / _MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{path}: no bundle here ({_MANIFEST} is missing); give the folder of a bundle"
        )
    if file.stat().st_size > _MAX_MANIFEST:
        raise BundleError(f"{file}: too large for a manifest (above 1 MiB); get the bundle again")
    try:
        manifest = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not JSON ({error}); get the bundle again") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
        raise BundleError(f"{file}: not the manifest of a {_KIND}; give the folder of a bundle")
    return manifest


def _content(file: AnyPath, checksums: Mapping[str, Any]) -> bytes:
    """Read a file once, so that the bytes that are used are the bytes that were checked."""
    if not file.is_file():
        raise BundleError(f"{file.parent}: {file.name} is missing; get the bundle again")
    if file.stat().st_size > _MAX_FILE:
        raise BundleError(f"{file}: too large for weights (above 1 GiB); get the bundle again")
    content = file.read_bytes()
    if sha256(content).hexdigest() != checksums.get(file.name):
        raise BundleError(
            f"{file}: altered since the bundle was made (SHA-256 differs); get the bundle again"
        )
    return content


def _check_numbers(manifest: Mapping[str, Any]) -> None:
    """Refuse numbers out of range before anything is built from them."""
    sizes = _SIZES if manifest["heard"] is None else {**_SIZES, **_HEARD_SIZES}
    for place, allowed in sizes.items():
        value: Any = manifest
        for key in place:
            value = value[key]
        if type(value) is not type(allowed[0]) or value not in allowed:
            raise ValueError(f"{' '.join(place)} {value!r} is not in {allowed[0]} to {allowed[-1]}")


def _read_lambdas(manifest: Mapping[str, Any]) -> tuple[float | None, tuple[float, float] | None]:
    """Read λ and its range. `Bundle` checks them against the generator."""
    lambda_, lambda_range = manifest["lambda"], manifest["lambda_range"]
    if lambda_ is None and lambda_range is None:
        return None, None
    low, high = lambda_range
    for number in (lambda_, low, high):
        if type(number) not in (int, float):
            raise ValueError(f"λ {number!r} is not a number")
    return float(lambda_), (float(low), float(high))


def _read_number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} {value!r} is not a number of 0 or more")
    return float(value)


def _filled(build: Callable[[], Network], file: AnyPath, checksums: Mapping[str, Any]) -> Network:
    """Build a network with the weights of a file, after a check that their shapes fit."""
    try:
        tensors = parse(_content(file, checksums))
    except SafetensorError:
        raise ValueError(f"{file.name} is not a safetensors file") from None
    # The meta device allocates and draws nothing; the file's tensors are assigned below.
    with torch.device("meta"):
        network = build()
    wanted = {key: (t.shape, t.dtype) for key, t in network.state_dict().items()}
    if wanted != {key: (t.shape, t.dtype) for key, t in tensors.items()}:
        raise ValueError(f"{file.name} holds weights of other names, shapes or types")
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(requires_grad=False)


def _style(style: Sequence[float], size: int) -> Tensor:
    if len(style) != size:
        raise BundleError(f"style: {len(style)} numbers given; this bundle takes {size}")
    if not all(0.0 <= value <= 1.0 for value in style):
        raise BundleError("style: each number must lie in 0…1")
    return torch.tensor([style], dtype=torch.float32)
