"""The errors that a user can cause, each with the exit code of its kind.

One line says what is wrong, where, and how to mend it; `ups_jax.cli.runner` prints it without a traceback.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class UserError(Exception):
    """An error that the user can mend; `exit_code` is what a script ends with."""

    exit_code = 1


class ConfigError(UserError):
    """Wrong usage, configuration or run directory."""

    exit_code = 2


class DataError(UserError):
    """A data file is missing, damaged, or not what the configuration says it is."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint is missing or damaged, or a prerequisite stage has not been trained."""

    exit_code = 4


class DivergedError(UserError):
    """Training produced non-finite values for too many steps in a row, or a rollout left the finite numbers."""

    exit_code = 5


class GateError(UserError):
    """A candidate was not good enough to be promoted."""

    exit_code = 6


class StorageError(UserError):
    """The disk is full or a directory cannot be written."""

    exit_code = 7


class HostMemoryError(UserError):
    """The memory of the host has run out: as with a full disk, the same command goes on once there is room."""

    exit_code = 7


class Stopped(UserError):
    """Stopped by a signal after the state was saved; the same command goes on."""

    exit_code = 75
