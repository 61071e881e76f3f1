"""What models write when they start over, as patterns for the beginning of a sentence.

A strong pattern is a restart by itself. A weak one also occurs in plain how-to text ("This is
incorrect.", "Hold on."), so it counts only beside another. All are matched against lower-case text
with straight apostrophes, and only where a sentence begins: "..., and that's not right, and ..."
is drift, not a restart.
"""

import re

_GAP = r"[\s,.!?…:;—–-]*"
_LEAD = (
    r"(?:(?:u[mh]+|h+m+|mm+|oh(?: my| dear| no)?|ah|whoa|wow|ugh|ok(?:ay)?|well|so|but|and|no"
    r"|nope|yes|right|al(?:l |l)?right"
    rf"|actually|anyway|now|then|again|please|yeah|hey)\b{_GAP}){{0,5}}"
)
_STOP = (
    r"(?:wait(?: a (?:minute|moment|second|sec))?|hold on(?: a (?:minute|moment|second|sec))?"
    r"|hang on(?: a (?:minute|moment|second|sec))?|oops|whoops|stop|sorry|i'm sorry|i am sorry"
    r"|(?:just )?(?:one|a) (?:moment|second|sec)|h+m+|oh no|oh|no|nope|actually no|actually,? no)\b"
)
_SELF = (
    r"(?:let me|let's|let us|allow me to|i'?ll|i will|i'd like to|i would like to|i want to"
    r"|i need to|i should|i must|i have to|i'm going to|i am going to|may i|can i)"
)
_ADVERB = r"(?: (?:just|please|now|quickly|actually|really|properly|briefly|simply|instead))?"
_AGAIN = r"(?:over|again|anew|afresh|fresh|from (?:scratch|the (?:top|start|beginning)))"
_OWN = (
    r"(?:that|this|it|(?:the|what i (?:just )?(?:said|wrote)|everything) (?:above|so far)"
    r"|what i (?:just )?(?:said|wrote)|(?:my|the) (?:previous|last|first|earlier|original)?"
    r" ?(?:answer|response|explanation|reply|attempt|text|paragraph|part)|none of (?:that|this))"
)
_BE_NOT = r"(?:'s not| is not| isn't| was not| wasn't|'s| is| was)"
_BAD = (
    r"(?: (?:quite|really|at all|all|completely|totally|just|also|still))?"
    r" (?:right|correct|accurate|relevant|what you (?:asked|wanted)\b.*|what i (?:was asked"
    r"|meant)\b.*"
    r"|the (?:question|answer|task|topic)|wrong|incorrect|irrelevant|nonsense|unrelated\b.*"
    r"|off[- ]?topic|a mistake\b.*|an error\b.*|not (?:right|correct))"
)
_END = (
    r"(?: (?:either|at all|again|though))?\s*(?:$|[,.!?…;:—–)-]\s*(?:$|i\b|so\b|sorry|let|but\b"
    r"|the\b|here))"
)

_NEW_EXAMPLE = (
    r"(?!.{0,60}\b(?:another|new|different|second|more) "
    r"(?:example|problem|set|number|case|exercise|one|value|pair)s?\b)"
)

_STRONG = [
    # Wait, that's not right / Hold on, I should ... / No, that's wrong / Hmm, this isn't ...
    rf"{_LEAD}{_STOP}{_GAP}{_LEAD}{_OWN}{_BE_NOT}{_BAD}",
    rf"{_LEAD}(?:wait|hold on|hang on|oops|whoops|stop)\b[^.]{{0,20}}[,.!?…—–-]+\s*{_LEAD}"
    r"(?:(?:that|this|it)(?:'s| is| was| isn't| wasn't| has| had| doesn't| does not)\b"
    r"|i(?:'m| am|'ve| have| think| should| need| meant| was| got| did| don't| just| seem"
    r"| made| misread| misunderstood| realize| realise|'d like to)\b(?! (?:sure|told|know))"
    r"|what am i|why am i|where was i|wrong\b|let me|let's|the question|back to)",
    rf"{_LEAD}(?:no,? (?:no,? )?wait|wait,? (?:wait,? )?no)\b(?! (?:more|longer|less|time|list"
    rf"|for|until))",
    r"(?:oops|whoops|my (?:mistake|bad|error))\b",
    # Let me start over / I'd like to revise my answer / Let's go back to the question
    rf"{_NEW_EXAMPLE}{_LEAD}(?:sorry{_GAP})?{_SELF}{_ADVERB} (?:"
    r"try (?:(?:this|that|it|to [a-z ]{3,30}) )?(?:again|once more|one more time)"
    rf"|(?:re)?(?:start|begin) (?:this |that |it |my answer )?{_AGAIN}|restart\b"
    r"|redo (?:this|that|it|my)|(?:give|take) (?:this|that|it) another (?:try|go|shot|stab)"
    r"|backtrack|back up\b"
    r"|return to (?:the|your|my|our) (?:question|task|topic|original|actual|subject)"
    r"|(?:revise|correct|fix|rewrite|amend|retract|reconsider) (?:my|that|this|the above|what i)"
    r"|refocus|re-?answer|step back\b|rephrase (?:that|this|my|the)\b"
    r"|(?:think (?:about )?(?:this|that|it)) (?:through )?again)",
    r"(?:start|begin)ning? (?:over|again|from scratch)\s*[:.,!—–-]",
    r"starting (?:over|again|from scratch)\b",
    r"(?:second|new|another) (?:try|attempt)\s*[:.!—–-]",
    # I made a mistake / I got off track / I'm not answering the question
    rf"{_LEAD}(?:sorry{_GAP})?i(?: think| believe| realize| realise| see| notice)?(?: that)?(?: i)?"
    r"(?:'ve| have|'m| am| seem to(?: have)?| must(?: have)?| may(?: have)?| just| keep)?"
    r"(?: (?:just|also|somehow|clearly|completely|got|gotten|getting|been|going))?(?: (?:a bit"
    r"|a little))?"
    r" (?:ma(?:de|king) (?:a|an|another|the same|some) (?:\w+ )?(?:mistake|error)s?"
    r"(?! (?:once|when|last year|years|in my (?:resume|career|life|youth)))"
    r"|(?:got |went |gone |going |getting |veer\w* |drift\w* )?(?:way )?off[- ](?:track|topic"
    r"|course|on a tangent)"
    r"|(?:got )?(?:carried away|side-?tracked|distracted)|(?:drifted|wandered|strayed|digress\w*"
    r"|rambl\w*)"
    r"|lost (?:the thread|my (?:train|way|place|thread)|track of)|misunderstood|misread|misspoke"
    r"|mix(?:ed|ing) (?:that|this|things|it)? ?up|messed (?:that |this |it )?up"
    r"|not answering|(?:didn't|did not|haven't|have not) (?:actually )?answer"
    r"|was wrong|got (?:that|this|it) (?:all )?wrong|(?:talking|describing|writing"
    r"|going on) (?:about )?\w+"
    r" .{0,40}(?:instead|rather than|not (?:about|the)|and not))",
    rf"{_LEAD}i (?:should|need to|ought to|was supposed to) (?:be |have been )?(?:answer|talk"
    rf"|writ|explain|describ|focus)"
    r"(?:ing|e|ed)? ?(?:about |on )?(?:the|your|a|how)\b",
    r"i (?:realize|realise|see|notice|think)(?:d)? (?:that )?(?:i|this|my|the)\b.{0,60}"
    r"(?:instead of|rather than|wrong|off[- ]topic|off[- ]track|mistake|not (?:what|answer|right"
    r"|correct|relevant))",
    # Scratch that / Forget what I said / Never mind
    rf"{_LEAD}(?:please )?(?:(?:scratch|strike) that|(?:ignore|forget|disregard) (?:that\b"
    r"|what i|everything i|all (?:of )?that|my (?:previous|last|first|earlier)"
    # Not "ignore the above and ...": that is what text says that wants to command a reader.
    r"|(?:the (?:above|previous|last|first)|everything above)"
    r"(?! (?:and|then|instruct\w*|rules?)\b)))",
    # Sorry, I ... / I apologize for the confusion / My apologies, that was ...
    rf"{_LEAD}(?:sorry|i'm (?:so |very )?sorry|i am sorry|(?:my )?apologies|i apologi[sz]e"
    rf"|forgive me|pardon me)\b"
    rf"{_GAP}(?:but |about |for )?{_GAP}(?:for )?"
    r"(?:(?:the|my|any|that|this) (?:earlier |previous |above )?(?:confusion|mistake|error"
    r"|mix-?up|digression|tangent|"
    r"misunderstanding|mess|rambling|response|answer)|that(?:'s|\b)(?! (?:you|we|your))"
    r"|i (?:made|got|went|was|seem|meant|mis\w+|drifted|keep|lost|wrote|started|digress)|let me"
    r"|let's"
    r"|wrong\b|back to|where (?:was|were))",
    r"correction\s*[:—–-]",
    rf"{_LEAD}(?:back|returning|getting back|going back) (?:to|on) (?:(?:your|the|my"
    rf"|our) )?(?:original |actual |real )?"
    r"(?:question|task|topic|point|subject|track)\b",
    rf"{_LEAD}{_OWN} (?:(?:has|had|have) nothing to do with|(?:does|did)(?:n't| not) (?:even "
    rf"|actually )?"
    r"(?:answer|address)|(?:is|was|were|are)(?:n't| not)? (?:even )?(?:relevant|irrelevant"
    r"|off[- ]topic|unrelated)\b)",
    r"(?:why|what) am i (?:talking|writing|saying|doing|going on|telling|describing|even)\b",
    rf"{_LEAD}(?:my|the) (?:previous|last|first|earlier) (?:answer|response|attempt|explanation"
    rf"|reply)"
    r" (?:was|is|had|contained|did)(?:n't| not)? (?:\w+ ){0,2}(?:wrong|incorrect|right|correct"
    r"|off|mistake|error|answer)",
]

_WEAK = [
    rf"{_LEAD}{_OWN}{_BE_NOT}{_BAD}{_END}",
    rf"{_LEAD}(?:wait|hold on|hang on)(?: a (?:minute|moment|second|sec))?\s*(?:$|[.!?…])",
    rf"{_LEAD}(?:still|that's|all) wrong\b",
    r"(?:no|nope|hmm+)\s*[.!…]*$",
    r"here(?:'s| is) (?:the|a|my) (?:correct(?:ed)?|better|proper|right|clear|revised|real|actual) "
    r"(?:answer|explanation|version|response|way|approach)",
    rf"{_LEAD}{_SELF} (?:actually|properly|really|instead|rephrase|clarify|correct)\b",
    rf"{_LEAD}{_SELF} (?:give|provide|offer|write)(?: you)? (?:a|the|an) (?:clear|correct|better"
    rf"|proper|actual|real)",
    rf"{_LEAD}{_SELF}{_ADVERB} (?:answer|address) (?:the|your)(?: \w+)? question",
    rf"{_LEAD}(?:one more time|once more|once again|from the top)\s*[:.,!—–-]",
    r"the (?:actual|original|real) (?:question|task|topic) (?:was|is)\b",
    rf"{_LEAD}(?:forget|ignore|enough) (?:about )?(?:the|of|all)\b(?! above)",
    r"(?:that|it) was a mistake\b",
]

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
_STRONG_FREE = [
    # Wait! That's about ... / No, sorry, those are ...
    rf"(?:wait|hold on|hang on|whoa|oops|sorry|no,? sorry"
    rf"|no,? wait)\b[,.!…—–-]+\s*{_LEAD}(?:sorry{_GAP})?"
    r"(?:(?:that|this|those|these)(?:'s| is| are| was| were)\b(?! (?:it|why|how|when|where|all"
    r"|life|ok))"
    r"|(?:why|what|where) (?:did|am|was|were|do|have) i\b|i(?:'ve| have) (?:just )?(?:been|gone"
    r"|got)\b)",
    rf"{_LEAD}(?:why|what|where) (?:did|am|was|were) i (?:even )?(?:mention|talk|say|writ|think"
    rf"|do|go)",
    rf"{_LEAD}i (?:now )?(?:realize|realise|see|notice)(?:d)?(?: now)?(?: that)? (?:i|this|my|the)"
    r"(?:'ve| have| was| am|'m)(?: just| been)* (?:\w+ing|about|off|wrong)\b",
    rf"{_LEAD}i\b.{{0,40}}\b(?:above|previous|earlier|i (?:just )?(?:said"
    rf"|wrote))\b.{{0,25}}\b{_OFF}\b",
    rf"{_LEAD}(?:i take (?:that|it|this) back|enough (?:of|about) (?:that|this)\b)",
    rf"{_LEAD}{_SELF}{_ADVERB} (?:rewind|reset|regroup)\b",
    rf"(?:al(?:l |l)?right|anyway|whoa|wow){_GAP}{_OWN}(?:'s| is| was)(?: \w+)? {_OFF}\b",
    rf"{_LEAD}i(?:'ve| have|'m| am| was| got)?\b(?: \w+){{0,9}} (?:confused|mistaken|distracted"
    r"|side-?tracked|mixed up|astray|carried away|off[- ](?:track|topic|course)|wandered|strayed"
    r"|drift(?:ed|ing)|rambl(?:ed|ing)|misread|misunderstood|misspoke|derailed|on a tangent"
    r"|lost (?:track|the thread|my (?:thread|way|place|train)))\b",
    rf"{_LEAD}(?:sorry|i'm sorry)?{_GAP}i (?:don't|do not|have no idea|am not sure|'m not sure)"
    r"(?: know)? (?:where|why|how|what made) (?:that|this|i|me)\b",
    rf"{_LEAD}{_OWN}(?:'s| is| was)(?: not|n't)?"
    r"(?: (?:completely|totally|entirely|clearly|so|way|all|just))? (?:off[- ](?:topic|track)"
    r"|beside the point|unrelated|irrelevant|relevant to (?:your|the) )",
    rf"{_LEAD}{_OWN}(?:'s not| is not| isn't| was not| wasn't|n't) (?:at all )?what you (?:\w+ )?"
    r"(?:ask|want|need|request|looking|look)",
    rf"{_LEAD}{_SELF}{_ADVERB} (?:forget|drop|ignore|scratch|leave) (?:about )?"
    r"(?:that|this|all|what)\b",
    rf"{_LEAD}{_SELF}{_ADVERB} stop (?:myself|there|here|right)\b",
    rf"{_LEAD}my {_MIND}(?: \w+)? (?:wander|drift|stray|slip|went|got|was (?:wrong|off)|made no)",
    rf"{_LEAD}(?:that|this|it) (?:came|went|turned|got) (?:out )?(?:all )?{_OFF}\b",
    rf"(?:{_LEAD}){_STOP}{_GAP}{_OWN}(?:'s| is| was| sounds?| seems?| looks?| does(?:n't| not)"
    rf" (?:sound|seem|look|feel|make))(?: \w+){{0,2}} (?:right|sense|correct|{_OFF})\b",
    rf"(?:well|okay|ok|ugh|um|uh|ah){_GAP}{_OWN}(?:'s| is| was)(?: \w+)? {_OFF}\b",
    r"(?:well,? |so,? |okay,? )?what i (?:meant|should have|wanted to|was (?:trying|supposed"
    r"|going) to)\b",
    rf"{_LEAD}(?:there|here) i go again\b|{_LEAD}i (?:did|'ve done|have done) it again\b",
    r"wait,? what\b",
    r"(?:i'm |i was )?(?:just|only) (?:kidding|joking)\b",
    r"(?:edit|erratum|take two|revised answer|corrected answer)\s*[:—–]",
    rf"{_LEAD}to (?:actually |really |properly )?(?:correct|rectify|revise|answer|address|return to"
    r"|get back to|go back to) (?:my|your|the (?:above|previous|original|actual|question)"
    r"|what you)\b",
    rf"{_NEW_EXAMPLE}{_LEAD}{_SELF}{_ADVERB} (?:try to )?(?:re-?read|answer|explain|approach"
    r"|(?:look at|read|consider) (?:the|your) (?:question|task))\b.{0,50}\b(?:again|correctly"
    r"|properly|this time|instead"
    r"|in a way that's|what you(?: actually)? asked)\b",
    rf"{_LEAD}(?:{_SELF}|i'm going to) (?:stop|pause)\b.{{0,30}}(?:and|to|before|,)",
    rf"{_LEAD}{_SELF}{_ADVERB} (?:get|be) (?:serious|back on track|to the point|focused)",
    rf"{_LEAD}(?:i apologi[sz]e|(?:my )?apologies|sorry|i'm sorry) (?:for|about) (?:the|that|this"
    rf"|my|any)"
    r"(?: \w+)? (?:incorrect|wrong|irrelevant|inaccurate|off[- ]topic|misleading|misinformation"
    r"|nonsense|tangent|detour|distraction|outburst|slip|mix|confus)",
    rf"{_LEAD}(?:and )?{_SELF}{_ADVERB} (?:go|get|come|steer|bring (?:us|this|it)) back (?:to|on)"
    rf" {_BACK_TO}",
]
_WEAK_FREE = [
    rf"{_LEAD}{_SELF}{_ADVERB} (?:re-?\w+|double-check|be more careful|check)\b",
    rf"{_LEAD}{_SELF} think\b",
    rf"{_LEAD}{_OWN}{_BE_NOT}(?: \w+)? (?:helpful|useful|it)\b",
    rf"{_LEAD}{_SELF}{_ADVERB} give you (?:some |a |the )?(?:real|actual|proper|better)\b",
    rf"{_LEAD}{_OWN}(?:'s| is| was)? ?(?:not|isn't|n't) (?:how|what|the way|where|why) (?:you|to|i"
    rf"|we|it)\b",
    rf"{_LEAD}{_OWN} (?:does(?:n't| not) (?:sound|seem|look|feel|make)|sounds|makes no)\b",
    rf"{_LEAD}{_SELF}{_ADVERB} (?:go|get|come) back to\b",
    r"(?:no[,!. ]+){2,}",
    rf"{_LEAD}(?:anyway|so|now)?{_GAP}(?:as i was saying|where were we|where was i)\b",
]

# German.
_STOP_DE = (
    r"(?:moment(?: mal)?|halt|stopp?|wart(?:e|en sie)(?: mal)?|nein|ups|hoppla|entschuldigung"
    r"|entschuldige|verzeihung|sorry|tut mir leid|oh)\b"
)
_WRONG_DE = (
    r"(?:das|dies|es) (?:stimmt|ist|war) (?:so |ja |leider |gar )*(?:nicht|falsch|ein fehler"
    r"|verkehrt|unsinn)"
)
_STRONG_DE = [
    rf"{_STOP_DE}{_GAP}(?:nein{_GAP})?(?:{_WRONG_DE}|ich (?:habe|bin|war|muss|fange|beginne"
    rf"|sollte|meinte)\b"
    r"|da (?:habe|bin) ich|falsch\b|lass|zurück zu)",
    r"(?:also,? |gut,? |ok(?:ay)?,? )?(?:ich|wir) (?:fange|beginne|versuche|probiere|starte"
    r"|fangen)\b.{0,25}"
    r"(?:noch ?mal|noch einmal|erneut|von vorne?|neu)\b",
    r"lass(?:en sie|t)? (?:mich|uns)\b.{0,25}(?:noch ?mal|noch einmal|erneut|von vorne?|neu"
    r"|korrigieren)\b",
    r"(?:da )?(?:habe ich|ich habe) (?:mich |da |hier )*(?:geirrt|vertan|vertippt|einen fehler)",
    r"ich (?:bin|war) (?:da |jetzt |wohl |etwas )*(?:vom thema|abge)",
    r"zurück (?:zur (?:frage|aufgabe)|zum thema)",
    r"(?:ich )?(?:korrigiere|korrektur)\b\s*(?:mich|[:.])",
]
_WEAK_DE = [rf"{_WRONG_DE}\b", r"(?:halt|stopp?|moment|nein)\s*[.!…]*$"]

# Spanish.
_STOP_ES = (
    r"(?:esper[ae](?:n)?|un momento|un segundo|perd[oó]n(?:a|e)?|disculp[ae]|lo siento|no|ups"
    r"|vaya|oh|ay)\b"
)
_WRONG_ES = (
    r"(?:eso|esto|lo anterior) (?:no (?:es|era|está|estaba|fue)|est[áa]ba? mal"
    r"|es(?:tá)? (?:incorrect\w|mal|un error))"
)
_STRONG_ES = [
    rf"{_STOP_ES}{_GAP}(?:no{_GAP})?(?:{_WRONG_ES}|me (?:he )?(?:equivo|confund|desvi|despist|lia"
    rf"|lié|perd"
    rf"|fui|ido)\w*"
    r"|(?:cometí|he cometido)|déjame|voy a|volvamos|vuelvo a (?:la|el) )",
    r"(?:bueno,? |bien,? |vale,? )?(?:déj[ae]me|permíte?me|voy a|vamos a|quiero)\b.{0,25}"
    r"(?:de nuevo|otra vez|nuevamente|desde (?:el principio|cero)|corregir)",
    r"(?:empecemos|empiezo|comencemos|comienzo|intentémoslo|lo intento)\b.{0,15}"
    r"(?:de nuevo|otra vez|nuevamente|desde (?:el principio|cero))",
    r"(?:creo que )?me (?:he )?(?:equivocado|equivoqué|confundido|confundí|desviado|desvié)\b",
    r"(?:cometí|he cometido) un error",
    r"volvamos (?:a la (?:pregunta|tarea)|al tema)",
    r"(?:corrijo|corrección)\s*[:.,]",
]
_WEAK_ES = [rf"{_WRONG_ES}\b"]


def _compiled(*groups: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for group in groups for pattern in group))


STRONG = _compiled(_STRONG, _STRONG_FREE, _STRONG_DE, _STRONG_ES)
WEAK = _compiled(_WEAK, _WEAK_FREE, _WEAK_DE, _WEAK_ES)
