"""How the trials of a study stand, and the best of them as a bundle.

All choices are made on validation songs and by the selection judge.
"""

import json
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl
from pydantic import ValidationError
from torch import nn

from cf_core.bundle import Bundle, save_bundle
from cf_core.errors import UserError
from cf_core.training import load_tensors
from cf_core.vae import MelodyVAE
from evaluation.frontier import FUSIONS
from study.config import CONDITION, StudyConfig
from study.jobs import generator_path, planned
from study.store import Store

_POINT = ["trial", "method", "lambda", "style_dim", "seed", "iteration"]
_RUNNERS_UP = 5

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Choice:
    """What was selected, and where its bundle is."""

    bundle: Path
    trial: str
    weight: float
    """λ."""
    iterations: int
    value: float
    """The metric that was maximised, on validation songs."""
    low: float | None
    high: float | None
    """Its 95 % interval, where one was taken."""
    ranked: pl.DataFrame
    """All that met the conditions, best first: the rows of `candidates`."""


def status(store: Store) -> pl.DataFrame:
    """List every planned job of a study: a trial, or a setting of latent search.

    Columns: `trial`, `status` ("done", "diverged", "failed" or "pending"), `reason` why it is not
    done, `attempt` (1 for the first) and `seconds`. Raises `UserError` for damaged records.
    """
    config = _config(store)
    names = [spec.id for spec in planned(config)]
    over = store.scan("trials").select("trial", "status", "reason", "attempt", "seconds").collect()
    return (
        pl.DataFrame({"trial": names}, schema={"trial": pl.String})
        .join(over, on="trial", how="left", maintain_order="left")
        .with_columns(pl.col("status").fill_null("pending"))
    )


def candidates(store: Store, maximise: str, where: Sequence[str]) -> pl.DataFrame:
    """Rank the points of finished trials that meet all conditions, best first.

    A point is a trial (at one λ) after a number of iterations. `maximise` is a metric, and a
    condition a metric, one of < <= > >= and a number: "z_distance <= 3.0". All are taken on
    validation songs. Points where a metric in question is not finite are left out. Of equals the
    nearest (by z-distance) comes first, then by trial, λ and iteration.

    Returned are the columns `trial`, `method`, `lambda`, `style_dim`, `seed`, `iteration`, one for
    each metric, and the interval `low`, `high` of the one maximised. Raises `UserError` for a
    metric that the study does not have, and where no point meets the conditions, with the nearest
    miss.
    """
    points = _points(store, maximise)
    metrics = [name for name in points.columns if name not in (*_POINT, "low", "high")]
    conditions = [_Condition.parse(text) for text in where]
    needed = {maximise, "z_distance", *(condition.metric for condition in conditions)}
    for metric in sorted(needed):
        if metric not in metrics:
            raise UserError(_unknown(metric, metrics))
    finite = points.filter(pl.all_horizontal(pl.col(*needed).is_finite()))
    if finite.is_empty():
        raise UserError(f"{store.root}: {maximise} is not finite anywhere; nothing can be selected")
    misses = pl.sum_horizontal(pl.lit(0.0), *(condition.miss() for condition in conditions))
    met = finite.filter(pl.all_horizontal(pl.lit(True), *(c.holds() for c in conditions)))
    if met.is_empty():
        nearest = finite.sort(misses, "trial", "lambda", "iteration").row(0, named=True)
        values = ", ".join(f"{c.metric} {nearest[c.metric]:.4g}" for c in conditions)
        raise UserError(
            f"no trial of {store.root} meets {' and '.join(where)}; the nearest is"
            f" {nearest['trial']} at λ {nearest['lambda']:g} after {nearest['iteration']}"
            f" iterations with {values}: loosen the conditions"
        )
    descending = [True, False, False, False, False]
    return met.sort(maximise, "z_distance", "trial", "lambda", "iteration", descending=descending)


def select(store: Store, maximise: str, where: Sequence[str], output: Path) -> Choice:
    """Write the best of `candidates` to a bundle folder, with a record of how it was chosen.

    An earlier bundle at `output` is replaced. Raises `UserError` as `candidates` does, where the
    weights of the choice are missing, and where `output` can't be written.
    """
    ranked = candidates(store, maximise, where)
    best = ranked.row(0, named=True)
    config = _config(store)
    conditional = best["method"] == "conditional"
    core = _filled(MelodyVAE(config.melody, config.core), store.root / "core" / "core.safetensors")
    generator = _filled(
        config.fusion.generator(config.core.latent_dim, best["style_dim"], conditional=conditional),
        generator_path(store, best["trial"]),
    )
    trial = store.scan("trials").filter(pl.col("trial") == best["trial"]).collect()
    runners_up = ranked[1 : 1 + _RUNNERS_UP].select(
        "trial", "lambda", "iteration", maximise, "z_distance"
    )
    record = {
        "study": store.record["name"],
        "fingerprint": store.record["fingerprint"],
        **{name: best[name] for name in ("trial", "lambda", "style_dim", "seed")},
        "rule": {"maximise": maximise, "where": list(where)},
        "value": best[maximise],
        "interval": [best["low"], best["high"]],
        "runners_up": runners_up.to_dicts(),
        "versions": json.loads(trial["versions"][0]),
        "git_commit": trial["git_commit"][0],
    }
    bundle = Bundle(
        config.melody,
        core,
        generator,
        iterations=best["iteration"],
        weight=best["lambda"] if conditional else None,
        lambda_range=config.fusion.lambda_range if conditional else None,
        record=record,
    )
    save_bundle(bundle, output)
    return Choice(
        bundle=output,
        trial=best["trial"],
        weight=best["lambda"],
        iterations=best["iteration"],
        value=best[maximise],
        low=best["low"],
        high=best["high"],
        ranked=ranked,
    )


class _Condition(NamedTuple):
    metric: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "_Condition":
        found = re.fullmatch(CONDITION, text, re.ASCII)
        if found is None:
            raise UserError(f'"{text}": a condition must read like "z_distance <= 3.0"')
        return cls(found[1], found[2], float(found[3]))

    def holds(self) -> pl.Expr:
        return _SIGNS[self.sign](pl.col(self.metric), self.bound)

    def miss(self) -> pl.Expr:
        """By how much a point misses the condition, relative to the bound; 0 where it holds."""
        over = pl.col(self.metric) - self.bound
        over = over if self.sign.startswith("<") else -over
        return over.clip(lower_bound=0.0) / (abs(self.bound) or 1.0)


_SIGNS: dict[str, Callable[[Any, float], pl.Expr]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _points(store: Store, maximise: str) -> pl.DataFrame:
    """All validation metrics of finished trials, a row per point and a column per metric."""
    done = [trial for trial, state in store.done_trials().items() if state == "done"]
    rows = (
        store.scan("metrics")
        .filter(
            pl.col("method").is_in(FUSIONS),
            pl.col("source") == "validation",
            pl.col("trial").is_in(done),
        )
        .collect()
    )
    if rows.is_empty():
        raise UserError(f"{store.root}: no trial is done yet; run the study first")
    interval = rows.filter(pl.col("metric") == maximise).select(*_POINT, "low", "high")
    return rows.pivot("metric", index=_POINT, values="value", sort_columns=True).join(
        interval, on=_POINT, how="left", nulls_equal=True
    )


def _unknown(metric: str, metrics: Sequence[str]) -> str:
    near = get_close_matches(metric, metrics, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{metric}: no such metric{hint} (metrics: {', '.join(metrics)})"


def _config(store: Store) -> StudyConfig:
    """Restore the settings that the records belong to; those outside the identity are defaults."""
    settings = {**store.record["identity"], "name": store.record["name"], "corpus": {}}
    try:
        return StudyConfig.model_validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        raise UserError(
            f"{store.root / 'study.json'}: holds settings that this release does not know; read it"
            " with the release that wrote it"
        ) from error


def _filled(network: Network, path: Path) -> Network:
    tensors = load_tensors(path)
    try:
        network.load_state_dict(tensors or {})
    except RuntimeError:
        state = "missing or damaged" if tensors is None else "of another shape"
        raise UserError(f"{path}: weights are {state}; run the study again") from None
    return network
