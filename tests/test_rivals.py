"""What every rival promises, and rivals of the user's own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cf_core.errors import ConfigError, RecordsError
from cf_core.losses import Pair
from cf_core.melody import MelodyFormat
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.vae import MelodyVAE, VAESettings
from cf_core.writer import Writer, WriterSettings
from evaluation.classifier import ClassifierSettings, SearchClassifier
from evaluation.evaluator import Evaluator
from evaluation.figures.canvas import look
from evaluation.judge import Judge
from evaluation.rivals import Batch, Look, Rival, Setting, Tools, find_rival, list_rivals
from evaluation.transforms import Step
from study.config import StudyConfig, load_config
from study.nodes import code
from study.tables import TABLES

Z, ROWS = 4, 5
RIVALS = pytest.mark.parametrize("kind", list_rivals().values(), ids=list_rivals())


@dataclass(frozen=True)
class Shift(Rival):
    """Both halves moved by the same amount in all dimensions."""

    name = "shift"
    look = Look("shift", "#332288", "1")

    amounts: tuple[float, ...] = (0.5, 0.1)
    """How far a step goes."""
    iterations: tuple[int, ...] = (1, 2)
    """Numbers of steps."""

    def settings(self) -> list[Setting]:
        return [Setting(self.name, (("amount", amount),)) for amount in self.amounts]

    def steps(self, batch: Batch, /) -> Iterator[Step]:
        for count in batch.counts:
            by = count * batch.own["amount"][:, None]
            yield Step(count, (batch.pair[0] + by, batch.pair[1] + by))


def pairs(rows: int, name: str) -> Pair:
    left, right = torch.randn(2, rows, Z, generator=make_random(0, name))
    return left, right


def tools() -> Tools:
    classifier = SearchClassifier(Z, ClassifierSettings(hidden=8))
    initialise(classifier, make_random(0, "classifier"))
    core = MelodyVAE(MelodyFormat(), VAESettings(latent_dim=Z, hidden=8, embedding=4))
    initialise(core, make_random(0, "core"))
    writer = Writer(core.form, WriterSettings(hidden=8))
    initialise(writer, make_random(0, "writer"))
    return Tools(
        classifier, torch.full((Z,), 0.5), pairs(30, "bank"), core, np.zeros(30, int), writer
    )


TOOLS = tools()


def run(rival: Rival, inputs: Pair, counts: Sequence[int]) -> list[Step]:
    settings = rival.settings()
    joined = tuple(half.repeat(len(settings), 1) for half in inputs)
    transform = rival.transform(settings, np.zeros(len(inputs[0]), int), TOOLS)
    return list(transform((joined[0], joined[1]), counts, make_random(0, "search")))


def outputs(steps: list[Step]) -> list[Tensor]:
    return [torch.cat(step.outputs, 1) for step in steps]


# ---- the contract of all -------------------------------------------------------------------------


@RIVALS
def test_outputs_have_the_shape_of_inputs_at_each_count(kind: type[Rival]) -> None:
    rival, inputs = kind(), pairs(ROWS, "inputs")
    counts = sorted({1, 2, min(7, max(rival.iterations))})
    steps = run(rival, inputs, counts)
    assert [step.iteration for step in steps] == counts
    for step in steps:
        for half in step.outputs:
            assert half.shape == (ROWS * len(rival.settings()), Z)
            assert half.isfinite().all()


@RIVALS
def test_random_draws_come_from_the_generator_alone(kind: type[Rival]) -> None:
    rival, inputs = kind(), pairs(ROWS, "inputs")
    torch.manual_seed(1)
    once = outputs(run(rival, inputs, (1, 3)))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = outputs(run(rival, inputs, (1, 3)))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@RIVALS
def test_no_row_looks_at_another(kind: type[Rival]) -> None:
    rival, inputs = kind(), pairs(ROWS, "inputs")
    changed = tuple(half.clone() for half in inputs)
    changed[0][2], changed[1][3] = torch.nan, 9.0
    once, other = (
        outputs(run(rival, pair, (2,)))[0] for pair in (inputs, (changed[0], changed[1]))
    )
    same = [row for row in range(len(once)) if row % ROWS not in (2, 3)]
    torch.testing.assert_close(once[same], other[same])


@RIVALS
def test_inputs_are_left_untouched(kind: type[Rival]) -> None:
    inputs, kept = pairs(ROWS, "inputs"), pairs(ROWS, "inputs")
    run(kind(), inputs, (1, 2))
    assert torch.equal(inputs[0], kept[0])
    assert torch.equal(inputs[1], kept[1])


@RIVALS
def test_settings_are_told_apart_and_fit_the_tables(kind: type[Rival]) -> None:
    settings = kind().settings()
    assert len({setting.id for setting in settings}) == len(settings) > 0
    assert all(setting.method == kind.name for setting in settings)
    assert look(kind.name).label == kind.look.label


def test_no_rival_is_handed_a_judge() -> None:
    assert not any("udge" in str(field.type) for field in fields(Tools))
    held = vars(TOOLS).values()
    assert not any(isinstance(value, Judge | Evaluator) for value in held)


def test_options_that_make_no_sense_are_named() -> None:
    for options, problem in (
        ({"amounts": ()}, "amounts: must have at least one value"),
        ({"amounts": (0.1, 0.1)}, "amounts: no value may be given twice"),
        ({"amounts": (0.1, -1.0)}, "amounts: all values must be finite and above 0"),
        ({"iterations": (0,)}, "iterations: all values must be finite and above 0"),
    ):
        with pytest.raises(ValueError, match=problem):
            Shift(**options)
    assert Shift().amounts == (0.1, 0.5)


# ---- rivals of the user's own --------------------------------------------------------------------


OWN = "tests.test_rivals:Shift"


def config(**evaluation: Any) -> StudyConfig:
    return StudyConfig.model_validate({"name": "s", "evaluation": evaluation})


def test_a_study_takes_a_rival_by_its_place_with_options() -> None:
    plan = config(rivals=["lp", OWN], shift={"amounts": [0.3]}).evaluation
    assert plan.rival(OWN) == plan.rival("shift") == Shift(amounts=(0.3,))
    assert [setting.id for setting in plan.settings()][-1] == "shift-amount0.3"
    assert config(rivals=[OWN]).evaluation.rival(OWN) == Shift()


def test_its_options_and_its_source_are_part_of_the_identity() -> None:
    one, two = (config(rivals=[OWN], shift={"amounts": [x]}) for x in (0.3, 0.4))
    assert one.fingerprint("c") != two.fingerprint("c")
    identity = one.identity("c")
    assert identity["evaluation"]["shift"] == {"amounts": [0.3], "iterations": [1, 2]}
    assert identity["code"].keys() == {OWN}
    assert len(identity["code"][OWN]) == 64
    assert "code" not in config(rivals=["lp"]).identity("c")


def test_another_source_is_another_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = Path(__file__).read_text()
    (tmp_path / "mine.py").write_text(source)
    before = config(rivals=["mine:Shift"]).identity("c")
    assert code(("mine:Shift",))["mine:Shift"] == before["code"]["mine:Shift"][:12]
    (tmp_path / "mine.py").write_text(source + "# changed\n")
    assert config(rivals=["mine:Shift"]).identity("c") != before


def test_records_are_read_where_its_code_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = config(rivals=["lp", OWN], shift={"amounts": [0.3]}).identity("c")
    record = {"name": "s", "identity": identity, "selection": {"maximise": "coverage"}}
    restored = StudyConfig.restored(record)
    assert restored.evaluation.rival(OWN) == Shift(amounts=(0.3,))
    assert restored.selection.maximise == "coverage"
    monkeypatch.setattr("evaluation.rivals.import_module", _no_such_module)
    far = StudyConfig.restored(record)
    assert {one.method for one in far.evaluation.settings(known_only=True)} == {"lp"}
    with pytest.raises(ConfigError, match="can't be imported"):
        far.evaluation.settings()
    with pytest.raises(RecordsError, match="settings that this release does not know"):
        StudyConfig.restored({"name": "s", "identity": identity | {"seeed": 1}})


def _no_such_module(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("rival", "problem"),
    [
        ("lpp", "evaluation: lpp: no such name; did you mean lp?"),
        ("nowhere:Shift", "nowhere:Shift: can't be imported (No module named 'nowhere')"),
        ("tests.test_rivals:Shaft", "tests.test_rivals:Shaft: can't be imported"),
        ("tests.test_rivals:Z", "must be a subclass of evaluation.rivals.Rival"),
        ("evaluation.rivals.base:Rival", "must be a subclass of evaluation.rivals.Rival that"),
        ("evaluation.rivals.lp:LP", "a built-in rival has the name lp too"),
    ],
)
def test_rivals_that_are_none_are_told(rival: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"name: s\nevaluation: {{rivals: ['{rival}']}}")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert problem in str(caught.value)


def test_options_of_a_rival_that_is_not_asked_for_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: s\nevaluation: {rivals: [lp], shift: {amounts: [1]}}")
    with pytest.raises(ConfigError, match=r"unknown key evaluation\.shift"):
        load_config(path)
    path.write_text(f"name: s\nevaluation: {{rivals: ['{OWN}'], shift: {{amount: [1]}}}}")
    with pytest.raises(ConfigError, match=r"shift|Shift.*amount"):
        load_config(path)


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"lq: no such rival; choose lp, .*module:Class"):
        find_rival("lq")


def test_the_reference_of_tables_names_all_rivals() -> None:
    (column,) = (c for c in TABLES["metrics"].columns if c.name == "method")
    assert all(f"`{name}`" in column.metadata[b"meaning"].decode() for name in list_rivals())
