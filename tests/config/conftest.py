"""An empty configuration directory."""

import pytest

from tests.config.tree import Tree


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / "config")
