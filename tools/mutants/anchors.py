"""Search for the expressions that mutants change. A function and a pattern define each expression.

A pattern is source text in which `$name` matches a variable, with or without attributes, and
`$*name` matches any tokens of one statement with balanced brackets. Spaces, line breaks and
comments are ignored. So patterns still match after formatting or after variables are renamed:

>>> replace("def f(n):  # halves\\n    return (n\\n        + 1) // 2\\n", "f", "$n + 1", "$n")
'def f(n):  # halves\\n    return (n) // 2\\n'
"""

import hashlib
import keyword
import re
from typing import NamedTuple

KEYWORDS = {*keyword.kwlist, "cdef", "cimport", "cpdef", "sizeof"} - {"False", "None", "True"}
WILDCARD = re.compile(r"\$\*?\w+")
TOKEN = r"""
    (?P<comment>COMMENT)
  | (?P<string>[a-zA-Z]{0,2}(?:\"\"\"[\s\S]*?\"\"\"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
  | (?P<number>0[xX][0-9a-fA-F.]+(?:[pP][+-]?\d+)?\w*|\.?\d[\d_.]*(?:[eE][+-]?\d+)?\w*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<wildcard>\$\*?\w+)
  | (?P<other><<=|>>=|\*\*=|//=|->|\.\.\.|[-+*/%&|^<>=!:]=|<<|>>|\*\*|//|&&|\|\||\+\+|\S)
"""
PYTHON, C = (
    re.compile(TOKEN.replace("COMMENT", comment), re.VERBOSE)
    for comment in (r"\#[^\n]*|\\\n", r"//[^\n]*|/\*[\s\S]*?\*/|\\\n")
)
OPEN, CLOSE = set("([{"), set(")]}")


class Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int
    first: bool  # whether the token is the first one of its line


def tokens(text, syntax, start=0, end=None):
    """Return the tokens of text[start:end], without comments."""
    found, previous = [], start
    for match in syntax.finditer(text, start, len(text) if end is None else end):
        if match.lastgroup != "comment":
            first = "\n" in text[previous : match.start()]
            found.append(Token(match.lastgroup, match[0], match.start(), match.end(), first))
            previous = match.end()
    return found


# ---- functions --------------------------------------------------------------------------------


def python_blocks(text, name, start, end):
    """Yield (start, end) of each function, class, struct or table with this name."""
    definition = re.compile(
        rf"""^([ ]*)(?:(?:async[ ]+)?(?:def|class)[ ]+{name}\b
                    | (?:cdef|cpdef|ctypedef)\b[^=(\n]*\b{name}\b[ ]*[(:=]
                    | {name}\b[^=\n(]*=(?!=))""",
        re.MULTILINE | re.VERBOSE,
    )
    for match in definition.finditer(text, start, end):
        inside = re.compile(rf"(?:\n(?:[ ]*(?=\n)|{match[1]}(?:[ ]+|(?=[)\]}}]))\S[^\n]*))*")
        line_end = text.find("\n", match.end())
        yield match.start(), inside.match(text, line_end if line_end >= 0 else end, end).end()


def c_blocks(text, name, start, end):
    """Yield (start, end) of each function, macro or table with this name."""
    for match in re.compile(rf"^[^\s/][^\n;=]*\b{name}\b", re.MULTILINE).finditer(text, start, end):
        if match[0].startswith("#"):
            macro = re.compile(r"(?:[^\n]*\\\n)*[^\n]*").match(text, match.end())
            if match[0].startswith("#define"):
                yield match.start(), macro.end()
            continue
        depth = 0
        for token in tokens(text, C, match.end(), end):
            depth += (token.text == "{") - (token.text == "}")
            if depth == 0 and token.text in ";}":
                if token.text == "}":
                    yield match.start(), token.end
                break


def blocks_of(text, function, syntax):
    """Return (start, end) of each definition of `function` or `Class.method` in the text."""
    blocks = [(0, len(text))]
    find = C_FIND if syntax is C else PYTHON_FIND
    for name in filter(None, function.split(".")):
        blocks = [inner for start, end in blocks for inner in find(text, name, start, end)]
    return blocks


C_FIND, PYTHON_FIND = c_blocks, python_blocks


# ---- patterns ---------------------------------------------------------------------------------


def ends_of_names(source, at):
    """Return the ends of the names, with and without attributes, at a token, longest first."""
    ends = []
    if source[at].kind == "name" and source[at].text not in KEYWORDS:
        ends.append(at + 1)
        while (
            ends[-1] + 1 < len(source)
            and source[ends[-1]].text in (".", "->")
            and source[ends[-1] + 1].kind == "name"
        ):
            ends.append(ends[-1] + 2)
    return reversed(ends)


def ends_of_balanced(source, at):
    """Yield the ends of the balanced sequences that begin at a token, shortest first."""
    depth = 0
    for end in range(at, len(source)):
        token = source[end]
        depth += (token.text in OPEN) - (token.text in CLOSE)
        if depth < 0 or depth == 0 and (token.text == ";" or (token.first and end > at)):
            return
        if depth == 0:
            yield end + 1


def match(pattern, source, at, bound):
    """Return (end, values of the wildcards) of a match that begins at a token, or None."""
    if not pattern:
        return at, bound
    if at == len(source):
        return None
    wanted = pattern[0]
    if wanted.kind != "wildcard":
        if wanted.text != source[at].text:
            return None
        return match(pattern[1:], source, at + 1, bound)
    any_tokens = wanted.text.startswith("$*")
    ends = list(ends_of_balanced(source, at) if any_tokens else ends_of_names(source, at))
    if any_tokens and len(pattern) == 1:
        ends.reverse()  # a wildcard at the end of a pattern prefers the longest match
    for end in ends:
        texts = [token.text for token in source[at:end]]
        if bound.get(wanted.text, texts) == texts:
            found = match(pattern[1:], source, end, {**bound, wanted.text: texts})
            if found:
                return found
    return None


def matches(text, function, pattern, syntax=PYTHON):
    """Return (start, end, values of the wildcards) of each match within a function."""
    wanted, found = tokens(pattern, syntax), []
    for start, end in blocks_of(text, function, syntax):
        source = tokens(text, syntax, start, end)
        for at in range(len(source)):
            if at and source[at - 1].text in (".", "->"):
                continue  # the match would begin within a name with attributes
            matched = match(wanted, source, at, {})
            if matched:
                last, bound = matched
                values = {}
                for name in bound:
                    values[name] = " ".join(bound[name])
                found.append((source[at].start, source[last - 1].end, values))
    return found


def replace(text, function, pattern, replacement, number=None, syntax=PYTHON):
    """Return the text with one match replaced: the only one, or match `number` (from 1).

    Raise LookupError unless there is exactly one match or, if `number` is given, at least `number`.
    """
    found = matches(text, function, pattern, syntax)
    if len(found) != 1 if number is None else len(found) < number:
        raise LookupError(f"{function}: {len(found)} matches of {pattern}")
    start, end, bound = found[(number or 1) - 1]
    new = WILDCARD.sub(lambda name: bound[name[0]], replacement)
    if not tokens(replacement, syntax):
        new = "pass" if syntax is PYTHON else ""
    return text[:start] + new + text[end:]


def digest(text, function, change, syntax=PYTHON):
    """Return a hash of a function and a change, without formatting, comments and docstrings."""
    words = [
        token.text
        for start, end in blocks_of(text, function, syntax)
        for token in tokens(text, syntax, start, end)
        if not token.text.startswith('"""')
    ]
    return hashlib.sha256(repr((words, change)).encode()).hexdigest()[:12]
