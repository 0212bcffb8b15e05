import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from cf_core.errors import UserError
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from evaluation.figures import frontier_figure, piano_roll_figure, save
from evaluation.frontier import CHOSEN_ON, COHERENCY, PANELS

FORM = MelodyFormat(meters=("2/4",), bars_per_segment=2)
"""Segments of two bars of 8 sixteenths."""
SCHEMA = {
    "trial": pl.String,
    "method": pl.String,
    "lambda": pl.Float64,
    "style_dim": pl.Int32,
    "step_size": pl.Float64,
    "source": pl.String,
    "iteration": pl.Int32,
    "metric": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}


def metrics_table() -> pl.DataFrame:
    """Two trials of ours, one of LP, identity, floor and ceiling; no two values alike."""
    generator = np.random.default_rng(0)
    trials: list[tuple[str, str, float | None, int | None, float | None, tuple[int, ...]]] = [
        ("ours-a", "fusion", 0.1, 0, None, (1, 2, 4)),
        ("ours-b", "fusion", 0.0, 4, None, (4, 1, 2)),
        ("all", "conditional", 0.1, 4, None, (1, 2)),
        ("all", "conditional", 0.3, 4, None, (1, 2)),
        ("lp-eta0.2", "lp", None, None, 0.2, (1, 10, 100)),
        ("identity", "identity", None, None, None, (0,)),
        ("floor", "floor", None, None, None, (0,)),
        ("ceiling", "ceiling", None, None, None, (0,)),
    ]
    rows: list[tuple[Any, ...]] = []
    for *trial, iterations in trials:
        for source in (*CHOSEN_ON, "validation"):
            for iteration in iterations:
                point = (*trial, source, iteration)
                if iteration or trial[1] == "identity":
                    distance = iteration * generator.uniform(0.1, 0.2)
                    rows.append((*point, "z_distance", distance, None, None))
                for metric in COHERENCY:
                    value = generator.uniform(0.3, 0.9)
                    rows.append((*point, metric, value, value - 0.02, value + 0.03))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


METRICS = metrics_table()


@pytest.fixture(scope="module")
def frontier() -> Figure:
    return frontier_figure(METRICS)


def panels(figure: Figure) -> Iterator[tuple[tuple[str, str], Axes]]:
    assert len(figure.axes) == len(PANELS)
    yield from zip(PANELS, figure.axes, strict=True)


def drawn_line(panel: Axes, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in panel.lines if line.get_label() == label]
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def recorded(source: str, metric: str, trial: str) -> list[float]:
    rows = METRICS.filter(source=source, metric=metric, trial=trial)
    return rows.sort("iteration")["value"].to_list()


def test_lines_are_the_tables_numbers(frontier: Figure) -> None:
    for (source, metric), panel in panels(frontier):
        for trial in ("ours-a", "ours-b", "lp-eta0.2", "identity"):
            expected = zip(
                recorded(source, "z_distance", trial), recorded(source, metric, trial), strict=True
            )
            assert drawn_line(panel, trial) == list(expected)


def test_floor_and_ceiling_are_at_their_heights_and_named(frontier: Figure) -> None:
    for (source, metric), panel in panels(frontier):
        names = {text.get_text(): text for text in panel.texts}
        for level in ("floor", "ceiling"):
            (height,) = recorded(source, metric, level)
            assert [y for _, y in drawn_line(panel, level)] == [height, height]
            assert names[level].xy[1] == height  # type: ignore[attr-defined]


def markers(panel: Axes, trial: str) -> PathCollection:
    """The markers of a trial: those drawn on its line's points."""
    line = drawn_line(panel, trial)
    clouds = [cloud for cloud in panel.collections if isinstance(cloud, PathCollection)]
    (cloud,) = [cloud for cloud in clouds if np.array_equal(np.asarray(cloud.get_offsets()), line)]
    return cloud


def test_lambda_is_colour_and_iterations_are_size_or_for_lp_colour(frontier: Figure) -> None:
    colours = {
        trial: {
            tuple(colour)
            for _, panel in panels(frontier)
            for colour in np.asarray(markers(panel, trial).get_facecolor()).tolist()
        }
        for trial in ("ours-a", "ours-b")
    }
    assert [len(each) for each in colours.values()] == [1, 1]
    assert colours["ours-a"] != colours["ours-b"]
    ours, other, lp = (
        markers(frontier.axes[0], trial) for trial in ("ours-a", "ours-b", "lp-eta0.2")
    )
    assert np.all(np.diff(ours.get_sizes()) > 0)
    assert not np.array_equal(ours.get_paths()[0].vertices, other.get_paths()[0].vertices)
    lightness = np.asarray(lp.get_edgecolor())[:, :3].sum(axis=1)
    assert np.all(np.diff(lightness) < 0)


def test_sources_of_one_metric_share_their_scales(frontier: Figure) -> None:
    above, below = np.array(frontier.axes).reshape(2, 6)
    for test, prior in zip(above, below, strict=True):
        assert (test.get_xlim(), test.get_ylim()) == (prior.get_xlim(), prior.get_ylim())
    assert above[0].get_ylim() != above[1].get_ylim()


def test_whiskers_are_the_tables_intervals(frontier: Figure) -> None:
    (whiskers,) = [
        [(low[1], high[1]) for low, high in cloud.get_segments()]
        for cloud in frontier.axes[0].collections
        if isinstance(cloud, LineCollection)
        and cloud.get_segments()[0][0][0] == drawn_line(frontier.axes[0], "ours-a")[0][0]
    ]
    rows = METRICS.filter(source="test", metric="judge", trial="ours-a").sort("iteration")
    assert whiskers == rows.select("low", "high").rows()


def test_panels_are_titled_by_metric_and_source(frontier: Figure) -> None:
    assert frontier.axes[0].get_title() == "judge\nprobability"
    assert frontier.axes[5].get_title() == "pitch class\ncorrelation"
    assert frontier.axes[0].get_ylabel() == "coherency, test inputs"
    assert frontier.axes[6].get_ylabel() == "coherency, prior inputs"


def test_legend_names_every_level_and_covers_no_panel(frontier: Figure) -> None:
    frontier.draw_without_rendering()
    (legend,) = frontier.legends
    texts = [text.get_text() for text in legend.get_texts() if text.get_text()]
    assert texts == [
        *("fusion: λ", "0", "0.1", "0.3", "dotted: one for all"),
        *("fusion: style dim.", "0", "4"),
        *("fusion: iterations", "1", "2", "4"),
        *("LP: step size η", "0.2"),
        *("LP: iterations", "1", "10", "100"),
        *("neither", "identity", "floor, ceiling"),
    ]
    box = legend.get_window_extent()
    for panel in frontier.axes:
        panel_box = panel.get_tightbbox()
        assert panel_box is not None
        assert not box.overlaps(panel_box)


def test_points_that_are_not_finite_are_counted_and_not_drawn() -> None:
    spoiled = (pl.col("trial") == "ours-a") & (pl.col("source") == "test")
    value = (
        pl.when(spoiled & (pl.col("metric") == "judge") & (pl.col("iteration") == 2))
        .then(math.nan)
        .when(spoiled & (pl.col("metric") == "z_distance") & (pl.col("iteration") == 4))
        .then(math.inf)
        .otherwise("value")
    )
    for panel, axes in panels(frontier_figure(METRICS.with_columns(value=value))):
        notes = [text.get_text() for text in axes.texts if "finite" in text.get_text()]
        excluded = {("test", "judge"): 2}.get(panel, 1 if panel[0] == "test" else 0)
        assert len(drawn_line(axes, "ours-a")) == 3 - excluded
        assert notes == ([f"{excluded} not finite"] if excluded else [])


def test_sources_that_were_not_evaluated_take_no_room() -> None:
    figure = frontier_figure(METRICS.filter(source="test"))
    assert len(figure.axes) == len(COHERENCY)
    assert all(panel.lines for panel in figure.axes)


def test_nothing_to_draw_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match="choose one of z_distance, z_weighted") as raised:
        frontier_figure(METRICS, "loudness")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="evaluate first"):
        frontier_figure(METRICS.clear())


def test_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    one_metric = METRICS.filter(pl.col("metric").is_in(["judge", "z_distance"]))
    first = save(frontier_figure(one_metric), tmp_path / "a")
    second = save(frontier_figure(one_metric), tmp_path / "b")
    assert [path.name for path in first] == ["a.svg", "a.png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


C4, E4, G5 = (FIRST_PITCH + pitch - FORM.lowest for pitch in (60, 64, 79))
INPUTS = np.array([[C4, HOLD, HOLD, HOLD, REST, E4, E4, HOLD] + [REST] * 8, [HOLD] * 15 + [G5]])
OUTPUTS = np.array([[REST] * 16, [C4] + [HOLD] * 15])


def blocks(panel: Axes) -> list[tuple[float, float, float]]:
    """Onset, pitch and duration of each block that is not an onset's edge."""
    boxes = [bar for group in panel.containers for bar in group]
    return [
        (box.get_x(), box.get_y() + box.get_height() / 2, box.get_width())
        for box in boxes
        if box.get_facecolor() != (0, 0, 0, 1)
    ]


def test_piano_roll_draws_the_notes_on_one_time_line() -> None:
    above, below = piano_roll_figure(INPUTS, OUTPUTS, FORM).axes
    assert blocks(above) == [
        (0, 60, 1),
        (1.25, 64, 0.25),
        (1.5, 64, 0.5),
        (4 + 3.75, 79, 0.25),  # the right half starts after four quarter notes
    ]
    assert blocks(below) == [(4, 60, 4)]


def test_piano_roll_shows_onsets_bars_seam_and_pitch_names() -> None:
    above, _ = piano_roll_figure(INPUTS, OUTPUTS, FORM).axes
    edges = [
        bar.get_x()
        for group in above.containers
        for bar in group
        if bar.get_facecolor() == (0, 0, 0, 1)
    ]
    assert edges == [0, 1.25, 1.5, 7.75]
    bars = {float(np.asarray(line.get_xdata())[0]): line.get_linewidth() for line in above.lines}
    assert list(bars) == [0, 2, 4, 6, 8]
    assert max(bars, key=lambda bar: bars[bar]) == 4
    named = {text.get_text(): y for text, y in zip(above.get_yticklabels(), above.get_yticks())}  # noqa: B905
    assert named["C4"] == 60
    assert named["G5"] == 79


def test_piano_roll_of_silence_is_drawn() -> None:
    silence = np.zeros((2, 16), np.int64)
    assert [blocks(panel) for panel in piano_roll_figure(silence, silence, FORM).axes] == [[], []]


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = (r"<script>alert(1)</script> $\frac{$", "--> a\nb\x00c \udc80 " + "x" * 80)
    figure = piano_roll_figure(INPUTS, OUTPUTS, FORM, names)
    svg, png = save(figure, tmp_path / "lambda0.1 & more")
    assert svg.name == "lambda0.1 & more.svg"
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<script" not in svg.read_text()
    ET.parse(svg)  # noqa: S314
    left, right = (text.get_text() for text in figure.axes[0].texts)
    assert left == names[0]
    assert right.startswith("--> a�b�c � x")
    assert len(right) == 40


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = piano_roll_figure(INPUTS, OUTPUTS, FORM)

    def full_disk(partial: Path, **_: object) -> None:
        partial.write_text("<svg")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(UserError, match=r"roll\.svg: can't be written \(No space left"):
        save(figure, tmp_path / "roll")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another place"):
        save(piano_roll_figure(INPUTS, OUTPUTS, FORM), tmp_path / "file" / "roll")
