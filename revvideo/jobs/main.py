"""All that a config asks for, one job after the other."""

from collections.abc import Callable, Sequence
from signal import Signals

from fvcore.common.config import CfgNode

from revvideo.engine.stopping import STOP_SIGNALS
from revvideo.errors import CheckFailed
from revvideo.jobs.running import Run, start
from revvideo.jobs.testing import test
from revvideo.jobs.training import train


def run(
    cfg: CfgNode,
    *,
    stop_signals: Sequence[Signals] = STOP_SIGNALS,
    end_at_second: bool = True,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Train (TRAIN.ENABLE), evaluate (TEST.ENABLE), report (RUN.REPORT), as one of the processes of the environment.

    Args:
        cfg: the loaded config.
        stop_signals, end_at_second, on_stop: see `start`.

    Raises:
        InputError: something that the user can mend, before anything is computed where that is possible.
        CheckFailed: see `Trainer.fit`.
        Stopped: a signal asked for it, and a checkpoint is written.
        RankFailed: another process of the run has failed.
    """
    this = None
    try:
        with start(cfg, stop_signals=stop_signals, end_at_second=end_at_second, on_stop=on_stop) as this:
            if cfg.TRAIN.ENABLE:
                train(this)
            if cfg.TEST.ENABLE:
                test(this)
            report(this)
    except CheckFailed:
        if this is not None:  # out of the group: the other processes leave it at once and do not wait
            report(this)
        raise


def report(run: Run) -> None:
    """Write report.html (RUN.REPORT), in the main process; what goes wrong with it is a warning."""
    if run.cfg.RUN.REPORT and run.process.is_main:
        from revvideo.report.writer import report_run

        report_run(run.folder)
