"""How a run gets to its Ray: clusters with and without tokens, or none, and one that is there."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from cf_core.errors import ClusterError
from study.cluster import connected
from study.config import Execution
from study.run import run
from tests.tiny import Watch, tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_ray")]

ROOT = Path(__file__).parent.parent
TOKEN = "0123456789abcdef" * 4

CLIENT = """
import sys
import ray
from study.cluster import connected
from study.config import Execution
with connected(Execution(address=sys.argv[1])):
    print(ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    """That of someone with a home of their own, and nothing said about tokens."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", **more}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def head(home: Path) -> Iterator[str]:
    """The address of what `ray start --head` starts; it ends with its own processes only."""
    port = free_port()
    # Names of sockets can't be long.
    scratch = Path(tempfile.mkdtemp(prefix="ray-"))
    options = {"port": port, "num-cpus": 1, "temp-dir": scratch, "object-store-memory": 80_000_000}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--{name}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [*command, "--include-dashboard=false"],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise AssertionError("".join(said))
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=60)
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of someone with a token."""
    made = tmp_path_factory.mktemp("with")
    (made / ".ray").mkdir()
    (made / ".ray" / "auth_token").write_text(TOKEN)
    return made


@pytest.fixture(scope="module")
def guarded(home: Path) -> Iterator[str]:
    with head(home) as address:
        yield address


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with head(tmp_path_factory.mktemp("without")) as address:
        yield address


def call(address: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CLIENT, address]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_cluster_without_tokens_lets_everyone_in(
    unguarded: str, home: Path, tmp_path: Path
) -> None:
    for env in (environment(tmp_path), environment(home, RAY_AUTH_MODE="token")):
        done = call(unguarded, env)
        assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr


def test_a_cluster_with_a_token_lets_those_in_who_have_it(
    guarded: str, home: Path, tmp_path: Path
) -> None:
    there = environment(home, RAY_AUTH_MODE="token")
    told = environment(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    for env in (there, told):
        done = call(guarded, env)
        assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr


@pytest.mark.parametrize("more", [{}, {"RAY_AUTH_TOKEN": "0" * 64}])
def test_a_token_that_is_missing_or_another_is_told(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: Mapping[str, str]
) -> None:
    for name, value in {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", **more}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ClusterError, match=f"Ray at {guarded}: wants another token; "),
        connected(Execution(address=guarded)),
    ):
        pass


def test_no_token_is_told_in_one_line_before_anything_is_done(
    guarded: str, melodies: Path, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny(melodies, tmp_path / "results").model_dump_json(by_alias=True))
    command = [sys.executable, "-c", "import study.cli; study.cli.main()", "run", str(config)]
    done = subprocess.run(
        [*command, "--address", guarded],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    # Ray itself tries for 20 s, and writes a line each time.
    (line,) = (done.stdout + done.stderr).splitlines()
    assert f"Ray at {guarded}: wants a token; set RAY_AUTH_MODE=token; " in line
    for place in ("RAY_AUTH_TOKEN,", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"):
        assert place in line
    assert not (tmp_path / "results").exists()


class Stages(Watch):
    """Keeps the stages that began."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[str] = []

    def stage(self, title: str) -> None:
        self.begun.append(title)


def test_an_address_where_nobody_listens_is_told_before_any_stage(
    melodies: Path, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    execution = {"address": address, "results": str(tmp_path / "results")}
    reporter = Stages()
    with reporter, pytest.raises(ClusterError, match=rf"{address}.*execution\.address"):
        run(tiny(melodies, tmp_path, execution=execution), reporter)
    assert reporter.begun == []
    assert not (tmp_path / "results").exists()


def test_ray_client_is_refused() -> None:
    with (
        pytest.raises(ClusterError, match=r"ray://127\.0\.0\.1:1: Ray Client can't run studies"),
        connected(Execution(address="ray://127.0.0.1:1")),
    ):
        pass


def test_a_local_ray_comes_and_goes_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "7")
    assert not ray.is_initialized()
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    with connected(Execution(workers=1)):
        assert ray.cluster_resources()["CPU"] == 1
        assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "7"
        assert signal.getsignal(signal.SIGTERM) == handler
        with connected(Execution(workers=3)):
            assert ray.cluster_resources()["CPU"] == 1
        assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
    assert not ray.is_initialized()
    ours = {name for name in os.environ if name.startswith(("TUNE_", "RAY_AIR", "RAY_USAGE"))}
    assert {name: os.environ[name] for name in ours} == {
        name: environment[name] for name in environment if name in ours
    }
    assert signal.getsignal(signal.SIGTERM) == handler
