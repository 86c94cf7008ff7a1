// What the welcome page offers to try. `run` gets {ask(turn, mode), write(), listen()} from the page, `needs` are
// abilities that the model must have.

import { can, textAlone } from "./abilities.js";

function scene(paint) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 128;
  const context = canvas.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, 128, 128);
  paint(context);
  return canvas.toDataURL("image/png");
}

function circle(context, x, y, radius, color) {
  context.fillStyle = color;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

const shapes = () =>
  scene((context) => {
    circle(context, 40, 64, 22, "#fade28");
    context.fillStyle = "#3058f0";
    context.fillRect(70, 44, 40, 40);
  });

const film = () =>
  Array.from({ length: 6 }, (_, i) => scene((context) => circle(context, 24 + 16 * i, 64, 20, "#e22a2a")));

const EXAMPLES = [
  { icon: "text", title: "What is 27 + 48?", note: "thinks, then answers", run: (page) => page.ask({ text: "What is 27 + 48?" }, "text") },
  { icon: "pen", needs: ["see"], title: "Write a digit", note: "and let Tony read it", run: (page) => page.write() },
  { icon: "mic", needs: ["hear"], title: "Ask aloud", note: "“What is five plus three?”", run: (page) => page.listen() },
  { icon: "picture", needs: ["draw"], title: "Draw a seven", note: "in its own handwriting", run: (page) => page.ask({ text: "Draw a seven." }, "picture") },
  {
    icon: "picture", needs: ["draw"], title: "A red circle left of a blue square", note: "drawn from words",
    run: (page) => page.ask({ text: "Draw a red circle left of a blue square." }, "picture"),
  },
  {
    icon: "ask", needs: ["see"], title: "Describe a picture", note: "two shapes, made here",
    run: (page) => page.ask({ text: "Describe the picture.", attachments: [{ kind: "picture", url: shapes(), name: "shapes" }] }, "text"),
  },
  {
    icon: "film", needs: ["see"], title: "What moves?", note: "a film of six frames",
    run: (page) => page.ask({ text: "What moves?", attachments: [{ kind: "video", frames: film(), name: "film" }] }, "text"),
  },
  { icon: "speak", needs: ["speak"], title: "Say good morning", note: "with its own voice", run: (page) => page.ask({ text: "Say: good morning" }, "voice") },
];

const written = (icon, title, note) => ({ icon, title, note, run: (page) => page.ask({ text: title }, "text") });

const TEXTS = [
  written("ask", "Why is the sky blue?", "a question"),
  written("text", "Write four lines about the rain.", "a short poem"),
  written("pen", "Name three kinds of fruit.", "a list"),
  written("retry", "What is the opposite of cold?", "a word"),
];

/** What the model can do. */
export const examples = () => (textAlone() ? TEXTS : EXAMPLES.filter(({ needs = [] }) => needs.every(can)));
