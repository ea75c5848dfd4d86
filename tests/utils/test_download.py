"""Downloads from a server on this machine: whole, interrupted, altered, out of reach."""

import contextlib
import hashlib
import http.server
import io
import re
import threading

import pytest
import torch

from configs.build import load_initial_weights
from configs.config_setting import ISICConfig
from models.vmunet import VMUNet
from tests.models.test_pretrained import SMALL, vmamba
from utils.download import Release, fetch
from utils.runs import named_weights

CONTENT = bytes(range(256)) * 40_000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`, from the byte that is asked for if it `resumes`, but stops after `most` bytes."""

    content, most, resumes = CONTENT, len(CONTENT), True
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.headers["Range"])
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if self.resumes else 0
        self.send_response(206 if self.resumes else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # of a client that has enough
            self.wfile.write(self.content[start : start + self.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        handler.url = f"http://127.0.0.1:{running.server_port}/weights.pth"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield handler
        running.shutdown()
        thread.join()


def release(server, content=CONTENT):
    return Release(server.url, len(content), hashlib.sha256(content).hexdigest())


def test_a_file_is_fetched_once(server, tmp_path):
    path = tmp_path / "weights.pth"
    for _ in range(2):
        assert fetch(release(server), path).read_bytes() == CONTENT
    assert server.asked == ["bytes=0-"]
    assert not (tmp_path / "weights.pth.part").exists()


@pytest.mark.parametrize("resumes", [True, False])
def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path, resumes):
    path, server.most = tmp_path / "weights.pth", 3_000_000
    with pytest.raises(ConnectionError, match=f"{server.url}: .* 3000000 of {len(CONTENT)} .*{path}"):
        fetch(release(server), path)
    assert not path.exists()
    server.most, server.resumes = len(CONTENT), resumes
    assert fetch(release(server), path).read_bytes() == CONTENT
    assert server.asked == ["bytes=0-", "bytes=3000000-"]


def test_a_whole_part_is_only_checked(server, tmp_path):
    path = tmp_path / "weights.pth"
    path.with_name("weights.pth.part").write_bytes(CONTENT)
    assert fetch(release(server), path).read_bytes() == CONTENT and not server.asked


def test_another_content_is_refused_and_fetched_anew(server, tmp_path):
    path, wanted = tmp_path / "weights.pth", release(server)
    server.content = CONTENT[::-1]
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(ValueError, match=f"weights.pth.*found SHA-256 {found}, expected {wanted.sha256}"):
        fetch(wanted, path)
    assert not path.exists()
    server.content = CONTENT
    assert fetch(wanted, path).read_bytes() == CONTENT


def test_a_file_of_the_user_is_checked_and_stays(server, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{path}: found SHA-256"):
        fetch(release(server), path)
    assert path.read_bytes() == b"mine" and not server.asked


def test_more_than_was_promised_is_not_kept(server, tmp_path):
    with pytest.raises(ValueError, match="SHA-256"):
        fetch(release(server)._replace(size=1000, sha256="0"), tmp_path / "weights.pth")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["weights.pth.lock"])


def test_training_starts_from_a_released_file(server, tmp_path, monkeypatch, save_vmamba):
    server.content = save_vmamba
    monkeypatch.setattr(named_weights, "DOWNLOADED", tmp_path)
    monkeypatch.setitem(named_weights.RELEASED, "vmamba-tiny", release(server, save_vmamba))
    model = VMUNet(**SMALL)
    load_initial_weights(model, ISICConfig(load_ckpt_path="vmamba-tiny"))
    assert model.vmunet.patch_embed.proj.weight.unique().numel() == 1  # as `vmamba` makes them
    assert (tmp_path / "weights.pth").read_bytes() == save_vmamba


def test_without_a_network_the_error_names_the_address_the_place_and_the_way_without(server, tmp_path, monkeypatch):
    unreachable = release(server)._replace(url="http://127.0.0.1:9/weights.pth")
    monkeypatch.setattr(named_weights, "DOWNLOADED", tmp_path)
    monkeypatch.setitem(named_weights.RELEASED, "vmamba-small", unreachable)
    with pytest.raises(ConnectionError) as error:
        load_initial_weights(VMUNet(**SMALL), ISICConfig(load_ckpt_path="vmamba-small"))
    for part in (
        "--load-ckpt-path vmamba-small",
        unreachable.url,
        str(tmp_path / "weights.pth"),
        "--load-ckpt-path none",
    ):
        assert part in str(error.value)


@pytest.fixture
def save_vmamba():
    file = io.BytesIO()
    torch.save({"model": vmamba()}, file)
    return file.getvalue()
