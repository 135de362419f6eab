"""All that a config asks for, one job after the other."""

from collections.abc import Callable, Sequence
from signal import Signals

from fvcore.common.config import CfgNode

from revvideo.engine.stopping import STOP_SIGNALS
from revvideo.jobs.running import start
from revvideo.jobs.testing import test
from revvideo.jobs.training import train


def run(
    cfg: CfgNode,
    *,
    stop_signals: Sequence[Signals] = STOP_SIGNALS,
    end_at_second: bool = True,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Train (TRAIN.ENABLE), then evaluate (TEST.ENABLE), as one process of those that the environment tells of.

    Args:
        cfg: the loaded config.
        stop_signals, end_at_second, on_stop: see `start`.

    Raises:
        InputError: something that the user can mend, before anything is computed where that is possible.
        CheckFailed: see `Trainer.fit`.
        Stopped: a signal asked for it, and a checkpoint is written.
        RankFailed: another process of the run has failed.
    """
    with start(cfg, stop_signals=stop_signals, end_at_second=end_at_second, on_stop=on_stop) as this:
        if cfg.TRAIN.ENABLE:
            train(this)
        if cfg.TEST.ENABLE:
            test(this)
