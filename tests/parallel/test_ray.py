"""A training on a Ray cluster: what is asked of it, what its processes say, and one whole run on two workers."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tony.cli import main
from tony.errors import TonyError
from tony.parallel import hosts, ray_cluster
from tony.parallel.ray_cluster import Worker, bundle

TINY = """
size = 1
image_codec = {steps = 2, batch = 4}
audio_codec = {steps = 2, phoneme_steps = 2, batch = 1}
pretrain = {steps = 3, rows = 2}
tune = {steps = 2, rows = 2}
mesh = {data = -1}
[data.items]
arithmetic = 20
digits = 20
captions = 20
draw = 20
video = 5
transcribe = 5
speak = 5
spoken_question = 5
[eval.n]
default = 2
"""


@pytest.mark.parametrize(
    "nodes, workers, expected",
    [
        ([{"CPU": 2}, {"CPU": 8}], 2, (2, {"CPU": 1})),
        ([{"CPU": 2}, {"CPU": 8}], None, (2, {"CPU": 1})),
        ([{"CPU": 2}, {"CPU": 8, "TPU": 4}, {"CPU": 8, "TPU": 4}], None, (2, {"CPU": 1, "TPU": 4})),
        ([{"CPU": 8, "GPU": 8}], 4, (4, {"CPU": 1, "GPU": 2})),
        ([{"CPU": 8, "GPU": 8}] * 2, 3, (3, {"CPU": 1, "GPU": 4})),
        ([{"CPU": 8, "GPU": 8}, {"CPU": 8, "GPU": 4}], 2, (2, {"CPU": 1, "GPU": 4})),
    ],
)
def test_a_worker_gets_its_share_of_accelerators(nodes, workers, expected):
    assert bundle(nodes, workers) == expected


def test_more_workers_than_accelerators_are_refused():
    with pytest.raises(TonyError, match="--workers 9: the cluster has 8 GPUs"):
        bundle([{"CPU": 8, "GPU": 8}], 9)


def failing(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_mistakes_are_told_before_any_machine_is_asked_for(tmp_path, capsys, monkeypatch):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(TINY)
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert "-e '.[cluster]'" in failing(["run", str(recipe), "--on", "ray://head:10001"], capsys)
    assert "expected a number above zero" in failing(["run", str(recipe), "--on", "ray", "--workers", "0"], capsys)
    assert "--workers 2 is for --on" in failing(["run", str(recipe), "--workers", "2"], capsys)
    recipe.write_text("sizes = 1")
    assert "did you mean size?" in failing(["run", str(recipe), "--on", "ray"], capsys)


def test_a_server_that_starts_too_slowly_is_asked_again(monkeypatch):
    said = [ConnectionError("Initialization failure from server:\nslow"), None]
    calls = []

    def init(**options):
        calls.append(options["address"])
        if (error := said[min(len(calls), len(said)) - 1]) is not None:
            raise error

    ray = SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert ray_cluster._connected("ray://head:1") is ray and calls == ["ray://head:1"] * 2
    calls.clear()
    said[:] = [ConnectionError("ray client connection timeout")]
    with pytest.raises(TonyError, match=r"no Ray cluster answers \(ray client connection timeout\)"):
        ray_cluster._connected("ray://head:1")
    assert len(calls) == 1


def test_a_worker_passes_on_what_its_process_says_and_how_it_ends(tmp_path):
    worker = Worker()
    worker.start("mine.toml", "sizes = 1", ["--out", str(tmp_path)], str(tmp_path), {})
    said, deadline = [], time.monotonic() + 60
    while True:
        _, err, code = worker.poll()
        said += err
        if code is not None or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert code == 2 and said == ["error: unknown key sizes = 1; did you mean size?"]
    worker.stop()  # of what has ended is nothing


def test_a_worker_stops_a_process_that_runs(tmp_path):
    worker = Worker()
    worker.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    time.sleep(0.5)
    worker.stop()
    assert worker.process.returncode is not None


class Method:
    def __init__(self, function):
        self.remote = function


class Scripted:
    """A worker whose polls are given."""

    def __init__(self, polls):
        polls = iter(polls)
        self.stopped = False
        self.address = Method(lambda: "here:1")
        self.start = Method(lambda *arguments: setattr(self, "started", arguments))
        self.poll = Method(lambda: next(polls))
        self.stop = Method(lambda: setattr(self, "stopped", True))


class RayError(Exception):
    """As Ray's: the worker's own errors are of it, with a cause, and those of workers that are gone."""

    def __init__(self, text, cause=None):
        super().__init__(text)
        if cause:
            self.cause = cause


class Lost(RayError):
    """What stands for `ray.exceptions.RayActorError`."""


class Local:
    exceptions = SimpleNamespace(RayError=RayError, RayActorError=Lost)

    @staticmethod
    def get(value):
        if isinstance(value, Exception):
            raise value
        return value


def supervised(tmp_path, crew):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(TINY)
    said = []
    code = ray_cluster._supervised(Local, crew, recipe, ["--json"], lambda line, error: said.append((line, error)))
    return code, said


def test_the_first_process_is_heard_and_all_know_of_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "POLL", 0)
    crew = [
        Scripted([(["{"], ["step 1"], None), (["}"], [], 0), ([], [], 0)]),
        Scripted([([], ["not heard"], None), ([], [], None), ([], [], 0)]),
    ]
    code, said = supervised(tmp_path, crew)
    assert code == 0 and said == [("{", False), ("step 1", True), ("}", False)]
    for number, worker in enumerate(crew):
        name, text, arguments, _, environment = worker.started
        assert (name, text, arguments) == ("mine.toml", TINY, ["--json"]) and worker.stopped
        assert environment == {
            "JAX_COORDINATOR_ADDRESS": "here:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number),
        }  # fmt: skip


def test_the_last_words_of_another_process_are_told_and_nobody_is_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "POLL", 0)
    monkeypatch.setattr(ray_cluster, "GRACE", 0)
    hanging = Scripted([([], [], None)] * 1000)
    code, said = supervised(tmp_path, [hanging, Scripted([([], ["out of memory"], 7)] + [([], [], 7)] * 1000)])
    assert code == 7 and hanging.stopped
    assert said == [("process 1 of 2 ended with code 7; its last words:", True), ("  out of memory", True)]


def test_a_machine_that_leaves_the_cluster_ends_the_run_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "POLL", 0)
    gone = Lost("The actor died\nand much more")
    crew = [
        Scripted([(["a"], [], None), ([], ["b"], None), ([], [], hosts.LOST)]),
        Scripted([([], [], None), gone]),
    ]
    crew[1].stop = Method(lambda: gone)
    code, said = supervised(tmp_path, crew)
    assert code == hosts.LOST and crew[0].stopped
    assert said == [
        ("a", False), ("b", True), ("process 1 of 2 ended with code 75; its last words:", True),
        ("  its machine left the cluster (The actor died)", True),
    ]  # fmt: skip


def test_workers_that_cannot_be_started_are_told_why_and_the_others_stopped(tmp_path):
    for error in (Lost("The actor died\nand much more"), RayError("ray::Worker.start()", OSError("The actor died"))):
        crew = [Scripted([]), Scripted([])]
        crew[1].start = Method(lambda *arguments, error=error: error)
        with pytest.raises(TonyError, match=r"a worker could not be started \(The actor died\)"):
            supervised(tmp_path, crew)
        assert crew[0].stopped


def test_pathways_is_set_up_where_its_back_end_is_asked_for(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "proxy,cpu")
    monkeypatch.setitem(sys.modules, "pathwaysutils", None)
    with pytest.raises(TonyError, match="pip install pathwaysutils"):
        hosts.join()
    called = []
    fake = type(sys)("pathwaysutils")
    fake.initialize = lambda: called.append(True)
    monkeypatch.setitem(sys.modules, "pathwaysutils", fake)
    hosts.join()
    assert called and not hosts.together()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def cluster():
    """A Ray cluster of two workers with a processor each; the address of its client server."""
    pytest.importorskip("ray")
    ray = Path(sys.executable).with_name("ray")
    head, client = free_port(), free_port()
    quiet = {"RAY_DISABLE_DOCKER_CPU_WARNING": "1", "RAY_USAGE_STATS_ENABLED": "0"}

    def start(*arguments):
        environment = {**os.environ, **quiet}
        subprocess.run([ray, "start", *arguments], check=True, env=environment, stdout=subprocess.DEVNULL, timeout=120)

    try:
        start("--head", "--num-cpus=1", f"--port={head}", f"--ray-client-server-port={client}",
              "--include-dashboard=false")  # fmt: skip
        start("--num-cpus=1", f"--address=127.0.0.1:{head}")
        yield f"ray://127.0.0.1:{client}"
    finally:
        subprocess.run([ray, "stop", "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)


@pytest.mark.slow
def test_a_recipe_runs_from_start_to_end_on_two_workers(cluster, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(TINY)
    command = [sys.executable, "-m", "tony", "run", str(recipe), "--on", cluster, "--out", str(tmp_path), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    summary = json.loads(ended.stdout)
    assert {result["name"] for result in summary["results"]} >= {"text_arithmetic", "image_digits"}
    assert (tmp_path / "mine" / "card.html").exists()
    steps = [json.loads(line) for line in (tmp_path / "mine" / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2, 3]
