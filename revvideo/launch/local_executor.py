"""A job on this machine without Slurm, through submitit's LocalExecutor: it goes on when who has started it is gone."""

import json
import os
import shlex
from collections.abc import Callable

import submitit

from revvideo.errors import InputError
from revvideo.launch.batch_script import MAX_TIMEOUTS, environment_lines, python, task_python
from revvideo.launch.clean_environment import clean_environment
from revvideo.launch.submission import Submission

CONTROLLER_LOG = "controller.log"
GPUS = "CUDA_VISIBLE_DEVICES"


def make_local_executor(submission: Submission) -> submitit.LocalExecutor:
    """submitit's executor for a submission.

    Raises:
        InputError: CUDA_VISIBLE_DEVICES names fewer GPUs than are asked for.
    """
    resources = submission.resources
    lines = [*environment_lines(submission), *_gpu_lines(resources.gpus_per_node)]
    # Not submitit's `setup`: with it a job's id is that of a shell, or not, which depends on the shell.
    shell = shlex.join(["bash", "-c", "\n".join([*lines, 'exec $block "$@"']), "revvideo"])
    executor = submitit.LocalExecutor(submission.jobs_folder, MAX_TIMEOUTS, python=f"{shell} {python(submission)}")
    executor.update_parameters(
        nodes=resources.nodes,
        tasks_per_node=resources.tasks_per_node,
        gpus_per_node=resources.gpus_per_node,
        timeout_min=resources.minutes,
        signal_delay_s=resources.signal_seconds,
        stderr_to_stdout=True,
    )
    return executor


def _gpu_lines(num_gpus: int) -> list[str]:
    """submitit would take the first GPUs of the machine, whichever are ours."""
    visible = [name for name in os.environ.get(GPUS, "").split(",") if name]
    if not num_gpus or GPUS not in os.environ:
        return []
    if len(visible) < num_gpus:
        raise InputError(
            f"--gpus-per-node {num_gpus} is more than {GPUS}={os.environ[GPUS]!r} has; ask for at most {len(visible)}"
        )
    return [f"export {GPUS}={shlex.quote(','.join(visible[:num_gpus]))}"]


def start_local(submission: Submission, job: Callable[[], object]) -> str:
    """Start a job; returns its id, which is the process id of submitit's controller.

    The controller is not to die with this process's terminal or pipe, and submitit cannot start it so. So a child does
    that which leads a session of its own, and ends.

    Raises:
        InputError: it could not be started.
    """
    executor = make_local_executor(submission)
    submission.jobs_folder.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _start_detached(executor, job, writing)
    os.close(writing)
    with open(reading, encoding="utf-8") as answers:
        text = answers.read()
    os.waitpid(child, 0)
    answer = json.loads(text) if text else {"error": f"see {submission.jobs_folder / CONTROLLER_LOG}"}
    if "error" in answer:
        raise InputError(f"the job could not be started on this machine: {answer['error']}")
    return answer["job"]


def _start_detached(executor: submitit.LocalExecutor, job: Callable[[], object], answers: int) -> None:
    """The child's life."""
    try:
        os.setsid()
        streams = (("/dev/null", os.O_RDONLY, (0,)), (executor.folder / CONTROLLER_LOG, os.O_WRONLY, (1, 2)))
        for path, flags, numbers in streams:
            opened = os.open(path, flags | os.O_CREAT | os.O_APPEND, 0o644)
            for number in numbers:
                os.dup2(opened, number)
        with clean_environment():
            answer = {"job": executor.submit(job).job_id}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    finally:
        # Whatever happens, this copy of the process must not go on with what its parent does.
        try:
            os.write(answers, json.dumps(answer).encode())
        finally:
            os._exit(0)


def describe_local(submission: Submission) -> str:
    """What a task of the job would run, as a script."""
    resources = submission.resources
    lines = [*environment_lines(submission), *_gpu_lines(resources.gpus_per_node)]
    command = f"{task_python(submission)} -u -m submitit.core._submit {shlex.quote(str(submission.jobs_folder))}"
    title = f"# {resources.tasks_per_node} processes on this machine, for at most {resources.minutes} minutes"
    return "\n".join(["#!/bin/bash", title, *lines, command, ""])
