"""The documentation cannot rot: what README and docs say is generated, parsed, or run here.

    python tests/test_docs.py --write     brings the generated parts of README.md and docs up to date
"""
import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import python

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAPER = ["tokenizer", "discriminator", "commit", "transformer", "steps", "decode"]
TOP = [*PAPER, "train", "evaluate", "long_video", "pictures", "figures"]
WINGS = ["data", "training", "measure", "comparisons", "magvit2", "page"]
ROOMS = TOP + [f"{wing}.{path.stem}" for wing in WINGS
               for path in sorted((ROOT / wing).glob("*.py")) if path.stem != "__init__"]
BESIDES = {"README.md", "LICENSE", "requirements.txt", "pytest.ini", ".ci", "tests", "assets",
           "docs", ".gitignore"}
FUNCTION_LINES, FILE_LINES, WIDTH = 80, 400, 100
TOP_LINES, LONG_VIDEO_LINES, COMPARISONS_LINES, README_LINES = 2600, 320, 950, 300
MAGVIT2_LINES, ALL_LINES = 1430, 10850                      # of all but these two and comparisons

# What is where: reference -> file, symbol, test file, a word of a test's name.
INDEX = [
    ("Eq. (1), masked token modeling", "commit", "CommitLoss", "test_commit", "each_part_of_eq_4"),
    ("Eq. (2), the COMMIT mask", "commit", "commit_mask", "test_commit", "eq_2_equals"),
    ("Eq. (3), the training objective", "commit", "commit_loss", "test_commit", "eq_4"),
    ("Eq. (4), refine + mask + reconstruct", "commit", "CommitLoss", "test_commit", "eq_4"),
    ("Algorithm 1, lines 1-9", "decode", "commit_decode", "test_decode", "algorithm_1_equals"),
    ("Sec. 2, mask ratio gamma", "commit", "mask_ratio", "test_commit", "gamma_falls"),
    ("Sec. 2, cut-off s*", "commit", "cutoff_score", "test_commit", "cutoff_is"),
    ("Sec. 3.1, 3D-VQ encoder", "tokenizer", "Encoder", "test_parity", "tokenizer_computes"),
    ("Sec. 3.1, quantizer", "tokenizer", "VectorQuantizer", "test_tokenizer", "nearest"),
    ("Sec. 3.1, inflation; Table 7", "tokenizer", "inflate", "test_parity", "inflation_fills"),
    ("Sec. 3.1, reflect padding", "tokenizer", "conv", "test_tokenizer", "reflect_padding"),
    ("Sec. 3.1, 3D discriminator", "discriminator", "Discriminator3d", "test_parity",
     "discriminator_computes"),
    ("Sec. 3.1, LeCam", "discriminator", "LeCam", "test_discriminator", "lecam"),
    ("App. B.2, R1", "discriminator", "r1_penalty", "test_discriminator", "r1_is"),
    ("Sec. 3.2, ispad", "commit", "is_padding", "test_commit", "ispad_means"),
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
    ("Table 5, latent masking", "decode", "latent_masking", "test_decode", "known_tokens_never"),
    ("Table 5, prefix condition", "comparisons.baselines", "PrefixModel", "test_comparisons",
     "empty_prefix"),
    ("Table 6, autoregressive", "comparisons.autoregressive", "autoregressive_decode",
     "test_comparisons", "cache_gives"),
    ("App. B.3, Frechet distance", "measure.metrics", "frechet_distance", "test_parity", "frechet"),
    ("App. B.3, PSNR and SSIM", "measure.metrics", "ssim", "test_parity", "psnr_and_ssim"),
]


def path_of(room):
    return room.replace(".", "/") + ".py"


def source(room):
    return (ROOT / path_of(room)).read_text()


def line_of(room, symbol):
    for node in ast.parse(source(room)).body:
        names = [getattr(node, "name", "")] + [
            target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if symbol in names:
            return node.lineno
    raise ValueError(f"{room} has no {symbol}")


def name_of_test(file, words):
    names = re.findall(r"^def (test_\w+)", (ROOT / "tests" / f"{file}.py").read_text(), re.M)
    matches = [name for name in names if words in name]
    if not matches:
        raise ValueError(f"{file}.py has no test with {words!r} in its name")
    return matches[0]


def index_table():
    rows = ["| paper | code | test |", "|---|---|---|"]
    for reference, room, symbol, file, words in INDEX:
        line = line_of(room, symbol)
        rows.append(f"| {reference} | [`{room}.{symbol}`]({path_of(room)}#L{line}) | "
                    f"`{file}::{name_of_test(file, words)}` |")
    return "\n".join(rows)


def opening(room):
    """The opening map as {heading: text}."""
    text = ast.get_docstring(ast.parse(source(room)))
    parts = re.split(r"^(Paper|Shapes|Files|Read|Not here|Run)[:\s,]", text, flags=re.M)
    return {"title": text.splitlines()[0], **{k: " ".join(v.split())
                                              for k, v in zip(parts[1::2], parts[2::2])}}


def rooms_table(rooms):
    rows = ["| file | what it is | paper | lines |", "|---|---|---|---|"]
    for room in rooms:
        book = opening(room)
        paper = book.get("Paper", "").split(";")[0]
        while (without := re.sub(r" *\([^()]*\)", "", paper)) != paper:     # innermost first
            paper = without
        rows.append(f"| [`{path_of(room)}`]({path_of(room)}) | {book['title'].rstrip('.')} | "
                    f"{'-' if paper.startswith('none') else paper or '-'} | "
                    f"{len(source(room).splitlines())} |")
    return "\n".join(rows)


def imports(room, everywhere=False):
    """The project's rooms that a room imports when it is imported, or anywhere in its text."""
    tree = ast.parse(source(room))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom):
            found |= {node.module} & set(ROOMS)
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & set(ROOMS)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & set(ROOMS)
    return found


def floors():
    """Rooms by floor: each imports only from floors below its own."""
    built, left = [], {room: imports(room) for room in ROOMS}
    while left:
        below = {room for floor in built for room in floor}
        floor = [room for room, needs in left.items() if needs <= below]
        assert floor, f"a circle among {sorted(left)}"
        built.append(floor)
        left = {room: needs for room, needs in left.items() if room not in floor}
    return built


def imports_table():
    """A line a floor, a column a wing, so that the wings are seen."""
    columns = ["", *WINGS]
    lines = []
    for number, floor in reversed(list(enumerate(floors()))):
        cells = ["  ".join(room.split(".")[-1] for room in floor
                           if room.rpartition(".")[0] == wing) for wing in columns]
        lines.append([f"floor {number}", *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    header = ["", "top level: the paper", *(f"{wing}/" for wing in WINGS)]
    widths = [max(width, len(title)) for width, title in zip(widths, header)]
    rows = ["   ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
            for line in [header, *lines]]
    return "```\n" + "\n".join(rows) + "\n```"


def sizes_table():
    import torch

    from discriminator import DISCRIMINATORS, Discriminator3d
    from tokenizer import TOKENIZERS, ImageTokenizer, VideoTokenizer
    from training.build import transformer_config
    from training.presets import PRESETS
    from transformer import MaskedTransformer

    def count(network, config):
        with torch.device("meta"):
            return f"{sum(p.numel() for p in network(config).parameters()):,}"

    rows = ["| | here | the paper |", "|---|---|---|"]
    for size, paper in (("B", "41 M"), ("L", "158 M"), ("B-64px", "-"), ("L-64px", "-")):
        rows.append(f"| 3D-VQ {size} | {count(VideoTokenizer, TOKENIZERS[size])} | {paper} |")
    for size, paper in (("B", "-"), ("L", "53 M")):
        rows.append(f"| 2D-VQ {size} | {count(ImageTokenizer, TOKENIZERS[size])} | {paper} |")
    for size, paper in (("B", "15 M"), ("L", "61 M")):
        rows.append(f"| 3D discriminator {size} | {count(Discriminator3d, DISCRIMINATORS[size])} "
                    f"| {paper} |")
    for preset, size, paper in (("ucf101-B", "B", "87 M"), ("ucf101-L", "L", "305 M"),
                                ("web-H", "H", "634 M")):
        config = transformer_config(PRESETS[preset], PRESETS[preset].num_classes)
        rows.append(f"| transformer {size} ({preset}, vocabulary {config.vocabulary_size}) | "
                    f"{count(MaskedTransformer, config)} | {paper} |")
    return "\n".join(rows)


GENERATED = dict(
    index=index_table, imports=imports_table, sizes=sizes_table,
    rooms=lambda: rooms_table(TOP), wings=lambda: rooms_table(ROOMS[len(TOP):]).replace(
        "](", "](../"))


def generated(text):
    """A page with its generated blocks made anew."""
    for name, make in GENERATED.items():
        mark = rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end -->)"
        text = re.sub(mark, lambda m: m[1] + make() + "\n" + m[2], text, flags=re.S)
    return text


# ---------------------------------------------------------------------------------------------
# Generated parts, maps, budgets

@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_generated_parts_of_the_pages_are_current(page):
    text = page.read_text()
    assert text == generated(text), "run: python tests/test_docs.py --write"


def test_every_generated_part_stands_on_some_page():
    marks = re.findall(r"<!-- (\w+): ", "".join(page.read_text() for page in PAGES))
    assert sorted(marks) == sorted(GENERATED)


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_opens_with_its_map(room):
    book = opening(room)
    for heading in ("Read", "Run"):
        assert book.get(heading), f"{room} has no {heading!r} in its opening"
    assert "Paper" in book or "Files" in book
    assert "Shapes" in book or "Files" in book or room == "training.presets"
    assert (path_of(room) if room in TOP else f"-m {room}") in book["Run"]


def test_the_top_level_is_the_paper_and_nothing_else():
    there = {path.name for path in ROOT.iterdir()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True).stdout
    tracked = {line.split("/")[0] for line in tracked.splitlines()} or there
    assert tracked & there <= {path_of(room) for room in TOP} | set(WINGS) | BESIDES
    assert "The MAGVIT reading implementation authors" in (ROOT / "LICENSE").read_text()


def test_the_house_stays_within_its_budgets():
    lines = {room: len(source(room).splitlines()) for room in ROOMS}
    lines |= {wing: len((ROOT / wing / "__init__.py").read_text().splitlines()) for wing in WINGS}
    assert lines["long_video"] <= LONG_VIDEO_LINES
    assert sum(lines[room] for room in TOP if room != "long_video") <= TOP_LINES
    compared, sequel = (sum(lines[room] for room in lines if room.startswith(wing))
                        for wing in ("comparisons", "magvit2"))
    assert compared <= COMPARISONS_LINES and sequel <= MAGVIT2_LINES
    assert sum(lines.values()) - compared - sequel <= ALL_LINES
    assert all(lines[wing] <= 1 for wing in WINGS)
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("room", ROOMS)
def test_files_functions_and_lines_stay_within_their_budgets(room):
    lines = source(room).splitlines()
    assert len(lines) <= FILE_LINES
    assert not [n for n, line in enumerate(lines, 1) if len(line) > WIDTH]
    for node in ast.walk(ast.parse(source(room))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name
        assert not isinstance(node, ast.Assert), f"{room}:{node.lineno}: raise ValueError"


@pytest.mark.parametrize("room", ROOMS)
def test_public_classes_and_functions_say_what_types_cannot(room):
    """Obvious two-liners may go without: eight lines and more need a docstring."""
    for node in ast.parse(source(room)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if node.name != "main" and node.end_lineno - node.lineno >= 8:
                assert ast.get_docstring(node), f"{room}.{node.name} has no docstring"


# ---------------------------------------------------------------------------------------------
# Who imports whom

def test_imports_run_one_way():
    assert sorted(room for floor in floors() for room in floor) == sorted(ROOMS)
    ground = {"data.source", "measure.metrics", "pictures", "commit", "tokenizer"}
    for room in ground:
        assert not imports(room, everywhere=True), f"{room} is on the ground floor"
    assert not imports("measure.networks", everywhere=True)
    assert imports("discriminator", everywhere=True) == {"tokenizer"}
    assert imports("measure.pretrained") <= {"measure.metrics", "measure.networks",
                                             "measure.deepmind"}
    for room in ROOMS:
        wing, needs = room.partition(".")[0], imports(room, everywhere=room not in PAPER)
        assert "figures" not in needs, f"{room}: nothing stands on the roof"
        assert "page.record" not in needs or room == "figures", room
        if wing == "data":
            assert all(need.startswith("data.") for need in needs), room
        if wing == "training":
            assert not any(need.startswith("measure.") for need in needs), room
        if wing not in ("comparisons", "magvit2"):
            assert not any(need.startswith(("comparisons.", "magvit2.")) for need in needs), room
            if room not in ("train", "evaluate", "figures"):
                assert not {"train", "evaluate"} & needs, room
    assert "evaluate" not in imports("train") and "train" not in imports("evaluate")


@pytest.mark.parametrize("room", PAPER)
def test_the_six_paper_files_import_only_each_other(room):
    """Their demo or command, `main` at the bottom, alone may look up to the wings."""
    assert imports(room) <= set(PAPER)
    tree = ast.parse(source(room))
    for node in tree.body:
        if getattr(node, "name", "") == "main":
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.ImportFrom):
                assert inner.module not in set(ROOMS) - set(PAPER), f"{room}:{inner.lineno}"
    assert "matplotlib" not in source(room)


def test_imports_are_silent_and_touch_nothing():
    code = ("import sys, torch; before = torch.random.get_rng_state(); import " + ", ".join(ROOMS)
            + "; assert torch.equal(before, torch.random.get_rng_state()); "
            "assert not torch.cuda.is_initialized()")
    done = subprocess.run([sys.executable, "-c", code, "--nonsense"], cwd=ROOT, text=True,
                          capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_line_of_algorithm_1_and_eq_2_is_marked_where_it_is():
    decode, commit = source("decode"), source("commit")
    for line in range(1, 8):
        assert f"# line {line}" in decode
    assert "lines 8 and 9" in decode
    for equation in ("Eq. (1)", "Eq. (2)", "Eq. (3)", "Eq. (4)"):
        assert equation in commit


# ---------------------------------------------------------------------------------------------
# Commands and pictures

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
    if "--help" in words:
        assert (ROOT / words[1]).exists()
    elif "train.py" in words:
        from train import parse
        parse([word if word != "PRESET" else "ucf101-B"
               for word in words[words.index("train.py") + 1:]])
    elif words[0] == "python" and words[1] == "-m" and words[2] != "pytest":
        assert words[2] in ROOMS
    elif words[0] == "torchrun" and "-m" in words:
        assert words[words.index("-m") + 1] in ROOMS
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).exists()
        if words[1] == "figures.py":
            assert not words[2:] or words[2] in importlib.import_module("figures").FIGURES
        for flag in (word for word in words[2:] if word.startswith("--")):
            assert f'"{flag}"' in (ROOT / words[1]).read_text(), f"{words[1]} knows no {flag}"
    else:
        assert words[0] in ("pip", "python", "git", "cd", "curl")


def test_train_help_explains_every_flag(capsys):
    from train import parse
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    for heading in ("videos:", "clips:", "networks:", "stage 1, tokenizer:",
                    "stage 2, transformer:", "decoding:", "machine:"):
        assert heading in text
    blocks = re.split(r"\n  (?=-)", text.split("options:")[1])
    assert not [block for block in blocks[1:] if len(re.split(r"\s{2,}|\n", block.strip())) < 2]


def test_ci_runs_the_readmes_test_command():
    command = "pip install -r requirements.txt && python -m pytest -n 2 --dist loadfile"
    assert command in PAGES[0].read_text() and command in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#\s]+)", page.read_text()):
        file = (page.parent / target).resolve()
        assert file.exists(), f"{page.name} links to {target}"
        if file.suffix in (".png", ".gif"):
            assert 1000 < file.stat().st_size < 4e6


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The code and its pictures elsewhere, for rooms that write."""
    folder = tmp_path_factory.mktemp("copy")
    for name in [*WINGS, "assets"]:
        shutil.copytree(ROOT / name, folder / name)
    for room in TOP:
        shutil.copy(ROOT / path_of(room), folder)
    return folder


LINES = dict.fromkeys(["measure.metrics", "measure.protocols", "measure.numbers", "measure.jobs",
                       "evaluate"], 9) | {"measure.sets": 4, "measure.rows": 4}      # at least


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {"train", "figures", "measure.report",
                                                      "measure.speed", "training.plan"}))
def test_the_rooms_show_their_idea_when_run(room, copy):
    how = [path_of(room)] if room in TOP else ["-m", room]
    done = python(*how, cwd=copy)
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= LINES.get(room, 2), done.stderr


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        for each in PAGES:
            each.write_text(generated(each.read_text()))
    else:
        print(__doc__)
