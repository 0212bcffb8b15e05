"""Figures of transitions between halves, and of distances between segments."""

from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import polars as pl
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from cf_core.errors import FigureError
from evaluation.figures.canvas import COLUMN, STYLE, drawable, look
from evaluation.frontier import FUSIONS
from evaluation.samples import take_bins
from evaluation.statistics import STATISTICS, correlation, transition_matrix

_WHITE_KEYS = {0: "C", 2: "D", 4: "E", 5: "F", 7: "G", 9: "A", 11: "B"}
_DISTANCE_BINS = 48


@dataclass(frozen=True)
class _Column:
    """One set of pairs: its heading, and its rows of the table `outcomes`."""

    heading: str
    outcomes: pl.DataFrame

    def matrix(self, statistic: str, k: int) -> tuple[Float[np.ndarray, "K K"], int]:
        """Return the transition matrix of a statistic, and the number of pairs left out of it."""
        left, right = take_bins(self.outcomes, statistic)
        return transition_matrix(left, right, k), int(((left < 0) | (right < 0)).sum())


def transition_figure(outcomes: pl.DataFrame, bins: pl.DataFrame, points: pl.DataFrame) -> Figure:
    """Draw how musical statistics follow one another: figure 3 of the poster, left.

    There is a row per statistic. The columns are the real adjacent test pairs, the test inputs, and
    these inputs as transformed by each of `points` (columns method, trial, lambda, iteration), ours
    first. The panels show the row-stochastic matrices from which the correlations are computed; `r`
    is the correlation with the real pairs. A row of panels shares one colour scale, from 0. Bins
    are named by their edges, or by rank if these differ between meters.
    `outcomes` and `bins` are the study's tables. Raises `FigureError` if a point has no outcomes,
    or the tables are empty.
    """
    columns = list(_columns(outcomes, points))
    counts = {name: bins.filter(statistic=name)["bin"].n_unique() for name in STATISTICS}
    if not all(counts.values()):
        raise FigureError(
            f"bins: there are none of {', '.join(name for name in STATISTICS if not counts[name])};"
            " evaluate some trials first"
        )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + 1.2 * len(columns), 6.8), layout="compressed")
        grid = figure.subplots(len(STATISTICS), len(columns), squeeze=False)
        for statistic, row in zip(STATISTICS, grid, strict=True):
            matrices = [column.matrix(statistic, counts[statistic]) for column in columns]
            reference, largest = matrices[0][0], max(matrix.max() for matrix, _ in matrices)
            for panel, (matrix, excluded) in zip(row, matrices, strict=True):
                image = panel.imshow(matrix, cmap="viridis", vmin=0, vmax=largest, origin="lower")
                r = float(correlation(matrix, reference))
                left_out = f" ({excluded} left out)" if excluded else ""
                panel.set_title(f"r = {r:.2f}{left_out}", fontsize=6.5, pad=2)
                _label_bins(panel, statistic, bins)
                panel.tick_params(labelleft=panel is row[0])
            row[0].set_ylabel(f"{statistic.replace('_', ' ')}\nleft half")
            figure.colorbar(image, ax=list(row), shrink=0.9, aspect=12, pad=0.01)
        for panel, column in zip(grid[0], columns, strict=True):
            panel.annotate(
                column.heading, (0.5, 1), (0, 13), xycoords="axes fraction", ha="center",
                textcoords="offset points", fontsize=6.5,
            )  # fmt: skip
            grid[-1, list(grid[0]).index(panel)].set_xlabel("right half")
    return figure


def _columns(outcomes: pl.DataFrame, points: pl.DataFrame) -> Iterator[_Column]:
    test = outcomes.filter(pl.col("source") == "test").sort("pair")
    for heading, method in (("test data", "real"), ("inputs", "identity")):
        rows = test.filter(pl.col("method") == method)
        if rows.is_empty():
            raise FigureError(f"outcomes: no test pairs of method {method}; evaluate first")
        yield _Column(f"{heading}\n{rows.height:,} pairs", rows)
    ours_first = points.sort(~pl.col("method").is_in(FUSIONS), "method", "trial", "iteration")
    for point in ours_first.select("method", "trial", "lambda", "iteration").iter_rows(named=True):
        rows = test.filter(pl.col(name).eq_missing(value) for name, value in point.items())
        name, count = drawable(point["trial"], 24), point["iteration"]
        times = f"{count:,} iteration{'s' * (count != 1)}"
        if rows.is_empty():
            raise FigureError(f"outcomes: no test pairs of {name} after {times}; evaluate it first")
        lambda_ = "" if point["lambda"] is None else f"λ {point['lambda']:.3g}, "
        yield _Column(f"{look(point['method']).label}\n{name}\n{lambda_}{times}", rows)


def _label_bins(panel: Axes, statistic: str, bins: pl.DataFrame) -> None:
    """Name the pitch classes, or the edges of other bins as far as there is room.

    Where meters have different edges, name the bins by rank, from 1.
    """
    if statistic == "pitch_class":
        panel.set_xticks(list(_WHITE_KEYS), list(_WHITE_KEYS.values()))
        panel.set_yticks(list(_WHITE_KEYS), list(_WHITE_KEYS.values()))
        return
    of_meters = bins.filter(statistic=statistic)
    found = of_meters.group_by("bin", "lower").len().sort("bin")
    if (found["len"] < of_meters["meter"].n_unique()).any():
        ranks = range(of_meters["bin"].n_unique())
        panel.set_xticks(ranks, [str(rank + 1) for rank in ranks])
        panel.set_yticks(ranks, [str(rank + 1) for rank in ranks])
        return
    edges = found.drop_nulls("lower")
    room = 3 if edges.height > 4 else 2
    shown = np.unique(np.linspace(0, edges.height - 1, room).round().astype(int))
    places = (edges["bin"].to_numpy() - 0.5)[shown]
    names = [f"{edge:.3g}" for edge in edges["lower"].to_numpy()[shown]]
    panel.set_xticks(places, names)
    panel.set_yticks(places, names)


def song_distance_figure(song_distances: pl.DataFrame) -> Figure:
    """Draw how far apart segments of one song and of different songs lie: figure 3, right.

    `song_distances` has the columns kind ("same song", "different songs") and z_distance. The
    figure shows the share of each kind's pairs in bins of equal width in log distance, the same
    bins for both. Pairs of equal segments have distance 0, which lies in no such bin; the legend
    gives their share. The overlap is what the two distributions have in common, these pairs
    included: 0 to 1. Distances that are not finite are left out and counted. Raises `FigureError`
    if a kind has no distance above 0.
    """
    finite = song_distances.filter(pl.col("z_distance").is_finite())
    kinds = {
        kind: finite.filter(pl.col("kind") == kind)["z_distance"].to_numpy()
        for kind in ("same song", "different songs")
    }
    for kind, distances in kinds.items():
        if not (distances > 0).any():
            raise FigureError(f"song_distances: no distance above 0 of {kind}; evaluate first")
    positive = np.concatenate(list(kinds.values()))
    edges = np.geomspace(positive[positive > 0].min(), positive.max() * 1.0001, _DISTANCE_BINS + 1)
    shares = {
        kind: np.histogram(distances, edges)[0] / len(distances)
        for kind, distances in kinds.items()
    }
    at_zero = {kind: float((distances == 0).mean()) for kind, distances in kinds.items()}
    overlap = np.minimum(*shares.values()).sum() + min(at_zero.values())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 2.4), layout="constrained")
        panel = figure.subplots()
        panel.set(xscale="log", xlabel="z-distance", ylabel="share of pairs per bin")
        looks = (("#D55E00", "-", ""), ("#0072B2", "--", "////"))
        for (kind, share), (colour, dashes, hatch) in zip(shares.items(), looks, strict=True):
            zero = f", {at_zero[kind]:.1%} at 0" if at_zero[kind] else ""
            panel.stairs(
                share, edges, color=colour, alpha=0.3, hatch=hatch, fill=True, lw=0, zorder=2
            )
            panel.stairs(
                share, edges, color=colour, ls=dashes, lw=1.2, zorder=3,
                label=f"{kind} ({len(kinds[kind]):,} pairs{zero})",
            )  # fmt: skip
        decades = np.log10(edges[-1] / edges[0])
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        left_out = song_distances.height - finite.height
        panel.set_title(
            f"overlap {overlap:.3f}" + (f" ({left_out} not finite, left out)" if left_out else "")
        )
        figure.legend(loc="outside lower center", frameon=False, handlelength=2.4)
    return figure
