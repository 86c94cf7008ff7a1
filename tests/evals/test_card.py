"""The card as a reader, a browser and an attacker would meet it."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
from eval_fakes import HOSTILE

from tony.errors import TonyError
from tony.evals.card import loss_curves, render
from tony.evals.catalogue import MEASURES, TARGETS, reached, target
from tony.evals.suite import NAMES

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects elements, sources and text, and fails on tags that do not close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.sources, self.text, self.open = [], [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def page(fake_run_made_once):
    return Page(render(fake_run_made_once).read_text())


def test_the_card_is_self_contained(page):
    assert page.sources
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert "default-src 'none'" in policy


def test_nothing_from_a_file_becomes_markup(page):
    assert sum(tag == "script" for tag, _ in page.elements) == 1, "only the page's own script"
    assert HOSTILE in "".join(page.text)


def test_every_result_is_there_with_its_error_and_controls(page, fake_run):
    text = " ".join(" ".join(page.text).split())
    for result in json.loads((fake_run / "summary.json").read_text())["results"]:
        assert result["name"] in text
    assert "0.970 ± 0.018" in text
    assert "1.00 / 0.10" in text


def test_failures_are_shown_beside_successes(page):
    pills = [attrs["class"] for tag, attrs in page.elements if tag == "span" and "verdict" in attrs.get("class", "")]
    assert sum("bad" in pill for pill in pills) >= 9
    assert sum("good" in pill for pill in pills) >= 9


def test_targets_missed_are_said_to_be_missed(page):
    text = " ".join(page.text)
    assert "Targets missed:" in text
    assert "video_motion" in text.split("Targets missed:")[1][:60]


def test_sounds_play_without_scripting(page):
    players = [attrs for tag, attrs in page.elements if tag == "audio"]
    assert len(players) > 10
    assert all("controls" in attrs and attrs["src"].startswith("data:audio/flac;base64,") for attrs in players)


def test_pictures_have_a_text_in_their_place(page):
    assert all(attrs.get("alt") for tag, attrs in page.elements if tag == "img")


def test_energy_is_called_what_it_is(fake_run):
    shown = " ".join(Page(render(fake_run).read_text()).text)
    assert "energy (measured)" in shown and "22 Wh" in shown and "RAPL package-0" in shown
    assert "carbon dioxide (estimated)" in shown and "1.23e+16 floating-point operations" in shown
    path = fake_run / "summary.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "energy": "estimated", "energy_from": "2 cores at 8 W"})
    )
    assert "energy (estimated)" in " ".join(Page(render(fake_run).read_text()).text)


def test_an_empty_run_still_gives_a_card_that_says_what_is_missing(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    text = " ".join(Page(render(tmp_path).read_text()).text)
    for sentence in ("No evaluation has been run", "No training curves", "No times were recorded"):
        assert sentence in text


@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "eval/context.json", "model/config.json"])
@pytest.mark.parametrize("content", ["", "{torn", "[1, 2]", "null", '{"results": 3, "stages": [], "rows": 1}'])
def test_damaged_files_are_left_out(fake_run, name, content):
    (fake_run / name).write_text(content)
    Page(render(fake_run).read_text())


def test_damaged_records_are_left_out(fake_run):
    (fake_run / "eval" / "image_digits.jsonl").write_text(
        '{"index": 0}\n{"prompt": [3, {"kind": "image"}]}\n[1]\n{"torn'
    )
    (fake_run / "model" / "model.safetensors").write_bytes(b"\xff" * 20)
    Page(render(fake_run).read_text())


def test_files_outside_the_run_are_never_read(fake_run):
    secret = fake_run.parent / "secret.png"
    secret.write_bytes(b"secret")
    record = {"correct": True, "prompt": [{"kind": "image", "file": "../secret.png"},
                                          {"kind": "image", "file": str(secret)}], "answer": []}  # fmt: skip
    (fake_run / "eval" / "image_digits.jsonl").write_text(json.dumps(record) + "\n")
    html = render(fake_run).read_text()
    assert "c2VjcmV0" not in html  # "secret" in base64
    assert "picture not in this run" in html


def test_a_folder_that_is_no_run_is_refused(tmp_path, fake_run):
    for folder in (tmp_path / "nothing", fake_run / "model", fake_run / "eval"):
        with pytest.raises(TonyError, match="is not a run"):
            render(folder)
        assert not (folder / "card.html").exists()


def test_light_dark_and_phone_are_all_styled(fake_run):
    html = render(fake_run).read_text()
    assert "prefers-color-scheme: dark" in html
    assert "max-width: 760px" in html
    assert 'name="viewport"' in html
    light, dark = (set(re.findall(r"--([a-z-]+):", part)) for part in html.split("prefers-color-scheme: dark")[:2])
    assert light <= dark, "a colour without a dark twin"


# ---------------------------------------------------------------------------------------------------------- its parts


def test_loss_curves_prefer_modalities_and_keep_the_later_of_two_rows():
    rows = [{"step": 1, "loss": 9.0, "text": 3.0}, {"step": 2, "loss": 8.0, "text": 2.5},
            {"step": 2, "loss": 7.0, "text": 2.0}, {"step": 3, "loss": math.nan, "text": None}]  # fmt: skip
    assert loss_curves(rows) == {"text": [(1, 3.0), (2, 2.0)]}
    assert loss_curves([{"step": 1, "loss": 9.0, "gradient_norm": 3}]) == {"loss": [(1, 9.0)]}
    assert loss_curves([]) == {}


def test_every_evaluation_is_described():
    assert set(MEASURES) == set(NAMES)
    assert all(name in MEASURES for goals in TARGETS.values() for name in goals)


def test_speech_is_held_to_its_source_plus_a_tenth():
    assert target("laptop", "tts_wer", {"tts_source_wer": 0.02}) == pytest.approx(0.12)
    assert target("laptop", "tts_wer", {}) is None
    assert target("somebody's own", "image_digits", {}) is None


def test_a_target_is_reached_from_the_right_side():
    assert reached({"value": 0.95, "higher_is_better": True}, 0.95)
    assert not reached({"value": 0.11, "higher_is_better": False}, 0.10)
