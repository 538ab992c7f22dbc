"""The README says what the results say."""

import pytest

from jobs.readme import GRID, PICTURE, README, fill


def test_the_table_is_the_one_the_results_give() -> None:
    text = README.read_text("utf-8")
    assert fill(text) == text, "run python -m jobs.readme"


def test_the_pictures_are_there() -> None:
    assert PICTURE.read_bytes().startswith(b"\x89PNG")
    assert GRID.read_bytes().startswith(b"\x89PNG")


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the lines"):
        fill("# nothing")
