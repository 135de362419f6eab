"""Tasks for spawned processes: they import this small module and nothing else of the tests."""

import os
import signal
import time


def double(number: int) -> int:
    return 2 * number


def misbehave(task: tuple[str, str]) -> str:
    """(what to do, a file for notes): answers its process number, unless it is asked not to."""
    what, notes = task
    with open(notes, "a", encoding="utf-8") as file:
        file.write(f"{what}\n")
    if what == "raise":
        raise ValueError("no good\nat all")
    if what == "hang":
        time.sleep(600)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(7)
    if what == "die once":
        with open(notes, encoding="utf-8") as file:
            if file.read().count(what) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    return f"{what} in {os.getpid()}"


class KillsItsReader:
    """A function that kills the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)

    def __call__(self, task: object) -> object:
        return task
