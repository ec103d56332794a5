"""Scoring: what may be asked, which reports are taken for sound, and what pages show of them."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studio_runs import write_run

from genlab.core.errors import GenlabError
from genlab.evaluation.drawings import Axis, Point, plot_svg
from genlab.studio import score_markup
from genlab.studio.catalog import Catalog
from genlab.studio.reports import ReportScore, known_reports
from genlab.studio.score_orders import ScoreOrder, place, protocols_for
from genlab.studio.work.scoring import Course

NAMES = ["<script>alert(1)</script>", *"123456789"]


@pytest.fixture
def entry(tmp_path):
    run = write_run(tmp_path / "runs" / "tiny", class_names=NAMES)
    (run / "config.yaml").write_text("data: {name: digits}\n")
    return only(tmp_path / "runs")


def only(folder):
    (entry,) = Catalog([folder]).refresh().entries.values()
    return entry


def order(entry, protocol="digits", samples=20, seed=0, metrics=None, changes=None):
    return place(entry, protocol, samples, seed, metrics, changes)


def write_report(entry, name, fid=2.0, seconds=0.1, **changes):
    tree = {
        "format": 1,
        "title": "x",
        "samples": 20,
        "seed": 0,
        "protocol": {"name": "digits", "title": "t"},
        "subject": {"sampling": entry.sampling.model_dump(mode="json")},
        "scores": [
            {"name": "fid", "metric": "fid", "value": fid, "better": "lower", "interval_95": [fid - 1, fid + 1]},
            {"name": "acc", "metric": "class_accuracy", "value": 0.5, "better": "higher", "interval_95": None}
            | {"per_class": {"0": 0.1, "1": 0.9, "2": None}},
        ],
        "cost": {"parameters": 10.0, "seconds_per_image": seconds, "evaluations_per_image": 0.0},
        "class_names": NAMES,
        "warnings": ["<b>few</b> images"],
    }
    file = entry.run / "evaluation" / name / "report.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**tree, **changes}))
    return file


def reports(entry, tmp_path):
    return known_reports([entry], tmp_path / "jobs")


def test_an_order_survives_the_way_to_the_worker(entry, tmp_path):
    made = order(entry, metrics=["kid", "class_accuracy@pixels"], changes={"steps": 2, "guidance": 3})
    again = ScoreOrder.of(json.loads(json.dumps(made.wants())))
    assert again.words("RUN") == made.words("RUN") and again.folder(tmp_path) == made.folder(tmp_path)
    assert (
        made.words("RUN")[2:4] == ["steps=2", "guidance=3.0"] and made.words("RUN")[-1] == "class_accuracy@pixels,kid"
    )
    others = [order(entry), order(entry, seed=1), order(entry, samples=21), order(entry, changes={"steps": 2}), made]
    assert len({other.folder(tmp_path) for other in others}) == 5
    assert made.folder(tmp_path).is_relative_to(entry.run / "evaluation")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"protocol": "adm-imagenet256"}, "does not fit"),
        ({"protocol": "../digits"}, "does not fit"),
        ({"protocol": None}, "does not fit"),
        ({"samples": 1}, "images to score"),
        ({"samples": math.nan}, "nan"),
        ({"samples": 10**6}, "images to score"),
        ({"seed": 2**60}, "seed"),
        ({"metrics": []}, "at least one"),
        ({"metrics": "fid"}, "at least one"),
        ({"metrics": [["fid"]]}, "none of this protocol's"),
        ({"changes": {"steps": 10**9}}, "steps"),
        ({"changes": {"steps=1 --out": 3}}, "steps=1 --out"),
        ({"changes": "steps=1"}, "mapping"),
    ],
)
def test_nonsense_is_refused_in_words(entry, changes, said):
    with pytest.raises(GenlabError, match=said) as caught:
        order(entry, **changes)
    assert len(str(caught.value)) < 400


def test_protocols_fit_the_images_and_say_what_they_lack(tmp_path, entry, monkeypatch):
    assert [protocol.name for protocol in protocols_for(entry)][:2] == ["digits", "standard"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (entry.run / "config.yaml").unlink()
    assert order(entry).words("RUN")[-2:] == ["--against", "digits"]
    large = write_run(tmp_path / "large" / "run", data={"name": "fractals", "size": 64}, export=False)
    assert "edm-imagenet64" not in [protocol.name for protocol in protocols_for(entry)]
    with pytest.raises(GenlabError, match="score the run"):
        order(only(large.parent), "offline")


def test_reports_are_named_by_what_is_special(entry, tmp_path):
    write_report(entry, "plain")
    sampling = {**entry.sampling.model_dump(mode="json"), "steps": 9}
    write_report(entry, "nine", samples=21, subject={"sampling": sampling})
    found = reports(entry, tmp_path)
    assert {(report.label, report.group) for report in found} == {
        ("tiny", "digits, 20 images"),
        ("tiny, steps 9", "digits, 21 images"),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"scores": 3},
        {"scores": [{"name": "fid", "metric": "fid", "value": 1e300, "better": "lower"}]},
        {"scores": [{"name": "fid", "metric": "unheard of", "value": 1.0, "better": "lower"}]},
        {"cost": {"parameters": "many"}},
        {"samples": [20]},
        {"protocol": None},
    ],
)
def test_damaged_and_foreign_reports_are_left_out(entry, tmp_path, changes):
    write_report(entry, "damaged", **changes)
    write_report(entry, "half").write_text('{"format": 1, "sco')
    outside = write_report(entry, "sound")
    (tmp_path / "elsewhere").mkdir()
    outside.rename(tmp_path / "elsewhere" / "report.json")
    outside.parent.rmdir()
    outside.parent.symlink_to(tmp_path / "elsewhere")
    assert reports(entry, tmp_path) == []


def test_pages_escape_what_reports_say(entry, tmp_path):
    file = write_report(entry, "hostile", protocol={"name": "<i>p", "title": ""}, title="<i>")
    (file.parent / "report.html").write_text('"><script>alert(1)</script>')
    (report,) = reports(entry, tmp_path)
    shown = [
        score_markup.report(report),
        score_markup.whole(report),
        score_markup.comparison([report], "fid", "parameters"),
    ]
    assert not any("<script" in text or "<i>" in text or "<b>" in text for text in shown)
    assert "&lt;script" in shown[0] and " sandbox " in shown[1]


def test_the_picture_marks_what_nothing_beats(entry, tmp_path):
    for name, fid, seconds in (("good", 2.0, 0.5), ("quick", 4.0, 0.1), ("neither", 5.0, 0.2)):
        write_report(entry, name, fid, seconds)
    found = reports(entry, tmp_path)
    text = score_markup.comparison(found, "fid", "images_per_second")
    assert text.count('class="dot best"') == 2 and text.count('class="dot"') == 1 and text.count("best trade-off") == 2
    rows = [part.partition("</td>")[0] for part in text.split("</th><td>")[1:]]
    assert rows == ["2.000", "4.000", "5.000"]  # the best first
    assert "Nothing to compare" in score_markup.comparison([], "fid", "images_per_second")
    assert "<svg" not in score_markup.comparison(found, "fid", "evaluations_per_image")  # nobody counted


def test_a_front_turns_where_nothing_better_lies():
    points = [Point(1.0, 1.0, "a", front=True), Point(2.0, 2.0, "b", front=True)]
    paths = [
        plot_svg(points, Axis("x", 0, 3, rising=rising), Axis("y", 0, 3)).partition(' d="')[2].partition('"')[0]
        for rising in (False, True)
    ]
    assert [[letter for letter in path if letter.isalpha()] for path in paths] == [list("MHV"), list("MVH")]


@given(st.dictionaries(st.integers(0, 20), st.none() | st.floats(0, 1)), st.sampled_from(["lower", "higher"]))
def test_worst_and_best_classes_are_at_the_ends(per_class, better):
    score = ReportScore(name="s", metric="fid", value=0.0, better=better, per_class=per_class)
    worst, best = score.extremes()
    known = {label: value for label, value in per_class.items() if value is not None}
    sign = 1 if better == "higher" else -1
    assert len(worst) == len(best) == min(3, len(known) // 2) and not set(worst) & set(best)
    ends = sorted(sign * value for value in known.values())
    assert [sign * known[label] for label in worst] == ends[: len(worst)]
    assert [sign * known[label] for label in best] == ends[::-1][: len(best)]


def test_progress_is_read_from_the_log(tmp_path):
    shown, log = [], tmp_path / "log"

    class Watched:
        def show(self, done, words, **more):
            shown.append((done, words, more.get("left")))

    course = Course(Watched(), log)
    for text in ("loading\n", "\rreference|64|None|1.5|", "\rimages|50|200|0.1|", "\rimages|100|200|5.1|\rimages|1"):
        with log.open("a") as file:
            file.write(text)
        course.look()
    log.write_text("\rimages|200|200|9|   \r")
    course.look()
    assert shown == [
        (0.0, "Reading the reference: 64 images", None),
        (0.25, "50 of 200 images", None),
        (0.5, "100 of 200 images · 10 images/s", pytest.approx(10.0)),
        (1.0, "Computing the scores", None),
    ]
