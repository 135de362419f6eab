"""Commands that answer as Slurm's did: rows and messages were recorded from Slurm 22.05.8."""

import json
import sys
from pathlib import Path

# squeue -r -t all: id, state, restarts, status as wait() gives it, start (unix seconds), reason, nodes.
FINISHED = ("1", "COMPLETED", "1", "0", "1795279879", "None", "127.0.0.1")
CRASHED = ("2", "FAILED", "0", "768", "1795279870", "NonZeroExitCode", "127.0.0.1")
CANCELLED_ELEMENT = ("3_0", "CANCELLED", "0", "15", "1795279870", "None", "127.0.0.1")
RUNNING_ELEMENT = ("3_1", "RUNNING", "0", "0", "1795279870", "None", "127.0.0.1")
WAITING_ELEMENT = ("3_2", "PENDING", "0", "0", "N/A", "JobArrayTaskLimit", "")
REQUEUED = ("4", "PENDING", "1", "0", "1795279894", "BeginTime", "")
RUNNING = ("4", "RUNNING", "0", "0", "1795279872", "None", "127.0.0.[1-2]")
NEVER = ("5", "PENDING", "0", "0", "N/A", "DependencyNeverSatisfied", "")
WAITING = ("6", "PENDING", "0", "0", "N/A", "Dependency", "")
ROWS = (FINISHED, CRASHED, CANCELLED_ELEMENT, RUNNING_ELEMENT, WAITING_ELEMENT, REQUEUED, NEVER, WAITING)

SQUEUE = """#!{python}
import json, sys
from pathlib import Path
folder = Path(__file__).parent
words = sys.argv[1:]
ids = words[words.index("-j") + 1].split(",")
rows = json.loads((folder / "rows.json").read_text())
known = {{row[0].partition("_")[0] for row in rows}}
if len(ids) == 1 and ids[0] not in known:  # of several ids it leaves unknown ones out
    sys.exit("slurm_load_jobs error: Invalid job id specified")
names = ["JobArrayID", "State", "RestartCnt", "exit_code", "StartTime", "Reason", "NodeList"]
for row in rows:
    if row[0].partition("_")[0] in ids:
        values = dict(zip(names, row))
        columns = (column.split(":") for column in words[words.index("-O") + 1].split(","))
        print("".join(values[name][: int(width)].ljust(int(width)) for name, width in columns))
"""
OTHER = """#!{python}
import json, sys
from pathlib import Path
folder, name = Path(__file__).parent, Path(__file__).name
with open(folder / "calls.txt", "a") as file:
    file.write(" ".join([name, *sys.argv[1:]]) + "\\n")
answer = json.loads((folder / "answers.json").read_text()).get(name, ["", "", 0])
print(answer[0], end="")
print(answer[1], end="", file=sys.stderr)
sys.exit(answer[2])
"""
NO_ACCOUNTING = ("", "Slurm accounting storage is disabled\n", 1)


class FakeSlurm:
    """The commands in a folder that is to stand first on PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        for name in ("squeue", "sacct", "scontrol", "scancel"):
            text = (SQUEUE if name == "squeue" else OTHER).format(python=sys.executable)
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o755)
        self.answer(sacct=NO_ACCOUNTING)
        self.know(*ROWS)

    def know(self, *rows: tuple[str, ...]) -> None:
        """What squeue shows from now on."""
        temporary = self.folder / "rows.tmp"
        temporary.write_text(json.dumps(rows), encoding="utf-8")
        temporary.replace(self.folder / "rows.json")

    def answer(self, **answers: tuple[str, str, int]) -> None:
        """Standard output, standard error and exit code of the other commands; nothing and 0 where none is given."""
        (self.folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")

    @property
    def calls(self) -> list[str]:
        """The other commands as they were called."""
        path = self.folder / "calls.txt"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
