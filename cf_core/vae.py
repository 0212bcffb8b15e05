"""The shared core model: a variational auto-encoder over melody segments.

Letters in shapes: `B` segments, `T` steps, `V` tokens, `Z` latent dimensions, `K` kinds of bars.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor, nn
from torch.nn import functional

from cf_core.kinds import encode_kinds, find_kinds, find_marks, look_up, take_kinds
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat, is_melody
from cf_core.nets import ResidualBlock, count_at_once, initialise
from cf_core.seeding import make_random
from cf_core.settings import Settings
from cf_core.training import Trainer, warmup_cosine

_CHUNK = 4096
"""Segments that are encoded or decoded at one time."""


@dataclass(frozen=True)
class VAESettings(Settings):
    """Shape and training of the core VAE."""

    may_be_zero = ("beta", "transpose_down", "transpose_up")

    latent_dim: int = 64
    """`Z`, dimensions of a segment's latent."""
    hidden: int = 512
    """Width of the encoder and the decoder."""
    embedding: int = 64
    """Width of one step's token, before the encoder and after the decoder."""
    depth: int = 1
    """Residual blocks in the encoder, and in the decoder."""
    beta: float = 0.2
    """Weight of the KL divergence against the reconstruction, both in nats per segment."""
    steps: int = 1500
    """Training steps."""
    batch: int = 256
    """Segments per step."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    transpose_down: int = 5
    """Largest transposition downwards in augmentation, in semitones."""
    transpose_up: int = 6
    """Largest transposition upwards in augmentation, in semitones."""


class MelodyVAE(nn.Module):
    """A VAE with a residual-MLP encoder and a decoder that emits all steps at once.

    All steps share one token embedding and one output layer, so that what is learned about a pitch
    at one step holds at all others. Where segments have several kinds of bars, the kind is an input
    of both, and the steps of all kinds are laid out in common slots (`MelodyFormat.slots`).

    `sigma_bar` is the posterior standard deviation of each latent dimension averaged over the
    training segments (as in Latent Constraints, Engel et al. 2018). Equation 7 divides by its
    square. All its values are 1 until `measure_sigma_bar` is called.
    """

    sigma_bar: Tensor

    def __init__(self, form: MelodyFormat, settings: VAESettings) -> None:
        super().__init__()
        self.form, self.settings = form, settings
        width, steps = settings.hidden, form.slots.shape[1] * settings.embedding
        kinds = len(form.kinds) - 1  # the first kind is the one that no input stands for
        self.tokens = nn.Embedding(form.vocabulary, settings.embedding)
        self.read = nn.Linear(steps + kinds, width)
        self.encoder = nn.Sequential(*(ResidualBlock(width) for _ in range(settings.depth)))
        self.posterior = nn.Linear(width, 2 * settings.latent_dim)
        self.expand = nn.Linear(settings.latent_dim + kinds, width)
        self.decoder = nn.Sequential(
            *(ResidualBlock(width) for _ in range(settings.depth)), nn.LayerNorm(width), nn.GELU()
        )
        self.write = nn.Linear(width, steps)
        self.output = nn.Linear(settings.embedding, form.vocabulary)
        self.register_buffer("sigma_bar", torch.ones(settings.latent_dim))

    def encode(
        self, tokens: Integer[Tensor, "B T"], kinds: Int64[Tensor, "B"] | None = None
    ) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Mean and standard deviation of the posterior of each segment.

        `kinds` are as in `decode`. If left out, they are those that the marks say.
        """
        kinds = find_kinds(tokens, self.form) if kinds is None else kinds
        steps = look_up(self.form.slots, kinds)
        placed = self.tokens(tokens.long().gather(1, steps.clamp(min=0)).clamp(min=0))
        embedded = placed.masked_fill(steps[..., None] < 0, 0.0).flatten(1)
        inputs = torch.cat((embedded, encode_kinds(kinds, len(self.form.kinds))), 1)
        mean, log_std = self.posterior(self.encoder(self.read(inputs))).chunk(2, dim=-1)
        return mean, log_std.clamp(-8.0, 3.0).exp()

    def decode(
        self, z: Float[Tensor, "B Z"], kinds: Int64[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Token logits of each step. Those of what marks stand for are those of a rest.

        `kinds` are the segments' kinds of bars, as indices into the format's. They may be left out
        where it has only one.
        """
        kinds = take_kinds(kinds, z.shape[0], self.form).to(z.device)
        inputs = torch.cat((z, encode_kinds(kinds, len(self.form.kinds))), 1)
        written: Tensor = self.write(self.decoder(self.expand(inputs)))
        placed = written.unflatten(-1, (self.form.slots.shape[1], -1))
        if len(self.form.kinds) == 1:
            return self._read_off(placed)
        slots = look_up(self.form.slot_of, kinds)
        logits = self._read_off(placed.gather(1, slots[..., None].expand(-1, -1, placed.shape[2])))
        silent = logits.new_full((logits.shape[-1],), -torch.inf)
        silent[REST] = 0.0
        return torch.where(find_marks(kinds, self.form)[..., None], silent, logits)

    def _read_off(self, written: Float[Tensor, "B T E"]) -> Float[Tensor, "B T V"]:
        logits: Tensor = self.output(written)
        return logits

    @torch.no_grad()
    def encode_mean(
        self, tokens: Integer[np.ndarray, "B T"] | Integer[Tensor, "B T"]
    ) -> Float[Tensor, "B Z"]:
        """Posterior means, computed in chunks: the latents of evaluation and deployment."""
        return self.posteriors(tokens)[0]

    @torch.no_grad()
    def posteriors(
        self, tokens: Integer[np.ndarray, "B T"] | Integer[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Posterior means and standard deviations, in chunks, without gradients."""
        device = self.sigma_bar.device
        parts = torch.as_tensor(tokens).split(count_at_once(_CHUNK, device))
        chunks = [self.encode(part.to(device)) for part in parts]
        means, deviations = zip(*chunks, strict=True)
        return torch.cat(means), torch.cat(deviations)

    @torch.no_grad()
    def decode_notes(
        self,
        z: Float[Tensor, "B Z"],
        kinds: Integer[Tensor, "B"] | Integer[np.ndarray, "B"] | None = None,
    ) -> Int64[Tensor, "B T"]:
        """The likeliest tokens of each segment (`decode_likeliest`), in chunks, where `z` is.

        `kinds` are as in `decode`, wherever they are.
        """
        own = take_kinds(kinds, len(z), self.form).to(z.device)
        count = count_at_once(_CHUNK, z.device)
        parts = zip(z.split(count), own.split(count), strict=True)
        tokens = torch.cat([decode_likeliest(self.decode(*part)) for part in parts])
        if len(self.form.kinds) == 1:
            return tokens
        return torch.where(find_marks(own, self.form), -1 - own[:, None], tokens)

    def decode_tokens(
        self, z: Float[Tensor, "B Z"], kinds: Integer[np.ndarray, "B"] | None = None
    ) -> Integer[np.ndarray, "B T"]:
        """The same as an array on the host."""
        tokens: np.ndarray = self.decode_notes(z, kinds).to(torch.int16).cpu().numpy()
        return tokens

    @torch.no_grad()
    def measure_sigma_bar(self, tokens: Integer[np.ndarray, "B T"]) -> None:
        """Set `sigma_bar` from the training segments."""
        self.sigma_bar.copy_(self.posteriors(tokens)[1].mean(0))


class VAETrainer(Trainer):
    """Maximises the evidence lower bound, with the KL divergence weighted by β."""

    def __init__(
        self,
        tokens: Integer[np.ndarray, "B T"],
        form: MelodyFormat,
        settings: VAESettings,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(settings.steps)
        self.settings, self.seed, self.form = settings, seed, form
        self.tokens = torch.as_tensor(tokens).long().to(device)
        self.kinds = find_kinds(self.tokens, form)
        self.vae = MelodyVAE(form, settings)
        initialise(self.vae, make_random(seed, "vae", "weights"))
        self.vae.to(device)
        self.optimiser = torch.optim.AdamW(
            self.vae.parameters(), settings.learning_rate, weight_decay=0.01, fused=True
        )
        self.networks, self.optimisers = {"vae": self.vae}, {"vae": self.optimiser}

    def update(self) -> dict[str, Tensor]:
        """One step on a fresh batch, each segment transposed within the pitch range."""
        device, count = self.tokens.device, (self.settings.batch,)
        random = make_random(self.seed, "vae", self.step, device=device)
        rows = torch.randint(len(self.tokens), count, generator=random, device=device)
        down, up = self.settings.transpose_down, self.settings.transpose_up
        tokens = transpose(self.tokens[rows], self.form, down, up, random)
        mean, deviation = self.vae.encode(tokens, self.kinds[rows])
        z = mean + deviation * torch.randn(mean.shape, generator=random, device=device)
        logits = self.vae.decode(z, self.kinds[rows])
        # What marks stand for is decoded as a rest for certain, and so costs nothing.
        reconstruction = functional.cross_entropy(
            logits.flatten(0, 1), tokens.clamp(min=REST).flatten(), reduction="sum"
        ) / len(tokens)
        kl = 0.5 * (mean**2 + deviation**2 - 2 * deviation.log() - 1).sum(-1).mean()
        loss = reconstruction + self.settings.beta * kl
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * warmup_cosine(self.step, self.steps)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 5.0)
        self.optimiser.step()
        return {"reconstruction": reconstruction.detach(), "kl": kl.detach()}


def decode_likeliest(logits: Float[Tensor, "B T V"]) -> Integer[Tensor, "B T"]:
    """Return the likeliest tokens in which every hold has a note.

    The decoder emits all steps at once, so it can put a hold at the start or after a rest, where it
    has no meaning.
    """
    tokens = logits.argmax(-1)
    hangs = find_hanging(tokens)
    # The likeliest tokens of all are the likeliest of these, too, in all other segments.
    if hangs.any():
        tokens[hangs] = search_likeliest(logits[hangs])
    return tokens


def find_hanging(tokens: Integer[Tensor, "B T"]) -> Bool[Tensor, "B"]:
    """Which segments have a hold at the start or after a rest."""
    before = functional.pad(tokens[:, :-1], (1, 0), value=REST)
    return ((tokens == HOLD) & (before == REST)).any(1)


def search_likeliest(
    logits: Float[Tensor, "B T V"], scan: "Scan | None" = None
) -> Integer[Tensor, "B T"]:
    """The likeliest tokens in which every hold has a note, by the Viterbi algorithm.

    The two states are whether a note sounds after a step or not. `scan` goes over the steps; an
    exported graph has a loop of its own.
    """
    scan = _scan if scan is None else scan
    pitch, onset = logits[..., FIRST_PITCH:].max(-1)
    onset, rest, hold = onset + FIRST_PITCH, logits[..., REST], logits[..., HOLD]
    count = (rest.shape[0],)
    start = rest.new_full(count, -torch.inf), rest.new_zeros(count)
    (sounding, silent), found = scan(_go_forwards, start, (pitch.T, rest.T, hold.T))
    last = (sounding > silent,)
    _, (tokens,) = scan(_go_backwards, last, (*found, onset.T), reverse=True)
    return tokens.T


Tensors = tuple[Tensor, ...]
Scan = Callable[..., tuple[Tensors, Tensors]]
"""Goes over the rows of tensors with a state, as `_scan` does."""


def _scan(
    step: Callable[[Tensors, Tensors], tuple[Tensors, Tensors]],
    state: Tensors,
    rows: Tensors,
    *,
    reverse: bool = False,
) -> tuple[Tensors, Tensors]:
    """Call `step` with the state and each row; return the last state, and all outputs as rows."""
    numbers = range(len(rows[0]))
    outputs = []
    for number in reversed(numbers) if reverse else numbers:
        state, output = step(state, tuple(each[number] for each in rows))
        outputs.append(output)
    ordered = reversed(outputs) if reverse else outputs
    return state, tuple(map(torch.stack, zip(*ordered, strict=True)))


def _go_forwards(state: Tensors, scores: Tensors) -> tuple[Tensors, Tensors]:
    """How likely each state is at best after one more step, and how it was reached."""
    (sounding, silent), (pitch, rest, hold) = state, scores
    # An onset or a rest may follow either state, so it follows the better one.
    best = torch.maximum(sounding, silent)
    goes_on, struck = sounding + hold, best + pitch
    after = torch.maximum(goes_on, struck), best + rest
    return after, (goes_on > struck, sounding > silent)


def _go_backwards(state: Tensors, found: Tensors) -> tuple[Tensors, Tensors]:
    """The token with which a step reached its state, and the state before it."""
    (sounds,), (held, before, onset) = state, found
    holds = sounds & held
    token = torch.where(sounds, torch.where(holds, HOLD, onset), REST)
    return (holds | before,), (token,)


def transpose(
    tokens: Integer[Tensor, "B T"],
    form: MelodyFormat,
    down: int,
    up: int,
    random: torch.Generator,
) -> Integer[Tensor, "B T"]:
    """Shift each row by its own uniform number of semitones in −`down`…`up`, kept in range."""
    pitched = tokens >= FIRST_PITCH
    highest = tokens.amax(1)
    lowest = torch.where(pitched, tokens, form.vocabulary).amin(1)
    low = -(lowest - FIRST_PITCH).clamp(max=down)
    high = (form.vocabulary - 1 - highest).clamp(max=up)
    uniform = torch.rand(len(tokens), generator=random, device=tokens.device)
    shift = low + (uniform * (high - low + 1)).long()
    return torch.where(pitched, tokens + shift[:, None], tokens)


def report_reconstruction(vae: MelodyVAE, tokens: Integer[np.ndarray, "B T"]) -> dict[str, float]:
    """Measure how well posterior means decode to their segments, and how the latents are used.

    `token_accuracy` (share of steps), `onset_pitch_recall` (share of the true onsets that come back
    at their step with their pitch) and `exact_segments` (share of segments without an error) lie in
    0…1. `kl` is in nats per segment. `active_units` counts the latent dimensions whose posterior
    mean has a variance above 0.01 over the segments (Burda et al. 2016). `aggregate_kl` measures
    how well the aggregate posterior fits the prior: the KL divergence, in nats, of a Gaussian with
    its mean and covariance from the standard Gaussian. It is 0 where both fit perfectly.
    """
    mean, deviation = vae.posteriors(tokens)
    steps, kinds = tokens >= REST, vae.form.find_kinds(tokens)
    right = vae.decode_tokens(mean, kinds) == tokens
    kl = 0.5 * (mean**2 + deviation**2 - 2 * deviation.log() - 1).sum(-1).mean()
    centre, spread = mean.double().mean(0), mean.double().T.cov(correction=0)
    covariance = spread + (deviation.double() ** 2).mean(0).diag()
    excess = covariance.trace() + centre.square().sum() - covariance.logdet() - len(centre)
    return {
        "token_accuracy": float(right[steps].mean()),
        "onset_pitch_recall": float(right[tokens >= FIRST_PITCH].mean()),
        "exact_segments": float(right.all(1).mean()),
        "kl": float(kl),
        "active_units": int((spread.diag() > 0.01).sum()),
        "aggregate_kl": float(0.5 * excess),
    }


@torch.no_grad()
def report_prior(
    vae: MelodyVAE, kinds: Integer[np.ndarray, "B"], random: torch.Generator
) -> dict[str, float]:
    """Measure the share, 0…1, of prior samples of these kinds that decode to a melody.

    `valid_prior` is the share (of `is_melody`) as decoded by `decode_likeliest`.
    `valid_prior_by_step` is the share if every step takes its likeliest token, whatever comes
    before.
    """
    z = torch.randn(len(kinds), vae.settings.latent_dim, generator=random)
    by_step = vae.decode(z, torch.from_numpy(kinds)).argmax(-1).numpy()
    return {
        "valid_prior": float(is_melody(vae.decode_tokens(z, kinds)).mean()),
        "valid_prior_by_step": float(is_melody(by_step).mean()),
    }
