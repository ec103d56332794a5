"""The Train panel: start a recipe, watch all runs, stop and continue them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.events import Dependency

from genlab import config as configs
from genlab.core.errors import ConfigError, GenlabError
from genlab.studio import markup
from genlab.studio.ledger import RunState, read_log, read_runs, sample_grids
from genlab.studio.panel import QUICK, JobPanel, Updates, Wants, asked
from genlab.studio.pictures import file_to_data_uri
from genlab.studio.recipes import FIRST, Recipes
from genlab.studio.store import Job

_TICK = 2.0  # seconds between looks at the runs
_POINTS = 400  # of a curve
_EXAMPLE = "training.images=50000\nname=my-digits"


class TrainPanel(JobPanel):
    """Recipes to runs."""

    kind = "train"
    action = "Start training"

    def build(self) -> None:
        self.recipes = Recipes.here()
        self.table = gr.HTML(markup.runs([]))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self._build_recipe()
            with gr.Column(scale=3, min_width=300):
                self._build_runs()
        self._connect()

    def _build_recipe(self) -> None:
        names = self.recipes.names()
        first = FIRST if FIRST in names else None
        self.recipe = gr.Dropdown(
            names, value=first, label="Recipe", info="Files below configs/. The digits train anywhere."
        )
        self.changes = gr.Textbox(
            label="Changes",
            info="One section.key=value a line; may stay empty.",
            lines=3,
            max_lines=8,
            placeholder=_EXAMPLE,
        )
        self.build_start()
        with gr.Accordion("The recipe", open=False):
            self.text = gr.Code(label="Recipe", language="yaml", interactive=False, wrap_lines=True, max_lines=30)

    def _build_runs(self) -> None:
        with gr.Row():
            self.run = gr.Dropdown([], label="Look at", scale=4, min_width=180)
            self.go_on = gr.Button("Continue this run", size="sm", min_width=120, elem_classes="beside")
        self.curve = gr.LinePlot(x="images", y="loss", height=240, label="Loss", show_label=False)
        self.film = gr.Slider(0, 1, value=1, step=1, label="Samples over time", visible=False)
        self.picture = gr.HTML()
        self.timer = gr.Timer(_TICK)

    def _connect(self) -> None:
        live: list[Any] = [self.table, self.run]
        shown: list[Any] = [self.curve, self.film, self.picture]
        self.connect({self.recipe, self.changes}, [])
        self.also_starts(self.go_on, self._continued, {self.run})
        self.recipe.change(self._text, self.recipe, self.text, **QUICK)
        self.timer.tick(self._look, self.run, live, **QUICK)
        self.timer.tick(self._follow_run, [self.run, self.film], shown, **QUICK)
        self.run.change(self._choose_run, self.run, shown, **QUICK)
        self.film.release(self._picture, [self.run, self.film], self.picture, **QUICK)

    def on_open(self, opened: Dependency) -> None:
        self.load(opened, self._open, [self.recipe, self.run], [self.text, self.start, self.table, self.run])

    def order(self, values: Updates) -> tuple[str, Wants]:
        path, lines, config = self.recipes.changed(values[self.recipe], values[self.changes] or "")
        there = next((state for state in self._runs() if state.name == config.name), None)
        if there is not None and there.images >= there.total > 0:
            raise ConfigError(f"{config.name} is trained already: add name=ANOTHER-NAME to the changes")
        return config.name, self._wants(path, lines, config.name, self._home())

    def begin(self, job: Job) -> Updates:
        return {}

    def forming(self, job: Job, frame: Mapping[str, Any]) -> Updates:
        return {self.status: markup.working(frame)}

    def finished(self, job: Job, result: Mapping[str, Any]) -> Updates:
        return {self.status: markup.status(f"{job.title} is trained: choose it in Generate", 1.0)}

    def _continued(self, values: Updates) -> tuple[str, Wants]:
        state = self._state(values[self.run])
        config = configs.load_run(state.folder / "config.yaml", trust=False)
        if state.images >= state.total:
            raise ConfigError(f"{state.name}: is finished; start its recipe with another name, or more training.images")
        return state.name, self._wants(
            state.folder / "config.yaml", [f"name={state.name}"], config.name, state.folder.parent
        )

    def _wants(self, config: Path, lines: list[str], name: str, runs: Path) -> Wants:
        return {"config": str(config.resolve()), "overrides": lines, "name": name, "runs": str(runs.resolve())}

    def _home(self) -> Path:
        """The folder that new runs go to."""
        roots = [root for root in self.bench.catalog.folders if root.is_dir() and not (root / "config.yaml").exists()]
        if not roots:
            raise GenlabError("none of the studio's folders can hold new runs: start it with a folder of runs")
        return roots[0]

    def _runs(self) -> list[RunState]:
        return read_runs(self.bench.catalog.folders)

    def _state(self, name: Any) -> RunState:
        found = next((state for state in self._runs() if state.name == name), None)
        if found is None:
            raise GenlabError("no such run here: choose one from the list")
        return found

    def _open(self, recipe: str | None, run: str | None) -> Updates:
        startable = gr.update(interactive=bool(self.recipes.names()))
        return {self.text: self._text(recipe), self.start: startable, **self._look(run)}

    def _text(self, recipe: str | None) -> str:
        return asked(self.recipes.path, recipe).read_text(encoding="utf-8") if recipe else ""

    def _look(self, run: str | None) -> Updates:
        states = self._runs()
        names = [state.name for state in states]
        chosen = run if run in names else next(iter(names), None)
        choice = gr.update(choices=names, value=chosen) if names else gr.update(choices=[], value=None)
        return {self.table: markup.runs(states), self.run: choice}

    def _choose_run(self, run: str | None) -> Updates:
        return self._shown_run(run, None)

    def _follow_run(self, run: str | None, frame: int) -> Updates:
        """Only a run under way changes."""
        state = next((state for state in self._runs() if state.name == run), None)
        if state is None or not state.active:
            return {part: gr.skip() for part in (self.curve, self.film, self.picture)}
        return self._shown_run(run, frame)

    def _shown_run(self, run: str | None, frame: int | None) -> Updates:
        """Curve and film of a run; the film stays where it is unless it stands at its end."""
        if run is None:
            return {self.curve: None, self.film: gr.update(visible=False), self.picture: ""}
        state = asked(self._state, run)
        grids = sample_grids(state.folder)
        last = max(len(grids) - 1, 0)
        now = last if frame is None or frame >= last - 1 else int(frame)
        return {
            self.curve: _curve(read_log(state.folder)),
            self.film: gr.update(maximum=max(last, 1), value=now, visible=len(grids) > 1),
            self.picture: _pictured(grids, now),
        }

    def _picture(self, run: str | None, frame: int) -> str:
        return _pictured(sample_grids(asked(self._state, run).folder), int(frame))


def _curve(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """images and loss, thinned to what a curve can show."""
    rows = []
    for line in lines:
        loss = next((value for key, value in line.items() if key == "loss" or key.endswith("/loss")), None)
        if isinstance(loss, int | float):
            rows.append((line["images"], loss))
    thin = max(len(rows) // _POINTS, 1)
    return pd.DataFrame(rows[::thin], columns=["images", "loss"])


def _pictured(grids: list[Path], frame: int) -> str:
    if not grids:
        return ""
    file = grids[min(max(frame, 0), len(grids) - 1)]
    return markup.picture(file_to_data_uri(file), f"Samples after {int(file.stem):,} images")
