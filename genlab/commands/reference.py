"""`genlab reference`: statistics of a data set, for many evaluations to come."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from genlab.commands.devices import process_state
from genlab.commands.targets import find_data
from genlab.core.errors import GenlabError
from genlab.evaluation.building import build_references
from genlab.evaluation.extractors import load_extractor
from genlab.evaluation.references import save_reference


def reference(data: str, out: Path, extractor: str, weights: Path | None, size: int | None) -> None:
    """Write the statistics of `data` (a name, a folder or a .yaml) on `extractor` to `out`.

    Raises:
        GenlabError: data or weights that cannot be used; an interrupted pass is continued by the same command.
    """
    if out.suffix != ".npz":
        raise GenlabError(f"{out}: statistics are written as .npz")
    state = process_state()
    network = load_extractor(extractor, weights, state.device)
    source = find_data(data, size)
    with tqdm(total=len(source), unit="img", disable=not state.is_main_process, leave=False) as bar:
        made = build_references(
            source, [network], state, tick=lambda images: bar.update(images * state.num_processes) and None
        )
    if state.is_main_process:
        save_reference(out, made[network.name], network)
        print(f"statistics of {len(source):,} images at {source.image_size} pixels on {network.name} in {out}")
    state.wait_for_everyone()
