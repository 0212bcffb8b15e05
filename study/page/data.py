"""What the page shows of a study: values of all points, and notes of several pairs.

A point is a configuration at one λ after a number of iterations, as in figures: its values are
means over its seeds, and its notes are those of its first seed.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Integer
from scipy import special

from cf_core.errors import RecordsError
from cf_core.vae import MelodyVAE
from evaluation.controls import CONTROLS
from evaluation.figures.canvas import in_order, look
from evaluation.frontier import (
    BY_EDITS,
    CHOSEN_BY,
    CHOSEN_ON,
    DEPLOYED_AXES,
    FUSIONS,
    LEVELS,
    REAL,
)
from evaluation.jackknife import satterthwaite
from evaluation.metrics import AXES, METRICS
from study.config import StudyConfig
from study.findings import read_finished_metrics
from study.page.model import describe_form
from study.parameters import SETTINGS
from study.select import read_core
from study.store import Store

_POINT = ["method", "configuration", "lambda", "iteration"]
_NORMAL = 1.96
"""Standard errors on either side of a 95 % interval."""
_DIGITS = 4
_TEMPO = 160
"""Quarter notes per minute at first: that of a dance."""

Values = dict[str, list[float | None]]
"""A column for each of `value`, `low` and `high`, with a row for each point."""


def collect(store: Store, count: int) -> dict[str, Any]:
    """Collect what the page shows of a study, as JSON values, with the notes of `count` pairs.

    Notes are missing where their latents were not kept. Raises `RecordsError` where no trial is
    done, and where the core is missing.
    """
    config = StudyConfig.restored(store.record)
    metrics = read_finished_metrics(store)
    placed = _drop_partial(metrics.filter(~pl.col("method").is_in(LEVELS)))
    points = _list_points(placed)
    if points.filter(pl.col("method").is_in(FUSIONS)).is_empty():
        raise RecordsError(
            f"{store.root}: no configuration is done for all seeds yet; run the study first"
        )
    measured = _pool_seeds(placed)
    values = {
        source: {name: _align(points, measured, source, name) for name in METRICS}
        for source in CHOSEN_ON
    }
    # As the study does on deployed axes, whose points are those of validation songs in all panels.
    chosen = {
        name: _align(points, measured, CHOSEN_ON["test"], name, None)["value"]
        for name in (CHOSEN_BY, *AXES)
    }
    return {
        "name": store.record["name"],
        "fingerprint": store.record["fingerprint"],
        "form": describe_form(config.melody),
        "metrics": [_describe_metric(name) for name in METRICS],
        "axes": _order_axes(dict(config.evaluation.matched)),
        "chosen_by": CHOSEN_BY,
        "methods": [_describe_method(name) for name in in_order(set(points["method"]))],
        "points": _describe_points(points, store),
        "values": values,
        "chosen": chosen,
        "levels": {source: _read_levels(metrics, source) for source in CHOSEN_ON},
        "tempo": _TEMPO,
        **_collect_notes(store, read_core(config, store), points, count),
    }


def _drop_partial(metrics: pl.DataFrame) -> pl.DataFrame:
    """Keep the values that are finite in every seed, for ours in all seeds of the study.

    What is left out would make a mean of other seeds than those of the points beside it.
    """
    is_ours = pl.col("method").is_in(FUSIONS)
    seeds = metrics.filter(is_ours)["seed"].n_unique()
    same = ["source", "metric", *_POINT]
    finite = pl.col("value").is_finite().fill_null(value=False).all().over(same)
    finished = ~is_ours | (pl.col("seed").n_unique().over(same) == seeds)
    return metrics.filter(finite & finished)


def _list_points(metrics: pl.DataFrame) -> pl.DataFrame:
    """All points, with the trial of the first seed and the number of seeds."""
    return (
        metrics.sort("seed", "trial", nulls_last=True)
        .group_by(_POINT, maintain_order=True)
        .agg(pl.col("trial").first(), seeds=pl.col("trial").n_unique())
        .sort(_POINT)
    )


def _pool_seeds(metrics: pl.DataFrame) -> pl.DataFrame:
    """Means over seeds, with 95 % intervals for other songs and seeds; of one seed, for songs.

    Seeds share their songs, so that more of them don't make the songs' part smaller. A few seeds
    tell little of how far seeds differ, so their part has as many degrees of freedom less one.
    """
    pooled = (
        metrics.sort("trial")
        .group_by("source", "metric", *_POINT)
        .agg(
            pl.col("value").mean(),
            pl.col("low").first(),
            pl.col("high").first(),
            songs=((pl.col("high") - pl.col("low")) / (2 * _NORMAL)).pow(2).mean(),
            seeds=(pl.col("value").var() / pl.len()).fill_null(0.0),
            count=pl.len(),
        )
    )
    songs, seeds = (pooled[name].cast(pl.Float64).to_numpy() for name in ("songs", "seeds"))
    # What few songs leave open has widened the recorded intervals already.
    parts = (songs, np.inf), (seeds, np.maximum(pooled["count"].to_numpy() - 1, 1))
    with np.errstate(divide="ignore"):  # seeds that agree leave a normal distribution
        freedom = satterthwaite(songs + seeds, *parts)
    wide = pl.Series(special.stdtrit(freedom, 0.975) * np.sqrt(songs + seeds))
    one = pl.col("count") == 1
    return pooled.with_columns(
        low=pl.when(one).then("low").otherwise(pl.col("value") - wide),
        high=pl.when(one).then("high").otherwise(pl.col("value") + wide),
    )


def _align(
    points: pl.DataFrame,
    measured: pl.DataFrame,
    source: str,
    metric: str,
    digits: int | None = _DIGITS,
) -> Values:
    own = measured.filter(pl.col("source") == source, pl.col("metric") == metric)
    rows = points.join(own, on=_POINT, how="left", nulls_equal=True, maintain_order="left")
    return {name: [_round(x, digits) for x in rows[name]] for name in ("value", "low", "high")}


def _round(number: float | None, digits: int | None = _DIGITS) -> float | None:
    if number is None or not np.isfinite(number):
        return None
    return number if digits is None else float(f"{number:.{digits}g}")


def _read_levels(metrics: pl.DataFrame, source: str) -> dict[str, dict[str, Any]]:
    """Floor and ceiling of each metric: a value with its interval."""
    own = pl.col("source") == source, pl.col("method").is_in(LEVELS), pl.col("value").is_finite()
    rows = metrics.filter(*own)
    levels: dict[str, dict[str, Any]] = {}
    for metric, method, *numbers in rows.select(
        "metric", "method", "value", "low", "high"
    ).iter_rows():
        levels.setdefault(metric, {})[method] = [_round(x) for x in numbers]
    return levels


def _order_axes(bounds: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """The limits of the matched distances by axis, those of deployed points first."""
    names = [*DEPLOYED_AXES[::-1], *(name for name in AXES if name not in DEPLOYED_AXES)]
    return {name: bounds.get(name) for name in names}


def _describe_metric(name: str) -> dict[str, str]:
    one = METRICS[name]
    group = "likeness" if one.is_likeness else "coherency" if one.is_panel else "other"
    return {
        "name": name,
        "label": one.label.replace("-\n", "").replace("\n", " "),
        "about": one.about,
        "better": str(one.better),
        "real": one.real,
        "group": "distance" if one.is_axis else group,
    }


def _describe_method(name: str) -> dict[str, str]:
    if name in CONTROLS:
        trick = CONTROLS[name]
        about = {"label": trick.label, "about": trick.about, "marker": trick.letter}
        return {"name": name, "kind": "trick", "colour": "#808080", **about}
    drawn = look(name)
    kind = "ours" if name in FUSIONS else "inputs" if name == "identity" else "rival"
    by_edits = name == BY_EDITS
    return {
        "name": name,
        "kind": kind,
        "label": "inputs" if name == "identity" else drawn.label,
        "about": "Each pair has a λ of its own, as for a number of edits." if by_edits else "",
        "counts": "edits asked for" if by_edits else "iterations",
        "colour": drawn.colour,
        "marker": drawn.marker,
    }


def _describe_points(points: pl.DataFrame, store: Store) -> list[dict[str, Any]]:
    named = ["style_dim", "step_size", *SETTINGS]
    trials = store.trials.select("trial", *dict.fromkeys(named)).unique("trial").collect()
    rows = points.join(trials, on="trial", how="left", maintain_order="left", suffix="_of_trial")
    kept = [*_POINT, "trial", "seeds"]
    return [
        {name: row[name] for name in kept}
        | {"settings": {n: row[n] for n in named if n in row and row[n] is not None}}
        for row in rows.iter_rows(named=True)
    ]


def _collect_notes(
    store: Store, core: MelodyVAE, points: pl.DataFrame, count: int
) -> dict[str, Any]:
    """Notes of the first test pairs of different songs, and of prior pairs, of every point."""
    shown = _choose_pairs(store, count)
    pairs, inputs, notes = {}, {}, {}
    for source in CHOSEN_ON:
        latents = store.latents.filter(
            pl.col("source") == source,
            pl.col("pair").is_in(shown["pair"].to_list()),
            pl.col("trial").is_in(points["trial"].unique().to_list()),
        ).collect()
        by_point = {
            (row[0], row[1], row[2]): own.sort("pair")
            for row, own in latents.group_by("trial", "lambda", "iteration")
        }
        whole = {at: own for at, own in by_point.items() if own.height == shown.height}
        first = next(iter(whole.values()), latents.clear())
        pairs[source] = first.select(
            "pair", left="left_song", right="right_song", meter="meter"
        ).to_dicts()
        inputs[source] = _decode(core, first, "z_left_in", "z_right_in")
        notes[source] = [
            inputs[source]
            if method == "identity"
            else _decode(core, whole[at])
            if (at := (trial, lambda_, iteration)) in whole
            else None
            for method, trial, lambda_, iteration in points.select(
                "method", "trial", "lambda", "iteration"
            ).iter_rows()
        ]
    return {
        "pairs": pairs,
        "given": inputs,
        "notes": notes,
        "real": _collect_real(store, core, shown["meter"].to_list()),
    }


def _choose_pairs(store: Store, count: int) -> pl.DataFrame:
    """The first test pairs of which no two share a song."""
    rows = (
        store.latents.filter(pl.col("source") == "test", pl.col("method") != REAL)
        .select("pair", "left_song", "right_song", "meter")
        .unique("pair")
        .sort("pair")
        .collect()
    )
    chosen: list[int] = []
    seen: set[str] = set()
    for place, (left, right) in enumerate(rows.select("left_song", "right_song").iter_rows()):
        if not seen & {left, right} and len(chosen) < count:
            chosen.append(place)
            seen |= {left, right}
    return rows[chosen]


def _collect_real(store: Store, core: MelodyVAE, meters: Sequence[str]) -> dict[str, Any] | None:
    """A real neighbour pair in the meter of each shown pair, decoded as all others are."""
    rows = (
        store.latents.filter(pl.col("source") == "test", pl.col("method") == REAL)
        .sort("pair")
        .collect()
    )
    taken: list[int] = []
    for meter in meters:
        alike = np.flatnonzero((rows["meter"] == meter).to_numpy())
        songs = {rows["left_song"][place] for place in taken}
        fresh = [int(place) for place in alike if rows["left_song"][int(place)] not in songs]
        if not len(alike):
            return None
        taken.append(fresh[0] if fresh else int(alike[0]))
    if not taken:
        return None
    own = rows[taken]
    told = own.select("pair", left="left_song", right="right_song", meter="meter").to_dicts()
    return {"pairs": told, "notes": _decode(core, own)}


def _decode(
    core: MelodyVAE, rows: pl.DataFrame, left: str = "z_left", right: str = "z_right"
) -> str | None:
    """Tokens of pairs, the left half of each before its right half, as base64 of 16-bit numbers.

    A latent that is not finite is replaced by its input, as where outputs are measured.
    """
    if rows.is_empty():
        return None
    kinds = np.array([core.form.kinds.index(meter) for meter in rows["meter"]])
    halves: list[Integer[np.ndarray, "B T"]] = []
    for name, before in ((left, "z_left_in"), (right, "z_right_in")):
        z, given = (torch.from_numpy(rows[column].to_numpy().copy()) for column in (name, before))
        kept = torch.isfinite(z).all(dim=1, keepdim=True)
        halves.append(core.decode_tokens(torch.where(kept, z, given), kinds))
    tokens = np.stack(halves, axis=1).astype("<i2")
    return base64.b64encode(tokens.tobytes()).decode()
