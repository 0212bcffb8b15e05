"""Nodes that differ from the driver are found before anything is handed out."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from cf_core.errors import ClusterError
from study import nodes as ours
from study.cluster import connected, lacking
from study.config import Execution, StageResources
from study.nodes import PACKAGES, code, prove
from tests.tiny import HEAD, RAY

Join = Callable[..., None]

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes; each costs seconds to start."""
    RAY.stop()
    made = Cluster(initialize_head=True, head_node_args=HEAD | {"num_cpus": 1})
    made.add_node(num_cpus=3, num_gpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def join(cluster: Cluster) -> Iterator[Join]:
    """Connect to the cluster until the test is over."""
    with ExitStack() as stack:
        yield lambda **more: stack.enter_context(
            connected(Execution(address=cluster.address, **more))
        )


def test_all_nodes_show_what_they_have_and_see(join: Join, tmp_path: Path) -> None:
    join()
    half = StageResources.model_validate({"trials": {"cpu": 3, "gpu": 0.5}, "rivals": {"cpu": 1}})
    assert lacking(half) is None
    # All nodes together would have it.
    more = StageResources.model_validate({"trials": {"cpu": 1}, "rivals": {"cpu": 3.5, "gpu": 1}})
    assert lacking(more) == "execution.resources.rivals: no node has 3.5 CPU, 1 GPU"
    assert prove(tmp_path) == 2
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match=r"node .*: can't take part: .*file.* can't be written"):
        prove(tmp_path / "file")


def test_a_node_that_does_not_see_the_results_is_named(
    join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join()
    real, seen = ours._on, list[str]()

    def elsewhere(node: str, host: str, task: Any, folder: Path, *rest: Any) -> Any:
        # The second node has a folder of its own under the same name.
        seen.append(node)
        own = folder if node == seen[0] else folder.with_name("own")
        return real(node, host, task, own, *rest)

    monkeypatch.setattr(ours, "_on", elsewhere)
    with pytest.raises(ClusterError, match=r"does not see in .* what .* wrote there; results must"):
        prove(tmp_path)


OTHER_LIBRARIES = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "0.1" if name == "torch" else real(name)
"""
"""A `sitecustomize` module of a machine with another PyTorch."""


def test_a_node_with_other_libraries_is_named(cluster: Cluster, join: Join, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(OTHER_LIBRARIES)
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    join()
    with pytest.raises(ClusterError, match=rf"has torch 0\.1 \(here {code()['torch']}\); install"):
        prove(tmp_path)
    cluster.remove_node(node)


def test_code_is_shipped_to_the_nodes_where_that_is_asked_for(join: Join, tmp_path: Path) -> None:
    join(ship_code=True)
    paths = ray.get(ray.remote(lambda: sys.path).remote())
    shipped = [Path(path) for path in paths if "runtime_resources" in path]
    for package in PACKAGES:
        assert any((path / package / "__init__.py").exists() for path in shipped)
    assert prove(tmp_path) == 2


def test_the_hash_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    monkeypatch.setattr(ours, "folders", lambda: [tmp_path / name for name in PACKAGES])
    code.cache_clear()
    same = code()
    with (tmp_path / "cf_core" / "losses.py").open("a") as file:
        file.write("# another version\n")
    code.cache_clear()
    other = code()
    monkeypatch.undo()
    code.cache_clear()
    assert code() == same
    assert other["code"] != same["code"]
