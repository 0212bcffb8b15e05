"""The common base of all models' settings."""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(frozen=True)
class Settings:
    """Base of a group of settings; each number is above 0 and finite unless a subclass says so.

    Raises `ValueError`, naming the setting, for a number out of range.
    """

    # Pydantic reads this when it checks a study's configuration.
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
    }
    may_be_zero: ClassVar[tuple[str, ...]] = ()
    shares: ClassVar[tuple[str, ...]] = ()
    """Settings that lie in 0 ≤ x < 1."""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name in self.shares:
                if not 0 <= value < 1:
                    raise ValueError(f"{name}: must be at least 0 and below 1, got {value}")
            elif (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and not (0 < value < math.inf or (value == 0 and name in self.may_be_zero))
            ):
                least = "at least 0" if name in self.may_be_zero else "above 0"
                raise ValueError(f"{name}: must be finite and {least}, got {value}")
