"""Plans are what the profiler and the allocator measure in real steps."""

import contextlib
import random

import pytest
import torch
from demo_config import DEMO, TWO_BLOCKS
from reduced_models import UnderAutocast, model_on_meta
from torch import nn
from torch.nn import functional as F

from revvideo import build_model, load_config
from revvideo.benchmark.memory import peak_bytes, peak_training_bytes
from revvideo.build import build_optimizer
from revvideo.config.batch import batch_plan
from revvideo.planner import PRECISIONS, TrainingPlan, largest_batch, plan_training, usable_gpu_bytes
from revvideo.planner.largest_batch import CUDA_CONTEXT_BYTES

slow = pytest.mark.slow


# Plans against measurements


def check(config: str, overrides: list, batch: int, precision: str, mode: str, tolerance: float = 0.03) -> None:
    cfg = load_config(config, overrides)
    plan = plan_training(cfg, batch, precision, mode)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    model.set_grad_checkpointing(mode != "plain")
    clips, labels = torch.randn(batch, *model.input_spec.shape), torch.zeros(batch, dtype=torch.long)
    measured = peak_training_bytes(UnderAutocast(model, PRECISIONS[precision]), clips, labels)
    print(f"{config} {overrides} {batch} {precision} {mode}: planned {plan.peak}, measured {measured}")
    assert plan.peak == pytest.approx(measured, rel=tolerance)
    assert plan.parameters == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert plan.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert plan.inputs >= clips.nbytes + labels.nbytes  # more for mixed targets


def drawn(seed: int) -> list:
    """Depth, width and frames of a Rev-MViT with the demo's stages."""
    draw = random.Random(seed)
    return [
        *("MVIT.DEPTH", draw.randint(7, 12), "MVIT.EMBED_DIM", 8 * draw.randint(3, 8)),
        *("DATA.NUM_FRAMES", 2 * draw.randint(2, 8)),
    ]


QUICK = {(1, "float32", "reversible"), (2, "bf16", "reversible")}
EVERY = [(b, p, m) for b in (1, 2) for p in ("float32", "bf16") for m in ("reversible", "plain")]


@pytest.mark.parametrize(
    ("batch", "precision", "mode"), [case if case in QUICK else pytest.param(*case, marks=slow) for case in EVERY]
)
def test_the_demo(batch, precision, mode):
    check(DEMO, [], batch, precision, mode)


DRAWN = [(seed, batch, mode) for seed in (0, 1) for batch in (1, 2) for mode in ("reversible", "plain")]


@pytest.mark.parametrize(
    ("seed", "batch", "mode"),
    [case if case == (0, 2, "plain") else pytest.param(*case, marks=slow) for case in DRAWN],
)
def test_networks_drawn_by_seed(seed, batch, mode):
    check(DEMO, drawn(seed), batch, "float32", mode)


@slow
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ("Kinetics/REV_MVIT_B_16x4_CONV", "reversible"),
        ("Kinetics/REV_MVIT_B_16x4_CONV", "plain"),
        ("Kinetics/MVIT_B_16x4_CONV", "plain"),
        ("Kinetics/MVIT_B_16x4_CONV", "checkpointed"),
        ("ImageNet/REV_VIT_S", "reversible"),
        ("ImageNet/REV_VIT_S", "plain"),
    ],
)
def test_full_networks(config, mode, batch):
    check(config, [], batch, "float32", mode)


@slow
@pytest.mark.parametrize("threads", [1, 2])
def test_buffers_of_kernels_grow_with_the_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(DEMO, [], 1, "float32", "reversible")
    finally:
        torch.set_num_threads(before)


def clips_of_images() -> nn.Module:
    return model_on_meta("vit_b", depth=2, embed_dim=32, num_heads=2, num_classes=5, input_size=(1, 64, 64))


def test_a_function_that_makes_a_model_and_an_optimizer_of_ones_own():
    plan = plan_training(clips_of_images, 3, "fp16", "checkpointed", lambda model: torch.optim.SGD(model.parameters()))
    parameters = sum(p.numel() * 4 for p in clips_of_images().parameters())
    assert (plan.parameters, plan.gradients, plan.optimizer_state) == (parameters, parameters, 0)
    assert plan.inputs == 3 * 3 * 64 * 64 * 4 + 3 * 8
    assert plan_training(clips_of_images, 3).mode == "as built"


@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_the_optimizer_state_is_that_of_a_real_step(method):
    cfg = load_config(DEMO, TWO_BLOCKS | {"SOLVER.OPTIMIZING_METHOD": method})
    plan = plan_training(cfg, 1)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model, batch_plan(cfg))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    assert plan.optimizer_state == sum(tensor.nbytes for tensor in tensors)
    assert plan.optimizer_state >= {"adamw": 2, "sgd": 1}[method] * plan.parameters
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert plan.optimizer_temporaries == pytest.approx(peak_bytes(optimizer.step, torch.device("cpu")), rel=0.03)


def test_frozen_features_need_no_gradients():
    cfg = load_config(DEMO, TWO_BLOCKS | {"MODEL.DETACH_FINAL_FC": True})
    head = build_model(cfg).get_classifier()
    plan = plan_training(cfg, 2)
    assert plan.gradients == sum(p.nbytes for p in head.parameters()) < plan.parameters / 20


def test_mixed_targets_are_class_weights():
    options = TWO_BLOCKS | {"MODEL.LOSS_FUNC": "soft_cross_entropy"}
    plain, mixed = (plan_training(load_config(DEMO, options | {"MIXUP.ENABLE": on}), 4).inputs for on in (False, True))
    assert mixed - plain == 4 * (8 * 4 - 8)


def test_cuda_rounds_storages_and_norms_in_float32_under_autocast():
    cfg = load_config(DEMO, TWO_BLOCKS)
    cpu, cuda = (plan_training(cfg, 2, "bf16", "plain", device=device) for device in ("cpu", "cuda"))
    assert cuda.activations % 512 == cuda.temporaries % 512 == 0
    assert cuda.activations > 1.05 * cpu.activations  # the outputs of LayerNorm
    float32 = [plan_training(cfg, 2, "float32", "plain", device=device).activations for device in ("cpu", "cuda")]
    assert float32[0] <= float32[1] < 1.02 * float32[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0,), "batch is 0"),
        ((1, "int8"), "precision is 'int8'; expected one of float32, bf16, fp16"),
        ((1, "bf16", "magic"), "mode is 'magic'"),
        ((1, "bf16", "checkpointed"), "RevMViT cannot be trained checkpointed; expected plain or reversible"),
    ],
)
def test_what_cannot_be_planned(arguments, said):
    with pytest.raises(ValueError, match=said):
        plan_training(load_config(DEMO), *arguments)


# On a GPU


def cuda_step_peak(cfg, batch: int, precision: str) -> int:
    """Largest number of bytes of the allocator in three steps of the trainer."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    model = build_model(cfg).train().cuda()
    optimizer = build_optimizer(cfg, model, batch_plan(cfg))
    clips, labels = torch.randn(batch, *model.input_spec.shape, device="cuda"), torch.zeros(batch).long().cuda()
    dtype = PRECISIONS[precision]
    scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
    for _ in range(3):
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            logits = model(clips)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return torch.cuda.max_memory_allocated()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", ["reversible", "plain"])
def test_plans_are_near_what_cuda_allocates(mode, precision):
    cfg = load_config("Kinetics/REV_MVIT_B_16x4_CONV", ["REV.BACKPROP", mode])
    plan = plan_training(cfg, 16, precision, mode, device="cuda")
    measured = cuda_step_peak(cfg, 16, precision)
    print(f"{mode} {precision}: planned {plan.total / 2**20:.0f} MiB, measured {measured / 2**20:.0f}")
    assert plan.total == pytest.approx(measured, rel=0.15)


@contextlib.contextmanager
def gpu_of(gib: float):
    """This GPU as if it had so many GiB, of which the context takes its part."""
    share = (gib * 2**30 - CUDA_CONTEXT_BYTES) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["reversible", "plain"])
def test_the_largest_batch_fits_and_a_fifth_more_does_not(mode):
    cfg = load_config("Kinetics/REV_MVIT_B_16x4_CONV", ["REV.BACKPROP", mode])

    def plan(batch: int) -> TrainingPlan:
        return plan_training(cfg, batch, "bf16", mode, device="cuda")

    batch = largest_batch(plan, usable_gpu_bytes(16)).batch_size
    with gpu_of(16):
        assert cuda_step_peak(cfg, batch, "bf16") > 0
        with pytest.raises(torch.OutOfMemoryError):
            cuda_step_peak(cfg, -(-batch * 12 // 10), "bf16")
