"""What a job asks the cluster for."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Resources:
    """One job: nodes x tasks, for how long, where, and what surrounds them.

    Attributes:
        nodes: machines.
        gpus_per_node: GPUs of each, with one task each; 0 runs on the CPU.
        tasks_per_node: processes on each machine; as many as GPUs where there are some.
        cpus_per_task: cores of each process, loader workers included.
        mem_gib: memory of each node; None: the partition's default.
        minutes: time limit.
        partition, account, qos, constraint, exclude, comment: Slurm's own; "" leaves them out.
        job_name: what the queue shows.
        signal_seconds: how long before the time limit the job is told to save and requeue.
        max_restarts: crashes that are retried; stops by a signal, requeues and node failures do not count.
        backoff_seconds: the wait before the first retry; it doubles with each.
        interface: network interface of NCCL and gloo; "" lets them choose.
        setup: shell lines before the job, such as `module load cuda`.
        env: variables of the job.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    mem_gib: float | None = None
    minutes: int = 60
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""
    comment: str = ""
    job_name: str = "revvideo"
    signal_seconds: int = 120
    max_restarts: int = 3
    backoff_seconds: int = 30
    interface: str = ""
    setup: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    @property
    def num_tasks(self) -> int:
        """Processes of the job."""
        return self.nodes * self.tasks_per_node
