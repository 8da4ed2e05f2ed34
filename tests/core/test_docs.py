"""The documentation's tables are generated from the code."""

import subprocess
import sys

from tests.needs import ROOT


def test_docs_policy_shows_the_tables_as_they_are():
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "docs", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
