"""The findings of a finished study: tables, figures and sentences, made from its tables alone.

This file is long, because all three rest on the same choice of points.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from cf_core.errors import ConfigError, RecordsError
from cf_core.files import AnyPath, replacing
from evaluation.controls import CONTROLS, rate_controls
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
    style_figure,
    transition_figure,
    verdict_figure,
)
from evaluation.frontier import (
    BY_EDITS,
    CHOSEN_BY,
    CHOSEN_ON,
    DEPLOYED_AXES,
    DISTANCES,
    FUSIONS,
    LEVELS,
    OURS,
    PANELS,
    POSTER,
    POSTER_AXES,
    REAL,
    attainment,
    attainment_difference,
    hypervolumes,
    matched_similarity,
    non_dominated,
    panel_points,
    rivals,
)
from evaluation.inference import decide_verdicts, measure_again, probability_of_improvement
from evaluation.metrics import AXES, COHERENCY, LIKENESS
from study.config import EvaluationPlan, StudyConfig
from study.ledger import Ledger
from study.parameters import PARAMETERS
from study.specs import name_beside
from study.store import Store

_EDITS = DEPLOYED_AXES[1]
"""The axis of which the summary speaks first."""

CSV_COLUMNS = (
    "corpus", "rival", "axis", "source", "metric", "difference", "low", "high", "p_holm", "verdict",
)  # fmt: skip
"""Columns of `verdicts.csv`."""

_ENDS = 2.0
"""Linear axes end at so many times the largest matched distance: the farthest points lie so far
out that the others could not be told apart."""

_SHOWN_DISTANCE = 6
"""Index of the matched distance, of ten, at which the figure of transition matrices compares."""


def tabulate(store: Store, evaluation: EvaluationPlan) -> None:
    """Write the tables `controls`, `frontier`, `matched`, `hypervolumes` and `verdicts`."""
    finished = read_finished_metrics(store)
    store.write("controls", "all", rate_controls(finished))
    metrics, bounds = _take_compared(finished), dict(evaluation.matched)
    fronts = [
        _front(group).with_columns(source=pl.lit(source), metric=pl.lit(metric), axis=pl.lit(axis))
        for source, metric, axis in product(CHOSEN_ON, (*LIKENESS, *COHERENCY), bounds)
        for _, group in panel_points(metrics, source, metric, axis)
        .filter(pl.col("distance").is_finite(), pl.col("value").is_finite())
        .group_by("method", maintain_order=True)
    ]
    store.write("frontier", "all", pl.concat(fronts))
    matched = matched_similarity(metrics, bounds)
    store.write("matched", "all", matched)
    store.write("hypervolumes", "all", hypervolumes(metrics, bounds))
    found = decide_verdicts(
        metrics, matched, store.outcomes, store.scan("influences"), count_bins(store)
    )
    store.write("verdicts", "all", found)


def _take_compared(metrics: pl.DataFrame) -> pl.DataFrame:
    """The metrics and methods that are compared with each other."""
    used = pl.col("metric").is_in([*COHERENCY, *LIKENESS, *AXES])
    return metrics.filter(used, ~pl.col("method").is_in([*CONTROLS]))


def draw(store: Store, meter: str | None = None) -> Iterator[AnyPath]:
    """Draw all figures again, from the tables alone; yield each file as soon as it is written.

    Each is written as SVG and PNG. A figure for which the study has no data is left out. With a
    `meter`, the figures that compare methods are drawn of the pairs in this meter, into a folder of
    its own, after the verdicts on these pairs. Choices among the points are made in this meter,
    too. Raises `ConfigError` if the study has no pairs in it, and `RecordsError` if it is a
    publication. Raises `RecordsError`, with a meter or without, if no job is done yet.
    """
    folder = store.root / "figures"
    if meter is not None:
        store.need_whole("outcomes of all pairs")
    if not Ledger(store).list_done():
        raise RecordsError(f"{store.root}: no job is done yet; run the study first")
    if meter is None:
        figures = _figures(store)
    else:
        config = StudyConfig.restored(store.record)
        metrics, found = _measure_meter(store, config, meter)
        folder /= meter.replace("/", "-")
        yield _write_csv([_name(found, store)], folder / "verdicts.csv")
        figures = _comparing_figures(config, metrics, found)
    for name, figure in figures:
        yield from save(figure, folder / name)


def _measure_meter(
    store: Store, config: StudyConfig, meter: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The metrics of the pairs in one meter, and the verdicts on them."""
    if meter not in (known := _list_meters(store)):
        raise ConfigError(
            f"meter: {meter}: the study has no pairs in it to choose by and to report; choose from"
            f" {', '.join(known)}"
        )
    own = store.outcomes.filter(pl.col("meter") == meter)
    influences, bins = store.scan("influences"), count_bins(store)
    real = store.outcomes.filter(pl.col("method") == REAL, pl.col("meter") != meter)
    if not real.head(1).collect().is_empty():
        influences = influences.clear()  # they are those of the pairs in all meters
    metrics = measure_again(read_finished_metrics(store), own, influences, bins)
    compared = _take_compared(metrics)
    matched = matched_similarity(compared, dict(config.evaluation.matched))
    return metrics, decide_verdicts(compared, matched, own, influences, bins)


def _list_meters(store: Store) -> list[str]:
    """The meters in which there are inputs of every source, and real pairs to hold them against."""
    inputs = [*CHOSEN_ON, *CHOSEN_ON.values()]
    needed = {("identity", source) for source in inputs} | {
        (REAL, source) for source in ("test", CHOSEN_ON["test"])
    }
    known: dict[str, set[tuple[str, str]]] = {}
    columns = store.outcomes.select("meter", "method", "source").unique().collect()
    for meter, method, source in columns.iter_rows():
        known.setdefault(meter, set()).add((method, source))
    return sorted(meter for meter, found in known.items() if needed <= found)


def write_verdicts(stores: Sequence[Store], path: AnyPath) -> None:
    """Write the verdicts of several studies to one CSV file; `corpus` is a study's name."""
    _write_csv([_name(store.scan("verdicts").collect(), store) for store in stores], path)


def _name(verdicts: pl.DataFrame, store: Store) -> pl.DataFrame:
    return verdicts.with_columns(corpus=pl.lit(store.record["name"]))


def _write_csv(verdicts: Sequence[pl.DataFrame], path: AnyPath) -> AnyPath:
    with replacing(path) as temporary:
        pl.concat(verdicts).select(CSV_COLUMNS).write_csv(temporary)
    return path


def list_findings(store: Store) -> list[str]:
    """Say what a study found, in the sentences with which its run ended; none without verdicts.

    >>> import study
    >>> told = list_findings(study.open("results/quickstart"))
    """
    says = (say_verdicts, say_controls, say_improvements)
    return [line for say in says for line in say(store)] if store.has_rows("verdicts") else []


def say_verdicts(store: Store) -> list[str]:
    """Say how many wins, ties and losses there are against each rival, and what is missing."""
    found = store.scan("verdicts").collect()
    lines = []
    for of_rival in found.partition_by("rival", maintain_order=True):
        rival = of_rival["rival"][0]
        deployed = of_rival.filter(axis=_EDITS)
        lines.append(f"against {rival}, one point for each edit distance: {_say_panels(deployed)}")
        poster = of_rival.filter(axis=POSTER_AXES[1])
        lines.append(f"against {rival}, the best point for each panel: {_say_panels(poster)}")
    if found["seeds"].max() == 1:
        lines.append("(ahead is a count, not a test: one training seed says nothing about others)")
    metrics = read_finished_metrics(store)
    lines += _agreement(metrics)
    lines += _halves_apart(store, metrics)
    lines += _left_out(store)
    panels = metrics.filter(pl.col("metric").is_in([*COHERENCY, *LIKENESS]))
    if excluded := panels["excluded"].sum():
        lines.append(
            f"{excluded:,} pairs are left out as not finite or silent, over all points and panels"
        )
    return lines


def _say_panels(panels: pl.DataFrame) -> str:
    """Count the verdicts of each source, and give the difference in likeness where it is known."""
    said = [
        f"{_say_counts(panels.filter(source=source))} on {name}"
        for source, name in (("test", "test songs"), ("prior", "prior samples"))
    ]
    likeness = panels.filter(source="test", metric=CHOSEN_BY)
    for difference, low, high in likeness.select("difference", "low", "high").iter_rows():
        interval = "" if low is None else f" ({low:+.2f} to {high:+.2f})"
        said.append(f"{CHOSEN_BY} {difference:+.2f}{interval}")
    return "; ".join(said)


def _say_counts(panels: pl.DataFrame) -> str:
    if panels.is_empty():
        return "no panel compared"
    if panels["seeds"].max() == 1:
        # A difference that is not a number is above all numbers to Polars.
        led = panels.filter(pl.col("difference") > 0, pl.col("difference").is_finite()).height
        return f"ahead in {led} of {panels.height} panels"
    counts = {name: panels.filter(verdict=name).height for name in ("win", "tie", "loss")}
    said = "{win} wins, {tie} ties, {loss} losses".format(**counts)
    undecided = panels["verdict"].null_count()
    lost = ", ".join(panels.filter(verdict="loss")["metric"])
    return said + f", {undecided} undecided" * bool(undecided) + f" ({lost})" * bool(lost)


def _halves_apart(store: Store, metrics: pl.DataFrame) -> list[str]:
    """Say how alike the two output halves are, since repetition can raise measures of coherency.

    The points are those chosen for the largest edit distance, on test songs.
    """
    chosen = (
        store.scan("matched")
        .filter(pl.col("axis") == _EDITS, pl.col("source") == "test", pl.col("metric") == CHOSEN_BY)
        .filter(pl.col("distance") == pl.col("distance").max())
        .unique(["method"], keep="first", maintain_order=True)
        .select("configuration", "lambda", "iteration", shown="method")
        .collect()
    )
    apart = metrics.filter(pl.col("metric") == "halves_distance", pl.col("source") == "test")
    shown = chosen.join(
        apart, on=["configuration", "lambda", "iteration"], nulls_equal=True, maintain_order="left"
    )
    ceiling = apart.filter(pl.col("method") == "ceiling")["value"]
    if shown.is_empty() or ceiling.is_empty():
        return []
    means = shown.group_by("shown", maintain_order=True).agg(pl.col("value").mean())
    told = ", ".join(f"{method} {value:.1f}" for method, value in means.iter_rows())
    return [
        "edit distance of the halves to each other, in tokens, where each method may go farthest:"
        f" {told}; real neighbours {ceiling[0]:.1f}"
    ]


def _left_out(store: Store) -> list[str]:
    """Say where the comparison rests on less than was planned."""
    config = StudyConfig.restored(store.record)
    planned, plan = len(config.search.seeds), config.evaluation
    seeds = store.scan("verdicts").select(pl.col("seeds").max()).collect().item()
    matched = store.scan("matched").filter(pl.col("rival") != "identity").collect()
    stands_in = (
        matched.group_by("method", maintain_order=True)
        .agg(share=DISTANCES * (pl.col("configuration") == "identity").mean())
        .filter(pl.col("share") > 0)
    )
    told = ", ".join(
        f"{method} {share:.1f}{_say_limits(plan, method)}" for method, share in stands_in.rows()
    )
    lines = []
    if seeds < planned:
        lines.append(f"only {seeds} of {planned} training seeds are finished")
    if unfinished := max(matched["excluded"].to_list(), default=0):
        lines.append(
            f"up to {unfinished} points of a panel are left out as unfinished or not finite"
        )
    if told:
        lines.append(
            f"number of the {DISTANCES} distances at which a method has no point near enough, so"
            f" that the inputs stand in for it: {told}"
        )
    return lines


def _say_limits(plan: EvaluationPlan, method: str) -> str:
    """Say why a method has no points at some distances, in brackets, if its rival says so."""
    try:
        limits = plan.rival(method).limits
    except ConfigError:  # no rival, or one whose code is not here
        return ""
    return f" ({limits})" if limits else ""


def say_controls(store: Store) -> list[str]:
    """Say which tricks each measure rates above real neighbours, on test songs."""
    rated = store.scan("controls").filter(pl.col("source") == "test").collect()
    by_tricks: dict[str, list[str]] = {}
    # A measure may be missing, as likeness is where there are few songs.
    known = rated.drop_nulls("pleases")
    for metric in (*COHERENCY, *LIKENESS):
        of_metric = known.filter(pl.col("metric") == metric)
        if of_metric.is_empty():
            continue
        tricks = of_metric.filter("pleases")["control"]
        named = ", ".join(CONTROLS[name].label for name in tricks) or "no trick"
        by_tricks.setdefault(named, []).append(metric)
    if not by_tricks:
        return []
    told = "; ".join(f"{', '.join(metrics)} by {named}" for named, metrics in by_tricks.items())
    return [f"pleased on test songs (a trick is rated above real neighbours): {told}"]


def say_improvements(store: Store) -> list[str]:
    """Say how often a seed's hypervolume is above that of each rival, on average over panels.

    One seed says nothing about others.
    """
    areas = store.scan("hypervolumes").filter(pl.col("axis").is_in(DEPLOYED_AXES)).collect()
    if areas["seed"].drop_nulls().n_unique() < 2:
        return []
    panel = ["source", "metric", "axis"]
    chances: dict[str, list[float]] = {}
    for group in areas.partition_by(panel, maintain_order=True):
        by_method = {
            own["method"][0]: own["hypervolume"].to_numpy()
            for own in group.partition_by("method", maintain_order=True)
        }
        for rival, values in by_method.items():
            if rival != OURS and OURS in by_method:
                chance = probability_of_improvement(by_method[OURS], values)
                chances.setdefault(rival, []).append(chance)
    said = ", ".join(f"{rival} {np.mean(found):.2f}" for rival, found in chances.items())
    return [f"chance of a larger hypervolume, mean over panels and axes: {said}"] if said else []


def _figures(store: Store) -> Iterator[tuple[str, Figure]]:
    """Draw the figures that compare methods, then all others."""
    config = StudyConfig.restored(store.record)
    metrics = read_finished_metrics(store)
    yield from _comparing_figures(config, metrics, store.scan("verdicts").collect())
    shown = find_shown_points(store, metrics)
    if not shown.is_empty():
        named = pl.col("trial").is_in([*shown["trial"], "identity", REAL])
        outcomes = store.outcomes.filter(named).collect()
        yield "transitions", transition_figure(outcomes, store.bins.collect(), shown)
    yield "song-distances", song_distance_figure(store.scan("song_distances").collect())
    costs, trials = store.scan("costs").collect(), store.scan("trials").collect()
    training = trials.filter(pl.col("method").is_in(FUSIONS))["training_seconds"].mean()
    yield "cost", cost_figure(metrics, costs, float(training or 0.0))  # type: ignore[arg-type]
    if search := _search_figure(store, config.search.objectives):
        yield "search", search
    examples = store.scan("examples").collect()
    if not examples.is_empty():
        yield "styles", style_figure(examples, config.melody)


def _comparing_figures(
    config: StudyConfig, metrics: pl.DataFrame, found: pl.DataFrame
) -> Iterator[tuple[str, Figure]]:
    """Draw what compares methods by their metrics, and the verdicts."""
    bounds = dict(config.evaluation.matched)
    if CHOSEN_BY in metrics["metric"]:
        yield "likeness", likeness_figure(metrics, _EDITS)
    for axis in (*DEPLOYED_AXES, *POSTER_AXES):
        end = _ENDS * bounds[axis][1] if axis in DEPLOYED_AXES and axis in bounds else None
        yield f"frontier-{axis}", frontier_figure(metrics, axis, end)
        yield f"iterations-{axis}", iteration_figure(metrics, axis, end)
    methods = [OURS, *(name for name in rivals(metrics) if name in ("lp", "gradient"))]
    surfaces = [
        attainment(metrics, source, metric, "z_distance", methods).with_columns(
            source=pl.lit(source), metric=pl.lit(metric)
        )
        for source, metric in PANELS
    ]
    yield "attainment", attainment_figure(pl.concat(surfaces), "z_distance")
    differences = _attainment_differences(metrics)
    if differences.height:
        yield "attainment-difference", attainment_difference_figure(differences, "lp")
    poster = pl.col("axis").is_in(POSTER_AXES)
    yield "verdicts", verdict_figure(found.filter(~poster))
    yield "verdicts-poster", verdict_figure(found.filter(poster))


def _search_figure(store: Store, objectives: tuple[str, str]) -> Figure | None:
    """Draw what the search found; None where no parameter varied."""
    points = (
        store.scan("objectives")
        .join(store.scan("configurations").drop("batch"), on="configuration")
        .filter(pl.col("state") == "COMPLETE", pl.col("batch") >= 0)
        .with_columns(feasible=(pl.col("violations").list.max() <= 0).fill_null(True))
        .collect()
    )
    varied = [
        Axis(name, one.label, one.log)
        for name, one in PARAMETERS.items()
        if points[name].n_unique() > 1
    ]
    if not varied:
        return None
    return search_figure(points, store.scan("importances").collect(), varied, objectives)


def _attainment_differences(metrics: pl.DataFrame) -> pl.DataFrame:
    """Compute where ours attains more or less often than LP, in all panels, by z-distance."""
    return pl.concat(
        attainment_difference(metrics, source, metric, "z_distance", OURS, "lp").with_columns(
            source=pl.lit(source), metric=pl.lit(metric)
        )
        for source, metric in PANELS
    )


def find_shown_points(store: Store, metrics: pl.DataFrame) -> pl.DataFrame:
    """Select the points of ours (lowest seed) and of LP that the judge's panel compares, if any.

    A point whose trial has lost a part of its records since is left out.
    """
    matched = store.scan("matched").filter(
        pl.col("rival") == "lp",
        pl.col("axis") == "z_distance",
        pl.col("source") == "test",
        pl.col("metric") == "judge",
    )
    chosen = matched.sort("distance").collect()
    if chosen.is_empty():
        return chosen
    distances = chosen["distance"].unique().sort()
    shown = chosen.filter(pl.col("distance") == distances[_SHOWN_DISTANCE])
    first = metrics.filter(pl.col("seed").is_null() | (pl.col("seed") == pl.col("seed").min()))
    named = first.select("trial", "configuration", true_method="method").unique()
    return shown.join(named, on="configuration", how="inner", maintain_order="left").select(
        "trial", "lambda", "iteration", method="true_method"
    )


def _agreement(metrics: pl.DataFrame) -> list[str]:
    """Say how alike the two judges rank the points, one on validation and one on test songs."""
    point = ["method", "trial", "lambda", "iteration"]
    apart = pl.col("method").is_in([*LEVELS, *CONTROLS])
    judged = metrics.filter(pl.col("metric") == "judge", ~apart)
    by_source = [
        judged.filter(pl.col("source") == source).select(*point, pl.col("value").alias(source))
        for source in ("validation", "test")
    ]
    both = by_source[0].join(by_source[1], on=point, nulls_equal=True).drop_nulls().drop_nans()
    if both.height < 3:
        return []
    rank = both.select(pl.corr("validation", "test", method="spearman")).item()
    return [
        f"the selection judge (validation songs) and the reporting judge (test songs) rank"
        f" {both.height} points alike: Spearman {rank:.3f}"
    ]


def read_finished_metrics(store: Store) -> pl.DataFrame:
    """Read the metrics without the rows that an unfinished job may have left."""
    done = Ledger(store).list_done()
    beside = [name_beside(trial, method) for trial in done for method in (POSTER, BY_EDITS)]
    return store.metrics.filter(
        pl.col("trial").is_in([*done, *beside, *LEVELS, *CONTROLS, "identity"])
    ).collect()


def count_bins(store: Store) -> dict[str, int]:
    """Count the bins of each statistic, in the kind of bars that has most of them."""
    bins = store.scan("bins").group_by("statistic").agg(pl.col("bin").n_unique())
    return dict(bins.collect().iter_rows())


def _front(points: pl.DataFrame) -> pl.DataFrame:
    distance, value = points["distance"].to_numpy(), points["value"].to_numpy()
    return points.select(
        "method",
        "trial",
        "configuration",
        "lambda",
        "iteration",
        similarity="distance",
        coherency="value",
        non_dominated=pl.Series(non_dominated(distance, value)),
    )
