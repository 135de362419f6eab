"""Keys of the network: MODEL, MVIT and what belongs to them."""

from revvideo.config.key import Key, section

_PLAIN_BATCH_NORM = "batch norm is computed in each process, from each batch"
_OTHER_MODELS = "belongs to model families that revvideo does not have"

# fmt: off
MODEL_KEYS: list[Key] = [
    *section(
        "MODEL",
        ("MODEL_NAME", "SlowFast", "Model family; PTV...: pytorchvideo's networks.",
         {"choices": ("MViT", "PTVResNet", "PTVCSN", "PTVR2plus1D", "PTVX3D", "PTVMViT")}),
        ("ARCH", "slowfast", "Which network PTVResNet is: c2d, i3d or slow; other families do not read it."),
        ("SINGLE_PATHWAY_ARCH", ["2d", "c2d", "i3d", "slow", "x3d", "mvit", "maskmvit"],
         "Architectures of PySlowFast with one input.", {"ignored": "MODEL.MODEL_NAME decides"}),
        ("MULTI_PATHWAY_ARCH", ["slowfast"], "Architectures of PySlowFast with two inputs.",
         {"ignored": "MODEL.MODEL_NAME decides"}),
        ("NUM_CLASSES", 400, "Classes K; labels are 0 to K - 1.", {"limits": ">= 1"}),
        ("LOSS_FUNC", "cross_entropy", "Training loss.",
         {"choices": ("cross_entropy", "soft_cross_entropy", "bce", "bce_logit")}),
        ("DROPOUT_RATE", 0.5, "Dropout before the classifier.", {"limits": "0 to below 1"}),
        ("HEAD_ACT", "softmax", "Activation that turns logits into scores in evaluation.",
         {"choices": ("softmax", "sigmoid", "none")}),
        ("ACT_CHECKPOINT", False, "Activation checkpointing of the blocks of plain models."),
        ("DETACH_FINAL_FC", False, "Train the classifier only: the head reads detached features."),
        ("DROPCONNECT_RATE", 0.0, "Drop-connect rate.", {"ignored": _OTHER_MODELS}),
        ("FC_INIT_STD", 0.01, "Initial standard deviation of convolutional networks' classifiers.",
         {"ignored": "pytorchvideo's networks start with 0.01"}),
        ("FROZEN_BN", False, "Freeze batch norm; must be off."),
        ("FP16_ALLREDUCE", False, "Reduce gradients in float16.", {"ignored": "gradients are reduced in float32"}),
    ),
    *section(
        "MVIT",
        ("MODE", "conv", "How queries, keys and values are pooled.",
         {"choices": ("conv", "conv_unshared", "avg", "max")}),
        ("POOL_FIRST", False, "Pool before the q, k, v projections instead of after."),
        ("CLS_EMBED_ON", True, "Class token. Switched off, with a note, when MVIT.REV.ENABLE."),
        ("PATCH_KERNEL", [3, 7, 7], "Kernel of the patch embedding: T, H, W; with PATCH_2D H, W."),
        ("PATCH_STRIDE", [2, 4, 4], "Stride of the patch embedding: T, H, W; with PATCH_2D H, W."),
        ("PATCH_PADDING", [2, 4, 4], "Padding of the patch embedding: T, H, W; with PATCH_2D H, W."),
        ("PATCH_2D", False, "Image model: 2D patch embedding, of H and W; DATA.NUM_FRAMES is not read."),
        ("EMBED_DIM", 96, "Width D of the first stage.", {"limits": ">= 1"}),
        ("NUM_HEADS", 1, "Attention heads of the first stage.", {"limits": ">= 1"}),
        ("MLP_RATIO", 4.0, "Hidden width of the MLP over D.", {"limits": "> 0"}),
        ("QKV_BIAS", True, "Bias in the q, k, v projections."),
        ("DROPPATH_RATE", 0.1, "Drop-path rate of the last block; it grows linearly from 0.",
         {"limits": "0 to below 1"}),
        ("LAYER_SCALE_INIT_VALUE", 0.0, "Initial layer scale of plain blocks; 0: none.", {"limits": ">= 0"}),
        ("DEPTH", 16, "Blocks.", {"limits": ">= 1"}),
        ("NORM", "layernorm", "Normalisation.", {"choices": ("layernorm",)}),
        ("DIM_MUL", [], "[block, factor] pairs: where the width grows.", {"kind": "list[list]"}),
        ("HEAD_MUL", [], "[block, factor] pairs: where the number of heads grows.", {"kind": "list[list]"}),
        ("POOL_KV_STRIDE", [], "[block, T, H, W] strides of key and value pooling.", {"kind": "list[list]"}),
        ("POOL_KV_STRIDE_ADAPTIVE", None, "T, H, W stride of key and value pooling in block 0; each query stride "
         "divides it. None: POOL_KV_STRIDE.", {"kind": "list[int] or None"}),
        ("POOL_Q_STRIDE", [], "[block, T, H, W] strides of query pooling.", {"kind": "list[list]"}),
        ("POOL_KVQ_KERNEL", None, "T, H, W kernel of pooling. None: stride + 1.", {"kind": "list[int] or None"}),
        ("ZERO_DECAY_POS_CLS", True, "No weight decay for positions and class token."),
        ("NORM_STEM", False, "LayerNorm after the positions."),
        ("SEP_POS_EMBED", False, "Separate position tables for space and time."),
        ("DROPOUT_RATE", 0.0, "Dropout after positions and attention projections, and in the MLPs of plain models.",
         {"limits": "0 to below 1"}),
        ("USE_ABS_POS", True, "Learned absolute positions."),
        ("REL_POS_SPATIAL", False, "Decomposed relative positions in space."),
        ("REL_POS_TEMPORAL", False, "Decomposed relative positions in time."),
        ("REL_POS_ZERO_INIT", False, "Start the relative positions at zero."),
        ("RESIDUAL_POOLING", False, "Add the pooled query to the attention output."),
        ("DIM_MUL_IN_ATT", False, "Widen inside the attention instead of in the MLP before."),
        ("SEPARATE_QKV", False, "Three projections instead of a fused one."),
        ("HEAD_INIT_SCALE", 1.0, "Factor on the classifier's initial weight and bias.", {"limits": ">= 0"}),
        ("USE_MEAN_POOLING", False, "Classify the mean of the tokens instead of the class token."),
        ("USE_FIXED_SINCOS_POS", False, "Fixed sine-cosine positions, in one table: not with SEP_POS_EMBED."),
    ),
    *section(
        "MVIT.REV",
        ("ENABLE", False, "Reversible blocks."),
        ("RESPATH_FUSE", "concat", "How the two streams are fused before the classifier: `add`, `max`, `min`, `avg`, "
         "`concat`, or `[ln+]concat_linear[_MULT[_DROP]]`, which adds an MLP of the concatenated streams, MULT (1) "
         "times as wide inside, with dropout DROP (0) and, with `ln+`, a LayerNorm in front."),
        ("BUFFER_LAYERS", [], "Blocks that are stage transitions (not reversible).", {"kind": "list[int]"}),
        ("RES_PATH", "conv", "Skip path of a stage transition.", {"choices": ("conv", "max")}),
        ("PRE_Q_FUSION", "avg", "How the two streams are fused before a stage transition; as RESPATH_FUSE."),
    ),
    *section(
        "REV",
        ("BACKPROP", "reversible", "How reversible models are trained: inputs rebuilt in the backward, or kept as "
         "usual.", {"choices": ("reversible", "plain")}),
        ("STAGE_DROPPATH", "branches", "What drop path drops in a stage transition: its branches, or (PySlowFast) its "
         "whole output, skip included.", {"choices": ("branches", "output")}),
        ("SHARED_FG_MASK", False, "One drop-path mask for F and G of a block (PySlowFast) instead of one each."),
        ("CHUNK", -1, "Tokens that an MLP works on at a time in reversible training, so that its hidden layer stays "
         "small; 0: all, -1: 3136 on a CPU, 131072 on a GPU.", {"limits": ">= -1"}),
        ("KEEP_MIB", None, "MiB by which what is kept for the backward instead of being recomputed, attention outputs "
         "first, may raise the peak of a step; None: by 60 percent, 0: keep what does not raise it, -1: nothing.",
         {"kind": "float or None", "limits": ">= -1"}),
        ("BUFFER_EVERY", 0, "Keep the inputs of every n-th reversible block, so that rounding does not add up over "
         "more than n blocks; 0: only the outputs of each run of blocks are kept.", {"limits": ">= 0"}),
        ("PARALLEL", False, "Recompute the next block beside the gradient of this one, on a second CUDA stream "
         "(PaReprop, Zhu and Mangalam 2023)."),
        ("CHECK_INVERSION_PERIOD", 0, "Compare the rebuilt inputs of all blocks with copies of the true ones on every "
         "n-th step; 0: never.", {"limits": ">= 0"}),
        ("CHECK_INVERSION_LIMIT", 1e-3, "Relative error of a rebuilt input above which training stops.",
         {"limits": "> 0"}),
        ours=True,
    ),
    *section(
        "COMPILE",
        ("ENABLE", False, "Compile the branches of the blocks by torch.compile."),
        ("POOLING", "auto", "How depthwise pooling is computed: by ATen, by plain torch for gradients (taps), by our "
         "compiled kernel (CPU), or by the fastest of them that works here.",
         {"choices": ("auto", "aten", "taps", "compiled")}),
        ours=True,
    ),
    *section(
        "INIT",
        ("SCHEME", "trunc_normal", "Initial weights: truncated normal of 0.02 as in PySlowFast, or of 1/sqrt(fan_in), "
         "which narrow models need to learn in good time.", {"choices": ("trunc_normal", "fan_in")}),
        ours=True,
    ),
    *section(
        "BN",
        ("USE_PRECISE_STATS", False, "Precise batch-norm statistics.", {"ignored": _PLAIN_BATCH_NORM}),
        ("NUM_BATCHES_PRECISE", 200, "Batches for precise statistics.", {"ignored": _PLAIN_BATCH_NORM}),
        ("WEIGHT_DECAY", 0.0, "Weight decay of batch norm.", {"limits": ">= 0"}),
        ("NORM_TYPE", "batchnorm", "Kind of batch norm."),
        ("NUM_SPLITS", 1, "Splits of sub-batch norm.", {"ignored": _PLAIN_BATCH_NORM}),
        ("NUM_SYNC_DEVICES", 1, "Devices of synchronised batch norm.", {"ignored": _PLAIN_BATCH_NORM}),
        ("GLOBAL_SYNC", False, "Synchronise batch norm over all processes.", {"ignored": _PLAIN_BATCH_NORM}),
    ),
    *section(
        "CONTRASTIVE",
        ("NUM_MLP_LAYERS", 1, "Layers of the head; only the linear head (1) exists."),
        ("DELTA_CLIPS_MIN", float("-inf"), "Smallest distance of two clips.", {"ignored": "one clip a sample"}),
        ("DELTA_CLIPS_MAX", float("inf"), "Largest distance of two clips.", {"ignored": "one clip a sample"}),
    ),
    *section("DETECTION", ("ENABLE", False, "Detection; must be off.")),
    *section("MASK", ("ENABLE", False, "Masked pre-training; must be off.")),
]
