"""`python -m benchmarks.evaluation`: how fast rivals are searched, outputs measured and judged.

Prints one table and writes `benchmarks/out/evaluation.json`, as `benchmarks.core` does. It takes
ten minutes on a CPU, since a trial is trained for it (`benchmarks.trial`). The latent search needs
PyTorch and NumPy alone. `DEVICE=cuda` measures what a GPU is for, there.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import find_missing
from benchmarks.measuring import Measure, Rounds, find_device, introduce, publish, ratio, tell
from benchmarks.products import bare, forward
from cf_core.melody import MelodyFormat
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.training import limit_threads
from cf_core.vae import MelodyVAE, VAESettings
from evaluation.classifier import ClassifierSettings, SearchClassifier
from evaluation.rivals.base import Bound, Tools
from evaluation.rivals.lp import LP

OUTPUT = Path(__file__).parent / "out" / "evaluation.json"
LATENT_DIM, ITERATIONS = 64, 100
PAIRS = {"cpu": 512, "cuda": 131_072}
"""Pairs that are searched at one time: on a GPU so many that launches count for little. The largest
batch of `poster` has 22,528."""


def main(repeats: int = 15, seconds: float = 0.2, scale: int = 1, output: Path = OUTPUT) -> None:
    """Measure everything, print the table and write it to `output`."""
    device = find_device()
    introduce(repeats)
    measures = [*latent_search(Rounds(repeats, seconds, scale), device)]
    if missing := find_missing("polars", "scipy", "rapidfuzz", "pyarrow", "pydantic", "optuna"):
        print(f"all but the latent search is left out: {', '.join(missing)} can't be imported")
    else:
        from benchmarks.panels import measure_evaluation  # noqa: PLC0415
        from benchmarks.trial import measure_trial  # noqa: PLC0415

        few = Rounds(min(3, repeats), 0.0, scale)
        measures += [*measure_evaluation(few, device), *measure_trial(few, device)]
    publish(measures, output)


def latent_search(rounds: Rounds, device: str) -> Iterator[Measure]:
    """The latent search against the matrix products of the classifier that it climbs."""
    kind = torch.device(device).type
    pairs, latent_dim = PAIRS[kind] // rounds.scale, LATENT_DIM // rounds.scale
    settings, form = ClassifierSettings(hidden=256 // rounds.scale), MelodyFormat()
    classifier = SearchClassifier(latent_dim, settings)
    initialise(classifier, make_random(0, "weights"))
    classifier.to(device)
    noise = torch.randn(2, pairs, latent_dim, generator=make_random(0, "pairs"))
    left, right = noise.to(device)
    own, kinds = {"step_size": torch.full((pairs,), 0.1)}, np.zeros(pairs, np.int64)
    core = MelodyVAE(form, VAESettings(latent_dim=latent_dim))
    spread = torch.ones(latent_dim, device=device)
    search = Bound(LP(), own, kinds, Tools(classifier, spread, (left, right), core, kinds))
    sizes = [2 * latent_dim, *[settings.hidden] * (settings.depth + 1), 1]
    with limit_threads(1):
        seconds = rounds.take_turns(
            lambda: list(
                search((left, right), [ITERATIONS], make_random(0, "search", device=device))
            ),
            bare((ITERATIONS + 1) * forward(sizes, pairs), device=device),
        )
    on = "one thread" if kind == "cpu" else torch.cuda.get_device_name(device)
    shape = f"{pairs} pairs, Z {latent_dim}, hidden {settings.hidden}, {on}"
    tell(f"LP, {ITERATIONS} iterations of {shape}", seconds, ("search", "products"))
    name = "lp_matmul_share" if kind == "cpu" else "cuda_lp_matmul_share"
    yield Measure(name, ratio(seconds, 1, 0), "share", 0.6, "higher")


if __name__ == "__main__":
    main()
