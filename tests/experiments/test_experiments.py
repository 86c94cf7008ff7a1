"""The experiments: their data, their arithmetic, and that a stopped one goes on."""

import json
import random
import types
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from experiments import data_quality, emergence, lab, moe_vs_dense, number_of_experts, scaling, spikes, text
from experiments.__main__ import NAMES, run, write
from experiments.lab import Mean, Setting, decoder
from tony.errors import TonyError


@pytest.mark.parametrize("kind", text.KINDS)
def test_what_is_held_out_is_not_trained_on(kind):
    train, test = (set(text.documents(kind, split, 3000)) for split in ("train", "test"))
    assert len(test) > 50 and len(train) > 200
    assert not train & test


def test_a_batch_is_a_pure_function_and_its_targets_are_the_next_tokens():
    stream = text.Stream(np.arange(1000, dtype=np.int32))
    mixed = text.Mixed({"a": stream, "b": text.Stream(np.arange(2000, 3000, dtype=np.int32))}, {"a": 1, "b": 3})
    batch, again, other = (mixed.batch(64, 32, seed, step) for seed, step in ((1, 5), (1, 5), (1, 6)))
    assert all((batch[name] == again[name]).all() for name in batch)
    assert (batch["tokens"] != other["tokens"]).any()
    assert (batch["targets"] == batch["tokens"] + 1).all()
    assert 0.6 < (batch["tokens"][:, 0] >= 2000).mean() < 0.9


def test_spoilt_documents_are_two_thirds_of_the_raw_ones_and_the_filter_finds_most():
    good = text.documents("logic", "train", 100)
    raw = text.raw(good, seed=0)
    assert raw[:100] == good and len(raw) == 300
    assert len(set(raw[100:]) & set(good)) < 5


def test_the_compared_networks_cost_as_much_a_token():
    from tony.model.count import flops_per_token

    costs = {s.name: flops_per_token(s.model, s.length) for s in moe_vs_dense.SETTINGS}
    for size in moe_vs_dense.SIZES:
        assert costs[f"experts {size}"] == pytest.approx(costs[f"dense {size}"], rel=0.03)
    costs = [flops_per_token(s.model, s.length) for s in number_of_experts.SETTINGS]
    assert max(costs) / min(costs) < 1.05


def test_tokens_to_a_loss_are_read_between_the_points_of_a_curve():
    curve = [[100, 3.0], [200, 2.0], [300, 1.9]]
    assert moe_vs_dense._tokens_to(curve, 2.5) == 150
    assert moe_vs_dense._tokens_to(curve, 3.5) == 100
    assert moe_vs_dense._tokens_to(curve, 1.0) == 300


def test_an_interval_is_that_of_student():
    mean = Mean.of([1.0, 2.0, 4.0])
    # t of two degrees of freedom at 0.975 is 4.303 (any table), the standard error sqrt(7/3/3)
    assert mean.value == pytest.approx(7 / 3) and mean.half == pytest.approx(4.303 * (7 / 9) ** 0.5, rel=1e-3)
    assert lab.verdict(Mean(1.0, 0.5)) == "holds"
    assert lab.verdict(Mean(-1.0, 0.5)) == "is reversed"
    assert "not shown" in lab.verdict(Mean(0.1, 0.5))


def test_the_fit_finds_the_law_that_made_the_losses():
    sizes = np.geomspace(1e4, 1e6, 5)
    law = (1.5, 3e5, 0.4)
    losses = np.array([scaling.foretold(law, size) for size in sizes])
    found = scaling.fit(sizes, losses)
    assert found == pytest.approx(law, rel=0.02)
    assert scaling.foretold(found, 1e7) == pytest.approx(scaling.foretold(law, 1e7), rel=1e-3)


@pytest.mark.parametrize("task", emergence.TASKS)
def test_answers_are_right_and_sides_apart(task):
    rng = random.Random(0)
    train, test = ({emergence.problem(rng, task, side) for _ in range(400)} for side in (False, True))
    assert not train & test
    for question, answer in train | test:
        kind, _, word = question.partition(":")
        if not word:
            assert str(eval(question)) == answer  # a sum
        elif kind == "m":
            assert answer == str(sorted(map(int, word.split(",")))[-1])
        else:
            expected = {"c": list(word), "r": list(reversed(word)), "s": sorted(word)}[kind]
            assert list(answer) == expected


def test_only_answers_have_a_loss():
    batch = emergence.batch(0, 0)
    for row in range(3):
        told = "".join(emergence.ALPHABET[c] for c in batch["targets"][row][batch["weights"][row] > 0])
        asked = "".join(emergence.ALPHABET[c] for c in batch["tokens"][row])
        answers = told.split(";")[:-1]
        assert len(answers) == batch["segments"][row].max()
        assert all(f"={answer}" in asked for answer in answers)


def test_a_jump_is_told_from_a_line():
    def records(scores):
        return {
            s.name: [
                {"parameters": 10**6, "exact": dict.fromkeys(emergence.TASKS, score + 0.001 * seed),
                 "by_kind": dict.fromkeys(emergence.TASKS, 1.0)}
                for seed in range(3)
            ]
            for s, score in zip(emergence.SETTINGS, scores, strict=True)
        }  # fmt: skip

    even, sudden = (emergence.report(records(s)) for s in ((0.1, 0.3, 0.5, 0.7, 0.9), (0.0, 0.0, 0.0, 0.0, 0.9)))
    assert even["discontinuity"]["copy"]["value"] == pytest.approx(0, abs=1e-9)
    assert sudden["discontinuity"]["copy"]["value"] == pytest.approx(0.9)
    assert "on 0 of 6" in even["verdict"] and "on 6 of 6" in sudden["verdict"]


@pytest.fixture(scope="module")
def small():
    """An experiment of two tiny trainings."""
    settings = [
        Setting(f"{steps} steps", decoder(16, 1, text.VOCABULARY, head_dim=16), steps, 4, 32) for steps in (2, 40)
    ]
    return types.SimpleNamespace(
        SETTINGS=settings,
        __doc__="A claim.",
        report=lambda found: {
            "head": ["", "loss"],
            "rows": [[n, str(len(r))] for n, r in found.items()],
            "verdict": "",
        },
        draw=lambda found, path: path.write_bytes(b"picture"),
    )


def test_a_stopped_experiment_goes_on_and_longer_training_is_better(small, tmp_path):
    console = Console(quiet=True)
    told = run(small, "small", 2, None, tmp_path, console)
    lines = [json.loads(line) for line in (tmp_path / "small.jsonl").read_text().splitlines()]
    assert [(line["name"], line["seed"]) for line in lines] == [(n, s) for n in ("2 steps", "40 steps") for s in (0, 1)]
    loss = {(line["name"], line["seed"]): line["loss"] for line in lines}
    assert loss["40 steps", 0] < loss["2 steps", 0] - 0.5 and loss["40 steps", 0] != loss["40 steps", 1]
    assert (
        json.loads((tmp_path / "small.json").read_text())["rows"]
        == told["rows"]
        == [["2 steps", "2"], ["40 steps", "2"]]
    )
    # Without its last line and with half of another one, only that training is done again, to the same loss.
    kept = (tmp_path / "small.jsonl").read_text().splitlines()[:3]
    (tmp_path / "small.jsonl").write_text("\n".join(kept) + '\n{"name": "40 st')
    run(small, "small", 2, None, tmp_path, console)
    again = lab.Records(tmp_path / "small.jsonl").lines
    assert len(again) == 4 and again[-1]["loss"] == loss["40 steps", 1]


def test_the_page_has_claim_picture_table_and_verdict_of_what_has_come_out(tmp_path, capsys):
    told = {
        "claim": "Size\n\nClaim: larger is better.", "picture": str(tmp_path / "scaling.png"), "seeds": 3,
        "training_seconds": 90, "head": ["network", "loss"], "rows": [["small", "2.0"], ["large", "1.0"]],
        "verdict": "It holds.",
    }  # fmt: skip
    (tmp_path / "scaling.png").write_bytes(b"picture")
    (tmp_path / "scaling.json").write_text(json.dumps(told))
    write(tmp_path, tmp_path / "docs" / "experiments.md")
    page = (tmp_path / "docs" / "experiments.md").read_text()
    assert "## Size\n\nClaim: larger is better." in page and "1.5 minutes" in page
    assert "| network | loss |\n| --- | --- |\n| small | 2.0 |\n| large | 1.0 |\n\n**It holds.**" in page
    assert (tmp_path / "docs" / "images" / "experiments" / "scaling.png").read_bytes() == b"picture"
    assert "emergence has not been run: python -m experiments emergence" in capsys.readouterr().err
    (tmp_path / "scaling.json").unlink()
    write(tmp_path, tmp_path / "docs" / "experiments.md")
    assert (tmp_path / "docs" / "experiments.md").read_text() == page  # what was there stays


def test_a_spike_is_recovered_from_in_a_network_that_trains_as_recipes_do(monkeypatch):
    monkeypatch.setattr(spikes, "SPIKE", 90)
    monkeypatch.setattr(spikes, "POISONED", 8)
    monkeypatch.setattr(spikes, "LEAST", 100)
    setting = Setting("recovered", decoder(32, 1, text.VOCABULARY, head_dim=16), 130, 16, 64)
    monkeypatch.setattr(
        spikes,
        "section",
        lambda s: replace(s.section, checkpoint_every=10, keep=6, rewind=20, skip=50, learning_rate=0.02),
    )
    record, _ = spikes.train(setting, 0, lambda step, loss: None)
    assert record["detours"] == [(70, 50)] and len(record["losses"]) == 130
    assert record["worst"] < max(record["losses"][:60]) and record["worst"] == max(record["losses"][90:])
    with pytest.raises(TonyError, match="spikes needs at least 100 steps"):
        spikes.train(replace(setting, steps=99), 0, lambda step, loss: None)


def test_every_experiment_has_a_claim_and_three_parts():
    for module in (moe_vs_dense, number_of_experts, data_quality, scaling, emergence, spikes):
        assert "Claim" in module.__doc__ and len({s.name for s in module.SETTINGS}) == len(module.SETTINGS)
        assert callable(module.report) and callable(module.draw)
    assert len(NAMES) == 6
