"""A device that does not exist: tensors that say that they are on it, and compute on the CPU.

It shows without a GPU what goes wrong on one. What mixes devices is refused, and what makes the
host wait for numbers is counted. A graph of it replays what was recorded, at the addresses and with
the numbers of the recording, as CUDA graphs do. What is computed is what the CPU computes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from cf_core import seeding

NAME = "pretended"
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "is_nonzero")
"""Parts of the names of operations whose results have sizes or branches that the host must know."""

TO_HOST, TO_DEVICE = "to the host", "to the device"
"""What the copies between devices are called in the log, beside the operation."""

aten = torch.ops.aten
_INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


class MixedError(Exception):
    """An operation on tensors of two devices."""


class WaitedError(Exception):
    """A step that is captured made the host wait."""


class OnDevice(Tensor):
    """A tensor that says that it is on the device. `inner` has its numbers."""

    inner: Tensor  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        return _run(func, args, kwargs or {})


class _Random(torch.Generator):
    """Draws what one of the CPU draws; the device that it was asked for is known by its seed.

    PyTorch hands operations another object than this one.
    """

    devices: ClassVar[dict[int, str]] = {}
    wanted: str

    def __new__(cls, device: Any) -> "_Random":
        made = super().__new__(cls)
        made.wanted = torch.device(device).type
        return made

    def manual_seed(self, seed: int) -> torch.Generator:
        self.devices[seed] = self.wanted
        return super().manual_seed(seed)


class _Log:
    """What happened on the device."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        """Operations for which the host waited."""
        self.graph: Graph | None = None
        """The graph that is being recorded."""


log = _Log()


class Graph:
    """Operations as they were recorded, with the tensors and numbers that they had."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def record(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run and record an operation. What it overwrites is restored at the end of the recording:
        kernels that are recorded do not run.
        """
        if func._schema.is_mutable:
            for tensor in _tensors(args, kwargs):
                storage = tensor.untyped_storage()
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                self._before.setdefault(storage.data_ptr(), (whole, whole.clone()))
        returned = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, _tensors(returned)))
        return returned

    def end(self) -> None:
        """Undo what the operations did to tensors that were there before."""
        for whole, content in self._before.values():
            whole.copy_(content)
        self._before.clear()

    def replay(self) -> None:
        """Run the operations again; what they return goes to where it was returned first."""
        for func, args, kwargs, returned in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(returned, _tensors(again), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class _Stream:
    def wait_stream(self, other: "_Stream") -> None:
        """All streams are one."""


class _Module:
    """What `torch.cuda` is to GPUs."""

    CUDAGraph = Graph
    Stream = _Stream
    current_stream = _Stream

    @staticmethod
    def synchronize() -> None:
        """All is done at once."""

    @staticmethod
    def is_available() -> bool:
        """PyTorch is not to look for it by itself."""
        return False

    @staticmethod
    @contextmanager
    def stream(stream: _Stream) -> Iterator[None]:
        """Nothing changes."""
        del stream
        yield

    @staticmethod
    @contextmanager
    def graph(graph: Graph) -> Iterator[None]:
        """Record what is done."""
        log.graph = graph
        try:
            yield
        finally:
            log.graph = None
            graph.end()


class _Dispatch(TorchDispatchMode):
    """Needed where no argument is on the device, as where tensors are made or moved to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """PyTorch makes tensors of Python's numbers on the CPU, and copies them to the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = dict(kwargs or {})
        makes = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], OnDevice)
        if makes and _is_on(kwargs.get("device") or "cpu"):
            return func(*args, **{**kwargs, "device": "cpu"}).to(NAME)
        if func is Tensor.new_tensor and isinstance(args[0], OnDevice):
            return torch.tensor(args[1], **{"dtype": args[0].dtype, **kwargs}).to(NAME)
        if not (args and isinstance(args[0], OnDevice)):
            return func(*args, **kwargs)
        if func is Tensor.tolist:
            return args[0].cpu().tolist()
        if func is Tensor.__getitem__ and isinstance(args[1], list):
            return args[0][torch.tensor(args[1]).to(NAME)]
        if func == _SET_DATA:
            args[0].inner = args[1].inner
        return func(*args, **kwargs)


# PyTorch knows one kind of accelerator at a time: gradients fail on a GPU beside this one.
if not torch.cuda.is_available():
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module)


@contextmanager
def device() -> Iterator[_Log]:
    """Let the device exist. Generators of it draw what those of the CPU draw.

    A test that needs it is skipped where there is a GPU.
    """
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, beside which no device can be pretended")
    with pytest.MonkeyPatch.context() as patch, _Dispatch(), _Functions():  # type: ignore[no-untyped-call]
        patch.setattr(seeding, "Generator", _Random)
        log.waits.clear()
        yield log


def _tensors(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]


def _is_on(device: Any) -> bool:
    return torch.device(device).type == NAME


def _inner(tensor: Tensor) -> Tensor:
    return tensor.inner if isinstance(tensor, OnDevice) else tensor


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors, wanted = _tensors(args, kwargs), kwargs.get("device")
    own = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    if func in (aten._to_copy.default, aten.copy_.default):
        return _move(func, args, kwargs)
    if not own and (wanted is None or not _is_on(wanted)):
        return func(*args, **kwargs)
    # A CPU may hand over single numbers, which become arguments of a kernel.
    if strangers := [t for t in tensors if not isinstance(t, OnDevice) and t.dim() > 0]:
        raise MixedError(f"{func}: {len(strangers)} of {len(tensors)} tensors are on the CPU")
    if (random := kwargs.get("generator")) is not None:
        where = _Random.devices.get(random.initial_seed(), "cpu")
        if where != NAME:
            raise MixedError(f"{func}: the generator is on the device {where}")
    by_mask = func in _INDEXING and any(t is not None and t.dtype == torch.bool for t in args[1])
    if by_mask or any(name in str(func) for name in _WAITS):
        _wait(str(func))
    args, kwargs = tree_map_only(Tensor, _inner, (args, kwargs))
    if wanted is not None:
        kwargs = {**kwargs, "device": "cpu"}
    returned = log.graph.record(func, args, kwargs) if log.graph else func(*args, **kwargs)
    if wanted is not None and not _is_on(wanted):
        return returned
    known = {id(tensor.inner): tensor for tensor in own}
    return tree_map_only(
        Tensor, lambda t: known[id(t)] if id(t) in known else OnDevice(t), returned
    )


def _move(func: Any, args: Any, kwargs: Any) -> Any:
    """Copy a tensor, perhaps to another device: the one or the other waits then."""
    is_new = func is aten._to_copy.default
    here = isinstance(args[0] if is_new else args[1], OnDevice)
    to = kwargs.pop("device", None) if is_new else None
    there = isinstance(args[0], OnDevice) if to is None else _is_on(to)
    if here != there:
        _wait(f"{func} {TO_HOST if here else TO_DEVICE}")
    args, kwargs = tree_map_only(Tensor, _inner, (args, kwargs))
    returned = (
        log.graph.record(func, args, kwargs) if log.graph and there else func(*args, **kwargs)
    )
    if not is_new:
        return None
    return OnDevice(returned) if there else returned


def _wait(what: str) -> None:
    if log.graph is not None:
        raise WaitedError(what)
    log.waits.append(what)
