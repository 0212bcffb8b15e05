"""`python -m benchmarks.core`: how fast the model trains, decodes and loads.

Prints one table and writes `benchmarks/out/core.json`. `DEVICE=cuda` adds what a GPU is for.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks import HAS_SAFETENSORS
from benchmarks.eager import EagerTrial
from benchmarks.measuring import Measure, Rounds, find_device, introduce, publish, ratio, tell
from benchmarks.products import Product, bare, decoding, fusion_step, vae_step
from cf_core.batches import Member
from cf_core.fusion import FusionSettings, Generator, Latents
from cf_core.graphs import WARM_UP
from cf_core.melody import MelodyFormat
from cf_core.pack import PackTrainer
from cf_core.training import Trainer, limit_threads, measure_peak_memory_mb, use_huge_pages
from cf_core.vae import MelodyVAE, VAESettings, VAETrainer

OUTPUT = Path(__file__).parent / "out" / "core.json"
SEGMENTS = 10_000
STYLE_DIM, WEIGHT = 4, 0.1
PACK = 16
DECODED = 4096


@dataclass(frozen=True)
class Shape:
    """Sizes of a fusion trial."""

    batch: int
    latent_dim: int
    hidden: int

    def settings(self) -> FusionSettings:
        """Two hidden layers, two updates of D per step, gradient penalty and style loss on."""
        return FusionSettings(hidden=self.hidden, depth=2, batch=self.batch, d_steps=2)

    def latents(self, device: str = "cpu") -> Latents:
        """Latents of a made-up corpus of one long song."""
        random = torch.Generator().manual_seed(0)
        mean = torch.randn(SEGMENTS, self.latent_dim, generator=random)
        deviation = 0.1 + 0.4 * torch.rand(mean.shape, generator=random)
        pairs = torch.arange(SEGMENTS).unfold(0, 2, 1)
        return Latents(mean, deviation, pairs, deviation.mean(0), mean[:, :0]).to(
            torch.device(device)
        )

    def pack(
        self, trials: Sequence[int], device: str = "cpu", *, eager: bool = False
    ) -> PackTrainer:
        """A pack of one trial for each seed."""
        settings = self.settings()
        alike = [Member(WEIGHT, STYLE_DIM, seed, settings.learning_rate) for seed in trials]
        return PackTrainer(self.latents(device), settings, alike, device, eager=eager)

    def products(self) -> list[Product]:
        """The matrix products of one trial's step."""
        return fusion_step(self.latent_dim, STYLE_DIM, self.settings())

    def __str__(self) -> str:
        return f"batch {self.batch}, Z {self.latent_dim}, hidden {self.hidden}"


class Bench(Rounds):
    """Rounds of what trains, and its sizes."""

    def shape(self, batch: int, latent_dim: int, hidden: int) -> Shape:
        """Sizes of a fusion trial, to scale."""
        return Shape(*(max(1, size // self.scale) for size in (batch, latent_dim, hidden)))

    def core(self) -> VAESettings:
        """Sizes of the core, to scale."""
        full = VAESettings()
        sizes = {name: getattr(full, name) for name in ("latent_dim", "hidden", "embedding")}
        sizes["batch"] = full.batch
        return VAESettings(**{name: size // self.scale for name, size in sizes.items()})


def main(repeats: int = 15, seconds: float = 0.2, scale: int = 1, output: Path = OUTPUT) -> None:
    """Measure everything, print the table and write it to `output`."""
    device = find_device()
    bench = Bench(repeats, seconds, scale)
    introduce(repeats)
    measures = [*step(bench), *packs(bench), *core(bench)]
    if HAS_SAFETENSORS:
        measures += bundle(bench)
    else:
        print("bundle_load_vs_hash is left out: safetensors is not installed")
    if device.startswith("cuda"):
        measures += cuda(bench, device)
    else:
        print("cuda_… are left out: they take DEVICE=cuda")
    publish(measures, output)


def step(bench: Bench) -> Iterator[Measure]:
    """One trial's step against the matrix products that it must do."""
    shape = bench.shape(256, 64, 512)
    seconds = bench.take_turns(partial(_advance, shape.pack([0])), bare(shape.products()))
    tell(f"step, {shape}", seconds, ("step", "products"))
    yield Measure("step_vs_matmul_h512", ratio(seconds, 0, 1), "×", 1.5, "lower")


def packs(bench: Bench) -> Iterator[Measure]:
    """A pack, and one process per core, against the same trials one after another, in trial-steps.

    No two trials share a seed, hence none shares its batches with another. One thread each.
    """
    with limit_threads(1), _crew() as (work, workers):
        for name, sizes, target in (("h64", (32, 16, 64), 3.0), ("h256", (256, 64, 256), 0.95)):
            shape = bench.shape(*sizes)
            alone = cycle([shape.pack([seed]) for seed in range(PACK)])
            seconds = bench.take_turns(
                partial(_advance, shape.pack(range(PACK))),
                partial(_advance_next, alone, PACK),
                partial(work, shape, PACK),
            )
            what = (f"pack of {PACK}", f"{PACK} steps alone", f"{workers} processes × {PACK}")
            tell(f"packs, {shape}, one thread each", seconds, what)
            yield Measure(
                f"pack{PACK}_vs_serial_{name}", ratio(seconds, 1, 0), "×", target, "higher"
            )
            gain = workers * ratio(seconds, 1, 2)
            yield Measure(f"processes_vs_serial_{name}", gain, "×", None, "higher")


def core(bench: Bench) -> Iterator[Measure]:
    """Training and decoding of the core against the matrix products that they must do."""
    form, settings = MelodyFormat(), bench.core()
    random, count = np.random.default_rng(0), max(1, DECODED // bench.scale)
    tokens = random.integers(form.vocabulary, size=(SEGMENTS, form.steps), dtype=np.uint8)
    trainer = VAETrainer(tokens, form, settings, seed=0)
    z = torch.randn(count, settings.latent_dim, generator=torch.Generator().manual_seed(0))
    seconds = bench.take_turns(
        partial(_advance, trainer),
        bare(vae_step(form, settings)),
        partial(trainer.vae.decode_tokens, z),
        bare(decoding(form, settings, count)),
    )
    shape = f"Z {settings.latent_dim}, hidden {settings.hidden}, embedding {settings.embedding}"
    what = ("step", "products", f"decode of {count}", "products")
    tell(f"core, batch {settings.batch}, {shape}", seconds, what)
    yield Measure("vae_train_vs_matmul", ratio(seconds, 0, 1), "×", 2.0, "lower")
    rate = count / float(np.median(seconds[:, 2]))
    yield Measure("decode_segments_per_s", rate, "segments/s", None, "higher")
    yield Measure("decode_vs_matmul", ratio(seconds, 2, 3), "×", None, "lower")


def bundle(bench: Bench) -> Iterator[Measure]:
    """Loading a bundle against reading and hashing its files."""
    from cf_core.bundle import Bundle, load_bundle, save_bundle  # noqa: PLC0415

    form, settings, lambdas = MelodyFormat(), bench.core(), FusionSettings().lambda_range
    sizes = (settings.latent_dim, STYLE_DIM, 384 // bench.scale, 2)
    vae, generator = MelodyVAE(form, settings), Generator(*sizes, conditional=True)
    made = Bundle(
        form, vae, generator, iterations=1, lambda_=WEIGHT, lambda_range=lambdas, record={}
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        save_bundle(made, path)
        files = sorted(path.glob("*.safetensors"))
        seconds = bench.take_turns(
            partial(load_bundle, path),
            lambda: [sha256(file.read_bytes()).digest() for file in files],
        )
        size = sum(file.stat().st_size for file in files) / 1e6
    tell(f"bundle, {size:.1f} MB in {len(files)} files", seconds, ("load", "read and hash"))
    yield Measure("bundle_load_vs_hash", ratio(seconds, 0, 1), "×", 2.0, "lower")


def cuda(bench: Bench, device: str) -> Iterator[Measure]:
    """Packs on a GPU, in trial-steps per second, against one trial in plain PyTorch."""
    shape, some, many = bench.shape(256, 64, 512), 64 // bench.scale, 256 // bench.scale
    plain = EagerTrial(shape.latents(device), shape.settings(), WEIGHT, STYLE_DIM, seed=0)
    alone, launched = (shape.pack([0], device, eager=eager) for eager in (False, True))
    pack, memory = _pack_and_memory(shape, some, device)
    _advance(alone, WARM_UP)
    seconds = bench.take_turns(
        partial(_advance, pack),
        plain.update,
        partial(_advance, alone),
        partial(_advance, launched),
    )
    what = (f"pack of {some}", "one in plain PyTorch", "pack of one", "pack of one, no graph")
    precision = torch.get_float32_matmul_precision()
    name = torch.cuda.get_device_name(device)
    tell(f"{name}, {shape}, float32 products in {precision!r} precision", seconds, what)
    gain, gain_one = some * ratio(seconds, 1, 0), some * ratio(seconds, 2, 0)
    yield Measure("cuda_pack64_vs_eager_h512", gain, "×", 30.0, "higher")
    yield Measure("cuda_pack64_vs_one_h512", gain_one, "×", None, "higher")
    yield Measure("cuda_pack1_graph_vs_eager", ratio(seconds, 3, 2), "×", 3.0, "higher")
    yield Measure("cuda_pack64_memory", memory, "MB", None, "lower")
    del pack
    with suppress(torch.OutOfMemoryError):
        large, memory = _pack_and_memory(shape, many, device)
        products = bare(shape.products(), many, device)
        seconds = bench.take_turns(partial(_advance, large), plain.update, products)
        each = (f"pack of {many}", "one in plain PyTorch", f"products of {many}")
        tell(f"{name}, {shape}", seconds, each)
        gain = many * ratio(seconds, 1, 0)
        yield Measure("cuda_pack256_vs_eager_h512", gain, "×", None, "higher")
        yield Measure("cuda_pack256_matmul_share", ratio(seconds, 2, 0), "share", 0.5, "higher")
        yield Measure("cuda_pack256_memory", memory, "MB", None, "lower")


def _pack_and_memory(shape: Shape, trials: int, device: str) -> tuple[PackTrainer, float]:
    """A pack whose step has been captured, and the most memory in use so far, in 10⁶ bytes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats(device)
    pack = shape.pack(range(trials), device)
    _advance(pack, WARM_UP)
    return pack, measure_peak_memory_mb(device)


def _advance(trainer: Trainer, steps: int = 1) -> None:
    for _ in range(steps):
        trainer.update()
        trainer.step += 1


def _advance_next(trainers: Iterator[Trainer], steps: int) -> None:
    _advance(next(trainers), steps)


@contextmanager
def _crew() -> Iterator[tuple[Callable[[Shape, int], None], int]]:
    """A process per CPU (16 at most) with trials of its own, and what makes all take some steps."""
    context = get_context("spawn")
    lines = [context.Pipe() for _ in range(min(16, os.cpu_count() or 1))]
    crew = [
        context.Process(target=_serve, args=(theirs, seed), daemon=True)
        for seed, (_, theirs) in enumerate(lines)
    ]
    for process, (_, theirs) in zip(crew, lines, strict=True):
        process.start()
        theirs.close()  # so that a process that dies is noticed

    def work(shape: Shape, steps: int) -> None:
        for ours, _ in lines:
            ours.send((shape, steps))
        for ours, _ in lines:
            ours.recv()

    try:
        yield work, len(crew)
    finally:
        for process in crew:
            process.terminate()
            process.join()


def _serve(orders: Connection, seed: int) -> None:
    torch.set_num_threads(1)
    trainers: dict[Shape, PackTrainer] = {}
    while True:
        shape, steps = orders.recv()
        if shape not in trainers:
            trainers[shape] = shape.pack([seed])
        _advance(trainers[shape], steps)
        orders.send(None)


if __name__ == "__main__":
    use_huge_pages()
    main()
