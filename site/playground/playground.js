/**
 * The page: what llama.js computes, shown; what the reader does, answered.
 *
 * `model` holds what does not change, `state` all that does. An event changes `state`, then calls
 * the show... functions of the panels that depend on the change.
 */
"use strict";

const LIMIT = 256; // tokens: as long as the texts that the tiny model was trained on
const CHUNK = 32; // tokens computed between two looks at what the reader does meanwhile
const SHOWN = 10; // next tokens
const LARGEST = 30; // pixels: a cell of the heatmap
const LEGIBLE = 10; // pixels: a cell beside which a name can be read
const COMPARED = 5; // likeliest tokens of the unchanged and of the changed model
const PAUSE = 60; // milliseconds between two tokens of a run, so that it can be followed

const PAIR = ["wolves", "snakes"].map(
  (what) =>
    `Tom fears bees. Nora fears ${what}. Ada fears cats. What does Nora fear? Nora fears`,
);

const get = (id) => document.getElementById(id);
const model = {}; // weights, config, tokenizer; int4: the weights in 4 bits, once they are loaded
const state = {
  positions: [], // {id, probabilities: L of [N, S], outputs: L of [N, H], stream: L+1 of [D],
  // logits: [V]} of each token
  plain: [], // the same by the unchanged model; without changes they are the same objects
  other: [], // the same of the second prompt, by the unchanged model
  changes: [], // {what: "off", layer, head}, {what: "outputs", layer, head, to, from},
  // {what: "stream", layer, to, from}, where layer 0 is the embedding, or {what: "int4"}
  promptLength: 0, // tokens; those after it were added by the model
  generated: null, // a TextDecoder in the middle of the added text
  chosen: null, // a position, or null for the last one
  pointed: null, // {row, column} of the heatmap under the pointer or the keyboard
  layer: 0,
  head: 0,
  running: false,
  reading: false, // while a new prompt is computed
  version: 0, // of the text: a computation that finds a newer one stops
  turn: 0, // of the run: likewise
};
// A run: its cache, the positions in step with it, and the changes that they were computed with.
// state.positions is the last complete text of one of the first two.
const runs = {}; // plain, changed, other

// ------------------------------------------------------------------ computing

/** Ids -> state.positions, one for each; false if overtaken. */
async function compute(ids) {
  const { changes } = state;
  const version = ++state.version;
  const current = () => version === state.version;
  let took = await extend(runs.plain, ids, [], current);
  if (took && changes.length) took = await extend(runs.changed, ids, changes, current);
  if (!took) return false;
  state.plain = runs.plain.computed.slice();
  state.positions = changes.length ? runs.changed.computed.slice() : state.plain;
  const [T, time] = took;
  const tokens = T === 1 ? "1 token" : `${T} tokens`;
  if (T) get("clock").textContent = `${tokens} in ${time.toFixed(time < 10 ? 1 : 0)} ms`;
  return true;
}

/**
 * A run, ids, changes -> [tokens, milliseconds] that it took until the run has these ids, or null
 * when `current` says that a newer computation has begun. Positions in common are kept.
 */
async function extend(run, ids, changes, current) {
  const { cache, computed } = run;
  let same = 0;
  if (run.changes === changes || !changes.length) {
    while (same < computed.length && same < ids.length && computed[same].id === ids[same]) same++;
  }
  run.changes = changes;
  computed.length = cache.length = same;
  let time = 0;
  while (computed.length < ids.length) {
    const began = performance.now();
    computeChunk(run, ids.slice(computed.length, computed.length + CHUNK));
    time += performance.now() - began;
    if (computed.length < ids.length) await pause(0);
    if (!current()) return null;
  }
  return [ids.length - same, time];
}

/** A run, [T] ids -> T more positions: what `forward` shows, cut into one part for each. */
function computeChunk({ cache, computed, changes }, ids) {
  const { config } = model;
  const [N, V, start] = [config.n_heads, config.vocab_size, cache.length];
  const [T, S] = [ids.length, start + ids.length];
  const seen = { stream: [], probabilities: [], outputs: [] };
  const watch = (name, tensor) => {
    for (const change of changes) apply(change, name, seen[name].length, tensor, start);
    seen[name].push(tensor);
  };
  const weights = changes.some(({ what }) => what === "int4") ? model.int4 : model.weights;
  const logits = forward(weights, ids, config, cache, watch); // [T, V]
  const row = (tensor, t) => tensor.slice((t * tensor.length) / T, ((t + 1) * tensor.length) / T);
  for (let t = 0; t < T; t++) {
    const own = start + t + 1; // positions that this one can see
    const rows = seen.probabilities.map((every) => {
      const mine = new Float32Array(N * own); // [N, own]
      for (let n = 0; n < N; n++) {
        const from = (n * T + t) * S;
        mine.set(every.subarray(from, from + own), n * own);
      }
      return mine;
    });
    computed.push({
      id: ids[t],
      probabilities: rows,
      outputs: seen.outputs.map((every) => row(every, t)),
      stream: seen.stream.map((every) => row(every, t)),
      logits: row(logits, t),
    });
  }
}

/** Make one change in what `forward` shows of a layer: rows are positions, the first is `start`. */
function apply({ what, layer, head, to, from }, name, i, tensor, start) {
  if (i !== layer) return;
  const { config } = model;
  if (what === "off" && name === "outputs") switchOff(tensor, head, config);
  const t = to - start;
  if (what !== name || t < 0 || t >= tensor.length / config.dim) return;
  const taken = state.other[from][name][i];
  if (name === "stream") patchStream(tensor, taken, t);
  else patchHead(tensor, taken, t, head, config);
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const last = () => state.positions.length - 1;
const chosen = () => state.chosen ?? last();
const settings = () => [Number(get("temperature").value), Number(get("top-p").value)];

/** A position, and a layer and head (those chosen) -> its attention probabilities, [its S]. */
function attentionRow(position, i = state.layer, n = state.head) {
  const S = position + 1;
  return state.positions[position].probabilities[i].subarray(n * S, (n + 1) * S);
}

// ------------------------------------------------------------------ what the reader does

/** The text in a field -> all its ids. */
function idsIn(field) {
  const allowedSpecial = get("special").checked ? "all" : [];
  return model.tokenizer.encode(get(field).value, true, allowedSpecial);
}

/** A prompt has changed: everything anew, but for what the caches still have. */
async function readPrompt() {
  state.running = false;
  state.reading = true;
  const ids = idsIn("prompt");
  const cut = ids.slice(0, LIMIT);
  if (!(await readOther(cut.length)) || !(await compute(cut))) return;
  state.reading = false;
  state.promptLength = cut.length;
  state.chosen = state.pointed = null;
  const tooLong = `The text has ${ids.length} tokens. The page takes the first ${LIMIT}.`;
  say(cut.length < ids.length ? tooLong : "");
  state.generated = new TextDecoder("utf-8", { ignoreBOM: true });
  get("text").replaceChildren(model.tokenizer.decode(cut.slice(1)));
  showAll();
}

/** Compute the second prompt; patches between positions that are no more go. False if overtaken. */
async function readOther(length) {
  const before = state.other.map(({ id }) => id);
  const ids = idsIn("other").slice(0, LIMIT);
  const version = ++state.version;
  if (!(await extend(runs.other, ids, [], () => version === state.version))) return false;
  state.other = runs.other.computed.slice();
  const same = before.length === ids.length && before.every((id, i) => id === ids[i]);
  const stays = ({ to = 0, from = 0 }) => to < length && from < ids.length;
  if (!same || !state.changes.every(stays)) state.changes = state.changes.filter(stays);
  return true;
}

/** Other changes: the same text once more. What they do is read out. */
async function change(changes) {
  state.changes = changes;
  if (state.reading) return readPrompt();
  if (!(await compute(state.positions.map(({ id }) => id)))) return;
  showAll();
  const what = changes.length ? get("effect").textContent : "The model is unchanged.";
  get("announce").textContent = what;
}

const isOff = (i, n) => state.changes.some(
  ({ what, layer, head }) => what === "off" && layer === i && head === n,
);

/** Switch a head off, or on again. */
function toggleHead(layer, head) {
  const others = state.changes.filter(
    (one) => one.what !== "off" || one.layer !== layer || one.head !== head,
  );
  return change(isOff(layer, head) ? others : [...others, { what: "off", layer, head }]);
}

/** Take the weights in 4 bits, or the full ones again. The file is loaded the first time. */
async function toggleInt4() {
  const others = state.changes.filter(({ what }) => what !== "int4");
  if (!get("int4").checked) return change(others);
  try {
    if (!model.int4) {
      await loadScript("weights-int4.js");
      model.int4 = loadInt4(INT4, model.weights);
    }
  } catch {
    get("int4").checked = false;
    return say("The weights in 4 bits are missing: no weights-int4.js is beside this page.");
  }
  return change([...state.changes, { what: "int4" }]);
}

/** Run a script beside this page. */
function loadScript(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    [script.src, script.onload, script.onerror] = [name, resolve, reject];
    document.head.append(script);
  });
}

/** Put what the fields say into the list of changes, in the place of an earlier patch there. */
function patch() {
  const [what, ...numbers] = ["what", "patch-layer", "patch-head", "to", "from"].map(
    (id) => get(id).value,
  );
  const [layer, head, to, from] = numbers.map(Number);
  const added = what === "stream" ? { what, layer, to, from } : { what, layer, head, to, from };
  const place = (one) => JSON.stringify([one.what, one.layer, one.head, one.to]);
  return change([...state.changes.filter((one) => place(one) !== place(added)), added]);
}

/** One token more: the given one, or one drawn. False when the text is at its end. */
async function addToken(id = choose(state.positions[last()].logits, ...settings())) {
  const { tokenizer } = model;
  if (state.reading) return false;
  if (tokenizer.stopIds.has(id)) {
    say(`The model ends its text here: it chose ${tokenizer.decode([id])}.`);
    return false;
  }
  if (state.positions.length >= LIMIT) {
    say(`The text has ${LIMIT} tokens, the most that this page takes.`);
    return false;
  }
  if (!(await compute([...state.positions.map((position) => position.id), id]))) return false;
  const mark = document.createElement("mark");
  mark.textContent = state.generated.decode(fromBytes(tokenizer.tokenBytes(id)), { stream: true });
  get("text").append(mark);
  state.chosen = state.pointed = null;
  say("");
  showAll();
  return true;
}

async function run() {
  state.running = !state.running;
  const turn = ++state.turn;
  showButtons();
  while (state.running && turn === state.turn && (await addToken())) await pause(PAUSE);
  if (turn === state.turn) state.running = false;
  showButtons();
}

/** Choose a position; the last one means: stay with the last one. */
function choosePosition(position) {
  state.chosen = position === last() ? null : position;
  showWeights();
  showHeatmap();
  showLayers();
  showComparison();
}

function chooseHead(i, n) {
  [state.layer, state.head] = [i, n];
  get("layer").value = i;
  get("head").value = n;
  for (const button of get("heads").querySelectorAll("button")) {
    const here = Number(button.dataset.layer) === i && Number(button.dataset.head) === n;
    button.setAttribute("aria-checked", here);
    button.tabIndex = here ? 0 : -1;
  }
  get("off").checked = isOff(i, n);
  showWeights();
  showHeatmap();
}

/** Arrow keys, Home, End -> the new place among `count` places, `width` to a line, or null. */
function moved(event, place, count, width) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width };
  Object.assign(steps, { Home: -place, End: count - 1 - place });
  if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return null;
  event.preventDefault();
  const next = place + steps[event.key];
  return next >= 0 && next < count ? next : null;
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = document.createElement("textarea"); // the older way, which asks for no permission
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  say("Copied.");
}

/** A line below the buttons, which is read out too. */
function say(text) {
  get("message").textContent = text;
}

// ------------------------------------------------------------------ words and numbers

/** A probability with three decimals; what rounds to none is told apart from what is none. */
function decimals(p) {
  return p > 0 && p < 0.0005 ? "<.001" : p.toFixed(3);
}

/** A token as a reader should see it; bytes that are no whole character in hexadecimal. */
function visible(id) {
  const bytes = model.tokenizer.tokenBytes(id);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(fromBytes(bytes));
  } catch {
    const hexadecimal = (byte) => byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0");
    return Array.from(bytes, hexadecimal).join(" ");
  }
}

/** A difference, with its sign; what rounds to 0 has none. */
function signed(number, places) {
  const text = Math.abs(number).toFixed(places);
  return Number(text) === 0 ? text : `${number < 0 ? "−" : "+"}${text}`;
}

const BLANKS = { " ": "·", "\n": "↵", "\r": "␍", "\t": "⇥" };

/** Fill an element with a token, its white space marked. */
function showToken(element, id) {
  element.classList.add("token");
  const parts = visible(id).split(/([ \n\r\t]+)/u);
  element.replaceChildren(
    ...parts.map((part, i) => {
      if (i % 2 === 0) return part;
      const blank = document.createElement("span");
      blank.className = "blank";
      blank.textContent = Array.from(part, (character) => BLANKS[character]).join("");
      return blank;
    }),
  );
}

/** A token for one line of plain text. */
function plain(id) {
  return visible(id).replace(/[ \n\r\t]/gu, (character) => BLANKS[character]);
}

// ------------------------------------------------------------------ showing

const FILL = '<span class="fill"></span><span class="tick" hidden></span>';
const BAR = `<span class="track">${FILL}</span><span class="number"></span>`;

function showAll() {
  showButtons();
  showNext();
  showTokens();
  showWeights();
  showHeatmap();
  showThumbnailsSoon();
  showLayers();
  showPositions();
  showChanges();
  showComparison();
}

function showButtons() {
  get("step").disabled = state.running;
  get("run").disabled = false;
  get("run").textContent = state.running ? "Stop" : "Run";
  get("reset").disabled = state.running || state.positions.length === state.promptLength;
}

function showNext() {
  const { logits } = state.positions[last()];
  const [temperature, topP] = settings();
  const own = softmax(logits); // [V], before temperature and top-p
  const drawn = tokenProbabilities(logits, temperature, topP); // [V]
  const items = ranking(logits).slice(0, SHOWN).map((id) => {
    const item = document.createElement("li");
    item.className = drawn[id] > 0 ? "" : "cut";
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.id = id;
    button.setAttribute("aria-label", `Add “${visible(id)}”, probability ${decimals(drawn[id])}`);
    button.innerHTML = `<span></span>${BAR}`;
    showToken(button.firstChild, id);
    button.querySelector(".fill").style.width = `${100 * drawn[id]}%`;
    button.querySelector(".tick").style.left = `${100 * own[id]}%`;
    button.querySelector(".tick").hidden = Math.abs(own[id] - drawn[id]) < 0.0005;
    button.lastChild.textContent = drawn[id] > 0 ? decimals(drawn[id]) : "cut";
    item.append(button);
    return item;
  });
  const focused = Array.from(get("next").children).indexOf(document.activeElement.parentElement);
  get("next").replaceChildren(...items);
  if (focused >= 0) items[focused].firstChild.focus();
  const V = logits.length;
  const kept = drawn.reduce((count, p) => count + (p > 0), 0);
  get("kept").textContent = `Of ${V} tokens, ${kept === V ? "all" : kept} can be drawn.`;
}

function showTokens() {
  const chips = get("tokens");
  while (chips.children.length > state.positions.length) chips.lastChild.remove();
  state.positions.forEach(({ id }, i) => {
    let chip = chips.children[i];
    if (!chip) {
      chip = document.createElement("div");
      chip.setAttribute("role", "option");
      chip.append(...["", "id", "weight"].map((name) => {
        const span = document.createElement("span");
        span.className = name;
        return span;
      }));
      chips.append(chip);
    }
    chip.className = i < state.promptLength ? "chip" : "chip made";
    chip.setAttribute("aria-label", `position ${i}, “${visible(id)}”, id ${id}`);
    showToken(chip.children[0], id);
    chip.children[1].textContent = id;
  });
}

/** On the chips: the attention of the row that is pointed at, else of the chosen position. */
function showWeights() {
  const row = state.pointed?.row ?? chosen();
  const weights = attentionRow(row);
  Array.from(get("tokens").children).forEach((chip, s) => {
    chip.setAttribute("aria-selected", s === chosen());
    chip.tabIndex = s === chosen() ? 0 : -1;
    chip.classList.toggle("looking", s === row);
    chip.classList.toggle("looked-at", s === state.pointed?.column && s !== row);
    chip.classList.toggle("ahead", s > row);
    chip.style.setProperty("--weight", s > row ? 0 : weights[s]);
    chip.children[2].textContent = s > row ? "" : decimals(weights[s]);
  });
  const name = (s) => `“${plain(state.positions[s].id)}” (${s})`;
  const column = state.pointed?.column ?? argmax(weights);
  const how = state.pointed ? "attends to" : "attends most to";
  get("readout").textContent =
    `Layer ${state.layer}, head ${state.head}: position ${name(row)} ${how} ${name(column)}, ` +
    `with probability ${decimals(weights[column])}.`;
}

/** What a variable of the style sheet says now, as the canvas needs it. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The size of a cell and of its labels, in pixels, for the width that there is. */
function heatmapSizes(context, width) {
  const T = state.positions.length;
  const family = getComputedStyle(get("prompt")).fontFamily;
  for (let cell = Math.min(LARGEST, width / T); cell >= LEGIBLE; cell -= 0.25) {
    context.font = `${Math.min(14, cell * 0.86)}px ${family}`;
    const name = ({ id }) => context.measureText(plain(id)).width;
    const ends = state.positions.map((position, t) => (t + 1) * cell + 8 + name(position));
    if (Math.max(...ends) <= width) return { cell, labels: true };
  }
  return { cell: Math.min(LARGEST, width / T), labels: false };
}

function showHeatmap() {
  const canvas = get("heatmap");
  const context = canvas.getContext("2d");
  const width = canvas.clientWidth;
  const T = state.positions.length;
  if (!T || !width) return;
  const { cell, labels } = heatmapSizes(context, width);
  const height = Math.ceil(T * cell) + 2;
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  context.scale(ratio, ratio);
  context.translate(1, 1);
  const font = `${Math.min(14, cell * 0.86)}px ${getComputedStyle(get("prompt")).fontFamily}`;
  const names = ["--panel", "--heat", "--rule", "--query", "--ink"];
  const [panel, heat, rule, query, ink] = names.map(colour);
  const pointed = state.pointed ?? { row: chosen(), column: null };
  const gap = cell >= 8 ? 0.5 : 0;
  for (let t = 0; t < T; t++) {
    const weights = attentionRow(t);
    context.fillStyle = panel;
    context.fillRect(0, t * cell, (t + 1) * cell - gap, cell - gap);
    context.fillStyle = heat;
    for (let s = 0; s <= t; s++) {
      context.globalAlpha = weights[s];
      context.fillRect(s * cell, t * cell, cell - gap, cell - gap);
    }
    context.globalAlpha = 1;
  }
  context.strokeStyle = rule; // the stairs that the mask makes
  context.beginPath();
  context.moveTo(0, 0);
  for (let t = 0; t < T; t++) {
    context.lineTo((t + 1) * cell, t * cell);
    context.lineTo((t + 1) * cell, (t + 1) * cell);
  }
  context.lineTo(0, T * cell);
  context.closePath();
  context.stroke();
  context.lineWidth = 2;
  context.strokeStyle = query;
  context.strokeRect(0, pointed.row * cell, (pointed.row + 1) * cell, cell);
  if (pointed.column !== null) {
    context.strokeStyle = ink;
    context.strokeRect(pointed.column * cell, pointed.row * cell, cell, cell);
  }
  if (labels) {
    context.textBaseline = "middle";
    for (let t = 0; t < T; t++) {
      const here = t === pointed.row || t === pointed.column;
      context.font = (here ? "bold " : "") + font;
      context.fillStyle = t === pointed.row ? query : ink;
      context.fillText(plain(state.positions[t].id), (t + 1) * cell + 6, (t + 0.5) * cell);
    }
  }
  canvas.dataset.cell = cell;
}

/** All heads as small pictures, a pixel for a probability; at most a few times a second. */
let thumbnailsDue = null;
function showThumbnailsSoon() {
  thumbnailsDue ??= setTimeout(() => {
    thumbnailsDue = null;
    showThumbnails();
  }, state.running ? 250 : 0);
}

function showThumbnails() {
  const T = state.positions.length;
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = colour("--heat");
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(probe.fillStyle.slice(at, at + 2), 16));
  for (const button of get("heads").querySelectorAll("button")) {
    const canvas = button.firstChild;
    canvas.width = canvas.height = T;
    const image = new ImageData(T, T);
    for (let t = 0; t < T; t++) {
      const weights = attentionRow(t, Number(button.dataset.layer), Number(button.dataset.head));
      for (let s = 0; s <= t; s++) {
        image.data.set([red, green, blue, 255 * weights[s]], 4 * (t * T + s));
      }
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.style.imageRendering = T < 64 ? "pixelated" : "auto";
  }
}

function showLayers() {
  const { config, weights } = model;
  const [V, position] = [config.vocab_size, chosen()];
  const { id, stream } = state.positions[position];
  const streams = new Float32Array(stream.length * config.dim); // [L+1, D]
  stream.forEach((row, i) => streams.set(row, i * config.dim));
  const logits = readStream(streams, weights, config); // [L+1, V]
  const read = stream.map((_, i) => softmax(logits.subarray(i * V, (i + 1) * V)));
  const answer = argmax(read.at(-1));
  get("layers-caption").textContent =
    `At position ${position}, “${plain(id)}”. ` +
    `The answer is what the last layer says: “${plain(answer)}”.`;
  const rows = read.map((probabilities, i) => {
    const best = argmax(probabilities);
    const rank = 1 + probabilities.reduce((count, p) => count + (p > probabilities[answer]), 0);
    const row = document.createElement("tr");
    row.innerHTML = `<th scope="row"></th><td></td><td>${BAR}</td><td></td>`;
    row.children[0].textContent = i === 0 ? "embedding" : `layer ${i - 1}`;
    showToken(row.children[1], best);
    row.querySelector(".fill").style.width = `${100 * probabilities[best]}%`;
    row.querySelector(".number").textContent = decimals(probabilities[best]);
    row.children[3].textContent = rank;
    return row;
  });
  get("layers").replaceChildren(...rows);
}

/** The positions that a patch can go to and come from, by their tokens; what is chosen stays. */
function showPositions() {
  for (const [id, positions] of [["to", state.positions], ["from", state.other]]) {
    const [list, before] = [get(id), get(id).selectedIndex];
    list.replaceChildren(...positions.map((one, t) => new Option(`${t}: ${plain(one.id)}`, t)));
    list.selectedIndex = before >= 0 && before < positions.length ? before : positions.length - 1;
  }
  get("patch").disabled = state.other.length < 2;
}

/** A change, in words. */
function described({ what, layer, head, to, from }) {
  if (what === "int4") return "The matrices of all layers are in 4 bits";
  if (what === "off") return `Layer ${layer}, head ${head} is switched off`;
  const name = (positions, t) => `position ${t} (“${plain(positions[t].id)}”)`;
  const vector = what === "stream" ? stage(layer) : `the output of layer ${layer}, head ${head}`;
  return (
    `${vector[0].toUpperCase()}${vector.slice(1)} at ${name(state.positions, to)} comes from ` +
    `${name(state.other, from)} of the second prompt`
  );
}

/** The stream's name, from 0 for the embedding. */
const stage = (i) => (i ? `the stream after layer ${i - 1}` : "the embedding");

function showChanges() {
  const { changes } = state;
  const focused = Array.from(get("changes").children).indexOf(document.activeElement.parentElement);
  const items = changes.map((one) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Undo";
    button.setAttribute("aria-label", `Undo: ${described(one)}`);
    item.append(`${described(one)}. `, button);
    return item;
  });
  get("changes").replaceChildren(...items);
  const next = items[Math.min(focused, items.length - 1)]; // where an undone change was
  if (focused >= 0) (next ? next.lastChild : get("other")).focus();
  get("unchanged").hidden = changes.length > 0;
  get("changed").hidden = changes.length === 0;
  get("undo-all").disabled = changes.length === 0;
  get("off").checked = isOff(state.layer, state.head);
  get("int4").checked = changes.some(({ what }) => what === "int4");
  for (const button of get("heads").querySelectorAll("button")) {
    const [i, n] = [Number(button.dataset.layer), Number(button.dataset.head)];
    button.classList.toggle("off", isOff(i, n));
    const words = isOff(i, n) ? ", switched off" : "";
    button.setAttribute("aria-label", `layer ${i}, head ${n}${words}`);
  }
}

/** The predictions at the chosen position, by the unchanged model and by the changed one. */
function showComparison() {
  for (const id of ["compared", "measure", "effect"]) get(id).hidden = !state.changes.length;
  if (!state.changes.length) return;
  const position = chosen();
  const logits = [state.plain, state.positions].map((positions) => positions[position].logits);
  const [before, after] = logits.map(softmax); // [V]
  const [answer, other] = logits.map(argmax);
  const ids = new Set(logits.flatMap((every) => ranking(every).slice(0, COMPARED)));
  const rows = Array.from(ids).sort((a, b) => before[b] - before[a]).map((id) => {
    const row = document.createElement("tr");
    row.innerHTML = `<th scope="row"></th><td>${BAR}</td><td>${BAR}</td><td></td>`;
    showToken(row.children[0], id);
    [before, after].forEach((probabilities, i) => {
      const cell = row.children[i + 1];
      cell.querySelector(".fill").style.width = `${100 * probabilities[id]}%`;
      cell.querySelector(".number").textContent = decimals(probabilities[id]);
    });
    row.children[3].textContent = signed(after[id] - before[id], 3);
    return row;
  });
  get("comparison").replaceChildren(...rows);
  get("compared-caption").textContent =
    `Probabilities of the next token at position ${position}, “${plain(state.positions[position].id)}”.`;
  const now = other === answer ? "still its answer" : `its answer is now “${plain(other)}”`;
  get("effect").textContent =
    `“${plain(answer)}” had probability ${decimals(before[answer])}, and with the changes ` +
    `${decimals(after[answer])}; ${now}.`;
  get("measure").textContent = measured(logits, answer, other);
}

/** How much has changed, in numbers that also move while no other token is in front. */
function measured(logits, answer, other) {
  const second = argmax(state.other[state.other.length - 1].logits); // the second prompt's answer
  const rivals = [get("other").value ? second : other, other, ranking(logits[0])[1]];
  const rival = rivals.find((id) => id !== answer);
  const margins = logits.map((every) => signed(every[answer] - every[rival], 2));
  return (
    `Logit of “${plain(answer)}” minus logit of “${plain(rival)}”: ${margins[0]} unchanged, ` +
    `${margins[1]} changed. Divergence of all probabilities: ` +
    `${divergence(...logits).toFixed(3)} nats.`
  );
}

function showSettings() {
  const [temperature, topP] = settings();
  const text = temperature ? temperature.toFixed(2) : "0: the likeliest";
  get("temperature-value").textContent = text;
  get("top-p-value").textContent = topP.toFixed(2);
  get("temperature").setAttribute("aria-valuetext", text);
}

// ------------------------------------------------------------------ the page

/** What depends on the model's sizes: the words at the top, the two lists, the small pictures. */
function build() {
  const { config } = model;
  const parameters = `${(config.n_parameters / 1e6).toFixed(1)} million`;
  const sizes = { L: config.n_layers, N: config.n_heads, parameters };
  for (const element of document.querySelectorAll("[data-size]")) {
    element.textContent = sizes[element.dataset.size];
  }
  const option = (n) => new Option(n, n);
  get("layer").append(...Array.from({ length: config.n_layers }, (_, i) => option(i)));
  for (const id of ["head", "patch-head"]) {
    get(id).append(...Array.from({ length: config.n_heads }, (_, n) => option(n)));
  }
  buildPatchLayers();
  const heads = get("heads");
  heads.style.setProperty("--heads", config.n_heads);
  for (let i = 0; i < config.n_layers; i++) {
    const line = document.createElement("div");
    line.className = "line";
    line.setAttribute("role", "presentation");
    line.innerHTML = '<span aria-hidden="true"></span>';
    line.firstChild.textContent = i;
    for (let n = 0; n < config.n_heads; n++) {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("role", "radio");
      button.setAttribute("aria-label", `layer ${i}, head ${n}`);
      [button.dataset.layer, button.dataset.head] = [i, n];
      button.append(document.createElement("canvas"));
      line.append(button);
    }
    heads.append(line);
  }
}

/** The layers whose vectors can be replaced: the stream has one more, the embedding. */
function buildPatchLayers() {
  const [list, stream] = [get("patch-layer"), get("what").value === "stream"];
  const before = list.selectedOptions[0]?.textContent ?? "0";
  const L = model.config.n_layers;
  const layers = Array.from({ length: L }, (_, i) => new Option(i, stream ? i + 1 : i));
  list.replaceChildren(...(stream ? [new Option("embedding", 0)] : []), ...layers);
  for (const one of list.options) one.selected = one.textContent === before;
  get("patch-head").disabled = stream;
}

function listen() {
  const { config } = model;
  const on = (id, event, does) => get(id).addEventListener(event, does);
  on("prompt", "input", readPrompt);
  on("special", "change", readPrompt);
  on("other", "input", readPrompt);
  on("reset", "click", readPrompt);
  on("step", "click", () => addToken());
  on("run", "click", run);
  on("copy-text", "click", (event) => copy(event.currentTarget, get("text").textContent));
  on("copy-ids", "click", (event) => {
    copy(event.currentTarget, JSON.stringify(state.positions.map(({ id }) => id)));
  });
  for (const button of document.querySelectorAll("[data-example]")) {
    button.addEventListener("click", () => {
      get("prompt").value = button.dataset.example;
      readPrompt();
    });
  }
  for (const id of ["temperature", "top-p"]) {
    on(id, "input", () => {
      showSettings();
      showNext();
    });
  }
  on("next", "click", (event) => {
    const button = event.target.closest("button");
    if (button && !state.running) addToken(Number(button.dataset.id));
  });

  on("tokens", "click", (event) => {
    const chip = event.target.closest(".chip");
    if (chip) choosePosition(Array.from(get("tokens").children).indexOf(chip));
  });
  on("tokens", "keydown", (event) => {
    const next = moved(event, chosen(), state.positions.length, 1);
    if (next === null) return;
    choosePosition(next);
    get("tokens").children[next].focus();
  });

  for (const id of ["layer", "head"]) {
    on(id, "change", () => chooseHead(Number(get("layer").value), Number(get("head").value)));
  }
  on("heads", "click", (event) => {
    const button = event.target.closest("button");
    if (button) chooseHead(Number(button.dataset.layer), Number(button.dataset.head));
  });
  on("off", "change", () => toggleHead(state.layer, state.head));
  on("heads", "keydown", (event) => {
    if (["Delete", "Backspace"].includes(event.key)) toggleHead(state.layer, state.head);
    const [L, N] = [config.n_layers, config.n_heads];
    const next = moved(event, state.layer * N + state.head, L * N, N);
    if (next === null) return;
    chooseHead(Math.floor(next / N), next % N);
    get("heads").querySelectorAll("button")[next].focus();
  });

  on("int4", "change", toggleInt4);
  on("what", "change", buildPatchLayers);
  on("from", "change", () => {
    if (get("from").value < state.positions.length) get("to").value = get("from").value;
  });
  on("patch", "click", patch);
  on("undo-all", "click", () => {
    get("other").focus(); // the button is about to be disabled
    change([]);
  });
  on("changes", "click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const place = Array.from(get("changes").children).indexOf(button.parentElement);
    change(state.changes.filter((_, i) => i !== place));
  });
  on("exchange", "click", () => {
    const [prompt, other] = [get("prompt"), get("other")];
    [prompt.value, other.value] = [other.value, prompt.value];
    readPrompt();
  });
  on("pair", "click", () => {
    [get("prompt").value, get("other").value] = PAIR;
    readPrompt();
  });

  const point = (pointed) => {
    state.pointed = pointed;
    showWeights();
    showHeatmap();
  };
  const under = (event) => {
    const { cell } = get("heatmap").dataset;
    const column = Math.floor((event.offsetX - 1) / cell);
    const row = Math.floor((event.offsetY - 1) / cell);
    return row >= 0 && row <= last() ? { row, column: Math.min(Math.max(column, 0), row) } : null;
  };
  on("heatmap", "pointermove", (event) => {
    const next = under(event);
    if (next?.row !== state.pointed?.row || next?.column !== state.pointed?.column) point(next);
  });
  on("heatmap", "pointerleave", () => point(null));
  on("heatmap", "blur", () => point(null));
  on("heatmap", "click", (event) => {
    const next = under(event);
    if (next) choosePosition(next.row);
  });
  on("heatmap", "keydown", (event) => {
    if (event.key === "Enter" && state.pointed) choosePosition(state.pointed.row);
    const row = state.pointed?.row ?? chosen();
    const column = state.pointed?.column ?? argmax(attentionRow(row));
    const T = state.positions.length;
    const next = moved(event, row * T + column, T * T, T);
    if (next === null) return;
    const nextRow = Math.floor(next / T);
    if (event.key.endsWith("Left") || event.key.endsWith("Right")) {
      if (nextRow === row && next % T <= row) point({ row, column: next % T });
    } else point({ row: nextRow, column: Math.min(next % T, nextRow) });
    get("announce").textContent = get("readout").textContent;
  });

  const redraw = () => {
    showHeatmap();
    showThumbnailsSoon();
  };
  new ResizeObserver(() => showHeatmap()).observe(get("heatmap").parentElement);
  const root = document.documentElement;
  new MutationObserver(redraw).observe(root, { attributeFilter: ["data-theme"] });
}

/** The theme's choice is kept where the book's pages keep theirs. */
function listenToTheme() {
  const show = () => {
    const kept = chosenTheme();
    get("theme").value = ["light", "dark"].includes(kept) ? kept : "auto";
    applyTheme();
  };
  show();
  addEventListener("storage", show);  // the choice made on another page, also one written late
  get("theme").addEventListener("change", (event) => {
    chosenTheme(event.target.value);
    applyTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
}

async function start() {
  if (typeof CHECKPOINT === "undefined") {
    say("The model is missing: no weights.js is beside this page. site/weights.py writes it.");
    return;
  }
  Object.assign(model, load(CHECKPOINT));
  for (const name of ["plain", "changed", "other"]) {
    runs[name] = { cache: new Cache(model.config, LIMIT), computed: [], changes: [] };
  }
  build();
  showSettings();
  await compute(model.tokenizer.encode(get("prompt").value));
  chooseHead(...bestHead());
  listen();
  await readPrompt();
  performance.mark("first prediction");
}

/** The head to begin with: the one whose last row has the largest probability inside the text. */
function bestHead() {
  const [L, N, position] = [model.config.n_layers, model.config.n_heads, last()];
  let best = [0, 0, -1];
  for (let i = 0; i < L; i++) {
    for (let n = 0; n < N; n++) {
      const largest = Math.max(0, ...attentionRow(position, i, n).subarray(1, -1));
      if (largest > best[2]) best = [i, n, largest];
    }
  }
  return best.slice(0, 2);
}

listenToTheme();
start();
