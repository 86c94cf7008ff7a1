"""Real processes train together: as one another, to the bit; and end together when one of them is killed or stopped."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.parallel.pod import ROWS, batch_at
from tony.model.files import load_model
from tony.parallel import hosts
from tony.recipe import load
from tony.run import RunContext
from tony.stages.world import encode

SILENT = 10  # seconds
STEPS = 10


class Processes:
    """Processes of a module of tests, which know of each other."""

    def __init__(self, module: str, arguments: list, count: int):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{found.getsockname()[1]}"
        variables = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "TONY_SILENCE_SECONDS": str(SILENT),
        }
        alone = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        self.running = [
            subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                env={**os.environ, **({**variables, "JAX_PROCESS_ID": str(number)} if count > 1 else alone)},
                cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True,
            )
            for number in range(count)
        ]  # fmt: skip

    def end(self, seconds: float = 240) -> list[tuple[int, str]]:
        """(exit code, what it wrote to stderr) of each process."""
        try:
            told = [process.communicate(timeout=seconds)[1] for process in self.running]
        finally:
            for process in self.running:
                process.kill()
        return [(process.returncode, text) for process, text in zip(self.running, told, strict=True)]


class Pods(Processes):
    """Processes of `tests.parallel.pod` that train in a folder."""

    def __init__(self, directory: Path, count: int, seconds: float = 0.0, mesh: tuple[str, ...] = ()):
        self.directory = directory
        super().__init__("tests.parallel.pod", [directory, STEPS, seconds, *mesh], count)

    def wait_for_step(self, step: int) -> None:
        """Until every process has made so many steps."""
        until = time.monotonic() + 240
        while min(len(self.seen(number)) for number in range(len(self.running))) < step:
            assert all(process.poll() is None for process in self.running), self.end()
            assert time.monotonic() < until
            time.sleep(0.05)

    def seen(self, number: int) -> list[dict]:
        """What a process has written down of each step, of an earlier start too."""
        path = self.directory / f"params-{number}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(directory: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two pods that nothing interrupts."""
    pods = Pods(tmp_path_factory.mktemp("whole"), 2)
    assert [code for code, _ in pods.end()] == [0, 0]
    return pods


def test_pods_have_the_same_parameters_after_every_step_and_share_the_rows(whole):
    first, second = whole.seen(0), whole.seen(1)
    assert len(first) == STEPS
    assert [step["params"] for step in first] == [step["params"] for step in second]
    assert len({step["params"] for step in first}) == STEPS
    for step, (one, other) in enumerate(zip(first, second, strict=True)):
        assert one["rows"] + other["rows"] == batch_at(step)["tokens"][:, 0].tolist()


def test_one_that_is_killed_ends_the_other_and_training_goes_on_identically(whole, tmp_path):
    pods = Pods(tmp_path, 2, seconds=0.3)
    pods.wait_for_step(7)
    pods.running[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (code, told), _ = pods.end(seconds=60)
    assert time.monotonic() - killed < 60
    assert code not in (0, None)
    assert f"error: process 1 of 2 was killed or hangs: no sign of it for {SILENT} s" in told.splitlines()
    done = [len(pods.seen(number)) for number in (0, 1)]
    assert max(done) < STEPS
    again = Pods(tmp_path, 2)
    assert [code for code, _ in again.end()] == [0, 0]
    for number in (0, 1):
        since = again.seen(number)[done[number] :]
        assert 3 <= len(since) < STEPS  # from a checkpoint on
        assert since == whole.seen(number)[-len(since) :]
    assert losses(tmp_path) == losses(whole.directory)


def test_all_processes_do_what_is_for_all_and_the_first_one_the_rest(tmp_path):
    assert [code for code, _ in Processes("tests.parallel.staged", [tmp_path], 2).end()] == [0, 0]
    traces = [(tmp_path / f"trace-{number}").read_text().split() for number in (0, 1)]
    assert traces == [["alone", "together"], ["together"]]
    (first, told), (second, heard) = Processes("tests.parallel.staged", [tmp_path, "fail"], 2).end()
    assert (first, second) == (2, 75)
    assert told.splitlines()[-1] == "error: there is no more room"
    assert heard.splitlines()[-1] == "error: process 0 of 2 ended: there is no more room"
    assert [(tmp_path / f"trace-{number}").read_text().split() for number in (0, 1)] == traces  # "alone" is unchanged


@pytest.mark.slow
def test_a_recipe_is_trained_by_two_processes_with_the_loaders_rows(tmp_path, release):
    run, path, documents = tmp_path / "run", tmp_path / "mine.toml", tmp_path / "books.jsonl"
    for stage, part in (("text", "text"), ("image_codec", "image"), ("audio_codec", "audio")):
        shutil.copytree(release / "tokenizer" / part, run / stage)
    documents.write_text("".join(json.dumps({"text": f"{n} + {n} = {2 * n}"}) + "\n" for n in range(64)))
    path.write_text(
        f"""
        size = 1
        [data]
        items = {{}}
        [data.sources.books]
        path = "{documents}"
        [pretrain]
        length = 32
        rows = 8
        steps = 3
        [tune]
        length = 32
        [mesh]
        pod = 2
        """
    )
    encode(RunContext(load(path), run, Console(quiet=True)))
    assert [code for code, _ in Processes("tests.parallel.stage", [path, run], 2).end()] == [0, 0]
    path.write_text(path.read_text().replace("pod = 2", "data = 2"))
    shutil.copytree(run, tmp_path / "again", ignore=shutil.ignore_patterns("pretrain"))
    assert [code for code, _ in Processes("tests.parallel.stage", [path, tmp_path / "again"], 1).end()] == [0]
    assert losses(run / "pretrain") == pytest.approx(losses(tmp_path / "again" / "pretrain"), rel=2e-3)
    config, params = load_model(run / "pretrain")
    assert params["embedding"].shape == (config.vocab_size, config.width)


@pytest.mark.slow
def test_four_end_when_one_hangs_and_two_devices_go_on_with_the_same_data(tmp_path):
    pods = Pods(tmp_path, 4, seconds=0.3)
    pods.wait_for_step(7)
    pods.running[2].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    others = [process for number, process in enumerate(pods.running) if number != 2]
    while any(process.poll() is None for process in others):
        assert time.monotonic() - stopped < 60
        time.sleep(0.1)
    assert all(process.returncode for process in others)
    pods.running[2].kill()
    told = [text for number, (_, text) in enumerate(pods.end()) if number != 2]
    assert all("error: process 2 of 4 was killed or hangs" in text for text in told)
    seen = [pods.seen(number) for number in range(4)]
    for steps in zip(*seen, strict=False):
        assert len({step["params"] for step in steps}) == 1
    before = losses(tmp_path)
    again = Pods(tmp_path, 1, mesh=("data=2",))
    assert [code for code, _ in again.end()] == [0]
    since = again.seen(0)[len(seen[0]) :]
    for step, made in zip(range(STEPS - len(since), STEPS), since, strict=True):
        assert made["rows"] == batch_at(step)["tokens"][:, 0].tolist()
    assert len(made["rows"]) == ROWS
    assert losses(tmp_path)[: len(before)] == pytest.approx(before, rel=1e-3)


def test_a_process_that_makes_no_step_ends_and_says_so(monkeypatch, capsys):
    class Ended(Exception):
        pass

    def ends(code):
        raise Ended(code)

    told = {}
    client = SimpleNamespace(key_value_set=lambda key, value, **_: told.update({key: value}))
    monkeypatch.setattr(hosts, "_client", lambda: client)
    monkeypatch.setattr(hosts, "_exit", ends)
    monkeypatch.setattr(hosts, "BEAT", 0.01)
    monkeypatch.setattr(hosts, "STALL", 0.05)
    monkeypatch.setattr(hosts, "SILENCE", 1)
    watch = hosts._Watch()
    watch.moved = time.monotonic()
    began = time.monotonic()
    with pytest.raises(Ended, match=str(hosts.LOST)):
        watch._judge()
    assert 0.05 <= time.monotonic() - began < 5
    assert "made no step" in capsys.readouterr().err and "made no step" in told["tony/failed"]
