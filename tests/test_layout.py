"""The house: rooms, the one rule of imports, sizes, packages and links."""

import ast
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from ip2p_lib.config import ROOT

LIBRARY = ROOT / "ip2p_lib"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CODE = ("ip2p_lib", "jobs", "benchmarks", "tests")
SOURCES = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]

# A file imports its own room and rooms to its left; "leaves" are beside the rooms.
ORDER = ["leaves", "notebook", "diffusion", "triplets", "rendering", "filtering"]
ORDER += ["dataset", "editing", "evaluation", "training"]
# The drawn world is no stage: it may import up to filtering, and no stage imports it.
ALLOWED = {room: ORDER[: i + 1] for i, room in enumerate(ORDER)}
ALLOWED["miniature"] = [*ORDER[: ORDER.index("filtering") + 1], "miniature"]

# What a Colab session had installed in August 2026: the project must not ask for more.
COLAB = {
    "diffusers": "0.39.0",
    "huggingface_hub": "1.27.0",
    "accelerate": "1.14.0",
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
    "ipywidgets": "7.7.1",
    "numpy": "2.1.3",
    "openai": "2.54.0",
    "pillow": "11.3.0",
    "tokenizers": "0.22.2",
    "torch": "2.11.0",
    "transformers": "5.15.0",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in LIBRARY.rglob("*.py")}


def room_of(module: str) -> str:
    room = module.split(".")[1] if "." in module else "leaves"
    return room if room in ALLOWED else "leaves"


def imports_of(path: Path) -> set[str]:
    """Modules of the library that a file imports, inside functions and types too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {node.module} if not inner & set(MODULES) else inner
    return names & set(MODULES)


def test_a_file_imports_its_own_room_and_rooms_to_its_left():
    for module, path in MODULES.items():
        rooms = {room_of(name) for name in imports_of(path)}
        assert rooms <= set(ALLOWED[room_of(module)]), module


def test_no_two_files_import_each_other_in_a_circle():
    left = {name: imports_of(path) - {name} for name, path in MODULES.items()}
    while left:
        free = {name for name, needs in left.items() if not needs & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def test_rooms_stay_small():
    assert len([p for p in LIBRARY.glob("*.py") if p.stem != "__init__"]) <= 10
    for folder in (p for p in LIBRARY.rglob("*") if p.is_dir()):
        files = [p for p in folder.glob("*.py") if p.stem != "__init__"]
        assert len(files) <= 12, folder.name


def test_files_and_functions_stay_short():
    long = []
    for path in SOURCES:
        text, name = path.read_text("utf-8"), str(path.relative_to(ROOT))
        nodes = ast.walk(ast.parse(text))
        functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
        lines = {f"{name} {f.name}": (f.end_lineno or 0) - f.lineno for f in functions}
        long += [function for function, n in lines.items() if n + 1 > 40]
        long += [name] if len(text.splitlines()) > 400 else []
    assert long == []


def test_links_in_the_documents_lead_somewhere_and_the_readme_names_the_notebooks():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#\s]+)|src=\"([^\"]+)\"", document.read_text())
        local = [a or b for a, b in links if "://" not in (a or b)]
        missing = [link for link in local if not (ROOT / link).exists()]
        assert missing == [], document.name
    readme = (ROOT / "README.md").read_text()
    assert [p.name for p in NOTEBOOKS if f"notebooks/{p.name}" not in readme] == []


def test_conda_users_get_the_packages_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, _, pip = environment["dependencies"]
    packages = [line for line in pip["pip"] if not line.startswith("-")]
    assert packages == PROJECT["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"


def test_every_dependency_is_bounded_and_its_tested_version_within_the_bounds():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    tested = {p.name.replace("_", "-").lower(): str(p.specifier)[2:] for p in pins}
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]:
        requirement = Requirement(text)
        assert {s.operator for s in requirement.specifier} == {">=", "<"}, requirement
        version = tested[requirement.name.replace("_", "-").lower()]
        assert requirement.specifier.contains(version), f"{requirement}: {version}"


def test_colab_needs_no_upgrade():
    requirements = [Requirement(text) for text in PROJECT["dependencies"]]
    for requirement in requirements:
        version = COLAB.get(requirement.name)
        assert version is None or requirement.specifier.contains(version), requirement
    assert COLAB.keys() <= {r.name for r in requirements}
    lines = (ROOT / "requirements-colab.txt").read_text().splitlines()
    extra = {line for line in lines if line and not line.startswith("#")}
    assert extra <= set(PROJECT["dependencies"])
