"""A real SLURM on this machine: its controller and two nodes, which are two daemons, in a folder of their own."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

COMMANDS = ("slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")

# Without munge: whoever speaks to these daemons is on this machine, and they end with the tests.
CONF = """
ClusterName=flr
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=10
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000
PartitionName=main Nodes=one,two Default=YES MaxTime=60 State=UP
"""


def missing() -> str:
    """What SLURM lacks here; empty where it can start."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    gone = [name for name in COMMANDS if not shutil.which(name, path=path)]
    return f"no {', '.join(gone)} here: apt-get install slurm-wlm" if gone else ""


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The variables by which commands find it, once both of its nodes are idle."""
    environment = os.environ | {
        "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "SLURM_CONF": str(folder / "slurm.conf"),
    }  # fmt: skip
    probes = [socket.socket() for _ in range(3)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    folder.mkdir(parents=True)
    (folder / "state").mkdir()
    host = socket.gethostname().partition(".")[0]
    text = CONF.format(folder=folder, host=host, user=getpass.getuser(), ports=ports)
    (folder / "slurm.conf").write_text(text)
    daemons = []
    try:
        for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "one"], ["slurmd", "-D", "-N", "two"]):
            with (folder / f"{'-'.join(command)}.out").open("wb") as out:
                daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
        for _ in range(300):
            states = subprocess.run(
                ["sinfo", "--noheader", "--Node", "--format=%T"], env=environment, capture_output=True, text=True
            ).stdout.split()
            if states == ["idle", "idle"]:
                break
            assert all(daemon.poll() is None for daemon in daemons), [p.read_text() for p in folder.glob("*.out")]
            time.sleep(0.1)
        else:
            raise AssertionError(f"SLURM did not come up: {states}; see {folder}")
        yield {key: environment[key] for key in ("PATH", "SLURM_CONF")}
    finally:
        subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=False)
        for _ in range(300):  # a daemon that ends leaves the processes of its jobs
            left = subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, text=True)
            if not left.stdout:
                break
            time.sleep(0.1)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait()
