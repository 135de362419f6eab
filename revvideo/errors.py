"""Errors that the commands turn into exit codes (DESIGN.md, "Exit codes")."""


class InputError(ValueError):
    """Wrong input by the user: one readable message, exit code 2, no traceback."""


class WorkerFailed(RuntimeError):
    """A worker process of a loader is silent or dead; the message names what it was reading: exit code 1."""


class CheckFailed(RuntimeError):
    """A check that the user asked for did not hold: exit code 3."""


class RankFailed(RuntimeError):
    """Another process of the run failed; the message names it and its error: exit code 1, one line."""


class Stopped(Exception):
    """The run was stopped by a signal, after a checkpoint: exit code 75."""
