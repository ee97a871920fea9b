"""What is shown of a computation over tokens where there is no terminal."""

from lmkit.system.progress import progress


def test_a_line_every_ten_seconds(clock, capfd):
    with progress("valid, stream", 4000) as advance:
        for tokens, seconds in ((500, 5), (1000, 10), (1500, 15), (3000, 20), (4000, 26)):
            clock[0] = 100.0 + seconds
            advance(tokens)
    out, err = capfd.readouterr()
    assert (out, err.splitlines()) == (
        "",
        [
            "valid, stream  25%  100 tokens/s  0:00:30 left",
            "valid, stream  75%  150 tokens/s  0:00:07 left",
        ],
    )


def test_what_is_quick_is_silent(capfd):
    with progress("test", 10) as advance:
        advance(10)
    assert capfd.readouterr() == ("", "")


def test_nothing_done_yet_has_no_time_left(clock, capfd):
    with progress("test", 10) as advance:
        clock[0] += 11
        advance(0)
    assert capfd.readouterr() == ("", "")
