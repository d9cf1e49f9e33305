"""The lists that come with data sets: which videos are of a split, and of which class each is.

Paper   App. B.3 (the splits of each data set)

Files   UCF-101                trainlist01.txt     ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
                               classInd.txt        1 ApplyEyeMakeup
        Something-Something    train.json          [{"id": "74225", "template": "..."}, ...]
                               labels.json         {"Approaching something": "0", ...}
        Kinetics               val.csv             label,youtube_id,time_start,time_end,split
        Objectron              book_annotations_train, of lines    book/batch-1/0

Read    read_list; then the four kinds.

Not here: which of the listed videos are there (layouts.select).

Run:    python -m data.split_lists [LIST]      its first entries and classes
"""
from __future__ import annotations

import csv
import json
import re
import sys
import tempfile
from pathlib import Path

Listed = tuple[list[tuple[str, int]], list[str]]       # (name without folder of the data, class)
OBJECTRON = re.compile(r"[a-z_]+/batch-\d+/\d+")


def read_list(split: Path, folders: list[str]) -> Listed:
    """Each video's name below the data folder and its class; and the names of the classes.

    folders: those of classes that the data have, for lists that do not number theirs. A suffix in
    a name does not count. FileNotFoundError where the list or one beside it is missing,
    ValueError where it is not what it should be.
    """
    if not split.is_file():
        raise FileNotFoundError(f"no split list {split}")
    if split.suffix == ".json":
        return something_list(split)
    if split.suffix == ".csv":
        return kinetics_list(split)
    first = split.read_text().split(maxsplit=1)
    if first and OBJECTRON.fullmatch(first[0]):
        return objectron_list(split)
    return ucf101_list(split, folders)


def ucf101_list(split: Path, folders: list[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """(file, class) of each line "Class/video.avi" or "Class/video.avi 1", and the class names.

    classInd.txt beside the list has "1 Class" per line; our classes begin at 0. Without it they
    are the sorted names in the list and of `folders`, so that train and test agree.
    """
    rows = [line.split() for line in split.read_text().splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) > 2 or "/" not in row[0] or not all(word.isdigit() for word in row[1:]):
            raise ValueError(f"{split} has {' '.join(row)!r} as entry {number}; wanted "
                             "'Class/video.avi' or 'Class/video.avi 1'")
    classes = [row[0].split("/")[0] for row in rows]
    class_file = split.with_name("classInd.txt")
    if not class_file.exists():
        class_names = sorted({*classes, *folders})
    else:
        lines = [line.split() for line in class_file.read_text().splitlines() if line.strip()]
        if any(len(line) != 2 or not line[0].isdigit() for line in lines):
            raise ValueError(f"{class_file} should have lines like '1 ApplyEyeMakeup'")
        class_names = _in_order({name: int(number) - 1 for number, name in lines}, class_file)
        for name, row in zip(classes, rows):
            number = str(class_names.index(name) + 1) if name in class_names else "no class"
            if name not in class_names or row[1:] not in ([], [number]):
                raise ValueError(f"{split} has {' '.join(row)!r}, but {class_file.name} says that "
                                 f"{name} is {number}")
    return [(row[0], class_names.index(name)) for name, row in zip(classes, rows)], class_names


def something_list(split: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """(id, class) of each entry, and the class names: the templates without their brackets.

    labels.json (or something-something-v2-labels.json) beside the list numbers them, as strings.
    """
    entries = _json(split)
    if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and {"id", "template"} <= set(entry) for entry in entries):
        raise ValueError(f"{split} is no list of {{\"id\", \"label\", \"template\"}}; take the "
                         "train or validation list (the test list has no classes)")
    names = [re.sub(r"[\[\]]", "", entry["template"]) for entry in entries]
    label_files = sorted(split.parent.glob("*labels.json"))
    if not label_files:
        raise FileNotFoundError(f"no labels.json beside {split}; it numbers the classes")
    numbers = _json(label_files[0])
    if not isinstance(numbers, dict) or not all(str(n).isdigit() for n in numbers.values()):
        raise ValueError(f"{label_files[0]} should be like {{\"Holding something\": \"0\"}}")
    label = {name: int(number) for name, number in numbers.items()}
    unknown = sorted(set(names) - set(label))
    if unknown:
        raise ValueError(f"{split} has the class {unknown[0]!r}, {label_files[0].name} has not")
    return ([(str(entry["id"]), label[name]) for entry, name in zip(entries, names)],
            _in_order(label, label_files[0]))


def _json(path: Path) -> list | dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None


def _in_order(label: dict[str, int], path: Path) -> list[str]:
    names = sorted(label, key=label.get)
    if [label[name] for name in names] != list(range(len(names))):
        raise ValueError(f"{path} does not number its {len(names)} classes one after the other")
    return names


def kinetics_list(split: Path) -> Listed:
    """Kinetics' csv: a clip is NAME_START_END, its seconds with six digits, whatever its folder."""
    with open(split, newline="") as file:
        rows = list(csv.DictReader(file))
    needed = {"label", "youtube_id", "time_start", "time_end"}
    if not rows or not needed <= set(rows[0]):
        raise ValueError(f"{split} has no rows of {','.join(sorted(needed))}; take Kinetics' own "
                         "train.csv or val.csv (the test list has no labels)")
    class_names = sorted({row["label"] for row in rows})
    number = {name: label for label, name in enumerate(class_names)}
    return ([(f"{row['youtube_id']}_{int(row['time_start']):06}_{int(row['time_end']):06}",
              number[row["label"]]) for row in rows], class_names)


def objectron_list(split: Path) -> Listed:
    """Objectron's index names folders, in each of which the video is called video.MOV."""
    lines = split.read_text().split()
    wrong = [line for line in lines if not OBJECTRON.fullmatch(line)]
    if wrong:
        raise ValueError(f"{split} has {wrong[0]!r}; wanted lines like 'book/batch-1/0'")
    class_names = sorted({line.split("/")[0] for line in lines})
    return [(f"{line}/video", class_names.index(line.split("/")[0])) for line in lines], class_names


def main() -> None:
    if len(sys.argv) > 1:
        entries, class_names = read_list(Path(sys.argv[1]), [])
        return print(f"{len(entries)} videos of {len(class_names)} classes, first {entries[:3]}")
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("trainlist01.txt", "YoYo/v_YoYo_g08_c01.avi 1"),
                           ("val.csv", "label,youtube_id,time_start,time_end,split\n"
                            "yoga,abc,7,17,validate"), ("book_train", "book/batch-1/0")):
            path = Path(folder, name)
            path.write_text(text)
            entries, class_names = read_list(path, [])
            print(f"{name:16} {entries[0][0]:28} class {entries[0][1]}, {class_names[0]}")


if __name__ == "__main__":
    main()
