"""It is long, since every figure is drawn from the same small tables."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection, LineCollection, PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text

from cf_core.errors import FigureError
from evaluation.figures import (
    Axis,
    attainment_difference_figure,
    attainment_figure,
    cost_figure,
    frontier_figure,
    iteration_figure,
    likeness_figure,
    save,
    search_figure,
    song_distance_figure,
    transition_figure,
    verdict_figure,
)
from evaluation.figures.canvas import STYLE, key, legend_below
from evaluation.frontier import CHOSEN_ON, PANELS
from evaluation.metrics import COHERENCY, LIKENESS
from evaluation.statistics import STATISTICS

pytestmark = pytest.mark.slow  # all share one drawing of every figure

LAMBDA, HIDDEN = Axis("lambda", "λ", log=True), Axis("hidden", "width", log=False)
COLUMNS = (*LIKENESS, *COHERENCY, "search_classifier")
HALVES = "indistinguishable_halves"
SCHEMA = {
    "trial": pl.String,
    "method": pl.String,
    "lambda": pl.Float64,
    "style_dim": pl.Int32,
    "seed": pl.Int64,
    "step_size": pl.Float64,
    "source": pl.String,
    "iteration": pl.Int32,
    "metric": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "excluded": pl.Int64,
}
TRIALS: list[tuple[str, str, float | None, int | None, tuple[int, ...]]] = [
    ("ours-a-seed0", "fusion", 0.1, 0, (1, 2, 4)),
    ("ours-a-seed1", "fusion", 0.1, 1, (4, 1, 2)),
    ("ours-b-seed0", "fusion", 0.0, 0, (1, 2, 4)),
    ("all-seed0", "conditional", 0.3, 0, (1, 2)),
    ("lp-eta0.2", "lp", None, None, (1, 10, 100)),
    *((rival, rival, None, None, (1, 2)) for rival in ("gradient", "cmaes", "best_of_n")),
    *((rival, rival, None, None, (1, 2)) for rival in ("slerp", "retrieval")),
    ("identity", "identity", None, None, (0,)),
    ("floor", "floor", None, None, (0,)),
    ("ceiling", "ceiling", None, None, (0,)),
]


def metrics_table() -> pl.DataFrame:
    """Two configurations of ours, one of them with two seeds, and every rival; no values alike."""
    generator = np.random.default_rng(0)
    rows: list[tuple[Any, ...]] = []
    for trial, method, weight, seed, iterations in TRIALS:
        for source in (*CHOSEN_ON, "validation"):
            for iteration in iterations:
                point = (trial, method, weight, 4, seed, None, source, iteration)
                if method not in {"floor", "ceiling"}:
                    distance = iteration * generator.uniform(0.1, 0.2)
                    rows.append((*point, "z_distance", distance, None, None, 512, 0))
                for metric in (*COLUMNS, HALVES):
                    value = generator.uniform(0.3, 0.9)
                    rows.append((*point, metric, value, value - 0.02, value + 0.03, 512, 0))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


METRICS = metrics_table().with_columns(configuration=pl.col("trial").str.replace(r"-seed\d+$", ""))
COSTS = (
    METRICS.filter(pl.col("source") == "test", pl.col("metric") == "z_distance")
    .select("trial", "method", "lambda", "iteration")
    .with_columns(
        pairs=pl.lit(64),
        seconds=0.5 * pl.col("iteration"),
        device=pl.lit("cpu <$x_1$>"),
    )
)


def bins_table() -> pl.DataFrame:
    """Three bins of each statistic, and the twelve pitch classes."""
    rows = [
        ("4/4", statistic, place, None if place == 0 else 60.0 + place)
        for statistic in STATISTICS
        for place in range(12 if statistic == "pitch_class" else 3)
    ]
    schema = {"meter": pl.String, "statistic": pl.String, "bin": pl.Int32, "lower": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def outcomes_of(trial: str, method: str, iteration: int, left: list[int], right: list[int]) -> Any:
    bins = {
        f"{statistic}_{half}": pl.Series(values, dtype=pl.Int8)
        for statistic in STATISTICS
        for half, values in (("left", left), ("right", right))
    }
    return pl.DataFrame({**bins, "pair": range(len(left))}).with_columns(
        pl.lit(trial).alias("trial"),
        pl.lit(method).alias("method"),
        pl.lit(None, dtype=pl.Float64).alias("lambda"),
        pl.lit("test").alias("source"),
        pl.lit(iteration, dtype=pl.Int32).alias("iteration"),
    )


BINS = bins_table()
OUTCOMES = pl.concat(
    [
        outcomes_of("real", "real", 0, [0, 0, 1, 2], [0, 0, 1, 2]),
        outcomes_of("identity", "identity", 0, [0, 1, 2], [2, 0, 1]),
        outcomes_of("a $x_1$ <b>\n", "fusion", 1, [0, 1, 2], [0, 1, 1]),
        outcomes_of("lp-eta0.2", "lp", 10, [0, 1, -1], [0, 1, 1]),
    ]
)
POINTS = (
    OUTCOMES.filter(pl.col("method").is_in(["fusion", "lp"]))
    .select("method", "trial", "lambda", "iteration")
    .unique(maintain_order=True)
)
SONG_DISTANCES = pl.DataFrame(
    {
        "kind": ["same song"] * 4 + ["different songs"] * 4,
        "z_distance": [0.0, 1.0, 1.0, 100.0, 100.0, 100.0, 100.0, 100.0],
    }
)
KINDS = {"win": 0.1, "tie": -0.001, "loss": -0.2}
VERDICTS = pl.DataFrame(
    [
        {
            "rival": rival,
            "axis": axis,
            "source": source,
            "metric": metric,
            "difference": KINDS[kind],
            "verdict": kind,
            "songs": 25,
            "seeds": 5,
            "excluded": 3,
        }
        for axis in ("edit_distance", "z_distance")
        for rival in ("new $x_1$", "lp")
        for (source, metric), kind in zip(PANELS, ["win"] * 9 + ["tie"] * 2 + ["loss"], strict=True)
    ]
)
SURFACES = pl.DataFrame(
    [
        {
            "source": source,
            "metric": metric,
            "method": method,
            "level": level,
            "distance": distance,
            "coherency": coherency + shift,
        }
        for source, metric in PANELS
        for method in ("ours", "lp", "gradient")
        for level, shift in (("worst", 0.0), ("median", 0.1), ("best", 0.3))
        for distance, coherency in ((0.5, 0.2), (2.0, 0.4))
    ]
)

DIFFERENCES = pl.DataFrame(
    [
        {
            "source": source,
            "metric": metric,
            "distance_low": low,
            "distance_high": high,
            "coherency_low": 0.2,
            "coherency_high": top,
            "difference": difference,
        }
        for source, metric in PANELS
        for low, high, top, difference in (
            (0.5, 2.0, 0.4, 0.6),
            (2.0, math.inf, 0.4, 1.0),
            (4.0, math.inf, math.inf, -0.2),
        )
    ]
)

# (batch, λ, width, judge, z-distance, whether it meets the constraints)
SEARCHED: list[tuple[int, float | None, int, float, float, bool]] = [
    (0, 0.01, 96, 0.9, 4.0, True),
    (0, 0.1, 384, 0.8, 3.0, True),
    (0, 1.0, 192, 0.7, 3.5, True),
    (1, 3.0, 96, 0.95, 1.0, False),
    (2, None, 192, 0.6, 2.0, True),
]
CONFIGURATIONS = pl.DataFrame(
    SEARCHED,
    schema={"batch": pl.Int32, "lambda": pl.Float64, "hidden": pl.Int32}
    | {"maximised": pl.Float64, "minimised": pl.Float64, "feasible": pl.Boolean},
    orient="row",
)
OBJECTIVES = ("indistinguishable", "larger_edit_distance")
IMPORTANCES = pl.DataFrame(
    [
        (objective, parameter, share)
        for objective in OBJECTIVES
        for parameter, share in (("lambda", 0.7), ("hidden", 0.3))
    ],
    schema={"objective": pl.String, "parameter": pl.String, "importance": pl.Float64},
    orient="row",
)

Draw = Callable[..., Figure]
CASES: dict[str, tuple[Draw, tuple[pl.DataFrame, ...]]] = {
    "frontier": (frontier_figure, (METRICS,)),
    "iteration": (iteration_figure, (METRICS,)),
    "likeness": (lambda metrics: likeness_figure(metrics, "z_distance"), (METRICS,)),
    "attainment": (attainment_figure, (SURFACES,)),
    "differences": (lambda frame: attainment_difference_figure(frame, "lp"), (DIFFERENCES,)),
    "cost": (lambda metrics, costs: cost_figure(metrics, costs, 100.0), (METRICS, COSTS)),
    "transition": (transition_figure, (OUTCOMES, BINS, POINTS)),
    "songs": (song_distance_figure, (SONG_DISTANCES,)),
    "search": (
        lambda points, shares: search_figure(points, shares, [LAMBDA, HIDDEN], OBJECTIVES),
        (CONFIGURATIONS, IMPORTANCES),
    ),
    "verdict": (verdict_figure, (VERDICTS,)),
}
EVERY = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    """Every figure, drawn once and laid out."""
    drawn = {name: draw(*frames) for name, (draw, frames) in CASES.items()}
    with mpl.rc_context(STYLE):
        for figure in drawn.values():
            figure.draw_without_rendering()
    return drawn


def curve(panel: Axes, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in panel.lines if line.get_label() == label]
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def cloud(panel: Axes, label: str) -> PathCollection:
    (found,) = [each for each in panel.collections if each.get_label() == label]
    assert isinstance(found, PathCollection)
    return found


def segments(panel: Axes) -> list[list[list[float]]]:
    """Lower and upper end of each whisker."""
    found = [each for each in panel.collections if isinstance(each, LineCollection)]
    return [np.asarray(ends).tolist() for each in found for ends in each.get_segments()]


def recorded(source: str, metric: str, trial: str) -> dict[int, float]:
    rows = METRICS.filter(
        pl.col("source") == source, pl.col("metric") == metric, pl.col("trial") == trial
    )
    return dict(rows.select("iteration", "value").iter_rows())


def seed_mean(source: str, metric: str, iteration: int) -> float:
    first, second = (
        recorded(source, metric, trial)[iteration] for trial in ("ours-a-seed0", "ours-a-seed1")
    )
    return (first + second) / 2


def panels(figure: Figure, metrics: tuple[str, ...]) -> Iterator[tuple[tuple[str, str], Axes]]:
    names = [(source, metric) for source in CHOSEN_ON for metric in metrics]
    yield from zip(names, figure.axes, strict=True)


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """By definition: no other point is as near and as coherent, and better in one."""
    return sorted(
        (d, c)
        for d, c in points
        if not any(e <= d and v >= c and (e, v) != (d, c) for e, v in points)
    )


def same_places(drawn: list[tuple[float, float]], expected: list[tuple[float, float]]) -> None:
    np.testing.assert_allclose(drawn, expected, rtol=1e-12)


def ours(source: str, metric: str) -> list[tuple[float, float]]:
    means = [
        (seed_mean(source, "z_distance", count), seed_mean(source, metric, count))
        for count in (1, 2, 4)
    ]
    for trial in ("ours-b-seed0", "all-seed0"):
        distance = recorded(source, "z_distance", trial)
        means += [(distance[k], value) for k, value in recorded(source, metric, trial).items()]
    return means


def test_frontiers_join_the_points_that_none_dominates(figures: dict[str, Figure]) -> None:
    for (source, metric), panel in panels(figures["frontier"], COLUMNS):
        same_places(curve(panel, "ours"), front(ours(source, metric)))
        for rival in ("lp-eta0.2", "gradient", "cmaes", "best_of_n", "slerp", "retrieval"):
            distance = recorded(source, "z_distance", rival)
            points = [(distance[k], value) for k, value in recorded(source, metric, rival).items()]
            assert curve(panel, rival.split("-")[0]) == front(points)
        assert curve(panel, "identity") == [(0, recorded(source, metric, "identity")[0])]


def test_all_points_of_ours_and_of_lp_are_behind_their_frontiers(
    figures: dict[str, Figure],
) -> None:
    for (source, metric), panel in panels(figures["frontier"], COLUMNS):
        drawn = [cloud(panel, f"{method} points") for method in ("fusion", "conditional")]
        places = np.concatenate([np.asarray(each.get_offsets()) for each in drawn])
        same_places(sorted(map(tuple, places)), sorted(ours(source, metric)))
        lp = np.asarray(cloud(panel, "lp points").get_offsets())
        assert lp[:, 1].tolist() == list(recorded(source, metric, "lp-eta0.2").values())


def test_lambda_is_the_colour_of_ours_and_iterations_darken_lp(figures: dict[str, Figure]) -> None:
    panel = figures["frontier"].axes[len(LIKENESS)]
    shades = np.asarray(cloud(panel, "fusion points").get_facecolor())
    heights = np.asarray(cloud(panel, "fusion points").get_offsets())[:, 1]
    of_b = np.isin(heights, list(recorded("test", "judge", "ours-b-seed0").values()))
    assert of_b.sum() == 3
    assert [len(np.unique(shades[rows], axis=0)) for rows in (of_b, ~of_b)] == [1, 1]
    assert len(np.unique(shades, axis=0)) == 2
    lp = np.asarray(cloud(panel, "lp points").get_edgecolor())[:, :3].sum(axis=1)
    assert np.all(np.diff(lp) < 0)


def test_whiskers_reach_from_the_lowest_seed_to_the_highest(figures: dict[str, Figure]) -> None:
    expected = []
    for count in (1, 2, 4):
        seeds = [recorded("test", "judge", f"ours-a-seed{seed}")[count] for seed in (0, 1)]
        distance = seed_mean("test", "z_distance", count)
        expected.append([[distance, min(seeds)], [distance, max(seeds)]])
    drawn = segments(figures["iteration"].axes[0])
    assert np.ravel(drawn) == pytest.approx(np.ravel(expected))  # the other has one seed


def test_iterated_lines_are_the_means_in_the_order_of_iteration(
    figures: dict[str, Figure],
) -> None:
    for (source, metric), panel in panels(figures["iteration"], COHERENCY):
        expected = [
            (seed_mean(source, "z_distance", count), seed_mean(source, metric, count))
            for count in (1, 2, 4)
        ]
        same_places(curve(panel, "ours-a"), expected)
        distance = recorded(source, "z_distance", "all-seed0")
        values = recorded(source, metric, "all-seed0")
        assert curve(panel, "all") == [(distance[k], values[k]) for k in (1, 2)]
        assert {line.get_label() for line in panel.lines} >= {"identity", "floor", "ceiling"}
        assert "lp" not in {line.get_label() for line in panel.lines}
        clouds = [each for each in panel.collections if isinstance(each, PathCollection)]
        sizes = [np.asarray(each.get_sizes()) for each in clouds]
        by_count = [each for each in sizes if len(each) == 3]
        assert len(by_count) == 2
        assert all(np.all(np.diff(each) > 0) for each in by_count)


def test_axes_with_even_distances_are_linear_and_tell_what_lies_beyond_their_end() -> None:
    axis = "larger_z_distance_q90"
    renamed = METRICS.with_columns(pl.col("metric").replace("z_distance", axis))
    figure = frontier_figure(renamed, axis, end=5.0)
    assert {panel.get_xscale() for panel in figure.axes} == {"linear"}
    assert 5 < figure.axes[0].get_xlim()[1] < 6
    (legend,) = figure.legends
    assert "marks are farther than 5" in legend.get_title().get_text()
    whole = frontier_figure(renamed, axis)
    assert whole.axes[0].get_xlim()[1] > 10
    assert "farther" not in whole.legends[0].get_title().get_text()


@pytest.mark.parametrize("name", ["frontier", "iteration"])
def test_floor_and_ceiling_are_at_their_heights(name: str, figures: dict[str, Figure]) -> None:
    columns = COLUMNS if name == "frontier" else COHERENCY
    for (source, metric), panel in panels(figures[name], columns):
        for level in ("floor", "ceiling"):
            height = recorded(source, metric, level)[0]
            assert [y for _, y in curve(panel, level)] == [height, height]


@pytest.mark.parametrize(("name", "count"), [("frontier", 9), ("iteration", 6)])
def test_sources_of_one_metric_share_their_scales(
    name: str, count: int, figures: dict[str, Figure]
) -> None:
    above, below = np.array(figures[name].axes).reshape(2, count)
    for test, prior in zip(above, below, strict=True):
        assert (test.get_xlim(), test.get_ylim()) == (prior.get_xlim(), prior.get_ylim())
    assert above[0].get_ylim() != above[1].get_ylim()
    assert above[0].get_ylabel() == "coherency, test inputs"
    assert below[0].get_ylabel() == "coherency, prior inputs"


def test_panels_say_what_they_measure(figures: dict[str, Figure]) -> None:
    titles = [panel.get_title() for panel in figures["frontier"].axes[:9]]
    assert titles[:3] == ["indistinguish-\nable", "interval\nacross the seam", "judge\nprobability"]
    assert titles[7] == "pitch class\ncorrelation"
    assert titles[8] == "search\nclassifier\n(LP climbs it)"


def test_legend_names_every_level_and_states_the_numbers(figures: dict[str, Figure]) -> None:
    (legend,) = figures["frontier"].legends
    assert [text.get_text() for text in legend.get_texts() if text.get_text()] == [
        *("ours: λ", "0", "0.1", "0.3"),
        *("ours", "frontier", "one λ per trial", "λ as input"),
        *("frontier of", "LP", "best of N", "CMA-ES", "gradient search", "retrieval", "slerp"),
        "identity",
        *("LP: iterations", "1", "10", "100"),
        *("references", "floor: other inputs", "ceiling: real pairs"),
    ]
    assert legend.get_title().get_text() == (
        "mean over 1 to 2 training seeds (whiskers: lowest and highest), 512 pairs a point"
    )


def test_legend_names_all_of_many_methods() -> None:
    names, figure = [f"method {number}" for number in range(11)], Figure()
    legend_below(figure, {"methods": [(name, key("black")) for name in names]}, "note")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text for text in texts if text] == ["methods", *names]


def test_tricks_are_letters_that_are_never_joined_and_named_where_they_please() -> None:
    """Of two tricks, one is above the ceiling in the judge's panels, and none elsewhere."""
    ceiling = METRICS.filter(pl.col("method") == "ceiling")
    by = pl.when(pl.col("metric") == "judge").then(0.1).otherwise(-0.1)
    tricks = []
    for name, distance, shift in (("left_twice", 3.0, by), ("gamble", 1.0, -0.2)):
        named = {column: pl.lit(name) for column in ("trial", "configuration", "method")}
        rows = ceiling.filter(pl.col("metric").is_in(COLUMNS)).with_columns(**named)
        apart = rows.filter(pl.col("metric") == "judge").with_columns(
            metric=pl.lit("z_distance"), value=pl.lit(distance)
        )
        tricks += [rows.with_columns(pl.col("value") + shift), apart]
    figure = frontier_figure(pl.concat([METRICS, *tricks]))
    for (source, metric), axes in panels(figure, COLUMNS):
        level = ceiling.filter(source=source, metric=metric)["value"].item()
        expected = level + (0.1 if metric == "judge" else -0.1)
        same_places(curve(axes, "left_twice"), [(3.0, expected)])
        same_places(curve(axes, "gamble"), [(1.0, level - 0.2)])
        assert [text.get_text() for text in axes.texts] == [
            "pleased by L" if metric == "judge" else "pleased by none"
        ]
        for line in axes.lines:
            if line.get_label() in ("left_twice", "gamble"):
                assert line.get_linestyle() == "None"
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words[words.index("tricks") :][:3] == ["tricks", "left twice", "gamble"]
    assert "pleased by" in legend.get_title().get_text()


def test_likeness_is_drawn_through_the_best_point_of_each_stretch(
    figures: dict[str, Figure],
) -> None:
    """By whole pairs in both panels, so that they show the same points."""
    test = METRICS.filter(pl.col("source") == "test")
    named = ["trial", "iteration"]
    points = (
        test.filter(metric="indistinguishable")
        .join(test.filter(metric=HALVES).select(*named, halves="value"), on=named)
        .join(test.filter(metric="z_distance").select(*named, distance="value"), on=named)
        .with_columns(pl.col("method").replace({"fusion": "ours", "conditional": "ours"}))
        .group_by("method", "configuration", "iteration")
        .agg(pl.col("value", "halves", "distance").mean())
    )
    width = points["distance"].max() / 14  # type: ignore[operator]
    for method in ("ours", "lp"):
        best: dict[int, tuple[float, float, float]] = {}
        own = points.filter(method=method).select("value", "distance", "halves")
        for value, distance, halves in own.iter_rows():
            at = int(distance // width)
            best[at] = max(best.get(at, (0.0, 0.0, 0.0)), (value, distance, halves))
        top = max(best.values())
        for panel, place in zip(figures["likeness"].axes, (0, 2), strict=True):
            line = sorted((each[1], each[place]) for each in best.values())
            same_places(curve(panel, method), line)
            same_places(curve(panel, f"best of {method}"), [(top[1], top[place])])
            assert len(curve(panel, f"{method} points")) == own.height


def test_likeness_needs_points() -> None:
    with pytest.raises(FigureError, match="no likeness"):
        likeness_figure(METRICS.filter(pl.col("metric") != "indistinguishable"), "z_distance")


def test_what_is_left_out_is_counted_and_not_drawn() -> None:
    spoiled = (
        (pl.col("trial") == "ours-b-seed0")
        & (pl.col("source") == "test")
        & (pl.col("iteration") > 1)
    )
    broken = pl.when(spoiled & (pl.col("metric") == "judge"))
    frame = METRICS.with_columns(
        value=broken.then(pl.lit(math.nan)).otherwise("value"),
        n=broken.then(500).otherwise("n"),
        excluded=broken.then(12).otherwise("excluded"),
    )
    figure = iteration_figure(frame)
    for panel, axes in panels(figure, COHERENCY):
        notes = [text.get_text() for text in axes.texts]
        assert notes == (["left out 2 | 12"] if panel == ("test", "judge") else [])
        assert len(curve(axes, "ours-b")) == (1 if panel == ("test", "judge") else 3)
    (legend,) = figure.legends
    note = legend.get_title().get_text()
    assert note.endswith(
        "512 pairs a point; left out: points not finite | pairs, at most of one point"
    )


def test_of_many_configurations_so_many_are_drawn_as_can_be_told_apart() -> None:
    one = METRICS.filter(pl.col("trial") == "ours-b-seed0")
    many = [
        one.with_columns(
            pl.lit(number / 10).alias("lambda"),
            trial=pl.lit(f"n{number}-seed0"),
            configuration=pl.lit(f"n{number}"),
        )
        for number in range(63)
    ]
    figure = iteration_figure(pl.concat(many).sample(fraction=1, shuffle=True, seed=0))
    for _, axes in panels(figure, COHERENCY):
        names = [line.get_label() for line in axes.lines]
        assert names == [f"n{number}" for number in range(0, 63, 2)]
    (legend,) = figure.legends
    assert legend.get_title().get_text().endswith("; 32 of 63 lines, evenly by λ")


def test_sources_that_were_not_evaluated_take_no_room() -> None:
    figure = iteration_figure(METRICS.filter(pl.col("source") == "test"))
    assert len(figure.axes) == len(COHERENCY)


def test_attainment_is_drawn_as_steps_with_a_band_of_ours(figures: dict[str, Figure]) -> None:
    for _, panel in panels(figures["attainment"], COHERENCY):
        for method in ("ours", "lp", "gradient"):
            same_places(curve(panel, method), [(0.5, 0.3), (2, 0.5), (4, 0.5)])
        assert {line.get_drawstyle() for line in panel.lines} == {"steps-post"}
        (band,) = panel.collections
        assert isinstance(band, FillBetweenPolyCollection)
        box = band.get_datalim(panel.transData)
        assert (box.x0, box.x1, box.y0) == pytest.approx((0.5, 4, 0.2))
        assert box.y1 == pytest.approx(0.7)


def test_differences_of_attainment_are_where_the_table_says(figures: dict[str, Figure]) -> None:
    for _, panel in panels(figures["differences"], COHERENCY):
        boxes = [(*rect.get_bbox().extents, rect.get_alpha()) for rect in panel.patches]  # type: ignore[attr-defined]
        # What is open ends at 1.5 times the largest distance, and at a coherency of 1.
        expected = [(0.5, 0.2, 2, 0.4, 0.6), (2, 0.2, 6, 0.4, 1), (4, 0.2, 6, 1, 0.2)]
        for box, wanted in zip(boxes, expected, strict=True):
            assert box == pytest.approx(wanted)
        assert [bool(rect.get_hatch()) for rect in panel.patches] == [False, False, True]
    (legend,) = figures["differences"].legends
    assert "LP more often" in [text.get_text() for text in legend.get_texts()]


def test_costs_are_seconds_per_pair_with_and_without_training(figures: dict[str, Figure]) -> None:
    (panel,) = figures["cost"].axes
    judge = {trial: recorded("test", "judge", trial) for trial in ("lp-eta0.2", "all-seed0")}
    lp = [(0.5 * count / 64, value) for count, value in judge["lp-eta0.2"].items()]
    same_places(curve(panel, "lp"), front(lp))
    alone = [(0.5 * count / 64, value) for count, value in judge["all-seed0"].items()]
    trained = [((0.5 * count + 100) / 64, value) for count, value in judge["all-seed0"].items()]
    same_places(curve(panel, "conditional"), front(alone))
    same_places(curve(panel, "conditional with training"), front(trained))
    free = recorded("test", "judge", "identity")[0]
    assert [y for _, y in curve(panel, "identity")] == [free, free]
    (legend,) = figures["cost"].legends
    assert legend.get_title().get_text() == "measured on cpu <$x_1$>"


def test_transition_matrices_are_smoothed_shares_of_rows(figures: dict[str, Figure]) -> None:
    grid = np.array([axes for axes in figures["transition"].axes if axes.images])
    grid = grid.reshape(len(STATISTICS), 4)
    real, inputs, _, lp = (np.asarray(axes.images[0].get_array()) for axes in grid[0])
    # K = 3: every cell starts at 1/3. Two pairs 0 to 0, and one each 1 to 1 and 2 to 2.
    assert real == pytest.approx(np.array([[7, 1, 1], [1.5, 6, 1.5], [1.5, 1.5, 6]]) / 9)
    assert inputs == pytest.approx(np.array([[1, 1, 4], [4, 1, 1], [1, 4, 1]]) / 6)
    assert lp[2] == pytest.approx([1 / 3] * 3)  # its only pair from bin 2 has a silent half
    titles = [axes.get_title() for axes in grid[0]]
    assert titles[0] == "r = 1.00"
    assert titles[1] == f"r = {np.corrcoef(real.ravel(), inputs.ravel())[0, 1]:.2f}"
    assert titles[3].endswith(" (1 left out)")
    for row in grid:
        limits = {axes.images[0].get_clim() for axes in row}
        assert limits == {(0, max(np.max(axes.images[0].get_array()) for axes in row))}


def test_transitions_name_their_columns_and_bins(figures: dict[str, Figure]) -> None:
    grid = [axes for axes in figures["transition"].axes if axes.images]
    headings = [axes.texts[0].get_text() for axes in grid[:4]]
    assert headings[:2] == ["test data\n4 pairs", "inputs\n3 pairs"]
    assert headings[2] == "ours\na $x_1$ <b>�\n1 iteration"
    assert headings[3] == "LP\nlp-eta0.2\n10 iterations"
    edges = {text.get_text(): x for text, x in zip(grid[0].get_xticklabels(), grid[0].get_xticks())}  # noqa: B905
    assert edges == {"61": 0.5, "62": 1.5}
    assert [text.get_text() for text in grid[-1].get_xticklabels()] == list("CDEFGAB")
    assert grid[-1].get_xticks().tolist() == [0, 2, 4, 5, 7, 9, 11]


@pytest.mark.parametrize("edges", range(2, 8))
def test_edges_are_named_as_far_as_there_is_room(edges: int) -> None:
    fine = pl.DataFrame(
        {
            "meter": ["4/4"] * (edges + 1),
            "statistic": ["mean_pitch"] * (edges + 1),
            "bin": range(edges + 1),
            "lower": [None, *(60.123 + i / 30 for i in range(edges))],
        },
        schema=BINS.schema,
    )
    others = BINS.filter(pl.col("statistic") != "mean_pitch")
    figure = transition_figure(OUTCOMES, pl.concat([fine, others]), POINTS)
    ticks = next(axes for axes in figure.axes if axes.images).get_xticks()
    assert len(ticks) == min(edges, 3 if edges > 4 else 2)
    # Of k bins a name takes about a third of the width.
    assert (np.diff(ticks) >= (edges + 1) / 3.5).all() or len(ticks) <= 2


def test_bins_of_several_meters_are_named_by_rank_where_their_edges_differ() -> None:
    """In 3/8 the first edge of the mean pitch is another; the note count has one bin more."""
    in_eighths = BINS.with_columns(meter=pl.lit("3/8"))
    another = pl.when(statistic="mean_pitch", bin=1).then(59.5).otherwise("lower")
    finer = pl.DataFrame([("3/8", "note_count", 3, 63.0)], BINS.schema, orient="row")
    bins = pl.concat([BINS, in_eighths.with_columns(lower=another), finer])
    figure = transition_figure(OUTCOMES, bins, POINTS)
    grid = np.array([axes for axes in figure.axes if axes.images]).reshape(len(STATISTICS), 4)
    named = {
        name: ([text.get_text() for text in panel.get_xticklabels()], panel.get_xticks().tolist())
        for name, panel in zip(STATISTICS, grid[:, 0], strict=True)
    }
    assert named["mean_pitch"] == (["1", "2", "3"], [0, 1, 2])
    assert named["note_count"] == (["1", "2", "3", "4"], [0, 1, 2, 3])
    assert named["pitch_range"] == (["61", "62"], [0.5, 1.5])
    sizes = {name: np.shape(grid[n, 0].images[0].get_array()) for n, name in enumerate(STATISTICS)}
    assert sizes["mean_pitch"] == (3, 3)
    assert sizes["note_count"] == (4, 4)


def test_a_point_without_outcomes_is_named() -> None:
    points = POINTS.with_columns(iteration=pl.lit(7, dtype=pl.Int32))
    with pytest.raises(FigureError, match=r"no test pairs of a .* after 7 iterations; evaluate"):
        transition_figure(OUTCOMES, BINS, points)


def test_song_distances_are_shares_that_overlap_as_stated(figures: dict[str, Figure]) -> None:
    (panel,) = figures["songs"].axes
    outlines = [p for p in panel.patches if isinstance(p, StepPatch) and p.get_label()]
    same, different = (np.asarray(outline.get_data()[0]) for outline in outlines)
    assert (same[0], same[-1], same.sum()) == (0.5, 0.25, 0.75)  # a quarter lies at 0
    assert (different[-1], different.sum()) == (1, 1)
    assert panel.get_title() == "overlap 0.250"
    assert [outline.get_label() for outline in outlines] == [
        "same song (4 pairs, 25.0% at 0)",
        "different songs (4 pairs)",
    ]


def test_song_distances_that_are_not_finite_are_counted() -> None:
    extra = pl.DataFrame({"kind": ["same song"] * 2, "z_distance": [math.nan, None]})
    figure = song_distance_figure(pl.concat([SONG_DISTANCES, extra]))
    assert figure.axes[0].get_title() == "overlap 0.250 (2 not finite, left out)"


def cells(figure: Figure) -> dict[tuple[float, float], Any]:
    """Colour of each cell by its left and upper edge."""
    boxes = [box for box in figure.axes[0].patches if isinstance(box, Rectangle)]
    return {(box.get_x(), box.get_y()): box.get_facecolor() for box in boxes}


def test_verdicts_are_told_by_symbol_colour_and_count(figures: dict[str, Figure]) -> None:
    figure = figures["verdict"]
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    colours = cells(figure)
    assert len(colours) == 2 * 2 * 12
    for top in (1, 2, 4, 5):
        row = [texts[left + 0.5, top + 0.5] for left in range(12)]
        assert row == ["▲ +0.10"] * 9 + ["= +0.00"] * 2 + ["▼ −0.20"]
        found = [colours[left, top] for left in range(12)]
        assert len(set(found)) == 3
        assert found[9] == to_rgba("white")
    assert [t for t in texts.values() if "wins" in t] == ["9 wins, 2 ties, 1 loss"] * 4
    names = [name for (x, y), name in texts.items() if x < 0 and y < 6]
    assert names == [
        *("at matched z-distance, ours less", "LP", "new $x_1$"),
        *("at matched edit distance, ours less", "LP", "new $x_1$"),
    ]
    foot = next(text for text in texts.values() if "Training seeds" in text)
    assert foot.endswith(
        "Training seeds: 5; songs, or blocks of prior pairs: 25; left out of a comparison: 3."
    )


def test_without_a_test_verdicts_are_open() -> None:
    unknown = VERDICTS.with_columns(verdict=pl.lit(None, dtype=pl.String))
    texts = [text.get_text() for text in verdict_figure(unknown).axes[0].texts]
    assert "? +0.10" in texts
    assert texts.count("12 open") == 4
    missing = VERDICTS.with_columns(
        difference=pl.when(pl.col("verdict") == "loss").then(None).otherwise("difference")
    )
    assert [t.get_text() for t in verdict_figure(missing).axes[0].texts].count("NaN") == 4


def test_a_search_is_ringed_where_no_other_that_meets_the_constraints_is_better(
    figures: dict[str, Figure],
) -> None:
    figure = figures["search"]
    panel = next(axes for axes in figure.axes if axes.get_ylabel().startswith("indist"))
    met, missed, ringed = (np.asarray(each.get_offsets()).tolist() for each in panel.collections)
    assert len(met) == 4
    assert missed == [[3.0, 0.95]]
    # λ as an input stands to the right of all numbers.
    assert sorted(ringed) == [[0.01, 0.9], [0.1, 0.8], [30.0, 0.6]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][-1] == "misses a constraint"
    feasible = CONFIGURATIONS.filter("feasible")
    (first, *_) = search_figure(feasible, IMPORTANCES, [HIDDEN], OBJECTIVES).legends
    assert len(first.get_texts()) == 1


def svg(figure: Figure, folder: Path) -> bytes:
    """The figure without its layout, which takes most of the time of saving."""
    figure.set_layout_engine("none")
    with mpl.rc_context(STYLE):
        figure.savefig(folder / "figure.svg", metadata={"Date": None})
    return (folder / "figure.svg").read_bytes()


@EVERY
def test_the_order_of_rows_changes_nothing(name: str, tmp_path: Path) -> None:
    draw, every = CASES[name]
    frames = [
        frame.filter(pl.col("source") == "test") if "source" in frame.columns else frame
        for frame in every
    ]
    shuffled = [frame.sample(fraction=1, shuffle=True, seed=1) for frame in frames]
    first = svg(draw(*frames), tmp_path)
    assert svg(draw(*shuffled), tmp_path) == first
    ET.fromstring(first)  # noqa: S314


def test_equal_figures_are_saved_as_equal_bytes(tmp_path: Path) -> None:
    first, second = (
        save(song_distance_figure(SONG_DISTANCES), tmp_path / name) for name in ("a", "b")
    )
    assert [path.name for path in first] == ["a.svg", "a.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@EVERY
def test_nothing_to_draw_is_said_in_one_line(name: str) -> None:
    draw, frames = CASES[name]
    numbers = ("value", "coherency", "z_distance", "difference", "maximised")
    hollow = frames[0].with_columns(
        pl.lit(math.nan).alias(column) for column in frames[0].columns if column in numbers
    )
    for spoiled in (frames[0].clear(), hollow):
        if spoiled.equals(frames[0]):
            continue  # outcomes hold bins, which can't be NaN
        with pytest.raises(FigureError, match="evaluate") as raised:
            draw(spoiled, *frames[1:])
        assert "\n" not in str(raised.value)


def test_a_distance_that_is_none_is_answered_with_those_there_are() -> None:
    with pytest.raises(FigureError, match="choose one of z_distance, z_weighted, edit_distance"):
        frontier_figure(METRICS, "loudness")


def visible(figure: Figure) -> set[Text]:
    """All text but labels of ticks that lie beyond their axis, which are not drawn."""
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    beyond = {
        tick.label1
        for axis in axes
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if not np.ptp([*axis.get_view_interval(), tick.get_loc()])
        <= np.ptp(axis.get_view_interval())
    }
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return {text for text in texts if text.get_visible() and text.get_text().strip()} - beyond


@EVERY
def test_text_is_legible_and_inside_the_figure(name: str, figures: dict[str, Figure]) -> None:
    page = figures[name].bbox.padded(0.5)
    texts = visible(figures[name])
    assert texts
    for text in texts:
        assert float(text.get_fontsize()) >= 6
        assert not text.get_parse_math()
        box = text.get_window_extent()
        assert page.contains(box.x0, box.y0), text
        assert page.contains(box.x1, box.y1), text


@EVERY
def test_panels_and_legend_cover_nothing(name: str, figures: dict[str, Figure]) -> None:
    boxes = [panel.get_tightbbox() for panel in figures[name].axes]
    boxes += [legend.get_window_extent() for legend in figures[name].legends]
    for index, box in enumerate(boxes):
        for other in boxes[:index]:
            assert box is not None
            assert other is not None
            assert not box.padded(-1.5).overlaps(other.padded(-1.5))
