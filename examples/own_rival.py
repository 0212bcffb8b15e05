# ruff: noqa: T201
"""Put a method of your own on the frontier: a class in this file, named as `own_rival:Shift`.

    python examples/own_rival.py MELODIES RESULTS

`cf-study run` takes it as well where Python finds the file (`PYTHONPATH=examples`): name it in
`evaluation.rivals`, and give its options in `evaluation.shift`.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

import study
from evaluation.rivals import Batch, Look, Rival, Setting
from evaluation.transforms import Step


@dataclass(frozen=True)
class Shift(Rival):
    """Both halves moved by the same amount in all dimensions, in units of σ̄."""

    name = "shift"
    look = Look("shift", colour="#332288", marker="1")
    amounts: tuple[float, ...] = (0.1, 0.5)
    """How far an iteration goes; `evaluation.shift.amounts` in the configuration."""
    iterations: tuple[int, ...] = (1, 2)
    """Numbers of iterations after which outputs are kept."""

    def settings(self) -> list[Setting]:
        """One for each amount."""
        return [Setting(self.name, (("amount", amount),)) for amount in self.amounts]

    def steps(self, batch: Batch, /) -> Iterator[Step]:
        """Yield the outputs. All settings share a batch, which has the amount of each row."""
        left, right = batch.pair
        for count in batch.counts:
            by = count * batch.own["amount"][:, None] * batch.tools.sigma_bar
            yield Step(count, (left + by, right + by))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, results = sys.argv[1:]
    rivals = ['evaluation.rivals=["own_rival:Shift"]', "evaluation.shift.amounts=[0.2, 1]"]
    places = ["name=own-rival", f"corpus.source={source}", f"execution.results={results}"]
    config = study.load_config(Path(__file__).with_name("small.yaml"), [*rivals, *places])
    with study.Reporter() as reporter:
        records = study.run_study(config, reporter)
    print(records.frontier.filter(pl.col("method") == "shift").collect())
