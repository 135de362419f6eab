"""When two sets of gradients count as equal (DESIGN.md, Style). One rule for every test that compares gradients."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# dtype of the computation: (tol, floor)
TOLERANCES = {torch.float64: (1e-10, 1e-14), torch.float32: (1e-5, 1e-8), torch.bfloat16: (2e-2, 1e-4)}


def parameter_gradients(module: nn.Module) -> dict[str, Tensor | None]:
    """A copy of the gradient of every parameter, None where there is none."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def assert_gradients_equal(
    actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], dtype: torch.dtype
) -> None:
    """`||g - g'|| <= max(tol * ||g'||, floor * G)` for each tensor, G the norm of all expected gradients.

    The floor is for gradients that are zero by mathematics. A gradient that is missing must be missing in both.

    Raises:
        AssertionError: names the tensors that differ; or the expected gradients prove nothing (none, zero, not finite).
    """
    tol, floor = TOLERANCES[dtype]
    assert actual.keys() == expected.keys(), f"only one side has {sorted(actual.keys() ^ expected.keys())}"
    total = sum(g.double().square().sum().item() for g in expected.values() if g is not None) ** 0.5
    assert 0 < total < float("inf"), f"the expected gradients have the norm {total}: comparing with them proves nothing"
    wrong = []
    for name, want in expected.items():
        got = actual[name]
        if got is None or want is None:
            if got is not want:
                wrong.append(f"{name}: {'missing' if got is None else 'there'}, expected the opposite")
        elif got.shape != want.shape or got.dtype != want.dtype:
            wrong.append(f"{name}: {got.shape} {got.dtype}, expected {want.shape} {want.dtype}")
        else:
            difference = (got.double() - want.double()).norm().item()
            bound = max(tol * want.double().norm().item(), floor * total)
            if not difference <= bound:  # so that NaN is wrong
                wrong.append(f"{name}: differs by {difference:.3g}, bound {bound:.3g}, norm {want.norm().item():.3g}")
    assert not wrong, f"{len(wrong)} of {len(expected)} gradients differ:\n" + "\n".join(wrong)
