"""The verb that lists settings."""

import json
import shutil
import textwrap

import click

from slimrl.cli.arguments import JSON
from slimrl.cli.output import out, print_json

INDENT = "    "


@click.command(name="settings", short_help="List settings with their defaults and meanings.")
@click.argument("wanted", metavar="[SECTION | WORD]", required=False)
@JSON
def list_settings(wanted: str | None, as_json: bool) -> None:
    """List every setting with its default and meaning, those of a section, or those that a word is found in.

    \b
    Examples:
      slimrl settings algorithm
      slimrl settings kl
    """
    from slimrl.config.files import describe_settings

    rows = describe_settings(wanted)
    if as_json:
        print_json(rows)
        return
    width = shutil.get_terminal_size().columns
    for row in rows:
        head = f"{row['key']} = {json.dumps(row['default'])}  ({row['type']})"
        out(_wrapped(head, width))
        out(_wrapped(INDENT + row["meaning"], width))


def _wrapped(text: str, width: int) -> str:
    """The text as lines of at most `width` characters, of which all but the first are indented."""
    return textwrap.fill(text, width, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)
