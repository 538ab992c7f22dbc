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
    assert table.PAGE.read_text("utf-8") == table.results_page()
    rows = [r for p in table.RESULTS.glob("*.json") for r in table.read_rows(p.stem)]
    assert len(rows) > 12
    assert all(
        f"| {row['claim']} | {row['value']} |" in table.results_page() for row in rows
    )


def test_the_drawing_is_what_the_script_draws():
    assert pipeline.DRAWING.read_text("utf-8") == pipeline.draw(), (
        "run python -m jobs.readme.table"
    )


def test_the_images_are_there():
    for path in (images.EDITS, images.AUTOENCODER):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="needs the lines"):
        table.fill_readme("# nothing")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_name_that_a_document_mentions_exists(document):
    """``module.function`` names the library, ``folder/file.py`` the repository."""
    text = (table.ROOT / document).read_text("utf-8")
    for path in re.findall(r"`((?:ip2p_lib|jobs|tests|benchmarks)/[\w/.]+)`", text):
        assert (table.ROOT / path).exists(), path
    for name in re.findall(r"`(ip2p_lib(?:\.\w+)+)`", text):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
