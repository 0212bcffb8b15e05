"""Calls in separate processes: one that hangs, exhausts memory or crashes harms no other call.

The operating system enforces the limits, so they also hold for code that never returns to Python.
macOS does not enforce the limit of memory. Windows has neither limit, and this module does not work
there.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable
from weakref import finalize

from cf_core.errors import UserError

SECONDS = 10.0
"""Longest time that one call may take."""
MEMORY = 2**30
"""Most bytes of address space that the process of a call may use, imported modules included."""

R = TypeVar("R")


class CallError(Exception):
    """A call was stopped by a limit, or its process died."""

    def __init__(self, reason: Literal["too slow", "too much memory", "reader died"], detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@runtime_checkable
class Mapper(Protocol):
    """Calls a function on every item, several at a time; results come in any order.

    Items are taken from the iterable only as they are needed.
    """

    def __call__(self, function: Callable[[Any], R], items: Iterable[Any], /) -> Iterator[R]:
        """Yield the function's results; an exception that it raises is raised here."""


def call_isolated(function: Callable[..., R], *arguments: Any) -> R:
    """Call a function in a process that belongs to the calling thread and is kept for later calls.

    Arguments and result are pickled. Raises `CallError` where the call is stopped at `SECONDS` or
    `MEMORY`, or its process dies, by a crash or by an exception of the function. Raises `UserError`
    where no process can be started.
    """
    if not hasattr(_thread, "process"):
        _thread.process = _Process()
    result: R = _thread.process.call(function, arguments)
    return result


def processes(count: int | None = None) -> Mapper:
    """Make a mapper for functions that use `call_isolated`; each thread has a process of its own.

    `count` is how many calls run at a time, by default one for each CPU. Callers need not guard
    their `__main__`, since the processes import nothing from it.
    """
    size = count or os.cpu_count() or 1

    def mapper(function: Callable[[Any], R], items: Iterable[Any], /) -> Iterator[R]:
        started: list[_Process] = []

        def start() -> None:
            _thread.process = _Process()
            started.append(_thread.process)

        threads = ThreadPoolExecutor(size, initializer=start)
        try:
            pending: set[Future[R]] = set()
            for item in items:
                pending.add(threads.submit(function, item))
                # A short queue keeps memory flat however many items there are.
                if len(pending) > 2 * size:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(pending))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            for process in started:
                process.close()

    return mapper


_thread = threading.local()
_MEMORY_STATUS = 77
"""Exit status of a process whose call ran out of memory; the number is arbitrary."""
_COMMAND = "import cf_core.isolation; cf_core.isolation.serve()"


class _Process:
    """A process that makes calls. It starts with the first call, and again after a failed one."""

    def __init__(self) -> None:
        self._closed = False
        self._end: finalize[[Popen[bytes]], Any] | None = None

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self._end is None or not self._end.alive:
            self._start()
        try:
            self._pipe.send((function, arguments, SECONDS))
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            status = self._stop()
            if status == -signal.SIGALRM:
                raise CallError("too slow", f"more than {SECONDS:g} seconds") from error
            if status == _MEMORY_STATUS:
                raise CallError("too much memory", f"more than {MEMORY / 2**20:g} MiB") from error
            raise CallError("reader died", f"exit status {status}") from error

    def close(self) -> None:
        """End the process; a running call fails, and no other call starts."""
        self._closed = True
        self._stop()

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
            # Each thread of a numerical library would take up memory.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with theirs:
            self._popen = Popen(  # noqa: S603
                [sys.executable, "-P", "-c", _COMMAND, str(theirs.fileno()), str(MEMORY)],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
                # Only the caller should receive Ctrl-C.
                start_new_session=True,
            )
        self._end = finalize(self, _kill, self._popen)
        if self._closed:
            self._stop()
        try:
            self._pipe.recv()
        except EOFError as error:
            raise UserError(
                f"can't start a process for a reader (exit status {self._stop()}); free some memory"
            ) from error

    def _stop(self) -> int | None:
        """End the process, unless it has ended by itself, and return its exit status."""
        return self._end() if self._end is not None else None


def _kill(process: "Popen[bytes]") -> int:
    process.kill()
    return process.wait()


def serve() -> None:
    """Make one call after another until the caller is gone: the main loop of the process."""
    import resource  # noqa: PLC0415  (not on Windows, where the rest of the program may run)

    pipe = Connection(int(sys.argv[1]))
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
    pipe.send("ready")
    while True:
        try:
            function, arguments, seconds = pipe.recv()
        except EOFError:
            return
        # The signal has no handler, so it ends the process, as an exception of the call does.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            result = function(*arguments)
        except MemoryError:
            os._exit(_MEMORY_STATUS)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(result)
