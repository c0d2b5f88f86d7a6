"""Completion scripts for the shells, written from the table of verbs: flags and names are offered, else files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lavis_ext.errors import UsageError, nearest

SHELLS = ("bash", "zsh", "fish")
_BASH = """\
_lavis_ext() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words
    if [ "$COMP_CWORD" -eq 1 ]; then words="{verbs}"; else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac; fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _lavis_ext lavis-ext
"""


def completion_script(
    shell: str, flags: Mapping[str, Sequence[str]], names: Sequence[str], named: Sequence[str]
) -> str:
    """The script for one shell; `flags` are those of each verb, `named` the verbs that take the `names` of data sets.

    Raises UsageError for a shell that is not known.
    """
    if shell not in SHELLS:
        raise UsageError(shell, "no such shell", nearest(shell, SHELLS))
    words = {verb: [*given, *(names if verb in named else [])] for verb, given in flags.items()}
    if shell == "fish":
        return _fish(words)
    cases = "\n".join(f'        {verb}) words="{" ".join(given)}" ;;' for verb, given in words.items())
    script = _BASH.format(verbs=" ".join(words), cases=cases)
    return script if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{script}"


def _fish(words: Mapping[str, Sequence[str]]) -> str:
    lines = [f"complete -c lavis-ext -n __fish_use_subcommand -f -a '{' '.join(words)}'"]
    lines += [
        f"complete -c lavis-ext -n '__fish_seen_subcommand_from {verb}' -a '{' '.join(given)}'"
        for verb, given in words.items()
    ]
    return "\n".join(lines) + "\n"
