"""A trained fusion as a folder to hand over: two safetensors files and a JSON manifest.

Nothing in a bundle is ever unpickled, and no name in it is ever used as a path.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor, nn

from cf_core.errors import UserError
from cf_core.fusion import Generator
from cf_core.melody import MelodyFormat
from cf_core.seeding import generator as random_generator
from cf_core.training import load_tensors, save_tensors, weights
from cf_core.vae import MelodyVAE, VAESettings

VERSION = 1
_KIND = "connective-fusion bundle"
_FILES = ("core.safetensors", "generator.safetensors")
_MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 20
_SIZES = (
    ("melody", "steps_per_beat"),
    ("melody", "bars_per_segment"),
    ("core", "latent_dim"),
    ("core", "hidden"),
    ("core", "embedding"),
    ("core", "depth"),
    ("generator", "style_dim"),
    ("generator", "hidden"),
    ("generator", "depth"),
)
_MAX_SIZE = 1 << 16
"""Largest width, depth or count that a manifest may give."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Bundle:
    """A core VAE and a fusion map that belong together, ready to transform melodies."""

    form: MelodyFormat
    core: MelodyVAE
    generator: Generator
    iterations: int
    """Iteration count that the selection chose; what `fuse` does unless told otherwise."""
    record: Mapping[str, Any]
    """Where it comes from: study, trial, selection, training figures, versions."""

    def draw_style(self, seed: int) -> tuple[float, ...]:
        """Draw a style from `seed`, in steps of 1/10,000 so that it can be written down."""
        random = random_generator(seed, "fuse", "style")
        drawn = torch.randint(10_001, (self.generator.style_dim,), generator=random)
        return tuple(step / 10_000 for step in drawn.tolist())

    @torch.no_grad()
    def fuse(
        self,
        left: Integer[np.ndarray, "T"],
        right: Integer[np.ndarray, "T"],
        style: Sequence[float],
        iterations: int,
    ) -> tuple[Integer[np.ndarray, "T"], Integer[np.ndarray, "T"]]:
        """Transform two segments' tokens so that they join.

        `style` holds one number in 0…1 per style dimension. Raises `UserError` for a style of the
        wrong length or out of range, or iterations below 1.
        """
        chosen = _style(style, self.generator.style_dim)
        if iterations < 1:
            raise UserError(f"iterations: {iterations} is too few; give 1 or more")
        latents = self.core.encode_mean(np.stack((left, right)))
        pair = (latents[:1], latents[1:])
        outputs = self.generator.iterate(pair, chosen, [iterations])[iterations]
        tokens = self.core.decode_tokens(torch.cat(outputs))
        return tokens[0], tokens[1]


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Write a bundle folder, whole or not at all; an earlier bundle at `path` is replaced.

    Raises `UserError` where `path` holds anything else or can't be written.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    earlier = path.parent / f"{temporary.name}.earlier"
    try:
        if path.exists() and not _is_bundle(path):
            raise UserError(f"{path}: exists and is not a bundle; choose another place")
        temporary.mkdir(parents=True)
        save_tensors(weights(bundle.core), temporary / _FILES[0])
        save_tensors(weights(bundle.generator), temporary / _FILES[1])
        manifest = _describe(bundle, {name: _digest(temporary / name) for name in _FILES})
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if path.exists():
            path.rename(earlier)
        temporary.rename(path)
    except OSError as error:
        raise UserError(
            f"{path}: can't be written ({error.strerror or error}); choose another place"
        ) from error
    finally:
        with suppress(OSError):
            if earlier.exists() and not path.exists():
                earlier.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


def load_bundle(path: Path) -> Bundle:
    """Read a bundle folder and check every byte of it against its manifest.

    Raises `UserError` where the folder is no bundle, can't be read, has another version, was
    altered, or holds weights of other shapes than its manifest says.
    """
    try:
        return _checked(path)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error


def _checked(path: Path) -> Bundle:
    manifest = _manifest(path)
    for name in _FILES:
        if not (path / name).is_file():
            raise UserError(f"{path}: {name} is missing; get the bundle again")
        if _digest(path / name) != manifest["sha256"].get(name):
            raise UserError(
                f"{path / name}: altered since the bundle was made (SHA-256 differs);"
                " get the bundle again"
            )
    try:
        _check_sizes(manifest)
        form = MelodyFormat(**{**manifest["melody"], "meters": tuple(manifest["melody"]["meters"])})
        settings = VAESettings(**manifest["core"])
        sizes = manifest["generator"]
        core = _filled(lambda: MelodyVAE(form, settings), path / _FILES[0])
        fusion = _filled(lambda: Generator(settings.latent_dim, **sizes), path / _FILES[1])
        return Bundle(form, core, fusion, manifest["iterations"], dict(manifest["record"]))
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: manifest and weights do not fit ({reason})") from error


def _describe(bundle: Bundle, checksums: Mapping[str, str]) -> dict[str, Any]:
    """Make the manifest."""
    layers = bundle.generator.net
    return {
        "kind": _KIND,
        "version": VERSION,
        "melody": asdict(bundle.form),
        "core": asdict(bundle.core.settings),
        "generator": {
            "style_dim": bundle.generator.style_dim,
            "hidden": layers[0].out_features,
            "depth": len(layers) // 2,
        },
        "iterations": bundle.iterations,
        "record": bundle.record,
        "sha256": checksums,
    }


def _is_bundle(path: Path) -> bool:
    """Whether a folder holds a bundle and nothing else, so that it may be replaced."""
    try:
        _manifest(path)
    except UserError:
        return False
    return {entry.name for entry in path.iterdir()} <= {_MANIFEST, *_FILES}


def _manifest(path: Path) -> dict[str, Any]:
    file = path / _MANIFEST
    if not file.is_file():
        raise UserError(f"{path}: no bundle here ({_MANIFEST} is missing)")
    if file.stat().st_size > _MAX_MANIFEST:
        raise UserError(f"{file}: too large for a manifest")
    try:
        manifest = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
        raise UserError(f"{file}: not the manifest of a {_KIND}")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{file}: bundle version {manifest.get('version')!r}; this program reads {VERSION}"
        )
    if not isinstance(manifest.get("sha256"), dict):
        raise UserError(f"{file}: no checksums")
    return manifest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_sizes(manifest: Mapping[str, Any]) -> None:
    """Refuse numbers that no bundle has, before anything is built or counted up to them."""
    sizes = {(section, key): manifest[section][key] for section, key in _SIZES}
    for (section, key), size in [*sizes.items(), (("", "iterations"), manifest["iterations"])]:
        lowest = 0 if key == "style_dim" else 1
        if not isinstance(size, int) or not lowest <= size <= _MAX_SIZE:
            raise ValueError(f"{section} {key} {size!r} is not in {lowest} to {_MAX_SIZE}".strip())


def _filled(build: Callable[[], Network], path: Path) -> Network:
    """Build a network with the weights of a file, only once their shapes are known to fit."""
    tensors = load_tensors(path)
    if tensors is None:
        raise ValueError(f"{path.name} is no safetensors file")
    with torch.device("meta"):
        wanted = {name: (t.shape, t.dtype) for name, t in build().state_dict().items()}
    if wanted != {name: (t.shape, t.dtype) for name, t in tensors.items()}:
        raise ValueError(f"{path.name} holds weights of other names, shapes or types")
    network = build()
    network.load_state_dict(tensors)
    return network


def _style(style: Sequence[float], size: int) -> Tensor:
    if len(style) != size:
        raise UserError(f"style: {len(style)} numbers given; this bundle takes {size}")
    if not all(0.0 <= value <= 1.0 for value in style):
        raise UserError("style: each number must lie in 0…1")
    return torch.tensor([style], dtype=torch.float32)
