"""A study whose outputs are written down by a model of notes, from trials to bundle."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from cf_core.bundle import Bundle, load_bundle
from cf_core.distance import edit_distance
from cf_core.heard import Heard, find_price
from cf_core.seeding import make_random
from cf_core.training import load_tensors
from evaluation.controls import CONTROLS
from evaluation.frontier import FUSIONS
from study.execution import estimate_work, run_job
from study.page import build, write_page
from study.page.data import collect
from study.page.model import pack_model
from study.prepare import find_corpus, prepare
from study.run import plan
from study.search import list_first_trials
from study.select import assemble, rank_candidates, read_rule, select
from study.specs import PackSpec
from study.store import Store
from tests.conftest import folder
from tests.tiny import EVALUATION, Watch, assert_same_tables, furnish, go, tiny

pytestmark = pytest.mark.slow

HEARD: dict[str, Any] = {
    "fusion": {
        "hidden": 16,
        "steps": 60,
        "batch": 8,
        "d_steps": 1,
        "scheme": "heard",
        "price": 3.0,
        "drafts": 2,
        "imbalance": 0.25,
        "lead": 0.4,
    },
    "search": {"lambda": [0.1, "conditional"], "style_dim": [2], "seeds": [0]},
    "selection": {"maximise": "indistinguishable"},
    "evaluation": EVALUATION,
}


@pytest.fixture(scope="module")
def finished(melodies: Path, shared: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store, _ = go(furnish(tiny(melodies, tmp_path_factory.mktemp("heard"), **HEARD), shared))
    return store


def test_the_plan_says_that_outputs_are_written(melodies: Path, tmp_path: Path) -> None:
    writer = "writer: two models of notes, 30 steps each"
    outputs = (
        "outputs: as models of notes hear and write them, 2 drafts, price 3 at λ 1, imbalance"
        " 0.25; trials of seed 0 also as on the poster and, where G takes λ, with a λ for each pair"
        " at 2, 6 edits"
    )

    def say(**changes: Any) -> list[str]:
        lines = plan(tiny(melodies, tmp_path, **changes)).splitlines()
        return [line for line in lines if line.startswith(("writer: ", "outputs: "))]

    assert say(**HEARD) == [writer, outputs]
    assert say() == [writer]  # for the rival `rewriting`
    assert say(evaluation=EVALUATION) == []


def test_recorded_outputs_are_those_of_the_scheme(finished: Store, melodies: Path) -> None:
    config = tiny(melodies, folder(finished).parent, **HEARD)
    bench = prepare(config, find_corpus(config, Watch()), finished, Watch())
    assert bench.writer is not None
    bundle = load_bundle(finished.root / "bundle")
    (source,) = (one for one in bench.sources if one.name == "validation")
    trial = bundle.record["trial"]
    lambda_ = bundle.record["lambda"]
    style = torch.rand(len(source.songs), 2, generator=make_random(0, "styles", "validation"))
    how = Heard(bench.evaluator.core, bench.writer, 3.0, 2, 0.25, 0.4)
    chance = how.draw_chance(len(style), make_random(0, "writing", "validation"))
    lambdas = torch.full((len(style),), lambda_)
    outputs = how.fuse(bundle.generator, source.inputs, style, [1, 2], lambdas, chance)
    left, right = dict(outputs)[2]
    rows = (
        finished.latents.filter(trial=trial, source="validation", iteration=2)
        .filter(pl.col("lambda") == lambda_)
        .sort("pair")
        .collect()
    )
    for name, half in (("z_left", left), ("z_right", right)):
        np.testing.assert_allclose(np.stack(rows[name].to_list()), half.numpy(), atol=1e-6)


def test_the_scheme_of_the_poster_is_a_method_beside_it(finished: Store, melodies: Path) -> None:
    """Its values and latents are those of a study in that scheme: G is trained alike in both."""
    plain = tiny(melodies, folder(finished).parent / "plain", **HEARD)
    plain = plain.model_copy(update={"fusion": replace(plain.fusion, scheme="poster")})
    store, _ = go(furnish(plain, finished))
    keys = ["trial", "lambda", "source", "iteration", "metric"]
    of_set = pl.col("metric") != "style_diversity"
    ours, renamed = pl.col("method").is_in(FUSIONS), pl.col("trial").str.strip_prefix("poster-")
    expected = store.metrics.filter(ours, of_set)
    found = finished.metrics.filter(method="poster").with_columns(renamed)
    columns = [*keys, "value", "low", "high", "n"]
    assert_frame_equal(
        found.select(columns).sort(keys).collect(), expected.select(columns).sort(keys).collect()
    )
    keys = ["trial", "lambda", "source", "iteration", "pair"]
    latents = finished.latents.filter(method="poster").with_columns(renamed)
    assert_frame_equal(
        latents.drop("method", "configuration").sort(keys).collect(),
        store.latents.filter(ours).drop("method", "configuration").sort(keys).collect(),
    )
    assert "poster" in finished.verdicts.select("rival").collect()["rival"].to_list()


def test_by_edits_each_pair_has_the_output_that_suits_it(finished: Store, melodies: Path) -> None:
    """Worked out from the latents of the same trial: of its pairs, λ by λ."""
    config = tiny(melodies, folder(finished).parent, **HEARD)
    bench = prepare(config, find_corpus(config, Watch()), finished, Watch())
    assert bench.writer is not None
    heard = Heard.of(bench.evaluator.core, bench.writer, config.fusion)
    latents = finished.latents.filter(source="test").collect()
    last = latents.filter(pl.col("iteration") == max(config.evaluation.iterations))
    read = {
        lambda_: rows.sort("pair")
        for (lambda_,), rows in last.filter(method="conditional").group_by("lambda")
    }

    def decode(rows: pl.DataFrame, ending: str) -> np.ndarray:
        halves = (np.stack(rows[f"z_{half}{ending}"].to_list()) for half in ("left", "right"))
        core = bench.evaluator.core
        tokens = [
            core.decode_tokens(torch.tensor(half).float()).astype(np.int64) for half in halves
        ]
        return np.stack(tokens, axis=1)

    tokens = {lambda_: decode(rows, "") for lambda_, rows in read.items()}
    before = decode(next(iter(read.values())), "_in")
    found = latents.filter(method="by_edits")
    assert found["iteration"].unique().sort().to_list() == [2, 6]
    assert found["trial"].unique().to_list() == ["by_edits-conditional-style2-seed0"]
    taken = set()
    for row in found.iter_rows(named=True):
        pair, asked, best = row["pair"], row["iteration"], (-999, -np.inf, -1.0)
        for lambda_ in sorted(read, reverse=True):
            old, new = before[pair], tokens[lambda_][pair]
            gap = abs(int(edit_distance(old, new).sum()) - asked)
            score = float(heard.rate(torch.tensor(new[None]), torch.tensor(old[None])))
            missed = -gap if gap > 0.15 * asked else 0
            best = max(best, (missed, score, lambda_), key=lambda one: one[:2])
        expected = read[best[2]].row(pair, named=True)
        assert row["z_left"] == expected["z_left"]
        assert row["z_right"] == expected["z_right"]
        taken.add(best[2])
    assert len(taken) > 1
    assert finished.metrics.filter(method="by_edits", metric="edit_distance").collect().height == 8


def test_every_point_of_the_page_has_notes(finished: Store) -> None:
    content = collect(finished, 2)
    methods = [point["method"] for point in content["points"]]
    expected = {"fusion", "conditional", "by_edits", "poster", "lp", "identity", *CONTROLS}
    assert set(methods) == expected
    counts = {one["name"]: one["counts"] for one in content["methods"] if one["kind"] != "trick"}
    assert counts.pop("by_edits") == "edits asked for"
    assert set(counts.values()) == {"iterations"}
    missing = {
        (source, method)
        for source, notes in content["notes"].items()
        for method, own in zip(methods, notes, strict=True)
        if own is None
    }
    assert missing == {("prior", "same_song")}  # samples of the prior are of no song


def test_reports_count_what_is_heard_and_what_is_measured_twice(
    finished: Store, melodies: Path, tmp_path: Path
) -> None:
    config = tiny(melodies, folder(finished).parent, **HEARD)
    bench = prepare(config, find_corpus(config, Watch()), finished, Watch())
    store = Store(tmp_path / "tiny")
    store.claim(finished.record["identity"], finished.record["fingerprint"], "tiny")
    (trial,) = (one for one in list_first_trials(config) if one.lambda_ == 0.1)
    job = PackSpec((trial,), (trial,))
    done = [report.done for report in run_job(job, bench, store, {trial.id: 1})]
    assert done == sorted(done)
    assert done[-1] == estimate_work(job, bench)


@pytest.mark.parametrize("method", ["fusion", "conditional"])
def test_the_bundle_writes_at_the_price_of_its_trial(
    finished: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    rule = read_rule(finished)
    ranked = rank_candidates(finished, rule).filter(method=method)
    monkeypatch.setattr("study.select.rank_candidates", lambda *_: ranked)
    chosen = select(finished, rule, tmp_path / "chosen")
    bundle = load_bundle(chosen.bundle)
    assert bundle.heard is not None
    assert (bundle.heard.drafts, bundle.heard.imbalance, bundle.heard.lead) == (2, 0.25, 0.4)
    assert bundle.generator.conditional is (method == "conditional")
    # A conditional map's λ comes with each call, and with it the rest of the price.
    expected = 3.0 if method == "conditional" else find_price(3.0, 0.1)
    assert bundle.heard.price == pytest.approx(expected)
    for name, network in (
        ("forwards", bundle.heard.writer.forwards),
        ("backwards", bundle.heard.writer.backwards),
    ):
        weights = load_tensors(finished.root / "classifiers" / f"writer_{name}.safetensors")
        assert weights is not None
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


def test_the_page_holds_the_best_trial_of_any_lambda_beside_a_selected_one_of_one_lambda(
    finished: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = read_rule(finished)
    one, anyone = (
        assemble(finished, rule, rank_candidates(finished, rule, [method]))
        for method in ("fusion", "conditional")
    )
    both = pack_model(one, anyone)
    assert [each["trial"] for each in both["maps"]] == [
        "lambda0.1-style2-seed0",
        "conditional-style2-seed0",
    ]
    assert both["maps"][1]["lambdaRange"] == [0.001, 10.0]
    building = Mock(wraps=build)
    monkeypatch.setattr("study.page.build", building)
    monkeypatch.setattr("study.page.replacing", lambda _: nullcontext(tmp_path / "report.html"))

    def write(selected: Bundle) -> list[dict[str, Any]]:
        monkeypatch.setattr("study.page.load_bundle", lambda _: selected)
        building.reset_mock()
        write_page(finished)
        return [call.args[1] for call in building.call_args_list]

    assert write(anyone) == [pack_model(anyone)]
    assert write(one) == [both]
    size = (tmp_path / "report.html").stat().st_size
    monkeypatch.setattr("study.page.MAX_BYTES", size - 1)
    assert write(one) == [both, pack_model(one)]


def test_written_studies_end_alike_however_often_they_are_stopped(
    finished: Store, melodies: Path, shared: Store, tmp_path: Path
) -> None:
    config = furnish(tiny(melodies, tmp_path, **HEARD), shared)
    with pytest.raises(KeyboardInterrupt):
        go(config, ": finished (1 of")
    store, _ = go(config)
    assert_same_tables(store, finished)
