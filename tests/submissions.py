"""Records of submissions that were never made: run folders as `revvideo submit` and its jobs leave them."""

import json
import time
from pathlib import Path

from revvideo.launch.attempts import attempt_folder, write_beginning, write_end, write_srun_end
from revvideo.launch.resources import Resources
from revvideo.launch.submission import Member, Submission

STEPS_PER_EPOCH = 50


def make_submission(
    run: Path,
    *jobs: str,
    cluster: str = "slurm",
    points: tuple[dict[str, str], ...] = (),
    max_epoch: int = 4,
    number: int = 1,
    **resources,
) -> Submission:
    """A submission in the run folder `run`; with points a sweep of folders point0, point1, ..."""
    folder = run / "launch" / f"{number:03d}"
    members = [Member(str(run / f"point{i}"), values) for i, values in enumerate(points)] or [Member(str(run))]
    made = Submission(
        folder,
        cluster,
        tuple(members),
        Resources(**{"nodes": 2, "tasks_per_node": 2} | resources),
        jobs=jobs,
        command=("revvideo", "submit", "--cfg", "demo/REV_MVIT_DEMO"),
        time=time.time() - 100,
    )
    made.jobs_folder.mkdir(parents=True)
    for i, member in enumerate(members):
        Path(member.run_folder).mkdir(exist_ok=True)
        made.config_file(i).write_text(f"SOLVER:\n  MAX_EPOCH: {max_epoch}\n", encoding="utf-8")
    made.save()
    return made


def write_attempt(
    submission: Submission, job: str, restart: int, *ends: tuple | None, srun_code: int | None = None
) -> None:
    """A start of a job: of each rank the code, error and whether it follows, or None where it has written no end."""
    folder = attempt_folder(submission.folder, job, restart)
    for rank, end in enumerate(ends):
        record = write_beginning(folder, rank, f"node{rank // 2}")
        if end is not None:
            code, error, follows = (*end, *("", False)[len(end) - 1 :])
            write_end(folder, record, code, error, follows=follows)
    if srun_code is not None:
        write_srun_end(folder, srun_code)


def write_done(submission: Submission, member: int = 0) -> None:
    """The member has trained and evaluated all it was asked for."""
    submission.done_file(member).parent.mkdir(exist_ok=True)
    submission.done_file(member).write_text("{}\n", encoding="utf-8")


def write_diary(folder: Path, num_steps: int, *, seconds_per_step: float = 2.0, restart: int = 0, **fields) -> None:
    """Append training steps to a run's events.jsonl; the last one is just over."""
    now = time.time()
    with open(folder / "events.jsonl", "a", encoding="utf-8") as file:
        for step in range(num_steps):
            event = {
                "kind": "train_step",
                "time": now - seconds_per_step * (num_steps - 1 - step),
                "restart": restart,
                "step": step,
                "epoch": step // STEPS_PER_EPOCH,
                "steps_per_epoch": STEPS_PER_EPOCH,
                "loss": 3.0 - step / 1000,
                "top1": 25.0,
                "lr": 1e-3,
                "clips_per_second": 40.0,
                "data_wait_share": 0.05,
            }
            file.write(json.dumps(event | fields) + "\n")


def write_event(folder: Path, kind: str, **fields) -> None:
    """Append one event to a run's events.jsonl."""
    with open(folder / "events.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, "time": time.time(), "restart": 0, **fields}) + "\n")
