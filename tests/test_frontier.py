import math
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.controls import CONTROLS
from evaluation.frontier import (
    CHOSEN_ON,
    DISTANCES,
    PANELS,
    attainment,
    attainment_difference,
    hypervolume,
    hypervolumes,
    matched_similarity,
    non_dominated,
    panel_points,
    rivals,
    shortfall,
)
from evaluation.metrics import COHERENCY

AXIS = "z_distance"
Row = tuple[str, str, float | None, int | None, int, float, float, float]

# Few distinct values, so that ties and equal points are common.
POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=15)


def columns(points: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    distance, coherency = np.array(points, float).T
    return distance, coherency


@given(POINTS)
def test_non_dominated_by_definition(points: list[tuple[int, int]]) -> None:
    slow = [not any(d <= e and c >= f and (d, c) != (e, f) for d, c in points) for e, f in points]
    assert non_dominated(*columns(points)).tolist() == slow


@given(POINTS, st.tuples(st.integers(0, 7), st.integers(-1, 6)))
def test_hypervolume_counts_dominated_unit_squares(
    points: list[tuple[int, int]], reference: tuple[int, int]
) -> None:
    d_limit, c_limit = reference
    squares = {(x, y) for d, c in points for x in range(d, d_limit) for y in range(c_limit, c)}
    assert hypervolume(*columns(points), (float(d_limit), float(c_limit))) == len(squares)


def test_frontier_worked_by_hand() -> None:
    distance, coherency = np.array([1.0, 2.0, 2.0, 3.0, 1.0]), np.array([0.5, 0.8, 0.6, 0.7, 0.5])
    assert non_dominated(distance, coherency).tolist() == [True, True, False, False, True]
    # 0.1 high from 1 to 4, and 0.3 more from 2 to 4; the inputs stay as they are.
    assert hypervolume(distance, coherency, (4.0, 0.4)) == pytest.approx(3 * 0.1 + 2 * 0.3)
    assert distance.tolist() == [1, 2, 2, 3, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_points_that_are_not_finite_are_refused(bad: float) -> None:
    for distance, coherency in (([1.0, bad], [1.0, 1.0]), ([1.0, 1.0], [bad, 1.0])):
        with pytest.raises(ValueError, match="finite"):
            non_dominated(np.array(distance), np.array(coherency))
        with pytest.raises(ValueError, match="finite"):
            hypervolume(np.array(distance), np.array(coherency), (2.0, 0.0))


@given(POINTS, POINTS)
def test_shortfall_is_what_the_best_point_lacks(
    own: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    """Bettered by that much in both, one point is dominated no more; by any less, all still are."""
    scale = (2.0, 4.0)
    short = shortfall(columns(own), columns(others), scale)

    def some_point_stands(by: float) -> bool:
        moved = [(d - by * scale[0], c + by * scale[1]) for d, c in own]
        return any(not any(f[0] < d and f[1] > c for f in others) for d, c in moved)

    assert some_point_stands(short)
    assert not some_point_stands(short - 1e-6)


def test_without_others_nothing_falls_short() -> None:
    assert shortfall(columns([(1, 1)]), (np.empty(0), np.empty(0)), (1.0, 1.0)) == -math.inf


def test_there_are_twelve_panels() -> None:
    assert len(set(PANELS)) == 12
    assert ("prior", "pitch_class") in PANELS


def metrics_of(rows: Sequence[Row]) -> pl.DataFrame:
    """The same points in every panel: method, trial, λ, seed, iteration, distance, both values.

    Distances are the same on validation and on test songs; values are validation's, then test's.
    """
    return pl.DataFrame(
        [
            (method, trial, weight, seed, name, iteration, metric, value)
            for method, trial, weight, seed, iteration, distance, validation, test in rows
            for source, twin in CHOSEN_ON.items()
            for name, score in ((source, test), (twin, validation))
            for metric, value in ((AXIS, distance), *((metric, score) for metric in COHERENCY))
        ],
        {
            "method": pl.String, "trial": pl.String, "lambda": pl.Float64, "seed": pl.Int64,
            "source": pl.String, "iteration": pl.Int64, "metric": pl.String, "value": pl.Float64,
        },
        orient="row",
    ).with_columns(configuration=pl.col("trial").str.replace(r"-seed\d+$", ""))  # fmt: skip


IDENTITY: Row = ("identity", "identity", None, None, 0, 0.0, 0.40, 0.41)
POINTS_BY_HAND: list[Row] = [
    IDENTITY,
    ("fusion", "a-seed0", 0.1, 0, 1, 0.8, 0.45, 0.50),
    ("fusion", "a-seed1", 0.1, 1, 1, 1.2, 0.55, 0.54),
    ("fusion", "a-seed0", 0.1, 0, 2, 2.0, 0.70, 0.44),  # better on validation, worse on test
    ("fusion", "a-seed1", 0.1, 1, 2, 2.0, 0.70, 0.46),
    ("conditional", "b-seed0", 0.3, 0, 1, 2.0, 0.60, 0.99),
    ("conditional", "b-seed1", 0.3, 1, 1, 2.0, 0.60, 0.99),
    ("conditional", "c-seed0", 0.3, 0, 1, 2.0, 0.90, 0.99),  # seed 1 is not finished
    ("fusion", "d-seed0", 0.3, 0, 1, 2.0, 0.90, 0.99),
    ("fusion", "d-seed1", 0.3, 1, 1, 2.0, math.nan, 0.99),
    ("lp", "lp-eta0.1", None, None, 10, 2.5, 0.30, 0.33),  # worse than the identity
    ("lp", "lp-eta0.1", None, None, 20, 2.6, 0.30, 0.99),  # equal, but farther
    ("lp", "lp-eta0.1", None, None, 40, 3.0, 0.20, 0.99),
    ("lp", "lp-eta0.4", None, None, 1, math.nan, 0.95, 0.95),
]


def test_matched_similarity_worked_by_hand() -> None:
    metrics = metrics_of(POINTS_BY_HAND)
    matched = matched_similarity(
        metrics.sample(fraction=1, shuffle=True, seed=0), {AXIS: (0.5, 4.0)}
    )
    assert rivals(metrics) == ["identity", "lp"]
    assert matched.height == 2 * 12 * 2 * DISTANCES
    panel = matched.filter(rival="lp", source="prior", metric="note_count")
    ours, lp = (panel.filter(method=method) for method in ("ours", "lp"))
    # 0.5 and every next 1.26 times as far: 0.79, 1 exactly at the fourth, 1.59, 2 at the seventh.
    assert ours["distance"].to_list() == pytest.approx([0.5 * 2 ** (i / 3) for i in range(10)])
    assert ours["configuration"].to_list() == ["identity"] * 3 + ["a"] * 7
    assert ours["iteration"].to_list() == [0] * 3 + [1] * 3 + [2] * 4
    assert ours["value"].to_list() == pytest.approx([0.41] * 3 + [0.52] * 3 + [0.45] * 4)
    # It has a point, so the identity does not stand in though it is better.
    assert lp["value"].to_list() == [0.41] * 7 + [0.33] * 3
    assert lp["iteration"].to_list() == [0] * 7 + [10] * 3
    assert panel["candidates"].to_list() == [3] * 20
    assert ours["excluded"].to_list() == [2] * 10
    assert lp["excluded"].to_list() == [1] * 10
    alone = matched.filter(rival="identity", source="prior", metric="note_count")
    assert alone.filter(method="ours")["candidates"].to_list() == [3] * 10
    assert alone.filter(method="identity")["value"].to_list() == [0.41] * 10


def test_a_test_value_that_is_not_finite_is_reported_not_dodged() -> None:
    """To pass over it would be to choose by test songs."""
    rows: list[Row] = [IDENTITY]
    for method, trial, seed in (("fusion", "a-seed0", 0), ("lp", "lp", None)):
        rows.append((method, trial, None, seed, 1, 1.0, 0.9, math.nan))
        rows.append((method, trial, None, seed, 2, 1.0, 0.8, 0.9))
    matched = matched_similarity(metrics_of(rows), {AXIS: (1.0, 2.0)}).filter(
        rival="lp", method="lp"
    )
    assert matched["value"].is_nan().all()


POINT = st.tuples(
    st.sampled_from(["fusion", "lp"]),
    st.integers(0, 5).map(float),
    st.integers(0, 5).map(float) | st.just(math.nan),
)


def slowly_thinned(points: list[Row], count: int) -> list[Row]:
    """Of ranks 0 … last, those nearest to `count` equal steps."""
    ranked = sorted(points, key=lambda row: (row[5], row[1]))
    last, count = len(ranked) - 1, min(count, len(ranked))
    if count <= 1:
        return ranked[:count]
    return [ranked[round(step * last / (count - 1))] for step in range(count)]


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(POINT, max_size=12))
def test_matched_similarity_by_definition(points: list[tuple[str, float, float]]) -> None:
    rows: list[Row] = [("identity", "identity", None, None, 0, 0.0, 2.0, -1.0)]
    rows += [
        (method, f"t{i:02}-seed0", None, 0 if method == "fusion" else None, 1, d, v, float(i))
        for i, (method, d, v) in enumerate([*points, ("lp", 3.0, 3.0)])
    ]
    matched = matched_similarity(metrics_of(rows), {AXIS: (0.5, 5.5)})
    owned = {
        method: [row for row in rows if row[0] == owner and math.isfinite(row[6])]
        for method, owner in (("ours", "fusion"), ("lp", "lp"))
    }
    # A method with a single point does not thin the other.
    all_ = {"ours": [row for row in rows if row[0] == "fusion"]}
    all_["lp"] = [row for row in rows if row[0] == "lp"]
    count = min((len(owned[method]) for method, own in all_.items() if len(own) > 1), default=1)
    panel = matched.filter(rival="lp", source="test", metric="judge")
    for method, distance, value in panel.select("method", "distance", "value").iter_rows():
        best, expected = (-math.inf, -math.inf), -1.0
        for row in slowly_thinned(owned[method], count):
            if row[5] <= distance and (row[6], -row[5]) > best:
                best, expected = (row[6], -row[5]), row[7]
        assert value == expected


def test_tricks_are_no_rivals_and_change_nothing() -> None:
    tricks: list[Row] = [
        (name, name, None, None, 0, 1.0 + place, 0.99, 0.99) for place, name in enumerate(CONTROLS)
    ]
    without, with_them = metrics_of(POINTS_BY_HAND), metrics_of([*POINTS_BY_HAND, *tricks])
    assert rivals(with_them) == rivals(without)
    for compare in (matched_similarity, hypervolumes):
        assert compare(with_them, {AXIS: (0.5, 4.0)}).equals(compare(without, {AXIS: (0.5, 4.0)}))


def test_matched_similarity_needs_the_identity() -> None:
    with pytest.raises(ValueError, match="identity"):
        matched_similarity(metrics_of(POINTS_BY_HAND[1:]), {AXIS: (0.5, 4.0)})


def test_thinning_keeps_the_nearest_and_the_farthest() -> None:
    many: list[Row] = [
        ("fusion", f"t{i}-seed0", 0.1, 0, 1, float(i + 1), float(i), float(i)) for i in range(9)
    ]
    few: list[Row] = [("lp", f"lp{i}", None, None, 1, 1.0, 0.0, 0.0) for i in range(3)]
    matched = matched_similarity(metrics_of([IDENTITY, *many, *few]), {AXIS: (1.0, 9.0)})
    ours = matched.filter(rival="lp", source="test", metric="judge", method="ours")
    assert ours["candidates"].unique().to_list() == [3]
    assert ours["configuration"].unique().sort().to_list() == ["t0", "t4", "t8"]
    assert matched.filter(rival="identity", method="ours")["candidates"].unique().to_list() == [9]


METRICS = pl.DataFrame(
    [
        ("fusion", "a", "test", 1, "judge", 0.6),
        ("fusion", "a", "test", 1, "z_distance", 1.5),
        ("fusion", "a", "test", 1, "edit_distance", 9.0),
        ("fusion", "a", "validation", 1, "judge", 0.7),
        ("fusion", "a", "validation", 1, "z_distance", 1.25),
        ("fusion", "a", "prior", 1, "judge", 0.8),
        ("fusion", "a", "test", 2, "z_distance", 4.0),
        ("ceiling", "ceiling", "test", 0, "judge", 0.9),
        ("ceiling", "ceiling", "validation", 0, "judge", 0.9),
    ],
    schema=["method", "trial", "source", "iteration", "metric", "value"],
    orient="row",
).with_columns(pl.when(pl.col("method") == "fusion").then(0.1).alias("lambda"))


def test_panel_points_join_value_and_distance() -> None:
    points = panel_points(METRICS, "test", "judge", "z_distance")
    assert points.select("trial", "iteration", "value", "distance").rows() == [
        ("a", 1, 0.6, 1.5),
        ("ceiling", 0, 0.9, None),
    ]


def test_readings_of_one_trial_at_several_weights_are_points_of_their_own() -> None:
    rows: list[Row] = [
        ("conditional", "c-seed0", weight, 0, 1, 1.0, weight, weight) for weight in (0.1, 0.3)
    ]
    matched = matched_similarity(metrics_of([IDENTITY, *rows]), {AXIS: (1.0, 2.0)})
    ours = matched.filter(method="ours", source="test", metric="judge")
    assert set(ours.select("configuration", "lambda", "value").iter_rows()) == {("c", 0.3, 0.3)}
    assert ours["candidates"].unique().to_list() == [2]


FRONT = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=5)
SEEDS = st.integers(1, 4).flatmap(lambda n: st.lists(FRONT, min_size=n, max_size=n))


def seeded(
    fronts: Sequence[Sequence[tuple[int, int]]], rival: Sequence[tuple[int, int]]
) -> list[Row]:
    """Each seed's points as ours, and one rival's; validation as test. Seeds lack no point."""
    most = max(len(front) for front in fronts)
    padded = [[*front, *[front[0]] * (most - len(front))] for front in fronts]
    ours: list[Row] = [
        ("fusion", f"t{i}-seed{seed}", 0.1, seed, 1, float(d), float(c), float(c))
        for seed, front in enumerate(padded)
        for i, (d, c) in enumerate(front)
    ]
    # As many as ours has, so that neither is thinned.
    points = [rival[i % len(rival)] for i in range(max(most, len(rival)))]
    lp: list[Row] = [
        ("lp", f"lp{i}", None, None, 1, float(d), float(c), float(c))
        for i, (d, c) in enumerate(points)
    ]
    more: list[Row] = [
        ("fusion", f"more{i}-seed{seed}", 0.1, seed, 1, float(d), float(c), float(c))
        for seed, front in enumerate(padded)
        for i in range(len(points) - most)
        for d, c in front[:1]
    ]
    return [IDENTITY, *ours, *more, *lp]


def attains(front: Sequence[tuple[float, float]], distance: float, coherency: float) -> bool:
    return any(d <= distance and c >= coherency for d, c in front)


@pytest.mark.slow
@given(SEEDS, FRONT)
def test_attainment_by_definition(
    fronts: list[list[tuple[int, int]]], rival: list[tuple[int, int]]
) -> None:
    metrics = metrics_of(seeded(fronts, rival))
    surfaces = attainment(metrics, "test", "judge", AXIS, ["ours", "lp"])
    needed = {"best": 1, "median": math.ceil(len(fronts) / 2), "worst": len(fronts)}
    for level, seeds in needed.items():
        for method, sets, least in (("ours", fronts, seeds), ("lp", [rival], 1)):
            steps = surfaces.filter(method=method, level=level)
            assert steps["distance"].is_sorted()
            for distance in range(6):
                reached = steps.filter(pl.col("distance") <= distance)["coherency"].to_list()
                started = [[*front, (0, 0.41)] for front in sets]  # from the identity
                expected = [
                    c
                    for c in (0.41, 1, 2, 3, 4)
                    if sum(attains(front, distance, c) for front in started) >= least
                ]
                assert reached[-1:] == expected[-1:]  # the last step is the highest
    rectangles = attainment_difference(metrics, "test", "judge", AXIS, "ours", "lp")
    for distance in np.arange(6) + 0.5:
        for coherency in np.arange(5) + 0.5:
            share = np.mean([attains(front, distance, coherency) for front in fronts])
            within = rectangles.filter(
                pl.col("distance_low") < distance, pl.col("distance_high") > distance,
                pl.col("coherency_low") < coherency, pl.col("coherency_high") > coherency,
            )  # fmt: skip
            assert within.height <= 1
            found = within["difference"].sum()
            assert found == pytest.approx(share - attains(rival, distance, coherency))


def test_methods_without_points_attain_nothing() -> None:
    metrics = metrics_of([IDENTITY, *POINTS_BY_HAND[1:3]])
    assert attainment(metrics, "test", "judge", AXIS, ["lp"]).is_empty()
    assert attainment_difference(metrics, "test", "judge", AXIS, "ours", "lp").is_empty()


def test_hypervolumes_worked_by_hand() -> None:
    def points(method: str, seed: int | None, count: int, height: float) -> list[Row]:
        name = "-seed" + str(seed) if seed is not None else ""
        return [
            (method, f"{method}{i}{name}", None, seed, 1, i + 1.0, height + i, height + i)
            for i in range(count)
        ]

    rows = [IDENTITY, *points("fusion", 0, 9, 1.0), *points("fusion", 1, 9, 2.0)]
    rows += [*points("lp", None, 5, 1.0), *points("slerp", None, 4, 1.0)]
    # On validation songs it is dominated, so its merit on test songs is not known in time.
    rows[-1] = ("slerp", "slerp3", None, None, 1, 4.0, 0.5, 99.0)
    found = hypervolumes(metrics_of(rows), {AXIS: (0.5, 10.0)}).filter(
        source="prior", metric="pitch_class", axis=AXIS
    )
    areas = {(m, s): (v, n) for m, s, v, n in found.select(
        "method", "seed", "hypervolume", "candidates").iter_rows()}  # fmt: skip
    # Of ours 1, 3, 5, 7, 9 are kept, with 1, 3, 5, 7, 9 at seed 0: steps of 2 from there to 10.
    # Before the first there is the identity, of 0.41.
    assert areas == {
        ("ours", 0): (pytest.approx(0.41 + 1 * 9 + 2 * (7 + 5 + 3 + 1)), 5),
        ("ours", 1): (pytest.approx(0.41 + 2 * 9 + 2 * (7 + 5 + 3 + 1)), 5),
        ("lp", None): (pytest.approx(0.41 + 9 + 8 + 7 + 6 + 5), 5),
        ("slerp", None): (pytest.approx(0.41 + 9 + 8 + 7), 4),
        ("identity", None): (pytest.approx(10 * 0.41), 1),
    }


def test_of_a_front_that_is_not_finite_on_test_songs_the_identity_is_left() -> None:
    rows: list[Row] = [IDENTITY, ("fusion", "a-seed0", 0.1, 0, 1, 1.0, 0.9, math.nan)]
    found = hypervolumes(metrics_of(rows), {AXIS: (0.5, 2.0)}).filter(method="ours")
    assert found["hypervolume"].to_list() == pytest.approx([2.0 * 0.41] * 12)
    surfaces = attainment(metrics_of(rows), "test", "judge", AXIS, ["ours"])
    assert set(surfaces.select("distance", "coherency").iter_rows()) == {(0.0, 0.41)}


def test_candidates_beyond_the_largest_distance_count_for_nothing() -> None:
    near: list[Row] = [
        ("lp", f"lp{i}", None, None, 1, 0.1 * (i + 1), 0.5, 0.5 + i / 100) for i in range(4)
    ]
    far: list[Row] = [("lp", f"far{i}", None, None, 1, 5.0 + i, 0.9, 0.9) for i in range(20)]
    ours: list[Row] = [
        ("fusion", f"a{i}-seed0", 0.1, 0, 1, 0.1 * (i + 1), 0.6, 0.6) for i in range(4)
    ]
    limits = {AXIS: (0.1, 2.0)}
    alone = matched_similarity(metrics_of([IDENTITY, *near, *ours]), limits)
    crowded = matched_similarity(metrics_of([IDENTITY, *near, *far, *ours]), limits)
    assert crowded.equals(alone)
