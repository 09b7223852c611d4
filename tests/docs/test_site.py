"""The site in a browser: pages open without errors, fit a phone, and can be found by search."""

from __future__ import annotations

import contextlib
import functools
import html
import http.server
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    re.sub(r"(^|/)index$", "", path.relative_to(ROOT / "docs").with_suffix("").as_posix()) + "/"
    for path in ROOT.glob("docs/**/*.md")
)
DESKTOP, PHONE = (1280, 800), (390, 844)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(
    BROWSER is None or os.name != "posix",
    reason="the site was not tested in a browser: chromium, chromium-browser or google-chrome is not on the PATH",
)


class Browser:
    """Headless Chromium with one tab, controlled by the DevTools protocol: JSON over two pipes, with zero bytes as separators."""

    def __init__(self, folder: Path) -> None:
        options = [
            "--headless", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "--no-first-run",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
            "--disable-breakpad", "--hide-scrollbars", *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]  # fmt: skip
        browser_in, self.out = os.pipe()
        self.answers, browser_out = os.pipe()
        script = f'exec "$@" 3<&{browser_in} 4>&{browser_out}'  # the file descriptors of the pipes
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", script, "bash", str(BROWSER), *options], env=os.environ | {"HOME": str(folder)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(browser_in, browser_out), start_new_session=True,
            )  # fmt: skip
        os.close(browser_in)
        os.close(browser_out)
        self.calls, self.unread, self.session, self.events = 0, b"", None, []

    def open_a_tab(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def read(self, deadline: float) -> dict[str, Any]:
        """Return the next message."""
        while b"\0" not in self.unread:
            if not select.select([self.answers], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"The browser does not answer. Its log:\n{self.log.read_text(errors='replace')}")
            received = os.read(self.answers, 1 << 16)
            if not received:
                raise EOFError(f"The browser has ended. Its log:\n{self.log.read_text(errors='replace')}")
            self.unread += received
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result. Messages in the meantime go to ``events``."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        with contextlib.suppress(BrokenPipeError):  # read raises a better error
            os.write(self.out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while (answer := self.read(deadline)).get("id") != self.calls:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def resize(self, size: tuple[int, int]) -> None:
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=size == PHONE
        )

    def open(self, url: str, size: tuple[int, int]) -> None:
        """Open ``url`` in a window of ``size``, and clear the previous events."""
        self.resize(size)
        self.events.clear()
        failure = self.call("Page.navigate", url=url).get("errorText")
        assert not failure, (url, failure)
        self.wait_for("Page.loadEventFired")

    def wait_for(self, method: str) -> None:
        """Wait until ``events`` contains an event of ``method``."""
        deadline = time.monotonic() + 60
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self.read(deadline))

    def evaluate(self, script: str) -> Any:
        """Return the value of ``script`` in the page. A promise is awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def errors(self) -> list[str]:
        """Return the errors in the console."""
        self.evaluate("new Promise(done => setTimeout(done, 100))")  # wait for late errors
        errors = []
        for event in self.events:
            match event.get("method"), event.get("params", {}):
                case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                    errors.append(details.get("exception", {}).get("description", details["text"]))
                case "Runtime.consoleAPICalled", {"type": "error" | "assert", "args": args}:
                    errors.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in args))
                case "Log.entryAdded", {"entry": {"level": "error"} as entry}:
                    errors.append(f"{entry['text']} {entry.get('url', '')}")
        return errors

    def close(self) -> None:
        os.close(self.out)  # the browser exits without its pipe
        os.close(self.answers)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, records missing files, and forbids requests to other hosts."""

    missing: list[str] = []  # noqa: RUF012  # shared by all requests

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline' data: blob:")
        super().end_headers()

    def log_error(self, *args: Any) -> None:
        self.missing.append(self.path)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings"):
        if not importlib.util.find_spec(package):
            pytest.skip(f"the site was not built: {package} is not installed")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    process = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser"))
    try:
        browser.open_a_tab()
        yield browser
    finally:
        browser.close()


IMAGES = """(async () => {
    const images = [...document.images]
    for (const image of images) image.loading = "eager"
    await Promise.all(images.map(image => image.complete || new Promise(done => image.onload = image.onerror = done)))
    return images.filter(image => !image.naturalWidth).map(image => image.src)
})()"""

# Without this style the sidebars still move after a resize
NO_TRANSITIONS = "document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>')"

# The width of the page, and the elements beyond the window that cannot be reached by scrolling
WIDTH = """(() => {
    const scrolls = node => node && node !== document.body &&
        (/auto|scroll|hidden/.test(getComputedStyle(node).overflowX) || scrolls(node.parentElement))
    return [document.scrollingElement.scrollWidth, [...document.querySelectorAll("article *")].filter(
        node => node.getBoundingClientRect().right > screen.width + 1 && !scrolls(node.parentElement)
    ).map(node => node.outerHTML.slice(0, 100)).slice(0, 5)]
})()"""

# The longest lines of code that a reader has to scroll for
CUT = """[...document.querySelectorAll("article pre > code")].filter(code => code.scrollWidth > code.clientWidth + 1)
    .map(code => code.innerText.split("\\n").sort((a, b) => b.length - a.length)[0])"""


# The tables that a reader on a desktop has to scroll for
WIDE = """[...document.querySelectorAll("article .md-typeset__scrollwrap")]
    .filter(table => table.scrollWidth > table.clientWidth + 1).map(table => table.innerText.slice(0, 60))"""

# The programs whose first line is under the button that copies them
COVERED = """[...document.querySelectorAll("article .highlight")].filter(block => {
    const button = block.querySelector(".md-code__nav, .md-clipboard"), code = block.querySelector("pre > code")
    if (!button || !code || getComputedStyle(button).display === "none") return false
    const top = code.getBoundingClientRect().top + parseFloat(getComputedStyle(code).paddingTop)
    return button.getBoundingClientRect().bottom > top + 1
}).map(block => block.innerText.slice(0, 60))"""


@pytest.mark.browser
@in_a_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_phone_and_desktop_in_both_colors(page, address, browser):
    """Nothing is missing or cut, and the console has no error."""
    Handler.missing.clear()
    browser.open(urljoin(address, page), PHONE)
    assert browser.evaluate(IMAGES) == [], "missing images"
    browser.evaluate(NO_TRANSITIONS)
    assert browser.evaluate(COVERED) == [], "code under the button that copies it"
    for size in (PHONE, DESKTOP):
        browser.resize(size)
        for scheme in ("default", "slate"):
            browser.evaluate(f"document.body.setAttribute('data-md-color-scheme', '{scheme}')")
            width, beyond = browser.evaluate(WIDTH)
            assert width <= size[0], f"in a window of {size[0]} pixels the page is {width} wide, because of {beyond}"
    assert browser.evaluate(CUT) == [], "code that a reader on a desktop has to scroll for"
    assert browser.evaluate(WIDE) == [], "tables that a reader on a desktop has to scroll for"
    assert browser.errors() == []
    assert Handler.missing == []


# Type a query into the search box, and return the pages that it finds, best first
SEARCH = """(async query => {
    const input = document.querySelector(".md-search__input")
    const links = () => [...document.querySelectorAll(".md-search-result__item > a.md-search-result__link")]
    const type = text => { input.value = text; input.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true})) }
    const until = async (condition, seconds) => {
        const end = Date.now() + 1000 * seconds
        while (!condition() && Date.now() < end) await new Promise(done => setTimeout(done, 10))
    }
    document.querySelector("#__search").checked = true
    input.focus()
    type("")
    await until(() => !links().length, 10)
    type(query)
    await until(() => links().length, 10)
    return [...new Set(links().map(link => link.href.split(/[?#]/)[0]))]
})"""
QUERIES = {
    "jupyter": "guides/notebooks/",
    "colab": "guides/notebooks/",
    "onnx": "guides/export/",
    "export": "guides/export/",
    "wandb": "guides/trackers/",
    "mlflow": "guides/trackers/",
    "tensorboard": "guides/trackers/",
    "reproducible": "how-to/runs/",
    "seed": "how-to/runs/",
    "early stopping": "how-to/runs/",
    "best weights": "how-to/runs/",
    "learning rate schedule": "how-to/optimization/",
    "warmup": "how-to/optimization/",
    "gradient accumulation": "how-to/optimization/",
    "gradient clipping": "how-to/optimization/",
    "class imbalance": "tutorials/datasets/",
    "confusion matrix": "how-to/metrics/",
    "roc curve": "how-to/metrics/",
    "custom metric": "how-to/metrics/",
    "custom loss": "how-to/losses/",
    "callback": "guides/callbacks/",
    "freeze layers": "guides/fine-tuning/",
    "gpu": "guides/precision-and-devices/",
    "fp16": "guides/precision-and-devices/",
    "mixed precision": "guides/precision-and-devices/",
    "multi gpu": "guides/many-processes/",
    "ddp": "guides/many-processes/",
    "fsdp": "guides/many-processes/",
    "slurm": "guides/clusters/",
    "docker": "guides/clusters/",
    "nan loss": "guides/troubleshooting/",
    "out of memory": "guides/troubleshooting/",
    "windows num_workers": "guides/troubleshooting/",
    "resume training": "guides/resume/",
    "checkpoint": "guides/resume/",
    "s3": "guides/resume/",
    "predict one image": "how-to/predictions/",
    "k-fold": "tutorials/cross-validation/",
    "optuna": "tutorials/tune-with-optuna/",
    "hyperparameter": "tutorials/tune-with-optuna/",
    "lstm": "how-to/data/",
    "train on csv": "how-to/data/",
    "data augmentation": "how-to/data/",
    "transformer": "tutorials/text-classification/",
    "gan": "guides/several-optimizers/",
    "huggingface": "guides/models-of-others/",
    "sklearn pipeline": "guides/scikit-learn/",
    "keras": "coming-from-keras/",
    "lightning": "coming-from-lightning/",
    "install": "get-started/",
    # Tasks of newcomers
    "train on my CSV": "how-to/data/",
    "continue after a crash": "guides/resume/",
    "use two GPUs": "guides/many-processes/",
    "log to MLflow": "guides/trackers/",
    "what does this error mean": "guides/errors/",
    "stop early and keep the best weights": "how-to/runs/",
    "unbalanced classes": "tutorials/datasets/",
    "export to ONNX": "guides/export/",
    "reproduce a run": "how-to/runs/",
    "generative adversarial network": "tutorials/gan/",
    "deploy with FastAPI": "tutorials/serve/",
}
CHINESE_QUERIES = {
    "训练": "zh/tutorials/seven-cells/",
    "早停": "zh/how-to/runs/",
    "混合精度": "zh/guides/precision-and-devices/",
    "梯度累积": "zh/how-to/optimization/",
    "梯度裁剪": "zh/how-to/optimization/",
    "学习率": "zh/how-to/optimization/",
    "断点续训": "zh/guides/resume/",
    "显存不足": "zh/guides/troubleshooting/",
    "多卡": "zh/guides/many-processes/",
    "自定义损失": "zh/how-to/losses/",
    "自定义指标": "zh/how-to/metrics/",
    "混淆矩阵": "zh/how-to/metrics/",
    "回调": "zh/guides/callbacks/",
    "类别不平衡": "zh/tutorials/datasets/",
    "交叉验证": "zh/tutorials/cross-validation/",
    "迁移学习": "zh/tutorials/fashion-cnn/",
    "文本分类": "zh/tutorials/text-classification/",
    "调参": "zh/tutorials/tune-with-optuna/",
    "预测": "zh/how-to/predictions/",
    "保存模型": "zh/guides/saving/",
    "可复现": "zh/guides/precision-and-devices/",
    "导出 ONNX": "zh/guides/export/",
    "实验跟踪": "zh/guides/trackers/",
    "安装": "zh/get-started/",
    "生成对抗网络": "zh/tutorials/gan/",
    "部署": "zh/tutorials/serve/",
}


@pytest.mark.browser
@in_a_browser
@pytest.mark.parametrize(("home", "queries"), [("", QUERIES), ("zh/", CHINESE_QUERIES)], ids=["English", "Chinese"])
def test_search_finds_the_page_in_the_first_three_hits(home, queries, address, browser):
    browser.open(urljoin(address, home), DESKTOP)
    hits = {query: browser.evaluate(f"{SEARCH}({json.dumps(query)})")[:3] for query in queries}
    failures = {query: hits[query] for query, page in queries.items() if urljoin(address, page) not in hits[query]}
    assert not failures
    assert browser.errors() == []


@pytest.mark.browser
@in_a_browser
def test_search_works_in_a_folder_and_on_a_phone(address, browser):
    browser.open(urljoin(address, "guides/callbacks/"), PHONE)
    browser.evaluate("document.querySelector('label[for=__search]').click()")
    hits = browser.evaluate(f"{SEARCH}('earlystopping')")
    assert urljoin(address, "api/callbacks/") in hits[:3]
    assert browser.errors() == []


@pytest.mark.browser
@in_a_browser
@pytest.mark.parametrize(
    ("page", "language", "destination"),
    [
        ("", "zh", "zh/"),
        ("zh/", "en", ""),
        ("get-started/", "zh", "zh/get-started/"),
        ("zh/tutorials/seven-cells/", "en", "tutorials/seven-cells/"),
        ("guides/check/", "zh", "zh/guides/check/"),
    ],
)
def test_the_language_switch_stays_on_the_page(page, language, destination, address, browser):
    browser.open(urljoin(address, page), DESKTOP)
    browser.evaluate("new Promise(done => setTimeout(done, 500))")  # until the theme has loaded its sitemaps
    browser.events.clear()
    browser.evaluate(f'document.querySelector("a[hreflang={language}]").click()')
    browser.wait_for("Page.loadEventFired")
    assert browser.evaluate("location.href") == urljoin(address, destination)
    assert browser.errors() == []


@pytest.mark.slow
def test_pages_have_their_language_and_their_own_description(site):
    pages_by_description: dict[tuple[str, str], list[str]] = {}
    for path in site.glob("**/index.html"):
        text, page = path.read_text(encoding="utf-8"), path.parent.relative_to(site).as_posix()
        language = "zh" if page.split("/")[0] == "zh" else "en"
        assert f'<html lang="{language}"' in text, page
        sources = [ROOT / "docs" / f"{page}.md", ROOT / "docs" / page / "index.md"]
        is_translated = language == "en" or any(source.exists() for source in sources)
        assert ('class="easytorch-untranslated" lang="en"' in text) != is_translated, page
        description = re.search(r'<meta name="description" content="([^"]+)"', text)
        assert description, page
        pages_by_description.setdefault((language, description[1]), []).append(page)
    assert [pages for pages in pages_by_description.values() if len(pages) > 1] == []


@pytest.mark.slow
def test_the_reference_shows_functions_and_no_modules(site):
    """A name that is also that of a module would show what is in the module."""
    pages = {path: path.read_text(encoding="utf-8") for path in site.glob("api/*/index.html")}
    assert len(pages) >= 12
    assert [path.parent.name for path, text in pages.items() if "doc-symbol-heading doc-symbol-module" in text] == []


# A tag, and its attributes. Text cannot contain "<", so no parser is needed, which would take ten times as long.
TAG = re.compile(r"<[a-z][^<>]*>", re.I)
ATTRIBUTE = re.compile(r'\s(href|src|id|name)=(?:"([^"]*)"|([^\s">]+))')


class Links:
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        self.links: set[str] = set()
        self.anchors = {"", "__top"}
        for name, quoted, plain in ATTRIBUTE.findall(" ".join(TAG.findall(text))):
            if value := html.unescape(quoted or plain):
                if name in ("href", "src"):
                    self.links.add(value)
                else:
                    self.anchors.add(unquote(value))


@pytest.mark.slow
def test_every_link_of_the_built_site_has_a_target(site):
    """This includes generated links: navigation, languages, reference, and notebooks in the branch of the site."""
    host = "http://site/"
    branch = re.compile(r"https://colab\.research\.google\.com/github/[\w-]+/[\w-]+/blob/gh-pages/")
    pages = {
        f"{host}{path.relative_to(site)}".removesuffix("index.html"): Links(path.read_text(encoding="utf-8"))
        for path in site.glob("**/*.html")
        if path.name != "404.html"  # shown under any address, so its links start at the root
    }
    for page, content in pages.items():
        for link in content.links:
            target = branch.sub(host, urljoin(page, link))
            if not target.startswith(host):
                assert re.match(r"(https?|mailto|data):", target), f"{page} links to {link!r}"
                continue
            url, _, anchor = target.partition("#")
            if url in pages:
                assert unquote(anchor) in pages[url].anchors, f"{page} links to {link!r}: no such heading"
            else:
                file = site / unquote(urlsplit(url).path).lstrip("/")
                assert file.is_file(), f"{page} links to {link!r}, which does not exist"
