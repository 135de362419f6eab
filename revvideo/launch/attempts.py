"""How every rank of every start of a job began and ended: one small file a rank, written by the rank itself.

A rank that was killed leaves a beginning without an end. The batch script, which outlives the ranks unless it is killed
from outside, adds how srun ended. From these files the job decides whether a crash is retried, and `revvideo status`
tells what has happened.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from revvideo.exit_codes import EXIT_CHECK_FAILED, EXIT_DONE, EXIT_STOPPED, EXIT_WRONG_INPUT
from revvideo.paths import replace_file

FINAL_CODES = (EXIT_WRONG_INPUT, EXIT_CHECK_FAILED)  # the same would come again
SRUN_FILE = "srun"  # no .json: these are the ranks'


@dataclass(frozen=True)
class RankRecord:
    """One rank of one start.

    Attributes:
        rank: its number.
        host, node, pid: where it ran: the machine's name, Slurm's name of the node, the process.
        began, ended: unix seconds; `ended` None: it runs, or was killed.
        code: its exit code (DESIGN.md, "Exit codes"); None as for `ended`.
        error: what it ended with, for humans; "" if all is well.
        follows: the error only follows from another rank's failure.
    """

    rank: int
    host: str
    node: str
    pid: int
    began: float
    ended: float | None = None
    code: int | None = None
    error: str = ""
    follows: bool = False


@dataclass(frozen=True)
class Attempt:
    """One start of a job: what its ranks have written down.

    Attributes:
        job: its id, 17 or 17_2.
        restart: Slurm's count of restarts of this job, 0 at first.
        ranks: the records found, in the order of ranks; none where no rank came so far.
        srun_code: exit code of srun; None: it runs, the batch script was killed (a requeue, a lost node), or there is
            none (cluster local).
        srun_ended: unix seconds.
    """

    job: str
    restart: int
    ranks: tuple[RankRecord, ...]
    srun_code: int | None = None
    srun_ended: float | None = None

    @property
    def began(self) -> float:
        return min((rank.began for rank in self.ranks), default=self.srun_ended)

    @property
    def ended(self) -> float | None:
        """When the last rank that wrote so ended; None if none did."""
        return max((rank.ended for rank in self.ranks if rank.ended is not None), default=None)

    @property
    def first_error(self) -> RankRecord | None:
        """The rank to blame: the first that failed by itself; if all only follow from another's end, the first."""
        failed = [rank for rank in self.ranks if rank.code not in (None, EXIT_DONE, EXIT_STOPPED)]
        return min(failed, key=lambda rank: (rank.follows, rank.ended), default=None)

    @property
    def code(self) -> int | None:
        """The exit code of the whole: that of the rank to blame; 75 if stopped, 0 if done; None: none has ended."""
        error = self.first_error
        if error is not None:
            return error.code
        codes = {rank.code for rank in self.ranks} - {None}
        return max(codes, default=None)


def attempt_folder(submission_folder: Path, job: str, restart: int) -> Path:
    return submission_folder / "attempts" / f"{job}.{restart}"


def write_beginning(folder: Path, rank: int, node: str = "") -> RankRecord:
    """Called by a rank when it starts."""
    record = RankRecord(rank, socket.gethostname(), node, os.getpid(), round(time.time(), 3))
    _write(folder, record)
    return record


def write_end(folder: Path, record: RankRecord, code: int, error: str = "", *, follows: bool = False) -> RankRecord:
    """Called by a rank when it ends."""
    ended = RankRecord(
        **asdict(record) | {"ended": round(time.time(), 3), "code": code, "error": error, "follows": follows}
    )
    _write(folder, ended)
    return ended


def write_srun_end(folder: Path, code: int) -> None:
    """Called by the batch script when srun has ended."""
    _write_json(folder / SRUN_FILE, {"srun_code": code, "srun_ended": round(time.time(), 3)})


def _write(folder: Path, record: RankRecord) -> None:
    _write_json(folder / f"{record.rank}.json", asdict(record))


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_attempt(folder: Path) -> Attempt | None:
    """One start; None if nothing has been written that can be read."""
    job, _, restart = folder.name.rpartition(".")
    ranks = []
    for path in folder.glob("*.json"):
        try:
            ranks.append(RankRecord(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):  # being replaced on a network's file system
            continue
    try:
        srun = json.loads((folder / SRUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        srun = {}
    ranks.sort(key=lambda rank: rank.rank)
    return Attempt(job, int(restart), tuple(ranks), **srun) if ranks or srun else None


def read_attempts(submission_folder: Path, jobs: tuple[str, ...]) -> list[Attempt]:
    """All starts of these jobs in the order of time."""
    folders = (
        folder for folder in (submission_folder / "attempts").glob("*.*") if folder.name.rpartition(".")[0] in jobs
    )
    attempts = [attempt for attempt in map(read_attempt, folders) if attempt is not None]
    return sorted(attempts, key=lambda attempt: (attempt.began, attempt.restart))


def is_crash(attempt: Attempt) -> bool:
    """Whether a start ended in a way that may be retried: a rank crashed or was killed; nobody asked for the end.

    Ranks that are killed together with the batch script, or that only miss such ranks, have not crashed: the job was
    requeued, or a node was lost.
    """
    error = attempt.first_error
    if attempt.srun_code == 0:
        return False
    if error is not None and not error.follows:
        return error.code not in FINAL_CODES
    return attempt.code != EXIT_STOPPED and attempt.srun_code is not None
