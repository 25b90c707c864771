"""Words and grammar of captions: colours and shapes in English, German, French and Spanish.

An adjective is given in the forms its language tells apart, a noun with its gender and plural.
"""

from collections.abc import Callable, Mapping, Sequence
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


def _english(count: int, colour: str, noun: Noun) -> str:
    if count > 1:
        return f"{('two', 'three', 'four')[count - 2]} {colour} {noun.many}"
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {noun.one}"


_GERMAN_STEMS = {
    "red": "rot",
    "orange": "orangefarben",
    "yellow": "gelb",
    "green": "grün",
    "blue": "blau",
    "purple": "violett",
    "black": "schwarz",
    "white": "weiß",
}


def _german(count: int, colour: str, noun: Noun) -> str:
    stem = _GERMAN_STEMS[colour]
    if count > 1:
        return f"{('zwei', 'drei', 'vier')[count - 2]} {stem}e {noun.many}"
    article, ending = {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")}[noun.gender]
    return f"{article} {stem}{ending} {noun.one}"


_FRENCH_COLOURS = {  # masculine, feminine, and their plurals
    "red": ("rouge", "rouge", "rouges", "rouges"),
    "orange": ("orange", "orange", "orange", "orange"),
    "yellow": ("jaune", "jaune", "jaunes", "jaunes"),
    "green": ("vert", "verte", "verts", "vertes"),
    "blue": ("bleu", "bleue", "bleus", "bleues"),
    "purple": ("violet", "violette", "violets", "violettes"),
    "black": ("noir", "noire", "noirs", "noires"),
    "white": ("blanc", "blanche", "blancs", "blanches"),
}
_SPANISH_COLOURS = {
    "red": ("rojo", "roja", "rojos", "rojas"),
    "orange": ("naranja", "naranja", "naranjas", "naranjas"),
    "yellow": ("amarillo", "amarilla", "amarillos", "amarillas"),
    "green": ("verde", "verde", "verdes", "verdes"),
    "blue": ("azul", "azul", "azules", "azules"),
    "purple": ("morado", "morada", "morados", "moradas"),
    "black": ("negro", "negra", "negros", "negras"),
    "white": ("blanco", "blanca", "blancos", "blancas"),
}


def _colour_last(colours: Mapping[str, tuple[str, ...]], numbers: Sequence[str]) -> Callable[[int, str, Noun], str]:
    """The order of French and Spanish: the colour follows its noun and agrees with it."""

    def phrase(count: int, colour: str, noun: Noun) -> str:
        form = (noun.gender == "f") + 2 * (count > 1)
        number = numbers[count] if count > 1 else numbers[noun.gender == "f"]
        return f"{number} {noun.many if count > 1 else noun.one} {colours[colour][form]}"

    return phrase


def _nouns(**given: str) -> dict[str, Noun]:
    return {shape: Noun(*words.split()) for shape, words in given.items()}


LANGUAGES: dict[str, Language] = {
    "en": Language(
        _nouns(
            circle="circle circles",
            square="square squares",
            triangle="triangle triangles",
            star="star stars",
            cross="cross crosses",
            heart="heart hearts",
            diamond="diamond diamonds",
            ring="ring rings",
        ),
        _english,
        " and ",
    ),
    "de": Language(
        _nouns(
            circle="Kreis Kreise m",
            square="Quadrat Quadrate n",
            triangle="Dreieck Dreiecke n",
            star="Stern Sterne m",
            cross="Kreuz Kreuze n",
            heart="Herz Herzen n",
            diamond="Raute Rauten f",
            ring="Ring Ringe m",
        ),
        _german,
        " und ",
    ),
    "fr": Language(
        _nouns(
            circle="cercle cercles m",
            square="carré carrés m",
            triangle="triangle triangles m",
            star="étoile étoiles f",
            cross="croix croix f",
            heart="cœur cœurs m",
            diamond="losange losanges m",
            ring="anneau anneaux m",
        ),
        _colour_last(_FRENCH_COLOURS, ("un", "une", "deux", "trois", "quatre")),
        " et ",
    ),
    "es": Language(
        _nouns(
            circle="círculo círculos m",
            square="cuadrado cuadrados m",
            triangle="triángulo triángulos m",
            star="estrella estrellas f",
            cross="cruz cruces f",
            heart="corazón corazones m",
            diamond="rombo rombos m",
            ring="anillo anillos m",
        ),
        _colour_last(_SPANISH_COLOURS, ("un", "una", "dos", "tres", "cuatro")),
        " y ",
    ),
}


def say(language: str, counted: Sequence[tuple[int, str, str]]) -> str:
    """A list of (count, colour, shape) in words: `two red circles, a blue star and a green ring`."""
    spoken = LANGUAGES[language]
    phrases = [spoken.phrase(count, colour, spoken.nouns[shape]) for count, colour, shape in counted]
    return spoken.last_joint.join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
