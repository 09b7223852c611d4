"""Pictures of the home page: a recording of a terminal, and a screenshot of a notebook.

    python docs/theme/record.py terminal    writes docs/figures/terminal.svg
    python docs/theme/record.py notebook    writes docs/figures/notebook.png, with Chromium

Both run ``PROGRAM`` on MNIST, which is downloaded into the folder ``EASYTORCH_DATA`` or ``data``. Nothing is drawn by hand:
the terminal is a pseudo-terminal, and the notebook runs in a Jupyter kernel.
"""

from __future__ import annotations

import html
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rich.console
import rich.style
import rich.text

FIGURES = Path(__file__).parents[1] / "figures"
PROGRAM = """\
import os

import easytorch
from torch import nn
from torchvision.datasets import MNIST

data = MNIST(os.environ.get("EASYTORCH_DATA", "data"), download=True)
x, y = data.data[:20000] / 255, data.targets[:20000]
net = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

model = easytorch.Model(net).compile("adam", "cross_entropy", metrics=["accuracy"])
model.fit(x, y, epochs=5, batch_size=64, validation_split=0.1)
"""
COLUMNS, ROWS = 104, 9
FOREGROUND, BACKGROUND = "#e6edf3", "#161b22"
CONTROL = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|[\r\n]")


class Screen:
    """The lines of a terminal, with the escape sequences that rich writes.

    Attributes:
        lines: Text with codes of colors, one string per line.
        row: The line of the cursor.
    """

    def __init__(self, title: str) -> None:
        self.lines, self.row = [title, ""], 1

    def feed(self, text: str) -> None:
        """Process output of the program."""
        position = 0
        for match in CONTROL.finditer(text):
            self._write(text[position : match.start()])
            position = match.end()
            code, letter = match[1], match[2] or match[0]
            if letter == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif letter == "A":
                self.row = max(0, self.row - int(code or 1))
            elif letter == "K" or (letter == "\r" and not text[position:].startswith("\n")):
                self.lines[self.row] = ""  # rich erases a line before it writes it again
            elif letter == "m":
                self._write(match[0])
        self._write(text[position:])

    def _write(self, text: str) -> None:
        self.lines[self.row] += text


def record(command: list[str], title: str) -> tuple[list[tuple[float, list[str]]], float]:
    """Run ``command`` in a pseudo-terminal. Return snapshots with their times in seconds, and the end."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"COLUMNS": str(COLUMNS), "LINES": "30", "TERM": "xterm-256color"}
        os.execvp(command[0], command)
    screen, snapshots, start = Screen(title), [], None
    while True:
        readable, _, _ = select.select([terminal], [], [], 0.05)
        try:
            received = os.read(terminal, 1 << 16) if readable else None
        except OSError:  # how Linux reports the end of a pseudo-terminal
            break
        if received == b"":
            break
        if received:
            start = start or time.monotonic()  # the import of torch is not shown
            screen.feed(received.decode())
            snapshots.append((time.monotonic() - start, list(screen.lines)))
    _, status = os.waitpid(process, 0)
    if status or start is None:
        raise SystemExit("\n".join(screen.lines))
    return snapshots, time.monotonic() - start


def color_of(style: rich.style.Style) -> str:
    """Return the color of text as a hexadecimal number."""
    return style.color.get_truecolor().hex if style.color else FOREGROUND


def draw_line(line: str, row: int) -> str:
    """Return the ``tspan`` elements of a line with codes of colors."""
    text = rich.text.Text.from_ansi(line)
    parts = []
    for segment in text.render(_console()):
        if segment.text.strip():
            style = segment.style or rich.style.Style()
            look = f'fill="{color_of(style)}"' if style.color else ""
            look += ' font-weight="bold"' if style.bold else ""
            look += ' opacity="0.65"' if style.dim else ""
            parts.append(f"<tspan {look}>{html.escape(segment.text)}</tspan>")
        else:
            parts.append(segment.text)
    return f'<text x="18" y="{52 + 22 * row}" textLength="{{}}">{"".join(parts)}</text>'


def _console() -> rich.console.Console:
    return rich.console.Console(width=COLUMNS, color_system="truecolor", force_terminal=True)


def write_terminal(path: Path) -> None:
    """Record ``PROGRAM`` and write an animation without scripts, which shows its last picture where motion is reduced."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "train.py")
        program.write_text(PROGRAM)
        snapshots, end = record([sys.executable, str(program)], "\x1b[1m$ python train.py\x1b[0m")
    seconds = end + 6  # the last picture stays
    shown: dict[int, tuple[str, float]] = {}
    lines: list[tuple[int, str, float, float]] = []
    for moment, content in [*snapshots, (seconds, [])]:
        for row in range(max(len(content), len(shown))):
            line = content[row] if row < len(content) else ""
            before = shown.get(row)
            if before is None or before[0] != line:
                if before and rich.text.Text.from_ansi(before[0]).plain.strip():
                    lines.append((row, before[0], before[1], moment))
                shown[row] = (line, moment)
    width, height = 18 * 2 + round(8.43 * COLUMNS), 40 + 22 * max(len(content) for _, content in snapshots)
    rules, texts = [], []
    for number, (row, line, first, last) in enumerate(lines):
        plain = rich.text.Text.from_ansi(line).plain.rstrip()
        element = draw_line(line, row).replace(' textLength="{}"', f' textLength="{8.43 * len(plain):.1f}"')
        if first == 0 and last >= seconds:
            texts.append(element)
            continue
        start, finish = 100 * first / seconds, 100 * last / seconds
        steps = [f"0%{{opacity:{int(start == 0)}}}"]
        steps += [f"{start:.3f}%{{opacity:1}}"] if start else []
        steps += [f"{finish:.3f}%{{opacity:0}}"] if last < seconds else ["100%{opacity:1}"]
        rules.append(
            f"@keyframes k{number}{{{''.join(steps)}}}#t{number}{{animation:k{number} {seconds:.1f}s step-end infinite}}"
        )
        if last < seconds:
            rules.append(f"@media(prefers-reduced-motion:reduce){{#t{number}{{animation:none;opacity:0}}}}")
        else:
            rules.append(f"@media(prefers-reduced-motion:reduce){{#t{number}{{animation:none}}}}")
        texts.append(element.replace("<text ", f'<text id="t{number}" '))
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="A terminal during fit">\n'
        f"<style>text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"fill:{FOREGROUND};white-space:pre}}{''.join(rules)}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>\n'
        '<circle cx="22" cy="18" r="6" fill="#ff5f57"/><circle cx="42" cy="18" r="6" fill="#febc2e"/>'
        '<circle cx="62" cy="18" r="6" fill="#28c840"/>\n' + "\n".join(texts) + "\n</svg>\n",
        encoding="utf-8",
    )


def write_notebook(path: Path) -> None:
    """Run ``PROGRAM`` in a kernel and take a picture of the cell and its output."""
    import nbclient
    import nbformat

    lines = PROGRAM.splitlines()
    code = "\n".join(lines[-2:]) + "\nhistory.plot();"
    code = code.replace("model.fit", "history = model.fit")
    setup = nbformat.v4.new_code_cell("%matplotlib inline\n" + "\n".join(lines[:-2]))
    notebook = nbformat.v4.new_notebook(cells=[setup, nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=600).execute()
    outputs = []
    for output in notebook.cells[1].outputs:
        data = output.get("data", {})
        if "text/html" in data:
            outputs.append(data["text/html"])
        elif "image/png" in data:
            outputs.append(f'<img src="data:image/png;base64,{data["image/png"].strip()}" style="max-width:100%">')
    page = (
        "<meta charset=utf-8><style>body{font:14px system-ui,sans-serif;margin:24px;background:white;width:820px}"
        "pre{background:#f6f8fa;border:1px solid #d0d7de;padding:12px;font:13px 'DejaVu Sans Mono',monospace;"
        "white-space:pre-wrap}table{border-collapse:collapse}td,th{padding:3px 10px;text-align:right}</style>"
        f"<pre>{html.escape(code)}</pre>" + "".join(outputs)
    )
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "page.html").write_text(page, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        options += ["--hide-scrollbars", "--force-device-scale-factor=1.5", "--window-size=870,580"]
        address = Path(folder, "page.html").as_uri()
        subprocess.run(
            [browser, *options, f"--user-data-dir={folder}/profile", f"--screenshot={path}", address],
            check=True, timeout=120, stderr=subprocess.DEVNULL,
        )  # fmt: skip


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["terminal"]:
            write_terminal(FIGURES / "terminal.svg")
        case ["notebook"]:
            write_notebook(FIGURES / "notebook.png")
        case _:
            raise SystemExit(__doc__)
