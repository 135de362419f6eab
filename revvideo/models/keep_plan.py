"""What to keep for the backward, so that it buys time and costs little memory at the moment of the peak."""

import dataclasses
from collections.abc import Sequence

AUTOMATIC_SHARE = 0.6  # of the smallest peak: by as much it may rise where no budget is given


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
        projections: of a transition, its queries, keys and values before they are pooled, in the dtype of the branches.
    """

    transition: bool
    kept: int
    attention: int
    stream: int
    activation: int
    keys: int
    hidden: int
    weights: int
    projections: int = 0

    def working(self, whole: bool = False) -> int:
        """What its backward needs at its peak, to a few percent (counted and measured for Rev-MViT-B).

        Two streams and their gradients; in F about four activations (normed, queries, attention and a gradient) and
        keys and values on their way through pooling and norm; in G the hidden layer before and after GELU and its
        gradient. With ``whole`` projections of a transition are there all at once, instead of some heads at a time.
        """
        streams, activations = (3, 3) if self.transition else (4, 3.5)
        branch_f = int(streams * self.stream + activations * self.activation) + 6 * self.keys
        branch_f += self.projections if whole else 0
        branch_g = 5 * (self.kept if self.transition else self.stream) + 3 * self.hidden + self.weights
        return max(branch_f, branch_g)


@dataclasses.dataclass(frozen=True)
class KeepPlan:
    """Indices of blocks.

    Args:
        attention: whose attention outputs are kept from the forward to the backward.
        whole: transitions whose projections are kept within the backward of F.
    """

    attention: frozenset[int] = frozenset()
    whole: frozenset[int] = frozenset()


NOTHING = KeepPlan()


def plan_keeping(blocks: Sequence[BlockMemory], extra_bytes: int | None) -> KeepPlan:
    """What is kept, so that the peak of a step rises by about ``extra_bytes`` at most (None: `AUTOMATIC_SHARE`).

    What block i keeps lives until its own backward: it is there while the blocks after it go back, and gone when the
    blocks before it do. The peak is mostly in the first blocks, which have most tokens, so what late blocks keep is
    often free; they come first. Attention outputs save most time for each byte, the number of keys, which is nearly the
    same everywhere; the projections of transitions, which are computed again otherwise, come after them.
    """
    smallest = _peak(blocks, NOTHING)
    limit = smallest + (int(AUTOMATIC_SHARE * smallest) if extra_bytes is None else extra_bytes)
    plan = NOTHING
    for i in reversed(range(len(blocks))):
        trial = dataclasses.replace(plan, attention=plan.attention | {i})
        plan = trial if _peak(blocks, trial) <= limit else plan
    for i in reversed(range(len(blocks))):
        trial = dataclasses.replace(plan, whole=plan.whole | {i})
        plan = trial if blocks[i].transition and _peak(blocks, trial) <= limit else plan
    return plan


def _peak(blocks: Sequence[BlockMemory], plan: KeepPlan) -> int:
    alive = peak = 0
    for i, block in enumerate(blocks):
        alive += block.kept + (block.attention if i in plan.attention else 0)
        peak = max(peak, alive + block.working(whole=i in plan.whole))
    return peak
