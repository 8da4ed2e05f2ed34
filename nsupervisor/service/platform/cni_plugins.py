"""Network namespaces, and the programs that set up networks in them: the CNI plugins.

A plugin runs as the service's user, in a session of its own, with a clean environment. It may take `PLUGIN_TIMEOUT_S`
and write `MAX_OUTPUT_BYTES`; then it is killed with what it has started. The lock that it inherits tells the next
supervisor that a plugin of this one still runs.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence

import trio

from nsupervisor.core.cni import DEFAULT_NETWORK as DEFAULT_NETWORK
from nsupervisor.core.cni import INTERFACE, NetworkError, error_text
from nsupervisor.linux import syscalls
from nsupervisor.linux.children import expect_child
from nsupervisor.linux.namespaces import NAMESPACES
from nsupervisor.service.platform.cni_files import find_plugin, plugin_directories

PLUGIN_TIMEOUT_S = 30.0
MAX_OUTPUT_BYTES = 1 << 20


def make_network_namespace() -> int:
    """Make a network namespace whose loopback is up; return its descriptor, close-on-exec. Raises OSError.

    A thread of its own makes it, and ends: no other work may ever run in it there. The namespace ends with its last
    descriptor and process.
    """
    results: list[int | OSError] = []

    def make() -> None:
        try:
            syscalls.unshare(NAMESPACES["network"].flag)
            syscalls.bring_up_loopback()
            results.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=make, name="network", daemon=True)
    thread.start()
    thread.join()
    if isinstance(results[0], OSError):
        raise results[0]
    return results[0]


async def run_plugin(
    command: str,
    name: str,
    container_id: str,
    namespace: int,
    request: bytes,
    inherited: Sequence[int] = (),
    cgroup_files: Sequence[str] = (),
) -> bytes:
    """Run a plugin, and return what it wrote. `command`: "ADD" or "DEL". `namespace`: a descriptor, -1: it is gone.

    `cgroup_files`: those by which it enters its cgroup, before it is executed.

    Raises NetworkError if it fails, takes too long, or is missing.
    """
    path = find_plugin(name)
    if path is None:
        raise NetworkError(f"there is no plugin {name} in {', '.join(plugin_directories())}")
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container_id,
        "CNI_NETNS": f"/proc/{os.getpid()}/fd/{namespace}" if namespace >= 0 else "",
        "CNI_IFNAME": INTERFACE,
        "CNI_PATH": ":".join(plugin_directories()),
    }
    status, output, errors = await _run([path], environment, request, inherited, cgroup_files)
    if status != 0:
        raise NetworkError(f"plugin {name}: {error_text(output, errors, status)}")
    return output


_SCRIPT = 'while [ "$1" != -- ]; do echo 0 >"$1" || exit 126; shift; done; shift; exec "$@"'


def _enter(cgroup_files: Sequence[str]) -> list[str]:
    """Return the beginning of a command that enters a cgroup: a process that is moved later may have forked before."""
    return ["/bin/sh", "-c", _SCRIPT, "sh", *cgroup_files, "--"] if cgroup_files else []


async def run_tool(command: Sequence[str], inherited: Sequence[int] = (), cgroup_files: Sequence[str] = ()) -> str:
    """Run a program that needs no input, and return what it wrote. Raises NetworkError."""
    status, output, errors = await _run(command, {}, b"", inherited, cgroup_files)
    if status != 0:
        raise NetworkError(f"{command[0]}: {error_text(b'', errors, status)}")
    return output.decode(errors="replace")


async def _run(
    command: Sequence[str],
    variables: Mapping[str, str],
    data: bytes,
    inherited: Sequence[int],
    cgroup_files: Sequence[str],
) -> tuple[int, bytes, bytes]:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", **variables}
    with expect_child() as child:
        try:
            process = await trio.lowlevel.open_process(
                [*_enter(cgroup_files), *command],
                cwd="/",
                env=environment,
                start_new_session=True,
                pass_fds=inherited,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise NetworkError(f"cannot execute {command[0]}: {error.strerror}") from None
        child.started(process)
        is_reaped = False
        try:
            with trio.fail_after(PLUGIN_TIMEOUT_S):
                outputs = await _communicate(process, data, command[0])
                status = await process.wait()
                is_reaped = True
                return status, *outputs
        except trio.TooSlowError:
            raise NetworkError(f"{command[0]} took more than {PLUGIN_TIMEOUT_S:g} s and was killed") from None
        finally:
            if not is_reaped:
                # Its number is that of its session, with what it has started, until it is reaped. It may have ended:
                # so `returncode`, which would reap it, is not read before.
                os.killpg(process.pid, signal.SIGKILL)
                with trio.CancelScope(shield=True):
                    await process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    await trio.aclose_forcefully(pipe)


async def _communicate(process: trio.Process, data: bytes, name: str) -> tuple[bytes, bytes]:
    """Write the input of a program, and return what it wrote to both outputs. Does not reap it."""
    outputs = {"stdout": b"", "stderr": b""}
    has_flooded = False

    async def write() -> None:
        assert process.stdin is not None
        try:
            await process.stdin.send_all(data)
        except trio.BrokenResourceError:  # it has not read everything; its exit status says why
            pass
        await process.stdin.aclose()

    async def read(stream: str) -> None:
        nonlocal has_flooded
        pipe = getattr(process, stream)
        while chunk := await pipe.receive_some(65536):
            outputs[stream] += chunk
            if len(outputs[stream]) > MAX_OUTPUT_BYTES:
                has_flooded = True
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(read, "stdout")
        nursery.start_soon(read, "stderr")
    if has_flooded:
        raise NetworkError(f"{name} wrote more than {MAX_OUTPUT_BYTES >> 20} MiB and was killed")
    return outputs["stdout"], outputs["stderr"]
