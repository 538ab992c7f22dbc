"""Sources are shown whole, exercises marked, parameters checked."""

import inspect

import pytest

from ip2p_lib.config import SCALES
from ip2p_lib.evaluation.metrics import measure
from ip2p_lib.notebook import lesson as teaching
from ip2p_lib.notebook.lesson import (
    ParameterError,
    check_exercise,
    check_parameters,
    show_source,
    show_table,
)

RULES = {
    "SCALE": SCALES,
    "STEPS": (1, 200),
    "TEXT_SCALE": (0.0, 20.0),
    "INSTRUCTION": str,
    "WIDGETS": bool,
}
GOOD = {
    "SCALE": "smoke",
    "STEPS": 20,
    "TEXT_SCALE": 7.5,
    "INSTRUCTION": "make it snow",
    "WIDGETS": False,
}


def test_show_source_shows_the_whole_function_and_where_it_is(monkeypatch):
    shown = []
    monkeypatch.setattr(teaching, "display", lambda data, raw: shown.append(data))
    show_source(teaching.check_exercise)
    markdown = shown[0]["text/markdown"]
    first, *body, last = markdown.split("\n")
    assert (first, last) == ("```python", "```")
    assert body[0].startswith("# ip2p_lib/notebook/lesson.py, line ")
    assert "\n".join(body[1:]) == inspect.getsource(teaching.check_exercise).rstrip()


def test_show_source_says_what_it_cannot_show():
    with pytest.raises(TypeError, match="written in Python, got <built-in"):
        show_source(len)


def test_show_source_names_the_file_of_a_decorated_function(monkeypatch):
    shown = []
    monkeypatch.setattr(teaching, "display", lambda data, raw: shown.append(data))
    show_source(measure)
    assert shown[0]["text/plain"].startswith("# ip2p_lib/evaluation/metrics.py, line ")


def test_a_table_is_markdown_and_aligned_text(monkeypatch):
    shown = []
    monkeypatch.setattr(teaching, "display", lambda data, raw: shown.append(data))
    show_table(["edit", "L1"], [["add a|b", 0.5], ["remove", "n"]])
    head, rule, *rows = shown[0]["text/markdown"].splitlines()
    assert (head, rule) == ("| edit | L1 |", "| --- | --: |")
    assert rows == ["| add a\\|b | 0.5 |", "| remove | n |"]
    assert shown[0]["text/plain"].splitlines()[2] == "remove   n"
    with pytest.raises(ValueError, match="must have 1 columns"):
        show_table(["edit"], [["add", 0.5]])


def test_a_hostile_caption_stays_text(monkeypatch):
    shown = []
    monkeypatch.setattr(teaching, "display", lambda data, raw: shown.append(data))
    hostile = "a cat<script>alert(1)</script>\n| x |\n\n<img src=x onerror=y> & \x85z"
    show_table(["caption", "edit"], [[hostile, "add a dog"]], align_left=True)
    markdown = shown[0]["text/markdown"]
    assert "<" not in markdown and len(markdown.splitlines()) == 3
    assert "&lt;script&gt;" in markdown and "\\| x \\|" in markdown


def test_words_in_a_table_stand_on_the_left(monkeypatch):
    shown = []
    monkeypatch.setattr(teaching, "display", lambda data, raw: shown.append(data))
    show_table(["caption", "instruction"], [["a cat", "add a dog"]], align_left=True)
    assert shown[0]["text/markdown"].splitlines()[1] == "| --- | --- |"


def spec_of_double(double):
    assert double(2) == 4, "double(2) should be 4"


def test_check_tells_stub_wrong_and_right_apart():
    def stub(x):
        raise NotImplementedError

    assert check_exercise(stub, spec_of_double).startswith("not attempted: fill in stub")
    wrong = check_exercise(lambda x: x, spec_of_double)
    assert wrong.startswith("not yet: double(2) should be 4")
    assert check_exercise(lambda x: 2 * x, spec_of_double) == "passed"


def test_check_lets_errors_inside_the_attempt_through():
    with pytest.raises(ZeroDivisionError):
        check_exercise(lambda x: x / 0, spec_of_double)


def test_good_parameters_come_back_by_name():
    assert check_parameters(GOOD | {"other": 1}, **RULES) == GOOD


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SCALE", "minature", "SCALE must be one of .* got 'minature'"),
        ("SCALE", "minature", "nearest: 'miniature'"),
        ("SCALE", 3, "SCALE must be one of"),
        ("STEPS", 0, "STEPS must be a whole number from 1 to 200, got 0"),
        ("STEPS", 201, "STEPS must be a whole number"),
        ("STEPS", 5.5, "STEPS must be a whole number"),
        ("STEPS", True, "STEPS must be a whole number"),
        ("STEPS", "20", "STEPS must be a whole number"),
        ("TEXT_SCALE", float("nan"), "TEXT_SCALE must be a number from 0.0 to 20.0"),
        ("TEXT_SCALE", -0.1, "TEXT_SCALE must be a number"),
        ("INSTRUCTION", "  ", "INSTRUCTION must be text that is not empty"),
        ("WIDGETS", 1, "WIDGETS must be True or False, got 1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value, message):
    with pytest.raises(ParameterError, match=message):
        check_parameters(GOOD | {name: value}, **RULES)


def test_a_parameter_missing_from_the_cell_is_named():
    with pytest.raises(ParameterError, match="cell must set STEPS"):
        check_parameters({k: v for k, v in GOOD.items() if k != "STEPS"}, **RULES)


def test_the_ends_of_an_interval_are_allowed_and_ints_are_numbers():
    for text_scale in (0.0, 20.0, 3):
        assert check_parameters({"S": text_scale}, S=(0.0, 20.0)) == {"S": text_scale}


@pytest.mark.parametrize(
    ("injected", "nearest"),
    [("stepz = 9", "STEPS"), ("SCALES = 'smoke'", "SCALE"), ("text = 1", "TEXT_SCALE")],
)
def test_a_name_that_papermill_injected_must_exist(injected, nearest):
    history = ["", "STEPS = 20", f"# Parameters\nSTEPS = 9\n{injected}\n"]
    with pytest.raises(ParameterError, match=f"did you mean {nearest}\\?"):
        check_parameters(GOOD | {"In": history}, **RULES)


def test_parameters_that_look_like_secrets_are_refused_without_their_value():
    history = ["# Parameters\nOPENAI_API_KEY = 'sk-canary'\n"]
    with pytest.raises(ParameterError, match="environment variable") as caught:
        check_parameters(GOOD | {"In": history}, **RULES)
    assert "canary" not in str(caught.value)
