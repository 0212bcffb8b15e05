"""What a worker writes down: rows of every table, of one trial or setting at a time."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from cf_core.corpus import Split
from cf_core.training import Progress, measure_peak_memory_mb
from evaluation.controls import make_controls
from evaluation.evaluator import LABELS
from evaluation.frontier import CHOSEN_ON, REAL
from evaluation.rivals import Setting
from evaluation.sources import Source, name_pairs
from evaluation.transforms import Step
from study.ledger import Failure, Ledger, Status
from study.parameters import SETTINGS
from study.provenance import provenance
from study.specs import TrialSpec, label_setting
from study.store import Rows, Store
from study.workbench import Workbench

_REFERENCES = ("outcomes", "influences", "song_distances", "bins", "metrics")
"""Tables that hold the references."""

SONG_DISTANCES = 4096
"""Pairs of segments of either kind whose distances are recorded."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of a transform at all counts, and the columns that say what they are of."""

    label: Mapping[str, Any]
    steps: Mapping[str, Sequence[Step]]
    """By source."""
    styles: Mapping[str, Float[Tensor, "B S"]]


class Recorder:
    """Writes the records of one job, the rows of `trials` last."""

    def __init__(
        self,
        bench: Workbench,
        store: Store,
        attempts: Mapping[str, int],
        device: str | None,
    ) -> None:
        self.bench, self.store, self.attempts, self.device = bench, store, attempts, device
        self.training_seconds: float | None = None
        self._started = time.monotonic()
        self._written: dict[str, set[str]] = defaultdict(set)

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return time.monotonic() - self._started

    def write(self, table: str, part: str, rows: Rows) -> None:
        """Write a trial's or a setting's part of a table, as of this attempt."""
        self.store.write(table, part, rows, self.attempts[part])
        self._written[part].add(table)

    def write_curves(self, trial: TrialSpec, place: int, history: Sequence[Progress]) -> None:
        """Write the losses of the trial at a place of its pack."""
        rows = [
            {"trial": trial.id, "step": report.step, "loss": name, "value": values[place]}
            for report in history
            for name, values in report.losses.items()
        ]
        self.write("curves", trial.id, rows)

    def write_outputs(
        self, part: str, outputs: Sequence[Outputs], more: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[Source]:
        """Measure outputs, a source at a time, and write them with all that was found.

        Yields each source when it has been measured. `more` holds further rows of `metrics`.
        """
        rows, outcomes, influences = [*more], [], []
        for one, source in product(outputs, self.bench.sources):
            measured = self.bench.evaluator.evaluate(one.label, source, one.steps[source.name])
            rows += measured.metrics
            outcomes.append(measured.outcomes)
            if source.name in CHOSEN_ON:
                influences.append(measured.influences)
            yield source
        self._write_latents(part, outputs)
        self.write("costs", part, [row for one in outputs for row in _cost_rows(one, self.bench)])
        self.write("outcomes", part, pl.concat(outcomes))
        self.write("influences", part, pl.concat(influences))
        self.write("metrics", part, rows)

    def finish(self, spec: TrialSpec | Setting, status: Status, **outcome: Any) -> None:
        """Write that a trial or a setting is over, and how: columns of `trials`."""
        if isinstance(spec, Setting):
            own = label_setting(spec)
        else:
            settings = spec.configuration.settings(self.bench.fusion)
            own = spec.label | {
                name: getattr(settings, name) for name in SETTINGS if name != "steps"
            }
        row = {
            **own,
            **provenance(),
            "status": str(status),
            "fingerprint": self.bench.fingerprint,
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "peak_memory_mb": measure_peak_memory_mb(),
            "attempt": self.attempts[spec.id],
            "device": self.device,
            "finished_at": datetime.now(UTC),
            "parts": ",".join(sorted(self._written[spec.id])),
            **outcome,
        }
        self.store.write("trials", spec.id, [row], self.attempts[spec.id])

    def fail(self, spec: TrialSpec | Setting, failure: Failure) -> None:
        """Write that a trial or a setting has failed, with the traceback."""
        Ledger(self.store).note_failure([spec.id], failure, self.attempts)
        self.finish(spec, Status.FAILED, reason=failure.reason)

    def _write_latents(self, part: str, outputs: Sequence[Outputs]) -> None:
        parts = [
            _latent_columns(self.bench, one.label, source, step, one.styles[source.name])
            for one in outputs
            for source in self.bench.sources
            if source.name in self.bench.plan.latent_sources
            for step in one.steps[source.name]
        ]
        if parts:
            self.write("latents", part, _join(parts))


def record_over(
    spec: TrialSpec | Setting,
    status: Status,
    bench: Workbench,
    store: Store,
    attempt: int,
    **outcome: Any,
) -> None:
    """Record how a trial or a setting ended that no worker could record, such as `pruned`."""
    recorder = Recorder(bench, store, {spec.id: attempt}, None)
    recorder.finish(spec, status, peak_memory_mb=None, **outcome)


def has_references(store: Store) -> bool:
    """Whether all that `record_references` writes is there."""
    return all("references" in store.list_parts(table) for table in _REFERENCES)


def record_references(bench: Workbench, store: Store) -> None:
    """Record identity, controls, floor and ceiling of each source, and the real pairs.

    Latents are kept of the controls, and of as many real pairs of each split as there are inputs.
    """
    evaluator, kept = bench.evaluator, bench.plan.latent_sources
    rows: list[dict[str, Any]] = []
    latents = [
        _real_latents(bench, source)
        for source in bench.sources
        if source.name in kept and source.rows is not None
    ]
    outcomes = [evaluator.real_outcomes(split) for split in (Split.VALIDATION, Split.TEST)]
    influences = []
    for source in bench.sources:
        rows += evaluator.references_rows(source)
        for name, pair in [("identity", source.inputs), *make_controls(evaluator, source)]:
            label, step = dict.fromkeys(LABELS, name), Step(0, pair)
            measured = evaluator.evaluate(label, source, [step])
            rows += measured.metrics
            outcomes.append(measured.outcomes)
            if source.name in CHOSEN_ON:
                influences.append(measured.influences)
            if source.name in kept and name != "identity":
                latents.append(_latent_columns(bench, label, source, step))
    if latents:
        store.write("latents", "references", _join(latents))
    store.write("outcomes", "references", pl.concat(outcomes))
    store.write("influences", "references", pl.concat(influences))
    store.write(
        "song_distances", "references", evaluator.song_distances(Split.TEST, SONG_DISTANCES)
    )
    store.write(
        "bins",
        "references",
        [
            {"meter": meter, "statistic": statistic, "bin": index, "lower": lower}
            for meter, own in zip(evaluator.corpus.form.kinds, evaluator.bins.edges, strict=True)
            for statistic, edges in own.items()
            for index, lower in enumerate((None, *edges))
        ],
    )
    store.write("metrics", "references", rows)


def _latent_columns(
    bench: Workbench,
    label: Mapping[str, Any],
    source: Source,
    step: Step,
    styles: Float[Tensor, "B S"] | None = None,
) -> dict[str, Any]:
    count = len(source.songs)
    named = ("trial", "configuration", "method", "lambda")
    return {
        **{name: [label.get(name)] * count for name in named},
        "source": [source.name] * count,
        "iteration": [step.iteration] * count,
        **name_pairs(bench.evaluator.corpus, source.songs, source.kinds),
        "style": [[]] * count if styles is None else styles.tolist(),
        "z_left_in": source.inputs[0],
        "z_right_in": source.inputs[1],
        "z_left": step.outputs[0],
        "z_right": step.outputs[1],
    }


def _real_latents(bench: Workbench, source: Source) -> dict[str, Any]:
    """Real pairs of a source's split, spaced evenly, numbered as in `outcomes`."""
    evaluator = bench.evaluator
    corpus, every = evaluator.corpus, evaluator.corpus.pairs_of(source.split)
    places = np.unique(np.linspace(0, len(every) - 1, len(source.songs)).astype(int))
    rows = every[places]
    left, right = (evaluator.core.encode_mean(corpus.tokens[half]) for half in rows.T)
    kinds = corpus.kinds[rows[:, 0]]
    real = Source(source.name, source.split, (left, right), corpus.song[rows], kinds, rows)
    columns = _latent_columns(bench, dict.fromkeys(LABELS, REAL), real, Step(0, (left, right)))
    return columns | {"pair": places.tolist()}


def _join(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join columns of latents."""
    return {
        name: torch.cat([part[name] for part in parts]).cpu().numpy()
        if isinstance(parts[0][name], Tensor)
        else [value for part in parts for value in part[name]]
        for name in parts[0]
    }


def _cost_rows(outputs: Outputs, bench: Workbench) -> list[dict[str, Any]]:
    label = {
        name: outputs.label.get(name) for name in ("trial", "configuration", "method", "lambda")
    }
    return [
        {
            **label,
            "iteration": steps[0].iteration,
            "pairs": sum(len(source.songs) for source in bench.sources),
            "classifier_calls": steps[0].classifier_calls,
            "decoder_calls": steps[0].decoder_calls,
            "seconds": sum(step.seconds for step in steps),
            "device": steps[0].device,
        }
        for steps in zip(*outputs.steps.values(), strict=True)
    ]
