"""Check the settings of a run against every notebook, before any kernel starts.

Names and defaults come from papermill's ``inspect_notebook``, allowed values from the
notebook's own call of ``check_parameters``, so that each range is in one place.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill

from ip2p_lib.config import SCALES
from ip2p_lib.notebook.lesson import (
    Allowed,
    ParameterError,
    check_names,
    check_value,
)

_SETTING = re.compile(  # a value in quotes, or all up to the next name
    r"""\s*\w+=(?:"[^"]*"|'[^']*')(?=\s|$)|.+?(?=\s+[A-Z][A-Z0-9_]*=|\s*$)""", re.DOTALL
)
_NAMES: dict[str, Allowed] = {
    "str": str,
    "bool": bool,
    "Path": Path,
    "SCALES": tuple(SCALES),
}


def defaults(path: Path) -> dict[str, Any]:
    """Read each parameter of a notebook and its default, in order."""
    parameters = papermill.inspect_notebook(path)
    return {name: ast.literal_eval(p["default"]) for name, p in parameters.items()}


def allowed_values(path: Path) -> dict[str, Allowed]:
    """Read what the notebook's call of ``check_parameters`` allows, without running it.

    Raises:
        ValueError: there is no such call, or a range in it is not a literal.
    """
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "check_parameters(" in cell.source:
            for node in ast.walk(ast.parse(cell.source)):
                if (
                    isinstance(node, ast.Call)
                    and _name(node.func) == "check_parameters"
                ):
                    return {str(k.arg): _rule(k.value) for k in node.keywords}
    raise ValueError(f"{path.name} never calls check_parameters.")


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=value`` texts; one may hold several settings, a value several words.

    Quotes around a whole value do not belong to it.

    Raises:
        ParameterError: a text has no name and equals sign, a quote is open, or a name
            has two values.
    """
    settings: dict[str, str] = {}
    for part in (part.strip() for text in texts for part in _SETTING.findall(text)):
        name, equals, value = part.partition("=")
        quoted = value[:1] in ("'", '"') and value[:1] == value[1:][-1:]
        value = value[1:-1] if quoted else value
        if part and (not equals or value.startswith('"')):
            raise ParameterError(
                f"{part!r} sets nothing. Write NAME=value in one pair of quotes, "
                "such as 'INSTRUCTION=make it night'."
            )
        if part and settings.setdefault(name, value) != value:
            raise ParameterError(f"{name} has two values; give it once.")
    return settings


def check_settings(
    paths: Sequence[Path], settings: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Turn ``NAME=value`` texts into each notebook's parameters.

    A setting applies to every notebook that has the parameter, and at least one must.

    Raises:
        ParameterError: an unknown name (the message has the nearest), a name that looks
            like a secret, or a value out of range.
    """
    known = {path: defaults(path) for path in paths}
    check_names(settings, list({name: 0 for names in known.values() for name in names}))
    chosen: dict[str, dict[str, Any]] = {path.stem: {} for path in paths}
    for path, names in known.items():
        rules = allowed_values(path)
        for name in names.keys() & settings.keys():
            value = _typed(settings[name], names[name])
            if rules[name] is Path and value != names[name]:
                # The notebook runs in its own folder, the path is the caller's.
                value = str(Path(value).expanduser().absolute())
            chosen[path.stem][name] = check_value(name, value, rules[name])
    return chosen


def _typed(text: str, default: Any) -> Any:
    """Convert the text to the default's type; what cannot be converted stays text."""
    if isinstance(default, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _rule(node: ast.expr) -> Allowed:
    known = _NAMES.get(_name(node) or "")
    return ast.literal_eval(node) if known is None else known
