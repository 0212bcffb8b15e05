"""How the trials of a study stand, and the best of them as a bundle.

All choices are made on validation songs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import polars as pl
from pydantic import ValidationError
from torch import nn

from cf_core.bundle import Bundle, load_bundle, save_bundle
from cf_core.errors import BundleError, RecordsError, SelectionError
from cf_core.files import AnyPath
from cf_core.heard import Heard, find_price
from cf_core.training import load_tensors
from cf_core.vae import MelodyVAE
from cf_core.writer import Writer
from evaluation.frontier import FUSIONS
from study.conditions import all_hold, total_miss
from study.config import Selection, StudyConfig
from study.ledger import Ledger, Status
from study.store import Store
from study.sweep import list_planned
from study.workbench import DECIDING, find_generator

_POINT = ["configuration", "method", "lambda", "style_dim", "iteration"]
_KEYS = {"lambda": pl.Float64, "style_dim": pl.Int32, "iteration": pl.Int32}
_NEAREST = "larger_edit_distance"
"""The metric by which a point is near to the inputs; no half pays for the other."""
_RUNNERS_UP = 5
_NORMAL = 1.96
"""Standard errors on either side of a 95 % interval."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Choice:
    """What was selected, and where its bundle is."""

    bundle: AnyPath
    trial: str
    lambda_: float
    iterations: int
    rule: str
    """What was asked for, in words."""
    metric: str
    """What was maximised."""
    ranked: pl.DataFrame
    """All that met the conditions: the rows of `candidates`."""
    of_seed: Mapping[str, float]
    """The deployed seed's own values of the metrics in question."""
    pending: Sequence[str] = ()
    """Planned trials and settings that are not over yet."""
    replaced: str | None = None
    """The rule by which the bundle that was there before had been chosen, if it was another."""

    def lines(self) -> list[str]:
        """Tell what was chosen and why, and the runners-up with their intervals."""
        chosen = self.ranked.row(0, named=True)
        best = self.ranked.sort(self.metric, descending=True).row(0, named=True)
        lines = [f"{self.rule}, on validation songs, among {self.ranked.height} points"]
        if best != chosen:
            lines.append(f"highest: {self._told(best)}")
            lines.append("within one standard error of it, the nearest to the inputs is chosen:")
        lines.append(f"chosen: {self._told(chosen)}")
        if chosen["seeds"] > 1:
            own = ", ".join(f"{metric} {value:.3f}" for metric, value in self.of_seed.items())
            lines.append(f"deployed: {self.trial}, by itself {own}")
        runners_up = self.ranked[1 : 1 + _RUNNERS_UP].iter_rows(named=True)
        lines += [f"runner-up: {self._told(row)}" for row in runners_up]
        if self.pending:
            lines.append(f"not finished: {_list_some(self.pending)}; run the study to the end")
        if self.replaced is not None:
            lines.append(f"replaced: the bundle that another rule had chosen ({self.replaced})")
        return lines

    def _told(self, row: dict[str, Any]) -> str:
        interval = f" (95 % {row['low']:.3f} to {row['high']:.3f})" if row["se"] > 0 else ""
        return (
            f"{row['configuration']}, λ {row['lambda']:g}, iterations {row['iteration']}:"
            f" {self.metric} {row[self.metric]:.3f}{interval},"
            f" {_NEAREST} {row[_NEAREST]:.1f} tokens"
        )


def list_jobs(store: Store) -> pl.DataFrame:
    """List every planned job of a study: a trial, or a setting of a rival.

    Columns: `trial`, `status` (a `Status`), `reason` why it is not done, `attempt` (1 for the
    first) and `seconds`. Raises `RecordsError` for damaged records.

        >>> import study
        >>> jobs = list_jobs(study.open("results/quickstart"))
        >>> failed = jobs.filter(status="failed")
    """
    config = StudyConfig.restored(store.record)
    over = Ledger(store).list_over().select("trial", "status", "reason", "attempt", "seconds")
    names = [trial.id for trial in list_planned(config, store)]
    names += [setting.id for setting in config.evaluation.settings(known_only=True)]
    names = list(dict.fromkeys([*names, *over["trial"]]))
    return (
        pl.DataFrame({"trial": names}, schema={"trial": pl.String})
        .join(over, on="trial", how="left", maintain_order="left")
        .with_columns(pl.col("status").fill_null(str(Status.PENDING)))
    )


def rank_candidates(
    store: Store, rule: Selection, methods: Sequence[str] = FUSIONS
) -> pl.DataFrame:
    """Rank the points of `methods` that meet all conditions of a rule, the one to choose first.

    A point is a configuration at one λ after a number of iterations; its values are means over its
    finished seeds. All are taken on validation songs. Points where a metric in question is not
    finite are left out.

    First come those within one standard error of the highest, the nearest in front (by twice the
    larger half's edit distance), as a simpler model is taken where a better one can't be told from
    it (Breiman et al. 1984); then all others by their value. Of equals, by configuration, λ and
    iteration.

    Returned are the columns `configuration`, `method`, `lambda`, `style_dim`, `iteration`, `seeds`
    (how many), one for each metric, and of the one maximised the standard error `se` over songs and
    seeds (0 where it has no interval; at most this, as what songs and seeds do together is counted
    with either) and the 95 % interval `low`, `high`. Raises `SelectionError` where no trial is
    done, and where no point meets the conditions, with the nearest miss.
    """
    maximise, conditions = rule.maximise, rule.where
    points = _points(store, maximise).filter(pl.col("method").is_in(methods))
    needed = list(dict.fromkeys([maximise, _NEAREST, *(c.name for c in conditions)]))
    if absent := [name for name in needed if name not in points.columns]:
        raise SelectionError(
            f"{store.root}: its trials have no values of {', '.join(absent)}; choose by another"
            " metric, or run a study with more evaluation.validation_pairs"
        )
    finite = points.filter(pl.all_horizontal(pl.col(needed).is_finite()))
    if finite.is_empty():
        raise SelectionError(
            f"{store.root}: {maximise} is not finite anywhere; nothing can be selected"
        )
    met = finite.filter(all_hold(conditions))
    if met.is_empty():
        ranked = finite.sort(total_miss(conditions), "configuration", "lambda", "iteration")
        nearest = ranked.row(0, named=True)
        values = ", ".join(f"{c.name} {nearest[c.name]:.4g}" for c in conditions)
        raise SelectionError(
            f"no trial of {store.root} meets {' and '.join(map(str, conditions))}; the nearest is"
            f" {nearest['configuration']} at λ {nearest['lambda']:g}, iterations"
            f" {nearest['iteration']}, with {values}: loosen the conditions"
        )
    ties = ["configuration", "lambda", "iteration"]
    ranked = met.sort(maximise, _NEAREST, *ties, descending=[True, *[False] * 4])
    least = ranked[maximise][0] - ranked["se"][0]
    within = ranked.filter(pl.col(maximise) >= least).sort(_NEAREST, *ties)
    return pl.concat([within, ranked.filter(pl.col(maximise) < least)])


def read_rule(store: Store, **changes: Any) -> Selection:
    """The rule recorded with a study, with other values for `maximise` or `where`.

    Raises `SelectionError` for a metric that there is not, and for what is no condition.
    """
    recorded = StudyConfig.restored(store.record).selection
    try:
        return Selection.model_validate(recorded.model_dump() | changes)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = problem["msg"].removeprefix("Value error, ")
        raise SelectionError(f"{problem['loc'][0]}: {message}") from None


def select(store: Store, rule: Selection | None = None, output: AnyPath | None = None) -> Choice:
    """Write the first of `rank_candidates` to a bundle folder, and record how it was chosen.

    The rule is the one recorded with the study unless given, and the folder `bundle` of the
    study's. An earlier bundle there is replaced; the choice tells if another rule had chosen it.
    Of the seeds of a configuration the one with the highest value is taken among those that meet
    the conditions by themselves, or among all where none does; the record holds its own values
    (`of_seed`).

        >>> import study
        >>> store = study.open("results/quickstart")
        >>> rule = study.read_rule(store, where=["edit_distance <= 60"])
        >>> choice = study.select_bundle(store, rule, study.place("near.bundle"))

    Raises `SelectionError` as `rank_candidates` does, `RecordsError` where the weights of the
    choice are missing (a publication has none), and `BundleError` where `output` can't be written.
    """
    store.need_whole("weights")
    rule = rule or read_rule(store)
    output = output or store.root / "bundle"
    ranked = rank_candidates(store, rule)
    bundle = assemble(store, rule, ranked)
    earlier = _find_rule(output)
    save_bundle(bundle, output)
    jobs = list_jobs(store)
    return Choice(
        bundle=output,
        trial=bundle.record["trial"],
        lambda_=bundle.record["lambda"],
        iterations=bundle.iterations,
        rule=_say_rule(_describe(rule)),
        metric=rule.maximise,
        ranked=ranked,
        of_seed=bundle.record["of_seed"],
        pending=jobs.filter(pl.col("status") == Status.PENDING)["trial"].to_list(),
        replaced=_say_rule(earlier) if earlier not in (None, _describe(rule)) else None,
    )


def assemble(store: Store, rule: Selection, ranked: pl.DataFrame) -> Bundle:
    """Make a bundle of the first of `rank_candidates`, which records how it was chosen.

    Raises `RecordsError` where weights are missing or damaged.
    """
    config = StudyConfig.restored(store.record)
    best = ranked.row(0, named=True)
    own = _choose_seed(store, best, rule)
    name = f"{best['configuration']}-seed{own['seed']}"
    conditional = best["method"] == "conditional"
    core = read_core(config, store)
    trial = store.scan("trials").filter(pl.col("trial") == name).collect().row(0, named=True)
    settings = replace(config.fusion, hidden=trial["hidden"])
    generator = _fill(
        settings.make_generator(
            config.core.latent_dim,
            best["style_dim"],
            conditional=conditional,
            kinds=len(config.melody.kinds),
        ),
        find_generator(store, name),
    )
    heard = None
    if config.fusion.scheme == "heard":
        heard = Heard.of(core, _read_writer(config, store), config.fusion)
        if not conditional:  # the λ of a map that takes none is part of the price
            heard = replace(heard, price=find_price(heard.price, best["lambda"]))
    return Bundle(
        config.melody,
        core,
        generator,
        iterations=best["iteration"],
        lambda_=best["lambda"] if conditional else None,
        lambda_range=config.fusion.lambda_range if conditional else None,
        record={
            "study": store.record["name"],
            "fingerprint": store.record["fingerprint"],
            **_tell_choice(rule, ranked, own),
            "versions": json.loads(trial["versions"]),
            "git_commit": trial["git_commit"],
        },
        heard=heard,
    )


def _tell_choice(
    rule: Selection, ranked: pl.DataFrame, of_seed: Mapping[str, Any]
) -> dict[str, Any]:
    """What was chosen and how, as a bundle records it."""
    best, maximise = ranked.row(0, named=True), rule.maximise
    shown = ["configuration", "lambda", "iteration", maximise, "low", "high"]
    runners_up = ranked[1 : 1 + _RUNNERS_UP].select(*dict.fromkeys((*shown, _NEAREST)))
    return {
        "trial": f"{best['configuration']}-seed{of_seed['seed']}",
        "configuration": best["configuration"],
        **{key: best[key] for key in ("lambda", "style_dim")},
        "seed": of_seed["seed"],
        "of_seed": {name: value for name, value in of_seed.items() if name != "seed"},
        "rule": _describe(rule),
        "value": best[maximise],
        "standard_error": best["se"],
        "interval": [best["low"], best["high"]],
        "highest": float(ranked[maximise].max()),  # type: ignore[arg-type]
        "runners_up": runners_up.to_dicts(),
    }


def _describe(rule: Selection) -> dict[str, Any]:
    """A rule as a bundle records it."""
    return {
        "maximise": rule.maximise,
        "where": list(map(str, rule.where)),
        "then": f"the nearest by {_NEAREST} within one standard error of the highest",
    }


def _say_rule(rule: Mapping[str, Any]) -> str:
    conditions = f" with {' and '.join(rule['where'])}" if rule["where"] else ""
    return f"highest {rule['maximise']}{conditions}"


def _find_rule(folder: AnyPath) -> dict[str, Any] | None:
    """The rule that chose the bundle in a folder; None without a bundle that says so."""
    try:
        rule = load_bundle(folder).record["rule"]
        _ = rule["maximise"], [*rule["where"]]
    except (BundleError, KeyError, TypeError):
        return None
    return dict(rule)


def _list_some(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


_ERRORS = ("se", "low", "high")


def _points(store: Store, maximise: str) -> pl.DataFrame:
    """Validation metrics of finished trials, a row per point and a column per metric."""
    rows = _validation_rows(store)
    if rows.is_empty():
        jobs = list_jobs(store)
        counts = ", ".join(f"{n} {status}" for status, n in jobs["status"].value_counts().rows())
        raise SelectionError(f"{store.root}: no trial is done yet ({counts}); run the study first")
    # Seeds share their songs, so that more of them don't make the songs' part smaller.
    # An interval may be cut at a limit, such as 1 for correlations, so its wider side counts.
    reach = pl.max_horizontal(pl.col("high") - pl.col("value"), pl.col("value") - pl.col("low"))
    songs = (reach / _NORMAL).pow(2).mean().fill_null(0.0)
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


def _choose_seed(store: Store, best: Mapping[str, Any], rule: Selection) -> dict[str, Any]:
    """The seed of a configuration to deploy, and its own values of the metrics in question."""
    needed = dict.fromkeys((rule.maximise, _NEAREST, *(c.name for c in rule.where)))
    point = pl.DataFrame([{key: best[key] for key in _POINT}], schema_overrides=_KEYS)
    values = (
        _validation_rows(store)
        .join(point, on=_POINT, how="semi", nulls_equal=True)
        .pivot("metric", index="seed", values="value")
        .select("seed", *needed)
        .sort(rule.maximise, "seed", descending=[True, False])
    )
    met = values.filter(all_hold(rule.where))
    return (met if met.height else values).row(0, named=True)


def _validation_rows(store: Store) -> pl.DataFrame:
    """Validation metrics of finished trials."""
    return (
        store.scan("metrics")
        .filter(
            pl.col("method").is_in(FUSIONS),
            pl.col("source") == DECIDING,
            pl.col("trial").is_in(Ledger(store).list_done()),
        )
        .collect()
    )


def _read_writer(config: StudyConfig, store: Store) -> Writer:
    writer = Writer(config.melody, config.writer)
    for name, network in writer.named_children():
        _fill(network, store.root / "classifiers" / f"writer_{name}.safetensors")
    return writer


def read_core(config: StudyConfig, store: Store) -> MelodyVAE:
    """Read the core of a study. Raises `RecordsError` where it is missing or damaged."""
    return _fill(MelodyVAE(config.melody, config.core), store.root / "core" / "core.safetensors")


def _fill(network: Network, path: AnyPath) -> Network:
    tensors = load_tensors(path)
    try:
        network.load_state_dict(tensors or {})
    except RuntimeError:
        state = "missing or damaged" if tensors is None else "of another shape"
        raise RecordsError(f"{path}: weights are {state}; run the study again") from None
    return network
