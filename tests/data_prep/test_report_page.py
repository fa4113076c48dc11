import json
import re
from pathlib import Path

import pytest

from data_prep.options import PrepareOptions
from data_prep.preparation import prepare
from tests.browser import look, needs_browser

ATTACK = "<img src=x onerror=alert(1)></pre><script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_folder) -> Path:
    folder = tmp_path_factory.mktemp("report")
    rows = [{"subject": "", "body": f"{ATTACK}   number {i} " * 2, "queue": f"Q{i % 3} & <b>", "language": "en"}
            for i in range(90)]  # fmt: skip
    rows += [rows[0] | {"queue": "Q1 & <b>"}] * 3
    lines = [json.dumps(row) for row in rows]
    (folder / "t.jsonl").write_text("\n".join([*lines, "broken"]))
    options = PrepareOptions(tokenizer=str(tokenizer_folder), pack=2048, skip=("html",))
    prepare(folder / "t.jsonl", folder / "out", options)
    return folder / "out"


def test_the_page_needs_nothing_else_and_runs_nothing(folder):
    page = (folder / "report.html").read_text()
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(", page)
    assert "&lt;script&gt;alert(1)" in page
    assert "Q1 &amp; &lt;b&gt;" in page


def test_the_page_shows_what_the_report_counts(folder):
    page = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text()))
    report = json.loads((folder / "report.json").read_text())
    assert report["rows"] == 94
    for split, count in report["splits"].items():
        assert f"{split} {count}" in page
    for reason, count in report["dropped"].items():
        assert f"{reason} {count}" in page
    assert "3 exact copies were dropped" in page
    assert "1 groups had conflicting labels" in page
    assert "line 94: not JSON" in page
    assert "2,048" in page
    for name in ("Before and after cleaning", "Length in tokens", "Where the rows went", "Duplicates"):
        assert name in page


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(folder, tmp_path, width):
    seen = look(folder / "report.html", tmp_path, width)
    assert seen.console == []
    assert seen.width <= seen.window == width


def test_the_page_names_the_licence_of_kaggles_tickets(tmp_path):
    for name, named in (("aa_dataset-tickets-multi-lang-5-2-50-version.csv", True), ("mine.csv", False)):
        rows = [f"s{i},the body {i} of ticket {i * i},{'AB'[i % 2]}" for i in range(60)]
        (tmp_path / name).write_text("\n".join(["subject,body,queue", *rows]))
        prepare(tmp_path / name, tmp_path / name.removesuffix(".csv"), PrepareOptions())
        page = (tmp_path / name.removesuffix(".csv") / "report.html").read_text()
        assert ("under CC BY-NC 4.0: not for commercial use" in page) == named
