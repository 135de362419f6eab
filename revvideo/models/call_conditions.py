"""What decides the result of a module's call besides its input and parameters, so that it can be called again.

That is the autocast state, the train/eval mode of every submodule, and the state of the random generators. Autocast's
weight cache is off in both calls, because a cast made while gradients are off would be found there later by code that
needs its gradient.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes


class CallConditions:
    """The conditions of the first call of ``module`` on ``device``; `recorded` is around that call.

    Attributes:
        drew_random_numbers: whether that call drew from the global generators.
    """

    def __init__(self, module: nn.Module, device: torch.device):
        self.module, self.device = module, device
        self.drew_random_numbers = False
        self._modes = [m.training for m in module.modules()]
        self._autocast = _autocast_state(device)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Around the first call."""
        before = _random_state(self.device)
        with _autocast(self._autocast):
            yield
        self.drew_random_numbers = before != _random_state(self.device)
        self._random_state = before if self.drew_random_numbers else []

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Around a later call; afterwards all is as it was before."""
        with _autocast(self._autocast), _modes(self.module, self._modes):
            if not self.drew_random_numbers:
                yield
                return
            with _random_state_set(self.device, self._random_state):
                yield


def autocast_is_on(kind: str) -> bool:
    """Whether autocast is enabled for devices of a kind."""
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _autocast_state(device: torch.device) -> list[tuple[str, bool, torch.dtype]]:
    kinds = [kind for kind in {"cpu", device.type} if torch.amp.is_autocast_available(kind)]
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in sorted(kinds)]


@contextlib.contextmanager
def _autocast(state: list[tuple[str, bool, torch.dtype]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for kind, enabled, dtype in state:
            stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
        yield


@contextlib.contextmanager
def _modes(module: nn.Module, modes: list[bool]) -> Iterator[None]:
    modules = list(module.modules())
    now = [m.training for m in modules]
    for m, mode in zip(modules, modes, strict=True):
        m.training = mode
    try:
        yield
    finally:
        for m, mode in zip(modules, now, strict=True):
            m.training = mode


def _random_state(device: torch.device) -> list[bytes]:
    """The states of the generator of the CPU and of that of ``device``."""
    with _disable_current_modes():  # under fake tensors and in exports there is nothing to read otherwise
        states = [torch.get_rng_state()]
        if device.type not in ("cpu", "meta"):
            states.append(torch.get_device_module(device).get_rng_state(device))
        return [state.numpy().tobytes() for state in states]


@contextlib.contextmanager
def _random_state_set(device: torch.device, states: list[bytes]) -> Iterator[None]:
    def put(values: list[bytes]) -> None:
        with _disable_current_modes():
            tensors = [torch.frombuffer(bytearray(value), dtype=torch.uint8) for value in values]
            torch.set_rng_state(tensors[0])
            if len(tensors) > 1:
                torch.get_device_module(device).set_rng_state(tensors[1], device)

    now = _random_state(device)
    put(states)
    try:
        yield
    finally:
        put(now)
