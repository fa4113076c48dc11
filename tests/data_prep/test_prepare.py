"""prepare() as a whole: what the two real files become, and what the same, shuffled and longer files become."""

import csv
import json
import random
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest

from common.errors import ConfigurationError, DataError, NemoRunError
from data_prep.options import PrepareOptions
from data_prep.preparation import prepare
from data_prep.prepare_report import PrepareReport
from data_prep.sample import COLUMNS, sample_tickets
from tests.real_tickets import GERMAN, MAIN, real_tickets

SPLITS = ("training", "validation", "test")


def rows_of(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def all_rows(folder: Path) -> list[tuple[str, dict]]:
    return [(split, row) for split in SPLITS for row in rows_of(folder, split)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


def write(file: Path, rows: list[dict[str, str]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return file


def places(folder: Path) -> dict[str, str]:
    """Which split each ticket's text stands in."""
    return {row["ticket"]: split for split, row in all_rows(folder)}


def accounts_for_every_row(report: PrepareReport, folder: Path, rows: int) -> None:
    written = {split: len(rows_of(folder, split)) for split in SPLITS}
    assert report.splits == written
    assert report.rows == rows == sum(written.values()) - report.repeated + sum(report.dropped.values())
    assert sum(report.labels.values()) == sum(written.values())


def words(text: str) -> frozenset[tuple[str, ...]]:
    found = re.findall(r"[^\W_]+", text.casefold())
    return frozenset(zip(found, found[1:], found[2:], strict=False)) or frozenset([tuple(found)])


def nearest_across_splits(rows: list[tuple[str, dict]]) -> float:
    """The largest Jaccard similarity of three-word shingles of two tickets in different splits.

    Another method than data_prep's MinHash: an inverted index over all shingles but those in more than 200 tickets,
    then exact sets. Pairs that share no rarer shingle are far below any threshold.
    """
    shingles = [words(row["ticket"]) for _, row in rows]
    where: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, found in enumerate(shingles):
        for shingle in found:
            where[shingle].append(index)
    pairs = {
        pair
        for members in where.values()
        if len(members) <= 200
        for pair in combinations(members, 2)
        if rows[pair[0]][0] != rows[pair[1]][0]
    }
    return max((len(shingles[a] & shingles[b]) / len(shingles[a] | shingles[b]) for a, b in pairs), default=0.0)


@pytest.mark.parametrize(("file", "count"), [(MAIN, 1872), (GERMAN, 2124)])
def test_real_file_with_no_option(tmp_path, file, count):
    report = prepare(real_tickets(file), tmp_path / "out")
    accounts_for_every_row(report, tmp_path / "out", count)
    rows = all_rows(tmp_path / "out")
    source = table(real_tickets(file))
    assert len(source) == count
    assert Counter(row["label"] for _, row in rows) == Counter(row["queue"] for row in source)
    assert sum(not row["subject"] for row in source) == report.without_subject
    assert nearest_across_splits(rows) < 0.8
    by_label = defaultdict(Counter)
    for split, row in rows:
        by_label[row["label"]][split] += 1
    assert sum(sum(counts.values()) >= 50 for counts in by_label.values()) >= 8
    for label, counts in by_label.items():
        total = sum(counts.values())
        for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
            if total >= 50:
                assert abs(counts[split] - share * total) <= max(1, total / 100), label


@pytest.mark.parametrize("file", [MAIN, GERMAN])
def test_no_answer_and_no_written_break_in_any_prompt(tmp_path, file):
    prepare(real_tickets(file), tmp_path / "out")
    rows = all_rows(tmp_path / "out")
    assert not any("\\n" in row["input"] for _, row in rows)
    answers = {row["answer"][:60] for row in table(real_tickets(file)) if len(row.get("answer") or "") > 60}
    assert not any(answer in row["input"] for _, row in rows[::10] for answer in answers)


@pytest.fixture(scope="module", params=["sample", "real"])
def tickets(request, tmp_path_factory) -> Path:
    """The sample, and the real file where there is one; with near copies, and copies of another queue."""
    folder = tmp_path_factory.mktemp("tickets")
    rows = sample_tickets() if request.param == "sample" else table(real_tickets(MAIN))
    draw = random.Random(3)
    for row in draw.sample(rows, 80):
        rows.append(row | {"body": row["body"] + " Thanks!"})
    for row in draw.sample(rows, 30):
        rows.append(row | {"queue": "General Inquiry"})
    return write(folder / "tickets.csv", rows)


def test_duplicates_stay_together_and_are_counted(tmp_path, tickets):
    report = prepare(tickets, tmp_path / "out")
    accounts_for_every_row(report, tmp_path / "out", len(table(tickets)))
    assert report.duplicates["exact_copies"] >= 20
    assert report.duplicates["near_duplicate_groups"] >= 30
    assert report.duplicates["groups_with_conflicting_labels"] >= 5
    assert len(report.conflicts) == min(20, report.duplicates["groups_with_conflicting_labels"])
    assert nearest_across_splits(all_rows(tmp_path / "out")) < 0.8
    by_group = defaultdict(set)
    with (tmp_path / "out" / "splits.csv").open() as lines:
        for row in csv.DictReader(lines):
            by_group[row["group"]].add(row["split"])
    assert all(len(found) == 1 for found in by_group.values())


def test_twice_is_byte_identical_and_the_second_time_is_current(tmp_path, tickets):
    assert not prepare(tickets, tmp_path / "a").current
    before = content(tmp_path / "a")
    assert prepare(tickets, tmp_path / "a").current
    prepare(tickets, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b") == before
    assert "manifest.json" in before


def test_shuffled_rows_change_nothing(tmp_path, tickets):
    rows = table(tickets)
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "t.csv", random.Random(seed).sample(rows, len(rows)))
        prepare(tmp_path / name / "t.csv", tmp_path / name / "out")
    one, two = content(tmp_path / "one" / "out"), content(tmp_path / "two" / "out")
    for name in one.keys() - {"manifest.json"}:  # which has the hash of the source
        assert one[name] == two[name].replace(b"/two/", b"/one/"), name


@pytest.mark.slow
def test_one_row_more_moves_at_most_one_ticket_over_each_border_of_its_stratum(tmp_path, tickets):
    rows = table(tickets)
    prepare(tickets, tmp_path / "before")
    before = places(tmp_path / "before")
    labels = {row["ticket"]: (row["label"], row["language"]) for _, row in all_rows(tmp_path / "before")}
    moved = Counter()
    for number in range(6):
        label, language = rows[number * 7]["queue"], rows[number * 7]["language"]
        new = rows[0] | {"subject": "", "body": f"Row {number} is new " * 3, "queue": label, "language": language}
        write(tmp_path / "t.csv", [*rows, new])
        prepare(tmp_path / "t.csv", tmp_path / f"after{number}")
        after = places(tmp_path / f"after{number}")
        crossed = [(before[text], after[text], labels[text]) for text in before if before[text] != after[text]]
        assert {stratum for *_, stratum in crossed} <= {(label, language)}
        assert all("training" in (a, b) for a, b, _ in crossed)
        for border in ("validation", "test"):
            assert sum(border in (a, b) for a, b, _ in crossed) <= 1
        moved[len(crossed)] += 1
        held = PrepareOptions(frozen=str(tmp_path / "before"))
        prepare(tmp_path / "t.csv", tmp_path / f"frozen{number}", held)
        frozen = places(tmp_path / f"frozen{number}")
        assert {text: frozen[text] for text in before} == before
        assert len(frozen) == len(before) + 1
    assert moved[1] + moved[2] > 0


def test_a_new_copy_of_a_frozen_ticket_joins_its_split(tmp_path, tickets):
    rows = table(tickets)
    prepare(tickets, tmp_path / "before")
    in_test = {row["ticket"] for row in rows_of(tmp_path / "before", "test")}
    texts = {f"{row['subject']}\n{row['body']}": row for row in rows}
    new = [row | {"body": row["body"] + " Bye bye!"} for text, row in texts.items() if text in in_test][:20]
    assert len(new) >= 5
    write(tmp_path / "t.csv", [*rows, *new])
    prepare(tmp_path / "t.csv", tmp_path / "after", PrepareOptions(frozen=str(tmp_path / "before")))
    after = places(tmp_path / "after")
    assert {after[f"{row['subject']}\n{row['body']}"] for row in new} == {"test"}


def test_duplicates_across_files_stay_together(tmp_path):
    rows = sample_tickets(600)
    write(tmp_path / "a.csv", rows[:400])
    write(tmp_path / "b.csv", [row | {"body": row["body"] + " (again)"} for row in rows[:300]])
    report = prepare([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "out")
    accounts_for_every_row(report, tmp_path / "out", 700)
    assert report.duplicates["near_duplicate_groups"] > 200
    assert nearest_across_splits(all_rows(tmp_path / "out")) < 0.8
    alone = prepare(tmp_path, tmp_path / "folder")  # a folder of files is its files
    assert alone.splits == report.splits
    assert places(tmp_path / "folder") == places(tmp_path / "out")


def test_any_column_is_a_label(tmp_path, tickets):
    prepare(tickets, tmp_path / "out", PrepareOptions(label="priority"))
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert [item["label"] for item in labels["labels"]] == ["high", "low", "medium"]
    assert labels["column"] == "priority"
    row = rows_of(tmp_path / "out", "test")[0]
    assert "Answer with its priority, one of: high, low, medium." in row["input"]
    assert row["output"] == row["label"] + "<|return|>"


def tiny(counts: dict[str, int]) -> list[dict[str, str]]:
    draw = random.Random(0)
    return [
        {"body": " ".join(f"w{draw.randrange(10_000)}" for _ in range(12)), "queue": queue, "language": "en"}
        for queue, count in counts.items()
        for _ in range(count)
    ]


def test_rare_labels(tmp_path):
    write(tmp_path / "t.csv", tiny({"A": 100, "B": 40, "C": 3, "D": 2}))
    dropped = prepare(tmp_path / "t.csv", tmp_path / "dropped", PrepareOptions(min_count=10))
    accounts_for_every_row(dropped, tmp_path / "dropped", 145)
    assert dropped.dropped == {"labels with too few tickets": 5}
    merged = prepare(tmp_path / "t.csv", tmp_path / "merged", PrepareOptions(min_count=10, rest="Other"))
    accounts_for_every_row(merged, tmp_path / "merged", 145)
    assert merged.labels == {"A": 100, "B": 40, "Other": 5}
    assert merged.merged_labels == {"C": 3, "D": 2}


def test_class_balance_changes_training_only(tmp_path):
    write(tmp_path / "t.csv", tiny({"A": 200, "B": 50, "C": 20}))
    folders = {}
    for balance in ("none", "cap", "oversample"):
        report = prepare(tmp_path / "t.csv", tmp_path / balance, PrepareOptions(balance=balance))  # type: ignore[arg-type]
        accounts_for_every_row(report, tmp_path / balance, 270)
        folders[balance] = Counter(row["label"] for row in rows_of(tmp_path / balance, "training"))
    assert folders["none"] == {"A": 160, "B": 40, "C": 16}
    assert folders["cap"] == {"A": 72, "B": 40, "C": 16}
    assert folders["oversample"] == {"A": 160, "B": 160, "C": 160}
    for split in ("validation", "test"):
        assert len({(tmp_path / balance / f"{split}.jsonl").read_bytes() for balance in folders}) == 1


def test_every_rule_can_be_skipped_and_is_counted(tmp_path):
    rows = tiny({"Tech Support": 60, "Sales": 40})
    rows[0] |= {"queue": "tech-support", "body": "One <b>two</b>\\nThree  four\x07 fu\u0308nf"}
    rows[1] |= {"language": "EN-gb"}
    rows.append({"body": " ", "queue": "Sales", "language": "en"})
    write(tmp_path / "t.csv", rows)
    rules = ("html", "written-breaks", "control-characters", "nfc", "whitespace", "label-spelling", "language-codes")
    report = prepare(tmp_path / "t.csv", tmp_path / "clean")
    assert report.cleaned == dict.fromkeys(rules, 1) | {"whitespace": 2}
    assert report.dropped == {"without text": 1}
    texts = set(places(tmp_path / "clean"))
    assert "One two\nThree four f\xfcnf" in texts
    assert report.languages == {"en": 100}
    skipped = prepare(tmp_path / "t.csv", tmp_path / "raw", PrepareOptions(skip=(*rules, "empty-rows")))
    accounts_for_every_row(skipped, tmp_path / "raw", 101)
    assert skipped.cleaned == {}
    assert skipped.dropped == {}
    assert set(skipped.labels) == {"Tech Support", "Sales", "tech-support"}
    assert set(skipped.languages) == {"en", "EN-gb"}
    assert "One <b>two</b>\\nThree  four\x07 fu\u0308nf" in set(places(tmp_path / "raw"))


def test_a_truncated_file_tells_its_line_and_strict_refuses_it(tmp_path):
    write(tmp_path / "t.csv", sample_tickets(100))
    text = (tmp_path / "t.csv").read_text()
    cut = text[: text.rindex('"')]
    (tmp_path / "t.csv").write_text(cut)
    report = prepare(tmp_path / "t.csv", tmp_path / "out")
    accounts_for_every_row(report, tmp_path / "out", 100)
    assert report.dropped["damaged"] == 1
    assert re.search(r"t\.csv, lines? \d+.*: unexpected end of data", report.damaged[0])
    with pytest.raises(DataError, match=r"t\.csv, lines? \d+.*unexpected end of data: mend it"):
        prepare(tmp_path / "t.csv", tmp_path / "strict", PrepareOptions(strict=True))
    assert not (tmp_path / "strict").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_an_earlier_folder_stays_when_the_next_preparation_fails(tmp_path):
    write(tmp_path / "t.csv", sample_tickets(100))
    prepare(tmp_path / "t.csv", tmp_path / "out")
    before = content(tmp_path / "out")
    (tmp_path / "t.csv").write_text("body,queue\n")
    with pytest.raises(DataError, match="no tickets"):
        prepare(tmp_path / "t.csv", tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_a_folder_of_somebody_else_is_not_overwritten(tmp_path):
    write(tmp_path / "t.csv", sample_tickets(100))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(NemoRunError, match="was not written by nemo-run"):
        prepare(tmp_path / "t.csv", tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_conversations_in_the_form_of_multilingual_thinking(tmp_path):
    lines = [
        {
            "reasoning_language": "German",
            "developer": "x",
            "user": f"Frage {i}?",
            "analysis": "a",
            "final": "b",
            "messages": [
                {"role": "system", "content": "reasoning language: German", "thinking": None},
                {"role": "user", "content": f"Frage {i}?", "thinking": None},
                {"role": "assistant", "content": f"def f():\n    return {i}\\n", "thinking": f"Denke  <b>{i}</b>"},
            ],
        }
        for i in range(50)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = prepare(tmp_path / "t.jsonl", tmp_path / "out")
    accounts_for_every_row(report, tmp_path / "out", 50)
    row = next(row for _, row in all_rows(tmp_path / "out") if row["ticket"] == "Frage 7?")
    assert row["input"].endswith("<|start|>user<|message|>Frage 7?<|end|><|start|>assistant")
    assert "<|start|>developer<|message|># Instructions\n\nreasoning language: German" in row["input"]
    assert row["output"] == (
        "<|channel|>analysis<|message|>Denke  <b>7</b><|end|>"
        "<|start|>assistant<|channel|>final<|message|>def f():\n    return 7\\n<|return|>"
    )
    assert row["language"] == "german"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "0.5/0.1/0.1"}, "sum to 1"),
        ({"split": "a/b/c"}, "sum to 1"),
        ({"split": "nan/0.1/0.1"}, "sum to 1"),
        ({"min_count": 0}, "min_count is 0"),
        ({"max_length": 0, "tokenizer": "x"}, "max_length is 0"),
        ({"min_count": 1000}, "no label has 1000 tickets"),
        ({"balance": "best"}, "balance is 'best': choose none or cap or oversample"),
        ({"rest": "Other"}, "give min_count as well"),
        ({"max_length": 100}, "name a tokenizer"),
        ({"near_duplicates": 0.2}, "choose from 0.7 to 1"),
        ({"skip": ("hmtl",)}, "no cleaning rule 'hmtl'"),
        ({"frozen": "nowhere"}, r"nowhere holds no splits\.csv"),
        ({"tokenizer": "/nowhere"}, "/nowhere has no tokenizer"),
        ({"label": "kind"}, "no column 'kind' for the label.*--label"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, message):
    write(tmp_path / "t.csv", [{**dict.fromkeys(COLUMNS, "x"), **row} for row in sample_tickets(50)])
    with pytest.raises((ConfigurationError, DataError), match=message):
        prepare(tmp_path / "t.csv", tmp_path / "out", PrepareOptions(**options))
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
