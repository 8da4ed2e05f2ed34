"""Configuration files with random errors, determined by a seed."""

import random
import re
from collections.abc import Callable
from pathlib import Path

REFERENCE = (Path(__file__).parents[2] / "configs" / "reference.toml").read_text()

# The reference file in pieces of a few tables, so that a file is small and ten thousand of them are quick.
PIECES = re.split(r"(?m)^(?=\[)", re.sub(r"(?m)\s+#.*$|^#.*\n", "", REFERENCE))[1:]
HEADS = [piece for piece in PIECES if re.match(r"\[(supervisor|workload\.[a-z]+)\]", piece)]
TABLES = [piece for piece in PIECES if piece not in HEADS]
SHORT = '[workload.web]\ncommand = ["a"]\n'
LINES = [line for table in PIECES for line in table.splitlines() if " = " in line]
VALUES = [line.partition(" = ")[2] for line in LINES]
ODD_VALUES = [
    "true", "-1", "0", "1.5", "nan", "-inf", "1e400", "9" * 400, "9" * 5000, "0x" + "f" * 9000, '""', '"\\u0000"',
    "'''\n\n'''", "[]", "[[], [1]]", "{}", "{ a = { b = 1 } }", "1979-05-27T07:32:00Z", "07:32:00", '"9999999999999E"',
    '"1e999s"', '"max"', '"infinity"', '"-/"', '"100000000%"', '"0-99999999999"', '"pids.current > 9e999%"',
    '"memory.events oom > > %"', "é", "",
    "[" * 2000 + "]" * 2000, "{ a = " * 600 + "1" + " }" * 600, "[" * 50 + "1" + "]" * 50, '["' + "x" * 5000 + '"]',
]  # fmt: skip

Mutation = Callable[[random.Random, str], str]


def lines_of(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def drop_line(rng: random.Random, text: str) -> str:
    lines = lines_of(text)
    del lines[rng.randrange(len(lines))]
    return "".join(lines)


def double_line(rng: random.Random, text: str) -> str:
    lines = lines_of(text)
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return "".join(lines)


def insert_line(rng: random.Random, text: str) -> str:
    lines = lines_of(text)
    lines.insert(rng.randrange(len(lines)) + 1, rng.choice(LINES) + "\n")
    return "".join(lines)


def with_value(rng: random.Random, text: str, value: str) -> str:
    lines = lines_of(text)
    numbers = [number for number, line in enumerate(lines) if " = " in line]
    if numbers:
        number = rng.choice(numbers)
        lines[number] = f"{lines[number].partition(' = ')[0]} = {value}\n"
    return "".join(lines)


def swap_value(rng: random.Random, text: str) -> str:
    return with_value(rng, text, rng.choice(VALUES))


def odd_value(rng: random.Random, text: str) -> str:
    return with_value(rng, text, rng.choice(ODD_VALUES))


def rename_key(rng: random.Random, text: str) -> str:
    names = re.findall(r"[a-z_]{3,30}", text)
    if not names or len(text) > 10_000:  # the time that tomllib takes for a dotted key grows with its length's square
        return text
    name = rng.choice(names)
    long = ".".join([name] * 200)
    other = rng.choice([rng.choice(names), name[:-1], name.upper(), f'"{name}\\n"', f"{name}.{name}", long])
    return text.replace(name, other, rng.choice([1, -1]))


def cut(rng: random.Random, text: str) -> str:
    return text[: rng.randrange(len(text))]


def change_character(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text))
    return text[:place] + rng.choice("[]{}=,.#\"'\n\r\t \\a0-@\0é\u2028") + text[place + rng.randrange(3) :]


MUTATIONS: list[Mutation] = [
    drop_line, double_line, insert_line, swap_value, swap_value, odd_value, odd_value, rename_key, cut,
    change_character,
]  # fmt: skip


def broken_file(rng: random.Random) -> bytes:
    """Build a file from some tables of the reference file, with one to three changes."""
    text = "".join(rng.choice([HEADS, [SHORT]]))
    text += "".join(TABLES[number] for number in sorted(rng.sample(range(len(TABLES)), rng.randint(0, 3))))
    for _ in range(rng.randint(1, 3)):
        if text.strip():
            text = rng.choice(MUTATIONS)(rng, text)
    data = bytearray(text.encode())
    if data and rng.random() < 0.15:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)
