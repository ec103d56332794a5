"""The named endpoints of the Tokenizers panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from genlab.studio.answers import file, finished, refusing
from genlab.studio.store import Job
from genlab.studio.tokenizer_orders import UPLOAD, place
from genlab.studio.uploads import receive
from genlab.studio.visitors import who
from genlab.studio.watching import FOLLOWING
from genlab.studio.workbench import Workbench

_PICTURES = ("images", "steps", "codes")


def tokenizer_endpoints(bench: Workbench) -> None:
    """Add `tokenizers` and `reconstruct` to the page that is being built."""

    def tokenizers() -> list[dict]:
        """The tokenizers: `id` is what `reconstruct` takes, `samples` the data that it takes images of."""
        return [
            {
                "id": entry.id,
                "name": entry.name,
                "system": entry.system,
                "data": entry.data,
                "image_size": entry.spec.image_size,
                "kind": entry.spec.kind,
                "vocab": entry.spec.vocab,
                "groups": [{"name": name, "grid": list(grid)} for name, grid in entry.groups],
                "samples": list(entry.samples),
            }
            for entry in bench.catalog.refresh().tokenizers.values()
        ]

    async def reconstruct(
        request: gr.Request,
        tokenizer: str,
        image: dict | None = None,
        data: str = "",
        number: int = 0,
        counted: int = 64,
    ) -> dict:
        """An image encoded and decoded: `image` (sent with `gradio_client.handle_file`), or image `number` of `data`.

        Gives `images`, `steps` (of the first depths or scales alone) and `codes`, each a list of PNG files with
        captions; `measures`, and why others are `missing`; and the `usage` of codes in the image and over `counted`
        images of data.
        """
        with refusing():
            order = place(bench.catalog.get_tokenizer(tokenizer), data, number, counted)
            files = {} if order.data else {UPLOAD: receive(image)}
            job = bench.store.submit("reconstruct", who(request), order.entry.name, order.wants(), files)
        return told_reconstruction(job, await finished(bench, job))

    gr.api(tokenizers, api_name="tokenizers", queue=False)
    gr.api(reconstruct, api_name="reconstruct", **FOLLOWING)


def told_reconstruction(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a reconstruct job for programs."""

    def picture(name: str, caption: str) -> dict[str, Any]:
        return {"image": file(job.results / name), "caption": caption}

    pictures = {part: [picture(*row) for row in result[part]] for part in _PICTURES}
    return {**result, **pictures}
