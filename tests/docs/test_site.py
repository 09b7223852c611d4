"""The site in a browser: pages open without errors, fit a phone, and can be found by search."""

from __future__ import annotations

import contextlib
import functools
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
from html.parser import HTMLParser
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


@pytest.mark.browser
@in_a_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_and_fits_phone_and_desktop(page, address, browser):
    Handler.missing.clear()
    browser.open(urljoin(address, page), PHONE)
    assert browser.evaluate(IMAGES) == [], "missing images"
    browser.evaluate(NO_TRANSITIONS)
    for size in (PHONE, DESKTOP):
        browser.resize(size)
        width, beyond = browser.evaluate(WIDTH)
        assert width <= size[0], f"in a window of {size[0]} pixels the page is {width} wide, because of {beyond}"
    assert browser.errors() == []
    assert Handler.missing == []


KEY_UP = "document.querySelector('.md-search__input').dispatchEvent(new KeyboardEvent('keyup', {bubbles: true})), true"
RESULTS = """[...document.querySelectorAll(".md-search-result__link")].map(link => link.href)"""


@pytest.mark.browser
@in_a_browser
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize(
    ("words", "page", "target"),
    [
        ("EarlyStopping", "", "api/callbacks/"),
        ("EarlyStopping", "zh/", "api/callbacks/"),
        ("jupyter", "", "guides/notebooks/"),
        ("reproducibility", "", "guides/precision-and-devices/"),
        ("onnx", "", "guides/export/"),
        ("loss is nan", "", "guides/troubleshooting/"),
        ("pad_sequence", "", "guides/error-index/"),
        ("earlystopping", "guides/callbacks/", "api/callbacks/"),
        ("学习率", "zh/", "zh/get-started/"),
    ],
)
def test_the_search_box_finds_a_page(words, page, target, size, address, browser):
    browser.open(urljoin(address, page), size)
    browser.evaluate("document.querySelector('label[for=__search]').click()")
    browser.evaluate("document.querySelector('.md-search__input').focus()")
    browser.call("Input.insertText", text=words)
    deadline, results = time.monotonic() + 30, []
    while not results and time.monotonic() < deadline:
        browser.evaluate(KEY_UP)  # the box reads its text on keyup events
        time.sleep(0.1)
        results = browser.evaluate(RESULTS)
    assert any(urljoin(address, target) == result.partition("?")[0].partition("#")[0] for result in results), results
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


@pytest.mark.browser
@in_a_browser
@pytest.mark.parametrize("page", PAGES)
def test_no_code_of_a_page_is_cut_on_a_desktop(page, address, browser):
    browser.open(urljoin(address, page), DESKTOP)
    assert browser.evaluate(CUT) == []


@pytest.mark.slow
def test_pages_have_their_language_and_their_own_description(site):
    pages_by_description: dict[tuple[str, str], list[str]] = {}
    for path in site.glob("**/index.html"):
        text, page = path.read_text(encoding="utf-8"), path.parent.relative_to(site).as_posix()
        language = "zh" if page.split("/")[0] == "zh" else "en"
        assert f'<html lang="{language}"' in text, page
        is_translated = language == "en" or (ROOT / "docs" / f"{page}.md").exists() or page == "zh"
        assert ('class="easytorch-untranslated" lang="en"' in text) != is_translated, page
        description = re.search(r'<meta name="description" content="([^"]+)"', text)
        assert description, page
        pages_by_description.setdefault((language, description[1]), []).append(page)
    assert [pages for pages in pages_by_description.values() if len(pages) > 1] == []


class Links(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors = {"", "__top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {unquote(value) for name in ("id", "name") if (value := values.get(name))}
        self.links |= {value for name in ("href", "src") if (value := values.get(name))}


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
