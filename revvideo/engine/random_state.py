"""The state of the global random generators as tensors and plain numbers, which `weights_only=True` reads back.

What a sample or a mixture draws comes from generators of its own (DESIGN.md, "Randomness"); drop path, dropout and
whatever a user's code adds draw from the global ones, and a run that goes on has to find them where it left them.
"""

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def random_state() -> dict[str, Tensor | dict]:
    """State of the global generators of this process.

    Returns:
        `cpu`: torch's, uint8; `cuda`: that of the current device, uint8, only where CUDA is in use; `python`: that of
        the module `random`; `numpy`: that of `numpy.random`, left out where a program has put another bit generator
        than the Mersenne Twister there.
    """
    state: dict[str, Tensor | dict] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    version, words, gauss = random.getstate()
    state["python"] = {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss}
    numpy_state = np.random.get_state(legacy=False)
    if numpy_state["bit_generator"] == "MT19937":
        state["numpy"] = {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),  # 32 bits, unsigned
            "position": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        }
    return state


def set_random_state(state: Mapping[str, Tensor | Mapping]) -> None:
    """Set the generators to what `random_state` returned.

    What `state` does not hold is left alone, and so is a state of CUDA where there is no CUDA.
    """
    if "cpu" in state:
        torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    if "python" in state:
        python = state["python"]
        random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    if "numpy" in state:
        numpy_state = state["numpy"]
        key = numpy_state["key"].cpu().numpy().astype(np.uint32)
        np.random.set_state(("MT19937", key, numpy_state["position"], numpy_state["has_gauss"], numpy_state["gauss"]))
