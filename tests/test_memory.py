"""The memory meter counts exactly, and the memory of a reversible sequence does not grow with its depth."""

import pytest
import torch
from reduced_models import UnderAutocast
from torch import nn

from revvideo.benchmark.memory import peak_bytes, peak_training_bytes
from revvideo.models.registry import create_model
from revvideo.models.reversible import ReversibleSequence

CPU = torch.device("cpu")
MIB = 2**20


def test_the_meter_counts_what_is_alive_at_one_moment():
    def work():
        first = torch.empty(3 * MIB, dtype=torch.uint8)
        del first
        second, third = torch.empty(2 * MIB, dtype=torch.uint8), torch.empty(4 * MIB, dtype=torch.uint8)
        return second, third

    assert peak_bytes(work, CPU) == pytest.approx(6 * MIB, rel=1e-3)


class Network(nn.Module):
    """Equal blocks of token mixing by a linear layer and of an MLP: no video, no attention."""

    def __init__(self, depth: int, backprop: str):
        super().__init__()
        dim = 32
        blocks = [
            (
                nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim)),
                nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)),
            )
            for _ in range(depth)
        ]
        self.sequence = ReversibleSequence(blocks, backprop=backprop)

    def forward(self, x):
        return torch.cat(self.sequence(x, x), dim=-1).mean(1)


def peak(depth: int, backprop: str) -> int:
    torch.manual_seed(0)
    network = Network(depth, backprop)
    return peak_training_bytes(network, torch.randn(2, 512, 32), torch.tensor([1, 3]))


def test_memory_does_not_grow_with_depth_and_plain_backprop_grows_linearly():
    reversible = {depth: peak(depth, "reversible") for depth in (4, 32)}
    plain = {depth: peak(depth, "plain") for depth in (4, 8, 16, 32)}
    assert reversible[32] <= 1.02 * reversible[4], reversible
    slopes = [(plain[8] - plain[4]) / 4, (plain[16] - plain[8]) / 8, (plain[32] - plain[16]) / 16]
    assert min(slopes) > 0, plain
    assert max(slopes) <= 1.02 * min(slopes), plain
    assert plain[32] > 10 * reversible[32], (plain, reversible)
    print(f"KiB: reversible {reversible}, plain {plain}")


# The official network. These figures are exact, not noisy; the yardsticks are in docs/performance.md.


def official_peak(*, batch: int = 1, dtype: torch.dtype | None = None, **options) -> float:
    """MiB of a step of Rev-MViT-B 16x4, 224 pixels, without drop path."""
    torch.manual_seed(0)
    model = create_model("rev_mvit_b_16x4", drop_path=0.0, **options).train()
    clips, labels = torch.randn(batch, *model.input_spec.shape), torch.zeros(batch, dtype=torch.long)
    return peak_training_bytes(UnderAutocast(model, dtype), clips, labels, warmup_steps=1) / MIB


def test_peak_of_rev_mvit_b_16x4():
    assert official_peak() <= 140


@pytest.mark.slow
def test_peak_of_rev_mvit_b_16x4_at_its_leanest():
    assert official_peak(keep_mib=0) <= 90


@pytest.mark.slow
def test_peaks_of_rev_mvit_b_16x4_in_bfloat16():
    assert official_peak(dtype=torch.bfloat16) <= 115
    assert official_peak(dtype=torch.bfloat16, keep_mib=0) <= 86


@pytest.mark.slow
def test_a_second_clip_costs_less_than_the_first():
    one, two = official_peak(), official_peak(batch=2)
    assert two <= 1.95 * one, (one, two)


@pytest.mark.slow
def test_what_is_kept_stays_in_its_budget():
    nothing, free, some = (official_peak(keep_mib=mib) for mib in (-1, 0, 20))
    assert free <= nothing, (nothing, free)
    assert nothing < some <= nothing + 20, (nothing, some)


@pytest.mark.slow
def test_the_official_network_does_not_grow_with_depth():
    small = {"input_size": (8, 112, 112), "keep_mib": -1}
    peaks = [official_peak(depth=depth, **small) for depth in (8, 32)]
    assert peaks[1] <= 1.01 * peaks[0], peaks
