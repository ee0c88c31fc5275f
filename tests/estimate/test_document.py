"""The document says what the estimates are worth today."""

from tests.support.estimate_table import DOCUMENT, replaced


def test_the_table_is_todays():
    text = DOCUMENT.read_text()
    assert replaced(text) == text, "python -m tests.support.estimate_table writes it"
