"""A bundle as ONNX graphs, which programs in any language run without this package.

The folder holds `encode.onnx` (segments to latents), `apply.onnx` (one application of G),
`decode.onnx` (latents to tokens) and, of a bundle of the scheme `heard`, `rate.onnx` and
`rewrite.onnx` (the models of notes). `card.json` says what the numbers mean, and `vectors.json` has
inputs and what must come of them. The networks are in `cf_core.export_graphs`.

Letters in shapes: `B` pairs, `Z` latent dimensions.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from keyword import iskeyword
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cf_core.bundle import Bundle, describe_bundle
from cf_core.errors import BundleError, say_missing
from cf_core.export_graphs import Graph, list_graphs
from cf_core.files import replacing_folder
from cf_core.heard import FREE, NEAR, Heard
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from cf_core.seeding import make_random
from cf_core.training import limit_threads

OPSET = 18
"""The version of ONNX's operators that the graphs use."""
VERSION = 2
_KIND = "connective-fusion export"
_CARD, _VECTORS = "card.json", "vectors.json"
_GRAPHS = ("encode", "apply", "decode", "rate", "rewrite")
_MAX_CARD = 1 << 20
"""Largest card that is read, in bytes."""
_PER_KIND = 8
"""Pairs of each kind of bars in the test vectors."""
_RULE = (
    "tokens is the likeliest row in which every hold has a note: of all rows in which no hold is"
    " the first token or follows a rest, it has the largest sum of logits. Marks follow its last"
    " step. decode.onnx has this rule inside."
)
_HEARD = (
    "The score of a pair is fit, as rate.onnx gives it, less imbalance for each token by which the"
    " edit distances of both halves from the inputs, as decoded, differ; at a lead other than 0.5"
    " each distance is weighed with the other half's share of the step. An application is kept"
    " unless it scores less; then it is undone, and no more are needed. The result is decoded and"
    " drawn anew as often as drafts says, at the price of λ; each half that this changes is encoded"
    " and decoded. Of the result and its drafts, the first with the highest score is what comes"
    " out. A half that is decoded as its input is keeps the input's tokens. The price is price at λ"
    " = 1 and 0 at λ = free, linear in log λ between, and rises by near with every factor of ten"
    " above 1. With another lead, each half takes a share of every step of G, min(1, 2 lead) of the"
    " left and min(1, 2 (1 - lead)) of the right one, and its price is divided by its share; a half"
    " whose share is 0 is not drawn anew."
)


def export_bundle(
    bundle: Bundle, path: Path, progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Write the folder of an export, whole or not at all; return the sizes of its files in bytes.

    `progress` is called with how many graphs are done, and of how many, before each one. An earlier
    export at `path` is replaced. Equal bundles give equal bytes with equal versions of the
    libraries. Raises `BundleError` where the extra `export` is not installed, where `path` holds
    anything but an export, and where it can't be written.
    """
    _check_installed()
    with replacing_folder(path, "an export", _is_export, BundleError) as temporary:
        graphs = list_graphs(bundle)
        files = {}
        for done, (name, graph) in enumerate(graphs.items()):
            if progress is not None:
                progress(done, len(graphs))
            files[f"{name}.onnx"] = _serialise(graph)
        files[_VECTORS] = json.dumps(_make_vectors(bundle)).encode()
        files[_CARD] = (json.dumps(_make_card(bundle, graphs, files), indent=2) + "\n").encode()
        for name, content in files.items():
            (temporary / name).write_bytes(content)
    return {name: len(content) for name, content in files.items()}


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401, PLC0415  (an extra)
        import onnxscript  # noqa: F401, PLC0415  (an extra; torch.onnx translates with it)
    except ModuleNotFoundError as error:
        raise BundleError(say_missing(error.name, "exporting", "export")) from None


def _is_export(path: Path) -> bool:
    """Whether a folder holds an export and nothing else, or nothing, and so may be replaced."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    if not names:
        return True
    card = path / _CARD
    if not card.is_file() or card.stat().st_size > _MAX_CARD:
        return False
    try:
        known = json.loads(card.read_text())
    except (ValueError, RecursionError):
        return False
    ours = {_CARD, _VECTORS, *(f"{name}.onnx" for name in _GRAPHS)}
    return isinstance(known, dict) and known.get("kind") == _KIND and names <= ours


def _serialise(graph: Graph) -> bytes:
    """Translate a graph to ONNX, without what says where and when that was done."""
    # Two inputs that are one tensor in the example would be one in the graph.
    copies = {name: each.example.clone() for name, each in graph.inputs.items()}
    examples = {f"{name}_" if iskeyword(name) else name: copy for name, copy in copies.items()}
    shapes = {name: {0: torch.export.Dim("batch")} for name in examples}
    with torch.no_grad(), _quiet():
        network = graph.network.eval()
        traced = torch.export.export(network, (), kwargs=examples, dynamic_shapes=shapes)
        program = torch.onnx.export(
            traced,
            (),
            kwargs=examples,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamo=True,
            verbose=False,
        )
    model = cast("torch.onnx.ONNXProgram", program).model_proto
    _clean(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which warns of what it does without and of its own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _clean(message: Any) -> None:
    """Drop what a graph does not need, such as the paths of source files; name its batches."""
    for field, value in message.ListFields():
        if field.name in {"metadata_props", "doc_string", "value_info"}:
            message.ClearField(field.name)
        elif field.name == "dim_param":
            message.dim_param = "batch"
        elif field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                _clean(part)


def _make_vectors(bundle: Bundle) -> dict[str, Any]:
    """Pairs decoded from draws of the prior, in all kinds of bars, and what comes of them."""
    core, random = bundle.core, make_random(0, "export", "vectors")
    kinds = np.arange(len(bundle.form.kinds)).repeat(_PER_KIND)
    count, own = len(kinds), torch.from_numpy(kinds)
    drawn = torch.randn(2 * count, core.settings.latent_dim, generator=random)
    style = torch.randint(10_001, (count, bundle.generator.style_dim), generator=random) / 10_000
    chance = torch.rand(count, generator=random).numpy()
    low, high = bundle.lambda_range or (1.0, 1.0)
    lambdas = [float(f"{low * (high / low) ** each:.3g}") for each in chance]
    with limit_threads(1):
        halves = np.split(core.decode_tokens(drawn, np.tile(kinds, 2)), 2)
        latents = core.encode_mean(halves[0]), core.encode_mean(halves[1])
        counts = [1, bundle.iterations]
        with torch.no_grad():
            fused = bundle.generator.iterate(latents, style, counts, torch.tensor(lambdas), own)
        once, last = (fused[each] for each in counts)
        outputs = [core.decode_tokens(half, kinds) for half in last]
        chosen = lambdas if bundle.lambda_range else [None] * count
        rows = zip(*halves, style.tolist(), chosen, strict=True)
        made = [
            bundle.fuse(left, right, how, bundle.iterations, each)
            for left, right, how, each in rows
        ]
    inputs = {"left": halves[0].tolist(), "right": halves[1].tolist(), "kind": kinds.tolist()}
    inputs |= {"style": _write(style)} | ({"lambda": lambdas} if bundle.lambda_range else {})
    heard = {} if bundle.heard is None else {"chance": _write(bundle.heard.fix_chance(0)[:, 0])}
    named = zip(("left", "right"), zip(*made, strict=True), strict=True)
    return {
        "iterations": bundle.iterations,
        "inputs": inputs,
        **heard,
        "latents": _write_pair(*latents),
        "applied_once": _write_pair(*once),
        "applied": _write_pair(*last),
        "outputs": {"left": outputs[0].tolist(), "right": outputs[1].tolist()},
        "fused": {half: [each.tolist() for each in own] for half, own in named},
    }


def _write_pair(left: Float[Tensor, "B Z"], right: Float[Tensor, "B Z"]) -> dict[str, Any]:
    return {"left": _write(left), "right": _write(right)}


def _write(numbers: Float[Tensor, "..."]) -> list[Any]:
    """As few digits as give the same 32-bit numbers again."""
    digits: list[Any] = numbers.numpy().astype(str).astype(np.float64).tolist()
    return digits


def _make_card(
    bundle: Bundle, graphs: Mapping[str, Graph], files: Mapping[str, bytes]
) -> dict[str, Any]:
    """What a program must know to use the graphs."""
    manifest, heard = describe_bundle(bundle), bundle.heard
    return {
        "kind": _KIND,
        "version": VERSION,
        "opset": OPSET,
        "graphs": {name: _describe(graph) for name, graph in graphs.items()},
        "melody": _describe_form(bundle.form),
        "latent_dim": bundle.core.settings.latent_dim,
        "style": {"dimensions": bundle.generator.style_dim, "low": 0.0, "high": 1.0},
        "lambda": bundle.lambda_,
        "lambda_range": bundle.lambda_range,
        "iterations": bundle.iterations,
        "decoding_rule": _RULE,
        "scheme": "poster" if heard is None else "heard",
        "heard": None if heard is None else _describe_heard(heard),
        "vectors": {
            "file": _VECTORS,
            "about": (
                "inputs encoded, applied once and iterations times, and decoded to outputs; fused"
                " is what the package makes of the inputs, in the scheme heard with this chance,"
                " which is that of seed 0"
            ),
        },
        "bundle": {"sha256": manifest["sha256"], "record": manifest["record"]},
        "versions": {name: version(name) for name in ("connective-fusion", "torch", "onnx")},
        "sha256": {name: sha256(content).hexdigest() for name, content in files.items()},
        "bytes": {name: len(content) for name, content in files.items()},
    }


def _describe_heard(heard: Heard) -> dict[str, Any]:
    return {
        "about": _HEARD,
        "price": heard.price,
        "free": FREE,
        "near": NEAR,
        "drafts": heard.drafts,
        "imbalance": heard.imbalance,
        "lead": heard.lead,
    }


def _describe(graph: Graph) -> dict[str, Any]:
    inputs = [
        {
            "name": name,
            "type": str(each.example.dtype).removeprefix("torch."),
            "shape": ["batch", *each.example.shape[1:]],
            "about": each.about,
        }
        for name, each in graph.inputs.items()
    ]
    outputs = [{"name": name, "about": about} for name, about in graph.outputs.items()]
    return {"about": graph.about, "inputs": inputs, "outputs": outputs}


def _describe_form(form: MelodyFormat) -> dict[str, Any]:
    """How a segment is laid out as tokens."""
    marked = len(form.kinds) > 1
    kinds = [
        {
            "meters": [meter for meter in form.meters if form.find_kind(meter) == number],
            "steps": form.lengths[number],
            "bar": form.bars[number],
            "slots": form.slot_of[number, : form.lengths[number]].tolist(),
            "mark": -1 - number if marked else None,
        }
        for number in range(len(form.kinds))
    ]
    return {
        "about": (
            "A segment is a row of tokens: one for each step, then marks up to the last column."
            " bar is the grid lines of a bar at which steps begin, steps_per_beat of them in a"
            " quarter note; slots is where the network has each step."
        ),
        "kinds": kinds,
        "tokens": form.steps,
        "bars_per_segment": form.bars_per_segment,
        "steps_per_beat": form.steps_per_beat,
        "lowest": form.lowest,
        "highest": form.highest,
        "vocabulary": form.vocabulary,
        "rest": REST,
        "hold": HOLD,
        "first_pitch": FIRST_PITCH,
    }
