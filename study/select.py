"""How the trials of a study stand, and the best of them as a bundle.

All choices are made on validation songs and by the selection judge.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar

import polars as pl
from torch import nn

from cf_core.bundle import Bundle, save_bundle
from cf_core.errors import UserError
from cf_core.files import AnyPath
from cf_core.training import load_tensors
from cf_core.vae import MelodyVAE
from evaluation.frontier import CONFIGURATION, FUSIONS
from study.conditions import Condition, all_hold, total_miss
from study.config import StudyConfig
from study.jobs import generator_path
from study.store import Store
from study.sweep import planned

_POINT = ["trial", "method", "lambda", "style_dim", "iteration"]
_KEYS = {"lambda": pl.Float64, "style_dim": pl.Int32, "iteration": pl.Int32}
_RUNNERS_UP = 5
_NORMAL = 1.96
"""Standard errors on either side of a 95 % interval."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Choice:
    """What was selected, and where its bundle is."""

    bundle: AnyPath
    trial: str
    weight: float
    """λ."""
    iterations: int
    rule: str
    """What was asked for, in words."""
    metric: str
    """What was maximised."""
    ranked: pl.DataFrame
    """All that met the conditions: the rows of `candidates`."""
    of_seed: Mapping[str, float]
    """The deployed seed's own values of the metrics in question."""

    def lines(self) -> list[str]:
        """Tell what was chosen and why, and the runners-up with their intervals."""
        chosen = self.ranked.row(0, named=True)
        best = self.ranked.sort(self.metric, descending=True).row(0, named=True)
        lines = [f"{self.rule}, on validation songs: {self.ranked.height} points meet it"]
        if best != chosen:
            lines.append(f"highest: {self._told(best)}")
            lines.append("within one standard error of it, the nearest to the inputs is chosen:")
        lines.append(f"chosen: {self._told(chosen)}")
        if chosen["seeds"] > 1:
            own = ", ".join(f"{metric} {value:.3f}" for metric, value in self.of_seed.items())
            lines.append(f"deployed: {self.trial}, by itself {own}")
        runners_up = self.ranked[1 : 1 + _RUNNERS_UP].iter_rows(named=True)
        lines += [f"runner-up: {self._told(row)}" for row in runners_up]
        return lines

    def _told(self, row: dict[str, Any]) -> str:
        interval = f" (95 % {row['low']:.3f} to {row['high']:.3f})" if row["se"] > 0 else ""
        return (
            f"{row['trial']}, λ {row['lambda']:g}, iterations {row['iteration']}: {self.metric}"
            f" {row[self.metric]:.3f}{interval}, z_distance {row['z_distance']:.2f}"
        )


def status(store: Store) -> pl.DataFrame:
    """List every planned job of a study: a trial, or a setting of latent search.

    Columns: `trial`, `status` ("done", "pruned", "diverged", "failed" or "pending"), `reason` why
    it is not done, `attempt` (1 for the first) and `seconds`. Raises `UserError` for damaged
    records.
    """
    config = StudyConfig.restored(store.record)
    names = [trial.id for trial in planned(config, store)]
    names += [setting.id for setting in config.rivals()]
    over = store.ledger().select("trial", "status", "reason", "attempt", "seconds")
    return (
        pl.DataFrame({"trial": names}, schema={"trial": pl.String})
        .join(over, on="trial", how="left", maintain_order="left")
        .with_columns(pl.col("status").fill_null("pending"))
    )


def candidates(store: Store, maximise: str, where: Sequence[str]) -> pl.DataFrame:
    """Rank the points that meet all conditions, the one to choose first.

    A point is a configuration (a trial without its seed, at one λ) after a number of iterations;
    its values are means over its finished seeds. `maximise` is a metric, and a condition a metric,
    one of < <= > >= and a number: "z_distance <= 3.0". All are taken on validation songs. Points
    where a metric in question is not finite are left out.

    First come those within one standard error of the highest, the nearest (by z-distance) in front,
    as a simpler model is taken where a better one can't be told from it (Breiman et al. 1984); then
    all others by their value. Of equals, by trial, λ and iteration.

    Returned are the columns `trial` (without a seed), `method`, `lambda`, `style_dim`, `iteration`,
    `seeds` (how many), one for each metric, and of the one maximised
    the standard error `se` over songs and seeds (0 where it has no interval; at most this, as what
    songs and seeds do together is counted with either) and the 95 % interval `low`, `high`. Raises
    `UserError` for a metric that the study does not have, and where no point meets the conditions,
    with the nearest miss.
    """
    points = _points(store, maximise)
    metrics = [name for name in points.columns if name not in (*_POINT, "seeds", *_ERRORS)]
    conditions = [Condition.parse(text) for text in where]
    needed = {maximise, "z_distance", *(condition.metric for condition in conditions)}
    for metric in sorted(needed):
        if metric not in metrics:
            raise UserError(_unknown(metric, metrics))
    finite = points.filter(pl.all_horizontal(pl.col(*needed).is_finite()))
    if finite.is_empty():
        raise UserError(f"{store.root}: {maximise} is not finite anywhere; nothing can be selected")
    met = finite.filter(all_hold(conditions))
    if met.is_empty():
        nearest = finite.sort(total_miss(conditions), "trial", "lambda", "iteration").row(
            0, named=True
        )
        values = ", ".join(f"{c.metric} {nearest[c.metric]:.4g}" for c in conditions)
        raise UserError(
            f"no trial of {store.root} meets {' and '.join(where)}; the nearest is"
            f" {nearest['trial']} at λ {nearest['lambda']:g}, iterations"
            f" {nearest['iteration']}, with {values}: loosen the conditions"
        )
    ties = ["trial", "lambda", "iteration"]
    ranked = met.sort(maximise, "z_distance", *ties, descending=[True, *[False] * 4])
    least = ranked[maximise][0] - ranked["se"][0]
    within = ranked.filter(pl.col(maximise) >= least).sort("z_distance", *ties)
    return pl.concat([within, ranked.filter(pl.col(maximise) < least)])


def select(store: Store, maximise: str, where: Sequence[str], output: AnyPath) -> Choice:
    """Write the first of `candidates` to a bundle folder, with a record of how it was chosen.

    Of the seeds of a configuration the one with the highest `maximise` is taken among those that
    meet the conditions by themselves, or among all where none does; the record holds its own values
    (`of_seed`). An earlier bundle at `output` is replaced. Raises `UserError` as `candidates` does,
    where the weights of the choice are missing, and where `output` can't be written.
    """
    ranked = candidates(store, maximise, where)
    best = ranked.row(0, named=True)
    own = _of_seed(store, best, maximise, where)
    seed = own.pop("seed")
    name = f"{best['trial']}-seed{seed}"
    config = StudyConfig.restored(store.record)
    conditional = best["method"] == "conditional"
    core = _filled(MelodyVAE(config.melody, config.core), store.root / "core" / "core.safetensors")
    trial = store.scan("trials").filter(pl.col("trial") == name).collect()
    settings = replace(config.fusion, hidden=trial["hidden"][0])
    generator = _filled(
        settings.make_generator(config.core.latent_dim, best["style_dim"], conditional=conditional),
        generator_path(store, name),
    )
    shown = ["trial", "lambda", "iteration", maximise, "low", "high"]
    runners_up = ranked[1 : 1 + _RUNNERS_UP].select(*dict.fromkeys((*shown, "z_distance")))
    record = {
        "study": store.record["name"],
        "fingerprint": store.record["fingerprint"],
        "trial": name,
        **{key: best[key] for key in ("lambda", "style_dim")},
        "seed": seed,
        "of_seed": own,
        "rule": {
            "maximise": maximise,
            "where": list(where),
            "then": "the nearest by z_distance within one standard error of the highest",
        },
        "value": best[maximise],
        "standard_error": best["se"],
        "interval": [best["low"], best["high"]],
        "highest": float(ranked[maximise].max()),  # type: ignore[arg-type]
        "runners_up": runners_up.to_dicts(),
        "versions": json.loads(trial["versions"][0]),
        "git_commit": trial["git_commit"][0],
    }
    bundle = Bundle(
        config.melody,
        core,
        generator,
        iterations=best["iteration"],
        lambda_=best["lambda"] if conditional else None,
        lambda_range=config.fusion.lambda_range if conditional else None,
        record=record,
    )
    save_bundle(bundle, output)
    return Choice(
        bundle=output,
        trial=name,
        weight=best["lambda"],
        iterations=best["iteration"],
        rule=f"highest {maximise} with {' and '.join(where) or 'no condition'}",
        metric=maximise,
        ranked=ranked,
        of_seed=own,
    )


_ERRORS = ("se", "low", "high")


def _points(store: Store, maximise: str) -> pl.DataFrame:
    """Validation metrics of finished trials, a row per point and a column per metric."""
    rows = _validation_rows(store)
    if rows.is_empty():
        raise UserError(f"{store.root}: no trial is done yet; run the study first")
    # Seeds share their songs, so that more of them don't make the songs' part smaller.
    songs = ((pl.col("high") - pl.col("low")) / (2 * _NORMAL)).pow(2).mean().fill_null(0.0)
    seeds = (pl.col("value").var() / pl.len()).fill_null(0.0)
    value = pl.col("value").mean()
    spread = (
        rows.filter(pl.col("metric") == maximise)
        .group_by(_POINT, maintain_order=True)
        .agg(seeds=pl.len(), se=(songs + seeds).fill_nan(0.0).sqrt(), middle=value)
        .with_columns(
            low=pl.col("middle") - _NORMAL * pl.col("se"),
            high=pl.col("middle") + _NORMAL * pl.col("se"),
        )
        .drop("middle")
        .filter(pl.col("seeds") == rows["seed"].n_unique())
    )
    return (
        rows.group_by(*_POINT, "metric", maintain_order=True)
        .agg(value)
        .pivot("metric", index=_POINT, values="value", sort_columns=True)
        .join(spread, on=_POINT, how="inner", nulls_equal=True)
    )


def _of_seed(
    store: Store, best: Mapping[str, Any], maximise: str, where: Sequence[str]
) -> dict[str, Any]:
    """The seed of a configuration to deploy, and its own values of the metrics in question."""
    conditions = [Condition.parse(text) for text in where]
    point = pl.DataFrame([{key: best[key] for key in _POINT}], schema_overrides=_KEYS)
    values = (
        _validation_rows(store)
        .join(point, on=_POINT, how="semi", nulls_equal=True)
        .pivot("metric", index="seed", values="value")
        .select("seed", *dict.fromkeys((maximise, "z_distance", *(c.metric for c in conditions))))
        .sort(maximise, "seed", descending=[True, False])
    )
    met = values.filter(all_hold(conditions))
    return (met if met.height else values).row(0, named=True)


def _validation_rows(store: Store) -> pl.DataFrame:
    """Validation metrics of finished trials; `trial` is without its seed."""
    done = [trial for trial, state in store.done_trials().items() if state == "done"]
    return (
        store.scan("metrics")
        .filter(
            pl.col("method").is_in(FUSIONS),
            pl.col("source") == "validation",
            pl.col("trial").is_in(done),
        )
        .with_columns(trial=CONFIGURATION)
        .collect()
    )


def _unknown(metric: str, metrics: Sequence[str]) -> str:
    near = get_close_matches(metric, metrics, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{metric}: no such metric{hint} (metrics: {', '.join(metrics)})"


def _filled(network: Network, path: AnyPath) -> Network:
    tensors = load_tensors(path)
    try:
        network.load_state_dict(tensors or {})
    except RuntimeError:
        state = "missing or damaged" if tensors is None else "of another shape"
        raise UserError(f"{path}: weights are {state}; run the study again") from None
    return network
