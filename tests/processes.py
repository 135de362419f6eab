"""Several processes of one run, forked from pytest: they have torch imported already, which costs seconds otherwise.

    def work(folder): ...                       # a top-level function; current_process() knows its rank
    results = run_processes(2, work, tmp_path)  # -> one Result a rank
    first, second = values(results)             # all of them must have ended well

On a machine with a GPU they come from a fork server instead, since a fork can use neither CUDA nor, after a backward in
pytest, autograd. So `work` and its arguments have to be what pickle can send: top-level functions and plain values.
"""

import faulthandler
import functools
import importlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path

import pytest
import torch

POLL_SECONDS = 0.02
FIRST_IMPORTED_BY_DDP = "torch._dynamo"  # when a first DistributedDataParallel is made: three seconds in each process


@dataclass(frozen=True)
class Result:
    """How one process ended.

    Attributes:
        rank: its number.
        exitcode: 0; 1 after an exception; the code of a SystemExit; -N if signal N killed it.
        value: what `work` returned; None if it did not return.
        output: what the process, and its children, wrote to stdout and stderr; with `one_log`, what all of them did.
        seconds: from the start of the first process to the end of this one.
    """

    rank: int
    exitcode: int
    value: object
    output: str
    seconds: float


def values(results: list[Result]) -> list:
    """What each process returned, in the order of ranks; fails the test if one did not end well."""
    for result in results:
        if result.exitcode != 0:
            pytest.fail(f"rank {result.rank} ended with {result.exitcode}:\n{result.output}")
    return [result.value for result in results]


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_processes(
    count: int,
    work: Callable,
    *args: object,
    timeout_seconds: float = 60,
    environ: Mapping[str, str | None] | None = None,
    one_log: bool = False,
) -> list[Result]:
    """Run `work(*args)` in `count` processes that have torchrun's variables, and wait for all of them.

    Each is the leader of a session of its own; what it leaves running is killed when all have ended.

    Args:
        count: number of processes, one machine's.
        work: top-level function.
        args: equal for all; the rank is in the environment.
        timeout_seconds: what still runs after that is killed, and the test fails with the outputs of all.
        environ: more variables; None takes one away.
        one_log: all write to one file, so that the order of what different ranks write can be seen.
    """
    context = _context("forkserver" if torch.cuda.is_available() else "fork")
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        logs = [folder / ("log" if one_log else f"log{rank}") for rank in range(count)]
        processes = []
        for rank in range(count):
            variables = common | {"RANK": rank, "LOCAL_RANK": rank} | dict(environ or {})
            arguments = (work, args, variables, logs[rank], folder / f"value{rank}")
            processes.append(context.Process(target=_run, args=arguments, name=f"rank {rank}"))
        ended = _wait(processes, timeout_seconds)
        outputs = [log.read_text("utf-8", "replace") if log.exists() else "" for log in logs]
        late = [rank for rank, seconds in enumerate(ended) if seconds is None]
        if late:
            shown = "\n".join(f"--- rank {rank} wrote\n{output}" for rank, output in enumerate(outputs))
            pytest.fail(f"killed after {timeout_seconds:g} s: ranks {late} of {count} still ran\n{shown}")
        results = []
        for rank, process in enumerate(processes):
            file = folder / f"value{rank}"
            value = pickle.loads(file.read_bytes()) if file.exists() else None
            results.append(Result(rank, process.exitcode, value, outputs[rank], ended[rank]))
        return results


@functools.cache
def _context(method: str) -> BaseContext:
    """What makes processes, with everything imported already that takes seconds."""
    context = multiprocessing.get_context(method)
    if method == "fork":
        importlib.import_module(FIRST_IMPORTED_BY_DDP)
    else:
        context.set_forkserver_preload(["torch", FIRST_IMPORTED_BY_DDP, "revvideo.jobs"])
        first = context.Process(target=int)
        first.start()
        first.join()
    return context


def _wait(processes: list, timeout_seconds: float) -> list[float | None]:
    """Start them; seconds until the end of each, None for one that had to be killed."""
    begun = time.monotonic()
    ended: list[float | None] = [None] * len(processes)
    try:
        for process in processes:
            process.start()
        while None in ended and time.monotonic() - begun < timeout_seconds:
            for rank, process in enumerate(processes):
                if ended[rank] is None and process.exitcode is not None:
                    ended[rank] = time.monotonic() - begun
            time.sleep(POLL_SECONDS)
    finally:
        for process in processes:
            if process.pid is not None:
                _kill_session(process)
    return ended


def _kill_session(process) -> None:
    """Kill what is left of a process and of those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # none is left, or it had not come to its setsid
        process.kill()
    process.join()


def _run(work: Callable, args: tuple, variables: Mapping[str, object], log: Path, value_file: Path) -> None:
    """The life of one process."""
    os.setsid()
    _write_to(log)
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = str(value)
    torch.set_num_threads(1)
    exitcode = 1
    try:
        value = work(*args)
        partial = value_file.with_suffix(".partial")
        partial.write_bytes(pickle.dumps(value))
        partial.rename(value_file)
        exitcode = 0
    except SystemExit as error:
        exitcode = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exitcode)  # what pytest and its plugins registered for the end of their process is not for this one


def _write_to(log: Path) -> None:
    """Everything that this process writes goes to the file, line by line, and nothing to pytest."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr, force=True)
    faulthandler.enable(sys.stderr)
