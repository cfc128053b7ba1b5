"""How large a module, a function and a list of parameters may grow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fortifai

SOURCE = Path(fortifai.__file__).parent
MODULE_LINES, CODE_LINES, PARAMETERS = 450, 60, 8

KNOWN = {
    # a kernel is given its pointers, strides and sizes one by one
    "losses/triton_softmax.py _softmax_kernel",
    "losses/triton_softmax.py _gaps_kernel",
    "losses/linear.py linear_loss",
    "cli/audit.py _model",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def is_command(function: Function) -> bool:
    """Whether it is a command of the command line, whose parameters are its options."""
    told = [ast.unparse(arg.annotation) for arg in function.args.args if arg.annotation]
    return any(annotation.startswith("Annotated[") for annotation in told)


def parameters(function: Function) -> int:
    told = function.args
    named = [a.arg for a in (*told.posonlyargs, *told.args, *told.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")]) + sum(
        star is not None for star in (told.vararg, told.kwarg)
    )


def code_lines(function: Function, lines: list[str]) -> int:
    """Lines of code, without the docstring; of a command those of its body."""
    docstring = ast.get_docstring(function, clean=False) is not None
    body = function.body[1:] if docstring else function.body
    code = [*range(body[0].lineno if body else 0, (function.end_lineno or 0) + 1)] if body else []
    if not is_command(function):
        code += range(function.lineno, function.body[0].lineno)
    texts = [lines[i - 1].strip() for i in code]
    return len([text for text in texts if text and not text.startswith("#")])


def too_large(path: Path) -> Iterator[str]:
    text = path.read_text("utf-8")
    lines, name = text.splitlines(), path.relative_to(SOURCE).as_posix()
    if len(lines) > MODULE_LINES:
        yield f"{name} has {len(lines)} lines"
    for function in functions(ast.parse(text)):
        many = 0 if is_command(function) else parameters(function)
        if many > PARAMETERS or code_lines(function, lines) > CODE_LINES:
            yield f"{name} {function.name}"


def test_nothing_outgrows_its_limit():
    assert {each for path in SOURCE.rglob("*.py") for each in too_large(path)} == KNOWN


@pytest.mark.parametrize(
    ("code", "lines", "many"),
    [
        ("def f():\n    pass\n", 2, 0),
        (
            'def f(self, a, *b, c, **d):\n    """One.\n\n    Two.\n    """\n\n    # no\n    a\n',
            2,
            4,
        ),
        ("def f(\n    a: Annotated[int, 1],\n    b: int,\n):\n    a\n", 1, 2),
    ],
)
def test_what_counts(code, lines, many):
    (function,) = functions(ast.parse(code))
    assert code_lines(function, code.splitlines()) == lines
    assert parameters(function) == many
