"""Spikes: seen in time, gone around; and a training with a detour is a training without those batches."""

import json

import jax
import numpy as np
import pytest

from tests.train import toy
from tony.errors import TonyError
from tony.recipe import Training
from tony.train.loop import fit
from tony.train.recovery import PATIENCE, Detours, SpikeDetector, replayed

STEPS = 160
POISON = range(70, 76)  # batches


def poisoned(step, skipped=0):
    batch = toy.batch_at(step + skipped)
    return {**batch, "y": batch["y"] - 400} if step + skipped in POISON else batch


def train(directory, batch_at, **options):
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 8), (8, 3)))
    params = {"blocks": {"in": first, "out": second}, "bias": np.ones(3, np.float32)}
    config = Training(steps=STEPS, checkpoint_every=10, keep=8, warmup=5, clip=1e9, learning_rate=0.02, **options)
    return fit(name="toy", loss_fn=toy.loss_fn, params=params, batch_at=batch_at, config=config, directory=directory)


def losses(directory):
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_spike_is_gone_back_from_and_around(tmp_path):
    recovered = train(tmp_path / "recovered", poisoned, rewind=20, skip=30)
    ((at, count),) = Detours(tmp_path / "recovered" / "detours.json").taken
    assert at == 50 and count == 30  # the spike began with batch 70, and the checkpoint is of step 50
    without = train(tmp_path / "without", lambda step: toy.batch_at(step + 30 if step >= 50 else step))
    for a, b in zip(jax.tree.leaves(recovered), jax.tree.leaves(without), strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses(tmp_path / "recovered") == losses(tmp_path / "without")
    train(tmp_path / "hurt", poisoned)
    assert max(losses(tmp_path / "hurt")) > 100 * max(losses(tmp_path / "recovered")[60:])


def test_it_goes_on_after_an_interruption_as_if_there_was_none(tmp_path):
    expected = train(tmp_path / "whole", poisoned, rewind=20, skip=30)

    def stops(step, skipped=0):
        if step + skipped == 125:  # of step 95, after the detour
            raise KeyboardInterrupt
        return poisoned(step, skipped)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stops, rewind=20, skip=30)
    resumed = train(tmp_path / "stopped", poisoned, rewind=20, skip=30)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


@pytest.mark.parametrize("batch", [69, 71, 72, 73])
def test_an_interruption_within_the_spike_changes_nothing(tmp_path, batch):
    expected = train(tmp_path / "whole", poisoned, rewind=20, skip=30)
    interrupt = [batch]

    def stops(step, skipped=0):
        if step + skipped in interrupt:
            interrupt.remove(step + skipped)
            raise KeyboardInterrupt
        return poisoned(step, skipped)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stops, rewind=20, skip=30)
    resumed = train(tmp_path / "stopped", poisoned, rewind=20, skip=30)
    assert Detours(tmp_path / "stopped" / "detours.json").taken == [(50, 30)]
    np.testing.assert_array_equal(expected["blocks"]["in"], resumed["blocks"]["in"])


def test_losses_that_are_not_finite_are_gone_around_too(tmp_path):
    def broken(step, skipped=0):
        batch = toy.batch_at(step + skipped)
        return {**batch, "y": batch["y"] * np.nan} if step + skipped in POISON else batch

    train(tmp_path, broken, rewind=20, skip=30)
    assert Detours(tmp_path / "detours.json").taken == [(50, 30)] and np.isfinite(losses(tmp_path)).all()


def test_a_trace_of_twenty_spikes():
    """A simulated training: its loss falls, is noisy, and 20 stretches of batches make it spike for 200 steps."""
    rng = np.random.default_rng(3)
    steps, starts = 20_000, np.sort(rng.choice(np.arange(600, 24_000, 600), 20, replace=False))
    detours, detector, step, spiking = [], SpikeDetector(), 0, 0
    history: list[float] = []
    while step < steps:
        batch = step + sum(count for at, count in detours if at <= step)
        if any(start <= batch < start + 5 for start in starts):
            spiking = 200
        loss = 2 + 6 / (1 + step / 300) + 0.08 * rng.standard_normal() + (3.0 if spiking > 0 else 0)
        spiking -= 1
        history = [*history[:step], loss]
        spiked = detector.observe(step, loss)
        step += 1
        if spiked is not None:
            assert step - spiked == PATIENCE
            step = max(0, spiked - 100)
            detours.append((step, 300))
            detector = replayed({"step": k + 1, "loss": history[k]} for k in range(max(0, step - 100), step))
            spiking = 0
    reached = steps + 300 * len(detours)
    assert 15 <= sum(start < reached - 300 for start in starts) <= len(detours) <= 20
    assert max(history[500:]) < 2 + 6 / (1 + 500 / 300) + 0.6  # what is left of the training has no spike


def test_a_training_with_several_spikes_goes_around_each(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.train.test_recovery.STEPS", 400)
    bad = {start + k for start in (70, 150, 260, 330) for k in range(6)}

    def several(step, skipped=0):
        batch = toy.batch_at(step + skipped)
        return {**batch, "y": batch["y"] - 400} if step + skipped in bad else batch

    train(tmp_path, several, rewind=20, skip=30)
    taken = Detours(tmp_path / "detours.json").taken
    assert [count for _, count in taken] == [30] * 4 and [at for at, _ in taken] == sorted({at for at, _ in taken})
    assert max(losses(tmp_path)[60:]) < 1000 < 400**2 and len(losses(tmp_path)) == 400


@pytest.mark.parametrize(
    "rising",
    [
        lambda k: 1.0 * min(k, 50) / 50,
        lambda k: 3.0 * min(k, 200) / 200,
        lambda k: float("nan") if k % 2 else 0.0,
        lambda k: 3.0 * (k >= 0),
    ],
    ids=["one in fifty steps", "three in two hundred", "every second not a number", "at once"],
)
def test_spikes_of_every_form_are_seen(rising):
    noise = 0.05 * np.random.default_rng(0).standard_normal(1000)
    quiet, loud = SpikeDetector(), SpikeDetector()
    assert {quiet.observe(k, 2.5 + 3 / (1 + k / 50) + noise[k]) for k in range(700)} == {None}
    for step in range(700):
        loud.observe(step, 2.5 + noise[step])
    assert any(loud.observe(700 + k, 2.5 + rising(k) + noise[700 + k]) for k in range(200))


def test_one_hard_batch_is_no_spike_and_not_a_number_is_high():
    detector = SpikeDetector()
    for step in range(100):
        assert detector.observe(step, 9.0 if step % 40 == 39 else 3.0 + 0.01 * (step % 7)) is None
    assert [detector.observe(100 + k, float("nan")) for k in range(PATIENCE)][-1] == 100


def test_detours_that_do_not_help_end(tmp_path):
    detours = Detours(tmp_path / "detours.json")
    for _ in range(5):
        detours.take(10, 100)
    assert Detours(tmp_path / "detours.json").skipped(10) == 500 and detours.skipped(9) == 0
    with pytest.raises(TonyError, match="again and again after step 10"):
        detours.take(10, 100)
