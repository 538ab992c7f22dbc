"""Committed notebooks are whole and honest; the runner refuses what cannot be right."""

import ast
import json
import re
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import papermill_io

from ip2p_lib.notebook.lesson import ParameterError, check_value
from jobs.notebooks import address, html_report, outputs, run
from jobs.notebooks.parameters import allowed_values, check_settings, defaults
from tests.support.small_notebook import IMAGES, outputs_of, text_of, write_notebook

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    for name, value in run.QUIET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def path(tmp_path):
    return write_notebook(tmp_path / "00_overview.ipynb")


# The committed notebooks


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_a_committed_notebook_is_one_clean_run_of_its_sources(path):
    notebook = nbformat.read(path, as_version=4)
    lock = json.loads(path.with_name("outputs.lock.json").read_text())
    assert sorted(lock) == [p.stem for p in COMMITTED]
    assert outputs.faults(notebook) == []
    assert lock[path.stem] == outputs.source_hash(notebook), "run make publish"
    extra = [set(cell.metadata) - {"tags"} for cell in notebook.cells]
    assert not any(extra), "cell metadata other than tags"
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_parameters_are_few_literals_with_a_comment_each_and_are_checked(path):
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    lines, values, rules = (
        cell.source.splitlines(),
        defaults(path),
        allowed_values(path),
    )
    for line in lines:  # a second "=" hides a parameter from papermill's inspection
        assert re.fullmatch(r"[A-Z][A-Z0-9_]* = [^=#]+  # [^=]+", line), line
    assert 1 <= len(values) == len(lines) <= 6
    assert values["SCALE"] == "miniature"
    rules = allowed_values(path)
    assert rules.keys() == values.keys()
    for name, value in values.items():
        check_value(name, value, rules[name])


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_no_figure_is_made_and_not_shown(path):
    """A notebook shows a figure if it is displayed, or the value of a cell's end."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Expr)]
            hidden = [ast.unparse(c) for c in calls if c not in tree.body[-1:]]
            assert not [call for call in hidden if call.startswith("figures.")]


def test_colab_has_links_and_cells_only_where_the_address_is_set():
    project = tomllib.loads(address.PYPROJECT.read_text("utf-8"))["project"]
    url = project.get("urls", {}).get("Repository", "")
    repo = url.removeprefix("https://github.com/") or None
    for path in COMMITTED:
        notebook = nbformat.read(path, as_version=4)
        assert address.in_notebook(notebook, path.name, repo) == notebook
    readme = address.README.read_text("utf-8")
    assert address.in_readme(readme, repo) == readme


def test_an_address_is_written_everywhere_and_removed_again(path):
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
    assert address.main(["https://github.com/ann/ip2p"]) == 2  # no owner/name


# The runner


def test_a_run_leaves_notebook_summary_and_report(tmp_path):
    grid = "from PIL import Image\nfigures.show_grid([[Image.new('RGB', (8, 8))]])"
    cells = ["show_source(check_parameters)", IMAGES, grid]
    path = write_notebook(tmp_path / "00_overview.ipynb", *cells)
    out = tmp_path / "runs"
    (result,) = run.run_all([path], out, {"STEPS": "5"}, 120)
    executed = nbformat.read(out / "00_overview.ipynb", as_version=4)
    assert result.error is None
    assert text_of(executed) == "model loaded 5\n"
    assert not [o for o in outputs_of(executed) if o.get("name") == "stderr"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["settings"] == {"STEPS": "5"}
    assert summary["notebooks"][0]["peak_mib"] > 20

    page = (out / "report.html").read_text()  # it needs no network and no JavaScript
    assert not re.search(r"<script|javascript:|@import|<link", page)
    assert not re.search(r"\bsrc\s*=\s*[\"'](?!data:)", page)
    assert not re.search(r"url\((?!data:)", page)
    # The image, the panel's still, and the figure, which is shown once.
    assert page.count("data:image/png;base64,") == 3
    assert "<math" in page and "e^{" not in page
    assert '<a href="#00_overview">' in page and "Count steps" in page
    assert 'class="highlight"' in page


@pytest.mark.parametrize(
    ("markdown", "page"),
    [
        (r"$\frac$", "$\\frac$"),
        (r"$$\left( x$$", "\\left( x"),
        ("[a](javascript:alert(1)) [b](DATA:text/html,x) [c](file:///etc/passwd)", ""),
        ("[a](//evil.com/a) [b](/etc/passwd) ![x](attachment:no.png)", "x"),
        (r"$\text{<img src=x onerror=alert(1)>}$", "&lt;img"),
        (r"$\href{javascript:alert(1)}{x}$", "href"),
        ("![a](HTTP://a.b/c.png) ![b](//a.b/c.png) ![c](data:image/png;base64,x)", ""),
    ],
)
def test_a_report_has_no_live_link_or_broken_formula_in_it(markdown, page):
    """And one formula that cannot be set does not end it without a report."""
    html = html_report.ReportExporter(template_name="basic").markdown2html(markdown)
    assert page in html and not re.search("<a |<img|<math", html)
    good = "[a](https://a.b) [b](#c) [d](01_triplets.ipynb) $x^2$"
    html = html_report.ReportExporter(template_name="basic").markdown2html(good)
    assert html.count("<a href") == 3 and "<math" in html


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("STEPZ", "5", "did you mean STEPS"),
        ("STEPS", "10", "from 1 to 9"),
        ("STEPS", "2.5", "whole number"),
        ("OPENAI_API_KEY", "canary-41", "environment variable"),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused_before_anything_runs(
    path, name, value, message
):
    out = path.with_name("runs")
    with pytest.raises(ParameterError, match=message) as caught:
        run.run_all([path], out, {name: value}, 60)
    assert "canary" not in str(caught.value)
    assert not out.exists()


def test_settings_may_hold_several_words_and_come_in_one_text():
    """As ``make notebooks SET="SEED=3 INSTRUCTION=make it night"`` passes them."""
    texts = ["SCALE=smoke", "SEED=3 INSTRUCTION=don't make a=b  night", ""]
    expected = {"SCALE": "smoke", "SEED": "3"}
    expected["INSTRUCTION"] = "don't make a=b  night"
    assert run.parse_settings(texts) == expected
    quoted = [
        "SCALE='smoke'",
        'INSTRUCTION="don\'t make a=b  night" SEED="3"',
        "SEED=3",
    ]
    assert run.parse_settings(quoted) == expected
    mixed = run.parse_settings(['A=write "hi" on a 5" pipe B="C=4 or D=5" C=6'])
    assert mixed == {"A": 'write "hi" on a 5" pipe', "B": "C=4 or D=5", "C": "6"}


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["INSTRUCTION=make", "it"], "'it' sets nothing"),
        (['INSTRUCTION="make it'], "sets nothing"),
        (['INSTRUCTION="make" it "night"'], "sets nothing"),
        (["SEED=1", "STEPS=2 SEED=3"], "SEED has two values"),
    ],
)
def test_settings_that_could_mean_two_things_are_refused(texts, says):
    with pytest.raises(ParameterError, match=says):
        run.parse_settings(texts)


def test_options_that_cannot_be_used_are_named(capsys):
    with pytest.raises(SystemExit):
        run.main(["00", "--timeout", "-1"])
    assert "at least 1 second" in capsys.readouterr().err
    for out in (__file__, f"{__file__}/runs"):  # a file, and below a file
        assert run.main(["00", "--out", out]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{out} cannot be a folder" in said


@pytest.mark.parametrize("given", ["mine/a cat.png", "~/a cat.png", "/x/a cat.png"])
def test_a_path_is_the_callers(given, tmp_path, monkeypatch):
    """Not of the notebook's folder, where the kernel starts; and ~ is the home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    editing = ROOT / "notebooks" / "07_editing.ipynb"
    picture = check_settings([editing], {"PICTURE": given})["07_editing"]["PICTURE"]
    home = given.replace("~", str(tmp_path / "home"))
    assert Path(picture) == tmp_path / home
    ours = check_settings([editing], {"PICTURE": "scene"})["07_editing"]["PICTURE"]
    assert ours == "scene"


def test_two_runs_write_into_folders_of_their_own(tmp_path, monkeypatch):
    cell = "from ip2p_lib.config import GENERATED\nprint(GENERATED)"
    path = write_notebook(tmp_path / "00_overview.ipynb", cell)
    for name in ("one", "two"):
        monkeypatch.setenv("IP2P_GENERATED", "")  # which the run replaces
        run.run_all([path], tmp_path / name, {}, 60)
        executed = nbformat.read(tmp_path / name / path.name, as_version=4)
        assert text_of(executed).endswith(f"{tmp_path / name / 'generated'}\n")


def test_a_setting_reaches_the_notebooks_that_have_it(path):
    without = path.with_name("01_triplets.ipynb")
    without.write_text(path.read_text().replace("STEPS", "COUNT"))
    chosen = check_settings([path, without], {"STEPS": "7", "SCALE": "smoke"})
    assert chosen["00_overview"] == {"STEPS": 7, "SCALE": "smoke"}
    assert chosen["01_triplets"] == {"SCALE": "smoke"}


def test_plain_papermill_is_stopped_by_the_notebook_before_a_model_loads(path):
    out = path.with_name("out.ipynb")
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


def test_notebooks_are_chosen_by_name_or_number(tmp_path):
    for name in ("01_triplets", "00_overview", "scratch"):
        write_notebook(tmp_path / f"{name}.ipynb")
    every = [p.stem for p in run.find([], tmp_path)]
    assert every == ["00_overview", "01_triplets"]
    assert [p.stem for p in run.find(["01"], tmp_path)] == ["01_triplets"]
    with pytest.raises(FileNotFoundError, match="01_triplet; there are: 00_overview"):
        run.find(["01_triplet"], tmp_path)


def test_papermill_writes_a_notebook_whole_or_not_at_all(tmp_path, monkeypatch):
    """``write_bytes`` is atomic (``tests/test_files.py``); papermill must call it."""
    written = {}
    monkeypatch.setattr(run, "write_bytes", written.__setitem__)
    run.prepare_papermill(tmp_path)
    path = str(tmp_path.resolve() / "a.ipynb")
    papermill_io.write('{"cells": []}', path)
    assert written == {path: b'{"cells": []}'}


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
