"""The benchmark of training steps: what is measured, in which order, and what the figures mean."""

import importlib.util
import json
import statistics
import sys
import types

import pytest
import torch
from reduced_models import NUM_CLASSES, reduced_options
from torch import nn

from revvideo.benchmark import step_timing
from revvideo.benchmark.memory import peak_training_bytes
from revvideo.benchmark.model import KINDS, MIB, ModelBenchmark, Plan
from revvideo.benchmark.model_table import format_result
from revvideo.benchmark.plots import plot_result
from revvideo.benchmark.step_timing import Ratios, TrainingStep, in_turn, matmul_flops_per_second
from revvideo.benchmark.variants import Variant, resolve_variants
from revvideo.errors import InputError
from revvideo.models.input_spec import InputSpec

CPU = torch.device("cpu")
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
REVERSIBLE, PLAIN = "rev_mvit_b_16x4", "mvit_b_16x4"
TINY = {"num_classes": NUM_CLASSES, "drop_path": 0.0}


def tiny(name: str, mode: str) -> Variant:
    return Variant(name, mode, options=TINY | reduced_options(name))


# One step


class Probe(nn.Module):
    """A linear classifier that notes under which conditions its forward runs."""

    input_spec = InputSpec(frames=1, size=(2, 2), image=True)

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 3)
        self.seen = []

    def forward(self, clips):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        self.seen.append((dtype, self.head.weight.grad is None, self.training))
        return self.head(clips.flatten(1))


@pytest.mark.parametrize("precision", step_timing.PRECISIONS)
def test_a_timed_step_is_autocast_and_finds_no_gradients(precision):
    probe = Probe().eval()
    step = TrainingStep(probe, 4, precision, CPU)
    assert all(step.seconds() > 0 for _ in range(3))
    assert probe.seen == 3 * [(step_timing.PRECISIONS[precision], True, True)]
    assert probe.head.weight.grad is not None
    probe.seen.clear()
    step.peak_bytes()
    assert probe.seen[-1] == (step_timing.PRECISIONS[precision], False, True)


def test_the_loss_of_float16_is_scaled_as_in_training():
    gradients = {}
    for precision in ("float32", "float16"):
        torch.manual_seed(0)
        probe = Probe()
        TrainingStep(probe, 4, precision, CPU).run()
        gradients[precision] = probe.head.weight.grad
    torch.testing.assert_close(
        gradients["float16"] / step_timing.LOSS_SCALE, gradients["float32"], rtol=1e-2, atol=1e-3
    )


def test_steps_are_taken_in_turn_after_a_warm_up_that_does_not_count():
    called, rounds = [], []

    def measure(name: str):
        def work() -> float:
            called.append(name)
            return float(len(called))

        return work

    times = in_turn([measure("peer"), measure("ours")], 3, warmup_rounds=2, on_round=rounds.append)
    assert called == 5 * ["peer", "ours"]
    assert times == [[5.0, 7.0, 9.0], [6.0, 8.0, 10.0]]
    assert rounds == [(5.0, 6.0), (7.0, 8.0), (9.0, 10.0)]


def test_a_slow_phase_that_covers_a_pair_leaves_the_ratio_of_the_pairs_alone():
    peer = [2.0, 2.0, 6.0, 2.0, 2.0]
    found = Ratios.of([0.5 * seconds for seconds in peer[:4]] + [1.4], peer)
    assert found == Ratios(0.5, ratio_of_medians=0.5, ratio_of_minima=0.5, ratio_lowest=0.5, ratio_highest=0.7)


def test_the_fastest_matrix_product_counts_multiply_and_add(monkeypatch):
    times = iter([0.5, 0.25, 2.0, 1.0])
    monkeypatch.setattr(step_timing, "elapsed", lambda work, device: (work(), next(times))[1])
    assert matmul_flops_per_second("bfloat16", CPU, sizes=(4, 8), repeats=2) == 2 * 8**3 / 1.0


# The order of the measurements, with steps that only take notes


class FakeStep:
    """Takes 1 s for float32 and 0.5 s for other precisions; keeps 1 MiB a clip and 3 MiB a block."""

    log: list = []  # noqa: RUF012

    def __init__(self, model, batch_size, precision, device):
        self.model, self.batch_size, self.precision = model, batch_size, precision
        self.clips = torch.empty(batch_size, dtype=torch.uint8)
        self.name = "ours" if hasattr(model, "rev_backbone") else "peer"

    def seconds(self) -> float:
        self.log.append((self.name, self.precision, self.batch_size))
        return 1.0 if self.precision == "float32" else 0.5

    def peak_bytes(self) -> int:
        depth = len(self.model.rev_backbone.layers) if hasattr(self.model, "rev_backbone") else 0
        return MIB * (self.batch_size + 3 * depth)


@pytest.fixture
def log(monkeypatch):
    calls = []
    monkeypatch.setattr(FakeStep, "log", calls)
    return calls


def test_each_row_has_fresh_pairs_and_rows_of_one_precision_stay_together(log):
    plan = Plan(
        variants=[tiny(REVERSIBLE, "reversible")],
        precisions=["float32", "bfloat16"],
        batch_sizes=[1, 2],
        device=CPU,
        pairs=2,
        peer=tiny(PLAIN, "plain"),
    )
    reports = []
    result = ModelBenchmark(plan, make_step=FakeStep, on_result=lambda r: reports.append(len(r["rows"]))).run()
    pairs = [
        [("peer", "float32", batch), ("ours", precision, batch)] for precision in plan.precisions for batch in (1, 2)
    ]
    warmup_and_two = 3
    assert log == [call for pair in pairs for call in warmup_and_two * pair]
    assert [(r["precision"], r["batch_size"], r["ratio"]) for r in result["rows"]] == [
        ("float32", 1, 1.0),
        ("float32", 2, 1.0),
        ("bfloat16", 1, 0.5),
        ("bfloat16", 2, 0.5),
    ]
    # The peer's figures: once for each batch, from its steps in all rows.
    assert [(p["batch_size"], len(p["seconds"]), p["clips_per_second"]) for p in result["peers"]] == [
        (1, 4, 1.0),
        (2, 4, 2.0),
    ]
    assert [r["mib_per_clip"] for r in result["growth_with_batch"]] == pytest.approx([1.0, 1.0])
    assert reports[-1] == 4  # a file would have been up to date
    assert sorted(set(reports)) == [0, 1, 2, 3, 4]


def test_memory_against_depth_and_the_largest_batch(log):
    variant = tiny(REVERSIBLE, "plain")
    plan = Plan([variant], ["float32"], [2], CPU, pairs=1, depths=[3, 6, 8], max_batch=True, memory_limit=64 * MIB)
    benchmark = ModelBenchmark(plan, make_step=FakeStep)
    assert benchmark.result["skipped"] == [
        f"{REVERSIBLE} plain, depth 3: depth is 3; this network needs at least 6 blocks"
    ]
    result = benchmark.run()
    assert [(d["depth"], d["peak_mib"]) for d in result["depths"]] == [(6, 2 + 18), (8, 2 + 24)]
    (growth,) = result["growth_with_depth"]
    assert (growth["mib_per_block"], growth["mib_at_0"]) == pytest.approx((3.0, 2.0))
    (largest,) = result["largest_batches"]
    model = variant.build(CPU)
    weights = sum(p.nbytes for p in model.parameters())
    assert not list(model.buffers())
    fixed = 2 * weights + 3 * MIB * len(model.rev_backbone.layers)
    assert largest["batch_size"] == (64 * MIB - fixed) // (MIB + 1)  # a clip of FakeStep has one byte
    assert largest["too_large"] == largest["batch_size"] + 1
    assert largest["measured"][-1]["total_bytes"] == largest["total_bytes"]


def test_a_depth_that_runs_out_of_memory_is_a_line_and_the_others_are_measured(log):
    class Shallow(FakeStep):
        def peak_bytes(self):
            if self.name == "ours" and len(self.model.rev_backbone.layers) > 7:
                raise torch.OutOfMemoryError
            return super().peak_bytes()

    plan = Plan([tiny(REVERSIBLE, "plain")], ["float32"], [1], CPU, pairs=1, depths=[6, 7, 8])
    result = ModelBenchmark(plan, make_step=Shallow).run()
    assert [d["depth"] for d in result["depths"]] == [6, 7]
    assert result["skipped"] == [f"{REVERSIBLE} plain, float32, depth 8: out of memory"]
    assert result["growth_with_depth"][0]["mib_per_block"] == pytest.approx(3.0)


def test_no_depth_that_can_be_built_is_wrong_input():
    with pytest.raises(InputError, match=r"nothing to measure against depth: .* depth 2: depth is 2"):
        ModelBenchmark(Plan([tiny(REVERSIBLE, "plain")], ["float32"], [1], CPU, depths=[2]))


def test_what_runs_out_of_memory_is_a_row_that_says_so_and_the_others_are_measured(log):
    class Narrow(FakeStep):
        def peak_bytes(self):
            if self.batch_size > (1 if self.name == "peer" else 2):
                raise torch.OutOfMemoryError
            return super().peak_bytes()

    plan = Plan([tiny(REVERSIBLE, "plain")], ["float32"], [1, 2, 4], CPU, pairs=1, peer=tiny(PLAIN, "plain"))
    result = ModelBenchmark(plan, make_step=Narrow, header=header()).run()
    assert [(r["batch_size"], r["error"]) for r in result["rows"]] == [(1, None), (2, None), (4, "out of memory")]
    assert [(p["batch_size"], p["error"]) for p in result["peers"]] == [(1, None), (2, "out of memory")]
    one, two, _ = result["rows"]
    assert (one["ratio"], two["ratio"], two["median_seconds"]) == (1.0, None, 1.0)
    assert sum(line.endswith("out of memory") for line in format_result(result).splitlines()) == 2


def test_utilisation_is_three_forwards_of_two_operations_for_each_multiply_add(log, monkeypatch):
    plan = Plan([tiny(REVERSIBLE, "reversible")], ["bfloat16"], [4], CPU, pairs=1)
    benchmark = ModelBenchmark(plan, make_step=FakeStep, header=header())
    benchmark.result["matmul_tflops"] = {"bfloat16": 2e-3}
    monkeypatch.setattr("revvideo.benchmark.model.count_flops", lambda model: types.SimpleNamespace(giga=0.05))
    (row,) = benchmark.run()["rows"]
    assert row["gflops"] == 0.05
    assert row["mfu"] == pytest.approx(3 * 2 * 0.05e9 * 4 / 0.5 / 2e9)
    assert format_result(benchmark.result).splitlines()[-1].split()[-1] == "120.0%"


def test_compile_is_for_the_models_and_not_for_the_peer(log, monkeypatch):
    compiled = []
    hook = types.ModuleType("revvideo.build.compile")
    hook.compile_model = compiled.append
    monkeypatch.setitem(sys.modules, hook.__name__, hook)
    options = TINY | reduced_options(REVERSIBLE)
    variants, _ = resolve_variants([REVERSIBLE], ["plain"], [None], options, compiled=True)
    compiled.clear()  # of the trial without memory
    plan = Plan(variants, ["float32"], [1], CPU, pairs=1, peer=tiny(PLAIN, "plain"))
    (row,) = ModelBenchmark(plan, make_step=FakeStep).run()["rows"]
    assert row["compiled"] is True
    assert [type(model).__name__ for model in compiled] == ["RevMViT"]


def header() -> dict:
    from revvideo.benchmark.machine import describe_machine

    return {"command": "revvideo benchmark model", "machine": describe_machine(CPU)}


# Real steps of tiny networks of images, which take the least time

IMAGE_OPTIONS = {"num_classes": NUM_CLASSES, "depth": 3, "embed_dim": 32, "num_heads": 2, "input_size": (1, 128, 128)}


def image_variant(name: str, mode: str) -> Variant:
    return Variant(name, mode, options=IMAGE_OPTIONS | {"drop_path": 0.0})


@pytest.fixture(scope="module")
def measured() -> dict:
    """Read only."""
    networks = [image_variant("rev_vit_s", "reversible"), image_variant("rev_vit_s", "plain")]
    peer = image_variant("vit_b", "checkpoint")
    plan = Plan(networks, ["float32"], [2], CPU, pairs=2, peer=peer, depths=[3, 6])
    return ModelBenchmark(plan, header=header()).run()


def test_figures_of_a_row_agree_with_each_other(measured):
    assert len(measured["rows"]) == 2
    for row in measured["rows"]:
        assert len(row["seconds"]) == len(row["peer_seconds"]) == 2
        assert min(row["seconds"]) == row["min_seconds"] <= row["median_seconds"] == statistics.median(row["seconds"])
        assert row["clips_per_second"] == pytest.approx(row["batch_size"] / row["median_seconds"])
        assert row["milliseconds_per_clip"] == pytest.approx(1e3 / row["clips_per_second"])
        assert row["mib_per_clip"] == pytest.approx(row["peak_mib"] / row["batch_size"])
        assert 0 < row["ratio_lowest"] <= row["ratio"] <= row["ratio_highest"]
        expected = row["median_seconds"] / statistics.median(row["peer_seconds"])
        assert row["ratio_of_medians"] == pytest.approx(expected)
        assert (row["error"], row["mfu"], row["allocator_retries"]) == (None, None, 0)


def test_the_peak_of_a_row_is_that_of_the_meter(measured):
    model = image_variant("rev_vit_s", "reversible").build(CPU)
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(2, *model.input_spec.shape, generator=generator)
    expected = peak_training_bytes(model, clips, torch.zeros(2, dtype=torch.long)) / MIB
    row = measured["rows"][0]
    assert (row["mode"], row["batch_size"]) == ("reversible", 2)
    assert row["peak_mib"] == pytest.approx(expected, rel=1e-3)


def test_plain_backprop_grows_with_depth_and_reversible_does_not(measured):
    slopes = {figures["mode"]: figures["mib_per_block"] for figures in measured["growth_with_depth"]}
    assert slopes["plain"] > 0
    assert abs(slopes["reversible"]) < 0.1 * slopes["plain"]


def test_the_result_is_json_and_the_table_shows_every_row(measured):
    assert set(KINDS) < measured.keys()
    assert json.loads(json.dumps(measured)).keys() == measured.keys()
    table = format_result(measured)
    for row in [*measured["rows"], *measured["peers"]]:
        assert f"{row['median_seconds']:.4f}" in table
        assert f"{row['peak_mib']:.1f}" in table
    assert "MiB per block" in table
    assert table.startswith("revvideo benchmark model\n")
    assert f"torch {torch.__version__}" in table


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib (the extra 'plot') is not installed")
@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_drawing_is_written(measured, tmp_path, suffix):
    plot_result(measured, tmp_path / f"figure.{suffix}")
    content = (tmp_path / f"figure.{suffix}").read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert [path.name for path in tmp_path.iterdir()] == [f"figure.{suffix}"]
