"""The errors that a person at the keyboard is meant to read.

Each message says in one line what was wrong, where, and what to do about it. The command line
prints it without a traceback and exits with status 2. A Python caller catches the class that it
can handle, or `UserError` for all of them.
"""


class UserError(Exception):
    """Bad input of any kind: a file, a setting, a folder, an address."""


def say_missing(module: str | None, what: str, extra: str) -> str:
    """Say what to install where a module is missing that an extra brings."""
    return (
        f"{module} is not installed, which {what} needs; to install all that it takes:"
        f" pip install 'connective-fusion[{extra}]'"
    )


class MelodyError(UserError):
    """A melody file can't be read or written, or has no bars that can be used."""


class CorpusError(UserError):
    """A corpus can't be read or written, or holds too few songs."""


class BundleError(UserError):
    """A bundle can't be read or written, or does not support what it was asked for."""


class ConfigError(UserError):
    """A study's configuration is wrong, or differs from the configuration of its records."""


class RecordsError(UserError):
    """The records of a study are missing, damaged, or of another release."""


class QueryError(UserError):
    """An SQL query can't be run."""


class SelectionError(UserError):
    """No trial can be selected by the rule given."""


class CoreGateError(UserError):
    """The core does not reach the values that `core_gate` asks for."""


class StudyBusyError(UserError):
    """Another process is running the study."""


class ClusterError(UserError):
    """Ray can't be reached, or its nodes can't do their part."""


class FigureError(UserError):
    """A figure can't be written, or the tables hold nothing that it could show."""
