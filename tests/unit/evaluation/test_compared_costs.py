import json

from genlab.evaluation.comparison import gather, print_comparison, write_comparison
from genlab.evaluation.report import FORMAT


def test_calls_and_speed_stand_beside_the_scores(tmp_path, capsys):
    for name, seconds, calls in (("teacher", 0.25, 62.0), ("student", 0.005, 1.0)):
        cost = {"seconds_per_image": seconds, "evaluations_per_image": calls, "parameters": 1e6}
        tree = {"title": name, "scores": [], "samples": 10, "protocol": {"name": "digits"}, "cost": cost}
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps({"format": FORMAT, **tree}))
    reports = gather([tmp_path / "teacher", tmp_path / "student"])
    print_comparison(reports)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["images per second", "4.000", "200"] in rows and ["NFE", "62.00", "1.000"] in rows
    page = write_comparison(tmp_path, reports).read_text()
    assert "images per second" in page and ">200<" in page
