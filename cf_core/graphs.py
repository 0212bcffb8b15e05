"""A step as one graph of kernels, which a GPU launches at once.

A step of a pack has some hundreds of small kernels. On a GPU, launching one takes a few
microseconds, and for small networks longer than its arithmetic. A CUDA graph records all of them
once, and then launches them together.

A graph knows addresses and numbers, not names. So what it reads must lie at the same place each
time, and no number that a step takes from Python may change from one step to the next. The function
that is captured therefore takes no arguments.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_EAGER = 3
"""Calls before the capture: libraries that are used for the first time allocate, which no graph may
do. They are calls like all others, and count."""
WARM_UP = _EAGER + 1
"""Calls until a graph is launched as often as it is called."""


class Graphed:
    """Calls a function, on a GPU as one graph. On a CPU it is called as it is.

    What is returned is overwritten by the next call. `eager` calls the function as it is on a GPU,
    too: the reference for the graph.
    """

    def __init__(
        self,
        function: Callable[[], dict[str, Tensor]],
        device: torch.device,
        *,
        eager: bool = False,
    ) -> None:
        self._function, self._calls = function, 0
        self._eager = eager or device.type == "cpu"
        # The module of the device, `torch.cuda` for GPUs.
        self._gpu: Any = None if self._eager else torch.get_device_module(device)
        self._graph: Any = None
        self._returned: dict[str, Tensor] = {}

    def __call__(self) -> dict[str, Tensor]:
        """Call the function."""
        if self._eager:
            return self._function()
        self._calls += 1
        if self._calls <= _EAGER:
            with self._aside():
                return self._function()
        if self._graph is None:
            self._graph = self._gpu.CUDAGraph()
            with self._gpu.graph(self._graph):
                self._returned = self._function()
        self._graph.replay()
        return self._returned

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On a stream of its own, as captures are."""
        stream, current = self._gpu.Stream(), self._gpu.current_stream()
        stream.wait_stream(current)
        with self._gpu.stream(stream):
            yield
        current.wait_stream(stream)
