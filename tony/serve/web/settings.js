// What the person chose: theme and settings. The API key stays in this tab; the rest is remembered.

import { byId, element, openDialog } from "./dom.js";

const OPENAI_VOICES = ["alloy", "ash", "ballad", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse"];
const DEFAULTS = {
  model: "", voice: "alloy", temperature: null, seed: null, maxTokens: null, instructions: "", history: true, autoplay: true,
};

export const settings = { ...DEFAULTS, key: "", ...stored() };

function stored() {
  try {
    return { ...JSON.parse(localStorage.getItem("tony.settings")), key: sessionStorage.getItem("tony.key") ?? "" };
  } catch {
    return {};
  }
}

function save() {
  const { key, ...rest } = settings;
  localStorage.setItem("tony.settings", JSON.stringify(rest));
  sessionStorage.setItem("tony.key", key);
}

const number = (text) => (text.trim() === "" ? null : Number(text));
const FIELDS = [
  ["set-model", "model"], ["set-voice", "voice"], ["set-temperature", "temperature", number], ["set-seed", "seed", number],
  ["set-max-tokens", "maxTokens", number], ["set-instructions", "instructions"], ["set-history", "history"],
  ["set-autoplay", "autoplay"], ["set-key", "key"],
];

function show() {
  for (const [id, name] of FIELDS) {
    const field = byId(id);
    if (field.type === "checkbox") field.checked = settings[name];
    else field.value = settings[name] ?? "";
  }
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map((value) => element("option", { value, selected: value === chosen }, value)));
}

/** Offers these models, and the voices that the chosen one names; returns the chosen one. */
export function offer(models) {
  const names = models.map((model) => model.id);
  if (!names.includes(settings.model)) settings.model = names[0] ?? "";
  const chosen = models.find((model) => model.id === settings.model);
  const voices = chosen?.voices ?? OPENAI_VOICES;
  if (voices.length && !voices.includes(settings.voice)) settings.voice = voices[0];
  options(byId("set-model"), names, settings.model);
  options(byId("set-voice"), voices, settings.voice);
  save();
  return chosen;
}

/** Opens the drawer. */
export function openSettings() {
  show();
  openDialog(byId("settings"));
}

/** Connects the drawer and the theme button; `changed(name)` hears of every change. */
export function connectSettings(changed) {
  options(byId("set-voice"), OPENAI_VOICES, settings.voice);
  for (const [id, name, read = (text) => text] of FIELDS) {
    byId(id).addEventListener("change", ({ target }) => {
      if (!target.reportValidity()) return;
      settings[name] = target.type === "checkbox" ? target.checked : read(target.value);
      save();
      changed(name);
    });
  }
  byId("open-settings").addEventListener("click", openSettings);
  byId("reset-settings").addEventListener("click", () => {
    Object.assign(settings, DEFAULTS, { model: settings.model });
    save();
    show();
  });

  const button = byId("theme");
  const root = document.documentElement;
  const pressed = () => button.setAttribute("aria-pressed", String(root.dataset.theme === "dark"));
  button.addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("tony.theme", root.dataset.theme);
  });
  new MutationObserver(pressed).observe(root, { attributeFilter: ["data-theme"] });
  pressed();
}
