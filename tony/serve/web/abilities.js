// What a model can do beside reading and writing text, and what of the page that leaves: whatever has `data-needs` is
// shown by style.css only where the model is able to do one of the things it names.

import { byId } from "./dom.js";

const ABILITIES = { hear: ["input", "audio"], see: ["input", "image"], speak: ["output", "audio"], draw: ["output", "image"] };
const ANY = "Ask in words, aloud, or with a picture.";
const ANY_MORE = "One small network reads, listens, looks and watches, and answers in text, speech or pictures.";
const TEXT = "Ask in words.";
const TEXT_MORE = "This model reads text and answers in text.";

let able = Object.keys(ABILITIES);

/** Whether the model can "hear", "see", "speak" or "draw". */
export const can = (ability) => able.includes(ability);

/** Whether the model reads and writes text and nothing else. */
export const textAlone = () => able.length === 0;

/** Makes the page fit a model of the service's list; one that does not say what it can do may be able to do all. */
export function fitPage(model) {
  const known = model?.modalities;
  able = Object.entries(ABILITIES).flatMap(([name, [way, kind]]) => (!known || known[way]?.includes(kind) ? [name] : []));
  document.body.dataset.able = able.join(" ");
  byId("welcome-title").textContent = textAlone() ? TEXT : ANY;
  byId("welcome-more").textContent = textAlone() ? TEXT_MORE : ANY_MORE;
}
