"""Completion in bash, which cuts words also at = and @: a setting, or a name with @, is put together again here.

click's own script hands over bash's words, so that `algorithm.kl_place=lo` would come as three, and adds a blank to everything.
"""

from __future__ import annotations

import os

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

SCRIPT = """\
%(complete_func)s() {
    local answer
    COMPREPLY=()
    while IFS= read -r answer; do
        case ${answer%%%%,*} in
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
            open) compopt -o nospace; COMPREPLY+=("${answer#*,}") ;;
            plain) COMPREPLY+=("${answer#*,}") ;;
        esac
    done < <(%(complete_var)s=bash_complete SLIMRL_LINE="${COMP_LINE:0:COMP_POINT}" SLIMRL_WORD="$2" "$1" 2> /dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s 2> /dev/null || complete -F %(complete_func)s %(prog_name)s
"""
CURSOR = "\0"


@add_completion_class
class Bash(ShellComplete):
    """Words of the line up to the cursor, cut at blanks alone; replies without what bash holds for earlier words."""

    name = "bash"
    source_template = SCRIPT

    def get_completion_args(self) -> tuple[list[str], str]:
        """The arguments before the one at the cursor, and that one so far."""
        _, *arguments, last = ["", *split_arg_string(os.environ.get("SLIMRL_LINE", "") + CURSOR)]
        return arguments[1:], last.removesuffix(CURSOR)

    def format_completion(self, item: CompletionItem) -> str:
        """The kind of a completion, and its text behind the part of the word that bash holds for an earlier one.

        What ends with = goes on, so it gets no blank.
        """
        _, whole = self.get_completion_args()
        own = os.environ.get("SLIMRL_WORD", "").removeprefix("=")
        before = len(whole) - len(own) if whole.endswith(own) else 0
        kind = "open" if item.type == "plain" and item.value.endswith("=") else item.type
        return f"{kind},{item.value[before:]}"
