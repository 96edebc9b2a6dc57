"""Clients' names in any script: which there are, and that their folders are safe and distinct."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.core.client_names import (
    NAME_FILE,
    SAFE_NAME,
    check_distinct_clients,
    client_folder,
    client_folder_name,
    client_of_folder,
    is_client_name,
)
from fedsdr.core.errors import UserError

NAMES = [
    "Klinik Süd", "Ärzte", "病院", "عيادة", "бальница", "क्लिनिक", "-rf", "--out", ".hidden", "a.",
    "con", "L'Hôpital", "Müller & Söhne (Ulm)", "院" * 100,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_any_script_has_a_safe_folder_that_tells_it(tmp_path, name):
    assert is_client_name(name)
    folder = client_folder(tmp_path, name)
    assert SAFE_NAME.fullmatch(folder.name)
    assert len(folder.name) <= 60
    assert folder.stat().st_mode & 0o777 == 0o700
    assert client_of_folder(folder) == name
    assert client_folder(tmp_path, name) == folder


@pytest.mark.parametrize("name", ["anna", "Hospital_1", "a.b-c", "x" * 100])
def test_a_safe_name_is_its_folder(tmp_path, name):
    folder = client_folder(tmp_path, name)
    assert folder.name == name
    assert client_of_folder(folder) == name
    assert not (folder / NAME_FILE).exists()


def test_folders_are_the_same_everywhere_and_readable():
    """A run is resumed, and read on other systems: these may never change."""
    assert client_folder_name("Klinik Süd") == "Klinik-Sud-0d1dd53c04"
    assert client_folder_name("病院") == "client-f49f652930"
    assert client_folder_name("Su\u0308d") == client_folder_name("S\u00fcd")


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=4))
def test_names_are_distinct_where_their_folders_are(names):
    folders = {client_folder_name(name).casefold() for name in names}
    try:
        check_distinct_clients(names)
    except UserError:
        assert len(folders) < len(names)
    else:
        assert len(folders) == len({unicodedata.normalize("NFC", name) for name in names})


@pytest.mark.parametrize("pair", [("Anna", "anna"), ("S\u00fcd", "Su\u0308d")])
def test_names_that_a_file_system_takes_for_one_are_refused(pair):
    with pytest.raises(UserError, match="letter case and Unicode forms do not tell names apart"):
        check_distinct_clients(pair)


def test_names_that_are_alike_in_latin_letters_have_folders_of_their_own():
    names = ["Süd", "Sud", "süd", "Süd ", "病院", "医院", "-rf", "rf"]
    assert len({client_folder_name(name).casefold() for name in names}) == len(names)


@pytest.mark.parametrize(
    "name",
    ["", "..", "-", " ", "a/b", "a\\b", "a\nb", "a\0b", "a:b", "x" * 101, "a\u202eb", "\ud800"],
)
def test_what_is_no_name(name):
    assert not is_client_name(name)


def test_a_folder_without_a_name_file_is_called_as_it_is():
    assert client_of_folder(Path("anna")) == "anna"
