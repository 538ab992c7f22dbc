"""One HTML page of executed notebooks: no network, no JavaScript, images inside.

nbconvert converts the cells; here equations become MathML, widgets their stills, and
images from the network (badges) their description, so that the page can be read
offline.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from latex2mathml.converter import convert as to_mathml
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from jobs.notebooks.outputs import WIDGET

STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True)
class Run:
    """One executed notebook: seconds of wall time, peak MiB of all its processes."""

    name: str
    output: str
    seconds: float
    peak_mib: int
    error: str | None = None


def _to_mathml(formula: str, display: str) -> str:
    """MathML; what cannot be set, or brings markup of its own, stays text."""
    try:
        math = to_mathml(formula, display=display)
    except Exception:  # of many kinds
        math = ""
    tags = set(re.findall(r"</?([^\s>/]+)", math))
    if not math or any(tag[0] != "m" for tag in tags) or "href" in math:
        return html.escape(f"${formula}$")
    return str(math)


class _Renderer(IPythonRenderer):
    """Markdown with equations as MathML and without images from the network."""

    def block_math(self, body: str) -> str:
        formula, *number = re.split(r"\\tag\{(.*?)\}", body)
        math = _to_mathml((formula + "".join(number[1:])).strip(), "block")
        label = f"<span>({html.escape(number[0])})</span>" if number else ""
        return f'<div class="equation">{math}{label}</div>'

    def inline_math(self, body: str) -> str:
        return _to_mathml(body.strip(), "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def image(self, text: str, url: str, title: str | None = None) -> str:
        # Neither the network nor an attachment: our markdown cells have none.
        if re.match(r"//|[a-z][a-z0-9+.-]*:", url.strip().lower()):
            return html.escape(text)
        return super().image(text, url, title)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        # Anything else may run code (javascript:, data:) or name a file of the reader.
        if re.match(r"https?://|#|[\w.-][\w./-]*(#|$)", url.strip(), re.IGNORECASE):
            return super().link(text, url, title)
        return text


class ReportExporter(HTMLExporter):
    """nbconvert's plain cells, with all markdown converted by ``_Renderer``."""

    folder = ""  # images named in markdown are read from here

    def markdown2html(self, source: str) -> str:
        """Convert Markdown; nbconvert's templates call it."""
        renderer = _Renderer(
            escape=False, embed_images=True, path=self.folder, exclude_anchor_links=True
        )
        return MarkdownWithMath(renderer=renderer).render(source)


def report_page(runs: Sequence[Run], out: Path, notebooks: Path) -> str:
    """Make the page of these runs, in order.

    Args:
        runs: executed notebooks, their files in ``out``.
        notebooks: folder of the sources, which has the images that markdown names.
    """
    exporter = ReportExporter(template_name="basic")
    exporter.folder = str(notebooks)
    exporter.log.setLevel("ERROR")
    executed = [nbformat.read(out / run.output, as_version=4) for run in runs]
    pairs = list(zip(runs, executed, strict=True))
    sections = [_section(run, notebook, exporter) for run, notebook in pairs]
    style = STYLE.read_text() + HtmlFormatter().get_style_defs(".highlight")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>InstructPix2Pix notebooks</title><style>{style}</style></head>\n<body>"
        f"{_contents(pairs)}\n{''.join(sections)}</body></html>\n"
    )


def _contents(pairs: Sequence[tuple[Run, NotebookNode]]) -> str:
    """A table: notebook, its title, how long it took, how much memory."""
    rows = "".join(
        f'<tr><td><a href="#{run.name}">{run.name}</a></td><td>{_title(notebook)}</td>'
        f"<td>{run.seconds:.0f} s</td><td>{run.peak_mib / 1024:.1f} GiB</td></tr>"
        for run, notebook in pairs
    )
    head = "<tr><th>notebook</th><th></th><th>time</th><th>peak memory</th></tr>"
    return f"<nav><h1>InstructPix2Pix notebooks</h1><table>{head}{rows}</table></nav>"


def _title(notebook: NotebookNode) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return html.escape(cell.source.splitlines()[0][2:])
    return ""


def _section(run: Run, notebook: NotebookNode, exporter: ReportExporter) -> str:
    notebook.metadata.pop("widgets", None)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"{run.name}-{index}"  # unique on a page of several notebooks
        for output in cell.get("outputs", []):
            for live in (WIDGET, "application/javascript"):
                output.get("data", {}).pop(live, None)
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="#\1"', body)
    failed = f'<p class="failed">{html.escape(run.error)}</p>' if run.error else ""
    return f'<section id="{run.name}">{failed}{body}</section>\n'
