"""Real containers on a machine without Docker: podman's Docker-compatible socket, and a base image from debootstrap.

Everything of it lies in one folder: images, containers, the socket and podman's configuration.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("podman", "runc", "debootstrap")
BASE = "localhost/base:1"
# runc, since crun refuses hybrid cgroups; limits given, since the default asks for more than may be allowed
CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
netns = "host"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


@dataclass(frozen=True)
class Engine:
    """podman with its storage in a folder."""

    folder: Path

    @property
    def socket(self) -> str:
        return f"unix://{self.folder}/podman.sock"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERS_CONF": str(self.folder / "containers.conf")}

    def command(self, *arguments: str) -> list[str]:
        driver = os.environ.get("STORAGE_DRIVER", "overlay")  # vfs works everywhere and copies every layer whole
        storage = (f"--storage-driver={driver}", f"--root={self.folder}/storage", f"--runroot={self.folder}/run")
        return ["podman", *storage, *arguments]

    def run(self, *arguments: str, timeout: int = 600, cwd: Path | None = None) -> str:
        """The output of a podman command.

        Raises:
            RuntimeError: it failed.
        """
        done = subprocess.run(
            self.command(*arguments), env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=timeout
        )
        if done.returncode:
            raise RuntimeError(f"podman {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout


def missing() -> str | None:
    """Why there are no containers here, if so."""
    if os.geteuid():
        return "needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(absent)} missing: apt-get install {' '.join(PROGRAMS)}" if absent else None


@contextmanager
def running(folder: Path) -> Iterator[Engine]:
    """An engine that listens on its socket."""
    engine = Engine(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "containers.conf").write_text(CONFIGURATION)
    service = subprocess.Popen(
        engine.command("system", "service", "--time=0", engine.socket),
        env=engine.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 30
        while not (folder / "podman.sock").exists():
            if time.monotonic() > until or service.poll() is not None:
                raise RuntimeError("podman's socket did not come up")
            time.sleep(0.1)
        yield engine
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(20)


def make_base(engine: Engine) -> str:
    """A Debian with Python, make and git: it stands in for the base images that no registry can give here."""
    root = engine.folder / "root"
    packages = "python3,python3-venv,python3-pip,make,git,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root)],
        check=True,
        capture_output=True,
        timeout=900,
    )
    archive = engine.folder / "root.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True, timeout=300)
    engine.run("import", str(archive), BASE)
    archive.unlink()
    shutil.rmtree(root)
    return BASE


def pip_options() -> list[str]:
    """How this machine's pip reaches its packages, handed to a build: mounts, and variables that hold no secret."""
    files = [Path("/etc/pip.conf"), Path("/etc/ssl/certs")]
    found = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, timeout=60).stdout
    for word in found.replace("'", " ").split():
        path = Path(word.removeprefix("file://").removesuffix("/simple"))
        if path.is_absolute() and path.is_dir():
            files.append(path)
    options = [f"--volume={file}:{file}:ro" for file in dict.fromkeys(files) if file.exists()]
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    return [*options, f"--env=PIP_CERT={certificates}"] if certificates.exists() else options
