"""Commands on the machine that submits: this one, or a login node over SSH."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from common.errors import LaunchError
from common.values import one_line
from launch.executors.profiles import Profile


@dataclass(frozen=True)
class Answer:
    """Result of a command: whether it succeeded, its stdout and its stderr."""

    ok: bool
    out: str
    err: str


def tunnel_of(profile: Profile) -> Any:
    """NeMo-Run's tunnel to where sbatch runs, not connected yet."""
    import nemo_run

    ssh = profile.slurm.ssh
    if profile.executor != "slurm" or ssh is None:
        return nemo_run.LocalTunnel(job_dir="")
    return nemo_run.SSHTunnel(host=ssh.host, user=ssh.user, job_dir=ssh.jobs, identity=ssh.identity, port=ssh.port)


def connect(tunnel: Any) -> None:
    """Make sure that a tunnel answers.

    Raises:
        LaunchError: the login node cannot be reached.
    """
    if is_remote(tunnel):
        try:
            tunnel.connect()
            connected = bool(tunnel.session and tunnel.session.is_connected)
            reason = "it refused the login"
        except (OSError, EOFError, ValueError) as error:
            connected, reason = False, one_line(error)
        except Exception as error:  # paramiko has no common base for what can go wrong in a handshake
            if not type(error).__module__.startswith("paramiko"):
                raise
            connected, reason = False, one_line(error)
        if not connected:
            raise LaunchError(
                f"login node {tunnel.host} cannot be reached as {tunnel.user} ({reason}): "
                "check slurm.ssh in the profile, and that `ssh` gets there without a password."
            )


def is_remote(tunnel: Any) -> bool:
    """Whether commands go over SSH."""
    import nemo_run

    return isinstance(tunnel, nemo_run.SSHTunnel)


def ask(tunnel: Any, *command: str, stdin: str | None = None) -> Answer:
    """Run a command there; a failing one is an answer, too."""
    text = shlex.join(command)
    if stdin is not None:
        text += f" <<'END_OF_INPUT'\n{stdin}\nEND_OF_INPUT"
    done = tunnel.run(text, hide=True, warn=True, in_stream=False)
    return Answer(done.ok, done.stdout, done.stderr)


def put_text(tunnel: Any, text: str, path: str) -> None:
    """Write a file there, with the folders above it.

    Raises:
        LaunchError: it cannot be written.
    """
    answer = ask(tunnel, "sh", "-c", 'mkdir -p "$(dirname "$1")" && cat > "$1"', "sh", path, stdin=text)
    if not answer.ok:
        raise LaunchError(f"{path} cannot be written on the login node: {answer.err.strip()}")
