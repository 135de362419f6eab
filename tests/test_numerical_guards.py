"""Losses that are not finite: skipped under float16 scaling, else written down, and the run stops or goes back once."""

import math
import signal

import pytest
import run_config
import tiny
import torch
from processes import run_processes
from troubles import AtStep, Impatient, KeepWeights, LossIs, NotFinite, Send, run

from revvideo import build
from revvideo.config import load_config
from revvideo.config.batch import batch_plan
from revvideo.data.batch import collate_clips
from revvideo.data.sampling import order_generator
from revvideo.engine.checkpoint import checkpoint_name, latest_checkpoint

NUM_VIDEOS, STEPS_AN_EPOCH, NUM_EPOCHS = 16, 4, 3
NUM_STEPS = STEPS_AN_EPOCH * NUM_EPOCHS
KEYS = tiny.RANDOM | tiny.TRAIN_ONLY | {"SOLVER.MAX_EPOCH": NUM_EPOCHS, "DIST.TIMEOUT_SECONDS": 20}
EVERY_STEP = {"RUN.CHECKPOINT_MINUTES": 1e-6, "RUN.KEEP_CHECKPOINTS": 0}
FLOAT16 = {"TRAIN.MIXED_PRECISION": True, "AMP.DTYPE": "float16"}
ROLLBACK = {"RUN.ON_NAN": "rollback", "EMA.ENABLE": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return run_config.write_training_set(tmp_path_factory.mktemp("data"), NUM_VIDEOS)


def start(data, folder, *troubles, keys=(), count=1) -> list:
    return run_processes(count, run, data, folder, (KEYS, *keys), troubles, timeout_seconds=60)


def codes(results: list) -> list[int]:
    return [result.exitcode for result in results]


def after(folder, step: int) -> dict:
    """The checkpoint after so many steps."""
    epochs, steps = divmod(step, STEPS_AN_EPOCH)
    return torch.load(folder / "checkpoints" / checkpoint_name(epochs - 1, steps), weights_only=True)


def equal(first: dict, second: dict) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def is_finite(weights: dict) -> bool:
    return all(bool(value.isfinite().all()) for value in weights.values())


# Under float16 scaling


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_float16_scaling_leaves_such_steps_out_and_counts_them(data, tmp_path, count):
    """Also where only rank 1 has a bad loss, and where the loss is infinite while its gradients are finite."""
    bad = NotFinite([(0, 1), (1, 2)], rank=count - 1)
    infinite = LossIs([9])
    results = start(data, tmp_path, bad, infinite, keys=(FLOAT16, EVERY_STEP, {"EMA.ENABLE": True}), count=count)
    assert codes(results) == [0] * count, results[0].output
    skipped = tiny.events(tmp_path, "skipped_step")
    assert [(event["step"], event["skipped_steps"]) for event in skipped] == [(1, 1), (6, 2), (9, 3)]
    assert not tiny.events(tmp_path, "not_finite")
    losses = tiny.losses(tmp_path)
    assert [step for step, loss in enumerate(losses) if not math.isfinite(loss)] == [1, 6, 9]
    before = after(tmp_path, 1)["scaler_state"]["scale"]
    for step in range(1, NUM_STEPS):
        old, new = after(tmp_path, step), after(tmp_path, step + 1)
        left_out = step in (1, 6, 9)
        for name in ("model_state", "ema_state"):
            assert equal(old[name], new[name]) == left_out, (step, name)
        assert new["counters"]["skipped_steps"] == sum(each <= step for each in (1, 6, 9))
        made = {int(each["step"]) for each in new["optimizer_state"]["state"].values()}
        assert made == {step + 1 - new["counters"]["skipped_steps"]}
        before *= 0.5 if step in (1, 6) else 1.0
        assert new["scaler_state"]["scale"] == before
    assert is_finite(new["model_state"])


def test_a_loss_scale_that_never_finds_finite_gradients_is_no_scale(data, tmp_path):
    bad = NotFinite([(0, step) for step in range(STEPS_AN_EPOCH)])
    (result,) = start(data, tmp_path, bad, Impatient(on_skips=3), keys=(FLOAT16,))
    assert result.exitcode == 3
    assert [event["step"] for event in tiny.events(tmp_path, "skipped_step")] == [0, 1, 2]
    assert [event["step"] for event in tiny.events(tmp_path, "not_finite")] == [3]


# Stop


@pytest.mark.parametrize("count", [1, 2])
def test_the_run_stops_with_the_weights_of_the_step_before(data, tmp_path, count):
    troubles = NotFinite([(1, 1)], rank=count - 1), KeepWeights(tmp_path / "weights")
    results = start(data, tmp_path, *troubles, keys=(EVERY_STEP,), count=count)
    assert codes(results) == [3] * count, results[0].output
    (event,) = tiny.events(tmp_path, "not_finite")
    assert (event["step"], event["epoch"], event["epoch_step"]) == (5, 1, 1)
    assert [each["rank"] for each in event["ranks"]] == list(range(count))
    assert [math.isfinite(float(each["loss"])) for each in event["ranks"]] == [True] * (count - 1) + [False]
    last = results[0].output.splitlines()[-1]
    culprit = event["ranks"][-1]
    assert last.startswith("revvideo: check failed: the loss is nan")
    for words in ("at step 5 (epoch 1)", f"on rank {count - 1}", culprit["videos"][0], "SOLVER.BASE_LR"):
        assert words in last
    assert "Traceback" not in results[0].output
    assert max(event["step"] for event in tiny.events(tmp_path, "checkpoint")) == 5
    for rank in range(count):
        assert equal(torch.load(tmp_path / f"weights{rank}"), after(tmp_path, 5)["model_state"])
    # The same command comes to the same batch; where it is good now, the run goes on.
    again = start(data, tmp_path, count=count)
    assert codes(again) == [0] * count, again[0].output
    assert len(tiny.losses(tmp_path)) == NUM_STEPS


def test_the_batch_can_be_made_again_from_what_is_written_down(tmp_path):
    """To the last bit what the model has got: a stand-in for an unreadable video, two clips each, erased and mixed."""
    data = run_config.write_training_set(tmp_path, NUM_VIDEOS)
    (data / "0.mp4").write_bytes(b"no video")
    folder = tmp_path / "run"
    keys = {
        "AUG.ENABLE": True,
        "AUG.NUM_SAMPLE": 2,
        "AUG.RE_PROB": 0.5,
        "LOADER.MAX_BAD_FRACTION": 1.0,
        "RUN.ACCUMULATION_STEPS": 2,
        "TRAIN.BATCH_SIZE": 8,
        # Video 0 is in the first batch of epoch 1.
        "RNG_SEED": next(n for n in range(50) if 0 in order_generator(n, 1).permutation(NUM_VIDEOS)[:8]),
    }
    results = start(data, folder, NotFinite([(1, 0)], keep=tmp_path), keys=(keys,), count=2)
    assert codes(results) == [3, 3], results[0].output
    (event,) = tiny.events(folder, "not_finite")
    asked = [sample for each in event["ranks"] for sample in each["samples"]]
    assert len(set(asked)) == len(asked) == 8
    assert 0 in asked
    assert not any(each["videos"].count(str(data / "0.mp4")) for each in event["ranks"])

    cfg = load_config(folder / "config.yaml")
    dataset = build.build_train_loader(cfg, batch_plan(cfg, 1, 2)).dataset
    for each in event["ranks"]:
        batch = collate_clips([dataset[each["epoch"], sample] for sample in each["samples"]])
        paths = [dataset.manifest.paths[index] for index in batch.index[::2].tolist()]
        assert each["videos"] == paths
        assert each["seed"] == cfg.RNG_SEED
        prepare = build.build_train_input(cfg, torch.device("cpu"), num_parts=2, rank=each["rank"])
        made = list(prepare(batch, each["epoch"], event["epoch_step"]))
        given = torch.load(tmp_path / f"parts{each['rank']}.pt")
        assert len(made) == len(given) == 2
        for (clips, targets), (given_clips, given_targets) in zip(made, given):
            assert torch.equal(clips, given_clips)
            assert torch.equal(targets, given_targets)


# Roll back


def test_the_run_goes_back_once_and_on_without_the_batch(data, tmp_path):
    """Everything after it equals a run that has never met the batch: weights, their average, random numbers."""
    straight, folder = tmp_path / "straight", tmp_path / "back"
    keys = (ROLLBACK, {"DATA_LOADER.NUM_WORKERS": 2})
    assert codes(start(data, straight, keys=keys)) == [0]
    want = tiny.losses(straight)

    (result,) = start(data, folder, NotFinite([(1, 2)]), keys=keys)
    assert result.exitcode == 0, result.output
    steps = tiny.events(folder, "train_step")
    assert [event["step"] for event in steps] == [*range(7), 4, 5, *range(7, NUM_STEPS)]
    assert [event["loss"] for event in steps[:6]] == want[:6]
    assert [event["loss"] for event in steps[7:9]] == want[4:6]
    (back,) = tiny.events(folder, "rollback")
    assert (back["step"], back["epoch"], back["samples"]) == (6, 1, 8)
    assert back["path"].endswith(checkpoint_name(0))
    assert result.output.count("and on without this batch (RUN.ON_NAN rollback)") == 1

    # A run that leaves the batch out from the start of the epoch on, without ever going back.
    state = after(straight, STEPS_AN_EPOCH)
    state["counters"]["left_out"] = [[1, 8]]
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    torch.save(state, other / "checkpoints" / checkpoint_name(0))
    assert codes(start(data, other, NotFinite([(1, 2)]), keys=keys)) == [0]
    assert tiny.events(other, "resume")
    got, never = after(folder, NUM_STEPS), after(other, NUM_STEPS)
    assert got["position"] == never["position"]
    for name in ("model_state", "ema_state"):
        assert equal(got[name], never[name])
    assert not equal(got["model_state"], after(straight, NUM_STEPS)["model_state"])
    assert got["counters"]["rollbacks"] == 1


def test_two_processes_go_back_when_one_has_a_bad_loss_and_stop_the_second_time(data, tmp_path):
    results = start(data, tmp_path, NotFinite([(1, 1), (2, 1)], rank=1), keys=(ROLLBACK,), count=2)
    assert codes(results) == [3, 3], results[0].output
    first, second = tiny.events(tmp_path, "not_finite")
    assert [first["step"], second["step"]] == [5, 9]
    for event in (first, second):
        assert [math.isfinite(float(each["loss"])) for each in event["ranks"]] == [True, False]
    assert len(tiny.events(tmp_path, "rollback")) == 1
    assert [event["step"] for event in tiny.events(tmp_path, "train_step")] == [*range(6), 4, *range(6, 10)]
    last = results[0].output.splitlines()[-1]
    assert "again, after 1 rollback" in last
    assert "on rank 1" in last


def test_once_counts_for_all_starts_of_the_run(data, tmp_path):
    """Stopped between the rollback and the batch that is left out: the next start leaves it out, too."""
    stop = AtStep(1, 0, Send(signal.SIGTERM), visit=2)
    (stopped,) = start(data, tmp_path, NotFinite([(1, 1)]), stop, keys=(ROLLBACK,))
    assert stopped.exitcode == 75, stopped.output
    state = torch.load(latest_checkpoint(tmp_path / "checkpoints"), weights_only=True)
    assert state["counters"]["rollbacks"] == 1
    assert state["position"]["step"] == 5
    (again,) = start(data, tmp_path, NotFinite([(1, 1), (2, 1)]), keys=(ROLLBACK,))
    assert again.exitcode == 3
    assert [event["step"] for event in tiny.events(tmp_path, "not_finite")] == [5, 9]
    assert len(tiny.events(tmp_path, "rollback")) == 1
    assert "again, after 1 rollback" in again.output


def test_without_a_checkpoint_there_is_nowhere_to_go_back_to(data, tmp_path):
    (result,) = start(data, tmp_path, NotFinite([(0, 2)]), keys=(ROLLBACK,))
    assert result.exitcode == 3
    assert "no checkpoint to go back to" in result.output.splitlines()[-1]
    assert not tiny.events(tmp_path, "rollback")
    assert len(tiny.events(tmp_path, "not_finite")) == 1


def test_the_checkpoints_of_an_earlier_run_are_not_gone_back_to(data, tmp_path):
    """Training that began anew in a folder (TRAIN.AUTO_RESUME False) has nothing to do with what lies there."""
    assert codes(start(data, tmp_path, keys=(ROLLBACK, {"RNG_SEED": 5}))) == [0]
    anew = {"TRAIN.AUTO_RESUME": False}
    (result,) = start(data, tmp_path, NotFinite([(0, 2)]), keys=(ROLLBACK, anew))
    assert result.exitcode == 3, result.output
    assert not tiny.events(tmp_path, "rollback")
    (result,) = start(data, tmp_path, NotFinite([(1, 2)]), keys=(ROLLBACK, anew))
    assert result.exitcode == 0, result.output
    (back,) = tiny.events(tmp_path, "rollback")
    assert back["path"].endswith(checkpoint_name(0))
