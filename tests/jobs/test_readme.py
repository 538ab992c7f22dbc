"""The README says what the results say."""

import importlib
import re

import pytest

from jobs.readme.pictures import GRID, PICTURE
from jobs.readme.table import README, fill


def test_the_table_is_the_one_the_results_give() -> None:
    text = README.read_text("utf-8")
    assert fill(text) == text, "run python -m jobs.readme.table"


def test_the_pictures_are_there() -> None:
    assert PICTURE.read_bytes().startswith(b"\x89PNG")
    assert GRID.read_bytes().startswith(b"\x89PNG")


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the lines"):
        fill("# nothing")


def test_every_function_that_is_named_is_there() -> None:
    table = README.read_text("utf-8").split("## Use a part of it")[1].split("##")[0]
    names = re.findall(r"`(\w+)\.(\w+)`", table)
    assert len(names) > 10
    for module, name in names:
        assert hasattr(importlib.import_module(f"ip2p_lib.{module}"), name)
