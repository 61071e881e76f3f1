"""English restarts, the usual ones: each list says which words it is about."""

GAP = r"[\s,.!?…:;—–-]*"
LEAD = (
    r"(?:(?:u[mh]+|h+m+|mm+|oh(?: my| dear| no)?|ah|whoa|wow|ugh|ok(?:ay)?|well|so|but|and|no"
    r"|nope|yes|right|al(?:l |l)?right"
    rf"|actually|anyway|now|then|again|please|yeah|hey)\b{GAP}){{0,5}}"
)
STOP = (
    r"(?:wait(?: a (?:minute|moment|second|sec))?|hold on(?: a (?:minute|moment|second|sec))?"
    r"|hang on(?: a (?:minute|moment|second|sec))?|oops|whoops|stop|sorry|i'm sorry|i am sorry"
    r"|(?:just )?(?:one|a) (?:moment|second|sec)|h+m+|oh no|oh|no|nope|actually no|actually,? no)\b"
)
SELF = (
    r"(?:let me|let's|let us|allow me to|i'?ll|i will|i'd like to|i would like to|i want to"
    r"|i need to|i should|i must|i have to|i'm going to|i am going to|may i|can i)"
)
ADVERB = r"(?: (?:just|please|now|quickly|actually|really|properly|briefly|simply|instead))?"
_AGAIN = r"(?:over|again|anew|afresh|fresh|from (?:scratch|the (?:top|start|beginning)))"
OWN = (
    r"(?:that|this|it|(?:the|what i (?:just )?(?:said|wrote)|everything) (?:above|so far)"
    r"|what i (?:just )?(?:said|wrote)|(?:my|the) (?:previous|last|first|earlier|original)?"
    r" ?(?:answer|response|explanation|reply|attempt|text|paragraph|part)|none of (?:that|this))"
)
BE_NOT = r"(?:'s not| is not| isn't| was not| wasn't|'s| is| was)"
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

NEW_EXAMPLE = (
    r"(?!.{0,60}\b(?:another|new|different|second|more) "
    r"(?:example|problem|set|number|case|exercise|one|value|pair)s?\b)"
)

STRONG = [
    # Wait, that's not right / Hold on, I should ... / No, that's wrong / Hmm, this isn't ...
    rf"{LEAD}{STOP}{GAP}{LEAD}{OWN}{BE_NOT}{_BAD}",
    rf"{LEAD}(?:wait|hold on|hang on|oops|whoops|stop)\b[^.]{{0,20}}[,.!?…—–-]+\s*{LEAD}"
    r"(?:(?:that|this|it)(?:'s| is| was| isn't| wasn't| has| had| doesn't| does not)\b"
    r"|i(?:'m| am|'ve| have| think| should| need| meant| was| got| did| don't| just| seem"
    r"| made| misread| misunderstood| realize| realise|'d like to)\b(?! (?:sure|told|know))"
    r"|what am i|why am i|where was i|wrong\b|let me|let's|the question|back to)",
    rf"{LEAD}(?:no,? (?:no,? )?wait|wait,? (?:wait,? )?no)\b(?! (?:more|longer|less|time|list"
    rf"|for|until))",
    r"(?:oops|whoops|my (?:mistake|bad|error))\b",
    # Let me start over / I'd like to revise my answer / Let's go back to the question
    rf"{NEW_EXAMPLE}{LEAD}(?:sorry{GAP})?{SELF}{ADVERB} (?:"
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
    rf"{LEAD}(?:sorry{GAP})?i(?: think| believe| realize| realise| see| notice)?(?: that)?(?: i)?"
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
    rf"{LEAD}i (?:should|need to|ought to|was supposed to) (?:be |have been )?(?:answer|talk"
    rf"|writ|explain|describ|focus)"
    r"(?:ing|e|ed)? ?(?:about |on )?(?:the|your|a|how)\b",
    r"i (?:realize|realise|see|notice|think)(?:d)? (?:that )?(?:i|this|my|the)\b.{0,60}"
    r"(?:instead of|rather than|wrong|off[- ]topic|off[- ]track|mistake|not (?:what|answer|right"
    r"|correct|relevant))",
    # Scratch that / Forget what I said / Never mind
    rf"{LEAD}(?:please )?(?:(?:scratch|strike) that|(?:ignore|forget|disregard) (?:that\b"
    r"|what i|everything i|all (?:of )?that|my (?:previous|last|first|earlier)"
    # Not "ignore the above and ...": that is what text says that wants to command a reader.
    r"|(?:the (?:above|previous|last|first)|everything above)"
    r"(?! (?:and|then|instruct\w*|rules?)\b)))",
    # Sorry, I ... / I apologize for the confusion / My apologies, that was ...
    rf"{LEAD}(?:sorry|i'm (?:so |very )?sorry|i am sorry|(?:my )?apologies|i apologi[sz]e"
    rf"|forgive me|pardon me)\b"
    rf"{GAP}(?:but |about |for )?{GAP}(?:for )?"
    r"(?:(?:the|my|any|that|this) (?:earlier |previous |above )?(?:confusion|mistake|error"
    r"|mix-?up|digression|tangent|"
    r"misunderstanding|mess|rambling|response|answer)|that(?:'s|\b)(?! (?:you|we|your))"
    r"|i (?:made|got|went|was|seem|meant|mis\w+|drifted|keep|lost|wrote|started|digress)|let me"
    r"|let's"
    r"|wrong\b|back to|where (?:was|were))",
    r"correction\s*[:—–-]",
    rf"{LEAD}(?:back|returning|getting back|going back) (?:to|on) (?:(?:your|the|my"
    rf"|our) )?(?:original |actual |real )?"
    r"(?:question|task|topic|point|subject|track)\b",
    rf"{LEAD}{OWN} (?:(?:has|had|have) nothing to do with|(?:does|did)(?:n't| not) (?:even "
    rf"|actually )?"
    r"(?:answer|address)|(?:is|was|were|are)(?:n't| not)? (?:even )?(?:relevant|irrelevant"
    r"|off[- ]topic|unrelated)\b)",
    r"(?:why|what) am i (?:talking|writing|saying|doing|going on|telling|describing|even)\b",
    rf"{LEAD}(?:my|the) (?:previous|last|first|earlier) (?:answer|response|attempt|explanation"
    rf"|reply)"
    r" (?:was|is|had|contained|did)(?:n't| not)? (?:\w+ ){0,2}(?:wrong|incorrect|right|correct"
    r"|off|mistake|error|answer)",
]

WEAK = [
    rf"{LEAD}{OWN}{BE_NOT}{_BAD}{_END}",
    rf"{LEAD}(?:wait|hold on|hang on)(?: a (?:minute|moment|second|sec))?\s*(?:$|[.!?…])",
    rf"{LEAD}(?:still|that's|all) wrong\b",
    r"(?:no|nope|hmm+)\s*[.!…]*$",
    r"here(?:'s| is) (?:the|a|my) (?:correct(?:ed)?|better|proper|right|clear|revised|real|actual) "
    r"(?:answer|explanation|version|response|way|approach)",
    rf"{LEAD}{SELF} (?:actually|properly|really|instead|rephrase|clarify|correct)\b",
    rf"{LEAD}{SELF} (?:give|provide|offer|write)(?: you)? (?:a|the|an) (?:clear|correct|better"
    rf"|proper|actual|real)",
    rf"{LEAD}{SELF}{ADVERB} (?:answer|address) (?:the|your)(?: \w+)? question",
    rf"{LEAD}(?:one more time|once more|once again|from the top)\s*[:.,!—–-]",
    r"the (?:actual|original|real) (?:question|task|topic) (?:was|is)\b",
    rf"{LEAD}(?:forget|ignore|enough) (?:about )?(?:the|of|all)\b(?! above)",
    r"(?:that|it) was a mistake\b",
]
