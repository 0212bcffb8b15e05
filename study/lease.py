"""The lease of a study: which run holds it, and whether that run is alive. Only one may run.

Every run of a study leaves a file in the study's folder `runs`. The file says when the run gave its
last sign of life, and whether it is over. A run may begin if all others are over or dead, and it
takes a number above theirs. Files are never removed, so numbers only go up.

In a local folder the number is the file's name, `00001.json`. A run takes it by creating this file
*exclusively*, which file systems (NFS too) allow only one process to do. Of several runs that begin
at the same moment, or that find the same dead run, exactly one gets in. A run that was slow while
others came and went finds its number taken.

pyarrow offers no exclusive creation in object stores. There each run adds a random word to the
number, writes that file, and lists the folder again; it withdraws if there is a file that it had
not seen. Of two runs, the one that writes later sees the other, so at most one gets in; both may be
refused. This needs a store whose listings show all earlier writes, as S3, GCS, Azure and MinIO do.

There are two assumptions. The clocks of machines agree within half a minute. A run that gives no
sign of life for a minute is dead. If its process was only suspended, it notices within ten seconds
of its return; what it writes until then belongs to an older attempt, which does not count.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from cf_core.errors import RecordsError, StudyBusyError, UserError
from cf_core.files import AnyPath, replacing

_EVERY = 10.0
"""Seconds between two signs of life."""
_STALE = 60.0
"""Seconds without a sign of life after which a holder counts as dead."""


class Lease:
    """The right to run the study in the folder `root`, held within the context.

    Entering raises `StudyBusyError`, which names the holder, while another process holds the lease,
    and `RecordsError` where `root` can't be written. A holder that was killed loses the lease: at
    once for runs on the same machine, for others a minute after its last sign of life. `clock`
    gives seconds since 1970.
    """

    def __init__(self, root: AnyPath, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = root / "runs", clock
        self._file: AnyPath
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._over, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._enter()
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise RecordsError(
                f"{self._folder}: can't be used ({reason}); make the study's folder writable"
            ) from error
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        # The run may end because the disk is full; it then counts as dead instead of over.
        with suppress(OSError, UserError):
            self._sign(over=True)

    def check(self) -> None:
        """Raise `StudyBusyError` once another run has taken the study over."""
        if self._lost:
            raise self._busy(
                "another run has taken this study over, since this one gave no sign of life for"
                f" {_STALE:.0f} s; nothing is lost, and the other run continues the study"
            )

    def _enter(self) -> AnyPath:
        while True:
            others = _files(self._folder)
            for other in others:
                self._refuse_if_living(other)
            if file := self._take(others):
                return file

    def _take(self, others: Set[AnyPath]) -> AnyPath | None:
        """Create the holder's file; None where another run has taken its name."""
        number = max(map(_number, others), default=0) + 1
        content = json.dumps(self._holder(over=False)) + "\n"
        if isinstance(self._folder, Path):
            file = self._folder / f"{number:05d}.json"
            try:
                with file.open("x") as made:
                    made.write(content)
            except FileExistsError:
                return None
            except OSError:
                # The disk is full: the file must not look like one that is being written.
                with suppress(OSError):
                    os.utime(file, (0, 0))
                raise
            return file
        own = self._folder / f"{number:05d}-{uuid4().hex}.json"
        with replacing(own) as temporary:
            temporary.write_text(content)
        if _files(self._folder) - others != {own}:
            own.unlink()
            raise self._busy("another run began at the same moment; start this one again")
        return own

    def _refuse_if_living(self, file: AnyPath) -> None:
        holder = _read(file)
        now = self._clock()
        if holder is None:
            # The file may be just being written.
            if now - file.stat().st_mtime <= _STALE:
                raise self._busy("another run is just being started; wait for it, or stop it")
        elif _lives(holder, now):
            ago = max(0.0, now - holder["alive"])
            raise self._busy(
                f"is being run by process {holder['pid']} on {holder['host']} since"
                f" {holder['started']}, last heard of {ago:.0f} s ago; wait for it, or stop it (if"
                f" it is dead, try again {_STALE:.0f} s after its last sign of life)"
            )

    def _beat(self) -> None:
        while not self._over.wait(_EVERY):
            # If the folder can't be reached now, a later beat may reach it.
            with suppress(OSError, UserError):
                self._lost = self._is_followed()
                if self._lost:
                    return
                self._sign(over=False)

    def _is_followed(self) -> bool:
        return any(_number(file) > _number(self._file) for file in _files(self._folder))

    def _sign(self, *, over: bool) -> None:
        with replacing(self._file) as temporary:
            temporary.write_text(json.dumps(self._holder(over=over)) + "\n")

    def _busy(self, why: str) -> StudyBusyError:
        return StudyBusyError(f"{self._folder.parent}: {why}")

    def _holder(self, *, over: bool) -> dict[str, Any]:
        return {
            "host": platform.node(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": self._started,
            "alive": self._clock(),
            "over": over,
        }


def _files(folder: AnyPath) -> Set[AnyPath]:
    return {file for file in folder.glob("*.json") if _number(file)}


def _number(file: AnyPath) -> int:
    """Return the number of a run; 0 for a file that is not a run's."""
    digits = file.stem.partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def _read(file: AnyPath) -> dict[str, Any] | None:
    try:
        holder = json.loads(file.read_text())
        return {
            "host": str(holder["host"]),
            "machine": str(holder["machine"]),
            "pid": int(holder["pid"]),
            "started": str(holder["started"]),
            "alive": float(holder["alive"]),
            "over": bool(holder["over"]),
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _lives(holder: Mapping[str, Any], now: float) -> bool:
    if holder["over"] or now - holder["alive"] > _STALE:
        return False
    if holder["machine"] != _machine():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _machine() -> str:
    """Identify the processes that see each other's ids; a host's name may not be unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return platform.node()
