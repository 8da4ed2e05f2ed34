"""Broken files: each is accepted, or refused with located messages; none ends in a traceback."""

import os
import random
from pathlib import Path

from nsupervisor.config.load import load
from nsupervisor.config.problems import ConfigError
from tests.config.broken import broken_file

FILES = int(os.environ.get("NSUPERVISOR_FUZZ_FILES", "3000"))


def test_broken_files_end_in_messages_and_never_in_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "fuzz.toml"
    accepted = refused = beyond_syntax = 0
    for seed in range(FILES):
        data = broken_file(random.Random(seed))
        file.write_bytes(data)
        try:
            load(file)
            accepted += 1
            continue
        except ConfigError as error:
            problems = error.problems
        except Exception as error:
            raise AssertionError(f"seed {seed}: {data[:2000]!r}") from error
        refused += 1
        assert problems, seed
        assert problems == sorted(problems, key=lambda problem: problem.line), seed
        for problem in problems:
            assert 1 <= problem.line <= data.count(b"\n") + 1, (seed, problem)
            assert "; " in problem.message, (seed, problem)
            assert str(problem).isprintable(), (seed, problem)
            assert len(str(problem)) < 3000, (seed, problem)
            beyond_syntax += bool(problem.key)
    # The mutations are effective: they make files of all three kinds.
    assert min(accepted, refused, beyond_syntax) > FILES / 100
