"""What is shown of a preparation where there is no terminal."""

import pytest

from lmkit.store.meter import metered


def test_a_line_every_ten_seconds(clock, capfd):
    with metered("encoding train", "tokens", shown=True, num_bytes=400) as meter:
        for seconds, done_bytes in ((5, 0), (10, 100), (15, 100), (20, 100), (26, 100)):
            clock[0] = 100.0 + seconds
            meter.finish(done_bytes)
            meter.advance(1000)
    out, err = capfd.readouterr()
    assert (out, err.splitlines()) == (
        "",
        [
            "encoding train: 2,000 tokens, 200 tokens/s, 25% of the bytes, 0:00:30 left",
            "encoding train: 4,000 tokens, 200 tokens/s, 75% of the bytes, 0:00:07 left",
        ],
    )


@pytest.mark.parametrize(("shown", "seconds"), [(True, 9), (False, 99)])
def test_what_is_quick_or_not_to_be_shown_is_silent(clock, capfd, shown, seconds):
    with metered("encoding train", "tokens", shown=shown) as meter:
        clock[0] += seconds
        meter.advance(1000)
    assert capfd.readouterr() == ("", "")
