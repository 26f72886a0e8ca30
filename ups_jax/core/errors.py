"""Errors that a user can cause and correct, each with an exit code.

The message is one line: what is wrong, where, and how to fix it. `ups_jax.cli.runner` prints it without a traceback.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class UserError(Exception):
    """An error that the user can correct; the command ends with the exit code `exit_code`."""

    exit_code = 1


class ConfigError(UserError):
    """The configuration, a command-line option or the run directory is wrong."""

    exit_code = 2


class DataError(UserError):
    """A data file is missing, damaged, or not what the configuration says it is."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint is missing or damaged, or a prerequisite stage has not been trained."""

    exit_code = 4


class DivergedError(UserError):
    """Training produced non-finite values for too many consecutive steps, or a rollout is not finite."""

    exit_code = 5


class GateError(UserError):
    """A candidate did not pass the pipeline's gates and is not promoted."""

    exit_code = 6


class StorageError(UserError):
    """The disk is full or a directory cannot be written."""

    exit_code = 7


class HostMemoryError(UserError):
    """The host has run out of memory; the same command resumes when memory is free."""

    exit_code = 7


class Stopped(UserError):
    """A signal stopped the command after the state was saved; the same command resumes."""

    exit_code = 75
