"""Sources are shown whole, exercises marked, parameters checked."""

import inspect

import pytest
from bs4 import BeautifulSoup

from ip2p_lib.config import SCALES
from ip2p_lib.evaluation.metrics import measure
from ip2p_lib.notebook import lesson
from ip2p_lib.notebook.lesson import (
    ParameterError,
    check_exercise,
    check_parameters,
    show_source,
    show_table,
)
from jobs.notebooks.html_report import ReportExporter

RULES = {
    "SCALE": SCALES,
    "STEPS": (1, 200),
    "TEXT_SCALE": (0.0, 20.0),
    "INSTRUCTION": str,
    "WIDGETS": bool,
}
VALUES = ["smoke", 20, 7.5, "make it snow", False]
GOOD = dict(zip(RULES, VALUES, strict=True))


@pytest.fixture
def outputs(monkeypatch):
    """The MIME bundles that are displayed."""
    bundles = []
    monkeypatch.setattr(lesson, "display", lambda data, raw: bundles.append(data))
    return bundles


def test_show_source_shows_the_whole_function_and_where_it_is(outputs):
    show_source(lesson.check_exercise)
    first, place, *body, last = outputs[0]["text/markdown"].split("\n")
    assert (first, last) == ("```python", "```")
    assert place.startswith("# ip2p_lib/notebook/lesson.py, line ")
    assert "\n".join(body) == inspect.getsource(lesson.check_exercise).rstrip()
    show_source(measure)  # decorated
    assert outputs[1]["text/plain"].startswith("# ip2p_lib/evaluation/metrics.py, line")


def test_a_table_is_markdown_and_aligned_text(outputs):
    show_table(["edit", "L1"], [["add a|b", 0.5], ["remove", "n"]])
    head, rule, *rows = outputs[0]["text/markdown"].splitlines()
    assert (head, rule) == ("| edit | L1 |", "| --- | --: |")
    assert rows == ["| add a&#124;b | 0.5 |", "| remove | n |"]
    assert outputs[0]["text/plain"].splitlines()[2] == "remove   n"
    with pytest.raises(ValueError, match="must have 1 columns"):
        show_table(["edit"], [["add", 0.5]])


@pytest.mark.parametrize(
    "hostile",
    [
        "a cat<script>alert(1)</script>\n| x |\n\n<img src=x onerror=y> & \x85z",
        "**bold** _it_ `code` ~~no~~ # head",
        r"$\frac$ and \(x\) \[y\] \* $$z$$ \begin{x}",
        "[here](javascript:alert(1)) [there](data:text/html,x) ![](HTTP://a.b/c.png)",
        "https://a.b/c and <http://a.b>",
    ],
)
def test_a_hostile_caption_stays_text(outputs, hostile):
    """In the report as in a front end: the same letters, no link, image or formula."""
    show_table(["caption", "edit"], [[hostile, "add a dog"]], align_left=True)
    _, rule, row = outputs[0]["text/markdown"].splitlines()
    assert rule == "| --- | --- |"
    page = ReportExporter(template_name="basic").markdown2html(row)
    cell = BeautifulSoup(page, "html.parser").find("p")
    assert cell.text == f"| {' '.join(hostile.split())} | add a dog |"
    assert not cell.find_all(True)


def test_an_exercise_is_a_stub_or_wrong_or_right():
    def stub(x):
        raise NotImplementedError

    def check_double(double):
        assert double(2) == 4, "double(2) should be 4"

    assert check_exercise(stub, check_double).startswith("not attempted: fill in stub")
    wrong = check_exercise(lambda x: x, check_double)
    assert wrong.startswith("not yet: double(2) should be 4")
    assert check_exercise(lambda x: 2 * x, check_double) == "passed"
    with pytest.raises(ZeroDivisionError):
        check_exercise(lambda x: x / 0, check_double)


def test_good_parameters_come_back_by_name():
    assert check_parameters(GOOD | {"other": 1}, **RULES) == GOOD
    for text_scale in (0.0, 20.0, 3):  # the ends of the interval, and a whole number
        assert check_parameters({"S": text_scale}, S=(0.0, 20.0)) == {"S": text_scale}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SCALE", "minature", "nearest: 'miniature'"),
        ("SCALE", 3, "one of"),
        ("STEPS", 0, "whole number from 1 to 200, got 0"),
        ("STEPS", 5.5, "whole number"),
        ("STEPS", True, "whole number"),
        ("STEPS", "20", "whole number"),
        ("TEXT_SCALE", float("nan"), "number from 0.0 to 20.0"),
        ("INSTRUCTION", "  ", "not empty"),
        ("WIDGETS", 1, "True or False, got 1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value, message):
    with pytest.raises(ParameterError, match=f"{name} must be .*{message}"):
        check_parameters(GOOD | {name: value}, **RULES)


def test_a_parameter_missing_from_the_cell_is_named():
    with pytest.raises(ParameterError, match="cell must set STEPS"):
        check_parameters({k: v for k, v in GOOD.items() if k != "STEPS"}, **RULES)


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ("stepz = 9", "did you mean STEPS"),
        ("text = 1", "did you mean TEXT_SCALE"),
        ("OPENAI_API_KEY = 'sk-canary'", "environment variable"),
    ],
)
def test_a_name_that_papermill_injected_must_exist_and_be_no_secret(injected, message):
    history = ["", "STEPS = 20", f"# Parameters\nSTEPS = 9\n{injected}\n"]
    with pytest.raises(ParameterError, match=message) as caught:
        check_parameters(GOOD | {"In": history}, **RULES)
    assert "canary" not in str(caught.value)
