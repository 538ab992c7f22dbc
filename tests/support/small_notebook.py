"""A small notebook in the house's form, for tests of what runs and publishes them."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

IMAGES = """
from PIL import Image
from IPython.display import display
import ipywidgets as widgets
from ip2p_lib.notebook import figures
from ip2p_lib.notebook.panel import Panel

class Small(Panel):
    def still(self):
        return figures.show_grid([[Image.new("RGB", (8, 8), "gold")]])

display(Image.new("RGB", (8, 8), "gold"))
Small([widgets.FloatSlider(value=7.5, description="text scale")])
"""


def write_notebook(path, *extra_cells):
    """Write a small notebook, with parameters, and more code cells if given."""
    parameters = new_code_cell('SCALE = "smoke"  # size\nSTEPS = 3  # how many, 1 to 9')
    parameters.metadata["tags"] = ["parameters"]
    rules = "check_parameters(globals(), SCALE=SCALES, STEPS=(1, 9))"
    cells = [
        new_markdown_cell(
            "# Count steps\n\nWith $e^{i\\pi} = -1$ ![badge](https://x.y/z.svg)"
        ),
        new_code_cell(
            "from ip2p_lib.config import SCALES\n"
            "from ip2p_lib.notebook.lesson import check_parameters, show_source"
        ),
        parameters,
        new_code_cell(f"{rules}\nprint('model loaded', STEPS)"),
        *map(new_code_cell, extra_cells),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def outputs_of(notebook):
    """All outputs of a notebook, in order."""
    return [o for cell in notebook.cells for o in cell.get("outputs", [])]


def text_of(notebook):
    """All that a notebook printed."""
    return "".join(o.get("text", "") for o in outputs_of(notebook))
