"""The documentation cannot rot: what README and docs say is generated, parsed, or run here.

    python tests/test_docs.py --write     brings the generated parts of README.md and docs up to date
"""
import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from discriminator import DISCRIMINATORS  # noqa: E402
from tokenizer import TOKENIZERS  # noqa: E402
from train import parse  # noqa: E402
from training.presets import PRESETS  # noqa: E402
from training.start import transformer_config  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAPER = ["tokenizer", "discriminator", "commit", "transformer", "steps", "decode"]
TOP = [*PAPER, "train", "evaluate", "long_video"]
FOLDERS = ["data", "training", "measure", "comparisons", "magvit2", "docs"]
MODULES = TOP + [f"{folder}.{path.stem}" for folder in FOLDERS
                 for path in sorted((ROOT / folder).glob("*.py")) if path.stem != "__init__"]

# What is where: reference -> file, symbol, test file, a word of a test's name.
INDEX = [
    ("Eq. (1), masked token modeling", "commit", "CommitLoss", "test_commit", "eq_4_is"),
    ("Eq. (2), the COMMIT mask", "commit", "commit_mask", "test_commit", "eq_2_equals"),
    ("Eq. (3), the training objective", "commit", "commit_loss", "test_commit", "eq_4_is"),
    ("Eq. (4), refine + mask + reconstruct", "commit", "CommitLoss", "test_commit", "eq_4_is"),
    ("Algorithm 1, lines 1-9", "decode", "commit_decode", "test_decode", "algorithm_1_equals"),
    ("Sec. 2, mask ratio gamma", "commit", "mask_ratio", "test_commit", "gamma_falls"),
    ("Sec. 2, cut-off s*", "commit", "cutoff_score", "test_commit", "the_cutoff_is"),
    ("Sec. 3.1, 3D-VQ encoder", "tokenizer", "Encoder", "test_parity", "tokenizer_computes"),
    ("Sec. 3.1, quantizer", "tokenizer", "VectorQuantizer", "test_tokenizer", "nearest_code"),
    ("Sec. 3.1, inflation; Table 7", "tokenizer", "inflate", "test_parity", "inflation_fills"),
    ("Sec. 3.1, reflect padding", "tokenizer", "conv", "test_tokenizer", "reflect_padding"),
    ("Sec. 3.1, 3D discriminator", "discriminator", "Discriminator3d", "test_parity",
     "discriminator_computes"),
    ("Sec. 3.1, LeCam", "discriminator", "LeCam", "test_discriminator", "lecam"),
    ("App. B.2, R1", "discriminator", "r1_penalty", "test_discriminator", "r1_is_the"),
    ("Sec. 3.2, ispad", "commit", "is_padding", "test_commit", "one_given_pixel"),
    ("App. A.2, Table 1, transformer", "transformer", "MaskedTransformer", "test_parity",
     "masking_logits"),
    ("App. B.1, the ten tasks", "commit", "TASKS", "test_commit", "each_region"),
    ("App. B.2, stage 1", "steps", "tokenizer_step", "test_parity", "three_training_steps"),
    ("App. B.2, stage 2", "steps", "transformer_step", "test_train", "learned_by_heart"),
    ("App. B.2, weights of the losses", "steps", "Recipe", "test_train", "recipe_is"),
    ("App. B.2 and Table 2, presets", "training.presets", "PRESETS", "test_train", "table_2"),
    ("App. Figs. 4-5, long videos", "long_video", "encode_long", "test_long_video",
     "encoded_and_decoded_alone"),
    ("App. Figs. 11-12, ultrawide", "long_video", "outpaint", "test_long_video", "paints_the_world"),
    ("Table 5, latent masking", "comparisons.baselines", "latent_masking", "test_comparisons",
     "latent_masking_counts"),
    ("Table 5, prefix condition", "comparisons.baselines", "prefix_decode", "test_comparisons",
     "empty_prefix"),
    ("Table 6, autoregressive", "comparisons.autoregressive", "autoregressive_decode",
     "test_comparisons", "each_token_is_drawn"),
    ("App. B.3, Frechet distance", "measure.metrics", "frechet_distance", "test_parity", "frechet"),
    ("App. B.3, PSNR and SSIM", "measure.metrics", "ssim", "test_parity", "psnr_and_ssim"),
]


def path_of(module):
    return module.replace(".", "/") + ".py"


def source(module):
    return (ROOT / path_of(module)).read_text()


def imports(module, everywhere=False):
    """The project's modules that a module imports when it is imported, or anywhere in its text."""
    tree = ast.parse(source(module))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom):
            found |= {node.module} & set(MODULES)
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & set(MODULES)
    return found


# ---------------------------------------------------------------------------------------------
# Generated tables

def index_table():
    rows = ["| paper | code | test |", "|---|---|---|"]
    for reference, module, symbol, file, words in INDEX:
        mark = re.compile(rf"^(def|class) {symbol}\b|^{symbol}\b", re.M).search(source(module))
        assert mark, f"{module} has no {symbol}"
        line = source(module)[:mark.start()].count("\n") + 1
        names = re.findall(r"^def (test_\w+)", (ROOT / f"tests/{file}.py").read_text(), re.M)
        test = next((name for name in names if words in name), None)
        assert test, f"no test of {file} has {words!r} in its name"
        rows.append(f"| {reference} | [`{module}.{symbol}`](../{path_of(module)}#L{line}) | "
                    f"`{file}::{test}` |")
    return "\n".join(rows)


def files_table(modules, up=""):
    rows = ["| file | what it is |", "|---|---|"]
    for module in modules:
        title = ast.get_docstring(ast.parse(source(module))).splitlines()[0].rstrip(".")
        rows.append(f"| [`{path_of(module)}`]({up}{path_of(module)}) | {title} |")
    return "\n".join(rows)


def sizes_table():
    def row(name, config, paper):
        with torch.device("meta"):
            count = sum(p.numel() for p in config.build().parameters())
        return f"| {name} | {count:,} | {paper} |"

    rows = ["| | here | the paper |", "|---|---|---|"]
    for size, paper in (("B", "41 M"), ("L", "158 M"), ("B-64px", "-"), ("L-64px", "-")):
        rows.append(row(f"3D-VQ {size}", TOKENIZERS[size], paper))
    for size, paper in (("B", "-"), ("L", "53 M")):
        rows.append(row(f"2D-VQ {size}", TOKENIZERS[size].image_twin(), paper))
    for size, paper in (("B", "15 M"), ("L", "61 M")):
        rows.append(row(f"3D discriminator {size}", DISCRIMINATORS[size], paper))
    for preset, size, paper in (("ucf101-B", "B", "87 M"), ("ucf101-L", "L", "305 M"),
                                ("web-H", "H", "634 M")):
        config = transformer_config(PRESETS[preset], PRESETS[preset].num_classes)
        rows.append(row(f"transformer {size} ({preset}, vocabulary {config.vocabulary_size})",
                        config, paper))
    return "\n".join(rows)


def log_table():
    """What the shipped run logged: means over 1,000 steps, which are 100 lines."""
    lines = [json.loads(line) for line in (ROOT / "assets/toy/log.jsonl").read_text().splitlines()]

    def mean(stage, name, first, digits):
        values = [line[name] for line in lines if line["stage"] == stage and name in line
                  and first <= line["step"] < first + 1000]
        return f"{sum(values) / len(values):.{digits}f}" if values else "-"

    rows = ["| steps | frames: PSNR | video: PSNR, codes | transformer: loss | refine | mask | "
            "reconstruct |", "|---|---|---|---|---|---|---|"]
    for first in (0, 1000, 3000, 5000):
        parts = [mean("transformer", name, first, 2)
                 for name in ("loss", "refine", "mask", "reconstruct")]
        video = [mean("tokenizer", name, first, digits) for name, digits in (("psnr", 1), ("codes", 0))]
        frames = mean("image", "psnr", first, 1)
        rows.append(f"| {first + 1:,} to {first + 1000:,} | {frames} | "
                    f"{', '.join(video) if video[0] != '-' else '-'} | {' | '.join(parts)} |")
    return "\n".join(rows)


def measured():
    return json.loads((ROOT / "assets/toy/metrics.json").read_text())


def toy_table():
    found, ways = measured()["reconstruction"], measured()["class_conditional_generation"]
    rows = ["| on clips held out from training | |", "|---|---|",
            f"| reconstruction | {found['psnr']:.1f} dB PSNR, {found['ssim']:.3f} SSIM |",
            f"| motion (energy of frame differences): kept, explained | {found['motion_energy']:.0%}, "
            f"{found['motion_kept']:.0%} |",
            f"| codes in use | {found['codes_used']} of {found['codes']} |",
            f"| class-conditional generation, {ways['samples']} samples | "
            f"{ways['right_shape']:.0%} right shape, {ways['right_direction']:.0%} right direction |"]
    return "\n".join(rows)


def tasks_table():
    tasks = measured()["tasks"]

    def row(title, name, scale=1, digits=0):
        cells = [tasks[task][name] for task in tasks]
        return f"| {title} | " + " | ".join(
            "-" if cell is None else f"{scale * cell:.{digits}f}" for cell in cells) + " |"

    return "\n".join([
        "| | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|",
        row("PSNR of what is given, dB", "psnr_given", digits=1),
        row("PSNR of what is generated, dB", "psnr_generated", digits=1),
        row("right shape, %", "right_shape", 100), row("right direction, %", "right_direction", 100),
        row("the condition leaves the direction open, %", "open_direction", 100),
        row("recited, %", "recited", 100)])


GENERATED = dict(index=index_table, sizes=sizes_table, files=lambda: files_table(TOP),
                 log=log_table, toy=toy_table, tasks=tasks_table,
                 folders=lambda: files_table(MODULES[len(TOP):], "../"))


def generated(text):
    """A page with its generated blocks made anew."""
    for name, make in GENERATED.items():
        mark = rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end -->)"
        text = re.sub(mark, lambda m: m[1] + make() + "\n" + m[2], text, flags=re.S)
    return text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_generated_parts_of_the_pages_are_current(page):
    text = page.read_text()
    assert text == generated(text), "run: python tests/test_docs.py --write"


def test_every_generated_part_stands_on_some_page():
    pages = "".join(page.read_text() for page in PAGES)
    assert all(f"<!-- {name}: " in pages for name in GENERATED)


# ---------------------------------------------------------------------------------------------
# The code: its maps, who imports whom, where the equations are

@pytest.mark.parametrize("module", MODULES)
def test_each_module_opens_with_its_map_and_public_names_are_explained(module):
    tree = ast.parse(source(module))
    assert re.search(r"^Read  ", ast.get_docstring(tree), re.M), module
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if node.name != "main" and node.end_lineno - node.lineno >= 8:
                assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"


def test_imports_run_one_way():
    """A module imports only what is below it; nothing stands on comparisons, magvit2 or docs."""
    left = {module: imports(module) for module in MODULES}
    while left:
        free = [module for module, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        left = {module: needs for module, needs in left.items() if module not in free}
    above = ("comparisons.", "magvit2.", "docs.")
    for module in MODULES:
        needs = imports(module, everywhere=True)
        if not module.startswith(above):
            assert not [need for need in needs if need.startswith(above)], module
        if module.startswith("data."):
            assert all(need.startswith("data.") for need in needs), module
    for module in PAPER:
        assert imports(module) <= set(PAPER), f"{module} knows more than the paper"


def test_imports_are_silent_and_touch_nothing():
    code = ("import sys, torch; before = torch.random.get_rng_state(); import " + ", ".join(MODULES)
            + "; assert torch.equal(before, torch.random.get_rng_state()); "
            "assert not torch.cuda.is_initialized()")
    done = subprocess.run([sys.executable, "-c", code, "--nonsense"], cwd=ROOT, text=True,
                          capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_line_of_algorithm_1_and_every_equation_is_marked_where_it_is():
    for line in range(1, 8):
        assert f"# line {line}" in source("decode")
    assert "lines 8 and 9" in source("decode")
    for equation in ("Eq. (1)", "Eq. (2)", "Eq. (3)", "Eq. (4)"):
        assert equation in source("commit")


# ---------------------------------------------------------------------------------------------
# Commands, links

def commands():
    """Every command line in a console block, and every `python ...` quoted in a text."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for line in "\n".join(re.findall(r"```(?:console|sh|bash)\n(.*?)```", text,
                                         re.S)).splitlines():
            found += line.split(" #")[0].split("&&")
        found += re.findall(r"(?<!`)`((?:python|torchrun)\s[^`]+)`", text)
    return sorted({" ".join(command.split()) for command in found if command.strip()})


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_pages_is_understood(command):
    words = shlex.split(command)
    if "--help" in words or words[-1:] == ["..."]:
        return
    if "train.py" in words:
        parse(arguments=[word if word != "PRESET" else "ucf101-B"
                         for word in words[words.index("train.py") + 1:]])
    elif "-m" in words and words[words.index("-m") + 1] != "pytest":
        assert words[words.index("-m") + 1] in MODULES
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).exists()
        for flag in (word for word in words[2:] if word.startswith("--")):
            assert f'"{flag}"' in (ROOT / words[1]).read_text(), f"{words[1]} knows no {flag}"
    else:
        assert words[0] in ("pip", "python", "git", "cd", "curl")


def test_ci_runs_the_readmes_test_command():
    command = "pip install -r requirements.txt && python -m pytest -n 2 --dist loadfile"
    assert command in PAGES[0].read_text() and command in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        for each in PAGES:
            each.write_text(generated(each.read_text()))
    else:
        print(__doc__)
