"""Whether a job is told early enough of its end: a checkpoint must be written between the signal and the kill."""

from pathlib import Path

from revvideo.engine.events import read_events

MARGIN = 2.0  # the step under way is finished first, and a file system has slower hours


def slowest_checkpoint_seconds(events_file: Path) -> float | None:
    """Of all checkpoints that a run has written so far; None if it has not."""
    if not events_file.exists():
        return None
    checkpoints = (event for event in read_events(events_file) if event["kind"] == "checkpoint")
    return max((event["seconds"] for event in checkpoints if "seconds" in event), default=None)


def signal_delay_warning(events_file: Path, signal_seconds: int) -> str | None:
    """What is wrong with `signal_seconds` for the checkpoints that a run has written so far; None if nothing is."""
    seconds = slowest_checkpoint_seconds(events_file)
    if seconds is None or MARGIN * seconds <= signal_seconds:
        return None
    return (
        f"a checkpoint of this run has taken {seconds:.0f} s, but the job is told only {signal_seconds} s before its "
        f"end that it has to stop; submit with --signal-seconds {MARGIN * seconds:.0f} or more"
    )
