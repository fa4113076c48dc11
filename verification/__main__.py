"""Verify an item on a model, and write its card: value, command, hardware, versions, day.

python -m verification                          # what there is, and what was found
python -m verification logits gpt-oss-20b       # one item; at real size it takes minutes to hours and 70 GB of disk
python -m verification --all tiny               # every item of a model
python -m verification --table                  # put the table of the cards into README.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from verification.cards import README, Card, placed, table, write_card
from verification.items import HARDWARE, ITEMS, MODELS, Inputs, Item

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m verification", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("item", nargs="?", choices=[item.name for item in ITEMS], metavar="ITEM")
    parser.add_argument("model", nargs="?", choices=MODELS, metavar="MODEL")
    parser.add_argument("--all", choices=MODELS, metavar="MODEL", help="every item of this model")
    parser.add_argument("--table", action="store_true", help="put the table of the cards into README.md")
    parser.add_argument("--folder", type=Path, help="where to work; kept, so that items share checkpoints")
    parser.add_argument("--vocabulary", type=Path, default=SHARED / "tokenizer" / "o200k_base.tiktoken")
    parser.add_argument(
        "--tickets", type=Path, default=SHARED / "tickets" / "aa_dataset-tickets-multi-lang-5-2-50-version.csv"
    )
    given = parser.parse_args()
    if given.table:
        README.write_text(placed(README.read_text(), the_table()))
        return
    model = given.all or given.model
    wanted = [item for item in ITEMS if model in item.on and (given.all or item.name == given.item)]
    if not wanted:
        print(the_table(), end="")
        sys.exit(f"{given.item} says nothing about {model}." if given.item else 0)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        inputs = Inputs((given.folder or Path(folder)).absolute(), given.vocabulary, given.tickets)
        inputs.folder.mkdir(parents=True, exist_ok=True)
        failed = [item.name for item in wanted if not verify(item, model, inputs)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def verify(item: Item, model: str, inputs: Inputs) -> bool:
    """Run one check, print what it found, and write the card; False where it failed, and the card stays as it was."""
    check = item.on[model]
    if check is None:
        print(f"{item.title}: not here")
        return True
    started = time.perf_counter()
    try:
        found = check.run(inputs)
    except Exception as error:
        print(f"{item.title}: {error}", file=sys.stderr)
        return False
    command = check.command or f"python -m verification {item.name} {model}"
    write_card(model, Card.of_today(item.title, item.expected, found, command, time.perf_counter() - started))
    print(f"{item.title}: {found}")
    return True


def the_table() -> str:
    """The table of all items and models, by the hardware that they run on."""
    groups = {
        hardware: {item.title: frozenset(item.on) for item in ITEMS if item.hardware == hardware}
        for hardware in HARDWARE
    }
    return table(groups, MODELS)


if __name__ == "__main__":
    main()
