// Draws numbers on canvases. Shared by both panes; independent of what the numbers mean.

const HEAT = [[46, 15, 92], [87, 15, 109], [137, 34, 105], [187, 55, 84], [228, 90, 49], [249, 142, 8], [248, 203, 52], [252, 254, 164]];
const LESS = [64, 156, 255], MORE = [255, 138, 51];

/** A level in [0, 1] as [red, green, blue]: inferno without its black end, so that small values differ from 0. */
function heat(level) {
  const place = Math.min(Math.max(level, 0), 1) * (HEAT.length - 1);
  const low = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[low].map((value, i) => Math.round(value + (place - low) * (HEAT[low + 1][i] - value)));
}

const rgba = (colour, opacity) => `rgba(${colour[0]},${colour[1]},${colour[2]},${opacity})`;

/** Creates an element with properties and children; a property with a dash, or "role", becomes an attribute. */
function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "list") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Boxes of a map's cells, in fractions of the picture. A map finer than the picture's own cells (a tower's patches)
 *  divides it evenly. */
function cellBoxes(image, map) {
  if (!map || map.cells.length === image.boxes.length) return image.boxes;
  const [rows, columns] = map.grid;
  return map.cells.map((_, i) => {
    const row = Math.floor(i / columns), column = i % columns;
    return [column / columns, row / rows, (column + 1) / columns, (row + 1) / rows];
  });
}

const grounds = new Map();

/** The picture on a canvas, scaled to a maximum width, dimmed or unchanged; cached. */
async function ground(address, width, dimmed) {
  const key = `${width} ${dimmed} ${address}`;
  if (grounds.has(key)) return grounds.get(key);
  const image = new Image();
  image.src = address;
  await image.decode();
  const scale = Math.min(1, width / image.naturalWidth);
  const canvas = make("canvas", { width: Math.round(image.naturalWidth * scale), height: Math.round(image.naturalHeight * scale) });
  const pen = canvas.getContext("2d");
  pen.filter = dimmed ? `saturate(0.45) brightness(${dimming(image)})` : "none";
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (grounds.size > 24) grounds.delete(grounds.keys().next().value);
  grounds.set(key, canvas);
  return canvas;
}

/** What share of its brightness a picture keeps, as in the report: bright ones less, or a night scene would vanish. */
function dimming(image) {
  const small = make("canvas", { width: 16, height: 16 }), pen = small.getContext("2d");
  pen.drawImage(image, 0, 0, 16, 16);
  const values = pen.getImageData(0, 0, 16, 16).data;
  let sum = 0;
  values.forEach((value, i) => { if (i % 4 < 3) sum += value; });
  return Math.min(Math.max(78 / Math.max(sum / (3 * 256), 1), 0.5), 1);
}

/** A map's cells over the dimmed picture; without a map only the picture. `image` has src and boxes; `paint(value)`
 *  returns a colour with opacity. */
async function drawCells(canvas, image, map, paint, { box = null, width = 640 } = {}) {
  const boxes = cellBoxes(image, map), values = map ? map.cells : null;
  const shown = await ground(image.src, width, Boolean(values));
  canvas.width = shown.width;
  canvas.height = shown.height;
  const pen = canvas.getContext("2d");
  pen.drawImage(shown, 0, 0);
  (values || []).forEach((value, cell) => {
    const [x0, y0, x1, y1] = boxes[cell];
    const left = Math.round(x0 * canvas.width), top = Math.round(y0 * canvas.height);
    pen.fillStyle = paint(value);
    pen.fillRect(left, top, Math.round(x1 * canvas.width) - left, Math.round(y1 * canvas.height) - top);
  });
  if (box) drawBox(canvas, box);
}

/** A cell under the keyboard's cursor. */
function drawCursor(canvas, box) {
  const pen = canvas.getContext("2d");
  pen.save();
  pen.setLineDash([canvas.width / 80, canvas.width / 80]);
  drawBox(canvas, box);
  pen.restore();
}

function drawBox(canvas, box) {
  const pen = canvas.getContext("2d");
  const line = Math.max(2, canvas.width / 160);
  const corners = [box[0] * canvas.width, box[1] * canvas.height, (box[2] - box[0]) * canvas.width, (box[3] - box[1]) * canvas.height];
  pen.lineWidth = line * 2;
  pen.strokeStyle = "rgba(0,0,0,.7)";
  pen.strokeRect(...corners);
  pen.lineWidth = line;
  pen.strokeStyle = "#fff";
  pen.strokeRect(...corners);
}

/** Colours over a picture, as in the report: 0 leaves it, `most` and more is brightest. */
const overPicture = (most) => (value) => { const level = Math.min(value / most, 1); return rgba(heat(level), 0.9 * level ** 0.7); };
const difference = (swing) => (value) => rgba(value < 0 ? LESS : MORE, 0.9 * Math.min(Math.abs(value) / swing, 1) ** 0.8);

/** A matrix as squares with labelled rows and columns (every n-th label if they are too close). `chosen`: [row, column] to
 *  mark, the whole row if column < 0. Null values stay empty. */
function drawMatrix(canvas, values, most, { side = 22, chosen = null, rowNames = [], columnNames = [] } = {}) {
  const rows = values.length, columns = rows ? values[0].length : 0;
  const pen = canvas.getContext("2d");
  const font = "12px system-ui, sans-serif";
  pen.font = font;
  const every = Math.ceil(13 / side);
  const room = (names) => Math.min(84, Math.ceil(names.reduce((most, name) => Math.max(most, pen.measureText(name).width), 0)) + 8);
  const left = room(rowNames), upright = room(columnNames) <= every * side + 2;
  const above = upright ? 20 : room(columnNames);
  const sharp = window.devicePixelRatio || 1;
  const width = left + columns * side, height = above + rows * side;
  Object.assign(canvas, { width: width * sharp, height: height * sharp, squares: { left: left / width, above: above / height, rows, columns } });
  canvas.style.width = `${width}px`;
  pen.scale(sharp, sharp);
  pen.font = font;
  pen.fillStyle = getComputedStyle(canvas).color;
  pen.textBaseline = "middle";
  rowNames.forEach((name, row) => { if (row % every) return; pen.textAlign = "right"; pen.fillText(shortened(pen, name), left - 5, above + (row + 0.5) * side); });
  columnNames.forEach((name, column) => {
    if (column % every) return;
    pen.save();
    pen.translate(left + (column + 0.5) * side, above - 5);
    if (upright) { pen.textAlign = "center"; pen.translate(0, -5); }
    else { pen.textAlign = "left"; pen.rotate(-Math.PI / 2); }
    pen.fillText(shortened(pen, name), 0, 0);
    pen.restore();
  });
  pen.translate(left, above);
  const gap = side > 8 ? 1 : 0;
  values.forEach((line, row) => line.forEach((value, column) => {
    if (value === null) return;
    pen.fillStyle = rgba(heat(value / most), 1);
    pen.fillRect(column * side, row * side, side - gap, side - gap);
  }));
  if (!chosen) return;
  for (const [colour, thick] of [["#000", 5], ["#fff", 2.5]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = thick;
    const [row, column] = chosen;
    if (column < 0) pen.strokeRect(2, row * side + 2, columns * side - 5, side - 5);
    else pen.strokeRect(column * side + 2, row * side + 2, side - 5, side - 5);
  }
}

function shortened(pen, name) {
  let kept = name;
  while (kept.length > 1 && pen.measureText(kept).width > 76) kept = kept.slice(0, -1);
  return kept === name ? name : `${kept.slice(0, -1)}…`;
}

/** [row, column] of a matrix under the pointer. */
function squareAt(canvas, event) {
  const [x, y] = fraction(canvas, event);
  const { left, above, rows, columns } = canvas.squares;
  return [Math.floor((y - above) / (1 - above) * rows), Math.floor((x - left) / (1 - left) * columns)];
}

/** The pointer's position on a canvas, as fractions of its width and height. */
function fraction(canvas, event) {
  const frame = canvas.getBoundingClientRect();
  const clip = (value) => Math.min(Math.max(value, 0), 0.9999);
  return [clip((event.clientX - frame.left) / frame.width), clip((event.clientY - frame.top) / frame.height)];
}

/** A text of the page by language, in the form the server sends. */
const inEvery = (key) => Object.fromEntries(Object.entries(TEXTS).map(([language, texts]) => [language, texts[key]]));

/** A share nearer than this to none or all is that: what single precision adds up to. */
const ROUNDING = 1e-6;
/** .413 → "41 %", .0413 → "4.1 %"; "0 %" and "100 %" are none and all: .00001 → "< 0.01 %", .9999 → "> 99.9 %". */
function percent(share) {
  if (share === null) return "–";
  if (share > ROUNDING && share < 0.00005) return "< 0.01 %";
  if (share >= 0.9995 && share < 1 - ROUNDING) return "> 99.9 %";
  const whole = share <= ROUNDING || share >= 1 - ROUNDING || (share >= 0.0995 && share < 0.995);
  return (100 * share).toFixed(whole ? 0 : share < 0.00095 ? 2 : 1) + " %";
}
/** A difference of shares in percentage points: .55 − .73 is −18.0, not −25 %; .0001 is "< +0.1", not none. */
function points(difference) {
  const size = Math.abs(difference);
  if (size > ROUNDING && size < 0.0005) return difference < 0 ? "> −0.1" : "< +0.1";
  return `${difference < 0 ? "−" : "+"}${(100 * size).toFixed(1)}`;
}
const times = (value) => value === null ? "–" : value > 0 && value < 0.005 ? "< 0.01 ×" : value.toFixed(value < 10 ? 2 : 1) + " ×";
const top = (values, least) => values.reduce((most, value) => Math.max(most, value ?? 0), least);

/** Sends one request at a time; during it only the newest other request waits. */
function newestOnly(send) {
  let out = false, waiting = null;
  return async function ask(question) {
    if (out) { waiting = question; return; }
    out = true;
    try { await send(question); } finally {
      out = false;
      if (waiting !== null) { const next = waiting; waiting = null; ask(next); }
    }
  };
}

/** A slider with its label and value. */
function slider(name, onInput) {
  const range = make("input", { type: "range", "aria-label": name });
  const shown = make("output");
  range.addEventListener("input", () => onInput(Number(range.value)));
  const label = make("span", { textContent: name });
  const whole = make("label", { className: "slider" }, label, range, shown);
  return { whole, range, label, say: (text) => { shown.textContent = text; } };
}

/** A row of buttons, one of them pressed. */
function choice(options, onChoose) {
  const whole = make("div", { className: "choice", role: "group" });
  for (const [value, text] of options) {
    const button = make("button", { type: "button", textContent: text });
    button.dataset.value = value;
    button.addEventListener("click", () => onChoose(value));
    whole.append(button);
  }
  const press = (value) => whole.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", one.dataset.value === value));
  return { whole, press };
}

/** A colour bar with words at its ends, to stand under a map. `paint(share)`: its colour at a share of its length. */
function legend(paint, help) {
  const bar = make("canvas", { className: "bar", width: 200, height: 10, role: "presentation" });
  const pen = bar.getContext("2d");
  for (let x = 0; x < 200; x++) { pen.fillStyle = paint(x / 199); pen.fillRect(x, 0, 1, 10); }
  const low = make("span"), high = make("span");
  const say = (from, to) => { low.textContent = from; high.textContent = to; };
  return { whole: make("div", { className: "legend", title: help }, low, bar, high), say };
}

const heatBar = (share) => rgba(heat(share), 1);
/** The words at the end of a clipped scale: where it ends, and the highest cell where that lies beyond. */
const scaleWords = ({ top, peak }) => t(peak > 1.05 * top ? "scale_peak" : "scale_words").replace("{top}", `${top.toFixed(1)} ×`).replace("{peak}", `${peak.toFixed(1)} ×`);
