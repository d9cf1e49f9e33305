"use strict";
// What a reader can do on the page. The networks and Algorithm 1 are in paper.js, above.
//
// state is all that a reader can choose; go(change) changes it and draws the page again. What takes
// longer is done by a worker: ask(key, work) returns its answer, or undefined, and the page is
// drawn again when the answer arrives. Read draw, and from there what it calls.

const $ = id => document.getElementById(id);
const all = query => [...document.querySelectorAll(query)];
const when = (element, event, act) => element.addEventListener(event, act);
const range = (first, last) => Array.from({length: last - first + 1}, (_, i) => first + i);

const FACTS = JSON.parse($("facts").textContent), {shapes: WORLD, lines: LINES} = FACTS;
const [T, H, W] = FACTS.size, TASKS = Object.keys(FACTS.tasks), STEPS = FACTS.decoding.steps;
const GRID = new Tokenizer(FACTS.tokenizer, {}).latentShape(FACTS.size), [t, h, w] = GRID;
const N = t * h * w, CODES = FACTS.tokenizer.codebook_size, SUPERVOXEL = [T / t, H / h, W / w];
const VOXEL_WORDS = `${T / t} frames of ${H / h} × ${W / w} pixels`;
const METHODS = {
  "COMMIT": "the input shows the condition's tokens, and the transformer may correct them.",
  "latent masking": "the condition's tokens count as decided from the start, right or wrong.",
  "leaked tokens": "the given part shows tokens of the whole clip, which reveal the rest of it.",
};
const PAINTS = {
  red: WORLD.colours[0], green: WORLD.colours[1], blue: WORLD.colours[2],
  yellow: [0.95, 0.85, 0.2], white: [0.9, 0.9, 0.9], ground: Array(3).fill(WORLD.ground),
};
const STILL = matchMedia("(prefers-reduced-motion: reduce)").matches;

const state = {
  shape: 3, direction: 0, lane: 1, start: 0, colour: 0,              // the clip
  painted: null, version: 0, brush: "yellow", moving: true, cursor: null,
  task: "OPC", method: "COMMIT", ...FACTS.decoding, seed: 0, samples: 1,
  step: 0, goal: 0, sample: 0,                    // the step that is shown; compute up to; of which
  frame: 0, playing: !STILL, line: null, grid: null, token: null, code: null, tour: 0,
};
const among = (choices, own) => [...new Set([...choices, own])].sort((a, b) => a - b);

// What can be chosen: its title, its values, and words for them if they need any
const CLIP = {
  shape: ["Shape", range(0, WORLD.shapes.length - 1), WORLD.shapes],
  direction: ["Direction", range(0, WORLD.directions.length - 1), WORLD.directions],
  colour: ["Colour", range(0, WORLD.choices[3] - 1), Object.keys(PAINTS)],
  lane: ["Lane", range(0, WORLD.choices[1] - 1), range(1, WORLD.choices[1])],
  start: ["Start", range(0, WORLD.choices[2] - 1),
          range(0, WORLD.choices[2] - 1).map(i => `${2 * i * WORLD.cell} pixels`)],
};
const RUN = {
  task: ["Task", TASKS, TASKS.map(name => `${name}: ${FACTS.tasks[name]}`)],
  method: ["Input in the given part", Object.keys(METHODS)],
  schedule: ["Schedule γ", ["cosine", "uniform", "exp"]],
  steps: ["Steps K", among([1, 2, 4, 8, 12, 16, 24, 32, N], STEPS)],
  temperature: ["Temperature", among([0, 0.5, 1, 2, 4, 8, 16], FACTS.decoding.temperature)],
  seed: ["Seed of the noise", range(0, 99)],
  samples: ["Samples", [1, 2, 3, 4]],
};
const BRUSH = {brush: ["Brush", Object.keys(PAINTS)]}, CHOICES = {...CLIP, ...RUN, ...BRUSH};

// ---------------------------------------------------------------------------------------------
// The worker, its answers and its times

const worker = new Worker(URL.createObjectURL(new Blob([$("paper").textContent])));
const answers = new Map(), times = {};
let busy = true, wanted = [];
worker.postMessage({work: "begin", facts: FACTS, weights: $("weights").textContent});
worker.onmessage = ({data: {work, key, answer, ms}}) => {
  const follow = work === "step" && state.step === done();
  busy = false;
  times[work] = Math.min(times[work] ?? Infinity, ms);
  if (answers.size > 1000) answers.clear();
  answers.set(key, answer);
  if (follow) state.step = done();
  draw();
};
const slow = () => times.encode > 1500;                              // a phone: fewer samples

/** The worker's answer to a piece of work; until it is there, the work is among what is wanted. */
function ask(key, work) {
  if (!answers.has(key)) wanted.push({key, ...work});
  return answers.get(key);
}
const decoded = tokens => tokens && ask(tokens.join(), {work: "decode", tokens});
const encoded = (key, video) => ask(key, {work: "encode", video: video.data});

const runKey = sample =>
  [clipKey(), ...Object.keys(RUN).map(name => state[name]), sample].join("|");
const stepOf = (sample, step) => answers.get(`${runKey(sample)} step ${step}`);
const shown = () => stepOf(state.sample, state.step);

/** How many steps of Algorithm 1 all samples have. */
function done() {
  let step = 0;
  while (range(0, state.samples - 1).every(sample => stepOf(sample, step + 1))) step++;
  return step;
}

/** Asks for the next step of Algorithm 1, if there is one to compute. */
function askStep({isPad, known, input}) {
  const {task, steps, temperature, schedule} = state, step = done() + 1;
  if (step > state.goal || !input) return;
  const sample = range(0, state.samples - 1).find(each => !stepOf(each, step));
  ask(`${runKey(sample)} step ${step}`, {
    work: "step", step, run: runKey(sample), task, condition: input, isPad,
    label: FACTS.labelled.includes(task) ? label() : FACTS.transformer.num_classes,
    options: {steps, temperature, schedule, known}, seed: state.seed + 1000 * sample,
  });
}

// ---------------------------------------------------------------------------------------------
// The clip: one of the data set's, or painted by hand; bytes (T, H, W, 3)

const label = () => state.shape * WORLD.directions.length + state.direction;
const clipKey = () =>
  state.painted ? `painted ${state.version}` : Object.keys(CLIP).map(name => state[name]).join();
const heldOut = () => WORLD.kept_back.some(([lane, start, colour]) =>
  lane === state.lane && start === state.start && colour === state.colour);
const ground = () => new Uint8Array(T * H * W * 3).fill(WORLD.ground * 255 + 0.5);

/** Paints 3 x 3 pixels; in the other frames too, where the brush moves along with the clip. */
function dab(y, x) {
  state.painted ??= drawClip(WORLD, state, FACTS.size);
  const [down, right] = WAYS[state.direction], colour = PAINTS[state.brush].map(v => v * 255 + 0.5);
  for (let frame = 0; frame < T; frame++) {
    if (!state.moving && frame !== state.frame) continue;
    const moved = WORLD.speed * (frame - state.frame);
    for (let dy = -1; dy <= 1; dy++) for (let dx = -1; dx <= 1; dx++) {
      const row = wrap(y + dy + moved * down, H), column = wrap(x + dx + moved * right, W);
      state.painted.set(colour, 3 * ((frame * H + row) * W + column));
    }
  }
}

/** The drawing of the tour's last step: a yellow ring. */
function paintRing() {
  Object.assign(state, {painted: ground(), version: state.version + 1});
  for (let angle = 0; angle < 2 * Math.PI; angle += 0.1)
    dab(Math.round(H / 2 + H / 5 * Math.sin(angle)), Math.round(W / 4 + W / 5 * Math.cos(angle)));
}

/** Clip, video and condition of what is chosen, computed once. */
function prepared() {
  const key = `${clipKey()} ${state.task}`;
  if (prepared.key !== key) {
    const clip = state.painted || drawClip(WORLD, state, FACTS.size);
    const video = toVideo(clip, FACTS.size);
    const {video: condition, valid} = makeCondition(video, state.task);
    const isPad = isPadding(valid, FACTS.size, GRID);
    Object.assign(prepared, {key, made: {clip, video, condition, valid, isPad}});
  }
  return prepared.made;
}

// ---------------------------------------------------------------------------------------------
// Algorithm 1 and Eq. (2), line by line: name, formula, its meaning; which tokens it touched in the
// shown step, and what it did to these n tokens, in words

const many = n => `${n} token${n === 1 ? "" : "s"}`;
const every = () => true;
const ALGORITHM = [
  ["line 1", "<i>s</i> ← 0, <i>s*</i> ← 1, <i>ẑ</i> ← 0", "every token is unknown",
   c => !c.known, n => `Before the first step all scores are 0, below the cut-off of 1.
    ${many(n)} of ${N} are unknown${n < N ? "; the given ones count as decided" : ""}.`],
  ["line 2", "for <i>t</i> ← 0, 1, …, <i>K</i> − 1 do", "K steps",
   every, () => `Step ${state.step} of ${state.steps} is t = ${state.step - 1}. Each step runs the
    transformer once, on all ${N} tokens together.`],
  ["line 3", "<i>z̄</i> ← m(<i>ẑ</i> | <i>z̃</i>, <i>s</i>, <i>s*</i>)", "the input, by Eq. (2)",
   every, () => `Eq. (2) builds the input of the transformer from the tokens so far and from the
    condition. Click one of its three cases to see where it holds.`],
  ["line 4", "<i>ẑᵢ</i> ~ <i>p</i>(<i>zᵢ</i> | ρ, c, <i>z̄</i>) where <i>sᵢ</i> ≤ <i>s*</i>",
   "sample the unknown tokens; ρ is the task, c the class",
   c => c.before, n => `${many(n)} sampled from the predictions; ${N - n} unchanged.`],
  ["line 5", "<i>sᵢ</i> ← <i>p</i>(<i>ẑᵢ</i> | ρ, c, <i>z̄</i>) where <i>sᵢ</i> ≤ <i>s*</i>",
   "their confidence",
   c => c.before, n => `${many(n)} with a new score: the log probability of the sampled code, plus
    noise times the temperature. The noise fades to none at the last step.`],
  ["line 6", "<i>s*</i> ← the ⌈<i>γ</i>((<i>t</i>+1)/<i>K</i>) <i>N</i>⌉th smallest of <i>s</i>",
   "that many of the <i>N</i> tokens stay unknown",
   c => c.after, n => n ? `${many(n)} may stay unknown. The largest of their scores is the new
    cut-off s*.` : "γ(1) N = 0: after the last step no token is unknown, so there is no cut-off."],
  ["line 7", "<i>sᵢ</i> ← 1 where <i>sᵢ</i> &gt; <i>s*</i>", `the most confident ones are decided.
    The paper writes 1, the highest probability. The code writes ∞, because its scores are
    log <i>p</i> plus noise, which has no highest value`,
   c => c.before && !c.after, n => `${many(n)} above the cut-off, and decided for good.`],
  ["line 8", "end for", "",
   c => c.after, n => n ? `The next step begins with ${many(n)} unknown.` : "The loop ends here."],
  ["line 9", "return <i>ẑ</i>", "all tokens, for the decoder",
   every, () => `After step ${state.steps} all ${N} tokens are decided. Before that, the page
    decodes the tokens so far.`],
  ["case 1", "if <i>sᵢ</i> ≤ <i>s*</i> and not ispad(<i>z̃ᵢ</i>)",
   "unknown, and some pixels are given: the condition's token",
   c => c.which === 1, n => n ? `${many(n)} in the given part, not decided yet. The transformer sees
    the condition's token and may correct it.` : "No token in this step."],
  ["case 2", "if <i>sᵢ</i> ≤ <i>s*</i> and ispad(<i>z̃ᵢ</i>)", "unknown, and no pixel is given",
   c => c.which === 2, n => `${many(n)} without a given pixel, not decided yet. The transformer sees
    [MASK].`],
  ["case 3", "if <i>sᵢ</i> &gt; <i>s*</i>", "decided: the token itself",
   c => c.which === 3, n => `${many(n)} decided. The transformer sees the token itself.`],
];

/** What the shown step did to each token; before the first step, what it will be given. */
function cells({isPad, known: given, input}) {
  const made = shown();
  return isPad.map((pad, i) => {
    const known = Boolean(given?.[i]);
    const before = made ? made.masked[i] : !known, after = made ? made.unknown[i] : !known;
    const which = !before ? 3 : pad ? 2 : 1;                         // the case of Eq. (2)
    return {
      known, before, after, which,
      kind: known || which === 1 ? "given" : which === 2 ? "masked" : "decided",
      input: which === 2 ? "[MASK]" : made ? made.inputs[i] : input?.[i] ?? "",
      token: made?.tokens[i], score: made && before ? made.confidence[i] : null,
    };
  });
}

// ---------------------------------------------------------------------------------------------
// Pictures and grids of tokens

const small = new OffscreenCanvas(W, H).getContext("2d");
const place = i => `latent frame ${Math.floor(i / (h * w)) + 1}, row ${Math.floor(i / w) % h + 1},
  column ${i % w + 1}`;
const number = x => x.toFixed(Math.abs(x) < 9.95 ? 1 : 0).replace("-", "−");

/** Shows a clip on a canvas: striped where it is not valid, with a frame around the supervoxel of a
    token or the place of the brush. What is shown is kept, for the clip's other frames. */
function paint(canvas, clip, {valid = null, token = null, cursor = null} = {}) {
  canvas.shown = {clip, valid, token, cursor};
  repaint(canvas);
}

function repaint(canvas) {
  const {clip, valid, token, cursor} = canvas.shown, first = state.frame * H * W, scale = 8;
  canvas.classList.toggle("waiting", !clip);
  if (!clip) return;
  const image = small.createImageData(W, H);
  for (let i = 0; i < H * W; i++) {
    const stripe = (i + Math.floor(i / W)) % 4 < 2 ? 190 : 160, given = !valid || valid[first + i];
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = given ? clip[3 * (first + i) + c] : stripe;
    image.data[4 * i + 3] = 255;
  }
  small.putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  if (canvas.width !== scale * W) Object.assign(canvas, {width: scale * W, height: scale * H});
  Object.assign(context, {imageSmoothingEnabled: false, strokeStyle: "#fff", lineWidth: 3});
  context.drawImage(small.canvas, 0, 0, scale * W, scale * H);
  const frame = (y, x, height, width) =>
    context.strokeRect(...[x, y, width, height].map(v => v * scale));
  if (cursor) frame(...cursor, 1, 1);
  else if (token !== null && Math.floor(token / (h * w)) === Math.floor(state.frame * t / T))
    frame(Math.floor(token / w) % h * H / h, token % w * W / w, H / h, W / w);
}

/** The buttons of a grid: look(i) -> [class, text, words, warmth]. */
function showGrid(id, look) {
  all(`#${id} button`).forEach((button, i) => {
    const [name, text, words, warmth = 0] = look(i), here = state.grid === id;
    Object.assign(button, {className: name, textContent: text});
    button.style.setProperty("--warmth", warmth.toFixed(3));
    button.setAttribute("aria-label", `${place(i)}: ${words}`);
    button.setAttribute("aria-pressed", here && state.token === i);
    button.tabIndex = i === (here ? state.token : 0) ? 0 : -1;
  });
}

const toLine = name => `<a href="../${LINES[name].file}#L${LINES[name].line}">${LINES[name].file},
  line ${LINES[name].line}</a>`;

// ---------------------------------------------------------------------------------------------
// The three parts of the page

function showClip({clip}, tokens) {
  const picture = decoded(tokens), token = state.grid === "clip-tokens" ? state.token : null;
  paint($("clip"), clip, {token, cursor: state.cursor});
  paint($("decoded-clip"), picture, {token});
  showGrid("clip-tokens", i => ["decided", tokens?.[i] ?? "", `code ${tokens?.[i]}`]);
  const origin = state.painted ? `You are looking at a drawing. The network knows one small world:
    ${WORLD.shapes.length} shapes in ${WORLD.choices[3]} colours that move over a dark ground. It
    renders anything else as the nearest thing that it knows.` : heldOut() ?
    "This clip was held out: the network was not trained on it." :
    "This clip is one of those that the network was trained on.";
  const error = picture && clip.reduce((sum, x, i) => sum + (x - picture[i]) ** 2, 0) / clip.length;
  $("clip-words").textContent = origin + (picture ? ` The PSNR of its reconstruction is
    ${Math.round(10 * Math.log10(255 ** 2 / error))} dB.` : "");
}

function showCondition({clip, valid, condition: video, isPad}, condition, tokens) {
  paint($("given"), clip, {valid, cursor: state.cursor});
  paint($("condition"), toBytes(video));
  paint($("decoded-condition"), decoded(condition));
  const alike = i => condition && tokens && condition[i] === tokens[i];
  const given = isPad.filter(pad => !pad).length;
  const right = isPad.filter((pad, i) => !pad && alike(i)).length;
  showGrid("is-pad", i => isPad[i] ? ["masked", "", "only padding"] : ["given", "", "some given"]);
  showGrid("condition-tokens", i => {
    const code = condition?.[i] ?? "";
    return isPad[i] ? ["padding", code, `${code}, of padding alone`] :
      alike(i) ? ["given", code, `${code}, as in the clip`] :
      ["wrong", code, `${code}, not as in the clip`];
  });
  const words = given ? `Some pixels are given in ${given} of ${N} supervoxels. There, ${right}
    condition tokens equal the clip's own; the others differ because the encoder sees padding next
    to them. COMMIT shows all ${given} to the transformer, which corrects them.` :
    "No pixel is given, only the class: the transformer sees nothing but [MASK].";
  const name = FACTS.classes[label()];
  const named = FACTS.labelled.includes(state.task) ? `The class is “${name}”.` : "";
  $("condition-words").innerHTML = `${words} ${named} ${toLine(state.task)}`;
}

function showRun(cells, {clip, valid}) {
  const [, , , touched, said] = ALGORITHM.find(([name]) => name === state.line) || [, , , every];
  const scores = cells.flatMap(c => c.score ?? []);
  const low = Math.min(...scores), span = Math.max(...scores) - low || 1;
  const grid = (id, look) => showGrid(id, i => {
    const [name, ...rest] = look(cells[i]);
    return [name + (touched(cells[i]) ? "" : " untouched"), ...rest];
  });
  grid("inputs", c => [c.kind, c.which === 2 ? "" : c.input, `${c.input}, ${c.kind}`]);
  grid("tokens", c => c.token === undefined ? ["empty", "", "not sampled yet"] :
    [c.before ? "drawn" : c.known ? "given" : "decided", c.token, c.token]);
  grid("scores", c => c.token === undefined ? ["empty", "", "no score yet"] :
    c.score === null ? ["settled", "∞", "decided before"] :
    [c.after ? "heat" : "heat kept", number(c.score), number(c.score), (c.score - low) / span]);
  all("#mini span").forEach((cell, i) => {
    cell.className = cells[i].kind + (touched(cells[i]) ? "" : " untouched");
  });
  all(".panel[data-lines]").forEach(panel =>
    panel.classList.toggle("written", panel.dataset.lines.split(",").includes(state.line)));
  all("[data-line]").forEach(button =>
    button.setAttribute("aria-pressed", button.dataset.line === state.line));
  $("said").textContent = !said ? "Click a line to see the tokens that it touches in this step." :
    shown() || state.line === "line 1" ? said(cells.filter(touched).length) :
    "Nothing has been computed yet: press Run, or › for one step.";
  $("code").textContent = LINES[state.line || "algorithm"].code;
  $("link").innerHTML = toLine(state.line || "algorithm");
  showBar(cells.filter(c => c.before).length, cells.filter(c => c.after).length);
  paint($("made").firstElementChild.firstElementChild, clip, {valid});
  paint($("made").lastElementChild.firstElementChild, clip);
  showSamples();
}

/** The buttons, the slider and the progress bar. */
function showBar(before, after) {
  const running = done() < state.goal;
  const seconds = times.step * state.samples * (state.goal - done()) / 1000;
  $("step-label").textContent = `Step ${state.step} of ${state.steps}`;
  Object.assign($("step"), {max: state.steps, value: state.step});
  Object.assign($("progress"), {max: state.goal || 1, value: done(), hidden: !running});
  $("back").disabled = state.step === 0;
  $("on").disabled = state.step === state.steps;
  $("run").textContent = running ? "Pause" : done() === state.steps ? "Run again" :
    done() ? "Continue" : "Run";
  $("count").textContent = (state.step ? `${many(before)} predicted, ${before - after} decided,
    ${after} still unknown` : "Nothing has been computed yet.")
    + (running && seconds > 3 ? `; about ${Math.ceil(seconds)} seconds left` : "");
}

/** Decoded samples; during a run only a single one, and only where decoding is fast. */
function showSamples() {
  const later = done() < state.goal && (state.samples > 1 || times.decode > 700);
  all("#made .sample").forEach((figure, sample) => {
    const tokens = stepOf(sample, state.step)?.tokens, front = sample === state.sample;
    const picture = later ? answers.get(tokens?.join()) : decoded(tokens);
    const token = state.grid === "tokens" && front ? state.token : null;
    if (picture || !tokens) paint(figure.firstElementChild, picture, {token});
    figure.hidden = sample >= state.samples;
    figure.setAttribute("aria-pressed", front && state.samples > 1);
    figure.querySelector("b").textContent = state.samples > 1 ? `Sample ${sample + 1}` : "Decoded";
  });
}

/** The chosen token: what it is, and which pixels change when it is another code. */
function showToken(tokens, cells) {
  const i = state.token, guessed = state.grid === "tokens";
  const own = guessed ? shown()?.tokens : tokens;
  $("token").hidden = !(guessed || state.grid === "clip-tokens") || !own;
  if ($("token").hidden) return;
  const slot = $(guessed ? "slot-run" : "slot-clip"), c = cells[i], code = state.code ?? own[i];
  if ($("token").parentElement !== slot) slot.append($("token"));
  const history = c.before ? `It was sampled in this step with the score ${number(c.score ?? 0)}.` :
    "It was decided before this step.";
  $("token-words").textContent = `Token ${i + 1} of ${N}: ${place(i)}, code ${own[i]}. `
    + (guessed ? `Its input was ${c.input} (case ${c.which} of Eq. (2)). ${history}` : "");
  if (document.activeElement !== $("new-code")) $("new-code").value = code;
  const before = decoded(own), after = decoded(own.map((k, j) => j === i ? code : k));
  paint($("changed"), after, {token: i});
  if (!before || !after) return;
  const moved = before.map((value, j) => Math.min(255, 3 * Math.abs(value - after[j])));
  const inside = moved.filter((_, j) => boxOf(Math.floor(j / 3), FACTS.size, SUPERVOXEL) === i);
  const sum = values => values.reduce((a, b) => a + b, 0);
  paint($("moved"), moved, {token: i});
  $("moved-words").textContent = code === own[i] ? "Enter another code to see what changes." :
    `${Math.round(100 * sum(inside) / (sum(moved) || 1))} % of the change lies in the token's own
    supervoxel (white frame: ${VOXEL_WORDS}), the rest outside: the decoder mixes neighbours.`;
}

// ---------------------------------------------------------------------------------------------
// The two charts

const text = (x, y, words, look = "") => `<text x="${x}" y="${y}" ${look}>${words}</text>`;
const rule = (x1, y1, x2, y2, look = `stroke="var(--line)"`) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" ${look}/>`;
const dot = (x, y, r, look) => `<circle cx="${x}" cy="${y}" r="${r}" ${look}/>`;

function chart(id, height, words, ...parts) {
  $(id).setAttribute("viewBox", `0 0 ${$(id).clientWidth} ${height}`);
  $(id).setAttribute("aria-label", $(`${id}-words`).textContent = words);
  $(id).innerHTML = parts.join("");
}

/** The scores of a step from the smallest to the largest: the cut-off is the one at its count. */
function showCutoff(cells) {
  const width = $("cutoff").clientWidth, made = shown();
  const drawn = cells.map((c, i) => ({...c, i})).filter(c => c.score !== null);
  if (!drawn.length) return chart("cutoff", 20, "The scores of a step will appear here, in order.");
  drawn.sort((a, b) => a.score - b.score);
  const low = drawn[0].score, span = drawn.at(-1).score - low || 1, {count, cutoff} = made;
  const x = rank => 14 + (width - 28) * (rank + 0.5) / drawn.length, at = x(count - 0.5);
  const y = score => 140 - 120 * (score - low) / span, level = y(cutoff);
  const dots = drawn.map((c, rank) => dot(x(rank), y(c.score), c.i === state.token ? 7 : 4.5,
    c.after ? `fill="var(--cold)" stroke="var(--quiet)"` : `fill="var(--decided)"`));
  const dashed = `stroke="var(--ink)" stroke-dasharray="4 3"`;
  const mark = count ? [rule(at, 8, at, 148, dashed), rule(0, level, at, level, dashed),
                        text(4, level - 5, `s* = ${number(cutoff)}`)] : [];
  chart("cutoff", 166, count ? `Each dot is a token sampled in this step. The cut-off is score
    number ${count} from the left: the ${drawn.length - count} to its right are decided, the others
    will be sampled again.` : `The last step has no cut-off: all its tokens are decided.`,
    rule(0, 148, width, 148), ...dots, text(0, 163, "least confident"),
    text(width, 163, "most confident", `text-anchor="end"`), ...mark);
}

/** How many tokens are unknown after each step, by the chosen schedule. */
function showCurve({isPad, known}) {
  const width = $("curve").clientWidth, {steps, step, schedule} = state;
  const free = known ? isPad.filter(Boolean).length : N;
  const left = step => step === 0 ? free : step === steps ? 0 :
    numMasked(maskRatio(step / steps, schedule, N), free);
  const x = step => 34 + (width - 42) * step / steps, y = count => 156 - 144 * count / free;
  const points = Array.from({length: steps + 1}, (_, step) => [x(step), y(left(step))]);
  const lines = [0, Math.round(free / 2), free].map(count =>
    rule(34, y(count), width - 8, y(count)) + text(26, y(count) + 4, count, `text-anchor="end"`));
  const ends = [0, steps].map(step => text(x(step), 174, step, `text-anchor="middle"`));
  chart("curve", 180, `After step ${step} of ${steps}, ${many(left(step))} unknown. The schedule γ
    gives the share, here ${schedule}: `, ...lines, ...ends,
    `<polyline points="${points.join(" ")}" fill="none" stroke="var(--accent)" stroke-width="2"/>`,
    dot(x(step), y(left(step)), 5, `fill="var(--accent)"`));
  $("curve-words").innerHTML += toLine(schedule);
}

// ---------------------------------------------------------------------------------------------
// Drawing all of it

function showTime() {
  all("canvas").forEach(canvas => canvas.shown && repaint(canvas));
  for (const row of all(".time")) {
    row.querySelector("button").textContent = state.playing ? "Pause" : "Play";
    row.querySelector("span").textContent = `Frame ${state.frame + 1} of ${T}`;
    row.querySelector("input").value = state.frame + 1;
  }
}

function showControls() {
  for (const [name, [, values]] of Object.entries(CHOICES))
    $(name).selectedIndex = values.indexOf(state[name]);
  $("moving").checked = state.moving;
  $("undo").disabled = !state.painted;
  $("method-words").textContent = `${state.method}: ${METHODS[state.method]}`;
  const seconds = name => `${(times[name] / 1000 || 0).toFixed(2)} s`;
  $("times").textContent = `The fastest so far on this device: encoding a clip ${seconds("encode")},
    a step of Algorithm 1 ${seconds("step")}, decoding ${seconds("decode")}.`;
}

function draw() {
  wanted = [];
  const made = prepared(), {isPad} = made;
  const condition = encoded(prepared.key, made.condition), tokens = encoded(clipKey(), made.video);
  const known = state.method === "COMMIT" ? null : isPad.map(pad => !pad);
  const given = {isPad, known, input: state.method === "leaked tokens" ? tokens : condition};
  const seen = cells(given);
  showClip(made, tokens);
  showCondition(made, condition, tokens);
  showRun(seen, made);
  showToken(tokens, seen);
  showCutoff(seen);
  showCurve(given);
  showControls();
  showTour();
  showTime();
  askStep(given);
  if (busy || !wanted.length) return;
  busy = true;
  worker.postMessage(wanted[0]);
}

// ---------------------------------------------------------------------------------------------
// Controls

const go = change => { Object.assign(state, change); draw(); };
const anew = change => go({step: 0, goal: 0, sample: 0, code: null, ...change});
const goStep = step =>
  go({step: Math.min(step, done()), code: null, goal: Math.max(state.goal, step)});

for (const [id, choices] of [["clip-choices", CLIP], ["task-choice", {task: RUN.task}],
                             ["run-choices", {...RUN, task: null}], ["brush-choice", BRUSH]])
  for (const [name, choice] of Object.entries(choices)) {
    if (!choice) continue;
    const [title, values, words = values] = choice;
    const options = values.map((_, i) => `<option>${words[i]}</option>`).join("");
    $(id).insertAdjacentHTML("beforeend", `<label class="field">${title}
      <select id="${name}">${options}</select></label>`);
    when($(name), "change", ({target}) => {
      const change = {[name]: values[target.selectedIndex]};
      if (name in BRUSH) go(change);
      else anew(name in CLIP ? {...change, painted: null} : change);
    });
  }
when($("another"), "click", () => {
  const some = list => Math.floor(Math.random() * list.length);
  const [lane, start, colour] = WORLD.kept_back[some(WORLD.kept_back)];
  const shape = some(WORLD.shapes), direction = some(WORLD.directions);
  anew({shape, direction, lane, start, colour, painted: null});
});
when($("run"), "click", () =>
  done() < state.goal ? go({goal: done()}) :                                          // pause
  done() < state.steps ? go({goal: state.steps, step: done()}) :
  anew({seed: (state.seed + 1) % 100, goal: state.steps}));
when($("back"), "click", () => goStep(state.step - 1));
when($("on"), "click", () => goStep(state.step + 1));
when($("step"), "input", ({target}) => goStep(Number(target.value)));
for (const [name, formula, meaning] of ALGORITHM) {
  const [kind, n] = name.split(" "), mark = kind === "line" ? n : ["z̃ᵢ", "[MASK]", "x"][n - 1];
  $(kind).insertAdjacentHTML("beforeend", `<li><button type="button" data-line="${name}">
    <span>${mark}</span> <span>${formula}<small>${meaning}</small></span></button></li>`);
}
all("[data-line]").forEach(button => when(button, "click", () =>
  go({line: state.line === button.dataset.line ? null : button.dataset.line})));

// Grids of tokens: a box for each latent frame, with a cell for each token
const boxes = cell =>
  `<div class="frame" style="--columns: ${w}">${cell.repeat(h * w)}</div>`.repeat(t);
$("mini").innerHTML = boxes("<span></span>");
for (const spans of all(".spans")) spans.innerHTML = range(0, t - 1).map(i =>
  `<span>${i ? "" : "frames "}${i * T / t + 1}–${(i + 1) * T / t}</span>`).join("");
for (const grid of all(".frames")) {
  grid.innerHTML = boxes(`<button type="button"></button>`);
  const buttons = [...grid.querySelectorAll("button")];
  const choose = token => go({grid: grid.id, token, code: null});
  buttons.forEach((button, i) => when(button, "click", () =>
    state.grid === grid.id && state.token === i ? go({grid: null, token: null}) : choose(i)));
  when(grid, "keydown", event => {
    const move = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -w, ArrowDown: w}[event.key];
    const next = buttons.indexOf(document.activeElement) + move;
    if (!move || !buttons[next]) return;
    event.preventDefault();
    choose(next);
    buttons[next].focus();
  });
}
$("new-code").max = CODES - 1;
when($("new-code"), "input", ({target}) =>
  go({code: Math.min(CODES - 1, Math.max(0, Math.round(target.value)))}));
when($("put-back"), "click", () => go({code: null}));
$("made").firstElementChild.insertAdjacentHTML("afterend", `
  <figure class="sample" role="button" tabindex="0"><canvas></canvas>
    <figcaption><b></b> from its <i>ẑ</i></figcaption></figure>`.repeat(4));
all("#made .sample").forEach((figure, sample) => {
  when(figure, "click", () => go({sample}));
  when(figure, "keydown", ({key}) => { if (key === "Enter") go({sample}); });
});

// The brush: by mouse or finger, and by keyboard
const repainted = painted => anew({painted, version: state.version + 1});
when($("moving"), "change", ({target}) => go({moving: target.checked}));
when($("empty"), "click", () => repainted(ground()));
when($("undo"), "click", () => repainted(null));
for (const canvas of all(".paint")) {
  let last = null;                                     // where the brush is, while it paints
  const placeOf = ({clientX, clientY}) => {
    const {left, top, width, height} = canvas.getBoundingClientRect();
    return [Math.floor((clientY - top) * H / height), Math.floor((clientX - left) * W / width)];
  };
  const stroke = event => {
    if (!last) return;
    const [fromY, fromX] = last, [y, x] = placeOf(event);
    const steps = Math.max(1, Math.abs(y - fromY), Math.abs(x - fromX));
    for (let i = 1; i <= steps; i++)
      dab(Math.round(fromY + (y - fromY) * i / steps), Math.round(fromX + (x - fromX) * i / steps));
    state.playing = false;
    last = [y, x];
    all(".paint").forEach(each => { each.shown.clip = state.painted; repaint(each); });
  };
  const end = () => { if (last) repainted(state.painted); last = null; };
  when(canvas, "pointerdown", event => { last = placeOf(event); stroke(event); });
  when(canvas, "pointermove", stroke);
  for (const event of ["pointerup", "pointerleave", "pointercancel"]) when(canvas, event, end);
  when(canvas, "blur", () => go({cursor: null}));
  when(canvas, "keydown", event => {
    const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
                  " ": [0, 0]}[event.key];
    if (!move) return;
    event.preventDefault();
    const [y, x] = state.cursor || [H / 2, W / 2];
    if (event.key === " ") dab(y, x);
    if (event.key === " ") return repainted(state.painted);
    go({cursor: [wrap(y + move[0], H), wrap(x + move[1], W)], playing: false});
  });
}

// Time: every clip on the page shows the same frame
for (const row of all(".time")) {
  row.innerHTML = `<button type="button" class="play"></button><label class="small"><span></span>
    <input type="range" min="1" max="${T}"></label>`;
  when(row.querySelector("button"), "click", () => go({playing: !state.playing}));
  when(row.querySelector("input"), "input", ({target}) =>
    go({frame: target.value - 1, playing: false}));
}
setInterval(() => {
  if (!state.playing || document.hidden) return;
  state.frame = (state.frame + 1) % T;
  showTime();
}, 160);

// ---------------------------------------------------------------------------------------------
// The guided tour: each step sets everything itself. In turn title, part of the page, state, words.

const [PLAIN, , OPEN] = WORLD.kept_back.map(([lane, start, colour]) => ({lane, start, colour}));
const BASE = {...state, ...PLAIN};
const FUTURES = {...OPEN, task: "FP", goal: STEPS, samples: 4, frame: Math.floor(T / 2)};
const CHANGED = {grid: "clip-tokens", token: Math.floor(N / 3), code: CODES - 1, frame: 5};
const TOUR = [
  [`This clip in ${N} tokens`, "part-clip", CHANGED,
   `A clip of ${T} frames is ${(T * H * W * 3).toLocaleString("en")} numbers. The encoder turns it
    into ${N} tokens, each a number from 0 to ${CODES - 1}: an entry of a codebook that stands for
    ${VOXEL_WORDS}. The decoder turns tokens back into a clip. One token has been changed here:
    below the tokens you see which pixels change with it.`],
  ["What is given becomes a condition", "part-condition", {},
   `In central outpainting only the middle is given. COMMIT cuts it out, fills the rest by repeating
    its border, and encodes the result: the condition, which contains nothing of the hidden part.
    Its orange tokens differ from those of the whole clip: the encoder sees padding next to them.`],
  ["Algorithm 1 decides step by step", "part-run", {task: "OPD", goal: STEPS},
   `In each step the transformer predicts every unknown token from the input z̄. The most confident
    predictions are kept. The others are sampled again in the next step, until all are decided, also
    those of the condition. Click a line of the algorithm, or step back with ‹.`],
  ["Why not simply unmask?", "part-run", {...FUTURES, method: "leaked tokens"},
   `One frame is given, and the tokens of the whole clip are unmasked there. But a token depends on
    far more than its own pixels: these tokens reveal how the clip continues, and most samples move
    as the real clip does. Somebody who has only the frame does not have such tokens.`],
  ["One frame, several futures", "part-run", FUTURES,
   `The same first frame, now as a condition of COMMIT. It does not say where the shape will go, and
    the samples move in different directions. Try temperature 0, which removes the noise from the
    choice of tokens to keep, or fewer steps, another schedule γ, another seed. A network as small
    as this one sometimes forgets the colour, too.`],
  ["Now draw your own", "part-clip", {task: "OPV", goal: STEPS},
   `This ring was painted by hand. Paint on it, or empty the clip; choose what is given; press Run.
    The network knows a few shapes in a few colours and nothing else. What it makes of the ring is
    shown below, in part 3.`],
];

function goTour(tour) {
  const [, part, change] = TOUR[tour], {version, playing} = state;
  Object.assign(state, BASE, {version, playing, tour}, change);
  if (slow()) state.samples = Math.min(2, state.samples);
  if (tour === TOUR.length - 1) paintRing();
  draw();
  $(part).scrollIntoView({behavior: STILL ? "auto" : "smooth"});
}

function showTour() {
  $("tour").hidden = state.tour === null;
  $("tour-start").hidden = state.tour !== null;
  if (state.tour === null) return;
  const [title, , , words] = TOUR[state.tour];
  $("tour-title").textContent = `${state.tour + 1} of ${TOUR.length}: ${title}`;
  if ($("tour-words").textContent !== words) $("tour-words").textContent = words;
  $("tour-back").disabled = state.tour === 0;
  $("tour-next").hidden = state.tour === TOUR.length - 1;
}
when($("tour-back"), "click", () => goTour(state.tour - 1));
when($("tour-next"), "click", () => goTour(state.tour + 1));
when($("tour-end"), "click", () => go({tour: null}));
when($("tour-start"), "click", () => goTour(0));

$("how-many").textContent = FACTS.weights.reduce((sum, [, shape]) => sum + product(shape), 0)
  .toLocaleString("en");
for (const canvas of all("canvas")) canvas.setAttribute("role", "img");
for (const canvas of all("figure > canvas"))
  canvas.setAttribute("aria-label", canvas.nextElementSibling.textContent);
when(window, "resize", draw);
Object.assign(state, BASE, TOUR[0][2]);
draw();
