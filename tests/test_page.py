"""The page to play with: one file, the algorithm's own numbers, links that hold, a real browser.

    python tests/test_page.py --write     puts today's template and line numbers into docs/index.html;
                                          `python figures.py page` records anew
"""
import base64
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import page.record as room
from commit import mask_ratio, num_masked, tokenize_condition
from data.source import all_clips
from page.record import CLIPS, METHODS, SCHEDULES, filled, page, record, source_lines
from training.checkpoint import load_run

SHIPPED, TASK = ROOT / "docs/index.html", "OPC"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome")


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text,
                                re.S)[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page of one task."""
    folder = tmp_path_factory.mktemp("page")
    page(ROOT / "assets/toy", folder, (TASK,))
    return folder / "index.html"


@pytest.fixture(scope="module")
def data(made):
    return data_of(made.read_text())


def tokens_of(data, recording):
    numbers = np.frombuffer(base64.b64decode(data["tokens"]), np.uint8)
    count = data["steps"] * len(recording["decided"])
    return torch.tensor(numbers[recording["first"]:recording["first"] + count].astype(int)).view(
        data["steps"], -1)


# ---------------------------------------------------------------------------------------------
# The file

def test_the_page_is_one_file_that_needs_no_network(made):
    for path in (made, SHIPPED):
        text = path.read_text()
        assert path.stat().st_size <= 4e6
        assert not re.search(r"(?i)https?://|//[a-z]+\.[a-z]|@import|\bfetch\(|XMLHttp", re.sub(
            r"base64,[\w+/=]*|\"(tokens|scores)\":\"[^\"]*\"", "", text))
        assert not re.search(r"<(script|img|link|iframe)[^>]*(src|href)=(?!\"data:)", text)
        assert "{{" not in text


def test_the_shipped_page_has_todays_template_and_all_it_lets_one_choose():
    text = SHIPPED.read_text()
    assert text == filled(data_of(text)), "run: python tests/test_page.py --write"
    data = data_of(text)
    assert len(data["recordings"]) == len(data["conditions"]) * CLIPS * len(METHODS) * len(SCHEDULES)
    assert len(data["conditions"]) == 10


@pytest.mark.parametrize("name", source_lines())
def test_each_link_leads_to_the_line_that_it_names(name):
    place = data_of(SHIPPED.read_text())["lines"][name]
    line = (ROOT / place["file"]).read_text().splitlines()[place["line"] - 1]
    kind, _, number = name.partition(" ")
    assert place["code"] == line.strip()
    if kind == "line":
        assert re.search(rf"# lines? .*\b{number}\b", line)
    elif kind == "case":
        assert {"1": "condition_tokens,", "2": "mask_id,", "3": "tokens))"}[number] in line
    else:
        assert name.replace("COMMIT", "commit_decode").replace(" ", "_") in line


def test_a_line_that_moved_away_is_missed(monkeypatch):
    monkeypatch.setitem(room.MARKS, "line 3", ("decode.py", "no such line"))
    with pytest.raises(ValueError, match="decode.py has 0 lines with 'no such line'"):
        source_lines()


# ---------------------------------------------------------------------------------------------
# What was recorded

@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", METHODS)
def test_as_many_tokens_stay_unknown_as_line_6_says_and_none_in_the_end(data, method, schedule):
    steps = data["steps"]
    is_pad = torch.tensor(data["conditions"][TASK]["is_pad"]).bool()
    free = len(is_pad) if method == "COMMIT" else int(is_pad.sum())
    ratio = mask_ratio(torch.arange(1, steps + 1).double() / steps, schedule, len(is_pad))
    wanted = num_masked(ratio, free)[:-1].tolist() + [0]
    for clip in range(CLIPS):
        decided = torch.tensor(data["recordings"][f"{TASK}/{clip}/{method}/{schedule}"]["decided"])
        unknown = [int((decided > step).sum()) for step in range(1, steps + 1)]
        assert unknown == [min(count, free) for count in wanted]
        assert torch.equal(decided == 0, ~is_pad & (method != "COMMIT"))


@pytest.mark.parametrize("method", METHODS)
def test_the_recorded_tokens_are_those_that_decoding_gives_and_the_decided_stay(data, method):
    run = load_run(ROOT / "assets/toy")
    recordings = [data["recordings"][f"{TASK}/{clip}/{method}/cosine"] for clip in range(CLIPS)]
    condition = torch.tensor([clip["tokens"] for clip in data["conditions"][TASK]["clips"]])
    states = list(METHODS[method](
        run.transformer, torch.full((CLIPS,), run.transformer.prompts.index(TASK)),
        torch.full((CLIPS,), run.transformer.no_class), condition,
        torch.tensor(data["conditions"][TASK]["is_pad"]).bool(), steps=data["steps"],
        temperature=run.config.decode_temperature, generator=torch.Generator().manual_seed(0)))
    for clip, recording in enumerate(recordings):
        tokens, decided = tokens_of(data, recording), torch.tensor(recording["decided"])
        for state in states:
            assert torch.equal(tokens[state.step], state.tokens[clip])
            assert torch.equal(decided > state.step + 1, state.unknown[clip])
            settled = decided <= state.step + 1
            assert torch.equal(tokens[state.step][settled], tokens[-1][settled])


def test_the_condition_is_that_of_held_out_clips_of_the_class_that_is_named(data):
    run = load_run(ROOT / "assets/toy")
    video, label = all_clips(run.held_out())
    for clip, name in enumerate(data["clips"]):
        alike = video[label == run.class_names.index(name)]
        tokens, is_pad = tokenize_condition(run.tokenizer, alike, TASK)
        recorded = torch.tensor(data["conditions"][TASK]["clips"][clip]["tokens"])
        assert (tokens == recorded).float().mean(1).max() > 0.95
        assert is_pad.tolist() == data["conditions"][TASK]["is_pad"]


def test_scores_are_those_of_algorithm_1_and_the_cutoff_parts_them():
    run = load_run(ROOT / "assets/toy")
    N = run.transformer.config.num_tokens
    generator = torch.Generator().manual_seed(3)
    condition, is_pad = torch.randint(0, 128, (2, N), generator=generator), torch.arange(N) % 3 > 0
    how = dict(steps=6, temperature=2.0, schedule="cosine")
    for decode in METHODS.values():
        inputs = (run.transformer, torch.tensor([2, 5]), torch.tensor([16, 16]), condition, is_pad)
        made = record(run.transformer, decode, *inputs[1:], **how)
        for state in decode(*inputs, generator=torch.Generator().manual_seed(0), **how):
            still = state.confidence.isfinite()
            assert torch.equal(made.scores[:, state.step][still], state.confidence[still])
            now = made.decided == state.step + 1
            assert (made.scores[:, state.step] <= made.cutoffs[:, state.step, None])[still].all()
            if state.step < 5:
                assert (made.scores[:, state.step] > made.cutoffs[:, state.step, None])[now].all()


# ---------------------------------------------------------------------------------------------
# In a browser

VISIT = """
<script>
addEventListener("load", async () => {
  const wait = () => new Promise(done => setTimeout(done, 150));
  const picture = id => $(id).toDataURL(), seen = {}, errors = [];
  addEventListener("error", event => errors.push(event.message));
  const kinds = () => [...document.querySelectorAll("#inputs button")].map(b => b.className.split(" ")[0]);
  const count = (all, kind) => all.filter(each => each === kind).length;
  const press = (where, key) => where.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  await wait();
  if (state.playing) $("play").click();
  const walk = [];
  for (let step = 1; step <= K; step++) {
    $("step").value = step;
    $("step").dispatchEvent(new Event("input"));
    await wait();
    walk.push([picture("decoded"), kinds(), $("step-label").textContent]);
  }
  seen.pictures = new Set(walk.map(each => each[0])).size;
  seen.first = ["given", "masked", "decided"].map(kind => count(walk[0][1], kind));
  seen.decided = walk.map(each => count(each[1], "decided"));
  seen.label = walk.map(each => each[2]);
  const refined = picture("decoded"), real = picture("real");
  document.querySelectorAll("#method input")[1].click();
  await wait();
  seen.method = [location.hash, picture("decoded") !== refined, count(kinds(), "given"), picture("real") === real];
  document.querySelectorAll("#schedule input")[1].click();
  document.querySelectorAll("#clip input")[1].click();
  await wait();
  seen.clip = [location.hash, picture("real") !== real];
  $("frame").value = 9;
  $("frame").dispatchEvent(new Event("input"));
  await wait();
  seen.frame = [$("frame-label").textContent, state.playing];
  document.querySelector('[data-line="case 2"]').click();
  seen.line = [$("said").textContent, $("link").getAttribute("href"),
               document.querySelectorAll("#inputs .untouched").length];
  const cells = [...document.querySelectorAll("#inputs button")];
  cells[5].focus();
  press(cells[5], "ArrowDown");
  seen.key = [state.token, document.activeElement === cells[9], $("token").textContent.includes("Token 9")];
  seen.tabs = document.querySelectorAll("#inputs [tabindex='0']").length;
  seen.nameless = [...document.querySelectorAll("button, input, select, canvas, svg")].filter(each =>
    !(each.textContent.trim() || each.labels?.length || each.getAttribute("aria-label")
      || each.getAttribute("aria-hidden"))).length;
  seen.wide = document.documentElement.scrollWidth > innerWidth;
  seen.errors = errors;
  const told = document.createElement("pre");
  told.id = "seen";
  told.textContent = JSON.stringify(seen);
  document.body.append(told);
});
</script>
"""


def visited(path, profile, size, *flags):
    """What VISIT has seen on the page in a window of that size, and what the console said."""
    done = subprocess.run([
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", f"--window-size={size}", "--virtual-time-budget=20000",
        "--enable-logging=stderr", *flags, "--dump-dom", path.as_uri()],
        text=True, capture_output=True, timeout=60)
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert seen, done.stderr[-2000:]
    return json.loads(seen[1].replace("&amp;", "&").replace("&lt;", "<")), [
        line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(not BROWSER, reason="no chromium or chrome on the PATH to open the page with")
def test_the_page_works_in_a_browser_by_mouse_and_keyboard(made, data, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(made.read_text().replace("</body>", VISIT + "</body>"))
    seen, console = visited(path, tmp_path / "profile", "1200,900")
    assert console == [] and seen["errors"] == []
    decided = torch.tensor(data["recordings"][f"{TASK}/0/COMMIT/cosine"]["decided"])
    steps, is_pad = data["steps"], sum(data["conditions"][TASK]["is_pad"])
    assert seen["label"] == [f"Step {step} of {steps}" for step in range(1, steps + 1)]
    assert seen["pictures"] > steps // 2
    assert seen["first"] == [len(decided) - is_pad, is_pad, 0]
    assert seen["decided"] == [int((decided < step).sum()) for step in range(1, steps + 1)]
    assert seen["method"] == [f"#{TASK}/0/latent%20masking/cosine/{steps}", True,
                              len(decided) - is_pad, True]
    assert seen["clip"] == [f"#{TASK}/1/latent%20masking/uniform/{steps}", True]
    assert seen["frame"] == ["Frame 9/16", False]
    left = torch.tensor(data["recordings"][f"{TASK}/1/latent masking/uniform"]["decided"]) == steps
    assert seen["line"][0].startswith(f"{int(left.sum())} token")
    assert seen["line"][1:] == [f"../commit.py#L{source_lines()['case 2']['line']}",
                                len(decided) - int(left.sum())]
    assert seen["key"] == [9, True, True]
    assert seen["tabs"] == 1 and seen["nameless"] == 0 and not seen["wide"]


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        SHIPPED.write_text(filled(data_of(SHIPPED.read_text())))
    else:
        print(__doc__)
