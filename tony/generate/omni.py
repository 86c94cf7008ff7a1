"""A released model, whole: conversations in, answers out, with pictures and sounds on both sides."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tony.data.world.tasks import SPEAK
from tony.errors import TonyError
from tony.generate import script
from tony.generate.engine import Engine, Request
from tony.generate.release import find_release, is_imported
from tony.model.config import ModelConfig
from tony.model.files import load_model
from tony.tokens.chat import Audio, Image, Message, Speech, Text, decode_reply, encode_messages
from tony.tokens.codec import SAMPLE_RATE
from tony.tokens.sound import to_samples
from tony.tokens.tokenizer import Tokenizer

VOICES = (1, 2)  # registered voices: rows of the codec's voice table that belong to a name
VOICE_NAMES = {"heart": 1, "michael": 2}
LONGEST_SOUND = 20.0  # seconds
WARMING = 32 + 4 + 1  # tokens of sound: a piece of each length that sounds are cut into
SPEECH_TEMPERATURE = 0.3  # greedy codes can fall into a held vowel
PICTURE_TEMPERATURE = 0.3  # greedy codes give the washed-out middle of all drawings; at 0.5 more of them are wrong


class Omni:
    """An engine and its tokenizer; made by `Omni.load`."""

    def __init__(self, engine: Engine, directory: Path | None = None):
        self.engine, self.directory = engine, directory

    @classmethod
    def load(cls, directory: Path | str, slots: int = 16, max_length: int | None = None, warm: bool = True) -> "Omni":
        """The model of a run's folder, or of a release folder itself; TonyError if it is not there or damaged."""
        directory = Path(directory)
        release = find_release(directory)
        if is_imported(release):
            from tony.exchange.imported import ImportedModel

            return ImportedModel.open(release, directory, slots, max_length, warm)
        config, params = load_model(release)
        tokenizer = Tokenizer.load(release / "tokenizer")
        known = tokenizer.vocabulary.padded_size
        if known > config.vocab_size:
            raise TonyError(
                f"{release}: the network has {config.vocab_size} tokens, its tokenizer {known}; "
                "they are not of the same model: copy the whole folder again"
            )
        for table in {"embedding", "unembedding"}.intersection(params):
            params[table] = params[table][:known]  # a recipe may ask for rows that no token has
        config = replace(config, vocab_size=known)
        return cls(Engine(config, params, tokenizer, slots, max_length, VOICES, warm), directory)

    def warm(self) -> None:
        """Compile what pictures and sounds need in every shape there is, so that no request ever waits for it.

        The engine compiles its own shapes when it is made. Codecs compile theirs for one picture and for a batch, at
        both sizes, and for the few lengths of pieces that sounds are cut into.
        """
        from tony.tokens.image import SIZES

        image, audio = self.tokenizer.image, self.tokenizer.audio
        for count, size in itertools.product((1, 2), SIZES):
            image.decode(image.encode(np.zeros((count, size, size, 3), np.uint8)))
        silence = np.zeros(WARMING * audio.sample_rate // audio.tokens_per_second, np.float32)
        audio.decode(audio.encode(silence), VOICES[0])

    @property
    def tokenizer(self) -> Tokenizer:
        """Text tokenizer and codecs."""
        return self.engine.tokenizer

    @property
    def config(self) -> ModelConfig:
        """The network's shape."""
        return self.engine.config

    @property
    def modalities(self) -> dict[str, list[str]]:
        """What it reads, as "input", and answers with, as "output": its vocabulary has tokens for no more."""
        vocab = self.tokenizer.vocabulary
        sound, picture = (["audio"] if vocab.audio else []), (["image"] if vocab.image else [])
        films = ["video"] if picture else []
        return {"input": ["text", *picture, *sound, *films], "output": ["text", *sound, *picture]}

    @property
    def voices(self) -> dict[str, int]:
        """The registered voices that it speaks with, by name."""
        return VOICE_NAMES if self.tokenizer.vocabulary.audio else {}

    def prompt(self, messages: Sequence[Message], modality: str | None) -> list[int]:
        """The stream of a conversation with the reply opened."""
        return encode_messages(
            messages, self.tokenizer.vocabulary, self.tokenizer.text, open_reply=True, modality=modality
        )

    def request(
        self,
        messages: Sequence[Message],
        modality: str | None = None,
        voice: int = 1,
        thinking: bool = True,
        temperature: float | None = None,
        **sampling,
    ) -> Request:
        """A request for the answer, with or without leave to think first.

        `modality` None lets the model choose between text and a picture; `temperature` None takes the likeliest words,
        and draws the codes of speech and pictures at SPEECH_TEMPERATURE and PICTURE_TEMPERATURE.
        """
        if temperature is None:
            sampling |= {"speech_temperature": SPEECH_TEMPERATURE, "image_temperature": PICTURE_TEMPERATURE}
        allowed = {
            None: {"text", "image"},
            "text": {"text"},
            "audio": {"audio"},
            "image": {"image"},
        }.get(modality)
        if allowed is None:
            raise TonyError(f"output modality {modality!r} is unknown; expected text, audio, image, or None")
        return Request(
            prompt=self.prompt(messages, modality),
            modalities=frozenset(allowed | ({"think"} if thinking and modality != "image" else set())),
            voice=voice,
            image_size=32,
            temperature=temperature or 0.0,
            **sampling,
        )

    def speaking(self, text: str, voice: int = 1, temperature: float | None = None, seed: int = 0) -> Request:
        """A request to say just these words; `tony.data.world.sentences.spoken_form` puts any text into words."""
        request = self.request(
            [Message("user", (Text(SPEAK.format(text)),))], "audio", voice, False,
            max_tokens=512, temperature=temperature, seed=seed,
        )  # fmt: skip
        request.script = script.runs_of(text, self.tokenizer.text, self.tokenizer.vocabulary)
        return request

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        modality: str | None = None,
        max_tokens: int = 256,
        temperature: float | None = None,
        seed: int = 0,
        top_p: float = 1.0,
    ) -> list[Message]:
        """The answer to each conversation; number i draws with seed + i."""
        requests = [
            self.request(
                messages, modality, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed + index
            )
            for index, messages in enumerate(conversations)
        ]
        return [self.message(completion.tokens) for completion in self.engine.generate(requests)]

    def say(self, texts: Sequence[str], voices: Sequence[int], seed: int = 0) -> list[Message]:
        """Each text read aloud, as it stands, in its voice; number i draws with seed + i."""
        requests = [
            self.speaking(text, voice, seed=seed + index)
            for index, (text, voice) in enumerate(zip(texts, voices, strict=True))
        ]
        return [self.message(completion.tokens) for completion in self.engine.generate(requests)]

    def message(self, tokens: Sequence[int]) -> Message:
        """The answer that generated tokens are, as far as they go."""
        return decode_reply(tokens, self.tokenizer.vocabulary, self.tokenizer.text, strict=False)

    # --------------------------------------------------------------------------------------------- media

    def _refuse_unread(self, kind: str) -> None:
        read = self.modalities["input"]
        if kind not in read:
            raise TonyError(f"this model reads {', '.join(read)} alone; it was given {kind}")

    def image_part(self, picture, size: int = 32) -> Image:
        """A picture (file bytes, PIL image or uint8 [h, w, 3]) as part of a message."""
        self._refuse_unread("image")
        from tony.tokens.image import to_pixels

        return Image(tuple(map(int, self.tokenizer.image.encode(to_pixels(picture, size)[None])[0])))

    def audio_part(self, samples: np.ndarray, rate: int = SAMPLE_RATE) -> Audio:
        """A sound (float [n] or [n, channels]) as part of a message."""
        self._refuse_unread("audio")
        return Audio(tuple(map(int, self.tokenizer.audio.encode(to_samples(samples, rate, LONGEST_SOUND)))))

    def pixels(self, image: Image) -> np.ndarray:
        """uint8 [h, w, 3]."""
        return self.tokenizer.image.decode(np.array([image.codes]))[0]

    def samples(self, sound: Speech | Audio) -> np.ndarray:
        """float32 [n] at 16 kHz."""
        return self.tokenizer.audio.decode(np.array(sound.codes), voice=getattr(sound, "voice", 0))

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()
