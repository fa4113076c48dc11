"""Trainings of the tiny recipe, run once a session: whole, interrupted and resumed, stopped early."""

from __future__ import annotations

import csv
import json

import pytest

from data_prep.sample import sample_tickets
from tests.training.trainings import Done, Job, train

# Dropout, so that random numbers count; a validation, and with it a checkpoint, after every fifth step.
STEPS, EVERY = 20, 5
SETTINGS = (
    f"trainer.max_steps={STEPS}",
    f"trainer.val_check_interval={EVERY}",
    f"checkpoint.every_n_train_steps={EVERY}",
    "peft.dropout=0.1",
)
EP2 = (
    f"trainer.max_steps={STEPS}",
    "trainer.val_check_interval=9",
    "trainer.devices=2",
    "trainer.strategy.expert_model_parallel_size=2",
)
PP2 = (*EP2[:-1], "trainer.strategy.pipeline_model_parallel_size=2")
# A rate at which the model gets worse after a few steps.
EARLY = ("trainer.max_steps=40", "trainer.val_check_interval=2", "patience=2", "optim.config.lr=1.0")
# The same without an end to it: the best checkpoint is not the last.
WORSE = (*SETTINGS, "patience=0", "optim.config.lr=1.0")
# All tickets of a small file in every step: one after the other in a pack, or each in a row of its own.
FEW = ("data.epochs=4", "data.seq_length=4096")
ROWS = (*FEW, "data.global_batch_size=21", "data.micro_batch_size=7")
PACK = (*FEW, "data.global_batch_size=1", "data.micro_batch_size=1", "data.packed=true")
JOBS = (
    Job("whole", SETTINGS),
    Job("broken", SETTINGS, stop=("kill", 12)),
    Job("broken", SETTINGS, stop=("term", 15)),
    Job("broken", SETTINGS),
    Job("whole-ep2", EP2, ranks=2),
    Job("broken-ep2", EP2, ranks=2, stop=("kill", 11)),
    Job("broken-ep2", EP2, ranks=2),
    Job("packed", SETTINGS, packed=True, stop=("kill", 12)),
    Job("packed", SETTINGS, packed=True),
    Job("packed-ep2", EP2, ranks=2, packed=True),
    Job("packed-pp2", PP2, ranks=2, packed=True),
    Job("few-in-rows", ROWS, source="few.csv"),
    Job("few-in-a-pack", PACK, source="few.csv"),
    Job("early", EARLY),
    Job("early", EARLY),
    Job("worse", WORSE),
    Job("flipped", WORSE, stop=("kill", 12)),
    Job("flipped", WORSE, damage="flip"),
    Job("torn", WORSE, stop=("kill", 12)),
    Job("torn", WORSE, damage="tear"),
    Job("chat", ("trainer.max_steps=2",), source="chats.jsonl", after=("evaluate", "export")),
)


@pytest.fixture(scope="session")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Done]]:
    """What became of `JOBS`, by the run's name, in the order of its starts."""
    folder = tmp_path_factory.mktemp("trainings")
    rows = sample_tickets()[:80]
    for name, count in (("tickets.csv", 80), ("few.csv", 24)):
        with (folder / name).open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows[:count])
    with (folder / "chats.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            turns = ["Hello", "How can I help you?", row["subject"] or f"My number is {number}", f"Ask {row['queue']}."]
            said = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
            file.write(json.dumps({"messages": said}) + "\n")
    done: dict[str, list[Done]] = {}
    for each in train(folder, "tickets.csv", list(JOBS)):
        done.setdefault(each.run.name, []).append(each)
    return done
