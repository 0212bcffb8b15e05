"""Training that can be stopped after any step and continued from a file.

A `Trainer` owns networks and optimisers and takes single steps. `train` drives it, reports and
writes checkpoints. Every random draw of a step comes from a generator made for that step, so
weights, optimiser moments and the step number are the whole state.
"""

import math
import os
import platform
import resource
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from cf_core.files import AnyPath, local, replacing


@dataclass(frozen=True)
class Progress:
    """Where training stands: `step` of `total`, and the mean of each loss since the last report."""

    step: int
    total: int
    losses: Mapping[str, tuple[float, ...]]
    """One number for each trial of a pack; a single number for other trainers."""
    peak_memory_mb: float = field(default=math.nan, compare=False)
    """`measure_peak_memory_mb` at that time; NaN for a report read from a checkpoint."""


class Trainer(ABC):
    """Networks in training. Subclasses fill `networks` and `optimisers` and define `update`.

    `history` holds all reports since step 0, those of interrupted runs included.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.step = 0
        self.history: list[Progress] = []
        self.networks: dict[str, nn.Module] = {}
        self.optimisers: dict[str, Optimizer] = {}

    @abstractmethod
    def update(self) -> dict[str, Tensor]:
        """Take step number `self.step` and return its losses, detached."""

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.step >= self.steps

    def report(self, sums: Mapping[str, Tensor], steps: int) -> Progress:
        """Close an interval of `steps` steps: add its mean losses, from `sums`, to `history`."""
        means = {
            name: tuple((total.double() / steps).reshape(-1).tolist())
            for name, total in sums.items()
        }
        memory = measure_peak_memory_mb(next(iter(sums.values())).device)
        self.history.append(Progress(self.step, self.steps, means, memory))
        return self.history[-1]

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as named tensors."""
        tensors = {"step": torch.tensor(self.step)}
        if self.history:
            tensors["history.step"] = torch.tensor([report.step for report in self.history])
            for name in self.history[0].losses:
                curve = [report.losses[name] for report in self.history]
                tensors[f"history.loss.{name}"] = torch.tensor(curve, dtype=torch.float64)
        for name, network in self.networks.items():
            for key, value in network.state_dict().items():
                tensors[f"network.{name}.{key}"] = value
        for name, optimiser in self.optimisers.items():
            for index, moments in optimiser.state_dict()["state"].items():
                for key, value in moments.items():
                    tensors[f"optimiser.{name}.{index}.{key}"] = value
        return {name: value.detach().clone().contiguous() for name, value in tensors.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a `state()`; the next update equals the one that followed it, bit for bit."""
        for name, network in self.networks.items():
            network.load_state_dict(_below(state, f"network.{name}."))
        for name, optimiser in self.optimisers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for path, value in _below(state, f"optimiser.{name}.").items():
                index, key = path.split(".")
                moments.setdefault(int(index), {})[key] = value.clone()
            optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        self.step = int(state["step"])
        curves = _below(state, "history.loss.")
        self.history = [
            Progress(int(step), self.steps, {n: tuple(c[i].tolist()) for n, c in curves.items()})
            for i, step in enumerate(state.get("history.step", torch.tensor([])))
        ]


def train(trainer: Trainer, every: int, checkpoint: AnyPath | None = None) -> Iterator[Progress]:
    """Train to the end, reporting and checkpointing every `every` steps.

    Training continues from `checkpoint` if that file is whole. A damaged file is ignored, since
    training from the start gives the same result. The caller may stop at any report.
    """
    if checkpoint is not None:
        state = load_tensors(checkpoint)
        if state is not None:
            trainer.restore(state)
    while not trainer.over:
        sums: dict[str, Tensor] = {}
        start = trainer.step
        for _ in range(min(every - start % every, trainer.steps - start)):
            for name, loss in trainer.update().items():
                sums[name] = sums[name] + loss if name in sums else loss
            trainer.step += 1
        progress = trainer.report(sums, trainer.step - start)
        if checkpoint is not None:
            save_tensors(trainer.state(), checkpoint)
        yield progress


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Have torch use this many threads while in the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_huge_pages() -> None:
    """Make this process, and those that it starts, keep large tensors in huge pages on Linux.

    Without them, the temporary tensors of a pack of 16 cost 35,000 page faults in every step, a
    tenth of its time. PyTorch reads the setting at its first large tensor, so call this at the
    start of a process. A value of `THP_MEM_ALLOC_ENABLE` in the environment takes precedence.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def measure_peak_memory_mb(device: torch.device | str = "cpu") -> float:
    """Peak memory so far, in 10⁶ bytes: of the device if it is a GPU, else of the process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def describe_hardware() -> str:
    """Name the processor, the GPU if any, and the number of cores that this process may use.

    It also says whether the GPU multiplies matrices in TF32.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    if gpu and torch.get_float32_matmul_precision() != "highest":
        gpu += " (TF32)"
    return f"{_processor()}{gpu}, {cores} cores"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def save_tensors(tensors: Mapping[str, Tensor], path: AnyPath) -> None:
    """Write named tensors as one safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, temporary)


def load_tensors(path: AnyPath) -> dict[str, Tensor] | None:
    """Read a safetensors file; None where it is missing or damaged."""
    try:
        with local(path) as whole, safe_open(whole, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None


def collect_weights(network: nn.Module) -> dict[str, Tensor]:
    """The network's weights and buffers, ready for `save_tensors`."""
    return {name: value.detach().contiguous() for name, value in network.state_dict().items()}


def adamw(network: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Make the optimiser of classifiers, judges and models of notes."""
    return torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.05, fused=True)


def warmup_cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Learning-rate factor: a linear rise over `warmup` steps, then half a cosine down to 2 %."""
    rise = min(1.0, (step + 1) / warmup)
    return rise * (0.02 + 0.49 * (1.0 + math.cos(math.pi * step / steps)))


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
