"""Interrupted and wrong downloads from a real loopback HTTP server end complete and verified, or with one line."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from imnet import cli
from imnet.data.sets.remote import Patience, Remote, fetch
from imnet.errors import IOFailure
from tests.data.conftest import send

BODY = np.random.default_rng(0).bytes(300_000)
# Long enough for a busy machine; only the two tests of a silent and of a slow server use the short one.
PATIENT = Patience(silence_s=10.0, attempts=3)
SHORT = Patience(silence_s=0.5, attempts=3, window_s=0.4, window_bytes=20_000)


def remote(server, body=BODY, name="file.bin"):
    server.files[name] = body
    return Remote(server.url + name, len(BODY), "md5:" + hashlib.md5(BODY).hexdigest())


def refused(server, tmp_path, patience=PATIENT, **kwargs):
    """Returns the one-line error of a download that must fail and leave no file under the final name."""
    with pytest.raises(IOFailure) as caught:
        fetch(remote(server, **kwargs), tmp_path / "file.bin", patience)
    assert not (tmp_path / "file.bin").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_file_arrives_and_is_not_fetched_twice(server, tmp_path):
    fetch(remote(server), tmp_path / "a" / "file.bin", PATIENT)
    fetch(remote(server), tmp_path / "a" / "file.bin", PATIENT)
    assert (tmp_path / "a" / "file.bin").read_bytes() == BODY
    assert len(server.requests) == 1
    assert os.listdir(tmp_path / "a") == ["file.bin"]


def test_short_body_is_resumed_from_where_it_broke(server, tmp_path):
    def cut_once(handler, body, start):
        if start == 0:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body[:100_000])
        return start == 0

    server.behave = cut_once
    fetch(remote(server), tmp_path / "file.bin", PATIENT)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.requests == [("/file.bin", None), ("/file.bin", "bytes=100000-")]


def test_always_short_gives_up_and_keeps_what_came(server, tmp_path):
    server.behave = lambda handler, body, start: send(handler, body, start, length=1000) or True
    assert "closed 297000 bytes early (attempt 3 of 3)" in refused(server, tmp_path)
    server.behave = None
    fetch(remote(server), tmp_path / "file.bin", PATIENT)
    assert server.requests[-1] == ("/file.bin", "bytes=3000-")
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_200_for_206_starts_anew(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 5000)
    server.behave = lambda handler, body, start: send(handler, body, 0) or True
    fetch(remote(server), tmp_path / "file.bin", PATIENT)
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_a_wrong_range_is_not_appended(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(BODY[:5000])
    server.behave = lambda handler, body, start: start == 5000 and (send(handler, body, 7000) or True)
    fetch(remote(server), tmp_path / "file.bin", PATIENT)
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_damaged_part_is_thrown_away_by_its_checksum(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 5000)
    fetch(remote(server), tmp_path / "file.bin", PATIENT)
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_wrong_checksum(server, tmp_path):
    assert "checksum is md5:" in refused(server, tmp_path, body=BODY[::-1])


def test_endless_body_is_cut_at_the_expected_size(server, tmp_path):
    assert "checksum" in refused(server, tmp_path, body=b"\0" * 50_000_000)
    assert not (tmp_path / "file.bin.part").exists() or (tmp_path / "file.bin.part").stat().st_size <= len(BODY)


def test_redirect_loop(server, tmp_path):
    def loop(handler, body, start):
        handler.send_response(302)
        handler.send_header("Location", handler.path)
        handler.end_headers()
        return True

    server.behave = loop
    assert "infinite loop" in refused(server, tmp_path)
    assert len(server.requests) < 20


def test_missing_on_the_server(server, tmp_path):
    with pytest.raises(IOFailure, match="Not Found"):
        fetch(Remote(server.url + "no", 1, "md5:0"), tmp_path / "no", PATIENT)
    assert os.listdir(tmp_path) == []


def test_silent_server(server, tmp_path):
    server.behave = lambda handler, body, start: time.sleep(20) or True
    began = time.monotonic()
    assert "timed out" in refused(server, tmp_path, SHORT)
    assert time.monotonic() - began < 8


def test_dripping_server(server, tmp_path):
    def drip(handler, body, start):
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Range", f"bytes {start}-")
        handler.end_headers()
        for i in range(60):
            handler.wfile.write(body[start + i : start + i + 1])
            time.sleep(0.05)
        return True

    server.behave = drip
    assert "bytes in 0.4 s" in refused(server, tmp_path, SHORT)


def test_nobody_listens(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
    with pytest.raises(IOFailure, match="refused"):
        fetch(Remote(url, 1, "md5:0"), tmp_path / "x", PATIENT)


def test_killed_ten_times_then_whole(server, tmp_path):
    """After each of ten kill -9 in the middle, the next start continues from the bytes that are there."""

    def slow(handler, body, start):
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Range", f"bytes {start}-")
        handler.end_headers()
        for at in range(start, len(body), 10_000):
            handler.wfile.write(body[at : at + 10_000])
            time.sleep(0.02)
        return True

    wanted = remote(server)
    code = (
        "from imnet.data.sets.remote import *; from pathlib import Path; import sys; "
        "fetch(Remote(sys.argv[1], int(sys.argv[2]), sys.argv[3]), Path(sys.argv[4]))"
    )
    arguments = [wanted.url, str(wanted.size_bytes), wanted.checksum, str(tmp_path / "file.bin")]
    part = tmp_path / "file.bin.part"
    server.behave = slow
    for kill in range(10):
        before = part.stat().st_size if part.exists() else 0
        child = subprocess.Popen([sys.executable, "-c", code, *arguments])
        while child.poll() is None and (not part.exists() or part.stat().st_size < min(before + 20_000, 280_000)):
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (tmp_path / "file.bin").exists(), f"whole before kill {kill}"
    server.behave = None
    fetch(wanted, tmp_path / "file.bin", PATIENT)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert len([span for _, span in server.requests if span]) >= 9


def test_four_at_once_download_once(server, tmp_path):
    wanted = remote(server)
    code = (
        "from imnet.data.sets.remote import *; from pathlib import Path; import sys; "
        "fetch(Remote(sys.argv[1], int(sys.argv[2]), sys.argv[3]), Path(sys.argv[4]))"
    )
    arguments = [wanted.url, str(wanted.size_bytes), wanted.checksum, str(tmp_path / "file.bin")]
    children = [subprocess.Popen([sys.executable, "-c", code, *arguments]) for _ in range(4)]
    assert [child.wait(30) for child in children] == [0] * 4
    assert len(server.requests) == 1
    assert os.listdir(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("look", [[], ["--dry-run"]])
def test_a_file_in_place_of_the_folder_is_called_a_file(tmp_path, monkeypatch, capsys, look):
    """It was said not to exist, and the hint named a folder inside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = tmp_path / "pictures.zip"
    archive.write_bytes(b"PK")
    words = ["--recipe", "fashion-mnist/speedrun", "--data-dir", str(archive), "--device", "cpu"]
    code = cli.train_main([*words, "--out", str(tmp_path / "run"), *look])
    said = "".join(capsys.readouterr())
    assert code == (0 if look else 65)
    assert f"{archive} is a file, and --data-dir is the folder of these files" in said
    assert f"into {tmp_path / 'cache' / 'imnet' / 'fashion-mnist'}" in said
