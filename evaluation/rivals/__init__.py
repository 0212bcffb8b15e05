"""The rivals: the methods that fusion is compared with. Each is one class in one file.

To add a rival, put a file with a subclass of `Rival` into this folder; no other code has to change.
A study can also name a class of the user's own code, as `package.module:Class`.
"""

import inspect
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from cf_core.errors import ConfigError
from evaluation.rivals.base import Batch, Look, Rival, Setting, Tools

__all__ = ["Batch", "Look", "Rival", "Setting", "Tools", "find_rival", "hash_source", "list_rivals"]


@cache
def list_rivals() -> Mapping[str, type[Rival]]:
    """List the rivals of this folder by name: first LP, the poster's baseline, then the others."""
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    found = {
        kind.name: kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Rival) and kind.__module__ == module.__name__ and kind is not Rival
    }
    return dict(sorted(found.items(), key=lambda item: (item[0] != "lp", item[0])))


def find_rival(name: str) -> type[Rival]:
    """Find the rival class with this name, or import it from `package.module:Class`.

    Raises `ConfigError` where there is no such class, or where it is not a complete rival.
    """
    known = list_rivals()
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"{name}: no such rival; choose {', '.join(known)}, or a class of your own as"
            " package.module:Class"
        )
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{name}: can't be imported ({error}); correct the name, or put it on PYTHONPATH"
        ) from error
    if not (inspect.isclass(kind) and issubclass(kind, Rival)) or inspect.isabstract(kind):
        raise ConfigError(
            f"{name}: must be a subclass of evaluation.rivals.Rival that defines all its methods"
        )
    if not isinstance(getattr(kind, "name", None), str) or not kind.name.isidentifier():
        raise ConfigError(f"{name}: the class's name must be a word, such as name = 'my_rival'")
    if kind.name in known:
        raise ConfigError(
            f"{name}: a built-in rival has the name {kind.name} too; give the class another name"
        )
    return kind


def hash_source(kind: type[Rival]) -> str:
    """SHA-256 of the source file of a rival, in hexadecimal."""
    return sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
