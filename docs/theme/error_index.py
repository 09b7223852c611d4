"""Error messages and warnings of easytorch, read from its source.

``python docs/theme/error_index.py`` prints the page. The hook of mkdocs writes it in place of the marker of the page.
"""

from __future__ import annotations

import ast
import functools
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "easytorch"
MARKER = "<!-- error index -->"
# The order of the page: what a first program meets first. A module is listed under its longest prefix.
SECTIONS = {
    "diagnostics": "Layers, losses and inputs do not fit",
    "losses": "Losses",
    "metrics": "Metrics",
    "data": "Data",
    "optimizers": "Optimizers",
    "optimizer_group": "Several optimizers",
    "model": "Arguments of Model, compile and fit",
    "training": "Runs, resume, history and results",
    "callbacks": "Callbacks",
    "checkpoint": "Files and checkpoints",
    "strategies": "Precision, devices and several processes",
    "distributed": "Ranks",
    "checks": "check()",
    "tuning": "find_lr(), find_batch_size() and tune_speed()",
    "reports": "Reports",
    "scripts": "to_script() and explain()",
    "export": "Export and Hub",
    "integrations": "Integrations",
    "_utils": "Names, numbers and paths",
    "": "Other",
}
SHORT = 18  # characters of text without placeholders; less cannot be recognized
ERROR = re.compile(r"(\w*Error|\w*Warning|\w+_error|warn)$")
WRITER = re.compile(r"\w+_(message|warning)$")  # functions that return a message

# What ends the problem of a message: a sentence, or what stands before an installation command.
SENTENCE = re.compile(r"\.(?:⟨[^⟩]*⟩)?(?: |$)|: pip install ")


class Message(NamedTuple):
    """A message with placeholders such as ``⟨name⟩``.

    Attributes:
        kind: The class of the error, or ``"warning"``.
        problem: The first sentence.
        fix: The other sentences: the cause and the fix.
    """

    kind: str
    problem: str
    fix: str


@functools.cache
def collect() -> dict[str, list[Message]]:
    """Return the messages by section, in the order of the source."""
    paths = sorted(PACKAGE.glob("**/*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    constants = {name: value for tree in trees.values() for name, value in _constants(tree)}
    kinds = {writer: kind for tree in trees.values() for writer, kind in _writer_kinds(tree)}
    sections: dict[str, list[Message]] = {title: [] for title in SECTIONS.values()}
    seen = set()
    for path, tree in trees.items():
        module = path.relative_to(PACKAGE).with_suffix("").as_posix().split("/")[0]
        for kind, text in _messages(tree, constants, kinds):
            message = Message(kind, *_split(text))
            if message[1:] not in seen:
                seen.add(message[1:])
                sections[SECTIONS.get(module, SECTIONS[""])].append(message)
    return {title: messages for title, messages in sections.items() if messages}


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = _template(node.value, {})
            if text and node.targets[0].id.isupper():
                yield node.targets[0].id, re.sub(r"\{(\w+)[^}]*\}", r"⟨\1⟩", text)


def _writer_kinds(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the functions whose result is passed to an error, with its class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Call):
            name, writer = (ast.unparse(call.func).rpartition(".")[2] for call in (node, node.args[0]))
            if ERROR.match(name) and name != "warn" and WRITER.match(writer):
                yield writer, name


def _messages(tree: ast.AST, constants: dict[str, str], kinds: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield kinds and texts, with the texts of local variables put in.

    Args:
        tree: A module or a part of one.
        constants: Texts by the name of the variable.
        kinds: Classes of errors by the name of the function that writes the message; all other functions write warnings.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            local = constants | dict(_locals(node))
            if WRITER.match(node.name):
                yield from _returned(node, kinds.get(node.name, "warning"), local)
            yield from _messages(node, local, kinds)
            yield from _assigned(node, local)
            continue
        if isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func).rpartition(".")[2]
            if name == "Advice":  # the problem and the fix of an error about the input of a layer
                problem, fix = (_template(argument, constants) or _placeholder(argument) for argument in node.args[:2])
                yield "ValueError", f"Layer ⟨name⟩, ⟨description⟩, {problem} (the input is ⟨received⟩). {fix}"
            elif ERROR.match(name):
                kind = _kind(name)
                # The second argument of an OSError is the message, the first its number.
                texts = (text for argument in node.args[:2] for text in _choices(argument, constants))
                yield from ((kind, text) for text in texts if _is_message(text))
        yield from _messages(node, constants, kinds)


def _returned(function: ast.FunctionDef, kind: str, constants: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the messages that a function returns."""
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and node.value is not None:
            yield from ((kind, text) for text in _choices(node.value, constants) if _is_message(text))


def _assigned(function: ast.FunctionDef, constants: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the messages of variables that are assigned several times and then passed to an error or a warning."""
    kinds = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Name):
            name = ast.unparse(node.func).rpartition(".")[2]
            if ERROR.match(name) and node.args[0].id not in constants:
                kinds[node.args[0].id] = _kind(name)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in kinds:
            texts = filter(_is_message, _choices(node.value, constants))
            yield from ((kinds[node.targets[0].id], text) for text in texts)


def _kind(name: str) -> str:
    """Return the kind of a message for the name of the class or function that it is passed to."""
    return "warning" if name == "warn" else name if name.endswith(("Error", "Warning")) else ""


def _is_message(text: str) -> bool:
    """Return whether a text is a whole message; a part of one starts in lower case and has no full stop."""
    is_part = text[:1].islower() and not text.endswith((".", "⟩"))
    return len(re.sub(r"⟨.*?⟩", "", text)) >= SHORT and bool(SENTENCE.search(text)) and not is_part


def _locals(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Yield the variables of a function that are assigned once, to a text."""
    assigned: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, []).append(node.value)
    for name, values in assigned.items():
        text = _template(values[0], {}) if len(values) == 1 else None
        if text and " " in text:
            yield name, text


def _choices(node: ast.expr, constants: dict[str, str]) -> Iterator[str]:
    """Yield the templates of an expression; of ``a if b else c`` both."""
    if isinstance(node, ast.IfExp):
        yield from _choices(node.body, constants)
        yield from _choices(node.orelse, constants)
    elif text := _template(node, constants):
        yield text


def _template(node: ast.expr, constants: dict[str, str]) -> str | None:
    """Return the text of a string with its placeholders, None if the expression is not a string in the source."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_template(value, constants) or _placeholder(value) for value in values)
        case ast.FormattedValue(value=ast.Name(id=name)) if name in constants:
            return constants[name]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            texts = [_template(left, constants), _template(right, constants)]
            if any(texts):
                return "".join(text or _placeholder(side) for text, side in zip(texts, (left, right), strict=True))
        case ast.Name(id=name):
            return constants.get(name)
        case ast.Attribute(attr=name) if name.isupper():
            return constants.get(name)
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return _template(value, constants)
    return None


def _placeholder(node: ast.AST) -> str:
    """Return ``⟨name⟩`` for a name or an attribute, else ``⟨…⟩``."""
    match node:
        case ast.FormattedValue(value=value):
            return _placeholder(value)
        case ast.Name(id=name) | ast.Attribute(attr=name) if not name.startswith("__"):
            return f"⟨{name.strip('_')}⟩"
    return "⟨…⟩"


def _split(text: str) -> tuple[str, str]:
    """Return the problem, which is the first sentence, and the rest.

    An installation command and a placeholder at the end are the rest. A message with a message in it ends after that.
    """
    text = " ".join(text.split())
    sentence = r"(\.(?:⟨[^⟩]*⟩)?|^⟨problem⟩) (?=[A-Z⟨])|(?<=[^ ]\.)(?=⟨[^⟩]*⟩$)|: (?=pip install )"
    for end in (sentence, r"((?::|because) ⟨[^⟩]*⟩) (?=[A-Z])"):
        problem, _, fix = re.sub(end, "\\1\n", text, count=1).partition("\n")
        if fix:
            break
    return problem, fix


def pattern(message: Message) -> str:
    """Return a regular expression for the whole text of a message."""
    # Between problem and fix there may be a space, a colon, or the space at the start of the fix.
    problem, fix = (
        r"[\s\S]*".join(map(re.escape, re.split(r"⟨[^⟩]*⟩", part))) for part in (message.problem, message.fix)
    )
    return rf"{problem}:?\s*{fix}"


def _cell(text: str) -> str:
    """Escape what Markdown would read as markup."""
    return re.sub(r"[|{*_\[\]]", lambda character: f"&#{ord(character[0])};", html.escape(text, quote=False))


def _fix(text: str) -> str:
    """Return the fix, and for one that is only a placeholder, where to find it."""
    return "*stated in the message*" if re.fullmatch(r"⟨[^⟩]*⟩", text) else _cell(text)


def render() -> str:
    """Return the index as Markdown."""
    lines = []
    for title, messages in collect().items():
        # The class lets a phone leave out the first column.
        kind = '<span class="error-kind">kind</span>'
        lines += ["", f"## {title}", "", f"| {kind} | message | cause and fix |", "|---|---|---|"]
        lines += [f"| {message.kind} | {_cell(message.problem)} | {_fix(message.fix)} |" for message in messages]
    return "\n".join(lines)


if __name__ == "__main__":
    print(render())
