"""Keys of a run: TRAIN, TEST, SOLVER, machines, output."""

from revvideo.config.key import Key, section

_NOT_YET = "not supported yet"
_NO_MULTIGRID = "multigrid training does not exist"

# fmt: off
RUN_KEYS: list[Key] = [
    *section(
        "",
        ("NUM_GPUS", 1, "GPUs of a machine; 0: CPU.", {"limits": ">= 0"}),
        ("NUM_SHARDS", 1, "Machines.", {"limits": ">= 1"}),
        ("SHARD_ID", 0, "Number of this machine, from 0.", {"limits": ">= 0"}),
        ("OUTPUT_DIR", ".", "The run folder."),
        ("RNG_SEED", 1, "Seed of weights, data and training.", {"limits": "0 to 4294967295"}),
        ("LOG_PERIOD", 10, "Steps between two log lines.", {"limits": ">= 1"}),
        ("LOG_MODEL_INFO", True, "Log the model and its number of parameters at the start."),
        ("DIST_BACKEND", "nccl", "Collective backend.", {"ignored": "nccl on GPU, gloo on CPU"}),
        ("TASK", "", "Self-supervised task; ssl is refused.", {"ignored": "supervised training and evaluation only"}),
    ),
    *section(
        "TRAIN",
        ("ENABLE", True, "Train."),
        ("DATASET", "kinetics", "Kind of the training and validation set, in any case: kinetics (clips), ssv2 (one "
         "frame of each of NUM_FRAMES parts of a video), imagenet (pictures)."),
        ("BATCH_SIZE", 64, "Clips of a step on one machine, divided among its processes.", {"limits": ">= 1"}),
        ("EVAL_PERIOD", 10, "Epochs between validations; the last epoch counts, more than MAX_EPOCH means none.",
         {"limits": ">= 1"}),
        ("CHECKPOINT_PERIOD", 10, "Epochs between two checkpoints.", {"limits": ">= 1"}),
        ("AUTO_RESUME", True, "Go on from the newest checkpoint of the run folder."),
        ("CHECKPOINT_FILE_PATH", "", "Checkpoint whose weights training starts from."),
        ("CHECKPOINT_TYPE", "pytorch", "Format of CHECKPOINT_FILE_PATH.", {"choices": ("pytorch",)}),
        ("CHECKPOINT_INFLATE", False, "CHECKPOINT_FILE_PATH is of images: its kernels are repeated over time and "
         "divided by the repeats."),
        ("CHECKPOINT_IN_INIT", False, "As CHECKPOINT_INFLATE, but the repeated kernels are not divided."),
        ("CHECKPOINT_EPOCH_RESET", False, "Take only the weights of CHECKPOINT_FILE_PATH and start at epoch 0; a "
         "classifier of other classes starts anew."),
        ("CHECKPOINT_CLEAR_NAME_PATTERN", (), "Parts to remove from the names in CHECKPOINT_FILE_PATH.",
         {"kind": "tuple[str]"}),
        ("MIXED_PRECISION", False, "Train under autocast in AMP.DTYPE."),
        ("KILL_LOSS_EXPLOSION_FACTOR", 0.0, "Stop when the loss grows by this factor.", {"ignored": _NOT_YET}),
    ),
    *section(
        "AMP",
        ("DTYPE", "float16", "Compute type of TRAIN.MIXED_PRECISION; float16 uses a gradient scaler.",
         {"choices": ("float16", "bfloat16")}),
        ours=True,
    ),
    *section(
        "DIST",
        ("NUM_PROCESSES", 0, "Processes of a machine on the CPU (NUM_GPUS 0); 0: one.", {"limits": ">= 0"}),
        ("TIMEOUT_SECONDS", 1800.0, "Longest wait for another process of the run, in seconds.",
         {"limits": "1 to 31536000"}),
        ("INIT_METHOD", "", "Where several machines meet, tcp://HOST:PORT of the first one; --init_method sets it."),
        ours=True,
    ),
    *section(
        "RUN",
        ("DETERMINISTIC", False, "Deterministic algorithms only; slower. Two runs are then equal to the bit, for any "
         "number of processes."),
        ("ACCUMULATION_STEPS", 1, "Parts in which a process works through its share of a step, one after the other: "
         "less memory, the same batch and learning rate.", {"limits": ">= 1"}),
        ("AUTO_BATCH_SIZE", False, "Find the fewest parts of a step that fit into memory, by a plan and a trial step; "
         "decides instead of ACCUMULATION_STEPS."),
        ("MEMORY_LIMIT_MIB", 0.0, "Memory that AUTO_BATCH_SIZE may plan with for each process, in MiB; 0: what the "
         "device has.", {"limits": ">= 0"}),
        ("CHECKPOINT_MINUTES", 30.0, "Minutes between two checkpoints, also in the middle of an epoch; 0: only after "
         "epochs (TRAIN.CHECKPOINT_PERIOD).", {"limits": ">= 0"}),
        ("KEEP_CHECKPOINTS", 3, "Newest checkpoints to keep, beside the best one; 0: all.", {"limits": ">= 0"}),
        ("ON_NAN", "stop", "At a loss that is not finite, outside of float16 loss scaling: stop (exit code 3), or "
         "rollback once to the last checkpoint.", {"choices": ("stop", "rollback")}),
        ("REPORT", True, "Write report.html into the run folder when the run is done; `revvideo report` does it at any "
         "time."),
        ours=True,
    ),
    *section(
        "EMA",
        ("ENABLE", False, "Keep an exponential moving average of the weights and evaluate it beside them."),
        ("DECAY", 0.9999, "Share of the old average that each step keeps.", {"limits": "0 to below 1"}),
        ours=True,
    ),
    *section(
        "FINETUNE",
        ("FREEZE", [], "Parts that are not trained: names of parameters or submodules, such as blocks.0, or stem "
         "(patch embedding and positions), or backbone (all but the classifier).", {"kind": "list[str]"}),
        ours=True,
    ),
    *section(
        "TEST",
        ("ENABLE", True, "Evaluate with several views, after training where TRAIN.ENABLE."),
        ("DATASET", "kinetics", "Kind of the test set, see TRAIN.DATASET."),
        ("BATCH_SIZE", 8, "Views of a forward pass on all GPUs of a machine: a process takes as many whole videos as "
         "fit into BATCH_SIZE / NUM_GPUS (on the CPU BATCH_SIZE).", {"limits": ">= 1"}),
        ("CHECKPOINT_FILE_PATH", "", "Checkpoint to evaluate; empty: the newest of the run folder."),
        ("CHECKPOINT_TYPE", "pytorch", "Format of CHECKPOINT_FILE_PATH.", {"choices": ("pytorch",)}),
        ("NUM_ENSEMBLE_VIEWS", 10, "Temporal views of a video.", {"limits": ">= 1"}),
        ("NUM_SPATIAL_CROPS", 3, "Spatial crops of a view: 1 (centre) to 3.", {"limits": "1 to 3"}),
        ("NUM_TEMPORAL_CLIPS", [], "Evaluate with each of these numbers of temporal views; empty: "
         "NUM_ENSEMBLE_VIEWS.", {"kind": "list[int]"}),
        ("SAVE_RESULTS_PATH", "", "Further file for the predictions, PySlowFast's pickle of [scores, labels]; relative "
         "to OUTPUT_DIR."),
    ),
    *section(
        "EVAL",
        ("MIXED_PRECISION", False, "Evaluate under bfloat16 autocast."),
        ("FLUSH_VIDEOS", 16, "Videos after which a process writes their scores, so that an evaluation that was killed "
         "goes on.", {"limits": ">= 1"}),
        ("SAVE_VIEWS", False, "Keep the scores of each view, too, in predictions.npz."),
        ("STRICT", False, "End with exit code 3 when a video could not be read; --strict sets it."),
        ("VIEWS", "pyslowfast", "Where temporal views start: by PySlowFast's formula, whose last one stops short of "
         "the end, or spread evenly with the last one at the end (to_end).", {"choices": ("pyslowfast", "to_end")}),
        ours=True,
    ),
    *section(
        "SOLVER",
        ("OPTIMIZING_METHOD", "sgd", "Optimizer; mt_adamw is AdamW over all tensors at once.",
         {"choices": ("sgd", "adam", "adamw", "mt_adamw")}),
        ("BASE_LR", 0.1, "Learning rate after warm-up.", {"limits": "> 0"}),
        ("BASE_LR_SCALE_NUM_SHARDS", False, "Multiply BASE_LR, WARMUP_START_LR and COSINE_END_LR by the number of "
         "machines."),
        ("LR_POLICY", "cosine", "Learning-rate schedule, per step.",
         {"choices": ("cosine", "steps_with_relative_lrs")}),
        ("COSINE_END_LR", 0.0, "Last learning rate of the cosine.", {"limits": ">= 0"}),
        ("COSINE_AFTER_WARMUP", False, "The cosine starts after warm-up instead of at epoch 0."),
        ("STEPS", [], "Epochs at which the relative learning rate changes, from 0.", {"kind": "list[int]"}),
        ("LRS", [], "Learning rate from each of STEPS on, relative to BASE_LR.", {"kind": "list[float]"}),
        ("MAX_EPOCH", 300, "Epochs.", {"limits": ">= 1"}),
        ("WARMUP_EPOCHS", 0.0, "Epochs of linear warm-up.", {"limits": ">= 0"}),
        ("WARMUP_START_LR", 0.01, "First learning rate of the warm-up.", {"limits": ">= 0"}),
        ("WARMUP_FACTOR", 0.1, "Not read by PySlowFast either.", {"ignored": "not read by PySlowFast either"}),
        ("GAMMA", 0.1, "Not read by PySlowFast either.", {"ignored": "not read by PySlowFast either"}),
        ("STEP_SIZE", 1, "Not read by PySlowFast either.", {"ignored": "not read by PySlowFast either"}),
        ("MOMENTUM", 0.9, "Momentum of sgd.", {"limits": "0 to 1"}),
        ("DAMPENING", 0.0, "Dampening of sgd."),
        ("NESTEROV", True, "Nesterov momentum of sgd."),
        ("BETAS", (0.9, 0.999), "Betas of adam and adamw."),
        ("WEIGHT_DECAY", 1e-4, "Weight decay.", {"limits": ">= 0"}),
        ("ZERO_WD_1D_PARAM", False, "No weight decay for biases and other one-dimensional parameters."),
        ("LAYER_DECAY", 1.0, "Factor on the learning rate from each layer to the one before.", {"limits": "> 0"}),
        ("CLIP_GRAD_VAL", None, "Clip gradient elements to this magnitude; None: no.", {"kind": "float or None"}),
        ("CLIP_GRAD_L2NORM", None, "Clip the norm of all gradients, where CLIP_GRAD_VAL is None; None: no.",
         {"kind": "float or None"}),
        ("LARS_ON", False, "LARS; must be off."),
    ),
    *section(
        "TENSORBOARD",
        ("ENABLE", False, "Write TensorBoard files of the training; needs the extra tensorboard."),
        ("LOG_DIR", "", "Folder of the TensorBoard files, in OUTPUT_DIR unless absolute; empty: tensorboard."),
    ),
    *section(
        "MULTIGRID",
        ("SHORT_CYCLE", False, "Short cycles of multigrid training; must be off.", {"ignored": ""}),
        ("LONG_CYCLE", False, "Long cycles of multigrid training; must be off.", {"ignored": ""}),
        ("EPOCH_FACTOR", 1.5, "Factor on the epochs."),
        ("SHORT_CYCLE_FACTORS", [0.5, 0.5**0.5], "Factors of the short cycle."),
        ("LONG_CYCLE_FACTORS", [(0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1), (1, 1)], "Factors of the long cycle.",
         {"kind": "list[list]"}),
        ("BN_BASE_SIZE", 8, "Batch of batch norm."),
        ("EVAL_FREQ", 3, "Validations of a long cycle."),
        ("LONG_CYCLE_SAMPLING_RATE", 0, "Set by PySlowFast itself."),
        ("DEFAULT_B", 0, "Set by PySlowFast itself."),
        ("DEFAULT_T", 0, "Set by PySlowFast itself."),
        ("DEFAULT_S", 0, "Set by PySlowFast itself."),
        ignored=_NO_MULTIGRID,
    ),
]
