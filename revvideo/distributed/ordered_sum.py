"""A sum over processes that does not depend on how it is done: every element is added in the order of ranks.

An all-reduce adds the parts of a ring or a tree in an order that depends on where in its buffer an element lies. So
gradients depend on how DistributedDataParallel packs them into buckets, which it changes after the first step. Here
each process is sent one chunk of everybody's buffer, adds it up, rank 0's first, and sends the sum to all:

    mean[i] = (((g_0[i] + g_1[i]) + g_2[i]) + ...) / world_size
"""

import torch
from torch import Tensor
from torch import distributed as dist


def ordered_mean(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Average over the processes of a group, bit for bit the same however the elements are arranged.

    Args:
        values: (n,), the same shape, dtype and device everywhere; overwritten.
        group: None: all processes.

    Returns:
        `values`.
    """
    world_size = dist.get_world_size(group)
    chunk = -(-values.numel() // world_size)
    padded = values.new_zeros(world_size * chunk)
    padded[: values.numel()] = values
    received = torch.empty_like(padded)
    dist.all_to_all_single(received, padded, group=group)
    parts = received.view(world_size, chunk)  # row r: my chunk of rank r's values
    total = parts[0].clone()
    for rank in range(1, world_size):
        total += parts[rank]
    total /= world_size
    dist.all_gather_into_tensor(padded, total, group=group)
    return values.copy_(padded[: values.numel()])


def ordered_sum_hook(group: dist.ProcessGroup | None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Communication hook of DistributedDataParallel: `ordered_mean` of each bucket.

    On the CPU it waits for the others, bucket by bucket; a backward cannot overlap with it.
    """
    gradients = bucket.buffer()
    devices = [gradients.device] if gradients.is_cuda else None  # so that who waits for the future waits for its stream
    future = torch.futures.Future(devices=devices)
    future.set_result(ordered_mean(gradients, group))
    return future
