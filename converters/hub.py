"""Models on the Hugging Face Hub: fetch what a conversion needs, publish what it made."""

from __future__ import annotations

import re
from pathlib import Path

from converters.folders import GENERATION, LICENSES, TOKENIZER_FILES
from errors import CheckpointError

# The repositories of gpt-oss hold the weights three times (41 GB of the 20b); patterns without a slash would match
# those in original/ and metal/ too.
FILES = ("config.json", GENERATION, *LICENSES, *TOKENIZER_FILES, "model.safetensors.index.json", "model*.safetensors")
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
        return Path(snapshot_download(model, allow_patterns=list(FILES), ignore_patterns=["*/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, RequestException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model} is no folder here, and the Hub did not give it ({reason}): check the name, HF_TOKEN for a "
            "private model, and the network; the download goes on where it stopped."
        ) from None


def publish(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload a folder as ORG/NAME and return its address; the repository is private unless `public` is set.

    Raises:
        CheckpointError: the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from requests.exceptions import RequestException

    if not _ID.fullmatch(name):
        raise CheckpointError(f"{name!r} is no Hub id: write ORG/NAME.")
    api = HfApi()
    try:
        url = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=["manifest.json"])
    except (HfHubHTTPError, RequestException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{folder} could not be published as {name} ({reason}): check HF_TOKEN.") from None
    return str(url)
