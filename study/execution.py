"""What a worker does: a pack of trials, or some settings of a rival. Knows no Ray."""

from collections import defaultdict
from collections.abc import Generator as Steps
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cf_core.batches import Member
from cf_core.fusion import Generator
from cf_core.heard import Heard
from cf_core.pack import PackTrainer
from cf_core.seeding import make_random
from cf_core.training import collect_weights, load_tensors, save_tensors, train
from evaluation.evaluator import DIVERSITY_INPUTS
from evaluation.frontier import BY_EDITS, POSTER
from evaluation.rivals import Setting
from evaluation.sources import Source
from evaluation.transforms import Fusion, Given, Step, fuse_all, take_by_edits
from study.ledger import Failure, Status
from study.recording import Outputs, Recorder
from study.specs import Job, PackSpec, RivalJob, TrialSpec, label_setting, name_beside
from study.store import Store
from study.workbench import (
    DECIDING,
    REPORT_EVERY,
    Workbench,
    find_checkpoint,
    find_generator,
    find_rung,
)

_REPORT_RIVALS_EVERY = 25
"""Iterations of a rival between two reports."""

_PAIR_WORK = 0.03
"""Work of measuring one pair at one point, where one training step of one trial is 1: about what
it takes on one core. It only weighs the two against each other in the time that is left."""
_HEARD_WORK = 0.25
"""Work of fusing one pair at one λ in the scheme `heard`, likewise."""


@dataclass(frozen=True)
class Report:
    """How far a job is. Work is counted in training steps of one trial, or about as much."""

    done: int
    total: int
    step: int = 0
    """Training steps so far."""
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Means since the report before, one for each trial of a pack."""


def estimate_work(job: Job, bench: Workbench) -> int:
    """Work of a whole job, its evaluation included."""
    return _search_work(job, bench) + _evaluation_work(job, bench)


def _search_work(job: Job, bench: Workbench) -> int:
    if isinstance(job, RivalJob):
        return max(bench.plan.rival(job.rival).iterations)
    steps = job.until or job.trials[0].configuration.settings(bench.fusion).steps
    return steps * len(job.trials)


def _evaluation_work(job: Job, bench: Workbench) -> int:
    if isinstance(job, RivalJob):
        counts = len(bench.plan.rival(job.rival).iterations)
        return sum(_source_work(source, counts) for source in bench.sources) * len(job.settings)
    sources = bench.sources if job.until is None else [_deciding(bench)]
    measured = sum(_source_work(source, len(bench.plan.iterations)) for source in sources)
    twice = [trial for trial in job.wanted if not job.until and trial.seed == bench.compared_seed]
    read = [len(_lambdas(trial, bench)) for trial in twice]
    again = measured * sum(count + (count > 1) for count in read)  # as on the poster, and by edits
    each = measured + _heard_work(sources, bench)
    return again + each * sum(len(_lambdas(trial, bench)) for trial in job.wanted)


def _source_work(source: Source, counts: int) -> int:
    return max(1, round(_PAIR_WORK * len(source.songs) * counts))


def _heard_work(sources: Sequence[Source], bench: Workbench) -> int:
    if bench.fusion.scheme == "poster":
        return 0
    return max(1, round(_HEARD_WORK * sum(len(source.songs) for source in sources)))


def make_trainer(
    trials: Sequence[TrialSpec], bench: Workbench, until: int | None = None
) -> PackTrainer:
    """The trainer of some trials of one shape and budget, untrained."""
    settings = [spec.configuration.settings(bench.fusion) for spec in trials]
    own = [
        Member(spec.lambda_, spec.style_dim, spec.seed, setting.learning_rate)
        for spec, setting in zip(trials, settings, strict=True)
    ]
    shared = replace(settings[0], steps=until or settings[0].steps)
    return PackTrainer(bench.latents, shared, own, bench.device)


def run_job(
    job: Job,
    bench: Workbench,
    store: Store,
    attempts: Mapping[str, int],
) -> Iterator[Report]:
    """Do one job to the end and record it, reporting on the way.

    A trial's row of `trials` (at a rung, its part of `rungs`) is written last: what has none is not
    done, and may be done again at any time with the same result. A trial whose gradients cease to
    be finite is recorded as "diverged". An error after training is recorded with the trial that it
    befell, as "failed", and the others go on; then, and where training fails, it is raised.
    `attempts` holds the number of this attempt.
    """
    recorder = Recorder(bench, store, attempts, bench.device.type)
    total, done = estimate_work(job, bench), 0
    steps = _run_pack(job, recorder) if isinstance(job, PackSpec) else _run_rival(job, recorder)
    for report in steps:
        done = max(done, report.done)
        yield replace(report, done=min(done, total), total=total)


def _run_pack(job: PackSpec, recorder: Recorder) -> Steps[Report, None, None]:
    store, bench = recorder.store, recorder.bench
    checkpoint = find_checkpoint(store, job.checkpoint)
    trainer = make_trainer(job.trials, bench, job.until)
    saved = load_tensors(checkpoint)
    if len(job.wanted) < len(job.trials) and (saved is None or saved["step"] < trainer.steps):
        # To be done by itself, since with others it never came to an end.
        yield from _run_pack(replace(job, trials=job.wanted), recorder)
        return
    if job.start and saved is None:
        states = [load_tensors(find_rung(store, trial.id, job.start)) for trial in job.trials]
        # Where one is gone, as with a trial whose records were lost, training begins anew.
        known = [state for state in states if state is not None]
        if len(known) == len(states):
            trainer.join(known)
    for progress in train(trainer, REPORT_EVERY, checkpoint):
        yield Report(progress.step * len(job.trials), 0, progress.step, progress.losses)
    recorder.training_seconds = recorder.seconds / len(job.trials)
    done, errors = _search_work(job, bench), []
    for place, trial in enumerate(job.trials):
        if trial not in job.wanted:
            continue
        try:
            for work in _conclude(trial, place, trainer, job, recorder):
                done += work
                yield Report(done, 0, trainer.step)
        except Exception as error:  # noqa: BLE001  raised below, when the others are safe
            errors.append(error)
            recorder.fail(trial, Failure.of(error))
    if errors:
        raise errors[0]


def _conclude(
    trial: TrialSpec, place: int, trainer: PackTrainer, job: PackSpec, recorder: Recorder
) -> Iterator[int]:
    """Record how the training of a trial ended, and evaluate what it gave; yields the work done."""
    recorder.write_curves(trial, place, trainer.history)
    if place in trainer.diverged:
        reason = f"gradients were not finite after {trainer.diverged[place]} steps"
        recorder.finish(trial, Status.DIVERGED, reason=reason)
        return
    generator = trainer.take_generator(place).to(recorder.bench.device)
    if job.until is not None:
        save_tensors(trainer.take_state(place), find_rung(recorder.store, trial.id, job.until))
        yield from _measure_at_rung(trial, generator, job, recorder)
    else:
        yield from _evaluate(trial, generator, recorder, trainer.step)


def _measure_at_rung(
    trial: TrialSpec, generator: Generator, job: PackSpec, recorder: Recorder
) -> Iterator[int]:
    """Record the points of a trial that goes on only if they are good enough."""
    bench, rung, rows = recorder.bench, job.until or 0, []
    source = _deciding(bench)
    styles = {source.name: _draw_styles(source, trial.style_dim, bench)}
    for outputs in _apply(trial, generator, styles, bench, [source]):
        lambda_ = outputs.label["lambda"]
        measured = bench.evaluator.evaluate(
            outputs.label, source, outputs.steps[source.name]
        ).metrics
        measured += _diversity_rows(outputs, generator, lambda_, bench)
        shared = {
            "trial": trial.id,
            "configuration": trial.configuration.id,
            "batch": job.batch,
            "rung": rung,
            "lambda": lambda_,
        }
        own = ("iteration", "metric", "value")
        rows += [{**shared, **{name: row[name] for name in own}} for row in measured]
        yield _heard_work([source], bench) + _source_work(source, len(bench.plan.iterations))
    attempt = recorder.attempts[trial.id]
    recorder.store.write("rungs", f"{trial.id}-{rung}", rows, attempt)


def _evaluate(
    trial: TrialSpec, generator: Generator, recorder: Recorder, steps: int
) -> Iterator[int]:
    """Evaluate a trained trial and record it."""
    bench, store = recorder.bench, recorder.store
    path = find_generator(store, trial.id)
    save_tensors(collect_weights(generator), path)
    styles = {s.name: _draw_styles(s, trial.style_dim, bench) for s in bench.sources}
    outputs, diversity = [], []
    for one in _apply(trial, generator, styles, bench, bench.sources):
        outputs.append(one)
        diversity += _diversity_rows(one, generator, one.label["lambda"], bench)
        yield _heard_work(bench.sources, bench)
    if trial.seed == bench.compared_seed:
        by_edits = [_choose_by_edits(trial, outputs, bench)] if len(outputs) > 1 else []
        outputs += [*by_edits, *_apply_as_on_poster(trial, generator, styles, bench)]
    for source in recorder.write_outputs(trial.id, outputs, diversity):
        yield _source_work(source, len(bench.plan.iterations))
    checkpoint = f"{path.parent.name}/{path.name}"
    recorder.finish(trial, Status.DONE, steps=steps, checkpoint=checkpoint)


def _apply(
    trial: TrialSpec,
    generator: Generator,
    styles: Mapping[str, Float[Tensor, "B S"]],
    bench: Workbench,
    sources: Sequence[Source],
) -> Iterator[Outputs]:
    """Yield a trial's outputs at each λ at which it is read."""
    read = _lambdas(trial, bench)
    given = [
        Given(
            _make_fusion(generator, styles[source.name], lambda_, source, bench),
            source.inputs,
            make_random(bench.seed, "writing", source.name, device=bench.device),
        )
        for lambda_, source in product(read, sources)
    ]
    fused = fuse_all(given, bench.plan.iterations)
    for lambda_ in read:
        steps = {source.name: next(fused) for source in sources}
        yield Outputs({**trial.label, "lambda": lambda_}, steps, styles)


def _apply_as_on_poster(
    trial: TrialSpec,
    generator: Generator,
    styles: Mapping[str, Float[Tensor, "B S"]],
    bench: Workbench,
) -> Iterator[Outputs]:
    """The outputs of the same G in the scheme `poster`, with which the scheme `heard` is compared.

    They are recorded as those of a rival's setting are, under a name of their own.
    """
    plain = replace(bench, fusion=replace(bench.fusion, scheme="poster"))
    name = name_beside(trial.id, POSTER)
    for outputs in _apply(trial, generator, styles, plain, bench.sources):
        own = {"trial": name, "configuration": name, "method": POSTER}
        yield replace(outputs, label=own | {"lambda": outputs.label["lambda"]})


def _choose_by_edits(trial: TrialSpec, outputs: Sequence[Outputs], bench: Workbench) -> Outputs:
    """The same outputs at rest, with a λ for each pair; recorded as those of the poster are."""
    ordered = sorted(outputs, key=lambda one: one.label["lambda"], reverse=True)
    name = name_beside(trial.id, BY_EDITS)
    label = {"trial": name, "configuration": name, "method": BY_EDITS, "lambda": None}
    steps = {
        source.name: take_by_edits(
            _hear(bench),
            (source.inputs, source.kinds),
            [one.steps[source.name][-1] for one in ordered],
            bench.plan.edits,
        )
        for source in bench.sources
    }
    return Outputs(label, steps, ordered[0].styles)


def _hear(bench: Workbench) -> Heard:
    if bench.writer is None:
        raise ValueError("bench.writer: the scheme heard needs one")
    return Heard.of(bench.evaluator.core, bench.writer, bench.fusion)


def _make_fusion(
    generator: Generator,
    style: Float[Tensor, "B S"],
    lambda_: float,
    source: Source,
    bench: Workbench,
) -> Fusion:
    if bench.fusion.scheme == "poster":
        return Fusion(generator, style, lambda_, kinds=source.kinds)
    return Fusion(generator, style, lambda_, _hear(bench), source.kinds)


def _diversity_rows(
    outputs: Outputs, generator: Generator, lambda_: float, bench: Workbench
) -> list[dict[str, Any]]:
    plan = bench.plan
    return [
        {
            **outputs.label,
            "source": source.name,
            "iteration": count,
            "metric": "style_diversity",
            "value": value,
            "n": min(DIVERSITY_INPUTS, len(source.songs)),
            "excluded": 0,
        }
        for source in bench.sources
        if source.name in outputs.steps and source.rows is not None
        for count, value in bench.evaluator.style_diversity(
            _make_fusion(generator, outputs.styles[source.name], lambda_, source, bench),
            source,
            plan.styles,
            plan.iterations,
        ).items()
    ]


def _run_rival(job: RivalJob, recorder: Recorder) -> Steps[Report, None, None]:
    """Run some settings in one batch of all sources, and record each."""
    bench = recorder.bench
    rival, sources, settings = bench.plan.rival(job.rival), bench.sources, job.settings
    inputs = [torch.cat([source.inputs[half] for source in sources]) for half in (0, 1)]
    kinds = np.concatenate([source.kinds for source in sources])
    counts, most = rival.iterations, max(rival.iterations)
    joined = inputs[0].repeat(len(settings), 1), inputs[1].repeat(len(settings), 1)
    transform = rival.transform(settings, kinds, bench.tools)
    random = make_random(bench.seed, "rival", job.id, device=bench.device)
    steps: dict[tuple[Setting, str], list[Step]] = defaultdict(list)
    seen = sorted({*counts, *range(_REPORT_RIVALS_EVERY, most, _REPORT_RIVALS_EVERY)})
    for step in transform(joined, seen, random):
        if step.iteration in counts:
            sizes = [len(source.songs) for source in sources] * len(settings)
            left, right = (half.split(sizes) for half in step.outputs)
            parts = zip(product(settings, sources), left, right, strict=True)
            for (setting, source), *pair in parts:
                share = step.seconds * len(pair[0]) / len(step.outputs[0])
                part = replace(step, outputs=(pair[0], pair[1]), seconds=share)
                steps[setting, source.name].append(part)
        yield Report(step.iteration, 0, step.iteration)
    done = most
    styles = {source.name: torch.empty(len(source.songs), 0) for source in sources}
    for setting in settings:
        own = {source.name: steps[setting, source.name] for source in sources}
        outputs = Outputs(label_setting(setting), own, styles)
        for source in recorder.write_outputs(setting.id, [outputs]):
            done += _source_work(source, len(counts))
            yield Report(done, 0, most)
        recorder.finish(setting, Status.DONE, steps=most)


def _deciding(bench: Workbench) -> Source:
    return next(source for source in bench.sources if source.name == DECIDING)


def _lambdas(trial: TrialSpec, bench: Workbench) -> Sequence[float]:
    """The λ at which a trial is read: its own, or those of the plan."""
    return bench.plan.lambda_ if trial.lambda_ is None else (trial.lambda_,)


def _draw_styles(source: Source, style_dim: int, bench: Workbench) -> Float[Tensor, "B S"]:
    """The style of each input pair, the same for all trials of one style dimension."""
    random = make_random(bench.seed, "styles", source.name)
    return torch.rand(len(source.songs), style_dim, generator=random).to(bench.device)
