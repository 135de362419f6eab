"""Every pooling operator computes torch's depthwise convolution and its gradients, at torch's memory or less."""

import pytest
import torch
from pooling_reference import error, errors, pool_by, reference, tokens
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from revvideo.benchmark import pooling as benchmark
from revvideo.benchmark.memory import peak_bytes
from revvideo.models import compiled_pooling, depthwise_pooling
from revvideo.models.depthwise_pooling import OPERATORS, depthwise_pool

CPU = torch.device("cpu")
# (D, d), grid, kernel, stride, padding
GEOMETRIES = {
    "two heads": ((8, 4), (3, 7, 5), (3, 3, 3), (1, 2, 2), (1, 1, 1)),
    "two frames": ((96, 96), (2, 6, 11), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "stride above the kernel": ((12, 12), (4, 17, 9), (3, 3, 3), (2, 8, 4), (1, 1, 1)),
    "no kernel in time": ((40, 20), (5, 6, 7), (1, 3, 3), (1, 1, 2), (0, 1, 1)),
    "even kernel, no padding": ((200, 100), (4, 6, 7), (2, 2, 2), (2, 2, 2), (0, 0, 0)),
    "wide kernel, odd width": ((33, 33), (5, 9, 8), (3, 5, 4), (1, 2, 1), (1, 2, 2)),
    "volume smaller than the kernel": ((16, 16), (1, 1, 2), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "padding as wide as the kernel": ((6, 3), (3, 4, 5), (1, 2, 2), (1, 3, 2), (1, 2, 2)),
}
# dtype of the volume: tolerances of the pooled volume and of its gradient, of the weight's gradient
TOLERANCES = {
    torch.float64: (1e-13, 1e-13),
    torch.float32: (1e-6, 1e-6),
    torch.bfloat16: (4e-3, 1e-6),
    torch.float16: (5e-4, 1e-6),
}


@pytest.fixture(params=["taps", "compiled"])
def operator(request):
    if request.param == "compiled":
        try:
            compiled_pooling.library()
        except compiled_pooling.BuildError as error:
            pytest.skip(f"the C++ kernel cannot be built here: {error}")
    return request.param


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_operators_compute_the_convolution_and_its_gradients(operator, geometry, dtype):
    torch.manual_seed(0)
    (channels, kernels), grid, kernel, stride, padding = geometry
    weight = torch.randn(kernels, 1, *kernel, dtype=torch.promote_types(dtype, torch.float32))
    found = errors(pool_by(operator), tokens(channels, grid, dtype), weight, stride, padding)
    in_dtype, precise = TOLERANCES[dtype]
    assert max(found[:2]) <= in_dtype, found
    assert found[2] <= precise, found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "layout", ["channels first", "all but a class token", "queries beside keys", "every other frame"]
)
def test_a_volume_may_lie_anyhow(operator, layout, dtype):
    torch.manual_seed(0)
    volume = {
        "channels first": lambda: torch.randn(2, 8, 4, 6, 5),
        "all but a class token": lambda: torch.randn(2, 1 + 120, 8)[:, 1:].view(2, 4, 6, 5, 8).permute(0, 4, 1, 2, 3),
        "queries beside keys": lambda: (
            torch.randn(2, 120, 24)[..., 8:16].unflatten(1, (4, 6, 5)).permute(0, 4, 1, 2, 3)
        ),
        "every other frame": lambda: torch.randn(2, 8, 6, 5, 8)[:, ::2].permute(0, 4, 1, 2, 3),
    }[layout]().to(dtype)
    found = errors(pool_by(operator), volume, torch.randn(4, 1, 3, 3, 3), (1, 2, 2), (1, 1, 1))
    assert max(found) <= TOLERANCES[dtype][0], found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_aten_is_right_for_two_frames_too(dtype):
    torch.manual_seed(0)
    found = errors(pool_by("aten"), tokens(8, (2, 6, 6), dtype), torch.randn(4, 1, 3, 3, 3), (1, 1, 1), (1, 1, 1))
    assert max(found) <= TOLERANCES[dtype][0], found


def test_several_slabs_and_several_threads(operator):
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        volume = tokens(48, (5, 60, 60), torch.float32)  # 0.7 MB a frame, clip by clip
        for dtype in (torch.float32, torch.bfloat16):
            found = errors(pool_by(operator), volume.to(dtype), torch.randn(24, 1, 3, 3, 3), (2, 2, 2), (1, 1, 1))
            assert max(found) <= TOLERANCES[dtype][0], found
    finally:
        torch.set_num_threads(threads)


def test_nan_and_infinity_stay_what_they_are(operator):
    volume = torch.ones(1, 2, 2, 2, 32, dtype=torch.bfloat16).permute(0, 4, 1, 2, 3)
    volume[0, 0], volume[0, 1], volume[0, 2] = float("nan"), float("inf"), -3e38
    pooled = depthwise_pool(volume, torch.ones(32, 1, 2, 2, 2), (1, 1, 1), (0, 0, 0), operator=operator).flatten()
    assert pooled[0].isnan()
    assert pooled[1:3].tolist() == [float("inf"), float("-inf")]
    assert pooled[3:].eq(8).all()


def test_gradients_are_computed_only_where_they_are_wanted(operator, monkeypatch):
    asked = []
    for name in ("input_gradient", "weight_gradient"):
        for module in (compiled_pooling, depthwise_pooling.taps_pooling):
            function = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, name=name, f=function: (asked.append(name), f(*a))[1])
    volume, weight = tokens(8, (2, 4, 4), torch.float32), torch.randn(8, 1, 3, 3, 3)
    for wanted, name in ((volume, "input_gradient"), (weight, "weight_gradient")):
        wanted.requires_grad_()
        pooled = depthwise_pool(volume, weight, (1, 1, 1), (1, 1, 1), operator=operator)
        kept = [x for x in pooled.grad_fn.saved_tensors if x is not None]
        assert [x.shape for x in kept] == [weight.shape if wanted is volume else volume.shape]
        pooled.sum().backward()
        assert asked == [name]
        asked.clear()
        wanted.requires_grad_(False)
    assert not depthwise_pool(volume, weight, (1, 1, 1), (1, 1, 1), operator=operator).requires_grad


def test_derivatives_of_first_and_second_order_by_finite_differences():
    torch.manual_seed(0)
    volume = tokens(2, (2, 3, 2), torch.float64, batch=1).requires_grad_()
    weight = torch.randn(1, 1, 2, 3, 2, dtype=torch.float64, requires_grad=True)

    def pool(volume, weight):
        return depthwise_pool(volume, weight, (1, 2, 2), (1, 1, 1), operator="taps")

    assert torch.autograd.gradcheck(pool, (volume, weight))
    assert torch.autograd.gradgradcheck(pool, (volume, weight))


def test_second_derivatives_with_a_float32_weight_beside_a_bfloat16_volume(operator):
    torch.manual_seed(0)
    volume, weight = tokens(8, (2, 6, 6), torch.bfloat16), torch.randn(4, 1, 3, 3, 3)

    def penalty_gradients(pool, *inputs):
        inputs = [x.detach().requires_grad_() for x in inputs]
        pooled = pool(*inputs, (1, 2, 2), (1, 1, 1))
        grads = torch.autograd.grad(pooled.double().square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.double().square().sum() for g in grads), inputs)

    ours = penalty_gradients(pool_by(operator), volume, weight)
    theirs = penalty_gradients(reference, volume.double(), weight.double())
    assert [g.dtype for g in ours] == [torch.bfloat16, torch.float32]
    assert max(error(a, b) for a, b in zip(ours, theirs, strict=True)) <= 2e-2


# What else looks at an operator: torch.library, compilers, autocast, counters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operators_are_what_they_say(operator, dtype):
    torch.manual_seed(0)
    volume = tokens(8, (3, 4, 5), dtype).requires_grad_()
    weight = torch.randn(4, 1, 3, 3, 3, requires_grad=True)
    stride, padding = [1, 2, 2], [1, 1, 1]
    grad = tokens(8, (3, 2, 3), dtype).requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for op, arguments in (
        (depthwise_pooling._pool, (volume, weight)),
        (depthwise_pooling._input_gradient, (grad, weight, volume.shape)),
        (depthwise_pooling._weight_gradient, (grad, volume, weight.shape)),
    ):
        torch.library.opcheck(op, (*arguments, stride, padding, operator), test_utils=checks)


class Pool(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.weight, self.operator = nn.Parameter(torch.randn(4, 1, 3, 3, 3)), operator

    def forward(self, x):
        volume = x.unflatten(1, (2, 4, 4)).permute(0, 4, 1, 2, 3)
        return depthwise_pool(volume, self.weight, (1, 2, 2), (1, 1, 1), operator=self.operator).flatten(2)


def test_exports_and_takes_other_parameters(operator):
    model, x = Pool(operator), torch.randn(2, 32, 8)
    exported = torch.export.export(model, (x,)).module()
    assert torch.equal(exported(x), model(x))
    doubled = torch.func.functional_call(model, {"weight": 2 * model.weight}, x)
    torch.testing.assert_close(doubled, 2 * model(x))


@pytest.mark.slow
def test_compiles_without_a_break(operator):
    model, x = Pool(operator), torch.randn(2, 32, 8, requires_grad=True)
    compiled_model = torch.compile(model, fullgraph=True)
    ours, theirs = (torch.autograd.grad(f(x.relu()).square().sum(), (x, model.weight)) for f in (compiled_model, model))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", OPERATORS)
def test_fake_and_meta_tensors_have_the_right_sizes_and_build_nothing(name, monkeypatch):
    monkeypatch.setattr(compiled_pooling, "library", lambda: pytest.fail("a fake tensor needs no kernel"))
    with FakeTensorMode():
        volume = torch.empty(2, 3, 4, 5, 8, requires_grad=True)
        weight = torch.empty(4, 1, 3, 3, 3, requires_grad=True)
        pooled = depthwise_pool(volume.permute(0, 4, 1, 2, 3), weight, (1, 2, 2), (1, 1, 1), operator=name)
        pooled.sum().backward()
        assert (pooled.shape, volume.grad.shape, weight.grad.shape) == ((2, 8, 3, 2, 3), volume.shape, weight.shape)
    volume = torch.empty(2, 8, 3, 4, 5, device="meta")
    weight = torch.empty(4, 1, 3, 3, 3, device="meta")
    assert depthwise_pool(volume, weight, (1, 2, 2), (1, 1, 1), operator=name).shape == (2, 8, 3, 2, 3)


def test_autocast_casts_the_volume_and_leaves_the_weight_precise(operator):
    torch.manual_seed(0)
    volume, weight = tokens(8, (2, 6, 6), torch.float32), torch.randn(4, 1, 3, 3, 3)

    def pool(*arguments):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return depthwise_pool(*arguments, operator=operator)

    assert pool(volume, weight, (1, 2, 2), (1, 1, 1)).dtype is torch.bfloat16
    assert pool(volume.double(), weight, (1, 2, 2), (1, 1, 1)).dtype is torch.float64
    found = errors(pool, volume.bfloat16(), weight, (1, 2, 2), (1, 1, 1))
    assert max(found[:2]) <= 2.5e-3, found  # one rounding of the result
    assert found[2] <= 1e-6, found


def test_products_are_counted(operator):
    volume, weight = tokens(8, (2, 6, 6), torch.float32).requires_grad_(), torch.randn(4, 1, 3, 3, 3).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        pooled = depthwise_pool(volume, weight, (1, 2, 2), (1, 1, 1), operator=operator)
        assert counter.get_total_flops() == 2 * 27 * pooled.numel()
        pooled.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 27 * pooled.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (1, 8, 8)], ids=str)
def test_memory_of_the_gradients(operator, stride, dtype):
    """Beside the gradient itself slabs at most, and never more than torch's convolution needs."""
    found = benchmark.Pooling((1, 96, 8, 56, 56), (96, 1, 3, 3, 3), stride, (1, 1, 1))
    peaks = {
        name: {part: peak_bytes(work, CPU) for part, work in benchmark.works(found, name, dtype, CPU).items()}
        for name in ("aten", operator)
    }
    ours, theirs = peaks[operator], peaks["aten"]
    volume = 96 * 8 * 56 * 56 * dtype.itemsize
    slabs = {"taps": 10 * 2**20, "compiled": 2**18}[operator]
    assert ours["input gradient"] <= volume + slabs, peaks
    assert ours["weight gradient"] <= slabs, peaks
    assert max(ours.values()) <= 1.02 * max(theirs.values()), peaks


def test_the_benchmark_finds_the_poolings_of_a_model():
    found = benchmark.poolings("rev_mvit_b_16x4", batch_size=2)
    assert sum(found.values()) == 38
    assert all(pooling.volume[0] == 2 and pooling.weight == (96, 1, 3, 3, 3) for pooling in found)
    one = benchmark.Pooling((1, 8, 2, 4, 4), (4, 1, 3, 3, 3), (1, 2, 2), (1, 1, 1))
    medians = benchmark.measure({one: 1}, ["aten", "taps"], torch.float32, CPU, repeats=1)
    assert all(medians[one][name][part] > 0 for name in ("aten", "taps") for part in benchmark.PARTS)


@pytest.mark.parametrize(
    ("volume", "weight", "operator", "message"),
    [
        ((1, 4, 2, 4, 4), (4, 1, 3, 3, 3), "cudnn", "'cudnn'; expected one of auto, aten, taps, compiled"),
        ((1, 6, 2, 4, 4), (4, 1, 3, 3, 3), "auto", "d divides D"),
        ((1, 4, 2, 4, 4), (4, 4, 3, 3, 3), "auto", "d divides D"),
        ((1, 4, 2, 4, 4), (4, 1, 3, 3, 8), "auto", "larger than the padded volume"),
    ],
)
def test_wrong_arguments_are_named(volume, weight, operator, message):
    with pytest.raises(ValueError, match=message):
        depthwise_pool(torch.randn(volume), torch.randn(weight), (1, 1, 1), (1, 1, 1), operator=operator)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["auto", "taps"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_on_a_gpu(name, dtype):
    torch.manual_seed(0)
    volume = tokens(96, (4, 12, 12), dtype).cuda()
    weight = torch.randn(48, 1, 3, 3, 3, device="cuda", dtype=torch.promote_types(dtype, torch.float32))
    found = errors(pool_by(name), volume, weight, (1, 2, 2), (1, 1, 1))
    assert max(found) <= {torch.float64: 1e-12, torch.bfloat16: 8e-3}[dtype], found


@pytest.mark.gpu
def test_the_compiled_operator_is_for_the_cpu():
    volume, weight = torch.randn(1, 4, 2, 4, 4).cuda(), torch.randn(4, 1, 3, 3, 3).cuda()
    with pytest.raises(ValueError, match="runs on the CPU, not on cuda"):
        depthwise_pool(volume, weight, (1, 1, 1), (1, 1, 1), operator="compiled")
