"""What submitit runs in every task of a submitted job: the run of one config, and how its end is told.

Importing it needs no torch: a login node pickles a `SubmittedJob`.
"""

import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from revvideo.config import load_config
from revvideo.distributed.before_torch import prepare_torch, quieten_profiler
from revvideo.distributed.env import Process, current_process
from revvideo.distributed.rank_logging import line_prefix, set_up_logging
from revvideo.errors import CheckFailed, InputError, NotSaved, RankFailed, Stopped, WorkerFailed
from revvideo.exit_codes import EXIT_CHECK_FAILED, EXIT_CRASH, EXIT_DONE, EXIT_STOPPED, run_guarded
from revvideo.launch.attempts import FINAL_CODES, attempt_folder, read_attempts, write_beginning, write_end
from revvideo.launch.retries import STOPS_IN_PLACE, crashes_before, slurm_job, stops_in_place
from revvideo.launch.signal_delay import signal_delay_warning
from revvideo.launch.slurm_queue import is_leaving
from revvideo.launch.submission import load_submission
from revvideo.paths import replace_file

logger = logging.getLogger(__name__)

SIGNAL = signal.SIGUSR2  # submitit's


class JobFailed(RuntimeError):
    """The job has ended for good; the message is what submitit's client shows."""


@dataclass(frozen=True)
class SubmittedJob:
    """One member of a submission. Calling it trains and evaluates.

    It ends well at once where an earlier job has done all. Else, by what happens in the run:

    - all is done: it returns;
    - a signal stops it, after a checkpoint in which all ranks agree: rank 0 lets submitit requeue the job, and all
      leave the process without a result;
    - a crash that is retried (launch/epilogue.py): all leave the process without a result, so that submitit's client
      waits on;
    - anything else, such as wrong input or the last crash: `JobFailed`, for submitit's client.

    Attributes:
        folder: of the submission, RUN/launch/NNN.
        member: its number.
    """

    folder: Path
    member: int = 0

    def __call__(self) -> str:
        """Returns the run folder.

        Raises:
            JobFailed: see above.
            InputError: the environment is not a process's.
            SystemExit: with the exit code, for an end that is none of success where cluster is debug.
        """
        # A signal waits until the run listens: submitit's handler would requeue the job while other ranks begin.
        signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
        requeue = signal.getsignal(SIGNAL)
        process = current_process()
        set_up_logging(process)
        logging.getLogger("submitit").propagate = False  # it has handlers of its own
        job, restart = identify(self.folder, process.rank, os.environ)
        folder = attempt_folder(self.folder, job, restart)
        record = write_beginning(folder, process.rank, os.environ.get("SLURMD_NODENAME", ""))
        ending = run_to_end(lambda: self._work(process, job, restart), prefix=line_prefix(process))
        write_end(folder, record, ending.code, ending.error, follows=ending.follows)
        if ending.code == EXIT_DONE:
            return ending.value
        submission = load_submission(self.folder)
        if submission.cluster == "debug":
            sys.exit(ending.code)
        if ending.code == EXIT_STOPPED:
            if not process.is_main:
                leave(EXIT_DONE)
            if stops_in_place(self.folder, job, restart) >= STOPS_IN_PLACE:
                error = (
                    f"stopped {STOPS_IN_PLACE} times in a row without getting further ({ending.error}); the time limit "
                    "is too short to start and to do anything: raise --time, or lower --signal-seconds"
                )
                write_end(folder, record, EXIT_CHECK_FAILED, error)
                raise JobFailed(f"job {job}: {error}")
            # Slurm ends the job at once, also `scontrol requeue` itself, which inherits that it does not listen.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            if submission.cluster == "slurm" and is_leaving(job):
                leave(EXIT_STOPPED)  # cancelled, or queued again, while it saved
            ending = run_to_end(lambda: requeue(SIGNAL, None))  # it exits, unless it fails
            write_end(folder, record, ending.code, ending.error)
        retried = submission.cluster == "slurm" and ending.code not in FINAL_CODES
        if retried and crashes_before(self.folder, job, restart) < submission.resources.max_restarts:
            leave(EXIT_CRASH)
        sys.tracebacklimit = 0  # the way from submitit to here explains nothing; the error's own is in the log
        raise JobFailed(f"job {job}, rank {process.rank}: {ending.error} (exit code {ending.code})")

    def checkpoint(self):
        """submitit's, when the job is requeued: the same again, which goes on from the run folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _work(self, process: Process, job: str, restart: int) -> str:
        submission = load_submission(self.folder)
        cfg = load_config(submission.config_file(self.member))
        done = submission.done_file(self.member)
        if done.exists():
            logger.info("nothing is left to do: %s", done)
            return cfg.OUTPUT_DIR
        if process.is_main:
            warning = signal_delay_warning(Path(cfg.OUTPUT_DIR) / "events.jsonl", submission.resources.signal_seconds)
            if warning is not None:
                logger.warning("%s", warning)
        prepare_torch()
        if cfg.RUN.AUTO_BATCH_SIZE:
            quieten_profiler()
        from revvideo import jobs

        if submission.cluster == "debug":
            jobs.run(cfg)
        else:
            jobs.run(cfg, stop_signals=(SIGNAL,), end_at_second=False)
        if process.is_main:  # training and evaluation have ended well in all processes
            text = json.dumps({"time": round(time.time(), 3), "job": job, "restart": restart}) + "\n"
            done.parent.mkdir(parents=True, exist_ok=True)
            replace_file(done, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return cfg.OUTPUT_DIR


@dataclass(frozen=True)
class Ending:
    """How the work of a rank has ended.

    Attributes:
        code: exit code (DESIGN.md, "Exit codes").
        value: what the work has returned.
        error: what it ended with, as the log says it; "" if all is well.
        follows: the error only follows from another rank's.
    """

    code: int
    value: object = None
    error: str = ""
    follows: bool = False


def run_to_end(work: Callable[[], object], *, prefix: str = "") -> Ending:
    """Run `work`; an error is printed as the commands print it.

    Args:
        work: see above; SystemExit passes through.
        prefix: of every printed line.
    """
    value, text, follows = None, "", False

    def noting() -> None:
        nonlocal value, text, follows
        try:
            value = work()
        except (Exception, KeyboardInterrupt) as error:
            text, follows = describe(error), isinstance(error, RankFailed)
            raise

    code = run_guarded(noting, prefix=prefix)
    return Ending(code, value, text, follows)


def describe(error: BaseException) -> str:
    """An error in one line; the log has its traceback where the message does not tell all."""
    told = isinstance(error, InputError | CheckFailed | NotSaved | RankFailed | Stopped | WorkerFailed)
    text = str(error) if told else f"{type(error).__name__}: {error}"
    return " ".join(text.split()).removesuffix(":")


def identify(folder: Path, rank: int, environ: Mapping[str, str]) -> tuple[str, int]:
    """The id of the job that this process is of, and the number of its restarts.

    submitit's local executor counts no restarts: each rank counts its own starts. A job that runs in this process
    (cluster debug) is none of Slurm, though it may run in the shell of one.

    Args:
        folder: of the submission.
        rank: of this process.
        environ: its variables.
    """
    found = slurm_job(environ) if environ.get("SUBMITIT_EXECUTOR") == "slurm" else None
    if found is not None:
        return found
    job = environ.get("SUBMITIT_LOCAL_JOB_ID", f"debug-{os.getpid()}")
    attempts = read_attempts(folder, (job,))
    return job, sum(any(record.rank == rank for record in attempt.ranks) for attempt in attempts)


def leave(code: int) -> NoReturn:
    """End the process without a result for submitit, whose client then waits for the next start of the job."""
    gc.collect()  # ends the worker processes of loaders
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
