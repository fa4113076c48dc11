"""How NeMo's fine-tuning dataset must be called so that it reads our rows as they are."""

from __future__ import annotations

from typing import Any

NEMO_DATASET_KWARGS: dict[str, Any] = {
    # nothing between prompt and answer; the default template puts a space there
    "prompt_template": "{input}{output}",
    # rows carry their own control tokens: the end token is part of `output`
    "add_bos": False,
    "add_eos": False,
    "add_sep": False,
    # a row that is too long loses text of the prompt, never of the answer
    "truncation_field": "input",
    "answer_only_loss": True,
}
