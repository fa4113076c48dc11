"""Every record is accounted for by another reader, and what looks like a text taken apart is said or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import DataError
from data_prep.options import PrepareOptions
from data_prep.preparation import prepare
from data_prep.sample import sample_tickets
from tests.data_prep.test_prepare import write

ALL = PrepareOptions(split="1/0/0")


def account_of(path: Path, out: Path, options: PrepareOptions = ALL) -> dict:
    prepare(path, out, options)
    return json.loads((out / "report.json").read_text())["accounts"][str(path)]


def test_pandas_finds_the_same_records(tmp_path):
    account = account_of(write(tmp_path / "t.csv", sample_tickets(200)), tmp_path / "out")
    assert account.pop("reader").startswith("pandas ")
    assert account == {"records": 200, "damaged": 0, "its_records": 200, "same": 200, "only_ours": 0,
                       "lines_of_only_ours": [], "only_its": 0}  # fmt: skip


def test_pyarrow_finds_the_same_lines(tmp_path):
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, sample_tickets(200))))
    account = account_of(tmp_path / "t.jsonl", tmp_path / "out")
    assert account["reader"].startswith("pyarrow ")
    assert (account["records"], account["its_records"], account["same"]) == (200, 200, 200)


def test_damaged_records_are_what_the_other_reader_has_more(tmp_path):
    path = write(tmp_path / "t.csv", sample_tickets(30))
    path.write_text(path.read_text() + "too short\n")
    account = account_of(path, tmp_path / "out")
    assert (account["records"], account["damaged"], account["same"], account["only_its"]) == (30, 1, 30, 1)


def test_a_reader_that_gives_up_is_told(tmp_path):
    path = write(tmp_path / "t.csv", sample_tickets(30))
    path.write_text(path.read_text() + '"cut off')
    account = account_of(path, tmp_path / "out")
    assert (account["records"], account["damaged"]) == (30, 1)
    assert "EOF inside string" in account["gave_up"]


def test_records_that_the_other_reader_has_not_are_said_with_their_lines(tmp_path, monkeypatch):
    path = write(tmp_path / "t.csv", [{"body": f"ticket {number}", "queue": "A"} for number in range(20)])
    monkeypatch.setattr("data_prep.readers.delimited.CsvSource._by_pandas", lambda *_: iter([["A", "ticket 3"]] * 2))
    report = prepare(path, tmp_path / "out", ALL)
    account = report.accounts[str(path)]
    assert (account["same"], account["only_ours"], account["only_its"]) == (1, 19, 1)
    assert account["lines_of_only_ours"][:4] == [2, 3, 4, 6]
    assert "19 of 20 rows are read otherwise by pandas" in report.remarks[0]
    with pytest.raises(DataError, match=r"read otherwise by pandas.*lines 2, 3, 4, 6.*--strict"):
        prepare(path, tmp_path / "strict", PrepareOptions(split="1/0/0", strict=True))


def test_one_label_for_all_is_said(tmp_path):
    report = prepare(write(tmp_path / "t.csv", sample_tickets(40)), tmp_path / "out", ALL)
    assert not report.remarks
    rows = [{**row, "queue": "Mail"} for row in sample_tickets(40)]
    report = prepare(write(tmp_path / "t.csv", rows), tmp_path / "one", ALL)
    assert report.remarks == ["every ticket has the label 'Mail': there is nothing to learn."]


def test_labels_that_stand_once_each_are_said_with_their_lines(tmp_path):
    rows = sample_tickets(300)
    rows += [{**rows[0], "body": f"line {number} of a log", "queue": f"state {number}"} for number in range(15)]
    report = prepare(write(tmp_path / "t.csv", rows), tmp_path / "out", ALL)
    (remark,) = report.remarks
    assert remark.startswith("15 of ")
    assert "'state 0' at " in remark
    assert "t.csv, line " in remark


@pytest.mark.parametrize("value", ['["Billing", "Urgent"]', "['Billing', 'Urgent']"])
def test_rows_with_several_labels_are_asked_about_or_their_first_is_taken(tmp_path, value):
    path = write(tmp_path / "t.csv", [{"body": "one", "queue": value}, {"body": "two", "queue": "['Access']"},
                                      {"body": "three", "queue": "[Other]"}])  # fmt: skip
    with pytest.raises(
        DataError, match=r"line 2: the label column 'queue' holds several labels \(Billing, Urgent\).*first"
    ):
        prepare(path, tmp_path / "out", ALL)
    report = prepare(path, tmp_path / "out", PrepareOptions(split="1/0/0", multi_label="first"))
    assert report.labels == {"Access": 1, "Billing": 1, "[Other]": 1}
    assert report.several_labels == 1


def class_label(names: list[str], *, many: bool = False) -> dict:
    feature = {"names": names, "_type": "ClassLabel"}
    return {"feature": feature, "_type": "Sequence"} if many else feature


@pytest.mark.parametrize("many", [False, True])
def test_classes_of_parquet_have_their_names(tmp_path, many):
    numbers = [[0], [1], [0], []] if many else [0, 1, 0, -1]
    table = pa.table({"text": ["a", "b", "c", "d"], "label": numbers})
    about = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"},
                                   "label": class_label(["Access", "Billing"], many=many)}}}  # fmt: skip
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "t.parquet")
    report = prepare(tmp_path / "t.parquet", tmp_path / "out", PrepareOptions(split="1/0/0", label="label"))
    assert report.labels == {"Access": 2, "Billing": 1}
    assert report.dropped == {"without label": 1}


def test_columns_of_parquet_with_one_name(tmp_path):
    bodies = [pa.array(["a", "", None]), pa.array(["x", "b", "c"])]
    pq.write_table(
        pa.Table.from_arrays([*bodies, pa.array(["Q"] * 3)], ["body", "body", "queue"]), tmp_path / "t.parquet"
    )
    report = prepare(tmp_path / "t.parquet", tmp_path / "out", ALL)
    assert "2 columns are named 'body': of each row the first that is filled is read." in report.remarks[0]
    texts = {json.loads(line)["ticket"] for line in (tmp_path / "out" / "training.jsonl").read_text().splitlines()}
    assert texts == {"a", "b", "c"}


def test_data_sets_that_the_datasets_library_saved(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["Access", "Billing"])}
    )
    parts: dict[Any, datasets.Dataset] = {
        name: datasets.Dataset.from_dict(
            {"text": [f"{name} {number}" for number in range(4)], "label": [0, 1, 1, 1]}, features
        )
        for name in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    report = prepare(tmp_path / "saved", tmp_path / "out", PrepareOptions(split="1/0/0", label="label"))
    assert report.labels == {"Billing": 6, "Access": 2}
    assert report.remarks == [f"{tmp_path / 'saved'}: the splits train, test are taken together."]
