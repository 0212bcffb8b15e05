"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from cf_core.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, which becomes `path` if nothing is raised.

    Missing folders above it are made. Raises `UserError` where `path` can't be written.
    """
    temporary = path.parent / f".{path.name}.{uuid4().hex}"
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Some writers make files that only their owner may read, whatever the umask allows.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: can't be written ({reason}); choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
