"""Cards of what was verified on a model, written by `python -m verification`; the README's table is made from them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent / "cards"
README = FOLDER.parents[1] / "README.md"
START, END = "<!-- python -m verification --table -->\n", "<!-- end -->\n"
PACKAGES = ("torch", "nemo_toolkit", "megatron-core", "transformers", "peft")


@dataclass(frozen=True)
class Card:
    """What one item of the catalogue gave on one model.

    Attributes:
        found: the value as the table shows it.
        seconds: that it took; 0 on cards of before, which were kept by hand.
        hardware, versions, date: where, with what, when.
    """

    item: str
    expected: str
    found: str
    command: str
    seconds: int
    hardware: str
    versions: str
    date: str

    @classmethod
    def of_today(cls, item: str, expected: str, found: str, command: str, seconds: float) -> Card:
        """A card of this machine."""
        versions = [f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in PACKAGES)]
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        return cls(item, expected, found, command, round(seconds), _hardware(), ", ".join(versions), today)


def _hardware() -> str:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} CPU cores, {memory:.0f} GiB"


def read_cards(model: str) -> dict[str, Card]:
    """Cards of a model by item."""
    file = FOLDER / f"{model}.yaml"
    cards = [Card(**fields) for fields in yaml.safe_load(file.read_text()) or []] if file.is_file() else []
    return {card.item: card for card in cards}


def write_card(model: str, card: Card) -> None:
    """Put a card among the model's, in the place of an older one."""
    cards = read_cards(model) | {card.item: card}
    FOLDER.mkdir(exist_ok=True)
    text = yaml.safe_dump([asdict(card) for card in cards.values()], sort_keys=False, allow_unicode=True, width=120)
    (FOLDER / f"{model}.yaml").write_text("# Written by `python -m verification`.\n" + text)


def table(groups: dict[str, dict[str, frozenset[str]]], models: tuple[str, ...]) -> str:
    """One row an item, one column a model: what was found, that nobody has run it, or – where it says nothing.

    Args:
        groups: by the hardware that they run on, the models that each item is about.
    """
    return "\n".join(_lines(groups, models)) + "\n"


def _lines(groups: dict[str, dict[str, frozenset[str]]], models: tuple[str, ...]) -> Iterator[str]:
    cards = {model: read_cards(model) for model in models}
    yield f"| | {' | '.join(models)} |"
    yield f"| --- |{' --- |' * len(models)}"
    for hardware, items in groups.items():
        yield f"| **{hardware}** |{' |' * len(models)}"
        for item, on in items.items():
            cells = (cards[m][item].found if item in cards[m] else "unverified" if m in on else "–" for m in models)
            yield f"| {item} | {' | '.join(cells)} |"


def placed(readme: str, made: str) -> str:
    """README.md with the table `made` between its marks."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + START + made + END + after
