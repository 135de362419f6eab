"""What a test submits in place of a training: a job that writes down where it is, and needs no torch."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import revvideo
from revvideo.config import load_config
from revvideo.distributed.env import current_process
from revvideo.launch.resources import Resources
from revvideo.launch.submit import submit

HERE = Path(__file__).parent  # what PYTHONPATH has to hold for a job to find this module


@dataclass(frozen=True)
class Reporting:
    """A job's task: writes FOLDER/reports/MEMBER.RANK.json; then it waits for FOLDER/go, if `waits`."""

    folder: Path
    member: int
    waits: bool = False

    def __call__(self) -> None:
        process = current_process()
        facts = {
            "rank": process.rank,
            "world_size": process.world_size,
            "machine": process.machine,
            "master": [process.master_addr, process.master_port],
            "code": revvideo.__file__,
            "cwd": os.getcwd(),
            "blocks_usr2": signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            "session": os.getsid(0),
            "environ": dict(os.environ),
        }
        file = self.folder / "reports" / f"{self.member}.{process.rank}.json"
        file.parent.mkdir(exist_ok=True)
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(facts), encoding="utf-8")
        unfinished.rename(file)
        if self.waits:
            wait_until((self.folder / "go").exists)


def reports(folder: Path) -> dict[str, dict]:
    """MEMBER.RANK -> what it has written."""
    return {file.stem: json.loads(file.read_text("utf-8")) for file in (folder / "reports").glob("*.json")}


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def path_without_slurm(folder: Path) -> str:
    """A PATH of what a job on this machine needs, made in `folder`: no Slurm, also where it is installed."""
    folder.mkdir()
    for name in ("bash", "env", "git", "true"):
        found = next(Path(each) / name for each in os.environ["PATH"].split(":") if (Path(each) / name).exists())
        (folder / name).symlink_to(found)
    return str(folder)


def run_config(folder: Path):
    """A config whose run folder is `folder`."""
    return load_config("demo/REV_MVIT_DEMO", {"OUTPUT_DIR": str(folder)})


def submit_run(run_folder: Path, resources: Resources = Resources(), cluster: str = "debug", **more):  # noqa: B008
    more = {"make_job": Reporting} | more
    return submit([(run_config(run_folder), {})], resources, run_folder=run_folder, cluster=cluster, **more)


def sweep(run_folder: Path, rates: tuple[str, ...] = ("0.1", "0.2", "0.3")) -> list:
    return [(run_config(run_folder / rate), {"SOLVER.BASE_LR": rate}) for rate in rates]


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
