// Ways of getting an answer. Each is an async generator of small events,
//   {thinking} {text} {heard} {transcript} {pcm: Int16Array, rate} {picture: data URL} {finish} {usage}
// and knows nothing of the page. A realtime voice session is to be one more way, in a module of its own beside this
// one: it yields the same events, takes its sound from `microphone` and plays through `Speaker` in audio.js.

import * as api from "./api.js";
import { fromBase64, toBase64 } from "./audio.js";

const STREAM_RATE = 24000; // samples a second of `pcm16`, as in OpenAI's interface
const FRAME_INTERVAL = 0.5; // seconds between the frames of a video, as the laptop world's films have it

/** Parts of a message on the wire, for what a person typed and attached. */
export function wireParts(turn) {
  const parts = [];
  for (const item of turn.attachments ?? []) {
    if (item.kind === "picture") parts.push({ type: "image_url", image_url: { url: item.url } });
    else if (item.kind === "sound") parts.push({ type: "input_audio", input_audio: { data: toBase64(item.wav), format: "wav" } });
    else parts.push({ type: "video_url", video_url: { frames: item.frames, interval: FRAME_INTERVAL } });
  }
  if (turn.text) parts.push({ type: "text", text: turn.text });
  return parts;
}

/** The conversation as the API wants it. A drawn answer has no place in it, so its exchange is left out. */
export function wireMessages(turns, settings) {
  const messages = settings.instructions ? [{ role: "system", content: settings.instructions }] : [];
  const last = turns.length - 1;
  turns.forEach((turn, index) => {
    if (turn.role !== "user") return;
    const answer = turns[index + 1];
    if (index < last && (!settings.history || answer?.role !== "assistant" || answer.error)) return;
    const parts = wireParts(turn);
    const words = answer && (answer.text || answer.transcript);
    if (index < last && !words) return;
    messages.push({ role: "user", content: parts.length === 1 && parts[0].type === "text" ? turn.text : parts });
    if (index < last) messages.push({ role: "assistant", content: words });
  });
  return messages;
}

function sampling(settings) {
  const body = { model: settings.model };
  if (settings.temperature !== null) body.temperature = settings.temperature;
  if (settings.seed !== null) body.seed = settings.seed;
  if (settings.maxTokens !== null) body.max_completion_tokens = settings.maxTokens;
  return body;
}

async function* completion(turns, settings, signal, extra) {
  const body = { ...sampling(settings), ...extra, messages: wireMessages(turns, settings) };
  for await (const chunk of api.chat({ ...body, stream_options: { include_usage: true } }, settings.key, signal)) {
    if (chunk.usage) yield { usage: chunk.usage };
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const delta = choice.delta ?? {};
    if (delta.reasoning_content) yield { thinking: delta.reasoning_content };
    if (delta.content) yield { text: delta.content };
    if (delta.audio?.transcript) yield { transcript: delta.audio.transcript };
    if (delta.audio?.data) yield { pcm: pcm16(fromBase64(delta.audio.data)), rate: STREAM_RATE };
    for (const image of delta.images ?? []) yield { picture: image.image_url.url };
    if (choice.finish_reason) yield { finish: choice.finish_reason };
  }
}

function pcm16(bytes) {
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

/** Words; or a picture, when the model takes the question as a wish for one: it is not told what to answer with. */
function text(turns, settings, signal) {
  return completion(turns, settings, signal, {});
}

function voice(turns, settings, signal) {
  const audio = { voice: settings.voice, format: "pcm16" };
  return completion(turns, settings, signal, { modalities: ["text", "audio"], audio });
}

/** Draws from the words of the last turn; what was said aloud is written down first. */
async function* picture(turns, settings, signal) {
  const { attachments = [], text: typed } = turns.at(-1);
  const words = [];
  for (const item of attachments) {
    if (item.kind !== "sound") throw new Error("A picture is drawn from words. Take the picture off, or ask for an answer in text.");
    words.push(await api.transcribe(item.wav, settings.model, settings.key, signal));
  }
  const heard = words.join(" ");
  if (heard) yield { heard };
  const prompt = [heard, typed].filter(Boolean).join(" ");
  const body = { ...sampling(settings), prompt, n: 1, output_format: "png" };
  for (const url of await api.drawPictures(body, settings.key, signal)) yield { picture: url };
}

export const ANSWERS = { text, voice, picture };
