"""One vocabulary over all modalities: `[specials | text | image | audio]`, padded for the matrix units."""

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

from tony.errors import TonyError
from tony.files import write_json

ROLES = ("system", "developer", "user", "assistant", "tool")
OUTPUTS = ("text", "audio", "image")  # what `<mod_...>` may ask for
IMAGE_TOKENS = {"image32": 16, "image64": 64}  # codes after each header: pictures of 32x32 and 64x64
FRAME_TOKENS = IMAGE_TOKENS["image32"]  # a video frame is a small picture
TIMES = 32  # `<t0>`.. name frame times in steps of
TIME_STEP = 0.25  # seconds
PAD_TO = 128  # the embedding's rows are a multiple of it, as matrix units want


@dataclass(frozen=True)
class Vocabulary:
    """Sizes of the four ranges; everything else follows from them. Ids never move when a codec is trained again."""

    text_size: int
    image_size: int
    audio_size: int
    voices: int = 16

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise TonyError(f"vocabulary {field.name} is {value!r}; expected a whole number of at least 1")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the special tokens, in order of their ids.

        `cut` marks what an interrupted listener did not hear, `null` the absent condition of classifier-free
        guidance, `listen speak yield backchannel` turns of a live call, and `next` parts two texts in a row.
        """
        return (
            *("bos", "pad", "end", *ROLES, "think", "think_end"),
            *(*IMAGE_TOKENS, "image_end", "video", "frame", *(f"t{i}" for i in range(TIMES)), "video_end"),
            *("audio", "audio_end", "speech", *(f"voice{i}" for i in range(self.voices))),
            *("call", "args", "result", "next", "null", "cut", "listen", "speak", "yield", "backchannel"),
            *(f"mod_{name}" for name in OUTPUTS),
        )

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def special(self, name: str) -> int:
        """Id of a special token by its name without brackets, such as "end" or "voice3"; KeyError if there is none."""
        return self._ids[name]

    @cached_property
    def text(self) -> range:
        """Ids of the text tokens."""
        return range(len(self.names), len(self.names) + self.text_size)

    @cached_property
    def image(self) -> range:
        """Ids of the picture codes, also used in video frames."""
        return range(self.text.stop, self.text.stop + self.image_size)

    @cached_property
    def audio(self) -> range:
        """Ids of the sound codes."""
        return range(self.image.stop, self.image.stop + self.audio_size)

    @property
    def size(self) -> int:
        """Number of ids that mean something."""
        return self.audio.stop

    @property
    def padded_size(self) -> int:
        """Rows of the embedding: `size` rounded up to a multiple of PAD_TO. The rows past `size` are never used."""
        return -(-self.size // PAD_TO) * PAD_TO

    def name(self, token: int) -> str:
        """How a token is written in messages: `<end>`, `text:17`, `image:3`, `audio:512`."""
        if 0 <= token < len(self.names):
            return f"<{self.names[token]}>"
        for kind in OUTPUTS:
            if token in getattr(self, kind):
                return f"{kind}:{token - getattr(self, kind).start}"
        return f"outside:{token}"

    def save(self, path: Path) -> None:
        """Write the sizes, and the special tokens' names for other programs, as JSON."""
        write_json(Path(path), {**asdict(self), "specials": self.names})

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read what `save` wrote; TonyError if it is missing, damaged or of another version's special tokens."""
        try:
            stored = json.loads(Path(path).read_text())
            vocabulary = cls(**{field.name: stored[field.name] for field in fields(cls)})
            names = tuple(stored["specials"])
        except FileNotFoundError:
            raise TonyError(f"{path} is missing; a tokenizer folder needs it: export the model again") from None
        except (ValueError, KeyError, TypeError) as error:
            raise TonyError(f"{path} is damaged ({error}); copy it again or export the model again") from None
        if names != vocabulary.names:
            other = next((a for a, b in zip(names, vocabulary.names, strict=False) if a != b), "their number")
            raise TonyError(f"{path} has other special tokens than this version of Tony (first: {other}); train again")
        return vocabulary
