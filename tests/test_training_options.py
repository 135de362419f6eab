"""Every option of SOLVER, AMP and AUG that run_net acts on trains."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from revvideo import jobs
from revvideo.config import load_config
from revvideo.engine.events import EventLog


def train(data: Path, folder: Path, *layers: dict) -> list[float]:
    tiny.done(tiny.run_net(data, folder, tiny.TRAIN_ONLY, *layers))
    values = tiny.losses(folder)
    assert values
    assert all(math.isfinite(value) for value in values)
    return values


@pytest.mark.parametrize("method", ["sgd", "adam", "adamw", "mt_adamw"])
def test_every_optimizer_trains(data, tmp_path, method):
    train(data, tmp_path, {"SOLVER.OPTIMIZING_METHOD": method, "TRAIN.BATCH_SIZE": 8})


@pytest.mark.parametrize(
    ("loss", "mixup"), [("cross_entropy", False), ("soft_cross_entropy", True), ("bce", True), ("bce_logit", False)]
)
def test_every_loss_trains(data, tmp_path, loss, mixup):
    train(data, tmp_path, {"MODEL.LOSS_FUNC": loss, "MIXUP.ENABLE": mixup, "TRAIN.BATCH_SIZE": 8})


def test_an_unknown_optimizer_is_refused(data, tmp_path):
    outcome = tiny.run_net(data, tmp_path, {"SOLVER.OPTIMIZING_METHOD": "lion"})
    assert outcome.code == 2
    assert "SOLVER.OPTIMIZING_METHOD" in outcome.err
    assert "mt_adamw" in outcome.err


def test_bfloat16_on_the_cpu_trains(data, tmp_path):
    amp = {"TRAIN.MIXED_PRECISION": True, "AMP.DTYPE": "bfloat16"}
    plain = train(data, tmp_path / "float32", {"SOLVER.MAX_EPOCH": 2})
    mixed = train(data, tmp_path / "bfloat16", {"SOLVER.MAX_EPOCH": 2}, amp)
    assert mixed != plain
    np.testing.assert_allclose(mixed, plain, rtol=0.05)


def test_float16_on_the_cpu_trains_with_a_scaler(data, tmp_path):
    train(data, tmp_path, {"TRAIN.MIXED_PRECISION": True, "AMP.DTYPE": "float16"})
    state = torch.load(tmp_path / "checkpoints/checkpoint_epoch_00001.pyth", weights_only=True)
    assert state["scaler_state"]["scale"] > 0


def test_layer_decay_gives_later_layers_larger_rates(data, tmp_path):
    train(data, tmp_path, {"SOLVER.LAYER_DECAY": 0.75})
    state = torch.load(tmp_path / "checkpoints/checkpoint_epoch_00001.pyth", weights_only=True)
    rates = {}
    for group in state["optimizer_state"]["param_groups"]:
        rates.update(dict.fromkeys(group["names"], group["lr"]))
    assert set(rates) == set(state["model_state"])
    layers = sorted(set(rates.values()))
    assert len(layers) == tiny.TINY["MVIT.DEPTH"] + 2  # stem, blocks, head
    np.testing.assert_allclose(np.divide(layers[:-1], layers[1:]), 0.75, rtol=1e-9)
    assert rates["head.projection.weight"] == layers[-1]
    assert min(rates.values()) == next(rate for name, rate in rates.items() if name.startswith("patch_embed"))


@pytest.mark.parametrize("clip", [{"SOLVER.CLIP_GRAD_L2NORM": 1e-2}, {"SOLVER.CLIP_GRAD_VAL": 1e-4}, {}])
def test_gradient_clipping(data, tmp_path, clip):
    """One step of sgd without momentum and decay, at rate 1: the weights move by the clipped gradient."""
    keys = {
        "SOLVER.CLIP_GRAD_L2NORM": None,
        "SOLVER.OPTIMIZING_METHOD": "sgd",
        "SOLVER.MOMENTUM": 0.0,
        "SOLVER.NESTEROV": False,
        "SOLVER.WEIGHT_DECAY": 0.0,
        "SOLVER.BASE_LR": 1.0,
        "SOLVER.WARMUP_EPOCHS": 0.0,
        "TRAIN.BATCH_SIZE": 8,
    } | clip
    train(data, tmp_path, keys)
    cfg = load_config(tmp_path / "config.yaml")
    with EventLog(tmp_path / "other.jsonl") as events:
        start = jobs.build_trainer(jobs.Run(cfg, events)).model.state_dict()
    end = torch.load(tmp_path / "checkpoints/checkpoint_epoch_00001.pyth", weights_only=True)["model_state"]
    (step,) = tiny.events(tmp_path, "train_step")
    moves = torch.cat([(start[name] - end[name]).flatten() for name in start])
    assert step["grad_norm"] > 0.1  # the norm from before the clipping
    if "SOLVER.CLIP_GRAD_VAL" in clip:
        assert float(moves.abs().max()) == pytest.approx(1e-4, rel=2e-2)
    else:
        assert float(moves.norm()) == pytest.approx(clip.get("SOLVER.CLIP_GRAD_L2NORM", step["grad_norm"]), rel=1e-3)


def test_repeated_samples_make_a_larger_batch(data, tmp_path):
    keys = {"AUG.ENABLE": True, "AUG.NUM_SAMPLE": 2, "AUG.AA_TYPE": "", "AUG.RE_PROB": 0.0}
    outcome = tiny.done(tiny.run_net(data, tmp_path, tiny.TRAIN_ONLY, keys))
    assert "batch: 8 clips a step" in outcome.err


def test_plain_models_train_and_evaluate(data, tmp_path):
    """MViT, not reversible, with a class token."""
    keys = {"MVIT.REV.ENABLE": False, "MVIT.CLS_EMBED_ON": True}
    tiny.done(tiny.run_net(data, tmp_path, keys))
    assert json.loads((tmp_path / "results.json").read_text())["num_videos"] == tiny.NUM_TEST


def test_a_loss_that_is_not_finite_stops_with_code_3(data, tmp_path):
    keys = {"SOLVER.OPTIMIZING_METHOD": "sgd", "SOLVER.BASE_LR": 1e30, "SOLVER.WARMUP_START_LR": 1e30}
    outcome = tiny.run_net(data, tmp_path, tiny.TRAIN_ONLY, keys, {"SOLVER.MAX_EPOCH": 4})
    assert outcome.code == 3
    assert "check failed: the loss is" in outcome.err
    assert "SOLVER.BASE_LR" in outcome.err
    assert "Traceback" not in outcome.err
    assert not math.isfinite(tiny.losses(tmp_path)[-1])  # it stands in the diary
