"""RUN.AUTO_BATCH_SIZE: real steps in the parts that it finds stay within the limit, in fewer they would not, and the
batch is the one that was asked for."""

import functools
import logging
import re

import pytest
import torch
from demo_config import DEMO, TWO_BLOCKS
from processes import run_processes, values
from tiny import RANDOM, TINY

from revvideo import build, load_config
from revvideo.benchmark.memory import peak_bytes
from revvideo.build import auto_batch
from revvideo.build.auto_batch import auto_accumulation
from revvideo.config.batch import batch_plan
from revvideo.data.batch import Batch
from revvideo.distributed.env import current_process
from revvideo.distributed.group import open_group
from revvideo.engine.ema import ModelEma
from revvideo.engine.train_step import TrainStep
from revvideo.errors import InputError

CPU = torch.device("cpu")
MIB = 2**20
CLIPS = 8
BASE = TINY | TWO_BLOCKS | RANDOM | {"TRAIN.BATCH_SIZE": CLIPS, "RUN.AUTO_BATCH_SIZE": True, "NUM_GPUS": 0}


@pytest.fixture(autouse=True)
def plans_are_made_once(monkeypatch):
    """A plan takes a second."""
    monkeypatch.setattr(auto_batch, "plan_training", plan_training_once)


def plan_training_once(cfg, clips, precision, *, device):
    return _plan(cfg.REV.BACKPROP, cfg.MIXUP.ENABLE, clips, precision, device)


@functools.cache
def _plan(backprop, mixed, clips, precision, device):
    keys = {"REV.BACKPROP": backprop} | ({} if mixed else UNMIXED)
    return real_plan_training(load_config(DEMO, BASE | keys), clips, precision, device=device)


real_plan_training = auto_batch.plan_training
UNMIXED = {"MIXUP.ENABLE": False, "MODEL.LOSS_FUNC": "cross_entropy"}


def trained(limit_mib: float, keys: dict | None = None):
    """Config, batch plan, model, optimizer and loss."""
    cfg = load_config(DEMO, BASE | (keys or {}) | {"RUN.MEMORY_LIMIT_MIB": limit_mib})
    plan = batch_plan(cfg)
    torch.manual_seed(0)
    model = build.build_model(cfg)
    return cfg, plan, model, build.build_optimizer(cfg, model, plan), build.build_loss(cfg)


def find(limit_mib: float, keys: dict | None = None, group_any=bool) -> int:
    return auto_accumulation(*trained(limit_mib, keys), CPU, group_any)


class Diary:
    """An event log that keeps nothing."""

    def write(self, kind, **fields):
        pass


def bytes_of_training(parts: int, keys: dict | None = None) -> int:
    """Most bytes of tensors alive in three real steps: weights, loader's clips, average and all."""
    return _bytes_of_training(parts, tuple((keys or {}).items()))


@functools.cache
def _bytes_of_training(parts: int, keys: tuple) -> int:
    cfg, plan, model, optimizer, loss = trained(0, dict(keys))
    channels, frames, *size = model.input_spec.shape
    video = torch.randint(256, (plan.clips_per_process, frames, *size, channels), dtype=torch.uint8)
    label = torch.arange(plan.clips_per_process) % cfg.MODEL.NUM_CLASSES
    # Of a batch the device sees these two.
    fields = dict.fromkeys(Batch.__dataclass_fields__) | {"video": video.permute(0, 1, 4, 2, 3), "label": label}
    batch = Batch(**fields)
    prepare = build.build_train_input(cfg, CPU, num_parts=parts)
    model.train()
    held = [*model.parameters(), *model.buffers(), video]

    def work():
        average = ModelEma(model) if cfg.EMA.ENABLE else None
        settings, check = build.step_settings(cfg, parts), model.check_inversion
        step = TrainStep(model, optimizer, loss, settings, device=CPU, events=Diary(), check_inversion=check)
        for number in range(3):
            step(prepare(batch, 0, number), 1e-3, step=number)
            if average is not None:
                average.update(model)

    return sum(tensor.nbytes for tensor in held) + peak_bytes(work, CPU)


@pytest.mark.parametrize(
    "keys",
    [
        {"EMA.ENABLE": True},
        pytest.param({"REV.BACKPROP": "plain"}, marks=pytest.mark.slow),
        pytest.param({"REV.BACKPROP": "plain", "TRAIN.MIXED_PRECISION": True}, marks=pytest.mark.slow),
        pytest.param(
            UNMIXED | {"REV.CHECK_INVERSION_PERIOD": 1, "REV.CHECK_INVERSION_LIMIT": 1.0}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_real_steps_never_exceed_the_limit_and_fewer_parts_would(keys):
    possible = [1, 2, 4] if "MIXUP.ENABLE" not in keys else [1, 2, 4, 8]
    taken = {parts: bytes_of_training(parts, keys) for parts in possible}
    print({parts: f"{total / MIB:.3f} MiB" for parts, total in taken.items()})
    assert sorted(taken.values(), reverse=True) == list(taken.values()), "more parts take less"
    found = []
    low, high = min(taken.values()), max(taken.values())
    limits = [low * 0.98 + (high * 1.1 - low * 0.98) * share / 8 for share in range(9)]
    for limit in limits:
        try:
            parts = find(limit / MIB, keys)
        except InputError:
            assert limit < taken[possible[-1]] * 1.1  # nothing fits, or hardly
            continue
        found.append(parts)
        assert taken[parts] <= limit
        fewer = possible[: possible.index(parts)]
        # What the search reckons with is not more than a tenth above what is taken.
        assert all(1.1 * taken[other] > limit for other in fewer), (limit, taken)
        cfg, plan, *_ = trained(limit / MIB, keys)
        chosen = batch_plan(cfg, parts=parts)
        assert (chosen.clips_per_step, chosen.base_lr) == (plan.clips_per_step, plan.base_lr)
        assert chosen.parts * chosen.clips_per_part == CLIPS == chosen.clips_per_step
    assert found == sorted(found, reverse=True)
    assert set(found) == set(possible), "every number of parts was the answer to some limit"


def test_nothing_fits(caplog):
    with pytest.raises(InputError) as info:
        find(0.2)
    message = str(info.value)
    assert re.search(r"the smallest, of 2 clips, takes \d+\.\d+ MiB, and there are 0\.2 MiB", message), message
    for part in ("RUN.MEMORY_LIMIT_MIB", "REV.BACKPROP", "MIXUP.ENABLE False"):
        assert part in message
    assert "\n" not in message


def test_one_line_says_what_was_found_and_why(caplog):
    with caplog.at_level(logging.INFO, logger="revvideo.build.auto_batch"):
        limit = bytes_of_training(2) * 1.1 / MIB
        assert find(limit) == 2
    (line,) = [record.getMessage() for record in caplog.records if record.name == "revvideo.build.auto_batch"]
    assert line.startswith("batch: 2 parts of 4 clips in each process, the fewest that fit (RUN.AUTO_BATCH_SIZE;")
    assert f"of {limit:.1f} MiB (RUN.MEMORY_LIMIT_MIB), 1 part would take" in line


def test_without_a_limit_the_memory_of_the_machine_counts(monkeypatch, caplog):
    assert find(0) == 1
    taken = bytes_of_training(1)
    monkeypatch.setattr("revvideo.build.memory_budget.available_cpu_bytes", lambda: int(0.5 * taken))
    assert find(0) > 1
    monkeypatch.setattr("revvideo.build.memory_budget.available_cpu_bytes", lambda: None)
    with pytest.raises(InputError, match="does not say how much memory is free"):
        find(0)
    assert find(1000) == 1


@pytest.mark.parametrize("reason", ["frozen", "error"])
def test_without_a_plan_it_is_found_by_trial_from_the_smallest_parts_on(reason, monkeypatch, caplog):
    limit, asked, tried = bytes_of_training(2) * 1.1 / MIB, [], []

    def cannot(*args, **options):
        asked.append(args)
        raise NotImplementedError("aten::strange has no fake")

    def watched(*args, clips_per_part, **options):
        tried.append(clips_per_part)
        return probe_step(*args, clips_per_part=clips_per_part, **options)

    probe_step = auto_batch.probe_step
    monkeypatch.setattr(auto_batch, "plan_training", cannot)
    monkeypatch.setattr(auto_batch, "probe_step", watched)
    keys = {"FINETUNE.FREEZE": ["patch_embed"]} if reason == "frozen" else {}
    with caplog.at_level(logging.INFO, logger="revvideo.build.auto_batch"):
        assert find(limit, keys) == 2
    assert bool(asked) == (reason == "error")
    assert tried[:2] == [2, 4], "8 clips at once may end the process: they are only tried where that is likely to fit"
    assert ("FINETUNE.FREEZE" if reason == "frozen" else "aten::strange has no fake") in caplog.text
    with pytest.raises(InputError, match="takes"):
        find(0.2, keys)


def test_it_leaves_the_model_as_it_was():
    cfg, plan, model, optimizer, loss = trained(bytes_of_training(2) * 1.1 / MIB)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    assert auto_accumulation(cfg, plan, model, optimizer, loss, CPU, bool) == 2
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


def parts_on_rank(limits: list[float]) -> int:
    """Each process of a run has a limit of its own."""
    with open_group(current_process(), CPU, timeout_seconds=30) as group:
        return find(limits[group.rank], group_any=lambda flag: group.any(flag, "largest batch"))


def test_parts_that_do_not_fit_in_one_process_are_taken_by_none():
    generous, tight = 1000.0, bytes_of_training(2) * 1.1 / MIB
    find(tight)  # plans, for the processes to inherit
    assert values(run_processes(2, parts_on_rank, [generous, tight])) == [2, 2]
    first, second = run_processes(2, parts_on_rank, [0.2, generous])
    assert first.exitcode == second.exitcode == 1
    assert "takes" in first.output
    assert "InputError: RUN.AUTO_BATCH_SIZE finds no part of a step that fits" in second.output
