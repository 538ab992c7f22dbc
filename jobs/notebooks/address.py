"""Write the repository's address into pyproject.toml, README.md and the notebooks.

    make address REPO=owner/name     sets it, with badges and cells for Colab
    make address REPO=               removes it everywhere

The address is in one place, ``[project.urls]`` of pyproject.toml. Only while it is set
do links to Colab, and cells that clone the project there, exist.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from ip2p_lib.config import ROOT
from ip2p_lib.files import write_bytes
from jobs.notebooks.outputs import COLAB, tags
from jobs.notebooks.run import find

PYPROJECT, README = ROOT / "pyproject.toml", ROOT / "README.md"
_OPEN = "https://colab.research.google.com/github/{repo}/blob/main/notebooks/{name}"
_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
_CLONE = """\
# In Colab only: fetch the project and the two small packages that Colab lacks.
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    url = "{url}"
    here = Path("/content/{folder}")
    if not here.exists():
        subprocess.run(["git", "clone", "-q", "--depth", "1", url, here], check=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "-r"]
        subprocess.run([*pip, here / "requirements-colab.txt"], check=True)
    sys.path.insert(0, str(here))"""


def in_pyproject(text: str, repo: str | None) -> str:
    """pyproject.toml with the address, or without one."""
    text = re.sub(r'\[project\.urls\]\nRepository = ".*"\n\n', "", text)
    urls = f'[project.urls]\nRepository = "https://github.com/{repo}"\n\n'
    section = "[project.optional-dependencies]"
    return text.replace(section, urls + section) if repo else text


def in_readme(text: str, repo: str | None) -> str:
    """The README with a link to Colab beside each notebook, and the clone command."""
    text = re.sub(r" \[Colab\]\([^)]*\)", "", text)
    url = f"https://github.com/{repo}" if repo else "ADDRESS"
    text = re.sub(r"git clone --depth 1 [^\s`]+", f"git clone --depth 1 {url}", text)
    if not repo:
        return text
    link = _OPEN.format(repo=repo, name=r"\2")
    return re.sub(r"(\]\(notebooks/(\d\d_\w+\.ipynb)\))", rf"\1 [Colab]({link})", text)


def in_notebook(notebook: NotebookNode, name: str, repo: str | None) -> NotebookNode:
    """The notebook with a badge and a cell for Colab below its title, or without."""
    cells = [cell for cell in notebook.cells if COLAB not in tags(cell)]
    if repo:
        link = _OPEN.format(repo=repo, name=name)
        url, folder = f"https://github.com/{repo}.git", repo.split("/")[1]
        badge = new_markdown_cell(f"[![Open In Colab]({_BADGE})]({link})")
        clone = new_code_cell(_CLONE.format(url=url, folder=folder))
        for cell, part in ((badge, "badge"), (clone, "clone")):
            cell.id, cell.metadata["tags"] = f"{COLAB}-{part}", [COLAB]
        cells[1:1] = [badge, clone]
    return nbformat.from_dict({**notebook, "cells": cells})


def write_address(repo: str | None) -> None:
    """Write the address everywhere, or remove it.

    Raises:
        ValueError: ``repo`` is not of the form ``owner/name``.
    """
    if repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"REPO must be owner/name, got {repo!r}.")
    for path, edit in ((PYPROJECT, in_pyproject), (README, in_readme)):
        write_bytes(path, edit(path.read_text("utf-8"), repo).encode())
    for path in find([]):
        notebook = in_notebook(nbformat.read(path, as_version=4), path.name, repo)
        write_bytes(path, f"{nbformat.writes(notebook)}\n".encode())


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    try:
        write_address(arguments[0] if arguments and arguments[0] else None)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
