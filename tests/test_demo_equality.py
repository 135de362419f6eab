"""The demo's config for 200 steps, reversible backprop against plain: the same losses, then the same learning.

bfloat16 takes 2 clips a step instead of 8: processors without AMX or AVX512-BF16 compute it slowly.
"""

import pytest
import tiny
import torch

from revvideo import jobs
from revvideo.config import load_config
from revvideo.demo.dataset import make_dataset
from revvideo.engine.events import EventLog

pytestmark = pytest.mark.slow

NUM_STEPS = 200
CLIPS_A_STEP = {None: 8, torch.bfloat16: 2}  # of each precision
FIRST_STEPS, LAST_STEPS = slice(20), slice(150, NUM_STEPS)


def demo_config(data, folder, dtype: torch.dtype | None, backprop: str):
    """64 videos, so 8 steps an epoch and 25 epochs."""
    amp = ["TRAIN.MIXED_PRECISION", dtype is not None, "AMP.DTYPE", "bfloat16"]
    own = ["DATA.PATH_TO_DATA_DIR", data, "OUTPUT_DIR", folder, "SOLVER.MAX_EPOCH", 25, "REV.BACKPROP", backprop]
    return load_config("demo/REV_MVIT_DEMO", [str(word) for word in (*own, *amp)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def batches(folder) -> list:
    """(epoch, step, steps of an epoch, batch), read once."""
    make_dataset(folder / "data", seed=0, train_per_class=8, test_per_class=1, num_processes=1)
    return tiny.batches_of(demo_config(folder / "data", folder, None, "plain"), NUM_STEPS)


def train(folder, batches: list, dtype: torch.dtype | None, backprop: str) -> torch.Tensor:
    """The losses of all steps."""
    cfg = demo_config(folder / "data", folder, dtype, backprop)
    with EventLog(folder / f"{backprop}_{dtype}.jsonl") as events:
        trainer = jobs.build_trainer(jobs.Run(cfg, events))
    trainer.model.train()
    losses = []
    for epoch, step, num_steps, batch in batches:
        (part,) = trainer.prepare(batch, epoch, step)
        clips, labels = (each[: CLIPS_A_STEP[dtype]] for each in part)
        rate = trainer.settings.learning_rate(epoch + step / num_steps)
        losses.append(trainer.step([(clips, labels)], rate).loss.float())
    return torch.stack(losses)


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-3), (torch.bfloat16, 2e-2)], ids=["float32", "bfloat16"])
def test_the_demo_learns_alike_under_both_ways_of_backprop(folder, batches, dtype, tolerance):
    reversible, plain = (train(folder, batches, dtype, backprop) for backprop in ("reversible", "plain"))
    first = float(((reversible - plain).abs() / plain)[FIRST_STEPS].max())
    ends = reversible[LAST_STEPS].mean().item(), plain[LAST_STEPS].mean().item()
    print(
        f"first 20 steps differ by {first:.1e} at most; mean loss of steps 151-200: reversible {ends[0]:.4f}, "
        f"plain {ends[1]:.4f}; of the first 10: {plain[:10].mean():.4f}"
    )
    assert first <= tolerance
    assert ends[0] == pytest.approx(ends[1], rel=0.05)
    assert ends[1] < 0.8 * plain[:10].mean()  # it learns, so that the ends say something
