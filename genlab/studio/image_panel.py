"""A panel whose jobs sample images of one run: its controls, its gallery, and how they fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from genlab.core.contracts import SamplingSettings
from genlab.core.errors import GenlabError
from genlab.studio import markup
from genlab.studio.catalog import Entry
from genlab.studio.controls import Controls
from genlab.studio.fields import settings_classes, without_effect
from genlab.studio.orders import merge
from genlab.studio.panel import QUICK, JobPanel, Updates
from genlab.studio.store import Job

_SMOOTH = 128  # from this side on, images are shown smoothed


class ImagePanel(JobPanel):
    """A subclass makes `run`, `gallery`, `archive` and `command`, and calls `build_controls` and `connect_controls`."""

    run: gr.Dropdown
    gallery: Any
    archive: gr.DownloadButton
    command: gr.Code

    def build_controls(self) -> None:
        """The settings of every process; those of the run's are shown."""
        self.controls = [Controls(settings) for settings in settings_classes()]

    @property
    def settings_parts(self) -> list[Any]:
        """The components that say how to sample."""
        return [part for controls in self.controls for part in controls.components]

    @property
    def settings_outputs(self) -> list[Any]:
        """What `show_settings` changes."""
        return [*self.settings_parts, *(controls.group for controls in self.controls)]

    def connect_controls(self) -> None:
        """Hide what has no effect under the other values."""
        for controls in self.controls:
            own: list[Any] = controls.components
            changes = [part.change for part in own]
            # an event for each part would make the page heavy; the last of many changes at once is enough
            gr.on(changes, self._hide_idle, {self.run, *own}, own, trigger_mode="always_last", **QUICK)

    def show_settings(self, entry: Entry, settings: SamplingSettings) -> Updates:
        """Show the controls of the run's process, set to `settings`, and no others."""
        updates: Updates = {}
        for controls in self.controls:
            if isinstance(settings, controls.settings):
                updates |= controls.show(settings, without_effect(entry, settings), chosen=True)
            else:
                updates[controls.group] = gr.update(visible=False)
        return updates

    def read_settings(self, entry: Entry, values: Updates) -> dict[str, Any]:
        """What the controls of the run's process say, to be validated."""
        return self._controls_of(entry).read(values)

    def pixel_by_pixel(self, entry: Entry) -> list[str]:
        """Classes of a gallery of its images: small ones are shown pixel by pixel."""
        return [] if entry.image_size >= _SMOOTH else ["pixelated"]

    def ordered(self, classes: list[str], command: str) -> Updates:
        """What a job shows before its first image."""
        return {
            self.gallery: gr.update(value=[], elem_classes=classes),
            self.command: command or "(genlab sample cannot be asked for these classes)",
            self.archive: gr.update(interactive=False),
        }

    def forming(self, job: Job, frame: Mapping[str, Any]) -> Updates:
        return {self.gallery: frame["pictures"], self.status: markup.progress(frame)}

    def finished(self, job: Job, result: Mapping[str, Any]) -> Updates:
        return {
            self.gallery: [(job.results / name, caption) for name, caption in result["files"]],
            self.archive: gr.update(value=job.results / result["archive"], interactive=True),
            self.status: markup.finished(len(result["files"]), result["seconds"]),
        }

    def _hide_idle(self, values: Updates) -> Updates:
        try:
            entry = self.bench.catalog.get(values[self.run])
            controls = self._controls_of(entry)
            settings = merge(entry.sampling, controls.read(values))
        except (GenlabError, KeyError):  # half typed, which is said when it is used; or of another run than is chosen
            return {part: gr.skip() for part in values if part is not self.run}
        return controls.hide(without_effect(entry, settings))

    def _controls_of(self, entry: Entry) -> Controls:
        return next(controls for controls in self.controls if isinstance(entry.sampling, controls.settings))
