"""What tests let spawned processes do, and how they see what those did. No torch: a process is there in 0.1 s."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent

# Runs `spawn` like a command: its logging to standard error, its exit code, its handling of signals.
PARENT = """
import json, logging, sys
from revvideo.distributed.env import machine_processes
from revvideo.distributed.spawn import spawn
import spawned

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    work, count, grace, *args = sys.argv[1:]
    processes = machine_processes(num_processes=int(count), num_machines=1, machine=0, init_method="")
    sys.exit(spawn(getattr(spawned, work), tuple(args), processes, grace_seconds=float(grace)))
"""


def end_with(codes: str) -> int:
    """Ends with the code of its rank in a JSON list; a negative one is a signal, None never ends."""
    code = json.loads(codes)[int(os.environ["RANK"])]
    if code is None:
        time.sleep(600)
    if code < 0:
        os.kill(os.getpid(), -code)
    return code


def fail_after_another(folder: str) -> int:
    """Rank 0 ends with 3 half a second after the others, which end with 1: they have lost it before it is gone."""
    if os.environ["RANK"] == "0":
        time.sleep(0.5)
        return 3
    return 1


def wait_for_signals(folder: str, exit_code: str) -> int:
    """Notes the signals it gets; ends with `exit_code` 0.3 s after the first, so that a second copy of it is noted."""
    rank, seen = os.environ["RANK"], []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: seen.append(signal.Signals(number).name))
    Path(folder, f"ready{rank}").write_text(str(os.getpid()))
    while not seen:
        time.sleep(0.02)
    time.sleep(0.3)
    Path(folder, f"seen{rank}").write_text(json.dumps(seen))
    return int(exit_code)


def get_ready(folder: str) -> int:
    """Never comes to take signals: imports that last."""
    Path(folder, f"ready{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(600)
    return 0


def ignore_signals(folder: str) -> int:
    """Never ends, whatever it is told."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    Path(folder, f"ready{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(600)
    return 0


def start_parent(folder: Path, work: str, *args: str, count: int = 2, grace_seconds: float = 10.0) -> subprocess.Popen:
    """A process in a group of its own that spawns `count` processes, each of which runs a function of this module."""
    script = folder / "parent.py"
    script.write_text(PARENT)
    return subprocess.Popen(
        [sys.executable, str(script), work, str(count), str(grace_seconds), *args],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ready_pids(folder: Path, count: int = 2) -> list[int]:
    """Process ids of the children, when all have come to wait."""
    files = [folder / f"ready{rank}" for rank in range(count)]
    deadline = time.monotonic() + 30
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline, "the children have not come up within 30 s"
        time.sleep(0.02)
    return [int(file.read_text()) for file in files]


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
