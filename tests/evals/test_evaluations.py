"""Each evaluation with a model that is right, wrong or silent: the numbers and their controls must show it."""

import json

import numpy as np
import pytest
from eval_fakes import picture, sound

from tony.data.world.tasks import Film, Item, Picture, Said, Sound
from tony.evals import codecs, drawing, hearing, reading, speaking
from tony.evals.bench import same_number, same_text
from tony.evals.judges.speech import Recogniser
from tony.tokens.chat import Audio, Image, Message, Speech, Text


def item(prompt, answer, **facts) -> Item:
    messages = (Message("user", tuple(prompt)), Message("assistant", (Text(answer),)))
    return Item("test", messages, answer=answer, facts=facts)


def reply(*parts, thinking=None) -> Message:
    return Message("assistant", tuple(parts), thinking=thinking)


SUMS = [item([Text(f"What is {a} + 9?")], str(a + 9)) for a in range(20, 40)]


# -------------------------------------------------------------------------------------------------------------- text


def test_a_right_model_scores_one_and_its_controls_stay_apart(bench_of):
    bench = bench_of(SUMS, [reply(Text(f"It is {it.answer}."), thinking="carry") for it in SUMS])
    (result,) = reading.text_arithmetic(bench)
    assert (result.name, result.value, result.n, result.higher_is_better) == ("text_arithmetic", 1.0, 20, True)
    assert result.controls == {"positive": 1.0, "negative": 0.0}
    assert 0 < result.stderr < 0.1
    assert result.facts["with reasoning"] == 1.0


def test_half_right_is_half(bench_of):
    replies = [reply(Text(it.answer if index % 2 else "0")) for index, it in enumerate(SUMS)]
    (result,) = reading.text_arithmetic(bench_of(SUMS, replies))
    assert result.value == 0.5
    assert [record["correct"] for record in result.records[:4]] == [False, True, False, True]


def test_thinking_alone_is_no_answer(bench_of):
    (result,) = reading.text_arithmetic(bench_of(SUMS, [reply(thinking=it.answer) for it in SUMS]))
    assert result.value == 0.0


def test_pictures_go_in_as_codes_and_into_the_record_as_files(bench_of, tmp_path):
    items = [item([Picture(picture(i)), Text("What digit is this?")], str(i)) for i in range(6)]
    bench = bench_of(items, [reply(Text(it.answer)) for it in items])
    (result,) = reading.image_digits(bench)
    assert result.value == 1.0
    conversation, modality = bench.omni.asked[3]
    assert isinstance(conversation[0].content[0], Image)
    assert len(conversation) == 1, "the reference answer must not be shown to the model"
    assert modality == "text"
    shown = result.records[3]["prompt"]
    assert [part["kind"] for part in shown] == ["image", "text"]
    assert (tmp_path / shown[0]["file"]).read_bytes().startswith(b"\x89PNG")
    json.dumps(result.records)


def test_a_video_is_shown_frame_by_frame(bench_of):
    frames = np.stack([picture(i) for i in range(4)])
    items = [item([Film(frames), Text("What moves?")], "a red circle moves left twice")] * 2
    (result,) = reading.video_motion(bench_of(items, [reply(Text("A red circle moves left twice."))] * 2))
    assert result.value == 1.0
    video = result.records[0]["prompt"][0]
    assert len(video["files"]) == 4
    assert video["times"] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("expected", "got", "right"),
    [("42", "42", True), ("42", "The answer is 42.", True), ("42", "42 is not 24", False), ("42", "", False),
     ("-7", "−7", True), ("42", "142", False), ("42", "4 2", False)],
)  # fmt: skip
def test_same_number(expected, got, right):
    assert same_number(expected, got) is right


def test_same_text_forgives_only_case_space_and_the_final_mark():
    assert same_text("a red circle", " A red  circle. ")
    assert not same_text("a red circle", "a red circle left of a blue star")


# ------------------------------------------------------------------------------------------------------------ speech

SENTENCES = ["the dog ran home again", "there are sixteen cakes here", "please open the door now", "it was cold today"]


def test_speech_wer_counts_words(bench_of):
    pytest.importorskip("jiwer")
    items = [item([Sound(sound(i)), Text("Transcribe.")], text) for i, text in enumerate(SENTENCES)]
    heard = ["the dog ran home", "There are 16 cakes here.", "please open the door now", "it was gold today"]
    (result,) = hearing.speech_wer(bench_of(items, [reply(Text(text)) for text in heard]))
    assert result.value == pytest.approx(2 / 19)
    assert not result.higher_is_better
    assert result.controls["positive"] == 0.0
    assert result.controls["negative"] > 0.8
    assert result.stderr > 0


def recogniser_of(heard: list[list[str]]) -> Recogniser:
    """A recogniser that hears these texts, call by call."""
    calls = iter(heard)
    return Recogniser("test ears", lambda sounds: next(calls))


def test_tts_is_judged_beside_its_source(bench_of):
    pytest.importorskip("jiwer")
    items = [item([Text(f"Say: {text}")], text, samples=sound(i), voice=1) for i, text in enumerate(SENTENCES)]
    bench = bench_of(items)
    codes = [tuple(int(c) for c in bench.omni.tokenizer.audio.encode(sound(i))) for i in range(4)]
    bench.omni.replies = [reply(Speech(text, code, 1)) for text, code in zip(SENTENCES, codes, strict=True)]
    bench.recogniser = recogniser_of([["the log ran home again", *SENTENCES[1:]], SENTENCES])
    spoken, source = speaking.tts_wer(bench)
    assert (spoken.name, source.name) == ("tts_wer", "tts_source_wer")
    assert spoken.value == pytest.approx(1 / 19)
    assert source.value == 0.0 == spoken.controls["positive"]
    assert spoken.controls["negative"] > 0.8
    assert "test ears" in spoken.notes
    answer = spoken.records[0]["answer"][0]
    assert answer["kind"] == "audio"
    assert answer["text"] == SENTENCES[0]


def test_a_silent_answer_is_all_errors(bench_of):
    pytest.importorskip("jiwer")
    items = [item([Text(text)], text, samples=sound(i), voice=1) for i, text in enumerate(SENTENCES)]
    bench = bench_of(items, [reply(Text(text)) for text in SENTENCES])
    bench.recogniser = Recogniser("ears", lambda sounds: ["" if not len(s) else "the dog" for s in sounds])
    spoken, _ = speaking.tts_wer(bench)
    assert spoken.value == 1.0
    assert spoken.facts["silent"] == 1.0


@pytest.mark.parametrize(
    ("key", "heard", "right"),
    [("seven", "The digit is 7.", True), ("two", "The digit is to.", True), ("seven", "the digit is one", False),
     ("seven", "it is one or seven", False), ("red", "The circle is red.", True), ("red", "the circle is", False),
     ("star", "It is a blue star", True), ("star", "It is a blue square", False), ("red", "", False)],
)  # fmt: skip
def test_a_spoken_answer_is_right_by_its_one_deciding_word(key, heard, right):
    assert speaking.says(item([], "", key=key), heard) is right


def test_spoken_questions_are_judged_by_ear_not_by_the_transcript(bench_of):
    keys = ["red", "blue", "green", "pink"]
    items = [item([Sound(sound(i)), Picture(picture(i))], f"the star is {k}", key=k) for i, k in enumerate(keys)]
    bench = bench_of(items)
    code = tuple(int(c) for c in bench.omni.tokenizer.audio.encode(sound(9)))
    bench.omni.replies = [reply(Speech(f"the star is {k}", code, 1)) for k in keys]
    bench.recogniser = recogniser_of([["The star is red.", "mumble", "the star is green", "the star is white"]])
    (result,) = speaking.speech_image_speech(bench)
    assert result.value == 0.5
    assert result.facts["right in its transcript"] == 1.0
    assert result.controls["positive"] == 1.0
    assert result.controls["negative"] == 0.0


# ---------------------------------------------------------------------------------------------------------- pictures


class Judge:
    """Sees a digit in a picture's brightness and always the same scene."""

    def digit(self, pixels):
        return np.array([int(picture.mean()) // 10 for picture in pixels]), None

    def scene(self, pixels):
        return ["a red circle"] * len(pixels)


def test_drawings_are_judged_by_kind(bench_of):
    shades = [np.full((32, 32, 3), 10 * i + 5, np.uint8) for i in range(8)]
    items = [item([Text(f"Draw {i}.")], str(i), kind="digit", pixels=shades[i]) for i in range(8)]
    items += [item([Text("Draw.")], "a red circle", kind="scene", pixels=shades[0]) for _ in range(2)]
    bench = bench_of(items)
    coded = [tuple(int(c) for c in row) for row in bench.omni.tokenizer.image.encode(np.stack(shades))]
    drawn = [reply(Image(coded[i if i < 6 else 0])) for i in range(8)]
    bench.omni.replies = [*drawn, reply(Image(coded[1])), reply(Text("I cannot draw."))]
    bench.pictures_judge = Judge()
    (result,) = drawing.image_generation(bench)
    assert result.facts == {"digits": 0.75, "scenes": 1.0}
    assert result.value == pytest.approx(0.8)
    assert result.controls["positive"] == 1.0
    assert result.controls["negative"] <= 0.3
    assert result.records[7]["seen"] == "0"


# ------------------------------------------------------------------------------------------------------------ codecs


def speech_items(n=6) -> list[Item]:
    return [item([Sound(sound(i, 2.0))], "", samples=sound(i, 2.0), voice=1) for i in range(n)]


def test_a_lossless_codec_reaches_the_positive_control(bench_of):
    items = [item([Picture(picture(i))], "") for i in range(24)]
    (ssim,) = codecs.codec_ssim(bench_of(items))
    assert ssim.value == pytest.approx(ssim.controls["positive"]) == pytest.approx(1.0)
    assert ssim.controls["negative"] < 0.9


def test_a_damaged_picture_lies_between_the_controls(bench_of):
    items = [item([Picture(picture(i))], "") for i in range(24)]
    (psnr,) = codecs.codec_psnr(bench_of(items, damage=0.5))
    assert psnr.controls["negative"] < psnr.value < psnr.controls["positive"]
    assert psnr.records[0]["prompt"][0]["file"] != psnr.records[0]["answer"][0]["file"]


def test_stoi_of_a_damaged_sound_lies_between_the_controls(bench_of):
    pytest.importorskip("pystoi")
    (stoi,) = codecs.codec_stoi(bench_of(speech_items(), damage=0.3))
    assert stoi.controls["negative"] < stoi.value < stoi.controls["positive"] == pytest.approx(1.0, abs=1e-3)
    assert set(stoi.facts) == {"unseen voices", "assistant voices"}


def test_usage_is_of_the_codec_that_uses_less(bench_of):
    items = [item([Picture(picture(i)), Sound(sound(i))], "", samples=sound(i)) for i in range(6)]
    (usage,) = codecs.codec_usage(bench_of(items))
    # Memory codecs spend one code a piece: of 50 entries, pictures fill fewer than sounds do.
    assert usage.value == min(usage.facts["image usage"], usage.facts["audio usage"])
    assert usage.controls["negative"] == pytest.approx(1 / 50)
    assert usage.controls["negative"] < usage.value < usage.controls["positive"] <= 1.0


def test_entropy_of_even_and_of_single_codes():
    assert codecs.entropy_bits(np.arange(16), 16) == pytest.approx(4.0)
    assert codecs.entropy_bits(np.zeros(9, int), 16) == pytest.approx(0.0)


def test_raw_answers_can_be_shown(bench_of, tmp_path):
    bench = bench_of(speech_items(1))
    shown = bench.show("test", 0, "answer", [Said("hello", sound(1), 1), picture(2), "words", Audio(())][:3])
    assert [part["kind"] for part in shown] == ["audio", "image", "text"]
    assert shown[0]["text"] == "hello"
    assert (tmp_path / shown[0]["file"]).read_bytes().startswith(b"fLaC")
