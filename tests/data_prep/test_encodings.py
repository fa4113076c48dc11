"""Encodings are told by the evidence of the whole file, with and without byte-order marks."""

from __future__ import annotations

import pytest

from common.errors import ConfigurationError, DataError
from data_prep.sources import Row, open_source

BODIES = {
    "ru": "Здравствуйте! Принтер не работает с понедельника, помогите пожалуйста",
    "ja": "プリンターが動きません。至急ご確認をお願いいたします",
    "zh": "打印机无法打印，请尽快处理这个问题，谢谢",
    "ko": "프린터가 작동하지 않습니다. 확인 부탁드립니다",
    "de": "Sehr geehrte Damen und Herren – der Drucker für große Aufträge läuft nicht",
    "pl": "Dzień dobry, drukarka nie działa, proszę o pomoc, źródło błędu nieznane",
    "el": "Καλημέρα, ο εκτυπωτής δεν λειτουργεί, παρακαλώ βοηθήστε",
    "ar": "مرحبا، الطابعة لا تعمل منذ يوم الاثنين، من فضلك ساعدني",
    "th": "สวัสดีครับ เครื่องพิมพ์ไม่ทำงาน กรุณาช่วยด้วย",
}
WIDE = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-16", "utf-32"]
NARROW = [
    ("ru", "cp1251"), ("ru", "koi8-r"), ("ru", "iso8859-5"), ("ru", "cp866"), ("ja", "cp932"), ("ja", "euc_jp"),
    ("zh", "gb18030"), ("ko", "cp949"), ("de", "cp1252"), ("de", "mac_roman"), ("pl", "cp1250"), ("el", "cp1253"),
    ("th", "cp874"),
]  # fmt: skip


def bodies(path) -> list[str]:
    return [row.values[0] for row in open_source(path).rows(["body"]) if isinstance(row, Row)]


def table(text: str) -> str:
    return "subject,body,queue\r\n" + "".join(f'Case {number},"{text} {number}",A\r\n' for number in range(30))


@pytest.mark.parametrize("codec", WIDE)
@pytest.mark.parametrize("language", BODIES)
def test_two_and_four_bytes_a_character(tmp_path, language, codec):
    path = tmp_path / "t.csv"
    path.write_bytes(table(BODIES[language]).encode(codec))
    assert bodies(path) == [f"{BODIES[language]} {number}" for number in range(30)]
    said = " ".join(open_source(path).remarks)
    assert ("without a byte-order mark" in said) == codec.endswith("e")


@pytest.mark.parametrize(("language", "codec"), NARROW)
def test_one_byte_a_character_and_asian_ones(tmp_path, language, codec):
    text = BODIES[language].replace("–", "-") if codec == "mac_roman" else BODIES[language]
    path = tmp_path / "t.csv"
    path.write_bytes(table(text).encode(codec))
    assert bodies(path) == [f"{text} {number}" for number in range(30)]
    assert f"{path}: read as " in open_source(path).remarks[0]


def test_letters_that_only_the_end_of_a_long_file_has(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(
        ("body,queue\n" + "plain text,A\n" * 200_000 + f"{BODIES['ru'].replace(',', '')},B\n" * 20).encode("cp1251")
    )
    assert bodies(path)[-1] == BODIES["ru"].replace(",", "")


def test_lines_of_another_encoding_in_a_file_of_utf_8(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"body,queue\n" + "größer,A\n".encode() * 50 + "kürzer,B\n".encode("cp1252") * 3)
    source = open_source(path)
    assert [row.values[0] for row in source.rows(["body"]) if isinstance(row, Row)] == ["größer"] * 50 + ["kürzer"] * 3
    assert source.recoded == 3


def test_a_stray_nul_is_no_sign_of_two_bytes_a_character(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"body,queue\n" + b"plain\0 text,A\n" * 20)
    assert bodies(path) == ["plain text"] * 20


def test_json_in_two_bytes_a_character(tmp_path):
    path = tmp_path / "t.json"
    path.write_bytes('[{"body": "ü", "queue": "A"},\r\n {"body": "ж", "queue": "B"}]'.encode("utf-16-le"))
    assert bodies(path) == ["ü", "ж"]


def test_a_named_encoding_is_taken(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("body,queue\nжук,A\n".encode("koi8-r"))
    rows = open_source(path, "koi8-r").rows(["body"])
    assert list(rows) == [Row(2, ["жук"])]
    with pytest.raises(ConfigurationError, match="no encoding 'utf-9'"):
        open_source(path, "utf-9")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"body,queue\n" + bytes([0x81, 0x8D, 0x8F, 0x90, 0x9D, 0xFF, 0xFE, 0x01, 0x02, 0x03]) * 300)
    with pytest.raises(DataError, match=r"no encoding that could be told.*--encoding|holds no|has no"):
        list(open_source(path).rows(["body"]))
