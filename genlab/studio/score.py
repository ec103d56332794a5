"""The Score panel: evaluate a generator, read its report, and see what quality costs in all known runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.events import Dependency

from genlab.studio import choices, markup, score_markup
from genlab.studio.catalog import Entry
from genlab.studio.fields import without_effect
from genlab.studio.inputs import whole_number
from genlab.studio.orders import LARGEST_SEED, Limits
from genlab.studio.panel import QUICK, JobPanel, Updates, Wants, asked
from genlab.studio.reports import KnownReport, known_reports
from genlab.studio.score_markup import AXES
from genlab.studio.score_orders import MOST_SAMPLES, ScoreOrder, place, protocols_for
from genlab.studio.store import Job

_SETTINGS = ("steps", "guidance")
_AUTOMATIC = "Empty: the run's own, or what the protocol says."
_FIRST = "fid"  # the metric that is compared first, if it is there


class ScorePanel(JobPanel):
    """Protocols and runs to scores."""

    kind = "score"
    action = "Score"

    def build(self) -> None:
        self.empty = gr.HTML(visible=False)
        with gr.Column() as self.workspace:
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=300):
                    self._build_order()
                with gr.Column(scale=3, min_width=300):
                    self._build_report()
            self._build_comparison()
        self._connect()

    def _build_order(self) -> None:
        with gr.Row():
            self.run = gr.Dropdown([], label="Run to score", scale=4, min_width=180)
            self.look = gr.Button("Refresh", size="sm", min_width=80, elem_classes="beside")
        self.card = gr.HTML()
        self.protocol = gr.Dropdown([], label="Protocol")
        self.about = gr.HTML()
        self.metrics = gr.CheckboxGroup([], label="Scores")
        with gr.Row():
            self.samples = whole_number("Images to score", 2, MOST_SAMPLES, value=1000)
            self.seed = whole_number("Seed", 0, LARGEST_SEED, value=0)
        with gr.Row(elem_classes="fields"):
            empty: dict[str, Any] = {"placeholder": "automatic", "info": _AUTOMATIC}
            self.steps = whole_number("Steps", 1, Limits().steps, **empty)
            self.guidance = gr.Number(None, label="Guidance", minimum=0, step=0.1, min_width=120, **empty)
        self.build_start()
        gr.HTML('<p class="hint">Stopped, it goes on where it was once the same is asked for again.</p>')
        shown: dict[str, Any] = {"interactive": False, "wrap_lines": True, "show_line_numbers": False}
        shown |= {"language": "shell", "lines": 2, "max_lines": 4, "buttons": ["copy"]}
        self.command = gr.Code("genlab evaluate RUN", label="The same as a command", **shown)

    def _build_report(self) -> None:
        self.chosen = gr.Dropdown([], label="Report")
        self.report = gr.HTML(score_markup.no_reports())
        with gr.Accordion("The whole report", open=False) as self.fold:
            self.whole = gr.HTML()

    def _build_comparison(self) -> None:
        gr.HTML('<h2 class="part">What quality costs</h2>')
        with gr.Row():
            self.group = gr.Dropdown([], label="Reports under", min_width=180)
            self.metric = gr.Dropdown([], label="Quality", min_width=180)
            costs = [(axis.title[0].upper() + axis.title[1:], key) for key, axis in AXES.items()]
            self.cost = gr.Dropdown(costs, value=costs[0][1], label="Against", min_width=180)
        self.picture = gr.HTML()

    def _connect(self) -> None:
        suited: list[Any] = [self.about, self.metrics, self.samples]
        choice: list[Any] = [self.card, self.protocol, self.steps, self.guidance, *suited]
        read: list[Any] = [self.chosen, self.report, self.fold, self.whole]
        compared: list[Any] = [self.group, self.metric, self.cost, self.picture]
        self._page = [self.run, *choice, self.empty, self.workspace, self.start, *read, *compared]
        self._state = [self.run, self.chosen, self.group, self.metric, self.cost]
        self.look.click(self._refresh, self._state, self._page, **QUICK)
        self.run.input(self._select, self.run, choice, **QUICK)
        self.protocol.input(self._suit, [self.run, self.protocol], suited, **QUICK)
        self.chosen.input(self._read, self.chosen, read, **QUICK)
        self.fold.expand(self._whole, self.chosen, self.whole, **QUICK)
        for part in (self.group, self.metric, self.cost):
            part.input(self._compare, [self.group, self.metric, self.cost], compared, **QUICK)
        inputs = {self.run, self.protocol, self.metrics, self.samples, self.seed, self.steps, self.guidance}
        self.connect(inputs, [self.command, *read, *compared])

    def on_open(self, opened: Dependency) -> None:
        self.load(opened, self._refresh, self._state, self._page)

    def order(self, values: Updates) -> tuple[str, Wants]:
        entry = self.bench.catalog.get(values[self.run])
        given = {"steps": values[self.steps], "guidance": values[self.guidance]}
        offered = _offered(entry)
        changes = {name: value for name, value in given.items() if value is not None and name in offered}
        count, seed = values[self.samples], values[self.seed]
        order = place(entry, values[self.protocol], count, seed, values[self.metrics], changes)
        return f"{entry.name}, {order.protocol.name}", order.wants()

    def begin(self, job: Job) -> Updates:
        return {self.command: ScoreOrder.of(job.wants).command()}

    def forming(self, job: Job, frame: Mapping[str, Any]) -> Updates:
        return {self.status: markup.working(frame)}

    def finished(self, job: Job, result: Mapping[str, Any]) -> Updates:
        reports = self._reports()
        new = next((report for report in reports if report.id == result["report"]), None)
        said = {self.status: markup.status(f"{job.title} is scored", 1.0)}
        return said | self._reading(reports, new) | self._compared(reports, new.group if new else None, None, None)

    def _reports(self) -> list[KnownReport]:
        return known_reports(self.bench.catalog.refresh().entries.values(), self.bench.store.root)

    def _refresh(self, run: str | None, chosen: str | None, group: str, metric: str, cost: str) -> Updates:
        scan = self.bench.catalog.refresh()
        runs = choices.of_runs(scan)
        entry = scan.entries.get(run or "") or (scan.entries[str(runs[0][1])] if runs else None)
        reports = self._reports()
        found: Updates = {
            self.empty: gr.update(visible=entry is None, value=markup.no_runs(self.bench.catalog.sources)),
            self.workspace: gr.update(visible=entry is not None),
            self.start: gr.update(interactive=entry is not None),
            self.run: gr.update(choices=runs, value=entry.id if entry else None),
            **self._reading(reports, next((report for report in reports if report.id == chosen), None)),
            **self._compared(reports, group, metric, cost),
        }
        return found if entry is None or entry.id == run else found | self._suited(entry)

    def _select(self, run: str) -> Updates:
        return self._suited(asked(self.bench.catalog.get, run))

    def _suited(self, entry: Entry) -> Updates:
        """The controls for a run."""
        protocols = protocols_for(entry)
        offered = _offered(entry)
        return {
            self.card: markup.run_card(entry),
            self.protocol: gr.update(choices=[protocol.name for protocol in protocols], value=protocols[0].name),
            self.steps: gr.update(value=None, visible="steps" in offered),
            self.guidance: gr.update(value=None, visible="guidance" in offered),
            **self._suit(entry.id, protocols[0].name),
        }

    def _suit(self, run: str, protocol: str) -> Updates:
        """The controls for a protocol."""
        fitting = protocols_for(asked(self.bench.catalog.get, run))
        chosen = next((found for found in fitting if found.name == protocol), fitting[0])
        named = [(metric.replace("@", " on "), metric) for metric in chosen.metrics]
        return {
            self.about: score_markup.about(chosen),
            self.metrics: gr.update(choices=named, value=list(chosen.metrics)),
            self.samples: chosen.samples,
        }

    def _read(self, chosen: str | None) -> Updates:
        reports = self._reports()
        return self._reading(reports, next((report for report in reports if report.id == chosen), None))

    def _reading(self, reports: Sequence[KnownReport], chosen: KnownReport | None) -> Updates:
        """The list of reports and the one that was chosen, or the newest."""
        shown = chosen or next(iter(reports), None)
        named = [(f"{report.label} · {report.group}", report.id) for report in reports]
        return {
            self.chosen: gr.update(choices=named, value=shown.id if shown else None),
            self.report: score_markup.report(shown) if shown else score_markup.no_reports(),
            self.fold: gr.update(open=False, visible=shown is not None),
            self.whole: "",
        }

    def _whole(self, chosen: str | None) -> str:
        shown = next((report for report in self._reports() if report.id == chosen), None)
        return score_markup.whole(shown) if shown else ""

    def _compare(self, group: str, metric: str, cost: str) -> Updates:
        return self._compared(self._reports(), group, metric, cost)

    def _compared(self, reports: Sequence[KnownReport], group: Any, metric: Any, cost: Any) -> Updates:
        """Reports that can be compared, in one metric against one cost; what is not offered gives way to the first."""
        groups = [name for name, _ in Counter(report.group for report in reports).most_common()]
        group = group if group in groups else next(iter(groups), None)
        compared = [report for report in reports if report.group == group]
        metrics = _metrics(compared)
        metric = metric if metric in metrics else next(iter(metrics), None)
        cost = cost if cost in AXES else next(iter(AXES))
        return {
            self.group: gr.update(choices=groups, value=group),
            self.metric: gr.update(choices=metrics, value=metric),
            self.cost: cost,
            self.picture: score_markup.comparison(compared, str(metric), cost),
        }


def _offered(entry: Entry) -> set[str]:
    """Those of the settings on the page that the run's sampler has."""
    idle = without_effect(entry, entry.sampling)
    return {name for name in _SETTINGS if name in type(entry.sampling).model_fields and name not in idle}


def _metrics(reports: Sequence[KnownReport]) -> list[str]:
    """The names of scores that have a better end, those most often there first."""
    scores = [score for report in reports for score in report.tree.scores if score.better != "neither"]
    counts = Counter(score.name for score in scores)
    first = {score.name: score.metric == _FIRST for score in scores}
    return sorted(counts, key=lambda name: (-counts[name], not first[name]))
