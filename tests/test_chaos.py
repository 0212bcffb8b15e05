"""The cheapest of `tests.chaos`; `make chaos` does it all."""

from pathlib import Path
from typing import Any

import pytest

from study.store import Store
from tests.chaos import Arena, everything_at_once
from tests.tiny import EVALUATION, furnish, go

SMALL: dict[str, Any] = {
    "search": {"lambda": [0.1, "conditional"], "style_dim": [0], "seeds": [0, 1]},
    "evaluation": EVALUATION,
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds its victims in /proc")
def test_after_kills_nothing_is_lost_or_repeated_or_different(
    melodies: Path, shared: Store, tmp_path: Path
) -> None:
    arena = Arena(tmp_path, melodies)
    calm, struck = (furnish(arena.study(n, **SMALL), shared) for n in ("calm", "struck"))
    undisturbed, _ = go(calm)
    everything_at_once(arena, struck, undisturbed)
    toll = arena.toll
    assert (toll.kills, toll.lost, toll.repeated, toll.differing_rows) == (2, 0, 0, 0)
