"""Which attention outputs to keep for the backward, so that they cost little memory at the moment of the peak."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class BlockMemory:
    """Bytes of what the backward of one block of a reversible network holds.

    Args:
        transition: whether it is a stage transition, whose queries exist one head at a time.
        kept: activations that the engine keeps for it in any case, from its forward to its backward; of a transition
            one stream at its output.
        attention: output and log-sum-exp of its attention.
        stream: one stream, float32.
        activation: one activation of that size, in the dtype of the branches, for the samples that F sees at a time.
        keys: their keys, in that dtype.
        hidden: the hidden layer of the MLP for the tokens of one chunk, in that dtype.
        weights: the gradients of the MLP's weights, float32.
    """

    transition: bool
    kept: int
    attention: int
    stream: int
    activation: int
    keys: int
    hidden: int
    weights: int

    @property
    def working(self) -> int:
        """What its backward needs at its peak, to a few percent (counted and measured for Rev-MViT-B).

        Two streams and their gradients; in F about four activations (normed, queries, attention and a gradient) and
        keys and values on their way through pooling and norm; in G the hidden layer before and after GELU and its
        gradient.
        """
        streams, activations = (3, 3) if self.transition else (4, 3.5)
        branch_f = int(streams * self.stream + activations * self.activation) + 6 * self.keys
        branch_g = 5 * (self.kept if self.transition else self.stream) + 3 * self.hidden + self.weights
        return max(branch_f, branch_g)


def plan_kept_attention(blocks: Sequence[BlockMemory], *, extra_bytes: int) -> set[int]:
    """The blocks whose attention outputs are kept, so that the peak of a step rises by about ``extra_bytes`` at most.

    What block i keeps lives until its own backward: it is there while the blocks after it go back, and gone when the
    blocks before it do. The peak is mostly in the first blocks, which have most tokens, so what late blocks keep is
    often free; they come first. The time that is saved for each byte is the number of keys, nearly the same everywhere.
    """
    limit = _peak(blocks, set()) + extra_bytes
    chosen: set[int] = set()
    for i in reversed(range(len(blocks))):
        if _peak(blocks, chosen | {i}) <= limit:
            chosen.add(i)
    return chosen


def _peak(blocks: Sequence[BlockMemory], chosen: set[int]) -> int:
    alive = peak = 0
    for i, block in enumerate(blocks):
        alive += block.kept + (block.attention if i in chosen else 0)
        peak = max(peak, alive + block.working)
    return peak
