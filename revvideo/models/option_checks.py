"""Options of the networks, checked before anything is built: kinds and limits, with messages that name the option."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from revvideo.models.video_transformer import PatchSpec

_WHOLE = {"depth": 1, "embed_dim": 1, "num_heads": 1, "num_classes": 0, "in_channels": 1}  # option -> smallest value
_RATES = ("drop_path", "dropout", "head_dropout")
_NOT_NEGATIVE = ("layer_scale", "head_init_scale")
_TRIPLES = {"input_size": 1, "pool_kv_stride_adaptive": 1, "pool_kvq_kernel": 1}  # option -> smallest number in it
_LISTS = {"pool_q_stride": 4, "pool_kv_stride": 4, "dim_mul": 2, "head_mul": 2}  # option -> numbers of an entry
_FORMS = {4: "[block, t, h, w] of whole numbers", 2: "[block, factor]"}


def check_options(network: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Check the options that are there for the network called ``network``, which has those of ``known``.

    Raises:
        ValueError: the first one that is unknown (with the nearest known one), of the wrong kind, or outside of its
            limits.
    """
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}"
            raise ValueError(f"{network} has no option {name!r}; {hint}")
        if name in _WHOLE:
            check_whole(name, value, _WHOLE[name])
        elif name in _RATES:
            _require(_is_number(value) and 0 <= value < 1, name, value, "a probability from 0 to below 1")
        elif name in _NOT_NEGATIVE:
            _require(_is_number(value) and value >= 0, name, value, "a number, 0 or more")
        elif name == "mlp_ratio":
            _require(_is_number(value) and value > 0, name, value, "a number above 0")
        elif name == "patch":
            _require(isinstance(value, PatchSpec), name, value, "a PatchSpec(kernel, stride, padding)")
        elif name in _TRIPLES:
            fits = not value or (_is_list(value, 3) and all(_is_whole(v, _TRIPLES[name]) for v in value))
            axes = "frames, height, width" if name == "input_size" else "t, h, w"
            _require(fits, name, value, f"three whole numbers ({axes}), {_TRIPLES[name]} or more")
        elif name in _LISTS:
            _check_entries(name, value, _LISTS[name])


def check_whole(name: str, value: Any, smallest: int) -> None:
    """Raise a ValueError unless ``value`` is a whole number, ``smallest`` or more."""
    _require(_is_whole(value, smallest), name, value, f"a whole number, {smallest} or more")


def _check_entries(name: str, entries: Any, length: int) -> None:
    """A list of entries ``[block, ...]``, each block once."""
    fits = isinstance(entries, Sequence) and all(
        _is_list(entry, length)
        and _is_whole(entry[0], 0)
        and all(_is_whole(v, 1) if length == 4 else _is_number(v) and v > 0 for v in entry[1:])
        for entry in entries
    )
    _require(fits, name, entries, f"a list of {_FORMS[length]}")
    blocks = [entry[0] for entry in entries]
    _require(len(set(blocks)) == len(blocks), name, entries, "each block once")


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any, smallest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= smallest


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == length
