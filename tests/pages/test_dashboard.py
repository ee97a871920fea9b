"""The dashboard: a real server on run directories as they are written, a real browser before it."""

import errno
import http.client
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import yaml

from lmkit.commands.dashboard import dashboard
from lmkit.errors import UserError
from lmkit.pages.feed import Outputs, last_reached
from lmkit.run import Run
from lmkit.run.jsonl import read_rows

pytest_plugins = ["browser"]

HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
)


def metrics(first, last, *, offset=0.0):
    """Rows of a run every ten steps; a validation every fiftieth."""
    rows = []
    for step in range(first, last + 1, 10):
        row = {"step": step, "epoch": 0, "tokens": 700 * step, "seconds": step / 10}
        nll = 4 + offset + 100 / (step + 50)
        rows.append(row | {"train/nll": nll, "train/perplexity": 2.718281828**nll, "lr": 20.0})
        if step % 50 == 0:
            rows.append(row | {"val/nll": nll, "val/perplexity": 100.0 + offset + 1000 / step})
    return rows


def reached(step):
    return {"step": step, "epoch": 0, "tokens": 700 * step, "seconds": step / 10}


def append(run, name, rows):
    with (run.path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def make_run(outputs, name, run_id, *, rows=(), samples=(), summary=None, config=None):
    """A run directory; without a summary the run is still held, as while it trains."""
    base = {"name": name, "run_id": run_id, "seed": 1, "model": {"hidden_size": 200}}
    run = Run.create(outputs, name, run_id, base | (config or {}))
    append(run, "metrics", rows)
    append(run, "samples", samples)
    if summary is not None:
        run.write("summary.json", summary)
        run.write_status("finished")
        run.release()
    return run


@contextmanager
def serving(outputs, *arguments):
    """The command in its own process; gives the process and its URL."""
    command = [sys.executable, "-m", "lmkit", "dashboard", f"outputs={outputs}"]
    command += ["open_browser=false", "port=0", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            line = process.stdout.readline()
            found = re.match(r"http://127\.0\.0\.1:\d+/", line)
            assert found, line + process.stderr.read()
            yield process, found[0]
        finally:
            process.kill()


@contextmanager
def page_of(browser, url):
    """A tab on the dashboard that must ask nobody else and raise nothing."""
    asked, errors = [], []
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(15_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.goto(url)
    page.locator("#state", has_text=re.compile("^live, ")).wait_for()
    try:
        yield page
    finally:
        page.close()
    assert asked
    assert all(address.startswith((url, "data:")) for address in asked)
    assert errors == []


def curve(page, key, run):
    """The path of a run in the chart of a log key."""
    return page.locator(f'#charts svg[aria-label="{key}"] path[data-run="{run.name}/{run.id}"]')


def xs(locator):
    locator.wait_for(state="attached")
    return [float(x) for x in re.findall(r"[ML](-?[\d.]+),", locator.get_attribute("d"))]


def rows_of(page, table):
    return [row.locator("td").all_inner_texts() for row in page.locator(f"{table} tbody tr").all()]


def test_two_runs_lie_over_each_other(browser, tmp_path):
    summary = {
        "best/val/perplexity": 103.5,
        "val/perplexity": 110.0,
        "test/perplexity": 98.76,
        "tokens_per_second": 8123.4,
        "num_parameters": 8_520_000,
        "seconds": 75.0,
    }
    short = make_run(tmp_path, "a", "short", rows=metrics(10, 100), summary=summary)
    long = make_run(
        tmp_path, "b", "long", rows=metrics(10, 200, offset=1), summary={"test/perplexity": 120.0}
    )
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        # The same x axis, from 0 to the last step: half of the way is half of the width.
        ends = [xs(curve(page, "train/perplexity", run))[-1] for run in (short, long)]
        origin = 62.0
        assert (ends[0] - origin) / (ends[1] - origin) == pytest.approx(0.5, abs=0.01)
        strokes = [
            curve(page, "val/perplexity", run).evaluate("node => getComputedStyle(node).stroke")
            for run in (short, long)
        ]
        assert len(set(strokes)) == 2
        assert page.locator("#legend > span").all_inner_texts() == ["a/short", "b/long"]
        cells = {row[1]: row[2:3] + row[4:8] for row in rows_of(page, "#runs")}
        assert cells == {
            "a/short": ["finished", "103.5", "98.76", "8,123", "8.52 M"],
            "b/long": ["finished", "106", "120", "–", "–"],
        }
        page.get_by_role("button", name="tokens").click()
        assert "training tokens" in page.locator("#charts svg").first.text_content()
        page.get_by_label("show a/short").uncheck()
        assert curve(page, "train/perplexity", short).count() == 0
        assert curve(page, "train/perplexity", long).count() == 1


def test_the_pointer_tells_each_runs_value_and_a_drag_zooms(browser, tmp_path):
    run = make_run(tmp_path, "a", "one", rows=metrics(10, 200), summary={})
    other = make_run(tmp_path, "a", "two", rows=metrics(10, 150, offset=1), summary={})
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        xs(curve(page, "val/perplexity", run))
        box = page.locator('svg[aria-label="val/perplexity"]').bounding_box()
        page.mouse.move(box["x"] + box["width"] - 27, box["y"] + 90)
        page.locator("#tip").wait_for()
        assert page.locator("#tip > div").all_inner_texts() == [
            "step 200",
            "two\n107.67 at 150",
            "one\n105",
        ]
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 90)
        page.mouse.up()
        whole = page.get_by_role("button", name="whole range")
        whole.wait_for()
        assert xs(curve(page, "train/nll", other))[0] < 0  # what was before lies off the axes
        whole.click()
        assert xs(curve(page, "train/nll", other))[0] > 62


def test_follows_a_run_while_it_trains(browser, tmp_path):
    run = make_run(tmp_path, "a", "live", rows=metrics(10, 100))
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        page.evaluate("window.notReloaded = true")
        before = xs(curve(page, "train/nll", run))
        assert rows_of(page, "#runs")[0][2] == "running"
        append(run, "metrics", metrics(110, 200))
        append(run, "samples", [{"step": 200, "epoch": 0, "prompt": "The", "text": " end."}])
        page.get_by_text("The end.").wait_for()
        page.locator("#runs td", has_text=re.compile("^200$")).wait_for()
        after = xs(curve(page, "train/nll", run))
        assert len(after) == 2 * len(before)
        # Another run starts, and this one ends.
        late = make_run(tmp_path, "b", "late", rows=metrics(10, 300))
        run.write_status("finished")
        run.release()
        xs(curve(page, "train/nll", late))
        page.locator("#runs td", has_text="finished").wait_for()
        # It dies without a word.
        late.release()
        page.locator("#runs .failed[title='its process died']").wait_for()
        assert page.evaluate("window.notReloaded")


def test_a_resumed_run_takes_back_what_it_repeats(browser, tmp_path):
    run = make_run(tmp_path, "a", "r", rows=metrics(10, 100))
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        count = len(xs(curve(page, "train/nll", run)))
        rows = metrics(10, 50) + metrics(60, 150, offset=1)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run.path / "metrics.jsonl").write_text(text)
        page.locator("#runs td", has_text=re.compile("^150$")).wait_for()
        assert len(xs(curve(page, "train/nll", run))) == count * 3 // 2


def test_shows_only_the_config_that_differs(browser, tmp_path):
    model = {"_target_": "lmkit.model.LSTM", "hidden_size": 650, "dropout": 0.5}
    make_run(tmp_path, "a", "one", summary={}, config={"head": {"bias": True}})
    make_run(tmp_path, "a", "two", summary={}, config={"model": model, "head": {"bias": True}})
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        page.locator("#differences th", has_text="two").wait_for()
        assert page.locator("#differences th").all_inner_texts() == ["key", "one", "two"]
        assert sorted(rows_of(page, "#differences")) == [
            ["model._target_", "absent", "lmkit.model.LSTM"],
            ["model.dropout", "absent", "0.5"],
            ["model.hidden_size", "200", "650"],
        ]
        page.get_by_label("also what is the same").check()
        assert ["head.bias", "true", "true"] in rows_of(page, "#differences")
        page.get_by_label("show a/two").uncheck()
        page.get_by_label("also what is the same").uncheck()
        assert page.locator("#differences").get_by_text("show two runs or more").is_visible()


def make_sweep(outputs, trials):
    """The directory of a sweep, trials being (outcome, value, validations, values)."""
    place = Run(outputs / "words" / "lr-sweep")
    place.path.mkdir(parents=True)
    parts = ("outcome", "value", "validations", "values")
    records = [
        {"run": f"words/lr-{number:03d}", **dict(zip(parts, trial, strict=True))}
        for number, trial in enumerate(trials)
    ]
    place.write("sweep.json", {"metric": "val/nll", "trials": records})


def test_how_far_every_run_has_come_and_how_many_the_filter_leaves(browser, tmp_path):
    for number in range(12):
        name = "words" if number < 3 else "letters"
        rows = [row | {"epoch": number} for row in metrics(10, 100 + 10 * number)]
        make_run(tmp_path, name, f"r-{number:02d}", rows=rows, summary={})
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        count, nothing = page.locator("#count"), page.locator("#nothing")
        page.locator("#runs tbody tr").nth(11).wait_for()
        assert page.locator("#runs tbody input:checked").count() == 7
        heads = page.locator("#runs th").all_inner_texts()
        places = [heads.index("run"), heads.index("epoch"), heads.index("step")]
        told = {row[places[0]]: row[places[1] :][:2] for row in rows_of(page, "#runs")}
        assert sorted(told.values(), key=lambda pair: int(pair[0])) == [
            [str(number), str(100 + 10 * number)] for number in range(12)
        ]
        assert count.inner_text() == "12 runs, 7 shown below"
        page.get_by_label("filter runs").fill("words")
        assert count.inner_text() == "3 of 12 runs, 7 shown below"
        assert len(rows_of(page, "#runs")) == 3
        assert not nothing.is_visible()
        page.get_by_label("filter runs").fill(HOSTILE)
        assert count.inner_text() == "0 of 12 runs, 7 shown below"
        assert nothing.inner_text() == f"no run has “{HOSTILE}” in its name, id or status"
        assert not page.locator("#runs table").is_visible()
        make_run(tmp_path, "x", "new", rows=metrics(10, 50))  # while the filter leaves none
        page.get_by_text("0 of 13 runs, 8 shown below").wait_for()
        page.get_by_label("filter runs").fill("new")
        assert count.inner_text() == "1 of 13 runs, 8 shown below"
        shutil.rmtree(tmp_path / "x")
        page.get_by_text("0 of 12 runs, 7 shown below").wait_for()
        assert nothing.inner_text() == "no run has “new” in its name, id or status"
        page.get_by_label("filter runs").fill("")
        assert len(rows_of(page, "#runs")) == 12


def test_a_run_that_is_not_ticked_still_counts_its_steps(browser, tmp_path):
    run = make_run(tmp_path, "a", "one", rows=metrics(10, 50))
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        page.get_by_role("button", name="show none").click()
        page.locator("#runs td", has_text=re.compile("^50$")).wait_for()
        append(run, "metrics", metrics(60, 70))
        page.locator("#runs td", has_text=re.compile("^70$")).wait_for()
        assert page.locator("#legend span").count() == 0


def test_keys_of_differences_are_read_whole_on_a_narrow_page(browser, tmp_path):
    for number in range(4):
        long = {
            "every_n_train_steps": number,
            "_target_": f"lmkit.training.callbacks.checkpoint.Checkpoint{number}",
        }
        config = {"callbacks": {"checkpoint": long, f"x{'y' * 60}": number}}
        make_run(tmp_path, "a", f"run-{number}", rows=metrics(10, 50), summary={}, config=config)
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        page.set_viewport_size({"width": 400, "height": 800})
        keys = page.locator("#differences tbody td:first-child")
        assert keys.all_text_contents() == [
            "callbacks.checkpoint.every_n_train_steps",
            "callbacks.checkpoint._target_",
            f"callbacks.x{'y' * 60}",
        ]
        # The lines a browser makes of a key: it goes on after a dot or underscore alone.
        lines = keys.first.evaluate(
            """cell => [...cell.childNodes].filter(node => node.nodeType === 3).map(node => {
              const range = document.createRange();
              range.selectNodeContents(node);
              return range.getClientRects().length;
            })"""
        )
        assert lines == [1] * len(lines)
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        wide = page.locator("#differences .wide")
        assert wide.evaluate("node => node.scrollWidth > node.clientWidth")
        wide.evaluate("node => { node.scrollLeft = node.scrollWidth; }")
        for key in keys.all():
            inside = key.evaluate("cell => cell.scrollWidth <= cell.clientWidth")
            box = key.bounding_box()
            assert inside
            assert box["x"] == wide.bounding_box()["x"]
            assert 150 <= box["width"] <= 340


def test_a_sweep_is_a_group_with_a_panel_for_each_key(browser, tmp_path):
    def sizes(hidden: int, dropout: float) -> dict:  # one of a list is text
        return {"model.hidden_size": str(hidden), "model.dropout": dropout}

    trials = [
        ("finished", 4.5, [5.0, 4.5], {"optimizer.lr": 0.001, "model": "lstm"} | sizes(200, 0.3)),
        ("finished", 4.2, [4.6, 4.2], {"optimizer.lr": 0.1, "model": "gru"} | sizes(300, 0.31)),
        ("pruned", None, [None, 6.0], {"optimizer.lr": 0.01, "model": "gru"} | sizes(400, 0.5)),
        ("failed", None, [], {"optimizer.lr": 0.02, "model": HOSTILE} | sizes(400, 0.5)),
    ]
    make_sweep(tmp_path, trials)
    for number in range(4):
        make_run(tmp_path, "words", f"lr-{number:03d}", rows=metrics(10, 100), summary={})
    make_run(tmp_path, "words", "alone", rows=metrics(10, 100), summary={})
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        sweep = page.locator("#sweeps")
        sweep.get_by_text("Sweep words/lr", exact=True).wait_for()
        said = sweep.locator(".bar > span").all_inner_texts()
        assert said[:4] == ["● 2 finished", "● 1 pruned", "● 1 failed", "best: words/lr-001"]
        assert sweep.locator("svg").count() == 4
        rate = sweep.locator('svg[aria-label="optimizer.lr against val/nll"]')
        dots = {dot.get_attribute("data-trial"): dot for dot in rate.locator("circle").all()}
        assert set(dots) == {"words/lr-000", "words/lr-001", "words/lr-002"}
        places = [
            [float(dots[f"words/lr-00{n}"].get_attribute(axis)) for axis in ("cx", "cy")]
            for n in range(3)
        ]
        assert places[0][0] < places[2][0] < places[1][0]  # by learning rate, in its logarithm
        assert places[2][0] == pytest.approx((places[0][0] + places[1][0]) / 2)
        assert places[1][1] > places[0][1] > places[2][1]  # the lower, the better
        marks = sweep.locator('svg[aria-label="model.hidden_size against val/nll"] text')
        assert marks.all_text_contents()[1:4] == ["200", "300", "400"]
        marks = sweep.locator('svg[aria-label="model.dropout against val/nll"] text')
        inside = marks.all_text_contents()
        assert "0.31" not in inside, "values of an interval lie too close for marks"
        sweep.get_by_role("button", name="show none of them").click()
        page.locator("#legend").get_by_text("alone").wait_for()
        assert page.locator("#legend span").count() == 1
        rate.locator('circle[data-trial="words/lr-001"]').click()
        page.locator("#legend").get_by_text("lr-001").wait_for()
        assert page.title() == "lmkit"


def test_hostile_text_is_only_text(browser, tmp_path):
    samples = [{"step": 10, "epoch": 0, "prompt": HOSTILE, "text": HOSTILE}]
    rows = [row | {f"x{HOSTILE}": 1.0} for row in metrics(10, 50)]
    for run_id in ("one", "two"):
        config = {"samples": {"prompt": f"{run_id} {HOSTILE}"}, HOSTILE: run_id}
        make_run(
            tmp_path, "a", run_id, rows=rows, samples=samples, config=config, summary={"x": HOSTILE}
        )
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        page.locator("#texts .texts p").nth(1).wait_for()
        assert page.locator("#texts p").all_inner_texts() == [HOSTILE * 2] * 2
        assert [HOSTILE, "one", "two"] in rows_of(page, "#differences")
        assert ["samples.prompt", f"one {HOSTILE}", f"two {HOSTILE}"] in rows_of(
            page, "#differences"
        )
        assert page.locator("h3", has_text=HOSTILE).is_visible()
        assert page.locator("img").count() == 0
        assert page.title() == "lmkit"


def test_damage_is_told_and_spoils_nothing_else(browser, tmp_path):
    run = make_run(tmp_path, "a", "hurt", rows=metrics(10, 50))
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 60, "tra\n[1]\n\xff\xfe\n')
    append(run, "metrics", [*metrics(70, 100), {"step": 101, "train/nll": None, "lr": "high"}])
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 110, "train/n')  # as while the row is being written
    make_run(tmp_path, "a", "sound", rows=metrics(10, 50), summary={})
    broken = make_run(tmp_path, "a", "broken", rows=metrics(10, 50), summary={})
    (broken.path / "config.yaml").write_text("model: [")
    (broken.path / "status.json").write_text("[]")
    with serving(tmp_path) as (process, url):
        with page_of(browser, url) as page:
            assert len(xs(curve(page, "train/nll", run))) == 9
            page.get_by_text("3 damaged lines of metrics.jsonl are left out").wait_for()
            assert page.get_by_text(f"{broken.path}/config.yaml is damaged: ").is_visible()
            assert page.get_by_text(
                f"{broken.path}/status.json is damaged: expected a mapping, found a list"
            ).is_visible()
            assert len(xs(curve(page, "train/nll", broken))) == 5
            page.reload()
            xs(curve(page, "train/nll", run))
        process.send_signal(signal.SIGINT)
        warning = f"WARNING: {run.path}/metrics.jsonl: 3 damaged lines are left out\n"
        assert process.stderr.read() == warning
        assert process.wait(10) == 130


def test_numbers_and_numbers_of_things_spoil_their_own_run_alone(browser, tmp_path):
    good = make_run(tmp_path, "a", "good", rows=metrics(10, 200), summary={"test/perplexity": 9.5})
    sample = {"step": 50, "epoch": 0, "prompt": "The", "text": " end."}
    append(good, "samples", [sample])
    evil = make_run(tmp_path, "a", "evil", rows=metrics(10, 100), summary={})
    odd = ["1e16", "10000000000000004", "1e308", "-1e308", "NaN", "-Infinity", "1e-320", "1e999"]
    with (evil.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step, number in enumerate([*odd, "9" * 300], start=200):
            values = ", ".join(f'"{key}": {number}' for key in ("val/perplexity", "odd", "tokens"))
            file.write(f'{{"step": {step}, {values}}}\n')
        file.writelines(f'{{"step": {step}, "close": {10**16 + step}}}\n' for step in (0, 4))
        file.write('{"step": 1e308, "odd": 1}\n{"step": -1e308, "odd": 2}\n')
        file.writelines(json.dumps({f"k{i}-{j}": 1 for j in range(100)}) + "\n" for i in range(9))
    (evil.path / "samples.jsonl").write_text("{}\n" * 350_000)  # more than a call has arguments
    evil.write("summary.json", {"test/perplexity": "low", "seconds": [1], "num_parameters": -1e308})
    (evil.path / "status.json").write_text('{"status": ["<img>"], "started": {"a": 1}}')
    make_sweep(tmp_path, [])
    (tmp_path / "words" / "lr-sweep" / "sweep.json").write_text('{"trials": 3}')
    trial = make_run(tmp_path, "words", "lr-000", rows=metrics(10, 50), summary={})
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        assert len(xs(curve(page, "train/nll", good))) == 20
        page.get_by_text("a/evil: more than 200 keys are logged, of which only the").wait_for()
        assert page.locator("#charts .chart").count() == 200
        page.get_by_text("the last 100 of 350000").wait_for()
        assert page.get_by_text("The end.").is_visible()
        # The axes are those of numbers that a training comes to.
        marks = page.locator('#charts svg[aria-label="val/perplexity"] text').all_text_contents()
        assert "e+" not in "".join(marks)
        assert len(set(xs(curve(page, "val/perplexity", good)))) == 4
        best = page.locator("#runs td.best").all_inner_texts()
        assert best == ["105", "9.5"]
        page.get_by_text("words/lr-sweep/sweep.json is damaged: no trials").wait_for()
        assert len(xs(curve(page, "train/nll", trial))) == 5
        page.get_by_role("button", name="tokens").click()
        page.get_by_role("button", name="step").click()
        # A zoom, and another as deep as there are pixels, until neighbouring numbers are met.
        for _ in range(12):
            chart = page.locator('svg[aria-label="close"]')
            chart.scroll_into_view_if_needed()
            box = chart.bounding_box()
            page.mouse.move(box["x"] + 300, box["y"] + 90)
            page.mouse.down()
            page.mouse.move(box["x"] + 308, box["y"] + 90)
            page.mouse.up()
        page.get_by_role("button", name="whole range").click()
        assert len(xs(curve(page, "train/nll", good))) == 20


def test_many_rows_are_drawn_by_their_extremes(browser, tmp_path):
    rows = [{"step": step, "x": 1.0, "y": 1.0} for step in range(600)]
    rows[123] |= {"x": -5.0}
    rows[400] |= {"x": 9.0}
    run = make_run(tmp_path, "a", "long", rows=rows, summary={})
    with serving(tmp_path) as (_, url), page_of(browser, url) as page:
        xs(curve(page, "x", run))
        thin = """() => {
          let points = runs.get("a/long").series.get("x");
          for (let i = 0; i < 4; i++) points = thinned(points);
          return points.map(point => [point.step, point.value]);
        }"""
        points = page.evaluate(thin)
        assert len(points) < 60
        assert {(123, -5), (400, 9)} <= {tuple(point) for point in points}
        assert [step for step, _ in points] == sorted(step for step, _ in points)


def test_begins_before_there_is_anything(browser, tmp_path):
    outputs = tmp_path / "not yet"
    with serving(outputs) as (process, url), page_of(browser, url) as page:
        page.get_by_text("no runs here yet: start one with lmkit train").wait_for()
        run = make_run(outputs, "a", "first", rows=metrics(10, 50))
        xs(curve(page, "train/nll", run))
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == (
            f"WARNING: no runs in {outputs} yet: the page shows them as they start\n"
        )


def test_the_page_says_that_the_server_has_ended(browser, tmp_path):
    with serving(tmp_path) as (process, url):
        page = browser.new_page()
        page.goto(url)
        process.send_signal(signal.SIGTERM)
        page.get_by_text("not live: lmkit dashboard has ended").wait_for()
        page.close()
        assert process.wait(10) == 143


def test_is_for_this_machine_alone(tmp_path):
    make_run(tmp_path, "a", "secret", summary={})
    with serving(tmp_path) as (_, url):
        port = int(url.rstrip("/").rpartition(":")[2])

        def ask(method, path, body=None, **headers):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.status, response.read().decode(), response.headers
            connection.close()
            return answer

        status, text, headers = ask("GET", "/")
        assert status == 200
        assert "default-src 'none'; connect-src 'self'" in headers["Content-Security-Policy"]
        assert not re.findall(r"(?:src|href)=.?(?:https?:)?//", text)
        assert ask("POST", "/changes", "{}", Host="localhost:9999")[0] == 200  # a forwarded port
        status, text, _ = ask("POST", "/changes", "{}", Host="evil.example")
        assert status == 403
        assert "secret" not in text
        for origin in ("http://evil.example", f"http://127.0.0.1:{port + 1}", "null"):
            assert ask("POST", "/changes", "{}", Origin=origin)[0] == 403
        assert ask("POST", "/changes", "{}", Origin=url.rstrip("/"))[0] == 200
        for method, path in (
            ("POST", "/"),
            ("PUT", "/"),
            ("DELETE", "/changes"),
            ("X", "/changes"),
        ):
            assert ask(method, path, "{}")[0] == 405
        assert ask("GET", "/changes")[0] == 405
        for length in ("-1", "x", "1e3", str(1 << 30), "9" * 5000):
            headers = {"Content-Length": length}
            assert ask("POST", "/changes", None, **headers)[0] == 413
        assert ask("POST", "/changes", "[" * 100_000)[0] == 400
        assert ask("POST", "/changes", '{"a": {"metrics": [-1, 0]}}')[0] == 400
        assert ask("GET", "/../../etc/passwd")[0] == 404
        assert ask("POST", "/other", "{}")[0] == 404
        assert ask("POST", "/changes", "{")[0] == 400
        # Not on any other address of this machine.
        with socket.socket() as other:
            assert other.connect_ex(("127.0.0.2", port)) == errno.ECONNREFUSED


def test_imports_no_torch_and_no_outside_client():
    imports = "import sys, lmkit.commands.dashboard, lmkit.pages.dashboard"
    code = f"{imports}; print({{'torch', 'wandb', 'trackio'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_taken_port_gives_way_to_the_next(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lmkit.pages.dashboard.Server.serve_forever", lambda self: None)
    make_run(tmp_path, "a", "one", summary={})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        dashboard(outputs=str(tmp_path), port=port, open_browser=False)
        found = int(re.search(r":(\d+)/", capsys.readouterr().out)[1])
        assert port < found < port + 20
        monkeypatch.setattr("lmkit.pages.dashboard.NUM_PORTS", 1)
        with pytest.raises(UserError) as error:
            dashboard(outputs=str(tmp_path), port=port, open_browser=False)
    assert str(error.value) == (f"ports {port} to {port} are all taken; port=0 takes any free one")


def test_mistakes_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"^outputs={tmp_path}/file: not a directory$"):
        dashboard(outputs=f"{tmp_path}/file", open_browser=False)
    with pytest.raises(UserError, match=r"^port=70000: expected 0 to 65535$"):
        dashboard(outputs=str(tmp_path), port=70000, open_browser=False)


def test_opens_a_browser_only_where_there_is_a_screen(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("lmkit.pages.dashboard.Server.serve_forever", lambda self: None)
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    dashboard(outputs=str(tmp_path), port=0)
    assert opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    dashboard(outputs=str(tmp_path), port=0)
    assert len(opened) == 1


@pytest.mark.parametrize("num_bytes", [1, 100, 1 << 20])
def test_rows_in_pieces_are_the_rows_at_once(tmp_path, num_bytes):
    path = tmp_path / "metrics.jsonl"
    rows = metrics(10, 200)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    place, seen = [0, 0], []
    for end in [*range(0, len(text), 777), len(text)]:  # as it is written, cut anywhere
        path.write_bytes(text[:end])
        more = True
        while more:
            piece = read_rows(path, place, num_bytes)
            assert not piece["afresh"]
            assert piece["num_damaged"] == 0
            seen += piece["rows"]
            place, more = piece["place"], piece["more"]
    assert seen == rows


def test_rows_of_a_rewritten_file_come_afresh(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    place = read_rows(path, [0, 0])["place"]
    path.write_text('{"a": 1}\n')  # cut off
    piece = read_rows(path, place)
    assert (piece["afresh"], piece["rows"]) == (True, [{"a": 1}])
    path.write_text('{"a": 1}\n{"a": 4}\n{"a": 5}\n{"a": 6}\n')  # cut off, and longer by now
    piece = read_rows(path, place)
    assert (piece["afresh"], [row["a"] for row in piece["rows"]]) == (True, [1, 4, 5, 6])
    place = piece["place"]
    path.unlink()
    piece = read_rows(path, place)
    assert (piece["afresh"], piece["rows"], piece["place"]) == (True, [], [0, 0])


def test_says_only_what_is_new(tmp_path, caplog):
    run = make_run(tmp_path, "a", "one", rows=metrics(10, 50), summary={"val/nll": 4.5})
    outputs = Outputs(tmp_path)
    first = outputs.changes({})["a/one"]
    assert first["about"]["summary"] == {"val/nll": 4.5}
    assert first["about"]["config"] == yaml.load(
        (run.path / "config.yaml").read_text(), Loader=yaml.BaseLoader
    )
    assert "metrics" not in first
    known = {"stamp": first["stamp"], "metrics": [0, 0]}
    second = outputs.changes({"a/one": known})["a/one"]
    assert second.keys() == {"metrics", "last"}
    assert first["last"] == second["last"] == reached(50)
    assert second["metrics"]["rows"] == metrics(10, 50)
    known["metrics"] = second["metrics"]["place"]
    assert outputs.changes({"a/one": known})["a/one"]["metrics"]["rows"] == []
    run.write("summary.json", {"val/nll": 4.25})
    assert outputs.changes({"a/one": known})["a/one"]["about"]["summary"] == {"val/nll": 4.25}
    with caplog.at_level(logging.WARNING, "lmkit"):
        (run.path / "metrics.jsonl").write_text("x\n")
        for _ in range(2):
            outputs.changes({"a/one": known})
    assert len(caplog.records) == 1


def test_a_test_after_the_training_is_no_further_epoch(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [reached(50) | {"val/nll": 4.0}, reached(50) | {"epoch": 1, "test/nll": 4.0}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert last_reached(path) == reached(50)


def test_many_tabs_at_once(tmp_path):
    """Answers do not mix: each tab has its own place in the files."""
    make_run(tmp_path, "a", "one", rows=metrics(10, 2000), summary={})
    outputs = Outputs(tmp_path)
    answers = [None] * 8

    def ask(index):
        answers[index] = outputs.changes({"a/one": {"metrics": [0, 0]}})["a/one"]["metrics"]["rows"]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answer == metrics(10, 2000) for answer in answers)


def test_unreadable_files_are_told(tmp_path):
    run = make_run(tmp_path, "a", "one", summary={})
    (run.path / "summary.json").unlink()
    (run.path / "summary.json").mkdir()
    about = Outputs(tmp_path).changes({})["a/one"]["about"]
    assert about["problems"] == [
        f"{run.path}/summary.json is a directory, not a file; put a sound copy in its place"
    ]
