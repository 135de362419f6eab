"""What decides the scores of an evaluation, as one name: scores on the disk belong to it or are not used."""

import hashlib
from collections.abc import Iterable

import torch
from fvcore.common.config import CfgNode
from torch import nn

from revvideo.config.defaults import KEYS, get_value
from revvideo.data.manifest import Manifest

# Keys that have no say in the scores, or whose say is in the weights, in the list or in the number of views.
_WITHOUT_SAY = (
    *("TRAIN.", "SOLVER.", "MIXUP.", "EMA.", "FINETUNE.", "MULTIGRID.", "TENSORBOARD.", "DIST.", "DATA_LOADER."),
    *("RUN.REPORT", "OUTPUT_DIR", "RNG_SEED", "LOG_", "NUM_SHARDS", "SHARD_ID"),
    *("RUN.ACCUMULATION_STEPS", "RUN.AUTO_BATCH_SIZE", "RUN.CHECKPOINT_MINUTES", "RUN.KEEP_CHECKPOINTS"),
    *("RUN.MEMORY_LIMIT_MIB", "RUN.ON_NAN"),
    *("TEST.ENABLE", "TEST.CHECKPOINT_", "TEST.NUM_TEMPORAL_CLIPS", "TEST.NUM_ENSEMBLE_VIEWS"),
    *("TEST.SAVE_RESULTS_PATH", "EVAL.FLUSH_VIDEOS", "EVAL.STRICT"),
    *("LOADER.MAX_BAD_FRACTION", "LOADER.TIMEOUT_SECONDS", "LOADER.PREFETCH", "LOADER.START_METHOD"),
    "LOADER.INDEX_CACHE",
)


def evaluation_identity(
    cfg: CfgNode, model: nn.Module, manifest: Manifest, num_views: int, device: torch.device
) -> str:
    """A name that two evaluations share only where they must give the same scores.

    It holds the weights, the list (paths and labels), the views, the keys of the config that matter, the version of
    torch and the kind of device; not the content of the videos.

    Args:
        cfg: the config.
        model: with the weights to evaluate.
        manifest: the list.
        num_views: temporal views.
        device: of the model.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    _add_lines(digest, [torch.__version__, kind, f"{num_views} views"])
    _add_lines(digest, (f"{name} {get_value(cfg, name)!r}" for name in KEYS if not name.startswith(_WITHOUT_SAY)))
    _add_lines(digest, (f"{label} {path!r}" for path, label in zip(manifest.paths, manifest.labels)))
    return digest.hexdigest()[:16]


def _add_lines(digest, lines: Iterable[str]) -> None:
    for line in lines:
        digest.update(f"{line}\n".encode())
