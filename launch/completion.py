"""Shell completion of verbs, groups, options, keys and values; loads neither Hydra nor torch, so that it is quick."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from fm.config import registry
from fm.config.errors import UserError
from fm.config.root import JOBS, filled_keys, group_options

BASH = r"""_fm() {
    local line="${COMP_LINE:0:$COMP_POINT}" current prefix="" word IFS=$'\n'
    current="${line##* }"
    # Bash hands back only what follows the last = where it splits words there.
    if [[ "$COMP_WORDBREAKS" == *=* && "$current" == *=* ]]; then prefix="${current%=*}="; fi
    COMPREPLY=()
    for word in $(fm _complete "$line" 2>/dev/null); do
        [[ "$word" == *[=.] ]] || word="$word "
        COMPREPLY+=("${word#"$prefix"}")
    done
}
complete -o nospace -o default -F _fm fm"""

ZSH = r"""_fm() {
    local -a found
    found=("${(@f)$(fm _complete "$LBUFFER" 2>/dev/null)}")
    found=(${found:#})
    if (( $#found )); then
        compadd -Q -S '' -- $found
    else
        compset -P '*='
        _files
    fi
}
compdef _fm fm"""


def script(words: Sequence[str]) -> str:
    """The completion script of a shell.

    Raises:
        UserError: no shell is named, or one without completion.
    """
    shells = {"bash": BASH, "zsh": ZSH}
    name = words[0] if words else ""
    if len(words) != 1 or name not in shells:
        raise UserError(f"fm completion {name}: {registry.hint(name, shells)}")
    return shells[name]


def complete(line: str, verbs: Sequence[str]) -> list[str]:
    """Whole words that may stand where the cursor is.

    Args:
        line: the command line up to the cursor, beginning with ``fm``.
        verbs: the verbs that exist.
    """
    *before, current = line.split(" ")[1:] or [""]
    words = [word for word in before if word]
    for length in (2, 1):
        if (verb := " ".join(words[:length])) in JOBS and len(words) >= length:
            return [word for word in _after_verb(verb, current) if word.startswith(current)]
    if words[:1] == ["completion"]:
        return [shell for shell in ("bash", "zsh") if shell.startswith(current)]
    if words:
        return [v.split()[1] for v in verbs if v.split()[:-1] == words and v.split()[1].startswith(current)]
    firsts = [*dict.fromkeys(verb.split()[0] for verb in verbs), "completion", "--help", "--version"]
    return [word for word in firsts if word.startswith(current)]


def _after_verb(verb: str, current: str) -> Iterable[str]:
    leaves, groups = dict(registry.walk(JOBS[verb])), group_options(verb)
    key, equals, _ = current.partition("=")
    if equals and key in groups:
        return [f"{key}={option}" for option in groups[key]]
    if equals and key in leaves:
        return [f"{key}={value}" for value in _values(leaves[key])]
    if current.startswith("-"):
        return ["--help", "--cfg job", "--config-dir=", "-m"]
    names = [name for name in leaves if name not in filled_keys(JOBS[verb])]
    return [*(f"{name}=" for name in groups), *_one_level(names, current)]


def _one_level(names: Iterable[str], current: str) -> list[str]:
    """Keys of the section being typed; other sections appear as ``section.`` only, so that a list stays short."""
    depth = current.count(".") + 1
    found = (name.split(".") for name in names)
    return list(dict.fromkeys(".".join(parts[:depth]) + ("." if len(parts) > depth else "=") for parts in found))


def _values(key: registry.Key) -> list[str]:
    bare, optional = registry.unwrap_optional(key.type)
    words = ["null"] if optional else []
    if bare is bool:
        return ["true", "false", *words]
    if isinstance(bare, type) and issubclass(bare, Enum):
        return [*(str(member.value) for member in bare), *words]
    return []
