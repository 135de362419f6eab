"""Keys of the data: DATA, AUG, MIXUP, loaders."""

from revvideo.config.key import Key, section

_SELF_SUPERVISED = "belongs to self-supervised training"
_NOT_YET = "not supported yet"

# fmt: off
DATA_KEYS: list[Key] = [
    *section(
        "DATA",
        ("PATH_TO_DATA_DIR", "", "Folder of the lists train.csv, val.csv, test.csv."),
        ("PATH_LABEL_SEPARATOR", " ", "What separates path and label in a list."),
        ("PATH_PREFIX", "", "Folder that relative paths of a list start from."),
        ("NUM_FRAMES", 8, "Frames T of a clip.", {"limits": ">= 1"}),
        ("SAMPLING_RATE", 8, "Stride between the frames of a clip, in frames at TARGET_FPS.", {"limits": ">= 1"}),
        ("TARGET_FPS", 30, "Frame rate (1/s) at which SAMPLING_RATE counts.", {"limits": "> 0", "kind": "int"}),
        ("TRAIN_JITTER_FPS", 0.0, "Training clips draw their target rate between TARGET_FPS and TARGET_FPS plus this "
         "(1/s).", {"limits": ">= 0"}),
        ("USE_OFFSET_SAMPLING", False, "Evaluation views reach from the first to the last frame."),
        ("INV_UNIFORM_SAMPLE", False, "Draw the jittered short side uniformly in its inverse."),
        ("DECODING_BACKEND", "torchvision", "Video reader; frames: each path is a folder of pictures. torchvision "
         "means pyav (noted).", {"choices": ("pyav", "torchvision", "torchcodec", "decord", "pytorchvideo", "frames")}),
        ("DECODING_SHORT_SIZE", 256, "Short side while decoding (pixels).",
         {"ignored": "the crop keys decide, as in PySlowFast"}),
        ("MEAN", [0.45, 0.45, 0.45], "Mean of each channel, of values from 0 to 1."),
        ("STD", [0.225, 0.225, 0.225], "Standard deviation of each channel, of values from 0 to 1."),
        ("INPUT_CHANNEL_NUM", [3, 3], "Channels C of the input; the first entry counts."),
        ("REVERSE_INPUT_CHANNEL", False, "BGR instead of RGB."),
        ("TRAIN_CROP_SIZE", 224, "Side of a training crop (pixels).", {"limits": ">= 1"}),
        ("TEST_CROP_SIZE", 256, "Side of an evaluation crop (pixels).", {"limits": ">= 1"}),
        ("TRAIN_JITTER_SCALES", [256, 320], "Smallest and largest short side (pixels) before the crop; the smallest "
         "is the short side of evaluation with one crop."),
        ("TRAIN_JITTER_SCALES_RELATIVE", [], "Smallest and largest area of a random resized crop, of the whole frame.",
         {"kind": "list[float]"}),
        ("TRAIN_JITTER_ASPECT_RELATIVE", [], "Smallest and largest aspect ratio of a random resized crop.",
         {"kind": "list[float]"}),
        ("TRAIN_JITTER_MOTION_SHIFT", False, "Crop that moves in time.", {"ignored": _SELF_SUPERVISED}),
        ("TRAIN_CROP_NUM_TEMPORAL", 1, "Training clips of a video.", {"ignored": _SELF_SUPERVISED}),
        ("TRAIN_CROP_NUM_SPATIAL", 1, "Training crops of a clip.", {"ignored": _SELF_SUPERVISED}),
        ("RANDOM_FLIP", True, "Flip half of the training clips."),
        ("MULTI_LABEL", False, "Several labels a video; must be off."),
        ("ENSEMBLE_METHOD", "sum", "How the softmax scores of a video's views are combined; mean is the sum over their "
         "number, and not one of PySlowFast's.", {"choices": ("sum", "max", "mean")}),
        ("IN_VAL_CROP_RATIO", 0.875, "Evaluation of pictures with AUG.ENABLE: TEST_CROP_SIZE over the short side "
         "before the crop; without it the short side is TRAIN_CROP_SIZE.",
         {"limits": "above 0 to 1"}),
        ("DUMMY_LOAD", False, "Load one sample over and over.", {"ignored": _NOT_YET}),
    ),
    *section(
        "AUG",
        ("ENABLE", False, "Augmentation of training: the other keys of AUG have an effect only with it."),
        ("NUM_SAMPLE", 1, "Clips of one video in a batch, from one decode.", {"limits": ">= 1"}),
        ("COLOR_JITTER", 0.4, "Brightness, contrast and saturation jitter of pictures where AA_TYPE is empty; videos "
         "do without, as in PySlowFast. None: no jitter.", {"kind": "float or None", "limits": ">= 0"}),
        ("AA_TYPE", "rand-m9-mstd0.5-inc1", "RandAugment policy, such as rand-m7-n4-mstd0.5-inc1; empty: none."),
        ("INTERPOLATION", "bicubic", "Interpolation of RandAugment, and of the random resized crop of pictures.",
         {"choices": ("bicubic", "bilinear", "nearest", "random")}),
        ("RE_PROB", 0.25, "Probability of random erasing; 0: none.", {"limits": "0 to 1"}),
        ("RE_MODE", "pixel", "What random erasing fills in: noise a pixel, noise a box (rand) or zeros (const).",
         {"choices": ("pixel", "rand", "const")}),
        ("RE_COUNT", 1, "Most boxes of random erasing in a clip.", {"limits": ">= 1"}),
        ("RE_SPLIT", False, "Not read by PySlowFast either.", {"ignored": "not read by PySlowFast either"}),
    ),
    *section(
        "MIXUP",
        ("ENABLE", False, "Mixup, cutmix and label smoothing of training batches."),
        ("ALPHA", 0.8, "Beta parameter of mixup; 0: no mixup.", {"limits": ">= 0"}),
        ("CUTMIX_ALPHA", 1.0, "Beta parameter of cutmix; 0: no cutmix.", {"limits": ">= 0"}),
        ("PROB", 1.0, "Share of batches that are mixed.", {"limits": "0 to 1"}),
        ("SWITCH_PROB", 0.5, "Share of mixed batches that get cutmix, where both are on.", {"limits": "0 to 1"}),
        ("LABEL_SMOOTH_VALUE", 0.1, "Label smoothing.", {"limits": "0 to 1"}),
    ),
    *section(
        "DATA_LOADER",
        ("NUM_WORKERS", 8, "Worker processes of each loader; 0: in the main process.", {"limits": ">= 0"}),
        ("PIN_MEMORY", True, "Pinned host memory (CUDA)."),
        ("ENABLE_MULTI_THREAD_DECODE", False, "Several threads decode one video.",
         {"ignored": "one thread a worker decodes"}),
    ),
    *section(
        "LOADER",
        ("MAX_BAD_FRACTION", 0.05, "Training stops with exit code 3 when a larger share of videos is unreadable.",
         {"limits": "0 to 1"}),
        ("TIMEOUT_SECONDS", 300, "A worker that is at one video for longer ends the run, which names the path; 0: "
         "never.", {"limits": ">= 0"}),
        ("PREFETCH", 2, "Batches (in evaluation: videos) that each worker prepares ahead.", {"limits": ">= 1"}),
        ("START_METHOD", "", "How worker processes start; empty: as Python does on this system.",
         {"choices": ("", "fork", "spawn", "forkserver")}),
        ("INDEX_CACHE", "memory", "Where the packet index of a video is kept, so that it opens faster the next time: "
         "memory (of each worker), a folder, or empty for nowhere. Of pyav only."),
        ("CLIP_SPAN", "pyslowfast", "pyslowfast: a clip spans T strides, so its step is a little longer than "
         "SAMPLING_RATE; exact: its step is SAMPLING_RATE.", {"choices": ("pyslowfast", "exact")}),
        ("DECODE_SIZE", "auto", "auto: a video whose short side is at least 1.5 times what is needed is scaled to that "
         "while decoding; native: never.", {"choices": ("auto", "native")}),
        ("LIST_FORMAT", "auto", "Format of the lists in DATA.PATH_TO_DATA_DIR (docs/data.md); auto: recognised."),
        ("VIDEO_FOLDER", "", "Folder of the videos, for formats whose lists hold identifiers instead of paths."),
        ("CLASS_FILE", "", "File with the names of the classes; empty: the usual ones in DATA.PATH_TO_DATA_DIR."),
        ("AUGMENT_ORDER", "crop_first", "RandAugment after the crop (crop_first, faster) or on whole frames before it "
         "(pyslowfast).", {"choices": ("crop_first", "pyslowfast")}),
        ours=True,
    ),
]
