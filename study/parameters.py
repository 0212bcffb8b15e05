"""What a search may try different values of: one table, from which everything else follows.

The keys of `search` in the configuration, the columns of the tables, the distributions that Optuna
is given, which trials can share a pack, and the axes of figures are all made from `PARAMETERS`. To
add a parameter, add a row: its name must be a field of `cf_core.fusion.FusionSettings`.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Parameter:
    """One thing that configurations may differ in."""

    name: str
    """In the configuration, in the tables and in Optuna."""
    label: str
    """On the axes of figures."""
    kind: Literal["whole", "real"]
    about: str
    """For the reference pages: a noun phrase without a full stop."""
    least: Literal["above 0", "at least 0", "at least 1"] = "above 0"
    log: bool = False
    """Whether figures draw it on a logarithmic axis."""
    within_pack: bool = False
    """Whether trials that differ in it can be trained in one pack; else it is one of shape or
    budget, which all trials of a pack share."""


PARAMETERS: dict[str, Parameter] = {
    one.name: one
    for one in (
        Parameter(
            "lambda", "λ", "real", "Weight of similarity", "at least 0", log=True, within_pack=True
        ),
        Parameter(
            "style_dim", "style dimension", "whole", "Dimensions of the style", "at least 0",
            within_pack=True,
        ),
        Parameter("hidden", "width", "whole", "Width of G and D", "at least 1"),
        Parameter(
            "learning_rate", "learning rate", "real", "Learning rate of G and D", log=True,
            within_pack=True,
        ),
        Parameter("steps", "steps", "whole", "Training budget: updates of G", "at least 1"),
        Parameter(
            "style_weight", "style weight", "real", "Weight of the style loss", "at least 0",
            log=True,
        ),
    )
}  # fmt: skip
"""All of them, in the order in which a configuration's values are chosen."""

SETTINGS: dict[str, Parameter] = {
    name: one for name, one in PARAMETERS.items() if name not in ("lambda", "style_dim")
}
"""Those that are settings of fusion. λ and the style dimension are inputs of each trial."""
