"""Committed notebooks are whole and honest; the runner refuses what cannot be right."""

import ast
import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from ip2p_lib.notebook.lesson import ParameterError, check_value
from jobs.notebooks import address, outputs, run
from jobs.notebooks.parameters import allowed_values, check_settings, defaults
from tests.support.small_notebook import IMAGES, outputs_of, text_of, write_notebook

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    for name, value in run.QUIET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One notebook through the whole runner."""
    folder = tmp_path_factory.mktemp("ran")
    path = write_notebook(
        folder / "00_overview.ipynb", "show_source(check_parameters)", IMAGES
    )
    runs = run.run_all([path], folder / "runs", {"STEPS": "5"}, 120)
    return runs[0], folder / "runs"


# The committed notebooks


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_a_committed_notebook_is_one_clean_run_of_its_sources(path):
    notebook = nbformat.read(path, as_version=4)
    lock = json.loads(path.with_name("outputs.lock.json").read_text())
    assert outputs.faults(notebook) == []
    assert lock[path.stem] == outputs.source_hash(notebook), "run make publish"
    extra = [set(cell.metadata) - {"tags"} for cell in notebook.cells]
    assert not any(extra), "cell metadata other than tags"
    assert notebook.metadata.kernelspec.name == "python3"


def test_the_lock_names_the_committed_notebooks_and_no_others():
    lock = json.loads((ROOT / "notebooks" / "outputs.lock.json").read_text())
    assert sorted(lock) == [p.stem for p in COMMITTED]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_parameters_are_few_literals_with_a_comment_each(path):
    notebook = nbformat.read(path, as_version=4)
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1, "exactly one cell tagged parameters"
    lines = tagged[0].source.splitlines()
    assert 1 <= len(lines) <= 6
    for line in lines:  # a second "=" hides a parameter from papermill's inspection
        assert re.fullmatch(r"[A-Z][A-Z0-9_]* = [^=#]+  # [^=]+", line), line
        ast.literal_eval(ast.parse(line).body[0].value)
    assert len(defaults(path)) == len(lines)
    assert defaults(path)["SCALE"] == "miniature"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_every_parameter_is_checked_and_its_default_allowed(path):
    rules, values = allowed_values(path), defaults(path)
    assert rules.keys() == values.keys()
    for name, value in values.items():
        check_value(name, value, rules[name])


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_no_figure_is_drawn_and_not_shown(path):
    """A notebook shows a figure if it is displayed, or the value of a cell's end."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Expr)]
            unseen = [ast.unparse(c) for c in calls if c not in tree.body[-1:]]
            assert not [call for call in unseen if call.startswith("figures.")]


def test_colab_has_links_and_cells_only_where_the_address_is_set():
    repo = address.read_address()
    for path in COMMITTED:
        notebook = nbformat.read(path, as_version=4)
        assert address.in_notebook(notebook, path.name, repo) == notebook
    readme = address.README.read_text("utf-8")
    assert address.in_readme(readme, repo) == readme


def test_an_address_is_written_everywhere_and_removed_again(tmp_path):
    path = write_notebook(tmp_path / "00_overview.ipynb")
    before = nbformat.read(path, as_version=4)
    code = [cell for cell in before.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
    notebook = address.in_notebook(before, path.name, "ann/ip2p")
    links = f"ann/ip2p/blob/main/notebooks/{path.name}"
    assert links in notebook.cells[1].source
    assert "https://github.com/ann/ip2p.git" in notebook.cells[2].source
    compile(notebook.cells[2].source, "clone", "exec")
    assert outputs.faults(notebook) == outputs.faults(before) == []
    assert outputs.source_hash(notebook) == outputs.source_hash(before)
    assert address.in_notebook(notebook, path.name, None) == before

    readme = address.README.read_text("utf-8")
    linked = address.in_readme(readme, "ann/ip2p")
    assert linked.count("[Colab](") == readme.count("](notebooks/") and links in linked
    assert "git clone --depth 1 https://github.com/ann/ip2p" in linked
    assert address.in_readme(linked, None) == address.in_readme(readme, None)

    project = address.PYPROJECT.read_text("utf-8")
    named = address.in_pyproject(project, "ann/ip2p")
    urls = tomllib.loads(named)["project"]["urls"]
    assert urls == {"Repository": "https://github.com/ann/ip2p"}
    assert address.in_pyproject(named, None) == address.in_pyproject(project, None)


def test_what_is_no_repository_is_refused():
    assert address.main(["https://github.com/ann/ip2p"]) == 2


# The runner


def test_a_run_leaves_notebook_summary_and_report(ran):
    result, out = ran
    executed = nbformat.read(out / "00_overview.ipynb", as_version=4)
    assert result.error is None
    assert text_of(executed) == "model loaded 5\n"
    assert not [o for o in outputs_of(executed) if o.get("name") == "stderr"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["settings"] == {"STEPS": "5"}
    assert summary["notebooks"][0]["peak_mib"] > 20
    assert [p.name for p in out.iterdir() if p.suffix == ".partial"] == []


def test_the_report_needs_neither_network_nor_javascript(ran):
    page = (ran[1] / "report.html").read_text()
    assert not re.search(r"<script|javascript:|@import|<link", page)
    assert not re.search(r"\bsrc\s*=\s*[\"'](?!data:)", page)
    assert not re.search(r"url\((?!data:)", page)
    assert page.count("data:image/png;base64,") == 2  # the image, and the panel's
    assert "<math" in page and "e^{" not in page
    assert '<a href="#00_overview">' in page and "Count steps" in page
    assert 'class="highlight"' in page


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("STEPZ=5", "did you mean STEPS"),
        ("SEED=0", "no parameter SEED"),
        ("STEPS=10", "from 1 to 9"),
        ("STEPS=2.5", "whole number"),
        ("SCALE=minature", "'miniature'"),
        ("OPENAI_API_KEY=canary-41", "environment variable"),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused_before_anything_runs(
    tmp_path, setting, message
):
    path, out = write_notebook(tmp_path / "00_overview.ipynb"), tmp_path / "runs"
    name, value = setting.split("=")
    with pytest.raises(ParameterError, match=message) as caught:
        run.run_all([path], out, {name: value}, 60)
    assert "canary" not in str(caught.value)
    assert not out.exists()


def test_a_setting_reaches_the_notebooks_that_have_it(tmp_path):
    with_steps = write_notebook(tmp_path / "00_overview.ipynb")
    without = tmp_path / "01_triplets.ipynb"
    text = with_steps.read_text().replace("STEPS", "COUNT")
    without.write_text(text)
    chosen = check_settings([with_steps, without], {"STEPS": "7", "SCALE": "smoke"})
    assert chosen["00_overview"] == {"STEPS": 7, "SCALE": "smoke"}
    assert chosen["01_triplets"] == {"SCALE": "smoke"}


def test_plain_papermill_is_stopped_by_the_notebook_before_a_model_loads(tmp_path):
    path, out = write_notebook(tmp_path / "00_overview.ipynb"), tmp_path / "out.ipynb"
    with pytest.raises(PapermillExecutionError, match="did you mean STEPS"):
        papermill.execute_notebook(
            str(path), str(out), {"STEPZ": 5}, progress_bar=False, kernel_name="python3"
        )
    assert "model loaded" not in text_of(nbformat.read(out, as_version=4))


def test_a_failing_cell_ends_the_run_and_is_named(tmp_path):
    first = write_notebook(tmp_path / "00_overview.ipynb", "1 / 0", "print('after')")
    second = write_notebook(tmp_path / "01_triplets.ipynb")
    runs = run.run_all([first, second], tmp_path / "runs", {}, 60)
    assert [r.error for r in runs] == ["cell 5: ZeroDivisionError: division by zero"]
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "ZeroDivisionError" in page


def test_notebooks_are_found_by_name_or_number(tmp_path):
    for name in ("01_triplets", "00_overview", "scratch"):
        write_notebook(tmp_path / f"{name}.ipynb")
    assert [p.stem for p in run.find([], tmp_path)] == [
        "00_overview",
        "01_triplets",
    ]
    assert [p.stem for p in run.find(["01"], tmp_path)] == ["01_triplets"]
    with pytest.raises(FileNotFoundError, match="01_triplet; there are: 00_overview"):
        run.find(["01_triplet"], tmp_path)


@pytest.mark.slow
def test_a_killed_run_leaves_a_readable_notebook(tmp_path):
    out = tmp_path / "runs" / "a.ipynb"
    program = (
        "import pathlib, papermill.iorw as io\n"
        "from jobs.notebooks.run import prepare_papermill\n"
        f"prepare_papermill(pathlib.Path({str(out.parent)!r}))\n"
        "text = '{\"cells\": [' + '0,' * 500_000 + '0]}'\n"
        f"while True: io.papermill_io.write(text, {str(out)!r})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(json.loads(out.read_text())["cells"]) == 500_001


def test_a_key_in_the_environment_is_in_no_notebook_and_no_report(
    tmp_path, monkeypatch
):
    canary = "sk-Q7wZ41-canary-Lp93Xv"
    monkeypatch.setenv("OPENAI_API_KEY", canary)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")  # nobody listens
    asks = (
        "from ip2p_lib.triplets import ask_service, connect\n"
        "client = connect(max_retries=0)\n"
        "print(next(ask_service(['a cat'], model='gpt-6-luna', client=client)))"
    )
    path = write_notebook(tmp_path / "01_triplets.ipynb", asks)
    (result,) = run.run_all([path], tmp_path / "runs", {}, 120)
    assert "service" in result.error
    written = [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    assert {p.suffix for p in written} >= {".ipynb", ".html", ".json"}
    for file in written:
        text = file.read_text("utf-8")
        pieces = (canary[i : i + 6] for i in range(len(canary) - 5))
        assert [piece for piece in pieces if piece in text] == [], file.name
