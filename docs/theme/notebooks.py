"""Notebooks of the tutorials, built from their Markdown pages.

Prose becomes Markdown cells. Blocks that the tests run, and the programs that a page includes, become code cells. Quoted
output is stored as the output of its cell.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import posixpath
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import nbformat

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FOLDER = "notebooks"
BRANCH = "gh-pages"  # the workflow docs.yml writes the site into this branch, and Colab opens files of a branch
LABELS = {"en": ("Open in Colab", "Download notebook"), "zh": ("在 Colab 中打开", "下载笔记本")}
COMMENTS = {
    "en": (
        "Install the packages once, for example in Colab",
        "Little data. Remove --quick for the results of the page",
    ),
    "zh": ("在 Colab 等环境中安装一次", "数据较少。去掉 --quick 可得到页面上的结果"),
}

FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)(?P=fence) *$", re.M | re.S
)
INCLUDE = re.compile(r'\s*--8<-- "(?P<path>[\w./-]+)"\s*')
COMMAND = re.compile(r"\s*python (?P<path>examples/\w+\.py)(?P<options>.*)\s*")
LINK = re.compile(r"(?P<image>!?)(?P<start>\[(?:`[^`]*`|[^\]`])*\]\()(?P<target>[^)\s]+)\)")
ATTRIBUTES = re.compile(r"(?<=\))\{[^}\n]*\}| *\{[^}\n]*\}$", re.M)  # of images, and of headings
NOTE = re.compile(r'^(?:!!!|\?\?\?\+?) \w+(?: "(?P<title>[^"]*)")?\n(?P<body>(?:(?: {4}.*)?\n)*)', re.M)


class Fence(NamedTuple):
    """A fenced block without its indent, and the prose before it."""

    prose: str
    info: str
    body: str

    @property
    def included(self) -> Path | None:
        """The file that the block includes, if it includes one."""
        match = INCLUDE.fullmatch(self.body)
        return ROOT / match["path"] if match else None


def tutorials() -> list[Path]:
    """Return the pages that have a notebook, of both languages."""
    pages = [*DOCS.glob("tutorials/*.md"), *DOCS.glob("zh/tutorials/*.md")]
    return sorted(page for page in pages if page.stem != "index")


def file_of(page: str) -> str | None:
    """Return the path in the site of the notebook of a page such as ``tutorials/table.md``, or None if it has none."""
    match = re.fullmatch(r"(zh/)?tutorials/([\w-]+)\.md", page)
    return f"{FOLDER}/{match[1] or ''}{match[2]}.ipynb" if match and match[2] != "index" else None


def links(file: str, url: str, repository: str, language: str) -> str:
    """Return the HTML of the links to a notebook, for the page at ``url``."""
    colab, download = LABELS[language]
    address = f"https://colab.research.google.com/github{urlsplit(repository).path}/blob/{BRANCH}/{file}"
    local = posixpath.relpath(file, url or ".")
    # The words of these links would be found on each tutorial.
    return (
        f'<p class="easytorch-notebook" data-search-exclude><a href="{address}">{colab}</a>'
        f'<a href="{local}" download>{download}</a></p>'
    )


def write_all(site: Path, site_url: str, repository: str) -> None:
    """Write the notebooks of all tutorials into the folder of the site."""
    for path in tutorials():
        file = site / str(file_of(path.relative_to(DOCS).as_posix()))
        file.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(convert(path, site_url, repository), file)


def convert(path: Path, site_url: str, repository: str) -> Any:
    """Return the notebook of a page. Links lead to the site."""
    page = path.relative_to(DOCS).as_posix()
    language = "zh" if page.startswith("zh/") else "en"
    cells, options = [_install(repository, COMMENTS[language][0])], ""
    text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.S)
    fences, rest = _split(text)
    for fence, following in itertools.zip_longest(fences, fences[1:]):
        cells += _markdown(_plain(fence.prose, page, site_url))
        kind, command = fence.info.partition(" ")[0], COMMAND.fullmatch(fence.body)
        if kind == "python" and 'title="sketch"' not in fence.info:
            cells.append(nbformat.v4.new_code_cell(fence.body.strip()))
        elif fence.included and fence.included.parent.name == "examples":
            cells += _program(fence.included, options, COMMENTS[language][1])
            options = ""
        elif command and following and following.included == ROOT / command["path"]:
            options = command["options"]  # the cells of the program get them
        elif kind in ("text", "") and not fence.prose.strip() and cells[-1].cell_type == "code":
            cells[-1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=fence.body)]
        else:
            body = fence.included.read_text(encoding="utf-8") if fence.included else fence.body
            cells += _markdown(f"```{'python' if kind == 'py' else re.sub('[^a-z]', '', kind)}\n{body.rstrip()}\n```")
    cells += _markdown(_plain(rest, page, site_url))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # without random ids, the same page is the same file
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "colab": {"provenance": []}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def _split(text: str) -> tuple[list[Fence], str]:
    """Return the fenced blocks with the prose before each of them, and the prose at the end."""
    fences, position, indent = [], 0, 0
    for match in FENCE.finditer(text):
        prose = _dedent(text[position : match.start()], indent)
        indent = len(match["indent"])
        fences.append(Fence(prose, match["info"].strip().strip("{} ."), _dedent(match["body"], indent)))
        position = match.end()
    return fences, _dedent(text[position:], indent)


def _dedent(text: str, indent: int) -> str:
    """Remove the indent of the lines up to the first one that has less: the rest of an item of a list."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.strip() and line[:indent].strip():
            break
        lines[number] = line[indent:] if line.strip() else line
    return "".join(lines)


def _plain(prose: str, page: str, site_url: str) -> str:
    """Return prose without the syntax that only the site reads, with links that work anywhere."""

    def with_address(match: re.Match[str]) -> str:
        target = match["target"]
        if not re.match(r"[a-z]+:|#", target):
            file, _, anchor = target.partition("#")
            place = posixpath.normpath(posixpath.join(posixpath.dirname(page), file))
            place = re.sub(r"(^|/)index\.md$|\.md$", r"\1", place)
            place = f"{place}/" if file.endswith(".md") and place and not place.endswith("/") else place
            target = urljoin(site_url, place) + (f"#{anchor}" if anchor else "")
        return f"{match['image']}{match['start']}{target})"

    def without_frame(match: re.Match[str]) -> str:
        title = f"**{match['title']}**\n\n" if match["title"] else ""
        return title + inspect.cleandoc(match["body"]) + "\n\n"

    return LINK.sub(with_address, ATTRIBUTES.sub("", NOTE.sub(without_frame, prose)))


def _markdown(text: str) -> list[Any]:
    return [nbformat.v4.new_markdown_cell(text.strip())] if text.strip() else []


def _install(repository: str, comment: str) -> Any:
    package = f"easytorch-fit[examples] @ git+{repository}"
    source = f"# {comment}\nimport importlib.util\n\n"
    source += f'if not importlib.util.find_spec("easytorch"):\n    %pip install -q "{package}"'
    return _added(source)


def _added(source: str) -> Any:
    """Return a code cell that the page does not have."""
    return nbformat.v4.new_code_cell(source, metadata={"tags": ["notebook"]})


def _program(path: Path, options: str, comment: str) -> list[Any]:
    """Return the cells of a program: its docstring, its options, one cell per paragraph, and its figure."""
    source = path.read_text(encoding="utf-8")
    arguments = [path.name, *shlex.split(options)]
    plot = arguments[arguments.index("--plot") + 1] if "--plot" in arguments else None
    quick = ["--quick"] if '"--quick"' in source else []
    quoted = ", ".join(f'"{argument}"' for argument in arguments + quick)
    setting = f"import sys\n\n{f'# {comment}{chr(10)}' if quick else ''}sys.argv = [{quoted}]"
    cells = [nbformat.v4.new_code_cell(paragraph) for paragraph in _paragraphs(source)]
    image = [_added(f'import IPython.display\n\nIPython.display.Image("{plot}")')] if plot else []
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return [*_markdown(docstring.replace("``", "`")), _added(setting), *cells, *image]


def _paragraphs(source: str) -> list[str]:
    """Return the program after its docstring, divided at blank lines between statements. Imports are one paragraph."""
    lines, tree = source.splitlines(), ast.parse(source)
    statements = tree.body[ast.get_docstring(tree) is not None :]
    first = (tree.body[0].end_lineno or 0) if len(statements) < len(tree.body) else 0
    inside = {
        line
        for node in statements
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if node.end_lineno != node.lineno
    }
    last_import = max(
        (node.lineno for node in statements if isinstance(node, (ast.Import, ast.ImportFrom))), default=first
    )
    paragraphs: list[list[str]] = [[]]
    for number, line in enumerate(lines[first:], first + 1):
        if not line.strip() and number not in inside and number > last_import:
            paragraphs.append([])
        else:
            paragraphs[-1].append(line)
    return ["\n".join(paragraph).strip("\n") for paragraph in paragraphs if "".join(paragraph).strip()]
