"""What the notebooks need to teach with: sources, exercises, checked parameters.

No section of the paper stands here. ``show_source`` puts the library's own code into a
notebook, so that the code a reader studies is the code that runs; ``show_table`` sets
out what a cell computed; ``check`` marks an exercise; ``check_parameters`` refuses a
misspelt or impossible parameter before a model is loaded, however it came in: typed by
hand, or passed with ``papermill -p``.
"""

from __future__ import annotations

import ast
import difflib
import html
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from IPython.display import display

Allowed = type | tuple[float, float] | Collection[Any]
SECRETS = ("key", "token", "secret", "password")
_INJECTED = "# Parameters"  # first line of the cell that papermill inserts


class ParameterError(ValueError):
    """A notebook parameter that cannot be used; the message says what to do."""


def show_source(thing: Callable[..., Any] | type) -> None:
    """Display the source of a library function or class as highlighted Python.

    The output is Markdown, which JupyterLab, Colab, GitHub and exported HTML all
    colour without JavaScript; its first line says where the code lives.

    Raises:
        TypeError: ``thing`` has no Python source (a built-in, or not a function).
    """
    try:
        lines, first = inspect.getsourcelines(thing)
        file = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "")
    except (TypeError, OSError) as error:
        raise TypeError(
            f"show_source needs a function or class written in Python, got {thing!r}."
        ) from error
    source = inspect.cleandoc("\n" + "".join(lines))
    where = f"# {file.parent.name}/{file.name}, line {first}"
    text = f"{where}\n{source}"
    display({"text/markdown": f"```python\n{text}\n```", "text/plain": text}, raw=True)


def show_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, words: bool = False
) -> None:
    """Display a table: the first column holds names, the others numbers as text.

    Like ``show_source`` it is Markdown, and plain text where Markdown is not drawn.

    Args:
        header: the columns' names.
        rows: as long as the header; what is no text is shown by ``str``.
        words: every column holds words, which stand on the left.

    Raises:
        ValueError: a row has another number of columns.
    """
    texts = [[" ".join(str(cell).split()) for cell in row] for row in (header, *rows)]
    if {len(row) for row in texts} != {len(header)}:
        raise ValueError(f"Every row must have {len(header)} columns: {list(header)}.")
    rule = ["---", *["---" if words else "--:"] * (len(header) - 1)]
    marked = [[_as_markdown(cell) for cell in row] for row in texts]
    lines = [f"| {' | '.join(row)} |" for row in (marked[0], rule, *marked[1:])]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    plain = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in texts]
    shown = {"text/markdown": "\n".join(lines), "text/plain": "\n".join(plain)}
    display(shown, raw=True)


def _as_markdown(cell: str) -> str:
    """Text as text: captions come from anywhere and must not become part of a page."""
    return html.escape(cell, quote=False).replace("|", "\\|")


def check(attempt: Callable[..., Any], spec: Callable[[Any], None]) -> str:
    """Mark an exercise; a stub that nobody has filled in yet is no failure.

    Args:
        attempt: the reader's function; the stub raises ``NotImplementedError``.
        spec: calls its argument, the attempt, and asserts what must hold, each
            assertion with a message that helps.

    Returns:
        ``"passed"``, ``"not attempted: ..."`` or ``"not yet: <the message>"``. Errors
        inside the attempt itself are raised, with their traceback.
    """
    name = getattr(attempt, "__name__", "the function")
    try:
        spec(attempt)
    except NotImplementedError:
        return f"not attempted: fill in {name} and run this cell again"
    except AssertionError as error:
        return f"not yet: {error or 'an assertion of the exercise failed'}"
    return "passed"


def check_parameters(
    namespace: Mapping[str, Any], **allowed: Allowed
) -> dict[str, Any]:
    """Check every parameter of a notebook, before anything is loaded.

    Call it right after the cell tagged ``parameters``::

        check_parameters(globals(), SCALE=SCALES, STEPS=(1, 200), PROMPT=str)

    Args:
        namespace: the notebook's ``globals()``.
        allowed: for each parameter, by name, what it may be: a pair of numbers is a
            closed interval (two ints ask for an int); ``str`` is any text that is not
            blank; ``bool`` is True or False; any other collection lists the choices.

    Returns:
        The checked values by name.

    Raises:
        ParameterError: a value is out of range or missing, or papermill passed a name
            that this notebook does not have; the message names the nearest valid one.
    """
    check_names(_injected_names(namespace), allowed)
    missing = [name for name in allowed if name not in namespace]
    if missing:
        raise ParameterError(f"The parameters cell must set {', '.join(missing)}.")
    return {n: check_value(n, namespace[n], rule) for n, rule in allowed.items()}


def check_names(names: Iterable[str], known: Collection[str]) -> None:
    """Refuse names that are not known, and names that look like a secret.

    Raises:
        ParameterError: names the first offender and what to use instead. A secret is
            refused since papermill writes every parameter into the output notebook.
    """
    for name in names:
        if any(word in name.lower() for word in SECRETS):
            raise ParameterError(
                f"Parameter {name} looks like a secret, and parameters are written "
                "into the executed notebook. Set it as an environment variable instead."
            )
        if name not in known:
            raise ParameterError(
                f"There is no parameter {name}; did you mean {_nearest(name, known)}? "
                f"Parameters here: {', '.join(known)}."
            )


def check_value(name: str, value: Any, allowed: Allowed) -> Any:
    """Return ``value`` if it is allowed (see ``check_parameters``).

    Raises:
        ParameterError: says what the parameter may be.
    """
    fits, wanted = _test(value, allowed)
    if not fits:
        raise ParameterError(f"{name} must be {wanted}, got {value!r}.")
    return value


def _test(value: Any, allowed: Allowed) -> tuple[bool, str]:
    """Whether the value fits, and what would, in words."""
    if allowed is bool:
        return isinstance(value, bool), "True or False"
    if allowed is str:
        return isinstance(value, str) and bool(value.strip()), "text that is not empty"
    if isinstance(allowed, type):
        raise TypeError(f"Only bool and str stand for a whole type, not {allowed!r}.")
    if isinstance(allowed, tuple) and len(allowed) == 2 and _is_number(*allowed):
        return _in_interval(value, *allowed)
    choices = list(allowed)
    hint = f" (nearest: {_nearest(value, choices)!r})" if isinstance(value, str) else ""
    return value in choices, f"one of {', '.join(map(repr, choices))}{hint}"


def _in_interval(value: Any, low: float, high: float) -> tuple[bool, str]:
    whole = isinstance(low, int) and isinstance(high, int)
    kind = int if whole else (int, float)
    fits = _is_number(value) and isinstance(value, kind) and low <= value <= high
    return fits, f"a {'whole ' if whole else ''}number from {low} to {high}"


def _is_number(*values: Any) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _nearest(name: str, known: Collection[str]) -> str:
    """The known name that looks most like this one, whatever its case."""
    by_lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.0)
    return by_lower[close[0]] if close else "none: this notebook takes no parameters"


def _injected_names(namespace: Mapping[str, Any]) -> list[str]:
    """Names that papermill assigned, read from IPython's record of executed cells."""
    cells = [c for c in namespace.get("In", []) if c.startswith(_INJECTED)]
    statements = ast.parse(cells[-1]).body if cells else []
    targets = [t for s in statements if isinstance(s, ast.Assign) for t in s.targets]
    return [t.id for t in targets if isinstance(t, ast.Name)]
