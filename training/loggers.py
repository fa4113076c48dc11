"""Where the figures of a training go besides history.jsonl: TensorBoard's files always, and one service when asked."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from common import artifacts
from common.errors import ConfigurationError
from recipes.schema.logger_checks import obstacles

PROJECT = "gpt-oss"


def loggers_of(kind: str, out: Path, title: str, step: int) -> list[Logger]:
    """The loggers of rank 0 for a training in `out`; an interrupted training's figures go on where they were.

    Args:
        title: of the run, as services show it.
        step: the last one that counts: what was logged after it is trained again.
    Raises:
        ConfigurationError: a package or a key is missing.
    """
    for sentence in obstacles(kind, os.environ):
        raise ConfigurationError(sentence)
    board = TensorBoardLogger(out, name="tensorboard", version="", purge_step=step + 1, flush_secs=10)
    return [board] if kind == "tensorboard" else [board, _service(kind, out, title)]


def _service(kind: str, out: Path, title: str) -> Logger:
    id_file = out / "tracking" / f"{kind}.id"  # in a folder: NeMo moves the files of an interrupted run away
    id = id_file.read_text() if id_file.is_file() else None
    id_file.parent.mkdir(parents=True, exist_ok=True)
    logger: Any
    if kind == "wandb":
        id = id or secrets.token_hex(4)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        logger = WandbLogger(title, save_dir=out / "tracking", project=project, id=id, resume="allow")
    elif kind == "mlflow":
        # a database in a file: MLflow 3 refuses folders
        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'tracking' / 'mlflow.db').resolve()}"
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        logger = MLFlowLogger(experiment, title, address, run_id=id)
        id = str(logger.run_id)
    else:
        logger = TrackioLogger(os.environ.get("TRACKIO_PROJECT", PROJECT), title)
        id = title
    artifacts.write_text(id_file, id)
    return logger


class TrackioLogger(Logger):
    """trackio under Lightning's interface: a local dashboard (`trackio show`), on a Space where TRACKIO_SPACE_ID is."""

    def __init__(self, project: str, run: str) -> None:
        super().__init__()
        try:
            import trackio  # pyright: ignore[reportMissingImports]
        except ImportError as error:  # trackio 0.20 asks for a newer huggingface_hub than transformers 4.57 takes
            raise ConfigurationError(
                f"logger=trackio: trackio cannot be imported here ({error}): install another version of it, "
                "or leave it at logger=tensorboard."
            ) from None
        self._trackio, self._project, self._run = trackio, project, run
        trackio.init(project=project, name=run, resume="allow")

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._run

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._trackio.log(metrics, step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._trackio.log(dict(params))

    def finalize(self, status: str) -> None:
        self._trackio.finish()
