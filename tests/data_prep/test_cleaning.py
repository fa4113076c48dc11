import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigurationError
from data_prep.cleaning import RULES, Cleaner, cleaned_name


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        (
            "html",
            "Hello<br>you <b>there</b>, <span class='x'>1&nbsp;&lt;&nbsp;2</span>",
            "Hello\nyou there, 1\xa0<\xa02",
        ),
        ("html", "Dear <name>, call <tel_num> or <title>", "Dear <name>, call <tel_num> or <title>"),
        ("html", "<style>p { color: red }</style><p>One</p><!-- no -->", "\nOne\n"),
        ("html", "AT&T, R&D, ?a=1&copy=2, &#x41;&amp;lt;", "AT&T, R&D, ?a=1&copy=2, A<"),
        ("html", "3 < 4 and <a href='x'>this</a>", "3 < 4 and this"),
        ("written-breaks", "Dear team,\\n\\nmy \\r\\n order:\\tlate", "Dear team,\n\nmy \n order: late"),
        ("written-breaks", r"see C:\new\tables and \\nas\tools, thanks", r"see C:\new\tables and \\nas\tools, thanks"),
        ("control-characters", "a\x00b\u200bc\x1b[0m\r\nd\re\u2028f\ud800\ufeff", "abc[0m\nd\ne\nf"),
        (
            "control-characters",
            "\N{WOMAN}\u200d\N{PERSONAL COMPUTER} tab\t",
            "\N{WOMAN}\u200d\N{PERSONAL COMPUTER} tab\t",
        ),
        ("nfc", "u\u0308ber", "\xfcber"),
        ("whitespace", "  a \xa0 b\t\tc  \n\n \n\n d\n e  ", "a b c\n\nd\ne"),
    ],
)
def test_rule(rule: str, before: str, after: str):
    assert RULES[rule](before) == after


def test_each_ticket_is_counted_once_a_rule():
    cleaner = Cleaner()
    assert cleaner.clean("Sub.\\nJect", "Yes,\\nb &amp; c") == ["Sub.\nJect", "Yes,\nb & c"]
    assert cleaner.clean("", "plain") == ["", "plain"]
    assert cleaner.changed == {
        "html": 1, "written-breaks": 1, "control-characters": 0, "nfc": 0, "whitespace": 0,
    }  # fmt: skip


def test_a_skipped_rule_leaves_the_text():
    assert Cleaner(skip=["written-breaks"]).clean("a\\nb  c") == ["a\\nb c"]
    with pytest.raises(ConfigurationError, match=r"no cleaning rule 'hmtl'.*html"):
        Cleaner(skip=["hmtl"])


def test_a_hidden_control_token_comes_to_light_before_it_can_be_escaped():
    assert Cleaner().clean("<\u200b|start|>&lt;|end|&gt;") == ["<|start|><|end|>"]


@given(st.text())
def test_what_is_cleaned_can_be_written_and_has_no_outer_blanks(text: str):
    (cleaned,) = Cleaner().clean(text)
    assert cleaned.encode("utf-8").decode() == cleaned
    assert cleaned == cleaned.strip()
    assert not set(cleaned) & set("\r\x00\x1b\u200b")


@given(st.text())
def test_labels_stay_on_one_line(text: str):
    assert "\n" not in cleaned_name(text)
    assert cleaned_name(cleaned_name(text)) == cleaned_name(text)
