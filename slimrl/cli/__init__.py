"""The command line: its verbs, its exit codes, and mistakes as one sentence each.

Human text goes to stderr, data to stdout. Torch is imported only inside a verb. No other room imports this one.

Exit codes: 0 fine, 2 usage or settings, 3 data or checkpoint invalid, 4 diverged, 74 the disk is full or cannot be written,
75 told to stop (run again with --resume), 130 interrupted.
"""

import contextlib
import sys

import click

from slimrl.cli import bash as bash
from slimrl.cli.away import export
from slimrl.cli.beginnings import from_trl, from_verl, new, recipes
from slimrl.cli.chat import chat
from slimrl.cli.compare import compare
from slimrl.cli.difficulty import difficulty
from slimrl.cli.listing import list_runs
from slimrl.cli.measure import doctor, evaluate, grade, list_settings, sample
from slimrl.cli.output import out
from slimrl.cli.runs import sft, train
from slimrl.cli.show import show
from slimrl.cli.studies import study
from slimrl.errors import UNWRITABLE, DataError, DiskError, SettingsError, SlimError
from slimrl.machine.signals import INTERRUPTED, Stopped


@click.group(
    commands=[
        *(new, train, sft, evaluate, compare, difficulty, sample, chat, grade, doctor, export),
        *(study, list_settings, recipes, list_runs, show, from_trl, from_verl),
    ],
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="slimrl")
def cli() -> None:
    """Reinforcement learning with verifiable rewards for small language models.

    Settings are YAML files merged left to right, then section.key=value; `slimrl settings` lists them. Paths in a file are
    relative to that file, those of section.key=value to the working directory.
    `slimrl train` without arguments trains the built-in model on the built-in task, on this CPU.
    """


def main() -> None:
    """Run a verb; a user's mistake is one sentence on stderr and an exit code, never a traceback."""
    try:
        cli.main(prog_name="slimrl", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        with contextlib.suppress(click.exceptions.Exit):
            out(error.ctx.get_help() if error.ctx else str(error))
    except click.NoSuchOption as error:
        _end(_no_such_option(error), SettingsError.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "slimrl"
        _end(f"{error.format_message().rstrip('.')} ({command} --help shows how)", SettingsError.exit_code)
    except SlimError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        code = DiskError.exit_code if error.errno in UNWRITABLE else DataError.exit_code
        _end(f"{error.filename or 'the system'}: {error.strerror or error}", code)
    except Stopped as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(stopped.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _end("interrupted", INTERRUPTED)


def _no_such_option(error: click.NoSuchOption) -> str:
    """The sentence on an unknown option, which is often a setting spelled as other tools spell their options."""
    from slimrl.config.mistakes import close_names, known_keys, nearest

    command = error.ctx.command_path if error.ctx else "slimrl"
    name = error.option_name.lstrip("-").replace("-", "_")
    options = [o for param in error.ctx.command.params for o in param.opts] if error.ctx else []
    hint = nearest(error.option_name, [option for option in options if option.startswith("--")])
    if not hint:
        from slimrl.config.schema import SftRunConfig, TrainConfig

        settings = {*known_keys(TrainConfig), *known_keys(SftRunConfig)}
        hint = f"; did you mean {name}?" if name in settings else close_names(name)
        hint = f"{hint.removesuffix('?')}? Settings are written KEY=value" if hint.endswith("?") else hint
    return f"No such option: {error.option_name} ({command} --help shows how){hint}"


def _end(sentence: str, code: int) -> None:
    from slimrl.text import visible

    click.echo(f"error: {visible(' '.join(sentence.split()))}", err=True)
    sys.exit(code)
