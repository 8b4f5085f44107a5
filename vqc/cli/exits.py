"""How a command ends: its exit code, and the error that a wrong command line is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from vqc.errors import VqcError


class Exit(IntEnum):
    """The exit codes of every command; docs/cli.md has them for readers."""

    OK = 0
    WORK = 1  # the work failed: a clip, a network, a compiler, a disk
    USAGE = 2  # the command line or the configuration file asks for what cannot be; nothing was begun
    BOUND = 3  # a comparison found more difference than the user allows


class Misuse(Exception):
    """The command line or the configuration file is wrong, and `error` says how: exit code 2, where others give 1."""

    def __init__(self, error: VqcError):
        self.error = error
        super().__init__(str(error))


@contextmanager
def misuse(*kinds: type[VqcError]) -> Iterator[None]:
    """Errors of these kinds (all, if none is given) that arise in the block become a Misuse."""
    try:
        yield
    except VqcError as error:
        if kinds and not isinstance(error, kinds):
            raise
        raise Misuse(error) from error
