// The attention pane. Provided by the page: TEXTS, element, props (value), server (facts, view, save_probe), watch.
// One state; each change sends one request to the server and draws its response.

const pane = element.querySelector(".pane");
const state = { language: "en", look: null, facts: null, seen: null };
let parts = {};
const latencies = [];
pane.latencies = latencies; // milliseconds from a change to the drawn pixels; read by tests

const t = (key) => TEXTS[state.language][key];

function follow() {
  const value = props.value ? JSON.parse(props.value) : {};
  const spoken = value.language || "en";
  const renamed = spoken !== state.language;
  state.language = spoken;
  state.room = value.room;
  if (value.look === undefined || value.look === null) { state.look = null; state.facts = null; empty(); return; }
  if (value.look !== state.look) open(value.look);
  else if (renamed && state.facts) { build(); change(["overview"]); }
  if (renamed && state.trouble) trouble(state.trouble);
}

function empty() {
  pane.replaceChildren(make("p", { className: "note", textContent: t("nothing_yet") }));
}

/** `words`: text by language, as the server sends it. */
function trouble(words) {
  quiet();
  state.trouble = words;
  pane.prepend(make("p", { className: "note trouble", role: "alert", textContent: words[state.language] }));
}

function quiet() {
  state.trouble = null;
  pane.querySelector(".trouble")?.remove();
}

async function open(look) {
  state.look = look;
  const facts = await call("facts", [state.room, look]);
  if (!facts || state.look !== look) return;
  Object.assign(state, { facts, part: "language", layer: facts.layers.language.length - 1, head: -1, sinks: true,
    tokens: facts.answer.slice(0, 1), image: facts.about, box: null, patch: null, cursor: null, anchor: null, shows: "mass", saved: null,
    window: [lastText(facts), facts.tokens.length] });
  build();
  change(["overview"]);
}

/** Start of the text map: after the last picture, at most 24 tokens back. */
function lastText({ runs, tokens }) {
  const picture = runs.findLast((run) => run.image !== null);
  return Math.max(tokens.length - 24, picture ? Math.min(picture.end, tokens.length - 2) : 0, 0);
}

async function call(name, question, complain = trouble) {
  let answer;
  try { answer = await server[name](...question); } catch (error) { complain(inEvery("lost")); return null; }
  if (answer && answer.error) { complain(answer.error); return null; }
  quiet();
  return answer;
}

/** A token as displayed: blanks as symbols. */
const visible = (text) => text.replace(/\n/g, "↵").replace(/ /g, "·") || "∅";
/** The name of the token at a position; those of a picture have none of their own. */
const named = (position) => state.facts.tokens[position].kind.startsWith("image") ? "▦" : visible(state.facts.tokens[position].text);

function build() {
  const { facts } = state;
  // Switching the language keeps what was typed.
  const typed = parts.probe && parts.look === state.look ? Object.fromEntries(new FormData(parts.probe)) : {};
  parts = { chips: new Map(), look: state.look };
  const chips = make("div", { className: "chips" });
  for (const position of facts.answer) {
    const chip = make("button", { type: "button", className: "chip", textContent: visible(facts.tokens[position].text) });
    chip.dataset.position = position;
    chip.addEventListener("click", () => toggle(position));
    parts.chips.set(position, chip);
    chips.append(chip);
  }
  const all = make("button", { type: "button", className: "plain", textContent: t("all_tokens") });
  all.addEventListener("click", () => { state.tokens = state.tokens.length === facts.answer.length ? facts.answer.slice(0, 1) : [...facts.answer]; change(["overview", "box"]); });
  const body = make("div", { className: "body" },
    section("answer", t("answer"), make("p", { className: "quiet", textContent: facts.question }), make("div", { className: "row" }, chips, all), ...limits(facts)),
    controls(),
    make("div", { className: "plots" },
      make("div", { className: "column" }, imagePlot(), boxPart(typed), whoPart()),
      make("div", { className: "column" }, overviewPlot(), crossPlot(), textPlot(), matrixPlot())),
    parts.cache = make("footer", { className: "cache" }));
  pane.replaceChildren(body);
}

/** What of the answer is missing, or its attention. */
const limits = ({ cut, left_out }) => [cut && t("cut_answer"), left_out && t("rows_left_out").replace("{left}", left_out)]
  .filter(Boolean).map((textContent) => make("p", { className: "note", textContent }));

const section = (name, title, ...children) => make("section", { className: name }, make("h3", { textContent: title }), ...children);

function controls() {
  parts.layer = slider(t("layer"), (value) => { state.layer = value; change(); });
  parts.head = slider(t("head"), (value) => { state.head = value; change(); });
  const offered = ["language", "connector", "vision"].filter((part) => state.facts.layers[part].length);
  parts.part = choice(offered.map((part) => [part, t(part === "language" ? "language_part" : part)]), (part) => {
    Object.assign(state, { part, patch: null, cursor: null, anchor: null }); // another part may have finer cells
    state.layer = state.facts.layers[part].length - 1;
    state.head = -1;
    change(["overview"]);
  });
  parts.sinks = make("input", { type: "checkbox", className: "sinks" });
  parts.sinks.addEventListener("change", () => { state.sinks = parts.sinks.checked; change(["overview"]); });
  const row = make("section", { className: "controls" }, parts.part.whole, parts.layer.whole, parts.head.whole,
    make("label", { className: "tick", title: t("sinks_help") }, parts.sinks, make("span", { textContent: t("with_sinks") })));
  parts.why = make("span", { className: "quiet why" });
  row.append(parts.why);
  if (state.facts.images.length > 1) {
    parts.images = choice(state.facts.images.map((_, i) => [String(i), `${t("picture")} ${i + 1}`]), (image) => {
      Object.assign(state, { image: Number(image), box: null, patch: null, cursor: null, anchor: null, shows: "mass" });
      change(["overview"]);
    });
    row.append(parts.images.whole);
  }
  return row;
}

function imagePlot() {
  const image = parts.image = make("canvas", { className: "image", role: "application", tabIndex: 0, "aria-label": `${t("where_in_picture")}. ${t("touch_help")}` });
  parts.imageWords = make("p", { className: "words" });
  parts.cursorWords = make("p", { className: "words cursor", "aria-live": "polite" });
  parts.legend = legend(heatBar, t("scale_help"));
  let start = null;
  image.addEventListener("pointerdown", (event) => { start = fraction(image, event); image.setPointerCapture(event.pointerId); event.preventDefault(); });
  image.addEventListener("pointermove", (event) => {
    if (start) { state.drawing = between(start, fraction(image, event)); drawImage(); }
    else sayCell(cellAt(fraction(image, event)));
  });
  image.addEventListener("pointercancel", () => { start = null; state.drawing = null; drawImage(); }); // a finger scrolls
  image.addEventListener("pointerup", (event) => {
    if (!start) return;
    const begun = start, end = fraction(image, event);
    start = null;
    state.drawing = null;
    if (Math.max(Math.abs(end[0] - begun[0]), Math.abs(end[1] - begun[1])) < CLICK) { state.patch = cellAt(end); change(["overview", "box"]); }
    else choose(between(begun, end));
  });
  image.addEventListener("keydown", steer);
  image.addEventListener("blur", () => { Object.assign(state, { cursor: null, anchor: null }); drawImage(); });
  const help = make("p", { className: "quiet", textContent: state.facts.images.length ? t("touch_help") : "" });
  return section("image-plot", t("where_in_picture"), image, parts.legend.whole, parts.imageWords, parts.cursorWords, help);
}

function choose(box) {
  Object.assign(state, { box, shows: state.box ? state.shows : "box_mass" });
  change(["overview", "box"]);
}

const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** Patches and boxes by keyboard: arrows move a cursor, with Shift they draw a box from where it stood. */
function steer(event) {
  const seen = state.seen?.image;
  if (!seen) return;
  const step = ARROWS[event.key], from = state.cursor ?? state.patch ?? 0;
  if (step) {
    const cell = moved(seen.grid, from, step);
    if (event.shiftKey) {
      state.anchor ??= from;
      const boxes = cellBoxes(state.facts.images[state.image], seen), [a, b] = [boxes[state.anchor], boxes[cell]];
      choose([Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])]);
    } else state.anchor = null;
    state.cursor = cell;
    sayCell(cell);
    drawImage();
  } else if (event.key === "Enter" || event.key === " ") {
    state.cursor = state.patch = from;
    change(["overview", "box"]);
  } else if (event.key === "Escape") {
    Object.assign(state, { box: null, patch: null, cursor: null, anchor: null, shows: "mass" });
    change(["overview"]);
  } else return;
  event.preventDefault();
}

/** The index of a cell's neighbour in a grid of [rows, columns], row-major; at an edge itself. */
function moved([rows, columns], cell, [down, right]) {
  const within = (value, count) => Math.min(Math.max(value, 0), count - 1);
  return within(Math.floor(cell / columns) + down, rows) * columns + within(cell % columns + right, columns);
}

function sayCell(cell) {
  const seen = state.seen?.image;
  if (!seen || cell === null) { parts.cursorWords.textContent = ""; return; }
  const columns = seen.grid[1];
  parts.cursorWords.textContent = t("cursor_words").replace("{row}", Math.floor(cell / columns) + 1).replace("{column}", cell % columns + 1).replace("{value}", times(seen.cells[cell]));
}

/** A drag smaller than this fraction of the picture in both directions is a click; a box is at least half as thick. */
const CLICK = 0.02;

function between(start, end) {
  const sides = [0, 1].map((axis) => {
    const low = Math.min(start[axis], end[axis]), long = Math.abs(start[axis] - end[axis]);
    const kept = Math.max(long, CLICK / 2), from = Math.min(Math.max(low - (kept - long) / 2, 0), 1 - kept);
    return [from, Math.min(from + kept, 1)];
  });
  return [sides[0][0], sides[1][0], sides[0][1], sides[1][1]];
}

function cellAt([x, y]) {
  const found = cellBoxes(state.facts.images[state.image], state.seen?.image).findIndex(([x0, y0, x1, y1]) => x0 <= x && x < x1 && y0 <= y && y < y1);
  return found < 0 ? null : found;
}

function overviewPlot() {
  parts.overview = make("canvas", { className: "overview", role: "application", tabIndex: 0, "aria-label": t("overview") });
  parts.overview.addEventListener("keydown", (event) => {
    if (!ARROWS[event.key] || !state.seen?.overview) return;
    event.preventDefault();
    const [down, right] = ARROWS[event.key], within = (value, least, most) => Math.min(Math.max(value, least), most);
    if (state.part !== "language") Object.assign(state, { part: "language", patch: null });
    state.layer = within(state.layer + down, 0, state.facts.layers.language.length - 1);
    state.head = within(state.head + right, -1, state.facts.heads.language - 1);
    change();
  });
  parts.overview.addEventListener("click", (event) => {
    if (!state.seen?.overview) return;
    const [layer, head] = squareAt(parts.overview, event);
    if (state.seen.overview[layer]?.[head] === undefined) return;
    if (state.part !== "language") state.patch = null;
    Object.assign(state, { part: "language", layer, head });
    change();
  });
  parts.shows = choice(["mass", "box_mass", "box_enrichment"].map((one) => [one, t(one)]), (one) => { state.shows = one; change(["overview"]); });
  parts.overviewWords = make("p", { className: "words" });
  return section("overview-plot", t("overview"), parts.shows.whole,
    make("div", { className: "scroll" }, parts.overview), parts.overviewWords);
}

function textPlot() {
  parts.text = make("div", { className: "tokens" });
  parts.textWords = make("p", { className: "words" });
  return section("text-plot", t("where_in_text"), parts.text, parts.textWords);
}

function crossPlot() {
  parts.cross = make("div", { className: "cross" });
  parts.crossWords = make("p", { className: "words" });
  return section("cross-plot", t("each_token"), parts.cross, parts.crossWords);
}

function matrixPlot() {
  const count = state.facts.tokens.length;
  parts.matrix = make("canvas", { className: "matrix", role: "img", "aria-label": t("text_attention") });
  parts.matrixWords = make("p", { className: "words" });
  const move = (index) => (value) => {
    state.window[index] = value;
    if (index === 0) state.window[1] = Math.min(count, Math.max(state.window[1], value + 1), value + 64);
    else state.window[0] = Math.max(0, Math.min(state.window[0], value - 1), value - 64);
    change();
  };
  parts.from = slider(t("from_token"), move(0));
  parts.to = slider(t("to_token"), move(1));
  Object.assign(parts.from.range, { min: 0, max: count - 1 });
  Object.assign(parts.to.range, { min: 1, max: count });
  parts.matrix.addEventListener("pointermove", (event) => {
    const map = state.seen?.matrix;
    if (!map) return;
    const [row, column] = squareAt(parts.matrix, event);
    if (map.values[row]?.[column] === undefined) return;
    parts.matrixWords.textContent = `${named(map.rows[row])} → ${named(map.columns[column])}: ${percent(map.values[row][column])}`;
  });
  return section("matrix-plot", t("text_attention"), make("div", { className: "row" }, parts.from.whole, parts.to.whole), make("div", { className: "scroll" }, parts.matrix), parts.matrixWords);
}

function boxPart(typed) {
  parts.boxWords = make("p", { className: "words", textContent: t("no_box") });
  parts.boxTable = make("div", { className: "scroll" });
  const field = (name, value, sent = name, more = {}) => make("label", { className: "field" }, make("span", { textContent: t(name) }), make("input", { name: sent, value: typed[sent] ?? value, type: "text", autocomplete: "off", ...more }));
  parts.probe = make("form", { className: "probe", hidden: true },
    field("id", "", "id", { placeholder: t("id_made") }), field("group", "sphere-building"), field("region", "region"), field("question", state.facts.question),
    // What the model said is what a correction is for: it stands as the wrong answer, and the right one is asked for. A part of an
    // answer is no answer.
    field("right_answer", "", "answer", { required: true, placeholder: t("answer_needed") }), field("foil", state.facts.cut ? "" : state.facts.reply), make("button", { type: "submit", className: "plain", textContent: t("save_probe") }));
  parts.saved = make("p", { className: "words saved", role: "status", textContent: state.saved?.[state.language] ?? "" });
  parts.probe.addEventListener("submit", async (event) => {
    event.preventDefault();
    const written = Object.fromEntries([...new FormData(parts.probe)].map(([name, value]) => [name, value.trim()]));
    const say = (words) => { state.saved = words; parts.saved.textContent = words[state.language]; };
    const saved = await call("save_probe", [state.room, state.look, { ...written, box: state.box, image: state.image }], say);
    if (saved) say(saved.words);
  });
  parts.remove = make("button", { type: "button", className: "plain remove", textContent: t("remove_box"), hidden: true });
  parts.remove.addEventListener("click", () => { Object.assign(state, { box: null, shows: "mass" }); change(["overview"]); });
  return section("box-part", t("box"), parts.boxWords, parts.remove, parts.boxTable, parts.probe, parts.saved);
}

function whoPart() {
  parts.who = make("div", { className: "tokens" });
  parts.whoWords = make("p", { className: "words" });
  return section("who-part", t("who_looks"), parts.who, parts.whoWords);
}

function toggle(position) {
  const kept = state.tokens.filter((one) => one !== position);
  state.tokens = kept.length === state.tokens.length ? [...kept, position].sort((a, b) => a - b) : kept.length ? kept : state.tokens;
  change(["overview", "box"]);
}

// --- requests and drawing -----------------------------------------------------------------------------------------

let due = new Set();

function change(also = []) {
  also.forEach((one) => due.add(one));
  state.changed ??= performance.now();
  press();
  ask();
}

/** Controls show the selection immediately; the maps follow. */
function press() {
  const { facts } = state;
  const layers = facts.layers[state.part];
  parts.part.press(state.part);
  Object.assign(parts.layer.range, { min: 0, max: Math.max(layers.length - 1, 0), disabled: layers.length < 2 });
  parts.layer.range.value = state.layer;
  parts.layer.say(String(layers[state.layer]));
  Object.assign(parts.head.range, { min: -1, max: facts.heads[state.part] - 1 });
  parts.head.range.value = state.head;
  parts.head.say(state.head < 0 ? t("mean") : String(state.head));
  parts.sinks.checked = state.sinks;
  parts.sinks.disabled = state.part !== "language";
  parts.why.textContent = why(layers);
  parts.images?.press(String(state.image));
  parts.from.range.value = state.window[0];
  parts.to.range.value = state.window[1];
  parts.from.say(String(state.window[0]));
  parts.to.say(String(state.window[1] - 1));
  parts.shows.press(state.shows);
  parts.shows.whole.hidden = !state.box;
  parts.chips.forEach((chip, position) => chip.setAttribute("aria-pressed", state.tokens.includes(position)));
}

/** Explains why a control has no effect. */
function why(layers) {
  if (layers.length < 2) return t({ language: "one_layer", connector: "connector_layer", vision: "tower_layer" }[state.part]);
  return state.part === "language" && !state.sinks && !state.facts.sinks[state.layer] ? t("no_sinks") : "";
}

const ask = newestOnly(async () => {
  if (!state.facts) return;
  const began = state.changed ?? performance.now();
  state.changed = null;
  const wanted = [...due];
  due = new Set();
  const { part, layer, head, sinks, tokens, image, box, patch, window, shows } = state;
  const seen = await call("view", [state.room, state.look, { part, layer, head, sinks, tokens, image, box, patch, window, shows, wanted }]);
  if (!seen) return;
  state.seen = { ...state.seen, ...seen };
  await draw();
  requestAnimationFrame(() => { latencies.push(performance.now() - began); pane.dataset.drawn = String(latencies.length); });
});

async function draw() {
  const { seen, facts } = state;
  await drawImage();
  await drawCross();
  drawTokens(parts.text, seen.text);
  parts.textWords.textContent = seen.text ? (facts.tokens.some(({ text }) => text === "◇") ? `${t("control")} ` : "") + t("text_words").replace("{text}", percent(seen.text_mass)).replace("{image}", percent(seen.image_mass)).replace("{most}", percent(brightest(seen.text))) : t("language_only");
  if (seen.matrix) {
    parts.matrix.hidden = false;
    const { rows, columns, values } = seen.matrix;
    // The first token can only attend to itself: its 100 % says nothing and would darken the rest.
    state.mostText = top(values.filter((_, row) => rows[row] !== 0).flat(), 1e-6);
    const side = Math.max(7, Math.min(24, Math.floor(520 / Math.max(columns.length, 1))));
    drawMatrix(parts.matrix, values, state.mostText, { side, rowNames: rows.map(named), columnNames: columns.map(named) });
    parts.matrixWords.textContent = t(rows[0] === 0 ? "matrix_first" : "matrix_words").replace("{rows}", seen.matrix.rows.length).replace("{most}", percent(state.mostText));
  } else { parts.matrix.hidden = true; parts.matrixWords.textContent = t("language_only"); }
  drawOverview();
  drawNumbers();
  drawTokens(parts.who, seen.who);
  parts.whoWords.textContent = seen.who ? t("who_words").replace("{most}", percent(brightest(seen.who))) : t(!facts.images.length ? "no_picture" : state.patch === null ? "no_patch" : "who_language");
  parts.cache.textContent = t("cache_words").replace("{looks}", seen.cache.looks).replace("{used}", seen.cache.used).replace("{limit}", seen.cache.limit);
}

async function drawImage() {
  const image = state.facts.images[state.image];
  if (!image) { parts.imageWords.textContent = t("no_picture"); parts.image.hidden = parts.legend.whole.hidden = true; return; }
  const seen = state.seen?.image, values = seen?.cells ?? null;
  parts.image.hidden = false;
  await drawCells(parts.image, image, seen, seen && overPicture(state.seen.scale.top), { box: state.drawing ?? state.box });
  if (state.patch !== null) drawBox(parts.image, cellBoxes(image, seen)[state.patch]);
  if (state.cursor !== null && seen) drawCursor(parts.image, cellBoxes(image, seen)[state.cursor]);
  if (seen) parts.legend.say("0", scaleWords(state.seen.scale));
  const mass = seen?.mass ?? null;
  const shape = state.part === "vision" && state.patch !== null ? "patch_shape" : "shape_only";
  parts.imageWords.textContent = !values ? t("no_map") : mass === null ? t(shape) : t("mass_words").replace("{mass}", percent(mass));
}

async function drawCross() {
  const cross = state.seen.cross || [];
  const image = state.facts.images[state.image];
  const figures = await Promise.all(cross.map(async (map) => {
    const { token, mass } = map;
    const canvas = make("canvas", { role: "img", "aria-label": visible(state.facts.tokens[token].text) });
    await drawCells(canvas, image, map, overPicture(state.seen.scale.top), { box: state.box, width: 220 });
    return make("figure", {}, canvas, make("figcaption", { textContent: `${visible(state.facts.tokens[token].text)} · ${percent(mass)}` }));
  }));
  parts.cross.replaceChildren(...figures);
  const left = state.tokens.length - cross.length;
  parts.crossWords.textContent = !image ? t("no_picture") : !cross.length ? t("language_only") : left > 0 ? t("more_tokens").replace("{left}", left) : "";
}

/** The highest share of a text token; a picture's tokens are shown as one, without colour. */
const brightest = (values) => top(state.facts.runs.filter((run) => run.image === null).map((run) => values[run.start]), 1e-6);

/** Tokens coloured by share; a picture's tokens are one. `values`: a share for each token, or null. */
function drawTokens(where, values) {
  if (!values) { where.replaceChildren(); return; }
  const most = brightest(values);
  const pieces = [];
  state.facts.runs.forEach(({ start, end, image }) => {
    const known = values.slice(start, end).filter((value) => value !== null); // without a row is not the same as 0
    const share = known.length ? known.reduce((sum, value) => sum + value, 0) : null;
    const level = image === null ? (values[start] ?? 0) / most : 0;
    const piece = make("span", { className: image === null ? "token" : "token picture" , title: percent(share) });
    piece.textContent = image === null ? visible(state.facts.tokens[start].text) : `${t("picture")} ${image + 1}${share === null ? "" : ` · ${percent(share)}`}`;
    if (share === null) piece.classList.add("unread");
    else if (image === null && level > 0.05) { piece.style.background = rgba(heat(level), 1); piece.style.color = level > 0.55 ? "#000" : "#fff"; }
    pieces.push(piece);
  });
  where.replaceChildren(...pieces);
}

function drawOverview() {
  const { overview } = state.seen;
  if (!overview) { parts.overview.hidden = true; parts.overviewWords.textContent = t("no_picture"); return; }
  parts.overview.hidden = false;
  const most = top(overview.flat(), 1e-6);
  const side = Math.max(7, Math.min(36, Math.floor(480 / overview[0].length)));
  const names = state.facts.layers.language.map(String);
  const heads = overview[0].map((_, head) => String(head));
  drawMatrix(parts.overview, overview, most, { side, rowNames: names, columnNames: heads, chosen: state.part === "language" ? [state.layer, state.head] : null });
  const form = state.shows === "box_enrichment" ? times : percent;
  if (state.part !== "language") { parts.overviewWords.textContent = t("overview_language").replace("{most}", form(most)); return; }
  const chosen = overview[state.layer];
  const here = state.head < 0 ? overHeads(chosen) : chosen[state.head];
  parts.overviewWords.textContent = t("overview_words").replace("{here}", form(here)).replace("{most}", form(most));
}

/** A layer's number of the mean row, as the map is: of a box it is no mean of the heads' numbers. */
function overHeads(chosen) {
  const of = { box_mass: "mean_mass", box_enrichment: "mean_enrichment" }[state.shows];
  return of && state.seen.box ? state.seen.box[of][state.layer] : chosen.reduce((sum, value) => sum + value, 0) / chosen.length;
}

function drawNumbers() {
  const numbers = state.box ? state.seen.box : null;
  parts.probe.hidden = parts.remove.hidden = !state.box;
  if (!numbers) { parts.boxWords.textContent = t("no_box"); parts.boxTable.replaceChildren(); return; }
  const layers = state.facts.layers.language;
  parts.boxWords.textContent = t("box_words").replace("{area}", percent(numbers.area));
  const heads = numbers.mass[0].map((_, head) => head).slice(0, 32);
  const table = make("table", {}, make("thead", {}, row("th", [t("layer"), t("mean"), ...heads.map((head) => `${t("head")} ${head}`)])));
  const lines = make("tbody");
  numbers.mass.forEach((mass, i) => {
    const cell = (share, ratio) => `${percent(share)} · ${times(ratio)}`;
    const line = row("td", [layers[i], cell(numbers.mean_mass[i], numbers.mean_enrichment[i]), ...heads.map((head) => cell(mass[head], numbers.enrichment[i][head]))]);
    if (i === state.layer && state.part === "language") line.className = "here";
    lines.append(line);
  });
  table.append(lines);
  parts.boxTable.replaceChildren(table);
}

const row = (tag, words) => make("tr", {}, ...words.map((text) => make(tag, { textContent: String(text) })));

watch("value", follow);
follow();
