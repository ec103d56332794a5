"""`genlab sample`: images from a generator, on all processes, restartable."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from genlab.commands import edit as editing
from genlab.commands.devices import process_state
from genlab.commands.pictures import save_grid
from genlab.config import override_sampling
from genlab.config_errors import nearest
from genlab.core.errors import GenlabError
from genlab.core.files import remove_unfinished, whole_file, write_text
from genlab.core.generator import Generator
from genlab.evaluation.picture_folder import PLAN, PictureFolder, PictureWriter
from genlab.evaluation.sources import Part
from genlab.pretrained import from_pretrained
from genlab.sampling import label_plan, sample_images

_GRID = 64  # images of the overview


def sample(
    run: str,
    out: Path,
    classes: str,
    per_class: int | None,
    count: int,
    seed: int,
    batch: int,
    overrides: list[str],
    trust: bool = False,
    autoguide: str | None = None,
    edit: editing.Options | None = None,
) -> None:
    """Write images of `run` to `out`: PNG files and a grid in a folder, or one .npz or .safetensors file.

    Work that a killed or parallel process has finished is not done again. `out` of another plan is refused.

    Args:
        autoguide: a weaker generator that guidance leads away from.
        edit: make edits of an image.

    Raises:
        GenlabError: a class, setting or target that cannot be used.
    """
    state = process_state()
    generator = from_pretrained(run, state.device, trust)
    if autoguide is not None:
        generator = generator.guided_away_from(from_pretrained(autoguide, state.device, trust))
    settings = override_sampling(generator.sampling, overrides)
    chosen = _parse_classes(classes, generator)
    labels = label_plan(generator.network.num_classes, chosen, per_class, count)
    plan = {"run": str(run), "seed": seed, "labels": labels, "sampling": settings.model_dump(mode="json")}
    if edit is not None:
        generator = editing.editor(generator, settings, edit)
        plan["edit"] = edit.describe()
    plan["autoguide"] = autoguide
    packed = out.suffix in (".npz", ".safetensors")
    folder = out.with_name(out.name + ".parts") if packed else out
    if packed and out.exists():
        raise GenlabError(f"{out}: exists already; choose another --out or remove it")
    if state.is_main_process:
        _start(folder, plan)
    state.wait_for_everyone()
    store = _Parts(folder, out, labels) if packed else PictureWriter(folder, plan)
    done = store.done()
    mine = [i for i in range(state.process_index, len(labels), state.num_processes) if i not in done]
    state.wait_for_everyone()  # nobody writes before all have read what is done
    with tqdm(total=len(mine), unit="img", disable=not state.is_main_process) as bar:
        for part in sample_images(generator, labels, seed, mine, batch, settings):
            store.write(Part(part.indices, part.images, torch.tensor([labels[i] for i in part.indices])))
            bar.update(len(part.indices))
    state.wait_for_everyone()
    if state.is_main_process:
        store.finish()
        if not packed:
            _write_grid(out)
        print(f"{len(labels)} images ({len(labels) - len(done)} new) in {out}")
    state.wait_for_everyone()


class _Parts:
    """Safetensors parts that are joined into one file at the end."""

    def __init__(self, folder: Path, out: Path, labels: list[int]):
        self.folder, self.out, self.labels = folder, out, labels

    def done(self) -> set[int]:
        return {int(i) for part in self._read() for i in part["index"]}

    def write(self, part: Part) -> None:
        with whole_file(self.folder / f"{part.index[0]:09d}.safetensors") as temporary:
            save_file({"index": torch.tensor(part.index), "images": part.images}, temporary)

    def finish(self) -> None:
        parts = list(self._read())
        index = torch.cat([part["index"] for part in parts])
        order = index.argsort()
        images, label = torch.cat([part["images"] for part in parts])[order], torch.tensor(self.labels)
        with whole_file(self.out) as temporary:
            if self.out.suffix == ".npz":  # the layout of the ADM evaluator: uint8 [N,R,R,3]
                with temporary.open("wb") as opened:
                    np.savez(opened, arr_0=images.permute(0, 2, 3, 1).numpy(), label=label.numpy())
            else:
                save_file({"images": images, "label": label}, temporary)
        for file in [*self.folder.glob("*.safetensors"), self.folder / PLAN]:
            file.unlink()
        self.folder.rmdir()

    def _read(self) -> Iterable[dict[str, Tensor]]:
        return (load_file(file) for file in sorted(self.folder.glob("[0-9]*.safetensors")))


def _write_grid(folder: Path) -> None:
    """An overview of the first images of a folder."""
    source = PictureFolder(folder)
    (part,) = source.parts(range(min(len(source), _GRID)))
    save_grid(part.images, folder / "grid.png")


def _start(folder: Path, plan: dict[str, Any]) -> None:
    """Claim the folder for this plan, or check that it continues the same one. A plan without images binds nobody."""
    file = folder / PLAN
    if file.exists():
        old = json.loads(file.read_text(encoding="utf-8"))
        other = [key for key in plan if old.get(key) != plan[key]]
        if other and any(found.name != PLAN for found in folder.iterdir()):
            raise GenlabError(f"{folder}: holds samples of other settings ({', '.join(other)}); choose another --out")
    elif folder.exists() and any(folder.iterdir()):
        raise GenlabError(f"{folder}: is not empty and not genlab's; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    write_text(file, json.dumps(plan))


def _parse_classes(text: str, generator: Generator) -> list[int] | None:
    """The class numbers of a text such as "3,7" or "cat,none"; names go before numbers. None for an empty text."""
    chosen = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        if word in generator.class_names:
            chosen.append(generator.class_names.index(word))
        elif word.isdecimal():
            chosen.append(int(word))
        elif word == "none":
            chosen.append(generator.network.null_label)
        else:
            raise GenlabError(f"class {word!r}: unknown{nearest(word, generator.class_names)}")
    return chosen or None
