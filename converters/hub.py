"""Models on the Hugging Face Hub: fetch what a conversion needs, publish what it made."""

from __future__ import annotations

import re
import time
from pathlib import Path

from common.artifacts import MANIFEST, read_manifest
from common.errors import CheckpointError
from common.values import one_line
from converters.output_folder import GENERATION, LICENSES, TOKENIZER_FILES

# The repositories of gpt-oss hold the weights three times (41 GB of the 20b); patterns without a slash would match
# those in original/ and metal/ too.
FILES = ("config.json", GENERATION, *LICENSES, *TOKENIZER_FILES, "model.safetensors.index.json", "model*.safetensors")
# Broken connections that one download takes up again.
_CUTS = 20
_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def find(model: str | Path) -> Path:
    """The folder of a model: `model` itself, or the Hub's files in the local cache, fetched where they are missing.

    An interrupted download goes on where it stopped. HF_TOKEN, HF_HOME and HF_ENDPOINT are read from the environment.

    Raises:
        CheckpointError: it is neither a folder nor a Hub id, or the Hub does not give it.
    """
    if Path(model).exists():
        return Path(model)
    if not _ID.fullmatch(str(model)):
        raise CheckpointError(f"{model} is no folder: name one with config.json and *.safetensors, or a Hub id.")
    return _download(str(model))


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from requests.exceptions import RequestException

    try:
        for _ in range(_CUTS):
            try:
                return Path(snapshot_download(model, allow_patterns=list(FILES), ignore_patterns=["*/*"]))
            except OSError as error:
                if not _was_cut(error):
                    raise
                time.sleep(1)
        raise CheckpointError(f"the connection broke {_CUTS} times while {model} came: the same command goes on.")
    except (HfHubHTTPError, LocalEntryNotFoundError, RequestException, OSError) as error:
        raise CheckpointError(
            f"{model} is no folder here, and the Hub did not give it ({one_line(error)}): check the name, HF_TOKEN for "
            "a private model, and the network; the download goes on where it stopped."
        ) from None


def _was_cut(error: OSError) -> bool:
    """Whether a connection broke in the middle, which huggingface_hub 0.36 does not take up again by itself.

    urllib3 1.26 takes the end of a connection for the end of the file, and huggingface_hub then finds it too short.
    """
    from requests.exceptions import ChunkedEncodingError

    return isinstance(error, ChunkedEncodingError) or "Consistency check failed" in str(error)


def create(name: str, *, public: bool = False) -> str:
    """Make the repository ORG/NAME where there is none, and return its address; it is private unless `public` is set.

    Raises:
        CheckpointError: `name` is no Hub id, or the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from requests.exceptions import RequestException

    if not _ID.fullmatch(name):
        raise CheckpointError(f"{name!r} is no Hub id: write ORG/NAME.")
    try:
        return str(HfApi().create_repo(name, private=not public, exist_ok=True))
    except (HfHubHTTPError, RequestException, OSError) as error:
        raise CheckpointError(f"the Hub did not make {name} ({one_line(error)}): check HF_TOKEN.") from None


def upload(folder: Path, name: str) -> None:
    """Upload what a conversion wrote to the repository ORG/NAME: no file that its manifest does not name, nor that one.

    Raises:
        CheckpointError: no conversion wrote the folder, the Hub refuses, or the connection breaks.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from requests.exceptions import RequestException

    manifest = read_manifest(folder)
    if manifest is None:
        raise CheckpointError(f"{folder} holds no {MANIFEST} of a conversion: export it again.")
    try:
        HfApi().upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(manifest.files))
    except (HfHubHTTPError, RequestException, OSError) as error:
        raise CheckpointError(
            f"{folder} could not be uploaded as {name} ({one_line(error)}): the same command tries again."
        ) from None
