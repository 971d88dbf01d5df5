"""The verb that takes a run's model away: export."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from slimrl.cli.arguments import fetched
from slimrl.cli.completion import run_argument
from slimrl.cli.output import out
from slimrl.errors import UNWRITABLE, DataError, DiskError, SettingsError
from slimrl.runs.files import UNFINISHED
from slimrl.terms import ADAPTER, FINAL

if TYPE_CHECKING:
    from slimrl.export.run import FinishedRun

KINDS = ("f16", "q8_0")


@click.command(short_help="Take a run's model away: transformers, Ollama, GGUF, Hub.")
@click.argument("run", type=click.Path(), callback=fetched, shell_complete=run_argument)
@click.argument("target", metavar="FOLDER | OWNER/NAME")
@click.option(
    "--for", "purpose", type=click.Choice(["transformers", "gguf", "ollama", "hub"]), default="transformers", show_default=True
)  # fmt: skip
@click.option("--type", "kind", type=click.Choice(KINDS), help="Type of the weights in a GGUF; f16 by default.")
@click.option("--adapter", is_flag=True, help="The adapter that the run trained, for peft, not the merged model.")
@click.option("--push", is_flag=True, help="With --for hub: send it. Without, what would be sent is listed.")
@click.option("--public", is_flag=True, help="With --for hub: a repository that everybody can read.")
def export(
    run: str, target: str, purpose: str, kind: Literal["f16", "q8_0"] | None, adapter: bool, push: bool, public: bool
) -> None:
    """Take a run's model away, with a model card: to a FOLDER, or to a repository on the Hub.

    \b
    Examples:
      slimrl export runs/mine my-model
      slimrl export runs/mine my-ollama --for ollama
      slimrl export runs/mine my-gguf --for gguf --type q8_0
      slimrl export runs/mine me/my-model --for hub --push
    """
    if kind and purpose not in ("gguf", "ollama"):
        raise SettingsError(f"--type has no effect with --for {purpose}; remove it")
    if adapter and purpose not in ("transformers", "hub"):
        raise SettingsError(f"--adapter has no effect with --for {purpose}, which takes the merged model; remove it")
    if (push or public) and purpose != "hub":
        raise SettingsError(f"--push and --public have no effect with --for {purpose}; remove them, or add --for hub")
    source = Path(run) / (ADAPTER if adapter else FINAL)
    if adapter and not source.is_dir() and (Path(run) / FINAL).is_dir():
        raise DataError(f"{run} trained the model's own weights and holds no adapter; remove --adapter")
    if not (source / ("adapter_config.json" if adapter else "config.json")).is_file():
        raise DataError(f"{run} holds no {source.name}/ model; {_why_no_model(Path(run))}")
    from slimrl.export.run import read_finished

    found = read_finished(Path(run))
    if purpose == "hub":
        _hub(found, source, target, push=push, public=public)
        return
    folder = Path(target)
    if folder.exists() and (
        not folder.is_dir() or any(not file.name.startswith(UNFINISHED) for file in folder.iterdir())
    ):
        raise SettingsError(f"{target} exists already and is not empty; choose another folder")
    try:
        with appearing(folder) as place:
            if purpose == "transformers":
                _transformers(found, source, place)
            else:
                _gguf(found, place, kind or "f16", ollama=purpose == "ollama")
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise DiskError(
                f"cannot write {target} ({error.strerror}), and nothing is left there; make room first"
            ) from None
        raise SettingsError(f"cannot write {target} ({error.strerror or error}); choose another folder") from None
    if purpose == "ollama":
        click.echo(f"ollama create {found.name} -f {folder / 'Modelfile'}", err=True)
    out(target)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder beside or in `folder` to write into; its files are in `folder` once all are written, and none after an error."""
    exists = folder.is_dir()
    place = (folder if exists else folder.parent) / f"{UNFINISHED}{folder.name}-{os.getpid()}"
    place.mkdir(parents=True)
    try:
        yield place
        if not exists:
            place.rename(folder)
            return
        for file in place.iterdir():
            file.rename(folder / file.name)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _why_no_model(run: Path) -> str:
    """The reason why a folder has no model to export, and the way out."""
    from slimrl.config.files import read_yaml

    if not (run / "run.json").is_file():
        return "give the folder of a finished run"
    stored = read_yaml(str(run / "config.yaml")).get("log", {}).get("model", True)
    if stored is not False:
        return "give the folder of a finished run"
    if any((folder / "declared.json").is_file() for folder in run.resolve().parents[:2]):
        return "the study keeps no models; set keep_models: true in its file, and run it under another --name"
    return "it was trained with log.model=false; train it with log.model=true"


def _transformers(run: FinishedRun, source: Path, folder: Path) -> None:
    """Copy the files, with the permissions that the umask gives, not those of the run; the card beside them."""
    from slimrl.export.card import model_card
    from slimrl.runs.files import files_within

    for file in files_within(source):
        copy = folder / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    card = model_card(run, "peft" if source.name == ADAPTER else "transformers")
    if source.name == ADAPTER:
        _say_base(source)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _say_base(adapter: Path) -> None:
    """A note where the model of an adapter is named by a path, which others do not have."""
    from slimrl.runs.reader import read_json

    base = str(read_json(adapter / "adapter_config.json").get("base_model_name_or_path") or "")
    if Path(base).is_absolute():
        click.echo(
            f"note: the adapter is for {base}, by its path on this machine; for others, set base_model_name_or_path in its "
            "adapter_config.json to the model's name on the Hub",
            err=True,
        )


def _gguf(run: FinishedRun, folder: Path, kind: Literal["f16", "q8_0"], *, ollama: bool) -> None:
    """Write the GGUF, the card, and for Ollama the Modelfile."""
    import importlib.util

    if importlib.util.find_spec("gguf") is None:
        raise SettingsError("GGUF needs the package gguf; pip install 'slimrl[gguf]'")
    from slimrl.export.card import model_card
    from slimrl.export.gguf import write_gguf

    name = f"{run.name}-{kind}.gguf"
    texts = {"README.md": model_card(run, "ollama" if ollama else "gguf")}
    if ollama:  # before the weights, since it may be impossible
        texts["Modelfile"] = _modelfile(run, name)
    write_gguf(run.model, folder / name, kind, name=run.name, temperature=run.settings.rollout.temperature)
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")


def _modelfile(run: FinishedRun, weights: str) -> str:
    from slimrl.export.modelfile import modelfile_of

    modelfile = modelfile_of(run, weights)
    if modelfile.turns is None:
        click.echo(
            "note: this model's chat template is more than texts between turns, so the Modelfile has no TEMPLATE and Ollama "
            "looks for one in the GGUF",
            err=True,
        )
    return modelfile.text()


def _hub(run: FinishedRun, source: Path, repository: str, *, push: bool, public: bool) -> None:
    from slimrl.export.card import model_card
    from slimrl.export.hub import Upload
    from slimrl.export.run import published_adapter
    from slimrl.runs.files import files_within

    is_adapter = source.name == ADAPTER
    texts = {"README.md": model_card(run, "peft" if is_adapter else "transformers")}
    if is_adapter:
        texts["adapter_config.json"] = published_adapter(source)
        _say_base(source)
    files = {str(file.relative_to(source)): file for file in files_within(source) if file.name not in texts}
    upload = Upload(repository, files, texts, private=not public)
    for line in upload.listing():
        click.echo(line, err=True)
    kind = "public" if public else "private"
    if not push:
        click.echo(
            f"nothing was sent; add --push to send this to https://huggingface.co/{repository} ({kind})", err=True
        )
        return
    from huggingface_hub import HfApi

    out(upload.push(HfApi(), f"{run.name}, trained with SlimRL"))
