"""`python -m benchmarks.evaluation`: how fast the rivals are searched.

Prints one table and writes `benchmarks/out/evaluation.json`, as `benchmarks.core` does.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.core import Bench, Measure, _ratio, _tell, _threads
from benchmarks.products import bare, forward
from cf_core.files import replacing
from cf_core.nets import initialise
from cf_core.seeding import generator
from evaluation.classifier import ClassifierSettings, SearchClassifier
from evaluation.transforms import LatentSearch

OUTPUT = Path(__file__).parent / "out" / "evaluation.json"
PAIRS, LATENT_DIM, ITERATIONS = 512, 64, 100


def main(repeats: int = 15, seconds: float = 0.2, scale: int = 1, output: Path = OUTPUT) -> None:
    """Measure everything, print the table and write it to `output`."""
    bench = Bench(repeats, seconds, scale)
    measures = [*latent_search(bench)]
    for measure in measures:
        print(f"{measure.name:32} {measure.value:12.4g} {measure.unit:12} {measure.verdict}")
    with replacing(output) as temporary:
        temporary.write_text(json.dumps([asdict(measure) for measure in measures], indent=1) + "\n")


def latent_search(bench: Bench) -> Iterator[Measure]:
    """The latent search against the matrix products of the classifier that it climbs."""
    pairs, latent_dim = PAIRS // bench.scale, LATENT_DIM // bench.scale
    settings = ClassifierSettings(hidden=256 // bench.scale)
    classifier = SearchClassifier(latent_dim, settings)
    initialise(classifier, generator(0, "weights"))
    left, right = torch.randn(2, pairs, latent_dim, generator=generator(0, "pairs"))
    search = LatentSearch(classifier, torch.full((pairs,), 0.1))
    sizes = [2 * latent_dim, *[settings.hidden] * (settings.depth + 1), 1]
    with _threads(1):
        seconds = bench.take_turns(
            lambda: list(search((left, right), [ITERATIONS], generator(0, "search"))),
            bare((ITERATIONS + 1) * forward(sizes, pairs)),
        )
    shape = f"{pairs} pairs, Z {latent_dim}, hidden {settings.hidden}, one thread"
    _tell(f"LP, {ITERATIONS} iterations of {shape}", seconds, ("search", "products"))
    yield Measure("lp_matmul_share", _ratio(seconds, 1, 0), "share", 0.6, "higher")


if __name__ == "__main__":
    main()
