"""docs/rpc.md, docs/cli.md and docs/problems.md say what the code says."""

import typing

import pytest

from gpumodd.wire.methods import METHODS
from gpumodd.wire.types import Topic
from tests.support.docs import DOCS, PAGES, TOPICS


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_would_be_written_now(name):
    assert (DOCS / name).read_text() == PAGES[name](), "stale: python -m tests.support.docs --write"


def test_every_method_is_described():
    page = PAGES["rpc.md"]()
    assert all(f"### {name}\n" in page for name in METHODS)


def test_every_link_leads_somewhere():
    import re

    page = PAGES["rpc.md"]()
    heads = {line.removeprefix("### ").lower() for line in page.splitlines() if line.startswith("### ")}
    assert set(re.findall(r"\]\(#([a-z]+)\)", page)) <= heads


def test_every_topic_is_described():
    assert TOPICS.keys() == set(typing.get_args(Topic))
    page = PAGES["rpc.md"]()
    assert all(f"| `{topic}` | " in page for topic in TOPICS)
