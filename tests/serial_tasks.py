"""Work on many files without starting processes, for tests of what is done with each file, not of the processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from revvideo.data import check, prepare
from revvideo.data.parallel import TaskResult


def run_tasks(
    work: Callable[[Any], Any], tasks: Sequence[Any], num_workers: int, *, timeout_seconds: float
) -> Iterator[TaskResult]:
    """As `revvideo.data.parallel.run_tasks` in this process, without a time limit."""
    for number, task in enumerate(tasks):
        try:
            yield TaskResult(number, work(task))
        except Exception as error:
            yield TaskResult(number, error=str(error), error_type=type(error).__name__)


@pytest.fixture
def processes() -> None:
    """For a test that is to start the processes."""


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch) -> None:
    """Each test module that imports this fixture starts no processes, but for the tests that ask for `processes`."""
    if "processes" not in request.fixturenames:
        for module in (check, prepare):
            monkeypatch.setattr(module, "run_tasks", run_tasks)
