"""docs/index.html: one file, links that hold, PyTorch's numbers, and a walk through every control.

JavaScript is tried in Node and in Chromium, each where there is one. The page in the browser tells
what it has seen by a POST to a server of the test's own.
"""
import http.server
import json
import re
import shutil
import subprocess
import threading
from base64 import b64decode, b64encode

import numpy as np
import pytest
import torch
from conftest import ROOT
from einops import rearrange

from commit import TASKS, make_condition, mask_ratio, num_masked, tokenize_condition
from data.moving_shapes import MovingShapes
from data.source import to_float
from decode import commit_decode, seeded_noise
from docs.page import facts, networks, page, source_lines
from training.checkpoint import load_run

SHIPPED, TOY = ROOT / "docs/index.html", ROOT / "assets/toy"
NODE = shutil.which("node")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)
need_node = pytest.mark.skipif(not NODE, reason="no node on the PATH to run the JavaScript with")
need_browser = pytest.mark.skipif(not BROWSER, reason="no chromium or chrome on the PATH to open "
                                                      "the page with")
CLIPS, STEP = 16, 5


@pytest.fixture(scope="module")
def run():
    return load_run(TOY)


@pytest.fixture(scope="module")
def shipped():
    return SHIPPED.read_text()


def block(text, name):
    """What stands in <script ... id="name">."""
    return re.search(rf'<script[^>]* id="{name}">(.*?)</script>', text, re.S)[1]


# ---------------------------------------------------------------------------------------------
# The file

def test_the_page_is_one_file_that_needs_no_network(shipped):
    assert SHIPPED.stat().st_size <= 4e6
    text = shipped.replace(block(shipped, "weights"), "")
    text = re.sub(r"base64,[\w+/=]*", "", text)
    assert not re.search(r"(?i)https?://|//[a-z]+\.[a-z]|@import|\bfetch\(|XMLHttp|WebSocket", text)
    assert not re.search(r"<(script|img|link|iframe)[^>]*(src|href)=(?!\"data:)", text)
    assert "{{" not in text


def test_the_shipped_page_is_what_the_command_makes_today(shipped):
    """Apart from the picture, which another version of Pillow writes otherwise."""
    made, picture = page(TOY), r"data:image/webp;base64,[\w+/=]*"
    same = re.sub(picture, "", made) == re.sub(picture, "", shipped)
    assert same, "run: python -m docs.page"


def test_its_weights_are_the_runs_half_floats(shipped, run):
    weights = np.frombuffer(b64decode(block(shipped, "weights")), "<f2").astype(np.float32)
    wanted = torch.cat([weight.flatten() for weight in networks(run).values()])
    assert np.array_equal(weights, wanted.half().float().numpy())
    assert len(weights) == sum(np.prod(shape) for _, shape in facts(run)["weights"])


@pytest.mark.parametrize("name", source_lines())
def test_each_link_leads_to_the_line_that_it_names(shipped, name):
    place = json.loads(block(shipped, "facts"))["lines"][name]
    line = (ROOT / place["file"]).read_text().splitlines()[place["line"] - 1]
    kind, _, number = name.partition(" ")
    assert place["code"] == line.strip()
    if kind == "line":
        assert re.search(rf"# lines? .*\b{number}\b", line)
    elif kind == "case":
        assert {"1": "condition_tokens,", "2": "mask_id,", "3": "tokens))"}[number] in line
    else:
        assert name.replace("algorithm", "commit_decode") in line


# ---------------------------------------------------------------------------------------------
# The numbers: the same work in PyTorch and in JavaScript

CHECK = """
function check({facts, weights, clips, runs}) {
  const arrays = readWeights(weights, facts.weights), start = performance.now(), seen = {ms: {}};
  const tokenizer = new Tokenizer(facts.tokenizer, arrays);
  const grid = tokenizer.latentShape(facts.size);
  const transformer = new Transformer(facts.transformer, arrays), known = new Map();
  const timed = (name, work) => {
    const begin = performance.now(), result = work(), ms = performance.now() - begin;
    seen.ms[name] = Math.min(seen.ms[name] ?? Infinity, Math.round(ms));
    return result;
  };
  const floats = text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
  const encode = video => {                                  // FP and CFP have the same condition
    const key = toBytes(video).join();
    if (!known.has(key)) known.set(key, timed("encode", () => tokenizer.encode(video)));
    return known.get(key);
  };
  seen.tokens = clips.map(clip => {
    const video = toVideo(drawClip(facts.shapes, clip, facts.size), facts.size);
    return [encode(video), ...Object.keys(facts.tasks).map(task =>
      encode(makeCondition(video, task).video))];
  });
  const empty = {data: new Float64Array(3 * product(facts.size)), shape: [3, ...facts.size]};
  seen.pads = Object.keys(facts.tasks).map(task =>
    isPadding(makeCondition(empty, task).valid, facts.size, grid));
  const apart = (a, b) => a.map((x, i) => Math.abs(x - b[i]));
  seen.runs = runs.map(({task, label, condition, isPad, noise, inputs, logits, tokens, pixels}) => {
    let heard = floats(noise), at = 0;
    const options = {...facts.decoding, noise: count => heard.subarray(at, at += count)};
    const steps = timed("generation", () =>
      [...commitDecode(transformer, task, label, condition, isPad, options)]);
    const given = timed("step", () => transformer.logits(inputs, task, label));
    const made = timed("decode", () => tokenizer.decode(tokens, grid));
    const differences = apart(made.data, floats(pixels));
    return {steps: steps.map(step => step.tokens), unknown: steps.map(step => step.unknown),
            logits: Math.max(...apart(given, floats(logits))), heard: at === heard.length,
            pixels: differences.reduce((a, b) => a + b) / differences.length};
  });
  return seen;
}
"""


def packed(values):
    return b64encode(np.asarray(values, "<f4").tobytes()).decode()


def recorded(run, task, video, label):
    """What PyTorch makes of a task, with its noise."""
    model, heard = run.transformer, []
    condition, is_pad = tokenize_condition(run.tokenizer, video, task)
    draw = seeded_noise(list(TASKS).index(task))

    def noise(shape):
        heard.append(draw(shape))
        return heard[-1]

    label = label if TASKS[task].class_conditional else model.no_class
    prefix = torch.tensor([model.config.tasks.index(task)]), torch.tensor([label])
    states = list(commit_decode(model, *prefix, condition, is_pad, noise=noise,
                                **run.config.decoding))
    inputs, tokens = states[STEP].inputs, states[-1].tokens
    grid = run.tokenizer.latent_shape(*video.shape[2:])
    wanted = dict(steps=[state.tokens[0].tolist() for state in states],
                  unknown=[state.unknown[0].tolist() for state in states])
    return wanted, dict(
        task=task, label=label, condition=condition[0].tolist(), isPad=is_pad.tolist(),
        noise=packed(torch.cat([each.flatten() for each in heard])), inputs=inputs[0].tolist(),
        logits=packed(model(inputs, *prefix).flatten()), tokens=tokens[0].tolist(),
        pixels=packed(run.tokenizer.decode(tokens.view(1, *grid)).flatten()))


def held_out_clips(run):
    """Held-out clips as videos, their labels, and how the page names them."""
    clips = MovingShapes("test")
    order = np.arange(len(clips)).reshape(-1, CLIPS).T.flatten()[:CLIPS]
    drawn = [clips.clip(int(i)) for i in order]
    label, *rest = np.unravel_index(clips.numbers[order], clips.choices)
    names = [dict(zip(("shape", "direction", "lane", "start", "colour"), map(int, each)))
             for each in zip(label // 4, label % 4, *rest)]
    return to_float(np.stack([clip for clip, _ in drawn])), [name for _, name in drawn], names


@pytest.fixture(scope="module")
def numbers(run):
    """(what JavaScript is given, what PyTorch made of it)."""
    video, labels, names = held_out_clips(run)
    made = [recorded(run, task, video[i:i + 1], labels[i]) for i, task in enumerate(run.tasks)]
    return dict(clips=names, runs=[given for _, given in made]), [wanted for wanted, _ in made]


def compare(seen, wanted, run):
    """Tokens may differ where two codes are equally near in float32, and nowhere else."""
    video = held_out_clips(run)[0][:len(seen["tokens"])]
    tokenizer, tasks = run.tokenizer, run.tasks
    grid = tokenizer.latent_shape(*video.shape[2:])
    for i, task in enumerate([None, *tasks]):
        condition = make_condition(video, task)[0] if task else video
        two = tokenizer.quantizer.distances(tokenizer.latents(condition)).sort(1).values[:, :2]
        tie = rearrange(two.diff() < 1e-4, "(b n) 1 -> b n", b=len(video))
        ours = torch.tensor([tokens[i] for tokens in seen["tokens"]])
        differ = ours != tokenizer.encode(condition).flatten(1)
        assert not (differ & ~tie).any(), task
        assert differ.float().mean() < 0.005 and tie.float().mean() < 0.02
    for task, is_pad in zip(tasks, seen["pads"]):
        assert is_pad == tokenize_condition(tokenizer, video[:1], task)[1].tolist()
    steps = run.config.decoding["steps"]
    for task, ours, theirs in zip(tasks, seen["runs"], wanted, strict=True):
        assert ours["steps"] == theirs["steps"] and ours["unknown"] == theirs["unknown"], task
        assert ours["heard"] and ours["logits"] < 2e-3 and ours["pixels"] < 1 / 255, task
        progress = torch.arange(1, steps + 1).double() / steps
        counts = num_masked(mask_ratio(progress, run.config.decoding["schedule"], grid[0] * grid[1]
                                       * grid[2]), len(ours["steps"][0]))[:-1].tolist() + [0]
        assert [sum(step) for step in ours["unknown"]] == counts


@need_node
def test_in_node_the_networks_and_algorithm_1_give_pytorchs_numbers(shipped, run, numbers,
                                                                    tmp_path):
    given, wanted = numbers
    for name in ("paper", "facts", "weights"):
        (tmp_path / name).write_text(block(shipped, name))
    (tmp_path / "given").write_text(json.dumps(given | dict(clips=given["clips"][:2])))
    (tmp_path / "run.js").write_text("""
        const {runInThisContext: run} = require("vm"), {readFileSync} = require("fs");
        const read = name => readFileSync(`${__dirname}/${name}`, "utf8");
        run(read("paper"));
        run(read("check"));
        const facts = JSON.parse(read("facts")), given = JSON.parse(read("given"));
        console.log(JSON.stringify(check({facts, weights: read("weights"), ...given})));
    """)
    (tmp_path / "check").write_text(CHECK)
    done = subprocess.run([NODE, tmp_path / "run.js"], text=True, capture_output=True, timeout=300)
    assert not done.stderr
    seen = json.loads(done.stdout)
    print("milliseconds in Node:", seen["ms"])
    compare(seen, wanted, run)


# ---------------------------------------------------------------------------------------------
# In a browser

def visit(folder, text, script, *flags, width=1280, timeout=400):
    """Opens the page with a script of the test's at its end, in a frame of so many pixels: what the
    script tells, and what the console said. A window of Chromium is at least 500 pixels wide."""
    told = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    server.timeout = timeout
    told_by = (f"const tell = seen => fetch('http://127.0.0.1:{server.server_port}', "
               "{method: 'POST', mode: 'no-cors', body: JSON.stringify(seen)});")
    (folder / "index.html").write_text(
        text.replace("</body>", f"<script>{told_by}\n{script}</script></body>"))
    (folder / "frame.html").write_text(
        f'<iframe src="index.html" width="{width}" height="900" style="border: 0"></iframe>')
    log = folder / "log"
    with open(log, "w") as stderr:
        browser = subprocess.Popen([
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000",
            "--enable-logging=stderr", *flags, (folder / "frame.html").as_uri()], stderr=stderr)
        listening = threading.Thread(target=server.handle_request)
        listening.start()
        listening.join()
        browser.terminate()
        browser.wait()
        server.server_close()
    said = [line for line in log.read_text().splitlines() if "CONSOLE" in line]
    assert told, said
    return told[0], said


@need_browser
def test_in_a_browser_the_networks_and_algorithm_1_give_pytorchs_numbers(shipped, run, numbers,
                                                                         tmp_path):
    given, wanted = numbers
    seen, said = visit(tmp_path, shipped, f"{CHECK}\nconst given = {json.dumps(given)};" + """
        worker.terminate();
        tell(check({facts: FACTS, weights: $("weights").textContent, ...given}));
    """)
    print("milliseconds in Chromium:", seen["ms"])
    assert said == []
    compare(seen, wanted, run)


WALK = """
const errors = [], seen = {start: [state.playing, innerWidth]};
const rest = ms => new Promise(go => setTimeout(go, ms));
addEventListener("error", event => errors.push(event.message));
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
const idle = async () => {
  do await rest(30); while (busy || wanted.length || done() < state.goal);
};
const kinds = grid => all(`#${grid} button`).map(button => button.className.split(" ")[0]);
const count = (grid, kind) => kinds(grid).filter(each => each === kind).length;
const picture = id => $(id).toDataURL(), sampleOf = n => all("#made .sample canvas")[n].toDataURL();
const put = (id, value) => {
  if (CHOICES[id]) $(id).selectedIndex = CHOICES[id][1].indexOf(value);
  else $(id).value = value;
  for (const name of ["input", "change"]) $(id).dispatchEvent(new Event(name, {bubbles: true}));
};
const samples = () => Array.from({length: state.samples}, (_, sample) => {
  const steps = [];
  while (stepOf(sample, steps.length + 1)) steps.push(stepOf(sample, steps.length + 1));
  return steps;
});
const key = (element, key) =>
  element.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const shorter = 4;
BASE.steps = state.steps = shorter;
for (const [, , change] of TOUR) if (change.goal) change.goal = shorter;

(async () => {
  await idle();
  seen.tour = [];
  for (const [i] of TOUR.entries()) {
    if (i) $("tour-next").click();
    await idle();
    seen.tour.push([$("tour-title").textContent, state.step, state.task, state.method,
                    sampleOf(0) !== sampleOf(1)]);
  }
  seen.unseen = $("clip-words").textContent;
  $("tour-end").click();
  seen.left = $("tour").hidden;

  // The clip
  put("shape", 1); put("direction", 2); put("colour", 1); put("lane", 3); put("start", 1);
  await idle();
  seen.clip = [label(), state.painted, $("clip-words").textContent, clipKey()];
  $("another").click();
  await idle();
  seen.another = heldOut();
  go({playing: false});
  const before = picture("clip"), {left, top, width} = $("clip").getBoundingClientRect();
  for (const [type, x] of [["pointerdown", 0.2], ["pointermove", 0.5], ["pointerup", 0.5]])
    $("clip").dispatchEvent(new PointerEvent(type, {
      clientX: left + x * width, clientY: top + 0.5 * width}));
  await idle();
  seen.painted = [picture("clip") !== before, state.version, state.playing];
  $("given").focus();
  key($("given"), "ArrowLeft"); key($("given"), "ArrowUp"); key($("given"), " ");
  seen.key = [state.cursor, state.version];
  $("moving").click(); put("brush", "red");
  $("empty").click();
  await idle();
  seen.brush = [state.moving, state.brush, new Set(state.painted).size];
  $("undo").click();
  await idle();
  go({cursor: null});
  seen.undone = [state.painted, picture("clip") === before];

  // Conditions
  seen.tasks = [];
  for (const task of TASKS) {
    put("task", task);
    await idle();
    seen.tasks.push([state.task, count("is-pad", "given"),
                     $("condition-words").textContent.includes("class is")]);
  }
  put("task", "OPC");
  await idle();

  // Algorithm 1
  seen.methods = [];
  for (const method of Object.keys(METHODS)) {
    put("method", method);
    $("on").click();
    await idle();
    const first = ["given", "masked", "decided"].map(kind => count("inputs", kind));
    $("run").click();
    await idle();
    seen.methods.push([method, first, count("scores", "settled") > 0, state.step]);
  }
  put("method", "COMMIT");
  seen.schedules = [];
  for (const schedule of CHOICES.schedule[1]) {
    put("schedule", schedule); $("run").click();
    await idle();
    seen.schedules.push(samples()[0].map(step => step.unknown.filter(Boolean).length));
  }
  put("schedule", "cosine"); put("steps", 8); put("temperature", 0);
  put("seed", 7); put("samples", 3);
  await idle();
  $("run").click();
  while (done() < 2) await rest(20);
  $("run").click();
  await idle();
  const paused = done();
  await rest(300);
  seen.paused = [paused < 8, done() === paused, $("run").textContent];
  $("run").click();
  await idle();
  all("#made .sample")[2].click();
  $("back").click();
  seen.back = [state.step, state.sample, $("step-label").textContent];
  put("step", 2);
  seen.slider = [state.step, samples().map(steps => steps.length)];
  put("seed", 8); put("samples", 1); $("run").click();
  await idle();
  const one = samples()[0].at(-1).tokens.join();
  put("seed", 9); answers.clear(); put("seed", 8); $("run").click();
  await idle();
  seen.again = samples()[0].at(-1).tokens.join() === one;

  // Words
  seen.lines = all("[data-line]").map(button => {
    button.click();
    return [button.dataset.line, button.getAttribute("aria-pressed"), $("said").textContent,
            $("link").firstChild.getAttribute("href")];
  });
  goStep(2);
  document.querySelector('[data-line="case 2"]').click();
  seen.dimmed = [count("inputs", "masked"), all("#inputs .untouched").length];
  const cells = all("#tokens button"), shown = sampleOf(0);
  cells[5].focus();
  key(cells[5], "ArrowDown");
  await idle();
  seen.arrow = [state.grid, state.token, document.activeElement === cells[5 + w]];
  put("new-code", 3);
  await idle();
  seen.changed = [state.code, $("moved-words").textContent, picture("changed") !== shown];
  $("put-back").click();
  seen.back2 = state.code;
  cells[5 + w].click();
  seen.closed = $("token").hidden;

  // Time
  document.querySelector(".time input").value = 9;
  document.querySelector(".time input").dispatchEvent(new Event("input"));
  seen.frame = [state.frame, state.playing];
  document.querySelector(".play").click();
  await rest(500);
  seen.play = [state.playing, state.frame !== 8];
  seen.nameless = all("button, input, select, canvas, svg").filter(each =>
    !each.closest("[hidden]") && !each.textContent.trim() && !each.labels?.length &&
    !each.getAttribute("aria-label")).map(each => each.outerHTML);
  seen.tabs = document.querySelectorAll("#inputs [tabindex='0']").length;
  seen.wide = document.documentElement.scrollWidth > innerWidth;
  tell({...seen, errors, times});
})().catch(error => tell({...seen, errors: [...errors, error.stack]}));
"""


@need_browser
@pytest.mark.parametrize("width, flags", [(1280, []), (400, ["--force-prefers-reduced-motion"])])
def test_every_control_of_the_page_works_and_nothing_goes_wrong(shipped, run, tmp_path, width,
                                                                flags):
    seen, said = visit(tmp_path, shipped, WALK, *flags, width=width)
    assert seen["errors"] == [] and said == []
    print("milliseconds in Chromium's worker:", seen["times"])
    assert seen["start"] == [not flags, width] and not seen["wide"] and seen["nameless"] == []

    assert [title[0] for title, *_ in seen["tour"]] == list("123456")
    assert [step for _, step, *_ in seen["tour"]] == [0, 0, 4, 4, 4, 4]
    assert [method for *_, method, _ in seen["tour"]] == ["COMMIT"] * 3 + ["leaked tokens"] + [
        "COMMIT"] * 2
    assert seen["tour"][4][-1] and seen["left"] and "one small world" in seen["unseen"]
    assert seen["clip"][:2] == [6, None] and seen["clip"][3] == "1,2,1,3,1"
    assert "held out" in seen["clip"][2] and seen["another"]
    assert seen["painted"][0] and not seen["painted"][2]
    assert seen["key"][0] == [15, 15] and seen["key"][1] > seen["painted"][1]
    assert seen["brush"] == [False, "red", 1] and seen["undone"] == [None, True]

    video = torch.zeros(1, 3, *run.config.clip_shape)
    pads = {task: tokenize_condition(run.tokenizer, video, task)[1] for task in run.tasks}
    assert seen["tasks"] == [[task, int((~is_pad).sum()), TASKS[task].class_conditional]
                             for task, is_pad in pads.items()]
    N, given = len(pads["OPC"]), int((~pads["OPC"]).sum())
    assert seen["methods"] == [[method, [given, N - given, 0], True, 4]
                               for method in ("COMMIT", "latent masking", "leaked tokens")]
    progress = torch.arange(1, 5).double() / 4
    counts = {schedule: num_masked(mask_ratio(progress, schedule, N), N)[:-1].tolist() + [0]
              for schedule in ("cosine", "uniform", "exp")}
    assert seen["schedules"] == list(counts.values())
    assert seen["paused"] == [True, True, "Continue"] and seen["again"]
    assert seen["back"] == [7, 2, "Step 7 of 8"] and seen["slider"] == [2, [8, 8, 8]]

    lines = source_lines()
    for name, pressed, words, link in seen["lines"]:
        assert pressed == "true" and words
        assert link == f"../{lines[name]['file']}#L{lines[name]['line']}"
    assert seen["dimmed"][0] + seen["dimmed"][1] == N and seen["tabs"] == 1
    assert seen["arrow"] == ["tokens", 9, True] and seen["changed"][0] == 3
    assert "supervoxel" in seen["changed"][1] and seen["changed"][2]
    assert seen["back2"] is None and seen["closed"]
    assert seen["frame"] == [8, False] and seen["play"] == [True, True]
