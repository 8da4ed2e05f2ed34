"""What the journal's logger loads, which the first answer after a take-over waits for."""

import subprocess
import sys


def test_the_service_loads_nothing_for_terminals_and_leaves_it_to_others_to_do_so():
    code = "import nsupervisor.service.run, sys; assert 'rich' not in sys.modules; import rich.table"
    subprocess.run([sys.executable, "-c", code], check=True)
