"""Faults that the service once had: the histories find each of them when its fix is undone."""

from collections.abc import Callable

import pytest

from tests.simulation import defects
from tests.simulation.test_planted import check_found


def check_reverted(monkeypatch: pytest.MonkeyPatch, revert: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Undo a fix, and check that the history of its seed fails."""
    (defect,) = [defect for defect in defects.REVERTED if defect.plant is revert]
    check_found(monkeypatch, defect)


@pytest.mark.fault("H2")
def test_a_rule_that_a_reload_replaces_during_its_action_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_reverted(monkeypatch, defects.look_up_the_rule_of_an_action)


@pytest.mark.fault("H5")
def test_a_takeover_that_ends_differently_than_the_reload_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_reverted(monkeypatch, defects.resume_without_the_order_of_a_reload)


@pytest.mark.fault("H6")
def test_a_changed_type_or_watchdog_that_counts_for_a_running_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_reverted(monkeypatch, defects.judge_a_program_by_the_new_file)


@pytest.mark.fault("H7")
def test_an_increase_that_a_reload_hides_from_a_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_reverted(monkeypatch, defects.begin_counters_with_a_reload)


@pytest.mark.fault("H8")
def test_a_rule_that_judges_an_exit_of_a_restart_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_reverted(monkeypatch, defects.judge_exits_that_the_service_causes)


@pytest.mark.fault("H10")
def test_two_changes_of_limits_at_once_of_which_one_is_lost_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_reverted(monkeypatch, defects.change_limits_at_once)


@pytest.mark.fault("H10")
def test_a_limit_of_a_reload_that_a_change_replaces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_reverted(monkeypatch, defects.forget_limits_deferred_during_a_change)


@pytest.mark.fault("H11")
def test_a_frozen_member_that_is_frozen_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_reverted(monkeypatch, defects.freeze_again)


@pytest.mark.fault("H12")
def test_a_start_while_the_service_stops_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check_reverted(monkeypatch, defects.start_while_the_service_stops)
