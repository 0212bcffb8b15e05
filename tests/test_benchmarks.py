"""What the benchmarks measure against is what a step does, and they run on a bare machine."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import evaluation, ingest, query, serve
from benchmarks.core import STYLE_DIM, WEIGHT, Bench, Shape, cuda
from benchmarks.eager import Batch, EagerTrial
from benchmarks.measuring import Measure
from benchmarks.panels import is_finished, pack_sizes
from benchmarks.products import Product, decoding, vae_step
from cf_core.melody import MelodyFormat
from cf_core.nets import MLP
from cf_core.vae import VAESettings, VAETrainer
from study.store import Store

ROOT = Path(__file__).parent.parent
NAMES = {
    "step_vs_matmul_h512",
    "pack16_vs_serial_h64",
    "processes_vs_serial_h64",
    "pack16_vs_serial_h256",
    "processes_vs_serial_h256",
    "vae_train_vs_matmul",
    "decode_segments_per_s",
    "decode_vs_matmul",
}
BARE = """
import sys
from importlib.machinery import PathFinder

ALLOWED = {*sys.stdlib_module_names, "torch", "torchgen", "functorch", "numpy", "benchmarks",
           "cf_core", "evaluation", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2",
           "markupsafe", "filelock", "fsspec"}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ALLOWED or top.startswith("_sysconfigdata"):
            return super().find_spec(name, path, target)
        return None

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""


def untransposed(product: Product) -> Product:
    rows, columns = sorted((product.rows, product.columns))
    return Product(rows, product.inner, columns)


def dispatched(action: Callable[[], object]) -> Counter[Product]:
    """Every matrix product of an action, up to transposition."""
    seen: Counter[Product] = Counter()

    class Note(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            del types
            name = func.overloadpacket.__name__
            if name in {"mm", "bmm", "addmm", "baddbmm"}:
                left, right = args[-2:] if name in {"mm", "bmm"} else args[1:3]
                pairs = left.shape[0] if left.ndim == 3 else 1
                product = Product(left.shape[-2], left.shape[-1], right.shape[-1])
                seen[untransposed(product)] += pairs
            return func(*args, **(kwargs or {}))

    with Note():  # type: ignore[no-untyped-call]
        action()
    return seen


def listed(products: Iterable[Product]) -> Counter[Product]:
    return Counter(untransposed(product) for product in products)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [1, 3])
def test_the_products_of_a_fusion_step_are_those_it_does(trials: int) -> None:
    shape = Shape(batch=20, latent_dim=6, hidden=17)
    done = dispatched(shape.pack(range(trials)).update)
    assert done == Counter({p: trials * n for p, n in listed(shape.products()).items()})


@pytest.mark.slow
def test_the_products_of_the_core_are_those_it_does() -> None:
    form = MelodyFormat()
    settings = VAESettings(latent_dim=6, hidden=17, embedding=5, depth=2, batch=20)
    tokens = np.random.default_rng(0).integers(form.vocabulary, size=(50, form.steps))
    trainer = VAETrainer(tokens.astype(np.uint8), form, settings, seed=0)
    assert dispatched(trainer.update) == listed(vae_step(form, settings))
    z = torch.zeros(7, settings.latent_dim)
    done = dispatched(lambda: trainer.vae.decode_tokens(z))
    assert done == listed(decoding(form, settings, 7))


def test_the_plain_trial_trains_as_a_pack_does() -> None:
    shape = Shape(batch=20, latent_dim=6, hidden=17)
    pack = shape.pack([0])
    plain = EagerTrial(shape.latents(), shape.settings(), WEIGHT, STYLE_DIM, seed=0)
    for stacked, alone in ((pack.g.network, plain.g), (pack.d.network, plain.d)):
        assert isinstance(stacked.net, MLP)
        linear = [layer for layer in alone if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for layer, weight, bias in zip(
                linear, stacked.net.weights, stacked.net.biases, strict=True
            ):
                layer.weight.copy_(weight[0].T)
                layer.bias.copy_(bias[0, 0])
    for _ in range(3):
        pack.batches.draw(pack.step)
        draws = pack.batches.deal()
        batches = [Batch(d.inputs[0], d.paired[0], d.style[0], d.other_style[0]) for d in draws]
        expected = plain.step(batches)
        found = {name: loss[0] for name, loss in pack.update().items()}
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        pack.step += 1


def test_verdicts() -> None:
    assert Measure("a", 1.5, "×", 1.5, "lower").verdict == "<= 1.5: met"
    assert Measure("a", 1.6, "×", 1.5, "lower").verdict == "<= 1.5: MISSED"
    assert Measure("a", 2.9, "×", 3.0, "higher").verdict == ">= 3: MISSED"
    assert Measure("a", 1.6, "×", None, "lower").verdict == "reported"


def test_what_a_gpu_is_measured_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", str)
    measures = list(cuda(Bench(repeats=1, seconds=0.0, scale=16), "cpu"))
    assert {measure.name: (measure.target, measure.better) for measure in measures} == {
        "cuda_pack64_vs_eager_h512": (30.0, "higher"),
        "cuda_pack64_vs_one_h512": (None, "higher"),
        "cuda_pack1_graph_vs_eager": (3.0, "higher"),
        "cuda_pack64_memory": (None, "lower"),
        "cuda_pack256_vs_eager_h512": (None, "higher"),
        "cuda_pack256_matmul_share": (0.5, "higher"),
        "cuda_pack256_memory": (None, "lower"),
    }
    assert all(measure.value > 0 for measure in measures)


def test_the_published_figures_of_a_gpu_are_those_that_the_benchmarks_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", str)
    small = Bench(repeats=1, seconds=0.0, scale=64)
    taken = [*cuda(Bench(repeats=1, seconds=0.0, scale=16), "cpu"), *pack_sizes(small, "cpu")]
    rows = {row.pop("name"): row for row in json.loads((ROOT / "docs" / "gpu.json").read_text())}
    for measure in taken:
        row = rows.pop(measure.name)
        assert (row["unit"], row["target"], row["better"]) == (
            measure.unit, measure.target, measure.better,
        )  # fmt: skip
    # These take a GPU to be measured at all.
    assert rows.keys() == {
        "cuda_lp_matmul_share",
        "cuda_panels_share_of_training",
        "cuda_panels_share_of_training_in_pack16",
        "cuda_evaluation_vs_products",
    }


@pytest.mark.slow
def test_the_benchmark_needs_torch_and_numpy_alone(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    output = tmp_path / "out" / "core.json"
    code = (
        "from pathlib import Path; from benchmarks.core import main;"
        f" main(repeats=1, seconds=0.0, scale=8, output=Path({str(output)!r}))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    searched = code.replace("core", "evaluation")
    for missing, success in (("import jaxtyping", False), (searched, True), (code, True)):
        command = [sys.executable, "-c", missing]
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert (run.returncode == 0) is success, run.stderr
    (lp,) = json.loads((output.parent / "evaluation.json").read_text())
    assert lp["name"] == "lp_matmul_share"
    measures = json.loads(output.read_text())
    assert {measure["name"] for measure in measures} == NAMES
    for measure in measures:
        assert measure.keys() == {"name", "value", "unit", "target", "better"}
        assert measure["value"] > 0
        assert measure["better"] in {"higher", "lower"}
        assert measure["name"] in run.stdout


@pytest.mark.slow
def test_the_evaluation_benchmark_names_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "evaluation.json"
    evaluation.main(repeats=1, seconds=0.0, scale=16, output=output)
    measures = json.loads(output.read_text())
    assert {measure["name"]: (measure["target"], measure["better"]) for measure in measures} == {
        "lp_matmul_share": (0.6, "higher"),
        "statistics_vs_decode": (0.5, "lower"),
        "panels_share_of_training": (0.25, "lower"),
        "panels_share_as_on_poster": (None, "lower"),
        "fusing_share_of_training": (None, "lower"),
        "evaluation_vs_products": (4.0, "lower"),
        "verdict_share": (0.02, "lower"),
    }
    shown = capsys.readouterr().out
    assert all(measure["value"] > 0 and measure["name"] in shown for measure in measures)


def test_a_study_that_was_never_run_is_not_what_verdicts_are_timed_on(tmp_path: Path) -> None:
    assert not is_finished(Store(tmp_path / "poster-small"))
    root = Path(__file__).parent.parent / "results" / "reference"
    assert is_finished(Store(root / "cre"))


@pytest.mark.slow
def test_the_query_benchmark_finds_what_duckdb_and_pandas_find(tmp_path: Path) -> None:
    output = tmp_path / "query.json"
    query.main(repeats=1, seconds=0.0, scale=1000, output=output)
    measures = json.loads(output.read_text())
    assert {measure["name"]: (measure["target"], measure["better"]) for measure in measures} == {
        "query_vs_duckdb_parts": (None, "higher"),
        "query_vs_pandas_parts": (None, "higher"),
        "query_vs_duckdb": (0.7, "higher"),
        "query_vs_pandas": (None, "higher"),
        "write_share": (0.02, "lower"),
    }
    assert all(measure["value"] > 0 for measure in measures)


@pytest.mark.slow
def test_the_ingest_benchmark_names_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CF_DATA", raising=False)
    output = tmp_path / "ingest.json"
    ingest.main(repeats=1, scale=64, output=output)
    measures = json.loads(output.read_text())
    assert {measure["name"]: (measure["target"], measure["better"]) for measure in measures} == {
        "ingest_vs_parse": (0.85, "lower"),
        "abc_vs_music21": (0.1, "lower"),
        "ingest_speedup_2": (1.8, "higher"),
    }
    assert all(measure["value"] > 0 for measure in measures)


@pytest.mark.slow
def test_the_server_benchmark_loses_nothing(tmp_path: Path) -> None:
    output = tmp_path / "serve.json"
    serve.main(scale=250, output=output)
    measures = json.loads(output.read_text())
    assert {measure["name"]: (measure["target"], measure["better"]) for measure in measures} == {
        "serve_requests_per_s": (None, "higher"),
        "serve_overload_p50": (None, "lower"),
        "serve_overload_p99": (None, "lower"),
        "serve_overload_refused": (None, "lower"),
        "serve_overload_lost": (0, "lower"),
        "serve_memory_growth": (1.1, "lower"),
    }
    found = {measure["name"]: measure["value"] for measure in measures}
    assert found["serve_requests_per_s"] > 0
    assert found["serve_overload_lost"] == 0


@pytest.mark.parametrize(
    ("status", "headers", "whole"),
    [
        (200, {"Content-Type": "audio/midi"}, True),
        (200, {"Content-Type": "text/html"}, False),
        (422, {"Content-Type": "application/problem+json"}, True),
        (422, {"Content-Type": "application/json"}, False),
        (503, {"Content-Type": "application/problem+json", "Retry-After": "1"}, True),
        (503, {"Content-Type": "application/problem+json"}, False),
        (500, {"Content-Type": "application/problem+json"}, False),
    ],
)
def test_an_answer_without_what_its_status_demands_is_lost(
    status: int, headers: dict[str, str], whole: bool
) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers=headers, content=b"MThd")

    async def ask() -> serve.Outcome:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await serve.ask(client, {})

    assert asyncio.run(ask()).status == (status if whole else 0)
