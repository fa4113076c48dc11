"""What the proofs at real size are run on: a random gpt-oss with its own vocabulary, and real tickets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigurationError


@dataclass(frozen=True)
class Subject:
    """A random checkpoint of `model`, made once in `folder`, and inputs that this repository does not contain.

    Attributes:
        layers: take the first ones only; None for all.
        vocabulary: `o200k_base.tiktoken`, gpt-oss's vocabulary.
        tickets: a CSV of tickets with the columns `subject`, `body` and `queue`.
    """

    model: str
    folder: Path
    vocabulary: Path
    tickets: Path
    layers: int | None = None

    def __post_init__(self) -> None:
        for option, file in (("--vocabulary", self.vocabulary), ("--tickets", self.tickets)):
            if not file.is_file():
                raise ConfigurationError(f"{file} is not here: name it by {option}.")

    def hf(self) -> Path:
        """The checkpoint as Hugging Face publishes it, MXFP4."""
        from benchmarks.random_checkpoint import write_random_checkpoint
        from common import artifacts

        folder = self.folder / "hf"
        if artifacts.read_manifest(folder) is None:
            with artifacts.new_folder(folder) as partial:
                write_random_checkpoint(partial, self.model, self.layers, vocabulary=self.vocabulary)
                artifacts.write_manifest(partial, "random-checkpoint", {"model": self.model})
        return folder

    def nemo(self) -> Path:
        """Its import, experts packed."""
        from converters.import_hf import import_checkpoint

        return import_checkpoint(self.hf(), self.folder / "nemo", experts="mxfp4")

    def ticket_texts(self) -> Iterator[str]:
        """Subject and body of each ticket."""
        import pandas

        table = pandas.read_csv(self.tickets, keep_default_na=False)
        yield from table["subject"] + "\n" + table["body"] + "\n\n"

    def depth(self) -> str:
        """How much of the model that is, as in "2 of 24 layers"."""
        return depth_of(self.model, self.layers)


def depth_of(model: str, layers: int | None) -> str:
    """Layers of a published model that are taken."""
    from modeling.hf_config import published_config

    count = published_config(model)["num_hidden_layers"]
    return f"all {count} layers" if layers in (None, count) else f"{layers} of {count} layers"
