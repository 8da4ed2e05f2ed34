"""A checkout of this project, and how its product is run: by its own environment, whatever the harness runs in."""

import os
import shutil
import subprocess
from pathlib import Path

import attrs

from benchmarks.products import ROOT, SetupError

NEEDED = ("nsupervisor/__init__.py", "pyproject.toml", "scripts/setup")
_WHERE = "import nsupervisor; print(nsupervisor.__version__, nsupervisor.__file__)"


@attrs.frozen
class Checkout:
    """`root`: its directory. `label`: what its figures are called."""

    root: Path
    label: str

    @property
    def python(self) -> str:
        """The interpreter of its environment."""
        return str(self.root / ".venv" / "bin" / "python")

    @property
    def program(self) -> str:
        """Its `nsupervisor`."""
        return str(self.root / ".venv" / "bin" / "nsupervisor")

    def environment(self) -> dict[str, str]:
        """The harness's environment without the variables that would have the product import modules from elsewhere:
        scripts/bench sets PYTHONPATH to its own checkout, and that comes before the editable installation."""
        return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

    def version(self) -> str:
        """The version of what its environment runs. Raises SetupError if that is not the code of this checkout."""
        setup = f"run {self.root / 'scripts' / 'setup'} --only-python"
        done = subprocess.run(
            [self.python, "-c", _WHERE], capture_output=True, text=True, cwd="/", env=self.environment(), check=False
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise SetupError(f"{self.python} cannot import nsupervisor ({last[0]}); {setup}")
        version, file = done.stdout.split(maxsplit=1)
        if Path(file.strip()).resolve().parents[1] != self.root.resolve():
            raise SetupError(f"{self.python} runs the code in {Path(file).parent}, another checkout; {setup}")
        return version

    def describe(self) -> dict[str, str]:
        """Directory, version and commit; the commit is empty if git does not know it. Raises SetupError."""
        commit = ""
        if shutil.which("git"):
            command = ["git", "-C", str(self.root), "describe", "--always", "--dirty", "--tags"]
            commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return {"directory": str(self.root), "version": self.version(), "commit": commit}


HERE = Checkout(ROOT, "nsupervisor")


def open_checkout(directory: Path, label: str) -> Checkout:
    """The checkout in `directory`; its environment is made if there is none. Raises SetupError."""
    for name in NEEDED:
        if not (directory / name).is_file():
            raise SetupError(
                f"{directory} is not a checkout of nsupervisor, as it has no {name}; make one, for example with: "
                f"git worktree add --detach {directory} COMMIT"
            )
    checkout = Checkout(directory.resolve(), label)
    if not Path(checkout.program).exists():
        done = subprocess.run(
            [checkout.root / "scripts" / "setup", "--only-python"], env=checkout.environment(), check=False
        )
        if done.returncode:
            raise SetupError(f"{checkout.root}/scripts/setup --only-python failed; see above")
    checkout.version()
    return checkout
