"""What happens to pictures between the sampler and their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dit.generation.asking import Refused
from dit.generation.policy import Decision, refusal
from dit.generation.work import Job


class Delivery:
    """Delivers every picture as it is. A subclass overrides what it needs: checks, marks, a signature, a log.

    `check_model` is called first, once for each model and size of pictures. The others are called in the order in which
    they stand here, those with jobs with a batch, the rest with one picture. Calls may come from several threads, one
    at a time, and those of two batches may alternate. A picture that is refused is not written; its row in the table
    says why. fingerprint: identifies all that decides what is delivered; an unfinished folder is continued only with
    the same one.
    """

    fingerprint = ""
    holds = False  # whether pictures wait for a review instead of being delivered

    def check_model(self, about: Mapping[str, Any], size: tuple[int, int]) -> None:
        """Raises ValueError if pictures of a model and a size (width, height) cannot be delivered. about: what the rows
        say of the model."""

    def check_user(self, key: str | None) -> None:
        """Is called with each request to the server. key: the name of its key. Raises Refused for a user who gets no
        pictures."""

    def check_prompts(self, jobs: Sequence[Job]) -> list[list[Decision]]:
        """Returns for each job the decisions about its prompt, before it is sampled; it is refused if one refuses."""
        return [[] for _ in jobs]

    def seeded(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Returns the jobs to sample: with other seeds for a mark in the initial noise. Rows have the original ones."""
        return jobs

    def check_pictures(self, jobs: Sequence[Job], pixels: Tensor) -> list[list[Decision]]:
        """Returns for each of N pictures (N, 3, H, W) uint8 the decisions about it; it is refused if one refuses."""
        return [[] for _ in jobs]

    def mark(self, jobs: Sequence[Job], pixels: Tensor) -> Tensor:
        """Returns the pictures to write, (N, 3, H, W) uint8: changed as little as possible, or as they are."""
        return pixels

    def describe(self, picture: Tensor) -> dict[str, Any]:
        """Returns what the row says of a picture (3, H, W) uint8 as it is written, besides what made it."""
        return {}

    def sign(self, row: Mapping[str, Any], content: bytes) -> bytes:
        """Returns the content of the file to write, PNG, JPEG or WebP. row: what the table will say of the picture."""
        return content

    def log(
        self, row: Mapping[str, Any], decisions: Sequence[Decision], png: bytes | None, facts: Mapping[str, Any]
    ) -> None:
        """Is called with every row of the table, delivered or refused, before its picture is given to the writer.
        decisions: about its prompt and its picture. png: the content of its file, None if it gets none. facts: what is
        known of this making of it, and is not the same the next time: its endpoint, key and cost. After a kill the
        pictures of an unfinished shard are made again, and logged again."""

    def pick_up(self, file: str, key: str | None) -> bytes:
        """Returns the content of a picture that the server held for review, for the user with a key of this name, or
        without keys None; also while the other methods run. Raises Refused if the user has no such picture, or if it is
        not approved."""
        raise Refused("there is no such picture", 404, "not_found")


class Wrapped(Delivery):
    """Does what another delivery does; a subclass adds to it."""

    def __init__(self, inner: Delivery) -> None:
        self.inner, self.fingerprint, self.holds = inner, inner.fingerprint, inner.holds

    def check_model(self, about: Mapping[str, Any], size: tuple[int, int]) -> None:
        self.inner.check_model(about, size)

    def check_user(self, key: str | None) -> None:
        self.inner.check_user(key)

    def check_prompts(self, jobs: Sequence[Job]) -> list[list[Decision]]:
        return self.inner.check_prompts(jobs)

    def seeded(self, jobs: Sequence[Job]) -> Sequence[Job]:
        return self.inner.seeded(jobs)

    def check_pictures(self, jobs: Sequence[Job], pixels: Tensor) -> list[list[Decision]]:
        return self.inner.check_pictures(jobs, pixels)

    def mark(self, jobs: Sequence[Job], pixels: Tensor) -> Tensor:
        return self.inner.mark(jobs, pixels)

    def describe(self, picture: Tensor) -> dict[str, Any]:
        return self.inner.describe(picture)

    def sign(self, row: Mapping[str, Any], content: bytes) -> bytes:
        return self.inner.sign(row, content)

    def log(
        self, row: Mapping[str, Any], decisions: Sequence[Decision], png: bytes | None, facts: Mapping[str, Any]
    ) -> None:
        self.inner.log(row, decisions, png, facts)

    def pick_up(self, file: str, key: str | None) -> bytes:
        return self.inner.pick_up(file, key)


def refusal_text(decisions: Sequence[Decision]) -> str:
    """Returns the rule and the reason of the first decision that refuses, or "" if all allow."""
    found = refusal(decisions)
    if found is None:
        return ""
    return f"policy.{found.rule}: {found.reason}" if found.rule else found.reason
