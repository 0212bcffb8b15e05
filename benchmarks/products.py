"""The matrix products that a training step can't do without, and nothing else of it.

Counted from the mathematics: the chain rule asks each linear map of a network for one product
forward, one for its weights' gradient and one for its inputs' gradient, each only where it is used.
Counting what a real step dispatches gives the same list (a test compares them).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from cf_core.fusion import FusionSettings
from cf_core.melody import MelodyFormat
from cf_core.pack import COMPARED
from cf_core.vae import VAESettings


class Product(NamedTuple):
    """A matrix of `rows` × `inner` times one of `inner` × `columns`."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiplication and an addition each."""
        return 2 * self.rows * self.inner * self.columns


Sizes = Sequence[int]
"""Widths of an MLP: inputs, hidden layers, outputs."""


def forward(sizes: Sizes, rows: int) -> list[Product]:
    """Outputs of every layer on `rows` inputs."""
    return [Product(rows, i, o) for i, o in pairwise(sizes)]


def weight_gradients(sizes: Sizes, rows: int) -> list[Product]:
    """The gradient of every layer's weights."""
    return [Product(i, rows, o) for i, o in pairwise(sizes)]


def input_gradients(sizes: Sizes, rows: int, *, first: bool) -> list[Product]:
    """The gradient of every layer's inputs; of the first layer's only where it is asked for."""
    return [Product(rows, o, i) for i, o in pairwise(sizes)][0 if first else 1 :]


def backward(sizes: Sizes, rows: int) -> list[Product]:
    """All that training the weights takes: the inputs of the network itself have no gradient."""
    return weight_gradients(sizes, rows) + input_gradients(sizes, rows, first=False)


def penalty(sizes: Sizes, rows: int) -> list[Product]:
    """The gradient by the inputs, and the weights' gradient of its norm.

    With leaky rectifiers the gradient is a chain of products with the weights alone: behind it lie
    each layer's weights, and each layer but the last once more in the forward direction.
    """
    twice = weight_gradients(sizes, rows) + forward(sizes[:-1], rows)
    return input_gradients(sizes, rows, first=True) + twice


def fusion_step(latent_dim: int, style_dim: int, settings: FusionSettings) -> list[Product]:
    """One trial's step: `d_steps` updates of D and one of G, without λ as an input."""
    batch, hidden = settings.batch, [settings.hidden] * settings.depth
    g = [2 * latent_dim + style_dim, *hidden, 4 * latent_dim]
    d = [2 * latent_dim, *hidden, 1]
    real, inputs = batch, 2 * batch
    update_d = forward(g, inputs)
    # Real pairs, inputs as they are, and inputs fused.
    for rows in (real, inputs, inputs):
        update_d += forward(d, rows) + backward(d, rows)
    update_d += penalty(d, real)
    update_g = forward(d, inputs) + input_gradients(d, inputs, first=True)
    for rows in (inputs, inputs // COMPARED):
        update_g += forward(g, rows) + backward(g, rows)
    return settings.d_steps * update_d + update_g


def decoding(form: MelodyFormat, settings: VAESettings, rows: int) -> list[Product]:
    """Token logits of `rows` latents."""
    body = [settings.hidden] * (settings.depth + 1)
    write = forward([settings.latent_dim, *body, form.steps * settings.embedding], rows)
    return [*write, Product(rows * form.steps, settings.embedding, form.vocabulary)]


def vae_step(form: MelodyFormat, settings: VAESettings) -> list[Product]:
    """One step of the core. Embeddings learn as well, so the first map's inputs have gradients."""
    body = [settings.hidden] * (settings.depth + 1)
    encoder = [form.steps * settings.embedding, *body, 2 * settings.latent_dim]
    there = forward(encoder, settings.batch) + decoding(form, settings, settings.batch)
    back = [
        gradient
        for rows, inner, columns in there
        for gradient in (Product(inner, rows, columns), Product(rows, columns, inner))
    ]
    return there + back


def bare(
    products: Sequence[Product], trials: int = 1, device: torch.device | str = "cpu"
) -> Callable[[], None]:
    """What does just these products, each for `trials` pairs of matrices that are there already."""
    random = torch.Generator(device).manual_seed(0)
    stack = () if trials == 1 else (trials,)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(*stack, rows, columns, generator=random, device=device)

    operands = {
        product: (matrix(m, k), matrix(k, n), matrix(m, n))
        for product in set(products)
        for m, k, n in [product]
    }
    multiply = torch.bmm if stack else torch.mm

    def run() -> None:
        for product in products:
            left, right, out = operands[product]
            multiply(left, right, out=out)

    return run
