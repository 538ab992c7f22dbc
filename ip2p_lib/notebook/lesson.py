"""What the notebooks teach with: source listings, tables, exercises, parameters.

``show_source`` displays the library's own code, so what a reader studies is what runs.
``check_parameters`` refuses a misspelt or impossible parameter before a model is
loaded, whether it was typed by hand or passed with ``papermill -p``.
"""

import ast
import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from IPython.display import display

Allowed = type | tuple[float, float] | Collection[Any]
SECRETS = ("key", "token", "secret", "password")
_MARKUP = re.compile(r"[\\`*_~<>\[\]&|$!#]|(?<=[a-zA-Z]):(?=/)")
_INJECTED = "# Parameters"  # first line of the cell that papermill inserts


class ParameterError(ValueError):
    """A notebook parameter that cannot be used; the message says what to do."""


def show_source(code: Callable[..., Any] | type) -> None:
    """Display the source of a function or class as Markdown, with its file and line."""
    lines, first = inspect.getsourcelines(code)
    source = inspect.cleandoc("\n" + "".join(lines))
    file = f"{inspect.unwrap(code).__module__.replace('.', '/')}.py"
    text = f"# {file}, line {first}\n{source}"
    display({"text/markdown": f"```python\n{text}\n```", "text/plain": text}, raw=True)


def show_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, align_left: bool = False
) -> None:
    """Display a table as Markdown, and as plain text where Markdown is not drawn.

    Rows are as long as the header, or a ValueError; cells are shown by ``str``;
    ``align_left`` aligns every column to the left, not only the first.
    """
    texts = [[" ".join(str(cell).split()) for cell in row] for row in (header, *rows)]
    if {len(row) for row in texts} != {len(header)}:
        raise ValueError(f"Every row must have {len(header)} columns: {list(header)}.")
    rule = ["---", *["---" if align_left else "--:"] * (len(header) - 1)]
    # Captions come from anywhere and must not become links, formulas or HTML. Entities,
    # because a front end finds formulas before it reads backslashes.
    escaped = [
        [_MARKUP.sub(lambda match: f"&#{ord(match[0])};", cell) for cell in row]
        for row in texts
    ]
    lines = [f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    plain = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in texts]
    bundle = {"text/markdown": "\n".join(lines), "text/plain": "\n".join(plain)}
    display(bundle, raw=True)


def check_exercise(solution: Callable[..., Any], test: Callable[[Any], None]) -> str:
    """Mark an exercise; an unfilled stub is not a failure.

    The stub raises ``NotImplementedError``; ``test`` takes the solution and asserts
    what must hold, with helpful messages. Returns ``"passed"``, ``"not attempted: .."``
    or ``"not yet: <the message>"``; other errors inside the solution are raised.
    """
    try:
        test(solution)
    except NotImplementedError:
        return f"not attempted: fill in {solution.__name__} and run this cell again"
    except AssertionError as error:
        return f"not yet: {error or 'an assertion of the exercise failed'}"
    return "passed"


def check_parameters(
    namespace: Mapping[str, Any], **allowed: Allowed
) -> dict[str, Any]:
    """Check, and return, all parameters, after the cell tagged ``parameters``.

    Args:
        namespace: the notebook's ``globals()``.
        allowed: for each parameter, by name, what it may be: a pair of numbers is a
            closed interval (two ints ask for an int); ``str`` is any text that is not
            blank, ``Path`` one that may name a file; ``bool`` is True or False; any
            other collection lists the choices.

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
    """Raise ParameterError for an unknown name, or one that looks like a secret.

    Papermill writes every parameter into the output notebook.
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
    """Return ``value`` if it is allowed, else raise ParameterError."""
    if isinstance(allowed, type):  # bool, str or Path
        kind = str if allowed is Path else allowed
        valid = isinstance(value, kind) and bool(str(value).strip())
        expected = "True or False" if allowed is bool else "text that is not empty"
    elif isinstance(allowed, tuple) and len(allowed) == 2 and _is_number(*allowed):
        low, high = allowed
        whole = isinstance(low, int) and isinstance(high, int)
        number = _is_number(value) and (isinstance(value, int) or not whole)
        valid = number and low <= value <= high
        expected = f"a {'whole ' if whole else ''}number from {low} to {high}"
    else:
        valid = value in allowed
        expected = f"one of {', '.join(map(repr, allowed))}"
        if isinstance(value, str):
            expected += f" (nearest: {_nearest(value, [*map(str, allowed)])!r})"
    if not valid:
        raise ParameterError(f"{name} must be {expected}, got {value!r}.")
    return value


def _is_number(*values: Any) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _nearest(name: str, known: Collection[str]) -> str:
    """The most similar known name, whatever its case."""
    by_lower = {str(k).lower(): str(k) for k in known}
    (close,) = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)
    return by_lower[close]


def _injected_names(namespace: Mapping[str, Any]) -> list[str]:
    """Names that papermill assigned, read from IPython's record of executed cells."""
    cells = [c for c in namespace.get("In", []) if c.startswith(_INJECTED)]
    statements = ast.parse(cells[-1]).body if cells else []
    targets = [t for s in statements if isinstance(s, ast.Assign) for t in s.targets]
    return [t.id for t in targets if isinstance(t, ast.Name)]
