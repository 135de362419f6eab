"""Training is a function of the config and the seed: the number of workers and the way of backprop do not change it."""

from pathlib import Path

import pytest
import tiny
import torch

from revvideo import build, jobs
from revvideo.config import load_config
from revvideo.engine.events import EventLog

NUM_STEPS = 20
TWENTY_STEPS = {"SOLVER.MAX_EPOCH": 10, "TRAIN.CHECKPOINT_PERIOD": 10}  # 8 videos, 4 a step
DEEPER = {"MVIT.DEPTH": 6}  # five reversible blocks and a transition


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data"))


def losses(data: Path, folder: Path, *layers: dict) -> list[float]:
    tiny.done(tiny.run_net(data, folder, tiny.RANDOM, tiny.TRAIN_ONLY, TWENTY_STEPS, *layers))
    return tiny.losses(folder)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # more than cores: so what
def test_losses_do_not_depend_on_the_number_of_workers(data, tmp_path):
    """Bit-equal, mixup and drop path on; another seed gives other losses."""
    by_workers = [losses(data, tmp_path / f"workers{count}", {"DATA_LOADER.NUM_WORKERS": count}) for count in (0, 1, 3)]
    assert by_workers[0] == by_workers[1] == by_workers[2]
    assert len(set(by_workers[0])) == len(by_workers[0]) == NUM_STEPS
    other = losses(data, tmp_path / "seed", {"RNG_SEED": 1, "SOLVER.MAX_EPOCH": 1})
    assert not set(other) & set(by_workers[0])


@pytest.fixture(scope="module")
def batches(data, tmp_path_factory) -> list:
    """(epoch, step, steps of an epoch, batch) of 20 steps, read once."""
    return tiny.batches_of(tiny_config(data, tmp_path_factory.mktemp("batches"), "plain"), NUM_STEPS)


def tiny_config(data: Path, folder: Path, backprop: str, *layers: dict):
    own = {"DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": folder, "REV.BACKPROP": backprop}
    return load_config("demo/REV_MVIT_DEMO", tiny.overrides(tiny.RANDOM, TWENTY_STEPS, DEEPER, own, *layers))


def train(cfg, folder: Path, batches: list, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses and gradient norms of the steps, and all weights at the end, in one vector."""
    with EventLog(folder / f"{cfg.REV.BACKPROP}.jsonl") as events:
        trainer = jobs.build_trainer(jobs.Run(cfg, events))
    trainer.model.to(dtype).train()
    found, norms = [], []
    for epoch, step, num_steps, batch in batches:
        ((clips, targets),) = trainer.prepare(batch, epoch, step)
        rate = trainer.settings.learning_rate(epoch + step / num_steps)
        outcome = trainer.step([(clips.to(dtype), targets.to(dtype))], rate)
        found.append(outcome.loss)
        norms.append(outcome.grad_norm)
    assert all(value.dtype == dtype for value in found)
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    return torch.stack(found), torch.stack(norms), weights


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-3)], ids=["f64", "f32"])
def test_reversible_and_plain_backprop_train_alike(data, batches, tmp_path, dtype, tolerance):
    """The losses of 20 steps, drop path and mixup on; the gradients' norms and the last weights too."""
    runs = {
        backprop: train(tiny_config(data, tmp_path, backprop), tmp_path, batches, dtype)
        for backprop in ("reversible", "plain")
    }
    loss, norm, weights = (
        float(((mine - reference).abs() / scale).max())
        for mine, reference, scale in zip(runs["reversible"], runs["plain"], (*runs["plain"][:2], 1.0))
    )
    print(f"largest differences: loss {loss:.1e} and gradient norm {norm:.1e} (relative), weight {weights:.1e}")
    assert loss <= tolerance
    assert norm <= tolerance
    assert weights <= tolerance
    assert len(set(runs["plain"][0].tolist())) == NUM_STEPS


def test_the_two_ways_of_backprop_are_two(data, tmp_path):
    """The comparison above compares two things: the plain way keeps more."""
    from revvideo.benchmark.memory import peak_training_bytes

    peaks = {}
    for backprop in ("reversible", "plain"):
        model = build.build_model(tiny_config(data, tmp_path, backprop, {"MVIT.DEPTH": 12})).train()
        peaks[backprop] = peak_training_bytes(model, torch.randn(4, 3, 4, 32, 32), torch.arange(4))
    assert peaks["reversible"] < 0.7 * peaks["plain"]
