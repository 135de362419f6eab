"""Several processes validate with the same statistics of batch norm, those that the checkpoint holds."""

import run_config
import tiny
import torch
from processes import run_processes
from torch import nn

from revvideo import build
from revvideo.distributed.env import current_process
from revvideo.engine.checkpoint import latest_checkpoint
from revvideo.jobs import training

KEYS = {"TEST.ENABLE": False, "EMA.ENABLE": True, "DIST.TIMEOUT_SECONDS": 20}


class Normed(nn.Module):
    """Batch norm of the clips, and a classifier."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm3d(3), nn.Linear(3, tiny.NUM_CLASSES)

    def forward(self, clips):
        return self.head(self.norm(clips).mean((2, 3, 4)))  # (B, C, T, H, W) -> (B, K)


def train_and_keep(data, folder) -> None:
    """A run; each process keeps what it validates."""
    evaluate_run, validated = training.evaluate_run, []

    def keep(run, model, *args, **kwargs):
        validated.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        torch.save(validated, folder.parent / f"validated{current_process().rank}.pt")
        return evaluate_run(run, model, *args, **kwargs)

    build.build_model, training.evaluate_run = lambda cfg: Normed(), keep
    run_config.run(data, folder, (KEYS,))


def test_every_process_validates_what_the_checkpoint_holds(data, tmp_path):
    folder = tmp_path / "run"
    for result in run_processes(2, train_and_keep, data, folder):
        assert result.exitcode == 0, result.output
    state = torch.load(latest_checkpoint(folder / "checkpoints"), weights_only=True)
    for rank in range(2):
        raw, average = torch.load(tmp_path / f"validated{rank}.pt", weights_only=True)
        for got, want in ((raw, state["model_state"]), (average, state["ema_state"])):
            assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
