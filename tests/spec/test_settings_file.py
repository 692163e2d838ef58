"""The settings file: what an admin wrote in it survives every edit, and it says what the settings are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.base.errors import UsageError
from installer.spec.asked import load_settings
from installer.spec.settings import NAMES, Settings
from installer.spec.settings_file import parse, unknown, wanted
from tests.kit.golden import golden
from tests.kit.samples import TEXTS, any_settings

PATH = Path("/etc/vllm-install/qwen3vl.env")

ADMIN = """\
# House rules: ask Ana before changing the port.

export PORT=8001   # agreed with networking
MODEL_NAME='Qwen/Qwen3-8B'\t# the small one

#MAX_MODEL_LEN=1024
OTHER_TOOL="two
lines, #PORT=1
TP_SIZE=9"
  DRAIN_SECONDS = 5
"""


def settings_of(text: str) -> Settings:
    return load_settings("qwen3vl", parse(text, PATH), {}, {})


def test_a_new_file_is_the_golden_one() -> None:
    settings = dataclasses.replace(
        Settings(), model="builtin:tiny", port=8123, vllm_args=("--hf-overrides", '{"a": "b c"}')
    )
    text = wanted(None, settings, PATH)
    assert text == golden("settings.env", text)
    assert settings_of(wanted(None, Settings(), PATH)) == Settings()


def test_what_an_admin_wrote_stays_but_for_the_value_that_changes() -> None:
    changed = dataclasses.replace(settings_of(ADMIN), port=9000, model="a/b c's"[:3], max_model_len=None, drain=7)
    assert wanted(ADMIN, changed, PATH) == (
        ADMIN.replace("PORT=8001", "PORT=9000")
        .replace("'Qwen/Qwen3-8B'", "a/b")
        .replace("#MAX_MODEL_LEN=1024", "MAX_MODEL_LEN=auto")
        .replace("DRAIN_SECONDS = 5", "DRAIN_SECONDS = 7")
    )


def test_nothing_is_touched_where_nothing_changes() -> None:
    assert wanted(ADMIN, settings_of(ADMIN), PATH) == ADMIN


def test_a_setting_under_two_names_or_given_twice_changes_everywhere() -> None:
    text = "MODEL_PATH=/a\nMODEL_NAME=/a\nPORT=1\nPORT=2\n"
    changed = dataclasses.replace(settings_of(text), model="/b", port=3)
    assert wanted(text, changed, PATH) == "MODEL_PATH=/b\nMODEL_NAME=/b\nPORT=3\nPORT=3\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("PORT=1#2 # why\n", None), ("PORT='1'# why\n", "PORT=2 # why\n"), ("PORT= 1\t# a # b\n", "PORT= 2\t# a # b\n"),
        ('\n\nexport  PORT="1" \n', "\n\nexport  PORT=2 \n"), ("'PORT'=1", "'PORT'=2"),
    ],
)  # fmt: skip
def test_what_stands_around_a_value_stays(before: str, after: str | None) -> None:
    if after is None:
        with pytest.raises(UsageError):
            wanted(before, Settings(port=2), PATH)
    else:
        assert wanted(before, Settings(port=2), PATH) == after


@pytest.mark.parametrize("line", ["MODEL_REVISION=main # pinned\n", "MODEL_REVISION='main'# pinned\n"])
def test_a_value_can_be_taken_away_from_before_a_comment(line: str) -> None:
    assert wanted(line, Settings(), PATH) == "MODEL_REVISION='' # pinned\n"
    assert wanted("MODEL_REVISION= # none\n", Settings(revision="x"), PATH) == "MODEL_REVISION= x # none\n"


def test_a_comment_that_only_looks_like_a_default_stays() -> None:
    text = "# PORT=8000 is what the firewall lets through\n#PORT=9000\n"
    assert wanted(text, Settings(port=9001), PATH) == text + "PORT=9001\n"


def test_a_file_with_foreign_line_ends_keeps_them() -> None:
    text = "# a\r\nPORT=1 # b\r\n"
    assert wanted(text, Settings(port=2), PATH) == "# a\r\nPORT=2 # b\r\n"


def test_a_file_without_a_last_line_end_is_added_to_on_a_line_of_its_own() -> None:
    assert wanted("PORT=1", Settings(port=1, drain=3), PATH) == "PORT=1\nDRAIN_SECONDS=3\n"


def test_a_line_that_is_cut_short_shows_nothing_of_a_password_in_it() -> None:
    with pytest.raises(UsageError) as caught:
        parse(f"INDEX_URL https://me:{'geheim' * 20}@host/simple\n", PATH)
    assert "geheim" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("hello world\n", 1), ("PORT=1\n\nhello\n", 3), ("PORT\n", 1), ("=5\n", 1), ("A='x\n", 1),
        ("\x00\x01\x02\x7fELF\n", 1), ("[Service]\n", 1), ("PORT=1\n{}\n", 2), ("a: b\n", 1), ("export\n", 1),
    ],
)  # fmt: skip
def test_a_line_that_is_no_setting_is_refused_by_number(text: str, line: int) -> None:
    with pytest.raises(UsageError, match=f"^{PATH}, line {line}: .* is not NAME=VALUE") as caught:
        parse(text, PATH)
    assert f"sudoedit {PATH}" in caught.value.hint


def test_a_variable_that_is_no_setting_is_named_with_the_nearest_one() -> None:
    assert unknown({"PROT": "1", "ZZZ": "", "PORT": "1"}) == [
        "PROT is not a setting; did you mean PORT?",
        "ZZZ is not a setting and has no effect",
    ]


# Whatever an admin wrote, and whatever is set

COMMENTS = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=15).map(
    "#{}".format
)
BLANKS = st.sampled_from(["", "  ", "\t", "# PORT=1", "#PORT=2", "#MODEL_NAME=x", "## a # b"])
SOMETHING = st.text(st.sampled_from("abc 019=#$%/é.,-"), max_size=10).map(str.strip)
QUOTED = st.one_of(
    SOMETHING.filter(lambda t: not t.startswith("#")),
    SOMETHING.map("'{}'".format),
    SOMETHING.map('"{}"'.format),
    SOMETHING.map("'one\n#PORT=7\nTP_SIZE=3 {}'".format),
)
ASSIGNMENTS = st.tuples(
    st.sampled_from(["", " ", "export "]), st.sampled_from(["A", "B_2", "c"]), st.sampled_from(["=", " = "]), QUOTED,
    st.sampled_from(["", "  # why", "\t#"]),
).map("".join)  # fmt: skip
OURS = st.tuples(st.sampled_from(["", "export "]), any_settings()).flatmap(
    lambda pair: st.lists(
        st.sampled_from(sorted(set(NAMES) - {"MODEL_PATH", "TP_SIZE", "GPU_MEMORY_UTIL"})), max_size=4
    ).map(
        lambda names: [
            pair[0] + line for line in wanted("", pair[1], PATH).splitlines() if line.partition("=")[0] in names
        ]
    )
)


@st.composite
def files(draw: st.DrawFn) -> str:
    lines = draw(st.lists(st.one_of(COMMENTS, BLANKS, ASSIGNMENTS), max_size=8))
    for line in draw(OURS):
        lines.insert(draw(st.integers(0, len(lines))), line)
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines) + draw(st.sampled_from(["", "\n", "\n\n"]))


def readable(text: str) -> bool:
    try:
        settings_of(text)
    except UsageError:
        return False
    return True


@given(files().filter(readable), any_settings())
def test_any_file_comes_to_say_any_settings(text: str, settings: Settings) -> None:
    settings = dataclasses.replace(settings, service="qwen3vl")
    after = wanted(text, settings, PATH)
    assert settings_of(after) == settings
    assert wanted(after, settings, PATH) == after
    foreign = {name: value for name, value in parse(text, PATH).items() if name not in NAMES}
    assert {name: value for name, value in parse(after, PATH).items() if name not in NAMES} == foreign
    kept = iter(after.splitlines())
    assert all(line in kept for line in text.splitlines() if not mentions_ours(line)), "comments and order survive"


def mentions_ours(line: str) -> bool:
    return any(name in line for name in NAMES)


@given(st.one_of(st.none(), files().filter(readable)), any_settings())
def test_a_value_adds_no_line_but_its_own(text: str | None, settings: Settings) -> None:
    before = parse(text or "", PATH)
    assert set(parse(wanted(text, settings, PATH), PATH)) <= set(before) | set(NAMES)


@given(TEXTS)
def test_any_file_is_read_or_refused(text: str) -> None:
    try:
        values = parse(text, PATH)
    except UsageError:
        return
    assert all(value is not None for value in values.values())
