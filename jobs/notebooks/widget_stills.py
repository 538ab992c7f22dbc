"""Still pictures of widgets, for readers without a kernel.

A widget is drawn by JavaScript from its state. Here the saved state is turned into
plain HTML with inline styles, which web pages that show notebooks leave in.
"""

from __future__ import annotations

import html
from typing import Any

from nbformat import NotebookNode

STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"
_BOX = "display:flex;flex-direction:{};gap:8px;align-items:flex-start;margin:4px"
_EDGE = "border:1px solid #bbb;border-radius:3px;padding:2px 8px;background:#f4f4f4"

Widgets = dict[str, dict[str, Any]]


def replace_widgets(notebook: NotebookNode) -> None:
    """Put a still picture in place of every widget, and drop the saved state."""
    saved = notebook.metadata.pop("widgets", {})
    widgets: Widgets = saved.get(STATE, {}).get("state", {})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            view = output.get("data", {}).pop(VIEW, None)
            if view is not None:
                text = still(view["model_id"], widgets)
                output.data["text/html"] = f"<div>{text}</div>"
                output.data["text/plain"] = "[a widget, shown as a still picture]"


def still(model_id: str, widgets: Widgets) -> str:
    """HTML of one widget and all inside it; empty for what has no picture."""
    widget = widgets.get(model_id, {})
    state, kind = widget.get("state", {}), widget.get("model_name", "")
    if "children" in state:
        children = "".join(still(_reference(c), widgets) for c in state["children"])
        direction = "row" if kind.startswith("HBox") else "column"
        return f'<div style="{_BOX.format(direction)}">{children}</div>'
    if kind == "ImageModel":
        return _image(widget)
    if kind.startswith("HTML"):
        return f"<div>{state.get('value', '')}</div>"
    if kind == "OutputModel":
        texts = (o.get("text", "") for o in state.get("outputs", []))
        return f"<pre>{html.escape(''.join(texts))}</pre>"
    return _control(state)


def _control(state: dict[str, Any]) -> str:
    """A button, slider, text field or menu: its label and its value."""
    label = html.escape(str(state.get("description") or ""))
    value = _value(state)
    if value is None:
        return f'<span><span style="{_EDGE}">{label}</span></span>' if label else ""
    return f'<span>{label} <span style="{_EDGE}">{html.escape(value)}</span></span>'


def _value(state: dict[str, Any]) -> str | None:
    if "_options_labels" in state:
        labels, index = state["_options_labels"], state.get("index")
        return "" if index is None else str(labels[index])
    value = state.get("value")
    if isinstance(value, float):
        return f"{value:g}"
    return None if value is None else str(value)


def _image(widget: dict[str, Any]) -> str:
    data = next((b["data"] for b in widget.get("buffers", [])), "")
    kind = html.escape(str(widget["state"].get("format", "png")))
    alt = 'alt="picture in a widget" style="max-width:100%"'
    return f'<img src="data:image/{kind};base64,{data.strip()}" {alt}>' if data else ""


def _reference(child: str) -> str:
    return child.removeprefix("IPY_MODEL_")
