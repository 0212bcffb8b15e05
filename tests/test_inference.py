import numpy as np
import polars as pl
import pytest
from scipy import stats

from evaluation.frontier import CHOSEN_ON, OURS, PANELS, matched_similarity
from evaluation.inference import (
    crossed_interval,
    crossed_variance,
    decide_verdicts,
    holm,
    probability_of_improvement,
)
from evaluation.jackknife import Jackknife
from evaluation.metrics import COHERENCY, LIKENESS
from evaluation.statistics import STATISTICS, correlation, transition_matrix

SONGS, SEEDS, PAIRS = 45, 5, 512


def single_songs(count: int) -> Jackknife:
    """Of as many pairs as songs, each of one song alone."""
    return Jackknife.of(np.repeat(np.arange(count)[:, None], 2, axis=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("song", "seed", "interaction", "pair"),
    [
        pytest.param(0.05, 0.015, 0.03, 0.25, id="realistic"),
        pytest.param(0.05, 0.02, 0.05, 0.1, id="songs and seeds alike"),
        pytest.param(0.02, 0.1, 0.03, 0.25, id="seeds dominate"),
        pytest.param(0.1, 0.0, 0.05, 0.1, id="seeds alike"),
        pytest.param(0.0, 0.01, 0.0, 0.5, id="only pairs and seeds"),
    ],
)
def test_intervals_cover_what_they_say(
    song: float, seed: float, interaction: float, pair: float
) -> None:
    """A known law of pairs of songs, of which each has an effect of its own on either side.

    Each number is a standard deviation; half of a pair's own variance is the same for all seeds.
    """
    random, simulations, truth, covered, rejected = np.random.default_rng(7), 600, 0.03, 0, 0
    for _ in range(simulations):
        songs = random.integers(0, SONGS, (PAIRS, 2))
        songs[:, 1] = np.where(songs[:, 0] == songs[:, 1], (songs[:, 1] + 1) % SONGS, songs[:, 1])
        of_song = random.normal(0, song, (1, 2, SONGS))
        of_both = random.normal(0, interaction, (SEEDS, 2, SONGS)) + of_song
        values = (
            truth
            + sum(of_both[:, side, songs[:, side]] for side in (0, 1))
            + random.normal(0, seed, (SEEDS, 1))
            + random.normal(0, pair / np.sqrt(2), (1, PAIRS))
            + random.normal(0, pair / np.sqrt(2), (SEEDS, PAIRS))
        )
        jackknife = Jackknife.of(songs)
        replicates = np.stack([jackknife.means(own) for own in values])
        low, high, p = crossed_interval(values.mean(axis=1), replicates, jackknife)
        covered += int(low <= truth <= high)
        assert bool(low > 0 or high < 0) == bool(p < 0.05)
        rejected += int(
            crossed_interval(values.mean(axis=1) - truth, replicates, jackknife)[2] < 0.05
        )
    assert 0.935 <= covered / simulations <= 0.98
    assert rejected == simulations - covered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("song", "seed", "interaction"), [(0.0, 0.0, 0.3), (0.1, 0.1, 0.0), (0.05, 0.05, 0.3)]
)
def test_the_variance_is_that_of_songs_seeds_and_their_interaction(
    song: float, seed: float, interaction: float
) -> None:
    """On average, against that of the law: what is in two of the three is counted once."""
    random, found = np.random.default_rng(2), []
    for _ in range(400):
        values = (
            random.normal(0, song, (1, SONGS))
            + random.normal(0, seed, (SEEDS, 1))
            + random.normal(0, interaction, (SEEDS, SONGS))
        )
        jackknife = single_songs(SONGS)
        replicates = np.stack([jackknife.means(own) for own in values])
        found.append(crossed_variance(values.mean(axis=1), replicates, jackknife)[0])
    expected = song**2 / SONGS + seed**2 / SEEDS + interaction**2 / (SONGS * SEEDS)
    # Never below either part: where both are of the interaction alone, a little above on average.
    assert np.mean(found) == pytest.approx(expected, rel=0.4 if song == 0 else 0.1)


def test_with_no_variance_of_songs_it_is_the_t_test_of_seeds() -> None:
    by_seed = np.array([0.1, 0.3, 0.2, 0.25])
    replicates = np.repeat(by_seed[:, None], SONGS, axis=1)
    test = stats.ttest_1samp(by_seed, 0)
    jackknife = single_songs(SONGS)
    low, high, p = crossed_interval(by_seed, replicates, jackknife)
    assert (low, high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert p == pytest.approx(test.pvalue)


def test_with_no_variance_of_seeds_it_is_the_t_test_of_songs() -> None:
    songs = np.random.default_rng(0).normal(0.2, 1, 8)
    jackknife = single_songs(8)
    test = stats.ttest_1samp(songs, 0)
    low, high, p = crossed_interval(
        np.repeat(songs.mean(), 3),
        np.repeat(jackknife.means(songs)[None], 3, axis=0),
        jackknife,
    )
    assert (low, high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert p == pytest.approx(test.pvalue)


def test_without_variance_nothing_is_left_to_chance() -> None:
    by_seed = np.array([[0.0, 0.0], [0.5, 0.5]])
    jackknife = single_songs(4)
    low, high, p = crossed_interval(by_seed, np.repeat(by_seed[..., None], 4, axis=2), jackknife)
    assert low.tolist() == high.tolist() == [0, 0.5]
    assert p.tolist() == [1, 0]


def test_holm_worked_by_hand() -> None:
    found = holm(np.array([0.03, np.nan, 0.01, 0.04, 0.6]))
    # 5 of 0.01, 4 of 0.03, 3 of 0.04 (not below the one before), 2 of 0.6 (at most 1).
    np.testing.assert_allclose(found, [0.12, np.nan, 0.05, 0.12, 1.0])


def test_probability_of_improvement_worked_by_hand() -> None:
    ours, rival = np.array([1.0, 3.0]), np.array([0.0, 1.0, 4.0])
    # 1 is above 0 and equals 1; 3 is above 0 and 1.
    assert probability_of_improvement(ours, rival) == pytest.approx((1 + 0.5 + 2) / 6)
    assert probability_of_improvement(rival, ours) == pytest.approx(1 - (1 + 0.5 + 2) / 6)
    assert np.isnan(probability_of_improvement(ours, rival[:0]))


BINS = dict.fromkeys(STATISTICS, 4)
BOUNDS = {"z_distance": (0.5, 5.0), "larger_edit_distance_q90": (1.0, 10.0)}
INPUTS = 60
Tables = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]


def study(seeds: int, songs: int = 12) -> Tables:
    """Metrics, outcomes and influences of ours (good, as far as 3 away), LP (bad) and the identity.

    LP has a judge that is NaN for its last pair, and silent halves.
    """
    random = np.random.default_rng(0)
    points: list[tuple[str, str, float | None, int | None, int, float, float]] = [
        (
            "fusion",
            f"lambda{weight}-style0-seed{seed}",
            weight,
            seed,
            count,
            count + 0.1 / weight,
            0.9,
        )
        for seed in range(seeds)
        for weight in (0.1, 0.3)
        for count in (1, 2)
    ]
    points += [("lp", "lp-eta0.1", None, None, n, float(n), 0.3) for n in (1, 2, 4)]
    points.append(("identity", "identity", None, None, 0, 0.0, 0.2))
    real = _bins(random, 300, 0.9) | {"pair": np.arange(300)}
    real |= dict.fromkeys(("left_song", "right_song"), (np.arange(300) % songs).astype(str))
    rows = [pl.DataFrame(real).with_columns(**_labels("real", "real", None, None, "test", 0))]
    references = {name: _matrix(rows[0], name) for name in STATISTICS}
    metrics, influences = [], []
    names = sorted(map(str, range(songs)))
    for method, trial, weight, seed, count, distance, quality in points:
        for source in (*CHOSEN_ON, *CHOSEN_ON.values()):
            label = _labels(method, trial, weight, seed, source, count)
            judge = random.normal(quality, 0.05, INPUTS)
            columns = _bins(random, INPUTS, quality) | {
                "judge": judge.astype(np.float32),
                "indistinguishable": random.normal(quality, 0.05, INPUTS).astype(np.float32),
            }
            if method == "lp":
                columns["judge"][-1] = np.nan
                columns["mean_pitch_left"][:2] = -1
            number = np.arange(INPUTS)
            columns |= {"pair": number}
            if "prior" not in source:
                columns["left_song"] = (number % songs).astype(str)
                columns["right_song"] = ((number + 1 + number % 3) % songs).astype(str)
            frame = pl.DataFrame(columns).with_columns(**label)
            rows.append(frame)
            influence = random.normal(0, 0.002, songs)
            influences.append(
                pl.DataFrame(
                    {"song": names, "influence": (influence - influence.mean()).astype(np.float32)}
                ).with_columns(**label)
            )
            values = {"z_distance": distance, "larger_edit_distance_q90": 2 * distance}
            values["indistinguishable"] = float(columns["indistinguishable"].mean())
            values["seam"] = 1 - abs(_seams(frame) - _seams(rows[0])).sum() / 2
            values["judge"] = float(np.nanmean(columns["judge"].astype(np.float64)))
            for name in STATISTICS:
                values[name] = float(correlation(_matrix(frame, name), references[name]))
            metrics += [
                pl.DataFrame({"metric": name, "value": value}).with_columns(**label)
                for name, value in values.items()
            ]
    return pl.concat(metrics), pl.concat(rows, how="diagonal"), pl.concat(influences)


def _labels(
    method: str, trial: str, weight: float | None, seed: int | None, source: str, count: int
) -> dict[str, pl.Expr]:
    return {
        "method": pl.lit(method),
        "trial": pl.lit(trial),
        "configuration": pl.lit(trial.partition("-seed")[0]),
        "lambda": pl.lit(weight, pl.Float64),
        "seed": pl.lit(seed, pl.Int64),
        "source": pl.lit(source),
        "iteration": pl.lit(count, pl.Int32),
    }


def _bins(random: np.random.Generator, count: int, same: float) -> dict[str, np.ndarray]:
    """Right halves that are in the left one's bin with that probability."""
    columns = {}
    for name in STATISTICS:
        left, other = random.integers(0, 4, (2, count)).astype(np.int8)
        columns[f"{name}_left"] = left
        columns[f"{name}_right"] = np.where(random.random(count) < same, left, other)
    seams = random.integers(10, 17, count)
    columns["seam_bin"] = np.where(random.random(count) < same, 13, seams).astype(np.int8)
    return columns


def _seams(outcomes: pl.DataFrame) -> np.ndarray:
    return np.bincount(outcomes["seam_bin"].to_numpy(), minlength=27) / outcomes.height


def _matrix(outcomes: pl.DataFrame, name: str) -> np.ndarray:
    left, right = (outcomes[f"{name}_{half}"].to_numpy() for half in ("left", "right"))
    return transition_matrix(left.astype(np.int64), right.astype(np.int64), 4)


def judged(metrics: pl.DataFrame, outcomes: pl.DataFrame, influences: pl.DataFrame) -> pl.DataFrame:
    matched = matched_similarity(metrics, BOUNDS)
    return decide_verdicts(metrics, matched, outcomes.lazy(), influences.lazy(), BINS)


@pytest.mark.slow
def test_verdicts_are_about_the_differences_at_matched_similarity() -> None:
    metrics, outcomes, influences = study(seeds=3)
    found = judged(metrics, outcomes, influences)
    assert found.height == 2 * (len(PANELS) + 2 * (len(COHERENCY) + len(LIKENESS)))
    keys = ["rival", "axis", "source", "metric"]
    sign = pl.when(method=OURS).then(1).otherwise(-1)
    expected = (
        matched_similarity(metrics, BOUNDS)
        .group_by(keys)
        .agg((pl.col("value") * sign).sum() / 10)
        .join(found, on=keys)
    )
    np.testing.assert_allclose(expected["difference"], expected["value"], atol=1e-6)
    assert ((found["low"] <= found["difference"]) & (found["difference"] <= found["high"])).all()
    assert found.filter(rival="lp", metric="judge")["verdict"].to_list() == ["win"] * 4
    assert found.filter(rival="lp", metric="indistinguishable")["verdict"].to_list() == ["win"] * 2
    clusters = found.group_by("source").agg(pl.col("songs").unique()).sort("source")
    assert clusters.rows() == [("prior", [INPUTS]), ("test", [12])]
    assert found["seeds"].unique().to_list() == [3]
    # 3 of LP's 3 candidates, to which the 4 of ours are thinned; all 4 against the identity.
    assert found.filter(rival="lp")["candidates"].unique().to_list() == [3]
    assert found.filter(rival="identity")["candidates"].unique().to_list() == [4]
    for (rival, axis, source), family in found.group_by("rival", "axis", "source"):
        told = f"{rival} {axis} {source}"
        np.testing.assert_allclose(family["p_holm"], holm(family["p"].to_numpy()), err_msg=told)
        both = COHERENCY if axis == "z_distance" else (*COHERENCY, *LIKENESS)
        assert sorted(family["metric"]) == sorted(both), told


@pytest.mark.slow
def test_what_real_pairs_of_other_songs_would_change_widens_the_intervals() -> None:
    metrics, outcomes, influences = study(seeds=3)
    panel = {"rival": "lp", "axis": "larger_edit_distance_q90", "source": "test"}
    found = judged(metrics, outcomes, influences).filter(**panel)
    more = influences.with_columns(
        influence=pl.when(pl.col("method") == "lp")
        .then(40 * pl.col("influence"))
        .otherwise("influence")
    )
    wider = judged(metrics, outcomes, more).filter(**panel)
    for metric in (*LIKENESS, *COHERENCY):
        one, other = (
            each.filter(metric=metric).select(pl.col("high") - pl.col("low")).item()
            for each in (found, wider)
        )
        assert (other > 1.5 * one) if metric == "indistinguishable" else (other == one)


@pytest.mark.slow
def test_pairs_without_a_value_are_counted() -> None:
    metrics, outcomes, influences = study(seeds=2)
    found = judged(metrics, outcomes, influences).filter(
        rival="lp", axis="z_distance", source="test"
    )
    excluded = dict(found.select("metric", "excluded").iter_rows())
    chosen = matched_similarity(metrics, BOUNDS).filter(
        rival="lp", axis="z_distance", source="test", method="lp", configuration="lp-eta0.1"
    )
    points = {name: own["iteration"].n_unique() for (name,), own in chosen.group_by("metric")}
    assert excluded["judge"] == points["judge"] > 0
    assert excluded["mean_pitch"] == 2 * points["mean_pitch"] > 0
    assert excluded["note_count"] == 0


@pytest.mark.slow
def test_what_is_worse_loses() -> None:
    metrics, outcomes, influences = study(seeds=3)
    ours = pl.col("method") == "fusion"
    metrics = metrics.with_columns(
        pl.when(ours & pl.col("metric").is_in(["judge", "indistinguishable"]))
        .then(1 - pl.col("value"))
        .otherwise("value")
        .alias("value")
    )
    outcomes = outcomes.with_columns(
        pl.when(ours).then(1 - pl.col(name)).otherwise(name).alias(name)
        for name in ("judge", "indistinguishable")
    )
    found = judged(metrics, outcomes, influences)
    assert found.filter(metric="judge")["verdict"].to_list() == ["loss"] * 8
    assert found.filter(metric="indistinguishable")["verdict"].to_list() == ["loss"] * 4


@pytest.mark.slow
def test_one_seed_or_one_song_says_nothing_of_others() -> None:
    test = pl.col("source") == "test"
    one_seed, one_song = (
        judged(*study(seeds=1)),
        judged(*study(seeds=2, songs=1)).filter(test),
    )
    for found in (one_seed, one_song):
        assert found["difference"].is_finite().all()
        for column in ("low", "high", "p", "p_holm", "verdict"):
            assert found[column].is_null().all()


@pytest.mark.slow
@pytest.mark.parametrize("far", ["fusion", "lp"])
def test_no_verdict_where_a_side_has_no_point_near_enough(far: str) -> None:
    """The identity stands in for it then, also for a rival with a single point, as LP has here."""
    metrics, outcomes, influences = study(seeds=2)
    metrics = metrics.filter((pl.col("method") != "lp") | (pl.col("iteration") == 4))
    beyond = (pl.col("method") == far) & (pl.col("metric") == "z_distance")
    moved = metrics.with_columns(value=pl.when(beyond).then(9.0).otherwise("value"))
    axis = pl.col("axis") == "z_distance"
    found = judged(moved, outcomes, influences).filter(pl.col("rival") == "lp")
    assert found.filter(axis)["difference"].is_finite().all()
    for column in ("low", "high", "p", "p_holm", "verdict"):
        assert found.filter(axis)[column].is_null().all()
        assert found.filter(~axis)[column].is_not_null().all()


@pytest.mark.slow
def test_verdicts_do_not_depend_on_the_order_of_rows() -> None:
    tables = study(seeds=2)
    shuffled = [frame.sample(fraction=1, shuffle=True, seed=5) for frame in tables]
    assert judged(shuffled[0], shuffled[1], shuffled[2]).equals(judged(*tables))


@pytest.mark.slow
def test_outcomes_must_be_those_of_the_metrics() -> None:
    metrics, outcomes, influences = study(seeds=2)
    with pytest.raises(ValueError, match="lp"):
        judged(metrics, outcomes.filter(pl.col("method") != "lp"), influences)
    cut = outcomes.filter((pl.col("method") != "identity") | (pl.col("pair") > 0))
    with pytest.raises(ValueError, match="pairs"):
        judged(metrics, cut, influences)
