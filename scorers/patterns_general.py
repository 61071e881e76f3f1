"""English restarts in freer wording: a first person, or the text itself, beside an error."""

from esr_eval.scorers.patterns_english import (
    ADVERB,
    BE_NOT,
    GAP,
    LEAD,
    NEW_EXAMPLE,
    OWN,
    SELF,
    STOP,
)

# Ways of saying the same that the lists above do not name: a first person, or the text itself,
# beside a word of error; a turn back to the question.
_MIND = r"(?:mind|thoughts?|attention|brain|answer|response|explanation|words)"
_OFF = (
    r"(?:off|wrong|weird|strange|silly|odd|nonsense|incorrect|confusing|unrelated|irrelevant"
    r"|a tangent|gibberish|absurd|unhelpful|a joke|not (?:right|it|helpful|relevant|correct))"
)
_BACK_TO = (
    r"(?:the |your |my |our )?(?:original |actual |real |initial )?(?:question|task|topic|track"
    r"|point"
    r"|matter|issue|subject|start|beginning|what (?:you|i) (?:asked|was asked|were asking))\b"
)
STRONG = [
    # Wait! That's about ... / No, sorry, those are ...
    rf"(?:wait|hold on|hang on|whoa|oops|sorry|no,? sorry"
    rf"|no,? wait)\b[,.!…—–-]+\s*{LEAD}(?:sorry{GAP})?"
    r"(?:(?:that|this|those|these)(?:'s| is| are| was| were)\b(?! (?:it|why|how|when|where|all"
    r"|life|ok))"
    r"|(?:why|what|where) (?:did|am|was|were|do|have) i\b|i(?:'ve| have) (?:just )?(?:been|gone"
    r"|got)\b)",
    rf"{LEAD}(?:why|what|where) (?:did|am|was|were) i (?:even )?(?:mention|talk|say|writ|think"
    rf"|do|go)",
    rf"{LEAD}i (?:now )?(?:realize|realise|see|notice)(?:d)?(?: now)?(?: that)? (?:i|this|my|the)"
    r"(?:'ve| have| was| am|'m)(?: just| been)* (?:\w+ing|about|off|wrong)\b",
    rf"{LEAD}i\b.{{0,40}}\b(?:above|previous|earlier|i (?:just )?(?:said"
    rf"|wrote))\b.{{0,25}}\b{_OFF}\b",
    rf"{LEAD}(?:i take (?:that|it|this) back|enough (?:of|about) (?:that|this)\b)",
    rf"{LEAD}{SELF}{ADVERB} (?:rewind|reset|regroup)\b",
    rf"(?:al(?:l |l)?right|anyway|whoa|wow){GAP}{OWN}(?:'s| is| was)(?: \w+)? {_OFF}\b",
    rf"{LEAD}i(?:'ve| have|'m| am| was| got)?\b(?: \w+){{0,9}} (?:confused|mistaken|distracted"
    r"|side-?tracked|mixed up|astray|carried away|off[- ](?:track|topic|course)|wandered|strayed"
    r"|drift(?:ed|ing)|rambl(?:ed|ing)|misread|misunderstood|misspoke|derailed|on a tangent"
    r"|lost (?:track|the thread|my (?:thread|way|place|train)))\b",
    rf"{LEAD}(?:sorry|i'm sorry)?{GAP}i (?:don't|do not|have no idea|am not sure|'m not sure)"
    r"(?: know)? (?:where|why|how|what made) (?:that|this|i|me)\b",
    rf"{LEAD}{OWN}(?:'s| is| was)(?: not|n't)?"
    r"(?: (?:completely|totally|entirely|clearly|so|way|all|just))? (?:off[- ](?:topic|track)"
    r"|beside the point|unrelated|irrelevant|relevant to (?:your|the) )",
    rf"{LEAD}{OWN}(?:'s not| is not| isn't| was not| wasn't|n't) (?:at all )?what you (?:\w+ )?"
    r"(?:ask|want|need|request|looking|look)",
    rf"{LEAD}{SELF}{ADVERB} (?:forget|drop|ignore|scratch|leave) (?:about )?"
    r"(?:that|this|all|what)\b",
    rf"{LEAD}{SELF}{ADVERB} stop (?:myself|there|here|right)\b",
    rf"{LEAD}my {_MIND}(?: \w+)? (?:wander|drift|stray|slip|went|got|was (?:wrong|off)|made no)",
    rf"{LEAD}(?:that|this|it) (?:came|went|turned|got) (?:out )?(?:all )?{_OFF}\b",
    rf"(?:{LEAD}){STOP}{GAP}{OWN}(?:'s| is| was| sounds?| seems?| looks?| does(?:n't| not)"
    rf" (?:sound|seem|look|feel|make))(?: \w+){{0,2}} (?:right|sense|correct|{_OFF})\b",
    rf"(?:well|okay|ok|ugh|um|uh|ah){GAP}{OWN}(?:'s| is| was)(?: \w+)? {_OFF}\b",
    r"(?:well,? |so,? |okay,? )?what i (?:meant|should have|wanted to|was (?:trying|supposed"
    r"|going) to)\b",
    rf"{LEAD}(?:there|here) i go again\b|{LEAD}i (?:did|'ve done|have done) it again\b",
    r"wait,? what\b",
    r"(?:i'm |i was )?(?:just|only) (?:kidding|joking)\b",
    r"(?:edit|erratum|take two|revised answer|corrected answer)\s*[:—–]",
    rf"{LEAD}to (?:actually |really |properly )?(?:correct|rectify|revise|answer|address|return to"
    r"|get back to|go back to) (?:my|your|the (?:above|previous|original|actual|question)"
    r"|what you)\b",
    rf"{NEW_EXAMPLE}{LEAD}{SELF}{ADVERB} (?:try to )?(?:re-?read|answer|explain|approach"
    r"|(?:look at|read|consider) (?:the|your) (?:question|task))\b.{0,50}\b(?:again|correctly"
    r"|properly|this time|instead"
    r"|in a way that's|what you(?: actually)? asked)\b",
    rf"{LEAD}(?:{SELF}|i'm going to) (?:stop|pause)\b.{{0,30}}(?:and|to|before|,)",
    rf"{LEAD}{SELF}{ADVERB} (?:get|be) (?:serious|back on track|to the point|focused)",
    rf"{LEAD}(?:i apologi[sz]e|(?:my )?apologies|sorry|i'm sorry) (?:for|about) (?:the|that|this"
    rf"|my|any)"
    r"(?: \w+)? (?:incorrect|wrong|irrelevant|inaccurate|off[- ]topic|misleading|misinformation"
    r"|nonsense|tangent|detour|distraction|outburst|slip|mix|confus)",
    rf"{LEAD}(?:and )?{SELF}{ADVERB} (?:go|get|come|steer|bring (?:us|this|it)) back (?:to|on)"
    rf" {_BACK_TO}",
]
WEAK = [
    rf"{LEAD}{SELF}{ADVERB} (?:re-?\w+|double-check|be more careful|check)\b",
    rf"{LEAD}{SELF} think\b",
    rf"{LEAD}{OWN}{BE_NOT}(?: \w+)? (?:helpful|useful|it)\b",
    rf"{LEAD}{SELF}{ADVERB} give you (?:some |a |the )?(?:real|actual|proper|better)\b",
    rf"{LEAD}{OWN}(?:'s| is| was)? ?(?:not|isn't|n't) (?:how|what|the way|where|why) (?:you|to|i"
    rf"|we|it)\b",
    rf"{LEAD}{OWN} (?:does(?:n't| not) (?:sound|seem|look|feel|make)|sounds|makes no)\b",
    rf"{LEAD}{SELF}{ADVERB} (?:go|get|come) back to\b",
    r"(?:no[,!. ]+){2,}",
    rf"{LEAD}(?:anyway|so|now)?{GAP}(?:as i was saying|where were we|where was i)\b",
]
