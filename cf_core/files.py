"""Files that appear whole or not at all, in local folders and in any file system of pyarrow."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from cf_core.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo


@dataclass(frozen=True, order=True)
class RemotePath:
    """A path in an object store or another file system of pyarrow, with the methods of `Path`.

    Folders need not be created: they are only parts of names. Methods raise `OSError`, as those of
    `Path` do.
    """

    base: str
    """Scheme and host or bucket, such as "s3://bucket"."""
    query: str
    """Options of the file system in the form of a URI's query; may be empty."""
    below: PurePosixPath
    """The path below `base`."""

    def __str__(self) -> str:
        path = "" if self.below == PurePosixPath() else f"/{self.below}"
        return f"{self.base}{path}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.base, self.query, self.below / name)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.below.name

    @property
    def suffix(self) -> str:
        """Last suffix of the name, with its dot."""
        return self.below.suffix

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return self.below.stem

    @property
    def parent(self) -> "RemotePath":
        """The folder that contains this path."""
        return RemotePath(self.base, self.query, self.below.parent)

    def with_name(self, name: str) -> "RemotePath":
        """The path with another name, in the same folder."""
        return self.parent / name

    def resolve(self) -> "RemotePath":
        """The path itself, since it is always absolute."""
        return self

    def exists(self) -> bool:
        """Whether there is a file, or a folder with something in it."""
        return bool(self._info().type)

    def is_dir(self) -> bool:
        """Whether there is a folder with something in it."""
        return bool(self._info().type == _pyarrow_fs().FileType.Directory)

    def is_file(self) -> bool:
        """Whether there is a file."""
        return bool(self._info().is_file)

    def stat(self) -> os.stat_result:
        """Its size, as `st_size`."""
        return os.stat_result((0, 0, 0, 0, 0, 0, self._info().size or 0, 0, 0, 0))

    def read_bytes(self) -> bytes:
        """The content of the file."""
        with self._system.open_input_file(self._path) as file:
            content: bytes = file.read()
        return content

    def read_text(self) -> str:
        """The content of the file, as UTF-8."""
        return self.read_bytes().decode()

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Entries directly in the folder whose names match a pattern."""
        selector = _pyarrow_fs().FileSelector(self._path, allow_not_found=True)
        for info in self._system.get_file_info(selector):
            if fnmatchcase(info.base_name, pattern):
                yield self / info.base_name

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists as soon as it contains something."""

    def replace(self, target: "RemotePath") -> "RemotePath":
        """Move the file to `target`."""
        self._system.move(self._path, target._path)
        return target

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the file."""
        try:
            self._system.delete_file(self._path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    @property
    def opened(self) -> tuple[Any, str]:
        """The file system of pyarrow, and its name for this path."""
        return self._system, self._path

    @property
    def _system(self) -> Any:
        return _file_system(self.base, self.query)[0]

    @property
    def _path(self) -> str:
        root = _file_system(self.base, self.query)[1].rstrip("/")
        return root if self.below == PurePosixPath() else f"{root}/{self.below}"

    def _info(self) -> "FileInfo":
        return self._system.get_file_info(self._path)


AnyPath = Path | RemotePath
"""A path in a local folder (or NFS), or in a remote file system."""


def place(text: str) -> AnyPath:
    """Parse a path or a URI: `results/x`, `s3://bucket/prefix`, `gs://…`, `file://…`.

    Options of the file system go into the URI's query, as pyarrow defines them. Raises `UserError`
    where pyarrow has no such file system, and where the file system can't be reached.
    """
    parts = urlsplit(text)
    if "://" not in text:
        return Path(text)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if not parts.netloc:
        raise UserError(f"{text}: names no bucket or host; write it as in s3://bucket/folder")
    if parts.password is not None:
        raise UserError(f"{parts.scheme}://…: credentials belong in the environment, not in a URI")
    base = f"{parts.scheme}://{parts.netloc}"
    path = RemotePath(base, parts.query, PurePosixPath(unquote(parts.path).strip("/")))
    try:
        path.exists()
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{text}: can't be reached ({reason})") from None
    return path


@contextmanager
def replacing(path: AnyPath, failure: type[UserError] = UserError) -> Iterator[Path]:
    """Yield a temporary path to write to, which becomes `path` if nothing is raised.

    Missing parent folders are created. Raises `failure` where `path` can't be written.
    """
    try:
        if path.is_dir():
            raise failure(f"{path}: is a folder; give the name of a file")
        with _replacing(path) if isinstance(path, Path) else _uploading(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        if isinstance(error, FileExistsError):  # in place of a parent folder
            reason = f"{error.filename} is a file"
        raise failure(f"{path}: can't be written ({reason}); choose another place") from error


@contextmanager
def replacing_folder(
    path: Path, kind: str, is_one: Callable[[Path], bool], failure: type[UserError] = UserError
) -> Iterator[Path]:
    """Yield a new folder to fill, which becomes `path` if nothing is raised.

    What is there is replaced only if `is_one` says that it is a folder of this `kind`, such as "a
    bundle". Raises `failure` where it isn't, and where `path` can't be written.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    earlier = path.parent / f"{temporary.name}.earlier"
    try:
        if path.exists() and not is_one(path):
            raise failure(f"{path}: exists and is not {kind}; choose another place")
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rename(earlier)
        temporary.rename(path)
    except OSError as error:
        raise failure(
            f"{path}: can't be written ({error.strerror or error}); choose another place"
        ) from error
    finally:
        with suppress(OSError):
            if earlier.exists() and not path.exists():
                earlier.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


@contextmanager
def local(path: AnyPath) -> Iterator[Path]:
    """Yield a local file with the content of `path`, for libraries that read only local files.

    Raises `FileNotFoundError` where a remote `path` does not exist; a local one is not checked.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="connective-fusion-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.parent / f".{path.name}.{uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Some writers create files that only their owner may read, whatever the umask allows.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _uploading(path: RemotePath) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="connective-fusion-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        system, name = path.opened
        # One call copies the whole file: a stream closed by an exception would leave part of it.
        _pyarrow_fs().copy_files(
            str(temporary),
            name,
            source_filesystem=_pyarrow_fs().LocalFileSystem(),
            destination_filesystem=system,
        )


@cache
def _file_system(base: str, query: str) -> tuple[Any, str]:
    try:
        found: tuple[Any, str] = _pyarrow_fs().FileSystem.from_uri(
            f"{base}?{query}" if query else base
        )
    except (ValueError, OSError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{base}: pyarrow can't open it ({reason}); correct the URI") from None
    return found


def _pyarrow_fs() -> Any:
    import pyarrow.fs  # noqa: PLC0415  (training on a local disk does not need it)

    return pyarrow.fs
