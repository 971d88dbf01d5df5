"""The verb that talks to a model: chat."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import click

from slimrl.cli.arguments import SETTINGS, asking_settings, fetched
from slimrl.cli.output import open_display, out, out_is_terminal
from slimrl.errors import DataError, SettingsError

HELP = "/reset forgets the conversation, /quit ends it; Ctrl-C ends a reply"
COMMANDS = ("/reset", "/quit", "/help")


@click.command(short_help="Talk to a model or to that of a run.")
@click.argument("model_or_run", callback=fetched)
@SETTINGS
@click.option("--greedy", is_flag=True, help="The most probable tokens, nothing drawn.")
def chat(model_or_run: str, settings: Sequence[str], greedy: bool) -> None:
    """Talk to a model, with the instruction, template and sampling of its run; replies go to stdout as they are written.

    Every line is a turn; where stdin is no terminal, so is every line of it.

    \b
    Examples:
      slimrl chat runs/mine
      slimrl chat ./my-model rollout.temperature=0.7 rollout.max_new_tokens=200 task.instruction=
      printf 'What is 3+4?\\n' | slimrl chat runs/mine --greedy
    """
    config = asking_settings(model_or_run, settings)
    open_display(config)
    from slimrl.machine.threads import settle_threads
    from slimrl.preflight.fitting import budget_behind
    from slimrl.preflight.prompting import prepare_model
    from slimrl.rollout.dialogue import Dialogue
    from slimrl.thinking import committed

    settle_threads()
    policy, prompter, instruction = prepare_model(config)
    dialogue = Dialogue(
        policy,
        prompter,
        instruction,
        budget=lambda prompt: budget_behind(config, policy, prompt=prompt),
        temperature=0.0 if greedy else config.rollout.temperature,
        seed=config.seed,
        kept=committed,
    )
    terminal = sys.stdin.isatty()
    if terminal:
        click.echo(HELP, err=True)
    for line in _lines(terminal):
        if line in COMMANDS:
            if line == "/quit":
                return
            if line == "/reset":
                dialogue.reset()
            click.echo("the conversation is forgotten" if line == "/reset" else HELP, err=True)
            continue
        _answer(partial(dialogue.ask, line), terminal)


def _lines(terminal: bool) -> Iterator[str]:
    """The turns of the person, without empty ones."""
    if not terminal and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a bad byte spoils its own line alone
    while True:
        try:
            if terminal:
                click.echo("> ", nl=False, err=True)
            line = input() if terminal else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            click.echo("", err=True)
            return
        if not terminal and not line:
            return
        if any("\ud800" <= c <= "\udfff" for c in line):
            click.echo("error: that is not UTF-8 text", err=True)
        elif line.strip():
            yield line.strip()


def _answer(ask: Callable[[Callable[[str], None]], str], terminal: bool) -> None:
    """Show a reply while it is written; Ctrl-C ends it, and what cannot be asked is said."""
    from slimrl.text import visible

    shown = out_is_terminal()
    try:
        cut = ask(lambda text: out(visible(text) if shown else text, newline=False))
        out("")
        if cut:
            click.echo(f"({cut})", err=True)
    except KeyboardInterrupt:
        out("")
        click.echo("(interrupted)", err=True)
        if not terminal:
            raise
    except (DataError, SettingsError) as error:
        click.echo(f"error: {error}", err=True)
