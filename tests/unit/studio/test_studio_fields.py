"""Controls follow the settings class."""

from typing import Literal

import gradio as gr
from pydantic import Field, PositiveInt
from studio_runs import write_run

from genlab.core.contracts import SamplingSettings
from genlab.processes.flow import FlowSampling
from genlab.studio.catalog import Catalog
from genlab.studio.controls import Controls
from genlab.studio.fields import fields_of, settings_classes, without_effect


class Masked(SamplingSettings):
    """A process yet to come."""

    steps: PositiveInt = 8
    """Rounds of unmasking."""
    temperature: float = Field(1.0, ge=0, le=5)
    choice: Literal["confidence", "random"] = "confidence"
    top_k: int | None = None
    smooth: bool = False
    span: tuple[float, float] = (0.2, 0.8)
    strange: dict[str, int] = Field(default_factory=dict)

    def idle(self) -> set[str]:
        """Settings without effect."""
        return {"temperature"} if self.choice == "confidence" else set()


def test_every_process_that_a_config_can_name_has_its_class():
    assert FlowSampling in settings_classes()


def test_fields_become_controls():
    fields = {field.name: field for field in fields_of(Masked)}
    kinds = {name: field.kind for name, field in fields.items()}
    expected = ["whole", "number", "choice", "whole", "switch", "pair"]
    assert list(kinds.items()) == list(zip(["steps", "temperature", "choice", "top_k", "smooth", "span"], expected))
    assert (fields["steps"].low, fields["steps"].info, fields["steps"].label) == (1, "Rounds of unmasking.", "Steps")
    assert (fields["temperature"].low, fields["temperature"].high) == (0, 5)
    assert fields["choice"].choices == ("confidence", "random")
    assert fields["top_k"].optional and fields["top_k"].label == "Top k"


def test_controls_give_back_what_they_show():
    with gr.Blocks():
        controls = Controls(Masked)
    settings = Masked(steps=3, choice="random", top_k=40, span=(0.1, 0.3))
    updates = controls.show(settings, frozenset(), chosen=True)
    values = {part: updates[part]["value"] for part in controls.components}
    assert Masked(**controls.read(values)) == settings
    values[next(part for part in controls.components if part.label == "Steps")] = None
    assert "steps" not in controls.read(values)


def test_controls_without_effect_are_hidden(tmp_path):
    write_run(tmp_path / "classes")
    write_run(tmp_path / "plain", classes=0)
    entries = {entry.name: entry for entry in Catalog([tmp_path]).refresh().entries.values()}
    assert "temperature" in without_effect(entries["classes"], Masked())
    assert "temperature" not in without_effect(entries["classes"], Masked(choice="random"))
    assert {"guidance", "guidance_interval"} <= without_effect(entries["plain"], FlowSampling())
    with gr.Blocks():
        controls = Controls(Masked)
    hidden = [part.label for part, update in controls.hide(frozenset({"span"})).items() if not update["visible"]]
    assert hidden == ["Span: from", "Span: to"]
