"""A SLURM of one machine for tests: real daemons with their own configuration, in a temporary folder, on loopback."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
# slurmd and its jobs have PIDs of their own: whatever runs there ends with the first process, slurmd
NAMESPACE = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")
CPUS, GPUS = 4, ("/dev/null", "/dev/zero")  # whatever the machine has
# `lab` can be preempted by `vip`. A requeued job is eligible when its credential expires, by default after 2 minutes.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={slurmd_port}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1
GresTypes=gpu
MaxArraySize=3
JobRequeue=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:2
PartitionName=lab Nodes={host} Default=YES MaxTime=60 PriorityTier=1 GraceTime=60
PartitionName=vip Nodes={host} PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why there can be no SLURM here; None if there can."""
    lacking = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if lacking:
        return f"{', '.join(lacking)} missing: apt-get install slurm-wlm munge"
    alone = os.getuid() == 0 and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    return None if alone else "slurmd needs root and a PID namespace"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def start(folder: Path, *command: str | Path, within: tuple[str, ...] = ()) -> subprocess.Popen:
    """A daemon in the foreground, with a log. It ends with this process, however that ends."""
    name = str(command[0])
    with open(folder / f"{name}.log", "ab") as log:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *within, shutil.which(name, path=PATH), *map(str, command[1:])],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def ask(*command: str) -> str:
    """What a command of SLURM prints; nothing if it fails."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


def wait_for(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """Starts munged, slurmctld and slurmd, points SLURM_CONF to them, and ends them with all jobs."""
    host, (port, slurmd_port) = socket.gethostname().partition(".")[0], free_ports(2)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, port=port, slurmd_port=slurmd_port, folder=folder, cpus=CPUS))
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={','.join(GPUS)}\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # loaded, but used by no plugin above
    before = {name: value for name, value in os.environ.items() if name.startswith(("SLURM", "SBATCH", "SQUEUE"))}
    for name in before:
        del os.environ[name]
    os.environ["SLURM_CONF"] = str(config)
    daemons = []
    try:
        munge = [f"--{kind}-file={folder}/{kind}" for kind in ("key", "pid", "log", "seed")]
        daemons.append(start(folder, "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge))
        wait_for((folder / "munge.socket").exists, 20, "munged did not start")
        daemons.append(start(folder, "slurmctld", "-D", "-f", config))
        daemons.append(start(folder, "slurmd", "-D", "-f", config, within=NAMESPACE))
        wait_for(
            lambda: "idle" in ask("sinfo", "--noheader", "--format=%T"), 60, f"SLURM did not start: {folder}/*.log"
        )
        yield
    finally:
        for daemon in reversed(daemons):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        del os.environ["SLURM_CONF"]
        os.environ.update(before)
