import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.frontier import (
    PANELS,
    hypervolume,
    log_spaced,
    matched_points,
    matched_similarity,
    mean_difference,
    non_dominated,
    panel_points,
)

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


def test_there_are_twelve_panels() -> None:
    assert len(set(PANELS)) == 12
    assert ("prior", "pitch_class") in PANELS


POINT_COLUMNS = ["method", "trial", "lambda", "iteration"]
MATCHED_COLUMNS = [*POINT_COLUMNS, "validation_distance", "validation_value", "value"]
MATCHED = pl.DataFrame(
    [
        ("identity", "identity", None, 0, 0.0, 0.40, 0.41),
        ("fusion", "a", 0.1, 1, 1.0, 0.50, 0.52),
        ("fusion", "a", 0.1, 2, 2.0, 0.70, 0.45),  # better on validation, worse on test
        ("fusion", "b", 0.3, 1, 2.0, 0.60, 0.99),
        ("fusion", "b", 0.3, 2, 3.0, math.nan, 0.99),
        ("lp", "lp-eta0.1", None, 10, 2.5, 0.30, 0.33),  # worse than the identity
        ("lp", "lp-eta0.4", None, 1, math.nan, 0.95, 0.95),
    ],
    schema=MATCHED_COLUMNS,
    orient="row",
)


def test_matched_similarity_worked_by_hand() -> None:
    matched = matched_similarity(MATCHED, [0.5, 1.0, 4.0])
    chosen = matched.select("method", "distance", "trial", "iteration", "value").rows()
    assert chosen == [
        ("fusion", 0.5, "identity", 0, 0.41),
        ("fusion", 1.0, "a", 1, 0.52),
        ("fusion", 4.0, "a", 2, 0.45),
        ("identity", 0.5, "identity", 0, 0.41),
        ("identity", 1.0, "identity", 0, 0.41),
        ("identity", 4.0, "identity", 0, 0.41),
        ("lp", 0.5, "identity", 0, 0.41),
        ("lp", 1.0, "identity", 0, 0.41),
        ("lp", 4.0, "lp-eta0.1", 10, 0.33),  # it has a point, so the identity does not stand in
    ]
    assert matched["validation_value"].to_list() == [0.4, 0.5, 0.7, 0.4, 0.4, 0.4, 0.4, 0.4, 0.3]
    expected = ((0.41 - 0.41) + (0.52 - 0.41) + (0.45 - 0.33)) / 3
    assert mean_difference(matched, "fusion", "lp") == pytest.approx(expected)
    with pytest.raises(KeyError, match="slerp"):
        mean_difference(matched, "slerp", "lp")


def test_a_test_value_that_is_not_finite_is_reported_not_dodged() -> None:
    """To pass over it would be to choose by test songs."""
    points = MATCHED.with_columns(
        value=pl.when(pl.col("trial") == "a").then(math.nan).otherwise("value")
    )
    matched = matched_similarity(points, [4.0])
    assert matched["trial"][0] == "a"
    assert math.isnan(mean_difference(matched, "fusion", "lp"))


POINT = st.tuples(
    st.sampled_from(["fusion", "lp"]),
    st.integers(0, 5).map(float),
    st.integers(0, 5).map(float) | st.just(math.nan),
)


@given(
    st.lists(POINT, max_size=12), st.lists(st.integers(0, 6).map(float), min_size=1, unique=True)
)
def test_matched_similarity_by_definition(
    points: list[tuple[str, float, float]], distances: list[float]
) -> None:
    rows = [("identity", "identity", None, 0, 0.0, 2.0, -1.0)]
    rows += [(m, f"t{i:02}", None, 1, d, v, float(i)) for i, (m, d, v) in enumerate(points)]
    frame = pl.DataFrame(rows, schema=MATCHED.schema, orient="row")
    matched = matched_similarity(frame.sample(fraction=1, shuffle=True, seed=0), distances)
    assert matched.height == len({row[0] for row in rows}) * len(distances)
    for method, distance, *_, value in matched.rows():
        best, expected = (-math.inf, -math.inf), -1.0
        for owner, _trial, _weight, _count, its_distance, its_value, its_test in rows:
            near_enough = owner == method and its_distance <= distance
            if near_enough and (its_value, -its_distance) > best:
                best, expected = (its_value, -its_distance), its_test
        assert value == expected


def test_matched_similarity_needs_one_identity() -> None:
    with pytest.raises(ValueError, match="identity"):
        matched_similarity(MATCHED[1:], [1.0])
    with pytest.raises(ValueError, match="identity"):
        matched_similarity(pl.concat([MATCHED, MATCHED[:1]]), [1.0])


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
    readings = [
        ("conditional", "c", weight, source, 1, metric, value + weight)
        for weight in (0.1, 0.3)
        for source, value in (("test", 1.0), ("validation", 2.0))
        for metric in ("judge", "z_distance")
    ]
    metrics = pl.DataFrame(
        readings,
        schema=["method", "trial", "lambda", "source", "iteration", "metric", "value"],
        orient="row",
    )
    points = matched_points(metrics, "test", "judge", "z_distance")
    assert points.rows() == [
        ("conditional", "c", 0.1, 1, 2.1, 2.1, 1.1),
        ("conditional", "c", 0.3, 1, 2.3, 2.3, 1.3),
    ]


def test_matched_points_join_validation_and_test() -> None:
    points = matched_points(METRICS, "test", "judge", "z_distance")
    assert points.rows() == [("fusion", "a", 0.1, 1, 1.25, 0.7, 0.6)]
    assert points.columns == MATCHED.columns


def test_log_spaced_distances() -> None:
    assert log_spaced(0.1, 10.0, 3) == pytest.approx([0.1, 1, 10])
    with pytest.raises(ValueError, match="smallest"):
        log_spaced(0.0, 10.0, 3)
