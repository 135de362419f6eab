"""revvideo: reversible video transformers, from raw video files to numbers that can be trusted.

The public API is lazy (PEP 562): `import revvideo` imports no torch, so the commands answer `--help` at once and a
login node without torch can launch jobs. A name is imported when it is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME_OF = {
    "InputError": "revvideo.errors",
    "Predictor": "revvideo.predict.predictor",
    "ReversibleSequence": "revvideo.models.reversible",
    "VideoError": "revvideo.data.video_reader",
    "build_model": "revvideo.build",
    "create_model": "revvideo.models.registry",
    "inference_model": "revvideo.predict.inference",
    "list_models": "revvideo.models.registry",
    "load_clip": "revvideo.predict.clips",
    "load_config": "revvideo.config",
    "open_video": "revvideo.data.video_reader",
}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'revvideo' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
