# ruff: noqa: T201
"""Ask a finished study three questions.

Every table is a lazy Polars frame, whose columns docs/tables.md lists. Name the study's folder:
`python examples/ask_the_tables.py results/quickstart`.
"""

import sys

import polars as pl

import study


def main(folder: str) -> None:
    """Print the answers."""
    records = study.open(folder)

    print("Which points are most like real neighbours (1) on validation songs, after which edits?")
    point = ["trial", "lambda", "iteration"]
    values = (
        records.metrics.filter(
            pl.col("source") == "validation",
            pl.col("metric").is_in(["indistinguishable", "larger_edit_distance"]),
            pl.col("method").is_in(["fusion", "conditional"]),
        )
        .collect()
        .pivot("metric", index=point, values="value")
    )
    print(values.sort("indistinguishable", descending=True).head(5))

    print("How much does a pair of test songs change, from method to method, in tokens?")
    tested = records.outcomes.filter(pl.col("source") == "test", pl.col("iteration") > 0)
    edits = pl.col("edit_distance")
    spread = tested.group_by("method").agg(
        median=edits.median(), most=edits.max(), untouched=(edits == 0).mean()
    )
    print(spread.sort("median").collect())

    print("What does a pair cost at most, and what did training?")
    costs = records.costs.group_by("method").agg(
        milliseconds=(1000 * pl.col("seconds") / pl.col("pairs")).max(),
        classifier_calls=pl.col("classifier_calls").max(),
    )
    training = records.trials.group_by("method").agg(pl.col("training_seconds").mean())
    print(costs.join(training, on="method", how="left").sort("milliseconds").collect())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
