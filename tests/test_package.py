"""The front door: the public API is lazy, the commands turn errors into exit codes, and the built wheel works alone."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

import revvideo
from revvideo.cli import main as cli
from revvideo.errors import CheckFailed, InputError, WorkerFailed

REPOSITORY = Path(__file__).resolve().parents[1]


# The public API


def test_every_public_name_is_there():
    assert set(revvideo.__all__) <= set(dir(revvideo))
    for name in revvideo.__all__:
        assert getattr(revvideo, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'build_modle'"):
        revvideo.build_modle  # noqa: B018


def test_importing_revvideo_loads_no_heavy_library():
    code = "import sys, revvideo; print(sorted({'torch', 'numpy', 'av', 'fvcore'} & set(sys.modules)))"
    assert run([sys.executable, "-c", code], cwd=REPOSITORY).stdout.strip() == "[]"


# The console script


@pytest.fixture
def command(monkeypatch):
    """A command `fake --value X` whose run() is whatever the test sets."""
    module = types.ModuleType("revvideo.cli.fake")
    module.DESCRIPTION = "Does nothing.\n\nAt length."
    module.add_arguments = lambda parser: parser.add_argument("--value", type=int, default=0)
    module.run = lambda args: args.value
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "COMMANDS", {"fake": module.__name__})
    return module


def raising(error: BaseException):
    def run_and_raise(args):
        raise error

    return run_and_raise


def test_a_command_gets_its_arguments_and_returns_its_exit_code(command):
    assert cli.main(["fake"]) == 0
    assert cli.main(["fake", "--value", "75"]) == 75


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (InputError("no such key\n  did you mean X?"), 2, "revvideo: error: no such key\n  did you mean X?\n"),
        (CheckFailed("inversion error 1e-2"), 3, "revvideo: check failed: inversion error 1e-2\n"),
        (WorkerFailed("worker 1 died while reading a.mp4"), 1, "revvideo: error: worker 1 died while reading a.mp4\n"),
        (KeyboardInterrupt(), 130, "revvideo: interrupted\n"),
    ],
)
def test_expected_errors_become_one_message_and_an_exit_code(command, capsys, error, exit_code, said):
    command.run = raising(error)
    assert cli.main(["fake"]) == exit_code
    assert capsys.readouterr().err == said


def test_a_crash_shows_its_traceback(command, capsys):
    command.run = raising(ValueError("deep down"))
    assert cli.main(["fake"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("ValueError: deep down\n")


def test_wrong_arguments_exit_with_2(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fake", "--value", "many"])
    assert stop.value.code == 2
    assert "revvideo fake: error" in capsys.readouterr().err


def test_help_lists_the_commands_with_a_line_each(command, capsys):
    assert cli.main(["--help"]) == 0
    assert "  fake  Does nothing.\n" in capsys.readouterr().out


def test_no_command_shows_the_help_and_exits_with_2(command, capsys):
    assert cli.main([]) == 2
    assert "  fake  Does nothing.\n" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"revvideo {revvideo.__version__}\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("run_nte", "did you mean 'run_net'?"), ("xyz", "the commands are run_net")]
)
def test_an_unknown_command_names_the_nearest(capsys, name, hint):
    assert cli.main([name]) == 2
    said = capsys.readouterr().err
    assert f"there is no command '{name}'" in said
    assert hint in said


@pytest.mark.parametrize("tool", sorted(path.stem for path in (REPOSITORY / "tools").glob("*.py")))
def test_a_tool_is_its_command(tool, tmp_path):
    of_tool = run([sys.executable, str(REPOSITORY / "tools" / f"{tool}.py"), "--help"], cwd=tmp_path).stdout
    of_command = run([sys.executable, "-m", "revvideo.cli.main", tool, "--help"], cwd=REPOSITORY).stdout
    assert of_tool.startswith(f"usage: tools/{tool}.py")
    # argparse breaks and indents the usage by the length of the program's name.
    assert of_tool.split() == of_command.replace(f"revvideo {tool}", f"tools/{tool}.py", 1).split()


# The wheel


def run(arguments: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    done = subprocess.run(arguments, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what the package is made of, so that nothing is written into the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source)
    for name in ("revvideo", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)], cwd=source)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def target(wheel, tmp_path_factory) -> Path:
    """A folder with the installed wheel alone; its dependencies are those of the test environment."""
    folder = tmp_path_factory.mktemp("target")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    run([*install, str(wheel)], cwd=folder)
    return folder


@pytest.fixture
def run_installed(target, tmp_path):
    """Runs a command line of the installed revvideo in an empty folder."""
    empty = tmp_path / "empty"
    empty.mkdir()

    def run_in_empty_folder(*arguments: str) -> subprocess.CompletedProcess:
        return run([sys.executable, *arguments], cwd=empty, PYTHONPATH=str(target), PYTHONSAFEPATH="1")

    return run_in_empty_folder


def test_the_wheel_holds_every_module_and_every_config_and_nothing_else(wheel):
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "revvideo").rglob("*.py")}
    configs = {f"revvideo/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert "revvideo/configs/demo/REV_MVIT_DEMO.yaml" in configs
    kernels = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "revvideo/models/csrc").glob("*.cpp")}
    assert kernels
    assets = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "revvideo/report").glob("report.*s")}
    assert {Path(name).suffix for name in assets} == {".css", ".js"}
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == modules | configs | kernels | assets


def test_the_wheel_names_its_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    needs = dict(re.findall(r"^Requires-Dist: ([\w.-]+)(.*)$", metadata.split("\n\n")[0], re.MULTILINE))
    assert needs["torch"] == ">=2.6"
    assert 'platform_machine == "x86_64"' in needs["decord"]
    assert f"\nVersion: {revvideo.__version__}\n" in metadata


def test_the_installed_revvideo_is_the_one_that_runs(run_installed, target):
    imported = run_installed("-c", "import revvideo; print(revvideo.__file__)").stdout.strip()
    assert Path(imported) == target / "revvideo" / "__init__.py"
    said = run_installed(str(target / "bin" / "revvideo"), "run_net", "--help").stdout
    assert "usage: revvideo run_net" in said


def test_the_installed_revvideo_trains_two_steps(run_installed, target, tmp_path, write_video):
    import numpy as np

    data = tmp_path / "data"
    data.mkdir()
    generator = np.random.default_rng(0)
    videos = []
    for index in range(4):
        frames = generator.integers(0, 256, (32, 64, 64, 3), dtype=np.uint8)
        videos.append(write_video(data / f"{index}.mp4", frames))
    lines = "".join(f"{video} {index % 2}\n" for index, video in enumerate(videos))
    for name in ("train", "val", "test"):
        (data / f"{name}.csv").write_text(lines, "utf-8")

    out = tmp_path / "out"
    overrides = {
        "DATA.PATH_TO_DATA_DIR": str(data),
        "MODEL.NUM_CLASSES": "2",
        "TRAIN.BATCH_SIZE": "2",
        "TRAIN.EVAL_PERIOD": "1",
        "TEST.ENABLE": "False",
        "SOLVER.MAX_EPOCH": "1",
        "SOLVER.WARMUP_EPOCHS": "0.0",
        "DATA_LOADER.NUM_WORKERS": "0",
        "LOG_PERIOD": "1",
        "NUM_GPUS": "0",
        "OUTPUT_DIR": str(out),
    }
    # The config by its shipped name: the empty folder has no configs/.
    command = [str(target / "bin" / "revvideo"), "run_net", "--cfg", "demo/REV_MVIT_DEMO"]
    run_installed(*command, *(word for pair in overrides.items() for word in pair))

    events = [json.loads(line) for line in (out / "events.jsonl").read_text("utf-8").splitlines()]
    assert sum(event["kind"] == "train_step" for event in events) == 2
