"""The networks that become ONNX graphs (`cf_core.export`), and what goes in and out of each.

A graph has only the inputs that its network uses: λ where the generator takes it, a kind of bars
where there are several. Each loop is PyTorch's `scan`, which becomes ONNX's.

Letters in shapes: `B` pairs or segments, `T` tokens, `V` vocabulary, `Z` latent dimensions, `S`
style dimensions, `D` drafts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch._higher_order_ops import scan  # public in no module, though the exporter knows it

from cf_core.bundle import Bundle
from cf_core.continuation import Continuation, drop_hanging_holds, favour, follow_pitch, reverse
from cf_core.kinds import find_marks, look_up, take_kinds
from cf_core.losses import Pair
from cf_core.melody import FIRST_PITCH
from cf_core.vae import MelodyVAE, find_hanging, search_likeliest
from cf_core.writer import Writer


# The batch is read off with `shape[0]`, since `len` would fix it in the graph.
class _Encode(nn.Module):
    def __init__(self, core: MelodyVAE) -> None:
        super().__init__()
        self.core = core

    def forward(self, tokens: Tensor, kind: Tensor | None = None) -> tuple[Tensor]:
        return (self.core.encode(tokens, take_kinds(kind, tokens.shape[0], self.core.form))[0],)


class _Apply(nn.Module):
    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.generator, self.form = bundle.generator, bundle.form

    def forward(
        self,
        left: Tensor,
        right: Tensor,
        style: Tensor | None = None,
        lambda_: Tensor | None = None,
        kind: Tensor | None = None,
    ) -> Pair:
        own = left.new_zeros(left.shape[0]) if lambda_ is None else lambda_
        condition = self.generator.join_conditions(own, take_kinds(kind, left.shape[0], self.form))
        chosen = left.new_zeros(left.shape[0], 0) if style is None else style
        applied: Pair = self.generator((left, right), chosen, condition)
        return applied


class _Decode(nn.Module):
    def __init__(self, core: MelodyVAE) -> None:
        super().__init__()
        self.core = core

    def forward(self, latents: Tensor, kind: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kinds = take_kinds(kind, latents.shape[0], self.core.form)
        logits = self.core.decode(latents, kinds)
        tokens = logits.argmax(-1)
        hangs = find_hanging(tokens)[:, None]
        tokens = torch.where(hangs, search_likeliest(logits, scan), tokens)
        marks = find_marks(kinds, self.core.form)
        return torch.where(marks, -1 - kinds[:, None], tokens), logits


class _Rate(nn.Module):
    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.notes = writer.forwards

    def forward(self, left: Tensor, right: Tensor, kind: Tensor | None = None) -> tuple[Tensor]:
        kinds = take_kinds(kind, left.shape[0], self.notes.form)
        left, right = drop_hanging_holds(left), drop_hanging_holds(right)
        steps = torch.arange(right.shape[1]).expand(right.shape[0], -1)
        first = look_up(self.notes.lengths, kinds)[:, None]
        after = self._rate(_join(left, right, first), right, kinds, first + steps)
        alone = self._rate(right, right, kinds, steps)
        return (after - alone,)

    def _rate(
        self,
        melody: Int64[Tensor, "B N"],
        right: Int64[Tensor, "B T"],
        kinds: Int64[Tensor, "B"],
        asked: Int64[Tensor, "B T"],
    ) -> Float[Tensor, "B"]:
        rated = self.notes.predict(melody, follow_pitch(melody), kinds, asked)
        own = rated.gather(2, right.clamp(min=0)[..., None]).squeeze(2)
        return torch.where(find_marks(kinds, self.notes.form), 0.0, own).sum(1)


class _Rewrite(nn.Module):
    """`Writer.rewrite`, one step after another, of pairs of several kinds of bars at once."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.writer, self.form = writer, writer.forwards.form

    def forward(
        self,
        left: Tensor,
        right: Tensor,
        price: Tensor,
        chance: Tensor,
        kind: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        kinds = take_kinds(kind, left.shape[0], self.form)
        left, right = drop_hanging_holds(left), drop_hanging_holds(right)
        notes = self.writer.forwards
        right = self._draw(notes, left, right, price[:, 1], chance[:, 1], kinds)
        start, near, notes = reverse(right), reverse(left), self.writer.backwards
        left = reverse(self._draw(notes, start, near, price[:, 0], chance[:, 0], kinds))
        return left, right

    def _draw(
        self,
        notes: Continuation,
        start: Int64[Tensor, "B T"],
        near: Int64[Tensor, "B T"],
        price: Float[Tensor, "B"],
        chance: Float[Tensor, "B T"],
        kinds: Int64[Tensor, "B"],
    ) -> Int64[Tensor, "B T"]:
        first = look_up(notes.lengths, kinds)[:, None]
        melody = _join(start, near, first)
        places = torch.arange(melody.shape[1])

        def draw(state: Pair, row: tuple[Tensor, Tensor, Tensor]) -> tuple[Pair, tuple[Tensor]]:
            (tokens, pitch), (step, favoured, bound) = state, row
            asked = first + step
            rated = notes.predict(tokens, pitch, kinds, asked)
            up_to = favour(rated, favoured[:, None], price).softmax(2).cumsum(2).squeeze(1)
            below = (up_to <= bound[:, None] * up_to[:, -1:]).sum(1, keepdim=True)
            drawn = below.clamp(max=up_to.shape[1] - 1)
            struck = torch.where(drawn >= FIRST_PITCH, drawn, pitch.gather(1, asked - 1))
            is_here = places == asked
            tokens, pitch = (
                torch.where(is_here, new, old) for new, old in ((drawn, tokens), (struck, pitch))
            )
            return (tokens, pitch), (drawn.squeeze(1),)

        rows = torch.arange(near.shape[1]), near.clamp(min=0).T, chance.T
        _, (drawn,) = scan(draw, (melody, follow_pitch(melody)), rows)
        return torch.where(find_marks(kinds, self.form), near, drawn.T)


def _join(
    left: Int64[Tensor, "B T"], right: Int64[Tensor, "B T"], first: Int64[Tensor, "B 1"]
) -> Int64[Tensor, "B N"]:
    """The right half behind the steps of the left one, which has no marks then."""
    last = left.shape[1] - 1
    places = torch.arange(2 * left.shape[1]).expand(left.shape[0], -1)
    before, behind = left.gather(1, places.clamp(max=last)), (places - first).clamp(0, last)
    return torch.where(places < first, before, right.gather(1, behind))


@dataclass(frozen=True)
class Input:
    """An input of a graph, by an example of two rows."""

    example: Tensor
    about: str
    """What the numbers mean."""


@dataclass(frozen=True)
class Graph:
    """A network, and what its numbers mean."""

    about: str
    network: nn.Module
    inputs: Mapping[str, Input]
    outputs: Mapping[str, str]
    """What the numbers of each output mean."""


def list_graphs(bundle: Bundle) -> dict[str, Graph]:
    """All graphs of a bundle, by name; `rate` and `rewrite` only where its scheme is `heard`."""
    form, size = bundle.form, bundle.core.settings.latent_dim
    tokens = Input(torch.zeros(2, form.steps, dtype=torch.int64), "segments, with their marks")
    latents = Input(torch.zeros(2, size), "latents of segments")
    kind: dict[str, Input] = {}
    if len(form.kinds) > 1:
        kind["kind"] = Input(torch.tensor([0, 1]), "of each row, index into melody.kinds")
    chosen: dict[str, Input] = {}
    if (count := bundle.generator.style_dim) > 0:
        chosen["style"] = Input(torch.zeros(2, count), "of each pair, numbers in 0 to 1")
    if bundle.generator.conditional:
        chosen["lambda"] = Input(torch.ones(2), "of each pair, in lambda_range")
    halves = {"left": latents, "right": latents}
    graphs = {
        "encode": Graph(
            "Segments to the means of their posteriors.",
            _Encode(bundle.core),
            {"tokens": tokens, **kind},
            {"latents": latents.about},
        ),
        "apply": Graph(
            "One application of G. Feed its outputs in again for the next one.",
            _Apply(bundle),
            {**halves, **chosen, **kind},
            {"left_fused": "latents of left halves", "right_fused": "latents of right halves"},
        ),
        "decode": Graph(
            "Latents to segments, by the rule in decoding_rule.",
            _Decode(bundle.core),
            {"latents": latents, **kind},
            {"tokens": tokens.about, "logits": "of each token at each step"},
        ),
    }
    if bundle.heard is not None:
        graphs |= _list_heard(bundle.heard.writer, {"left": tokens, "right": tokens}, kind)
    return graphs


def _list_heard(
    writer: Writer, halves: Mapping[str, Input], kind: Mapping[str, Input]
) -> dict[str, Graph]:
    shape = 2, 2, writer.forwards.form.steps
    price = Input(torch.ones(2, 2), "of a changed token of the left and of the right half, in nats")
    chance = Input(torch.zeros(shape), "uniform in 0 to 1, for each token of both halves")
    return {
        "rate": Graph(
            "How much two halves tell of each other, log p(right | left) - log p(right).",
            _Rate(writer),
            {**halves, **kind},
            {"fit": "of each pair, in nats"},
        ),
        "rewrite": Graph(
            "The right half drawn anew after the left one, then the left half before the new right"
            " one, both near the given ones.",
            _Rewrite(writer),
            {**halves, "price": price, "chance": chance, **kind},
            {"left_written": "left halves", "right_written": "right halves"},
        ),
    }
