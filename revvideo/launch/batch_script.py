"""The batch script of a job: submitit's own, with what a run needs around its tasks.

Beyond submitit's interface this relies on two of its methods, which make the text that it would submit
(tests/test_batch_script.py compares it with what it does submit), and on its command line being PYTHON -u -m MODULE.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import submitit

from revvideo.errors import InputError
from revvideo.launch.clean_environment import TORCHRUN_VARIABLES, clean_environment
from revvideo.launch.submission import Submission

SLURM_COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "scancel")
SBATCH_SECONDS = 120
MAX_TIMEOUTS = 10**9  # of submitit: as often as it takes
BLOCK_SIGNAL = "env --block-signal=USR2"  # GNU coreutils 8.31

HINT = "`sinfo -o '%P %l %D %c %m %G'` shows partitions, their time limits, nodes, cores, MiB and GPUs"


def check_slurm() -> None:
    """Whether jobs can be submitted from here.

    Raises:
        InputError: Slurm's commands are not on PATH.
    """
    missing = [name for name in SLURM_COMMANDS if shutil.which(name) is None]
    if missing:
        raise InputError(
            f"no Slurm here: {', '.join(missing)} not on PATH; submit where Slurm is installed, such as a login node, "
            "or run on this machine with --cluster local"
        )


def make_executor(submission: Submission, dependency: str = "", *, all_or_none: bool = False) -> submitit.SlurmExecutor:
    """submitit's executor for a job of a submission.

    Args:
        submission: which, and what it asks for.
        dependency: Slurm's, such as `afterany:17`; "" for none.
        all_or_none: cancel the job when the dependency can no longer be fulfilled; else it would wait for ever.
    """
    resources = submission.resources
    executor = submitit.SlurmExecutor(submission.jobs_folder, MAX_TIMEOUTS, python=task_python(submission))
    # The signal by name: submitit lets SUBMITIT_PREEMPT_SIGNAL change it. requeue: sites may have it off.
    more: dict[str, object] = {"requeue": True, "signal": f"USR2@{resources.signal_seconds}"}
    if all_or_none:
        more["kill-on-invalid-dep"] = "yes"
    executor.update_parameters(
        job_name=resources.job_name,
        nodes=resources.nodes,
        ntasks_per_node=resources.tasks_per_node,
        cpus_per_task=resources.cpus_per_task,
        gpus_per_node=resources.gpus_per_node or None,
        mem=None if resources.mem_gib is None else f"{round(resources.mem_gib * 1024)}M",
        time=resources.minutes,
        partition=resources.partition or None,
        account=resources.account or None,
        qos=resources.qos or None,
        constraint=resources.constraint or None,
        exclude=resources.exclude or None,
        comment=resources.comment or None,
        wckey=None,  # submitit's default is one that a site would have to know
        dependency=dependency or None,
        stderr_to_stdout=True,
        setup=[*environment_lines(submission), *_meeting_lines(submission)],
        teardown=_teardown_lines(submission),
        # Since Slurm 22.05 srun does not take the cores of a task from sbatch.
        srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={resources.cpus_per_task}"],
        additional_parameters=more,
    )
    return executor


def environment_lines(submission: Submission) -> list[str]:
    """Shell lines that make the environment of a job's processes, whoever starts them."""
    resources = submission.resources
    lines = [f"unset {' '.join(TORCHRUN_VARIABLES)} ${{!TORCHELASTIC_@}}", *resources.setup]
    if resources.setup:
        lines.append("set +eu")  # what the user's lines have set is not for those below
    if resources.interface:
        interface = shlex.quote(resources.interface)
        lines.append(f"export NCCL_SOCKET_IFNAME={interface} GLOO_SOCKET_IFNAME={interface}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in resources.env.items()]
    lines.append(f"block=$({BLOCK_SIGNAL} true 2>/dev/null && echo {BLOCK_SIGNAL})")  # if the node's env can
    lines.append(f"export PYTHONPATH={shlex.quote(str(submission.code_folder))}${{PYTHONPATH:+:$PYTHONPATH}}")
    return lines


def _meeting_lines(submission: Submission) -> list[str]:
    return [
        "export SLURM_EXPORT_ENV=ALL",  # where sbatch is told to export nothing, srun would drop the lines above
        f"meeting=$({_module(submission, 'revvideo.launch.prologue')}) || exit $?",
        'eval "$meeting"',
    ]


def _teardown_lines(submission: Submission) -> list[str]:
    epilogue = _module(submission, "revvideo.launch.epilogue")
    # Instead of the shell, which the SIGTERM of a requeue would end before the wait is set.
    return [f"exec {epilogue} {shlex.quote(str(submission.folder))} $?"]


def _module(submission: Submission, module: str) -> str:
    return f"{python(submission)} -m {module}"


def python(submission: Submission) -> str:
    """Shell words that run Python with the code of the submission; what follows is -m MODULE."""
    start = submission.code_folder / "revvideo" / "launch" / "start.py"
    return shlex.join([sys.executable, "-u", str(start)])


def task_python(submission: Submission) -> str:
    """`python` for a job's tasks, after `environment_lines`: USR2, which would kill them, waits until they listen."""
    return f"$block {python(submission)}"


def script_text(executor: submitit.SlurmExecutor, num_members: int) -> str:
    """What sbatch is given; several members are elements of an array."""
    if num_members > 1:
        array = submitit.SlurmExecutor(executor.folder, executor.max_num_timeout)
        array.parameters = executor.parameters | {"map_count": num_members}
        return array._make_submission_file_text(executor._submitit_command_str, "")
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def check_script(text: str) -> None:
    """Ask Slurm whether it would take a script.

    Raises:
        InputError: it would not; the message has its reason.
    """
    with TemporaryDirectory(prefix="revvideo_") as name, clean_environment(script=text):
        script = Path(name) / "script.sbatch"
        script.write_text(text, encoding="utf-8")
        try:
            done = subprocess.run(
                ["sbatch", "--test-only", str(script)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SBATCH_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"Slurm does not answer: sbatch --test-only took more than {SBATCH_SECONDS} s") from None
    if done.returncode != 0:
        raise refusal(done.stderr or f"sbatch --test-only exits with {done.returncode}", text)


def refusal(message: str, text: str, *, cancelled: Sequence[str] = ()) -> InputError:
    """Slurm's reason in one line, with what was asked for.

    Args:
        message: what sbatch has written.
        text: the script.
        cancelled: ids of jobs that were submitted already and taken back.
    """
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in message.splitlines()]
    reason = "; ".join(dict.fromkeys(line for line in lines if line))
    options = [word for line in _asked(text) for word in shlex.split(line)[1:]]
    number = {name: int(value) for name, _, value in (word.partition("=") for word in options) if value.isdecimal()}
    cores = number["--ntasks-per-node"] * number["--cpus-per-task"]
    asked = f"{shlex.join(options)}, which is {cores} core{'s' * (cores != 1)} a node"
    end = f"the jobs before it were cancelled: {', '.join(cancelled)}" if cancelled else "nothing was submitted"
    return InputError(f"Slurm refuses the job: {reason} (asked for: {asked}); {end}. {HINT}")


def _asked(text: str) -> Sequence[str]:
    """The #SBATCH lines that a cluster may refuse."""
    words = ("nodes", "ntasks", "gpus", "cpus", "mem", "time", "partition", "account", "qos", "constraint", "exclude")
    options = tuple(f"#SBATCH --{word}" for word in (*words, "dependency", "array"))
    return [line for line in text.splitlines() if line.startswith(options)]
