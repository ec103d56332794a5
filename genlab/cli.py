"""The command line. Nothing heavy is imported before a command runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from genlab import __version__
from genlab.core.errors import ConfigError, GenlabError

app = typer.Typer(
    name="genlab",
    help="Train, sample, distil, score and look at class-conditional image generators.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, an export or a hub id (owner/name).")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the config.")]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, such as configs/digits/dit_flow.yaml.")],
    overrides: Overrides = None,
    runs: Annotated[Path, typer.Option(help="Where run folders live.")] = Path("runs"),
    resume: Annotated[
        str,
        typer.Option(help="auto: continue the newest sound checkpoint; never: a new run; or a checkpoint's folder."),
    ] = "auto",
    dry_run: Annotated[bool, typer.Option(help="Print config, size, speed, memory and time; write nothing.")] = False,
    student: Annotated[
        int | None, typer.Option(min=0, help="Of several students, train this one; default: one after another.")
    ] = None,
) -> None:
    """Train a generator."""
    from genlab.commands.train import train as command

    command(config, overrides or [], runs, resume, dry_run, student)


@app.command()
def sample(
    run: Run,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Other sampling settings, such as shift=2.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A folder for PNGs, or a file ending in .npz or .safetensors.")] = Path(
        "samples"
    ),
    classes: Annotated[
        str, typer.Option(help="Numbers or names, separated by commas; none: no class. Default: all.")
    ] = "",
    per_class: Annotated[int | None, typer.Option(help="Images of each class.")] = None,
    count: Annotated[int, typer.Option(help="Images in all, over the classes in turn.")] = 64,
    seed: Annotated[int, typer.Option(help="Image i of a seed is the same for any batch or number of processes.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images at once, per process.")] = 64,
    sampler: Annotated[str | None, typer.Option(help="Of the generator's process.")] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = None,
    autoguide: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Guide away from this weaker generator instead: smaller or less trained."),
    ] = None,
    edit: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Change this image instead; docs/editing.md.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="MASK", help="With --edit: an image of its size, white where to make anew.")
    ] = None,
    place: Annotated[
        str | None, typer.Option(metavar="X,Y", help="With --edit: lay it on the canvas here, and paint around it.")
    ] = None,
    from_scale: Annotated[
        int | None,
        typer.Option(min=0, help="With --edit: keep all coarser scales (xAR: earlier cells), make the rest anew."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="With --edit, diffusion and flow: noise on the image, above 0 (as it is) to 1 (all anew)."),
    ] = None,
    trust: Annotated[bool, typer.Option(help="Allow descriptions that name Python classes outside genlab.")] = False,
) -> None:
    """Make images from a trained generator, or edits of an image."""
    from genlab.commands.edit import Options as Edit
    from genlab.commands.sample import sample as command

    how = (mask, place, from_scale, strength)
    if edit is None and how != (None, None, None, None):
        raise ConfigError(
            "--mask, --place, --from-scale and --strength say how to change an image: name it with --edit"
        )
    change = None if edit is None else Edit(edit, *how)

    named = {"sampler": sampler, "steps": steps, "guidance": guidance}
    settings = [f"{key}={value}" for key, value in named.items() if value is not None] + (overrides or [])
    command(run, out, classes, per_class, count, seed, batch, settings, trust, autoguide, change)


@app.command()
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A run folder, export or hub id; a folder of images; .npz; .safetensors; a data set."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Other sampling settings, such as shift=2.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="How to score, such as adm-imagenet256, standard, offline, digits; see docs/evaluation.md."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Statistics (.npz, .pt), a folder, a data set's name or .yaml. Default: the training data."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=2, help="Images to score. Default: the protocol's, or all there are.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Such as fid,kid,precision@pixels.")] = None,
    extractor: Annotated[str | None, typer.Option(help="inception, dinov2, clip, efflite0 (offline), ...")] = None,
    weights: Annotated[Path | None, typer.Option(help="Your copy of the extractor's weights.")] = None,
    labels: Annotated[str | None, typer.Option(help="balanced or random.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples and random labels.")] = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="Score this many seeds, from --seed on: means, and intervals from their spread.")
    ] = 1,
    sampler: Annotated[str | None, typer.Option(help="Of the generator's process.")] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images sampled at once, per process.")] = 64,
    size: Annotated[
        int | None, typer.Option(min=1, help="Crop and resize folders and data sets to this side (ADM's rule).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The report's folder, also that of an interrupted evaluation.")
    ] = None,
    save_images: Annotated[
        Path | None, typer.Option(help="Keep the images: a folder for PNGs, or a .npz (ADM's, shuffled).")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Images between saves of the progress, per process.")] = 2048,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the recipe's expected scores; exit 1 if off.")
    ] = False,
    trust: Annotated[bool, typer.Option(help="Allow descriptions that name Python classes outside genlab.")] = False,
) -> None:
    """Score a generator, a tokenizer or images: FID and the rest, with a report."""
    from genlab.commands.evaluate import Options
    from genlab.commands.evaluate_tokenizer import evaluate_any as command

    named = {"sampler": sampler, "steps": steps, "guidance": guidance}
    changes = tuple(f"{key}={value}" for key, value in named.items() if value is not None) + tuple(overrides or [])
    options = Options(
        protocol=protocol,
        against=against,
        samples=samples,
        extractor=extractor,
        weights=weights,
        metrics=metrics,
        labels=labels,
        out=out,
        save_images=save_images,
        seed=seed,
        repeats=repeats,
        batch=batch,
        size=size,
        overrides=changes,
        check=check,
        trust=trust,
        save_every=save_every,
    )
    raise typer.Exit(command(target, options))


@app.command()
def reference(
    data: Annotated[str, typer.Argument(help="A data set's name, a folder, or a .yaml with a data: section.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz to write.")],
    extractor: Annotated[str, typer.Option(help="inception, dinov2, clip, efflite0 (offline), ...")] = "inception",
    weights: Annotated[Path | None, typer.Option(help="Your copy of the extractor's weights.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the images. Default: the data's own.")] = None,
) -> None:
    """Compute the statistics of a data set for later evaluations."""
    from genlab.commands.reference import reference as command

    command(data, out, extractor, weights, size)


@app.command()
def cache(
    config: Annotated[Path, typer.Argument(help="A generator's YAML file: its data and tokenizer say what to encode.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The cache's folder.")] = Path("latents"),
    flips: Annotated[
        bool | None, typer.Option("--flips/--no-flips", help="Encode mirror images too. Default: as data.flip.")
    ] = None,
    crops: Annotated[int | None, typer.Option(min=1, help="Random crops of each image, for data.crop=random.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16, for continuous latents.")] = "fp32",
    batch: Annotated[int, typer.Option(min=1, help="Images encoded at once, per process.")] = 64,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Images per shard. Default: 128 MiB.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read images, per process.")] = 2,
    verify: Annotated[
        bool, typer.Option("--verify", help="Encode a sample again and compare; exit 1 if it differs.")
    ] = False,
) -> None:
    """Encode the images of a config once, for all later training; continues where it was stopped."""
    from genlab.commands import cache as command

    if verify:
        raise typer.Exit(command.verify(config, overrides or [], out))
    command.cache(config, overrides or [], out, command.Options(flips, crops, dtype, batch, shard_size, workers))


@app.command()
def convert(
    checkpoint: Annotated[
        str, typer.Argument(help="A published file or diffusers folder, or owner/name[:file] on the hub.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe: tokenizer.path=DIR.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The export's folder.")] = Path("converted"),
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="dit, sit, repa, lightningdit, dimr, fit, arflow, var, flexvar, mvar, xar, enat, edm, edm2, meanflow, "
            "imf, shortcut, tokenizer or diffusers. Default: as it looks.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Gives process, sampling and tokenizer. Default: the published ImageNet recipe.")
    ] = None,
    weights: Annotated[Literal["ema", "raw"], typer.Option(help="Which, where the file has both.")] = "ema",
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, for sizes that are not published.")] = None,
    classes: Annotated[int | None, typer.Option(min=0, help="Refuse a generator of another number of classes.")] = None,
    statistics: Annotated[
        str | None, typer.Option(help="A file with mean and std of a tokenizer's latents, as VA-VAE has; or edm2.")
    ] = None,
    to_diffusers: Annotated[
        bool, typer.Option("--to-diffusers", help="The other way: an export of genlab's as a folder of diffusers.")
    ] = False,
) -> None:
    """Turn published weights into an export that every command takes."""
    if to_diffusers:
        from genlab.commands.convert_to_diffusers import to_diffusers as back

        return back(checkpoint, out)
    from genlab.commands import convert as command

    options = command.Options(origin, recipe, weights, heads, classes, statistics, overrides or [])
    return command.convert(checkpoint, out, options)


@app.command()
def compare(
    reports: Annotated[list[Path], typer.Argument(help="Reports, their folders, or run folders.")],
    out: Annotated[Path, typer.Option(help="Folder for comparison.html.")] = Path("comparison"),
) -> None:
    """Put saved reports side by side: one table, quality against cost."""
    from genlab.commands.compare import compare as command

    command(reports, out)


@app.command()
def verify(files: Annotated[list[Path], typer.Argument(help="Golden files, or folders of them.")]) -> None:
    """Recompute golden files with genlab's own code and compare."""
    from genlab.commands.verify import verify as command

    raise typer.Exit(command(files))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    ema: Annotated[
        float | None,
        typer.Option(
            help="Width of another average, such as 0.13, for runs with training.ema_power.", show_default=False
        ),
    ] = None,
) -> None:
    """Write RUN/export from the newest checkpoint: averaged weights, description, model card."""
    from genlab.commands.export import export as command

    print(command(run, ema))


@app.command()
def push(
    run: Run,
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face hub.")],
    public: Annotated[bool, typer.Option(help="Make a new repository public.")] = False,
) -> None:
    """Upload an export to the Hugging Face hub."""
    from genlab.pretrained import push_to_hub

    print(push_to_hub(run, repository, private=not public))


@app.command()
def schema() -> None:
    """Print the JSON schema of config files, for editors."""
    import json

    from genlab.config import schema as command

    print(json.dumps(command(), indent=1))


@app.command()
def studio(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Run folders, exports, folders of them, or hub ids. Default: runs")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than your own demand --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    share: Annotated[bool, typer.Option(help="Also at a public address of Gradio's; demands --auth.")] = False,
    auth: Annotated[
        str | None, typer.Option(metavar="USER:PASSWORD", envvar="GENLAB_AUTH", help="Ask visitors for these.")
    ] = None,
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Offer its endpoints to language models; needs genlab[mcp].")
    ] = False,
) -> None:
    """Open the studio in a browser."""
    from genlab.studio.app import launch

    launch(runs or ["runs"], host, port, share, auth, mcp)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 a comparison failed, 2 the user can mend it, 130 interrupted."""
    # PyTorch's own doing, once in each process that takes a forward derivative.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    try:
        app(args=arguments, prog_name="genlab")
    except GenlabError as error:
        first = os.environ.get("RANK", "0") == "0"
        if first or not isinstance(error, ConfigError):  # all processes find the same fault in a config
            print(f"genlab: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("genlab: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
