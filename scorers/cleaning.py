"""Foreign text on its way into a log: without keys, and without markup for the viewer.

Providers repeat keys in their errors: whoever shows or stores the text of a foreign error passes it
through `without_secrets`.
"""

import os
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

MASK = "[secret]"

_SHORTEST = 4
"""Values of keys that are shorter keep no secret, and are parts of words."""
_KEY_VARIABLE = re.compile(r"API_?KEY", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"_(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)$", re.IGNORECASE)
_NAMES = (
    r"(?:x-)?(?:[a-z]{1,10}-)?api[-_]?key|(?:subscription|access|secret|private|account)[-_]?key|"
    r"(?:access|auth|refresh|id|session|bearer|security)[-_]?token|client[-_]?secret|secret|"
    r"password|passwd|pwd|credentials?|signature"
)
_VALUE = r"[^\s\"'&,;(){}\[\]<>\\]"
_IS = r"(?:\\?[\"']?\s?[:=]\s?|\\?[\"']\s?,\s?)b?\\?[\"']?"
"""Between a name and its value: of a header, of JSON, of a list of pairs."""
_PATTERNS = [
    # User and password of an address, then what its query carries.
    (re.compile(r"(://)[^\s/@]+@"), rf"\1{MASK}@"),
    (re.compile(r"([?&;](?:key|token|sig|code|auth|[\w.-]{0,40}(?:key|token|secret|signature|"
                rf"credential|password))=){_VALUE}+", re.IGNORECASE), rf"\1{MASK}"),
    # Headers and other fields.
    (re.compile(rf"(\b(?:proxy-)?authorization{_IS})(?:\w{{1,10}}\s)?{_VALUE}+", re.IGNORECASE),
     rf"\1{MASK}"),
    (re.compile(rf"(\bbearer\s+){_VALUE}{{6,}}", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(rf"((?<![a-z])(?:{_NAMES}){_IS}){_VALUE}{{4,}}", re.IGNORECASE), rf"\1{MASK}"),
    # In prose: "Incorrect API key provided: ...".
    (re.compile(r"(\bapi[ -]?(?:key|token)(?:\s\w{1,20}){0,2}\s?[:=]\s?\\?[\"']?)"
                rf"(?!//){_VALUE}{{6,}}", re.IGNORECASE), rf"\1{MASK}"),
    # Keys that tell by their beginning what they are.
    (re.compile(r"(?<![A-Za-z0-9])(?:(?:sk|pk|rk|key|gsk|hf|r8|tgp|glpat|nvapi|pplx|xai|csk|fw|"
                r"github_pat|gh[pousr]|xox[abeoprs]|ya29|dop_v1|npm|pypi)[-_.]"
                r"(?=[\w*.-]{0,200}[\d*])[\w*.-]{6,}|(?:sk|hf)[-_][\w*-]{8,}"
                r"|(?:AIza|AKIA|ASIA)[\w-]{10,}"
                r"|eyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)?)"), MASK),
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END|\Z)", re.DOTALL), MASK),
]  # fmt: skip

_INVISIBLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+"
)
# The viewer renders explanations as markdown: what would become markup, a link, an image or a
# formula there is replaced by a character that only looks like it.
_MARKUP = str.maketrans(
    {
        "<": "‹", ">": "›", "[": "［", "]": "］", "`": "ˋ", "*": "∗", "_": "＿", "$": "＄",
        "|": "｜", "\\": "＼", "~": "～", "#": "＃", "&": "＆", "!": "！",
    }
)  # fmt: skip


def without_secrets(text: str, more: Iterable[str | None] = ()) -> str:
    """Text with keys, tokens and passwords masked.

    Args:
        text: Whatever another program said, such as a provider's error.
        more: Further secrets that are known, such as a model's own key.
    """
    known = {value for value in (*_environment(), *more) if value and len(value) >= _SHORTEST}
    forms = {form for value in known for form in (value, quote(value, safe=""), quote_plus(value))}
    # The longest first: one may be the beginning of another.
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    for pattern, masked in _PATTERNS:
        text = pattern.sub(masked, text)
    return text


def _environment() -> Iterable[str]:
    for name, value in os.environ.items():
        value = value.strip()
        if _KEY_VARIABLE.search(name) or (_SECRET_VARIABLE.search(name) and len(value) >= 8):
            yield value


def plain(text: str, limit: int = 160) -> str:
    """Text from a model or a file as one harmless line: no control marks, no markup, bounded."""
    text = _INVISIBLE.sub(" ", text[: 4 * limit]).translate(_MARKUP)
    text = " ".join(text.split()).replace("://", ": //").replace("www.", "www .")
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"
