"""Personal data in texts: e-mail addresses, card numbers and telephone numbers, found by patterns and masked."""

import re


def luhn(digits):
    """Whether the last of the `digits`, a text, is the check digit of the others (Luhn 1960), as in card numbers."""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d // 10 + d % 10 for d in doubled) % 10 == 0


EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
CARD = re.compile(r"(?<![\w.+-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
DATE = re.compile(r"\b(?:\d{4}([-./])\d?\d\1\d?\d|(?:[0-2]?\d|3[01])([-./])(?:0?\d|1[0-2])\2(?:\d\d){1,2})\b(?![-.]\d)")
PHONE = re.compile(r"(?<![\w/.+-])[+(]{0,2}\d+(?:(?:[ .-]\(?|\(|\)[ .-]?)\d+)*(?![\w/]|-\w)")
CALL = re.compile(r"\b(?:phone|tel|telephone|mobile|cell|call|ring|text|fax|whatsapp)\b\W*(?:[a-z']+\W+){0,3}$", re.I)


def is_card(written):
    """13 to 19 digits whose last one is the check digit, in one piece or grouped as on cards."""
    groups, digits = [len(part) for part in re.split("[ -]", written)], re.sub(r"\D", "", written)
    usual = [len(digits)], [4, 4, 4, 4], [4, 6, 5], [4, 4, 4, 4, 3]
    return 13 <= len(digits) <= 19 and groups in usual and luhn(digits)


def is_phone(written, before):
    """7 to 15 digits that begin with + or 0, or have an area in brackets or the groups 3-3-4, or, in the text that
    stands `before`, a word like "call"."""
    groups, digits = [len(part) for part in re.findall(r"\d+", written)], re.sub(r"\D", "", written)
    formed = written[0] in "+(" or digits[0] == "0" and len(digits) >= 9 or groups in ([3, 3, 4], [1, 3, 3, 4])
    return 7 <= len(digits) <= 15 and (formed or bool(CALL.search(before[-60:])))


def find_personal(text):
    """E-mail addresses, card numbers and telephone numbers in a text: [(start, end, "EMAIL", "CARD" or "PHONE")]."""
    found, rest = [], text
    for kind, pattern in (("EMAIL", EMAIL), ("CARD", CARD), ("DATE", DATE), ("PHONE", PHONE)):
        for match in pattern.finditer(rest):
            start, end = match.span()
            if kind == "CARD":  # an expiry date or a security code may follow it, with a blank between
                ends = [end, *(start + gap.start() for gap in [*re.finditer("[ -]", match[0])][::-1])]
                end = next((end for end in ends if is_card(rest[start:end])), None)
            if end is None or kind == "PHONE" and not is_phone(match[0], text[:start]):
                continue
            found.append((start, end, kind))
            rest = rest[:start] + "x" * (end - start) + rest[end:]  # what is known is not read as something else
    return sorted(one for one in found if one[2] != "DATE")


def mask_personal(text):
    """The text with [EMAIL], [CARD] and [PHONE] in the places that `find_personal` finds."""
    for start, end, kind in reversed(find_personal(text)):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    return text
