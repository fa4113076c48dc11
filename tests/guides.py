"""The blocks of the guides in docs/, read by sybil: which run, which are tried by --dryrun, which are left out."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import SkipTest

from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from tests.conftest import REPOSITORY, run_to_its_end

DOCS = REPOSITORY / "docs"
PAGES = ("tickets", "one-gpu", "slurm", "recipes", "convert", "evaluate", "serving", "verified")
"""Those with blocks, in the order of the story: each finds the files that the ones before it made."""
ENDPOINT = "http://localhost:8000"
SCRIPT = """\
set -euo pipefail
nemo-run() {{ case $1 in {started}) python -m launch.cli "$@" --dryrun;; *) python -m launch.cli "$@";; esac; }}
{source}"""
_DRYRUN = re.compile(r"<!-- dryrun: .+ -->\n(?:<!-- skip: .+ -->\n)?$")
_SKIPPED = re.compile(r'<!-- skip: next ".+" -->\n(?:<!-- dryrun: .+ -->\n)?$')


@dataclass(frozen=True)
class Story:
    """Where the blocks run, and the server that answers for `ENDPOINT`."""

    cwd: Path
    url: str


def run(example: Example) -> None:
    """Run a block of bash in the story's folder; a training or a server is only tried where a comment says why."""
    story: Story = example.namespace["story"]
    started = "launch|serve" if _DRYRUN.search(_above(example)) else "-"
    source = SCRIPT.format(started=started, source=example.parsed.replace(ENDPOINT, story.url))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = run_to_its_end(["bash", "-c", source], cwd=story.cwd, env=environment, timeout=1200)
    assert done.status == 0, f"{example.parsed}\n{done.out[-3000:]}\n{done.err[-3000:]}"
    example.namespace["printed"] = (example.end, plain(done.out))


def compare(example: Example) -> None:
    """Look for each line of a shown output in what the block above it printed, numbers aside."""
    end, printed = example.namespace.get("printed", (0, ""))
    if "```" in example.document.text[end : example.start].removeprefix("```"):
        raise SkipTest("the block above it did not run")
    for line in map(plain, example.parsed.splitlines()):
        assert line in printed, f"{line!r} is not in:\n{printed}"


def plain(text: str) -> str:
    """A text whose numbers are 0 and whose blanks are one each."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return re.sub(r"\d[\d.,]*\d|\d", "0", "\n".join(lines))


def _above(example: Example) -> str:
    return example.document.text[: example.start]


SYBIL = Sybil([CodeBlockParser("bash", run), CodeBlockParser("text", compare), SkipParser()], pattern="*.md")


def read(page: str) -> Document:
    """A page's blocks."""
    return SYBIL.parse(DOCS / f"{page}.md")


def tried_commands() -> set[str]:
    """Lines `nemo-run …` of the blocks that run, or are tried by --dryrun."""
    examples = [example for page in PAGES for example in read(page)]
    blocks = [each.parsed for each in examples if each.region.evaluator is run and not _SKIPPED.search(_above(each))]
    lines = (line.split(" #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return {" ".join(line.split()) for line in lines if line.startswith("nemo-run ")}


def reasons_of(page: str) -> list[str]:
    """Of each block that is not simply run, why."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"<!-- (?:dryrun:|skip: next) (.+) -->", text)
