"""The networks that all trials of a study share, and how each is trained, once.

The core and the models of notes are trained on the melodies alone. Classifiers and judges also need
the core, and two models of notes: one rates pairs, as the second opinion of the judges, and another
draws continuations, which are hard negatives and controls.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from cf_core.continuation import (
    Continuation,
    ContinuationTrainer,
    drop_hanging_holds,
    reverse,
)
from cf_core.corpus import Corpus, Split
from cf_core.files import AnyPath, replacing
from cf_core.fusion import Latents
from cf_core.kinds import encode_kinds
from cf_core.seeding import derive, make_random
from cf_core.training import (
    Progress,
    Trainer,
    collect_weights,
    limit_threads,
    load_tensors,
    save_tensors,
    train,
)
from cf_core.vae import MelodyVAE, VAETrainer, report_prior, report_reconstruction
from cf_core.writer import Writer, make_trainer
from evaluation.classifier import ClassifierTrainer, SearchClassifier
from evaluation.judge import Judge, JudgeData, JudgeTrainer
from evaluation.negatives import LabelledTokens, draw_continued, draw_hard_pairs
from evaluation.reliability import LabelledPairs, Scorer, draw_adjacent
from evaluation.sources import unpaired
from evaluation.statistics import TokenPairs
from study.config import StudyConfig
from study.store import Store
from study.workbench import REPORT_EVERY, find_checkpoint

CORE, SEARCH_CLASSIFIER = "core", "search_classifier"
CONTINUATION, SECOND_OPINION = "continuation", "second_opinion"
FOR_JUDGES = {CONTINUATION: "draws", SECOND_OPINION: "rates"}
"""Models of notes by what they do for the judges."""
WRITERS = {"writer_forwards": "forwards", "writer_backwards": "backwards"}
JUDGES = {"selection_judge": Split.VALIDATION, "reporting_judge": Split.TEST}

_PRIOR_SAMPLES = 16384
"""Number of decoded prior samples that judges are trained on."""

_HARD_PAIRS = 4096
"""Hard negatives of each kind that judges are trained on."""
_MORE_CONTINUED = 2 * _HARD_PAIRS
"""Further continuations among them, the kind that is hardest to tell from music."""

_RESAMPLES = 1000
"""Resamples for the intervals of a classifier's report."""


def spoken(name: str) -> str:
    """The name of a network as people are told it."""
    return name.replace("_", " ")


UNSEEN = (("validation", Split.VALIDATION), ("test", Split.TEST))

Report = dict[str, Any]
"""What is known of a network once it is trained, as JSON has it."""


@dataclass(frozen=True)
class _Training:
    trainer: Trainer
    network: nn.Module
    report: Callable[[], Report]
    """Called after training; it may still set buffers of the network."""


@dataclass(frozen=True)
class Networks:
    """Trains the networks of a study, by name, and reads those that are trained.

    It reaches the workers that train. What it has read by then travels with it.
    """

    config: StudyConfig
    corpus: Corpus
    store: Store

    @property
    def melodic(self) -> list[str]:
        """Names of those that are trained on melodies alone, the one that takes longest first."""
        return [CORE, *FOR_JUDGES, *(WRITERS if self.config.writes else ())]

    @property
    def judging(self) -> list[str]:
        """Names of those that also need core and models of notes, trained; the longest first."""
        return [*JUDGES, SEARCH_CLASSIFIER]

    def train(self, name: str, device: torch.device | str = "cpu") -> Iterator[Progress]:
        """Train a network to its end, from its checkpoint if there is one, and keep it.

        It is trained on the device. The report is made on the CPU and written last, so that it
        exists only beside complete weights. One thread is used, as by all workers, so that sums
        add up alike.
        """
        with limit_threads(1):
            made = self._prepare(name, device)
            checkpoint = find_checkpoint(self.store, name)
            yield from train(made.trainer, REPORT_EVERY // 2, checkpoint)
            made.network.cpu()
            report = made.report()
            save_tensors(collect_weights(made.network), self._weights(name))
            self._record(name, report)
            checkpoint.unlink(missing_ok=True)

    def is_trained(self, name: str) -> bool:
        """Whether a network is there, whole, with its report."""
        return self._file(name).exists() and load_tensors(self._weights(name)) is not None

    def report(self, name: str) -> Report:
        """Read the report of a network that is trained."""
        report: Report = json.loads(self._file(name).read_text())
        return report

    @cached_property
    def core(self) -> MelodyVAE:
        """The core. Like all that follow it must have been trained."""
        core = MelodyVAE(self.config.melody, self.config.core)
        self._fill(core, CORE)
        return core

    @cached_property
    def continuation(self) -> Continuation:
        """The model of notes that draws hard negatives and controls."""
        return self._read_continuation(CONTINUATION)

    @cached_property
    def second_opinion(self) -> Continuation:
        """The model of notes that gives judges their second opinion."""
        return self._read_continuation(SECOND_OPINION)

    def _read_continuation(self, name: str) -> Continuation:
        continuation = Continuation(self.config.melody, self.config.continuation)
        self._fill(continuation, name)
        return continuation

    def make_writer(self) -> Writer:
        """Read the two models of notes that write."""
        writer = Writer(self.config.melody, self.config.writer)
        for name, direction in WRITERS.items():
            self._fill(getattr(writer, direction), name)
        return writer

    def make_classifier(self) -> SearchClassifier:
        """Read the classifier that latent search climbs."""
        settings = self.config.search_classifier
        classifier = SearchClassifier(self.config.core.latent_dim, settings)
        self._fill(classifier, SEARCH_CLASSIFIER)
        return classifier

    @cached_property
    def judges(self) -> Mapping[Split, Judge]:
        """The judges by the split that they judge."""
        judges = {}
        for name, split in JUDGES.items():
            settings = getattr(self.config, name)
            judges[split] = Judge(self.config.melody, settings, self.second_opinion)
            self._fill(judges[split], name)
        return judges

    @cached_property
    def latents(self) -> Latents:
        """The training data of trials and of the search classifier: posteriors of segments."""
        return encode_training(self.corpus, self.core)

    def report_agreement(self) -> Report:
        """Measure how alike the two judges rank pairs of test songs; kept once measured."""
        if not self._file("agreement").exists():
            one, other = map(_scorer, self.judges.values())
            trials, seed = self._trials["test"], self.config.seed
            found = trials.measure_agreement(one, other, _RESAMPLES, seed)
            self._record("agreement", {"spearman": vars(found)})
        return self.report("agreement")

    def _file(self, name: str, ending: str = "json") -> AnyPath:
        folder = "core" if name == CORE else "classifiers"
        return self.store.root / folder / f"{name}.{ending}"

    def _weights(self, name: str) -> AnyPath:
        return self._file(name, "safetensors")

    def _record(self, name: str, report: Report) -> None:
        with replacing(self._file(name)) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n")

    def _fill(self, network: nn.Module, name: str) -> None:
        weights = load_tensors(self._weights(name))
        if weights is None:
            raise ValueError(f"{self._weights(name)}: {name} is not trained")
        network.load_state_dict(weights)

    def _prepare(self, name: str, device: torch.device | str) -> _Training:
        if name in WRITERS:
            return self._prepare_writer(name, device)
        if name in JUDGES:
            return self._prepare_judge(name, device)
        if name in FOR_JUDGES:
            return self._prepare_continuation(name, device)
        prepare = {CORE: self._prepare_core, SEARCH_CLASSIFIER: self._prepare_classifier}
        return prepare[name](device)

    def _prepare_core(self, device: torch.device | str) -> _Training:
        config, corpus = self.config, self.corpus
        tokens = corpus.tokens[corpus.segments(Split.TRAIN)]
        trainer = VAETrainer(tokens, config.melody, config.core, config.seed, device)

        def report() -> Report:
            trainer.vae.measure_sigma_bar(tokens)
            random = make_random(config.seed, "core", "prior")
            return {
                name: report_reconstruction(trainer.vae, corpus.tokens[corpus.segments(split)])
                for name, split in UNSEEN
            } | {
                "prior": report_prior(trainer.vae, self._draw_prior_kinds(), random),
                "meters": _report_meters(trainer.vae, corpus),
            }

        return _Training(trainer, trainer.vae, report)

    def _prepare_continuation(self, name: str, device: torch.device | str) -> _Training:
        config = self.config
        trainer = ContinuationTrainer(
            self._training_tokens,
            self._training_pairs,
            config.melody,
            config.continuation,
            config.seed,
            name,
            device,
        )
        network = trainer.continuation

        def report() -> Report:
            return {name: _nats(network, _adjacent(self.corpus, split)) for name, split in UNSEEN}

        return _Training(trainer, network, report)

    def _prepare_writer(self, name: str, device: torch.device | str) -> _Training:
        config = self.config
        trainer = make_trainer(
            WRITERS[name],
            self._training_tokens,
            self._training_pairs,
            config.melody,
            config.writer,
            config.seed,
            device,
        )

        def report() -> Report:
            unseen = _adjacent(self.corpus, Split.VALIDATION)
            if WRITERS[name] == "backwards":
                unseen = reverse(unseen[1]), reverse(unseen[0])
            return _nats(trainer.continuation, unseen)

        return _Training(trainer, trainer.continuation, report)

    def _prepare_classifier(self, device: torch.device | str) -> _Training:
        settings, seed = self.config.search_classifier, self.config.seed
        trainer = ClassifierTrainer(self.latents, settings, seed, device)

        def scores(pairs: TokenPairs) -> np.ndarray:
            left, right = (self.core.encode_mean(half) for half in pairs)
            with torch.no_grad():
                found: np.ndarray = trainer.classifier((left, right)).numpy()
            return found

        return _Training(trainer, trainer.classifier, partial(self._reliability, scores))

    def _prepare_judge(self, name: str, device: torch.device | str) -> _Training:
        config, corpus, settings = self.config, self.corpus, getattr(self.config, name)
        trainer = JudgeTrainer(
            self._judge_data,
            self.second_opinion,
            config.melody,
            settings,
            config.seed,
            name,
            device,
        )

        def report() -> Report:
            # Fitted on validation songs, so the calibration error there is not of unseen ones.
            random = np.random.default_rng(derive(config.seed, name, "calibration"))
            adjacent = draw_adjacent(corpus, Split.VALIDATION, random)
            negatives = unpaired(corpus, Split.VALIDATION, len(adjacent), random)
            hard = draw_hard_pairs(
                corpus, Split.VALIDATION, len(adjacent), self.continuation, random
            )
            real, others = (
                LabelledTokens.of(corpus, rows).tokens for rows in (adjacent, negatives)
            )
            trainer.judge.calibrate(
                real, others, {kind: pairs.tokens for kind, pairs in hard.items()}
            )
            return self._reliability(_scorer(trainer.judge))

        return _Training(trainer, trainer.judge, report)

    def _reliability(self, scores: Scorer) -> Report:
        seed = self.config.seed
        return {
            name: trials.report(scores, _RESAMPLES, seed) for name, trials in self._trials.items()
        }

    @cached_property
    def _trials(self) -> Mapping[str, LabelledPairs]:
        """Pairs of unseen songs on which classifiers are tested."""
        return {
            name: LabelledPairs.draw(self.corpus, split, self.continuation, self.config.seed)
            for name, split in UNSEEN
        }

    @cached_property
    def _training_tokens(self) -> torch.Tensor:
        return torch.as_tensor(self.corpus.tokens[self.corpus.segments(Split.TRAIN)])

    @cached_property
    def _training_pairs(self) -> torch.Tensor:
        return _find_training_pairs(self.corpus)

    def _draw_prior_kinds(self) -> np.ndarray:
        """Draw the kinds of bars of prior samples, as they are among the training segments."""
        kinds = self.corpus.kinds[self.corpus.segments(Split.TRAIN)]
        random = np.random.default_rng(derive(self.config.seed, "prior", "kinds"))
        return np.asarray(random.choice(kinds, _PRIOR_SAMPLES))

    @cached_property
    def _judge_data(self) -> JudgeData:
        corpus, core, latents, seed = self.corpus, self.core, self.latents, self.config.seed
        random, rows = make_random(seed, "judge", "prior"), corpus.segments(Split.TRAIN)
        prior = torch.randn(_PRIOR_SAMPLES, latents.mean.shape[1], generator=random)
        draws = np.random.default_rng(derive(seed, "judge", "hard"))
        split, model = Split.TRAIN, self.continuation
        hard = [
            *draw_hard_pairs(corpus, split, _HARD_PAIRS, model, draws).values(),
            draw_continued(corpus, split, _MORE_CONTINUED, model, draws),
        ]
        left, right = (np.concatenate([pairs.tokens[half] for pairs in hard]) for half in (0, 1))
        decoded = draws.random(len(left)) < 2 / 3
        for half in (left, right):
            kinds = corpus.form.find_kinds(half[decoded])
            half[decoded] = core.decode_tokens(core.encode_mean(half[decoded]), kinds)
        return JudgeData(
            real=self._training_tokens,
            reconstructed=torch.as_tensor(core.decode_tokens(latents.mean, corpus.kinds[rows])),
            prior=torch.as_tensor(core.decode_tokens(prior, self._draw_prior_kinds())),
            pairs=latents.pairs,
            hard=torch.as_tensor(np.stack((left, right), axis=1)),
        )


def encode_training(corpus: Corpus, core: MelodyVAE) -> Latents:
    """Make the posteriors of all training segments, with σ̄ and the rows of adjacent pairs."""
    rows = corpus.segments(Split.TRAIN)
    mean, deviation = core.posteriors(corpus.tokens[rows])
    code = encode_kinds(torch.from_numpy(corpus.kinds[rows]), len(corpus.form.kinds))
    return Latents(mean, deviation, _find_training_pairs(corpus), core.sigma_bar, code)


def _find_training_pairs(corpus: Corpus) -> torch.Tensor:
    """Rows of adjacent pairs among the training segments."""
    rows = corpus.segments(Split.TRAIN)
    return torch.as_tensor(np.searchsorted(rows, corpus.pairs_of(Split.TRAIN)))


def _report_meters(core: MelodyVAE, corpus: Corpus) -> dict[str, dict[str, float]]:
    """How well validation segments of each kind of bars are decoded, if there are several."""
    rows, found = corpus.segments(Split.VALIDATION), {}
    for kind, meter in enumerate(corpus.form.kinds):
        own = rows[corpus.kinds[rows] == kind]
        if len(corpus.form.kinds) > 1 and len(own) > 1:
            report = report_reconstruction(core, corpus.tokens[own])
            found[meter] = {**report, "segments": len(own)}
    return found


def _adjacent(corpus: Corpus, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of all adjacent pairs of a split."""
    tokens = torch.as_tensor(corpus.tokens[corpus.pairs_of(split)])
    left, right = (drop_hanging_holds(half.long()) for half in tokens.unbind(1))
    return left, right


def _nats(network: Continuation, pairs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """Mean log-probability of the right halves."""
    left, right = pairs
    return {
        "after": float(network.log_probability(right, left).mean()),
        "alone": float(network.log_probability(right, None).mean()),
    }


def _scorer(judge: Judge) -> Scorer:
    def score(pairs: TokenPairs) -> np.ndarray:
        left, right = map(torch.as_tensor, pairs)
        found: np.ndarray = judge.logits(left, right).cpu().numpy()
        return found

    return score
