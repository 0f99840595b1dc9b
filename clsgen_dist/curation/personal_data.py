"""Personal data by its form: e-mail addresses, telephone, card, account and social security numbers.

Card and account numbers must have valid check digits (Luhn; ISO 13616). Names and addresses have no form, and are not
found: this is a hint, not an anonymisation. Cost: 20 us per 100 words.
"""

from __future__ import annotations

import re

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?!\w)")
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-])")
_ACCOUNT = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?!\w)")
_SOCIAL_SECURITY = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_TELEPHONE = re.compile(
    r"(?<![\w.,+-])(?:\+\d{1,3}[ ./-]?(?:\(?\d{1,4}\)?[ ./-]?){2,5}\d{2,4}"
    r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
)


def personal_data(text: str) -> str | None:
    """The kind of the first personal data found, in words; None without any."""
    if "@" in text and _EMAIL.search(text):
        return "e-mail address"
    if any(_has_luhn_digit(match[0]) for match in _CARD.finditer(text)):
        return "card number"
    if any(_is_account(match[0]) for match in _ACCOUNT.finditer(text)):
        return "account number (IBAN)"
    if _SOCIAL_SECURITY.search(text):
        return "social security number"
    return "telephone number" if _TELEPHONE.search(text) else None


def _has_luhn_digit(written: str) -> bool:
    digits = [int(digit) for digit in re.sub(r"\D", "", written)]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_account(written: str) -> bool:
    code = written.replace(" ", "")
    if not 15 <= len(code) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in code[4:] + code[:4])) % 97 == 1
