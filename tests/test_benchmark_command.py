"""`revvideo benchmark model`: which networks it compares, what it writes, and what it refuses before it measures."""

import argparse
import importlib.util
import json
import shlex

import pytest
import torch
from reduced_models import NUM_CLASSES, model_on_meta, reduced_options

from revvideo.benchmark import variants
from revvideo.benchmark.model import ModelBenchmark
from revvideo.benchmark.variants import Variant, resolve_variants
from revvideo.cli import benchmark_model
from revvideo.cli.main import main

REVERSIBLE, PLAIN = "rev_mvit_b_16x4", "mvit_b_16x4"
IMAGE_OPTIONS = {"num_classes": NUM_CLASSES, "depth": 3, "embed_dim": 32, "num_heads": 2, "input_size": (1, 128, 128)}


def on_the_command_line(options: dict) -> list[str]:
    return [word for key, value in options.items() for word in ("--option", f"{key}={value}")]


# Which networks


def test_combinations_without_sense_are_left_out_with_a_line():
    variants, skipped = resolve_variants(
        [REVERSIBLE, PLAIN, "ptv/slow_r50"], ["reversible", "plain", "checkpoint"], [None], {}
    )
    assert [(v.model, v.mode) for v in variants] == [
        (REVERSIBLE, "reversible"),
        (REVERSIBLE, "plain"),
        (PLAIN, "plain"),
        (PLAIN, "checkpoint"),
        ("ptv/slow_r50", "plain"),
        ("ptv/slow_r50", "checkpoint"),
    ]
    assert [line.split(":")[0] for line in skipped] == [
        f"{REVERSIBLE} checkpoint",
        f"{PLAIN} reversible",
        "ptv/slow_r50 reversible",
    ]
    assert [v.options for v in variants[::2]] == [{"drop_path": 0.0}, {"drop_path": 0.0}, {}]  # Slow has no drop path


def test_the_same_weights_at_every_call_and_the_generator_untouched():
    before, cpu = torch.get_rng_state(), torch.device("cpu")
    first, second = (Variant("rev_vit_s", mode, options=IMAGE_OPTIONS).build(cpu) for mode in ("reversible", "plain"))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_mode_and_pooling_become_options_of_the_model(monkeypatch):
    asked = []

    def record(name, **options):
        asked.append((name, options))
        return model_on_meta(name)

    monkeypatch.setattr(variants, "create_model", record)
    Variant(REVERSIBLE, "plain", "taps", {"depth": 8, "drop_path": 0.1}).build(variants.META, depth=32)
    assert asked[-1] == (REVERSIBLE, {"depth": 32, "drop_path": 0.1, "pooling": "taps", "backprop": "plain"})
    assert not Variant(PLAIN, "plain").build(variants.META).checkpoint_blocks
    assert Variant(PLAIN, "checkpoint").build(variants.META).checkpoint_blocks
    assert asked[-1] == (PLAIN, {})


# The command


def test_the_command_measures_writes_and_prints(tmp_path, capsys):
    path = tmp_path / "figures.json"
    words = ["--models", "rev_vit_s", "--modes", "reversible,checkpoint", "--precision", "float32,bfloat16"]
    words += [
        *on_the_command_line(IMAGE_OPTIONS),
        "--no-peer",
        "--pairs",
        "2",
        "--threads",
        str(torch.get_num_threads()),
        "--json",
        str(path),
    ]
    assert main(["benchmark", "model", *words]) == 0
    out = capsys.readouterr().out
    result = json.loads(path.read_text("utf-8"))
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    assert [(row["mode"], row["precision"]) for row in result["rows"]] == [
        ("reversible", "float32"),
        ("reversible", "bfloat16"),
    ]
    assert all(row["peer_seconds"] is row["ratio"] is None and len(row["seconds"]) == 2 for row in result["rows"])
    assert result["header"]["machine"]["threads"] == torch.get_num_threads()
    assert {"cpu", "torch", "date", "load_average"} < result["header"]["machine"].keys()
    assert out.splitlines()[0] == result["header"]["command"]
    assert [line.split(":")[0] for line in result["skipped"]] == ["rev_vit_s checkpoint"]
    assert out.endswith(f"  {result['skipped'][0]}\n")


def parsed(words: list[str]):
    parser = argparse.ArgumentParser()
    benchmark_model.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "words",
    [
        ["--models", REVERSIBLE],
        ["--models", REVERSIBLE, PLAIN, "--no-peer", "--pooling", "aten,taps", "--compile", "--depths", "8,16"],
        ["--models", PLAIN, "--option", "input_size=(8, 64, 64)", "--option", "positions=joint", "--pairs", "7"],
        ["--models", PLAIN, "--batch-sizes", "1,2", "--max-batch", "--memory-limit", "1.5", "--device", "cpu"],
    ],
)
def test_the_command_line_in_the_header_measures_the_same_again(words):
    args = parsed([*words, "--threads", "2"])
    said = shlex.split(benchmark_model.command_line(args, threads=2))
    assert said[:3] == ["revvideo", "benchmark", "model"]
    assert parsed(said[3:]) == args


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "rev_mvit_b_16x5"], "unknown model 'rev_mvit_b_16x5'; did you mean 'rev_mvit_b_16x4'?"),
        (["--models", PLAIN, "--peer", "ptv/mvit_b"], "unknown model 'ptv/mvit_b'; did you mean 'ptv/mvit_b_"),
        (["--models", PLAIN, "--modes", "plane"], "the mode 'plane' is unknown; expected some of reversible, plain"),
        (["--models", PLAIN, "--precision", "fp8"], "the precision 'fp8' is unknown; expected some of float32"),
        (["--models", PLAIN, "--modes", "reversible"], f"{PLAIN} is not reversible; its modes are plain"),
        (["--models", REVERSIBLE, "--modes", "checkpoint"], "checkpoint is a mode of plain models"),
        (["--models", PLAIN, "--option", "dpeth=3"], "MViT has no option 'dpeth'; did you mean 'depth'?"),
        (["--models", REVERSIBLE, "--depths", "2"], "nothing to measure against depth: "),
        (["--models", PLAIN, "--max-batch", "--device", "cpu"], "--max-batch on a CPU needs --memory-limit"),
        (["--models", PLAIN, "--memory-limit", "2"], "--memory-limit is about --max-batch"),
        (["--models", PLAIN, "--json", "no/such/folder/x.json"], "its folder does not exist"),
        (["--models", PLAIN, "--plot", "x.pdf"], "--plot is 'x.pdf'; expected a name that ends in .svg or .png"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_measured(words, message, capsys, monkeypatch):
    monkeypatch.setattr(ModelBenchmark, "run", lambda self: pytest.fail("measured"))
    assert main(["benchmark", "model", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("revvideo: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-sizes", "1,0"], "argument --batch-sizes: '0': expected a whole number, 1 or more"),
        (["--pairs", "none"], "argument --pairs: 'none': expected a whole number"),
        (["--modes", "plain,"], "argument --modes: 'plain,' has an empty entry"),
        (["--option", "depth"], "argument --option: 'depth': expected KEY=VALUE"),
        (["--option", "backprop=plain"], "argument --option: backprop is chosen by --modes"),
        (["--memory-limit", "nan"], "argument --memory-limit: 'nan': expected a number of GiB above 0"),
        (["--peer", REVERSIBLE, "--no-peer"], "not allowed with argument"),
    ],
)
def test_malformed_arguments_leave_with_2(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "model", "--models", PLAIN, *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_drawing_without_matplotlib_is_refused_before_anything_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(ModelBenchmark, "run", lambda self: pytest.fail("measured"))
    assert main(["benchmark", "model", "--models", PLAIN, "--modes", "plain", "--plot", "x.svg"]) == 2
    assert "--plot needs matplotlib, which is not installed: pip install 'revvideo[plot]'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["modle"]])
def test_benchmark_alone_asks_for_what(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", *words])
    assert stop.value.code == 2
    assert "WHAT" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_cuda_with_utilisation_and_the_largest_batch_that_runs(tmp_path, capsys):
    path = tmp_path / "figures.json"
    options = on_the_command_line({"num_classes": NUM_CLASSES} | reduced_options(REVERSIBLE))
    words = ["--models", REVERSIBLE, "--modes", "reversible,plain", "--precision", "bfloat16,float16", *options]
    words += ["--batch-sizes", "2", "--pairs", "3", "--max-batch", "--memory-limit", "0.5", "--json", str(path)]
    assert main(["benchmark", "model", *words]) == 0
    result = json.loads(path.read_text("utf-8"))
    assert all(0 < row["mfu"] < 1 and row["ratio"] > 0 for row in result["rows"])
    assert all(tflops > 0.1 for tflops in result["matmul_tflops"].values())
    for figures in result["largest_batches"]:
        assert 0 < figures["total_bytes"] <= 2**29, figures
        assert figures["too_large"] - figures["batch_size"] <= max(1, figures["batch_size"] // 50)
        assert figures["reason"] == "out of memory"
    largest = {(f["mode"], f["precision"]): f["batch_size"] for f in result["largest_batches"]}
    assert largest["reversible", "bfloat16"] > largest["plain", "bfloat16"]
