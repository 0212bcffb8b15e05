"""What all jobs of a study share, and where they keep what they train."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch

from cf_core.corpus import Split
from cf_core.files import AnyPath
from cf_core.fusion import FusionSettings, Latents
from cf_core.writer import Writer
from evaluation.evaluator import Evaluator
from evaluation.rivals import Tools
from evaluation.sources import Source
from study.config import EvaluationPlan
from study.store import Store

REPORT_EVERY = 100
"""Training steps between two reports; a checkpoint is written at each."""

DECIDING = "validation"
"""Source of the input pairs by which a search decides."""


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
    writer: Writer | None = None
    """Trained if a rival `writes`, or the scheme is `heard`."""
    compared_seed: int | None = None
    """Trials of this seed are recorded in the scheme `poster`, too; None where all are in it."""

    @property
    def device(self) -> torch.device:
        """Where latents and networks are."""
        return self.latents.sigma_bar.device

    def to(self, device: torch.device) -> "Workbench":
        """The same with latents and networks on another device."""
        if device == self.device:
            return self
        return replace(
            self,
            latents=self.latents.to(device),
            evaluator=self.evaluator.to(device),
            sources=[source.to(device) for source in self.sources],
            writer=None if self.writer is None else deepcopy(self.writer).to(device),
        )

    @property
    def tools(self) -> Tools:
        """What rivals may use."""
        left, right = self.latents.mean[self.latents.pairs].unbind(1)
        evaluator, corpus = self.evaluator, self.evaluator.corpus
        kinds = corpus.kinds[corpus.pairs_of(Split.TRAIN)[:, 0]]
        return Tools(
            evaluator.classifier,
            self.latents.sigma_bar,
            (left, right),
            evaluator.core,
            kinds,
            self.writer,
        )


def find_generator(store: Store, trial: str) -> AnyPath:
    """Where the averaged weights of a trial's G are kept."""
    return store.root / "generators" / f"{trial}.safetensors"


def find_rung(store: Store, trial: str, rung: int) -> AnyPath:
    """Where a trial's training stands after `rung` steps, by itself."""
    return store.root / "checkpoints" / f"{trial}-{rung}.safetensors"


def find_checkpoint(store: Store, name: str) -> AnyPath:
    """Where the training of a pack (or a network) is kept while it is going on."""
    return store.root / "checkpoints" / f"{name}.safetensors"
