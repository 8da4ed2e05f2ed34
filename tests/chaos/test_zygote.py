"""Found by scripts/chaos, seed 2177297653, step 22: the keeper's last descriptors went, and it told of a defect."""

import errno
import resource
import subprocess
import sys

from tests.needs import ROOT, needs

WITHOUT_DESCRIPTORS = """
import os, resource, signal
from nsupervisor.keeper.setup.descriptors import FIRST_FREE_FD
from nsupervisor.keeper.setup.spec import Spec
from nsupervisor.keeper.server.zygote import Kind, Zygote
from nsupervisor.linux.namespaces import NAMESPACES
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())  # as the keeper does
for place in range(3, FIRST_FREE_FD):  # as the keeper does
    os.dup2(0, place)
zygote = Zygote(os.open(os.devnull, os.O_RDWR))
zygote._fork()
zygote._mounts.has_changed = lambda: False  # whatever others do on this host just now
zygote.refill(Kind(NAMESPACES["pid"].flag))  # ordered; that it is there is heard at the next start
most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0), hard))
spec = Spec({'id': 'x', 'argv': ['true'], 'env': {}, 'cwd': '/'})
first, fds = zygote.start(Kind(NAMESPACES["pid"].flag), spec, -1)  # needs no other descriptor, as its init waits
try:
    zygote.start(Kind(NAMESPACES["pid"].flag), spec, -1)
except OSError as error:
    print(error.errno)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
os.kill(first, 9)  # it expects all signals to be blocked, as they are in the keeper
os.waitpid(first, 0)
zygote.kill()
"""


@needs("root")
def test_an_init_for_which_no_descriptor_is_left_is_refused_in_words():
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 10
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DESCRIPTORS], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout.split(), done.stderr) == ([str(int(errno.EMFILE))], "")
