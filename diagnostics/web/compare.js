// The before / after pane: one frame per checkpoint for the same question. Provided by the page: TEXTS, element, props, server,
// watch. Two frames are shown side by side with their difference; with more, the slider plays through them.

const pane = element.querySelector(".pane");
const state = { language: "en", looks: null, seen: null };
let parts = {}, playing = null;
const latencies = [];
pane.latencies = latencies;

const t = (key) => TEXTS[state.language][key];

function follow() {
  const value = props.value ? JSON.parse(props.value) : {};
  state.language = value.language || "en";
  state.room = value.room;
  stop();
  if (!value.looks || !value.looks.length) { state.looks = null; pane.replaceChildren(make("p", { className: "note", textContent: t("nothing_compared") })); return; }
  if (JSON.stringify(value.looks) === JSON.stringify(state.looks)) { build(); ask(); return; }
  open(value.looks);
}

/** `words`: text by language, as the server sends it. */
function trouble(words) {
  pane.querySelector(".trouble")?.remove();
  pane.prepend(make("p", { className: "note trouble", role: "alert", textContent: words[state.language] }));
}

async function open(looks) {
  state.looks = looks;
  const facts = await call("compare_facts", [state.room, looks]);
  if (!facts || state.looks !== looks) return;
  Object.assign(state, { facts, layer: facts.layers.length - 1, head: -1, token: facts.first_token, before: 0, after: looks.length - 1 });
  build();
  ask();
}

async function call(name, question) {
  let answer;
  try { answer = await server[name](...question); } catch (error) { trouble(inEvery("lost")); return null; }
  if (answer && answer.error) { trouble(answer.error); return null; }
  return answer;
}

function build() {
  const { facts } = state;
  const last = facts.frames.length - 1;
  const moved = (name) => (value) => { state[name] = value; state.changed ??= performance.now(); ask(); };
  parts = { layer: slider(t("layer"), moved("layer")), head: slider(t("head"), moved("head")), token: slider(t("answer_token"), moved("token")) };
  Object.assign(parts.layer.range, { min: 0, max: facts.layers.length - 1 });
  Object.assign(parts.head.range, { min: -1, max: facts.heads - 1 });
  Object.assign(parts.token.range, { min: facts.first_token, max: facts.answer_tokens - 1, disabled: facts.answer_tokens - facts.first_token < 2 });
  const controls = make("section", { className: "controls" }, parts.layer.whole, parts.head.whole, parts.token.whole);
  if (facts.first_token) controls.append(make("p", { className: "note", textContent: t("rows_left_out").replace("{left}", facts.first_token) }));
  if (last > 1) {
    parts.frame = slider(t("checkpoint"), (value) => { state.after = value; show(); });
    Object.assign(parts.frame.range, { min: 0, max: last });
    parts.play = make("button", { type: "button", className: "plain play", textContent: t("play") });
    parts.play.addEventListener("click", () => playing ? stop() : play());
    controls.append(parts.frame.whole, parts.play);
  }
  const side = (name) => {
    parts[name] = make("canvas", { role: "img", "aria-label": t(name) });
    parts[`${name}Title`] = make("h3");
    parts[`${name}Answer`] = make("p", { className: "said" });
    parts[`${name}Words`] = make("p", { className: "words" });
    parts[`${name}Legend`] = name === "difference" ? legend((share) => difference(1)(2 * share - 1), t("scale_help")) : legend(heatBar, t("scale_help"));
    const hidden = last === 0 && name !== "before"; // stopped after the first: nothing to compare
    return make("section", { className: name, hidden }, parts[`${name}Title`], parts[`${name}Answer`], parts[name], parts[`${name}Legend`].whole, parts[`${name}Words`]);
  };
  pane.replaceChildren(make("div", { className: "body" }, controls,
    make("div", { className: "plots three" }, side("before"), side("after"), side("difference"))));
}

function play() {
  parts.play.textContent = t("pause");
  playing = setInterval(() => { state.after = (state.after + 1) % state.facts.frames.length; show(); }, 900);
}

function stop() {
  if (playing) clearInterval(playing);
  playing = null;
  if (parts.play) parts.play.textContent = t("play");
}

const ask = newestOnly(async () => {
  if (!state.facts) return;
  const began = state.changed ?? performance.now();
  state.changed = null;
  const { layer, head, token } = state;
  const seen = await call("compare_view", [state.room, state.looks, { layer, head, token }]);
  if (!seen) return;
  state.seen = seen.frames;
  state.scale = seen.scale;
  await show();
  requestAnimationFrame(() => { latencies.push(performance.now() - began); pane.dataset.drawn = String(latencies.length); });
});

async function show() {
  const { facts, seen } = state;
  parts.layer.range.value = state.layer;
  parts.layer.say(String(facts.layers[state.layer]));
  parts.head.range.value = state.head;
  parts.head.say(state.head < 0 ? t("mean") : String(state.head));
  parts.token.range.value = state.token;
  parts.token.say(String(state.token + 1));
  if (parts.frame) { parts.frame.range.value = state.after; parts.frame.say(facts.frames[state.after].name[state.language]); }
  // One scale over all checkpoints, so that differences in colour are differences in attention.
  const { scale } = state;
  for (const name of ["before", "after"]) {
    const at = state[name], map = seen[at];
    parts[`${name}Title`].textContent = `${t(name)}: ${facts.frames[at].name[state.language]}`;
    const { answer, boxes, cut } = facts.frames[at];
    parts[`${name}Answer`].textContent = cut ? `${answer} ✂ ${t("cut_answer")}` : answer;
    parts[`${name}Words`].textContent = map.cells ? `${visible(map.token)} · ${t("mass_words").replace("{mass}", percent(map.mass))}` : t("no_picture");
    parts[name].hidden = parts[`${name}Legend`].whole.hidden = !map.cells;
    if (!map.cells) continue;
    parts[`${name}Legend`].say("0", scaleWords(scale));
    await drawCells(parts[name], { ...facts.image, boxes }, map, overPicture(scale.top));
  }
  parts.differenceTitle.textContent = t("difference");
  parts.differenceAnswer.textContent = t(facts.frames[state.after].agreement); // with the first, which is always before
  await showDifference(seen[state.before], seen[state.after], scale);
  pane.dataset.after = String(state.after);
}

async function showDifference(one, two, scale) {
  const comparable = scale !== null && scale.swing !== null;
  parts.difference.hidden = parts.differenceLegend.whole.hidden = !comparable;
  parts.differenceWords.textContent = scale === null ? "" : t("other_grid");
  if (!comparable) return;
  const swing = two.cells.map((value, cell) => value - one.cells[cell]);
  const { boxes } = state.facts.frames[state.after];
  await drawCells(parts.difference, { ...state.facts.image, boxes }, { ...two, cells: swing }, difference(scale.swing));
  const end = `${scale.swing.toFixed(1)} ×`;
  parts.differenceLegend.say(t("swing_less").replace("{swing}", end), t("swing_more").replace("{swing}", end));
  const moved = swing.reduce((sum, value) => sum + Math.abs(value), 0) / 2 / swing.length;
  parts.differenceWords.textContent = t("difference_words").replace("{moved}", percent(moved)).replace("{mass}", points(two.mass - one.mass));
}

const visible = (text) => text.replace(/\n/g, "↵").replace(/ /g, "·") || "∅";

watch("value", follow);
follow();
