"""The base class of all rivals, which are the methods that fusion is compared with."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cf_core.losses import Pair
from cf_core.settings import Settings
from cf_core.vae import MelodyVAE
from cf_core.writer import Writer
from evaluation.classifier import SearchClassifier
from evaluation.transforms import Step, Transform

Dashes = Literal["-", "--", "-.", ":", ""] | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Look:
    """How a method is drawn: label, colour, marker and dashes, as matplotlib takes them."""

    label: str
    colour: str = "#999999"
    marker: str = "."
    dashes: Dashes = "-"


@dataclass(frozen=True)
class Tools:
    """What a rival may use. It contains no judge, and no validation or test songs."""

    classifier: SearchClassifier
    sigma_bar: Float[Tensor, "Z"]
    neighbours: Pair
    """Latents of all adjacent pairs of the training songs, with P rows in each half."""
    core: MelodyVAE
    """The frozen VAE to which all latents belong."""
    kinds: Int64[np.ndarray, "P"]
    """The kind of the bars of each of the neighbours, as an index into the format's."""
    writer: Writer | None = None
    """Models of notes of the training songs, if a rival of the study `writes`."""


@dataclass(frozen=True)
class Batch:
    """What a rival is to transform, and what it may use for that."""

    pair: Pair
    """Latents of both halves, with B rows each. They must not be changed."""
    counts: Sequence[int]
    """Numbers of iterations after which outputs are asked for: ascending, 1 or more."""
    random: torch.Generator
    """Where all random draws must come from. It is on the latents' device."""
    own: Mapping[str, Float[Tensor, "B"]]
    """By name, the value of each row's setting."""
    kinds: Int64[np.ndarray, "B"]
    """The kind of the bars of each pair."""
    tools: Tools


@dataclass(frozen=True)
class Setting:
    """One setting of a rival. It is recorded in the same way as a trial."""

    method: str
    """Name of the rival."""
    values: tuple[tuple[str, float | bool], ...] = ()
    """The values, by name, in which it differs from the rival's other settings. The names `lambda`
    and `step_size` are columns of the tables."""

    @property
    def id(self) -> str:
        """Unique name of the setting, such as "lp-eta0.1"."""
        marks = {"step_size": "eta"}
        parts = [
            name if value is True else f"{marks.get(name, name)}{value!r}"
            for name, value in self.values
            if value is not False
        ]
        return "-".join([self.method, *parts])

    def value(self, name: str) -> float | None:
        """Return the value with this name; None where the setting has none."""
        return dict(self.values).get(name)


@dataclass(frozen=True)
class Rival(Settings, ABC):
    """A method that fusion is compared with: its options, its settings, and how it runs.

    A subclass is a frozen dataclass whose fields are the options that a study may set under
    `evaluation.NAME`. It defines its `name`, `look`, `settings` and `steps`. The configuration, the
    plan, the jobs, the figures and the reference pages follow from these. A study refers to a class
    in a module of `evaluation.rivals` by its name, and to any other by `module:Class`:

        @dataclass(frozen=True)
        class Shift(Rival):
            '''Both halves moved by the same amount in all dimensions.'''

            name = "shift"
            look = Look("shift", "#332288", "1")
            amounts: tuple[float, ...] = (0.1, 0.5)
            iterations: tuple[int, ...] = (1, 2)

            def settings(self):
                return [Setting(self.name, (("amount", x),)) for x in self.amounts]

            def steps(self, batch):
                left, right = batch.pair
                for count in batch.counts:
                    by = count * batch.own["amount"][:, None]
                    yield Step(count, (left + by, right + by))

    A list of numbers must not be empty. Its values must be finite, above 0 and different from each
    other; they are sorted. Raises `ValueError`, which names the option, for any other list.
    """

    name: ClassVar[str]
    """Its name in the configuration and in the tables."""
    look: ClassVar[Look]
    """How figures draw it."""
    limits: ClassVar[str] = ""
    """Why it has no points at some distances, in a few words; "" for a method that reaches all."""
    writes: ClassVar[bool] = False
    """Whether it needs `Tools.writer`, which a study trains only then."""
    together: ClassVar[bool] = True
    """Whether all settings run as one batch that shares random draws; otherwise each is a job."""
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        **Settings.__pydantic_config__,
        # The YAML key is `lambda`, which is a reserved word in Python.
        "alias_generator": lambda name: name.rstrip("_"),
        "serialize_by_alias": True,
    }

    iterations: tuple[int, ...] = (1,)
    """Numbers of iterations after which outputs are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (field.name for field in fields(self)):
            if not isinstance(value := getattr(self, name), tuple):
                continue
            said = name.rstrip("_")
            if not value:
                raise ValueError(f"{said}: must have at least one value")
            if not all(0 < each < float("inf") for each in value):
                raise ValueError(f"{said}: all values must be finite and above 0")
            if len(set(value)) < len(value):
                raise ValueError(f"{said}: no value may be given twice")
            object.__setattr__(self, name, tuple(sorted(value)))

    def settings(self) -> list[Setting]:
        """List all settings; each is recorded separately. By default there is only one."""
        return [Setting(self.name)]

    @abstractmethod
    def steps(self, batch: Batch, /) -> Iterator[Step]:
        """Yield the outputs after each of the batch's counts.

        Rows must be independent of each other. Gradients are off.
        """

    def transform(
        self, settings: Sequence[Setting], kinds: Int64[np.ndarray, "b"], tools: Tools
    ) -> Transform:
        """Make the transform of a batch: the same pairs for each of `settings`, in their order.

        `kinds` are those of the pairs' bars.
        """
        names = [name for name, _ in settings[0].values]
        own = {
            name: torch.tensor([float(dict(one.values)[name]) for one in settings])
            for name in names
        }
        rows = {name: values.repeat_interleave(len(kinds)) for name, values in own.items()}
        return Bound(self, rows, np.tile(kinds, len(settings)), tools)


@dataclass(frozen=True)
class Bound(Transform):
    """A rival with the values of its setting for each row."""

    rival: Rival
    own: Mapping[str, Float[Tensor, "B"]]
    kinds: Int64[np.ndarray, "B"]
    tools: Tools

    def _steps(
        self, pair: Pair, counts: Sequence[int], random: torch.Generator, /
    ) -> Iterator[Step]:
        own = {name: values.to(pair[0].device) for name, values in self.own.items()}
        return self.rival.steps(Batch(pair, counts, random, own, self.kinds, self.tools))
