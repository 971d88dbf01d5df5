"""A teacher: another model in the place of the initial policy, to which the KL penalty draws the policy."""

from __future__ import annotations

from dataclasses import replace

from slimrl.config.sections import ModelConfig
from slimrl.errors import DataError, SettingsError, SlimError
from slimrl.model.loading import load_policy
from slimrl.model.policy import Policy

POLICY_ONLY = ("model.trust_remote_code", "model.pickled_weights")
"""Settings that errors name as a way out, and that act on the policy alone."""


def load_teacher(path: str, policy: Policy, *, name: str) -> Policy:
    """The model at a folder or Hub name, frozen, in the type and on the device of the policy, with outputs for its vocabulary.

    `name` is the policy's own `model.path`. Raises SettingsError or DataError, naming the setting, where `load_policy` would,
    and for another vocabulary.
    """
    dtype = str(policy.model.dtype).removeprefix("torch.")
    device = policy.device.type
    wanted = ModelConfig.model_validate({"path": path, "dtype": dtype, "device": device})
    setting = f"algorithm.reference={path}"
    try:
        teacher = load_policy(wanted)
    except SlimError as error:
        if any(key in str(error) for key in POLICY_ONLY):
            raise DataError(
                f"{setting} needs code of its own or pickled weights, which a teacher cannot have; convert it, or choose another"
            ) from error
        raise type(error)(str(error).replace(f"model.path={path}", setting)) from error
    own, theirs = policy.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if own != theirs:
        token = min(token for token in {*own, *theirs} if own.get(token) != theirs.get(token))
        raise SettingsError(
            f"{setting} has another vocabulary than model.path={name} (token {token!r} is {theirs.get(token)}, not "
            f"{own.get(token)}), so no divergence is defined; choose a teacher of the same family"
        )
    if teacher.head.vocabulary < policy.head.vocabulary:
        raise SettingsError(
            f"{setting} has {teacher.head.vocabulary:,} outputs, fewer than the {policy.head.vocabulary:,} of "
            f"model.path={name}; choose a teacher with as many"
        )
    teacher.model.requires_grad_(False)
    # Outputs beyond the vocabulary, which larger models of a family have, stand for no token.
    return replace(teacher, head=replace(teacher.head, outputs=policy.head.vocabulary))
