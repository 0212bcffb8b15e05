"""The rivals: every method that fusion is compared with, each one class in one file.

To add one, put a file with a subclass of `Rival` into this folder; nothing else has to be changed.
A study may also name a class of its own code, as `package.module:Class`.
"""

import inspect
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from cf_core.errors import ConfigError
from evaluation.rivals.base import Look, Rival, Setting, Tools

__all__ = ["Look", "Rival", "Setting", "Tools", "find_rival", "hash_source", "list_rivals"]


@cache
def list_rivals() -> Mapping[str, type[Rival]]:
    """List the rivals of this folder by name: LP, the baseline of the poster, then all others."""
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    found = {
        kind.name: kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Rival) and kind.__module__ == module.__name__ and kind is not Rival
    }
    return dict(sorted(found.items(), key=lambda item: (item[0] != "lp", item[0])))


def find_rival(name: str) -> type[Rival]:
    """The rival of a name, or of `package.module:Class`.

    Raises `ConfigError` where there is none, or where the class is no complete rival.
    """
    known = list_rivals()
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"{name}: no such rival; there are {', '.join(known)}, or package.module:Class"
        )
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name}: can't be imported: {error}") from error
    if not (inspect.isclass(kind) and issubclass(kind, Rival)) or inspect.isabstract(kind):
        raise ConfigError(f"{name}: is no subclass of evaluation.rivals.Rival with all its methods")
    if not isinstance(getattr(kind, "name", None), str) or not kind.name.isidentifier():
        raise ConfigError(f"{name}: its name must be a word, such as my_rival")
    if kind.name in known:
        raise ConfigError(f"{name}: its name {kind.name} is taken by a built-in rival")
    return kind


def hash_source(kind: type[Rival]) -> str:
    """SHA-256 of the file that a rival is written in, in hexadecimal."""
    return sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
