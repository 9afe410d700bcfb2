"""Two thousand sentences that a tokenizer can get wrong, the same in every run."""

import random

from lora_tutorial.data.sources import load_task

MARKS = list("\u0301\u0308\u20dd\u200d\ufe0f\u00ad\u0007\ufffd\u200b\x0b\x85")
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028"]
ODD = """
naïve café Ångström ÉLÉPHANT İstanbul ﬁne ŒUVRE ß ẞ ΣΊΣΥΦΟΣ Москва ёлка 日本語 東京タワー 한국어 हिन्दी ไทย
עִבְרִית العَرَبِيَّة 😀 👩‍🚀 🏳️‍🌈 🇩🇪 ½ x² №5 don't U.S.A. state-of-the-art 3.14 1,000,000 £5 e-mail@x.org
#tag a_b [MASK] [SEP] [CLS] [pad] [UNK] ##ing ¿qué? «oui» “so” — … ⁇ ‽ ℵ𝒜𝓑 ｆｕｌｌ ａ！ 〇 㐀 𠀀 ﷺ ᾳ Ǆ 🧿
"""
LONG = ["a" * 100, "a" * 101, "é" * 100, "un" * 60, "super" * 9 + "docious", "ab" * 49 + "😀"]


def sentences(count=2000):
    """Snippets of reviews; most of them with odd words, marks and spaces put in at random."""
    draw = random.Random(0)
    texts = [str(text) for text in load_task("reviews").data["train"]["text"]]
    odd = ODD.split()
    found = [*odd, *LONG, *texts[:400], "", " ", "\u0301", "\u00ad", "[SEP]", "𝒜" * 101]
    while len(found) < count:
        words = draw.choice(texts).split(" ")
        for _ in range(draw.randint(1, 5)):
            at = draw.randrange(len(words) + 1)
            word = draw.choice(draw.choice([odd, odd, LONG, [chr(draw.randrange(0x20, 0xD7FF))]]))
            cut = draw.randrange(len(word) + 1)
            words.insert(at, word[:cut] + draw.choice(["", "", *MARKS]) + word[cut:])
        found.append("".join(word + draw.choice(SPACES if draw.random() < 0.3 else [" "]) for word in words))
    return found[:count]
