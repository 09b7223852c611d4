"""Reference: everything that it shows has described arguments, results, errors, and an example that runs."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from easytorch import Metric, Model, Strategy
from easytorch.callbacks import Callback, Tracker

ROOT = Path(__file__).parents[2]
PAGES = [path for path in sorted(ROOT.glob("docs/api/*.md")) if path.stem not in ("names", "typing")]
# An entry of the reference, and its members: "false" for none, else a list.
ENTRY = re.compile(r"^::: ([\w.]+)\n((?:    .*\n)*)", re.M)
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Examples):")
# Classes that methods of Model return. Users do not create them, so their arguments are internal.
RETURNED = ("BatchSizes", "CallbackList", "CheckReport", "LearningRates", "Report", "Samples", "Scores", "Speeds")
# Methods that a subclass defines or a custom `update` calls. The example of the class shows how.
TO_DEFINE = {
    Metric: ("reset", "update", "compute"),
    Strategy: ("run", "backward", "unscale", "clip", "step", "zero_grad", "accumulating", "batch_weights"),
    Model: ("train_epoch", "train_step", "update", "test_step", "test_epoch", "predict_step"),
    Callback: ("on_", "state_dict", "load_state_dict"),
    Tracker: ("open_", "read_", "format_", "write", "close_"),
}


class Item(NamedTuple):
    """A class, function, method or property of the reference."""

    title: str
    value: Any
    page: Path
    is_property: bool = False

    @property
    def function(self) -> Any:
        """The function with the arguments."""
        return inspect.unwrap(self.value.__init__) if inspect.isclass(self.value) else inspect.unwrap(self.value)

    @property
    def sections(self) -> dict[str, str]:
        """The text of each section of the docstring; that before the first one has the empty name."""
        texts: dict[str, list[str]] = {"": []}
        name = ""
        for line in inspect.cleandoc(self.value.__doc__ or "").splitlines():
            if match := SECTION.fullmatch(line):
                name = match[1]
                texts[name] = []
            else:
                texts[name].append(line)
        return {name: "\n".join(lines) for name, lines in texts.items()}

    def entries(self, *sections: str) -> set[str]:
        """Return the names that sections describe: ``name: text``, and ``first, second: text``."""
        texts = "\n".join(self.sections.get(section, "") for section in sections)
        found = re.findall(r"^    ([\w.*]+(?:, [\w.*]+)*):(?: |$)", texts, re.M)
        return {name.strip("*") for names in found for name in names.split(", ")}


def items() -> Iterator[Item]:
    for page in PAGES:
        for path, options in ENTRY.findall(page.read_text(encoding="utf-8") + "\n"):
            module, _, name = path.rpartition(".")
            value = getattr(importlib.import_module(module), name)
            yield Item(name, value, page)
            for member in members(value, options):
                static = inspect.getattr_static(value, member)
                function = getattr(static, "__func__", getattr(static, "fget", getattr(static, "func", static)))
                is_property = isinstance(static, (property, functools.cached_property))
                # The estimators have methods of scikit-learn.
                if getattr(function, "__module__", "").startswith("easytorch"):
                    yield Item(f"{name}.{member}", function, page, is_property)


def members(value: Any, options: str) -> list[str]:
    if not inspect.isclass(value) or "members: false" in options:
        return []
    listed = re.findall(r"^        - (\w+)$", options, re.M)
    kinds = (types.FunctionType, property, functools.cached_property, classmethod, staticmethod)
    return listed or [
        name for name, member in vars(value).items() if not name.startswith("_") and isinstance(member, kinds)
    ]


ITEMS = list(items())


def parameters(item: Item) -> set[str]:
    has_init = not inspect.isclass(item.value) or inspect.isfunction(item.value.__init__)
    if item.is_property or item.title in RETURNED or is_to_define(item) or not has_init:
        return set()
    return {name for name in inspect.signature(item.function).parameters if name not in ("self", "cls")}


def raised(item: Item) -> set[str]:
    """Return the errors that the body of a function raises, by class; of functions that create them, by function."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(item.function)))
    except (OSError, TypeError):  # of a dataclass or a named tuple
        return set()
    names = set()
    stack = list(ast.iter_child_nodes(tree.body[0]))
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            names.add(ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc).rpartition(".")[2])
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            stack += ast.iter_child_nodes(node)
    return names


def is_to_define(item: Item) -> bool:
    owner, _, name = item.title.partition(".")
    return any(owner == base.__name__ and name.startswith(prefixes) for base, prefixes in TO_DEFINE.items())


def test_the_reference_has_150_items_with_a_docstring():
    assert len(ITEMS) > 150
    assert not [item.title for item in ITEMS if not item.sections[""]]


def test_every_parameter_is_described():
    missing = {item.title: parameters(item) - item.entries("Args", "Attributes") for item in ITEMS}
    assert not {title: names for title, names in missing.items() if names}


def test_every_result_is_described():
    functions = [item for item in ITEMS if not inspect.isclass(item.value) and not item.is_property]
    missing = [
        item.title
        for item in functions
        if item.function.__annotations__.get("return") not in ("None", None)
        and not {"Returns", "Yields"} & set(item.sections)
        and not re.search(r"\b(return|yield)", item.sections[""], re.I)
    ]
    assert not missing


def test_every_error_that_a_function_raises_is_described():
    missing = {}
    for item in ITEMS:
        described = item.entries("Raises")
        classes = {name for name in raised(item) if name[0].isupper()}
        if item.title not in RETURNED and ((classes - described) or (raised(item) and not described)):
            missing[item.title] = raised(item)
    assert not missing


def test_every_callable_has_an_example():
    assert not [i.title for i in ITEMS if not i.is_property and not is_to_define(i) and "Examples" not in i.sections]


@pytest.fixture(scope="module")
def names():
    page = (ROOT / "docs/api/model.md").read_text(encoding="utf-8")
    return re.search(r'title="names in the examples"\n(.*?)^```', page, re.M | re.S)[1]


# The libraries that the examples of a class need.
LIBRARIES = {
    "TensorBoard": "tensorboard", "WandbLogger": "wandb", "MLflowLogger": "mlflow", "TrackioLogger": "trackio",
    "OptunaPruning": "optuna", "RayReport": "ray", "Model.push_to_hub": "huggingface_hub", "Model.export": "onnx",
}  # fmt: skip
WITH_EXAMPLES = [item for item in ITEMS if "Examples" in item.sections]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("page", sorted({item.page for item in WITH_EXAMPLES}), ids=lambda page: page.stem)
def test_examples_run_and_print_the_shown_output(page, names, tmp_path, monkeypatch):
    """Run the examples as doctest does; a result without shown output may be anything."""
    monkeypatch.chdir(tmp_path)
    code = compile(names, "names in the examples", "exec")
    checker, failures = doctest.OutputChecker(), []
    for item in (item for item in WITH_EXAMPLES if item.page == page):
        if item.title in LIBRARIES and importlib.util.find_spec(LIBRARIES[item.title]) is None:
            continue
        torch.manual_seed(0)
        namespace: dict[str, Any] = {"__name__": "example"}
        exec(code, namespace)
        try:
            for example in doctest.DocTestParser().get_examples(textwrap.dedent(item.sections["Examples"])):
                if doctest.SKIP in example.options:
                    continue
                if not example.want:
                    exec(compile(example.source, item.title, "exec"), namespace)
                    continue
                result = f"{eval(example.source, namespace)!r}\n"
                if not checker.check_output(example.want, result, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE):
                    failures.append(f"{item.title}: {example.source}shows {example.want}but is {result}")
        except Exception as error:
            failures.append(f"{item.title}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
