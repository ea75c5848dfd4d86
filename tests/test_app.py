"""The page of app.py as its user meets it: the command line, the server, and in a browser if there is one."""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse

import numpy as np
import pytest
from PIL import Image

import app
from configs.config_setting import ISICConfig
from tests.inference.networks import SMALL, save_trained
from tests.report.html_page import HOSTILE, Page
from tests.tiny import ROOT

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Every address that the server asks for is written down.
AUDITED = """
import runpy, sys
def write_down(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1][0]
        print("ADDRESS", host, file=sys.stderr)
sys.addaudithook(write_down)
sys.argv = ["app.py", *sys.argv[1:]]
runpy.run_path("app.py", run_name="__main__")
"""
BROKEN = re.compile("<li>broken.jpg .*expected PNG")


class Server:
    """app.py in a process of its own."""

    def __init__(self, temporary, checkpoint):
        environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", AUDITED, str(checkpoint), *"--port 0 --device cpu --scan-backend torch".split()],
            **dict(cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8"),
        )
        self.said, self.address = "", ""
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r"the page is at (http\S+)/;", line):
                self.address = found[1]
                return
        raise AssertionError(self.said)

    def stop(self):
        """Its exit status after Ctrl-C, when all that it said is in `said`."""
        self.process.send_signal(signal.SIGINT)
        self.said += self.process.communicate(timeout=60)[1]
        return self.process.returncode


def read(path):
    with Image.open(path) as picture:
        return np.array(picture)


def pixels(areas):
    """Of the first structure in the table."""
    return int(re.search(r"<td>(\d[\d,]*)</td>", areas)[1].replace(",", ""))


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(temporary, tmp_path_factory):
    server = Server(temporary, save_trained(tmp_path_factory.mktemp("network"), ISICConfig(**SMALL)))
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.fixture
def files(tmp_path):
    colours = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "photo.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xffno image")
    return [str(tmp_path / name) for name in ("photo.png", "broken.jpg")]


def test_a_mistake_is_one_sentence(monkeypatch, tmp_path):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # which main sets
    for gradio, values, words in (
        (None, {}, "gradio.*requirements-extra.txt"),
        (app, dict(networks=(str(tmp_path / "no.pth"),)), "no.pth: there is no such file"),
        (app, dict(port=70000), "--port: .*70000.* 65535"),
    ):
        monkeypatch.setitem(sys.modules, "gradio", gradio)
        with pytest.raises((ValueError, OSError), match=words):
            app.main(app.AppConfig(**values))


def test_text_of_files_is_shown_as_it_is(tmp_path):
    written = HOSTILE + "${1 + 1} {{value}} `x`"
    rows = [{"file": written, "structure": written, "pixels": "1"}]
    (tmp_path / "page.html").write_text(app.table(rows, [""]) + app.rejections([written]), encoding="utf-8")
    page = Page(tmp_path / "page.html")
    assert not {"script", "img"} & set(page.tags) and page.text.count(" ".join(written.split())) == 3
    assert not set("$`{}") & set((tmp_path / "page.html").read_text(encoding="utf-8"))


def status(server, path="/config", method="GET", read=bytes.decode, **headers):
    """The status of a request with these headers, and the text of the answer."""
    with contextlib.closing(
        http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)
    ) as connection:
        connection.putrequest(method, path, skip_host=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, read(answer.read())


@needs_gradio
def test_the_server_answers_to_its_own_page_and_names_only(server):
    port = server.address.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", "localhost:9000"):  # 9000: ssh -L
        assert status(server, Host=host)[0] == 200
        assert status(server, Host=host, Origin=f"http://{host}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        assert status(server, Host=host)[0] in (400, 403)
    for origin in ("http://evil.example", "null", "http://localhost:3000", f"https://evil.example:{port}", ""):
        for path, method in (("/gradio_api/upload", "POST"), ("/gradio_api/queue/join", "POST"), ("/config", "GET")):
            assert status(server, path, method, Host=f"127.0.0.1:{port}", Origin=origin)[0] == 403


@needs_gradio
def test_a_click_on_a_sample_gives_its_mask(server, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(server.address, download_files=str(tmp_path), verbose=False)
    try:
        for number, path in enumerate(sorted((ROOT / "data/samples/images").glob("*.jpg"))):
            picture, areas = client.predict(number, api_name="/sample")[2:4]
            assert read(picture).shape == (768, 768, 3) and path.name in areas
    finally:
        client.close()
    text = json.loads(status(server, Host="localhost")[1])
    (samples,) = (part["props"]["samples"] for part in text["components"] if part["type"] == "dataset")
    for ((sample,),) in zip(samples, strict=True):
        path = urllib.parse.urlsplit(sample["url"]).path
        assert status(server, path, Host="localhost", read=bytes)[0] == 200
    assert len(samples) == 6
    shown = [part["props"].get("value") or "" for part in text["components"] if part["type"] == "html"]
    assert "<h1>" in shown[0] and "Not a medical device" in shown[-1] and "--" not in "".join(shown)


@needs_gradio
def test_the_server_keeps_tabs_apart_and_leaves_nothing(server, temporary, files, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    gradio_client = pytest.importorskip("gradio_client")

    def tab():
        return gradio_client.Client(server.address, download_files=str(tmp_path / "got"), verbose=False)

    first, second = tab(), tab()
    try:
        uploads = [gradio_client.handle_file(file) for file in files]
        _, _, _, picture, areas, missing, *_ = first.predict(uploads, api_name="/add")
        assert read(picture).shape == (549, 768, 3)
        assert BROKEN.search(missing) and str(temporary) not in missing
        before = pixels(areas)

        _, _, _, areas, missing, *_ = first.predict("photo", 0, 0.505, 0.1, api_name="/decide")
        after = pixels(areas)
        assert 0 < after < before and f"<td>{after / 100:.2f}</td>" in areas and BROKEN.search(missing)

        mask = read(first.predict(api_name="/save")["value"])
        assert mask.shape == (50, 70) and np.count_nonzero(mask == 255) == after
        assert second.predict(api_name="/save")["value"] is None
        assert not any(second.predict(None, 0, 0.505, 0.1, api_name="/decide")[2:5])  # picture, areas, left out
    finally:
        first.close()
        second.close()
    assert list(temporary.iterdir())
    assert server.stop() == 130 and "Traceback" not in server.said
    assert not list(temporary.iterdir())
    assert set(re.findall("^ADDRESS (.*)$", server.said, re.MULTILINE)) <= {"127.0.0.1", "::1"}


@needs_gradio
@pytest.mark.slow
def test_the_page_in_a_browser(temporary, files, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs Chromium")
    server = Server(temporary, save_trained(tmp_path, ISICConfig(**SMALL)))
    addresses, errors = [], []
    try:
        with (
            playwright.sync_playwright() as driver,
            driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as chromium,
        ):
            page = chromium.new_page(viewport={"width": 400, "height": 800})
            page.on("request", lambda request: addresses.append(request.url))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(server.address)
            page.set_input_files("input[type=file]", files)
            cells = page.locator(".results td")
            page.wait_for_function("document.querySelectorAll('.results td').length")
            before = int(cells.nth(2).inner_text().replace(",", ""))
            assert "broken.jpg" in page.inner_text(".left-out")
            assert page.locator(".picture img").evaluate("image => image.naturalWidth") == 768
            assert page.evaluate("document.documentElement.scrollWidth") == 400

            slider = page.locator("input[type=range]").first
            slider.press("ArrowRight")
            page.wait_for_function(f"document.querySelectorAll('.results td')[2].innerText != '{before:,}'")
            after = int(cells.nth(2).inner_text().replace(",", ""))
            page.get_by_role("button", name="Masks to download").click()
            with page.expect_download() as download:
                page.locator("a[download]").last.click()
            download.value.save_as(tmp_path / "mask.png")
            assert download.value.suggested_filename == "photo_mask.png"
            mask = read(tmp_path / "mask.png")
            assert mask.shape == (50, 70) and np.count_nonzero(mask == 255) == after < before
    finally:
        server.stop()
    assert not errors and all(url.startswith((server.address, "data:", "blob:")) for url in addresses)
