"""`inference_model`: one call, answered as mmpretrain's function of that name answers."""

import os

from revvideo.predict.model_source import ModelOrName
from revvideo.predict.predictor import Predictor


def inference_model(
    model: ModelOrName | Predictor | None,
    path: object,
    checkpoint: str | os.PathLike | None = None,
    **options,
) -> dict:
    """Predict one video, or, with an image model, one picture.

    For many of them build one `Predictor` and pass it as `model`: otherwise each call loads the weights again.

    Args:
        model: a name, a config, a module, None (the checkpoint tells) or a `Predictor`.
        path: a file or an array, see `Predictor`.
        checkpoint: weights.
        **options: further arguments of `Predictor`, such as `classes` and `views`.

    Returns:
        `pred_scores` float32 (K,), one score a class on the scale of one view (0 to 1 for softmax); `pred_label`, the
        number of the highest; `pred_score`, its score; `pred_class`, its name. Source: mmpretrain, `inference_model`.

    Raises:
        VideoError: the file cannot be read.
        InputError: see `Predictor`; a folder of several files.
        TypeError: options beside a `Predictor`, which has its own.
    """
    if isinstance(model, Predictor):
        if checkpoint is not None or options:
            raise TypeError("the Predictor has its checkpoint and options; expected none beside it")
        predictor = model
    else:
        predictor = Predictor(model, checkpoint, **options)
    found = predictor.predict_one(path)
    return {
        "pred_scores": found.probabilities,
        "pred_label": found.label,
        "pred_score": found.probability,
        "pred_class": found.class_name,
    }
