"""Documentation: programs run, links have targets, and quoted code equals the code."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import easytorch

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
PROSE = [*sorted(ROOT.glob("*.md")), *PAGES]

FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)(?P=fence) *$", re.M | re.S
)


class Block(NamedTuple):
    """A fenced block of a page.

    Args:
        info: The text after the opening fence.
        text: The lines without the common indent.
        line: The number of the first line in the page.
        output: The text of the block that directly follows, if it quotes printed output; else None.
    """

    info: str
    text: str
    line: int
    output: str | None = None


def blocks(text: str) -> Iterator[Block]:
    matches = list(FENCE.finditer(text))
    for match, following in itertools.zip_longest(matches, matches[1:]):
        output = None
        if (
            following
            and following["info"].strip() in ("", "text", "{ .text .wrap }")
            and not text[match.end() : following.start()].strip()
        ):
            output = body(following)
        yield Block(match["info"].strip(), body(match), text.count("\n", 0, match.start("body")) + 1, output)


def body(match: re.Match[str]) -> str:
    indent = len(match["indent"])
    return "\n".join(line[indent:] for line in match["body"].splitlines())


def output_pattern(quoted: str) -> str:
    """Return a regular expression for quoted output. ``...`` stands for any text, within a line or for several lines."""
    lines = [line.rstrip() for line in quoted.strip().splitlines()]
    patterns = [".*" if line == "..." else re.escape(line).replace(r"\.\.\.", "[^\n]*") for line in lines]
    return "\n".join(patterns)


def without_trailing_spaces(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def programs(path: Path) -> list[Block]:
    return [
        block
        for block in blocks(path.read_text(encoding="utf-8"))
        if block.info.split()[:1] == ["python"] and 'title="sketch"' not in block.info
    ]


def get_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PROSE, ids=get_name)
def test_blocks_of_files_include_them(path):
    text = path.read_text(encoding="utf-8")
    assert "8 < --" not in text, "A formatter has changed the markers of included files."
    titles = [block for block in blocks(text) if re.search(r'title="(examples|tests)/', block.info)]
    assert all('--8<-- "' in block.text for block in titles)


@pytest.mark.parametrize("path", PROSE, ids=get_name)
def test_no_block_of_a_page_is_empty(path):
    empty = [block.line for block in blocks(path.read_text(encoding="utf-8")) if not block.text.strip()]
    assert not empty, f"{get_name(path)}: empty blocks at lines {empty}"


# The fast set runs the programs that a new user tries first.
FIRST_PAGES = ("README.md", "docs/get-started.md", "docs/index.md")
WITH_PROGRAMS = [
    pytest.param(path, marks=[] if get_name(path) in FIRST_PAGES else [pytest.mark.slow])
    for path in PROSE
    if programs(path) and "zh" not in path.parts  # Chinese pages have the same code, see test_translation.py
]


# WebDataset leaves the files of its shards to the garbage collector, and torchdata calls a deprecated function of torch.
@pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
# torch_geometric and peft call these when they are imported and when they wrap a model.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("path", WITH_PROGRAMS, ids=get_name)
def test_programs_of_a_page_print_the_quoted_output(path, tmp_path, monkeypatch, capsys):
    """Skip programs with a comment ``# pip install package`` if the package is missing."""
    if importlib.util.find_spec("matplotlib"):
        importlib.import_module("matplotlib").use("Agg")
    page = types.ModuleType("page")  # dataclasses and pickle look up the module
    monkeypatch.setitem(sys.modules, "page", page)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for block in programs(path):
        if not all(map(importlib.util.find_spec, re.findall(r"# pip install (\w+)$", block.text, re.M))):
            continue
        source = "\n" * (block.line - 1) + block.text  # a traceback then shows the line of the page
        capsys.readouterr()
        exec(compile(source, get_name(path), "exec"), page.__dict__)
        if block.output is not None:
            printed = without_trailing_spaces(capsys.readouterr().out)
            equal = re.fullmatch(output_pattern(block.output), printed, re.S) is not None
            assert equal, f"{get_name(path)}:{block.line} quotes\n{block.output}\nbut the program prints\n{printed}"


@pytest.mark.parametrize(
    ("quoted", "printed", "matches"),
    [
        ("loss 0.12", "loss 0.12", True),
        ("loss 0.12", "loss 0.13", False),
        ("loss 0.12", "loss 0x12", False),
        ("loss ...", "loss 0.13", True),
        ("loss ...", "loss 0.13\nmore", False),
        ("first\n...\nlast", "first\n1\n2\nlast", True),
        ("first\n...\nlast", "first\n1\n2", False),
    ],
)
def test_quoted_output_must_equal_printed_output(quoted, printed, matches):
    assert bool(re.fullmatch(output_pattern(quoted), printed, re.S)) == matches


def test_at_most_five_programs_are_sketches():
    sketches = [
        f"{get_name(path)}:{b.line}"
        for path in PROSE
        if "zh" not in path.parts
        for b in blocks(path.read_text(encoding="utf-8"))
        if "sketch" in b.info
    ]
    assert len(sketches) <= 5, sketches


@pytest.mark.parametrize("path", PROSE, ids=get_name)
def test_quoted_code_equals_the_code(path):
    for block in blocks(path.read_text(encoding="utf-8")):
        title = re.search(r'title="(easytorch/[\w/]+\.py)"', block.info)
        if title and not block.text.startswith("--8<--"):
            code = [line.strip() for line in (ROOT / title[1]).read_text(encoding="utf-8").splitlines()]
            quote_list = [line.strip() for line in block.text.strip().splitlines()]
            is_equal = any(code[i : i + len(quote_list)] == quote_list for i in range(len(code)))
            assert is_equal, f"{get_name(path)}:{block.line} quotes code that is not in {title[1]}:\n{block.text}"


# Links


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("(", " ").replace("]", " "), FENCE.sub("", text))


def anchors(path: Path) -> set[str]:
    """Return the anchors of ``path``: its headings and the objects that it documents."""
    text = path.read_text(encoding="utf-8")
    names = set(re.findall(r"^::: ([\w.]+)", text, re.M))
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M):
        explicit = re.search(r"\{#([\w-]+)\}", heading)  # Chinese headings have the address of the English ones
        words = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        names.add(explicit[1] if explicit else re.sub(r"[-\s]+", "-", words))
    return names


@pytest.mark.parametrize("path", PROSE, ids=get_name)
def test_every_internal_link_has_a_target(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), f"{get_name(path)} links to {target!r}, which does not exist"
        if anchor and page.suffix == ".md":
            known = anchors(page)
            member = any(anchor.startswith(f"{name}.") for name in known)
            assert anchor in known or member, (
                f"{get_name(path)} links to {target!r}; {get_name(page)} has {sorted(known)}"
            )


def test_navigation_lists_exactly_the_pages():
    yaml = pytest.importorskip("yaml")

    class Loader(yaml.SafeLoader):
        """Loader that reads the tags of mkdocs as plain values."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: getattr(node, "value", None))
    navigation = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]

    def entries(part):
        if isinstance(part, str):
            return [part]
        return [page for inner in (part.values() if isinstance(part, dict) else part) for page in entries(inner)]

    # The Chinese site has the same navigation: its pages are shown in place of the English ones.
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES]
    assert sorted(entries(navigation)) == sorted(page for page in pages if not page.startswith("zh/"))
    assert {page.removeprefix("zh/") for page in pages if page.startswith("zh/")} <= set(pages)


# Width and description


@pytest.mark.parametrize("path", PROSE, ids=get_name)
def test_programs_of_a_page_have_at_most_80_columns(path):
    wide = [
        f"{get_name(path)}:{block.line}: {line}"
        for block in blocks(path.read_text(encoding="utf-8"))
        if block.info.split()[:1] in (["python"], ["py"], ["bash"]) and 'title="easytorch/' not in block.info
        for line in block.text.splitlines()
        if len(line) > 80
    ]
    assert not wide, "\n".join(wide)


def test_descriptions_of_pages_differ_and_fit_a_search_result():
    pages_by_description = {}
    for path in PAGES:
        front_matter = re.match(r"---\n(.*?)\n---\n", path.read_text(encoding="utf-8"), re.S)
        description = re.search(r'^description: "(.+)"$', front_matter[1], re.M) if front_matter else None
        if description:  # otherwise, a hook takes the first paragraph
            assert len(description[1]) <= 170, f"{get_name(path)}: {len(description[1])} characters"
            pages_by_description.setdefault(description[1], []).append(get_name(path))
    assert not {text: pages for text, pages in pages_by_description.items() if len(pages) > 1}
    assert len(pages_by_description) >= 60


def test_a_page_has_at_most_330_lines():
    """A longer page is divided by task. Reference and changelog are lists."""
    lists = {"docs/changelog.md", "docs/guides/error-index.md"}
    lengths = {
        get_name(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in PAGES
        if get_name(path) not in lists and path.parent.name != "api"
    }
    assert not {name: length for name, length in lengths.items() if length > 330}


# The index of error messages


@pytest.fixture(scope="module")
def error_index():
    spec = importlib.util.spec_from_file_location("error_index", ROOT / "docs/theme/error_index.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_error_index_has_every_section_and_700_messages(error_index):
    sections = error_index.collect()
    assert sum(map(len, sections.values())) >= 700
    assert set(error_index.SECTIONS.values()) - set(sections) <= {"Other"}


def test_error_index_has_kind_problem_and_fix_of_each_message(error_index):
    incomplete = [message for messages in error_index.collect().values() for message in messages if not all(message)]
    assert not incomplete, "An error states the fix after the problem: 'Expected x, received y. Pass z.'"


def test_error_index_has_installation_and_returned_messages(error_index):
    messages = {message for section in error_index.collect().values() for message in section}
    assert ("ImportError", "LivePlot needs matplotlib", "pip install matplotlib") in messages
    kinds = {message.problem.partition(" ")[0]: message.kind for message in messages}
    assert kinds["⟨name⟩=⟨value⟩"] == "ValueError"  # returned by a function, and raised by another one


def test_error_index_has_the_messages_of_real_errors(error_index):
    x, y = torch.rand(40, 1, 28, 28), torch.arange(40) % 10
    net = torch.nn.Sequential(torch.nn.Linear(784, 10))
    broken = torch.full((40, 4), float("nan"))
    mistakes = {
        "flatten": lambda: easytorch.Model(net).compile("adam", "cross_entropy").fit(x, y, verbose=0),
        "not compiled": lambda: easytorch.Model(net).fit(x, y, verbose=0),
        "nan": lambda: easytorch.Model(torch.nn.Linear(4, 10)).compile("adam", "cross_entropy").fit(broken, y),
        "epochs": lambda: easytorch.Model(net).compile("adam", "cross_entropy").fit(x, y, epochs=2.5),
    }
    patterns = [error_index.pattern(message) for messages in error_index.collect().values() for message in messages]
    for name, mistake in mistakes.items():
        with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
            mistake()
        found = any(re.fullmatch(pattern, str(caught.value)) for pattern in patterns)
        assert found, f"{name}: the index does not have {caught.value}"


@pytest.fixture(scope="module")
def speed_chart():
    spec = importlib.util.spec_from_file_location("speed_chart", ROOT / "docs/theme/speed_chart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_chart_of_speed_shows_the_tables_of_the_page(speed_chart):
    drawn = (ROOT / "docs/figures/speed.svg").read_text(encoding="utf-8")
    assert drawn == speed_chart.draw(), "Run python docs/theme/speed_chart.py"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/zh/index.md"])
def test_home_pages_quote_the_table_of_speed(page, speed_chart):
    ratios = speed_chart.read_tables()["MLP, loader"]
    text = (ROOT / page).read_text(encoding="utf-8")
    quoted = re.search(
        r"(0\.\d\d) times the time of Lightning and (0\.\d\d)|Lightning 的 (0\.\d\d) 倍、Keras 的 (0\.\d\d)", text
    )
    assert [float(ratio) for ratio in quoted.groups() if ratio] == [ratios["Lightning"], ratios["Keras"]]


# The reference and the guide for contributors


def test_paths_in_the_contributing_guide_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = [path for path in re.findall(r"`([\w./-]+(?:/|\.py|\.txt|\.md))`", text) if not path.startswith("test")]
    missing = [path for path in paths if not (ROOT / path).exists() and not (ROOT / "easytorch" / path).exists()]
    assert len(paths) > 30
    assert not missing


def test_every_public_name_is_in_the_reference():
    documented = {
        re.sub(r"\.(\w+)\.\1$", r".\1", name)  # a function with the name of its module
        for path in ROOT.glob("docs/api/*.md")
        for name in re.findall(r"^::: ([\w.]+)", path.read_text(), re.M)
    }
    submodules = {"callbacks", "checks", "data", "reports", "scripts", "tuning", "typing"}
    callbacks = set(importlib.import_module("easytorch.callbacks").__all__)  # which are exported twice
    modules = {
        "easytorch": {"__version__", *submodules, *callbacks},
        **{f"easytorch.{name}": set() for name in submodules},
        "easytorch.integrations.sklearn": set(),
        "easytorch.optimizers": {"TABLE"},
    }
    public = {
        f"{name}.{entry}"
        for name, submodules in modules.items()
        for entry in set(importlib.import_module(name).__all__) - submodules
    }
    assert documented == public


def test_how_to_index_lists_every_recipe():
    index = ROOT / "docs/how-to/index.md"
    listed = set(re.findall(r"\]\(([\w-]+\.md)#([\w-]+)\)", index.read_text(encoding="utf-8")))
    recipes = {
        (path.name, re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()))
        for path in ROOT.glob("docs/how-to/*.md")
        if path != index
        for heading in re.findall(r"^## (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.M)
    }
    assert listed == recipes
