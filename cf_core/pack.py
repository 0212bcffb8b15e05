"""The adversarial training of fusion maps by equations 1-7, any number of trials at once.

A pack holds the networks of its trials side by side, weights stacked on a leading axis, so that
small networks share the cost of every operation. A single trial is a pack of one. The result of a
trial depends on its own settings and, apart from rounding, on nothing else in the pack. This file
is long, because a pack must also take trials in, let them go, and write down their states.

Letters in shapes: `N` trials still in the pack, `B` pairs of each kind, `P` weights of one network,
`Z` latent dimensions, `S` style dimensions (the most of any trial; others are padded to it), `K`
codes of kinds of bars, `C` conditions (1 if any trial is conditional, else 0, and `K`).
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd import grad

from cf_core import losses
from cf_core.batches import Batch, Batches, Member
from cf_core.fusion import Discriminator, FusionSettings, Generator, Latents
from cf_core.graphs import Graphed
from cf_core.losses import Pair
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.training import Progress, Trainer


class PackTrainer(Trainer):
    """Trains one G against one D for each of `trials`.

    Trials of one seed see the same batches, whatever their λ and style dimension. A trial whose
    gradients are not finite is frozen at its last weights and leaves the pack at the next report
    (`diverged`); the others are not affected. Reported losses hold one number for each of `trials`,
    and NaN for those that have left.

    On a GPU a step is one graph of kernels; `eager` launches each kernel by itself.
    """

    def __init__(
        self,
        latents: Latents,
        settings: FusionSettings,
        trials: Sequence[Member],
        device: torch.device | str = "cpu",
        *,
        eager: bool = False,
    ) -> None:
        super().__init__(settings.steps)
        self.latents, self.settings = latents.to(torch.device(device)), settings
        self.trials, self._eager = tuple(trials), eager
        self.alive = list(range(len(trials)))
        """The trial of each row of the stacks, as an index (place) into `trials`."""
        self._running = torch.ones(len(trials), dtype=torch.bool, device=device)
        self._lasted = torch.zeros(len(trials), dtype=torch.int64, device=device)
        self._styles = max(trial.style_dim for trial in trials)
        self._conditional = any(trial.lambda_ is None for trial in trials)
        g, d = self._networks(self._styles, conditional=self._conditional, trials=len(trials))
        like = self.latents.sigma_bar
        self.g, self.d = Stack(g.to(like)), Stack(d.to(like))
        """All G and all D, a row for each trial."""
        for row, trial in enumerate(trials):
            g, d = self._networks(trial.style_dim, conditional=trial.lambda_ is None)
            initialise(g, make_random(trial.seed, "fusion", "generator"))
            initialise(d, make_random(trial.seed, "fusion", "discriminator"))
            if settings.gated:
                # An untrained G starts near the identity, so that λ decides how far it leaves it.
                nn.init.constant_(g.net.biases[-1][:, : 2 * g.latent_dim], -2.0)
            self.g.write(self.g.weights[row], g, self._inputs(trial))
            self.d.write(self.d.weights[row], d, self._inputs(trial))
        self.average = self.g.weights.clone()
        """Averages of G's weights over the steps, which are what training gives."""
        self._arrange()

    @property
    def over(self) -> bool:
        """Whether all steps are done, or no trial is left."""
        return super().over or not self.alive

    @property
    def diverged(self) -> dict[int, int]:
        """Number of steps completed before gradients ceased to be finite, by place in `trials`."""
        found = enumerate(zip(self._running.tolist(), self._lasted.tolist(), strict=True))
        return {place: lasted for place, (running, lasted) in found if not running}

    def take_generator(self, place: int) -> Generator:
        """Copy the averaged G of the trial at `place` in `trials` to a network on the CPU.

        Raises `ValueError` if the trial has left the pack.
        """
        trial, row = self.trials[place], self.alive.index(place)
        alone, _ = self._networks(trial.style_dim, conditional=trial.lambda_ is None)
        self.g.read(self.average[row], alone.to(self.average.dtype), self._inputs(trial))
        return alone.requires_grad_(requires_grad=False)

    def take_state(self, place: int) -> dict[str, Tensor]:
        """Copy the state of one trial, in the form that `restore` takes in a pack of it alone.

        Raises `ValueError` if the trial has left the pack.
        """
        trial, row = self.trials[place], self.alive.index(place)
        state = {
            name: value[:, place : place + 1].clone() if name.startswith("history.loss.") else value
            for name, value in self.state().items()
        }
        state |= {name: state[name][place : place + 1].clone() for name in ("running", "lasted")}
        for name, (stack, values, network) in self._layouts(trial).items():
            stack.read(values[row], network, self._inputs(trial))
            state[name] = torch.cat([p.detach().flatten() for p in network.parameters()])[None]
        return state | {"alive": torch.tensor([0])}

    def join(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Continue from states of other packs, one for each of `trials`, as `take_state` gave them.

        All must have taken the same number of steps.
        """
        first, trials = states[0], enumerate(zip(self.trials, states, strict=True))
        per_trial = [name for name in first if name.startswith("history.loss.")]
        joined = {name: torch.cat([state[name] for state in states], 1) for name in per_trial}
        for name in ("running", "lasted"):
            joined[name] = torch.cat([state[name] for state in states])
        padded = {name: torch.zeros_like(self.list_tensors()[name]) for name in _PER_WEIGHT}
        for row, (trial, state) in trials:
            for name, (stack, _, network) in self._layouts(trial).items():
                stack.fill(network, state[name][0])
                stack.write(padded[name][row], network, self._inputs(trial))
        alive = torch.arange(len(states))
        self.restore({**first, **joined, **padded, "alive": alive})

    def stop(self, places: Collection[int]) -> None:
        """Take the trials at `places` out of the pack; the others continue unaffected."""
        rows = [row for row, place in enumerate(self.alive) if place not in places]
        if len(rows) < len(self.alive):
            self.alive = [self.alive[row] for row in rows]
            self.average = self.average[rows]
            self.g.keep(rows)
            self.d.keep(rows)
            self._arrange()

    def report(self, sums: Mapping[str, Tensor], steps: int) -> Progress:
        """Close an interval, and take the trials that diverged in it out of the pack."""
        self.stop(self.diverged.keys())
        return super().report(sums, steps)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as named tensors."""
        own = {name: tensor.clone() for name, tensor in self.list_tensors().items()}
        return super().state() | own | {"alive": torch.tensor(self.alive)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a `state()`; the next update equals the one that followed it, bit for bit."""
        super().restore(state)
        self.alive = state["alive"].tolist()
        device = self.average.device
        own = {name: state[name].to(device, copy=True) for name in self.list_tensors()}
        self._running, self._lasted, self.average = (
            own[name] for name in ("running", "lasted", "average")
        )
        self.g.restore(own, "generator")
        self.d.restore(own, "discriminator")
        self._arrange()

    def update(self) -> dict[str, Tensor]:
        """`d_steps` updates of D, one of G, and one of G's average, for every trial."""
        self.batches.draw(self.step)
        report = self._graph()
        gone = self.average.new_full((len(self.trials),), torch.nan)
        return {name: gone.index_copy(0, self._places, loss) for name, loss in report.items()}

    def list_tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name: a row for each trial."""
        named = {"running": self._running, "lasted": self._lasted, "average": self.average}
        for name, stack in (("generator", self.g), ("discriminator", self.d)):
            named |= {f"{name}.weights": stack.weights, f"{name}.moments": stack.moments}
            named[f"{name}.decay"] = stack.decay
        return named

    def _layouts(self, trial: Member) -> dict[str, tuple["Stack", Tensor, nn.Module]]:
        """Stack, values and a network of the trial's shape, for each name in `_PER_WEIGHT`."""
        g, d = self._networks(trial.style_dim, conditional=trial.lambda_ is None)
        like = self.latents.sigma_bar
        kinds = {"discriminator": (self.d, d.to(like))}
        tensors, of_g = self.list_tensors(), (self.g, g.to(like))
        layouts: dict[str, tuple[Stack, Tensor, nn.Module]] = {}
        for name in _PER_WEIGHT:
            stack, network = kinds.get(name.partition(".")[0], of_g)
            layouts[name] = (stack, tensors[name], network)
        return layouts

    def _networks(
        self, style_dim: int, *, conditional: bool, trials: int | None = None
    ) -> tuple[Generator, Discriminator]:
        latent_dim, make = self.latents.mean.shape[1], self.settings
        kinds = self.latents.code.shape[1] + 1
        return (
            make.make_generator(
                latent_dim, style_dim, conditional=conditional, trials=trials, kinds=kinds
            ),
            make.make_discriminator(
                latent_dim, conditional=conditional, trials=trials, kinds=kinds
            ),
        )

    def _inputs(self, trial: Member) -> list[int]:
        """List the inputs of the padded networks that the trial uses: latents, condition, style."""
        latents = 2 * self.latents.mean.shape[1]
        first_code = latents + self._conditional
        end = first_code + self.latents.code.shape[1] + trial.style_dim
        condition = [latents] if trial.lambda_ is None else []
        return [*range(latents), *condition, *range(first_code, end)]

    def _arrange(self) -> None:
        """Lay out what differs between the trials still in the pack, one row for each."""
        trials, like = [self.trials[place] for place in self.alive], self.latents.sigma_bar
        self._places = torch.tensor(self.alive, dtype=torch.int64, device=like.device)
        self._rates = like.new_tensor([[trial.learning_rate] for trial in trials])
        self._has_style = like.new_tensor([float(trial.style_dim > 0) for trial in trials])
        self.batches = Batches(
            self.latents, self.settings, trials, self._styles, conditional=self._conditional
        )
        # Captured anew: tensors have moved.
        self._graph = Graphed(self._step, like.device, eager=self._eager)

    def _step(self) -> dict[str, Tensor]:
        """Take one step on the random numbers drawn. Nothing here waits for the device."""
        *turns, last = self.batches.deal()
        report: dict[str, Tensor] = {}
        for batch in turns:
            report = self._update_discriminator(batch)
        report |= self._update_generator(last)
        self.average.lerp_(self.g.weights, 1.0 - self.settings.ema)
        running = self._running[self._places]
        self._lasted.index_add_(0, self._places, running.long())
        return {name: loss.detach().where(running, torch.nan) for name, loss in report.items()}

    def _update_discriminator(self, batch: Batch) -> dict[str, Tensor]:
        pair, discriminator = _halves(batch.inputs), self.d.network
        with torch.no_grad():
            fused = self.g.network(pair, batch.style, batch.condition)
        real = batch.paired.requires_grad_()
        real_logits = discriminator(_halves(real), batch.paired_condition)
        negatives = [discriminator(each, batch.condition).chunk(2, -1) for each in (pair, fused)]
        eq2 = losses.discriminator_positive(real_logits)
        eq3 = losses.discriminator_negative(*negatives[0], *negatives[1])
        eq1 = losses.discriminator_loss(eq2, eq3)
        penalty = gradient_penalty(real_logits, real)
        self._descend(self.d, eq1 + self.settings.gradient_penalty * penalty)
        return {"eq1": eq1, "eq2": eq2, "eq3": eq3, "gradient_penalty": penalty}

    def _update_generator(self, batch: Batch) -> dict[str, Tensor]:
        pair, sigma_bar = _halves(batch.inputs), self.latents.sigma_bar
        fused = self.g.network(pair, batch.style, batch.condition)
        logits = self.d.network(fused, batch.condition)
        moved = losses.distance(pair, fused, sigma_bar)
        eq5 = losses.generator_adversarial(*logits.chunk(2, -1))
        eq6 = losses.similarity_loss(*moved.chunk(2, -1))
        weighted = losses.similarity_loss(*(batch.lambda_ * moved).chunk(2, -1))
        eq4 = losses.generator_loss(eq5, weighted)
        style = self._style_loss(batch, pair, fused, moved)
        self._descend(self.g, eq4 + self.settings.style_weight * style)
        return {"eq4": eq4, "eq5": eq5, "eq6": eq6, "style": style}

    def _style_loss(
        self, batch: Batch, pair: Pair, fused: Pair, moved: Float[Tensor, "N B2"]
    ) -> Float[Tensor, "N"]:
        """How far the distance between two styles' outputs falls short of `style_share`."""
        if not self._styles or self.settings.style_weight == 0:
            return moved.new_zeros(len(moved))
        some = slice(None, None, COMPARED)
        inputs = pair[0][:, some], pair[1][:, some]
        other = self.g.network(inputs, batch.other_style[:, some], batch.condition[:, some])
        one = fused[0][:, some], fused[1][:, some]
        apart = losses.distance(one, other, self.latents.sigma_bar)
        share = apart / (moved[:, some].detach() + NO_MOVEMENT)
        return (self.settings.style_share - share).relu().mean(-1) * self._has_style

    def _descend(self, stack: "Stack", loss: Float[Tensor, "N"]) -> None:
        """Take one step of Adam, each trial on its own loss. Frozen trials take none."""
        stack.collect(grad(loss.sum(), stack.parameters))
        finite = torch.linalg.vector_norm(stack.gradients, dim=1).isfinite()
        running = self._running[self._places] & finite
        self._running.index_copy_(0, self._places, running)
        stack.adam(running, self._rates)


_PER_WEIGHT = (
    "average", "generator.weights", "generator.moments", "discriminator.weights",
    "discriminator.moments",
)  # fmt: skip
"""Tensors of a state that hold a number for each weight of a network, in padded rows."""

COMPARED = 4
"""For the style loss, one input in this many is fused again in another style."""
NO_MOVEMENT = 1e-3
"""A distance of equation 7 that is too small to change a note."""


class Stack:
    """Networks of one kind side by side, and their optimiser.

    The optimiser is Adam with β = (0, 0.9), as in Latent Constraints (Engel et al. 2018), so the
    first moment is the gradient itself.
    """

    DECAY, EPSILON = 0.9, 1e-8

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.parameters = list(network.parameters())
        self._shapes = [parameter.shape[1:] for parameter in self.parameters]
        self.weights = torch.cat([p.detach().flatten(1) for p in self.parameters], 1)
        self.moments = torch.zeros_like(self.weights)
        self.decay = self.weights.new_ones(())
        self._share()

    def keep(self, rows: list[int]) -> None:
        """Keep only the networks of these rows."""
        self.weights, self.moments = self.weights[rows], self.moments[rows]
        self._share()

    def restore(self, state: Mapping[str, Tensor], name: str) -> None:
        """Take over the weights and the optimiser of a checkpoint."""
        self.weights, self.moments, self.decay = (
            state[f"{name}.{kind}"] for kind in ("weights", "moments", "decay")
        )
        self._share()

    def write(self, row: Float[Tensor, "P"], alone: nn.Module, inputs: list[int]) -> None:
        """Write a network into a row. `inputs` lists which inputs of the padded layer it uses."""
        own = row.cpu()  # the row itself where it is on a CPU
        parts = self.split(own)
        with torch.no_grad():
            for part, parameter in zip(parts, alone.parameters(), strict=True):
                used = inputs[: len(parameter)] if part is parts[0] else slice(None)
                part[used] = parameter.to(part)
            row.copy_(own)

    def read(self, weights: Float[Tensor, "P"], alone: nn.Module, inputs: list[int]) -> None:
        """Fill a network from a row of weights. `inputs` is as in `write`."""
        parts = self.split(weights.cpu())
        with torch.no_grad():
            for part, parameter in zip(parts, alone.parameters(), strict=True):
                own = inputs[: len(parameter)] if part is parts[0] else slice(None)
                parameter.copy_(part[own])

    @staticmethod
    def fill(alone: nn.Module, values: Float[Tensor, "p"]) -> None:
        """Fill a network's parameters from a flat vector."""
        parameters = list(alone.parameters())
        with torch.no_grad():
            for part, parameter in zip(
                values.split([p.numel() for p in parameters]), parameters, strict=True
            ):
                parameter.copy_(part.view_as(parameter))

    def collect(self, gradients: Sequence[Tensor]) -> None:
        """Store the parameters' gradients in the layout of the weights."""
        torch.cat([gradient.flatten(1) for gradient in gradients], 1, out=self.gradients)

    def adam(self, running: Bool[Tensor, "N"], rates: Float[Tensor, "N 1"]) -> None:
        """Take one step along `gradients`; networks that are not running stay unchanged."""
        step = self.gradients.masked_fill_(~running[:, None], 0.0)
        self.decay.mul_(self.DECAY)
        self.moments.mul_(self.DECAY).addcmul_(step, step, value=1.0 - self.DECAY)
        torch.div(self.moments, 1.0 - self.decay, out=self._scale).sqrt_().add_(self.EPSILON)
        self.weights.sub_(step.mul_(rates).div_(self._scale))

    def split(self, weights: Float[Tensor, "*N P"]) -> list[Tensor]:
        """The parameters, in their shapes, that rows of weights stand for."""
        sizes = [shape.numel() for shape in self._shapes]
        parts = zip(weights.split(sizes, -1), self._shapes, strict=True)
        return [part.unflatten(-1, shape) for part, shape in parts]

    def _share(self) -> None:
        """Make the network's parameters views of `weights`."""
        # These buffers are kept: allocating them at each step costs more than the arithmetic.
        self.gradients, self._scale = (torch.empty_like(self.weights) for _ in range(2))
        for parameter, part in zip(self.parameters, self.split(self.weights), strict=True):
            parameter.data = part


def gradient_penalty(
    logits: Float[Tensor, "*N B"], inputs: Float[Tensor, "*N B I"]
) -> Float[Tensor, "*N"]:
    """Mean squared norm of the logits' gradient by their inputs (R1, Mescheder et al. 2018)."""
    (gradient,) = grad(logits.sum(), inputs, create_graph=True)
    return gradient.square().sum(-1).mean(-1)


def _halves(joined: Tensor) -> Pair:
    left, right = joined.chunk(2, -1)
    return left, right
