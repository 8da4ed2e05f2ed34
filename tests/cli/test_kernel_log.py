"""Refused system calls in the kernel's log."""

import os
from pathlib import Path

import pytest

from nsupervisor.cli.kernel_log import describe_call, find_refused_call, read_kernel_log
from tests.needs import needs

I386, X86_64 = 0x4000_0003, 0xC000_003E


def message(time: int = 100, pid: int = 7, signal: int = 31, arch: int = X86_64, number: int = 163) -> str:
    return (
        f"5,1,123,-;audit: type=1326 audit({time}.022:80): auid=4294967295 uid=0 gid=0 ses=4294967295 pid={pid} "
        f'comm="a pid=9 sig=3" exe="/bin/a" sig={signal} arch={arch:x} syscall={number} compat=0 ip=0x7\n'
    )


def find(*records: str) -> tuple[int, int] | None:
    return find_refused_call(records, 7, 99.5, 101.0)


def test_the_call_is_that_of_the_process_at_that_time() -> None:
    assert find("6,1,1,-;other", message()) == (X86_64, 163)
    assert find(message(arch=I386, number=20)) == (I386, 20)
    assert find(message(pid=8), message(signal=0), message(time=97), message(time=102)) is None
    assert find() is None


def test_text_of_programs_is_no_message_of_the_audit() -> None:
    """Each user can have a text in the kernel's log, and so named a call that no filter had refused."""
    text = message().partition(";")[2].removeprefix("audit: ")
    assert find(f'3,1,123,-;overlayfs: unrecognized mount option "{text}') is None
    assert find(f"13,1,123,-;audit: {text}") is None  # written to /dev/kmsg
    assert find(f"5,1,123,-,caller=T7;audit: {text}") == (X86_64, 163)


def test_a_log_that_may_not_be_read_is_empty(tmp_path: Path) -> None:
    assert list(read_kernel_log(str(tmp_path / "none"))) == []


@needs("root")
def test_the_log_is_read_to_its_end() -> None:
    if not os.path.exists("/dev/kmsg"):
        pytest.skip("no /dev/kmsg here")
    assert all(record.endswith("\n") for record in read_kernel_log())


@needs("seccomp")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_a_call_is_described_by_its_name_and_architecture() -> None:
    assert describe_call(X86_64, 163) == "acct"
    assert describe_call(X86_64, 4000) == "call 4000"
    assert describe_call(I386, 20) == "getpid of another architecture (a 32-bit program)"
