"""Errors that the commands turn into exit codes (DESIGN.md, "Exit codes")."""


class InputError(ValueError):
    """Wrong input by the user: one readable message, exit code 2, no traceback."""


class CheckFailed(RuntimeError):
    """A check that the user asked for did not hold: exit code 3."""
