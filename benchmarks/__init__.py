"""How fast the study is, measured against what no program could do without.

`benchmarks.core` needs PyTorch and NumPy and nothing else, so that it runs on a borrowed machine as
it is, and so does what `benchmarks.evaluation` measures of latent search. Importing this package
therefore puts stand-ins in the place of what they import besides, where that is missing:
annotations then mean nothing, and tensor files can't be read.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _StandIn(Exception):  # noqa: N818
    """Anything imported from a missing module: an annotation, a function never called, an error."""

    def __class_getitem__(cls, item: Any) -> Any:
        return item[0]


class _Missing(ModuleType):
    def __getattr__(self, name: str) -> type[_StandIn]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn


def _importable(name: str) -> bool:
    try:
        return not isinstance(import_module(name), _Missing)
    except ImportError:
        sys.modules[name] = _Missing(name)
        return False


def find_missing(*names: str) -> list[str]:
    """Which of these modules can't be imported."""
    return [name for name in names if not _importable(name)]


for _name in ("jaxtyping", "rapidfuzz", "rapidfuzz.distance.Levenshtein", "rapidfuzz.process"):
    _importable(_name)
HAS_SAFETENSORS = _importable("safetensors") & _importable("safetensors.torch")
