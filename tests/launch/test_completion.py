from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.completion import BASH, complete, script

VERBS = ["phantom", "prepare", "pretrain", "runs list"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fm p", ["phantom", "prepare", "pretrain"]),
        ("fm runs ", ["list"]),
        ("fm completion b", ["bash"]),
        ("fm phantom s", ["studies=", "seed="]),
        ("fm pretrain max", ["max_steps="]),
        ("fm pretrain trainer.st", ["trainer.stage="]),
        ("fm pretrain trainer.precision=", [f"trainer.precision={word}" for word in ("auto", "fp32", "bf16", "fp16")]),
        ("fm pretrain model.qk_norm=f", ["model.qk_norm=false"]),
        ("fm pretrain model=t", ["model=tiny"]),
        ("fm pretrain seed=1 track", ["tracker=", "tracker."]),
        ("fm demo data.u", []),
        ("fm nonsense x", []),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    assert complete(line, VERBS) == words


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "replies"),
    [("fm pret", "[pretrain ]"), ("fm pretrain model=t", "[tiny ]"), ("fm pretrain max", "[max_steps=]")],
)
def test_bash_gets_what_follows_its_own_word_break(line: str, replies: str) -> None:
    fm = Path(sys.executable).with_name("fm")
    driver = f"""
fm() {{ {fm} "$@"; }}
{BASH}
COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDBREAKS=' ='
_fm; printf '[%s]' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", driver], capture_output=True, text=True, check=True)
    assert done.stdout == replies


def test_each_shell_has_its_own_script() -> None:
    assert "complete -o nospace" in script(["bash"])
    assert "compdef _fm fm" in script(["zsh"])
