"""The figure of coherency against cost."""

import matplotlib as mpl
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from cf_core.errors import FigureError
from evaluation.figures.canvas import (
    COLUMN,
    GREY,
    STYLE,
    drawable,
    in_order,
    key,
    legend_below,
    look,
)
from evaluation.figures.panels import Panel, draw_front, draw_levels, level_keys, method_key
from evaluation.frontier import (
    FUSIONS,
    LEVELS,
    panel_points,
)


def cost_figure(metrics: pl.DataFrame, costs: pl.DataFrame, training_seconds: float) -> Figure:
    """Draw what a method's best coherency costs: the judge on test inputs against seconds per pair.

    `metrics` and `costs` are the study's tables. `training_seconds` is the time that the training
    of one trial took. A line joins the points of a method that are the best for their cost (mean
    over seeds). Ours is drawn twice: with the cost of its use alone, and with its training shared
    out among the pairs that were evaluated. A method without cost, such as the identity, is a line
    across the panel. Raises `FigureError` if no point has a cost.
    """
    point = ["method", "trial", "lambda", "iteration"]
    per_pair = costs.select(
        *point, "device", inference=pl.col("seconds") / pl.col("pairs"),
        trained=(pl.col("seconds") + training_seconds) / pl.col("pairs"),
    )  # fmt: skip
    judged = panel_points(metrics, "test", "judge", "z_distance")
    timed = judged.join(per_pair, on=point, how="inner", nulls_equal=True)
    curves = {
        method: Panel.of(timed.with_columns(distance="inference")).method(method)
        for method in in_order(timed["method"].unique().to_list())
    }
    curves = {m: rows for m, rows in curves.items() if (rows["distance"] > 0).any()}
    if not curves:
        raise FigureError("costs: no judged point of the test inputs has a cost; evaluate first")
    trained = Panel.of(timed.with_columns(distance="trained"))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 3.4), layout="constrained")
        panel = figure.subplots()
        panel.set(xscale="log", xlabel="time per pair", ylabel="judge, test inputs")
        panel.xaxis.set_major_formatter(EngFormatter("s"))
        for method, rows in curves.items():
            draw_front(panel, rows.filter(pl.col("distance") > 0), method)
        for method in (method for method in curves if method in FUSIONS):
            draw_front(panel, trained.method(method), method, filled=False)
        free = judged.filter(pl.col("method").is_in((*LEVELS, "identity"))).sort("method")
        draw_levels(panel, free.filter(pl.col("value").is_finite()))
        entries = [(look(m).label, method_key(m)) for m in curves]
        amortised = [
            (f"{look(m).label}, with training", method_key(m, filled=False))
            for m in curves
            if m in FUSIONS
        ]
        devices = ", ".join(sorted(timed["device"].drop_nulls().unique()))
        kinds = [*amortised, ("identity", key(GREY, (0.0, (1.0, 3.0)))), *level_keys(metrics)]
        legend_below(
            figure, {"frontier of": entries, "": kinds}, f"measured on {drawable(devices)}"
        )
    return figure
