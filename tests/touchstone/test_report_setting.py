"""The table of run settings says what was in force, also where tests built the engine in several ways."""

from types import SimpleNamespace

from tests.touchstone.factories import make_engine
from touchstone.reporting.run_folder import engine_of
from touchstone.reporting.setting import run_rows


def rows_of(*engines):
    plan = SimpleNamespace(
        engine=make_engine().name, profile="smoke", device="cpu", seed=7, engine_options={"block_size": 32}
    )
    attempts = [SimpleNamespace(engine=engine) for engine in engines]
    return {row.label.text: row.value.text for row in run_rows(plan, engine_of(plan, attempts), attempts)[4:]}


def test_a_setting_that_tests_change_has_all_its_values():
    told = rows_of(
        None,
        make_engine(prefix_cache=True),
        make_engine(**{"off.prefix_cache": False, "on.prefix_cache": True, "overlap": None}),
    )
    assert told == {"block_size": "16", "prefix_cache": "true / false", "overlap": "null"}


def test_settings_of_another_engine_are_not_the_runs():
    assert rows_of(make_engine(), make_engine(max_num_seqs=9).model_copy(update={"name": "a peer"})) == {
        "block_size": "16"
    }


def test_the_engine_that_the_run_names_is_its_engine_though_another_was_built_first():
    peer = make_engine(max_num_seqs=9).model_copy(update={"name": "a peer"})
    assert rows_of(peer, make_engine()) == {"block_size": "16"}


def test_without_a_process_that_began_the_planned_settings_stand():
    assert rows_of(None) == {"block_size": "32"}
