"""What a worker does: a pack of trials, or some settings of a rival. Knows no Ray."""

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Generator as Steps
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from itertools import groupby, product
from typing import Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from cf_core.corpus import TEST, VALIDATION
from cf_core.files import AnyPath
from cf_core.fusion import FusionSettings, Generator, Latents
from cf_core.pack import Member, PackTrainer
from cf_core.seeding import make_random
from cf_core.training import (
    Progress,
    collect_weights,
    load_tensors,
    measure_peak_memory_mb,
    save_tensors,
    train,
)
from evaluation.metrics import DIVERSITY_INPUTS, Evaluator, Source, song_names
from evaluation.transforms import (
    CMAES,
    BestOfN,
    Fusion,
    GradientSearch,
    Identity,
    Interpolation,
    LatentSearch,
    Retrieval,
    Step,
    Transform,
)
from study.config import EvaluationPlan, RivalSpec, TrialSpec
from study.provenance import provenance
from study.store import Rows, Store

FINAL = ("done", "pruned", "diverged")
"""Statuses that a rerun leaves alone. What failed otherwise may have been the machine's fault."""

REPORT_EVERY = 100
"""Training steps between two reports; a checkpoint is written at each."""


@dataclass(frozen=True)
class PackSpec:
    """Trials that are trained together, and which of them are to be recorded.

    Those that were trained with others before go on from where each stood after `start` steps, at
    a rung; a pack with a rung `until` ends there.
    """

    trials: tuple[TrialSpec, ...]
    wanted: tuple[TrialSpec, ...]
    batch: int = 0
    start: int = 0
    until: int | None = None

    @property
    def id(self) -> str:
        """Name of the job: its first trial, how many more there are, and where it ends."""
        more = len(self.wanted) - 1
        to = "" if self.until is None else f" to step {self.until}"
        return self.wanted[0].id + (f" and {more} more" if more else "") + to

    @property
    def parts(self) -> tuple[TrialSpec, ...]:
        """What is recorded by itself."""
        return self.wanted

    def only(self, names: Collection[str]) -> "PackSpec":
        """The job without the trials that are not named."""
        return replace(self, wanted=tuple(t for t in self.wanted if t.id in names))

    @property
    def alone(self) -> "list[PackSpec]":
        """A job for each of its trials."""
        return [replace(self, wanted=(trial,)) for trial in self.wanted]

    def checkpoint(self, store: Store) -> AnyPath:
        """Where its training is kept while it is going on, and until all trials are recorded."""
        names = [*(trial.id for trial in self.trials), str(self.start), str(self.until)]
        name = sha256("\n".join(names).encode()).hexdigest()[:16]
        return store.root / "checkpoints" / f"{name}.safetensors"


@dataclass(frozen=True)
class RivalJob:
    """Settings of one rival that run in one batch."""

    settings: tuple[RivalSpec, ...]

    @property
    def id(self) -> str:
        """Name of the method, or of the one setting."""
        return self.settings[0].id if len(self.settings) == 1 else self.settings[0].method

    @property
    def parts(self) -> tuple[RivalSpec, ...]:
        """What is recorded by itself."""
        return self.settings

    def only(self, names: Collection[str]) -> "RivalJob":  # noqa: ARG002
        """The whole job: all its settings share their random draws."""
        return self

    @property
    def alone(self) -> "list[RivalJob]":
        """The whole job again."""
        return [self]


Spec = PackSpec | RivalJob

_BATCHED = ("lp", "gradient", "best_of_n")
"""Rivals of which all settings run in one batch; each setting of the others is a job."""

_REFERENCES = ("outcomes", "song_distances", "bins", "metrics")
"""Tables that hold the references."""

SONG_DISTANCES = 4096
"""Pairs of segments of either kind whose distances are recorded."""

SOURCE = "validation"
"""Input pairs by which a search decides."""

_PROGRESS_EVERY = 25
"""Iterations of a rival between two reports."""


@dataclass(frozen=True)
class Workbench:
    """Everything that the jobs of a study share; it reaches each worker once."""

    latents: Latents
    evaluator: Evaluator
    sources: Sequence[Source]
    fusion: FusionSettings
    plan: EvaluationPlan
    seed: int
    fingerprint: str


@dataclass(frozen=True)
class Reading:
    """The outputs of a transform at all counts, and what they are recorded under."""

    label: Mapping[str, Any]
    steps: Mapping[str, Sequence[Step]]
    """By source."""
    styles: Mapping[str, Float[Tensor, "B S"]]


def job_steps(spec: Spec, bench: Workbench) -> int:
    """Steps that a job counts up to in its reports."""
    if isinstance(spec, PackSpec):
        return spec.until or spec.trials[0].configuration.settings(bench.fusion).steps
    return max(bench.plan.counts(spec.settings[0].method))


def rival_jobs(settings: Sequence[RivalSpec]) -> list[RivalJob]:
    """The jobs that run these settings."""
    jobs = []
    for method, group in groupby(settings, lambda setting: setting.method):
        whole = tuple(group)
        jobs += [RivalJob(whole)] if method in _BATCHED else [RivalJob((one,)) for one in whole]
    return jobs


def pack_trainer(
    trials: Sequence[TrialSpec], bench: Workbench, until: int | None = None, device: str = "cpu"
) -> PackTrainer:
    """The trainer of some trials of one shape and budget, untrained."""
    settings = [spec.configuration.settings(bench.fusion) for spec in trials]
    own = [
        Member(spec.lambda_, spec.style_dim, spec.seed, setting.learning_rate)
        for spec, setting in zip(trials, settings, strict=True)
    ]
    shared = replace(settings[0], steps=until or settings[0].steps)
    return PackTrainer(bench.latents, shared, own, device)


def run_job(
    spec: Spec,
    bench: Workbench,
    store: Store,
    attempts: Mapping[str, int],
    device: str = "cpu",
) -> Iterator[Progress]:
    """Do one job to the end and record it, reporting on the way.

    A trial's row of `trials` (at a rung, its part of `rungs`) is written last: what has none is not
    done, and may be done again at any time with the same result. A trial whose gradients cease to
    be finite is recorded as "diverged". An error after training is recorded with the trial that it
    befell, as "failed", and the others go on; then, and where training fails, it is raised.
    `attempts` holds the number of this attempt.
    """
    recorder = _Recorder(bench, store, attempts, device)
    if isinstance(spec, PackSpec):
        yield from _pack(spec, recorder)
    else:
        yield from _rival(spec, recorder)


def record_over(
    spec: TrialSpec | RivalSpec,
    outcome: Mapping[str, Any],
    bench: Workbench,
    store: Store,
    attempt: int,
) -> None:
    """Record how a trial or a setting ended that no worker could record, such as `pruned`."""
    recorder = _Recorder(bench, store, {spec.id: attempt}, None)
    recorder.record(spec, {"peak_memory_mb": None, **outcome})


def has_references(store: Store) -> bool:
    """Whether all that `record_references` writes is there."""
    return all(store.has(table, "references") for table in _REFERENCES)


def record_references(bench: Workbench, store: Store) -> None:
    """Record the identity, the floor and the ceiling of each source, and the real pairs."""
    evaluator, label = bench.evaluator, {"trial": "identity", "method": "identity"}
    rows, outcomes = [], [evaluator.real_outcomes(split) for split in (VALIDATION, TEST)]
    random = make_random(bench.seed, "identity")
    for source in bench.sources:
        measured, pairs = evaluator.evaluate(label, source, Identity()(source.inputs, [0], random))
        rows += [*measured, *evaluator.references_rows(source)]
        outcomes.append(pairs)
    store.write("outcomes", "references", pl.concat(outcomes))
    store.write("song_distances", "references", evaluator.song_distances(TEST, SONG_DISTANCES))
    store.write(
        "bins",
        "references",
        [
            {"statistic": statistic, "bin": index, "lower": lower}
            for statistic, edges in evaluator.bins.to_dict().items()
            for index, lower in enumerate((None, *edges))
        ],
    )
    store.write("metrics", "references", rows)


def generator_path(store: Store, trial: str) -> AnyPath:
    """Where the averaged weights of a trial's G are kept."""
    return store.root / "generators" / f"{trial}.safetensors"


def rung_path(store: Store, trial: str, rung: int) -> AnyPath:
    """Where a trial's training stands after `rung` steps, by itself."""
    return store.root / "checkpoints" / f"{trial}-{rung}.safetensors"


def _pack(spec: PackSpec, recorder: "_Recorder") -> Steps[Progress, None, None]:
    store = recorder.store
    checkpoint = spec.checkpoint(store)
    trainer = pack_trainer(spec.trials, recorder.bench, spec.until, recorder.device or "cpu")
    saved = load_tensors(checkpoint)
    if len(spec.wanted) < len(spec.trials) and (saved is None or saved["step"] < trainer.steps):
        # To be done by itself, since with others it never came to an end.
        yield from _pack(replace(spec, trials=spec.wanted), recorder)
        return
    if spec.start and saved is None:
        states = [load_tensors(rung_path(store, trial.id, spec.start)) for trial in spec.trials]
        # Where one is gone, as with a trial whose records were lost, training begins anew.
        known = [state for state in states if state is not None]
        if len(known) == len(states):
            trainer.join(known)
    yield from train(trainer, REPORT_EVERY, checkpoint)
    recorder.training_seconds = recorder.seconds / len(spec.trials)
    errors = []
    for place, trial in enumerate(spec.trials):
        if trial not in spec.wanted:
            continue
        try:
            yield from _conclude(trial, place, trainer, spec, recorder)
        except Exception as error:  # noqa: BLE001  raised below, when the others are safe
            errors.append(error)
            recorder.record(trial, {"status": "failed", "reason": described(error)})
    if errors:
        raise errors[0]


def _conclude(
    trial: TrialSpec, place: int, trainer: PackTrainer, spec: PackSpec, recorder: "_Recorder"
) -> Steps[Progress, None, None]:
    """Record how the training of a trial ended, and evaluate what it gave."""
    _write_curves(trial, place, trainer.history, recorder)
    if place in trainer.diverged:
        reason = f"gradients were not finite after {trainer.diverged[place]} steps"
        recorder.record(trial, {"status": "diverged", "reason": reason})
    elif spec.until is not None:
        save_tensors(trainer.take_state(place), rung_path(recorder.store, trial.id, spec.until))
        yield from _measure_at_rung(trial, trainer.take_generator(place), spec, recorder)
    else:
        yield from _finish(trial, trainer.take_generator(place), recorder, trainer.step)


def _measure_at_rung(
    trial: TrialSpec, generator: Generator, spec: PackSpec, recorder: "_Recorder"
) -> Steps[Progress, None, None]:
    """Record the points of a trial that goes on only if they are good enough."""
    bench, rung, rows = recorder.bench, spec.until or 0, []
    source = next(source for source in bench.sources if source.name == SOURCE)
    styles = {SOURCE: _styles(source, trial.style_dim, bench)}
    for weight in bench.plan.lambda_ if trial.lambda_ is None else (trial.lambda_,):
        reading = _read(trial, generator, weight, styles, bench, [source])
        measured, _ = bench.evaluator.evaluate(reading.label, source, reading.steps[SOURCE])
        measured += _diversity_rows(reading, generator, weight, bench)
        shared = {
            "trial": trial.id,
            "configuration": trial.configuration.id,
            "batch": spec.batch,
            "rung": rung,
            "lambda": weight,
        }
        own = ("iteration", "metric", "value")
        rows += [{**shared, **{name: row[name] for name in own}} for row in measured]
        yield Progress(rung, rung, {})
    attempt = recorder.attempts[trial.id]
    recorder.store.write("rungs", f"{trial.id}-{rung}", rows, attempt)


def _finish(
    trial: TrialSpec, generator: Generator, recorder: "_Recorder", steps: int
) -> Steps[Progress, None, None]:
    """Evaluate a trained trial and record it."""
    bench, store = recorder.bench, recorder.store
    path = generator_path(store, trial.id)
    save_tensors(collect_weights(generator), path)
    styles = {source.name: _styles(source, trial.style_dim, bench) for source in bench.sources}
    readings, diversity = [], []
    for weight in bench.plan.lambda_ if trial.lambda_ is None else (trial.lambda_,):
        reading = _read(trial, generator, weight, styles, bench, bench.sources)
        readings.append(reading)
        diversity += _diversity_rows(reading, generator, weight, bench)
    for _ in _record_readings(trial.id, readings, diversity, recorder):
        yield Progress(steps, steps, {})
    relative = f"{path.parent.name}/{path.name}"
    recorder.record(trial, {"status": "done", "steps": steps, "checkpoint": relative})


def _read(
    trial: TrialSpec,
    generator: Generator,
    weight: float,
    styles: Mapping[str, Float[Tensor, "B S"]],
    bench: Workbench,
    sources: Sequence[Source],
) -> Reading:
    """A trial's outputs at one λ."""
    random = torch.Generator()  # the map draws nothing
    steps = {
        source.name: list(
            Fusion(generator, styles[source.name], weight)(
                source.inputs, bench.plan.iterations, random
            )
        )
        for source in sources
    }
    return Reading({**_label(trial), "lambda": weight}, steps, styles)


def _diversity_rows(
    reading: Reading, generator: Generator, weight: float, bench: Workbench
) -> list[dict[str, Any]]:
    plan = bench.plan
    return [
        {
            **reading.label,
            "source": source.name,
            "iteration": count,
            "metric": "style_diversity",
            "value": value,
            "n": min(DIVERSITY_INPUTS, len(source.songs)),
            "excluded": 0,
        }
        for source in bench.sources
        if source.name in reading.steps
        for count, value in bench.evaluator.style_diversity(
            generator, source, plan.styles, plan.iterations, weight
        ).items()
    ]


def _rival(job: RivalJob, recorder: "_Recorder") -> Steps[Progress, None, None]:
    """Run some settings in one batch of all sources, and record each."""
    bench = recorder.bench
    sources, settings = bench.sources, job.settings
    inputs = [torch.cat([source.inputs[half] for source in sources]) for half in (0, 1)]
    rows, total = len(inputs[0]), job_steps(job, bench)
    joined = inputs[0].repeat(len(settings), 1), inputs[1].repeat(len(settings), 1)
    transform, counts = _transform(job, rows, bench), bench.plan.counts(settings[0].method)
    random = make_random(bench.seed, "rival", job.id)
    steps: dict[tuple[RivalSpec, str], list[Step]] = defaultdict(list)
    seen = sorted({*counts, *range(_PROGRESS_EVERY, total, _PROGRESS_EVERY)})
    for step in transform(joined, seen, random):
        if step.iteration in counts:
            sizes = [len(source.songs) for source in sources] * len(settings)
            left, right = (half.split(sizes) for half in step.outputs)
            parts = zip(product(settings, sources), left, right, strict=True)
            for (setting, source), *pair in parts:
                share = step.seconds * len(pair[0]) / len(step.outputs[0])
                part = replace(step, outputs=(pair[0], pair[1]), seconds=share)
                steps[setting, source.name].append(part)
        yield Progress(step.iteration, total, {})
    styles = {source.name: torch.empty(len(source.songs), 0) for source in sources}
    for setting in settings:
        own = {source.name: steps[setting, source.name] for source in sources}
        reading = Reading(_label(setting), own, styles)
        for _ in _record_readings(setting.id, [reading], [], recorder):
            yield Progress(total, total, {})
        recorder.record(setting, {"status": "done", "steps": total})


def _transform(job: RivalJob, rows: int, bench: Workbench) -> Transform:
    """The transform of a job, each of whose settings takes `rows` rows of the batch."""
    method, plan, classifier = job.settings[0].method, bench.plan, bench.evaluator.classifier
    sigma_bar = bench.latents.sigma_bar

    def of_rows(name: str) -> Float[Tensor, "B"]:
        values = [getattr(setting, name) for setting in job.settings]
        return torch.tensor(values).repeat_interleave(rows)

    match method:
        case "lp":
            scale = sigma_bar if plan.lp.scaled else None
            return LatentSearch(classifier, of_rows("step_size"), plan.lp.proposals, scale)
        case "best_of_n":
            return BestOfN(classifier, of_rows("step_size"))
        case "gradient":
            rate = plan.gradient.learning_rate
            return GradientSearch(classifier, sigma_bar, of_rows("lambda_"), rate)
        case "cmaes":
            return CMAES(classifier, sigma_bar, of_rows("lambda_"), plan.cmaes.step_size)
        case "slerp":
            straight = job.settings[0].straight
            return Interpolation(max(plan.slerp.iterations), spherical=not straight)
        case _:
            left, right = bench.latents.mean[bench.latents.pairs].unbind(1)
            return Retrieval(classifier, (left, right), sigma_bar)


def _record_readings(
    part: str,
    readings: Sequence[Reading],
    diversity: Sequence[Mapping[str, Any]],
    recorder: "_Recorder",
) -> Iterator[None]:
    """Measure outputs, a source at a time, and write them with all that was found."""
    bench = recorder.bench
    rows, outcomes = [*diversity], []
    for reading, source in product(readings, bench.sources):
        measured, pairs = bench.evaluator.evaluate(
            reading.label, source, reading.steps[source.name]
        )
        rows += measured
        outcomes.append(pairs)
        yield
    _write_latents(part, readings, recorder)
    costs = [row for reading in readings for row in _cost_rows(reading, bench)]
    recorder.write("costs", part, costs)
    recorder.write("outcomes", part, pl.concat(outcomes))
    recorder.write("metrics", part, rows)


def _cost_rows(reading: Reading, bench: Workbench) -> list[dict[str, Any]]:
    label = {name: reading.label.get(name) for name in ("trial", "method", "lambda")}
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
        for steps in zip(*reading.steps.values(), strict=True)
    ]


def _styles(source: Source, style_dim: int, bench: Workbench) -> Float[Tensor, "B S"]:
    """The style of each input pair, the same for all trials of one style dimension."""
    random = make_random(bench.seed, "styles", source.name)
    return torch.rand(len(source.songs), style_dim, generator=random)


def _write_curves(
    trial: TrialSpec, place: int, history: Sequence[Progress], recorder: "_Recorder"
) -> None:
    rows = [
        {"trial": trial.id, "step": report.step, "loss": name, "value": values[place]}
        for report in history
        for name, values in report.losses.items()
    ]
    recorder.write("curves", trial.id, rows)


def _write_latents(part: str, readings: Sequence[Reading], recorder: "_Recorder") -> None:
    bench = recorder.bench
    parts = [
        _latent_columns(reading, source, step, bench)
        for reading in readings
        for source in bench.sources
        if source.name in bench.plan.latent_sources
        for step in reading.steps[source.name]
    ]
    if not parts:
        return
    columns = {
        name: torch.cat([part[name] for part in parts]).numpy()
        if isinstance(parts[0][name], Tensor)
        else [value for part in parts for value in part[name]]
        for name in parts[0]
    }
    recorder.write("latents", part, columns)


def _latent_columns(
    reading: Reading, source: Source, step: Step, bench: Workbench
) -> dict[str, Any]:
    count = len(source.songs)
    left, right = song_names(bench.evaluator.corpus, source.songs)
    return {
        "trial": [reading.label["trial"]] * count,
        "method": [reading.label["method"]] * count,
        "lambda": [reading.label.get("lambda")] * count,
        "source": [source.name] * count,
        "iteration": [step.iteration] * count,
        "pair": list(range(count)),
        "left_song": left,
        "right_song": right,
        "style": reading.styles[source.name].tolist(),
        "z_left_in": source.inputs[0],
        "z_right_in": source.inputs[1],
        "z_left": step.outputs[0],
        "z_right": step.outputs[1],
    }


def _label(spec: TrialSpec | RivalSpec) -> dict[str, Any]:
    label = {"trial": spec.id, "method": spec.method, "lambda": spec.lambda_}
    if isinstance(spec, RivalSpec):
        return label | {"step_size": spec.step_size}
    return label | {"style_dim": spec.style_dim, "seed": spec.seed}


def described(error: Exception) -> str:
    """An error as the reason of a failure."""
    return f"{type(error).__name__}: {error}"


_SETTINGS = ("hidden", "learning_rate", "style_weight")
"""Settings of fusion that may differ between trials, as columns of `trials`."""


class _Recorder:
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

    def record(self, spec: TrialSpec | RivalSpec, outcome: Mapping[str, Any]) -> None:
        """Write that a trial or a setting is over, and how."""
        row = {
            **_label(spec),
            **self._settings(spec),
            **provenance(),
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

    def _settings(self, spec: TrialSpec | RivalSpec) -> dict[str, Any]:
        if isinstance(spec, RivalSpec):
            return {}
        settings = spec.configuration.settings(self.bench.fusion)
        return {name: getattr(settings, name) for name in _SETTINGS}
