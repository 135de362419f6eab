"""From one flat set of options, as overrides of `create_model` and keys of a config give them, to a network."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from revvideo.models.block_plan import plan_blocks
from revvideo.models.option_checks import check_options, check_whole
from revvideo.models.pooling_attention import AttentionOptions
from revvideo.models.reversible import BackpropOptions
from revvideo.models.video_transformer import VideoTransformer

Network = TypeVar("Network", bound=VideoTransformer)

_PLAN = set(inspect.signature(plan_blocks).parameters) - {"reversible"}
_BACKPROP = {field.name for field in dataclasses.fields(BackpropOptions)}
_ATTENTION = {field.name for field in dataclasses.fields(AttentionOptions)}
_INPUT = {"input_size", "in_channels"}


def assemble(network: type[Network], defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> Network:
    """Build ``network`` from ``defaults`` and the ``overrides`` of a caller.

    The options are the arguments of `plan_blocks`, of `AttentionOptions`, for reversible networks of `BackpropOptions`,
    and of the network, and for the input ``input_spec``, or ``input_size`` (frames, height, width) and ``in_channels``
    to change a part of it.

    Raises:
        ValueError: an unknown option (with the nearest known one), or options that make no network.
    """
    options = {**defaults, **overrides}
    known = _PLAN | _ATTENTION | _INPUT | _arguments(network) | (_BACKPROP if network.reversible else set())
    check_options(network.__name__, options, known)
    spec = options.pop("input_spec").adapted(options.pop("input_size", None), options.pop("in_channels", None))
    plan = {name: options[name] for name in _PLAN & options.keys()}
    attention = AttentionOptions(**{name: options.pop(name) for name in _ATTENTION & options.keys()})
    if network.reversible:
        options["backprop"] = BackpropOptions(**{name: options.pop(name) for name in _BACKPROP & options.keys()})
    rest = {name: value for name, value in options.items() if name not in plan or name in _arguments(network)}
    blocks = plan_blocks(**plan, reversible=network.reversible)
    return network(blocks=blocks, attention=attention, input_spec=spec, **rest)


def _arguments(network: type) -> set[str]:
    """Names of the keyword arguments of a network, those of its base included."""
    names = set()
    for cls in network.__mro__:
        if issubclass(cls, VideoTransformer):
            names |= set(inspect.signature(cls.__init__).parameters)
    return names - {"self", "stem", "blocks", "attention"} - network.fixed_options


def three_transitions(depth: int, first: int, second: int, third: int) -> dict[str, Any]:
    """Four stages: width and heads double and the resolution halves at three blocks; ``third`` counts from the end."""
    check_whole("depth", depth, 1)
    at = (first, second, depth + third)
    if at[2] <= second:
        raise ValueError(f"depth is {depth}; this network needs at least {second + 1 - third} blocks")
    factors = [[block, 2.0] for block in at]
    return {"depth": depth, "dim_mul": factors, "head_mul": factors, "pool_q_stride": [[b, 1, 2, 2] for b in at]}


def every_block(layout: dict[str, Any], depth: int) -> dict[str, Any]:
    """The same layout with a pooling convolution for the queries in every block, of stride 1 where none is listed."""
    strides = {entry[0]: entry for entry in layout["pool_q_stride"]}
    return layout | {"pool_q_stride": [strides.get(block, [block, 1, 1, 1]) for block in range(depth)]}
