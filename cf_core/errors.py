"""The one error type that a person at the keyboard is meant to read."""


class UserError(Exception):
    """What was wrong, where, and what to do about it, in one line.

    Raised for bad input (a file, a setting, a bundle). The command line prints it without a
    traceback and exits with status 2; a Python caller catches it like any exception.
    """
