"""Five questions to a study's tables: `marimo edit docs/notebook.py`, after `make quickstart`."""

import marimo

app = marimo.App(width="medium")

with app.setup:
    import marimo as mo
    import numpy as np
    import polars as pl
    from scipy.stats import t

    import study
    from evaluation.frontier import FUSIONS

    LIKENESS, DISTANCE = "indistinguishable", "larger_edit_distance"


@app.cell
def _():
    results = "results/quickstart"
    limit = 12.0
    return limit, results


@app.cell
def _(limit, results):
    records = study.open(results)
    mo.md(
        f"""
        # Five questions about {results}

        Every table is a lazy Polars frame: `records.trials`, `records.metrics`, `records.latents`
        and so on. To ask about another study, or to set another limit on the edits (here
        {limit:g} tokens), edit the cell above.
        """
    )
    return (records,)


@app.cell
def _(limit, records):
    # A configuration is a trial without its seed, so its values are means over seeds.
    of_ours = records.metrics.filter(pl.col("method").is_in(FUSIONS)).collect()
    by_source = (
        of_ours.filter(pl.col("metric").is_in([LIKENESS, DISTANCE]))
        .group_by("configuration", "lambda", "iteration", "source", "metric")
        .agg(pl.col("value").mean())
        .pivot("metric", values="value")
    )
    near = by_source.filter(pl.col("source") == "validation", pl.col(DISTANCE) <= limit)
    chosen = near.sort(LIKENESS, "configuration", descending=[True, False]).row(0, named=True)
    seeds = of_ours.filter(
        pl.col("configuration") == chosen["configuration"],
        pl.col("lambda").eq_missing(chosen["lambda"]),
        iteration=chosen["iteration"],
        source="test",
        metric=LIKENESS,
    ).sort("seed")
    _values = seeds["value"].to_numpy()
    _half = (
        t.ppf(0.975, len(_values) - 1) * _values.std(ddof=1) / np.sqrt(len(_values))
        if len(_values) > 1
        else np.nan
    )
    best = chosen | {
        "trial": seeds["trial"][0],
        "test_value": _values.mean(),
        "low": _values.mean() - _half,
        "high": _values.mean() + _half,
        "seeds": len(_values),
    }
    mo.md(
        f"""
        ## 1. Which configuration is best within {limit:g} edits?

        Edits are twice those of the half that is changed more (`{DISTANCE}`). Validation songs
        choose **{best["configuration"]}**, λ {best["lambda"]:g}, iterations
        {best["iteration"]}. On test songs its outputs are `{LIKENESS}` from real neighbours to
        **{best["test_value"]:.3f}** (1 is best), with a 95 % interval of {best["low"]:.3f} to
        {best["high"]:.3f} over {best["seeds"]} seeds (one seed says nothing about others).
        """
    )
    return (best,)


@app.cell
def _(records):
    gains = (
        records.matched.filter(rival="lp", axis="z_distance", source="test", metric="judge")
        .collect()
        .pivot("method", index="distance", values="value")
        .with_columns(gain=pl.col("ours") - pl.col("lp"))
        .sort("distance")
    )
    mo.vstack(
        [
            mo.md("## 2. Is the gain over LP larger near the inputs or far from them?"),
            gains,
            mo.md(
                "The gain is largest at a distance of"
                f" **{gains.sort('gain')['distance'][-1]:.2f}**. Its mean is"
                f" {gains['gain'][:5].mean():+.3f} over the nearer half of the distances and"
                f" {gains['gain'][5:].mean():+.3f} over the farther half."
            ),
        ]
    )
    return (gains,)


@app.cell
def _(records):
    styles = (
        records.metrics.filter(pl.col("style_dim") > 0, metric="style_diversity", source="test")
        .group_by("lambda", "iteration")
        .agg(pl.col("value").mean())
        .collect()
        .sort("iteration", "lambda")
        .pivot("iteration", index="lambda", values="value")
    )
    mo.vstack(
        [
            mo.md(
                "## 3. Do styles matter?\n\nThe table shows how far apart the outputs of one input"
                " are in different styles, by λ (rows) and iterations (columns). It is 0 where"
                " style has no effect."
            ),
            styles,
        ]
    )
    return (styles,)


@app.cell
def _(best, records):
    _after = pl.col("trial") == best["trial"], pl.col("lambda").eq_missing(best["lambda"])
    _test = records.outcomes.filter(source="test")
    songs = (
        _test.filter(*_after, iteration=best["iteration"])
        .join(_test.filter(trial="identity"), on="pair", suffix="_before")
        .select(
            pl.col("judge") - pl.col("judge_before"),
            song=pl.concat_list("left_song", "right_song"),
        )
        .explode("song")
        .group_by("song")
        .agg(gain=pl.col("judge").mean(), worse=(pl.col("judge") < 0).mean(), pairs=pl.len())
        .collect()
        .sort("gain", "song")
    )
    mo.vstack(
        [
            mo.md(
                "## 4. Which songs' pairs does it fail?\n\n`gain` is the judge's value for the best"
                " trial's outputs less its value for their inputs, averaged over the pairs with a"
                " half from the song. `worse` is the share of pairs that lost."
            ),
            songs,
        ]
    )
    return (songs,)


@app.cell
def _(best, records):
    _latents = (
        records.latents.filter(
            pl.col("trial") == best["trial"],
            pl.col("lambda").eq_missing(best["lambda"]),
            source="test",
        )
        .sort("iteration", "pair")
        .collect()
        .rechunk()
    )
    mo.stop(_latents.is_empty(), mo.md("This study keeps no latents (`evaluation.latents`)."))
    counts = _latents["iteration"].unique().sort().to_numpy()
    # Views of the frame's own memory, of shape [rows, Z].
    _inputs, _outputs = (
        np.concatenate([_latents[name].to_numpy() for name in names], axis=1)
        for names in (("z_left_in", "z_right_in"), ("z_left", "z_right"))
    )
    _shape = (len(counts), -1, _outputs.shape[1])
    _path = np.concatenate([_inputs.reshape(_shape)[:1], _outputs.reshape(_shape)])
    _steps = np.linalg.norm(np.diff(_path, axis=0), axis=2).mean(axis=1)
    moves = pl.DataFrame(
        {"iteration": counts, "per_application": _steps / np.diff(counts, prepend=0)}
    )
    mo.vstack(
        [
            mo.md(
                "## 5. Does it come to rest?\n\n`per_application` is the Euclidean distance that"
                " the best trial's latents move per application (both halves), between each"
                " iteration count and the one before. If it falls, they come to rest; if it stays"
                " equal, they drift."
            ),
            moves,
        ]
    )
    return (moves,)


if __name__ == "__main__":
    app.run()
