"""The page of a study: one file in which its points can be seen, heard and compared.

It needs no server and no network. A policy in its head forbids it both, and runs nothing but the
scripts that are written here. Whatever comes from a study is data: scripts write it as text.
"""

import base64
import gzip
import hashlib
import json
import re
from importlib.resources import files
from typing import Any

from cf_core.bundle import load_bundle
from cf_core.errors import BundleError, RecordsError
from cf_core.files import AnyPath, replacing
from study.page.data import collect
from study.store import Store

MAX_BYTES = 10_000_000
"""Largest page that is written."""
_PAIRS = (8, 4, 2, 1)
"""How many input pairs are shown; fewer where the page would be too large."""
_SCRIPTS = (
    "engine.js",
    "midi.js",
    "dom.js",
    "data.js",
    "roll.js",
    "sound.js",
    "chart.js",
    "detail.js",
    "compare.js",
    "live.js",
    "blind.js",
    "page.js",
)
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_page(store: Store) -> AnyPath:
    """Write `report.html` into a finished study's folder, from its tables, core and bundle.

        >>> import study
        >>> path = study.write_page(study.open("results/quickstart"))

    Raises `RecordsError` where the study has no points yet, lacks its core, or has so many points
    that the page would be larger than `MAX_BYTES`.
    """
    model = _pack_bundle(store)
    for count in _PAIRS:
        page = build(collect(store, count), model).encode()
        if len(page) <= MAX_BYTES:
            break
    else:
        raise RecordsError(
            f"{store.root}: has too many points for a page of {MAX_BYTES // 10**6} MB; look at"
            " them with `cf-study frontier` and `cf-study query`"
        )
    path = store.root / "report.html"
    with replacing(path) as temporary:
        temporary.write_bytes(page)
    return path


def build(study: dict[str, Any], model: dict[str, Any] | None) -> str:
    """Join the parts of the page around what `collect` and `pack_model` give."""
    style, script = _read("page.css"), "\n".join(filter(None, map(_read, _SCRIPTS)))
    parts = {
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "style": style,
        "study": embed({"gzip": _compress(study)}),
        "model": embed(model),
        "script": script,
    }
    # In one pass: what is put in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def embed(value: object) -> str:
    """Write a value as JSON in which nothing can end a script or begin markup."""
    return json.dumps(value, separators=(",", ":")).translate(_ESCAPES)


def _compress(value: object) -> str:
    # Without a time in it, so that equal studies have equal pages.
    content = json.dumps(value, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    found = files("study.page").joinpath(name)
    return found.read_text("utf-8") if found.is_file() else ""


def _pack_bundle(store: Store) -> dict[str, Any] | None:
    """The study's model for the page; None where none was selected yet."""
    try:
        bundle = load_bundle(store.root / "bundle")
    except BundleError:
        return None
    from study.page.model import pack_model  # noqa: PLC0415

    return pack_model(bundle)
