"""What models write when they start over, as patterns for the beginning of a sentence.

A strong pattern is a restart by itself. A weak one also occurs in plain how-to text ("This is
incorrect.", "Hold on."), so it counts only beside another. All are matched against lower-case text
with straight apostrophes, and only where a sentence begins: "..., and that's not right, and ..."
is drift, not a restart.
"""

import re

from esr_eval.scorers import patterns_english, patterns_general, patterns_other

_MODULES = (patterns_english, patterns_general, patterns_other)


def _compiled(*groups: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for group in groups for pattern in group))


STRONG = _compiled(*(module.STRONG for module in _MODULES))
WEAK = _compiled(*(module.WEAK for module in _MODULES))
