"""Sample tickets in five languages with the columns and the quirks of the Kaggle files, generated from a seed."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import yaml

SHARES = {
    "Technical Support": 24,
    "Product Support": 15,
    "Customer Service": 13,
    "IT Support": 11,
    "Billing and Payments": 10,
    "Returns and Exchanges": 8,
    "Service Outages and Maintenance": 6,
    "Sales and Pre-Sales": 5,
    "Human Resources": 4,
    "General Inquiry": 4,
}
COLUMNS = ("subject", "body", "answer", "type", "queue", "priority", "language", *(f"tag_{i}" for i in range(1, 9)))
LANGUAGES = {"en": 40, "de": 30, "es": 10, "fr": 10, "pt": 10}
PRODUCTS = ("CloudDesk", "Notewell", "PixelPad 3", "RouterOne", "LedgerBox", "StreamCam", "DataHive", "SmartHub")
DAYS = ("1 March", "12.04.", "03/05", "2024-06-17", "9.7.", "21/08", "30 September", "5.11.")
NAMES = ("Alma", "Bruno", "Chiara", "Davi", "Elif", "Fatou", "Goran", "Hanna", "Ines", "Jakub", "Keiko", "Luca")
CONTEXT, NO_SUBJECT, LITERAL_BREAKS, WRONG_LABEL = 0.6, 0.07, 0.3, 0.01
DUPLICATES, ALTERED = 0.03, 0.5  # rows that repeat another one, and how many of them with a word more


def sample_tickets(count: int = 2000, seed: int = 0) -> list[dict[str, str]]:
    """`count` rows: some without subject, with a literal \\n, twice in the table, or in the wrong queue."""
    draw = random.Random(seed)
    rows = [_ticket(draw) for _ in range(round(count * (1 - DUPLICATES)))]
    rows += [_again(draw.choice(rows), draw) for _ in range(count - len(rows))]
    draw.shuffle(rows)
    return rows


def _again(row: dict[str, str], draw: random.Random) -> dict[str, str]:
    """A second copy of a ticket, unchanged or with a word added."""
    return row | {"body": f"{row['body']} (#{draw.randint(2, 99)})"} if draw.random() < ALTERED else dict(row)


@cache
def _sentences() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "sample_texts.yaml").read_text(encoding="utf-8"))


def _ticket(draw: random.Random) -> dict[str, str]:
    (language,) = draw.choices(list(LANGUAGES), list(LANGUAGES.values()))
    (queue,) = draw.choices(list(SHARES), list(SHARES.values()))
    texts = _sentences()[language]
    subjects, problems = texts["queues"][queue]
    subject = _fill(draw.choice(subjects), draw)
    sentences = draw.sample(problems, draw.choice((2, 2, 3)))
    if draw.random() < CONTEXT:
        sentences.insert(draw.randint(0, len(sentences)), draw.choice(texts["context"]))
    middle = " ".join(_fill(sentence, draw) for sentence in sentences)
    body = "\n\n".join((draw.choice(texts["greet"]), middle, draw.choice(texts["close"])))
    if draw.random() < LITERAL_BREAKS:
        body = body.replace("\n", "\\n")
    if draw.random() < WRONG_LABEL:
        queue = draw.choice([other for other in SHARES if other != queue])
    return {
        "subject": "" if draw.random() < NO_SUBJECT else subject,
        "body": body,
        "answer": f"{queue}: <name>",
        "type": draw.choice(("Incident", "Request", "Problem", "Change")),
        "queue": queue,
        "priority": draw.choice(("low", "medium", "high")),
        "language": language,
        **{f"tag_{i}": draw.choice(("Account", "Network", "Bug", "Refund", "Feedback", "")) for i in range(1, 9)},
    }


def _fill(text: str, draw: random.Random) -> str:
    slots = {"{p}": PRODUCTS, "{n}": (str(draw.randint(2, 99999)),), "{d}": DAYS, "{w}": NAMES}
    for slot, values in slots.items():
        text = text.replace(slot, draw.choice(values))
    return text
