// The conversation: its turns, how they look, how an answer grows, and how they outlive a reload of the tab.
//
// A turn is {role: "user", text, attachments} or {role: "assistant", mode, text, thinking, thinkingSeconds, transcript,
// heard, wav, pictures, error, note, seconds, tokens}.

import { ANSWERS } from "./answers.js";
import { ApiError, speak } from "./api.js";
import { Speaker, encodeWav, fromBase64, toBase64 } from "./audio.js";
import { byId, element, icon, openDialog } from "./dom.js";
import { markdown } from "./markdown.js";
import { pausePlayer, player } from "./player.js";
import { settings } from "./settings.js";

const STORE = "tony.chat";
const SMALL = 256; // pixels; the server enlarges what it draws to this

// ------------------------------------------------------------------------------------------------ what is kept

const wrap = (name, value) => (value instanceof Uint8Array ? { base64: toBase64(value) } : value);
const unwrap = (name, value) => (typeof value?.base64 === "string" ? fromBase64(value.base64) : value);

/** Keeps the turns in this tab; where they are too big, the oldest lose their media first. */
function store(turns) {
  for (let bare = 0; bare <= turns.length; bare++) {
    const kept = turns.map((turn, i) => (i < bare ? { ...turn, attachments: [], pictures: [], wav: undefined } : turn));
    try {
      sessionStorage.setItem(STORE, JSON.stringify(kept, wrap));
      return;
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
    }
  }
}

function restore() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE), unwrap) ?? [];
  } catch {
    return [];
  }
}

// ------------------------------------------------------------------------------------------------ how it looks

/** An image whose pixels stay crisp if it is small. */
function crisp(image) {
  image.addEventListener("load", () => image.classList.toggle("crisp", image.naturalWidth <= SMALL));
  return image;
}

function enlarge(url, description) {
  const viewer = byId("viewer");
  viewer.querySelector("img").replaceWith(crisp(element("img", { src: url, alt: description })));
  openDialog(viewer);
}

/** A picture that can be enlarged. */
export function thumbnail(url, description) {
  const image = crisp(element("img", { src: url, alt: description }));
  const button = element("button", { type: "button", class: "thumb", "aria-label": `Enlarge ${description}` }, image);
  button.addEventListener("click", () => enlarge(url, description));
  return button;
}

/** A video's frames, shown one after the other. */
export function filmstrip(frames) {
  const strip = element("div", { class: "film", role: "img", "aria-label": `Video of ${frames.length} frames` });
  for (const url of frames) strip.append(element("img", { src: url, alt: "" }));
  return strip;
}

function action(name, label, run) {
  const button = element("button", { type: "button", class: "action", "aria-label": label, title: label }, icon(name));
  button.addEventListener("click", () => run(button));
  return button;
}

function saving(url, name, label) {
  return element("a", { class: "action", href: url, download: name, "aria-label": label, title: label }, icon("save"));
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages that are not on https or localhost have no clipboard.
    const area = element("textarea", { class: "visually-hidden" }, text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.replaceChildren(icon("check"));
  setTimeout(() => button.replaceChildren(icon("copy")), 1500);
}

function userView(turn) {
  const media = (turn.attachments ?? []).map((item) => {
    if (item.kind === "picture") return thumbnail(item.url, item.name);
    return item.kind === "sound" ? player(item.wav, item.name) : filmstrip(item.frames);
  });
  return element(
    "article",
    { class: "turn user", "aria-label": "You" },
    media.length > 0 && element("div", { class: "media" }, ...media),
    turn.text && element("div", { class: "bubble" }, turn.text),
  );
}

function errorText({ message, status, code, type }) {
  const kind = [status || null, code ?? type].filter(Boolean).join(" · ");
  return [element("p", {}, message), kind && element("p", { class: "kind" }, kind)];
}

/** The view of an answer: an element, `update()` while it grows, `finish()` when it is whole. */
function assistantView(turn, chat) {
  const thought = element("div", { class: "thought" });
  const summary = element("summary", {}, element("span", {}, "Thinking"));
  const thinking = element("details", { class: "thinking", hidden: true }, summary, thought);
  const heard = element("p", { class: "heard", hidden: true });
  const pictures = element("div", { class: "pictures" });
  const sound = element("div", { class: "sound" });
  const text = element("div", { class: "text" });
  const waiting = element("div", { class: "waiting", role: "img", "aria-label": "Tony is answering" });
  waiting.append(element("i"), element("i"), element("i"));
  const below = element("div", { class: "below" });
  const root = element(
    "article",
    { class: "turn assistant", "aria-label": "Tony", "aria-busy": "true" },
    element("img", { class: "face", src: "icon.svg", alt: "", width: "26", height: "26" }),
    element("div", { class: "body" }, thinking, heard, sound, pictures, text, waiting, below),
  );
  let queued = false;

  function draw() {
    queued = false;
    if (turn.thinking) {
      thinking.hidden = false;
      thought.textContent = turn.thinking;
      const over = turn.thinkingSeconds !== undefined;
      summary.firstChild.textContent = over ? `Thought for ${turn.thinkingSeconds.toFixed(1)} s` : "Thinking";
      thinking.classList.toggle("growing", !over);
    }
    heard.hidden = !turn.heard;
    heard.textContent = turn.heard ? `Heard: “${turn.heard}”` : "";
    while (pictures.children.length < turn.pictures.length) {
      pictures.append(thumbnail(turn.pictures[pictures.children.length], `Picture: ${chat.requestOf(turn)}`));
    }
    text.replaceChildren(markdown(turn.text || turn.transcript || ""));
    waiting.hidden = Boolean(turn.text || turn.transcript || turn.pictures.length || turn.thinking);
  }

  function finish() {
    draw();
    waiting.hidden = true;
    root.removeAttribute("aria-busy");
    thinking.classList.remove("growing");
    if (turn.wav) sound.replaceChildren(player(turn.wav, "spoken answer"));
    const words = turn.text || turn.transcript;
    if (!words && !turn.pictures.length && !turn.wav && !turn.error && !turn.note) turn.note = "The answer is empty.";
    const facts = [turn.note, turn.seconds && `${turn.seconds.toFixed(1)} s`, turn.tokens && `${turn.tokens} tokens`];
    below.replaceChildren();
    if (turn.error) {
      const again = element("button", { type: "button", class: "quiet small again" }, icon("retry"), "Try again");
      again.addEventListener("click", () => chat.retry(turn));
      below.append(element("div", { class: "error", role: "alert" }, icon("warn"), element("div", {}, ...errorText(turn.error)), again));
      return;
    }
    const actions = element("div", { class: "actions" });
    if (words) actions.append(action("copy", "Copy the answer", (button) => copy(words, button)));
    if (words && !turn.wav) {
      const aloud = action("speak", "Read it aloud", (button) => chat.readAloud(turn, button));
      aloud.dataset.needs = "speak";
      actions.append(aloud);
    }
    if (turn.wav) {
      const url = URL.createObjectURL(new Blob([turn.wav], { type: "audio/wav" }));
      actions.append(saving(url, "tony.wav", "Download the sound"));
    }
    for (const url of turn.pictures) {
      actions.append(saving(url, "tony.png", "Download the picture"));
      const about = action("ask", "Ask about this picture", () => chat.page.attach({ kind: "picture", url, name: "drawn by Tony" }));
      about.dataset.needs = "see";
      actions.append(about);
    }
    const again = action("retry", "Answer again", () => chat.retry(turn));
    again.classList.add("again");
    actions.append(again);
    actions.append(element("span", { class: "facts" }, facts.filter(Boolean).join(" · ")));
    below.append(actions);
  }

  return {
    root,
    finish,
    update() {
      if (!queued) requestAnimationFrame(draw);
      queued = true;
    },
    /** Shows the sound that is playing as it comes. */
    live(speaker) {
      const bars = element("span", { class: "bars live", "aria-hidden": "true" });
      for (let i = 0; i < 32; i++) bars.append(element("i"));
      sound.replaceChildren(element("div", { class: "player playing" }, icon("speak"), element("div", { class: "track" }, bars)));
      const levels = new Uint8Array(speaker.analyser.frequencyBinCount);
      const tick = () => {
        if (!bars.isConnected) return;
        speaker.analyser.getByteFrequencyData(levels);
        [...bars.children].forEach((bar, i) => bar.style.setProperty("--peak", (0.08 + (0.92 * levels[2 + 2 * i]) / 255).toFixed(3)));
        requestAnimationFrame(tick);
      };
      tick();
    },
  };
}

// ------------------------------------------------------------------------------------------------ how it goes on

/** One conversation in `log`. `page` has `phase(name)` ("idle", "answering", "speaking"), `grown()` and `attach(item)`. */
export class Chat {
  constructor(log, page) {
    this.log = log;
    this.page = page;
    this.turns = restore();
    this.controller = null;
    this.speaker = null;
    for (const turn of this.turns) this.show(turn, true);
  }

  show(turn, whole) {
    const view = turn.role === "user" ? { root: userView(turn) } : assistantView(turn, this);
    this.log.append(view.root);
    if (whole) view.finish?.();
    return view;
  }

  /** What a person wrote to get this answer. */
  requestOf(answer) {
    return this.turns[this.turns.indexOf(answer) - 1]?.text || "what was asked aloud";
  }

  async send(turn, mode) {
    this.stop();
    this.turns.push({ role: "user", ...turn });
    this.show(this.turns.at(-1), true);
    await this.answer(mode);
  }

  /** Answers once more: what came from this answer on is dropped. */
  async retry(turn) {
    this.stop();
    const at = this.turns.indexOf(turn);
    this.turns.length = at;
    while (this.log.children.length > at) this.log.lastChild.remove();
    await this.answer(turn.mode);
  }

  async answer(mode) {
    const asked = [...this.turns];
    const turn = { role: "assistant", mode, text: "", thinking: "", transcript: "", pictures: [] };
    this.turns.push(turn);
    const view = this.show(turn, false);
    const controller = (this.controller = new AbortController());
    const started = performance.now();
    const since = () => (performance.now() - started) / 1000;
    const pieces = [];
    let rate;
    let speaker = null;
    pausePlayer();
    this.page.phase("answering");
    this.page.grown(true);
    try {
      for await (const event of ANSWERS[mode](asked, settings, controller.signal)) {
        if (event.thinking) turn.thinking += event.thinking;
        else if (turn.thinking && turn.thinkingSeconds === undefined) turn.thinkingSeconds = since();
        if (event.text) turn.text += event.text;
        if (event.transcript) turn.transcript += event.transcript;
        if (event.heard) turn.heard = event.heard;
        if (event.picture) turn.pictures.push(event.picture);
        if (event.usage) turn.tokens = event.usage.completion_tokens;
        if (event.finish === "length") turn.note = "cut off at the longest allowed length";
        if (event.pcm?.length) {
          pieces.push(event.pcm);
          rate = event.rate;
          if (settings.autoplay) {
            if (!speaker) view.live((speaker = this.speaker = new Speaker()));
            speaker.push(event.pcm, rate);
          }
        }
        view.update();
        this.page.grown();
      }
    } catch (error) {
      if (controller.signal.aborted) turn.note = "stopped";
      else turn.error = { message: error.message, status: error.status, code: error.code, type: error.type };
      if (!(error instanceof ApiError) && !controller.signal.aborted) turn.error.type = "page";
    }
    if (turn.thinking && turn.thinkingSeconds === undefined) turn.thinkingSeconds = since();
    turn.seconds = since();
    if (pieces.length) turn.wav = encodeWav(joined(pieces), rate);
    if (this.controller !== controller) {
      view.finish();
      return; // a new conversation has begun meanwhile
    }
    this.controller = null;
    store(this.turns);
    if (speaker && !controller.signal.aborted) {
      this.page.phase("speaking");
      await new Promise((resolve) => {
        this.silence = resolve;
        setTimeout(resolve, 1000 * speaker.remaining + 100);
      });
    }
    speaker?.close();
    if (this.speaker === speaker) this.speaker = null;
    view.finish();
    this.page.grown();
    if (!this.controller) this.page.phase("idle");
  }

  /** Breaks the answer off and falls silent. */
  stop() {
    this.controller?.abort();
    this.speaker?.stop();
    this.silence?.();
    this.speaker = this.silence = null;
  }

  async readAloud(turn, button) {
    button.disabled = true;
    try {
      turn.wav = await speak(turn.text || turn.transcript, settings.model, settings.voice, settings.key);
      store(this.turns);
      const view = assistantView(turn, this);
      view.finish();
      this.log.children[this.turns.indexOf(turn)].replaceWith(view.root);
      view.root.querySelector(".player").play();
    } catch (error) {
      button.disabled = false;
      this.page.hint(error.message);
    }
  }

  clear() {
    this.stop();
    this.controller = null;
    this.turns = [];
    this.log.replaceChildren();
    sessionStorage.removeItem(STORE);
    this.page.phase("idle");
  }
}

function joined(pieces) {
  const whole = new Int16Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
