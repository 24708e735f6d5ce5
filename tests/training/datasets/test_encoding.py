import pytest

from training.datasets.encoding import decode, is_damaged

CHINESE = [
    "味道不错，服务员也很热情，下次还会再来。",
    "等了一个小时才上菜，而且菜是凉的。",
    "房间很干净，就是隔音差了一点。",
]
TRADITIONAL = ["這間酒店環境和服務態度亦算不錯。", "餐廳的點心不太好吃，要改善。"]
FRENCH = [
    "Le café était très agréable, mais le dîner nous a déçus.",
    "Ça alors ! Où est le garçon ? Noël à l’hôtel, 5 € – “parfait”.",
]
GERMAN = ["Schöne Grüße aus München, das Frühstück war großartig.", "Für die Größe zu teuer."]
ENGLISH = ["A plain review of a film.", "It’s a café, I’d say.", "Nothing else to report."]


@pytest.mark.parametrize("times", [1, 40])
@pytest.mark.parametrize(
    ("codec", "name", "lines"),
    [
        ("utf-8", "UTF-8", CHINESE + FRENCH),
        ("utf-8", "UTF-8", ["plain ASCII"]),
        ("utf-8-sig", "UTF-8 with a byte order mark", CHINESE),
        ("utf-16", "UTF-16", CHINESE),
        ("utf-16-le", "UTF-16 (little-endian)", CHINESE),
        ("utf-16-le", "UTF-16 (little-endian)", ENGLISH),
        ("utf-16-be", "UTF-16 (big-endian)", CHINESE),
        ("utf-16-be", "UTF-16 (big-endian)", ["plain ASCII"]),
        ("utf-32", "UTF-32", CHINESE),
        ("gb18030", "GB18030", CHINESE),
        ("big5", "Big5", TRADITIONAL),
        ("cp1252", "Windows-1252", FRENCH),
        ("cp1252", "Windows-1252", GERMAN),
        ("cp1252", "Windows-1252", ENGLISH),
    ],
)
def test_the_encodings_of_users_files_are_found(codec, name, lines, times):
    text = "text,label\n" + "".join(f"{line},1\n" for line in lines * times)
    assert decode(text.encode(codec)) == (text, name)


def test_a_late_accent_in_a_long_english_file_is_not_missed():
    text = "text,label\n" + "A plain review.,1\n" * 20_000 + "It’s a café, I’d say.,0\n"
    assert decode(text.encode("cp1252")) == (text, "Windows-1252")


def test_a_damaged_line_does_not_turn_utf8_into_something_else():
    lines = [f"{line},1".encode() for line in CHINESE * 3]
    lines[4] = lines[4][:5] + b"\xff" + lines[4][6:]
    text, name = decode(b"\n".join(lines))
    assert name == "UTF-8"
    assert [i for i, line in enumerate(text.split("\n")) if is_damaged(line)] == [4]


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16", "utf-32"])
def test_half_a_character_at_the_end_is_damage_and_no_crash(codec):
    text, _ = decode("好\n吃,1\n".encode(codec)[:-1])
    assert text.startswith("好\n吃,1") and is_damaged(text)


def test_an_empty_file_is_an_empty_text():
    assert decode(b"") == ("", "UTF-8")
