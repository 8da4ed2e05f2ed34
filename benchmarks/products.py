"""Prepare the benchmarks: build the C programs, and install the other products on request."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "benchmarks" / "c"
BUILD = ROOT / "build" / "benchmarks"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nsupervisor-benchmarks"
"""The directory of products that are not Debian packages."""
VENV, NPM = CACHE / "venv", CACHE / "npm"

PYPI = {"supervisor": VENV / "bin" / "supervisord", "circus": VENV / "bin" / "circusd"}
NODE = {"pm2": NPM / "node_modules" / ".bin" / "pm2-runtime"}
DEBIAN = {
    "unshare": "util-linux",
    "bwrap": "bubblewrap",
    "crun": "crun",
    "runc": "runc",
    "s6-svscan": "s6",
    "svscan": "daemontools",
    "runsvdir": "runit",
    "monit": "monit",
    "/lib/systemd/systemd": "systemd",
}


class SetupError(Exception):
    """Something is missing; the text names it and the remedy."""


def program(name: str) -> str:
    """Return the path of one of the C programs."""
    return str(BUILD / name)


def build() -> None:
    """Compile programs that are missing or older than their source, statically: no dynamic linker is measured."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SetupError("no C compiler found; install gcc and libc6-dev")
    BUILD.mkdir(parents=True, exist_ok=True)
    newest_header = max(header.stat().st_mtime for header in SOURCES.glob("*.h"))
    for source in SOURCES.glob("*.c"):
        made = BUILD / source.stem
        if made.exists() and made.stat().st_mtime > max(source.stat().st_mtime, newest_header):
            continue
        subprocess.run([compiler, "-O2", "-static", "-Wall", "-Wextra", "-o", made, source], check=True)


def missing(what: str) -> str:
    """Return how to install the product `what` (its key above); empty if it is installed."""
    path = (PYPI | NODE).get(what)
    if path.exists() if path else shutil.which(what):
        return ""
    name = f"the Debian package {DEBIAN[what]}" if what in DEBIAN else f"{what} below {CACHE}"
    return f"not installed; scripts/bench --install installs {name}"


def install() -> None:
    """Install all available products, and print the unavailable ones. Refuses to remove any package."""
    packages = [package for name, package in DEBIAN.items() if shutil.which(name) is None]
    if packages:
        _run(["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "update"])
    packages = [package for package in packages if _harmless(package)]
    if packages:
        _run(["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends", *packages])
    if any(not path.exists() for path in PYPI.values()):
        CACHE.mkdir(parents=True, exist_ok=True)
        # Both need pkg_resources, which later versions of setuptools no longer have.
        _run([sys.executable, "-m", "venv", str(VENV)])
        _run([str(VENV / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", *PYPI, "setuptools<81"])
    if any(not path.exists() for path in NODE.values()):
        if shutil.which("npm") is None:
            print("bench: pm2 needs npm (Debian package npm, or nodejs.org); left out", file=sys.stderr)
        else:
            NPM.mkdir(parents=True, exist_ok=True)
            _run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(NPM), *NODE])


def _harmless(package: str) -> bool:
    """Return whether apt would install `package` without removing another, by a dry run."""
    tried = subprocess.run(
        ["apt-get", "install", "-s", "--no-install-recommends", package], capture_output=True, text=True
    )
    removed = [line for line in tried.stdout.splitlines() if line.startswith("Remv")]
    if tried.returncode or removed:
        why = tried.stderr.strip() or f"it would remove {removed[0].split()[1]}"
        print(f"bench: {package} is not installed: {why}", file=sys.stderr)
    return not tried.returncode and not removed


def _run(command: list[str]) -> None:
    # Services must not be started; invoke-rc.d asks this program, where it exists.
    print(f"bench: {' '.join(command)}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL).returncode:
        print("bench: that failed; what it would have installed is left out", file=sys.stderr)


def version(what: str) -> str:
    """Return the product's version; empty if it is unknown."""
    if what in PYPI:
        code = f"from importlib.metadata import version; print(version({what!r}))"
        return _first_line([str(VENV / "bin" / "python"), "-c", code])
    if what in NODE:
        return str(json.loads((NPM / "node_modules" / what / "package.json").read_text())["version"])
    return _first_line(["dpkg-query", "-W", "-f", "${Version}", DEBIAN[what]])


def _first_line(command: list[str]) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said[0].strip() if said else ""
