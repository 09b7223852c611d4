"""Notebooks of the tutorials: valid, equal to the programs that other tests run, and linked from their pages."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from tests.docs.test_docs import ROOT, blocks, get_name, programs

nbformat = pytest.importorskip("nbformat")

SITE = "https://example.org/docs/"
REPOSITORY = "https://github.com/easytorch-fit/easytorch"


def load_builder():
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs/theme/notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


builder = load_builder()
TUTORIALS = builder.tutorials()


def code_cells(path):
    """Return the code cells that a page has, without those that its notebook adds."""
    cells = builder.convert(path, SITE, REPOSITORY).cells
    return [cell for cell in cells if cell.cell_type == "code" and "notebook" not in cell.metadata.get("tags", ())]


def statements(source):
    """Return the statements of a program without its docstring."""
    tree = ast.parse(source)
    return [ast.dump(node) for node in tree.body[ast.get_docstring(tree) is not None :]]


def examples(path):
    """Return the programs in examples/ that a page includes, in its order."""
    return re.findall(r'--8<-- "(examples/\w+\.py)"', path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TUTORIALS, ids=get_name)
def test_a_notebook_is_valid_and_reads_without_the_site(path):
    notebook = builder.convert(path, SITE, REPOSITORY)
    nbformat.validate(notebook)
    first, *others = notebook.cells
    assert f'%pip install -q "easytorch-fit[examples] @ git+{REPOSITORY}"' in first.source
    assert others[0].source.startswith("# ")
    prose = "\n".join(cell.source for cell in others if cell.cell_type == "markdown")
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", prose, flags=re.S)
    assert not re.search(r"^(---|!!!|\?\?\?|===) |--8<--|\){|\{#|^    (?=\w)[^\n]*[.:]$", prose, re.M)
    assert all(re.match("https?:", target) for target in re.findall(r"\]\(([^)]+)\)", prose))


@pytest.mark.parametrize("path", TUTORIALS, ids=get_name)
def test_code_cells_are_the_programs_that_ci_runs(path):
    """The programs of a page run in test_docs, and those of examples/ in tests/examples."""
    source = "\n".join(cell.source for cell in code_cells(path))
    included = {name: (ROOT / name).read_text(encoding="utf-8") for name in examples(path)}
    parts = [
        included[names[0]] if (names := re.findall(r'--8<-- "(examples/\w+\.py)"', block.text)) else block.text
        for block in blocks(path.read_text(encoding="utf-8"))
        if block in programs(path) or '--8<-- "examples/' in block.text
    ]
    assert statements(source) == [statement for part in parts for statement in statements(part)]
    comments = [line for part in parts for line in part.splitlines() if line.startswith("#")]
    assert [line for line in source.splitlines() if line.startswith("#")] == comments
    tests = "".join(test.read_text(encoding="utf-8") for test in (ROOT / "tests/examples").glob("test_*.py"))
    assert not [name for name in included if f'"{Path(name).name}"' not in tests]


@pytest.mark.parametrize("path", TUTORIALS, ids=get_name)
def test_quoted_output_is_the_output_of_its_cell(path):
    quoted = [block.output for block in programs(path) if block.output is not None]
    stored = [output.text.rstrip("\n") for cell in code_cells(path) for output in cell.outputs]
    assert stored == quoted


def test_a_program_is_divided_between_its_statements():
    source = '"""Docstring."""\n\nimport os\n\nimport sys\n\n# Data\nx = [\n\n    1]\n\n\ndef f():\n    a = 1\n\n    return a\n'
    cells = ["import os\n\nimport sys", "# Data\nx = [\n\n    1]", "def f():\n    a = 1\n\n    return a"]
    assert builder._paragraphs(source) == cells


def test_colab_opens_the_branch_that_the_workflow_writes():
    html = builder.links("notebooks/table.ipynb", "zh/tutorials/table/", REPOSITORY, "zh")
    colab, download = re.findall('href="(.+?)"', html)
    assert colab == (
        "https://colab.research.google.com/github/easytorch-fit/easytorch/blob/gh-pages/notebooks/table.ipynb"
    )
    assert download == "../../../notebooks/table.ipynb"
    workflow = (ROOT / ".github/workflows/docs.yml").read_text(encoding="utf-8")
    assert f"mkdocs gh-deploy --strict --force --remote-branch {builder.BRANCH}" in workflow


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensor-shapes", "time-series", "text-classification"])
def test_a_notebook_runs_in_a_kernel(name, tmp_path):
    """These need no download, and are the quickest. The programs of the others run in other tests."""
    nbclient = pytest.importorskip("nbclient")
    notebook = builder.convert(ROOT / f"docs/tutorials/{name}.md", SITE, REPOSITORY)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Result: parameters = " in printed
