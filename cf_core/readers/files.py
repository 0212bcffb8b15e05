"""The melody files of a folder, a zip archive or a single file, found by their names."""

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cf_core.errors import MelodyError
from cf_core.readers.limits import MAX_BYTES

FORMATS = {
    ".mid": "midi",
    ".midi": "midi",
    ".kar": "midi",
    ".rmi": "midi",
    ".mxl": "musicxml",
    ".musicxml": "musicxml",
    ".xml": "musicxml",
    ".abc": "abc",
}
"""Suffixes of the files that can be read."""
UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Allowed compressions of archive members: others can expand a few bytes to gigabytes at once."""

_DAMAGE = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What reading a file or a damaged archive raises."""


def read_melody_files(source: Path, include: str | None) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of the melody files in `source`, sorted by name.

    Raises `MelodyError` where there is no such file or folder, or an archive can't be read.
    """
    root, names = _listing(source)
    for name in sorted(name for name in names if _is_wanted(name, include)):
        yield name, read_content(root / name if isinstance(root, Path) else root / names[name])


def count_passed_over(source: Path, include: str | None = None) -> Counter[str]:
    """Count the files of `source` that are not read because of their names, by suffix.

    A file without a suffix counts as its name. Raises `MelodyError` as `find_songs` does.
    """
    names = (PurePosixPath(name) for name in _listing(source)[1] if not _is_wanted(name, include))
    return Counter(name.suffix.lower() or name.name for name in names)


def read_content(path: Path | zipfile.Path) -> bytes:
    """Return a file's bytes: at most one more than the limit, and none if the file is damaged."""
    limit = MAX_BYTES[FORMATS[PurePosixPath(path.name).suffix.lower()]]
    try:
        packed = isinstance(path, zipfile.Path) and path.root.getinfo(path.at).compress_type
        if packed and packed not in UNPACKED:
            return b""
        with path.open("rb") as stream:
            return bytes(stream.read(limit + 1))
    except _DAMAGE:
        return b""


def decode_member_name(member: zipfile.ZipInfo) -> str:
    """Name of an archive's member: decoded as UTF-8 if possible, even where no flag says so."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode()
    except UnicodeError:
        return member.filename


def _is_wanted(name: str, include: str | None) -> bool:
    path = PurePosixPath(name)
    readable = path.suffix.lower() in FORMATS and not path.name.startswith(".")
    return readable and (include is None or path.match(include))


def _listing(source: Path) -> tuple[Path | zipfile.Path, dict[str, str]]:
    """Return the folder or archive, and the names stored in it by the names shown to users."""
    if os.path.isdir(source):  # noqa: PTH112  (Path.is_dir raises where it may not look)
        names = [
            path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()
        ]
        return source, {name: name for name in names}
    if not os.path.isfile(source):  # noqa: PTH113
        raise MelodyError(f"{source}: no such file or folder")
    if source.suffix.lower() != ".zip":
        return source.parent, {source.name: source.name}
    try:
        root = zipfile.Path(source)
    except _DAMAGE as error:
        raise MelodyError(f"{source}: not a readable zip archive ({error}); replace it") from error
    members = [member for member in root.root.infolist() if not member.is_dir()]
    return root, {decode_member_name(member): member.filename for member in members}
