"""Leave out what a response only quotes: speech, dialogue, letter templates.

A restart phrase in there is a character's or a letter's, not the model's own.
"""

import re
from bisect import bisect_right

_QUOTED = re.compile(
    r'"[^"\n]{1,400}"'
    r"|“[^”\n]{1,400}”"
    r"|„[^“”\n]{1,400}[“”]"
    r"|«[^»\n]{1,400}»"
    # Single quotes only where they cannot be an apostrophe: after a space and before a non-letter.
    r"|(?:(?<=\s)|(?<=^))['‘][^\n'‘’]{0,200}(?:['’]\w[^\n'‘’]{0,200}){0,9}['’](?!\w)"
)
_SPEAKER = re.compile(r"^[ \t*_]*([A-Z][A-Za-z.' ]{0,24}?)[*_]*:[*_]*[ \t]+\S.*$", re.MULTILINE)
_SALUTATION = re.compile(
    r"^[ \t>*]*(?:Subject:.*|(?:Dear|Hi|Hello|Hey|Liebe[rs]?|Sehr geehrte[rs]?|Estimad[oa]|Hola)\b"
    r"[^\n]{0,60},[ \t*]*)$",
    re.MULTILINE,
)
_CLOSING = re.compile(
    r"^[ \t>*]*(?:(?:Kind|Best|Warm|Kindest|Warmest) (?:regards|wishes)|Best|Regards|Sincerely"
    r"|Thanks|Thank you|Cheers|Yours\b[^\n]{0,20}|Mit freundlichen Grüßen|Viele Grüße"
    r"|Un saludo|Saludos|Atentamente)[,.!]?[ \t*]*$",
    re.MULTILINE,
)
_LONGEST_LETTER = 3000
_BLANK = "\x00"


def mask_quoted(text: str) -> str:
    """The text with quoted parts blanked out, all other characters at the same places."""
    text = _mask_letters(text)
    text = _QUOTED.sub(_blank, text)
    return _mask_dialogue(text)


def _mask_letters(text: str) -> str:
    """Blank from a salutation or subject line to the closing that follows it, if one does."""
    closings = [match.end() for match in _CLOSING.finditer(text)]
    parts: list[str] = []
    cursor = 0
    for opening in _SALUTATION.finditer(text) if closings else ():
        at = bisect_right(closings, opening.end())
        if opening.start() < cursor or at == len(closings):
            continue
        end = closings[at]
        if end - opening.end() <= _LONGEST_LETTER:
            parts += [text[cursor : opening.start()], _blanked(text[opening.start() : end])]
            cursor = end
    return "".join([*parts, text[cursor:]])


def _mask_dialogue(text: str) -> str:
    """Blank lines such as `Anna: ...`, once two speakers take turns."""
    speakers = [match[1].strip() for match in _SPEAKER.finditer(text)]
    names = (
        {name for name in speakers if speakers.count(name) > 1} if len(speakers) < 200 else set()
    )
    if not names or len(set(speakers)) < 2:
        return text
    return _SPEAKER.sub(_blank, text)


def _blank(match: re.Match[str]) -> str:
    return _blanked(match[0])


def _blanked(text: str) -> str:
    return re.sub(r"[^\n]", _BLANK, text)
