"""Who may ask: where keys come from, what each opens, what is said to those without."""

import pytest

from serving.config import ConfigError, ServerConfig
from serving.errors import ServingError
from serving.keys import ADMIN_KEYS, API_KEYS, Keys

USER, ADMIN = "user-key-0123456789", "admin-key-0123456789"


def code_of(keys, headers, **kwargs):
    with pytest.raises(ServingError) as caught:
        keys.check(headers, **kwargs)
    return caught.value.code.name


@pytest.fixture(autouse=True)
def no_keys_of_ours(monkeypatch):
    monkeypatch.delenv(API_KEYS, raising=False)
    monkeypatch.delenv(ADMIN_KEYS, raising=False)


def test_without_keys_everybody_may_ask_everything():
    assert Keys().check({}) == Keys().check({}, admin=True) == ""


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {USER}"}, {"authorization": f"bearer {USER}"}, {"x-api-key": USER}],
)
def test_a_key_comes_in_either_header(headers):
    assert Keys([USER]).check(headers)


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-api-key": USER[:-1]}, {"authorization": f"Basic {USER}"}, {"authorization": USER}],
)
def test_others_are_turned_away(headers):
    assert code_of(Keys([USER]), headers) == "UNAUTHENTICATED"


def test_what_changes_the_server_wants_an_admin():
    both = Keys([USER], [ADMIN])
    assert both.check({"x-api-key": ADMIN}, admin=True) and both.check({"x-api-key": ADMIN})
    assert code_of(both, {"x-api-key": USER}, admin=True) == "PERMISSION_DENIED"
    assert code_of(Keys([USER]), {"x-api-key": USER}, admin=True) == "PERMISSION_DENIED"
    only_admins = Keys([], [ADMIN])
    assert only_admins.check({}) == ""
    assert code_of(only_admins, {}, admin=True) == "UNAUTHENTICATED"


def test_callers_are_told_apart_without_their_keys():
    keys = Keys([USER], [ADMIN])
    names = {keys.check({"x-api-key": key}) for key in (USER, ADMIN)}
    assert len(names) == 2 and not any(name in USER + ADMIN for name in names)


def test_keys_come_from_files_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# team\n{USER}\n\n")
    monkeypatch.setenv(API_KEYS, "another-key-01234567,third-key-0123456789")
    monkeypatch.setenv(ADMIN_KEYS, ADMIN)
    keys = Keys.from_config(ServerConfig(api_keys_file=file))
    for key in (USER, "another-key-01234567", "third-key-0123456789", ADMIN):
        assert keys.check({"x-api-key": key})
    assert keys.check({"x-api-key": ADMIN}, admin=True)


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n", "schlüssel-0123456789\n"])
def test_unusable_keys_are_refused_at_the_start(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match="api-keys-file"):
        Keys.from_config(ServerConfig(api_keys_file=file))
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.from_config(ServerConfig(api_keys_file=tmp_path / "none"))
