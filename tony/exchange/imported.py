"""An imported model, running: what `tony.generate.omni.Omni` is for Tony's own."""

from collections.abc import Sequence
from pathlib import Path

from tony.errors import TonyError
from tony.exchange.text import ImportedTokenizer
from tony.generate.engine import Engine, Request
from tony.generate.omni import Omni
from tony.model.files import load_model
from tony.tokens.chat import Message, Text

CONTEXT = 2048  # tokens that are served where nobody says otherwise: the cache of a long context is large


class ImportedModel(Omni):
    """A model of text alone with its own tokenizer and chat template."""

    tokenizer: ImportedTokenizer  # type: ignore[assignment]

    @classmethod
    def open(cls, release: Path, directory: Path, slots: int, max_length: int | None, warm: bool) -> "ImportedModel":
        """The model of a release folder that `tony import` or a fine-tuning wrote."""
        config, params = load_model(release)
        tokenizer = ImportedTokenizer.load(release / "tokenizer")
        if tokenizer.vocabulary.rows != config.vocab_size:
            raise TonyError(f"{release}: the network and its tokenizer are not of the same model; import it again")
        length = min(config.max_length, max_length or CONTEXT)
        return cls(Engine(config, params, tokenizer, slots, length, (), warm), directory)

    def warm(self) -> None:
        """Nothing: there are no codecs, and the engine compiled its shapes when it was made."""

    def prompt(self, messages: Sequence[Message], modality: str | None = None) -> list[int]:
        """The stream of a conversation with the reply opened, as the model's chat template has it."""
        return self.tokenizer.prompt(messages)

    def request(
        self,
        messages: Sequence[Message],
        modality: str | None = None,
        voice: int = 1,
        thinking: bool = True,
        temperature: float | None = None,
        **sampling,
    ) -> Request:
        """A request for the answer; `voice` and `thinking` mean nothing to these models."""
        if modality not in (None, "text"):
            raise TonyError(f"this model writes text alone; it was asked for {modality}")
        return Request(
            prompt=self.prompt(messages), modalities=frozenset({"text"}), temperature=temperature or 0.0, **sampling
        )

    def message(self, tokens: Sequence[int]) -> Message:
        """The answer that generated tokens are."""
        return Message("assistant", (Text(self.tokenizer.text.decode(tokens)),))
