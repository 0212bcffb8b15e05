"""Answers of listeners, counted by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from cf_core.errors import RecordsError
from study.page.listening import COLUMNS, count_answers, find_interval


def _answers(path: Path, listener: str, chosen: str, **changes: str) -> Path:
    """Real neighbours as `a` against LP; each letter of `chosen` is about another pair."""
    shared = {
        "study": "tiny", "fingerprint": "f", "seed": "1", "listener": listener, "source": "test",
        "axis": "z_distance", "distance": "9", "a": "real", "a_point": "", "b": "lp",
        "b_point": "x",
    }  # fmt: skip
    rows = [
        shared | {"trial": str(i + 1), "pair": str(i), "chosen": one} | changes
        for i, one in enumerate(chosen)
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def _by_hand(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson: the shares p at which |share - p| is z standard errors of p."""
    roots = np.roots([1 + z * z / n, -(2 * share + z * z / n), share * share])
    return float(roots.min()), float(roots.max())


def test_answers_are_counted_as_by_hand(tmp_path: Path) -> None:
    files = [
        _answers(tmp_path / "1.csv", "ann", "aaab"),
        _answers(tmp_path / "2.csv", "bob", "aaaa"),
        _answers(tmp_path / "3.csv", "cem", "abbb"),
    ]
    real, lp = count_answers(files).to_dicts()
    assert (real["method"], lp["method"]) == ("real", "lp")
    assert (real["preference"], lp["preference"]) == (8 / 12, 4 / 12)
    assert (real["answers"], real["listeners"], real["pairs"]) == (12, 3, 4)
    # Sums of what is chosen less its mean, by listener: 3 - 8/3, 4 - 8/3, 1 - 8/3.
    variance = 3 / 2 * ((1 / 3) ** 2 + (4 / 3) ** 2 + (5 / 3) ** 2) / 12**2
    by_listener = _by_hand(2 / 3, (2 / 9) / variance, t.ppf(0.975, 2))
    # By pair: 3 - 2, 2 - 2, 2 - 2, 1 - 2.
    variance = 4 / 3 * (1 + 0 + 0 + 1) / 12**2
    by_pair = _by_hand(2 / 3, min(12, (2 / 9) / variance), t.ppf(0.975, 3))
    wider = max(by_listener, by_pair, key=lambda ends: ends[1] - ends[0])
    assert (real["low"], real["high"]) == pytest.approx(wider)
    assert (lp["low"], lp["high"]) == pytest.approx((1 - wider[1], 1 - wider[0]))


def test_answers_that_all_agree_are_no_certainty() -> None:
    chosen, listeners = np.ones(12), np.repeat(np.arange(3), 4)
    low, high = find_interval(chosen, [listeners, np.tile(np.arange(4), 3)])
    z = t.ppf(0.975, 2)
    assert low == pytest.approx(1 / (1 + z * z / 3))  # three answers, not twelve
    assert high == 1
    assert find_interval(chosen, [np.zeros(12, np.int64)]) == (None, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no file of answers"),
        (b"a,b\n1,2\n", "is no file of answers"),
        (b"\xff\xfe\x00", "is no text"),
        (",".join(COLUMNS).encode() + b"\n", "holds no answers"),
        (",".join(COLUMNS).encode() + b"\n1,2\n", "line 2: is no answer"),
        (",".join(COLUMNS).encode() + b"\n" + b"x" * 140_000, r"x\.csv: is no CSV .*; give files"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(RecordsError, match=words):
        count_answers([tmp_path / "x.csv"])


def test_answers_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first = _answers(tmp_path / "1.csv", "ann", "ab")
    with pytest.raises(RecordsError, match=r"3\.csv, line 2: has another distance"):
        count_answers([first, _answers(tmp_path / "3.csv", "bob", "ab", distance="8")])
    with pytest.raises(RecordsError, match=r"3\.csv, line 2: has another source .*1\.csv, line 2"):
        count_answers([first, _answers(tmp_path / "3.csv", "bob", "ab", source="prior")])
    with pytest.raises(RecordsError, match=r"another point of lp than .*1\.csv, line 2; count"):
        count_answers([first, _answers(tmp_path / "3.csv", "bob", "ab", b_point="y")])
    with pytest.raises(RecordsError, match=r"repeats an answer of .*1\.csv, line 2"):
        count_answers([first, first])
    with pytest.raises(RecordsError, match="a or b as chosen"):
        count_answers([_answers(tmp_path / "2.csv", "bob", "ax")])
    with pytest.raises(RecordsError, match="two different methods"):
        count_answers([_answers(tmp_path / "2.csv", "bob", "a", b="real")])
    with pytest.raises(RecordsError, match="No such file"):
        count_answers([tmp_path / "none.csv"])
