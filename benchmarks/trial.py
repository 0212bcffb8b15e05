"""What a trial of the study `poster` costs beside its training: a part of `benchmarks.evaluation`.

How much has to be measured depends on what was learnt: pairs that an application of the map leaves
as they are, are not measured again. So core, writers and map are trained first, as the study trains
them, on the built-in tunes. That takes six minutes on a CPU. Judges and the model of notes that
rates take as long before training as after it, so they are not trained.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.measuring import Measure, Rounds, ratio, tell
from benchmarks.panels import PAIRS, make_corpus, make_pack
from cf_core.continuation import Continuation
from cf_core.corpus import Corpus, Split
from cf_core.fusion import Generator
from cf_core.graphs import WARM_UP
from cf_core.heard import Heard
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.training import limit_threads, train
from evaluation.classifier import SearchClassifier
from evaluation.evaluator import LABELS, Evaluator
from evaluation.judge import Judge
from evaluation.sources import Source, make_sources
from evaluation.transforms import Fusion, Given, Step, fuse_all
from study.config import EvaluationPlan, StudyConfig, load_configs
from study.networks import CORE, WRITERS, Networks, spoken
from study.prepare import find_corpus
from study.progress import Reporter
from study.store import Store
from study.workbench import REPORT_EVERY

PACK = 16
_TUNES = "corpora={tunes: {corpus: {source: builtin}}}"
_SMALL = (
    *("core.steps=4", "writer.steps=4", "fusion.steps=4"),
    *("evaluation.lambda=[1.0]", "evaluation.iterations=[1, 2]"),
)
"""What is changed where the scale is small."""


def measure_trial(rounds: Rounds, device: str) -> Iterator[Measure]:
    """Fusing and measuring the points of one conditional trial, against its training.

    Pairs of test songs and of the prior are fused and measured at every λ and count of the study
    `poster`, in its scheme, and the time is scaled to all its pairs. The scheme of the poster, in
    which fewer pairs come to rest, is measured beside it, as the study does for one seed. On a GPU
    training is that of a trial alone, by graph, and of one in a pack.
    """
    small = rounds.scale > 1
    (config,) = load_configs("poster", (_TUNES, *_SMALL) if small else (_TUNES,))
    with Reporter() as reporter, limit_threads(1):
        corpus = make_corpus(rounds.scale) if small else find_corpus(config, reporter)
        trial = _train(config, corpus, PAIRS // rounds.scale, device, reporter)
        made, core = trial.fuse(), deepcopy(trial.evaluator.core).cpu()
        plain = replace(trial, heard=None).fuse()
        packs = (1,) if device == "cpu" else (1, PACK)
        updates = [make_pack(corpus, core, config.fusion, size, device).update for size in packs]
        for update in updates:
            for _ in range(WARM_UP):
                update()
        seconds = rounds.take_turns(
            lambda: trial.measure(made), lambda: trial.measure(plain), trial.fuse, *updates
        )
    pairs = sum(len(source.songs) for source in trial.sources)
    seconds[:, :3] *= 2 * (trial.plan.pairs + trial.plan.validation_pairs) / pairs
    seconds[:, 3:] *= config.fusion.steps / np.array(packs)
    what = [
        "measuring",
        "as on the poster",
        "fusing",
        *(f"training in a pack of {size}" for size in packs),
    ]
    tell(f"a conditional trial of `poster`, by {pairs} pairs on {device}", seconds, what)
    named = {
        "panels_share_of_training": (0, 3, 0.25),
        "panels_share_as_on_poster": (1, 3, None),
        "fusing_share_of_training": (2, 3, None),
    }
    for place, size in enumerate(packs[1:], 4):
        named[f"panels_share_of_training_in_pack{size}"] = 0, place, None
    start = "" if device == "cpu" else "cuda_"
    for name, (above, below, target) in named.items():
        yield Measure(start + name, ratio(seconds, above, below), "share", target, "lower")


@dataclass(frozen=True)
class _Trial:
    """A conditional trial that was trained, and what it takes to fuse and measure by it."""

    evaluator: Evaluator
    sources: Sequence[Source]
    generator: Generator
    heard: Heard | None
    """None for the scheme of the poster."""
    plan: EvaluationPlan

    def fuse(self) -> list[list[Step]]:
        """The outputs at each λ, for each source."""
        given, device = [], self.evaluator.core.sigma_bar.device
        for lambda_, source in product(self.plan.lambda_, self.sources):
            style = torch.rand(
                len(source.songs), self.generator.style_dim, generator=make_random(0, source.name)
            )
            fusion = Fusion(self.generator, style.to(device), lambda_, self.heard, source.kinds)
            random = make_random(0, "writing", source.name, device=device)
            given.append(Given(fusion, source.inputs, random))
        return list(fuse_all(given, self.plan.iterations))

    def measure(self, made: Sequence[Sequence[Step]]) -> None:
        """Measure what `fuse` returns."""
        for (_, source), steps in zip(product(self.plan.lambda_, self.sources), made, strict=True):
            self.evaluator.evaluate(dict.fromkeys(LABELS, "x"), source, steps)


def _train(
    config: StudyConfig, corpus: Corpus, pairs: int, device: str, reporter: Reporter
) -> _Trial:
    """Train core, writers and map, and make sources of so many pairs."""
    with TemporaryDirectory() as folder:
        networks = Networks(config, corpus, Store(Path(folder)))
        for name in (CORE, *WRITERS):
            reporter.follow(spoken(name), networks.train(name, device))
        core, writer = networks.core, networks.make_writer()
    trainer = make_pack(corpus, core, config.fusion, 1, device)
    reporter.follow("map", train(trainer, REPORT_EVERY))
    second = Continuation(config.melody, config.continuation)
    judges = {
        Split.VALIDATION: Judge(config.melody, config.selection_judge, second),
        Split.TEST: Judge(config.melody, config.reporting_judge, second),
    }
    classifier = SearchClassifier(config.core.latent_dim, config.search_classifier)
    for network in (classifier, *judges.values()):
        initialise(network, make_random(0, "weights"))
    evaluator = Evaluator(corpus, core, classifier, judges, config.seed, second)
    counts = {Split.TEST: pairs, Split.VALIDATION: pairs}
    where = torch.device(device)
    evaluator = evaluator.to(where)
    return _Trial(
        evaluator,
        [source.to(where) for source in make_sources(corpus, core, counts, config.seed)[:2]],
        trainer.take_generator(0).to(where),
        Heard.of(evaluator.core, writer.to(where), config.fusion),
        config.evaluation,
    )
