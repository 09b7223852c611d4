"""The site in a browser: pages open without an error, fit a phone, and are found by the search box."""

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
    str(path.relative_to(ROOT / "docs").with_suffix("")).removesuffix("index").rstrip("/") + "/"
    for path in ROOT.glob("docs/**/*.md")
)
DESKTOP, PHONE = (1280, 800), (390, 844)

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(
    BROWSER is None or os.name != "posix",
    reason="no browser looked at the site: chromium, chromium-browser or google-chrome is not on the PATH",
)


class Browser:
    """Headless Chromium with one tab, spoken to by its DevTools protocol: JSON over two pipes, a zero byte after each message."""

    def __init__(self, folder: Path) -> None:
        options = [
            "--headless", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "--no-first-run",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
            "--disable-breakpad", "--hide-scrollbars", *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]  # fmt: skip
        theirs_in, self.out = os.pipe()
        self.answers, theirs_out = os.pipe()
        connected = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # where the browser expects its pipes
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", connected, "bash", str(BROWSER), *options], env=os.environ | {"HOME": str(folder)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(theirs_in, theirs_out), start_new_session=True,
            )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
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
        """Call a method of the protocol and return its result; what happens meanwhile goes to ``events``."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        with contextlib.suppress(BrokenPipeError):  # read tells it better
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
        """Open ``url`` in a window of ``size``, and forget the events of the page before."""
        self.resize(size)
        self.events.clear()
        failure = self.call("Page.navigate", url=url).get("errorText")
        assert not failure, (url, failure)
        self.wait_for("Page.loadEventFired")

    def wait_for(self, method: str) -> None:
        """Wait until there has been such an event among those that are kept."""
        deadline = time.monotonic() + 60
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self.read(deadline))

    def evaluate(self, script: str) -> Any:
        """Return what ``script`` comes to in the page; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def errors(self) -> list[str]:
        """Return what a reader would see in red in the console."""
        self.evaluate("new Promise(done => setTimeout(done, 100))")  # who is late
        found = []
        for event in self.events:
            match event.get("method"), event.get("params", {}):
                case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                    found.append(details.get("exception", {}).get("description", details["text"]))
                case "Runtime.consoleAPICalled", {"type": "error" | "assert", "args": args}:
                    found.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in args))
                case "Log.entryAdded", {"entry": {"level": "error"} as entry}:
                    found.append(f"{entry['text']} {entry.get('url', '')}")
        return found

    def close(self) -> None:
        os.close(self.out)  # a browser without its pipe ends
        os.close(self.answers)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, notes what it has not got, and forbids pages to ask anybody else."""

    missing: list[str] = []  # noqa: RUF012

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
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
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

# Without it the sidebars are still on their way when a window was made larger
STILL = "document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>')"

# How wide the page is, and for who has to mend it: what reaches beyond the window and cannot be scrolled to
WIDTH = """(() => {
    const scrolls = node => node && node !== document.body &&
        (/auto|scroll|hidden/.test(getComputedStyle(node).overflowX) || scrolls(node.parentElement))
    return [document.scrollingElement.scrollWidth, [...document.querySelectorAll("article *")].filter(
        node => node.getBoundingClientRect().right > screen.width + 1 && !scrolls(node.parentElement)
    ).map(node => node.outerHTML.slice(0, 100)).slice(0, 5)]
})()"""


@pytest.mark.browser
@in_a_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_whole_and_fits_phone_and_desktop(page, address, browser):
    Handler.missing.clear()
    browser.open(urljoin(address, page), PHONE)
    assert browser.evaluate(IMAGES) == [], "images that are not there"
    browser.evaluate(STILL)
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
    ("words", "page", "found"),
    [
        ("EarlyStopping", "", "api/callbacks/"),
        ("EarlyStopping", "zh/", "api/callbacks/"),
        ("earlystopping", "guides/callbacks/", "api/callbacks/"),
        ("学习率", "zh/", "zh/get-started/"),
    ],
)
def test_the_search_box_finds(words, page, found, size, address, browser):
    browser.open(urljoin(address, page), size)
    browser.evaluate("document.querySelector('label[for=__search]').click()")
    browser.evaluate("document.querySelector('.md-search__input').focus()")
    browser.call("Input.insertText", text=words)
    deadline, results = time.monotonic() + 30, []
    while not results and time.monotonic() < deadline:
        browser.evaluate(KEY_UP)  # the box looks at its text when a key goes up, which inserting text does without
        time.sleep(0.1)
        results = browser.evaluate(RESULTS)
    assert any(urljoin(address, found) == result.partition("?")[0].partition("#")[0] for result in results), results
    assert browser.errors() == []


@pytest.mark.browser
@in_a_browser
@pytest.mark.parametrize(
    ("page", "click", "there"),
    [
        ("get-started/", "a[hreflang=zh]", "zh/index.html"),
        ("zh/get-started/", "a[hreflang=en]", "index.html"),
        ("get-started/", "nav a[href='../zh/get-started/']", "zh/get-started/"),
    ],
)
def test_a_click_leads_to_the_other_language(page, click, there, address, browser):
    browser.open(urljoin(address, page), DESKTOP)
    browser.evaluate("new Promise(done => setTimeout(done, 500))")  # the theme has asked for its sitemaps
    browser.events.clear()
    browser.evaluate(f'document.querySelector("{click}").click()')
    browser.wait_for("Page.loadEventFired")
    assert browser.evaluate("location.href") == urljoin(address, there)


class Links(HTMLParser):
    """The links of a page, and what in it may follow ``#``."""

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
def test_every_link_of_the_built_site_leads_somewhere(site):
    """Those of the navigation, of the languages and of the reference, too, which are in no source."""
    host = "http://site/"
    pages = {
        f"{host}{path.relative_to(site)}".removesuffix("index.html"): Links(path.read_text(encoding="utf-8"))
        for path in site.glob("**/*.html")
        if path.name != "404.html"  # is shown under any address, so its links begin at the root
    }
    for page, found in pages.items():
        for link in found.links:
            target = urljoin(page, link)
            if not target.startswith(host):
                assert re.match(r"(https?|mailto|data):", target), f"{page} links to {link!r}"
                continue
            there, _, anchor = target.partition("#")
            if there in pages:
                assert unquote(anchor) in pages[there].anchors, f"{page} links to {link!r}: no such heading"
            else:
                file = site / unquote(urlsplit(there).path).lstrip("/")
                assert file.is_file(), f"{page} links to {link!r}, which is not there"
