"""The recipes and studies that come with SlimRL, and their names: `@dapo`, `@eval/gsm8k`, `@quick`.

They lie beside the package in a clone and inside of it in a wheel, in the same places relative to each other.
"""

import re
from pathlib import Path
from typing import Literal

from slimrl.config.mistakes import nearest
from slimrl.errors import SettingsError

Kind = Literal["recipes", "studies"]
SIGN = "@"
PACKAGE = Path(__file__).parent.parent


def shipped(kind: Kind) -> Path:
    """The folder of all recipes or of all studies; raises SettingsError for an installation without them."""
    for folder in (PACKAGE / kind, PACKAGE.parent / kind):
        if (folder / ("gsm8k.yaml" if kind == "recipes" else "quick.yaml")).is_file():
            return folder
    raise SettingsError(f"this installation holds no {kind}; give files by their paths, or install SlimRL anew")


def names(kind: Kind) -> list[str]:
    """All names without the sign, those of folders last."""
    folder = shipped(kind)
    found = [file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")]
    return sorted((name for name in found if not name.startswith("results/")), key=lambda name: ("/" in name, name))


def named(text: str, kind: Kind) -> str:
    """The file that `@name` stands for, and any other text as it is; raises SettingsError for a name that is none."""
    if not text.startswith(SIGN) or "=" in text or Path(text).exists():
        return text
    name = text.removeprefix(SIGN).removesuffix(".yaml")
    known = names(kind)
    if name in known:
        return str(shipped(kind) / f"{name}.yaml")
    if kind == "recipes" and name in names("studies"):
        raise SettingsError(f"{text} is a study; slimrl study run {text} runs it")
    if kind == "studies" and name in names("recipes"):
        raise SettingsError(f"{text} is a recipe and no part of a study; a study names it under base")
    hint = nearest(name, known).replace("mean ", f"mean {SIGN}")
    raise SettingsError(f"{text} is none of the {kind} that come with SlimRL{hint or '; slimrl recipes lists them'}")


def name_of(file: str) -> str:
    """The `@name` of a recipe or study that a path without a file may mean, as `dapo` or recipes/dapo.yaml; empty for others."""
    kinds: tuple[Kind, ...] = ("recipes", "studies")
    for kind in kinds:
        name = file.removeprefix(f"{kind}/").removesuffix(".yaml")
        try:
            if name in names(kind):
                return SIGN + name
        except SettingsError:
            continue
    return ""


def first_line(name: str, kind: Kind) -> str:
    """The first line of a file's comment."""
    line, _, _ = (shipped(kind) / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")
    return line.removeprefix("#").strip()


def copy_of(name: str) -> tuple[str, str]:
    """The file name and the text of a file that comes with SlimRL, by its `@name`, or as `slurm.sh`, by its own.

    In a study the recipes that it names beside it become their `@name`s. Raises SettingsError for a name that is none.
    """
    folders = shipped("recipes"), shipped("studies")
    wanted = name.removeprefix(SIGN)
    for folder in folders:
        for file in (folder / wanted, folder / f"{wanted}.yaml"):
            if file.is_file() and folder.resolve() in file.resolve().parents:
                text = file.read_text(encoding="utf-8")
                return file.name, re.sub(r"(?:\.\./)+recipes/([\w./-]+)\.yaml", rf'"{SIGN}\1"', text)
    known = [file.name for file in folders[0].iterdir() if file.suffix in (".sh", ".py")]
    hint = nearest(wanted, [*names("recipes"), *names("studies"), *known])
    hint = hint or f"; give a @name that slimrl recipes lists, or {' or '.join(sorted(known))}"
    raise SettingsError(f"{name} is no file that comes with SlimRL{hint}")
