"""The web page in a real browser, against a scripted server that speaks Tony's protocol (conftest.py)."""

import base64
import io
import re
import time
import wave

import numpy as np
import pytest
from PIL import Image

from tony.generate.omni import LONGEST_SOUND

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install 'tony-lm[dev]'")
expect = playwright.expect


def say(page, text: str, mode: str = "text") -> None:
    """Types and sends."""
    page.locator(f"input[name=answer][value={mode}]").check(force=True)
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")


def answers(page):
    """The finished answers."""
    return page.locator(".assistant:not([aria-busy])")


def pixels(url: str) -> np.ndarray:
    """uint8 [h, w, 3] of a PNG data URL."""
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def write_seven(page) -> None:
    """Writes a seven in the left upper part of the drawing board."""
    box = page.locator("#board").bounding_box()
    x, y = box["x"], box["y"]
    page.mouse.move(x + 30, y + 40)
    page.mouse.down()
    page.mouse.move(x + 120, y + 40, steps=4)
    page.mouse.move(x + 70, y + 180, steps=4)
    page.mouse.up()


def test_text_is_sent_and_the_answer_streams_in(page, server):
    expect(page.locator("#model-name")).to_have_text("tony-demo")
    say(page, "Hello!")
    expect(page.locator(".user .bubble")).to_have_text("Hello!")
    expect(answers(page).locator(".text")).to_have_text("hello there, nice to meet you")
    request = server.app.state.received[-1]
    assert request["messages"] == [{"role": "user", "content": "Hello!"}]
    assert request["model"] == "tony-demo" and request["stream"] and "modalities" not in request
    say(page, "What is 27 + 48?")
    expect(answers(page)).to_have_count(2)
    earlier = [message["role"] for message in server.app.state.received[-1]["messages"]]
    assert earlier == ["user", "assistant", "user"]


def test_thinking_is_folded(page):
    page.get_by_role("button", name="What is 27 + 48?").click()
    expect(answers(page).locator(".text")).to_have_text("75")
    thought = page.locator(".thought")
    expect(thought).to_be_hidden()
    page.locator(".thinking summary").click()
    expect(thought).to_have_text("27+48: 7+8=15, 5 carry 1; 2+4+1=7. 75")
    expect(page.locator("summary")).to_contain_text("Thought for")


def test_markdown_and_hostile_text(page):
    say(page, "hostile")
    expect(answers(page).locator(".text")).to_contain_text('<img src=x onerror="window.hacked=1"><script>')
    expect(page.locator(".text strong")).to_have_text("bold")
    expect(page.locator(".text img, .text script, .text a")).to_have_count(0)
    assert page.evaluate("() => window.hacked") is None
    say(page, "<b>markdown</b>")
    expect(page.locator(".bubble").last).to_have_text("<b>markdown</b>")
    last = answers(page).last.locator(".text")
    expect(last.locator("li")).to_have_text(["one", "two"])
    expect(last.locator("pre")).to_have_text("x < y")
    expect(last.locator("em")).to_have_text("italic")
    expect(last.locator("a")).to_have_attribute("href", "https://example.com")


def test_a_dropped_picture_is_sent(page, server):
    shown = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "PNG")
    transfer = page.evaluate_handle(
        """(data) => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          transfer.items.add(new File([bytes], "noise.png", { type: "image/png" }));
          return transfer;
        }""",
        base64.b64encode(file.getvalue()).decode(),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.locator("#attachments img")).to_have_count(1)
    say(page, "Describe the picture.")
    expect(answers(page).locator(".text")).to_have_text("a yellow circle left of a blue square")
    picture, text = server.app.state.received[-1]["messages"][0]["content"]
    assert text == {"type": "text", "text": "Describe the picture."}
    assert np.array_equal(pixels(picture["image_url"]["url"]), shown)
    expect(page.locator(".user .thumb img")).to_have_count(1)


def test_a_large_picture_is_shrunk_and_a_broken_one_refused(page, server):
    file = io.BytesIO()
    Image.new("RGB", (2000, 1000), "red").save(file, "PNG")
    page.set_input_files("#files", {"name": "big.png", "mimeType": "image/png", "buffer": file.getvalue()})
    expect(page.locator("#attachments img")).to_have_count(1)
    page.set_input_files("#files", {"name": "bad.png", "mimeType": "image/png", "buffer": b"not a picture"})
    expect(page.locator("#hint")).to_contain_text("bad.png cannot be read")
    page.locator("#send").click()
    expect(answers(page)).to_have_count(1)
    content = server.app.state.received[-1]["messages"][0]["content"]
    assert pixels(content[0]["image_url"]["url"]).shape == (256, 512, 3)


def test_a_written_digit_is_sent_like_handwriting(page, server):
    page.locator("#examples").get_by_role("button", name="Write a digit").click()
    write_seven(page)
    page.get_by_role("button", name="Use drawing").click()
    expect(page.locator("#prompt")).to_have_value("What digit is this?")
    page.keyboard.press("Enter")
    expect(answers(page).locator(".text")).to_have_text("7")
    digit = pixels(server.app.state.received[-1]["messages"][0]["content"][0]["image_url"]["url"])
    assert digit.shape == (32, 32, 3) and np.all(digit[..., :1] == digit)
    ink = digit[..., 0].astype(float)
    rows = np.nonzero(ink)[0]
    assert 18 <= rows.max() - rows.min() + 1 <= 21  # the longer side fills the box of 20
    assert ink.max() > 240 and ink[0].max() == 0
    middle = [(ink * index).sum() / ink.sum() for index in np.indices(ink.shape)]
    assert np.allclose(middle, 15.5, atol=0.6)  # centred by mass, though it was written in a corner


def test_a_drawing_in_colour_by_keyboard(page, server):
    page.get_by_role("button", name="Draw or write a digit").click()
    page.locator("input[name=drawing][value=color]").check(force=True)
    page.get_by_role("radio", name="green").check()
    page.locator("#board").focus()
    page.keyboard.press("Space")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Use drawing").click()
    page.get_by_role("button", name="Send").click()
    expect(answers(page)).to_have_count(1)
    drawing = pixels(server.app.state.received[-1]["messages"][0]["content"][0]["image_url"]["url"])
    assert drawing.shape == (320, 320, 3)
    assert tuple(drawing[160, 190]) == (0x24, 0xAC, 0x42) and tuple(drawing[20, 20]) == (0, 0, 0)


def test_the_microphone_gives_16_khz_wav(page, server):
    page.get_by_role("button", name="Record speech").click()
    expect(page.locator("#recording")).to_be_visible()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#attachments .player")).to_be_visible()
    page.get_by_role("button", name="Send").click()
    expect(answers(page)).to_have_count(1)
    (part,) = server.app.state.received[-1]["messages"][0]["content"]
    assert part["input_audio"]["format"] == "wav"
    with wave.open(io.BytesIO(base64.b64decode(part["input_audio"]["data"]))) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (16000, 1, 2)
        assert 0.8 < sound.getnframes() / 16000 < 2.5
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(float)
    assert samples.std() > 50  # the fake microphone plays a tone
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(np.argmax(spectrum) * 16000 / len(samples) - 220) < 15


def test_a_recording_ends_before_it_is_too_long_for_the_service(page, server):
    page.clock.install()
    page.get_by_role("button", name="Record speech").click()
    expect(page.locator("#recording")).to_be_visible()
    page.wait_for_timeout(1000)
    page.clock.fast_forward(LONGEST_SOUND * 1000 + 100)
    expect(page.locator("#recording")).to_be_hidden()
    expect(page.locator("#attachments .player")).to_be_visible()
    seconds = page.evaluate(
        """async () => {
          const { record } = await import("./audio.js");
          const recorder = await record(() => {}, 0.5);
          await new Promise((resolve) => setTimeout(resolve, 1500));
          return (await recorder.finish()).seconds;
        }"""
    )
    assert seconds == 0.5


def test_a_sound_file_is_resampled_and_heard_before_drawing(page, server, tone_file):
    page.set_input_files("#files", {"name": "tone.wav", "mimeType": "audio/wav", "buffer": tone_file(2.0, 24000)})
    expect(page.locator("#attachments .player .time")).to_have_text("0:02")
    say(page, "", "picture")
    expect(answers(page).locator(".heard")).to_have_text("Heard: “draw a seven”")
    heard, asked = server.app.state.received[-2:]
    with wave.open(io.BytesIO(heard["file"])) as sound:
        assert sound.getframerate() == 16000 and abs(sound.getnframes() - 32000) <= 16
    assert asked["prompt"] == "draw a seven"


def test_a_spoken_answer_plays(page, server):
    say(page, "Say: good morning", "voice")
    expect(page.locator(".bars.live")).to_be_visible()
    expect(answers(page).locator(".text")).to_have_text("hello there, nice to meet you")
    request = server.app.state.received[-1]
    assert request["modalities"] == ["text", "audio"] and request["audio"] == {"voice": "alloy", "format": "pcm16"}
    player = answers(page).locator(".player")
    player.get_by_role("button", name="Play spoken answer").click()
    expect(player.get_by_role("button", name="Pause spoken answer")).to_be_visible()
    expect(player.locator(".bars .played").nth(5)).to_be_attached()
    with page.expect_download() as download:
        answers(page).get_by_role("link", name="Download the sound").click()
    with wave.open(str(download.value.path())) as sound:
        assert sound.getframerate() == 24000 and sound.getnframes() == 28800


def test_an_answer_is_read_aloud(page, server):
    say(page, "Hello!")
    answers(page).get_by_role("button", name="Read it aloud").click()
    expect(answers(page).locator(".player")).to_be_visible()
    assert server.app.state.received[-1]["input"] == "hello there, nice to meet you"


def test_a_picture_is_drawn_and_saved(page, server):
    say(page, "Draw a seven.", "picture")
    image = answers(page).locator(".pictures img")
    expect(image).to_have_class("crisp")
    assert image.evaluate("image => [image.naturalWidth, image.width >= 256]") == [32, True]
    assert server.app.state.received[-1]["prompt"] == "Draw a seven."
    with page.expect_download() as download:
        answers(page).get_by_role("link", name="Download the picture").click()
    assert Image.open(download.value.path()).size == (32, 32)
    answers(page).get_by_role("button", name="Ask about this picture").click()
    expect(page.locator("#attachments img")).to_have_count(1)


def test_a_picture_that_the_model_chose_to_draw_is_shown(page):
    say(page, "Draw a seven.", "text")
    expect(answers(page).locator(".pictures img")).to_have_count(1)


def test_pictures_become_the_frames_of_a_video(page, server):
    page.get_by_role("button", name="What moves?").click()
    expect(answers(page).locator(".text")).to_have_text("the red circle moves right three times")
    video, text = server.app.state.received[-1]["messages"][0]["content"]
    assert text["text"] == "What moves?" and video["type"] == "video_url"
    frames = [pixels(url) for url in video["video_url"]["frames"]]
    places = [np.nonzero(frame[..., 0] > 100)[1].mean() for frame in frames]
    assert len(frames) == 6 and np.all(np.diff(places) > 5)  # it moves to the right
    page.get_by_role("button", name="New chat").click()
    for shade in ("red", "blue"):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), shade).save(file, "PNG")
        page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": file.getvalue()})
        expect(page.locator(".attachments .thumb")).to_have_count(1 if shade == "red" else 2)
    page.get_by_role("button", name="Use as a video").click()
    page.get_by_role("button", name="Send").click()
    expect(answers(page)).to_have_count(1)
    (video,) = server.app.state.received[-1]["messages"][0]["content"]
    assert [tuple(pixels(url)[0, 0]) for url in video["video_url"]["frames"]] == [(255, 0, 0), (0, 0, 255)]


def test_an_error_is_shown_and_tried_again(page):
    page.failures_expected = True
    say(page, "please fail")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The request has 2000 tokens; at most 1024 fit.")
    expect(alert).to_contain_text("400 · context_length_exceeded")
    alert.get_by_role("button", name="Try again").click()
    expect(answers(page).locator(".text")).to_have_text("hello there, nice to meet you")
    expect(alert).to_have_count(0)


def test_stop_aborts_the_request(page, server):
    say(page, "slow")
    expect(page.locator(".text")).to_contain_text("3")
    page.get_by_role("button", name="Stop the answer").click()
    expect(answers(page).locator(".facts")).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    deadline = time.monotonic() + 5
    while not server.app.state.aborted and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert server.app.state.aborted == 1


def test_the_conversation_outlives_a_reload_and_ends_with_a_new_chat(page):
    say(page, "Say: good morning", "voice")
    expect(answers(page).locator(".player")).to_be_visible()
    say(page, "Draw a seven.", "picture")
    expect(answers(page)).to_have_count(2)
    page.reload()
    expect(page.locator(".turn")).to_have_count(4)
    expect(page.locator(".player .time")).to_have_text("0:01")
    expect(page.locator(".pictures img")).to_have_class("crisp")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#welcome")).to_be_visible()
    page.reload()
    expect(page.locator(".turn")).to_have_count(0)


def test_a_conversation_too_big_to_keep_loses_its_oldest_media(page):
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")  # 0.8 MB, of the 5 MB that a tab may keep
    for turn in range(7):
        page.set_input_files("#files", {"name": "noise.png", "mimeType": "image/png", "buffer": file.getvalue()})
        expect(page.locator("#attachments img")).to_have_count(1)
        say(page, f"number {turn}")
        expect(answers(page)).to_have_count(turn + 1)
    page.reload()
    expect(page.locator(".bubble")).to_have_text([f"number {turn}" for turn in range(7)])
    assert 1 <= page.locator(".user .thumb").count() < 7


def test_settings_reach_the_request_and_the_key_is_not_kept(page, server):
    page.get_by_role("button", name="Settings").click()
    for label, value in (("Temperature", "0.3"), ("Seed", "7"), ("Longest answer", "40"), ("API key", "secret")):
        page.get_by_label(label).fill(value)
    page.get_by_role("combobox", name="Voice").select_option("echo")
    page.get_by_role("button", name="Done").click()
    say(page, "Say: good morning", "voice")
    expect(answers(page)).to_have_count(1)
    request = server.app.state.received[-1]
    assert (request["temperature"], request["seed"], request["max_completion_tokens"]) == (0.3, 7, 40)
    assert request["audio"]["voice"] == "echo" and request["key"] == "Bearer secret"
    kept = page.evaluate("() => JSON.stringify(localStorage)")
    assert "0.3" in kept and "secret" not in kept


def test_light_and_dark(open_page):
    page = open_page(color_scheme="dark")
    dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark theme").click()
    light = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    level = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (dark, light)]
    assert level[0] < 150 and level[1] > 600
    page.reload()
    assert page.evaluate("() => document.documentElement.dataset.theme") == "light"


def test_a_phone_never_scrolls_sideways(open_page):
    page = open_page(viewport={"width": 320, "height": 640})
    sideways = "() => document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(sideways) <= 0
    say(page, "w" * 200)
    expect(answers(page)).to_have_count(1)
    say(page, "Draw a seven.", "picture")
    expect(answers(page)).to_have_count(2)
    say(page, "Say: good morning", "voice")
    expect(answers(page).locator(".player")).to_be_visible()
    assert page.evaluate(sideways) <= 0
    for button in page.locator("button:visible").all():
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 320


def test_every_control_has_a_name_and_the_keyboard_reaches_the_message(page):
    for control in page.locator("button, input, textarea, select, a[href]").all():
        name = control.evaluate(
            "it => it.getAttribute('aria-label') || it.labels?.[0]?.textContent.trim() || it.textContent.trim()"
        )
        assert name or control.get_attribute("hidden") is not None, control.evaluate("it => it.outerHTML")
    page.get_by_role("link", name="Skip to the message box").press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    for name in ("Add a picture", "Draw or write", "Record speech"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name=name)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Voice")).to_be_checked()


TEXT_ALONE = {"modalities": {"input": ["text"], "output": ["text"]}, "voices": []}
DROP = """() => {
  const transfer = new DataTransfer();
  const canvas = document.createElement("canvas");
  const bytes = Uint8Array.from(atob(canvas.toDataURL("image/png").split(",")[1]), (letter) => letter.charCodeAt(0));
  transfer.items.add(new File([bytes], "a.png", { type: "image/png" }));
  return transfer;
}"""


def test_a_model_of_text_alone_is_offered_text_alone(open_page, server):
    server.app.state.card = TEXT_ALONE
    page = open_page()
    expect(page.get_by_role("heading", name="Ask in words.", exact=True)).to_be_visible()
    expect(page.locator("#welcome-more")).to_have_text("This model reads text and answers in text.")
    for control in ("#attach", "#draw", "#record", "#answer"):
        expect(page.locator(control)).to_be_hidden()
    expect(page.locator("#examples button b")).to_contain_text(["sky blue", "about the rain", "of fruit", "of cold"])
    send, box = (page.locator(place).bounding_box() for place in ("#send", "#composer"))
    assert send["x"] > box["x"] + box["width"] / 2
    page.dispatch_event("body", "drop", {"dataTransfer": page.evaluate_handle(DROP)})
    expect(page.locator("#hint")).to_have_text("a.png can't be sent: this model takes no picture.")
    expect(page.locator("#attachments li")).to_have_count(0)
    page.locator("#examples button").first.click()
    expect(answers(page)).to_have_count(1)
    assert "modalities" not in server.app.state.received[-1]
    expect(page.get_by_role("button", name="Copy the answer")).to_be_visible()
    expect(page.get_by_role("button", name="Read it aloud")).to_be_hidden()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Temperature")).to_be_visible()
    expect(page.locator("#set-voice")).to_be_hidden()
    expect(page.locator("#set-autoplay")).to_be_hidden()


def test_a_model_that_sees_and_is_silent(open_page, server):
    server.app.state.card = {"modalities": {"input": ["text", "image"], "output": ["text", "image"]}, "voices": []}
    page = open_page()
    expect(page.locator("#record")).to_be_hidden()
    expect(page.get_by_role("button", name="Draw or write")).to_be_visible()
    expect(page.locator("#answer b:visible")).to_have_text(["Text", "Picture"])
    expect(page.locator("#examples")).not_to_contain_text("Say good morning")
    expect(page.locator("#examples")).to_contain_text("What moves?")
    page.dispatch_event("body", "drop", {"dataTransfer": page.evaluate_handle(DROP)})
    expect(page.locator("#attachments img")).to_have_count(1)


def test_a_model_that_says_nothing_of_itself_is_offered_everything(page):
    for control in ("#attach", "#draw", "#record", "#answer"):
        expect(page.locator(control)).to_be_visible()
    expect(page.locator("#examples button")).to_have_count(8)


def test_with_the_real_service(open_page, real):
    page = open_page(real.url)
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_role("combobox", name="Voice").locator("option")).to_have_text(["heart", "michael"])
    page.get_by_label("Longest answer").fill("24")
    page.get_by_role("button", name="Done").click()
    page.locator("#examples").get_by_role("button", name="What moves?").click()
    expect(answers(page)).to_have_count(1, timeout=20_000)
    say(page, "Say: good morning", "voice")
    expect(answers(page)).to_have_count(2, timeout=20_000)
    say(page, "Draw a seven.", "picture")
    expect(answers(page)).to_have_count(3, timeout=20_000)
    expect(answers(page).last.locator(".pictures img")).to_have_count(1)
    expect(page.get_by_role("alert")).to_have_count(0)
