"""Checks before a launch that the service named by `logger=` can take a training's figures."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path


def obstacles(kind: str, variables: Collection[str], *, packages: bool = True) -> Iterator[str]:
    """Why figures cannot be sent to `kind`, with what to do.

    Args:
        variables: names of the environment variables that the training will have.
        packages: whether to check for the package: the training runs in this installation.
    """
    if kind == "tensorboard":
        return
    if packages and importlib.util.find_spec(kind) is None:
        yield f"logger={kind} needs the package {kind}: pip install {kind}, or leave it at logger=tensorboard."
    if kind == "wandb" and not {"WANDB_API_KEY", "WANDB_MODE"} & set(variables) and not _logged_in():
        yield (
            "logger=wandb needs WANDB_API_KEY: export it (and name it in the profile's secrets), "
            "or set WANDB_MODE=offline and upload later with wandb sync."
        )


def _logged_in() -> bool:
    return (Path.home() / ".netrc").is_file()  # where `wandb login` puts the key
