"""What a worker does: one trial, or one setting of the latent search. Knows no Ray."""

import json
import math
import platform
import resource
import subprocess
import time
from collections.abc import Generator as Steps
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cf_core.fusion import FusionSettings, FusionTrainer, Generator, Latents
from cf_core.seeding import generator
from cf_core.training import Progress, save_tensors, train, weights
from evaluation.metrics import DIVERSITY_INPUTS, Evaluator, Source
from evaluation.transforms import Step, fusion, identity, latent_search
from study.config import EvaluationPlan, StudyConfig, TrialSpec
from study.store import Store

REPORT_EVERY = 100
"""Training steps between two reports; a checkpoint is written at each."""


@dataclass(frozen=True)
class LPSpec:
    """One setting of the latent search."""

    step_size: float

    @property
    def id(self) -> str:
        """Name of the setting, such as "lp-eta0.1"."""
        return f"lp-eta{self.step_size!r}"


Spec = TrialSpec | LPSpec


def planned_jobs(config: StudyConfig) -> list[Spec]:
    """All jobs of a study: the trials, then the settings of the latent search."""
    return [*config.trials(), *(LPSpec(size) for size in config.evaluation.lp.step_sizes)]


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


def job_steps(spec: Spec, bench: Workbench) -> int:
    """Steps that a job counts up to in its reports."""
    return bench.fusion.steps if isinstance(spec, TrialSpec) else max(bench.plan.lp.iterations)


class _NotFiniteError(Exception):
    """Training ran into a loss that is not finite."""


def run_job(spec: Spec, bench: Workbench, store: Store, attempt: int) -> Iterator[Progress]:
    """Do one job to the end and record it, reporting on the way.

    The row of `trials` is written last: a job without one is not done, and may be done again at
    any time with the same result. A loss that is not finite ends a trial as "diverged"; any other
    error is recorded as "failed" and raised.
    """
    started = time.monotonic()
    work = _trial(spec, bench, store) if isinstance(spec, TrialSpec) else _lp(spec, bench, store)
    try:
        outcome = yield from work
        outcome |= {"status": "done"}
    except _NotFiniteError as error:
        outcome = {"status": "diverged", "reason": str(error)}
    except Exception as error:
        record_failure(spec, bench, store, attempt, f"{type(error).__name__}: {error}")
        raise
    _record(spec, bench, store, attempt, time.monotonic() - started, outcome)


def record_failure(spec: Spec, bench: Workbench, store: Store, attempt: int, reason: str) -> None:
    """Record a job that ended without a result; the next run of the study tries it again."""
    outcome = {"status": "failed", "reason": reason, "peak_memory_mb": None}
    _record(spec, bench, store, attempt, 0.0, outcome)


def record_references(bench: Workbench, store: Store) -> None:
    """Record the identity, and the floor and the ceiling of each source."""
    evaluator, label = bench.evaluator, {"trial": "identity", "method": "identity"}
    rows = [
        row
        for source in bench.sources
        for rows in (
            evaluator.rows(label, source, next(identity(source.inputs))),
            evaluator.references_rows(source),
        )
        for row in rows
    ]
    store.write("metrics", "references", rows)


def generator_path(store: Store, trial: str) -> Path:
    """Where the averaged weights of a trial's G are kept."""
    return store.root / "generators" / f"{trial}.safetensors"


def _trial(
    spec: TrialSpec, bench: Workbench, store: Store
) -> Steps[Progress, None, dict[str, Any]]:
    trainer = FusionTrainer(bench.latents, bench.fusion, spec.lambda_, spec.style_dim, spec.seed)
    checkpoint = store.root / "checkpoints" / f"{spec.id}.safetensors"
    for progress in train(trainer, REPORT_EVERY, checkpoint):
        yield progress
        if _not_finite(progress):
            break
    _write_curves(spec, trainer.history, store)
    # Outside the loop, since a checkpoint of the last step has nothing left to train.
    if bad := _not_finite(trainer.history[-1]):
        checkpoint.unlink(missing_ok=True)
        raise _NotFiniteError(f"{bad[0]} was not finite by step {trainer.step}")
    save_tensors(weights(trainer.averaged), generator_path(store, spec.id))
    styles = {source.name: _styles(source, spec.style_dim, bench) for source in bench.sources}
    counts, fused = bench.plan.iterations, trainer.averaged
    steps = {
        source.name: list(fusion(fused, source.inputs, styles[source.name], counts))
        for source in bench.sources
    }
    diversity = [_diversity_row(spec, fused, source, bench) for source in bench.sources]
    _write_outputs(spec, steps, styles, bench, store, diversity)
    checkpoint.unlink(missing_ok=True)
    return {
        "steps": trainer.step,
        "checkpoint": str(generator_path(store, spec.id).relative_to(store.root)),
        "style_diversity": next(r["value"] for r in diversity if r["source"] == "validation"),
    }


def _diversity_row(
    spec: TrialSpec, fused: Generator, source: Source, bench: Workbench
) -> dict[str, Any]:
    return {
        **_label(spec),
        "source": source.name,
        "iteration": 1,
        "metric": "style_diversity",
        "value": bench.evaluator.style_diversity(fused, source, bench.plan.styles),
        "n": min(DIVERSITY_INPUTS, len(source.songs)),
        "excluded": 0,
    }


def _not_finite(progress: Progress) -> list[str]:
    return [name for name, loss in progress.losses.items() if not math.isfinite(loss)]


def _lp(spec: LPSpec, bench: Workbench, store: Store) -> Steps[Progress, None, dict[str, Any]]:
    counts, sources = bench.plan.lp.iterations, bench.sources
    random = generator(bench.seed, "lp", repr(spec.step_size))
    joined = (
        torch.cat([source.inputs[0] for source in sources]),
        torch.cat([source.inputs[1] for source in sources]),
    )
    steps: dict[str, list[Step]] = {source.name: [] for source in sources}
    search = latent_search(bench.evaluator.classifier, joined, spec.step_size, counts, random)
    for step in search:
        left, right = (half.split(bench.evaluator.pairs) for half in step.outputs)
        for source, *pair in zip(sources, left, right, strict=True):
            outputs = (pair[0], pair[1])
            steps[source.name].append(Step(step.iteration, outputs, step.classifier_calls))
        yield Progress(step.iteration, max(counts), {})
    styles = {source.name: torch.empty(len(source.songs), 0) for source in sources}
    _write_outputs(spec, steps, styles, bench, store, [])
    return {"steps": max(counts)}


def _styles(source: Source, style_dim: int, bench: Workbench) -> Float[Tensor, "B S"]:
    """The style of each input pair, the same for all trials of one style dimension."""
    random = generator(bench.seed, "styles", source.name)
    return torch.rand(len(source.songs), style_dim, generator=random)


def _write_curves(spec: TrialSpec, history: Sequence[Progress], store: Store) -> None:
    rows = [
        {"trial": spec.id, "step": report.step, "loss": name, "value": value}
        for report in history
        for name, value in report.losses.items()
    ]
    store.write("curves", spec.id, rows)


def _write_outputs(
    spec: Spec,
    steps: dict[str, list[Step]],
    styles: dict[str, Float[Tensor, "B S"]],
    bench: Workbench,
    store: Store,
    extra: Sequence[dict[str, Any]],
) -> None:
    """Write a job's latents, and its metrics with the rows `extra` added."""
    label = _label(spec)
    parts = [
        _latent_columns(label, source, step, styles[source.name], bench)
        for source in bench.sources
        for step in steps[source.name]
    ]
    columns = {
        name: torch.cat([part[name] for part in parts]).numpy()
        if isinstance(parts[0][name], Tensor)
        else [value for part in parts for value in part[name]]
        for name in parts[0]
    }
    store.write("latents", spec.id, columns)
    rows = [
        row
        for source in bench.sources
        for step in steps[source.name]
        for row in bench.evaluator.rows(label, source, step)
    ]
    store.write("metrics", spec.id, [*rows, *extra])


def _latent_columns(
    label: dict[str, Any],
    source: Source,
    step: Step,
    style: Float[Tensor, "B S"],
    bench: Workbench,
) -> dict[str, Any]:
    count, song_ids = len(source.songs), bench.evaluator.corpus.song_ids
    left, right = (
        [None if song < 0 else song_ids[song] for song in half] for half in source.songs.T
    )
    return {
        "trial": [label["trial"]] * count,
        "method": [label["method"]] * count,
        "source": [source.name] * count,
        "iteration": [step.iteration] * count,
        "pair": list(range(count)),
        "left_song": left,
        "right_song": right,
        "style": style.tolist(),
        "z_left_in": source.inputs[0],
        "z_right_in": source.inputs[1],
        "z_left": step.outputs[0],
        "z_right": step.outputs[1],
    }


def _label(spec: Spec) -> dict[str, Any]:
    if isinstance(spec, LPSpec):
        return {"trial": spec.id, "method": "lp", "step_size": spec.step_size}
    return {
        "trial": spec.id,
        "method": "fusion",
        "lambda": spec.lambda_,
        "style_dim": spec.style_dim,
        "seed": spec.seed,
    }


def _record(
    spec: Spec,
    bench: Workbench,
    store: Store,
    attempt: int,
    seconds: float,
    outcome: dict[str, Any],
) -> None:
    commit, dirty = _git()
    row = {
        **_label(spec),
        "fingerprint": bench.fingerprint,
        "seconds": seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "attempt": attempt,
        "host": platform.node(),
        "device": "cpu",
        "versions": json.dumps({name: version(name) for name in ("torch", "ray", "numpy")}),
        "git_commit": commit,
        "git_dirty": dirty,
        "finished_at": datetime.now(UTC),
        **outcome,
    }
    store.write("trials", spec.id, [row])


@cache
def _git() -> tuple[str | None, bool | None]:
    """Commit of the code and whether it was altered; None where the code is no git checkout."""
    folder = Path(__file__).parent
    try:
        commit, status = (
            subprocess.run(  # noqa: S603
                ["git", *command],  # noqa: S607
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(status)
