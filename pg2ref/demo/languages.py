"""Words and grammar of captions: colours and shapes in English, German, French and Spanish.

An adjective is given in the forms its language tells apart, a noun with its gender and plural.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Noun(NamedTuple):
    """A shape: `gender` is m, f or n, or empty where the language has none."""

    one: str
    many: str
    gender: str = ""


class Language(NamedTuple):
    """How to say `two red circles`: each phrase is made of a count, a colour and a shape, given by their keys."""

    nouns: dict[str, Noun]
    phrase: Callable[[int, str, Noun], str]
    last_joint: str  # between the last two of a list; a comma between the others


_SHAPES = {  # singular, plural and gender, in English, German, French and Spanish
    "circle": ("circle circles", "Kreis Kreise m", "cercle cercles m", "círculo círculos m"),
    "square": ("square squares", "Quadrat Quadrate n", "carré carrés m", "cuadrado cuadrados m"),
    "triangle": ("triangle triangles", "Dreieck Dreiecke n", "triangle triangles m", "triángulo triángulos m"),
    "star": ("star stars", "Stern Sterne m", "étoile étoiles f", "estrella estrellas f"),
    "cross": ("cross crosses", "Kreuz Kreuze n", "croix croix f", "cruz cruces f"),
    "heart": ("heart hearts", "Herz Herzen n", "cœur cœurs m", "corazón corazones m"),
    "diamond": ("diamond diamonds", "Raute Rauten f", "losange losanges m", "rombo rombos m"),
    "ring": ("ring rings", "Ring Ringe m", "anneau anneaux m", "anillo anillos m"),
}
_COLOURS = {  # the German stem; in French and Spanish masculine, feminine, and their plurals
    "red": ("rot", "rouge rouge rouges rouges", "rojo roja rojos rojas"),
    "orange": ("orangefarben", "orange orange orange orange", "naranja naranja naranjas naranjas"),
    "yellow": ("gelb", "jaune jaune jaunes jaunes", "amarillo amarilla amarillos amarillas"),
    "green": ("grün", "vert verte verts vertes", "verde verde verdes verdes"),
    "blue": ("blau", "bleu bleue bleus bleues", "azul azul azules azules"),
    "purple": ("violett", "violet violette violets violettes", "morado morada morados moradas"),
    "black": ("schwarz", "noir noire noirs noires", "negro negra negros negras"),
    "white": ("weiß", "blanc blanche blancs blanches", "blanco blanca blancos blancas"),
}


def _english(count: int, colour: str, noun: Noun) -> str:
    if count > 1:
        return f"{('two', 'three', 'four')[count - 2]} {colour} {noun.many}"
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {noun.one}"


def _german(count: int, colour: str, noun: Noun) -> str:
    stem = _COLOURS[colour][0]
    if count > 1:
        return f"{('zwei', 'drei', 'vier')[count - 2]} {stem}e {noun.many}"
    article, ending = {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")}[noun.gender]
    return f"{article} {stem}{ending} {noun.one}"


def _colour_last(column: int, numbers: Sequence[str]) -> Callable[[int, str, Noun], str]:
    """The order of French and Spanish: the colour, from a column of _COLOURS, follows its noun and agrees with it."""

    def phrase(count: int, colour: str, noun: Noun) -> str:
        form = (noun.gender == "f") + 2 * (count > 1)
        number = numbers[count] if count > 1 else numbers[noun.gender == "f"]
        return f"{number} {noun.many if count > 1 else noun.one} {_COLOURS[colour][column].split()[form]}"

    return phrase


def _nouns(column: int) -> dict[str, Noun]:
    return {shape: Noun(*words[column].split()) for shape, words in _SHAPES.items()}


LANGUAGES: dict[str, Language] = {
    "en": Language(_nouns(0), _english, " and "),
    "de": Language(_nouns(1), _german, " und "),
    "fr": Language(_nouns(2), _colour_last(1, ("un", "une", "deux", "trois", "quatre")), " et "),
    "es": Language(_nouns(3), _colour_last(2, ("un", "una", "dos", "tres", "cuatro")), " y "),
}


def say(language: str, counted: Sequence[tuple[int, str, str]]) -> str:
    """A list of (count, colour, shape) in words: `two red circles, a blue star and a green ring`."""
    spoken = LANGUAGES[language]
    phrases = [spoken.phrase(count, colour, spoken.nouns[shape]) for count, colour, shape in counted]
    return spoken.last_joint.join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
