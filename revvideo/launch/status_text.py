"""The status of a run for humans: a few lines, or for a sweep a table of its points."""

import textwrap
import time
from collections.abc import Sequence
from datetime import datetime

from revvideo.launch.job_state import UNKNOWN, JobState, is_alive, is_on_nodes
from revvideo.launch.run_progress import RunProgress, number
from revvideo.launch.start_history import FINISHED, RUNNING, Start
from revvideo.launch.status import MemberStatus, RunStatus

WIDTH = 100
MARGIN = 12
SHOWN_STARTS = 5  # the last ones


def status_lines(status: RunStatus) -> list[str]:
    """What `revvideo status` prints."""
    rows: list[tuple[str, str]] = [("run", str(status.folder))]
    if status.submission is None:
        rows.append(("state", "not submitted by `revvideo submit`; what its diary tells:"))
    else:
        rows.append(("submitted", _submitted(status)))
    if status.problem:
        rows.append(("note", f"{status.problem}. What follows is from the run folder."))
    if len(status.members) > 1:
        return [*_lines(rows), "", *sweep_table(status.members), "", *_lines(_failures(status.members))]
    return _lines([*rows, *_member_rows(status)])


def sweep_table(members: Sequence[MemberStatus]) -> list[str]:
    """A line for each point: what it sets, its state, how far it is, its figures (top-1 in percent)."""
    keys = list(members[0].values)
    leaves = [key.rpartition(".")[2] for key in keys]
    names = [leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves)]
    rows = [["point", *names, "state", "job", "restarts", "epoch", "left", "loss", "top-1", "best", "test"]]
    for member in members:
        progress = member.progress
        rows.append(
            [
                str(member.number),
                *(_clip(value, 20) for value in member.values.values()),
                member.state.state,
                member.state.job,
                str(member.restarts),
                _of(progress.epoch or 0, progress.max_epoch),
                _left(progress) if is_alive(member.state) else "-",
                _figure((progress.train or {}).get("loss"), 4),
                _figure((progress.validation or {}).get("top1_acc"), 2),
                _figure((progress.best or {}).get("top1_acc"), 2),
                _figure((progress.test or {}).get("top1_acc"), 2),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]


def _submitted(status: RunStatus) -> str:
    submission = status.submission
    asked = submission.resources
    size = f"{asked.nodes} x {asked.tasks_per_node} processes" + ("" if asked.gpus_per_node else " on CPUs")
    cfg = f"{submission.cfg_name}, " if submission.cfg_name else ""
    return f"{_date(submission.time)}, {cfg}cluster {submission.cluster}, {size}, launch/{submission.folder.name}"


def _failures(members: Sequence[MemberStatus]) -> list[tuple[str, str]]:
    return [(f"point {member.number}", f"{member.failure}; log {member.log}") for member in members if member.failure]


def _member_rows(status: RunStatus) -> list[tuple[str, str]]:
    member = status.members[0]
    rows = []
    if member.values:
        rows.append((f"point {member.number}", " ".join(f"{key}={value}" for key, value in member.values.items())))
    if status.submission is not None:
        rows.append(("state", _state(member, bool(status.problem))))
        if len(member.jobs) > 1:
            rows.append(("jobs", ", ".join(_job(job) for job in member.jobs)))
        if member.failure:
            rows.append(("failure", member.failure))
    alive = is_alive(member.state) or (member.state.state == UNKNOWN and bool(status.problem))
    rows += _progress_rows(member.progress, alive=alive or status.submission is None)
    rows += _start_rows(member.starts, member.restarts, told=(RUNNING, FINISHED, member.failure))
    if member.log is not None:
        rows.append(("log", str(member.log)))
    return rows


def _state(member: MemberStatus, unasked: bool) -> str:
    state = member.state
    parts = [state.state]
    if state.state == UNKNOWN and not unasked:
        parts = [f"{UNKNOWN}: {state.reason or 'nobody knows the job any more'}"]
    elif state.reason and not is_on_nodes(state):
        parts.append(f"({state.reason})")
    if state.job:
        parts.append(f"job {state.job}")
    if state.nodes:
        parts.append(f"on {state.nodes}")
    if state.start_time is not None and is_alive(state):
        parts.append(f"{'since' if is_on_nodes(state) else 'to start'} {_date(state.start_time)}")
    if state.exit_code:
        parts.append(f"exit code {state.exit_code}")
    if member.restarts:
        parts.append(_count(member.restarts, "restart"))
    return ", ".join(parts).replace(", (", " (")


def _job(job: JobState) -> str:
    reason = f" ({job.reason})" if job.reason and job.state == "PENDING" else ""
    return f"{job.job} {job.state}{reason}"


def _progress_rows(progress: RunProgress, *, alive: bool) -> list[tuple[str, str]]:
    rows = []
    if progress.train is None:
        rows.append(("progress", "no training step yet"))
    else:
        steps = f"step {_of(progress.step, progress.num_steps)}"
        share = f" ({progress.step / progress.num_steps:.1%})" if progress.num_steps else ""
        parts = [f"epoch {_of(progress.epoch, progress.max_epoch)}", steps + share]
        if alive and progress.seconds_left:
            end = f" (ends {_date(time.time() + progress.seconds_left)})"
            parts.append(f"{_left(progress)} left{end}")
        rows.append(("progress", ", ".join(parts)))
        rows.append(("training", _training(progress.train)))
    if progress.validation is not None:
        last, best = progress.validation, progress.best
        rows.append(
            (
                "validation",
                f"top-1 {_figure(last.get('top1_acc'), 2)}, top-5 {_figure(last.get('top5_acc'), 2)} after epoch "
                f"{last['epoch']}; best top-1 {_figure(best.get('top1_acc'), 2)} after epoch {best['epoch']}",
            )
        )
    if progress.test is not None:
        test = progress.test
        views = f"{test.get('num_views')} x {test.get('num_crops')} views, {test.get('num_videos')} videos"
        figures = f"top-1 {_figure(test.get('top1_acc'), 2)}, top-5 {_figure(test.get('top5_acc'), 2)}"
        rows.append(("test", f"{figures}, {views}"))
    if progress.event_time is not None:
        rows.append(("last event", f"{_duration(time.time() - progress.event_time)} ago"))
    return rows


def _training(train: dict) -> str:
    shown = [f"loss {_figure(train.get('loss'), 4)}", f"top-1 {_figure(train.get('top1'), 1)}"]
    shown.append(f"lr {number(train.get('lr'), float('nan')):.3g}")
    shown.append(f"{_figure(train.get('clips_per_second'), 1)} clips/s")
    if number(train.get("data_wait_share")) is not None:
        shown.append(f"waits for data {float(train['data_wait_share']):.0%}")
    if number(train.get("peak_memory_mib")):
        shown.append(f"peak {float(train['peak_memory_mib']):.0f} MiB")
    return ", ".join(shown)


def _start_rows(starts: Sequence[Start], restarts: int, told: Sequence[str]) -> list[tuple[str, str]]:
    """The last starts; nothing of an only one whose reason is `told` elsewhere."""
    if not starts or (len(starts) == 1 and not restarts and starts[0].reason in told):
        return []
    rows = []
    if len(starts) > SHOWN_STARTS:
        rows.append(f"{len(starts) - SHOWN_STARTS} earlier ones")
    for start in starts[-SHOWN_STARTS:]:
        ran = f" {_duration(start.ended - start.began)}" if start.ended is not None else ""
        rows.append(f"{_date(start.began)} job {start.job}{ran}: {start.reason}")
    return [("starts" if not number_ else "", row) for number_, row in enumerate(rows)]


def _lines(rows: Sequence[tuple[str, str]]) -> list[str]:
    """`name  text`, the text wrapped beside it; words such as paths are never cut."""
    lines = []
    for name, text in rows:
        lines += textwrap.wrap(
            text,
            WIDTH,
            initial_indent=f"{name:<{MARGIN}}",
            subsequent_indent=" " * MARGIN,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [name]
    return lines


def _left(progress: RunProgress) -> str:
    return "?" if progress.seconds_left is None else _duration(progress.seconds_left)


def _of(value: int, total: int | None) -> str:
    return f"{value}/{total}" if total else str(value)


def _figure(value: object, digits: int) -> str:
    found = number(value)
    return "-" if found is None else f"{found:.{digits}f}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _duration(seconds: float) -> str:
    """h:mm:ss, with days where there are some."""
    days, rest = divmod(max(0, round(seconds)), 86400)
    text = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}d {text}" if days else text
