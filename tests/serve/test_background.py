"""A service in the background, in real processes, as `make demo` and a user's shell start it."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tony.serve import background
from tony.serve.main import listen

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(release, tmp_path):
    """A run's folder with a model; a service that a failed test leaves is stopped."""
    directory = tmp_path / "runs" / "tiny"
    shutil.copytree(release, directory / "model")
    (directory / "manifest.json").write_text("{}")
    yield directory
    background.stop(directory)


def tony(*arguments, **environment) -> subprocess.CompletedProcess:
    """Run the program with its output in pipes, which must be closed for this to return."""
    command = [sys.executable, "-m", "tony", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ, **environment}
    )


def url_of(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.split("running: ")[1].split(" ")[0]


def test_a_service_is_started_found_again_and_stopped(run):
    try:
        taken = listen("127.0.0.1", 8000)
    except Exception:
        taken = None  # by somebody else; as good
    started = tony("serve", run, "--detach", TONY_API_KEY="secret")
    url = url_of(started)
    if taken:
        taken.close()
    assert 8001 <= int(url.rsplit(":", 1)[1]) < 8100
    assert f"serve {run} --stop" in started.stdout
    state = json.loads((run / "serve.json").read_text())
    assert f"pid {state['pid']}" in started.stdout and str(state["port"]) in url
    assert os.getsid(state["pid"]) == state["pid"]  # the terminal that started it can be closed
    assert "secret" not in " ".join(psutil.Process(state["pid"]).cmdline())
    assert httpx.get(f"{url}/v1/models").status_code == 401
    models = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer secret"}).json()
    assert models["data"][0]["id"] == "tiny"
    assert "ready after" in (run / "serve.log").read_text()

    again = tony("serve", run / "model", "--detach", "--port", "0")
    assert url_of(again) == url and again.stdout.startswith("already running")
    assert "not used" not in again.stderr
    assert json.loads((run / "serve.json").read_text()) == state

    stopped = tony("serve", run, "--stop")
    assert stopped.returncode == 0 and stopped.stdout.startswith(f"stopped: {url}")
    assert not psutil.pid_exists(state["pid"]) or psutil.Process(state["pid"]).status() == psutil.STATUS_ZOMBIE
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
    nothing = tony("serve", run, "--stop")
    assert nothing.returncode == 0 and "no service" in nothing.stdout
    missing = tony("serve", run / "none", "--stop")
    assert missing.returncode == 2 and f"error: there is no folder {run / 'none'}" in missing.stderr
    assert not (run / "serve.json").exists()


def test_options_that_a_running_service_does_not_have_are_told(run, monkeypatch, capsys):
    monkeypatch.setattr(background, "_running", lambda home: background.State(1, 1.0, "127.0.0.1", 8000))
    monkeypatch.setattr(background, "_answers", lambda state, path, api_key=None: api_key == "secret")
    background.detach(run)
    background.detach(run, port=8000, api_key="secret")
    assert capsys.readouterr().err == ""
    background.detach(run, port=8001, api_key="other", slots=3)
    told = capsys.readouterr()
    assert told.out.startswith("already running: http://127.0.0.1:8000")
    assert told.err.startswith("not used: --port 8001, --api-key, --slots 3; stop it first")
    monkeypatch.setattr(background, "_answers", lambda state, path, api_key=None: True)  # it asks for no key
    background.detach(run, api_key="secret")
    assert capsys.readouterr().err.startswith("not used: --api-key;")


def test_two_that_start_it_at_once_get_the_same_one(run):
    done = [None, None]

    def start(number):
        done[number] = tony("serve", run, "--detach", "--port", "0")

    threads = [threading.Thread(target=start, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert url_of(done[0]) == url_of(done[1])
    assert sorted(each.stdout.startswith("already") for each in done) == [False, True]


def test_what_can_not_be_started_says_why_and_leaves_nothing(run, tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        failed = tony("serve", run, "--detach", "--port", port)
        assert (failed.returncode, failed.stdout) == (2, "")
        assert f"error: port {port} of 127.0.0.1 can't be used" in failed.stderr
    failed = tony("serve", tmp_path / "none", "--detach")
    assert failed.returncode == 2 and "there is no model in" in failed.stderr
    assert not (tmp_path / "none").exists()
    failed = tony("serve", run, "--detach", "--host", "0.0.0.0", TONY_API_KEY="")
    assert failed.returncode == 2 and "give --api-key" in failed.stderr

    (run / "model" / "model.safetensors").write_bytes(b"broken")
    failed = tony("serve", run, "--detach", "--port", "0")
    assert failed.returncode == 2 and "ended while it was starting: the model in" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (run / "serve.json").exists()


@pytest.mark.parametrize("recycled", [{"started": -100.0}, {}])
def test_a_process_that_got_the_number_of_a_dead_service_is_left_alone(run, capsys, recycled):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        try:
            started = background._started(psutil.Process(other.pid))
            state = {"pid": other.pid, "started": started, "host": "127.0.0.1", "port": 8000, **recycled}
            (run / "serve.json").write_text(json.dumps(state))
            background.stop(run)
            assert "no service" in capsys.readouterr().out
            time.sleep(0.2)
            assert other.poll() is None
            assert not (run / "serve.json").exists()
        finally:
            other.kill()


def test_a_damaged_state_is_as_good_as_none(run, capsys):
    for content in ("", "{", "[]", '{"pid": 1}', '{"pid": "x", "started": 1, "host": "a", "port": 1}'):
        (run / "serve.json").write_text(content)
        background.stop(run)
        assert "no service" in capsys.readouterr().out


def test_a_stubborn_service_is_killed(run, monkeypatch, capsys):
    monkeypatch.setattr(background, "PATIENCE", 0.5)
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, "serve"], stdout=subprocess.PIPE) as stubborn:
        stubborn.stdout.readline()
        state = background.State(stubborn.pid, background._started(psutil.Process(stubborn.pid)), "127.0.0.1", 8000)
        background.write_json(run / "serve.json", dataclasses.asdict(state))
        background.stop(run)
        assert stubborn.wait(5) < 0
    assert "stopped: http://127.0.0.1:8000" in capsys.readouterr().out


def test_ports_are_tried_from_the_default_on(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(background, "PORT", taken.getsockname()[1])
        with background._listen_somewhere("127.0.0.1", None) as found:
            assert found.getsockname()[1] > taken.getsockname()[1]
        monkeypatch.setattr(background, "PORTS", 1)
        with pytest.raises(background.TonyError, match="are taken; give --port"):
            background._listen_somewhere("127.0.0.1", None)
