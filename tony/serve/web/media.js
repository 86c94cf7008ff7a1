// Files into attachments: {kind: "picture", url} {kind: "sound", wav, seconds} {kind: "video", frames: [url]}, each with
// a name. Pictures become data URLs, shrunk to what a small model can use.

import { SPEECH_RATE, decodeSound, encodeWav } from "./audio.js";

const PICTURE_SIDE = 512; // pixels; larger pictures are shrunk to this
const FRAME_SIDE = 128;
const FRAMES = 6;

/** A picture on a new canvas with its longer side at most `side` pixels. */
function shrunk(source, width, height, side) {
  const scale = Math.min(1, side / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function picture(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
    const canvas = shrunk(image, image.naturalWidth || PICTURE_SIDE, image.naturalHeight || PICTURE_SIDE, PICTURE_SIDE);
    const url = file.type === "image/jpeg" ? canvas.toDataURL("image/jpeg", 0.9) : canvas.toDataURL("image/png");
    return { kind: "picture", url, name: file.name };
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

async function sound(file) {
  const samples = await decodeSound(await file.arrayBuffer());
  return { kind: "sound", wav: encodeWav(samples, SPEECH_RATE), seconds: samples.length / SPEECH_RATE, name: file.name };
}

function event(target, name) {
  return new Promise((resolve, reject) => {
    target.addEventListener(name, resolve, { once: true });
    target.addEventListener("error", reject, { once: true });
    setTimeout(() => reject(new Error(`no ${name} in ten seconds`)), 10000);
  });
}

async function video(file) {
  const film = document.createElement("video");
  film.muted = true;
  film.preload = "auto";
  film.src = URL.createObjectURL(file);
  try {
    await event(film, "loadeddata");
    const frames = [];
    for (let i = 0; i < FRAMES; i++) {
      film.currentTime = ((i + 0.5) * Math.min(film.duration, 60)) / FRAMES;
      await event(film, "seeked");
      frames.push(shrunk(film, film.videoWidth, film.videoHeight, FRAME_SIDE).toDataURL("image/png"));
    }
    return { kind: "video", frames, name: file.name };
  } finally {
    URL.revokeObjectURL(film.src);
  }
}

/** The attachment that a file makes; an error says what cannot be read. */
export async function attachmentOf(file) {
  const read = { image: picture, audio: sound, video }[file.type.split("/")[0]];
  if (!read) throw new Error(`${file.name} is not a picture, a sound or a video.`);
  try {
    return await read(file);
  } catch {
    throw new Error(`${file.name} cannot be read; the browser does not know this kind of file, or it is damaged.`);
  }
}

/** Several pictures taken together as a video. */
export function asVideo(pictures) {
  return { kind: "video", frames: pictures.map((item) => item.url), name: `${pictures.length} frames` };
}
