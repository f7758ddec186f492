"""Tables: what stands where."""

import pytest

from conformer_fast.tables import Column, Table

TABLE = Table(Column("name", width=8), Column("error", ".1e", 9), Column("right", ">"), Column())


def test_numbers_stand_on_the_right_and_text_on_the_left():
    assert TABLE.lines([("a", 0.5, "1 of 2", "over"), ("longer than 8", 12.0, "all", "")]) == [
        "name               error   right",
        "a                5.0e-01  1 of 2  over",
        "longer than 8    1.2e+01     all",
    ]


def test_lines_one_by_one_are_in_the_same_columns():
    assert TABLE.head == "name          error  right"
    assert TABLE.line("a", 0.5, "1", "over") == "a           5.0e-01      1  over"
    assert TABLE.lines([("a", 0.5, "1", "over")]) == [TABLE.head, TABLE.line("a", 0.5, "1", "over")]


def test_what_is_not_known_is_a_dash_and_a_string_is_left_alone():
    assert TABLE.line("a", None, "1", "") == "a                 -      1"
    assert TABLE.line("a", "fails", "1", "") == "a             fails      1"


def test_without_headings_there_is_no_first_line():
    table = Table(Column(), Column(form="d"))
    assert table.lines([("a", 5), ("bc", 10)]) == ["a    5", "bc  10"]
    assert table.lines([]) == []


def test_markdown():
    assert Table(Column(), Column("error", ".1e")).markdown([("a", 0.5), ("", None)]) == (
        "| | error |\n|---|---|\n| a | 5.0e-01 |\n| | - |"
    )


@pytest.mark.parametrize("values", [("a", 1.0), ("a", 1.0, "1", "", "more")], ids=len)
def test_a_row_has_a_value_for_each_column(values):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        TABLE.line(*values)
