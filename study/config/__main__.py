"""Prints the reference of all keys, as docs/configuration.md holds it."""

import sys

from study.config.reference import write_reference

sys.stdout.write(write_reference())
