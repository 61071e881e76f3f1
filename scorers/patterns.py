"""The grammar of turning away from what was just written: cues, by class, with weights.

A cue is a short pattern over lower-case text with straight apostrophes. `phrases.py` adds up the
cues of different classes that stand close together; at `ENOUGH` they are a restart. So no list of
whole phrases is needed: "the above" (what is meant) and "makes no sense" (what is wrong with it),
or "not" and "what you asked", or an excuse and a first person in the past, each make one.

Most patterns may stand anywhere in a run-on sentence. Gaps are bounded and never cross the end of a
sentence, so that the time is linear in the text. Weights were set by hand on examples marked for
development only; tests/test_scorers_restarts.py says which.
"""

import re
from typing import NamedTuple

ENOUGH = 4
"""Sum of weights that makes a restart: one unmistakable cue, or several that agree."""


class Cue(NamedTuple):
    """One pattern: its class (each counts once in a group), its weight and the pattern."""

    kind: str
    weight: int
    pattern: re.Pattern[str]


def _any(*words: str) -> str:
    return "(?:" + "|".join(words) + ")"


# Small words
_G = r"[^.!?\n:]"
"""A character inside a sentence."""
_ADV = (
    r"(?: (?:really|quite|at all|all|completely|totally|just|also|still|even|actually|exactly|in any"
    r" way|directly|properly|clearly|entirely|so|very|rather|simply|either|again|a bit|a little"
    r"|perhaps|probably|maybe|truly|really|somehow|now|only|mostly|rather|too|way))*"
)
_THIS = r"(?:this|that|these|those|which|none of (?:it|this|that|these|those|which))"
_IT = r"(?:it|they|he|she|i|you)"
_BE = r"(?:is|was|are|were|isn't|wasn't|aren't|weren't|'s|'re)"
_IS_NOT = r"(?:(?: is| was| are| were|'s|'re)(?: \w+)? not|(?: is| was| are| were)n't)"
_DO_NOT = (
    r"(?:(?:do|does|did|will|would|can|could|might|may|has|have|had|should)(?: \w+)? not|won't"
    r"|can't|cannot|(?:do|does|did|would|could|has|have|had|should)n't)"
)

# What was just written
_TEXT = (
    r"(?:text|answer|response|reply|passage|paragraph|explanation|version|attempt|draft|section"
    r"|description|message|output|part|half|bit|list|lines?|sentences?|guide|equation|paragraphs"
    r"|words|content|information|story|tangent)"
)
_ABOVE = (
    r"(?:(?:the|all of the|everything|most of the) (?:above|foregoing|preceding)\b(?! all)"
    rf"(?: {_TEXT}\b)?"
    rf"|(?:the|this|that|my|these|those) (?:\w+ )?{_TEXT} (?:above|before (?:this|that)|so far"
    r"|i (?:just |have )?(?:wrote|gave|written|given|put)|provided|given)\b"
    rf"|(?:the|my|that|this) (?:previous|last|prior|preceding|earlier|first|initial) (?:few )?{_TEXT}\b"
    r"|what (?:i|i've|i have|was|is|has been)(?: just)? (?:wrote|written|said|put|gave|given"
    r"|described|typed|told you)\b"
    r"|(?:everything|all) (?:so far|up to here|i (?:just |have )?(?:said|wrote|written))\b"
    r"|my (?:\w+ )?(?:answer|response|reply|explanation)\b)"
)
_THIS_TEXT = rf"(?:(?:this|the|that) (?:\w+ )?(?:response|reply|answer|passage|text|output|author|writer))\b"

# What is wrong with it
_BAD = (
    r"(?:wrong|incorrect|inaccurate|irrelevant|unrelated|off[- ](?:topic|track|the mark|point"
    r"|course|base)|beside the point|nonsens\w*|gibberish|jumbled?|garbled|incoherent|confus\w+"
    r"|mixed[- ]up|unclear|a mess|muddled?|unhelpful|useless|absurd|ridiculous|silly|weird|odd"
    r"|strange|a joke|a tangent|out of place|misleading|mistaken|not right|rambling|hard to follow"
    r"|poor(?:ly)?|a mistake|an error|off)\b"
)
_FAILS = (
    r"(?:nothing to do with|(?:makes?|made) (?:no|little) sense|no (?:clear|real|actual) \w+"
    r"|lost (?:sight|track)|mistook|mixed (?:up|together)|reads (?:as if|like)|more of an? "
    r"|little (?:in it|they|about|to do|use)|fail(?:s|ed)? to|skip(?:s|ped)|drift\w*|stray\w*"
    r"|wander\w*|rambl\w*|belongs? (?:to|in) an?other|too busy with|miss(?:es|ed) the (?:point|mark)"
    r"|(?:of|is|be) (?:no|not much|little) (?:help|use))\b"
    r"|(?:of|much|any) help\b"
)

# What was wanted
_TASK = (
    r"(?:question|task|prompt|request|topic|query|assignment|subject|instructions?|matter|point"
    r"|issue|ask)\b"
)
_WANTED = (
    r"(?:(?:you|they|the user|user|i|we)(?: had|'d| have|'ve|'re| are| were| was)?"
    r"(?: (?:actually|originally|really|just|first|were|been))?"
    r" (?:ask(?:ed|ing)?|wanted|request(?:ed|ing)|needed|looking for|after|posed)"
    r"|(?:was|were|is|been)(?: \w+)? (?:asked|wanted|requested|called for|needed))\b"
)

# First person
_LET_ME = (
    r"(?:let me|lemme|let us|let's|allow me to|i'?ll|i will|i shall|i'?d (?:better|like to)"
    r"|i would like to|i want to|i need to|i should|i must|i have to|i'm going to|i am going to"
    r"|i'm|i am|may i|can i|we should|we need to|we'll|time to|i'd rather)"
)
_JUST = r"(?: (?:just|please|now|quickly|actually|really|properly|briefly|simply|instead|try to|try and|go and|try))*"
_ANEW = (
    r"(?:over|again|anew|afresh|fresh|once more|one more time|properly|from (?:scratch|step one"
    r"|the (?:top|start|beginning)|the very (?:start|beginning)))\b"
)
_SLIP = (
    r"(?:drift\w*|stray\w*|slipp?(?:ed|ing)?\b(?! (?:on|off))|wandered|digress\w*|ramb?l(?:ed|ing)|veer\w*"
    r"|derail\w*|confus(?:ed|ing)|mistook|mistaken|mix(?:ed|ing) (?:up|this|that|things|two)"
    r"|mixed up|misread|misunder\w*|misspoke|misinterpret\w*|side-?track\w*|distracted|carried away"
    r"|lost (?:the thread|my (?:way|thread|place|train)|track|sight)|off[- ](?:topic|track|course"
    r"|point)|on a tangent|astray|got (?:it|that|this|all of that|everything) (?:all )?wrong"
    r"|mess(?:ed)? (?:that|this|it|up)|went off|regret|talking about|describing"
    r"|going on about|rambling|been (?:writing|answering|explaining|telling)"
    r"|(?:made|making|make) (?:an?|another|the same|some)(?: \w+)? (?:mistake|error|mess)s?\b)"
)
_ANECDOTE = (
    r"(?! (?:once|when|last year|years|in my (?:\w+ )?(?:resume|career|life|youth|paper|job)))"
)
_NOT_EXAMPLE = (
    rf"(?!{_G}{{0,60}}\b(?:another|new|different|second|more|an?) "
    r"(?:example|problem|set|number|case|exercise|value|pair)s?\b)"
)
_VERSION = (
    r"(?:version|answer|response|reply|explanation|attempt|draft|guide|overview|one|replacement"
    r"|text|try|take|go|approach)"
)
_BETTER = (
    r"(?:better|best|revised|corrected|correct|improved|proper|cleaner?|clearer?|new|updated|second"
    r"|third|right|real|actual|more \w+|rewritten|fixed|well[- ]\w+|structured|orderly|different"
    r"|helpful|useful|on-topic|accurate)"
)

_STOP = (
    r"(?:wait|hold on|hold up|hang on|oops|whoops|whoa|hm+|uh+|um+|ugh|ahem|oh|nope|er+|argh|hey"
    r"|good grief|oh dear|my goodness|goodness|yikes|eek|huh|what\?)"
)

_CUES: list[tuple[str, int, str]] = [
    # --- not what was asked -------------------------------------------------------------------
    (
        "asked",
        4,
        rf"\b(?:{_IS_NOT.strip()}|isn't|wasn't|not|n't|hardly|never){_ADV}"
        rf"(?: (?:about|on|in|to|for|of|answering|addressing))? ?"
        rf"(?:what|the (?:\w+ )?(?:thing|one|kind|sort|question|\w+)(?: of \w+)?(?: that| which)?|something"
        rf"|anything|where|how)(?: it (?:is|was)(?: that)?)? (?:you|the user|i was|i am|was|is)\b"
        rf"(?:'d|'re| had| have| are| were| been| actually| originally| really| just| first)*"
        rf" ?(?:ask|asked|asking|wanted|want|requested|request|needed|looking for|after|supposed|meant)\b",
    ),
    ("asked", 4, r"\b(?:(?:was|were|is)(?: not|n't)|not|never|nobody|no one|no-one)(?: \w+)? asked(?: for| about| here| either| of me)?\b(?! (?:you|to|if|whether|me))"),
    ("asked", 4, r"\byou (?:did not|didn't|never|don't|do not)(?: \w+)? (?:ask|want|request|wanted|asked|need)(?: to (?:know|hear|read)| about| for)\b"),
    (
        "asked",
        4,
        rf"\b(?:{_DO_NOT}|fails? to|hardly)(?:{_ADV}| (?:seem|appear) to)* ?"
        rf"(?:fit|answer|address|match|suit|belong|relate|respond|meet|concern|apply|help|correspond|tackle|cover|deal)"
        rf"{_ADV}(?: (?:in|into|to|with|for|under|here))*"
        rf" (?:(?:the|your|this|my) (?:\w+ )?{_TASK}|what (?:you|was|i was|is))",
    ),
    ("asked", 2, rf"\b(?:{_DO_NOT}|fails? to|hardly)(?: (?:seem|appear) to)?{_ADV} (?:fit|answer|address|suit|help|belong)\b"),
    ("asked", 3, r"\b(?:which|that|this|it|they|these|those|none of (?:it|this|that|which)|(?:has|have|had) (?:absolutely )?nothing)\b(?: (?:has|have|had))?(?: (?:absolutely|really|got))? (?:nothing|anything|little|zero) (?:whatsoever )?to do with\b"),
    ("request", 4, r"\b(?:you (?:were|are) (?:actually |really )?asking|you're asking) (?:about|for|me|how)\b"),
    ("request", 3, rf"(?:(?<=[.!?\n] )|(?<=\n)|(?<=: )|\b(?:but|and|yet|when|though|because|since|while|as|that|sorry|pity)(?: yet)? )you (?:had |have |'ve )?(?:just |actually |originally |really |only )?(?:wanted|asked|requested)\b(?! (?:to be|by|your|them|him|her))"),
    ("request", 4, rf"\b(?:your|the|my)(?: \w+)? (?:question|task|prompt|request) (?:was|is|were|here is|asks|asked|here was)(?: \w+)? (?:about|how|to|for|on|all)\b"),
    ("request", 3, r"\bi (?:was|am|'m|have been|had been) (?:\w+ )?(?:asked|supposed|meant|here|told) (?:to|for|about)\b"),
    ("request", 2, r"\b(?:supposed|meant) to (?:be|answer|write|explain|talk|say|do|tell|help)\b"),
    ("request", 3, r"\bwhen it (?:should|ought)\b|\binstead of (?:answering|what (?:you|was))|\bi should (?:be|have been) (?:\w+ing)"),
    ("request", 2, r"\bwhat (?:you|was|is)(?:'re| are| were)?(?: actually| really)? (?:wanted|asked|need|want|asking|needed|after|looking for)\b(?: is| was|:)?"),
    ("request", 2, r"\bwhen you (?:want|need|asked|wanted)\b"),
    # --- a verdict on the text ----------------------------------------------------------------
    ("verdict", 4, rf"\b{_ABOVE}{_G}{{0,80}}?\b(?:{_BAD}|{_FAILS})"),
    ("verdict", 4, rf"\b(?:none|nothing|little|not much|no part|not a word) (?:of|in) (?:that|this|it|what|{_ABOVE}){_G}{{0,40}}\b(?:is|was|are|were|has|had|helps?|helped|real|relevant|answers?|makes?|belongs?|applies)\b"),
    ("verdict", 2, rf"\b{_ABOVE}{_G}{{0,40}}?\b(?:n't|not)\b"),
    ("verdict", 4, rf"\b{_THIS_TEXT}{_G}{{0,60}}?\b(?:{_FAILS}|incoherent|jumbled?|garbled|confus\w+|irrelevant|off[- ]topic|nonsens\w*|unrelated|unclear|rambl\w*)"),
    ("verdict", 3, rf"\b{_THIS_TEXT}{_G}{{0,30}}?(?:not|n't) (?:\w+ )?(?:seem|appear|answer|address|help|make|provide|give|fit|clear|relevant|helpful|useful|what|about)\b"),
    ("verdict", 3, rf"\b(?:it|there|this|that)(?: \w+)? (?:seems?|appears?|looks?)\b{_G}{{0,80}}?\b(?:jumbled?|garbled|incoherent|mixed up|mix-up|confusion|nonsens\w*|gibberish|unrelated|irrelevant|off[- ]topic|off[- ]track|confused|a mistake|an error|mess)\b"),
    ("verdict", 3, rf"\b(?:this|that|these|those|all (?:of )?(?:this|that))(?:'s| is| was| are| were| sounds| seems| looks| has become| got| came out| turned)(?: \w+){{0,2}} (?:nonsens\w*|gibberish|ridiculous|absurd|off[- ]topic|off[- ]track|off the mark|a tangent|beside the point|irrelevant|unrelated|a jumble|a mess|incoherent|confused|not it|not relevant|out of place)\b"),
    ("verdict", 2, rf"(?:^|[.!?:;,—–\n(*] ?|\b(?:but|no|and|so|well|okay|ok|seriously|sorry|oh|actually|however|because|again|that|though) ){_THIS}{_IS_NOT}{_ADV} (?:right|correct|accurate|true|it|helpful|useful|relevant|what|how|the)\b"),
    ("verdict", 2, rf"(?:^|[.!?:;,—–\n(*] ?|\b(?:but|no|and|so|well|okay|ok|seriously|sorry|oh|actually|however|still|all) )(?:{_THIS}(?: is| was|'s| are)){_ADV} (?:wrong|incorrect|a mistake|an error|silly|weird|strange|odd|false|not right|not correct|nothing)\b"),
    ("verdict", 2, rf"\b(?:has|have|had) no (?:place|business) in\b|\b(?:don't|doesn't|do not|does not|did not|didn't) belong\b|\bno way to\b|\bno way for\b"),
    # This/none of which + will not + do the task: counts in full only with a consequence or the task
    ("this_not", 2, rf"(?:(?:^|[.!?:;,—–\n(*]) ?|\b(?:but|yet|and|so|well|okay|ok|though|although|only|because|again|however|know|sorry|wait|no) )(?:{_THIS}|it|(?:forgive me|sorry|pardon me),? (?:that|this|the) \w+)(?: \w+)?(?:{_IS_NOT}| {_DO_NOT})"),
    ("this_not", 2, r"\bnone of (?:which|this|that|these|those|it) (?:will|is|was|can|does|helps?|would|has|are|were)\b"),
    ("this_not", 2, r"\b(?:which|this|that|it)(?: again)?(?: is|'s| was)(?: \w+){1,4} (?:and not|not|rather than|instead of)\b(?! only| just)"),
    ("this_is", 1, rf"(?:^|[.!?:;,—–\n(*] ?|\b(?:but|no|and|so|well|okay|ok|seriously|sorry|oh|actually|wait|stop|again),? )(?:this|that|these|those)(?:'s| is| was| are| were| has become)\b"),
    # --- the author's slip --------------------------------------------------------------------
    ("slip", 4, rf"\b(?:i|we)(?:'ve| have|'m| am| was| had)?\b(?! (?:once|can|could|would|will|often|never))[^.!?\n,;:]{{0,28}}?\b{_SLIP}{_ANECDOTE}"),
    ("slip", 3, r"\bi (?:\w+ )?(?:gave|told|offered|wrote|described|answered|sent|meant|brought|put)(?: you)? (?:an?|about|the wrong|you|instead|as if|of|in)\b(?! (?:once|above))"),
    ("slip", 3, r"\b(?:i|we)(?: really| probably)? (?:shouldn't|should not|should never|was not supposed to|wasn't supposed to|did not mean to|didn't mean to|hadn't meant to)\b"),
    ("slip", 3, r"\b(?:why|what|who|where|how)(?: on earth| the heck)? (?:am|was|were|did|have|had|do) (?:i|we)\b(?! (?:know|supposed to know))"),
    ("slip", 3, r"\bi (?:don't|do not|have no idea|am not sure|'m not sure|can't|cannot) (?:know |say |explain |tell )?(?:where|why|how|what made) (?:that|this|i|me|it)\b"),
    ("slip", 3, r"\bi (?:now |just )?(?:realize|realise|notice|see)(?:d)?(?: now)?(?: that)? (?:i|this|my|the (?:above|last))\b"),
    ("slip", 4, r"\bi (?:take (?:that|it|this|it all) back|did it again|'ve done it again|have done it again)\b|\b(?:there|here) i go (?:again|with|on)\b|\b(?:i keep|i can't stop) \w+ing\b"),
    ("slip", 3, r"\bi know (?:it|this|that)(?:'s| is| was)?(?: \w+)? not\b|\bi seem to\b|\bi (?:had|have)(?: \w+)? forgotten\b"),
    ("slip", 4, r"\bmy (?:mind|thoughts?|attention|brain|pen|words?|answer|response)(?: \w+)? (?:wander|drift|stray|slip|got away|ran away|went off|was elsewhere)"),
    ("slip", 4, r"\bwhere (?:was|were) (?:i|we)\b(?! (?:born|when))|\bas i was saying\b"),
    ("slip", 3, r"\b(?:just|only) (?:kidding|joking)\b|\bthat's twice\b|\bi (?:meant|mean) the\b|\bthe (?:author|writer) (?:has|seems|appears|got|lost|is|was)\b|\bwhoever wrote\b"),
    # --- excuse and interjection --------------------------------------------------------------
    ("sorry", 2, rf"(?:^|[.!?:;,—–\n(*#-] ?|\b(?:and|but|so|oh|well|again|no|wait|okay|ok) )(?:oh |i'm |i am |my |so |very |really |please |deepest |sincere |do )*(?:sorry|apologies|i apologi[sz]e|apologi[sz]ing|forgive me|pardon(?: me| the| my)?|excuse (?:me|the|my)|i owe (?:you|everyone) an apology)\b(?!,? (?:to say|if|couldn't|could not|not|you|your|dear|sir|madam|for (?:your|the delay|the (?:inconvenience|trouble|late))))"),
    ("about", 2, r"(?:sorry|apologies|apologi[sz]e|forgive|pardon|excuse)(?: me)?(?: for| about)? (?:that|this|the (?:\w+ |\w+-\w+ ){0,3}(?:confusion|mistake|error|mix-?up|digression|detour|tangent|misunderstanding|mess|rambling|response|answer|reply|slip|nonsense|interruption|distraction|outburst|misinformation|break|drift|above)|my (?:\w+ ){0,2}(?:mistake|error|rambling|answer|response|reply|mix-?up|confusion|slip)|any (?:\w+ )?confusion|(?:being|going|getting|having|writing|talking|bringing|rambling|drifting|all))\b"),
    ("about", 2, r"(?:sorry|apologies|apologi[sz]e|forgive me|pardon)[\s,.!—–-]*(?:but |that )?(?:i|that|this|those|it|let|wrong|back|where)\b(?! (?:you|know|can't|cannot|couldn't|won't|to))"),
    ("stop", 4, r"(?:^|[.!?:;,—–\n(*] ?|\b(?:um|hmm|oh|so|and) )(?:oh )?(?:no,? (?:no,? )?wait|wait,? (?:wait,? )?no|oops|whoops|my (?:mistake|bad|error)|wait,? what|oh no,? stop|no[,. ]+no[,. ]+no)\b(?! (?:more|longer|less|time|list|for|until|one))"),
    ("stop", 2, rf"(?:^|[.!?:;—–\n(*] ?|, (?:no,? )?|\b(?:okay|ok|oh|so|no|actually|but|and|um),? )(?:{_STOP}(?: a (?:minute|moment|second|sec|bit)| there| right there)?|stop(?: stop)?|no|actually,? no|one (?:moment|second|sec)|enough|okay|ok|anyway|seriously|alright|well)(?=[\s*]*[,.!?…—–-]| stop)"),
    ("stop", 1, r"\b(?:but seriously|seriously|anyways?|in any case|at any rate|moving (?:on|forward)|that said|be that as it may|joking aside)\b"),
    ("stop", 2, rf"\s(?=(?-i:Wait|No,? wait|Hold on|Hang on|Oops|Sorry|Hmm+)\b[,.!…—–-])"),
    # --- starting again -----------------------------------------------------------------------
    (
        "redo",
        4,
        rf"\b(?:{_LET_ME}|let)\b{_JUST} (?:(?:re)?(?:start|begin|try|do|go|say|take|write|explain|answer|phrase|put)(?:ing)?\b"
        rf"(?: \w+){{0,4}}? {_ANEW}|redo\b|restart\b(?! (?:the|your|it\b))|backtrack|rephrase\b|reword|rewind|reset\b(?! (?:the|your|it\b))|regroup|refocus"
        r"|re-?answer|retract|step back\b(?! (?:and|to|from))|back up\b|return to (?:the|your|my|our) (?:\w+ )?"
        rf"{_TASK}|(?:scrap|discard|drop|bin|undo|erase|delete|forget|abandon|ignore) (?:this|that|all|it|the|what|everything)\b"
        r"|(?:revise|correct|fix|rewrite|amend|reconsider|replace|clean up) (?:my|that|this|the above|what i|the last)\b"
        r"|(?:give|take) (?:this|that|it) another (?:try|go|shot|stab)|stop (?:myself|there|here|right)|get (?:serious|back on track|on track|to the point))",
    ),
    ("redo", 3, rf"(?:^|[.!?:;,—–\n(*#] ?|\b(?:okay|ok|so|and|well|then|now),? )(?:re)?(?:start|begin)ning? (?:(?:this|it|the \w+) )?{_ANEW}(?=[ ]*[:.,!—–-]| here| now| as| with| then| in)"),
    ("redo", 3, rf"(?:^|[.!?\n*#] ?|\b(?:okay|ok|so|then|now|alright),? )(?:\W*)(?:a )?(?:second|third|fourth|new|another|next|fresh|one more|take|last|final) (?:try|go|attempt|take|shot|two|three)\b(?=[ ]*[:.,!—–*-])"),
    ("redo", 3, rf"\b(?:{_LET_ME})\b{_JUST} (?:go|get|come|turn|steer|bring \w+|return|move|switch|focus)(?: back)? (?:to|on|onto) (?:the |your |my |what )"),
    ("redo", 3, rf"\b(?:i'm|i am|i'll|i will|i shall|i would rather){_G}{{0,50}}?\b(?:instead of|rather than|not) (?:that|this|it|the (?:above|previous|second|other|last|one))\b"),
    ("redo", 2, rf"\b(?:{_LET_ME})\b{_JUST} (?:give|provide|offer|write|tell|show|present|answer|address|explain|say|calculate|plan|describe|help|clarify|correct|respond|drop|leave|focus|reconsider|check|think|re\w+)\b"),
    ("redo", 2, r"\b(?:erasing|deleting|scrapping|dropping|scratching|striking|discarding|forgetting|ignoring) (?:that|this|all|everything|the above|it)\b"),
    ("redo", 1, r"\b(?:so|here|now)(?: then)? (?:here (?:goes|are|is)|here's|goes|moving (?:forward|on)|to continue|the (?:answer|next|way|steps?)|for the|what i|in the|we|you should|again)\b|\bhere (?:is|are|'s) (?:what|how|the)\b|\bhere's (?:what|how|the)\b|\b(?:please )?use this instead\b|\bwhat you need\b|\bthis time\b|\bthe way it goes\b"),
    ("redo", 1, r"\bso,? (?:i|let)\b|\bso i am\b"),
    ("redo", 3, rf"\b(?:one more time|once more|from the top|take two)\s*[:.,!—–-]"),
    # --- a better version ---------------------------------------------------------------------
    ("version", 4, rf"(?:^|\n)[ \t>*_#\[(]*(?:here (?:is|are|'s) (?:the |a |my |an )?|here's (?:the |a |my |an )?|my )?(?:revised|corrected|rewritten|improved|amended|second|third|new|better|updated|correct|proper|actual|real|clean) (?:response|answer|version|reply|attempt|explanation|draft)[ \t*_]*(?:[:—–.!-]|\n|$)"),
    ("version", 3, rf"\bhere(?:'s| is| are)(?: the| an?| my)?(?: \w+,?)? {_BETTER}(?:,? \w+)? {_VERSION}\b(?! to)"),
    ("version", 2, rf"\bhere(?:'s| is| are)(?: the| an?| my)?(?: \w+,?)? {_BETTER}\b"),
    ("version", 3, rf"\b(?:below (?:is|you(?:'ll| will) find)|what follows is|the following is)(?: the| an?| my)?(?: \w+,?)? (?:\w+ )?{_VERSION}\b"),
    ("version", 2, rf"\b(?:an?|the|suggested|one) (?:\w+ )?(?:better|helpful|useful|clearer|correct|revised|more \w+|proper)(?: and \w+)? (?:explanation|answer|reply|response|version|overview|guide|way to (?:put|say|answer|explain))\b|\bbetter served\b|\bsuggested replacement\b|\bput it more plainly\b"),
    ("version", 2, r"(?:^|\n)[^\n]{0,60}\b(?:second|third|new|revised|updated|corrected) (?:draft|version|try|attempt|plan|take)\b"),
    ("version", 3, r"\bthis replaces\b|\breplac(?:es|ing) (?:the text|what|the above)"),
    ("version", 4, r"(?:^|[.!?\n(*] ?)(?:\W*)(?:edit|erratum|correction|take two|revised|corrected)\s*[*_]*[:,—–]"),
    ("version", 2, r"\bthe (?:correct|proper|right|real|actual) (?:way|answer|steps?|method|procedure|response|question|task|topic|one)\b"),
    # --- drop it ------------------------------------------------------------------------------
    (
        "drop",
        4,
        rf"(?:(?:^|[.!?:;,—–\n(*] ?)|\b(?:so|and|but|please|just|no|actually|better|kindly|let's|let me|okay|ok) )(?:please |just |kindly |better |you can |you may )*(?:scratch|strike|ignore|forget|disregard|delete|erase|scrap|skip|cross out|discard|overlook)"
        rf" (?:about )?(?:(?:that|this|it)(?: all)?(?=\s*[.,!;:—–)-]|\s*$| list| last| part| whole| and )|what i|everything (?:i|above)|all (?:of )?(?:that|this|the above)|my (?:previous|last|first|earlier|answer)"
        rf"|that (?:list|part|last|whole|paragraph|bit)|(?:the )?(?:above|foregoing|last (?:part|bit|paragraph|sentence|line|section|few)|previous (?:\w+))\b(?! (?:and|then|instruct\w*|rules?)\b))",
    ),
    ("drop", 2, r"\b(?:never ?mind|enough of|enough about|leave (?:the|that|aside)|forget (?:about )?the)\b"),
    # --- back to ------------------------------------------------------------------------------
    ("back", 4, rf"\b(?:back|return(?:ing|s)?|turn(?:ing)?|revert\w*|surfac\w*|com(?:e|ing)|get(?:ting)?|on|now|answer(?:ing)?)(?: now| again| round)? (?:to|on|onto) (?:(?:the|your|my|our|this) (?:(?:\w+|original|actual) )?(?:question|task|topic|prompt|request|matter at hand|subject|assignment|original)\b|what (?:was|you|i was|is) (?:asked|were|wanted|asking|supposed|meant))"),
    ("back", 3, r"(?:^|[.!?:;,—–\n(*] ?|\b(?:anyways?|so|now|okay|ok|well|right|and|but|then|alright),? (?:let's |let me |let us |i'll |now )?(?:get |go |come |getting |going )?)(?:back|returning|return) to (?!back)(?:the |your |our |my )?\w+"),
    ("back", 3, r"\bbrings? (?:me|us) (?:back|round|around|finally|at last) to\b|\b(?:getting|moving|coming) off (?:the|that|this) \w+ and (?:on|on to|onto|back)\b"),
    ("back", 2, r"\b(?:let's|let me|let us|i'll|i shall|i will) (?:return|get back|go back|come back|turn(?: back)?)(?: now)? to\b"),
    ("back", 2, r"(?:^|[.!?\n] ?|\bso )(?:to|now to|and now to|on to) (?:actually |really |properly )?(?:answer|address|correct|return|get back|go back)\b"),
]  # fmt: skip

CUES = [Cue(kind, weight, re.compile(pattern)) for kind, weight, pattern in _CUES]
