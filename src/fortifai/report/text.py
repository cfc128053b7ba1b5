"""Text that a model or a stranger wrote, made safe to look at."""

from __future__ import annotations

import re

DASH, TIMES, MINUS = "\u2013", "\u00d7", "\u2212"
"""Signs of print that look like others in source code."""

# Controls, and characters that reorder or hide what stands around them (bidi controls, byte order
# marks, tags, interlinear marks, lone surrogates): shown, never obeyed. Tab and newline stay.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


def neutral(text: str) -> str:
    """`text` with control and direction characters replaced by a visible sign."""

    def sign(found: re.Match[str]) -> str:
        code = ord(found.group())
        return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"

    return _UNSAFE.sub(sign, text)
