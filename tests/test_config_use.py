"""The config in use: overrides, the command line, the checks at load, the batch arithmetic."""

import argparse

import pytest
from config_checks import refused

from revvideo.config import (
    KEYS,
    add_config_arguments,
    batch_plan,
    config_from_arguments,
    config_notes,
    load_config,
)

REV = "Kinetics/REV_MVIT_B_16x4_CONV"
PLAIN = "Kinetics/MVIT_B_16x4_CONV"


# --- precedence, overrides, command line ------------------------------------------------------------------------------


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    return parser.parse_args(words)


def test_several_files_merge_in_order(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("NUM_GPUS: 4\nSOLVER: {BASE_LR: 0.5}\n")
    second.write_text("NUM_GPUS: 2\n")
    cfg = load_config([PLAIN, first, str(second)], ["SOLVER.MAX_EPOCH", "31"])
    assert (cfg.NUM_GPUS, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_EPOCH) == (2, 0.5, 31)


def test_overrides_as_list_dict_and_nested_dict():
    for overrides in (
        ["SOLVER.BASE_LR", "1e-3", "TEST.NUM_TEMPORAL_CLIPS", "[5, 10]"],
        {"SOLVER.BASE_LR": 1e-3, "TEST.NUM_TEMPORAL_CLIPS": (5, 10)},
        {"SOLVER": {"BASE_LR": "1e-3"}, "TEST": {"NUM_TEMPORAL_CLIPS": [5, 10]}},
    ):
        cfg = load_config(PLAIN, overrides)
        assert cfg.SOLVER.BASE_LR == 1e-3
        assert cfg.TEST.NUM_TEMPORAL_CLIPS == [5, 10]
    with refused("SOLVER.BASE_LR has no value"):
        load_config(PLAIN, ["NUM_GPUS", 1, "SOLVER.BASE_LR"])
    with refused("expected a list [KEY, VALUE, ...]"):
        load_config(PLAIN, "NUM_GPUS 1")


@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", PLAIN, "NUM_GPUS", "2", "OUTPUT_DIR", "runs/a"],
        ["--cfg", PLAIN, "--opts", "NUM_GPUS", "2", "OUTPUT_DIR", "runs/a"],
        ["--cfg", PLAIN, "--opts", "NUM_GPUS", "2", "--opts", "OUTPUT_DIR", "runs/a"],
        ["--cfg_file", PLAIN, "NUM_GPUS", "2", "--init_method", "tcp://a:1", "OUTPUT_DIR", "runs/a"],
        ["NUM_GPUS", "2", "OUTPUT_DIR", "runs/a", "--cfg", PLAIN],
        ["--num_shards", "1", "--cfg", PLAIN, "--shard_id", "0", "NUM_GPUS", "2", "OUTPUT_DIR", "runs/a"],
        ["--cfg", PLAIN, "--cfg", "MVIT_B_16x4_CONV", "NUM_GPUS", "2", "OUTPUT_DIR", "runs/a"],
        ["--cfg", PLAIN, "MVIT_B_16x4_CONV", "NUM_GPUS", "2", "OUTPUT_DIR", "runs/a"],
    ],
)
def test_command_lines(words):
    cfg = config_from_arguments(parse(*words))
    assert (cfg.NUM_GPUS, cfg.OUTPUT_DIR) == (2, "runs/a")


def test_command_line_errors():
    with refused("unknown key NUM_GPU", "NUM_GPUS"):
        config_from_arguments(parse("--cfg", PLAIN, "NUM_GPU", "2"))
    with refused("NUM_GPUS has no value"):
        config_from_arguments(parse("--cfg", PLAIN, "NUM_GPUS"))
    with refused("missing.yaml", "no such file"):
        config_from_arguments(parse("--cfg", PLAIN, "missing.yaml"))
    with refused("--cfg is missing", PLAIN):
        config_from_arguments(parse())


def test_machine_arguments_count_only_when_given():
    assert config_from_arguments(parse("--cfg", REV)).NUM_SHARDS == 16
    args = parse("--cfg", REV, "--num_shards", "4", "--shard_id", "3", "--init_method", "tcp://a:1", "NUM_SHARDS", "2")
    cfg = config_from_arguments(args)
    assert (cfg.NUM_SHARDS, cfg.SHARD_ID, args.init_method) == (4, 3, "tcp://a:1")
    cfg = config_from_arguments(args, {"NUM_SHARDS": 8})
    assert (cfg.NUM_SHARDS, cfg.SHARD_ID) == (8, 3)  # launcher > command line > file


def test_environment_is_not_read(monkeypatch):
    wanted = load_config(REV)
    for name in ("WORLD_SIZE", "RANK", "NUM_GPUS", "NUM_SHARDS", "OUTPUT_DIR"):
        monkeypatch.setenv(name, "7")
    assert load_config(REV) == wanted


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("SOLVER.OPTIMIZING_METHOD", "lamb", "sgd, adam, adamw, mt_adamw"),
        ("SOLVER.LR_POLICY", "step", "cosine, steps_with_relative_lrs"),
        ("MODEL.LOSS_FUNC", "mse", "cross_entropy, soft_cross_entropy, bce, bce_logit"),
        ("MODEL.MODEL_NAME", "ResNet", "MViT"),
        ("AMP.DTYPE", "fp16", "float16, bfloat16"),
        ("REV.BACKPROP", "fast", "reversible, plain"),
        ("REV.STAGE_DROPPATH", "all", "branches, output"),
        ("DATA.ENSEMBLE_METHOD", "median", "sum, max, mean"),
        ("DATA.DECODING_BACKEND", "cv2", "pyav"),
        ("DETECTION.ENABLE", True, "expected False"),
        ("MASK.ENABLE", True, "expected False"),
        ("MULTIGRID.LONG_CYCLE", True, "expected False"),
        ("MULTIGRID.SHORT_CYCLE", True, "expected False"),
        ("TASK", "ssl", "expected ''"),
        ("CONTRASTIVE.NUM_MLP_LAYERS", 2, "linear head"),
        ("MODEL.NUM_CLASSES", 0, ">= 1"),
        ("DATA.NUM_FRAMES", 0, ">= 1"),
        ("TRAIN.BATCH_SIZE", -4, ">= 1"),
        ("SOLVER.BASE_LR", 0, "> 0"),
        ("MIXUP.PROB", 1.5, "0 to 1"),
        ("MVIT.DROPPATH_RATE", 1.0, "0 to below 1"),
        ("LOADER.MAX_BAD_FRACTION", 5, "0 to 1"),
        ("LOADER.TIMEOUT_SECONDS", -1, ">= 0"),
        ("LOADER.PREFETCH", 0, ">= 1"),
        ("LOADER.START_METHOD", "thread", "'', fork, spawn, forkserver"),
        ("LOADER.CLIP_SPAN", "long", "pyslowfast, exact"),
        ("LOADER.DECODE_SIZE", "half", "auto, native"),
        ("LOADER.AUGMENT_ORDER", "first", "crop_first, pyslowfast"),
        ("EVAL.VIEWS", "all", "pyslowfast, to_end"),
        ("EVAL.VIEWS", "to_end", "DATA.USE_OFFSET_SAMPLING"),  # which this config sets
        ("AUG.INTERPOLATION", "lanczos", "bicubic, bilinear, nearest, random"),
        ("AUG.RE_MODE", "noise", "pixel, rand, const"),
        ("AUG.RE_PROB", 2, "0 to 1"),
        ("AUG.RE_COUNT", 0, ">= 1"),
        ("DATA.TRAIN_JITTER_FPS", -1, ">= 0"),
        ("DATA.IN_VAL_CROP_RATIO", 0, "above 0 to 1"),
        ("TEST.NUM_SPATIAL_CROPS", 4, "1 to 3"),
        ("TEST.NUM_TEMPORAL_CLIPS", [5, 0], "1 or more"),
        ("SOLVER.BETAS", [0.9], "two numbers"),
        ("DATA.MEAN", [0.5], "3 numbers"),
        ("DATA.TRAIN_JITTER_SCALES", [320, 256], "smallest, largest"),
        ("DATA.TRAIN_JITTER_ASPECT_RELATIVE", [], "TRAIN_JITTER_SCALES_RELATIVE"),
        ("DATA.TEST_CROP_SIZE", 256, "DATA.TRAIN_CROP_SIZE is 224"),
        ("SHARD_ID", 1, "below NUM_SHARDS"),
        ("SOLVER.WARMUP_EPOCHS", 500, "SOLVER.MAX_EPOCH"),
        ("MODEL.LOSS_FUNC", "cross_entropy", "soft_cross_entropy"),
    ],
)
def test_values_that_cannot_work(name, value, expected):
    shown = repr(
        float(value) if KEYS[name].kind == "float" else tuple(value) if KEYS[name].kind[:5] == "tuple" else value
    )
    with refused("command line", f"{name} is {shown}", expected):
        load_config(PLAIN, {name: value})


def test_default_model_is_refused_with_its_origin():
    with refused("defaults: MODEL.MODEL_NAME is 'SlowFast'", "MViT"):
        load_config()


@pytest.mark.parametrize(("steps", "rates"), [([], []), ([0, 5], [1]), ([1, 5], [1, 0.1]), ([0, 5, 5], [1, 0.1, 0.01])])
def test_relative_steps(steps, rates):
    policy = {"SOLVER.LR_POLICY": "steps_with_relative_lrs", "SOLVER.STEPS": steps, "SOLVER.LRS": rates}
    with refused("SOLVER.STEPS", "SOLVER.LRS", "equal length"):
        load_config(PLAIN, policy)
    assert load_config(PLAIN, {**policy, "SOLVER.STEPS": [0, 5], "SOLVER.LRS": [1, 0.1]}).SOLVER.LRS == [1.0, 0.1]


def test_supervised_task_names_load():
    cfg = load_config(PLAIN, ["TASK", "ssl_eval"])  # an official fine-tuning file says so
    assert any("ignored: TASK" in note for note in config_notes(cfg))


# --- batch arithmetic -------------------------------------------------------------------------------------------------


def test_batch_plan_of_the_published_run():
    cfg = load_config(REV)
    plan = batch_plan(cfg, num_machines=16, processes_per_machine=8)
    assert (plan.world_size, plan.videos_per_process, plan.clips_per_process, plan.clips_per_step) == (128, 2, 4, 512)
    assert plan.base_lr == pytest.approx(16e-4)
    assert plan.warmup_start_lr == pytest.approx(16e-6)
    assert plan.cosine_end_lr == pytest.approx(16e-6)
    for part in ("512 clips a step", "4 in each of 128 processes", "0.0016", "16 machines", "BASE_LR_SCALE_NUM_SHARDS"):
        assert part in plan.line
    assert "\n" not in plan.line
    assert cfg.SOLVER.BASE_LR == 1e-4


def test_batch_plan_uses_the_machines_that_run():
    plan = batch_plan(load_config(REV))
    assert (plan.world_size, plan.clips_per_process, plan.clips_per_step, plan.base_lr) == (1, 32, 32, 1e-4)
    assert "NUM_SHARDS 16 is not what runs" in plan.line
    plan = batch_plan(load_config(PLAIN, ["SOLVER.BASE_LR_SCALE_NUM_SHARDS", "False"]), num_machines=4)
    assert (plan.base_lr, plan.lr_factor, plan.clips_per_step) == (1e-4, 1, 128)
    assert "not scaled" in plan.line


def test_batch_that_does_not_divide_loads_with_a_note_and_is_refused_to_train():
    cfg = load_config(PLAIN, ["TRAIN.BATCH_SIZE", 1])  # an official fine-tuning file: 1 clip, 8 GPUs
    assert any("TRAIN.BATCH_SIZE 1 cannot be divided among NUM_GPUS 8" in note for note in config_notes(cfg))
    assert batch_plan(cfg).clips_per_step == 2  # AUG.NUM_SAMPLE
    with refused("TRAIN.BATCH_SIZE is 1", "multiple of the 8 processes"):
        batch_plan(cfg, processes_per_machine=8)
