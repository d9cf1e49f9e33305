"use strict";
// What a reader can do on the page. The networks and Algorithm 1 are in paper.js, above.
//
// state is all that a reader can choose; go(change) changes it and draws the page anew. What takes
// longer is asked of a worker: ask(key, work) returns an answer, or undefined, and the page is drawn
// again once the answer is there. Read draw, and from there what it calls.

const $ = id => document.getElementById(id), all = query => [...document.querySelectorAll(query)];
const when = (element, event, act) => element.addEventListener(event, act);
const FACTS = JSON.parse($("facts").textContent), {shapes: WORLD, lines: LINES} = FACTS;
const [T, H, W] = FACTS.size, TASKS = Object.keys(FACTS.tasks), STEPS = FACTS.decoding.steps;
const GRID = new Tokenizer(FACTS.tokenizer, {}).latentShape(FACTS.size), [t, h, w] = GRID;
const N = t * h * w, CODES = FACTS.tokenizer.codebook_size;
const METHODS = {
  "COMMIT": "the condition's tokens stand where [MASK] would, and are decided anew like the others.",
  "latent masking": "the condition's tokens count as decided from the start, right or wrong.",
  "leaked tokens": "where something is given, the whole clip's tokens stand. They know the rest.",
};
const SCHEDULES = ["cosine", "uniform", "exp"];
const PAINTS = {red: WORLD.colours[0], green: WORLD.colours[1], blue: WORLD.colours[2],
                yellow: [0.95, 0.85, 0.2], white: [0.9, 0.9, 0.9],
                ground: Array(3).fill(WORLD.ground)};
const STILL = matchMedia("(prefers-reduced-motion: reduce)").matches;

const state = {
  shape: 3, direction: 0, lane: 1, start: 0, colour: 0,              // the clip
  painted: null, version: 0, brush: "yellow", size: 3, moving: true, cursor: null,
  task: "OPC", method: "COMMIT", ...FACTS.decoding, seed: 0, samples: 1,
  step: 0, goal: 0, sample: 0,                    // the step that is shown; compute up to; of which
  frame: 0, playing: !STILL, line: null, grid: null, token: null, code: null, tour: 0,
};
const CLIP = ["shape", "direction", "lane", "start", "colour"];
const RUN = ["task", "method", "schedule", "steps", "temperature", "seed", "samples"];

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
    if (answers.size > 400) answers.delete(answers.keys().next().value);
    if (work === "step" && id === run.id) arrived(sample, answer);
    draw();
  };
} catch (error) {
  document.querySelector("header").append(`This browser lets no page compute: ${error.message}`);
}

const slow = () => times.encode > 1500;                              // a phone: fewer samples at once
const done = () => Math.min(...run.states.map(states => states.length));
const shown = () => run.states[state.sample][state.step - 1];        // what the shown step has done

/** The answer to a piece of work, once it is there; until then it is on the list of what is wanted. */
function ask(key, work) {
  if (!answers.has(key)) wanted.push({key, ...work});
  return answers.get(key);
}
const decoded = tokens => tokens && ask(tokens.join(), {work: "decode", tokens});
const encoded = (key, video) => ask(key, {work: "encode", video: video.data});

/** Gives the worker what is wanted first, or else the next step of Algorithm 1. */
function occupy() {
  const lengths = run.states.map(states => states.length), least = Math.min(...lengths);
  const step = run.ready && least < state.goal &&
    {work: "step", id: run.id, sample: lengths.indexOf(least)};
  const item = wanted[0] || run.start || step;
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
  const key = [clipKey(), ...RUN.map(name => state[name])].join("|");
  if (run.key !== key) {
    const states = Array.from({length: samples}, () => []);
    Object.assign(run, {id: run.id + 1, key, states, ready: false, start: null, condition: null});
    Object.assign(state, {step: 0, sample: Math.min(state.sample, samples - 1)});
    run.known = method === "COMMIT" ? null : isPad.map(pad => !pad);
  }
  run.condition = method === "leaked tokens" ? clipTokens : condition;
  if (run.ready || !run.condition) return;
  run.ready = true;
  run.start = {
    work: "run", task, label: FACTS.labelled.includes(task) ? label() : FACTS.transformer.num_classes,
    condition: run.condition, isPad, options: {steps, temperature, schedule, known: run.known},
    seeds: run.states.map((_, sample) => seed + 1000 * sample)};
}

// ---------------------------------------------------------------------------------------------
// The clip: one of the data set's, or painted by hand; bytes (T, H, W, 3)

const label = () => state.shape * WORLD.directions.length + state.direction;
const clipKey = () =>
  state.painted ? `painted ${state.version}` : CLIP.map(name => state[name]).join();
const heldOut = () => WORLD.kept_back.some(([lane, start, colour]) =>
  lane === state.lane && start === state.start && colour === state.colour);
const ground = () => new Uint8Array(T * H * W * 3).fill(WORLD.ground * 255 + 0.5);

/** Paints a disc of the brush; in the other frames too, further on, where it moves with the clip. */
function dab(y, x) {
  state.painted ??= drawClip(WORLD, state, FACTS.size);
  const [down, right] = WAYS[state.direction], colour = PAINTS[state.brush].map(v => v * 255 + 0.5);
  for (let frame = 0; frame < T; frame++) {
    if (!state.moving && frame !== state.frame) continue;
    const moved = WORLD.speed * (frame - state.frame), reach = Math.ceil(state.size / 2);
    for (let dy = -reach; dy <= reach; dy++) for (let dx = -reach; dx <= reach; dx++) {
      if (Math.hypot(dy, dx) > state.size / 2 - 0.3) continue;
      const row = wrap(y + dy + moved * down, H), column = wrap(x + dx + moved * right, W);
      state.painted.set(colour, 3 * ((frame * H + row) * W + column));
    }
  }
}

/** A picture to begin with, in the tour: a yellow ring. */
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
// Each line of Algorithm 1 in words: which tokens it touched in this step

const many = n => `${n} token${n === 1 ? "" : "s"}`;
const number = x => x.toFixed(Math.abs(x) < 9.95 ? 1 : 0).replace("-", "−");
const PLACES = Array.from({length: N}, (_, i) =>
  [Math.floor(i / (h * w)), Math.floor(i / w) % h, i % w]);
const place = i => (([frame, row, column]) =>
  `latent frame ${frame + 1}, row ${row + 1}, column ${column + 1}`)(PLACES[i]);

/** What the shown step did to each token; before the first step, what it will be given. */
function cells(isPad) {
  const made = shown(), states = run.states[state.sample];
  return isPad.map((pad, i) => {
    const known = Boolean(run.known?.[i]);
    const before = made ? made.masked[i] : !known, after = made ? made.unknown[i] : !known;
    const which = !before ? 3 : pad ? 2 : 1;                         // the case of Eq. (2)
    return {
      known, before, after, which, decided: 1 + states.findIndex(each => !each.unknown[i]),
      kind: known || which === 1 ? "given" : which === 2 ? "masked" : "decided",
      input: which === 2 ? "[MASK]" : made ? made.inputs[i] : run.condition?.[i] ?? "",
      token: made?.tokens[i], score: made && before ? made.confidence[i] : null,
    };
  });
}

/** [which cells a line touched, in words]. */
function lineInWords(line, cells) {
  const count = test => cells.filter(test).length;
  const cases = [1, 2, 3].map(n => count(c => c.which === n));
  const unknown = count(c => c.before), left = count(c => c.after), known = count(c => c.known);
  const made = shown(), last = state.step === state.steps, kept = unknown - left;
  const every = () => true, is = n => n === 1 ? "is" : "are";
  if (!line) return [every, "Click a line: the tokens that it touched in this step stay bright."];
  if (line === "line 1") return [c => !c.known, "Before the first step all scores are 0, below a "
    + (known ? `cut-off of 1: all are unknown but ${known}, which count as decided.`
             : `cut-off of 1: all ${N} tokens are unknown, those of the condition too.`)];
  if (!made) return [every, "Nothing has been computed yet: press Run, or › for one step."];
  return {
    "line 2": [every, `The slider is this loop: step ${state.step} of ${state.steps} is
      t = ${state.step - 1}. Each step asks the transformer once, about all ${N} tokens together.`],
    "line 3": [every, `Eq. (2) makes the input of all ${N} tokens: ${cases[0]} show the condition's
      token, ${cases[1]} are [MASK], ${cases[2]} were decided before.`],
    "line 4": [c => c.before, `${many(unknown)} ${is(unknown)} drawn from what the transformer
      predicts; the other ${N - unknown} stay.`],
    "line 5": [c => c.before, `The same ${many(unknown)} get a new score: the log probability of what
      was drawn, plus noise times the temperature, which fades to none at the last step.`],
    "line 6": last ? [() => false, `γ(1) N = 0, and there is no 0th smallest score: after the last
      step everything is decided.`] : [c => c.after, `${many(left)} may stay unknown; the largest of
      their scores is the new cut-off s* = ${number(made.cutoff)}.`],
    "line 7": [c => c.before && !c.after, `${many(kept)} ${is(kept)} above the cut-off and decided for
      good.`],
    "line 8": [c => c.after, last ? "The loop ends here." : `The next step begins with ${many(left)}
      unknown.`],
    "line 9": [every, last ? `All ${N} tokens are decided: the decoder makes the clip of them.` :
      `After step ${state.steps} all ${N} are decided. What is decoded here is the guess so far.`],
    "case 1": [c => c.which === 1, run.known ? `None: what is given counts as decided from the start,
      and is never corrected.` : `${many(cases[0])} of the given part, not decided yet: the transformer
      sees the condition's token, and may correct it.`],
    "case 2": [c => c.which === 2, `${many(cases[1])} where nothing is given, not decided yet: the
      transformer sees [MASK].`],
    "case 3": [c => c.which === 3, `${many(cases[2])} decided: the transformer sees the token itself.`],
  }[line];
}

// ---------------------------------------------------------------------------------------------
// Drawing

const small = Object.assign(document.createElement("canvas"), {width: W, height: H}).getContext("2d");

/** Shows a clip on a canvas: striped where it is not valid, with the supervoxel of a token, or with
    the place of the brush. What is shown is kept, for its other frames. */
function paint(canvas, clip, {valid = null, token = null, cursor = null} = {}) {
  canvas.shown = {clip, valid, token, cursor};
  repaint(canvas);
}

function repaint(canvas) {
  const {clip, valid, token, cursor} = canvas.shown, {frame} = state, scale = 8;
  canvas.classList.toggle("waiting", !clip);
  if (!clip) return;
  const image = small.createImageData(W, H), first = frame * H * W;
  for (let i = 0; i < H * W; i++) {
    const stripe = (i + Math.floor(i / W)) % 4 < 2 ? 190 : 160, given = !valid || valid[first + i];
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = given ? clip[3 * (first + i) + c] : stripe;
    image.data[4 * i + 3] = 255;
  }
  small.putImageData(image, 0, 0);
  const context = canvas.getContext("2d"), [at, row, column] = PLACES[token ?? 0];
  if (canvas.width !== scale * W) Object.assign(canvas, {width: scale * W, height: scale * H});
  Object.assign(context, {imageSmoothingEnabled: false, strokeStyle: "#fff", lineWidth: 3});
  context.drawImage(small.canvas, 0, 0, scale * W, scale * H);
  const box = cursor ? [cursor[1], cursor[0], 1, 1] :
    token === null || Math.floor(frame * t / T) !== at ? [] :
    [column * W / w, row * H / h, W / w, H / h];
  if (box.length) context.strokeRect(...box.map(v => v * scale));
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

const toLine = name => `<a href="../${LINES[name].file}#L${LINES[name].line}">${LINES[name].file}, line
  ${LINES[name].line}</a>`;

function showClip({clip}, tokens) {
  const picture = decoded(tokens), token = state.grid === "clip-tokens" ? state.token : null;
  paint($("clip"), clip, {token, cursor: state.cursor});
  paint($("decoded-clip"), picture, {token});
  showGrid("clip-tokens", i => ["decided", tokens?.[i] ?? "", `code ${tokens?.[i]}`]);
  const error = picture && clip.reduce((sum, x, i) => sum + (x - picture[i]) ** 2, 0) / clip.length;
  $("clip-words").textContent = (state.painted ? `Painted by hand. The network knows one small world:
    four shapes in three colours, gliding over a dark ground. It takes anything else for the nearest
    thing that it knows.` : heldOut() ? "This clip was held out: the network has never seen it." :
    "The network was trained on this clip, among others.") + (picture ? ` Decoded
    from its tokens it comes back at ${Math.round(10 * Math.log10(255 ** 2 / error))} dB (25 is
    good).` : "");
}

function showCondition({clip, valid, condition: video, isPad}, condition, tokens) {
  paint($("given"), clip, {valid, cursor: state.cursor});
  paint($("condition"), toBytes(video));
  paint($("decoded-condition"), decoded(condition));
  const alike = i => condition && tokens && condition[i] === tokens[i];
  const given = isPad.filter(pad => !pad).length;
  const right = isPad.filter((pad, i) => !pad && alike(i)).length;
  showGrid("is-pad", i => isPad[i] ? ["masked", "", "only padding"] : ["given", "", "something given"]);
  showGrid("condition-tokens", i => isPad[i] ? ["padding", condition?.[i] ?? "", "of padding alone"] :
    alike(i) ? ["given", condition[i], `${condition[i]}, the clip's own`] :
    ["wrong", condition?.[i] ?? "", `${condition?.[i]}, not the clip's`]);
  $("condition-words").innerHTML = (given ? `Something is given in ${given} of ${N} tokens, and ${right}
    of these are the whole clip's own: next to padding the encoder sees another picture. COMMIT shows
    all ${given} to the transformer, which corrects them.` : `Nothing is given but the class: all tokens
    are padding, and the transformer sees [MASK] alone.`) + (FACTS.labelled.includes(state.task) ?
    ` The class is “${FACTS.classes[label()]}”. ` : " ") + toLine(state.task);
}

function showRun(cells, {clip, valid}) {
  const [touched, words] = lineInWords(state.line, cells), scores = cells.flatMap(c => c.score ?? []);
  const low = Math.min(...scores), span = Math.max(...scores) - low || 1;
  const grid = (id, look) => showGrid(id, i => {
    const [name, ...rest] = look(cells[i]);
    return [name + (touched(cells[i]) ? "" : " untouched"), ...rest];
  });
  grid("inputs", c => [c.kind, c.which === 2 ? "" : c.input, `${c.input}, ${c.kind}`]);
  grid("tokens", c => c.token === undefined ? ["empty", "", "not drawn yet"] :
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
  $("said").textContent = words;
  $("code").textContent = LINES[state.line || "algorithm"].code;
  $("link").innerHTML = toLine(state.line || "algorithm");

  const running = done() < state.goal, before = cells.filter(c => c.before).length;
  const after = cells.filter(c => c.after).length;
  const seconds = times.step * run.states.length * (state.goal - done()) / 1000;
  $("step-label").textContent = `Step ${state.step} of ${state.steps}`;
  Object.assign($("step"), {max: state.steps, value: state.step});
  Object.assign($("progress"), {max: state.goal || 1, value: done(), hidden: !running});
  $("back").disabled = state.step === 0;
  $("on").disabled = state.step === state.steps;
  $("run").textContent = running ? "Pause" : done() === state.steps ? "Run again" :
    done() ? "Go on" : "Run";
  $("count").textContent = (state.step ? `${many(before)} predicted, ${before - after} decided,
    ${after} still unknown` : "Nothing is computed yet.")
    + (running && seconds > 3 ? `; about ${Math.ceil(seconds)} seconds left` : "");
  paint($("made").firstElementChild.firstElementChild, clip, {valid});
  paint($("made").lastElementChild.firstElementChild, clip);
  showSamples(running);
}

/** Decoded samples; while steps are computed only a single one, and only where that is quick. */
function showSamples(running) {
  const later = running && (state.samples > 1 || times.decode > 700);
  all("#made .sample").forEach((figure, sample) => {
    const tokens = run.states[sample]?.[state.step - 1]?.tokens, front = sample === state.sample;
    const picture = later ? answers.get(tokens?.join()) : decoded(tokens);
    const token = state.grid === "tokens" && front ? state.token : null;
    if (picture || !tokens) paint(figure.firstElementChild, picture, {token});
    figure.hidden = sample >= state.samples;
    figure.setAttribute("aria-pressed", front && state.samples > 1);
    figure.querySelector("b").textContent = state.samples > 1 ? `Sample ${sample + 1}` : "Decoded";
  });
}

/** The chosen token: what it is, and what moves when it is another code. */
function showToken(tokens, cells) {
  const i = state.token, guessed = state.grid === "tokens", own = guessed ? shown()?.tokens : tokens;
  $("token").hidden = !(guessed || state.grid === "clip-tokens") || !own;
  if ($("token").hidden) return;
  const slot = $(guessed ? "slot-run" : "slot-clip"), c = cells[i], code = state.code ?? own[i];
  if ($("token").parentElement !== slot) slot.append($("token"));
  $("token-words").innerHTML = `<b>Token ${i + 1}</b> of ${N}: ${place(i)}, code ${own[i]}. `
    + (guessed ? `Its input was ${c.input} (case ${c.which} of Eq. (2)); ${c.before ?
        `drawn in this step with the score ${number(c.score)}` : "decided before this step"}.` : "");
  $("likely").parentElement.hidden = !guessed;
  $("likely").innerHTML = guessed ? shown().likeliest[i].map(([k, p]) =>
    `<button type="button" data-code="${k}">${k}: ${Math.round(100 * p)} %</button>`).join(" ") : "";
  if (document.activeElement !== $("new-code")) $("new-code").value = code;
  const before = decoded(own), after = decoded(own.map((k, j) => j === i ? code : k));
  paint($("changed"), after, {token: i});
  if (!before || !after) return;
  const moved = before.map((value, j) => Math.min(255, 3 * Math.abs(value - after[j])));
  const inside = moved.filter((_, j) => {
    const at = Math.floor(j / 3), row = Math.floor(at / W) % H, [frame, y, x] = PLACES[i];
    return Math.floor(Math.floor(at / (H * W)) * t / T) === frame &&
      Math.floor(row * h / H) === y && Math.floor(at % W * w / W) === x;
  });
  const sum = values => values.reduce((a, b) => a + b, 0);
  paint($("moved"), moved, {token: i});
  $("moved-words").textContent = code === own[i] ? "Give it another code and see which pixels move." :
    `${Math.round(100 * sum(inside) / (sum(moved) || 1))} % of what moved lies in the token's own
    supervoxel (white frame: ${T / t} frames of ${H / h} × ${W / w} pixels), the rest beyond: the
    decoder mixes neighbours.`;
}

const text = (x, y, words, look = "") => `<text x="${x}" y="${y}" ${look}>${words}</text>`;
const rule = (x1, y1, x2, y2, look = `stroke="var(--line)"`) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" ${look}/>`;
const dot = (x, y, r, look) => `<circle cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="${r}" ${look}/>`;
function chart(id, height, words, inside) {
  $(id).setAttribute("viewBox", `0 0 ${$(id).clientWidth} ${height}`);
  $(id).setAttribute("aria-label", $(`${id}-words`).textContent = words);
  $(id).innerHTML = inside;
}

/** The scores of a step from the smallest to the largest: the cut-off is read off at its count. */
function showCutoff(cells) {
  const width = $("cutoff").clientWidth, made = shown(), ink = `style="fill: var(--ink)"`;
  const drawn = cells.map((c, i) => ({...c, i})).filter(c => c.score !== null);
  if (!drawn.length) return chart("cutoff", 20, "The scores of a step will stand here, in order.", "");
  drawn.sort((a, b) => a.score - b.score);
  const low = drawn[0].score, span = drawn.at(-1).score - low || 1, {count, cutoff} = made;
  const x = rank => 14 + (width - 28) * (rank + 0.5) / drawn.length, at = x(count - 0.5);
  const y = score => 140 - 120 * (score - low) / span;
  const dashed = `stroke="var(--ink)" stroke-dasharray="4 3"`;
  const dots = drawn.map((c, rank) => dot(x(rank), y(c.score), 4.5, c.after ?
    `fill="var(--cold)" stroke="var(--quiet)"` : `fill="var(--decided)"`) + (c.i !== state.token ? "" :
    dot(x(rank), y(c.score), 8, `fill="none" stroke="var(--ink)" stroke-width="2"`)));
  chart("cutoff", 166, count ? `A dot for each token drawn in this step. The cut-off is score
    number ${count} from the left: the ${drawn.length - count} to its right are decided, those to its
    left are drawn again.` : `The last step has no cut-off: its ${many(drawn.length)} are all decided.`,
    rule(0, 148, width, 148) + dots.join("") + text(0, 163, "least sure")
    + text(width, 163, "surest", `text-anchor="end"`) + (count ?
      rule(at, 8, at, 148, dashed) + rule(0, y(cutoff), at, y(cutoff), dashed)
      + text(4, y(cutoff) - 5, `s* = ${number(cutoff)}`, ink)
      + text(Math.min(width - 90, Math.max(110, at)), 163, `${count} stay`,
             `text-anchor="middle" ${ink}`) : ""));
}

/** How many tokens are unknown after each step, by each schedule. */
function showCurve(isPad) {
  const width = $("curve").clientWidth, K = state.steps;
  const free = run.known ? isPad.filter(Boolean).length : N;
  const left = (schedule, step) => step === 0 ? free : step === K ? 0 :
    numMasked(maskRatio(step / K, schedule, N), free);
  const x = step => 34 + (width - 42) * step / K, y = count => 156 - 144 * count / free;
  const curves = SCHEDULES.map((schedule, i) => {
    const points = Array.from({length: K + 1}, (_, step) => [x(step), y(left(schedule, step))]);
    const look = schedule === state.schedule ? `stroke="var(--accent)" stroke-width="2.5"` :
      `stroke="var(--quiet)" stroke-dasharray="${["4 2", "6 4", "2 3"][i]}"`;
    const [px, py] = points[Math.round(K * [0.62, 0.4, 0.62][i])], below = schedule === "uniform";
    return `<polyline points="${points.join(" ")}" fill="none" ${look}/>` + text(px + (below ? -6 : 5),
      py + (below ? 14 : -5), schedule, `text-anchor="${below ? "end" : "start"}"`);
  });
  chart("curve", 180, `After step ${state.step}: ${SCHEDULES.map(name =>
    `${name} ${left(name, state.step)}`).join(", ")}. γ says which share stays masked: `,
    [0, Math.round(free / 2), free].map(count => rule(34, y(count), width - 8, y(count))
      + text(26, y(count) + 4, count, `text-anchor="end"`)).join("")
    + text(x(0), 174, 0, `text-anchor="middle"`) + text(x(K), 174, K, `text-anchor="middle"`)
    + curves.join("")
    + dot(x(state.step), y(left(state.schedule, state.step)), 5, `fill="var(--accent)"`));
  $("curve-words").innerHTML += toLine(state.schedule);
}

function showTime() {
  all("canvas").forEach(canvas => canvas.shown && repaint(canvas));
  for (const row of all(".time")) {
    row.querySelector("button").textContent = state.playing ? "Pause" : "Play";
    row.querySelector("span").textContent = `Frame ${state.frame + 1} of ${T}`;
    row.querySelector("input").value = state.frame + 1;
  }
}

function showControls() {
  history.replaceState(null, "", "#" + [...CLIP, ...RUN].map(name => state[name]).join("/"));
  for (const name of [...CLIP, ...RUN, "size"])
    if (name !== "task" && document.activeElement !== $(name)) $(name).value = state[name];
  for (const name of ["task", "brush"])
    document.querySelector(`[name=${name}][value="${state[name]}"]`).checked = true;
  $("moving").checked = state.moving;
  $("undo").disabled = !state.painted;
  $("method-words").textContent = `${state.method}: ${METHODS[state.method]}`;
  const seconds = name => `${(times[name] / 1000 || 0).toFixed(2)} s`;
  $("times").textContent = `At best, on this device: encoding a clip ${seconds("encode")}, a step of
    Algorithm 1 ${seconds("step")}, decoding ${seconds("decode")}.`;
}

function draw() {
  wanted = [];
  const made = prepared(), {isPad} = made;
  const condition = encoded(prepared.key, made.condition), tokens = encoded(clipKey(), made.video);
  prepareRun(condition, tokens, isPad);
  const seen = cells(isPad);
  showClip(made, tokens);
  showCondition(made, condition, tokens);
  showRun(seen, made);
  showToken(tokens, seen);
  showCutoff(seen);
  showCurve(isPad);
  showControls();
  showTour();
  showTime();
  occupy();
}

// ---------------------------------------------------------------------------------------------
// Controls

const go = change => { Object.assign(state, change); draw(); };
const anew = change => go({goal: 0, code: null, ...change});         // with nothing computed yet
const goStep = step =>
  go({step: Math.min(step, done()), code: null, goal: Math.max(state.goal, step)});

/** A choice among words, or a number from least to most. */
function field(name, words, choices, most, step = 1) {
  const control = Array.isArray(choices) ? `<select id="${name}">${choices.map((word, i) =>
    `<option value="${typeof state[name] === "string" ? word : i}">${word}</option>`).join("")}</select>`
    : `<input id="${name}" type="number" min="${choices}" max="${most}" step="${step}">`;
  return `<label class="field"><span class="small">${words}</span>${control}</label>`;
}
const upTo = (count, word) => Array.from({length: count}, (_, i) => word(i));
$("clip-choices").innerHTML = field("shape", "Shape", WORLD.shapes)
  + field("direction", "Moves", WORLD.directions)
  + field("colour", "Colour", Object.keys(PAINTS).slice(0, WORLD.choices[3]))
  + field("lane", "Lane", upTo(WORLD.choices[1], i => i + 1))
  + field("start", "Starts at", upTo(WORLD.choices[2], i => `${2 * i * WORLD.cell} pixels`))
  + `<button type="button" id="another">Another held-out clip</button>`;
$("run-choices").innerHTML = field("method", "What is shown of the given part", Object.keys(METHODS))
  + field("schedule", "Schedule γ", SCHEDULES) + field("steps", "Steps K", 1, N)
  + field("temperature", "Temperature", 0, 100, 0.5) + field("seed", "Seed of the noise", 0, 999)
  + field("samples", "Samples", 1, 4);
$("task").innerHTML += TASKS.map(name => `<label><input type="radio" name="task" value="${name}">
  <b>${name}</b> ${FACTS.tasks[name]}</label>`).join("");
for (const name of [...CLIP, ...RUN]) when($(name), "change", ({target}) => {
  const chosen = typeof state[name] === "string" ? target.value : Number(target.value);
  const clipped = target.type !== "number" ? chosen : Math.min(target.max, Math.max(target.min,
    name === "temperature" ? chosen : Math.round(chosen)));
  anew({[name]: clipped, ...CLIP.includes(name) ? {painted: null} : {}});
});
when($("another"), "click", () => {
  const some = list => Math.floor(Math.random() * list.length);
  const [lane, start, colour] = WORLD.kept_back[some(WORLD.kept_back)];
  anew({shape: some(WORLD.shapes), direction: some(WORLD.directions), lane, start, colour,
        painted: null});
});
when($("run"), "click", () =>
  done() < state.goal ? go({goal: done()}) :                                          // pause
  done() < state.steps ? go({goal: state.steps, step: done()}) :
  go({seed: (state.seed + 1) % 1000, goal: state.steps}));
when($("back"), "click", () => goStep(state.step - 1));
when($("on"), "click", () => goStep(state.step + 1));
when($("step"), "input", ({target}) => goStep(Number(target.value)));
all("[data-line]").forEach(button => when(button, "click", () =>
  go({line: state.line === button.dataset.line ? null : button.dataset.line})));

// Grids of tokens: a box for each latent frame, with a cell for each token
const boxes = cell => `<div class="frame" style="grid-template-columns: repeat(${w}, minmax(0, 1fr))">${
  cell.repeat(h * w)}</div>`.repeat(t);
$("mini").innerHTML = boxes("<span></span>");
for (const spans of all(".spans")) spans.innerHTML = upTo(t, i =>
  `<span>${i ? "" : "frames "}${i * T / t + 1}–${(i + 1) * T / t}</span>`).join("");
for (const grid of all(".frames")) {
  grid.innerHTML = boxes(`<button type="button"></button>`);
  const buttons = [...grid.querySelectorAll("button")];
  const choose = token => go({grid: grid.id, token, code: null});
  buttons.forEach((button, i) => when(button, "click", () =>
    state.grid === grid.id && state.token === i ? go({grid: null, token: null, code: null}) : choose(i)));
  when(grid, "keydown", event => {
    const move = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -w, ArrowDown: w}[event.key];
    const next = buttons.indexOf(document.activeElement) + move;
    if (!move || !buttons[next]) return;
    event.preventDefault();
    choose(next);
    buttons[next].focus();
  });
}
const newCode = value => go({code: Math.min(CODES - 1, Math.max(0, Math.round(Number(value))))});
$("new-code").max = CODES - 1;
when($("new-code"), "input", ({target}) => newCode(target.value));
when($("likely"), "click", ({target}) => { if (target.dataset.code) newCode(target.dataset.code); });
when($("put-back"), "click", () => go({code: null}));
all("#made .sample").forEach((figure, sample) => {
  when(figure, "click", () => go({sample}));
  when(figure, "keydown", ({key}) => { if (key === "Enter") go({sample}); });
});

// The brush: by mouse or finger, and by keyboard
$("brush").innerHTML += Object.entries(PAINTS).map(([name, colour]) => `<label class="swatch"
  style="background: rgb(${colour.map(v => 255 * v)})"><input type="radio" name="brush" value="${name}"
  aria-label="${name}"></label>`).join("");
const repainted = painted => anew({painted, version: state.version + 1});
when($("brush"), "change", ({target}) => go({brush: target.value}));
when($("size"), "input", ({target}) => go({size: Number(target.value)}));
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
    const [y, x] = placeOf(event), steps = Math.max(1, Math.abs(y - last[0]), Math.abs(x - last[1]));
    state.playing = false;
    for (let i = 1; i <= steps; i++)
      dab(...[y, x].map((to, axis) => Math.round(last[axis] + (to - last[axis]) * i / steps)));
    last = [y, x];
    all(".paint").forEach(each => { each.shown.clip = state.painted; repaint(each); });
  };
  const end = () => { if (last) repainted(state.painted); last = null; };
  when(canvas, "pointerdown", event => { last = placeOf(event); stroke(event); });
  when(canvas, "pointermove", stroke);
  for (const event of ["pointerup", "pointerleave", "pointercancel"]) when(canvas, event, end);
  when(canvas, "blur", () => go({cursor: null}));
  when(canvas, "keydown", event => {
    const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1],
                  ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    const [y, x] = state.cursor || [H / 2, W / 2];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    if (move) return go({cursor: [wrap(y + move[0], H), wrap(x + move[1], W)], playing: false});
    dab(y, x);
    repainted(state.painted);
  });
}

// Time: every clip on the page shows the same frame
for (const row of all(".time")) {
  row.innerHTML = `<button type="button" class="play"></button><label class="small"><span></span>
    <input type="range" min="1" max="${T}"></label>`;
  when(row.querySelector("button"), "click", () => go({playing: !state.playing}));
  when(row.querySelector("input"), "input", ({target}) => go({frame: target.value - 1, playing: false}));
}
setInterval(() => {
  if (!state.playing || document.hidden) return;
  state.frame = (state.frame + 1) % T;
  showTime();
}, 160);

// ---------------------------------------------------------------------------------------------
// The guided tour: each step sets everything itself. In turn title, part of the page, state, words.

const [PLAIN, , OPEN] = WORLD.kept_back.map(([lane, start, colour]) => ({lane, start, colour}));
const BASE = {...state, ...PLAIN}, FUTURES = {...OPEN, task: "FP", goal: STEPS, samples: 4, frame: 8};
const TOUR = [
  ["A clip becomes tokens", "part-clip", {grid: "clip-tokens", token: 21, code: CODES - 1, frame: 5},
   `A clip of ${T} frames is ${(T * H * W * 3).toLocaleString("en")} numbers. The encoder turns it into
    ${N} tokens, each a number from 0 to ${CODES - 1}: an entry of a codebook, which stands for ${T / t}
    frames by ${H / h} × ${W / w} pixels. The decoder turns tokens into a clip again. One token has been
    changed here: below the tokens you see which pixels moved.`],
  ["What is given becomes a condition", "part-condition", {},
   `In central outpainting only the middle is given. COMMIT cuts it out first, fills the rest by
    repeating its border, and encodes that: the condition, which knows nothing of what is hidden. Its
    orange tokens are not those of the whole clip, because the encoder sees padding beside them.`],
  ["Algorithm 1 decides step by step", "part-run", {task: "OPD", goal: STEPS},
   `In each step the transformer predicts every unknown token from the input z̄. The surest are kept; the
    others are drawn again in the next step, until all are decided, those of the condition too. Click a
    line of the algorithm, or go back with ‹.`],
  ["Why not simply unmask?", "part-run", {...FUTURES, method: "leaked tokens"},
   `One frame is given, and the whole clip's tokens are unmasked there. But a token sees far beyond its
    own pixels: these tokens know how the clip goes on, and all samples move as the real clip does. Who
    has only the frame does not have such tokens; training on them teaches nothing.`],
  ["One frame, several futures", "part-run", FUTURES,
   `The same first frame, as a condition of COMMIT: it does not say where the shape will go, and the
    samples go different ways. Try temperature 0, which takes away the noise that decides what is kept,
    fewer steps, another schedule γ, another seed. A network as small as this one sometimes forgets the
    colour, too.`],
  ["Now draw your own", "part-clip", {task: "OPV", goal: STEPS},
   `This ring was painted by hand. Paint on it, or empty the clip; choose what is given; press Run. The
    network knows four shapes in three colours and nothing else, and takes your clip for what it knows.
    What it makes of the ring stands below, in part 3.`],
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

/** The address keeps what was chosen, for a link to it; false where it is none. */
function readAddress() {
  const names = [...CLIP, ...RUN], values = decodeURIComponent(location.hash.slice(1)).split("/");
  const fits = values.length === names.length && names.every((name, i) => {
    if (name === "task") return TASKS.includes(values[i]);
    $(name).value = values[i];
    return $(name).value === values[i] && $(name).validity.valid;
  });
  if (fits) names.forEach((name, i) => {
    state[name] = typeof state[name] === "string" ? values[i] : Number(values[i]);
  });
  return fits;
}

$("how-many").textContent = FACTS.weights.reduce((sum, [, shape]) => sum + product(shape), 0)
  .toLocaleString("en");
for (const canvas of all("canvas")) canvas.setAttribute("role", "img");
for (const canvas of all("figure > canvas"))
  canvas.setAttribute("aria-label", canvas.nextElementSibling.textContent);
when(window, "resize", draw);
Object.assign(state, readAddress() ? {tour: null} : {...BASE, ...TOUR[0][2]});
draw();
