// What the welcome page offers to try. `run` gets {ask(turn, mode), write(), listen()} from the page.

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

export const EXAMPLES = [
  { icon: "text", title: "What is 27 + 48?", note: "thinks, then answers", run: (page) => page.ask({ text: "What is 27 + 48?" }, "text") },
  { icon: "pen", title: "Write a digit", note: "and let Tony read it", run: (page) => page.write() },
  { icon: "mic", title: "Ask aloud", note: "“What is five plus three?”", run: (page) => page.listen() },
  { icon: "picture", title: "Draw a seven", note: "in its own handwriting", run: (page) => page.ask({ text: "Draw a seven." }, "picture") },
  {
    icon: "picture", title: "A red circle left of a blue square", note: "drawn from words",
    run: (page) => page.ask({ text: "Draw a red circle left of a blue square." }, "picture"),
  },
  {
    icon: "ask", title: "Describe a picture", note: "two shapes, made here",
    run: (page) => page.ask({ text: "Describe the picture.", attachments: [{ kind: "picture", url: shapes(), name: "shapes" }] }, "text"),
  },
  {
    icon: "film", title: "What moves?", note: "a film of six frames",
    run: (page) => page.ask({ text: "What moves?", attachments: [{ kind: "video", frames: film(), name: "film" }] }, "text"),
  },
  { icon: "speak", title: "Say good morning", note: "with its own voice", run: (page) => page.ask({ text: "Say: good morning" }, "voice") },
];
