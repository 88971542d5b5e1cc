from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.classes import ClassTable, MapClass, format_color, parse_color
from geoseg.errors import ConfigError, GeosegError, SceneError


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_colors_survive_their_text(color: tuple[int, int, int]) -> None:
    assert parse_color(format_color(color)) == color
    assert parse_color(format_color(color).upper()) == color


@pytest.mark.parametrize("text", ["", "red", "#fff", "#12345g", "123456", "#1234567", "#+12345"])
def test_other_texts_are_no_color(text: str) -> None:
    with pytest.raises(ValueError, match="#rrggbb"):
        parse_color(text)


def test_a_table_knows_its_classes_by_id_and_name() -> None:
    table = ClassTable.from_names(["land", "water"], ["#00ff00", (0, 0, 255)])
    assert len(table) == 2
    assert table.names == ("land", "water")
    assert [c.id for c in table] == [0, 1]
    assert table[table.id_of("water")] == MapClass(1, "water", (0, 0, 255))
    assert pickle.loads(pickle.dumps(table)) == table
    with pytest.raises(KeyError):
        table.id_of("lava")


def test_impossible_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ClassTable(())
    with pytest.raises(ValueError, match="in order"):
        ClassTable((MapClass(1, "a", (0, 0, 0)),))
    with pytest.raises(ValueError, match="repeated: a"):
        ClassTable.from_names("aba", ["#000000"] * 3)
    with pytest.raises(ValueError, match="3 names and 2 colors"):
        ClassTable.from_names("abc", ["#000000"] * 2)
    with pytest.raises(ValueError, match="at most 255"):
        ClassTable.from_names(map(str, range(256)), ["#000000"] * 256)
    with pytest.raises(ValueError, match="no name"):
        MapClass(0, " ", (0, 0, 0))
    with pytest.raises(ValueError, match="0 … 255"):
        MapClass(0, "a", (0, 0, 256))


def test_255_classes_fit_beside_nodata() -> None:
    assert len(ClassTable.from_names(map(str, range(255)), ["#000000"] * 255)) == 255


def test_errors_carry_their_hint_to_other_processes() -> None:
    error = pickle.loads(pickle.dumps(SceneError("a.tif is torn", hint="mend it")))
    assert isinstance(error, GeosegError) and isinstance(error, OSError)
    assert (str(error), error.hint, error.exit_code) == ("a.tif is torn", "mend it", 2)
    assert isinstance(ConfigError("x"), ValueError)
