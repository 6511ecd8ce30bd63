import pytest

from pruning.report_text import MillisecondsFormat, breakable, change, count, percent, signed, written


@pytest.mark.parametrize(("budget_ms", "text"), [(0.5, "0.123 ms"), (8.0, "0.12 ms"), (250.0, "0.1 ms")])
def test_decimals_follow_the_size_of_the_budget(budget_ms, text):
    assert MillisecondsFormat.telling_apart(1000.0, budget_ms)(0.1234).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("measured_ms", "decimals"),
    [(8.004, 3), (8.0, 2), (7.9999, 4), (8.0 + 1e-12, 9)],
)
def test_different_times_look_different_while_a_clock_could_tell(measured_ms, decimals):
    assert MillisecondsFormat.telling_apart(measured_ms, 8.0).decimals == decimals


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (999.4, "999"), (999.6, "1 k"), (11_181_642, "11.2 M"), (999_999, "1 M"), (1.82e9, "1.82 G")],
)
def test_counts_have_three_digits_and_a_prefix(value, text):
    assert count(value).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(1.25, 2, "+1.25"), (-0.5, 1, "\u22120.5"), (-0.001, 2, "0.00"), (0.0, 1, "0.0")],
)
def test_signs_are_true_ones_and_absent_from_zero(value, decimals, text):
    assert signed(value, decimals) == text


def test_changes_are_relative_to_what_was_before():
    assert change(3.0, 4.0) == "\u221225.0\u00a0%"
    assert change(1.0, 0.0) == "–"


def test_shares_become_percent():
    assert percent(0.98765, 2) == "98.77\u00a0%"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        ([], "none"),
        ({}, "none"),
        (["avx2", 2], "avx2, 2"),
        ({"a": {"b": None}, "c": (1, 2)}, "a = b = none, c = 1, 2"),
    ],
)
def test_json_values_are_written_for_people(value, text):
    assert written(value) == text


def test_long_names_break_after_dots_and_underscores_only_before_letters():
    assert breakable("layer1.0.conv_a 1.2") == "layer1.0.<wbr>conv_<wbr>a 1.2"


def test_breakable_names_are_escaped():
    assert breakable("<b>.x") == "&lt;b&gt;.<wbr>x"
