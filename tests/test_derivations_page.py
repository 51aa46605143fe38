"""The page of a derivation: what it is made of, and what a browser shows.

python tests/test_derivations_page.py --screenshot FILE [--width 1280] [--dark]
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import numpy as np
import pytest

import kljax
from kljax.derivations import expression as ex
from kljax.derivations.catalogue import univariate
from kljax.derivations.derivation import Derivation
from kljax.derivations.expectation import CUBATURE
from kljax.derivations.page import javascript, page

KEYS = ("mu", "sigma", "nu", "tau")
TERMS = ("trace", "mahalanobis", "log_det", "dispersion", "location")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="neither chromium nor google-chrome is installed"
)


# ---- the page as text -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def html() -> str:
    return page(univariate.d)


class _Reader(HTMLParser):
    """Checks that elements nest, and remembers them."""

    VOID = frozenset({"meta", "input", "br", "link", "img", "hr"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _read(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def test_elements_nest_and_labels_have_their_control(html: str):
    seen = _read(html).seen
    ids = [attrs["id"] for _, attrs in seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["for"] for tag, attrs in seen if tag == "label"} == set(KEYS) <= set(ids)


def test_nothing_is_fetched(html: str):
    assert "http" not in html
    assert not re.search(r"@import|url\((?!#)", html)
    for tag, attrs in _read(html).seen:
        assert not {"src", "href", "srcset", "data"} & set(attrs)
        assert tag not in ("link", "iframe", "object", "embed", "img")


def test_mathml_is_well_formed(html: str):
    blocks = re.findall(r"<math\b.*?</math>", html, re.DOTALL)
    assert len(blocks) >= len(univariate.d.steps) + len(KEYS)
    for block in blocks:
        assert "".join(ElementTree.fromstring(block).itertext()).strip()


def test_every_line_rule_and_symbol_is_there(html: str):
    text = re.sub(r"<[^>]*>", "", html)
    for step in univariate.d.steps:
        assert f'data-name="line-{step.number}"' in html
        assert (step.rule.statement if step.rule else step.quantity) in text
    for parameter in univariate.d.parameters.values():
        # Defined before the question, which uses it.
        assert html.index(parameter.meaning) < html.index(univariate.d.question)
    assert "{{" not in html


# ---- formulas as JavaScript -----------------------------------------------------------------


def test_javascript_of_every_operation():
    a, b = ex.symbol("a"), ex.symbol("b")
    names = {a: "a", b: "b"}

    def printed(x: ex.Expr) -> str:
        return javascript(x, names, CUBATURE)

    assert printed(a + b * 2) == "(a + (b * (2.0)))"
    assert printed(-(a**2) / (a - b)) == "((-Math.pow(a, (2.0))) / (a - b))"
    assert printed(a - -3) == "(a - (-3.0))"
    for op in (ex.log, ex.exp, ex.expm1, ex.log1p, ex.sqrt):
        assert printed(op(a)) == f"Math.{op.name}(a)"


def test_unknown_operations_are_named():
    a = ex.symbol("a")
    with pytest.raises(NotImplementedError, match="'logdet'"):
        javascript(ex.logdet(a), {a: "a"}, CUBATURE)
    with pytest.raises(NotImplementedError, match="'sum_over'"):
        javascript(ex.sum_over(a, lambda i: a[i]), {a: "a"}, CUBATURE)


def test_other_parameters_are_refused():
    other = Derivation("other", "", "", {}, univariate.d.law)
    with pytest.raises(NotImplementedError, match="'other'"):
        page(other)


# ---- a browser ------------------------------------------------------------------------------


class Browser:
    """A headless Chromium that is spoken to through two pipes, by the DevTools protocol."""

    def __init__(self, folder: Path):
        assert CHROMIUM is not None
        # The browser listens on descriptor 3 and answers on 4.
        self.file = folder
        self._process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh", CHROMIUM]
            + ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
            + ["--no-first-run", "--disable-background-networking", "--disable-sync"]
            + ["--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars"]
            + [f"--user-data-dir={folder}", "--remote-debugging-pipe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _receive(self, seconds: float = 20) -> dict[str, Any]:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\0" not in self._buffer:
            assert select.select([pipe], [], [], seconds)[0], "the browser does not answer"
            chunk = os.read(pipe, 1 << 20)
            assert chunk, "the browser ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def evaluate(self, script: str) -> Any:
        answer = self(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, file: Path, width: int = 1280, height: int = 900, **media: str) -> None:
        phone = width < 500
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1}
        self("Emulation.setDeviceMetricsOverride", **size, mobile=phone)
        features = [{"name": k.replace("_", "-"), "value": v} for k, v in media.items()]
        self("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self("Page.navigate", url=file.as_uri())
        self.wait(
            "document.readyState === 'complete' && !!document.querySelector('[data-value]')"
        )

    def wait(self, condition: str, seconds: float = 5) -> None:
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.02)

    def press(self, key: str, times: int = 1) -> None:
        """A key of the keyboard, by its name or its character."""
        codes = {"Tab": 9, "Enter": 13, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        code = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0)}
        for _ in range(times):
            self("Input.dispatchKeyEvent", type="keyDown", **code, **text)
            self("Input.dispatchKeyEvent", type="keyUp", **code)

    def tab_to(self, condition: str) -> None:
        """Presses the tabulator until the element with the focus `e` is the one."""
        for _ in range(60):
            self.press("Tab")
            if self.evaluate(f"(e => {condition})(document.activeElement)"):
                return
        raise AssertionError(f"the tabulator never reaches {condition}")

    def drag(self, start: tuple[float, float], by: tuple[float, float]) -> None:
        x, y = start
        button = {"button": "left", "clickCount": 1}
        self("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **button)
        for part in (0.5, 1):
            place = {"x": x + part * by[0], "y": y + part * by[1]}
            self("Input.dispatchMouseEvent", type="mouseMoved", **place, **button)
        place = {"x": x + by[0], "y": y + by[1]}
        self("Input.dispatchMouseEvent", type="mouseReleased", **place, **button)

    def numbers(self) -> dict[str, float]:
        """What the page shows, by name, and its four parameters."""
        texts = self.evaluate(
            "({...Object.fromEntries([...document.querySelectorAll('[data-name]')].map("
            "e => [e.dataset.name, e.dataset.value])), ...Object.fromEntries("
            "Object.entries(state).map(([k, v]) => [k, String(v)]))})"
        )
        return {name: float(text) for name, text in texts.items()}

    def complaints(self) -> list[dict[str, Any]]:
        """Errors of the console, and requests for anything but the file."""
        bad = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            level = params.get("type") if method == "Runtime.consoleAPICalled" else None
            level = params["entry"]["level"] if method == "Log.entryAdded" else level
            url = params.get("request", {}).get("url", "file:")
            if method == "Runtime.exceptionThrown" or level in ("error", "warning"):
                bad.append(event)
            if not url.startswith("file:"):
                bad.append(event)
        return bad

    def screenshot(self, file: Path) -> None:
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        whole = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self("Page.captureScreenshot", clip=whole, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(image["data"]))

    def close(self) -> None:
        try:
            self._session = None
            self("Browser.close")
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, html: str) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_text(html, "utf-8")
    browser = Browser(folder / "profile")
    browser.file = folder / "page.html"
    yield browser
    browser.close()


@jax.jit
def _library(mu: Any, sigma: Any, nu: Any, tau: Any) -> dict[str, Any]:
    q, p = kljax.Normal(mu, sigma), kljax.Normal(nu, tau)
    terms = kljax.kl_terms(q, p)
    by_mu, by_sigma = jax.grad(
        lambda loc, scale: kljax.kl_divergence(kljax.Normal(loc, scale), p), argnums=(0, 1)
    )(mu, sigma)
    return {
        "kl": kljax.kl_divergence(q, p),
        "reverse_kl": kljax.kl_divergence(p, q),
        "grad_mu": by_mu,
        # d sigma / d log sigma^2 = sigma / 2
        "grad_log_variance": by_sigma * sigma / 2,
        **{name: getattr(terms, name) for name in TERMS},
    }


def _compare(shown: dict[str, float]) -> float:
    """The largest error of the page's numbers, in units of what is allowed."""
    with jax.enable_x64(True):
        right = {
            k: float(v) for k, v in _library(*(np.float64(shown[key]) for key in KEYS)).items()
        }
    last = len(univariate.d.steps) - 1
    errors = {k: abs(shown[k] - v) / (1e-12 * abs(v) + 1e-15) for k, v in right.items()}
    errors["line"] = abs(shown[f"line-{last}"] - right["kl"]) / (1e-12 * right["kl"] + 1e-15)
    # Lines before the last add up the terms, which may cancel.
    size = right["trace"] + right["mahalanobis"] + 1 + abs(right["log_det"])
    for number in range(last):
        errors[f"line {number}"] = abs(shown[f"line-{number}"] - right["kl"]) / (1e-13 * size)
    gap = shown["area_plus"] - shown["area_minus"] - right["kl"]
    errors["areas"] = abs(gap) / (1e-5 * shown["area_plus"] + 1e-15)
    worst = max(errors, key=lambda k: errors[k])
    assert errors[worst] <= 1, (worst, shown, right)
    return errors[worst]


@needs_browser
def test_every_number_by_keyboard_alone(browser: Browser):
    browser.open(browser.file, prefers_reduced_motion="reduce")
    before = browser.numbers()
    _compare(before)

    # The handles of the plot, then the examples, then sliders and number boxes.
    browser.tab_to("e.dataset.key === 'tau' && e.getAttribute('role') === 'slider'")
    browser.press("ArrowUp", 3)
    browser.press("PageDown")
    browser.tab_to("e.dataset.key === 'mu' && e.getAttribute('role') === 'slider'")
    browser.press("ArrowLeft", 2)
    moved = browser.numbers()
    assert moved["mu"] == pytest.approx(before["mu"] - 0.1)
    assert moved["tau"] == pytest.approx(before["tau"] * 1.05**-7, rel=0.02)
    _compare(moved)

    points = []
    for _ in range(5):
        browser.tab_to("e.matches('button')")
        browser.press("Enter")
        points.append(browser.numbers())
        _compare(points[-1])
        assert browser.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    equal, near = points[:2]
    assert equal["kl"] == equal["dispersion"] == equal["grad_mu"] == equal["reverse_kl"] == 0
    assert 0 < near["kl"] < 1e-7

    for key in KEYS:
        browser.tab_to(f"e.id === {key!r}")
        start = browser.numbers()
        browser.press("ArrowRight", 7)
        moved = browser.numbers()
        assert moved[key] > start[key]
        _compare(moved)
        browser.tab_to(f"e.id === {key + '-box'!r}")
        for character in "0.37":
            browser.press(character)
        typed = browser.numbers()
        assert typed[key] == 0.37
        _compare(typed)
    assert browser.complaints() == []


@needs_browser
def test_a_number_that_is_none_changes_nothing(browser: Browser):
    browser.open(browser.file, prefers_reduced_motion="reduce")
    before = browser.numbers()
    browser.evaluate("document.getElementById('sigma-box').focus()")
    browser.evaluate("document.activeElement.select()")
    for character in "-2":
        browser.press(character)
    invalid = "document.getElementById('sigma-box').getAttribute('aria-invalid')"
    assert browser.evaluate(invalid) == "true"
    assert browser.numbers() == before
    browser.press("Tab")
    assert browser.evaluate(invalid) == "false"


@needs_browser
def test_handles_can_be_dragged(browser: Browser):
    browser.open(browser.file)
    for key in KEYS:
        before = browser.numbers()
        box = browser.evaluate(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector("
            f"'.handle[data-key={key}] .dot').getBoundingClientRect())"
        )
        browser.drag(box, (40, 0))
        after = browser.numbers()
        assert after[key] > before[key] + 0.3
        assert {k for k in KEYS if after[k] != before[k]} == {key}
        _compare(after)
    assert browser.complaints() == []


@needs_browser
def test_examples_travel_and_are_spoken(browser: Browser):
    browser.open(browser.file)
    browser.evaluate("document.querySelector('button').click()")
    browser.wait("state.mu === 0 && state.sigma === 1 && state.nu === 0 && state.tau === 1")
    browser.wait("document.getElementById('spoken').textContent.includes(' 0 nats')")
    assert browser.evaluate("document.getElementById('spoken').ariaLive") == "polite"
    assert browser.complaints() == []


@needs_browser
@pytest.mark.parametrize("width", [360, 390, 820, 1000, 1280])
def test_no_page_is_wider_than_its_window(browser: Browser, width: int):
    browser.open(browser.file, width, prefers_color_scheme="dark")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    for row, widest in (("first", 800), ("last", 992)):
        one_column = browser.evaluate(
            "(c => c[0].getBoundingClientRect().left === c[1].getBoundingClientRect().left)"
            f"(document.querySelector('main > .two:{row}-child').children)"
        )
        assert one_column == (width <= widest)
    narrowest = "Math.min(...[...document.querySelectorAll('svg')].map(e => e.clientWidth))"
    assert browser.evaluate(narrowest) > 90
    # A formula that does not fit scrolls in its own box, which the keyboard reaches.
    assert browser.evaluate(
        "[...document.querySelectorAll('.formula')].every(e => "
        "(e.scrollWidth > e.clientWidth) === (e.tabIndex === 0))"
    )
    assert browser.complaints() == []


def main() -> None:
    """A picture of the page."""
    import tempfile

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--screenshot", type=Path, required=True)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--preset", help="name of a button to press first")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(page(univariate.d), "utf-8")
        browser = Browser(Path(folder) / "profile")
        scheme = "dark" if arguments.dark else "light"
        browser.open(
            file,
            arguments.width,
            prefers_color_scheme=scheme,
            prefers_reduced_motion="reduce",
        )
        if arguments.preset:
            found = f"e => e.textContent === {arguments.preset!r}"
            browser.evaluate(f"[...document.querySelectorAll('button')].find({found}).click()")
        browser.screenshot(arguments.screenshot)
        browser.close()


if __name__ == "__main__":
    main()
