"""What a cluster profile may not hold: secrets by value, and texts that a shell would take apart.

NeMo-Run 0.11.1 writes images, mounts and names of variables into the job script as they are, and every option of sbatch
on a line of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from common.errors import ConfigurationError
from common.values import one_line

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"(?!-)[\w./:@#%+=-]+")
_WORDS = {
    "container.image": _WORD,
    "container.mounts": _WORD,
    "slurm.sbatch's option": re.compile(r"[A-Za-z][\w-]*"),
    "slurm.ssh.host": _WORD,
    "slurm.ssh.user": _WORD,
    "slurm.ssh.jobs": _WORD,
    "slurm.ssh.identity": re.compile(r"(?!-)[\w./~+=-]+"),
}
_SECRET_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|APIKEY)(_|$)|(^|_)KEY(_|$)", re.IGNORECASE
)
_PLACE_NAME = re.compile(r"_(PATH|FILE|DIR)$", re.IGNORECASE)  # HF_TOKEN_PATH names a file that holds the secret
_SECRET = re.compile(
    r"\b(hf_\w{20,}|sk-[\w-]{20,}|nvapi-[\w-]{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|AKIA[0-9A-Z]{16}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)|-----BEGIN [A-Z ]*PRIVATE KEY|\w://[^/\s:@]*:[^/\s@]+@"
)
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)=[\"']?(?=[^\s\"'$`;,&|])")


def refuse_secrets(tree: Any, source: str) -> None:
    """Refuse a profile, as it was read, that holds a secret; its value stands in no error.

    Raises:
        ConfigurationError: it holds one, or `environment` or `secrets` are of another kind.
    """
    environment, secrets = tree.get("environment") or {}, tree.get("secrets") or []
    if not isinstance(environment, dict):
        raise ConfigurationError(f"{source}: environment holds no names of variables: write NAME: value below it.")
    if not isinstance(secrets, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in secrets):
        raise ConfigurationError(
            f"{source}: secrets is a list of names of variables, such as [HF_TOKEN]; their values come from your shell."
        )
    for name in environment:
        if is_secret(str(name)):
            raise _by_value(source, f"environment.{one_line(str(name), 60)}", str(name))
    for key, text in _texts(tree):
        named = next((match[1] for match in _ASSIGNED.finditer(text) if is_secret(match[1])), None)
        if named or _SECRET.search(text):
            raise _by_value(source, key, named or "HF_TOKEN")


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret, rather than where one lies."""
    return bool(_SECRET_NAME.search(name)) and not _PLACE_NAME.search(name)


def _by_value(source: str, key: str, name: str) -> ConfigurationError:
    name = name if _NAME.fullmatch(name) else "HF_TOKEN"
    return ConfigurationError(
        f"{source}: {key} holds a secret by value, which scripts and stored launches would keep: take it out, set it "
        f"in your shell (export {name}=…) and name it there with secrets: [{name}]."
    )


def refuse_shell_text(profile: Any, source: str) -> None:
    """Refuse a profile with texts that would not reach a job as they stand there.

    Raises:
        ConfigurationError: an image, a mount, a host or a name that a shell would take apart, or a text of several
            lines where one is written.
    """
    for name in profile.environment:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{source}: environment: {_shown(name)} is no name of a variable: use letters, digits and _."
            )
    tree = dataclasses.asdict(profile)
    one_lined = {key: value for key, value in tree.items() if key not in ("environment", "setup")}
    for key, text in [*_texts(one_lined), *(("slurm.sbatch's option", name) for name in profile.slurm.sbatch)]:
        if re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", text):
            raise ConfigurationError(f"{source}: {key} is {_shown(text)}: write it on one line.")
        allowed = _WORDS.get(key.rstrip("0123456789."))
        if allowed and not allowed.fullmatch(text):
            raise ConfigurationError(
                f"{source}: {key} is {_shown(text)}, which a shell would take apart: use letters, digits and "
                "./:@#%+=- only."
            )


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a tree with the key that it stands under; keys of a dictionary are none."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _texts(value, f"{key}.{number}")


def _shown(text: str) -> str:
    return one_line(ascii(text), 60)
