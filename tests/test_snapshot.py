"""A job's copy of revvideo is complete, is what runs, and knows the commit that it is of."""

import json
import os
import subprocess
import sys

from revvideo.launch import snapshot
from revvideo.launch.snapshot import COMMIT_FILE, PACKAGE, copy_code, git_commit

START = "revvideo/launch/start.py"
WHERE = (
    "import json, os, sys, revvideo\nfrom revvideo.jobs.run_folder import code_version\n"
    "print(json.dumps([revvideo.__file__, code_version(), sys.argv, os.getcwd()]))\n"
)


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_copy_has_every_file_but_what_python_has_compiled(tmp_path):
    copy_code(tmp_path / "code")
    copied = files(tmp_path / "code" / "revvideo")
    assert copied == {name for name in files(PACKAGE) if "__pycache__" not in name}
    assert "models/csrc/depthwise_pooling.cpp" in copied
    assert files(tmp_path / "code") == {f"revvideo/{name}" for name in copied} | {COMMIT_FILE}


def test_the_copy_knows_the_commit_where_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "git_commit", lambda: "04e6ff0-dirty")
    copy_code(tmp_path)
    assert git_commit(tmp_path) == "04e6ff0-dirty"


def test_a_copy_of_what_nobody_knows_knows_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "git_commit", lambda: None)
    copy_code(tmp_path)
    assert git_commit(tmp_path) is None


def test_the_copy_runs_and_not_the_checkout_that_is_the_working_directory(tmp_path, monkeypatch):
    """`python -m` would look into the working directory first."""
    monkeypatch.setattr(snapshot, "git_commit", lambda: "04e6ff0")
    code = tmp_path / "a b" / "code"
    copy_code(code)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/where.py").write_text(WHERE)
    checkout = PACKAGE.parent
    done = subprocess.run(
        [sys.executable, "-u", code / START, "-u", "-m", "where", "one", "-m"],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": f"{code}:{tmp_path / 'modules'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, version, words, folder = json.loads(done.stdout)
    assert file == str(code / "revvideo/__init__.py")
    assert version.endswith("+04e6ff0")
    assert words == [str(tmp_path / "modules/where.py"), "one", "-m"]
    assert folder == str(checkout)


def test_modules_beside_the_starter_hide_nobody_elses(tmp_path):
    """A script's own folder is where Python looks first: `import submit` in a job must not find the launcher's."""
    code = "import importlib.util, sys\nprint(importlib.util.find_spec('submit'), importlib.util.find_spec('lock'))\n"
    (tmp_path / "look.py").write_text(code)
    words = [sys.executable, PACKAGE / "launch/start.py", "-m", "look"]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.stdout == "None None\n", done.stderr
