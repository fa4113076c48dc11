"""What cleaning leaves alone because it may be text, and what it takes: markup, written breaks, copies' words."""

from __future__ import annotations

import time
import timeit
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.cleaning import RULES
from data_prep.markup import html_text
from data_prep.normalizing import normalized
from data_prep.written_breaks import are_written, without_written_breaks

TEXTS = [
    "Dear <name>, call <tel_num>, <title> <address> <Date>",
    "<p.smith@example.com> wrote to <mailto:b@example.com>, see <https://example.com/a?b=c&d>",
    "a <b and c> d",
    "the latency is <p-value 14, and this > that",
    "if (a<b) and (c>d) then x <i> y",
    "Map<String, List<a>>; #include <vector>",
    "<user@host> says 3 < 4 > 2",
    "an open <a href='x",
    "?a=1&copy=2&lt 5 AT&T",
    "<<< EOF >>> <- -> <= <>",
    "<script> alone, and <style> too",
]


@pytest.mark.parametrize("text", TEXTS)
def test_what_may_be_text_stays(text):
    assert html_text("vector<p> v; see <table>") == "vector<p> v; see <table>"
    assert html_text(text) == text
    assert html_text(f"<div>{text}</div>") == f"\n{text}\n"
    assert html_text(f'<html><body><p class="x">{text}<br>end</p></body></html>') == f"\n{text}\nend\n"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ('<P CLASS=MsoNormal>One<o:p></o:p></P><p><o:p>&nbsp;</o:p></p>', "\nOne\n\n\xa0\n"),
        ('<html xmlns:v="urn:x"><head><style>p {}</style><title>no</title></head><body lang=DE>yes</html>', "yes"),
        ('<p>a</p><!--[if gte mso 9]><xml><w:View>Normal</w:View></xml><![endif]-->', "\na\n"),
        ("<xml><w:View>Normal</w:View></xml><div>a</div>", "\na\n"),
        ("<p>a <![if !supportLists]>1.<![endif]> b</p>", "\na 1. b\n"),
        ('<?xml:namespace prefix = o ns = "urn:x" /><p>a</p>', "\na\n"),
        ('<v:shape id="a"><v:imagedata src="cid:1"/></v:shape><st1:place w:st="on">Rome</st1:place>', "Rome"),
        ("<table><tr><td>a</td><td>b</td></tr></table>", "\n\n a  b \n\n"),
        ('<a title="x > y" href=\'z\'>a</a> <img src=x alt="p"> b', "a  b"),
        ("<b>a</b> &amp;amp; &amp;lt;b&amp;gt; &#8364;", "a & <b> €"),
        ("&lt;p&gt;a &lt;b&gt;b&lt;/b&gt;&lt;/p&gt;", "\na b\n"),
        ("a<br/>b<BR >c<hr noshade>d", "a\nb\nc\nd"),
        ("<script>if (a < b) { x('</div>') }</script><p>a</p>", "\na\n"),
        ("<!DOCTYPE html><head><meta charset=utf-8><body>a", "a"),
    ],
)  # fmt: skip
def test_markup_goes(markup, text):
    assert html_text(markup) == text


@pytest.mark.parametrize(
    "text",
    [
        r"CORP\rsmith and CORP\nina.r, ACME\tom", r"Desktop\reports\notes.txt", r"see C:\new\table or D:\temp\r",
        r"on \\nas\tools\new", r".\new\run and ..\tools\x", r" \new\share\x", r'print("a\n") and split(' r"'x\t')",
        r"under_score\new_thing", "a real\nbreak and a \\n one",
    ],
)  # fmt: skip
def test_backslashes_that_are_meant_stay(text):
    assert without_written_breaks(text) == text


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"Dear team,\n\nmy order is late.\nBest regards\nJohn", "Dear team,\n\nmy order is late.\nBest regards\nJohn"),
        (r"one:\r\n- two\r\n- three\t!", "one:\n- two\n- three !"),
        (r"壊れました。\nお願いします", "壊れました。\nお願いします"),
        (r"Größe geändert\nÜber uns", "Größe geändert\nÜber uns"),
        (r"'SAP'.\n\nVielen Dank", "'SAP'.\n\nVielen Dank"),
    ],
)
def test_written_breaks_become_real(written, text):
    assert without_written_breaks(written) == text


def test_a_file_with_real_breaks_wrote_none_out():
    assert are_written([r"a.\n\nB", "plain", r"c,\nd"])
    assert are_written([r"a.\n\nB", "real\nbreak", "real\n\nbreaks"])
    assert not are_written([r"a.\n\nB", *["real\nbreak"] * 20])
    assert not are_written([r"split it at \n please", r"see ..\new", "real\nbreak"])
    assert not are_written(["plain", r"CORP\nina"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("เครื่องพิมพ์ไม่ทำงาน", "เครื่องพมพ์ไมทำงาน"),  # Thai vowel signs and tones
        ("यह कि", "यह का"),  # Devanagari
        ("কাজ করি", "কাজ করে"),  # Bengali
        ("கடை", "கடி"),  # Tamil
        ("كَتَبَ", "كُتِبَ"),  # Arabic
        ("שָׁלוֹם", "שִׁלּוּם"),  # Hebrew
        ("프린터", "프린트"),  # Korean
        ("ខ្មែរ", "ខ្មារ"),  # Khmer
        ("great 👍", "great 👎"),
        ("👩\u200d💻 here", "👩 💻 here"),
    ],
)
def test_words_of_every_script_differ_by_their_marks(one, other):
    assert normalized(one) != normalized(other)


def test_words_are_the_same_without_case_and_punctuation():
    assert normalized("Hello, WORLD!  It's -- foo_bar") == "hello world it s foo bar"
    assert normalized("Über–Straße…") == "über strasse"
    assert normalized("❤️ ok") == normalized("❤ ok")
    assert normalized("เครื่องพิมพ์!") == normalized("เครื่องพิมพ์")
    assert normalized("!!!") == "!!!"


PATTERNS = [
    "<!--", "<script>", "<p ", "<!doctype ", "<style><script>", "<blockquote\n", "<p a=\"", "<p a='", "<a b=c ", "<b>",
    "<div>", "</div>", "<div></b>", "<style></style>", "</style>", "<xml>", "<o:p>", "<![if ", "<?xml", "< ", "&amp;",
    "&#x41;", "&lt;p&gt;", "\\n", "C:\\a", "a\\n", "..\\a\\", "\u0301", "a\u0301\u0316", "\u1100\u1161", "e\u0301",
    " \t", "\n \n", "\u200b", "<font color=1>x", "<ul><li>", "<p>x", "\\\\", "\\r\\", "<a\n\n",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_time_is_linear_in_a_texts_length(pattern):
    """Ten times as long takes ten times as long, up to a megabyte; a quadratic rule takes a hundred times as long."""
    for rule in (*RULES.values(), normalized):
        seconds = [_seconds(rule, (pattern * length)[:length]) for length in (10_000, 100_000, 1_000_000)]
        for shorter, longer in pairwise(seconds):
            assert longer < 30 * shorter + 0.05, (rule, seconds)


def _seconds(rule, text: str) -> float:
    # as timeit does without the garbage collector, which goes through all objects of the tests before
    return min(timeit.repeat(lambda: rule(text), timer=time.process_time, number=1, repeat=2))


@given(st.text(alphabet="<>/!-&;=\"' pbdivasctyle\n"))
def test_no_text_breaks_the_parser(text):
    html_text(text)
