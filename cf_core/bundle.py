"""A trained fusion as a folder to hand over: two safetensors files and a JSON manifest.

Nothing in a bundle is ever unpickled, and no name in it is ever used as a path.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from cf_core.errors import UserError
from cf_core.fusion import Generator
from cf_core.melody import MelodyFormat
from cf_core.seeding import generator as random_generator
from cf_core.training import load_tensors, save_tensors, weights
from cf_core.vae import MelodyVAE, VAESettings

VERSION = 1
_KIND = "connective-fusion bundle"
_FILES = ("core.safetensors", "generator.safetensors")
_MAX_MANIFEST = 1 << 20


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

    @torch.no_grad()
    def fuse(
        self,
        left: Integer[np.ndarray, "T"],
        right: Integer[np.ndarray, "T"],
        style: list[float] | None = None,
        iterations: int | None = None,
        seed: int = 0,
    ) -> tuple[Integer[np.ndarray, "T"], Integer[np.ndarray, "T"]]:
        """Transform two segments' tokens so that they join.

        `style` holds one number in 0…1 per style dimension; without it, one is drawn from `seed`.
        Raises `UserError` for a style of the wrong length or out of range, or iterations below 1.
        """
        size = self.generator.style_dim
        if style is None:
            chosen = torch.rand(1, size, generator=random_generator(seed, "fuse", "style"))
        else:
            chosen = _style(style, size)
        count = self.iterations if iterations is None else iterations
        if count < 1:
            raise UserError(f"iterations: {count} is too few; give 1 or more")
        latents = self.core.encode_mean(np.stack((left, right)))
        pair = (latents[:1], latents[1:])
        outputs = self.generator.iterate(pair, chosen, [count])[count]
        tokens = self.core.decode_tokens(torch.cat(outputs))
        return tokens[0], tokens[1]


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Write a bundle folder, whole or not at all; an earlier bundle at `path` is replaced.

    Raises `UserError` where `path` holds something else.
    """
    if path.exists() and not (path / "manifest.json").is_file():
        raise UserError(f"{path}: exists and is not a bundle; choose another place")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_tensors(weights(bundle.core), temporary / _FILES[0])
    save_tensors(weights(bundle.generator), temporary / _FILES[1])
    first = bundle.generator.net[0]
    manifest = {
        "kind": _KIND,
        "version": VERSION,
        "melody": asdict(bundle.form),
        "core": asdict(bundle.core.settings),
        "generator": {
            "style_dim": bundle.generator.style_dim,
            "hidden": first.out_features,
            "depth": len(bundle.generator.net) // 2,
        },
        "iterations": bundle.iterations,
        "record": bundle.record,
        "sha256": {name: _digest(temporary / name) for name in _FILES},
    }
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)


def load_bundle(path: Path) -> Bundle:
    """Read a bundle folder and check every byte of it against its manifest.

    Raises `UserError` where the folder is no bundle, has another version, was altered, or holds
    weights of other shapes than its manifest says.
    """
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
        form = MelodyFormat(**{**manifest["melody"], "meters": tuple(manifest["melody"]["meters"])})
        settings = VAESettings(**manifest["core"])
        core = MelodyVAE(form, settings)
        fusion = Generator(latent_dim=settings.latent_dim, **manifest["generator"])
        core.load_state_dict(_tensors(path / _FILES[0]))
        fusion.load_state_dict(_tensors(path / _FILES[1]))
        return Bundle(form, core, fusion, int(manifest["iterations"]), dict(manifest["record"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: manifest and weights do not fit ({reason})") from error


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        raise UserError(f"{path}: no bundle here (manifest.json is missing)")
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


def _tensors(path: Path) -> dict[str, Tensor]:
    tensors = load_tensors(path)
    if tensors is None:
        raise ValueError(f"{path.name} is no safetensors file")
    return tensors


def _style(style: list[float], size: int) -> Tensor:
    if len(style) != size:
        raise UserError(f"style: {len(style)} numbers given; this bundle takes {size}")
    if not all(0.0 <= value <= 1.0 for value in style):
        raise UserError("style: each number must lie in 0…1")
    return torch.tensor([style], dtype=torch.float32)
