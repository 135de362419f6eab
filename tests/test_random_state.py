"""The global random generators go on where a checkpoint was written."""

import random

import numpy as np
import pytest
import torch

from revvideo.engine.checkpoint import load_checkpoint, save_checkpoint
from revvideo.engine.random_state import random_state, set_random_state


def draw() -> list[float]:
    """Of every generator; an odd number of normal draws leaves the second of a pair in the state."""
    return [
        *torch.rand(3).tolist(),
        torch.randn(1).item(),
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        *np.random.randint(0, 2**32, 2, dtype=np.uint32).tolist(),
    ]


def test_every_generator_goes_on_where_it_was(tmp_path):
    draw()
    path = save_checkpoint(tmp_path / "a.pyth", {"random_states": [random_state()]})
    expected = draw() + draw()
    draw()
    (state,) = load_checkpoint(path)["random_states"]
    set_random_state(state)
    assert draw() + draw() == expected
    assert set(state) == {"cpu", "python", "numpy"} | ({"cuda"} if torch.cuda.is_initialized() else set())


def test_words_with_the_highest_bit_set_come_back():
    np.random.seed(0)
    np.random.rand(1)  # fills the words with the generator's own
    key = np.random.get_state()[1]
    assert (key >= 2**31).any()  # what an int32 could not hold
    state = random_state()
    np.random.seed(1)
    set_random_state(state)
    assert (np.random.get_state()[1] == key).all()


@pytest.mark.parametrize("kept", ["cpu", "python", "numpy"])
def test_what_is_missing_is_left_alone(kept):
    """Checkpoints of earlier versions hold the state of torch only."""
    saved = random_state()
    start = draw()
    before = random_state()
    set_random_state({kept: saved[kept]})
    after = draw()
    set_random_state(before)
    undisturbed = draw()
    places = {"cpu": slice(0, 4), "python": slice(4, 6), "numpy": slice(6, 10)}
    for name, place in places.items():
        assert after[place] == (start if name == kept else undisturbed)[place]
        assert start[place] != undisturbed[place]


def test_a_state_of_cuda_is_ignored_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: pytest.fail("there is no CUDA"))
    set_random_state({**random_state(), "cuda": torch.zeros(16, dtype=torch.uint8)})


@pytest.mark.gpu
def test_the_generator_of_the_device_goes_on_where_it_was():
    torch.rand(1, device="cuda")
    state = random_state()
    expected = torch.rand(4, device="cuda")
    set_random_state(state)
    assert torch.equal(torch.rand(4, device="cuda"), expected)
