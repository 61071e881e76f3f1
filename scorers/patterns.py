"""The grammar of turning away from what was just written: cues, by kind, with weights.

A cue is a short pattern over lower-case text with straight apostrophes. `phrases.py` adds up the
cues of different kinds that stand close together; at `ENOUGH` they are a restart. So no list of
whole phrases is needed: "the above" (what is meant) and "makes no sense" (what is wrong with it),
"not" and "what you asked", an excuse and a slip in the first person, each make one.

Most patterns may stand anywhere in a run-on sentence. Gaps are bounded and never cross the end of
a sentence, so that time stays linear in the text. Weights were set by hand, on the "dev" examples
and on ordinary answers only.
"""

# ruff: noqa: E501 (a pattern that is cut in two is harder to read)

import re
from typing import NamedTuple

ENOUGH = 4
"""Sum of weights that makes a restart: one unmistakable cue, or several that agree."""


class Cue(NamedTuple):
    """One pattern: its kind (each counts once in a group), weight, words, and their language."""

    kind: str
    weight: int
    pattern: re.Pattern[str]
    english: bool


_IN = r"[^.!?\n:]"
"""A character inside a sentence."""
_BEGIN = (
    r"(?:^|[.!?:;,(—–…\n>#-]\s{0,3}"
    r"|\b(?:but|and|so|well|okay|ok|yet|however|though|although|because|only|again|actually|sorry"
    r"|wait|no|oh|now|then|seriously|still|that) )"
)
"""Where a clause begins: at a mark, a line, or a word that joins clauses."""
_START = r"(?:^|[\x00.!?(—–…\n>#-]\s{0,3})"
"""Where a sentence begins."""
_ADV = (
    r"(?: (?:really|quite|at all|all|completely|totally|just|also|still|even|actually|exactly"
    r"|directly|properly|clearly|entirely|so|very|rather|simply|either|again|a bit|a little"
    r"|perhaps|probably|maybe|truly|somehow|now|only|mostly|too|way|in any way)){0,4}"
)
_THIS = r"(?:this|that|these|those|which|none of (?:it|this|that|these|those|which))"
_IS_NOT = r"(?:(?: is| was| are| were|'s|'re)(?: \w+)? not|(?: is| was| are| were)n't)\b"
_DO_NOT = (
    r"(?:(?:do|does|did|will|would|can|could|might|may|has|have|had|should)(?: \w+)? not|won't"
    r"|can't|cannot|(?:do|does|did|would|could|has|have|had|should)n't)\b"
)

# What was just written, and what is wrong with it.
_TEXT = (
    r"(?:text|answer|response|reply|passage|paragraph|explanation|version|attempt|draft|section"
    r"|statement|description|message|output|part|half|bit|list|lines?|sentences?|guide|equation|paragraphs"
    r"|words|content|information|story|tangent|answers|instructions|writing)"
)
_ABOVE = (
    r"(?:(?:the|all of the|everything|most of the|all the) (?:above|foregoing|preceding)\b"
    rf"(?: {_TEXT}\b)?"
    rf"|(?:the|this|that|my|these|those) (?:\w+ )?{_TEXT} (?:above|before (?:this|that)|(?:given )?so far"
    r"|i (?:just |have )?(?:wrote|gave|written|given|put))\b"
    r"|(?:the|this) (?:answer|response|reply|explanation) (?:provided|given)\b"
    r"|(?:the|my|that|this) (?:previous|last|prior|preceding|earlier|first|initial) (?:few )?"
    rf"(?:{_TEXT}|one)\b"
    r"|what (?:i|i've|i have|was|is|has been)(?: just)? (?:wrote|written|said|put|gave|given"
    r"|described|typed|told you)\b"
    r"|(?:everything|all) (?:so far|up to here|i (?:just |have )?(?:said|wrote|written))\b"
    r"|my (?:\w+ )?(?:answer|response|reply|explanation)\b)"
)
_THIS_TEXT = r"(?:this|the|that) (?:\w+ )?(?:response|reply|answer|passage|text|explanation|output|author|writer)\b"
_BAD = (
    r"(?:wrong|incorrect|inaccurate|irrelevant|unrelated|off[- ](?:topic|track|the mark|point"
    r"|course|base)|beside the point|nonsens\w*|gibberish|jumbled?|garbled|incoherent|confus\w+"
    r"|mixed[- ]up|unclear|a mess|muddled?|unhelpful|useless|absurd|ridiculous|silly|weird|odd"
    r"|strange|a joke|a tangent|out of place|misleading|mistaken|not right|rambling|hard to follow"
    r"|inadequate|unsatisfactory|disorgani[sz]ed|disjointed|messy|inappropriate|unfinished"
    r"|poor(?:ly)?|a mistake|an error|off)\b"
)
_FAILS = (
    r"(?:(?:nothing to do with|(?:makes?|made) (?:no|little) sense|no (?:clear|real|actual) \w+"
    r"|lost (?:sight|track|its way)|mistook|mixed (?:up|together)|reads (?:as if|like)|more of an?"
    r"|little (?:in it|they|about|to do|use)|fail(?:s|ed)? to|skip(?:s|ped)|drift\w*|stray\w*"
    r"|wander\w*|rambl\w*|belongs? (?:to|in) an?other|too busy with|miss(?:es|ed) the (?:point|mark)"
    r"|(?:of|is|be) (?:no|not much|little) (?:help|use)|(?:of|much|any) help)\b)"
)

# What was wanted.
_TASK = (
    r"(?:question|task|prompt|request|topic|query|assignment|subject|instructions?|matter|point)\b"
)
_ASKED = (
    r"(?:ask|asked|asking|wanted|requested|request|needed|looking for|after|hoping for|hoped for"
    r"|expecting|expected|had in mind|intended|here for|came for)\b"
)

# The first person: what it will do, and what it did.
_LET_ME = (
    r"\b(?:let me|lemme|let us|let's|allow me to|i'?ll|i will|i shall|i'?d (?:better|like to)"
    r"|i would like to|i want to|i need to|i should|i must|i have to|i'm going to|i am going to"
    r"|we should|we need to|i'd rather)"
    r"(?: (?:just|please|now|quickly|actually|really|properly|briefly|simply|instead|try to"
    r"|try and|go and|try|also|then)){0,3} "
)
_ANEW = (
    r"(?:over|again|anew|afresh|fresh|once more|one more time|properly|from (?:scratch|step one"
    r"|the (?:top|start|beginning)|the very (?:start|beginning)))\b"
)
_NO_EXAMPLE = (
    rf"(?!{_IN}{{0,60}}\b(?:(?:another|new|different|second|more|an?) "
    r"(?:example|problem|set|number|case|exercise|value|pair)|with the numbers)s?\b)"
)
_SLIPPED = (
    r"(?:drift\w*|stray\w*|slipp?(?:ed|ing)\b(?! (?:on|off))|wandered|digress\w*|rambl(?:ed|ing)"
    r"|veer\w*|derail\w*|confus(?:ed|ing)\b(?! by)|mistook|mistaken|mixed up|misread|misunder\w*"
    r"|mix(?:ed|ing) (?:up|this|that|things|two)|misspoke|misinterpret\w*|side-?track\w*"
    r"|distracted|carried away|lost (?:the thread|my (?:\w+ )?(?:way|thread|place|train)"
    r"|track(?! of time)|sight)|off[- ](?:track|topic|course|point)|on a tangent|astray"
    r"|got (?:it|that|this|all of that|everything) (?:all )?wrong|was wrong (?:about (?:this|that|it|the)|there|above)\b"
    r"|messed (?:that|this|it|up)|(?:went|gone) off|regret (?:bringing|mentioning|writing|the (?:above|last))"
    r"|correct myself"
    r"|not answering|(?:haven't|didn't|have not|did not) (?:actually )?answer"
    r"|made (?:an?|another|the same|some)(?: \w+)? (?:mistake|error|mess)s?\b)"
    r"(?! (?:once|when|last year|years|in my (?:\w+ )?(?:resume|career|life|youth|paper|job)))"
)
_VERSION = (
    r"(?:version|answer|response|reply|explanation|attempt|draft|guide|overview|one|replacement"
    r"|text|try|take|go|approach)\b"
)
_BETTER = (
    r"(?:better|revised|corrected|correct|improved|proper|cleaner?|clearer?|new|updated|second"
    r"|third|right|real|actual|more \w+|rewritten|fixed|well[- ]\w+|structured|orderly|different"
    r"|helpful|useful|on-topic|accurate)"
)

_ENGLISH: dict[str, list[tuple[int, str]]] = {
    # This is not what you asked for / you wanted a party / your question was about units.
    "wanted": [
        (4, r"\bwhat (?:does|do|did|has|have) (?:this|that|it|any of (?:this|that)|all (?:of )?(?:this|that)|the \w+)(?: have| got)? to do with\b"),
        (4, r"\b(?:i (?:think|take it|guess|suppose|believe|assume)|surely|presumably) you (?:meant|wanted|were asking|asked)\b"),
        (3, r"\byou (?:came|are|were) here (?:for|to)\b"),
        (4, r"\b(?:but|however|yet|still)[, ]{1,2}(?:the|your) (?:\w+ )?(?:question|task|prompt|topic) (?:was|is) (?:about|how|on)\b|\bthe (?:question|task|prompt)[, ]{1,2}(?:however|though)[, ]{1,2}(?:was|is)\b"),
        (3, r"\b(?:when|where|while) i (?:should|was supposed|was meant|ought)\b"),
        (2, r"\bwhat (?:is important|matters|you need to know|counts)(?: here)? is\b"),
        (
            4,
            rf"\b(?:is|was|are|were|'s)?(?: |\b)?(?:not|isn't|wasn't|aren't|weren't|hardly|never)(?: be)?{_ADV}"
            rf"(?: (?:about|on|in|to|for|of|answering|addressing))? (?:what|(?:the|an?) [\w' ]{{2,30}}?"
            r"|something|anything|where|how)(?: it (?:is|was)(?: that)?)?"
            r"(?: (?:that |which )?(?:you|the user|i|we)\b(?:'d|'re|'ve| had| have| are| were| was| been"
            rf"| actually| originally| really| just| first){{0,3}}| was| is) {_ASKED}",
        ),
        (
            3,
            rf"\b(?:{_THIS}|it)(?: again)?{_IS_NOT}{_ADV} (?:what|the \w+(?: that)?|how|where) (?:you|we|i)"
            r"(?:'re| are)? (?:want|need|asked|looking for|after)\b",
        ),
        (
            4,
            r"\b(?:(?:was|were|is)(?: not|n't)|not|never|nobody|no one|no-one)(?: \w+)? asked"
            r"(?: for| about| here| either| of me)?\b(?! (?:you|to|if|whether|me))",
        ),
        (
            4,
            r"\b(?:you (?:did not|didn't|never|don't|do not) (?:\w+ )?(?:ask(?:ed)?|want|request(?:ed)?)"
            r"|(?:nobody|no one|no-one) (?:\w+ )?(?:asked|wanted)) (?:to (?:know|hear|read)|about|for)\b",
        ),
        (
            4,
            rf"(?<!\bi )\b(?:{_DO_NOT}|fails? to|hardly)(?:{_ADV} (?:seem|appear) to)?{_ADV} (?:fit|answer"
            r"|address|match|suit|belong|relate|respond|meet|concern|apply|help|correspond|tackle"
            rf"|cover|deal){_ADV}(?: (?:in|into|to|with|for|under|here))?"
            rf" (?:(?:your|this) (?:\w+ )?{_TASK}(?! (?:of|is|at))|what (?:you|was|i was))",
        ),
        (
            3,
            rf"(?<!\bi )\b(?:{_DO_NOT}|fails? to|hardly)(?:{_ADV} (?:seem|appear) to)?{_ADV} (?:fit|answer"
            r"|address|match|suit|belong|relate|respond|correspond)(?: (?:in|into|to|with|for|under))?"
            rf" (?:the|my) (?:\w+ )?{_TASK}(?! (?:of|is|at))",
        ),
        (
            4,
            r"\b(?:not|n't|no|hardly|nothing|little|without|un(?:related|connected))\b[^.!?\n]{0,25}?\b(?:relat\w+|relevan\w+|connect\w+|pertain\w*"
            rf"|concern\w*|bearing|to do|of use|useful|helpful|respons\w+|in line)\b[^.!?\n]{{0,12}}? (?:your|the|this) (?:\w+ )?{_TASK}(?! (?:of|at))",
        ),
        (4, rf"\b(?:miss(?:ed|ing)|forg[eo]t\w*|ignor(?:ed|ing)|neglect(?:ed|ing)|dodg(?:ed|ing)|abandon(?:ed|ing)|left|misread|misunderstood|not answering|answered) (?:the|your|my)(?: actual| original| whole)? {_TASK}(?= ?(?:$|[.,!?:;—–-]|entirely|completely|altogether|so|and|again|here))"),
        (3, r"\bthe (?:user|person asking|asker|prompt|questioner) (?:had |actually |really |has )?(?:asked|wanted|requested|asks for|needed|expected)\b"),
        (4, r"\bnot (?:\w+ )?(?:the|an) (?:answer|response|reply) to (?:the|your|this)\b"),
        (
            3,
            rf"\b(?:{_THIS}|it|they|above|answer|reply|response|text|paragraph)(?: \w+)? (?:has|have|had|having)?"
            r"(?: (?:absolutely|really|got))? ?(?:nothing|n't anything|little|zero) (?:whatsoever )?to do with\b",
        ),
        (4, r"\byou(?: were|'re| are)(?: \w+)? asking (?:about|for|me|how|not)\b(?<!you're asking about)"),
        (
            3,
            r"(?:(?<=[.!?:\n] )|(?<=\n)|\b(?:but|and|yet|when|though|since|while|sorry|pity)(?: yet)? )"
            r"you (?:had |have |'ve )?(?:just |actually |originally |really |only )?"
            r"(?:wanted|asked|requested)\b(?! (?:to be|by|your|them|him|her|if))",
        ),
        (
            4,
            r"\b(?:your|my)(?: \w+)? (?:question|task|prompt|request) (?:was|were)(?: \w+)?"
            r" (?:about|how|to|for|on|all)\b",
        ),
        (2, r"\b(?:the|your)(?: \w+)? (?:question|task|prompt|topic|subject)(?: here)? (?:is|asks|asked|was)(?: \w+)? (?:about|how|for|on)\b"),
        (3, r"\bi(?:'m| am| was|'ve been| have been| had been)(?: \w+)? (?:asked|supposed|meant|told) (?:to|for|about|on)\b"),
        (2, r"\b(?:supposed|meant) to (?:be|answer|write|explain|talk|say|do|tell|help)\b"),
        (3, r"\bwhen it (?:should|ought)\b|\binstead of (?:answering|what (?:you|was))|\bi should (?:be|have been) \w+ing\b"),
        (2, r"\bwhat (?:you(?:'re| are| were)?|was|is)(?: actually| really)? (?:wanted|asked|asking|after|looking for)\b|\bwhen you (?:want|asked|wanted)\b|\bwhat you (?:actually|really) (?:need|want)\b"),
    ],
    # The text above is a jumble / none of that was relevant / that is nonsense.
    "verdict": [
        (4, r"\bnot (?:a|an|much of an?|really an?|exactly an?)(?: \w+)? (?:answer|response|explanation|guide|reply)\b(?! (?:to every|for every))"),
        (4, rf"\b{_THIS_TEXT}(?: above| so far)? (?:is|was|has|needs|lacks|got|went|seems|contains)(?: \w+)? (?:incomplete|mostly|cut off|mixed|all about|a do-?over|to be (?:re\w+|redone)|about the wrong|rather about|only about|astray|lost|off)\b"),
        (3, r"\b(?:this|that|it|things|the (?:text|answer|response|above))(?:'s| has| have| had| is)(?: \w+)? (?:drifted|strayed|wandered|gone off|gotten|got off|veered|derailed|turned into)\b"),
        (3, rf"{_START}(?:this|that|it)(?:'s| is| was) (?:all|completely|totally|entirely|utterly|plainly) (?:wrong|incorrect|off)\b"),
        (3, r"\b(?:this|that|which|it)(?: is|'s| was) not (?:really )?(?:important|relevant|needed|of interest|the point|our topic|related|the topic|the subject)\b"),
        (4, rf"\b{_ABOVE}{_IN}{{0,80}}?\b(?:{_BAD}|{_FAILS})"),
        (
            4,
            r"\b(?:the|this|that|my) (?:\w+ )?(?:(?:answer|response|text|reply|passage|paragraph|explanation"
            r"|output) (?:above|before (?:this|that)|so far)|(?:previous|last|preceding|earlier) (?:answer"
            rf"|response|text|reply|passage|paragraph|explanation)|above (?:answer|response|text|reply)){_IN}{{0,40}}?"
            r"(?:n't|\bnot)\b(?! (?:exhaustive|complete|necessarily|only|all|just|always))",
        ),
        (2, rf"\b{_ABOVE}{_IN}{{0,40}}?(?:n't|\bnot)\b(?! (?:exhaustive|complete|necessarily|only|all|just|optional))"),
        (4, r"\b(?:think|seems|appears|looks like|believe|afraid|say)(?: that)? there(?: \w+)? (?:is|was|been|be)(?: been)? (?:an?|some)(?: \w+)? (?:mix-?up|confusion|misunderstanding|mistake|error)\b"),
        (3, r"\bthere(?: \w+)?(?: \w+)? (?:is|was|been|be) (?:an?|some)(?: \w+)? (?:mix-?up|confusion|misunderstanding|(?:mistake|error) in (?:this|my|the) (?:\w+ )?(?:answer|response|text|reply))\b"),
        (
            4,
            rf"\b(?:none|nothing|little|not much|no part|not a word) (?:of|in) (?:that|this|it|what|{_ABOVE})"
            rf"{_IN}{{0,40}}?\b(?:relevant|real|right|true|helps?|helped|answers?|makes?|belongs?|applies|sense|useful|to do with)\b",
        ),
        (4, rf"\b{_THIS_TEXT}{_IN}{{0,60}}?\b(?:{_FAILS}|incoherent|jumbled?|garbled|confus\w+|off[- ]topic|nonsens\w*|rambl\w*|(?:is|was) off)\b"),
        (3, rf"\b{_THIS_TEXT}{_IN}{{0,30}}?(?:n't|\bnot)\b (?:\w+ )?(?:seem|appear|answer|address|help|make|provide|give|fit|clear|relevant|helpful|useful)\b"),
        (3, rf"\b(?:it|there|this|that)(?: \w+)? (?:seems?|appears?|looks?)\b{_IN}{{0,80}}?\b(?:jumbled?|garbled|incoherent|mixed up|mix-up|confusion|nonsens\w*|gibberish|off[- ]topic|off[- ]track|confused|mess)\b"),
        (4, rf"\b(?:this|that)(?: is| was)(?: an?)?{_ADV} (?!not right){_BAD} {_TEXT}\b"),
        (4, r"\b(?:this|that|these|those|all (?:of )?(?:this|that))(?:'s| is| was| are| were|,)(?: \w+){0,2} (?:nonsense|gibberish|off[- ]topic|off[- ]track|off the mark|beside the point|not it|getting off|a tangent)\b"),
        (3, r"\b(?:this|that|these|those|all (?:of )?(?:this|that))(?:'s| is| was| are| were| sounds| seems| looks| came| turned)(?: \w+){0,2} (?:ridiculous|absurd|irrelevant|unrelated|a jumble|a mess|incoherent|out of place|makes? no sense|(?:come|came|turned)? ?out (?:\w+ )?wrong)\b"),
        (4, rf"(?:{_START}|\b(?:and|but|so|wait|hmm+|sorry) )(?:um|wait|hold on|hang on|hmm+|oh|nope|ugh|no(?=,))[\s,.!…—–-]{{1,4}}(?:no[\s,.!]+)?(?:{_THIS}|it)(?:'s| is| was|{_IS_NOT}| (?:does(?:n't| not)) (?:sound|seem|look|make)){_ADV} (?:not )?(?:right|correct|accurate|true|wrong|incorrect|a mistake|an error|false|sense|helpful|relevant|silly|off|weird|nonsense|what)\b"),
        (3, rf"(?:{_START}|\b(?:and|but|so|wait|hmm+|sorry) )(?:no|actually|well|okay|so)[\s,.!…—–-]{{1,4}}(?:no[\s,.!]+)?(?:{_THIS}|it)(?:'s| is| was|{_IS_NOT}| (?:does(?:n't| not)) (?:sound|seem|look|make)){_ADV} (?:not )?(?:right|correct|accurate|true|wrong|incorrect|a mistake|an error|false|sense|helpful|relevant|silly|off|weird|nonsense|what)\b"),
        (3, rf"\b{_THIS}{_IS_NOT}{_ADV} (?:right|correct|helpful|it|relevant)(?=\s{{0,3}}(?:either|at all|again)?\s{{0,3}}[.!…—–]+\s{{0,3}}(?:i\b|so\b|sorry|let|the\b|here|\n))"),
        (2, rf"{_BEGIN}{_THIS}(?:{_IS_NOT}|(?:'s| is| was| are)(?: not)?){_ADV} (?:right|correct|accurate|helpful|useful|relevant|wrong|incorrect|a mistake|an error|silly|weird|strange|odd|false)\b"),
        (3, r"\n\W{0,6}(?:this|that)(?:'s| is| was) (?:\w+ )?(?:incorrect|wrong|not right|not correct)\b|\b(?:this|that)(?:'s| is| was) (?:\w+ )?(?:incorrect|wrong)!"),
        (1, r"\bstill (?:not right|wrong)\b"),
    ],
    # None of these will cook an egg / the brim was not / that is no way to feed a family.
    "unfit": [
        (3, rf"\b(?:this|it|they|these|those) (?:does not|doesn't|do not|don't) belong\b|{_BEGIN}(?:that|which) (?:does not|doesn't) belong\b"),
        (3, r"\b(?:this|that|it)(?: is|'s| was)(?: \w+){1,3},? not (?:\w+ ){1,3}so\b"),
        (3, rf"\b(?:but|however|yet|no|and),? {_THIS}(?: is|'s) not how (?:you|to|one|we)\b"),
        (2, rf"\bbut (?:it|that|this) {_DO_NOT}(?! (?:only|just|always|have to|need|matter|mean))"),
        (3, rf"\b{_THIS}{_IS_NOT}{_IN}{{0,40}}? either\b"),
        (2, rf"{_BEGIN}(?:{_THIS}|(?:forgive me|sorry|pardon me),? (?:that|this|the) \w+)(?: again)?(?:{_IS_NOT}| {_DO_NOT})(?! (?:only|just|always|all|necessarily|mean|matter|have to|need|imply))"),
        (2, r"\bwhich (?:(?:is|was|does|do|will|can)(?: \w+)? not|isn't|wasn't|doesn't|won't)\b"),
        (2, rf"[.!,] (?:that|this) (?!we|you|i|they|he|she|it)\w+ {_DO_NOT}"),
        (3, rf"\b(?:this|that|it){_IS_NOT}(?! just| only| merely| all){_ADV} about\b(?!{_IN}{{0,60}}\bbut\b)"),
        (3, r"\bnone of (?:which|this|that|these|those|it) (?:will|is|was|are|can|does|do|did|helps?|would|has|have|were|tells?|makes?|answers?|gets?|teach(?:es)?|says?|explains?)\b"),
        (2, r"\b(?:this|that|it)(?: is| was|'s) not (?:really )?(?:something|anything) (?:that|which|for)\b"),
        (2, rf"\b(?:this|that|it|the above|{_ABOVE}) (?:may|might|could|would)(?: \w+)? not (?:\w+ )?(?:fit|answer|be|address|help|make sense|satisfy|cover|suit)\b"),
        (2, r"\b(?:this|that|it)(?: again)?(?: is|'s| was)(?: \w+){1,4} (?:and not|rather than|instead of)\b"),
        (2, r"\b(?:nobody|no one|no-one) (?:needs?|wants?|wanted|needed)\b|\byou(?:'re| are) not an?\b"),
        (2, r"\b(?:has|have|had) no (?:place|business) in\b|\b(?:don't|doesn't|do not|does not|did not|didn't) belong\b|\bbelongs here\b|\bno way (?:to|for)\b"),
        (2, r"\bthis has (?:become|turned)\b"),
        (1, rf"{_BEGIN}(?:this|that|these|those)(?:'s| is| was| are| were| has become)\b(?! (?:it|why|how|when|where|all)\b)"),
    ],
    # I drifted / I gave you a jam session / who am I budgeting for / there I go again.
    "slip": [
        (3, r"\bwe were (?:talking|on|discussing|speaking|supposed)\b|\bwe(?:'ve| have)(?: \w+)? (?:strayed|drifted|wandered)\b"),
        (4, r"\bi(?:'ve| have)? (?:\w+ )?(?:switched|changed) (?:the )?(?:topics?|subjects?)\b|\bi (?:now )?(?:see|realize|realise|notice) (?:that )?i am\b"),
        (4, r"\bi (?:have no idea|don't know|do not know|can't say) (?:why|how) i (?:wrote|said|mentioned|started|went|brought|keep|ended|got)\b"),
        (4, rf"\bi(?=['\s])(?! (?:once|can|could|would|will|often|never|don't|do not))[^.!?\n,;:]{{0,28}}?(?<![a-z]){_SLIPPED}"),
        (4, r"\bi(?:'ve| have)? (?:(?:was|been|keep|kept|started|seem to be|seem to have been)(?: \w+)? (?:talking|describing|going on|writing|answering|explaining|telling|giving|rambling|on about)|am (?:now )?(?:going on about|rambling))\b(?! you)"),
        (4, rf"(?:{_START}|\b(?:sorry|oops|apologies|okay|ok|oh|whoops)[,.! ]+)(?:i |just |really |completely |clearly |a bit )?(?:got|went|gone|getting|going|drifted|strayed|wandered|wandering|lost|mixed|misread) (?:\w+ )?(?:distracted|carried away|off[- ](?:topic|track|course)|side-?tracked|confused|lost|mixed up|astray|away from|the thread|my (?:train|thread|way))"),
        (3, rf"(?:{_START}|\bi'm |\bi am |\bsorry,? )(?:not (?:quite )?sure|no idea|who knows) (?:what|why|how|where) (?:happened|that|this|i|it|we)\b"),
        (4, r"\bi(?:'m| am| was)(?: now| just)? (?:talking|writing|going on|telling you|rambling|on) (?:about )?(?:the |about )?(?:\w+ ){1,4}again\b"),
        (3, r"\bi (?:was|had been) (?:going|about|trying|supposed|meant|meaning|asked|hoping) to\b|\bi(?:'ve| have) (?:brought|slipped|fallen|wandered|turned)\b"),
        (4, r"\bi (?:keep|kept) (?:bringing|coming|going|returning|talking)\b|\bwhat am i (?:saying|doing|talking|writing|on about|even)\b"),
        (4, r"\bwe(?:'ve| have|'re| are| seem to(?: have)?)?(?: \w+)? (?:drifted|strayed|wandered|digressed|gone|gotten|veered)(?: \w+)? (?:off|away|from|astray|into|onto|lost|side-?tracked)\b(?! (?:the|on))"),
        (3, r"\bi (?:\w+ )?(?:gave|told|offered|wrote|described|answered|sent|brought)(?: you)? (?:an?|about|the wrong|instead|as if)\b(?! (?:once|above))"),
        (3, r"\bi(?: really| probably)? (?:shouldn't|should not|should never|was(?: not|n't) supposed to|did(?: not|n't) mean to|hadn't meant to)\b"),
        (3, r"\b(?:why|what|who|where)(?: on earth| the heck)? (?:am|was|were|did) i\b(?! (?:born|thinking of|looking at))"),
        (4, r"\b(?:why|what)(?: on earth| the heck)? (?:am|was) i \w+ing\b(?! (?:you|of|at|to))"),
        (3, r"\bwhy (?:have|do) i\b"),
        (3, r"\bi(?:'m| am)? (?:don't|do not|have no idea|not sure|can't|cannot) (?:know |say |explain |tell )?(?:where|why|how|what made) (?:that|this|i|me|it) (?:came|keep|brought|said|wrote|mentioned|went|got|is|was|did|ended|started|am)\b"),
        (4, r"\bi (?:now |just )?(?:realize|realise|notice|see)(?:d)?(?: now)?(?: that)? (?:i(?:'ve| have| was| keep)|this (?:is|has)|the (?:above|last))\b"),
        (4, r"\bi (?:take (?:that|it|this|it all) back|(?:did|'ve done|have done) it again|(?:keep|can't stop) (?:talking|writing|going|coming|drifting|slipping|making|thinking|mixing|mention\w+))\b|\b(?:there|here) i go (?:again|with|on)\b"),
        (3, r"\bi know (?:it|this|that)(?:'s| is| was)?(?: \w+)? not\b|\bi seem to\b|\bi (?:had|have)(?: \w+)? forgotten\b"),
        (4, r"\bmy (?:mind|thoughts?|attention|brain|pen|words?|answer|response)(?: \w+)? (?:wander|drift|stray|slip|got away|ran away|went off|was elsewhere)"),
        (4, r"\bwhere (?:was i|were we)\b(?! (?:born|when))|\bas i was saying\b|\bthat's twice\b"),
        (2, r"\bi(?:'m| was)? (?:just |only )?(?:kidding|joking)\b(?! around)"),
        (3, r"\bwhoever wrote\b|\bthe (?:author|writer) (?:has|seems|appears|got|lost)\b"),
        (3, rf"{_BEGIN}(?:what )?i (?:meant|(?:wanted|was trying|was going) to say|should have said)\b"),
    ],
    "sorry": [
        (
            2,
            rf"{_BEGIN}(?:(?:i'm|i am|my|so|very|really|please|deepest|sincere|do|oh) ){{0,4}}(?:sorry|apologies"
            r"|i (?:must |should |have to |do |want to |need to )?apologi[sz]e|apologi[sz]ing|forgive me|pardon(?: me| the| my)?|excuse (?:me|the|my)|i owe you an apology)\b"
            r"(?!,? (?:i (?:could|can|am|'m)|to|if|couldn't|could not|not|you|your|dear|sir|madam|for (?:your|the (?:delay|inconvenience|trouble|late))))",
        ),
        (
            4,
            r"\b(?:sorry|apologies|apologi[sz]e|forgive|pardon|excuse)(?: me)?(?: for| about)? (?:that(?=\s{0,3}[.,!—–;-])|(?:the|this|that|my|any|all the) (?:\w+ )?(?:irrelevant|wrong|off[- ]topic|incorrect|confusing|strange|weird|odd|long|unrelated|earlier|above|sudden|silly|nonsensical|misleading) \w+|(?:the|this|that|my|any) (?:(?:\w+|\w+-\w+) ){0,3}"
            r"(?:confusion|mistake|error|mix-?up|digression|detour|tangent|misunderstanding|mess|rambling|response|answer|reply|slip|nonsense|interruption|distraction|outburst|misinformation|drift|above)(?!,? but as an? )"
            r"|(?:going|getting|writing|talking|bringing|rambling|drifting|wandering) |all (?:that|of that|this))",
        ),
        (
            4,
            rf"{_START}(?:excuse|pardon|forgive) (?:the|my|all this) (?!pun|mess|delay|french)(?:\w+ )?\w+[.,!]",
        ),
        (
            4,
            r"\b(?:sorry|apologies|apologi[sz]e|forgive me|pardon)[\s,.!—–-]{0,4}(?:but |that )?(?:i (?:\w+ )?(?:made|got|went|was|seem|mis\w+|drift\w*|keep|lost|wrote|started|gave|got|slip\w*|stray\w*|brought|mentioned|confused|forgot|mixed|meant|described|digress\w*)"
            r"|i(?:'ve| have) (?:\w+ )?(?:been|gone|got|made|lost|drift\w*|stray\w*|slip\w*)|(?:that|this|those|it)(?: (?:answer|response|reply|text|part|bit|paragraph|passage|section))?(?:'s|n't| is| was| has| had| wasn't| isn't| doesn't)|those (?:are|were)|let me|let's|wrong\b|back to|where (?:was|were))(?! (?:able|you|great|awful|hard|terrible))",
        ),
    ],
    # Wait / no, wait / whoa, hold up / seriously.
    "stop": [
        (4, rf"(?:{_BEGIN})(?:no,? (?:no,? )?wait|wait,? (?:wait,? )?no|oops|whoops|my (?:mistake|bad|error)|wait,? what)\b(?! (?:more|longer|less|time|list|for|until|one))"),
        (4, rf"{_BEGIN}(?:wait|hold on|hang on|stop|whoa)(?: a (?:minute|moment|second|sec))?[\s,.!…—–-]{{1,5}}(?:i(?:'m| am|'ve| have| think| should| need| meant| was| got| did| don't| just| seem| made|'d like)\b(?! (?:sure|told|know))|(?:those|these|that|this)(?:'s| is| was| are| were| (?:does|did|has)n't)\b(?! (?:it|why|how|when|where|all|life|ok))|what am i|why|wrong\b|let me|let's|the question|back to)"),
        (3, rf"{_START}no[,. ]+no[,. ]+no\b|\b(?:oh no,? stop|no stop|stop,? stop|wait,? wait|oops|whoops)\b"),
        (3, rf"{_START}(?:no|oh)?[,.! ]{{0,4}}stop[,.!]+\s(?:this|that|these|i)\b"),
        (2, r"\b(?:wait|hold on|hang on|hmm+)[,.!…—–-]+\s{0,3}(?:no|that|this|i|let)\b"),
        (
            2,
            rf"(?:{_START}|, (?:no,? )?|\b(?:okay|ok|oh|so|no|actually|but|and|um|well),? )(?:wait|hold on|hold up|hang on|whoa|hm+|uh+|um+|ugh|ahem|nope|er+|argh|good grief|oh dear|oh no|goodness|yikes|huh|stop|actually,? no|one (?:moment|second|sec)|enough|seriously)"
            r"(?: a (?:minute|moment|second|sec|bit)| there| right there)?(?=\s{0,3}[,.!?…—–-])",
        ),
        (3, r"\banyways?[,.!?…—–]{0,3} (?:the|your|back|so|let|for)\b"),
        (2, rf"{_BEGIN}anyways?(?=[,.!?…—–])"),
        (1, rf"{_START}(?:okay|ok|alright|well|right|so|oh|actually)(?=[,.!?…—–])"),
        (1, r"(?:^|[.!…\n][ ]{0,3})no(?=[,.!…])"),
        (1, r"\b(?:but seriously|seriously|anyways?|in any case|at any rate|moving (?:on|forward)|be that as it may)\b"),
    ],
    # Let me start over / third try / erasing that / so let me give you ...
    "anew": [
        (4, rf"{_LET_ME}(?:go over|re-?read|look (?:back )?at|revisit|reconsider|think about|consult) (?:the|your) (?:\w+ )?(?:question|task|prompt|request)\b"),
        (4, rf"{_LET_ME}(?:scratch|scrap|ignore|drop|correct|revise|replace|fix|rewrite) (?:the|that|this|my) (?:above|previous|last|earlier|text|answer|response)\b"),
        (4, rf"{_START}(?:instead of|rather than) (?:the above|all (?:of )?(?:that|this)|what i \w+)\b"),
        (3, rf"{_START}(?:instead of|rather than) (?:that|this),"),
        (3, rf"{_START}(?:(?:okay|ok|right|come on),? )?focus[.!]"),
        (4, rf"{_LET_ME}(?:fix|correct|redo|repair|undo|rework|rewrite) (?:it|this|that|my)\b(?! (?:to|with|by|in place|up))"),
        (2, rf"{_LET_ME}give you something\b"),
        (
            4,
            rf"(?:{_LET_ME}|\blet ){_NO_EXAMPLE}(?:(?:(?:re)?(?:start|begin|try|do|say|take|write|explain|answer|phrase|put)(?:ing)?\b"
            rf"(?: \w+){{0,4}}? {_ANEW}|redo\b|restart\b(?! (?:the|your|it\b))|backtrack|rephrase\b|reword|rewind|reset\b(?! (?:the|your|it\b))|regroup|refocus"
            r"|re-?answer|retract|step back\b(?! (?:and look|to|from))|back up\b|correct myself"
            r"|(?:scrap|discard|drop|bin|undo|erase|delete|forget|abandon|ignore) (?:about )?(?:this|that|all|it|the|what|everything)\b"
            r"|(?:revise|correct|fix|rewrite|amend|reconsider|replace|clean up) (?:my|that|this|the above|what i|the last)\b"
            r"|(?:give|take) (?:this|that|it) another (?:try|go|shot|stab)|stop (?:myself|there|here|right)|get (?:serious|back on track|on track|to the point)))",
        ),
        (4, rf"{_LET_ME}(?:answer|explain|give|write|describe|address|approach|think|try){_IN}{{0,50}}?\b(?:the question (?:properly|again|you)|correctly|properly|this time|in a way that's|you(?: actually| really)? asked|the actual question|about (?:this|that|it) again|(?:actual|real|proper|better|clearer?) (?:answer|advice|explanation|steps|one))\b"),
        (3, rf"{_BEGIN}(?:re)?(?:start|begin)ning? (?:(?:this|it|the \w+) )?{_ANEW}(?=[ ]{{0,3}}[:.,!—–-]| here| now| as| with| then| in)"),
        (4, rf"{_BEGIN}(?:starting|beginning) (?:over|again|afresh|anew|from scratch)\b(?! (?:can|is|may|might|will|would|means|requires|with))"),
        (3, rf"(?:{_START}|\b(?:okay|ok),? )(?:a )?(?:second|third|fourth|new|another|next|fresh|one more|take|last|final) (?:try|go|attempt|take|shot|two|three)\b(?=\s{{0,3}}[:.,!—–-])"),
        (3, rf"\b(?:i'm|i am|i'll|i will|i shall|i would rather){_IN}{{0,50}}?\b(?:instead of|rather than) (?:that|this|it|the (?:above|previous|second|other|last|one))\b"),
        (4, rf"{_START}(?:okay,? |ok,? )?(?:erasing|deleting|scrapping|dropping|scratching|striking|discarding|forgetting|ignoring) (?:that|this|all (?:of )?(?:that|this)|everything|the above|it)\b"),
        (3, rf"{_BEGIN}(?:one more time|from the top)\s{{0,3}}[:.,!—–-]"),
        (4, rf"{_START}take (?:two|three)\s{{0,3}}[:.,!—–-]"),
        (2, rf"(?:\b(?:so|but|now|okay|ok|and|instead|therefore),? |{_START}){_LET_ME}(?:give|provide|offer|write|tell|show|present|answer|address|explain|say|clear|calculate|plan|describe|help|clarify|correct|respond|leave|focus|reconsider|turn|go|move|get|re(?:phrase|write|answer|state|turn|visit|word|direct))\b"),
        (4, rf"{_LET_ME}(?:be|do|make (?:this|that|it)|offer|give you) (?:\w+ )?(?:better|more (?:helpful|useful|relevant|sensible|accurate|coherent)|helpful|right this time)\b"),
        (3, rf"{_LET_ME}(?:answer|address|respond to|tackle|return to) (?:the|your)(?: \w+)? (?:question|request|task|prompt)\b"),
        (4, r"\bi(?:'d| would| will|'ll|'m| am|'ve| have)?(?: \w+){0,2} (?:pick|choose|chose|chosen|prefer|keep|keeping|go|going|stick|sticking|stay|use|take|give|drop)\b[^.!?\n]{0,20}\b(?:the|that) (?:(?:first|second|earlier|previous|former|other|last|above|original) (?:text|answer|version|one|response|attempt|of (?:these|the|those))|(?:text|answer|version|one|response) above|(?:first|second|former|latter|other)(?=[.:,;]))(?= |[.,:;!])"),
        (3, r"\b(?:this|that|the above|which) (?:\w+ )?(?:above )?will be (?:my|the) (?:final )?(?:answer|version)\b"),
        (3, r"\bif i can do better\b|\b(?:do|say|put|explain|answer) (?:this|that|it) better\b|\bin a (?:better|clearer|more \w+) way\b"),
        (2, r"\bso here goes\b|\b(?:please )?use this instead\b|\bi shall turn to\b|\bdouble-?check\b|\blet me think\b"),
        (1, rf"{_LET_ME}(?:give|provide|offer|write|tell|show|present|answer|address|explain|say|describe|help|clarify|correct|turn|think)\b"),
        (1, r"\bso(?: then)? (?:here (?:goes|are|is)|here's|moving (?:forward|on)|to continue|the (?:answer|next|way|steps?)|for the|what i|what you|in the|we|you should|again|i (?:am|will|shall|'ll))\b|\b(?:here (?:is|are)|here's) (?:what|how|the)\b|\bwhat you need\b|\bthis time\b|\bthe (?:way it goes|rest is this)\b"),
    ],
    "version": [
        (4, r"(?:\n\W{0,6}|^)(?:an?|my) (?:better|improved|clearer|corrected|revised|proper|more \w+) (?:answer|version|response|reply|explanation|attempt)\s{0,3}[:—–]"),
        (3, rf"{_START}(?:an?|my) (?:better|improved|clearer|corrected|revised|proper) (?:answer|version|response|reply|explanation|attempt)(?: follows|\s{{0,3}}[:—–])"),
        (4, r"\n\W{0,6}(?:attempt|try|take|retry)(?: (?:number|no\.?|#))? ?(?:2|3|two|three)\b"),
        (4, r"(?:^|\n)[ \t>#\[(]{0,8}(?:here (?:is|are|'s) (?:the |a |my |an )?|here's (?:the |a |my |an )?|my )?(?:revised|corrected|rewritten|improved|amended|second|third|better|updated) (?:response|answer|version|reply|attempt|explanation)\s{0,3}(?:[:—–.!\])-]|\n|$)"),
        (4, r"\n[ \t>#\[(]{0,8}(?:revised|corrected|rewritten|amended)[ \t]{0,4}[\])]?[ \t]{0,4}(?=[:\n])"),
        (4, rf"(?:\n\W{{0,6}}|^)(?:here(?:'s| is)|below is)(?: the| an?| my)?(?: \w+,?)? {_BETTER}(?:,? \w+)? {_VERSION}(?! to)"),
        (3, rf"\bhere(?:'s| is| are)(?: the| an?| my)?(?: \w+,?)? {_BETTER}(?:,? \w+)? {_VERSION}(?! to)"),
        (3, rf"\b(?:below (?:is|you(?:'ll| will) find)|what follows is)(?: the| an?| my)?(?: \w+,?)? (?:\w+ )?{_VERSION}"),
        (1, r"\bhere(?:'s| is| are)(?: the| an?| my)? (?:better|revised|corrected|correct|improved|proper|real|actual|right)\b"),
        (2, rf"{_START}(?:an?|the|suggested|one) (?:\w+ )?(?:better|helpful|useful|clearer|correct|revised|more \w+|proper)(?: and \w+)? (?:explanation|answer|reply|response|version|overview|guide|way to (?:put|say|answer|explain))\b|\bbetter served\b|\bsuggested replacement\b|\bput it more plainly\b"),
        (2, r"(?:^|\n)[^\n]{0,60}\b(?:second|third|new|revised|updated|corrected) (?:draft|version|try|attempt|plan|take)\b"),
        (3, r"\bthis replaces\b|\breplac(?:es|ing) (?:the text|what|the above)"),
        (4, rf"{_START}(?:erratum|correction|take two|revised|corrected)\s{{0,3}}[:,—–](?=[ ]{{0,3}}\S)"),
        (2, r"\bthe (?:actual|original|real) (?:question|task|topic|subject)\b"),
        (1, r"\bthe (?:correct|proper|right|real|actual) (?:way|answer|method|procedure|response|one)\b"),
    ],
    "drop": [
        (4, rf"{_BEGIN}(?:please )?(?:ignore|disregard|forget|skip|delete) (?:the|that|this) (?:\w+ )?(?:text|answer|response|reply|paragraphs?|part|lines?|passage|section) (?:above|before)\b"),
        (
            4,
            rf"{_BEGIN}(?:(?:please|just|kindly|better|let's|let me|you can|you may|actually) ){{0,3}}(?:scratch|strike|ignore|forget|disregard|delete|erase|scrap|skip|cross out|discard|overlook)"
            r" (?:about )?(?:that(?=\s{0,3}[.,!;:—–)-]|\s{0,3}$| list| last| part| whole| and )|what i|everything (?:i|above)|all (?:of )?(?:that|this|the above)|my (?:previous|last|first|earlier|answer)"
            r"|(?:the )?(?:above|foregoing|last (?:part|bit|paragraph|sentence|line|section|few)|previous \w+)\b(?! (?:and|then|instruct\w*|rules?)\b))",
        ),
        (4, rf"(?:{_BEGIN}|\bthat's )enough about\b"),
        (2, rf"{_BEGIN}(?:never ?mind|enough of|forget (?:about )?the)\b"),
        (4, rf"{_BEGIN}enough (?:of|about) (?:that|this)\b"),
    ],
    "back": [
        (4, r"\b(?:now|so|and|but|on)(?: back| on)? to the (?:actual|real|original) \w+"),
        (4, rf"(?:{_START}|{_LET_ME})(?:getting|get|back|going)(?: back)? on track\b"),
        (
            4,
            rf"(?:(?:{_BEGIN}|\banyways?,? )(?:back|returning|return|turning|surfacing|reverting)|{_LET_ME}(?:(?:go|get|come|turn|bring \w+|steer|move) (?:back)|return|revert)|\b(?:going|getting|coming) back)"
            r"(?: now| again| round)? (?:to |on |onto )?(?:(?:the|your|my|our|this) (?:(?:original|actual|real|initial|first|main|second) )?(?:question|task|topic|prompt|request|matter|subject|assignment|point|business|track)\b|what (?:was|you|i was|is) (?:asked|were|wanted|asking|supposed|meant))",
        ),
        (4, r"\bthe (?:matter|task|question|topic) at hand, which\b|\b(?:getting|moving|coming) off (?:the|that|this) \w+ and (?:on|on to|onto|back)\b"),
        (4, rf"(?:{_START}|\b(?:anyways?|okay|ok),? )back to (?:the |your |our |my )?\w+[:,]|\b(?:anyways?|but|so|ok|okay|and now|now),? back to\b"),
        (3, rf"(?:{_START}(?:anyways?|so|now|okay|ok|well|right|but|then|alright),? (?:let's |let me |let us |i'll |now )?(?:get |go |come |getting |going )?)(?:back|returning|return) to (?:the |your |our |my )?\w+"),
        (3, r"\bbrings? (?:me|us) (?:back|round|around|finally|at last) to\b"),
        (2, rf"{_LET_ME}(?:(?:go|get|come|turn|bring \w+|steer|move) back|start|turn) (?:to|with|on)\b"),
        (3, rf"{_LET_ME}return to\b"),
        (4, rf"{_BEGIN}(?:now,? )?to (?:(?:actually|really|properly) (?:answer|address)|correct|return to|get back to|go back to) (?:the|your|my)\b{_IN}{{0,20}}\b(?:question|statement|answer|response|task|topic|instead)\b"),
    ],
}  # fmt: skip

# The core of the same in other languages, alone or in the middle of an English answer. A language
# is read only where one of its small words (or its script) occurs.
_SMALL_WORDS = {
    "german": r"\b(?:das|es|die|ich|nicht|nein|zurück|also|entschuldigung|moment)\b",
    "spanish": r"\b(?:el|la|lo|los|eso|esto|que|perdón|voy)\b",
    "french": r"\b(?:je|ce|ça|la|le|les|de|et|pas|pardon|désolée?|revenons)\b|\b[jc]['’]",
    "italian": r"\b(?:il|la|non|ho|che|sono|scus\w+|alla|al)\b",
    "portuguese": r"\b(?:isso|isto|não|que|errei|desculp\w+|ao|à)\b",
    "dutch": r"\b(?:het|dat|dit|niet|ik|een|naar|opnieuw|sorry)\b",
    "swedish": r"\b(?:det|jag|inte|till|förlåt|om|ursäkta)\b",
    "polish": r"\b(?:nie|się|jest|przepraszam|od|wracając|jeszcze)\b",
    "russian": "[а-я]",
    "chinese": "[\u4e00-\u9fff]",
    "japanese": "[\u3040-\u30ff]",
}
_OTHERS: dict[str, dict[str, list[tuple[int, str]]]] = {
    "german": {
        "wanted": [
            (4, r"\b(?:nicht|gar nicht|nie|nichts)(?: \w+){0,3} (?:die frage|gefragt|gefordert|gewünscht|gewollt|zum thema|zur (?:frage|aufgabe)|das thema|die aufgabe)\b|\bniemand (?:\w+ )?gefragt|\bhat(?: \w+){0,4} nichts(?: \w+)? zu tun\b|\bgehört(?: \w+)? nicht (?:hierher|hier|dazu|zur)"),
            (3, r"\b(?:du|sie) (?:wolltest|wollten|hattest|hatten|hast|haben) (?:\w+ ){0,3}(?:gefragt|wissen)\b|\b(?:gefragt war|die frage war|hat (?:\w+ )?nichts (?:\w+ )?zu tun)\b"),
        ],
        "verdict": [
            (4, r"\b(?:das|dies|es|der|die) (?:obige|bisherige|ganze|vorige|letzte)?(?: ?(?:antwort|text|absatz|teil))? ?(?:oben )?(?:war|ist|stimmt) (?:so |ja |leider |gar |wohl |alles |jetzt )*(?:nicht das thema|thema verfehlt|unsinn|quatsch|am thema vorbei|wirr|ein durcheinander)"),
            (2, r"\b(?:das|dies) (?:stimmt|ist|war) (?:so |ja |leider |gar |jetzt |völlig |ganz )*(?:nicht|falsch|ein fehler|verkehrt)\b"),
        ],
        "slip": [(4, r"\b(?:habe? ich|ich hab[e']?|ich bin|bin ich|ich war) (?:\w+ ){0,4}(?:geirrt|vertan|vertippt|fehler gemacht|verwechselt|abge(?:schweift|kommen|driftet)|vom thema|verzettelt|verrannt|falsch verstanden|durcheinander\w*)|\bich (?:schweife|komme) (?:\w+ )?(?:ab|vom thema)\b|\bwo (?:war ich|waren wir)\b")],
        "sorry": [(2, rf"{_START}(?:oh,? )?(?:entschuldig\w*|verzeih\w*|pardon|tut mir leid|es tut mir leid|sorry)\b")],
        "stop": [(2, rf"{_START}(?:moment(?: mal)?|halt|stopp?|warte(?:n sie)?(?: mal)?|nein|ups|hoppla|äh+|hm+|ach)\s{{0,3}}[,.!…:—–-]")],
        "anew": [
            (4, r"\b(?:ich|wir|lass(?:en sie|t)? (?:mich|uns)|also|jetzt|nun)\b[^.!?\n]{0,30}\b(?:noch ?mal|noch einmal|erneut|neu)\b[^.!?\n]{0,15}(?:von vorne?|von anfang|an\b|richtig|versuchen|anfangen|beginnen|erklären|beantworten)"),
            (3, r"\b(?:ich|wir) (?:fange?n?|beginnen?|versuchen?|probieren?|starten?)\b[^.!?\n]{0,25}\b(?:noch ?mal|noch einmal|erneut|von vorne?|neu)\b|\blass(?:en sie|t)? (?:mich|uns)\b[^.!?\n]{0,25}(?:noch ?mal|noch einmal|erneut|von vorne?|neu|korrigieren)"),
            (2, r"\b(?:noch ?mal|noch einmal) (?:richtig|von vorne?|von anfang)|\bich korrigiere\b|\bkorrektur:|\bneuer (?:versuch|anlauf)\b"),
        ],
        "back": [(4, r"\bzurück (?:zur (?:eigentlichen )?(?:frage|aufgabe)|zum (?:eigentlichen )?thema)\b"), (2, r"\b(?:also )?zurück zu[mr]?\b")],
        "drop": [(4, r"\b(?:vergiss|vergessen sie|ignorier(?:e|en sie)?|streich(?:e|en sie)?)\b[^.!?\n]{0,12}\b(?:das (?:obige|letzte|alles)|das(?=[.,!:])|alles (?:oben|bisher)|den (?:text|absatz) oben|(?:den|die|das) (?:obige|bisherige|vorige)\w* \w+)")],
    },
    "spanish": {
        "wanted": [(4, r"\b(?:no|nada|nadie)(?: \w+){0,3} (?:lo que (?:me )?(?:\w+ )?(?:ped|pregunt|solicit|quer)\w*|la pregunta|preguntó|preguntaste|a tu pregunta|que ver con)"), (2, r"\b(?:lo que se (?:pregunt|ped)\w+|tu pregunta (?:era|es)|me (?:preguntaste|pediste))")],
        "verdict": [(2, r"\b(?:eso|esto|lo anterior|lo de arriba) (?:no (?:es|era|está|estaba|fue|tiene|viene)|está? mal|es (?:incorrect\w|un error))"), (4, r"\b(?:lo (?:anterior|de arriba)|mi respuesta|el texto anterior)[^.!?\n]{0,30}\b(?:no tiene sentido|es(?:taba)? (?:mal|incorrect\w|confus\w)|nada que ver|sin sentido|fuera de tema)")],
        "slip": [(4, r"\bme (?:he )?(?:equivo\w+|confund\w+|desvi\w+|despist\w+|liado|lié|perdí|perdido|fui por|ido por|salí|salido)|\b(?:cometí|he cometido) un error|\bperdí el hilo|\bhe perdido el hilo|\bdónde estaba\b")],
        "sorry": [(2, rf"{_START}(?:ay,? )?(?:perd[oó]n(?:a|e|en)?|disculp\w+|lo siento|mis disculpas)\b")],
        "stop": [(2, rf"{_START}(?:esper[ae]n?|un momento|un segundo|no|ups|vaya|alto|ay|oh|eh)\s{{0,3}}[,.!…:—–-]")],
        "anew": [(4, r"\b(?:déj[ae]me|permíte?me|permítame|voy a|vamos a|quiero|vuelvo a|empe[zc]\w+|empiezo|comen[zc]\w+|comienzo|intent\w+|lo intento|respondo)\b[^.!?\n]{0,25}(?:de nuevo|otra vez|nuevamente|desde (?:el principio|cero)|corregir)"), (3, r"\b(?:ahora sí|voy a (?:contestar|responder))\b"), (2, r"\b(?:corrijo|corrección:|reformul\w+)")],
        "back": [(4, r"\b(?:volvamos|vuelvo|volviendo|regres\w+|retom\w+) (?:a(?: la|l)?|al?) (?:la )?(?:pregunta|tarea|tema|cuestión|asunto)"), (2, r"\b(?:volvamos|volviendo|regresemos) a")],
        "drop": [(4, r"\b(?:olvid[ae]|ignor[ae]|olvidemos|descart[ae])\w* (?:eso|esto|lo (?:anterior|de arriba|que (?:dije|escribí)))")],
    },
    "french": {
        "wanted": [(4, r"\b(?:pas|personne|rien|jamais)(?: \w+){0,3} (?:ce qu(?:e|')? ?(?:on |vous |tu |j')?(?:m'a |m'avez |avez |as |a |ai )?(?:demand|voul)\w*|ce qu'on me demande|la question|le sujet|demandé|à voir avec|au sujet|à la question)"), (2, r"\b(?:vous|tu) (?:vouliez|voulais|m'avez demandé|demandiez|demandais)|\bce qui (?:est|était|a été) demandé")],
        "verdict": [(4, r"\b(?:ce qui précède|le texte (?:ci-dessus|précédent)|ma réponse|la réponse (?:ci-dessus|précédente))[^.!?\n]{0,40}\b(?:pas|confus\w*|incohéren\w*|hors[- ]sujet|faux|erron\w+|rien)|\bhors[- ]sujet\b"), (2, r"\b(?:ce n'est|c'est|cela n'est|ça n'est|c'était|ce n'était) (?:\w+ )?(?:pas|faux|incorrect|une erreur|n'importe quoi)")],
        "slip": [(4, r"\bje (?:me suis|m') ?(?:\w+ )?(?:tromp\w*|égar\w*|perdu\w*|éloign\w*|emball\w*|mal exprim\w*)|\bj'ai (?:\w+ )?(?:dérap\w*|divagu\w*|confondu|perdu le fil|fait une erreur|mal compris|dérivé)|\bje (?:divague|m'égare|m'éloigne)\b|\boù en étais-je")],
        "sorry": [(2, rf"{_START}(?:oh,? |oups,? )?(?:pardon\w*|désolée?|excus\w+|mes excuses|je m'excuse|je suis désolée?|veuillez m'excuser)\b")],
        "stop": [(2, rf"{_START}(?:attend\w*|un instant|une seconde|non|oups|stop|hm+|euh|oh là là|minute|bon|mince|zut)\s{{0,3}}[,.!…:—–-]")],
        "anew": [(4, r"\b(?:recommen[cç]\w+|reprenons|reprends|reformul\w+|je (?:vais |me )?(?:reprendre|corrige\w*)|réessay\w+)\b(?! (?:avec|si|quand|l'opération|le mouvement))"), (2, r"\b(?:laissez|laisse)-moi\b|\bje réponds\b")],
        "back": [(4, r"\b(?:revenons|revenir|retour|je reviens|retournons|pour en revenir)(?: donc)? (?:à (?:la|votre|ta|notre) (?:question|tâche|demande)|au (?:sujet|thème))"), (2, r"\b(?:revenons|je reviens)(?: donc)? (?:à|aux?)\b")],
        "drop": [(4, r"\b(?:oubli(?:ez|e|ons)|ignor(?:ez|e|ons)|laissons tomber) (?:ça|cela|ce qui (?:précède|est)|ce que (?:j'ai|je)|le (?:texte|paragraphe) (?:ci-dessus|précédent))")],
    },
    "italian": {
        "wanted": [(4, r"\b(?:non|niente|nessuno|nulla)(?: \w+){0,3} (?:quello che (?:mi )?(?:hai |avete |ha |è stato |era )?(?:chie\w+|vol\w+)|ciò che|la domanda|chiesto|a che (?:fare|vedere)|alla domanda|il tema|c'entra)"), (2, r"\b(?:qui si parlava di|la domanda era|mi avevi chiesto|si chiedeva)")],
        "verdict": [(2, r"\b(?:questo|quello|ciò) (?:non (?:è|era|va|c'entra)|è (?:sbagliato|errato|un errore))|\bnon c'entra\w*"), (4, r"\b(?:il testo (?:sopra|precedente)|la risposta (?:sopra|precedente)|quanto sopra)[^.!?\n]{0,40}\b(?:non|confus\w|sbagliat\w|fuori tema)|\bfuori tema\b")],
        "slip": [(4, r"\bho (?:\w+ )?(?:sbagliato|perso il filo|fatto (?:un errore|confusione)|divagato|confuso|frainteso)|\bmi sono (?:\w+ )?(?:sbagliat\w|pers\w|confus\w|distratt\w|allontanat\w|lasciat\w)|\bsto divagando\b|\bdov'ero\b|\bdove eravamo\b")],
        "sorry": [(2, rf"{_START}(?:oh,? )?(?:scus\w+|chiedo scusa|perdon\w+|mi dispiace|pardon)\b")],
        "stop": [(2, rf"{_START}(?:aspetta\w*|un momento|un attimo|no|ops|alt|ferm\w+|ehm|oh)\s{{0,3}}[,.!…:—–-]")],
        "anew": [(4, r"\b(?:ricominci\w+|riprov\w+|riformul\w+|riparto|ripartiamo|rispondo (?:di nuovo|da capo|alla domanda)|riprendo da capo)\b(?! (?:con|se))"), (3, r"\bda capo\b")],
        "back": [(4, r"\b(?:torniamo|torno|tornando|ritorniamo)(?: quindi| ora)? (?:alla (?:domanda|questione)|al (?:tema|punto|argomento))"), (2, r"\b(?:torniamo|torno|tornando) a")],
        "drop": [(4, r"\b(?:dimentica\w*|ignora\w*|lascia perdere|lasciamo perdere)(?: \w+)? (?:quello|quanto|ciò|il testo|tutto|questo)")],
    },
    "portuguese": {
        "wanted": [(4, r"\b(?:não|nada|ninguém)(?: \w+){0,3} (?:o que (?:você |me )?(?:foi )?(?:ped|pergunt|quer)\w*|a pergunta|perguntou|pediu|a ver com|à pergunta|o tema)"), (2, r"\b(?:a pergunta era|você (?:pediu|perguntou|queria))")],
        "verdict": [(2, r"\b(?:isso|isto) (?:não (?:é|era|está|tem)|está (?:errado|incorreto)|é um erro)"), (4, r"\b(?:o texto (?:acima|anterior)|a resposta (?:acima|anterior)|o que escrevi)[^.!?\n]{0,40}\b(?:não|confus\w|errad\w|sem sentido|fora)|\bfora do (?:tema|assunto)")],
        "slip": [(4, r"\b(?:errei\b|me (?:perdi|enganei|confundi|desviei|distraí|empolguei)|cometi um erro|fugi do (?:tema|assunto)|perdi o fio|saí do (?:tema|assunto)|entendi mal|onde (?:eu )?estava)")],
        "sorry": [(2, rf"{_START}(?:oh,? )?(?:desculp\w+|perdão|perdoe\w*|peço desculpas?|lamento|sinto muito)\b")],
        "stop": [(2, rf"{_START}(?:espere?|espera|um momento|não|opa|ops|pare|calma|hum|oh)\s{{0,3}}[,.!…:—–-]")],
        "anew": [(4, r"\b(?:recome[cç]\w+|deixe-?me|deixa eu|vou|vamos)\b[^.!?\n]{0,25}\b(?:de novo|novamente|outra vez|do (?:início|começo|zero)|corrigir|reformular|recomeçar)|\brecome[cç]\w+\b(?! com)|\bcomeçando de novo\b"), (2, r"\b(?:agora sim|vou responder|corrigindo|correção:)")],
        "back": [(4, r"\b(?:volt\w+|retorn\w+|retom\w+)(?: então)? (?:à (?:pergunta|tarefa|questão)|ao (?:tema|assunto|ponto))"), (2, r"\b(?:voltando|voltemos|vamos voltar) (?:à|ao|a)\b")],
        "drop": [(4, r"\b(?:esque[cç]\w+|ignor\w+|desconsider\w+) (?:isso|isto|o que|tudo|o (?:texto|parágrafo))")],
    },
    "dutch": {
        "wanted": [(4, r"\b(?:niet|niks|niemand|nooit)(?: \w+){0,3} (?:wat (?:je|u|jij|er) (?:\w+ )?(?:vroeg|vroegen|gevraagd|wilde?|wou)\w*|gevraagd|de vraag|het onderwerp|op de vraag|te maken)|\bvroeg niemand\b|\bheeft (?:\w+ )?niets te maken"), (2, r"\b(?:je|u) (?:vroeg|wilde|had gevraagd)\b|\bde vraag was\b")],
        "verdict": [(2, r"\b(?:dat|dit|het) (?:klopt (?:\w+ )?niet|is (?:\w+ )?(?:fout|niet (?:juist|goed|waar|wat)|verkeerd|onzin)|gaat (?:\w+ )?over|slaat nergens op)"), (4, r"\b(?:bovenstaande|de (?:tekst|vorige|bovenstaande)(?: \w+)?|mijn antwoord)[^.!?\n]{0,40}\b(?:niet|onzin|verward|onduidelijk|fout|rommel)")],
        "slip": [(4, r"\bik (?:heb|ben|had|was|raak\w*|dwaal\w*)\b[^.!?\n]{0,25}\b(?:vergist|afgedwaald|af\b|verward|fout gemaakt|kwijt|door elkaar|verkeerd begrepen|van het onderwerp)|\bwaar was ik\b|\bwaar waren we\b")],
        "sorry": [(2, rf"{_START}(?:oh,? )?(?:sorry|excuses|pardon|neem me niet kwalijk|het spijt me|mijn excuses)\b")],
        "stop": [(2, rf"{_START}(?:wacht(?: even)?|nee|oeps|stop|ho|hm+|momentje|nou ja|eh)\s{{0,3}}[,.!…:—–-]")],
        "anew": [(4, r"\b(?:ik|we|laat (?:me|ik|mij|ons)|laten we)\b[^.!?\n]{0,25}\b(?:opnieuw|nog (?:een keer|eens)|overnieuw|van voren af aan|verbeteren|herformuleren)"), (2, r"\bopnieuw(?: dan)?\s{0,3}[.:,;]|\bnog een keer\s{0,3}[:,]")],
        "back": [(4, r"\bterug naar (?:de|je|uw|mijn|het) (?:\w+ )?(?:vraag|opdracht|onderwerp)"), (2, r"\bterug naar\b")],
        "drop": [(4, r"\b(?:negeer|vergeet|schrap)(?: \w+)? (?:het (?:bovenstaande|voorgaande)|dat(?=[.,!:])|bovenstaande|alles hierboven|wat ik)")],
    },
    "swedish": {
        "wanted": [(4, r"\b(?:inte|ingen|inget|aldrig)(?: \w+){0,3} (?:det du (?:\w+ )?(?:frågade|bad|ville)|vad du (?:\w+ )?(?:frågade|bad|ville)|frågan|frågat|bett om|med frågan|att göra)|\bingen frågade\b"), (2, r"\bdu (?:frågade|ville|bad)\b|\bfrågan (?:var|gällde)\b")],
        "verdict": [(2, r"\b(?:det|detta) (?:är|var|stämmer) (?:\w+ )?(?:fel|inte|nonsens|struntprat)\b"), (4, r"\b(?:ovanstående|texten ovan|svaret ovan|mitt (?:förra )?svar)[^.!?\n]{0,40}\b(?:inte|fel|rörig\w*|förvirra\w+|strunt)")],
        "slip": [(4, r"\bjag (?:har |hade )?(?:\w+ )?(?:misst(?:og|agit)|gjorde (?:ett )?fel|gjort (?:ett )?fel|tappade? (?:tråden|bort)|kom (?:av|ifrån)|kommit (?:av|ifrån)|svävade|blandade|missförst\w+)|\bvar var (?:jag|vi)\b")],
        "sorry": [(2, rf"{_START}(?:oj,? |åh,? )?(?:förlåt|ursäkta|jag ber om ursäkt|tyvärr|beklagar)\b")],
        "stop": [(2, rf"{_START}(?:vänta(?: lite)?|nej|oj|hoppsan|stopp|hm+|ett ögonblick|nåväl)\s{{0,3}}[,.!…:—–-]")],
        "anew": [(4, r"\b(?:jag|vi|låt (?:mig|oss)|nu)\b[^.!?\n]{0,25}\b(?:börja\w* om|om från början|försöka igen|igen|på nytt|omformulera|rätta)\b"), (2, r"\bom igen\b|\bnytt försök\b|\brättelse:")],
        "back": [(4, r"\btillbaka till (?:din |den )?(?:\w+ )?(?:frågan?|uppgiften|ämnet)"), (2, r"\btillbaka till\b")],
        "drop": [(4, r"\b(?:bortse från|glöm|strunta i|ignorera) (?:det (?:ovan|där|jag)|ovanstående|allt (?:ovan|det)|texten ovan)")],
    },
    "polish": {
        "wanted": [(4, r"\b(?:nie|nikt)(?: \w+){0,2} (?:o to|to),?(?: \w+)? (?:pyta\w*|chodzi\w*|o co|prosi\w*)|\bnie (?:na temat|jest (?:to )?odpowied\w+|odpowiada na pytanie)|\bnikt (?:o to )?nie pyta\w*|\bnie ma (?:to )?nic wspólnego|\bnie o to\b"), (2, r"\b(?:pytanie (?:było|brzmiało|dotyczyło)|pytał[eaś]\w*|pytano)\b")],
        "verdict": [(2, r"\bto (?:nie (?:jest|to|tak|ma)|jest (?:błąd|źle|bez sensu|nieprawda)|było (?:błędne|bez sensu)|nieprawda|bzdura)"), (4, r"\b(?:powyższ\w+|poprzedni\w+ (?:tekst|odpowiedź|akapit))[^.!?\n]{0,40}\b(?:nie|bez sensu|błęd\w+|chao\w+)")],
        "slip": [(4, r"\b(?:pomyli\w+|zboczy\w+|odbieg\w+ od|odszed\w+ od|zgubił\w* wątek|popełnił\w* błąd|zagalopowa\w+|rozpędzi\w+ się|na czym (?:to )?(?:skończy|stan)\w+)")],
        "sorry": [(2, rf"{_START}(?:o,? |oj,? )?(?:przepraszam|wybacz\w*|przykro mi|najmocniej przepraszam|pardon)\b")],
        "stop": [(2, rf"{_START}(?:czekaj\w*|zaraz|chwil\w+|nie|ups|stop|hm+|zaraz,? zaraz|ojej)\s{{0,3}}[,.!…:—–-]")],
        "anew": [(4, r"\b(?:zaczn\w+|zaczynam|zacznijmy|spróbuj\w+|odpowiem|odpowiadam|napiszę)(?: \w+)? (?:od (?:nowa|początku)|jeszcze raz|ponownie|na pytanie)|\b(?:jeszcze raz|od nowa)\s{0,3}[:,.]"), (2, r"\b(?:poprawiam|poprawka:|sprostowanie)")],
        "back": [(4, r"\b(?:wróćmy|wracam\w*|wracając|powróćmy|powrót) do (?:\w+ )?(?:pytania|tematu|zadania|rzeczy)"), (2, r"\b(?:wróćmy|wracam\w*|wracając) do\b")],
        "drop": [(4, r"\b(?:zignoruj\w*|pomiń\w*|zapomnij\w*|proszę (?:zignorować|pominąć)) (?:o )?(?:to\b|powyższ\w+|wszystko|poprzedni\w+|tym)")],
    },
    "russian": {
        "wanted": [(4, r"\bне (?:о том|о чём|о чем|об этом|то,? (?:о чём|о чем|что))\b|\bне (?:по теме|относится к (?:вопросу|теме)|отвечает на вопрос|ответ на (?:ваш |твой )?вопрос)|\b(?:никто|вы|ты) (?:об этом )?не (?:спрашива|просил)\w*|\bне имеет (?:\w+ )?отношения"), (2, r"\b(?:вопрос был|вы (?:спраш|спрос|прос|хотел)\w+|спрашивали)")],
        "verdict": [(2, r"\bэто (?:не(?:верно|правильно|так)?|ошибка|чушь|ерунда|бессмыслица)\b"), (4, r"\b(?:выше(?:сказанное|написанное)?|предыдущ\w+ (?:ответ|текст|абзац)|текст выше|написанное выше)[^.!?\n]{0,40}\b(?:не|ошиб\w+|бессмысл\w+|путан\w+|ерунда|чушь)")],
        "slip": [(4, r"\bя (?:\w+ )?(?:ошиб\w+|отвл[её]к\w*|увл[её]к\w*|запута\w+|перепута\w+|отклони\w+|уш[её]л\w* (?:от|в сторону)|сбил\w+|неправильно понял\w*)|\bна ч[её]м (?:я|мы) останов\w+|\bменя занесло|\bопять не\b")],
        "sorry": [(2, rf"{_START}(?:ой,? |ох,? )?(?:извин\w+|прост(?:и|ите)|прошу прощения|приношу извинения|виноват\w*)\b")],
        "stop": [(2, rf"{_START}(?:стоп|подожди\w*|погоди\w*|постой\w*|минут\w+|нет|ой|хм+|так)\s{{0,3}}[,.!…:—–-]")],
        "anew": [(4, r"\b(?:начн\w+|начинаю|давайте?|попробу\w+|отвечу|отвечаю|напишу)(?: \w+)? (?:сначала|заново|снова|ещ[её] раз|с начала|по (?:делу|существу|теме)|правильно)\b|\b(?:ещ[её] раз|заново|сначала)\s{0,3}[:,.]"), (2, r"\b(?:исправл\w+|поправка:|перефразир\w+)")],
        "back": [(4, r"\b(?:верн[её]мся|верн[её]мся|вернусь|возвращаясь|возвращаюсь|возвратимся|вернуться)(?: же)? к (?:\w+ )?(?:вопросу|теме|задаче|делу)"), (2, r"\b(?:верн[её]мся|возвращаясь) к\b")],
        "drop": [(4, r"\b(?:забудьте?|игнориру\w+|проигнорируйте?|не обращайте внимания)(?: на)? (?:об? )?(?:это\w*|всё|все|предыдущ\w+|вышесказанн\w+|написанн\w+)")],
    },
    "chinese": {
        "wanted": [(4, r"不是(?:您|你|要|题目)?(?:要|想|所)?(?:问|要求|需要)的|(?:没有|没)(?:人)?问|与(?:问题|题目|主题)无关|(?:没有|并未|不)回答(?:你|您)?的?问题|答非所问|跑题|离题|偏题|文不对题"), (2, r"(?:你|您)问的是|问题是")],
        "verdict": [(3, r"(?:以上|上面|前面|刚才|上述)[^。！？\n]{0,20}(?:错|不对|无关|混乱|没有意义|不相关|有误|不正确)"), (2, r"(?:这|那)(?:个|些|段)?(?:不对|不正确|错了|是错)")],
        "slip": [(4, r"我(?:刚才|好像|似乎|又)?(?:说错|搞错|弄错|写错|跑题|扯远|混淆|理解错|走神)|扯远了|说到哪")],
        "sorry": [(2, r"(?:抱歉|对不起|不好意思|请原谅)")],
        "stop": [(2, r"(?:^|[。！？\n.!?])\s{0,3}(?:不对|等等|等一下|且慢|哎呀|不，|嗯，不|糟糕)")],
        "anew": [(4, r"(?:让我|我来|我们|我)?重新(?:回答|开始|来|解释|说|写|组织)(?!如果)|从头(?:开始|再来)[:：，,]|再来一次[:：，,]"), (2, r"(?:更正|正确的(?:答案|回答|做法)(?:是|应该))")],
        "back": [(4, r"(?:回到|返回)(?:正题|(?:你的|您的|原来的)?(?:问题|主题|题目))|言归正传")],
        "drop": [(4, r"(?:请)?(?:忽略|忘掉|忘记|无视)(?:以上|上面|前面|刚才|上述)")],
    },
    "japanese": {
        "wanted": [(4, r"(?:聞かれ|質問され|求められ|尋ねられ)て(?:い)?(?:ない|ません|いません|いたのは)|質問(?:の答え|と(?:は|関係)|には)[^。\n]{0,10}(?:ない|なって|無関係|違)|ご?質問(?:への回答)?(?:では|とは)(?:ありません|ない|関係)|的外れ"), (2, r"ご?質問は")],
        "verdict": [(3, r"(?:上|以上|前|先ほど|今)の(?:文章|回答|説明|内容|話)[^。\n]{0,20}(?:違|間違|関係|混乱|おかし|無視|不適切)"), (2, r"(?:これ|それ|今の)は(?:違い|間違い|誤り|おかしい|関係)")],
        "slip": [(4, r"話が(?:それ|逸れ|脱線)|脱線し|間違え(?:ました|てしま)|勘違いし|どこまで話し")],
        "sorry": [(2, r"(?:すみません|申し訳|失礼しました|ごめん)")],
        "stop": [(2, r"(?:^|[。！？\n.!?])\s{0,3}(?:待って|いや、|いえ、|ちょっと待|違う|違います|おっと|あれ)")],
        "anew": [(4, r"(?:やり直し|もう一度(?:最初から|やり直|説明し直|答え)|最初から(?:やり直|説明し|答え)|改めて(?:お答え|回答|説明)|言い直し|書き直し)(?!て(?:ください|みて))"), (2, r"訂正|正しくは")],
        "back": [(4, r"(?:本題|質問|元の話|話)に戻(?:り|し|る|ろ)")],
        "drop": [(4, r"(?:上記|以上|先ほどの|前の)[^。\n]{0,8}(?:無視|忘れ)")],
    },
}  # fmt: skip


def _compiled(kinds: dict[str, list[tuple[int, str]]], english: bool) -> list[Cue]:
    return [
        Cue(kind, weight, re.compile(pattern), english)
        for kind, patterns in kinds.items()
        for weight, pattern in patterns
    ]


_READ = [
    (re.compile(_SMALL_WORDS[language]), _compiled(kinds, english=False))
    for language, kinds in _OTHERS.items()
]
_ALWAYS = _compiled(_ENGLISH, english=True)


def cues_for(text: str) -> list[Cue]:
    """The cues to look for in a text: English ones, and those of languages that occur in it."""
    return _ALWAYS + [cue for mark, cues in _READ if mark.search(text) for cue in cues]
