"""Answers of the blind test, counted: how often each method was preferred.

The page writes a file for each listener. Listeners differ, and so do pairs of melodies: answers of
one listener, or about one pair, are more alike than others, so an interval that takes them for
independent would be too narrow.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64
from scipy.stats import t

from cf_core.errors import RecordsError

COLUMNS = (
    "study", "fingerprint", "seed", "listener", "trial", "source", "axis", "distance", "pair",
    "a", "a_point", "b", "b_point", "chosen",
)  # fmt: skip
"""Columns of a file of answers, as the page writes them."""
_MOST_BYTES = 1_000_000


def count_answers(paths: Sequence[Path]) -> pl.DataFrame:
    """Count in files of answers how often each method was preferred to what it was beside.

    Columns: `method`, `preference` (0 to 1; 0.5 is chance), its 95 % interval `low` to `high` for
    other listeners and pairs (null with one listener or one pair), and the numbers of `answers`,
    `listeners` and `pairs`. The highest preference comes first. `real` are real neighbours and
    `inputs` the inputs as they were.

    Raises `RecordsError`, naming file and line, for what is no such file, for answers about
    different studies, inputs, distances or points of a method, and for answers that are given
    twice.

        >>> from pathlib import Path
        >>> from study import count_answers
        >>> files = sorted(Path("answers").glob("listening-*.csv"))
        >>> count_answers(files)  # doctest: +SKIP
    """
    answers = [answer for path in paths for answer in _read(path)]
    _check_together(answers)
    sides = pl.DataFrame(
        [
            {
                "method": row[side],
                "chosen": float(row["chosen"] == side),
                "listener": row["listener"],
                "pair": row["pair"],
            }
            for row in answers
            for side in ("a", "b")
        ]
    )
    rows = [_count(own) for own in sides.partition_by("method", maintain_order=True)]
    return pl.DataFrame(rows, infer_schema_length=None).sort(
        "preference", "method", descending=[True, False]
    )


def _count(own: pl.DataFrame) -> dict[str, float | int | str | None]:
    chosen = own["chosen"].to_numpy()
    clusters = [
        own[name].cast(pl.Categorical).to_physical().to_numpy() for name in ("listener", "pair")
    ]
    clusters = [np.unique(each, return_inverse=True)[1] for each in clusters]
    listeners, pairs = (int(each.max()) + 1 for each in clusters)
    low, high = find_interval(chosen, clusters)
    return {
        "method": own["method"][0],
        "preference": float(chosen.mean()),
        "low": low,
        "high": high,
        "answers": own.height,
        "listeners": listeners,
        "pairs": pairs,
    }


def find_interval(
    chosen: Float64[np.ndarray, "n"], clusters: Sequence[Int64[np.ndarray, "n"]]
) -> tuple[float | None, float | None]:
    """Find the 95 % interval of a share, where answers of a cluster may be alike.

    `chosen` is 0 or 1, and each of `clusters` numbers the answers' listeners, or pairs, from 0. An
    answer counts for less the more alike those of a cluster are (Kish's design effect), and never
    for more than one. Where all answers agree, each cluster counts as one answer. The clustering
    with the fewest answers that count is taken. The interval is Wilson's, with Student's t for as
    many clusters. Both ends are None where there is a single cluster.
    """
    share, n = float(chosen.mean()), len(chosen)
    ends: list[tuple[float, float]] = []
    for cluster in clusters:
        count = int(cluster.max()) + 1
        if count < 2:
            return None, None
        sums = np.bincount(cluster, chosen - share)
        variance = count / (count - 1) * float((sums**2).sum()) / n**2
        certain = share * (1 - share)
        counted = min(n, certain / variance) if variance > 0 and certain > 0 else float(n)
        if certain == 0:
            counted = count
        ends.append(_wilson(share, counted, float(t.ppf(0.975, count - 1))))
    return max(ends, key=lambda end: end[1] - end[0])


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * float(np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)))
    return max(0.0, middle - half), min(1.0, middle + half)


def _read(path: Path) -> Iterator[dict[str, str]]:
    """The answers of one file, with its name and their lines for messages."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RecordsError(f"{path}: is too large for answers of a blind test")
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise RecordsError(f"{path}: can't be read ({reason}); give files of the page") from None
    try:
        lines = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise RecordsError(
            f"{path}: is no CSV ({error}); give files as the page saves them"
        ) from None
    if not lines or tuple(lines[0]) != COLUMNS:
        raise RecordsError(
            f"{path}: is no file of answers; its first line must be {','.join(COLUMNS)}, as the"
            " page of a study writes it"
        )
    if len(lines) == 1:
        raise RecordsError(f"{path}: holds no answers")
    for number, line in enumerate(lines[1:], 2):
        row = dict(zip(COLUMNS, line, strict=False))
        whole = len(line) == len(COLUMNS) and all(
            row[name] for name in COLUMNS if not name.endswith("_point")
        )
        if not whole or row["chosen"] not in ("a", "b") or row["a"] == row["b"]:
            raise RecordsError(
                f"{path}, line {number}: is no answer: it needs all {len(COLUMNS)} columns, two"
                " different methods, and a or b as chosen"
            )
        yield row | {"where": f"{path}, line {number}"}


def _check_together(answers: Sequence[dict[str, str]]) -> None:
    """Refuse answers that can't be counted together."""
    seen: dict[tuple[str, ...], str] = {}
    points: dict[str, dict[str, str]] = {}
    for row in answers:
        for name in ("fingerprint", "source", "axis", "distance"):
            if row[name] != answers[0][name]:
                raise RecordsError(
                    f"{row['where']}: has another {name} than {answers[0]['where']}; count each"
                    " study, source and distance by itself"
                )
        for side in ("a", "b"):
            point = {"point": row[f"{side}_point"], "where": row["where"]}
            first = points.setdefault(row[side], point)
            if point["point"] != first["point"]:
                raise RecordsError(
                    f"{row['where']}: has another point of {row[side]} than {first['where']}; count"
                    " files with different points by themselves"
                )
        key = row["listener"], row["seed"], row["trial"]
        if key in seen:
            raise RecordsError(
                f"{row['where']}: repeats an answer of {seen[key]}; give each file once, and each"
                " listener a name of their own"
            )
        seen[key] = row["where"]
