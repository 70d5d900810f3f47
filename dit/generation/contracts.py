"""Requests and answers in the forms of others: OpenAI's images endpoint, Cog, SageMaker, and Bedrock's Titan body."""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dit.errors import nearest, shortened
from dit.generation.asking import Ask, Menu, Refused
from dit.generation.service import Made

Names = Mapping[str, str]  # the fields of a contract, and what they are here
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("prompt", "negative", "sampler", "size"), ((str,), "a text")),
    **dict.fromkeys(("n", "seed", "steps", "width", "height"), ((int,), "a whole number")),
    "scale": ((int, float), "a number"),
}
OPENAI: Names = {
    "prompt": "prompt", "n": "n", "size": "size", "seed": "seed", "steps": "steps", "guidance_scale": "scale",
    "negative_prompt": "negative", "sampler": "sampler",
}  # fmt: skip
COG: Names = {
    "prompt": "prompt", "num_outputs": "n", "width": "width", "height": "height", "seed": "seed",
    "num_inference_steps": "steps", "guidance_scale": "scale", "negative_prompt": "negative", "scheduler": "sampler",
}  # fmt: skip
TITAN_TEXT: Names = {"text": "prompt", "negativeText": "negative"}
TITAN: Names = {
    "numberOfImages": "n", "width": "width", "height": "height", "cfgScale": "scale", "seed": "seed",
}  # fmt: skip
# Fields of a contract that this server has one way for, and their allowed values; None: any value, which is not used.
FIXED_OPENAI: dict[str, Sequence[Any] | None] = {
    "response_format": ("b64_json",), "output_format": ("png",), "quality": ("auto", "standard"),
    "background": ("auto", "opaque"), "moderation": ("auto",), "style": (), "stream": (False,),
    "user": None, "model": None,
}  # fmt: skip


def translated(
    fields: Mapping[str, Any], names: Names, fixed: Mapping[str, Sequence[Any] | None], where: str = ""
) -> dict[str, Any]:
    """Returns the fields of a request by their names here, without those that are null. Raises Refused for an unknown
    field and for a value of another type."""
    found = {}
    for field, value in fields.items():
        name = f"{where}{field}"
        if value is None:
            continue
        if field in fixed:
            allowed = fixed[field]
            if allowed is not None and value not in allowed:
                remedy = f"; it may be {', '.join(map(repr, allowed))}" if allowed else "; leave it out"
                raise Refused(f"{name}={shortened(repr(value))} is not supported{remedy}", parameter=name)
        elif field not in names:
            reason = f"{shortened(name)}: there is no such field.{nearest(field, [*names, *fixed])}"
            raise Refused(reason, code="unknown_parameter", parameter=shortened(name))
        else:
            kinds, what = TYPES[names[field]]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise Refused(f"{name}={shortened(repr(value))} must be {what}", parameter=name, code="invalid_type")
            found[names[field]] = value
    return found


def ask_of(found: Mapping[str, Any], menu: Menu) -> Ask:
    """Returns what is asked for, with the server's defaults for what is not given, and a random seed. Raises Refused
    without a prompt."""
    if "prompt" not in found:
        raise Refused("the prompt is missing: say what to draw", code="missing_parameter", parameter="prompt")
    width, height = menu.sizes[0]
    size = (int(found.get("width", width)), int(found.get("height", height)))
    if (text := found.get("size", "auto")) != "auto":
        parts = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text, re.ASCII)
        if parts is None:
            raise Refused(f"size={shortened(text)!r} must be WIDTHxHEIGHT or auto", parameter="size")
        size = (int(parts[1]), int(parts[2]))
    n = found.get("n", 1)
    return Ask(
        prompt=found["prompt"],
        seed=found["seed"] if "seed" in found else secrets.randbelow(2**31),
        n=n,
        steps=found.get("steps", menu.steps),
        scale=float(found.get("scale", menu.scale)),
        sampler=found.get("sampler", next(iter(menu.samplers))),
        size=size,
        negative=found.get("negative"),
    )


def section(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns a nested group of fields; an empty one if it is absent. Raises Refused for another value."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise Refused(f"{name}={shortened(repr(value))} must be an object", code="invalid_type", parameter=name)
    return value or {}


def texts(made: Made) -> list[str]:
    return [base64.b64encode(picture).decode() for picture in made.pictures]


def read_openai(body: Mapping[str, Any], menu: Menu, model: str) -> Ask:
    asked = body.get("model")
    if asked is not None and asked != model:
        reason = f"model={shortened(repr(asked))}: this server has {model!r}"
        raise Refused(reason, 404, "model_not_found", "model")
    return ask_of(translated(body, OPENAI, FIXED_OPENAI), menu)


def write_openai(ask: Ask, made: Made) -> dict[str, Any]:
    data = [{"b64_json": text, "seed": seed} for text, seed in zip(texts(made), made.seeds, strict=True)]
    return {"created": int(time.time()), "output_format": "png", "data": data, "cost": dict(made.cost)}


def openai_error(refused: Refused) -> dict[str, Any]:
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(refused.status, "invalid_request_error")
    kind = "server_error" if refused.status >= 500 else kind
    return {"error": {"message": refused.reason, "type": kind, "param": refused.parameter, "code": refused.code}}


def read_cog(body: Mapping[str, Any], menu: Menu, model: str) -> Ask:
    if unknown := [name for name in body if name not in ("id", "input", "created_at", "output_file_prefix")]:
        raise Refused(f"{shortened(unknown[0])} is not supported; give input", code="unknown_parameter")
    return ask_of(translated(section(body, "input"), COG, {}, "input."), menu)


def write_cog(ask: Ask, made: Made) -> dict[str, Any]:
    return {
        "status": "succeeded",
        "output": [f"data:image/png;base64,{text}" for text in texts(made)],
        "metrics": {"predict_time": made.seconds, **made.cost},
        "seeds": list(made.seeds),
        "error": None,
    }


def cog_error(refused: Refused) -> dict[str, Any]:
    return {"status": "failed", "output": None, "error": refused.reason, "code": refused.code}


def read_titan(body: Mapping[str, Any], menu: Menu, model: str) -> Ask:
    task = body.get("taskType")
    if task != "TEXT_IMAGE":
        raise Refused(f"taskType={shortened(repr(task))} is not supported; use TEXT_IMAGE", parameter="taskType")
    for name in body:
        if name not in ("taskType", "textToImageParams", "imageGenerationConfig"):
            raise Refused(f"{shortened(name)}: there is no such field", code="unknown_parameter")
    found = translated(section(body, "textToImageParams"), TITAN_TEXT, {}, "textToImageParams.")
    config = section(body, "imageGenerationConfig")
    return ask_of(found | translated(config, TITAN, {"quality": ("standard",)}, "imageGenerationConfig."), menu)


def write_titan(ask: Ask, made: Made) -> dict[str, Any]:
    return {"images": texts(made), "error": None}


def titan_error(refused: Refused) -> dict[str, Any]:
    return {"message": refused.reason}


def read_sagemaker(body: Mapping[str, Any], menu: Menu, model: str) -> Ask:
    """Reads a Titan body, or {"inputs": TEXT, "parameters": {...}}, or the fields of OpenAI's endpoint."""
    if "taskType" in body:
        return read_titan(body, menu, model)
    if "inputs" not in body:
        return ask_of(translated(body, OPENAI, {}), menu)
    if unknown := [name for name in body if name not in ("inputs", "parameters")]:
        raise Refused(f"{shortened(unknown[0])} is not supported; give inputs and parameters", code="unknown_parameter")
    parameters = translated(section(body, "parameters"), {**COG, **OPENAI}, {}, "parameters.")
    return ask_of(parameters | translated({"inputs": body["inputs"]}, {"inputs": "prompt"}, {}), menu)


def write_sagemaker(ask: Ask, made: Made) -> dict[str, Any]:
    return {"images": texts(made), "seeds": list(made.seeds), "cost": dict(made.cost), "error": None}


@dataclass(frozen=True)
class Contract:
    """The form of a request, of its answer, and of an error. invalid: the HTTP status of a request at fault."""

    read: Callable[[Mapping[str, Any], Menu, str], Ask]
    write: Callable[[Ask, Made], dict[str, Any]]
    error: Callable[[Refused], dict[str, Any]]
    invalid: int = 400


CONTRACTS = {
    "openai": Contract(read_openai, write_openai, openai_error),
    "cog": Contract(read_cog, write_cog, cog_error, invalid=422),
    "sagemaker": Contract(read_sagemaker, write_sagemaker, titan_error),
    "titan": Contract(read_titan, write_titan, titan_error),
}
