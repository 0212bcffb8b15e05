# ruff: noqa: T201
"""Run a whole study from Python: plan it, run it, list its jobs, select a bundle by another rule.

The settings are those of small.yaml. Give a folder of melodies (forty or more in 4/4 or 2/2) and a
folder for the results. A study that is there already goes on from its records.

    python examples/study_from_python.py MELODIES RESULTS
"""

import sys
from pathlib import Path

import study

SETTINGS = Path(__file__).with_name("small.yaml")


def main(melodies: str, results: str) -> None:
    """Run the study on a folder of melodies."""
    config = study.load_config(
        SETTINGS,
        [f"corpus.source={melodies}", f"execution.results={results}"],
    )
    print(study.plan_study(config))
    with study.Reporter() as reporter:
        records = study.run_study(config, reporter)
    print(study.list_jobs(records).select("trial", "status", "seconds"))
    # The run has made a bundle by its own rule. The records allow any other, without training.
    rule = study.read_rule(records, where=["larger_edit_distance <= 20"])
    choice = study.select_bundle(records, rule, records.root / "near.bundle")
    print(*choice.lines(), sep="\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
