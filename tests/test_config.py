"""Configurations. This file is long: every key is tried alone."""

import json
import re
import textwrap
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cf_core.errors import CoreGateError, UserError
from evaluation.rivals.lp import LP
from study.config import StudyConfig, list_builtin, load_config, load_configs
from study.config.reference import write_reference
from study.config.schema import CoreGate, CorpusSettings
from study.parameters import SETTINGS
from study.specs import Configuration, TrialSpec
from study.store import find_differences

ROOT = Path(__file__).parent.parent
HASH = "0" * 64


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def writer(text: str) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return writer


def leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """All dotted keys of a study's dump with their values."""
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    return [
        leaf
        for key, below in value.items()
        for leaf in leaves(below, f"{prefix}.{key}" if prefix else key)
    ]


DEFAULTS: list[tuple[str, Any]] = leaves(StudyConfig(name="s").model_dump(mode="json"))
OUTSIDE = ("name", "corpus.", "core_gate.", "selection.", "execution.", "search.region")


def other(key: str, value: Any) -> Any:
    """A right value of the same key that is not the one given."""
    special = {
        "melody.meters": ["3/4"],
        "melody.subdivisions": [2],
        "selection.where": ["judge > 0.5"],
        "evaluation.matched.z_distance": [0.2, 30.0],
        "evaluation.matched.larger_edit_distance_q90": [2.0, 30.0],
        "evaluation.matched.larger_z_distance_q90": [0.2, 30.0],
        "evaluation.matched.edit_distance": [0.6, 20.0],
        "fusion.gated": False,
        "fusion.lambda_range": [0.0001, 100.0],
        "search.lambda": [0.5],
        "search.method": "random",
        **{f"search.{name}": [9 if one.kind == "whole" else 0.5] for name, one in SETTINGS.items()},
        "search.maximise": "judge",
        "search.minimise": "z_distance",
        "search.region": ["larger_edit_distance <= 12", "indistinguishable > 0.2"],
        "search.iteration": 2,
        "search.objective_lambda": 0.1,
        "search.constraints": ["novelty > 1"],
        "selection.maximise": "coverage",
        "search.first": [{"lambda": 0.5}],
        "execution.ship_code": True,
        "execution.tf32": True,
        "execution.resources.networks.gpu": 0.5,
        "execution.resources.trials.gpu": 0.5,
        "execution.resources.rivals.gpu": 0.5,
        "execution.trial_seconds": 9.0,
        "execution.memory_gb": 9.0,
        "evaluation.lambda": [0.5],
        "evaluation.rivals": ["slerp", "lp"],
        "evaluation.lp.scaled": True,
        "execution.pack": 3,
        "evaluation.latents": "none",
        "fusion.scheme": "poster",
    }
    if key in special:
        return special[key]
    if isinstance(value, list):
        return [*value, 5000]
    if isinstance(value, float):
        return value / 2
    return value + 1 if isinstance(value, int) else "another"


# --- identity ------------------------------------------------------------------------------------


ALONE = [(key, value) for key, value in DEFAULTS if key not in ("search.when", "search.warm_start")]
"""Keys that can be set whatever the others are."""


@pytest.mark.parametrize(("key", "value"), ALONE, ids=[key for key, _ in ALONE])
def test_fingerprint_registers_what_changes_results_and_nothing_else(
    key: str, value: Any, write: Any
) -> None:
    path = write("name: s\nsearch: {method: tpe}")
    before = load_config(path)
    after = load_config(path, [f"{key}={json.dumps(other(key, value))}"])
    assert before != after
    names = [
        line.split(":")[0] for line in find_differences(before.identity(""), after.identity(""))
    ]
    if key.startswith(OUTSIDE):
        assert names == []
        assert before.fingerprint(HASH) == after.fingerprint(HASH)
    else:
        assert names == [key]
        assert before.fingerprint(HASH) != after.fingerprint(HASH)


def test_fingerprint_registers_when_parameters_apply(write: Any) -> None:
    path = write("name: s")
    one, two = (
        load_config(path, ["search.hidden=[16]", f"search.when={{hidden: {when}}}"]).fingerprint(
            HASH
        )
        for when in ("style_dim > 0", "style_dim > 2")
    )
    assert one != two


def test_fingerprint_registers_an_earlier_study_by_its_own(tmp_path: Path) -> None:
    prints = []
    for name, content in (("one", "f"), ("two", "f"), ("three", "g")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text(json.dumps({"fingerprint": content}))
        search = {"method": "tpe", "warm_start": str(tmp_path / name)}
        study = StudyConfig.model_validate({"name": "s", "search": search})
        prints.append(study.fingerprint(HASH))
    assert prints[0] == prints[1] != prints[2]
    search = {"method": "tpe", "warm_start": str(tmp_path)}
    study = StudyConfig.model_validate({"name": "s", "search": search})
    with pytest.raises(UserError, match=r"search\.warm_start: .*is not the folder of a study"):
        study.fingerprint(HASH)


def test_fingerprint_registers_the_corpus_by_content() -> None:
    study = StudyConfig(name="s")
    assert study.fingerprint("a") != study.fingerprint("b")


def test_fingerprint_ignores_order_of_keys_and_of_grids(write: Any) -> None:
    one = load_config(
        write("name: s\nseed: 1\ncore: {steps: 9, batch: 7}\nsearch: {lambda: [3, 0.5]}")
    )
    two = load_config(
        write("search: {lambda: [0.5, 3.0]}\ncore: {batch: 7, steps: 9}\nseed: 1\nname: s")
    )
    assert one.fingerprint(HASH) == two.fingerprint(HASH)
    assert list(one.identity(HASH)) == list(two.identity(HASH))


def test_fingerprint_is_that_of_canonical_json() -> None:
    """A literal re-derivation: it must not come to depend on the library's ways of dumping."""
    study = StudyConfig(name="s")
    nested: dict[str, Any] = {"corpus": HASH}
    for key, value in DEFAULTS:
        if not key.startswith(OUTSIDE):
            *sections, last = key.split(".")
            level = nested
            for section in sections:
                level = level.setdefault(section, {})
            level[last] = value
    text = json.dumps(nested, sort_keys=True)
    assert study.fingerprint(HASH) == sha256(text.encode()).hexdigest()


# --- trials --------------------------------------------------------------------------------------


SPECS = st.builds(
    TrialSpec,
    configuration=st.builds(
        Configuration,
        lambda_=st.none() | st.floats(0, 1e300, allow_subnormal=True).map(abs),
        style_dim=st.integers(0, 10_000),
        changes=st.sampled_from([(), (("hidden", 16),), (("hidden", 1), ("steps", 6))]),
    ),
    seed=st.integers(0, 2**32 - 1),
)


@given(SPECS, SPECS)
def test_trial_ids_differ_and_are_plain_file_names(one: TrialSpec, two: TrialSpec) -> None:
    assert (one.id == two.id) == (one == two)
    assert re.fullmatch(r"[\w.+-]+", one.id)


def test_near_lambdas_have_different_ids() -> None:
    one = Configuration(0.1234567, 0)
    assert one.id != replace(one, lambda_=0.1234568).id


# --- reading -------------------------------------------------------------------------------------


def test_sections_keep_defaults_of_what_is_not_said(write: Any) -> None:
    study = load_config(write("name: s\ncore: {latent_dim: 16}"))
    assert study.core.latent_dim == 16
    assert study.core.hidden == StudyConfig(name="s").core.hidden


def test_numbers_and_words_are_those_of_yaml_1_2(write: Any) -> None:
    study = load_config(write("name: on\ncore: {learning_rate: 1e-3, beta: 1}"))
    assert (study.name, study.core.learning_rate, study.core.beta) == ("on", 0.001, 1.0)


def test_overrides_reach_one_section_of_two_that_share_an_alias(write: Any) -> None:
    path = write("name: s\nselection_judge: &judge {steps: 5}\nreporting_judge: *judge")
    study = load_config(
        path, ["selection_judge.steps=6", "search.lambda=[1, 0.1]", "corpus.include=null"]
    )
    assert (study.selection_judge.steps, study.reporting_judge.steps) == (6, 5)
    assert study.search.lambda_ == (0.1, 1.0)


def test_a_later_override_wins(write: Any) -> None:
    assert load_config(write("name: s"), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("name", list_builtin())
def test_builtin_studies_load_by_name_and_are_named_as_their_file(name: str) -> None:
    studies = load_configs(name)
    if len(studies) == 1:
        assert studies == [load_config(name)]
        assert studies[0].name == name
    else:
        assert {study.execution.results for study in studies} == {f"results/{name}"}


CORPORA = """
    name: both
    seed: 3
    evaluation: {pairs: 64, lp: {step_sizes: [0.5]}}
    execution: {results: here}
    corpora:
      jigs: {corpus: {source: jigs.zip}, evaluation: {lp: {iterations: [7]}}}
      reels: {corpus: {source: reels.zip}, seed: 4}
"""


def test_corpora_differ_from_the_whole_in_what_they_say(write: Any) -> None:
    jigs, reels = load_configs(write(CORPORA), ["evaluation.pairs=32", "name=mine"])
    assert (jigs.name, reels.name) == ("jigs", "reels")
    assert (jigs.corpus.source, reels.corpus.source) == ("jigs.zip", "reels.zip")
    assert jigs.execution.results == reels.execution.results == "here/mine"
    assert (jigs.seed, reels.seed) == (3, 4)
    assert jigs.evaluation.pairs == reels.evaluation.pairs == 32
    assert jigs.evaluation.rival("lp") == LP(step_sizes=(0.5,), iterations=(7,))
    assert reels.evaluation.rival("lp") == LP(step_sizes=(0.5,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: s\ncorpora: 3", r"corpora: must be a mapping of names to settings"),
        ("name: s\ncorpora: {}", r"corpora: must be a mapping of names to settings"),
        ("name: s\ncorpora: {a: {seeed: 1}}", r"corpora\.a: unknown key seeed; did you mean seed"),
        ("name: s\ncorpora: {a/b: {}}", r"corpora\.a/b: name: must match pattern"),
        ("name: s\ncorpora: {a: 3}", r"corpora\.a: must be a mapping, got 3"),
    ],
)
def test_corpora_that_make_no_sense(write: Any, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_configs(write(text))


def test_one_study_is_not_several(write: Any) -> None:
    with pytest.raises(UserError, match=r"several corpora \(jigs, reels\)"):
        load_config(write(CORPORA))


def test_rivals_have_names_of_their_own(write: Any) -> None:
    study = load_config(
        write("""
        name: s
        evaluation:
          rivals: [slerp, lp, gradient, retrieval]
          lp: {step_sizes: [0.4, 0.1]}
          gradient: {lambda: [0.5]}
        """)
    )
    assert [setting.id for setting in study.evaluation.settings()] == [
        "slerp", "slerp-straight", "lp-eta0.1", "lp-eta0.4", "gradient-lambda0.5", "retrieval",
    ]  # fmt: skip


def test_corpus_path_expands_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CF_DATA", "/data")
    monkeypatch.setenv("HOME", "/home/ada")
    source = CorpusSettings(source="$CF_DATA/tunes.zip")
    assert source.path == Path("/data/tunes.zip")
    assert CorpusSettings(source="~/tunes").path == Path("/home/ada/tunes")
    assert CorpusSettings().path is None
    monkeypatch.delenv("CF_DATA")
    with pytest.raises(UserError, match=r"\$CF_DATA is not set"):
        _ = source.path


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: s\ncore: {hiden: 3}", "unknown key core.hiden; did you mean core.hidden?"),
        ("name: s\nserach: {}", "unknown key serach; did you mean search?"),
        ("name: s\nlambda: [1]", "unknown key lambda; did you mean search.lambda?"),
        ("name: s\nevaluation: {lp: {step_size: [1]}}", "did you mean evaluation.lp.step_sizes?"),
        ("name: s\nxyzzy: 1", "unknown key xyzzy"),
        ("seed: 1", "name is required"),
        ("name: ../s", "name: must match pattern '^[A-Za-z0-9_-]{1,100}$', got \"../s\""),
        ("name: s\nseed: '1'", 'seed: must be a valid integer, got "1"'),
        ("name: s\nseed: true", "seed: must be a valid integer, got true"),
        ("name: s\nseed: -1", "seed: must be greater than or equal to 0, got -1"),
        ("name: s\ncore: {beta: .nan}", 'core.beta: must be a valid number, got ".nan"'),
        ("name: s\ncore: {steps: 2.0}", "core.steps: must be a valid integer, got 2.0"),
        ("name: s\ncore:", "core: must be a mapping, got null"),
        ("name: s\nmelody: {lowest: 90, highest: 60}", "melody: lowest, highest: must satisfy"),
        ("name: s\nmelody: {meters: 4/4}", 'melody.meters: must be a valid list, got "4/4"'),
        (
            "name: s\nsearch: {lambda: [0.1, x]}",
            'lambda.1: must be a number of at least 0, or conditional, got "x"',
        ),
        ("name: s\nsearch: {lambda: [1, 1.0]}", "search.lambda: no value may be given twice"),
        ("name: s\nsearch: {lambda: [conditional, conditional]}", "search.lambda: no value may be"),
        ("name: s\nsearch: {seeds: []}", "search.seeds: "),
        ("name: s\nevaluation: {iterations: [0, 1]}", "evaluation.iterations.0: must be greater"),
        ("name: s\nevaluation: {pairs: 0}", "evaluation.pairs: must be greater"),
        ("name: s\nevaluation: {matched: {z_distance: [2, 1]}}", "first number must be below"),
        ("name: s\nexecution: {workers: 0}", "execution.workers: must be greater"),
        (
            "name: s\nexecution: {pack: 0}",
            "pack: must be a whole number of at least 1, or auto, got 0",
        ),
        ("name: s\nfusion: {lambda_range: [0.01, 1]}", "evaluation.lambda: conditional trials are"),
        ("name: s\nfusion: {lambda_range: [1, 0.1]}", "must be two ascending numbers above 0"),
        ("name: s\ncore_gate: {token_accuracy: 1.5}", "core_gate.token_accuracy: must be less"),
        ("name: s\nsearch: {lambda: {low: 0.1, high: 1}}", "search.lambda: a grid needs a list"),
        ("name: s\nsearch: {first: [{lambda: 0.1}]}", "search.first: has no meaning where"),
        (
            "name: s\nsearch: {method: tpe, lambda: {low: 1, high: 0.1}}",
            "search.lambda: low must be below high",
        ),
        (
            "name: s\nsearch: {when: {hidden: style_dim > 0}}",
            "search.when.hidden: hidden is not searched",
        ),
        (
            "name: s\nsearch: {steps: [9], when: {steps: style_weight > 0}}",
            "must name a parameter before steps",
        ),
        ("name: s\nsearch: {rungs: [9, 3]}", "search.rungs: must ascend"),
        ("name: s\nsearch: {rungs: [8000]}", "search.rungs: must be below the 8000 steps"),
        ("name: s\nsearch: {steps: [50], rungs: [60]}", "search.rungs: must be below the 50"),
        ("name: s\nsearch: {iteration: 3}", "search.iteration: must be one of"),
        ("name: s\nsearch: {objective_lambda: 0.2}", "search.objective_lambda: must be one of"),
        ("name: s\nsearch: {minimise: judge}", "search.minimise: judge: lower is not better"),
        ("name: s\nsearch: {maximise: z_distance}", "search.maximise: z_distance: lower is better"),
        (
            "name: s\nsearch: {region: [edit_distance <= 12]}",
            'no bound of an objective; there may be one "indistinguishable >= …" and one "larger_',
        ),
        (
            "name: s\nsearch: {minimise: edit_distance, region: [edit_distance > 12]}",
            'search.region: "edit_distance > 12" is no bound',
        ),
        (
            "name: s\nsearch: {region: [larger_edit_distance < 1, larger_edit_distance < 2]}",
            'search.region: "larger_edit_distance < 2" is no bound',
        ),
        (
            "name: s\nsearch: {constraints: [noveltie >= 1]}",
            "search.constraints.0: noveltie: no such name; did you mean novelty?",
        ),
        (
            "name: s\nselection: {where: [cheap]}",
            '"cheap": a condition must read like "z_distance <= 3.0"',
        ),
        ("name: s\nseed: x\nexecution: {workers: 0}", "(and 1 more)"),
        ("name: s\ncore: {steps: 1\nseed: 2", "is not YAML at line"),
        ("name: s\nseed: 1\nseed: 2", "is not YAML at line 3: seed is given twice"),
        ("name: s\nseed: !!python/object:os.system x", "is not YAML at line 2"),
        ("- name", 'the file: must be a mapping, got ["name"]'),
        ("", "the file: must be a mapping, got null"),
        ("name: s\ncore: &core {hidden: *core}", "holds what no setting can be"),
        ("name: !!binary aGk=", "holds what no setting can be"),
        ("name: s\ncore: {beta: 1e999}", "holds what no setting can be"),
        ("name: \x07", "is not YAML"),
    ],
)
def test_bad_files_are_told_in_one_line(text: str, message: str, write: Any) -> None:
    path = write(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    told = str(caught.value)
    assert message in told
    assert str(path) in told
    assert "\n" not in told
    assert len(told) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", 'override "seed": write dotted.key=value'),
        (" =3", 'override " =3": write dotted.key=value'),
        ("search.lambda=[]", "search.lambda: must have at least 1 item, got []"),
        ("core.hiden=3", "unknown key core.hiden; did you mean core.hidden?"),
        ("seed.x=1", "seed: must be a valid integer, got a mapping"),
        ("seed=[1", 'override "seed=[1": is not YAML'),
    ],
)
def test_bad_overrides_are_told(override: str, message: str, write: Any) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(write("name: s"), [override])


def test_unknown_study_lists_the_builtin_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"those are: .*quickstart"):
        load_config("quickstrat")
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\xfe\xfa")
    with pytest.raises(UserError, match="is not YAML"):
        load_config(tmp_path / "latin.yaml")


# --- reference -----------------------------------------------------------------------------------


def test_reference_names_every_key_with_its_default() -> None:
    text = write_reference()
    for key, value in DEFAULTS:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{key}` |")]
        *_, default, meaning = [cell.strip() for cell in row.strip("|").split("|")]
        assert meaning.endswith(".")
        assert default == ("required" if key == "name" else f"`{json.dumps(value)}`")


def test_written_reference_is_the_generated_one() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == write_reference(), "run: python -m study.config > docs/configuration.md"


def test_the_gate_of_the_core_holds_in_each_meter() -> None:
    gate = CoreGate()
    good = dict.fromkeys(("token_accuracy", "onset_pitch_recall", "exact_segments"), 1.0)
    report = {"validation": good, "prior": {"valid_prior": 1.0}, "meters": {"4/4": good}}
    gate.check(report)
    gate.check(report | {"meters": {}})
    rare = {"9/8": good | {"exact_segments": 0.59}}
    with pytest.raises(
        CoreGateError, match=r"exact_segments 0\.590 on validation songs in 9/8, 0\.010"
    ):
        gate.check(report | {"meters": {"4/4": good, **rare}})
    with pytest.raises(CoreGateError, match=r"valid_prior 0\.970 on prior samples"):
        gate.check(report | {"prior": {"valid_prior": 0.97}})
