"""The documentation cannot rot: what the README says is generated, parsed, or run here.

    python tests/test_docs.py --write     brings the generated parts of README.md up to date
"""
import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
README = ROOT / "README.md"
ROOMS = ["tokenizer", "discriminator", "commit", "transformer", "steps", "decode", "train", "loop",
         "presets", "plan", "checkpoint", "report", "data", "shapes", "datasets", "bair",
         "evaluate", "metrics", "protocols", "features", "pretrained"]
ROOMS = [room for room in ROOMS if (ROOT / f"{room}.py").exists()]
FUNCTION_LINES, FILE_LINES, WIDTH = 80, 400, 100

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
    ("App. B.2, stage 1", "train", "tokenizer_step", "test_parity", "three_training_steps"),
    ("App. B.2, stage 2", "train", "transformer_step", "test_train", "learned_by_heart"),
    ("App. B.2 and Table 2, presets", "presets", "PRESETS", "test_train", "table_2"),
    ("App. B.3, Frechet distance", "evaluate", "frechet_distance", "test_parity", "frechet"),
    ("App. B.3, PSNR and SSIM", "evaluate", "ssim", "test_parity", "psnr_and_ssim"),
]


def source(name):
    return (ROOT / f"{name}.py").read_text()


def definitions(name):
    """Top-level name -> (first line, last line) of a module."""
    found = {}
    for node in ast.parse(source(name)).body:
        names = [node.name] if hasattr(node, "name") else [
            target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        names += [alias.asname or alias.name for alias in getattr(node, "names", [])]
        for each in names:
            found[each] = (node.lineno, node.end_lineno)
    return found


def home(room, symbol):
    """The room in which a symbol that `room` offers is defined."""
    for node in ast.parse(source(room)).body:
        if isinstance(node, ast.ImportFrom) and symbol in [alias.name for alias in node.names]:
            return home(node.module, symbol)
    return room


def name_of_test(file, words):
    names = re.findall(r"^def (test_\w+)", (ROOT / "tests" / f"{file}.py").read_text(), re.M)
    matches = [name for name in names if words in name]
    if not matches:
        raise ValueError(f"{file}.py has no test with {words!r} in its name")
    return matches[0]


def index_table():
    rows = ["| paper | code | line | test |", "|---|---|---|---|"]
    for reference, room, symbol, file, words in INDEX:
        where = home(room, symbol)
        line = definitions(where)[symbol][0]
        rows.append(f"| {reference} | [`{where}.{symbol}`]({where}.py#L{line}) | {line} | "
                    f"`{file}::{name_of_test(file, words)}` |")
    return "\n".join(rows)


def opening(room):
    """The opening map as {heading: text}."""
    text = ast.get_docstring(ast.parse(source(room)))
    parts = re.split(r"^(Paper|Shapes|Files|Read|Not here|Run)[:\s]", text, flags=re.M)
    return {"title": text.splitlines()[0], **{k: " ".join(v.split())
                                              for k, v in zip(parts[1::2], parts[2::2])}}


def rooms_table():
    rows = ["| file | what it is | paper | lines | `python` it and see |", "|---|---|---|---|---|"]
    for room in ROOMS:
        book = opening(room)
        paper = book.get("Paper", "").split(";")[0]
        while "(" in paper:                                       # the innermost brackets first
            paper = re.sub(r" *\([^()]*\)", "", paper)
        shown = re.search(rf"{room}\.py(?: [A-Z[]\S*)?  +(.+)", ast.get_docstring(
            ast.parse(source(room))))[1]
        rows.append(f"| [`{room}.py`]({room}.py) | {book['title'].rstrip('.')} | "
                    f"{'-' if paper.startswith('none') else paper or '-'} | "
                    f"{len(source(room).splitlines())} | {shown} |")
    return "\n".join(rows)


def imports(room):
    found = set()
    for node in ast.walk(ast.parse(source(room))):
        if isinstance(node, ast.ImportFrom) and node.module in ROOMS:
            found.add(node.module)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in ROOMS}
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
    return "```\n" + "\n".join(f"floor {number}   {'  '.join(floor)}" for number, floor in
                               reversed(list(enumerate(floors())))) + "\n```"


def sizes_table():
    import torch

    from discriminator import DISCRIMINATORS, Discriminator3d
    from presets import PRESETS
    from tokenizer import TOKENIZERS, ImageTokenizer, VideoTokenizer
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
        config = PRESETS[preset].transformer_config(PRESETS[preset].num_classes)
        rows.append(f"| transformer {size} ({preset}, vocabulary {config.vocabulary_size}) | "
                    f"{count(MaskedTransformer, config)} | {paper} |")
    return "\n".join(rows)


GENERATED = dict(index=index_table, rooms=rooms_table, imports=imports_table, sizes=sizes_table)


def generated(text):
    for name, make in GENERATED.items():
        mark = rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end -->)"
        text, number = re.subn(mark, lambda m: m[1] + make() + "\n" + m[2], text, flags=re.S)
        if number != 1:
            raise ValueError(f"README.md has {number} places for {name}")
    return text


# ---------------------------------------------------------------------------------------------

def test_the_generated_parts_of_the_readme_are_current():
    text = README.read_text()
    assert text == generated(text), "run: python tests/test_docs.py --write"


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_opens_with_its_map(room):
    book = opening(room)
    for heading in ("Paper", "Read", "Run"):
        if not (room == "checkpoint" and heading == "Paper"):
            assert book.get(heading), f"{room}.py has no {heading!r} in its opening"
    assert room == "presets" or "Shapes" in book or "Files" in book
    assert f"{room}.py" in book["Run"]


@pytest.mark.parametrize("room", ROOMS)
def test_files_functions_and_lines_stay_within_their_budgets(room):
    lines = source(room).splitlines()
    assert len(lines) <= FILE_LINES
    assert not [n for n, line in enumerate(lines, 1) if len(line) > WIDTH]
    for node in ast.walk(ast.parse(source(room))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name
        assert not isinstance(node, ast.Assert), f"{room}.py:{node.lineno}: raise ValueError"


@pytest.mark.parametrize("room", ROOMS)
def test_public_classes_and_functions_say_what_types_cannot(room):
    """Obvious two-liners may go without: eight lines and more need a docstring."""
    for node in ast.parse(source(room)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if node.name != "main" and node.end_lineno - node.lineno >= 8:
                assert ast.get_docstring(node), f"{room}.{node.name} has no docstring"


def test_imports_run_one_way():
    assert sorted(room for floor in floors() for room in floor) == sorted(ROOMS)
    ground = {"data", "pretrained", "discriminator", "tokenizer", "transformer", "commit"}
    for room in ground:
        allowed = {"shapes", "datasets"} | ({"tokenizer"} if room == "discriminator" else set())
        assert imports(room) <= allowed, f"{room} is on the ground floor"
    assert "evaluate" not in imports("train") and "train" not in imports("evaluate")


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


def commands():
    """Every command line in a console block of the README."""
    blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", README.read_text(), re.S)
    for line in "\n".join(blocks).splitlines():
        line = line.split(" #")[0].strip()
        for command in line.split("&&"):
            if command.strip():
                yield command.strip()


@pytest.mark.parametrize("command", sorted(set(commands()) if README.exists() else []))
def test_every_command_of_the_readme_is_understood(command, capsys):
    words = shlex.split(command)
    if "train.py" in words:
        from presets import parse
        parse(words[words.index("train.py") + 1:])
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).exists()
        flags = [word for word in words[2:] if word.startswith("--")]
        text = (ROOT / words[1]).read_text()
        for flag in flags:
            assert f'"{flag}"' in text, f"{words[1]} knows no {flag}"
    else:
        assert words[0] in ("pip", "python", "git", "cd")


def test_ci_runs_the_readmes_test_command():
    command = "pip install -r requirements.txt && python -m pytest"
    assert command in README.read_text() and command in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("picture", sorted(set(re.findall(r"assets/[\w./-]+\.(?:png|gif)",
                         README.read_text())) if README.exists() else []))
def test_every_picture_of_the_readme_is_there(picture):
    assert (ROOT / picture).stat().st_size > 1000


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The code and its pictures elsewhere, for rooms that draw."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "assets", folder / "assets")
    for room in ROOMS:
        shutil.copy(ROOT / f"{room}.py", folder)
    return folder


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {
    "train", "report", "bair", "data", "metrics", "protocols", "evaluate"}))
def test_the_rooms_that_print_a_table_run(room, copy):
    done = subprocess.run([sys.executable, f"{room}.py"], cwd=copy, text=True, capture_output=True,
                          timeout=120)
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 4, done.stderr


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        README.write_text(generated(README.read_text()))
    else:
        print(__doc__)
