"""Texts on which two tokenizers are compared: what tokenizers are known to treat differently, in many scripts."""

from __future__ import annotations

import unicodedata

_WORDS = (
    "Hello world",
    "Once upon a time, there was a little girl named Lily.",
    "hello",
    "Sphinx of black quartz, judge my vow: QUIZ, JINX, xylophone.",
    "a",
    "The quick brown fox JUMPS over 13 lazy dogs",
    "I'll don't WE'VE she'd it's O'Neill's rock'n'roll 'tis I'LL",
    "can’t won’t “quoted” ‘single’ — dash – hyphen-ated…",
    "camelCase PascalCase snake_case SCREAMING_CASE kebab-case iPhone McDonald eBay",
    "naïve café résumé Ærøskøbing ß ẞ straße",
)
_SPACES = (
    "",
    " ",
    "  ",
    "   ",
    "    ",
    " leading",
    "  two leading",
    "trailing ",
    "trailing  ",
    " both ",
    "in  the   middle    of",
    "\t",
    "\n",
    "\r\n",
    "\n\n",
    "\n\n\n",
    "\ttab\tand\t\ttabs",
    "line\nline\n\nline",
    "dos\r\nline\r\n\r\nend",
    " \n ",
    "\n \n",
    "  \n\n  x",
    "a\n",
    "\na",
    "no\u00a0break\u202fspace\u3000wide\u2009thin\u200bzero",
    "a\u2028b\u2029c\u0085d",
    " " * 17,
    "x" + " " * 33 + "y",
    "\t" * 9,
    "\n" * 9,
    "def f(x):\n    if x:\n        return  x\n\n\treturn None\n",
)
_NUMBERS = (
    "0",
    "7",
    "42",
    "123",
    "1234",
    "12345678901234567890",
    "3.14159 -2.5e-10 1,000,000.00",
    "2024-02-29T23:59:59Z",
    "192.168.0.1:8080",
    "0xDEADBEEF 0b1010",
    "٠١٢٣ ०१२३ ①②③ ⅣⅫ ½¾ x²³ １２３",
    "a1b2c3 v2.0.1 3rd 50% $9.99 €5 #1 №5",
)
_CODE = (
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } // done",
    '{"key": [1, 2.5, null, true], "text": "a\\"b"}',
    "SELECT * FROM t WHERE a >= 'x' AND b <> 2;",
    "<html><body class='x'>&nbsp;</body></html>",
    "https://example.org/a/b?c=d&e=f#g user@example.com C:\\dir\\file.txt ~/x/../y",
    "$x^2 + \\frac{a}{b} = \\sum_{i=1}^n$",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "...!!!???---===***###",
    "->=>!==//**::&&||<<=",
    "[x](y) **bold** _it_ `c`\n```py\nx\n```",
)
_SCRIPTS = (
    "Привет, мир! ЁЛКА ёлка",
    "Γειά σου Κόσμε ΑΒΓ",
    "שלום עולם",
    "مرحبا بالعالم، كيف الحال؟",
    "नमस्ते दुनिया क्षत्रिय",
    "বাংলা ভাষা",
    "தமிழ் மொழி",
    "ไทยไม่มีช่องว่าง",
    "한국어 텍스트입니다",
    "日本語のテキスト、カタカナとひらがな。",
    "中文文本没有空格，标点“符号”！",
    "Tiếng Việt có dấu",
    "Türkçe İıĞğ İSTANBUL ısı",
    "ქართული ᲥᲐᲠᲗᲣᲚᲘ",
    "Հայերեն",
    "አማርኛ",
    "ខ្មែរ",
    "မြန်မာ",
    "ǅ ǈ ŉ ﬁ ﬂ ﬀ ſ K Å Ω",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐐀𐐨 𠜎𠜱",
    "ÀÉÎ é ñ ü å",
    unicodedata.normalize("NFD", "ÀÉÎ é ñ ü å 각 ệ"),
    "Ａｂｃ ｶﾀｶﾅ ㈱ ℡ ™ ℌ",
)
_SYMBOLS = (
    "🙂 😀😃 👍🏽 👨‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ ✈︎",
    "→ ← ≤ ≥ ≠ ∞ ∑ √ ∂ × ÷ ±",
    "┌─┐│█▓░",
    "a\u0301\u0300 e\u0302 \u200d\u200c\ufeff\u202eabc",
    "\ufffd \ue000 \U000f0000",
    "".join(map(chr, range(0x01, 0x20))),
    "".join(map(chr, range(0x7F, 0x100))),
    "x\x00y\x1by\x7fz",
    # every byte that UTF-8 has: all second bytes, and all first ones
    "".join(map(chr, range(0x100, 0x180))),
    "".join(chr(0x80 + 0x40 * i) for i in range(30)),
    "".join(chr(0x1000 * i + 0x800) for i in range(16) if i != 13),
    "".join(chr(0x10000 + 0x40000 * i) for i in range(4)) + "\U0010fffd",
)
# Texts that look like tokens of the format and are none.
_LOOKALIKES = (
    "<0x41> <0x0A> <0xFF>",
    "[PAD0] [UNK] [CLS] [MASK] [EMPTY_0]",
    "<s> </s> <unk> <pad> <bos> <eos> <mask>",
    "<|im_end|> <|endoftext|> <|eot_id|> <|end|>",
    "<PRE> <EOT> [EOS] [EOT] <end_of_turn>",
    "<|user|>\nHello<|end|>\n<|assistant|>\n",
    "Ġword Ċ ĉ âĢĻ",
    "##ing word</w>",
)

SAMPLE_TEXTS: tuple[str, ...] = _WORDS + _SPACES + _NUMBERS + _CODE + _SCRIPTS + _SYMBOLS + _LOOKALIKES


def texts_around(token: str) -> list[str]:
    """Texts in which a special token stands beside everything that it could swallow, be a part of, or change."""
    return [
        token,
        f"{token}Hello",
        f"Hello{token}",
        f"Hello {token} world",
        f"a  {token}  b",
        f"{token}\nHello",
        f"Hello\n{token}\n\n",
        f"{token}{token}",
        f"x{token}y",
        f"1{token}2",
        f" {token} ",
        f"{token} {token}\t{token}",
        f"({token})",
        f"é{token}é",
        token.upper(),
        token.lower(),
    ]
