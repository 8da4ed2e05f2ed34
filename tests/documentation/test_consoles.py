"""The commands of the pages work, and show what the pages say."""

import pytest

from tests.documentation.typing import SESSIONS, Session, type_session
from tests.needs import needs


@pytest.mark.host_only
@needs("root", "cgroup", "memory", "pids", "program:curl", "program:jq", "program:ps")
@needs("program:nsenter", "program:setpriv", "program:systemd-notify")
@pytest.mark.parametrize("session", SESSIONS.values(), ids=SESSIONS)
def test_each_command_shows_what_the_page_says(session: Session, tmp_path) -> None:
    type_session(session, tmp_path)
