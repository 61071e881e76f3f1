"""German and Spanish restarts."""

from esr_eval.scorers.patterns_english import GAP

_STOP_DE = (
    r"(?:moment(?: mal)?|halt|stopp?|wart(?:e|en sie)(?: mal)?|nein|ups|hoppla|entschuldigung"
    r"|entschuldige|verzeihung|sorry|tut mir leid|oh)\b"
)
_WRONG_DE = (
    r"(?:das|dies|es) (?:stimmt|ist|war) (?:so |ja |leider |gar )*(?:nicht|falsch|ein fehler"
    r"|verkehrt|unsinn)"
)
_STRONG_DE = [
    rf"{_STOP_DE}{GAP}(?:nein{GAP})?(?:{_WRONG_DE}|ich (?:habe|bin|war|muss|fange|beginne"
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

_STOP_ES = (
    r"(?:esper[ae](?:n)?|un momento|un segundo|perd[oó]n(?:a|e)?|disculp[ae]|lo siento|no|ups"
    r"|vaya|oh|ay)\b"
)
_WRONG_ES = (
    r"(?:eso|esto|lo anterior) (?:no (?:es|era|está|estaba|fue)|est[áa]ba? mal"
    r"|es(?:tá)? (?:incorrect\w|mal|un error))"
)
_STRONG_ES = [
    rf"{_STOP_ES}{GAP}(?:no{GAP})?(?:{_WRONG_ES}|me (?:he )?(?:equivo|confund|desvi|despist|lia"
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

STRONG = [*_STRONG_DE, *_STRONG_ES]
WEAK = [*_WEAK_DE, *_WEAK_ES]
