"""Digests of what may hold secrets."""

from pathlib import Path

from nsupervisor.service.state.digest import KeyedDigest, open_keyed_digest

TOKEN = {"TOKEN": "hush"}


def test_equal_things_have_equal_digests_and_others_do_not(tmp_path: Path) -> None:
    keyed_digest = open_keyed_digest(tmp_path)
    print_ = keyed_digest.digest(TOKEN)
    assert not keyed_digest.differs(print_, dict(TOKEN))
    assert keyed_digest.differs(print_, {"TOKEN": "hush!"})
    assert not open_keyed_digest(tmp_path).differs(print_, TOKEN)
    assert open_keyed_digest(tmp_path).differs(print_, {})


def test_with_another_key_nobody_knows(tmp_path: Path) -> None:
    keyed_digest = open_keyed_digest(tmp_path)
    other = KeyedDigest(bytes(32))
    assert other.digest(TOKEN) != keyed_digest.digest(TOKEN)
    assert not other.differs(keyed_digest.digest(TOKEN), {})
    assert not other.differs("0123456789abcdef", {})


def test_the_key_is_for_nobody_else_and_a_torn_one_is_replaced(tmp_path: Path) -> None:
    before = open_keyed_digest(tmp_path).digest(TOKEN)
    key = tmp_path / "key"
    assert (key.stat().st_mode & 0o777, key.stat().st_size) == (0o600, 32)
    key.write_bytes(b"torn")
    after = open_keyed_digest(tmp_path)
    assert key.stat().st_size == 32
    assert not after.differs(before, {})


def test_without_a_place_for_it_there_is_one_for_this_supervisor(tmp_path: Path) -> None:
    keyed_digest = open_keyed_digest(tmp_path / "nowhere")
    assert keyed_digest.differs(keyed_digest.digest(TOKEN), {})


def test_a_key_that_could_not_be_written_is_written_when_it_is_used(tmp_path: Path) -> None:
    """A disk that is full while the service starts has space again when a program gets a path made with the key."""
    directory = tmp_path / "later"
    keyed_digest = open_keyed_digest(directory)
    directory.mkdir()
    token = keyed_digest.token("web#1")
    assert open_keyed_digest(directory).token("web#1") == token
    assert not (directory / "key.new").exists()
