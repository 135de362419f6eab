"""Keys of the convolutional baselines (MODEL.MODEL_NAME PTVResNet, PTVCSN, PTVR2plus1D, PTVX3D)."""

from revvideo.config.key import Key, section

_BY_ARCH = "MODEL.ARCH decides the temporal kernels"
_PYTORCHVIDEO_ZERO = "pytorchvideo always starts the last batch norm of a block at zero"

# fmt: off
BASELINE_KEYS: list[Key] = [
    *section(
        "RESNET",
        ("TRANS_FUNC", "bottleneck_transform", "Kind of block: `x3d_transform` for PTVX3D, else "
         "`bottleneck_transform`."),
        ("NUM_GROUPS", 1, "Groups of the 3 x 3 convolutions (PTVResNet).", {"limits": ">= 1"}),
        ("WIDTH_PER_GROUP", 64, "Channels of the stem.", {"limits": ">= 1"}),
        ("INPLACE_RELU", True, "Rectify in place: same numbers, less memory."),
        ("STRIDE_1X1", False, "Stride in the first convolution of a block; must be off."),
        ("ZERO_INIT_FINAL_BN", False, "Start the last batch norm of a block at zero.",
         {"ignored": _PYTORCHVIDEO_ZERO}),
        ("ZERO_INIT_FINAL_CONV", False, "Start the last convolution of a block at zero; must be off."),
        ("DEPTH", 50, "Layers: 50, 101 or 152."),
        ("NUM_BLOCK_TEMP_KERNEL", [[3], [4], [6], [3]], "Blocks of each stage with a temporal kernel.",
         {"ignored": _BY_ARCH}),
        ("SPATIAL_STRIDES", [[1], [2], [2], [2]], "Stride of each stage (PTVResNet)."),
        ("SPATIAL_DILATIONS", [[1], [1], [1], [1]], "Dilation of each stage (PTVResNet)."),
    ),
    *section(
        "X3D",
        ("WIDTH_FACTOR", 1.0, "Factor on all channels.", {"limits": "> 0"}),
        ("DEPTH_FACTOR", 1.0, "Factor on the blocks of each stage.", {"limits": "> 0"}),
        ("BOTTLENECK_FACTOR", 1.0, "Channels of the 3 x 3 x 3 convolutions over those of the block.",
         {"limits": "> 0"}),
        ("DIM_C5", 2048, "Width that the classifier reads.", {"limits": ">= 1"}),
        ("DIM_C1", 12, "Channels of the stem, before WIDTH_FACTOR.", {"limits": ">= 1"}),
        ("SCALE_RES2", False, "Widen the second stage as well; must be off."),
        ("BN_LIN5", False, "Batch norm before the classifier."),
        ("CHANNELWISE_3x3x3", True, "Depthwise 3 x 3 x 3 convolutions; must be on."),
    ),
    *section(
        "NONLOCAL",
        ("LOCATION", [[[]], [[]], [[]], [[]]], "Blocks with non-local attention, of each stage; must be none.",
         {"kind": "list"}),
    ),
]
