"""The suite: what it runs again and what not, what it writes, what it says when something is missing."""

import json

import pytest

from tony.errors import TonyError
from tony.evals import suite
from tony.evals.result import Result
from tony.evals.suite import EVALUATIONS, NAMES, Evaluation, choose, evaluate

CALLS: list[tuple[str, int]] = []


def steady(bench) -> list[Result]:
    CALLS.append(("steady", bench.n))
    bench.advance(1, 1)
    return [Result("image_digits", 0.9, 0.02, bench.n, True, records=[{"index": 0, "correct": True}])]


def needy(bench) -> list[Result]:
    CALLS.append(("needy", bench.n))
    raise TonyError("this needs faster_whisper: pip install -e '.[voice]'")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with a model file, and a suite of two evaluations; returns a function that evaluates it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(suite, "EVALUATIONS", (
        Evaluation(("image_digits",), "steady", "steady"), Evaluation(("speech_wer",), "needy", "needy"),
    ))  # fmt: skip
    monkeypatch.setattr(Evaluation, "function", lambda self: globals()[self.code])
    monkeypatch.setattr(suite, "held_out_items", lambda corpus, seed: None)
    monkeypatch.setattr("tony.evals.describe.describe", lambda corpus: {"rows": [], "notice": ""})
    CALLS.clear()

    def go(**more) -> dict:
        return evaluate(tmp_path, omni=object(), corpus=object(), **more)

    go.directory = tmp_path
    return go


def test_summary_has_the_agreed_shape(run):
    summary = run(n=7)
    assert summary == json.loads((run.directory / "summary.json").read_text())
    (result,) = summary["results"]
    assert {"name", "value", "stderr", "n", "higher_is_better"} <= result.keys()
    assert (result["name"], result["value"], result["n"]) == ("image_digits", 0.9, 7)
    assert summary["wall_seconds"] >= 0
    assert summary["peak_memory_bytes"] > 1e6


def test_what_cannot_be_measured_is_skipped_with_its_reason_and_no_number(run):
    (skipped,) = run()["skipped"]
    assert skipped["name"] == "speech_wer"
    assert ".[voice]" in skipped["reason"]
    assert not (run.directory / "eval" / "speech_wer.json").exists()


def test_a_finished_evaluation_is_not_run_again(run):
    first = run()
    CALLS.clear()
    second = run()
    assert CALLS == [("needy", suite.SAMPLES)], "only what could not be measured is tried again"
    assert second["results"] == first["results"]
    run(again=True)
    assert ("steady", suite.SAMPLES) in CALLS


@pytest.mark.parametrize("change", ["model", "n", "seed", "records"])
def test_it_is_run_again_when_its_inputs_change(run, change):
    run(n=5)
    CALLS.clear()
    if change == "model":
        (run.directory / "model" / "model.safetensors").write_bytes(b"other weights")
    if change == "records":
        (run.directory / "eval" / "image_digits.jsonl").unlink()
    run(n=6 if change == "n" else 5, seed=2 if change == "seed" else 1)
    assert CALLS[0][0] == "steady"


def test_results_of_another_model_are_not_in_the_summary(run):
    run()
    (run.directory / "model" / "model.safetensors").write_bytes(b"other weights")
    assert run(only="speech_wer")["results"] == []


def test_only_keeps_the_other_results(run):
    run()
    summary = run(only=["speech_wer"])
    assert [result["name"] for result in summary["results"]] == ["image_digits"]


def test_what_others_wrote_into_the_summary_stays(run):
    (run.directory / "summary.json").write_text(json.dumps({"wall_seconds": 500.0, "peak_memory_bytes": 2**50}))
    summary = run()
    assert (summary["wall_seconds"], summary["peak_memory_bytes"]) == (500.0, 2**50)


def test_counts_by_name(run):
    run(n={"image_digits": 11, "default": 13})
    assert CALLS == [("steady", 11), ("needy", 13)]


def test_the_recipe_of_the_run_says_how_many(run):
    (run.directory / "manifest.json").write_text('{"recipe": {"eval": {"n": {"speech_wer": 9}}}}')
    run()
    assert CALLS == [("steady", suite.SAMPLES), ("needy", 9)]


def test_too_few_samples_are_refused(run):
    with pytest.raises(TonyError, match="at least 2"):
        run(n=1)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(TonyError, match="did you mean speech_wer"):
        choose("speach_wer")


def test_choosing_one_result_of_a_family_runs_the_family():
    assert [evaluation.names for evaluation in choose("tts_source_wer")] == [("tts_wer", "tts_source_wer")]
    assert choose(None) == list(EVALUATIONS)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(TonyError, match="holds no model"):
        evaluate(tmp_path)


def test_a_stray_file_undoes_no_evaluation(run):
    run()
    CALLS.clear()
    (run.directory / "model" / "card.html").write_text("stray")
    (run.directory / "model" / "tokenizer").mkdir()
    (run.directory / "model" / "tokenizer" / "notes.txt").write_text("stray")
    assert [result["name"] for result in run()["results"]] == ["image_digits"]
    assert CALLS == [("needy", suite.SAMPLES)]


def test_every_file_of_a_release_counts(release, tmp_path):
    from tony.generate.release import FILES

    held = {str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()}
    assert held <= set(FILES)


@pytest.mark.parametrize("content", ['"x"', "[1]", "{torn", "3"])
@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "eval/image_digits.json"])
def test_a_damaged_file_is_made_anew(run, name, content):
    run()
    (run.directory / name).write_text(content)
    assert [result["name"] for result in run()["results"]] == ["image_digits"]


def test_a_model_of_another_family_is_refused_at_once(run):
    (run.directory / "model" / "tokenizer").mkdir()
    (run.directory / "model" / "tokenizer" / "text.json").write_text("{}")
    for directory in (run.directory, run.directory / "model"):
        with pytest.raises(TonyError, match="another family; these evaluations are of Tony's own models"):
            evaluate(directory, omni=object(), corpus=object())
    assert not CALLS


def test_the_names_are_those_that_were_promised():
    assert set(NAMES) == {
        "text_arithmetic", "image_digits", "image_caption", "speech_wer", "tts_wer", "tts_source_wer",
        "image_generation", "video_motion", "speech_image_speech", "codec_stoi", "codec_pesq", "codec_psnr",
        "codec_ssim", "codec_usage",
    }  # fmt: skip


def test_every_name_leads_to_a_function():
    assert all(callable(evaluation.function()) for evaluation in EVALUATIONS)


def test_held_out_items_never_repeat_a_recording():
    from tony.data.corpus import Corpus

    items = suite.held_out_items(Corpus.builtin(), seed=1)
    spoken = items("speak", 10_000)
    assert 50 < len(spoken) == len({item.facts["samples"].tobytes() for item in spoken})
    assert items("speak", 10_000) is spoken, "made once"
    kinds = [item.facts["kind"] for item in items("draw", 12)]
    assert kinds.count("digit") == kinds.count("scene") == 6
