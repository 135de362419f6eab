"""Which process is to blame: heartbeats, and the sentences that follow from them. It imports no torch.

Every process counts the collectives that it comes to; all of them come to the same ones in the same order. So who hangs
is who has counted less than the others, and who is dead is whose heartbeat stands still.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence

_MOST_NAMED = 4


@dataclasses.dataclass(frozen=True)
class Beat:
    """What a process says of itself every second.

    Attributes:
        count: of its heartbeats.
        number: of collectives that it has come to.
        what: the last one of them, for humans.
        seconds: since it came to that.
        done: it has nothing left to do.
    """

    count: int = 0
    number: int = 0
    what: str = "start"
    seconds: float = 0.0
    done: bool = False

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Beat":
        """The beat that a process has written."""
        return cls(**json.loads(text))


def behind_verdict(names: Sequence[str], what: str, late: Mapping[int, Beat], timeout_seconds: float) -> str | None:
    """Who did not come to a collective in which others have waited too long.

    Args:
        names: of the processes, by rank.
        what: the collective.
        late: rank -> the last heartbeat of a process that has not come to it.
        timeout_seconds: how long the others have waited.

    Returns:
        A sentence; None if there is none.
    """
    if not late:
        return None
    did = {
        rank: f"has ended after {beat.what!r}"
        if beat.done
        else f"did not come to {what!r} within {timeout_seconds:g} s; its last was {beat.what!r}, "
        f"{beat.seconds:.0f} s ago"
        for rank, beat in late.items()
    }
    return _of_each(names, did)


def silent_verdict(names: Sequence[str], silent: Mapping[int, tuple[Beat, float]]) -> str | None:
    """Who is dead.

    Args:
        names: of the processes, by rank.
        silent: rank -> its last heartbeat, and for how many seconds there has been no other.

    Returns:
        A sentence; None if there is none.
    """
    if not silent:
        return None
    did = {
        rank: f"has not answered for {seconds:.0f} s: it was killed or its machine is lost; its last was {beat.what!r}"
        for rank, (beat, seconds) in silent.items()
    }
    return _of_each(names, did)


def _of_each(names: Sequence[str], did: Mapping[int, str]) -> str:
    named = [f"{names[rank]} {did[rank]}" for rank in sorted(did)[:_MOST_NAMED]]
    more = len(did) - len(named)
    return ". ".join(named) + (f". So with {more} more" if more else "")
