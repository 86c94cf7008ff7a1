// The drawing dialog: handwritten digits, white on black as the model learned them, or pictures in colour.

import { byId, element, openDialog } from "./dom.js";

const SIDE = 320; // pixels of the board
const DIGIT_SIDE = 32; // of the digit that is sent; it fills a box of 20, as in MNIST (LeCun et al. 1998, section III.A)
const DIGIT_BOX = 20;
const PAINTS = {
  red: "#e22a2a", blue: "#3058f0", green: "#24ac42", yellow: "#fade28", purple: "#9632cd", orange: "#fa8c14",
  white: "#fafafa", pink: "#ff9ec8", black: "#000000",
};

const board = byId("board");
const context = board.getContext("2d", { willReadFrequently: true });
let strokes = []; // {color, width, points: [[x, y]]}
let paint = "red";
let pen = { x: SIDE / 2, y: SIDE / 2, down: false, shown: false }; // of the keyboard

const kind = () => document.querySelector("input[name=drawing]:checked").value;

function paintStrokes(onto) {
  onto.fillStyle = "#000";
  onto.fillRect(0, 0, SIDE, SIDE);
  onto.lineCap = onto.lineJoin = "round";
  for (const { color, width, points } of strokes) {
    onto.strokeStyle = color;
    onto.lineWidth = width;
    onto.beginPath();
    onto.moveTo(...points[0]);
    // A curve through the middles of the pieces is smoother than the pieces.
    for (let i = 1; i < points.length - 1; i++) {
      const [x, y] = points[i];
      onto.quadraticCurveTo(x, y, (x + points[i + 1][0]) / 2, (y + points[i + 1][1]) / 2);
    }
    onto.lineTo(...points.at(-1));
    onto.stroke();
  }
}

function repaint() {
  paintStrokes(context);
  byId("board-ghost").hidden = strokes.length > 0;
  for (const id of ["board-undo", "board-clear", "board-use"]) byId(id).disabled = strokes.length === 0;
  if (!pen.shown) return;
  context.strokeStyle = pen.down ? "#7fd1b9" : "#888";
  context.lineWidth = 2;
  context.beginPath();
  context.arc(pen.x, pen.y, Math.max(4, Number(byId("brush").value) / 2), 0, 2 * Math.PI);
  context.stroke();
}

function begin(x, y) {
  strokes.push({ color: kind() === "digit" ? "#fff" : PAINTS[paint], width: Number(byId("brush").value), points: [[x, y]] });
  repaint();
}

function extend(x, y) {
  strokes.at(-1).points.push([x, y]);
  repaint();
}

function place(event) {
  const box = board.getBoundingClientRect();
  return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
}

/** The strokes as a 32x32 digit: cut out, scaled into a box of 20, put in the middle by its centre of mass. */
function digit() {
  paintStrokes(context);
  const pixels = context.getImageData(0, 0, SIDE, SIDE).data;
  const ink = (x, y) => pixels[4 * (y * SIDE + x)];
  let [left, top, right, bottom] = [SIDE, SIDE, 0, 0];
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      if (ink(x, y) < 32) continue;
      [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
    }
  }
  const step = Math.max(right - left, bottom - top) / DIGIT_BOX; // board pixels in a digit pixel
  const small = new Float32Array(DIGIT_SIDE * DIGIT_SIDE);
  let [mass, middleX, middleY] = [0, 0, 0];
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      const at = [Math.floor((x - left) / step), Math.floor((y - top) / step)];
      const light = ink(x, y) / (step * step);
      small[at[1] * DIGIT_SIDE + at[0]] += light;
      mass += light;
      middleX += light * (at[0] + 0.5);
      middleY += light * (at[1] + 0.5);
    }
  }
  const shift = (middle) => Math.max(0, Math.min(DIGIT_SIDE - DIGIT_BOX, Math.round(DIGIT_SIDE / 2 - middle / mass)));
  const [shiftX, shiftY] = [shift(middleX), shift(middleY)];
  const image = new ImageData(DIGIT_SIDE, DIGIT_SIDE);
  image.data.fill(255);
  for (let y = 0; y < DIGIT_SIDE; y++) {
    for (let x = 0; x < DIGIT_SIDE; x++) {
      const light = x >= shiftX && y >= shiftY ? small[(y - shiftY) * DIGIT_SIDE + x - shiftX] : 0;
      const at = 4 * (y * DIGIT_SIDE + x);
      image.data.fill(Math.min(255, Math.round(light)), at, at + 3);
    }
  }
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = DIGIT_SIDE;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.toDataURL("image/png");
}

function picture() {
  paintStrokes(context);
  return board.toDataURL("image/png");
}

function chooseKind() {
  const colored = kind() === "color";
  byId("paints").hidden = !colored;
  byId("board-ghost").textContent = colored ? "Draw something" : "Write a digit";
  strokes = [];
  repaint();
}

/** Opens the dialog on "digit" or "color". */
export function openCanvas(which) {
  if (which) document.querySelector(`input[name=drawing][value=${which}]`).checked = true;
  pen = { x: SIDE / 2, y: SIDE / 2, down: false, shown: false };
  chooseKind();
  openDialog(byId("canvas-dialog"));
  board.focus();
}

/** Connects the dialog; `use({kind: "picture", url, name}, "digit" or "color")` gets a finished drawing. */
export function connectCanvas(use) {
  board.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    board.setPointerCapture(event.pointerId);
    pen.shown = false;
    begin(...place(event));
  });
  board.addEventListener("pointermove", (event) => {
    if (!board.hasPointerCapture(event.pointerId)) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) extend(...place(each));
  });
  board.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] }[event.key] ?? [];
    if (dx === undefined) return;
    event.preventDefault();
    pen.shown = true;
    pen.x = Math.max(0, Math.min(SIDE, pen.x + 10 * dx));
    pen.y = Math.max(0, Math.min(SIDE, pen.y + 10 * dy));
    if (event.key === " ") {
      pen.down = !pen.down;
      if (pen.down) begin(pen.x, pen.y);
    } else if (pen.down) extend(pen.x, pen.y);
    repaint();
  });

  byId("paints").append(
    ...Object.entries(PAINTS).map(([name, color]) => {
      const radio = element("input", { type: "radio", name: "paint", value: name, checked: name === paint, "aria-label": name });
      radio.style.setProperty("--paint", color);
      radio.addEventListener("change", () => (paint = name));
      return radio;
    }),
  );
  for (const radio of document.querySelectorAll("input[name=drawing]")) radio.addEventListener("change", chooseKind);
  byId("board-undo").addEventListener("click", () => {
    strokes.pop();
    pen.down = false;
    repaint();
  });
  byId("board-clear").addEventListener("click", () => {
    strokes = [];
    pen.down = false;
    repaint();
  });
  byId("board-use").addEventListener("click", () => {
    const which = kind();
    const drawing = which === "digit" ? { url: digit(), name: "digit" } : { url: picture(), name: "drawing" };
    byId("canvas-dialog").close(); // first, because it gives the focus back to where it was
    use({ kind: "picture", ...drawing }, which);
  });
}
