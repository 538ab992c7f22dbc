"""The README and docs/results.md show what the result files hold."""

import importlib
import re

import pytest

from jobs.readme import images, pipeline, table


def test_the_readme_has_the_rows_of_the_result_files():
    text = table.README.read_text("utf-8")
    assert table.fill_readme(text) == text, "run python -m jobs.readme.table"
    rows = table.table(table.IN_README).splitlines()[2:]
    assert len(table.IN_README) <= len(rows) <= 12


def test_the_page_of_results_has_all_rows():
    page = table.results_page()
    assert table.PAGE.read_text("utf-8") == page, "run python -m jobs.readme.table"
    rows = [r for p in table.RESULTS.glob("*.json") for r in table.read_rows(p.stem)]
    assert len(rows) > 12
    assert all(f"| {row['claim']} | {row['value']}" in page for row in rows)


def test_a_percentage_has_its_interval():
    assert table.with_interval("90.0%", 512) == "90.0% (87.1 to 92.3)"
    assert table.with_interval("2.5 x", 32) == "2.5 x"
    assert table.with_interval("90.0%", None) == "90.0%"


def test_the_drawing_is_what_the_script_draws_and_the_images_are_there():
    assert pipeline.DRAWING.read_text("utf-8") == pipeline.draw(), (
        "run python -m jobs.readme.table"
    )
    for path in (images.EDITS, images.AUTOENCODER):
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_name_that_a_document_mentions_exists(document):
    """``module.function`` names the library, ``folder/file.py`` the repository."""
    text = (table.ROOT / document).read_text("utf-8")
    for path in re.findall(r"`((?:ip2p_lib|jobs|tests|benchmarks)/[\w/.]+)`", text):
        assert (table.ROOT / path).exists(), path
    for name in re.findall(r"`(ip2p_lib(?:\.\w+)+)`", text):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
