"""Every command that the guides in docs/ show, in their order and in one folder, on the rehearsal's run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sybil import Example

from tests.conftest import REPOSITORY, Rehearsal
from tests.guides import PAGES, Story, read
from tests.serving.stand_in import StandIn, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

EXAMPLES = [(page, example) for page in PAGES for example in read(page)]


@pytest.fixture(scope="module")
def story(rehearsal: Rehearsal) -> Iterator[Story]:
    """The rehearsal's folder with what a clone has, and its toy under the name of the published model."""
    assert rehearsal.first.status == 0, rehearsal.first.err
    links = {name: REPOSITORY / name for name in ("recipes", "clusters")} | {"openai": rehearsal.run / "published"}
    (rehearsal.run / "published").mkdir()
    (rehearsal.run / "published" / "gpt-oss-20b").symlink_to(rehearsal.run / "model")
    for name, target in links.items():
        (rehearsal.cwd / name).symlink_to(target)
    with serving(StandIn(rehearsal.run / "exported")) as server:
        yield Story(rehearsal.cwd, server.url)
    for name in links:
        (rehearsal.cwd / name).unlink()


@pytest.mark.parametrize("example", [pytest.param(example, id=f"{page}:{example.line}") for page, example in EXAMPLES])
def test_what_the_guides_show(example: Example, story: Story) -> None:
    example.namespace["story"] = story
    example.evaluate()
