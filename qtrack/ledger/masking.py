"""Secrets do not belong in a record: they are masked in all text that is written or printed."""

from __future__ import annotations

import os
import re

MASK = "***"
SECRET_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "DATABRICKS_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "HF_TOKEN",
)

_WORDS = "password|passwd|pwd|secret|api[_-]?key|access[_-]?key(?:[_-]id)?|auth[_-]?key|token|credential"
_NAME = rf"(?<![\w-])(?:--)?[\w-]*(?:{_WORDS})[\"']?"  # tokenizer and max_tokens are no secrets
_VALUE = r"(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;&{}\[\]]+)"
_PATTERNS = (
    (r"([a-z][\w+.-]*://[^\s/:@'\"]*):[^\s/'\"]*@", rf"\1:{MASK}@"),
    (r"([a-z][\w+.-]*://)[^\s/:@'\"]+@", rf"\1{MASK}@"),
    (rf"(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+){_VALUE}", rf"\1{MASK}"),
    (rf"({_NAME}\s*[:=]\s*){_VALUE}", rf"\1{MASK}"),
    (rf"((?<![\w-])--[\w-]*(?:{_WORDS})\s+)(?!-){_VALUE}", rf"\1{MASK}"),
    (r"\b(?:gh[pousr]_|github_pat_|hf_|sk-|dapi|xox[abp]-|AKIA|ASIA)[A-Za-z0-9_-]{12,}", MASK),
)
_SECRET_NAME = re.compile(rf"[\w-]*(?:{_WORDS})", re.IGNORECASE)
PATTERNS = tuple((re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in _PATTERNS)


def is_secret(name: str) -> bool:
    """Is this the name of something that must not be told?"""
    return _SECRET_NAME.fullmatch(name) is not None


def mask_secrets(text: str) -> str:
    """The text without passwords in URIs, values named like secrets, known tokens, the environment's own."""
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= 4:
            text = text.replace(value, MASK)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text
