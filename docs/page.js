"use strict";
// What a reader can do on the page. The networks and Algorithm 1 are in paper.js, above.
//
// state is all that a reader can choose; go(change) changes it and draws the page anew. What takes
// longer is asked of a worker: ask(key, work) returns an answer or undefined, and the page is drawn
// again once the answer is there.

const $ = id => document.getElementById(id), all = query => [...document.querySelectorAll(query)];
const FACTS = JSON.parse($("facts").textContent), {shapes: WORLD, lines: LINES} = FACTS;
const [T, H, W] = FACTS.size, TASKS = Object.keys(FACTS.tasks);
const [t, h, w] = new Tokenizer(FACTS.tokenizer, {}).latentShape(FACTS.size), N = t * h * w;
const CODES = FACTS.tokenizer.codebook_size, MASK = CODES + FACTS.transformer.num_classes + TASKS.length + 1;
const METHODS = {
  "COMMIT": "The condition's tokens take the place of [MASK] and are decided anew, with all others.",
  "latent masking": "The condition's tokens count as decided from the start, right or wrong.",
  "leaked tokens": "The whole clip's tokens are simply unmasked where something is given. They know the rest.",
};
const MOST = [1, 2, 3, 4];                                         // samples at once
const SCHEDULES = ["cosine", "uniform", "exp"];
const COLOURS = [...WORLD.colours, [0.95, 0.85, 0.2], [0.9, 0.9, 0.9], [WORLD.ground, WORLD.ground, WORLD.ground]];
const COLOUR_NAMES = ["red", "green", "blue", "yellow", "white", "ground"];
const STILL = matchMedia("(prefers-reduced-motion: reduce)").matches;

const state = {
  shape: 3, direction: 0, lane: 1, start: 0, colour: 0,          // the clip
  painted: null, version: 0, brush: 3, size: 3, moving: true, cursor: null,
  task: "OPC", method: "COMMIT", ...FACTS.decoding, seed: 0, samples: 1,
  step: 0, goal: 0, sample: 0,                                   // shown, to be computed, which one
  frame: 0, playing: !STILL, line: null, grid: null, token: null, code: null, tour: 0,
};

// ---------------------------------------------------------------------------------------------
// The worker, its answers and its times

const answers = new Map(), times = {}, run = {id: 0, key: "", states: []};
let worker, busy = true, wanted = [];
try {
  worker = new Worker(URL.createObjectURL(new Blob([$("paper").textContent])));
  worker.postMessage({work: "begin", facts: FACTS, weights: $("weights").textContent});
  worker.onmessage = ({data: {work, key, id, sample, answer, ms}}) => {
    busy = false;
    times[work] = Math.min(times[work] ?? Infinity, ms);
    if (key) answers.set(key, answer);
    if (work === "step" && id === run.id) arrived(sample, answer);
    draw();
  };
} catch (error) {
  document.querySelector("header").append(`This browser does not let the page compute: ${error.message}`);
}

const slow = () => times.encode > 1500;                          // a phone: fewer samples at once
const done = () => Math.min(...run.states.map(states => states.length));

/** The answer to a piece of work, once it is there; until then it is put on the list. */
function ask(key, work) {
  if (!answers.has(key)) wanted.push({key, ...work()});
  return answers.get(key);
}
const decoded = tokens => tokens && ask(tokens.join(), () => ({work: "decode", tokens}));
const encoded = (key, video) => ask(key, () => ({work: "encode", video: video.data}));

/** Gives the worker what is wanted first, or else the next step of Algorithm 1. */
function occupy() {
  const lengths = run.states.map(states => states.length), sample = lengths.indexOf(Math.min(...lengths));
  const item = wanted[0] || run.start || (!run.ready || lengths[sample] >= state.goal ? null :
    {work: "step", id: run.id, sample});
  if (busy || !item) return;
  if (item === run.start) run.start = null;
  busy = true;
  worker.postMessage(item);
}

/** A step of a sample has come: it is shown if the reader follows. */
function arrived(sample, made) {
  const before = done();
  run.states[sample].push(made);
  if (state.step === before) state.step = done();
}

/** Makes ready to run Algorithm 1 anew where anything has changed that it depends on. */
function prepareRun(condition, clipTokens, isPad) {
  const {task, method, schedule, steps, temperature, seed, samples} = state;
  const key = [clipKey(), task, method, schedule, steps, temperature, seed, samples].join("|");
  if (run.key !== key) {
    Object.assign(run, {id: run.id + 1, key, ready: false, start: null, condition: null, known: null,
                        states: Array.from({length: samples}, () => [])});
    Object.assign(state, {step: 0, sample: Math.min(state.sample, samples - 1)});
  }
  const tokens = method === "leaked tokens" ? clipTokens : condition;
  if (run.ready || !tokens) return;
  const known = method === "COMMIT" ? null : isPad.map(pad => !pad);
  Object.assign(run, {ready: true, condition: tokens, known, start: {
    work: "run", task, label: FACTS.labelled.includes(task) ? label() : FACTS.transformer.num_classes,
    condition: tokens, isPad, options: {steps, temperature, schedule, known},
    seeds: run.states.map((_, sample) => seed + 1000 * sample)}});
}

// ---------------------------------------------------------------------------------------------
// The clip: drawn as data/moving_shapes.py does, or painted by hand; bytes (T, H, W, 3)

const label = () => state.shape * WORLD.directions.length + state.direction;
const clipKey = () => state.painted ? `painted ${state.version}` :
  ["shape", "direction", "lane", "start", "colour"].map(name => state[name]).join();
const heldOut = () => !state.painted && WORLD.kept_back.some(([lane, start, colour]) =>
  lane === state.lane && start === state.start && colour === state.colour);
const ground = () => new Uint8Array(T * H * W * 3).fill(WORLD.ground * 255 + 0.5);

/** Paints a disc of the brush; in the other frames too, further on, where it moves with the clip. */
function dab(y, x) {
  state.painted ??= drawClip(WORLD, state, FACTS.size);
  const [down, right] = WAYS[state.direction], radius = state.size / 2;
  for (let frame = 0; frame < T; frame++) {
    if (!state.moving && frame !== state.frame) continue;
    const moved = state.moving ? WORLD.speed * (frame - state.frame) : 0;
    for (let dy = -8; dy <= 8; dy++) for (let dx = -8; dx <= 8; dx++) {
      if ((dy * dy + dx * dx) ** 0.5 > radius - 0.3) continue;
      const at = (frame * H + wrap(y + dy + moved * down, H)) * W + wrap(x + dx + moved * right, W);
      state.painted.set(COLOURS[state.brush].map(value => value * 255 + 0.5), 3 * at);
    }
  }
}

/** A picture to begin with, in the tour: a yellow ring. */
function ring() {
  const kept = {brush: state.brush, size: state.size, frame: state.frame, moving: state.moving};
  Object.assign(state, {painted: ground(),
                        brush: 3, size: 3, frame: 0, moving: true});
  for (let angle = 0; angle < 6.3; angle += 0.1)
    dab(Math.round(H / 2 + H / 5 * Math.sin(angle)), Math.round(W / 4 + W / 5 * Math.cos(angle)));
  Object.assign(state, kept, {version: state.version + 1});
}

// ---------------------------------------------------------------------------------------------
// Each line of Algorithm 1 in words: which tokens it touched in this step

const many = (n, what = "token") => `${n} ${what}${n === 1 ? "" : "s"}`;
const number = x => x.toFixed(Math.abs(x) < 9.95 ? 1 : 0).replace("-", "−");
const PLACES = Array.from({length: N}, (_, i) => [Math.floor(i / (h * w)), Math.floor(i / w) % h, i % w]);
const place = i => (([a, b, c]) => `latent frame ${a + 1}, row ${b + 1}, column ${c + 1}`)(PLACES[i]);
const LISTING = [
  ["line 1", "<i>s</i> ← 0, <i>s*</i> ← 1, <i>ẑ</i> ← 0", "every token is unknown"],
  ["line 2", "for <i>t</i> ← 0, 1, …, <i>K</i> − 1 do", "K steps"],
  ["line 3", "<i>z̄</i> ← m(<i>ẑ</i> | <i>z̃</i>, <i>s</i>, <i>s*</i>)", "the input, Eq. (2)"],
  ["line 4", "<i>ẑᵢ</i> ~ <i>p</i>(<i>zᵢ</i> | ρ, c, <i>z̄</i>) where <i>sᵢ</i> ≤ <i>s*</i>", "draw the unknown; ρ is the task, c the class"],
  ["line 5", "<i>sᵢ</i> ← <i>p</i>(<i>ẑᵢ</i> | ρ, c, <i>z̄</i>) where <i>sᵢ</i> ≤ <i>s*</i>", "how sure was that?"],
  ["line 6", "<i>s*</i> ← the ⌈<i>γ</i>((<i>t</i>+1)/<i>K</i>) <i>N</i>⌉th smallest of <i>s</i>", "so many stay unknown"],
  ["line 7", "<i>sᵢ</i> ← 1 where <i>sᵢ</i> &gt; <i>s*</i>", "the surest are decided. The code writes ∞ for 1: "
    + "its scores are log <i>p</i> plus noise, which can be above any number"],
  ["line 8", "end for", ""],
  ["line 9", "return <i>ẑ</i>", "all tokens, for the decoder"],
];
const CASES = [
  ["case 1", "z̃ᵢ", "if <i>sᵢ</i> ≤ <i>s*</i> and not ispad(<i>z̃ᵢ</i>)", "unknown, something is given: the condition"],
  ["case 2", "[MASK]", "if <i>sᵢ</i> ≤ <i>s*</i> and ispad(<i>z̃ᵢ</i>)", "unknown, nothing is given"],
  ["case 3", "x", "if <i>sᵢ</i> &gt; <i>s*</i>", "decided: the token itself"],
];

/** What the shown step did to each token. Before the first step: what it will be given. */
function cells(isPad) {
  const states = run.states[state.sample], made = states[state.step - 1];
  return isPad.map((pad, i) => {
    const known = Boolean(run.known?.[i]), when = known ? 0 : 1 + states.findIndex(each => !each.unknown[i]);
    const before = made ? made.masked[i] : !known, after = made ? made.unknown[i] : !known;
    const which = !before ? 3 : pad ? 2 : 1;
    return {
      known, before, after, which, when: known ? 0 : when || Infinity,
      kind: known || which === 1 ? "given" : which === 2 ? "masked" : "decided",
      input: which === 2 ? null : made ? made.inputs[i] : run.condition?.[i] ?? "",
      token: made?.tokens[i], score: made && before ? made.confidence[i] : null,
      likeliest: made?.likeliest[i],
    };
  });
}

function lineInWords(line, cells) {
  const count = test => cells.filter(test).length, made = run.states[state.sample][state.step - 1];
  const unknown = count(c => c.before), left = count(c => c.after), known = count(c => c.known);
  const last = state.step === state.steps, is = n => n === 1 ? "is" : "are";
  if (!line) return [c => true, "Click a line: the tokens that it touched in this step stay bright."];
  if (!made && line !== "line 1") return [c => true, "Nothing has been computed yet: press Run, or › for one step."];
  return {
    "line 1": [c => !c.known, "Before the first step all scores are 0, below a cut-off of 1: " + (known ?
      `all are unknown but ${known}, which count as decided.` : `all ${N} tokens are unknown, those of the condition too.`)],
    "line 2": [c => true, `The slider is this loop: step ${state.step} of ${state.steps} is t = ${state.step - 1}. `
      + `Each step asks the transformer once, about all ${N} tokens together.`],
    "line 3": [c => true, `Eq. (2) makes the input of all ${N} tokens: ${count(c => c.which === 1)} show the condition's `
      + `token, ${count(c => c.which === 2)} are [MASK], ${count(c => c.which === 3)} were decided before.`],
    "line 4": [c => c.before, `${many(unknown)} ${is(unknown)} drawn from what the transformer predicts; `
      + `the other ${N - unknown} stay.`],
    "line 5": [c => c.before, `The same ${many(unknown)} get a new score: the log probability of what was drawn, plus `
      + "noise times the temperature, which fades to none at the last step."],
    "line 6": last ? [c => false, "γ(1) N = 0, and there is no 0th smallest score: after the last step everything is decided."]
      : [c => c.after, `${many(left)} may stay unknown; the largest of their scores is the new cut-off s* = ${
        made && number(made.cutoff)}.`],
    "line 7": [c => c.before && !c.after, `${many(unknown - left)} ${is(unknown - left)} above the cut-off and decided for good.`],
    "line 8": [c => c.after, last ? "The loop ends here." : `The next step begins with ${many(left)} unknown.`],
    "line 9": [c => true, last ? `All ${N} tokens are decided: the decoder makes the clip of them.`
      : `After step ${state.steps} all ${N} are decided. What you see decoded here is the guess so far.`],
    "case 1": [c => c.which === 1, run.known ? "None: what is given counts as decided from the start and is never corrected."
      : `${many(count(c => c.which === 1))} of the given part, not decided yet: the transformer sees the condition's token, `
        + "and may correct it."],
    "case 2": [c => c.which === 2, `${many(count(c => c.which === 2))} where nothing is given, not decided yet: the `
      + "transformer sees [MASK]."],
    "case 3": [c => c.which === 3, `${many(count(c => c.which === 3))} decided: the transformer sees the token itself.`],
  }[line];
}

// ---------------------------------------------------------------------------------------------
// Drawing

const small = Object.assign(document.createElement("canvas"), {width: W, height: H}).getContext("2d");

/** Shows a clip (T, H, W, 3) on a canvas: striped where it is not valid, with the frame of a token or
    the place of the brush on it. What is shown is kept, for other frames. */
function paint(canvas, clip, {valid = null, token = null, cursor = null} = {}) {
  canvas.shown = {clip, valid, token, cursor};
  repaint(canvas);
}

function repaint(canvas) {
  const {clip, valid, token, cursor} = canvas.shown || {}, context = canvas.getContext("2d");
  const scale = 8, image = small.createImageData(W, H), {frame} = state;
  canvas.classList.toggle("waiting", !clip);
  if (!clip) return;
  if (canvas.width !== scale * W) Object.assign(canvas, {width: scale * W, height: scale * H});
  for (let i = 0; i < H * W; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = clip[3 * (frame * H * W + i) + c];
    if (valid && !valid[frame * H * W + i]) image.data.fill((i + Math.floor(i / W)) % 4 < 2 ? 190 : 160, 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  small.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small.canvas, 0, 0, scale * W, scale * H);
  const here = token !== null && Math.floor(frame * t / T) === PLACES[token][0];     // its supervoxel
  const box = cursor ? [cursor[1], cursor[0], 1, 1] :
    here ? [PLACES[token][2] * W / w, PLACES[token][1] * H / h, W / w, H / h] : [0, 0, 0, 0];
  Object.assign(context, {strokeStyle: "#fff", lineWidth: 3});
  context.strokeRect(...box.map(v => v * scale));
}

/** The buttons of a grid: look(i) -> [class, text, words]. */
function showGrid(id, look) {
  all(`#${id} button`).forEach((button, i) => {
    const [name, text, words, warmth = 0] = look(i), chosen = state.grid === id && state.token === i;
    button.className = name;
    button.textContent = text;
    button.style.setProperty("--warmth", warmth.toFixed(3));
    button.setAttribute("aria-label", `${place(i)}: ${words}`);
    button.setAttribute("aria-pressed", chosen);
    button.tabIndex = i === (state.grid === id ? state.token : 0) ? 0 : -1;
  });
}

const psnr = (a, b) => -10 * Math.log10(a.reduce((sum, x, i) => sum + (x - b[i]) ** 2, 0) / a.length / 255 ** 2);

function showClip(clip, tokens) {
  const picture = decoded(tokens), token = state.grid === "clip-tokens" ? state.token : null;
  paint($("clip"), clip, {token, cursor: state.cursor});
  paint($("decoded-clip"), picture, {token});
  showGrid("clip-tokens", i => ["decided", tokens?.[i] ?? "", `code ${tokens?.[i]}`]);
  const lost = picture ? ` Its tokens keep it at ${psnr(clip, picture).toFixed(0)} dB (25 is good here).` : "";
  $("clip-words").textContent = (state.painted ?
    "Painted by hand. The network knows one small world: four shapes in three colours, gliding over a dark ground. "
    + "It takes anything else for the nearest thing that it knows." :
    heldOut() ? "This clip was held out: the network has never seen it."
    : "The network was trained on this clip, among others.") + lost;
}

function showCondition(clip, made, isPad, condition, clipTokens) {
  paint($("given"), clip, {valid: made.valid, cursor: state.cursor});
  paint($("condition"), made.bytes);
  paint($("made").firstChild.firstChild, clip, {valid: made.valid});
  paint($("made").lastChild.firstChild, clip);
  paint($("decoded-condition"), decoded(condition));
  const alike = i => condition && clipTokens && condition[i] === clipTokens[i];
  showGrid("is-pad", i => [isPad[i] ? "masked" : "given", "", isPad[i] ? "only padding" : "something is given"]);
  showGrid("condition-tokens", i => [isPad[i] ? "padding" : alike(i) ? "given" : "wrong", condition?.[i] ?? "",
    `code ${condition?.[i]}, ${isPad[i] ? "of padding alone" : alike(i) ? "the clip's own" : "not the clip's"}`]);
  const given = isPad.filter(pad => !pad).length, right = isPad.filter((pad, i) => !pad && alike(i)).length;
  const {file, line} = LINES[state.task];
  $("condition-words").innerHTML = (given ? `Something is given in ${given} of ${N} tokens, and ${right} of these are the whole
    clip's own: next to padding the encoder sees another picture. COMMIT shows all ${given} to the transformer, which
    corrects them.` : "Nothing is given but the class: all tokens are padding, and the transformer sees [MASK] alone.")
    + (FACTS.labelled.includes(state.task) ? ` The class is “${FACTS.classes[label()]}”.` : "")
    + ` <a href="../${file}#L${line}">${file}, line ${line}</a>`;
}

function showRun(cells) {
  const [touched] = lineInWords(state.line, cells), dim = c => touched(c) ? "" : " untouched";
  const scores = cells.flatMap(c => c.score ?? []), low = Math.min(...scores), span = Math.max(...scores) - low || 1;
  showGrid("inputs", i => [cells[i].kind + dim(cells[i]), cells[i].input ?? "",
    cells[i].input === null ? "[MASK]" : `${cells[i].input}, ${cells[i].kind}`]);
  showGrid("tokens", i => [(cells[i].token === undefined ? "empty" : cells[i].before ? "drawn" :
    cells[i].known ? "given" : "decided") + dim(cells[i]), cells[i].token ?? "", `${cells[i].token ?? "not drawn yet"}`]);
  showGrid("scores", i => {
    const {score, after, before, token} = cells[i];
    if (token === undefined) return ["empty" + dim(cells[i]), "", "no score yet"];
    return score === null ? ["settled" + dim(cells[i]), "∞", "decided before"]
      : [(after ? "heat" : "heat kept") + dim(cells[i]), number(score), `${number(score)}, ${after ? "unknown" : "kept"}`,
         (score - low) / span];
  });
  all(".panel[data-lines]").forEach(panel =>
    panel.classList.toggle("written", panel.dataset.lines.split(",").includes(state.line)));
  all("#mini span").forEach((cell, i) => { cell.className = cells[i].kind + dim(cells[i]); });
  const name = state.line || "algorithm", {file, line, code} = LINES[name];
  $("said").textContent = lineInWords(state.line, cells)[1];
  $("code").textContent = code;
  Object.assign($("link"), {textContent: `${file}, line ${line}`, href: `../${file}#L${line}`});
  all("[data-line]").forEach(button => button.setAttribute("aria-pressed", button.dataset.line === state.line));

  const running = done() < state.goal, before = cells.filter(c => c.before).length, after = cells.filter(c => c.after).length;
  $("step-label").textContent = `Step ${state.step} of ${state.steps}`;
  Object.assign($("step"), {max: state.steps, value: state.step});
  Object.assign($("progress"), {max: state.goal || 1, value: done(), hidden: !running});
  $("back").disabled = state.step === 0;
  $("on").disabled = state.step === state.steps;
  $("run").textContent = running ? "Pause" : done() === state.steps ? "Run again, other noise" : done() ? "Go on" : "Run";
  const seconds = times.step * run.states.length * (state.goal - done()) / 1000;
  $("count").textContent = (state.step ? `${many(before)} predicted, ${before - after} decided, ${after} still unknown` :
    "Nothing is computed yet.") + (running && seconds > 3 ? `; about ${Math.ceil(seconds)} seconds left` : "");
  showSamples(running);
}

/** Decoded samples; while steps are computed only the one in front, where decoding is quick. */
function showSamples(running) {
  all("#made .sample canvas").forEach((canvas, sample) => {
    const made = run.states[sample]?.[state.step - 1], tokens = made?.tokens;
    const later = running && (run.states.length > 1 || times.decode > 700);
    const picture = tokens && (answers.get(tokens.join()) || (later ? undefined : decoded(tokens)));
    const token = state.grid === "tokens" && sample === state.sample ? state.token : null;
    if (picture || !tokens) paint(canvas, picture, {token});
    canvas.parentElement.setAttribute("aria-pressed", sample === state.sample);
  });
}

/** The chosen token: what it is, and what moves when it is another code. */
function showToken(tokens, cells) {
  const i = state.token, own = {"clip-tokens": tokens, "tokens": run.states[state.sample][state.step - 1]?.tokens}[state.grid];
  $("token").hidden = i === null || !own;
  if ($("token").hidden) return;
  const slot = $(state.grid === "tokens" ? "slot-run" : "slot-clip");
  if ($("token").parentElement !== slot) slot.append($("token"));
  const code = state.code ?? own[i], changed = own.map((k, j) => j === i ? code : k), c = cells[i];
  const before = decoded(own), after = decoded(changed);
  const likely = state.grid === "tokens" && c.likeliest ? c.likeliest : [];
  $("token-words").innerHTML = `<b>Token ${i + 1}</b> of ${N}: ${place(i)}, code ${own[i]}. ` + (state.grid !== "tokens" ? "" :
    `Its input was ${c.input === null ? "[MASK]" : c.input} (case ${c.which} of Eq. (2)); ${c.before
      ? `drawn in this step, with the score ${number(c.score)}` : "decided before this step"}${
      c.when && c.when < Infinity ? `; decided in step ${c.when}` : ""}.`);
  $("likely").parentElement.hidden = !likely.length;
  $("likely").innerHTML = likely.map(([k, p]) => `<button type="button" data-code="${k}">${k}: ${Math.round(100 * p)} %</button>`).join(" ");
  if (document.activeElement !== $("new-code")) $("new-code").value = code;
  paint($("changed"), after, {token: i});
  if (!before || !after) return;
  const moved = before.map((value, j) => Math.min(255, 3 * Math.abs(value - after[j])));
  let inside = 0, total = 0;
  before.forEach((value, j) => {
    const at = Math.floor(j / 3), size = Math.abs(value - after[j]);
    const here = [Math.floor(at / (H * W) * t / T), Math.floor(Math.floor(at / W) % H * h / H), Math.floor(at % W * w / W)];
    total += size;
    if (here.every((place, axis) => place === PLACES[i][axis])) inside += size;
  });
  paint($("moved"), moved, {token: i});
  $("moved-words").textContent = code === own[i] ? "Give it another code and see which pixels move." :
    `${Math.round(100 * inside / (total || 1))} % of what moved lies in its own supervoxel (white frame: ${T / t} frames of `
    + `${H / h} × ${W / w} pixels); the rest lies beyond, since the decoder mixes neighbours.`;
}

const dot = (x, y, r, look) => `<circle cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="${r}" ${look}/>`;
const text = (x, y, words, look = "") => `<text x="${x}" y="${y}" ${look}>${words}</text>`;
function svg(id, height, inside, words) {
  $(id).setAttribute("viewBox", `0 0 ${$(id).clientWidth || 500} ${height}`);
  $(id).innerHTML = inside;
  $(id).setAttribute("aria-label", $(`${id}-words`).textContent = words);
}

/** The scores of a step from the smallest to the largest: the cut-off is read off at its count. */
function showCutoff(cells) {
  const made = run.states[state.sample][state.step - 1], width = $("cutoff").clientWidth || 500;
  const drawn = cells.map((c, i) => ({...c, i})).filter(c => c.score !== null).sort((a, b) => a.score - b.score);
  if (!drawn.length) return svg("cutoff", 40, "", "The scores of a step, from the least sure to the surest, will stand here.");
  const low = drawn[0].score, span = drawn.at(-1).score - low || 1, count = drawn.filter(c => c.after).length;
  const x = rank => 14 + (width - 28) * (rank + 0.5) / drawn.length, y = score => 140 - 120 * (score - low) / span;
  const at = x(count - 0.5), line = (x1, y1, x2, y2) =>
    `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" stroke="var(--ink)" stroke-dasharray="4 3"/>`;
  svg("cutoff", 166, `<line x1="0" x2="${width}" y1="148" y2="148" stroke="var(--line)"/>`
    + drawn.map((c, rank) => dot(x(rank), y(c.score), 4.5, c.after ? `fill="var(--cold)" stroke="var(--quiet)"` : `fill="var(--decided)"`)
      + (c.i === state.token ? dot(x(rank), y(c.score), 8, `fill="none" stroke="var(--ink)" stroke-width="2"`) : "")).join("")
    + (count ? line(at, 8, at, 148) + line(0, y(made.cutoff), at, y(made.cutoff))
      + text(4, y(made.cutoff) - 5, `s* = ${number(made.cutoff)}`, `style="fill: var(--ink)"`) : "")
    + text(0, 163, "least sure") + text(width, 163, "surest", `text-anchor="end"`)
    + (count ? text(Math.min(width - 70, Math.max(90, at)), 163, `${count} stay`, `text-anchor="middle" style="fill: var(--ink)"`) : ""),
  !count ? `The last step has no cut-off: its ${many(drawn.length)} are all decided.` :
    `A dot for each token drawn in this step. The cut-off is the ${count}th smallest score: right of it ${drawn.length - count} decided, `
    + `left of it ${count} are drawn again.`);
}

/** How many tokens are unknown after each step, by each schedule. */
function showCurve(isPad) {
  const width = $("curve").clientWidth || 400, K = state.steps, free = run.known ? isPad.filter(Boolean).length : N;
  const left = (schedule, step) => !step ? free : step === K ? 0 : numMasked(maskRatio(step / K, schedule, N), free);
  const x = step => 34 + (width - 42) * step / K, y = count => 156 - 144 * count / free;
  const curve = schedule => {
    const chosen = schedule === state.schedule, below = schedule === "uniform";
    const points = Array.from({length: K + 1}, (_, step) => [x(step), y(left(schedule, step))]);
    const [px, py] = points[Math.round(K * (below ? 0.4 : 0.62))];
    return `<polyline points="${points.map(p => p.map(v => v.toFixed(1)).join()).join(" ")}" fill="none" stroke="var(${
      chosen ? "--accent" : "--quiet"})" stroke-width="${chosen ? 2.5 : 1}" stroke-dasharray="${
      chosen ? "" : {uniform: "6 4", exp: "2 3"}[schedule] || "4 2"}"/>`
      + text(px + (below ? -6 : 5), py + (below ? 14 : -5), schedule, `text-anchor="${below ? "end" : "start"}" style="fill: var(${
        chosen ? "--accent" : "--quiet"}); font-weight: ${chosen ? 600 : 400}"`);
  };
  const axis = [0, Math.round(free / 2), free].map(count => `<line x1="34" x2="${width - 8}" y1="${y(count)}" y2="${y(count)}"
    stroke="var(--line)"/>` + text(26, y(count) + 4, count, `text-anchor="end"`)).join("");
  svg("curve", 180, axis + [0, K].map(step => text(x(step), 174, step, `text-anchor="middle"`)).join("") + SCHEDULES.map(curve).join("")
    + dot(x(state.step), y(left(state.schedule, state.step)), 5, `fill="var(--accent)" stroke="var(--paper)" stroke-width="2"`),
  `After step ${state.step}: ${SCHEDULES.map(name => `${name} ${left(name, state.step)}`).join(", ")}.`);
  const {file, line} = LINES[state.schedule];
  $("curve-words").innerHTML += ` γ, the share that stays masked, is <a href="../${file}#L${line}">${file}, line ${line}</a>.`;
}

/** Clip and condition of a key, computed once. */
function prepared() {
  const key = `${clipKey()} ${state.task}`;
  if (prepared.key !== key) {
    const clip = state.painted || drawClip(WORLD, state, FACTS.size), video = toVideo(clip, FACTS.size), made = makeCondition(video, state.task);
    const isPad = isPadding(made.valid, FACTS.size, [t, h, w]);
    Object.assign(prepared, {key, made: {clip, video, isPad, ...made, condition: made.video, video, bytes: toBytes(made.video)}});
  }
  return prepared.made;
}

function draw() {
  wanted = [];
  const made = prepared(), {clip, isPad} = made;
  const condition = encoded(prepared.key, made.condition), tokens = encoded(clipKey(), made.video);
  prepareRun(condition, tokens, isPad);
  const seen = cells(isPad);
  showClip(clip, tokens);
  showCondition(clip, made, isPad, condition, tokens);
  showRun(seen);
  showToken(tokens, seen);
  showCutoff(seen);
  showCurve(isPad);
  showControls();
  occupy();
}

// ---------------------------------------------------------------------------------------------
// Controls

const go = change => { Object.assign(state, change); draw(); };
const CLIP = ["shape", "direction", "lane", "start", "colour"], RUN = ["method", "schedule", "steps", "temperature", "seed", "samples"];

/** A choice: a list of words, or a number with its limits; what of the clip is chosen draws it anew. */
function field(name, words, choices) {
  const options = Array.isArray(choices) ? choices.map((choice, i) => Array.isArray(choice) ? choice : [i, choice]) : null;
  const control = options ? `<select id="${name}">${options.map(([value, text]) =>
    `<option value="${value}">${text}</option>`).join("")}</select>`
    : `<input id="${name}" type="number" min="${choices.min}" max="${choices.max}" step="${choices.step}">`;
  return `<label class="field"><span class="small">${words}</span>${control}</label>`;
}

$("clip-choices").innerHTML = field("shape", "Shape", WORLD.shapes) + field("direction", "Moves", WORLD.directions)
  + field("colour", "Colour", COLOUR_NAMES.slice(0, WORLD.colours.length))
  + field("lane", "Lane", Array.from({length: WORLD.choices[1]}, (_, i) => i + 1))
  + field("start", "Starts at", Array.from({length: WORLD.choices[2]}, (_, i) => `${2 * i * WORLD.cell} px`))
  + `<button type="button" id="another">Another held-out clip</button>`;
$("run-choices").innerHTML = field("method", "What is shown of the given part", Object.keys(METHODS).map(name => [name, name]))
  + field("schedule", "Schedule γ", SCHEDULES.map(name => [name, name]))
  + field("steps", "Steps K", {min: 1, max: N, step: 1}) + field("temperature", "Temperature", {min: 0, max: 100, step: 0.5})
  + field("seed", "Seed of the noise", {min: 0, max: 999, step: 1}) + field("samples", "Samples", MOST.map(n => [n, n]));
for (const name of [...CLIP, ...RUN]) $(name).addEventListener("change", ({target}) => {
  const numeric = !["method", "schedule"].includes(name), {min, max} = target;
  let value = numeric ? Number(target.value) : target.value;
  if (min) value = Math.min(max, Math.max(min, name === "temperature" ? value : Math.round(value)));
  go({[name]: value, goal: 0, code: null, ...CLIP.includes(name) ? {painted: null} : {}});
});
$("another").addEventListener("click", () => {
  const some = list => Math.floor(Math.random() * list.length), [lane, start, colour] = WORLD.kept_back[some(WORLD.kept_back)];
  go({shape: some(WORLD.shapes), direction: some(WORLD.directions), lane, start, colour, painted: null, goal: 0, code: null});
});
$("task").innerHTML += TASKS.map(name => `<label><input type="radio" name="task" value="${name}"><b>${name}</b> ${
  FACTS.tasks[name]}</label>`).join("");
$("task").addEventListener("change", ({target}) => go({task: target.value, goal: 0}));

$("run").addEventListener("click", () => {
  if (done() < state.goal) return go({goal: done()});
  go(done() === state.steps ? {seed: (state.seed + 1) % 1000, goal: state.steps} : {goal: state.steps, step: done()});
});
const goStep = step => go({step: Math.min(step, done()), code: null, goal: Math.max(state.goal, Math.min(step, state.steps))});
$("back").addEventListener("click", () => goStep(state.step - 1));
$("on").addEventListener("click", () => goStep(state.step + 1));
$("step").addEventListener("input", ({target}) => goStep(Number(target.value)));

const buttonOf = ([name, formula, words]) => `<li><button type="button" data-line="${name}"><span>${name.slice(-1)}</span>
  <span>${formula}${words ? ` <small>${words}</small>` : ""}</span></button></li>`;
$("algorithm").innerHTML = LISTING.map(buttonOf).join("");
$("equation").innerHTML = CASES.map(([name, value, when, words]) => buttonOf([name, when, words]).replace(
  /<span>\d<\/span>/, `<span>${value}</span>`)).join("");
all("[data-line]").forEach(button => button.addEventListener("click", () =>
  go({line: state.line === button.dataset.line ? null : button.dataset.line})));

/** A box for each latent frame, with a cell for each token. */
const boxes = cell => Array.from({length: t}, () => `<div class="frame" style="grid-template-columns: repeat(${w},
  minmax(0, 1fr))">${cell.repeat(h * w)}</div>`).join("");
$("mini").innerHTML = boxes("<span></span>");
for (const grid of all(".frames")) {
  grid.innerHTML = boxes(`<button type="button"></button>`);
  grid.setAttribute("role", "group");
  const buttons = [...grid.querySelectorAll("button")];
  const choose = (token, again) => go(again ? {grid: null, token: null, code: null} : {grid: grid.id, token, code: null});
  buttons.forEach((button, i) => button.addEventListener("click", () => choose(i, state.grid === grid.id && state.token === i)));
  grid.addEventListener("keydown", event => {
    const move = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -w, ArrowDown: w}[event.key];
    const next = buttons.indexOf(document.activeElement) + move;
    if (!move || !buttons[next]) return;
    event.preventDefault();
    choose(next);
    buttons[next].focus();
  });
}
all(".spans").forEach(spans => { spans.innerHTML = Array.from({length: t}, (_, i) =>
  `<span>${i ? "" : "frames "}${i * T / t + 1}–${(i + 1) * T / t}</span>`).join(""); });
$("made").innerHTML = `<figure><canvas></canvas><figcaption>given</figcaption></figure>` + MOST.map(() =>
  `<figure class="sample" role="button" tabindex="0"><canvas></canvas><figcaption><b></b> from <i>ẑ</i></figcaption></figure>`).join("")
  + `<figure><canvas></canvas><figcaption>the clip itself</figcaption></figure>`;
all("#made .sample").forEach((figure, sample) => {
  const choose = event => { if (event.type === "click" || event.key === "Enter") go({sample}); };
  figure.addEventListener("click", choose);
  figure.addEventListener("keydown", choose);
});
$("token").innerHTML = `<div class="changes"><figure><canvas id="changed"></canvas><figcaption>decoded with the new code</figcaption>
  </figure><figure><canvas id="moved"></canvas><figcaption>what moved, three times as bright</figcaption></figure></div>
  <div><p id="token-words"></p><p><label>New code <input type="number" id="new-code" min="0" max="${CODES - 1}"></label>
  <button type="button" id="put-back">Put back</button></p><p class="small">likeliest here: <span id="likely"></span></p>
  <p class="small" id="moved-words"></p></div>`;
const another = value => go({code: Math.min(CODES - 1, Math.max(0, Math.round(Number(value) || 0)))});
$("new-code").addEventListener("input", ({target}) => another(target.value));
$("likely").addEventListener("click", ({target}) => { if (target.dataset.code) another(target.dataset.code); });
$("put-back").addEventListener("click", () => go({code: null}));

// The brush: by mouse or finger, and by keyboard
$("tools").innerHTML += COLOURS.map((colour, i) => `<label class="swatch" style="background: rgb(${colour.map(v => 255 * v)})">
  <input type="radio" name="brush" value="${i}" aria-label="${COLOUR_NAMES[i]}"></label>`).join("")
  + `<label>size <input type="range" id="size" min="1" max="9"></label>
  <label><input type="checkbox" id="moving"> moves on with the clip</label>
  <button type="button" id="empty">Empty clip</button> <button type="button" id="undo">Undo painting</button>`;
all("[name=brush]").forEach(input => input.addEventListener("change", () => go({brush: Number(input.value)})));
$("size").addEventListener("input", ({target}) => go({size: Number(target.value)}));
$("moving").addEventListener("change", ({target}) => go({moving: target.checked}));
const redrawn = painted => go({painted, version: state.version + 1, goal: 0, code: null});
$("empty").addEventListener("click", () => redrawn(ground()));
$("undo").addEventListener("click", () => redrawn(null));
for (const canvas of all(".paint")) {
  let painting = false;
  const stroke = event => {
    const {left, top, width, height} = canvas.getBoundingClientRect();
    state.playing = false;
    dab(Math.floor((event.clientY - top) * H / height), Math.floor((event.clientX - left) * W / width));
    [$("clip"), $("given")].forEach(each => { each.shown.clip = state.painted; repaint(each); });
  };
  const end = () => { if (painting) { painting = false; redrawn(state.painted); } };
  canvas.addEventListener("pointerdown", event => { painting = true; canvas.setPointerCapture(event.pointerId); stroke(event); });
  canvas.addEventListener("pointermove", event => { if (painting) stroke(event); });
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("keydown", event => {
    const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    const [y, x] = state.cursor || [H / 2, W / 2];
    if (move) go({cursor: [wrap(y + move[0], H), wrap(x + move[1], W)], playing: false});
    else if (event.key === " ") { dab(y, x); redrawn(state.painted); } else return;
    event.preventDefault();
  });
  canvas.addEventListener("blur", () => go({cursor: null}));
}

// Time: every clip on the page shows the same frame
all(".time").forEach(row => {
  row.innerHTML = `<button type="button" class="play"></button><label class="small"><span></span>
    <input type="range" min="1" max="${T}"></label>`;
  row.querySelector("button").addEventListener("click", () => go({playing: !state.playing}));
  row.querySelector("input").addEventListener("input", ({target}) => { go({frame: target.value - 1, playing: false}); });
});
function showTime() {
  all("canvas").forEach(canvas => canvas.shown && repaint(canvas));
  all(".time").forEach(row => {
    row.querySelector("button").textContent = state.playing ? "Pause" : "Play";
    row.querySelector("span").textContent = `Frame ${state.frame + 1} of ${T}`;
    row.querySelector("input").value = state.frame + 1;
  });
}
setInterval(() => {
  if (!state.playing || document.hidden) return;
  state.frame = (state.frame + 1) % T;
  showTime();
}, 160);

/** The address keeps what was chosen, so that it can be sent to somebody. */
const KEPT = [...CLIP, "task", ...RUN];
function readAddress() {
  const values = decodeURIComponent(location.hash.slice(1)).split("/");
  if (values.length !== KEPT.length || !TASKS.includes(values[CLIP.length])) return false;
  KEPT.forEach((name, i) => { state[name] = typeof state[name] === "number" ? Number(values[i]) : values[i]; });
  return true;
}

function showControls() {
  history.replaceState(null, "", "#" + KEPT.map(name => state[name]).join("/"));
  for (const name of [...CLIP, ...RUN]) if (document.activeElement !== $(name)) $(name).value = state[name];
  for (const name of ["task", "brush"]) document.querySelector(`[name=${name}][value="${state[name]}"]`).checked = true;
  Object.assign($("size"), {value: state.size});
  $("moving").checked = state.moving;
  $("undo").disabled = !state.painted;
  $("method-words").textContent = `${state.method}: ${METHODS[state.method]}`;
  all("#made .sample").forEach((figure, sample) => {
    figure.hidden = sample >= state.samples;
    figure.querySelector("b").textContent = state.samples > 1 ? `Sample ${sample + 1}` : "Decoded";
  });
  showTime();
  showTour();
}

// ---------------------------------------------------------------------------------------------
// The guided tour: each step sets everything itself

const [PLAIN, , OPEN] = WORLD.kept_back.map(([lane, start, colour]) => ({lane, start, colour}));
const BASE = {...state, ...PLAIN};
const TOUR = [
  ["A clip becomes tokens", "part-clip", {grid: "clip-tokens", token: 21, code: CODES - 1, frame: 5}, `A clip of ${T} frames is ${T * H * W * 3} numbers.
   The encoder makes ${N} tokens of it, each a number from 0 to ${CODES - 1}: the entry of a codebook that stands for
   ${T / t} frames by ${H / h} × ${W / w} pixels. The decoder makes a clip of tokens. Here one token was changed: below
   the tokens you see which pixels moved.`],
  ["What is given becomes a condition", "part-condition", {task: "OPC"}, `In central outpainting only the middle is given. COMMIT cuts it
   out first, fills the rest by repeating its border, and encodes that: the condition. It knows nothing of what is hidden. Orange
   tokens are not those of the whole clip, since the encoder sees padding beside them.`],
  ["Algorithm 1 decides step by step", "part-run", {task: "OPD", goal: FACTS.decoding.steps}, `In each step the
   transformer predicts every unknown token from the input z̄. The surest stay; the others are drawn again in the next step, until all
   are decided, those of the condition too. Click a line of the algorithm, or go back with ‹.`],
  ["Why not simply unmask?", "part-run", {...OPEN, task: "FP", method: "leaked tokens", goal: FACTS.decoding.steps, samples: 4, frame: 8},
   `One frame is given, and the whole clip's tokens are unmasked there. But a token sees far beyond its own pixels: these know how the
   clip goes on, and all samples move as the real one does. In use nobody has such tokens. COMMIT's, next, know only the frame.`],
  ["One frame, several futures", "part-run", {...OPEN, task: "FP", goal: FACTS.decoding.steps, samples: 4, frame: 8}, `The same first frame as
   a condition of COMMIT: it does not say where the shape will go, and the samples part. Temperature 0 takes away the noise that decides
   what is kept; more steps, another schedule γ, another seed: try them.`],
  ["Now draw your own", "part-clip", {task: "OPV", goal: FACTS.decoding.steps, lane: 1}, `This ring was painted by hand. Paint on it or
   empty the clip; choose what is given; press Run. The network knows four shapes in three colours and nothing else: it makes of your
   clip what it knows. That is worth seeing, too.`],
];

function goTour(tour) {
  const [, part, change] = TOUR[tour], samples = change.samples && slow() ? 2 : change.samples || 1;
  const kept = {version: state.version, playing: state.playing};
  Object.assign(state, BASE, kept, {tour, painted: null}, change, {samples});
  if (tour === TOUR.length - 1) ring();
  draw();
  $(part).scrollIntoView({behavior: STILL ? "auto" : "smooth"});
}

function showTour() {
  $("tour").hidden = state.tour === null;
  if (state.tour === null) return;
  const [title, , , words] = TOUR[state.tour];
  $("tour-title").textContent = `${state.tour + 1} of ${TOUR.length}: ${title}`;
  if ($("tour-words").textContent !== words) $("tour-words").textContent = words;
  $("tour-back").disabled = state.tour === 0;
  $("tour-next").hidden = state.tour === TOUR.length - 1;
}
$("tour-back").addEventListener("click", () => goTour(state.tour - 1));
$("tour-next").addEventListener("click", () => goTour(state.tour + 1));
$("tour-end").addEventListener("click", () => go({tour: null}));

$("how-many").textContent = FACTS.weights.reduce((sum, [, shape]) => sum + product(shape), 0).toLocaleString("en");
addEventListener("resize", draw);
if (readAddress()) state.tour = null;
else Object.assign(state, BASE, TOUR[0][2]);
draw();
