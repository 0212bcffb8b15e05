"""One run at a time: who holds a study, and whether it still lives."""

import json
import os
import platform
import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from cf_core.errors import UserError
from cf_core.files import AnyPath, replacing

_EVERY = 10.0
"""Seconds between two signs of life."""
_STALE = 60.0
"""Seconds without one after which a holder counts as dead."""


class Lease:
    """The right to run a study, kept in `running.json` of its folder while in the context.

    Entering raises `UserError`, which names the holder, while another process holds it. A holder
    that was killed loses it: at once where that can be seen on the same machine, else a minute
    after its last sign of life. What it still writes then, and its workers, has an older attempt.
    """

    def __init__(self, root: AnyPath) -> None:
        self._file, self._token = root / "running.json", uuid4().hex
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._over, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        holder = self._holder()
        if holder is not None and _lives(holder):
            raise UserError(_refusal(holder, self._file))
        self._sign()
        # Of two that saw nobody, the one that wrote last finds its own name.
        time.sleep(0.1)
        holder = self._holder()
        if holder is not None and holder["token"] != self._token:
            raise UserError(_refusal(holder, self._file))
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
        if self._is_ours():
            self._file.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise `UserError` once another run has taken the study over."""
        if self._lost:
            raise UserError(
                f"{self._file}: another run has taken this study over, since this one gave no sign"
                f" of life for {_STALE:.0f} s; nothing is lost"
            )

    def _beat(self) -> None:
        while not self._over.wait(_EVERY):
            try:
                self._lost = not self._is_ours()
                if self._lost:
                    return
                self._sign()
            except (OSError, UserError):
                continue  # the folder can't be reached: a later beat may

    def _is_ours(self) -> bool:
        holder = self._holder()
        return holder is not None and holder["token"] == self._token

    def _sign(self) -> None:
        holder = {
            "token": self._token,
            "host": platform.node(),
            "pid": os.getpid(),
            "started": self._started,
            "alive": time.time(),
        }
        with replacing(self._file) as temporary:
            temporary.write_text(json.dumps(holder) + "\n")

    def _holder(self) -> dict[str, Any] | None:
        try:
            holder = json.loads(self._file.read_text())
            _ = holder["token"], holder["host"], int(holder["pid"]), float(holder["alive"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return dict(holder)


def _lives(holder: dict[str, Any]) -> bool:
    if time.time() - holder["alive"] > _STALE:
        return False
    if holder["host"] != platform.node():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _refusal(holder: dict[str, Any], file: AnyPath) -> str:
    ago = max(0.0, time.time() - holder["alive"])
    return (
        f"{file.parent}: is being run by process {holder['pid']} on {holder['host']} since"
        f" {holder['started']}, last heard of {ago:.0f} s ago; wait for it, or stop it (a dead one"
        f" is taken over {_STALE:.0f} s after that)"
    )
