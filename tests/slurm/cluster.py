"""A private Slurm cluster of Debian's packages on this machine: two nodes with pretended GPUs, and real accounting.

It has a munge socket, ports and folders of its own and touches nothing in /etc. As root:
`python -m tests.slurm.cluster DIR` starts one, `… DIR --stop` stops exactly what was started there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "sacct", "munged", "mariadbd", "mariadb-install-db")
PACKAGES = "slurmctld slurmd slurm-client slurmdbd munge mariadb-server-core mariadb-client-core"
DAEMONS = ("slurmd.n1", "slurmd.n2", "slurmctld", "slurmdbd", "mariadbd", "munged")
GPUS = 8


@dataclass
class Cluster:
    """A running cluster."""

    folder: Path
    database: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str, check: bool = True) -> str:
        """The output of a command of Slurm's."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def state(self, job: str) -> str:
        """Slurm's word for the state of a job."""
        shown = self.run("scontrol", "-o", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]

    def stop(self) -> None:
        """Stop the daemons, by the pids that they wrote."""
        for name in DAEMONS:
            file = self.folder / "run" / f"{name}.pid"
            try:
                pid = int(file.read_text())
                os.kill(pid, signal.SIGTERM)
            except (OSError, ValueError):
                continue
            if self.database and pid == self.database.pid:
                try:
                    self.database.wait(20)  # a child of ours stands in /proc until it is waited for
                except subprocess.TimeoutExpired:
                    self.database.kill()
                    self.database.wait()
                continue
            _wait(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 20)


def missing() -> str | None:
    """Why no cluster can be started here, if so."""
    if os.geteuid():
        return "needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(absent)} missing: apt-get install --no-install-recommends {PACKAGES}" if absent else None


def start(folder: Path) -> Cluster:
    """Bring a cluster up in an empty folder; about five seconds."""
    for name in ("log", "run", "munge", "db", "state", "spool/n1", "spool/n2"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o700)
    port = _free_ports(110)
    cluster = Cluster(folder)
    _munge(folder)
    cluster.database = _accounting(folder, port)
    _controller(cluster, port)
    if not _wait(lambda: cluster.run("sinfo", "-h", "-N", "-o", "%t", check=False).split() == ["idle"] * 2, 30):
        logs = "\n".join(file.read_text()[-2000:] for file in (folder / "log").iterdir())
        cluster.stop()
        raise RuntimeError(f"the cluster did not come up:\n{logs}")
    return cluster


def _munge(folder: Path) -> None:
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    options = {"socket": "run/munge.sock", "pid-file": "run/munged.pid", "log-file": "munge/log"}
    options |= {"key-file": "munge/key", "seed-file": "munge/seed"}
    _call("munged", "--force", "--num-threads=2", *(f"--{name}={folder / file}" for name, file in options.items()))


def _accounting(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the accounting daemon and its database; returns the database, which is a child of this process."""
    common = ("--no-defaults", "--user=root", f"--datadir={folder}/db")
    _call("mariadb-install-db", *common, "--auth-root-authentication-method=normal")
    grant = "GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1' IDENTIFIED BY 'test';"
    (folder / "db.sql").write_text(f"CREATE DATABASE IF NOT EXISTS slurm_acct_db;\n{grant}\n")
    with (folder / "log" / "mariadbd").open("w") as log:
        database = subprocess.Popen(
            [
                *("mariadbd", *common, f"--socket={folder}/run/db.sock", "--bind-address=127.0.0.1"),
                *(f"--port={port + 100}", "--skip-name-resolve", f"--pid-file={folder}/run/mariadbd.pid"),
                *(f"--init-file={folder}/db.sql", "--innodb-buffer-pool-size=32M"),
                "--innodb-flush-log-at-trx-commit=0",
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    _await_port(port + 100)
    conf = folder / "slurmdbd.conf"
    conf.write_text(f"""\
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
DbdHost={socket.gethostname().split(".")[0]}
DbdAddr=127.0.0.1
DbdPort={port + 101}
SlurmUser=root
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port + 100}
StorageUser=slurm
StoragePass=test
StorageLoc=slurm_acct_db
""")
    conf.chmod(0o600)
    _call("slurmdbd", environment={"SLURM_CONF": str(folder / "slurm.conf")})
    _await_port(port + 101)
    return database


def _controller(cluster: Cluster, port: int) -> None:
    folder, host = cluster.folder, socket.gethostname().split(".")[0]
    nodes, gpus = [], []
    for number in (1, 2):
        nodes.append(
            f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + number} "
            f"CPUs={os.cpu_count()} RealMemory=8000 Gres=gpu:{GPUS} State=UNKNOWN"
        )
        for index in range(GPUS):
            device = folder / "run" / f"gpu{number}-{index}"
            device.touch()
            gpus.append(f"NodeName=n{number} Name=gpu File={device}")
    (folder / "gres.conf").write_text("\n".join(gpus) + "\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    (folder / "plugstack.conf").touch()
    (folder / "slurm.conf").write_text(f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass={folder}/run/munge.sock
AccountingStoragePort={port + 101}
ReturnToService=2
SlurmdParameters=config_overrides
MinJobAge=3600
KillWait=60
SchedulerParameters=sched_interval=1,sched_min_interval=10000,batch_sched_delay=0,bf_interval=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd.%n
PlugStackConfig={folder}/plugstack.conf
GresTypes=gpu
{chr(10).join(nodes)}
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP
""")
    _call("sacctmgr", "-iQ", "add", "cluster", "test", check=False, environment=cluster.environment)
    _call("slurmctld", environment=cluster.environment)
    for number in (1, 2):
        _call("slurmd", "-N", f"n{number}", environment=cluster.environment)


def _call(*command: str, environment: Mapping[str, str] | None = None, check: bool = True) -> None:
    whole = {**os.environ, **(environment or {})}
    done = subprocess.run(command, env=whole, capture_output=True, text=True, timeout=120)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def _free_ports(count: int) -> int:
    """The first of so many ports that nothing uses."""
    for first in range(17000, 30000, 200):
        if not any(_answers(first + offset) for offset in (0, 1, 2, 100, count - 9)):
            return first
    raise RuntimeError("no free ports")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _await_port(port: int) -> None:
    if not _wait(lambda: _answers(port), 60):
        raise RuntimeError(f"nothing answers on port {port}")


def _wait(condition, seconds: float) -> bool:  # type: ignore[no-untyped-def]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    if "--stop" in sys.argv:
        Cluster(where).stop()
    else:
        print(f"export SLURM_CONF={start(where).folder}/slurm.conf")
