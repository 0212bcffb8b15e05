"""The cheapest of `tests.chaos`, and a study on a cluster; `make chaos` does it all."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import ray
from ray.cluster_utils import Cluster

from study.config import StageResources
from study.ledger import Ledger
from study.parts import QuarantineWarning
from study.store import Store
from tests.chaos import Arena, everything_at_once
from tests.conftest import folder
from tests.tiny import EVALUATION, HEAD, assert_same_tables, furnish, go

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "search": {"lambda": [0.1, "conditional"], "style_dim": [0], "seeds": [0, 1]},
    "evaluation": EVALUATION,
}


@pytest.fixture(scope="module")
def arena(melodies: Path, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena(tmp_path_factory.mktemp("arena"), melodies)


@pytest.fixture(scope="module")
def calm(arena: Arena, shared: Store) -> Store:
    """The study that nothing happened to."""
    store, _ = go(furnish(arena.study("calm", **SMALL), shared))
    return store


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds its victims in /proc")
def test_after_kills_nothing_is_lost_or_repeated_or_different(
    arena: Arena, calm: Store, shared: Store
) -> None:
    everything_at_once(arena, furnish(arena.study("struck", **SMALL), shared), calm)
    toll = arena.toll
    assert (toll.kills, toll.lost, toll.repeated, toll.differing_rows) == (2, 0, 0, 0)


@pytest.mark.usefixtures("own_ray")
def test_a_study_on_three_nodes_is_that_of_one_machine(
    arena: Arena, calm: Store, shared: Store
) -> None:
    """And the cluster is left running. What is lost afterwards is made again here."""
    # A GPU that is only declared: half of it for each of two workers.
    node: dict[str, Any] = {"num_cpus": 2}
    cluster = Cluster(initialize_head=True, head_node_args=HEAD | node | {"num_gpus": 1})
    lost = "lp-eta0.3"
    try:
        for _ in range(2):
            cluster.add_node(**node)
        # Alike, so that workers are taken over from one kind of job to the next.
        half = StageResources.model_validate({"trials": {"gpu": 0.5}, "rivals": {"gpu": 0.5}})
        place = {"address": cluster.address, "resources": half}
        store, lines = go(furnish(arena.study("nodes", place, **SMALL), shared), on_ray=True)
        assert any("all 3 nodes have this code and share" in line for line in lines)
        assert len(cluster.list_all_nodes()) == 3
        ray.init(address=cluster.address, log_to_driver=False)
        assert ray.cluster_resources()["CPU"] == 6
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert_same_tables(store, calm)
    for table, name in (("metrics", lost), ("bins", "references")):
        part = folder(store) / table / f"{name}.1.parquet"
        part.write_bytes(part.read_bytes()[:300])
    with pytest.warns(QuarantineWarning):
        store, lines = go(arena.study("nodes", **SMALL))
    assert "4 of 5 are already done" in lines
    assert any("2 damaged or foreign files" in line for line in lines)
    assert Ledger(store).count_attempts()[lost] == 2
    assert_same_tables(store, calm)
    trained = store.trials.filter(pl.col("seed").is_not_null()).collect()
    ends = trained["finished_at"].dt.epoch("ms") / 1000
    starts = ends - trained["seconds"]
    together = [((starts <= moment) & (ends >= moment)).sum() for moment in starts]
    # With a whole GPU there would be one pack of two trials at a time.
    assert max(together) > 2
