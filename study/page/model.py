"""A bundle as one JSON-able dict, from which `engine.js` computes what `Bundle.fuse` does."""

import base64
import zlib
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cf_core.bundle import Bundle
from cf_core.continuation import ONSET_SHARE, WIDEST, Continuation
from cf_core.heard import FREE, NEAR, Heard
from cf_core.melody import MelodyFormat, bar_length


def pack_model(bundle: Bundle, *others: Bundle) -> dict[str, Any]:
    """Describe a bundle for `CFEngine.load`, with its weights rounded to half precision.

    `others` are of the same study, and so have the same core and models of notes. Of these only
    what is their own is packed: `maps` has an item for each bundle.

    `tensors` lists names and shapes in the order in which `weights` holds their numbers, row by
    row. `weights` is text: in base64, compressed by zlib, first the low bytes of all numbers, then
    the high bytes (float16, little endian). So ordered, they become smaller. Weights don't repeat,
    so zlib looks for no repetitions, which makes them smaller again.

    Raises `ValueError` for a weight that is too large for half precision, or no number.
    """
    bundles = (bundle, *others)
    tensors = _collect_shared(bundle)
    for number, each in enumerate(bundles):
        tensors |= _collect_map(each, number)
    return {
        "form": describe_form(bundle.form),
        "latentDim": bundle.core.settings.latent_dim,
        "depth": bundle.core.settings.depth,
        "maps": [_describe_map(each) for each in bundles],
        "heard": None if bundle.heard is None else _describe_heard(bundle.heard),
        "tensors": [[name, list(tensor.shape)] for name, tensor in tensors.items()],
        "weights": _compress(tensors),
    }


def describe_form(form: MelodyFormat) -> dict[str, Any]:
    """A format with all that follows from it, as JSON values.

    Lists by kind of bars are in the order of kinds. Lengths of bars and steps are in quarter notes.
    """
    return {
        "meters": list(form.meters),
        "kinds": list(form.kinds),
        "kindOfMeter": {meter: form.find_kind(meter) for meter in form.meters},
        "stepsPerBeat": form.steps_per_beat,
        "barsPerSegment": form.bars_per_segment,
        "barLengths": [float(bar_length(meter)) for meter in form.kinds],
        "bars": [list(bar) for bar in form.bars],
        "lengths": list(form.lengths),
        "steps": form.steps,
        "stepLengths": form.step_lengths.tolist(),
        "slots": form.slots.tolist(),
        "slotOf": form.slot_of.tolist(),
        "lowest": form.lowest,
        "highest": form.highest,
        "vocabulary": form.vocabulary,
    }


def _describe_map(bundle: Bundle) -> dict[str, Any]:
    return {
        "trial": bundle.record.get("trial"),
        "styleDim": bundle.generator.style_dim,
        "gated": bundle.generator.gated,
        "conditional": bundle.generator.conditional,
        "lambda": bundle.lambda_,
        "lambdaRange": None if bundle.lambda_range is None else list(bundle.lambda_range),
        "iterations": bundle.iterations,
        "price": None if bundle.heard is None else bundle.heard.price,
    }


def _describe_heard(heard: Heard) -> dict[str, Any]:
    return {
        "drafts": heard.drafts,
        "imbalance": heard.imbalance,
        "lead": heard.lead,
        "free": FREE,
        "near": NEAR,
        "chance": heard.fix_chance(0)[:, 0].tolist(),
        "widest": WIDEST,
        "onsetShare": ONSET_SHARE,
        "lags": heard.writer.forwards.lags.tolist(),
    }


def _collect_shared(bundle: Bundle) -> dict[str, Float[Tensor, "..."]]:
    """Weights of the core and of the models of notes that the engine needs, by name.

    Linear maps are laid out as `[outputs, inputs]`, except the first one of the encoder: a token
    picks some of its inputs.
    """
    core = bundle.core.state_dict(prefix="core.")
    core["core.read.weight"] = core["core.read.weight"].T
    for name in ("core.posterior.weight", "core.posterior.bias"):
        core[name] = core[name].chunk(2)[0]  # the means
    tensors = dict(core)
    if bundle.heard is not None:
        writer = bundle.heard.writer
        models: dict[str, Continuation] = {
            "forwards": writer.forwards,
            "backwards": writer.backwards,
        }
        for name, model in models.items():
            tensors |= model.state_dict(prefix=f"{name}.")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _collect_map(bundle: Bundle, place: int) -> dict[str, Float[Tensor, "..."]]:
    layers = zip(bundle.generator.net.weights, bundle.generator.net.biases, strict=True)
    tensors = {}
    for number, (weight, bias) in enumerate(layers):
        tensors[f"maps.{place}.{number}.weight"] = weight.T.detach()
        tensors[f"maps.{place}.{number}.bias"] = bias[0].detach()
    return tensors


def _compress(tensors: dict[str, Float[Tensor, "..."]]) -> str:
    numbers = np.concatenate([tensor.numpy().ravel() for tensor in tensors.values()])
    if not (np.abs(numbers) <= np.finfo(np.float16).max).all():
        raise ValueError("a weight is too large for half precision, or no number")
    planes = numbers.astype("<f2").view(np.uint8).reshape(-1, 2).T
    coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    return base64.b64encode(coder.compress(planes.tobytes()) + coder.flush()).decode()
