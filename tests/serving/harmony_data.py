"""What `route` needs of a prepared folder, in gpt-oss's prompt."""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.harmony import RETURN, renderer, routing_prompt

LABELS = ["Sales", "Billing"]
PROMPT = routing_prompt(renderer(), f"Route the ticket. Answer with its queue, one of: {', '.join(LABELS)}.")


def write_labels(folder: Path) -> Path:
    """The folder, with labels and prompt."""
    folder.mkdir()
    facts = {
        "labels": [{"label": label, "completion": label + RETURN} for label in LABELS],
        "prompt": {"before": PROMPT.before, "after": PROMPT.after, "end": RETURN},
    }
    (folder / "labels.json").write_text(json.dumps(facts))
    return folder
