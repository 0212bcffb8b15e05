"""Fixtures of all tests. Imports take seconds, so each fixture has its own."""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from cf_core.bundle import Bundle
    from cf_core.melody import MelodyFormat
    from study.store import Store

# Set before the processes of tests are started. BLAS would start a thread for each core in every
# one of them, and those that wait for each other cost many times what the products do.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# The same examples everywhere, and no deadline: a busy machine is no fault of what is tested.
settings.load_profile("ci")

_STUDIES = (
    "test_study.py",
    "test_sweep.py",
    "test_chaos.py",
    "test_example_scripts.py",
    "test_heard_study.py",
    "test_publish.py",
    "test_device_study.py",
)
"""Files of tests that run whole studies. They take longest, so they come first: no process should
wait for another at the end."""

MakeBundle = Callable[..., "Bundle"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: (*_STUDIES, item.path.name).index(item.path.name))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Small tensors: more threads would only wait for each other. Runs of studies set their own.

    Shapes are checked except in whole studies, which would take half as long again, and where
    networks are traced, whose sizes are symbols. All that is checked has tests of its own.
    """
    import torch

    torch.set_num_threads(1)
    unchecked = (*_STUDIES, "test_export.py")
    jaxtyping.config.update("jaxtyping_disable", item.path.name in unchecked)


def folder(store: "Store") -> Path:
    """The study's folder, where that is a local one."""
    assert isinstance(store.root, Path)
    return store.root


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first process of this session makes, and the others wait for."""
    place = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    folder = place / name
    with (place / f"{name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.fstat(lock.fileno()).st_size:  # as it is now, not as it was when opened
            folder.mkdir(exist_ok=True)
            make(folder)
            lock.write("made")
    return folder


@pytest.fixture(scope="session")
def melodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tunes."""
    from tests.tiny import write_melodies

    return make_once(tmp_path_factory, "melodies", write_melodies)


@pytest.fixture(scope="session")
def shared(melodies: Path, tmp_path_factory: pytest.TempPathFactory) -> "Store":
    """What all trials of the tiny study share, and no trial yet."""
    from study.run import root
    from study.store import Store
    from tests.tiny import models, tiny

    made = make_once(tmp_path_factory, "shared", lambda results: models(tiny(melodies, results)))
    return Store(root(tiny(melodies, made)))


@pytest.fixture(scope="session", autouse=True)
def shared_ray() -> Iterator[None]:
    """The Ray that tests share is started by the first that needs it."""
    yield
    if "tests.tiny" in sys.modules:
        sys.modules["tests.tiny"].RAY.stop()


@pytest.fixture
def own_ray() -> None:
    """None is there: the test starts one of its own, or a cluster."""
    from tests.tiny import RAY

    RAY.stop()


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """Address of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a bucket on it, with all that clients need in the environment."""
    from pyarrow.fs import S3FileSystem

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True).create_dir("studies")
    return "s3://studies"


@pytest.fixture
def make_bundle() -> MakeBundle:
    """A small bundle with random weights: what it makes is no music, but always the same.

    A conditional one chose λ = 0.1 of 0.001…10. A `heard` one has a writer.
    """
    import torch

    from cf_core.bundle import Bundle
    from cf_core.fusion import Generator
    from cf_core.heard import Heard
    from cf_core.melody import MelodyFormat
    from cf_core.nets import initialise
    from cf_core.vae import MelodyVAE, VAESettings
    from cf_core.writer import Writer, WriterSettings

    def make(
        form: "MelodyFormat | None" = None,
        style_dim: int = 2,
        *,
        gated: bool = True,
        conditional: bool = False,
        heard: bool = False,
    ) -> "Bundle":
        form = form or MelodyFormat()
        core = MelodyVAE(form, VAESettings(latent_dim=8, hidden=16, embedding=8, depth=1))
        generator = Generator(
            8, style_dim, 16, 2, gated=gated, conditional=conditional, kinds=len(form.kinds)
        )
        initialise(core, torch.Generator().manual_seed(1))
        initialise(generator, torch.Generator().manual_seed(2))
        core.sigma_bar.uniform_(generator=torch.Generator().manual_seed(3))
        writer = Writer(form, WriterSettings(hidden=8))
        initialise(writer, torch.Generator().manual_seed(4))
        return Bundle(
            form,
            core,
            generator,
            iterations=3,
            lambda_=0.1 if conditional else None,
            lambda_range=(1e-3, 10.0) if conditional else None,
            record={"study": "tiny"},
            heard=Heard(core, writer, price=4.0, drafts=2, imbalance=0.01, lead=0.5)
            if heard
            else None,
        )

    return make
