// The page: connects the message box, the microphone, files, the drawing board and the conversation.

import { can, fitPage } from "./abilities.js";
import { models } from "./api.js";
import { record } from "./audio.js";
import { connectCanvas, openCanvas } from "./canvas.js";
import { Chat, filmstrip, thumbnail } from "./chat.js";
import { byId, element, icon } from "./dom.js";
import { examples } from "./examples.js";
import { asVideo, attachmentOf } from "./media.js";
import { player } from "./player.js";
import { connectSettings, offer, openSettings, settings } from "./settings.js";

const LONGEST_RECORDING = 20; // seconds; the service takes no longer sounds
const HOLD = 500; // milliseconds after which letting the microphone button go ends the recording

const prompt = byId("prompt");
let attachments = [];
let phase = "idle";

// ------------------------------------------------------------------------------------------------ small things

let hintTimer;
/** Says something below the message box for a while. */
function hint(text) {
  byId("hint").textContent = text;
  clearTimeout(hintTimer);
  hintTimer = setTimeout(() => (byId("hint").textContent = ""), 8000);
}

const mode = () => document.querySelector("input[name=answer]:checked").value;
const setMode = (value) => (document.querySelector(`input[name=answer][value=${value}]`).checked = true);

function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, 200)}px`;
}

function refresh() {
  byId("welcome").hidden = chat.turns.length > 0;
  byId("new-chat").disabled = chat.turns.length === 0;
  byId("send").disabled = !(prompt.value.trim() || attachments.length) || phase === "answering";
  byId("send").hidden = phase !== "idle";
  byId("stop").hidden = phase === "idle";
}

const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
function toEnd() {
  scrollTo({ top: document.documentElement.scrollHeight });
}

// ------------------------------------------------------------------------------------------------ conversation

const chat = new Chat(byId("log"), {
  hint,
  attach: (item) => {
    attach(item);
    prompt.focus();
  },
  phase(name) {
    phase = name;
    refresh();
  },
  grown(always) {
    if (always || atEnd()) requestAnimationFrame(toEnd);
  },
});

function ask(turn, how) {
  setMode(how);
  chat.send(turn, how);
}

function submit() {
  const text = prompt.value.trim();
  if (phase === "answering" || recorder || !(text || attachments.length)) return;
  const turn = { text, attachments };
  attachments = [];
  prompt.value = "";
  fit();
  showAttachments();
  chat.send(turn, mode());
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
prompt.addEventListener("input", () => {
  fit();
  refresh();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
byId("stop").addEventListener("click", () => {
  chat.stop();
  prompt.focus();
});
byId("new-chat").addEventListener("click", () => {
  chat.clear();
  refresh();
  prompt.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (recorder) endRecording(false);
  else if (phase !== "idle") chat.stop();
});
addEventListener("scroll", () => (byId("jump").hidden = atEnd()), { passive: true });
byId("jump").addEventListener("click", toEnd);

// ------------------------------------------------------------------------------------------------ attachments

function attach(item) {
  attachments.push(item);
  showAttachments();
}

function showAttachments() {
  const list = byId("attachments");
  list.replaceChildren(
    ...attachments.map((item) => {
      const shown = { picture: () => thumbnail(item.url, item.name), sound: () => player(item.wav, item.name), video: () => filmstrip(item.frames) };
      const remove = element("button", { type: "button", class: "remove", "aria-label": `Remove ${item.name}` }, icon("close"));
      remove.addEventListener("click", () => {
        attachments = attachments.filter((other) => other !== item);
        showAttachments();
        prompt.focus();
      });
      return element("li", { class: item.kind }, shown[item.kind](), remove);
    }),
  );
  const pictures = attachments.filter((item) => item.kind === "picture");
  if (pictures.length > 1) {
    const join = element("button", { type: "button", class: "quiet small" }, icon("film"), "Use as a video");
    join.addEventListener("click", () => {
      attachments = [...attachments.filter((item) => item.kind !== "picture"), asVideo(pictures)];
      showAttachments();
    });
    list.append(element("li", {}, join));
  }
  list.hidden = attachments.length === 0;
  refresh();
}

const attachable = (kind) => can(kind === "sound" ? "hear" : "see");

async function attachFiles(files) {
  for (const file of files) {
    try {
      const item = await attachmentOf(file);
      if (!attachable(item.kind)) throw new Error(`${file.name} can't be sent: this model takes no ${item.kind}.`);
      attach(item);
    } catch (error) {
      hint(error.message);
    }
  }
}

byId("attach").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", async ({ target }) => {
  await attachFiles([...target.files]);
  target.value = "";
  prompt.focus();
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return;
  event.preventDefault();
  attachFiles(files);
});

let depth = 0; // of nested elements that a dragged file is over
const dragging = (over) => document.body.classList.toggle("dragging", over && (can("see") || can("hear")));
addEventListener("dragenter", (event) => {
  if (event.dataTransfer.types.includes("Files")) dragging(++depth > 0);
});
addEventListener("dragleave", (event) => {
  if (event.dataTransfer.types.includes("Files")) dragging(--depth > 0);
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragging((depth = 0) > 0);
  attachFiles([...event.dataTransfer.files]);
});

connectCanvas((drawing, kind) => {
  attach(drawing);
  if (!prompt.value.trim()) prompt.value = kind === "digit" ? "What digit is this?" : "What do you see?";
  if (mode() === "picture") setMode("text");
  refresh();
  prompt.focus();
  prompt.select();
});
byId("draw").addEventListener("click", () => openCanvas());

// ------------------------------------------------------------------------------------------------ microphone

let recorder = null;

async function startRecording() {
  if (recorder) return;
  const levels = [];
  const started = performance.now();
  const opening = record((level) => {
    levels.push(level);
    showLevel(levels);
    const seconds = (performance.now() - started) / 1000;
    byId("recording-time").textContent = `0:${String(Math.floor(seconds)).padStart(2, "0")}`;
    if (seconds > LONGEST_RECORDING) endRecording(true);
  }, LONGEST_RECORDING);
  recorder = opening;
  showRecording(true);
  try {
    await opening;
  } catch (error) {
    recorder = null;
    showRecording(false);
    const refused = { NotAllowedError: "The microphone is blocked; allow it for this page in the browser.", NotFoundError: "There is no microphone here." };
    hint(refused[error.name] ?? error.message);
  }
}

async function endRecording(keep) {
  const ending = recorder;
  if (!ending) return;
  recorder = null;
  showRecording(false);
  const open = await ending.catch(() => null);
  if (!open) return;
  if (!keep) return open.cancel();
  const { wav, seconds } = await open.finish();
  if (seconds < 0.3) return hint("That was too short. Hold the microphone while you speak, or click it to start and to end.");
  attach({ kind: "sound", wav, seconds, name: "recording" });
  prompt.focus();
}

function showRecording(on) {
  byId("recording").hidden = !on;
  byId("recording-time").textContent = "0:00";
  byId("record").setAttribute("aria-pressed", String(on));
  byId("record").setAttribute("aria-label", on ? "Finish the recording" : "Record speech");
}

function showLevel(levels) {
  const canvas = byId("level");
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = canvas.clientHeight * devicePixelRatio;
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  context.fillStyle = getComputedStyle(canvas).color;
  const { clientWidth: width, clientHeight: height } = canvas;
  levels.slice(-Math.floor(width / 5)).reverse().forEach((level, i) => {
    const tall = Math.max(3, height * Math.min(1, 3.5 * Math.sqrt(level)));
    context.beginPath();
    context.roundRect(width - 5 * (i + 1), (height - tall) / 2, 3, tall, 1.5);
    context.fill();
  });
}

const button = byId("record");
let pressedAt = 0;
button.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || recorder) return;
  pressedAt = performance.now();
  button.setPointerCapture(event.pointerId);
  startRecording();
});
button.addEventListener("pointerup", () => {
  if (pressedAt && performance.now() - pressedAt > HOLD) endRecording(true);
});
button.addEventListener("click", () => {
  // A press of the mouse has begun the recording already; a key or an assistive tool comes here only.
  if (pressedAt) pressedAt = 0;
  else if (recorder) endRecording(true);
  else startRecording();
});
byId("cancel-recording").addEventListener("click", () => endRecording(false));
byId("finish-recording").addEventListener("click", () => endRecording(true));

// ------------------------------------------------------------------------------------------------ start

function exampleView({ icon: name, title, note, run }) {
  const example = element("button", { type: "button" }, icon(name), element("span", {}, element("b", {}, title), element("small", {}, note)));
  example.addEventListener("click", () =>
    run({
      ask,
      write: () => openCanvas("digit"),
      listen: () => {
        if (mode() === "picture") setMode("text");
        hint("Say for example: what is five plus three?");
        startRecording();
      },
    }),
  );
  return element("li", {}, example);
}

/** Leaves of the page what this model can do. */
function fitTo(model) {
  fitPage(model);
  if ((mode() === "voice" && !can("speak")) || (mode() === "picture" && !can("draw"))) setMode("text");
  attachments = attachments.filter(({ kind }) => attachable(kind));
  showAttachments();
  byId("examples").replaceChildren(...examples().map(exampleView));
}

async function connect() {
  const name = byId("model-name");
  try {
    fitTo(offer(await models(settings.key)));
    name.textContent = settings.model;
    name.classList.remove("lost");
  } catch (error) {
    name.textContent = error.status === 401 ? "needs a key" : "not connected";
    name.classList.add("lost");
    hint(error.message);
    if (error.status === 401) openSettings();
  }
}

connectSettings((changed) => {
  if (changed === "key" || changed === "model") connect();
});
fitTo(null);
fit();
if (chat.turns.length) toEnd();
connect();
if (matchMedia("(hover: hover)").matches) prompt.focus({ preventScroll: true });
