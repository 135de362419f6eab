"""Errors that the commands turn into exit codes (DESIGN.md, "Exit codes")."""


class InputError(ValueError):
    """Wrong input by the user: one readable message, exit code 2, no traceback."""


class WorkerFailed(RuntimeError):
    """A worker process of a loader is silent or dead; the message names what it was reading: exit code 1."""


class CheckFailed(RuntimeError):
    """A check that the user asked for did not hold: exit code 3."""


class RankFailed(RuntimeError):
    """Another process of the run failed; the message names it and its error: exit code 1, one line."""


class NotSaved(RuntimeError):
    """The checkpoint at the end of a run could not be written; the message says where to: exit code 1."""


class Stopped(Exception):
    """The run was stopped by a signal, after a checkpoint: exit code 75.

    Attributes:
        reason: name of the signal, or who else has asked for it.
    """

    def __init__(self, message: str, *, reason: str = ""):
        super().__init__(message)
        self.reason = reason
