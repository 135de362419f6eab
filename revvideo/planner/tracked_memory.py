"""A program run on tensors without memory, and the bytes that its tensors would take at every moment.

All private parts of torch that the planner needs are here: fake tensors (`torch._subclasses`) and dispatch modes
(`torch.utils._python_dispatch`). `torch.distributed._tools.mem_tracker.MemTracker` counts the same way, but hangs hooks
on every module, and knows nothing of a kernel's own buffers (`kernel_workspace`).
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

Workspace = Callable[[object, tuple, object], int]


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Every tensor made inside has a shape, a type and strides of the CPU, but no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def as_fake(module: nn.Module) -> nn.Module:
    """`module`, built on ``meta``, on CPU tensors without memory; inside of `without_memory`."""
    return module.to_empty(device="cpu")


class TrackedMemory(TorchDispatchMode):
    """Counts the storages that are alive, each from the operator that made it until its last tensor is gone.

    Operators that run on real tensors only, such as comparisons of random states, are computed and not counted.

    Args:
        known: tensors that are there before; they are not counted.
        workspace: bytes that the kernel of a call takes beside its results: `(operator, args, results)`.
        granularity: every storage takes a multiple of so many bytes.

    Attributes:
        phase: name under which what is made from now on is counted.
        alive: bytes by phase.
        peak: `alive` at the moment when its sum was largest, with the kernel's workspace under its phase.
    """

    def __init__(self, known: Iterable[Tensor], *, workspace: Workspace | None = None, granularity: int = 1):
        super().__init__()
        self.workspace, self.granularity = workspace, granularity
        self.phase = "forward"
        self.alive: Counter[str] = Counter()
        self._now = 0
        # What is known is kept alive here, so that its bytes never have to be taken off.
        self._known = [tensor.untyped_storage() for tensor in known]
        self._storages: dict[int, object] = {storage._cdata: None for storage in self._known}
        self.restart()

    def restart(self) -> None:
        """Forget the peak; what is alive stays counted."""
        self.peak, self._highest = Counter(self.alive), self._now

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked for more often than anything is computed
        kwargs = kwargs or {}
        inputs = [*_tensors(args), *_tensors(kwargs.values())]
        if inputs and not any(isinstance(tensor, FakeTensor) for tensor in inputs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        results = func(*args, **kwargs)
        for tensor in _tensors((results,)):
            self._watch(tensor)
        hidden = self.workspace(func, args, results) if self.workspace else 0
        if self._now + hidden > self._highest:
            self._highest = self._now + hidden
            self.peak = self.alive + Counter({self.phase: hidden})
        return results

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, phase = storage._cdata, self.phase
        if key in self._storages:
            return
        size = -(-storage.nbytes() // self.granularity) * self.granularity
        self.alive[phase] += size
        self._now += size

        def gone(_) -> None:
            self.alive[phase] -= size
            self._now -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, gone)


def _tensors(values: Iterable) -> Iterator[Tensor]:
    """The tensors among arguments or results of an operator, also in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def bf16_products_are_native() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by instructions of its own."""
    found = (getattr(torch.cpu, f"_is_{name}_supported", lambda: True)() for name in ("avx512_bf16", "amx_tile"))
    return any(found)
