"""The page of a study: one file in which its points can be seen, heard and compared.

It needs no server and no network. A policy in its head forbids it both, and runs nothing but the
scripts that are written here. Whatever comes from a study is data: scripts write it as text.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from typing import Any

import numpy as np

from cf_core.bundle import Bundle, load_bundle
from cf_core.errors import BundleError, RecordsError, SelectionError
from cf_core.files import AnyPath, replacing
from study.page.data import collect
from study.page.model import pack_model
from study.select import assemble, rank_candidates, read_rule
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
_TOO_LARGE = {
    "problem": "The model is too large for this page; the commands fuse and serve use it."
}
_NOT_HALF = {
    "problem": "Weights of this model are no numbers, or too large for this page, which holds them"
    " in half precision; the commands fuse and serve use them as they are."
}
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_page(store: Store) -> AnyPath:
    """Write `report.html` into a finished study's folder, from its tables, core and bundle.

    A model that makes the page larger than `MAX_BYTES` is left out, and the page says so. Beside a
    selected model of one λ it holds the best that takes any λ, if there is room.

        >>> import study
        >>> path = study.write_page(study.open("results/quickstart"))

    Raises `RecordsError` where the study has no points yet, lacks its core, has so many points that
    the page would be too large for these alone, or is a publication.
    """
    store.need_whole("weights")
    models = _pack_models(store)
    model = next(models)
    for count in _PAIRS:
        content = collect(store, count)
        page = build(content, model).encode()
        while len(page) > MAX_BYTES and (smaller := next(models, None)):
            model = smaller
            page = build(content, model).encode()
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


def build(study: dict[str, Any], model: dict[str, Any]) -> str:
    """Join the parts of the page around what `collect` and `pack_model` give.

    In place of a model, a `problem` says why there is none.
    """
    style, script = _read("page.css"), "\n".join(map(_read, _SCRIPTS))
    # Without a time in it, so that equal studies have equal pages.
    content = gzip.compress(json.dumps(study, separators=(",", ":")).encode(), mtime=0)
    parts = {
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "style": style,
        "study": pack_bytes(content),
        "model": embed(model | {"weights": None}),
        "weights": pack_bytes(base64.b64decode(model.get("weights", ""))),
        "script": script,
    }
    # In one pass: what is put in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def embed(value: object) -> str:
    """Write a value as JSON in which nothing can end a script or begin markup."""
    return json.dumps(value, separators=(",", ":")).translate(_ESCAPES)


def pack_bytes(content: bytes) -> str:
    """Write bytes as text of the letters 1 to 127, seven bits in each, the highest bits first.

    Letters that would not come through HTML as they are (null, carriage return, and `<` where it
    might begin markup) are moved up by 128. In UTF-8 this is an eighth smaller than base64, which
    would not leave room for a model.
    """
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    filled = np.pad(bits, (0, -len(bits) % 7)).reshape(-1, 7)
    letters = (np.packbits(filled, axis=1)[:, 0] >> 1).astype("<u4")
    following = np.append(letters[1:], ord("/"))
    markup = (letters == ord("<")) & np.isin(following, [ord("/"), ord("!")])
    letters[np.isin(letters, [0, ord("\r")]) | markup] += 128
    return letters.tobytes().decode("utf-32-le")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    return files("study.page").joinpath(name).read_text("utf-8")


def _pack_models(store: Store) -> Iterator[dict[str, Any]]:
    """The study's model for the page, with less and less in it; the last says why there is none."""
    folder = store.root / "bundle"
    if not folder.exists():
        yield {"problem": "This study has no model yet: the command cf-study select chooses one."}
        return
    try:
        bundle = load_bundle(folder)
    except BundleError:
        yield {"problem": "The model is damaged: the command cf-study select writes it anew."}
        return
    problem, others = _NOT_HALF, _find_conditional(store, bundle)
    for count in reversed(range(len(others) + 1)):
        with suppress(ValueError):
            yield pack_model(bundle, *others[:count])
            problem = _TOO_LARGE
    yield problem


def _find_conditional(store: Store, selected: Bundle) -> list[Bundle]:
    """Where a bundle has one λ, what the study's rule chooses of the trials that take any."""
    if selected.generator.conditional:
        return []
    rule = read_rule(store)
    try:
        return [assemble(store, rule, rank_candidates(store, rule, ["conditional"]))]
    except (SelectionError, RecordsError):  # there is none that meets the rule, or it is lost
        return []
