"""Tokenizers of Hugging Face folders as transformers 4 and 5 write them, opened by the one that is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NEWER = "TokenizersBackend"
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# where transformers 5 looked, which is no property of a tokenizer
_OF_THE_LOADING = ("backend", "is_local", "local_files_only")


def open_tokenizer(name: str) -> Any:
    """The tokenizer of a folder or Hub id; raises what transformers raises."""
    import transformers
    from transformers.models.auto.tokenization_auto import get_tokenizer_config
    from transformers.utils import logging

    settings = get_tokenizer_config(name)
    if settings.get("tokenizer_class") != _NEWER or hasattr(transformers, _NEWER):
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else it is said that the classes have different names
    try:
        fields = {field: value for field, value in old_settings(settings).items() if field != "tokenizer_class"}
        return transformers.PreTrainedTokenizerFast.from_pretrained(name, trust_remote_code=False, **fields)
    finally:
        logging.set_verbosity(verbosity)


def old_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json in the fields of transformers 4, which 5 reads as well; what is old stays as it is."""
    if settings.get("tokenizer_class") != _NEWER:
        return dict(settings)
    old = {field: value for field, value in settings.items() if field not in _OF_THE_LOADING}
    if isinstance(extra := old.get("extra_special_tokens"), list):  # a dict is of names, in both
        old |= {"extra_special_tokens": {}, "additional_special_tokens": extra}
    return old | {"tokenizer_class": "PreTrainedTokenizerFast"}


def special_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """special_tokens_map.json, which transformers 5 no longer writes, from tokenizer_config.json in the old fields."""
    names = (*(f"{name}_token" for name in _SPECIAL), "additional_special_tokens")
    return {name: settings[name] for name in names if settings.get(name)}
