"""The README's table of what was verified, from the cards beside this file: `python verification/table.py`.

A card (`MODEL.yaml`) says for each item what was expected and found, by which command, on which hardware and when; an
item that nobody has run is `unverified`. `python verification/table.py --write` puts the table into README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.md"
START, END = "<!-- verification/table.py -->\n", "<!-- end -->\n"
FIELDS = {
    "verified": {"item", "status", "expected", "found", "command", "hardware", "date"},
    "unverified": {"item", "status"},
}


def cards() -> dict[str, list[dict[str, Any]]]:
    """Items by model.

    Raises:
        ValueError: an item lacks a field, or has one that its status does not know.
    """
    items_of = {}
    for file in sorted(FOLDER.glob("*.yaml"), reverse=True):  # the smallest model first
        card = yaml.safe_load(file.read_text())
        for item in card["items"]:
            fields = set(item) - {"why"}
            if fields != FIELDS.get(item.get("status", "")):
                raise ValueError(f"{file.name}: {item.get('item')} has the fields {sorted(item)}")
        items_of[card["model"]] = card["items"]
    return items_of


def table() -> str:
    """One row an item, one column a model: what was found, or that nobody has run it."""
    models = cards()
    names = list(dict.fromkeys(item["item"] for items in models.values() for item in items))
    lines = [f"| | {' | '.join(models)} |", f"| --- |{' --- |' * len(models)}"]
    for name in names:
        cells = []
        for items in models.values():
            item = next((item for item in items if item["item"] == name), {"status": ""})
            cells.append(item["found"] if item["status"] == "verified" else item["status"] or "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def placed(readme: str) -> str:
    """README.md with the table of today between its marks."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + START + table() + END + after


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        README.write_text(placed(README.read_text()))
    else:
        print(table(), end="")
