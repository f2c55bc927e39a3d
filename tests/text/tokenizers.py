"""Small tokenizers of the four kinds, each with a text in which a prompt and an answer meet at a space."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = "Grüße! 你好，世界 — naïve café 🚀👩‍🚀 end. Ünïcödé शान्ति \ufffd okay\n\n  two  spaces"


def byte_level() -> Tokenizer:
    """A BPE over bytes with few merges: characters are often split over tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As in Llama 2: words with ▁ for the space, bytes for what the vocabulary lacks, and <s> before every text."""
    words = ["▁", "▁a", "▁b", "c", "▁▁", "ü", "d", "▁Hello", "▁world", "▁end"]
    pieces = ["<unk>", "<s>", "<end>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, ignore_merges=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in ("<unk>", "<s>", "<end>")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram() -> Tokenizer:
    """As in T5: Metaspace over a Unigram model, without a token before a text."""
    words = ["<unk>", "<end>", "▁", "▁Hello", "▁world", "▁end", "▁a", "s", "a", "b", "é"]
    tokenizer = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<end>"])
    return tokenizer


def word_piece() -> Tokenizer:
    pieces = ["[UNK]", "<end>", "do", "n", "'", "t", "##ing", ".", ",", "we", "?", "Hello", "world", "end", "##s", "é"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "<end>"])
    return tokenizer


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt, the tokens that answer it, and the text that they add to it."""

    tokenizer: Tokenizer
    prompt: str
    answer: tuple[int, ...]
    text: str

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: str, *answer: str, text: str) -> Case:
        ids = [tokenizer.token_to_id(token) for token in answer]
        assert None not in ids, answer
        return cls(tokenizer, prompt, tuple(ids), text)


KINDS = {"byte level": byte_level, "byte fallback": byte_fallback, "unigram": unigram, "word piece": word_piece}
TOKENIZERS = {name: make() for name, make in KINDS.items()}
CASES = {
    "byte level": Case.of(TOKENIZERS["byte level"], "Hello", *"Ġ w o r l d Ġ Ã © Ġ e n d".split(), text=" world é end"),
    "byte fallback": Case.of(
        TOKENIZERS["byte fallback"], "Hello", "▁world", "▁", "<0xC3>", "<0xA9>", "▁end", text=" world é end"
    ),
    "unigram": Case.of(TOKENIZERS["unigram"], "Hello", "▁world", "▁", "é", "▁end", text=" world é end"),
    "word piece": Case.of(TOKENIZERS["word piece"], "Hello", "world", "##s", ".", "é", "end", text=" worlds. é end"),
}
