"""The tree is as the documents say: modules, imports, budgets, packages, links."""

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from layout_table import IMPORTS, PARTS, SHOWS
from packaging.requirements import Requirement

import ip2p_lib

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "ip2p_lib"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

MODULES = [p.stem for p in LIBRARY.glob("*.py") if p.stem != "__init__"]
SOURCES = sorted([*LIBRARY.rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOT_A_MODULE = {"overview", "miniature", "scaling"}  # notebooks on the whole

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


def named(path):
    return str(path.relative_to(ROOT))


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(root):
    """Names of the ip2p_lib modules imported in a piece of code, in whatever form."""
    found = set()
    for node in ast.walk(root):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    names = {name.split(".")[1] for name in found if name.startswith("ip2p_lib.")}
    return names & {*IMPORTS, "miniature"}


def split_off_types(module):
    """The code that runs, and the blocks that only type checkers read."""
    blocks = [n for n in module.body if isinstance(n, ast.If)]
    types = [b for b in blocks if "TYPE_CHECKING" in ast.dump(b.test)]
    runs = [n for n in module.body if n not in types]
    return ast.Module(runs, []), ast.Module(types, [])


def below(module):
    """Everything a module may reach, directly or through what it imports."""
    direct = set(IMPORTS[module].split())
    return direct.union(*(below(m) for m in direct))


def functions(path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]


def requirements(names):
    return [Requirement(text) for text in names]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = requirements(line for line in lines if line and not line.startswith("#"))
    return {r.name.replace("_", "-").lower(): str(r.specifier)[2:] for r in found}


def test_the_package_lists_its_modules_in_pipeline_order():
    lines = re.findall(r"^- .*?: (.*)$", ip2p_lib.__doc__, re.MULTILINE)
    names = [name for line in lines for name in line.split(", ")]
    assert sorted(names) == sorted(MODULES)
    assert set(IMPORTS) == set(MODULES)


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_a_module_imports_only_what_its_place_allows(module):
    runs, types = split_off_types(tree(LIBRARY / f"{module}.py"))
    assert imported_modules(runs) <= set(IMPORTS[module].split())
    assert imported_modules(types) <= below(module) | {"config"}


def test_imports_run_one_way():
    order = {}
    while len(order) < len(IMPORTS):
        ready = [
            m
            for m in IMPORTS
            if m not in order and set(IMPORTS[m].split()) <= set(order)
        ]
        assert ready, "the import table has a circle"
        order |= dict.fromkeys(ready)


def test_the_miniature_imports_no_widgets():
    for path in (LIBRARY / "miniature").glob("*.py"):
        assert "widgets" not in imported_modules(tree(path)), named(path)


@pytest.mark.parametrize("package", sorted(SHOWS))
def test_what_only_a_reader_looks_at_stays_apart(package):
    found = set()
    for path in SOURCES:
        runs, _ = split_off_types(tree(path))
        froms = [n.module for n in ast.walk(runs) if isinstance(n, ast.ImportFrom)]
        plain = [n.names for n in ast.walk(runs) if isinstance(n, ast.Import)]
        names = [*froms, *(alias.name for names in plain for alias in names)]
        found |= {path.stem for name in names if name.split(".")[0] == package}
    assert found == SHOWS[package]


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_every_module_is_tested_under_its_stage_name(module):
    stage = PARTS.get(module, module)
    test = ROOT / "tests" / f"test_{stage}.py"
    assert stage in imported_modules(tree(test))


def test_notebooks_are_numbered_and_named_after_their_stages():
    stages = {p.stem: p.stem.partition("_")[2] for p in NOTEBOOKS}
    assert stages and set(stages.values()) <= IMPORTS.keys() | NOT_A_MODULE
    expected = [f"{i:02d}_{stage}" for i, stage in enumerate(stages.values())]
    assert list(stages) == expected


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=named)
def test_files_and_functions_stay_within_their_budgets(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250
    lengths = {f.name: f.end_lineno - f.lineno + 1 for f in functions(path)}
    assert {name: n for name, n in lengths.items() if n > 40} == {}


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=named)
def test_public_functions_are_documented_and_typed(path):
    module = tree(path)
    assert ast.get_docstring(module), "a module says which section it is"
    tops = [n for n in module.body if isinstance(n, ast.FunctionDef)]
    for function in (f for f in tops if not f.name.startswith("_")):
        arguments = [*function.args.posonlyargs, *function.args.args]
        arguments += function.args.kwonlyargs
        untyped = [a.arg for a in arguments if a.annotation is None]
        assert ast.get_docstring(function), f"{function.name} has no docstring"
        assert not untyped and function.returns, f"{function.name}: {untyped} untyped"


def test_nothing_reads_or_writes_pickles_or_runs_remote_code():
    notebooks = [
        c["source"] for p in NOTEBOOKS for c in json.loads(p.read_text())["cells"]
    ]
    texts = {named(p): p.read_text(encoding="utf-8") for p in SOURCES}
    texts["notebooks"] = "\n".join("".join(source) for source in notebooks)
    forbidden = re.compile(
        r"\bpickle\b|torch\.(load|save)\(|trust_remote_code|manual_seed_all"
        r"|torch\.manual_seed|np\.random\.seed|random\.seed\("
    )
    assert {n: m.group() for n, t in texts.items() if (m := forbidden.search(t))} == {}


def test_links_in_the_documents_lead_somewhere():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#\s]+)|src=\"([^\"]+)\"", document.read_text())
        local = [a or b for a, b in links if "://" not in (a or b)]
        missing = [link for link in local if not (ROOT / link).exists()]
        assert missing == [], document.name


def test_the_readme_links_every_notebook():
    readme = (ROOT / "README.md").read_text()
    assert [p.name for p in NOTEBOOKS if f"notebooks/{p.name}" not in readme] == []


def test_conda_users_get_the_packages_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, _, pip = environment["dependencies"]
    packages = [line for line in pip["pip"] if not line.startswith("-")]
    assert packages == PROJECT["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"


def test_every_dependency_is_bounded_and_its_tested_version_within_the_bounds():
    tested = pins()
    extras = PROJECT["optional-dependencies"]
    for requirement in requirements(PROJECT["dependencies"] + extras["test"]):
        operators = {s.operator for s in requirement.specifier}
        assert operators == {">=", "<"}, requirement
        version = tested[requirement.name.replace("_", "-").lower()]
        assert requirement.specifier.contains(version), f"{requirement}: {version}"


def test_colab_needs_no_upgrade():
    for requirement in requirements(PROJECT["dependencies"]):
        version = COLAB.get(requirement.name)
        assert version is None or requirement.specifier.contains(version), requirement
    assert COLAB.keys() <= {r.name for r in requirements(PROJECT["dependencies"])}


def test_colab_installs_only_what_the_project_depends_on():
    lines = (ROOT / "requirements-colab.txt").read_text().splitlines()
    extra = {line for line in lines if line and not line.startswith("#")}
    assert extra <= set(PROJECT["dependencies"])
