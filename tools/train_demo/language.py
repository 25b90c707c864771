"""The language model in training: Transformers' Gemma 2 inside PaliGemma, fed with image embeddings from anywhere.

Locations are not learned one by one: their rows of the embedding table are the basis of locations.py times a small
matrix, and their targets are bell curves. At export the rows become an ordinary table.
"""

from typing import NamedTuple

import torch
from architecture import LOCATIONS
from locations import HARMONICS, WIDTH, location_basis, soft_targets
from questions import Batch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PaliGemmaForConditionalGeneration
from vocabulary import FIRST_LOCATION

BEHIND_LOCATIONS = FIRST_LOCATION + LOCATIONS


class LocationTable(nn.Module):
    """The embedding table with its location rows in their place."""

    basis: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(WIDTH, width) * (width * HARMONICS) ** -0.5)
        self.register_buffer("basis", location_basis(), persistent=False)

    def forward(self, table_VD: Tensor) -> Tensor:
        """The whole table, [V, D]."""
        return torch.cat([table_VD[:FIRST_LOCATION], self.basis @ self.rows, table_VD[BEHIND_LOCATIONS:]])


class Reading(NamedTuple):
    """What the model says where answers are due: A tokens of all answers of a batch, one after the other."""

    logits_AV: Tensor
    target_A: Tensor
    question_A: Tensor  # to which question a token belongs
    weight_A: Tensor


def read(
    model: PaliGemmaForConditionalGeneration, locations: LocationTable, image_QID: Tensor, batch: Batch
) -> Reading:
    """Logits for every token of every answer; `image_QID` are the image embeddings of each question."""
    table_VD = locations(model.model.language_model.embed_tokens.weight)
    text_QTD = functional.embedding(batch.ids_QT, table_VD) * table_VD.shape[1] ** 0.5
    ahead = torch.ones(image_QID.shape[:2], dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        hidden_QTD = model.model(
            inputs_embeds=torch.cat([image_QID, text_QTD], 1),
            attention_mask=torch.cat([ahead, batch.is_there_QT], 1).long(),
            token_type_ids=torch.cat([~ahead, batch.is_answer_QT], 1).long(),
            use_cache=False,
        ).last_hidden_state[:, image_QID.shape[1] :]
        question_A, place_A = batch.is_answer_QT.nonzero(as_tuple=True)
        logits_AV = functional.linear(hidden_QTD[question_A, place_A - 1], table_VD)
    cap = model.config.text_config.final_logit_softcapping
    weight_Q = batch.is_answer_QT.sum(1).float() ** -0.5  # of each token: long answers count more, but not as long
    return Reading(
        torch.tanh(logits_AV.float() / cap) * cap,
        batch.ids_QT[question_A, place_A],
        question_A,
        weight_Q[question_A],
    )


def answer_loss(reading: Reading, sigma: float) -> Tensor:
    """Weighted cross entropy; a location is right to the degree that it lies near, `sigma` bins being near."""
    logp_AV = reading.logits_AV.log_softmax(-1)
    target_A = reading.target_A
    loss_A = -logp_AV.gather(1, target_A[:, None])[:, 0]
    located_A = is_location(target_A)
    soft = soft_targets((target_A[located_A] - FIRST_LOCATION).float(), sigma)
    blurred = -(soft * logp_AV[located_A, FIRST_LOCATION:BEHIND_LOCATIONS]).sum(-1)
    loss_A = loss_A.masked_scatter(located_A, blurred)
    return (loss_A * reading.weight_A).sum() / reading.weight_A.sum()


def is_location(ids: Tensor) -> Tensor:
    """Whether a token is a `<loc>`."""
    return (ids >= FIRST_LOCATION) & (ids < BEHIND_LOCATIONS)


@torch.no_grad()
def export_table(model: PaliGemmaForConditionalGeneration, locations: LocationTable) -> None:
    """Write the location rows into the model's own table."""
    weight = model.model.language_model.embed_tokens.weight
    weight.copy_(locations(weight))
