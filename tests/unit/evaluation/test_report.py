"""Reports: complete, self-contained, and comparable."""

import json
import math

import pytest
import torch

from genlab.core.errors import DataError
from genlab.evaluation.comparison import gather, remarks, write_comparison
from genlab.evaluation.drawings import Axis, axis_for, grid_png, pareto
from genlab.evaluation.published import find_protocol
from genlab.evaluation.report import Report, format_score, write_report
from genlab.evaluation.scores import Score


def report(fid=2.5, seconds=0.1, title="runs/a", samples=1000):
    return Report(
        title=title,
        subject={"kind": "generator", "run": title},
        protocol=find_protocol("offline"),
        samples=samples,
        seed=0,
        labels={"known": True, "classes": 2, "least": 500, "most": 500, "counts": [500, 500]},
        scores=[
            Score("fd_efflite0", "fid", fid, (fid - 0.1, fid + 0.1), {"m_generated": samples}),
            Score("precision_efflite0", "precision", 0.8, (0.7, 0.9), {"k": 3}),
            Score("recall_efflite0", "recall", 0.6, (0.5, 0.7), {"k": 3}),
            Score("class_accuracy", "class_accuracy", 0.9, None, {}, {0: 0.95, 1: 0.85, 2: math.nan}),
        ],
        references={"efflite0": {"kind": "images"}},
        extractors=[{"backbone": "efflite0", "resize": "r", "precision": "strict", "checksum": "ab"}],
        environment={"device": "CPU", "processes": 1, "versions": {"genlab": "0"}},
        seconds={"sampling": 1.0, "extraction": 2.0},
        banners=["not FID"],
        warnings=["<few> images"],
        cost={"parameters": 1e6, "seconds_per_image": seconds, "evaluations_per_image": 40.0},
        class_names=("cat", "dog & <b>", "eel"),
    )


def test_json_and_page(tmp_path):
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)
    write_report(tmp_path, report(), {"What was scored": (images, torch.arange(10) % 2)})
    tree = json.loads((tmp_path / "report.json").read_text())
    assert tree["scores"][0] == {
        "name": "fd_efflite0",
        "metric": "fid",
        "value": 2.5,
        "better": "lower",
        "interval_95": [2.4, 2.6],
        "m_generated": 1000,
    }
    assert tree["scores"][3]["per_class"] == {"0": 0.95, "1": 0.85, "2": None}
    assert tree["protocol"]["name"] == "offline" and tree["labels"]["most"] == 500
    page = (tmp_path / "report.html").read_text()
    assert not any(outside in page for outside in ("http://", "https://", "<script", "<link"))
    assert "data:image/png;base64," in page and "<svg" in page
    assert "dog &amp; &lt;b&gt;" in page and "&lt;few&gt; images" in page and "not FID" in page


def test_comparison_marks_the_front_and_the_ties(tmp_path):
    for name, fid, seconds in (("a", 2.5, 0.1), ("b", 2.45, 0.4), ("c", 4.0, 0.2)):
        write_report(tmp_path / name, report(fid, seconds, f"runs/{name}"), {})
    reports = gather([tmp_path / "a", tmp_path / "b" / "report.json", tmp_path / "c"])
    assert any("within noise" in note and "fd_efflite0" in note for note in remarks(reports))
    page = write_comparison(tmp_path / "out", reports).read_text()
    assert page.count("<svg") == 1 and "runs/c" in page
    write_report(tmp_path / "d", report(2.0, samples=50), {})
    assert any("numbers of images" in note for note in remarks(gather([tmp_path / "a", tmp_path / "d"])))


def test_what_is_no_report(tmp_path):
    with pytest.raises(DataError, match=r"holds no report\.json"):
        gather([tmp_path])
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(DataError, match="no report of genlab's"):
        gather([tmp_path])


def test_pareto():
    points = [(1.0, 5.0), (2.0, 3.0), (3.0, 4.0), (2.0, 3.0)]
    assert pareto(points, "lower") == [True, True, False, True]
    assert pareto(points, "higher") == [True, False, False, False]


def test_axes_and_numbers():
    assert axis_for("x", [1.0, 100.0]).log and not axis_for("x", [0.0, 100.0]).log
    assert Axis("x", 0, 1).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Axis("x", 1, 300, log=True).ticks() == [1, 10, 100]
    assert axis_for("x", [3.0]).place(3.0) == pytest.approx(0.5)
    assert [format_score(v) for v in (2.2712, 0.01738, 0.0, 36999.1, math.nan, 1e-7)] == [
        "2.271",
        "0.01738",
        "0",
        "36999",
        "–",
        "1e-07",
    ]
    assert grid_png(torch.zeros(3, 3, 512, 512, dtype=torch.uint8)).startswith("iVBOR")
