"""The largest batch that fits, the command `plan_memory`, and what a plan costs."""

import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from demo_config import DEMO, TWO_BLOCKS

from revvideo import load_config
from revvideo.cli.main import main
from revvideo.config import list_shipped_configs
from revvideo.planner import PRECISIONS, TooLittleMemory, TrainingPlan, largest_batch, plan_training, usable_gpu_bytes

REPOSITORY = Path(__file__).resolve().parents[1]
ON_THE_COMMAND_LINE = [word for pair in TWO_BLOCKS.items() for word in map(str, pair)]
slow = pytest.mark.slow


# The largest batch


def made_up_plan(batch: int, peak: int) -> TrainingPlan:
    sizes = {f.name: 0 for f in dataclasses.fields(TrainingPlan) if f.type is int}
    sizes |= {"batch_size": batch, "temporaries": peak}
    return TrainingPlan(precision="float32", mode="plain", device="cpu", **sizes)


@pytest.mark.parametrize(
    ("peak", "most"),
    [
        (lambda b: 70 + 37 * b, 7),
        (lambda b: 400 + b + b * b // 40, 14),
        (lambda b: max(900, 30 * b), 14),
        (lambda b: 36 * b + 60 * (b // 3), 8),
    ],
    ids=["line", "bends up", "flat at first", "in steps"],
)
@pytest.mark.parametrize("guess", [2, 150])
@pytest.mark.parametrize("budget", [1007, 5000, 20_011])
def test_the_largest_batch_fits_and_one_clip_more_does_not_by_few_plans(peak, most, guess, budget):
    asked = []

    def plan(batch: int) -> TrainingPlan:
        asked.append(batch)
        return made_up_plan(batch, peak(batch))

    found = largest_batch(plan, budget, guess=guess)
    assert peak(found.batch_size) <= budget < peak(found.batch_size + 1)
    assert {found.batch_size, found.batch_size + 1} <= set(asked)
    assert len(asked) == len(set(asked)) <= most


def test_too_little_memory_tells_what_one_clip_takes():
    with pytest.raises(TooLittleMemory) as refused:
        largest_batch(lambda batch: made_up_plan(batch, 100 * batch), 99)
    assert refused.value.plan.total == 100


# The command

FLOAT32 = ("--precision", "float32")


def test_the_table(capsys):
    assert main(["plan_memory", "--batch-size", "3", *FLOAT32, "--cfg", DEMO, *ON_THE_COMMAND_LINE]) == 0
    out = capsys.readouterr().out
    title, header, *rows = out.splitlines()
    assert title == f"{DEMO}: clips of 3 x 8 x 64 x 64, planned for cpu; MiB of tensors in one process"
    assert header.split() == [
        *("mode", "precision", "batch", "parameters", "gradients", "optimizer", "input", "activations", "temporaries"),
        "total",
    ]
    cells = [row.split() for row in rows]
    assert [row[:3] for row in cells] == [[mode, "float32", "3"] for mode in ("plain", "reversible")]
    for row in cells:
        *parts, total = map(float, row[3:])
        assert total == pytest.approx(sum(parts), abs=0.3)
    assert float(cells[1][-1]) < float(cells[0][-1])


@slow
def test_the_table_has_both_modes_in_every_precision(capsys):
    assert main(["plan_memory", "--cfg", "ImageNet/REV_VIT_S", "--batch-size", "2"]) == 0
    cells = [row.split() for row in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:3] for row in cells] == [[m, p, "2"] for m in ("plain", "reversible") for p in PRECISIONS]
    total = {(row[0], row[1]): float(row[-1]) for row in cells}
    assert total["reversible", "float32"] < total["plain", "bf16"] < total["plain", "float32"]


def test_the_largest_batch_of_a_gpu_as_json(capsys):
    options = ["--mode", "plain", "--precision", "bf16", "--gpu-memory", "1.2", "--json"]
    assert main(["plan_memory", *options, "--cfg", DEMO, *ON_THE_COMMAND_LINE]) == 0
    found = json.loads(capsys.readouterr().out)
    budget = found["bytes_for_tensors"]
    assert budget == usable_gpu_bytes(1.2) == int(1.2 * 0.96 * 2**30) - 2**30
    assert (found["device"], found["clip"]) == ("cuda", [3, 8, 64, 64])
    (row,) = found["plans"]
    assert (row["mode"], row["precision"]) == ("plain", "bf16")
    cfg = load_config(DEMO, TWO_BLOCKS)
    again, more = (plan_training(cfg, row["batch_size"] + i, "bf16", "plain", device="cuda").total for i in (0, 1))
    assert row["total"] == again <= budget < more


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cfg", DEMO, "--batch-size", "0"], "--batch-size is 0; expected at least 1 clip"),
        (["--cfg", DEMO, "--batch-size", "1", "--gpu-memory", "8"], "--batch-size and --gpu-memory are both given"),
        (["--cfg", DEMO, "--gpu-memory", "-2"], "--gpu-memory is -2; expected the size of a GPU in GiB"),
        (
            ["--gpu-memory", "1.0417", *FLOAT32, "--cfg", DEMO, *ON_THE_COMMAND_LINE],
            "leaves 0 MiB for tensors, but one",
        ),
        (["--mode", "checkpointed", "--cfg", DEMO], "RevMViT is trained plain or reversible"),
        (["--cfg", "demo/NOWHERE"], "config demo/NOWHERE: no such file"),
        (["--cfg", DEMO, "MVIT.DEPTH", "2"], "the model cannot be built"),
        ([], "--cfg is missing"),
    ],
)
def test_wrong_input_is_one_line(options, said, capsys):
    assert main(["plan_memory", *options]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("revvideo: ")]
    assert (out, len(lines)) == ("", 1)
    assert said in lines[0]
    assert "Traceback" not in err


def test_the_script_of_the_checkout():
    command = [sys.executable, str(REPOSITORY / "tools/plan_memory.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: tools/plan_memory.py ")


# Cost

STATUS = Path("/proc/self/status")  # of this process; ru_maxrss knows that of the parent too, from before the exec
on_linux = pytest.mark.skipif(not STATUS.exists(), reason="reads the largest resident memory from /proc")
PROGRAM = """
import sys
from revvideo import load_config
from revvideo.planner import plan_training
cfg = load_config(sys.argv[1])
plan = plan_training(cfg, 64, device="cuda" if cfg.NUM_GPUS else "cpu")
print(plan.total, *(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@slow
@on_linux
@pytest.mark.parametrize("config", list_shipped_configs())
def test_batch_64_of_every_config_takes_a_minute_and_two_gib_at_most(config):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", PROGRAM, config]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # as on a machine of its own
    total_bytes, largest_kib = map(int, done.stdout.split())
    print(f"{config}: {total_bytes / 2**20:.0f} MiB planned in {seconds:.1f} s, {largest_kib / 2**20:.2f} GiB")
    assert seconds < 60
    assert largest_kib < 2 * 2**20


def resident_kib(name: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(name))


@on_linux
def test_a_large_batch_takes_no_memory_and_little_time():
    plan_training(load_config(DEMO, TWO_BLOCKS), 1)  # imports
    Path("/proc/self/clear_refs").write_text("5")  # the largest so far is the present one
    memory, start = resident_kib("VmRSS"), time.process_time()
    plan = plan_training(load_config("ImageNet/REV_VIT_S"), 64, mode="plain")
    assert plan.total > 3 * 2**30
    assert resident_kib("VmHWM") - memory < 200 * 2**10
    assert time.process_time() - start < 60
