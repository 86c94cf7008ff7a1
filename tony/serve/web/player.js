// A small player: a button, the sound's outline that can be clicked and dragged, and the time.

import { outline } from "./audio.js";
import { element, icon } from "./dom.js";

const BARS = 48;
let playing = null; // one sound at a time

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** A player of a WAV file's bytes; `.play()` on the returned element starts it. */
export function player(wav, label) {
  const { peaks, seconds } = outline(wav, BARS);
  const sound = new Audio(URL.createObjectURL(new Blob([wav], { type: "audio/wav" })));
  sound.preload = "metadata";
  const button = element("button", { type: "button", class: "play", "aria-label": `Play ${label}` }, icon("play"));
  const time = element("span", { class: "time" }, clock(seconds));
  const bars = element("span", { class: "bars", "aria-hidden": "true" });
  for (const peak of peaks) {
    const bar = element("i");
    bar.style.setProperty("--peak", Math.max(0.08, peak).toFixed(3));
    bars.append(bar);
  }
  const seek = element("input", {
    type: "range", min: "0", max: "1000", value: "0", "aria-label": `Position in ${label}`, "aria-valuetext": clock(0),
  });
  const root = element("div", { class: "player" }, button, element("div", { class: "track" }, bars, seek), time);

  function show() {
    const at = sound.currentTime / (seconds || 1);
    [...bars.children].forEach((bar, i) => bar.classList.toggle("played", (i + 0.5) / BARS < at));
    seek.value = String(Math.round(1000 * at));
    seek.setAttribute("aria-valuetext", `${clock(sound.currentTime)} of ${clock(seconds)}`);
    time.textContent = clock(sound.paused && !sound.currentTime ? seconds : sound.currentTime);
    if (!sound.paused) requestAnimationFrame(show);
  }
  function changed() {
    button.replaceChildren(icon(sound.paused ? "play" : "pause"));
    button.setAttribute("aria-label", `${sound.paused ? "Play" : "Pause"} ${label}`);
    root.classList.toggle("playing", !sound.paused);
    show();
  }
  button.addEventListener("click", () => (sound.paused ? root.play() : sound.pause()));
  seek.addEventListener("input", () => {
    sound.currentTime = (Number(seek.value) / 1000) * seconds;
    show();
  });
  sound.addEventListener("play", changed);
  sound.addEventListener("pause", changed);
  sound.addEventListener("ended", () => {
    sound.currentTime = 0;
    changed();
  });
  root.play = () => {
    if (playing !== sound) playing?.pause();
    playing = sound;
    return sound.play().catch(() => {}); // the browser may want a click first
  };
  return root;
}

/** Silences the player that is on. */
export function pausePlayer() {
  playing?.pause();
}
