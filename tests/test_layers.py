"""Who may import whom (DESIGN.md): no arrow runs up, third-party libraries stay where they belong, and the modules that
a login node needs import no torch."""

import ast
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

GROUND = ("revvideo.paths", "revvideo.errors", "revvideo.exit_codes", "revvideo.torch_file")
EVERYTHING_BUT_CLI = None

# Layer -> what it may import of revvideo, itself apart. The longest prefix of a module's name is its layer. A new
# top-level module fails the test until it has a line here, and a place in DESIGN.md.
MAY_IMPORT = {
    "revvideo.errors": (),
    "revvideo.exit_codes": ("revvideo.errors",),
    "revvideo.paths": (),
    "revvideo.torch_file": ("revvideo.paths", "revvideo.errors"),
    "revvideo.distributed": GROUND,
    "revvideo.config": GROUND,
    "revvideo.models": GROUND,
    "revvideo.data": GROUND,
    "revvideo.engine": (*GROUND, "revvideo.distributed"),
    "revvideo.launch": (
        *GROUND,
        "revvideo.config",
        "revvideo.distributed.env",
        "revvideo.data.manifest",
        "revvideo.engine.events",
    ),
    "revvideo.build": EVERYTHING_BUT_CLI,
    "revvideo.jobs": EVERYTHING_BUT_CLI,
    "revvideo.planner": EVERYTHING_BUT_CLI,
    "revvideo.predict": EVERYTHING_BUT_CLI,
    "revvideo.benchmark": EVERYTHING_BUT_CLI,
    "revvideo.report": EVERYTHING_BUT_CLI,
    "revvideo.visualize": EVERYTHING_BUT_CLI,
    "revvideo.export": EVERYTHING_BUT_CLI,
    "revvideo.demo": EVERYTHING_BUT_CLI,
    "revvideo.cli": EVERYTHING_BUT_CLI,
}

# Layer -> the only third-party libraries that it may import anywhere, functions included.
THIRD_PARTY = {
    "revvideo.torch_file": {"torch"},
    "revvideo.models": {"torch", "safetensors"},
    "revvideo.models.baselines": {"torch", "safetensors", "pytorchvideo"},
}
# Layer -> the only third-party libraries that it may import when it is itself imported.
THIRD_PARTY_AT_IMPORT = {
    "revvideo.models.baselines": {"torch", "safetensors"},
    "revvideo.data": {"torch", "numpy", "av"},
}
# Layer -> third-party libraries that it may not import anywhere.
THIRD_PARTY_NEVER = {"revvideo.launch": {"torch", "torchvision"}}

TORCH_FREE = [
    "revvideo",
    "revvideo.paths",
    "revvideo.errors",
    "revvideo.exit_codes",
    "revvideo.config",
    "revvideo.config.batch",
    "revvideo.distributed",
    "revvideo.distributed.env",
    "revvideo.distributed.rank_logging",
    "revvideo.distributed.spawn",
    "revvideo.data",
    "revvideo.data.manifest",
    "revvideo.engine",
    "revvideo.engine.events",
    "revvideo.jobs.submitted",
    "revvideo.launch.cancel",
    "revvideo.launch.epilogue",
    "revvideo.launch.logs",
    "revvideo.launch.preflight",
    "revvideo.launch.status_text",
    "revvideo.launch.submit",
    "revvideo.cli.main",
    "revvideo.cli.submit",
]


@dataclass(frozen=True)
class Arrow:
    source: str  # the importing module
    target: str  # the imported module; `revvideo:name` for a name of the public API
    where: str  # file:line
    at_import: bool  # False inside a function and under `if TYPE_CHECKING`

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}  ({self.where})"


def find_modules(root: Path) -> dict[str, Path]:
    """Module name -> file, of every .py below ROOT/revvideo."""
    modules = {}
    for file in sorted((root / "revvideo").rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def find_arrows(root: Path) -> list[Arrow]:
    """Every import statement of every module, resolved; also import_module("...") and __import__("...")."""
    modules = find_modules(root)
    # A folder without __init__.py is a package too.
    packages = {".".join(name.split(".")[:depth]) for name in modules for depth in range(1, name.count(".") + 2)}
    arrows = []
    for source, file in modules.items():
        tree = ast.parse(file.read_text("utf-8"), filename=str(file))
        package = source if file.name == "__init__.py" else source.rpartition(".")[0]
        for node, at_import in _nodes(tree):
            for target in _targets(node, package, packages):
                arrows.append(Arrow(source, target, f"{file.relative_to(root)}:{node.lineno}", at_import))
    return arrows


def _nodes(tree: ast.Module) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it runs when the module is imported."""
    waiting = deque([(tree, True)])
    while waiting:
        node, at_import = waiting.popleft()
        yield node, at_import
        unimported: set[ast.AST] = set()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            unimported.update(ast.iter_child_nodes(node))
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            unimported.update(node.body)
        waiting.extend((child, at_import and child not in unimported) for child in ast.iter_child_nodes(node))


def _targets(node: ast.AST, package: str, packages: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
        return [_target_of_name(base, alias.name, packages) for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        name = node.args[0].value
        if called in ("import_module", "__import__") and isinstance(name, str) and not name.startswith("."):
            return [name]
    return []


def _target_of_name(base: str, name: str, packages: set[str]) -> str:
    if f"{base}.{name}" in packages:
        return f"{base}.{name}"
    return f"revvideo:{name}" if base == "revvideo" else base


def layer_of(module: str, layers) -> str | None:
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in layers), None)


def is_within(module: str, parent: str) -> bool:
    return module == parent or module.startswith(parent + ".")


def find_violations(root: Path) -> list[str]:
    violations = []
    for arrow in find_arrows(root):
        top = arrow.target.split(".")[0].split(":")[0]
        if top == "revvideo":
            reason = _wrong_within(arrow)
        elif top in sys.stdlib_module_names:
            reason = None
        else:
            reason = _wrong_library(arrow, top)
        if reason:
            violations.append(f"{arrow}: {reason}")
    return violations


def _wrong_within(arrow: Arrow) -> str | None:
    if is_within(arrow.target, "revvideo.cli"):
        return None if is_within(arrow.source, "revvideo.cli") else "nothing but cli imports cli"
    if arrow.source == "revvideo" or arrow.target == "revvideo:__version__":
        return None  # the public API stands on top; the version is anybody's
    layer = layer_of(arrow.source, MAY_IMPORT)
    if layer is None:
        return "this module has no layer: give it one in DESIGN.md and in MAY_IMPORT"
    allowed = MAY_IMPORT[layer]
    if allowed is EVERYTHING_BUT_CLI or any(is_within(arrow.target, each) for each in (layer, *allowed)):
        return None
    return f"{layer} may import {', '.join(allowed) or 'nothing'} of revvideo"


def _wrong_library(arrow: Arrow, library: str) -> str | None:
    never = layer_of(arrow.source, THIRD_PARTY_NEVER)
    if never and library in THIRD_PARTY_NEVER[never]:
        return f"{never} may not import {library}"
    anywhere = layer_of(arrow.source, THIRD_PARTY)
    if anywhere and library not in THIRD_PARTY[anywhere]:
        return f"{anywhere} may import only {', '.join(sorted(THIRD_PARTY[anywhere]))}"
    at_import = layer_of(arrow.source, THIRD_PARTY_AT_IMPORT)
    if arrow.at_import and at_import and library not in THIRD_PARTY_AT_IMPORT[at_import]:
        return f"outside of functions {at_import} may import only {', '.join(sorted(THIRD_PARTY_AT_IMPORT[at_import]))}"
    return None


def test_no_arrow_runs_up():
    assert len(find_arrows(REPOSITORY)) > 20, "the walk found hardly any import: it looks in the wrong place"
    violations = find_violations(REPOSITORY)
    assert not violations, "\n" + "\n".join(violations)


WRONG_ARROWS = {
    "models import config": ("models/mvit.py", "from revvideo.config import load_config", "revvideo.config"),
    "data imports models": ("data/dataset.py", "import revvideo.models.mvit", "revvideo.models.mvit"),
    "relative": ("data/readers/pyav.py", "from ...models import mvit", "revvideo.models.mvit"),
    "relative, from a package": ("data/__init__.py", "from .. import build", "revvideo.build"),
    "inside a function": ("engine/trainer.py", "def f():\n    from revvideo import build", "revvideo.build"),
    "through the public API": ("models/mvit.py", "from revvideo import load_config", "revvideo:load_config"),
    "the whole public API": ("engine/trainer.py", "import revvideo", "revvideo"),
    "by name": ("engine/trainer.py", "import importlib\nimportlib.import_module('revvideo.data')", "revvideo.data"),
    "for annotations": (
        "engine/trainer.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from revvideo.models import mvit",
        "revvideo.models.mvit",
    ),
    "launch imports more than manifest": ("launch/submit.py", "from revvideo.data import dataset", "dataset"),
    "launch imports torch": ("launch/submit.py", "def f():\n    import torch.distributed", "torch.distributed"),
    "the ground imports": ("paths.py", "from revvideo.distributed import env", "revvideo.distributed.env"),
    "build imports cli": ("build.py", "from revvideo.cli.main import main", "revvideo.cli.main"),
    "the public API imports cli": ("__init__.py", "from revvideo.cli import main", "revvideo.cli.main"),
    "a module without a layer": ("helpers.py", "from revvideo.errors import InputError", "revvideo.errors"),
    "models import numpy": ("models/mvit.py", "def f():\n    import numpy as np", "numpy"),
    "baselines are eager": ("models/baselines.py", "import pytorchvideo.models", "pytorchvideo.models"),
    "data imports a reader's library": ("data/readers/decord.py", "import decord", "decord"),
    "not only for annotations": (
        "data/dataset.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import io\nelse:\n    import PIL",
        "PIL",
    ),
}

RIGHT_ARROWS = {
    "down": ("models/mvit.py", "from revvideo.errors import InputError\nfrom revvideo import paths"),
    "sideways": ("data/dataset.py", "from . import manifest\nfrom .readers.pyav import open_pyav\nimport av"),
    "version": ("engine/trainer.py", "from revvideo import __version__"),
    "build imports all": ("build.py", "from revvideo import config, data, engine, models"),
    "cli imports all": ("cli/main.py", "import revvideo\nfrom revvideo import build\nfrom revvideo.cli import demo"),
    "launch": ("launch/submit.py", "from revvideo.data import manifest\nfrom revvideo.engine.events import read"),
    "a library for annotations": (
        "data/dataset.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from PIL.Image import Image",
    ),
    "lazy reader": ("data/readers/decord.py", "def open_decord():\n    import decord"),
    "lazy baselines": ("models/baselines.py", "import torch\ndef build():\n    import pytorchvideo.models"),
}

SYNTHETIC_TREE = [
    *("__init__", "paths", "errors", "build", "config/__init__", "models/__init__", "models/mvit", "models/baselines"),
    *("data/__init__", "data/manifest", "data/dataset", "data/readers/__init__", "data/readers/pyav"),
    *("engine/__init__", "engine/trainer", "engine/events", "distributed/__init__", "distributed/env"),
    *("launch/__init__", "cli/__init__", "cli/main", "cli/demo"),
]


def write_tree(root: Path, changed_file: str, source: str) -> None:
    for name in SYNTHETIC_TREE:
        file = root / "revvideo" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (root / "revvideo" / changed_file).write_text(source + "\n", "utf-8")


@pytest.mark.parametrize("case", WRONG_ARROWS)
def test_the_walk_reports_a_wrong_arrow(case, tmp_path):
    file, source, target = WRONG_ARROWS[case]
    write_tree(tmp_path, file, source)
    (violation,) = find_violations(tmp_path)
    assert f"{target}  (revvideo/{file}:{source.count(chr(10)) + 1})" in violation


@pytest.mark.parametrize("case", RIGHT_ARROWS)
def test_the_walk_accepts_a_right_arrow(case, tmp_path):
    write_tree(tmp_path, *RIGHT_ARROWS[case])
    assert find_violations(tmp_path) == []


def run_without_torch(code: str) -> subprocess.CompletedProcess:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'torchcodec']))\n"
    return subprocess.run([sys.executable, "-c", blocked + code], cwd=REPOSITORY, capture_output=True, text=True)


def test_torch_free_modules_import_with_torch_blocked():
    done = run_without_torch(f"import importlib\nfor name in {TORCH_FREE}:\n    importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_the_block_blocks():
    done = run_without_torch("import torch")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run_net", "--help"], ["demo", "--help"]])
def test_help_answers_without_torch(arguments):
    done = run_without_torch(f"from revvideo.cli.main import main\nsys.exit(main({arguments}))")
    assert done.returncode == 0, done.stderr
    assert "revvideo" in done.stdout
