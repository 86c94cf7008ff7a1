"""Training that is killed and started again is bitwise the training that was not; damage is told, never used."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.train import toy
from tony.errors import TonyError
from tony.recipe import Training
from tony.train.checkpoint import Checkpoints
from tony.train.loop import fit
from tony.train.optimizer import schedule

SCRIPT = Path(__file__).with_name("toy.py")
STEPS = 60


def metrics(directory) -> list[dict]:
    return [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The training that nothing interrupts."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, toy.train(directory, STEPS)


def start(directory, delay):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    return subprocess.Popen(
        [sys.executable, SCRIPT, directory, str(STEPS), str(delay)], env=environment, stderr=subprocess.DEVNULL
    )


def test_kill_and_resume_is_bitwise_the_same(whole, tmp_path):
    directory, expected = whole
    process = start(tmp_path, 0.05)
    path = tmp_path / "metrics.jsonl"
    while not any(p.name.isdigit() for p in (tmp_path / "checkpoints").glob("*")):
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.6))
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(path.read_text().splitlines())
    assert done < STEPS
    resumed = toy.train(tmp_path, STEPS)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics(tmp_path) == metrics(directory)


def test_finished_training_is_not_done_again(whole):
    directory, expected = whole
    before = (directory / "metrics.jsonl").read_text()
    again = toy.train(directory, STEPS)
    np.testing.assert_array_equal(again["blocks"]["in"], expected["blocks"]["in"])
    assert (directory / "metrics.jsonl").read_text() == before
    assert (directory / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_damaged_checkpoint_is_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3, say=(said := []).append)
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": np.full(1000, step, np.float32)})
    checkpoints.close()
    assert checkpoints.steps() == [1, 2, 3]
    largest = max((p for p in (tmp_path / "3").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    (tmp_path / "2" / "checksums.json").unlink()
    step, state = checkpoints.restore({"x": np.zeros(1000, np.float32)})
    assert (step, state["x"][0]) == (1, 1)
    assert "step 3 is damaged" in said[0]
    assert "step 2 is damaged" in said[1]


def test_checkpoint_of_another_shape(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weight": np.zeros((4, 4), np.float32)})
    checkpoints.close()
    with pytest.raises(TonyError, match=r"weight.*expected \(8, 4\)"):
        checkpoints.restore({"weight": np.zeros((8, 4), np.float32)})


@pytest.mark.parametrize(
    ("like", "said"),
    [
        ({"x": (2, 3), "y": (3,)}, "it lacks x"),
        ({"a": (3,), "b": (2, 3)}, r"a is \(2, 3\), expected \(3,\)"),
        ({"a": (2, 3)}, "it has b besides"),
    ],
)
def test_checkpoint_of_another_architecture_with_arrays_of_the_same_shapes(tmp_path, like, said):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)})
    checkpoints.close()
    with pytest.raises(TonyError, match=said):
        checkpoints.restore({name: np.zeros(shape, np.float32) for name, shape in like.items()})


def test_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": np.zeros(10, np.float32)})
    checkpoints.finish()
    real = os.fsync

    def full(descriptor):
        raise OSError(28, "No space left on device")

    checkpoints.save(2, {"x": np.zeros(10, np.float32)})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TonyError, match=r"No space left.*step 1 is untouched"):
        checkpoints.finish()
    monkeypatch.setattr(os, "fsync", real)
    assert checkpoints.steps() == [1]
    assert checkpoints.restore({"x": np.ones(10, np.float32)})[0] == 1
    checkpoints.close()


def test_interrupt_saves_and_goes_on(tmp_path, whole):
    def stop_at(step):
        if step == 17:
            raise KeyboardInterrupt
        return toy.batch_at(step)

    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 8), (8, 3)))
    params = {"blocks": {"in": first, "out": second}, "bias": np.ones(3, np.float32)}
    config = Training(steps=STEPS, optimizer="muon", checkpoint_every=10, warmup=5)
    with pytest.raises(KeyboardInterrupt):
        fit(name="toy", loss_fn=toy.loss_fn, params=params, batch_at=stop_at, config=config, directory=tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 17
    resumed = toy.train(tmp_path, STEPS)
    np.testing.assert_array_equal(resumed["blocks"]["in"], whole[1]["blocks"]["in"])
    assert metrics(tmp_path) == metrics(whole[0])


def test_a_second_interrupt_saves_nothing_half_made(tmp_path):
    def twice(step):
        if step == 15:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return toy.batch_at(step)

    config = Training(steps=STEPS, optimizer="adamw", checkpoint_every=10, warmup=5)
    options = {"name": "toy", "loss_fn": toy.loss_fn, "params": {"blocks": {"in": np.ones((4, 8), np.float32),
               "out": np.ones((8, 3), np.float32)}, "bias": np.ones(3, np.float32)}, "config": config}  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        fit(batch_at=twice, directory=tmp_path, **options)
    assert Checkpoints(tmp_path / "checkpoints").steps() in ([10], [10, 15], [10, 14], [10, 13], [10, 12])
    (tmp_path / "checkpoints" / "7.new").mkdir()
    fit(batch_at=toy.batch_at, directory=tmp_path, **options)
    assert not list((tmp_path / "checkpoints").glob("*.new*"))


def test_not_a_number_is_skipped_then_told(tmp_path):
    def poisoned(steps):
        def loss_fn(params, batch, key):
            bad = jnp_any(batch["step"], steps)
            return (params["w"] ** 2).sum() * jax.numpy.where(bad, jax.numpy.nan, 1.0), {}

        return loss_fn

    def jnp_any(step, steps):
        return jax.numpy.isin(step, jax.numpy.asarray(steps))

    config = Training(steps=12, optimizer="adamw", warmup=1, learning_rate=0.1)
    options = {"params": {"w": np.ones(3, np.float32)}, "batch_at": lambda s: {"step": np.int32(s)}, "config": config}
    made = fit(name="a", loss_fn=poisoned([4, 5]), directory=tmp_path / "a", **options)
    assert np.isfinite(made["w"]).all()
    assert sum(row.get("skipped", False) for row in metrics(tmp_path / "a")) == 2
    # Two steps that were skipped leave everything as two fewer steps do, momentum and counts included.
    fewer = {**options, "config": replace(config, steps=10, schedule="constant")}
    same = {**options, "config": replace(config, schedule="constant")}
    skipping = fit(name="c", loss_fn=poisoned([4, 5]), directory=tmp_path / "c", **same)
    np.testing.assert_array_equal(
        skipping["w"], fit(name="d", loss_fn=poisoned([]), directory=tmp_path / "d", **fewer)["w"]
    )
    with pytest.raises(TonyError, match="not finite at 3 steps"):
        fit(name="b", loss_fn=poisoned([4, 5, 6]), directory=tmp_path / "b", **options)


def test_accumulation_is_the_same_training(tmp_path):
    def loss_fn(params, batch, key):
        return ((batch["x"] @ params["w"] - 1) ** 2).mean(), {}

    def run(name, accumulation):
        config = Training(steps=5, optimizer="adamw", warmup=1, learning_rate=0.1, accumulation=accumulation)
        batch_at = lambda s: {"x": np.random.default_rng(s).standard_normal((8, 3)).astype(np.float32)}  # noqa: E731
        return fit(name=name, loss_fn=loss_fn, params={"w": np.zeros(3, np.float32)}, batch_at=batch_at, config=config,
                   directory=tmp_path / name)  # fmt: skip

    np.testing.assert_allclose(run("one", 1)["w"], run("four", 4)["w"], rtol=1e-4, atol=1e-6)


def test_schedule():
    rate = schedule(Training(steps=1000, warmup=100, schedule="cosine", final_fraction=0.1), 1.0)
    assert float(rate(0)) == 0
    assert float(rate(100)) == pytest.approx(1)
    assert float(rate(1000)) == pytest.approx(0.1)
