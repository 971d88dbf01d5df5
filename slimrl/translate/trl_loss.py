"""TRL's loss: surrogate, average over tokens, penalties, and the correction for another sampler."""

from __future__ import annotations

from collections.abc import Iterator

from slimrl.translate.trl_counts import Counts
from slimrl.translate.values import Keyed, Values

AVERAGES = {
    "grpo": "sequence_mean", "dr_grpo": "fixed_length", "bnpo": "microbatch_token_mean", "dapo": "token_mean",
    "cispo": "token_mean", "sapo": "sequence_mean", "luspo": "fixed_length",
}  # fmt: skip
"""Aggregations by `loss_type`."""
UNBOUNDED = 1e9
"""Written where TRL has no bound and SlimRL needs one."""


def loss_settings(trl: Values, counts: Counts) -> Iterator[Keyed]:
    """The surrogate with its clips, and the average over tokens."""
    kind, level = str(trl.values["loss_type"]), str(trl.values["importance_sampling_level"])
    surrogate = {"cispo": "cispo", "sapo": "sapo"}.get(kind, "gspo" if level == "sequence" else "clip")
    if kind not in AVERAGES:
        trl.leave("loss_type", kind, "there is no such loss here; TRL's default, dapo, is written")
    average = _average(kind, counts)
    if average == "microbatch_token_mean":
        tokens = counts.microbatch * trl.whole("max_completion_length")
        why = "bnpo depends on the split"
        yield trl.set("optimizer.microbatch_tokens", tokens, "per_device_train_batch_size", why=why)
    if kind == "luspo":
        trl.leave("loss_type", kind, "the loss is divided by max_completion_length here, a constant")
    if level == "sequence" and surrogate in ("cispo", "sapo"):
        trl.leave("importance_sampling_level", level, f"{surrogate} takes the ratio of each token here")
    yield trl.set("algorithm.surrogate", surrogate, "loss_type", "importance_sampling_level")
    yield trl.set("algorithm.aggregation", average, "loss_type")
    yield from _clips(trl, surrogate)
    trl.read |= {"epsilon", "epsilon_high", "delta", "sapo_temperature_pos", "sapo_temperature_neg"}


def _average(kind: str, counts: Counts) -> str:
    average = AVERAGES.get(kind, "token_mean")
    if average == "microbatch_token_mean" and counts.microbatches == 1:
        return "token_mean"  # one micro-batch is the whole update
    return average


def _clips(trl: Values, surrogate: str) -> Iterator[Keyed]:
    low = trl.number("epsilon")
    high = trl.number("epsilon_high") if "epsilon_high" in trl.given else low
    if surrogate == "cispo":  # TRL bounds the ratio by epsilon_high itself, and only from above
        if high < 1:
            trl.leave("epsilon_high", f"{high:g}", "it would weigh every token below 1; 1 is written")
        yield trl.set("algorithm.clip_low", 1.0, "loss_type", why="no lower bound")
        why = "a ratio of epsilon_high at most"
        yield trl.set("algorithm.clip_high", max(0.0, high - 1), "epsilon_high", why=why)
    elif surrogate == "sapo":
        yield trl.set("algorithm.sapo_up", trl.number("sapo_temperature_pos"), "sapo_temperature_pos")
        yield trl.set("algorithm.sapo_down", trl.number("sapo_temperature_neg"), "sapo_temperature_neg")
    else:
        yield trl.set("algorithm.clip_low", low, "epsilon")
        yield trl.set("algorithm.clip_high", high, "epsilon_high" if "epsilon_high" in trl.given else "epsilon")
        if "delta" in trl.given:
            yield trl.set("algorithm.dual_clip", trl.number("delta"), "delta")


def penalty_settings(trl: Values, counts: Counts) -> Iterator[Keyed]:
    """KL, scaling of rewards, masks and entropy."""
    average = _average(str(trl.values["loss_type"]), counts)
    scale = str(trl.values["scale_rewards"]).lower()
    yield trl.set("algorithm.scale_rewards", {"true": "group", "false": "none"}.get(scale, scale), "scale_rewards")
    together = trl.values["multi_objective_aggregation"] == "normalize_then_sum"
    yield trl.set("algorithm.normalize_components", together, "multi_objective_aggregation")
    yield from _divergence(trl, counts)
    name = "mask_truncated_completions"
    masked = trl.values[name] is True
    yield trl.set("algorithm.overlong_filtering", masked, name)
    if masked and average in ("token_mean", "microbatch_token_mean"):
        reason = (
            "the tokens of truncated completions are not counted there and stay in the average here: where they are half of "
            "all tokens, the loss is half as large"
        )
        trl.leave(name, True, reason)
    yield from _entropy(trl, average)


def _divergence(trl: Values, counts: Counts) -> Iterator[Keyed]:
    beta, name = trl.number("beta"), "use_bias_correction_kl"
    yield trl.set("algorithm.kl_coef", beta, "beta")
    trl.read.add(name)
    if not beta:
        return
    if not trl.values[name]:
        yield trl.set("algorithm.kl_estimator", "k3", name)
        return
    yield trl.set("algorithm.kl_estimator", "k3_k2", name, why="older TRL: k3")
    shown = trl.values[name] if name in trl.given else "true, TRL's default"
    if trl.values["importance_sampling_level"] == "sequence":
        reason = (
            "k3 is multiplied by the ratio of the whole completion there, so each token has its gradient and a share of the "
            "completion's; k3_k2 knows no ratio"
        )
        trl.leave(name, shown, reason)
    elif counts.updates_there > 1:
        reason = (
            f"k3 times the ratio has the gradient of k3_k2 at a ratio of 1, so in the first of {counts.updates_there} updates; "
            "later each token's is multiplied by its ratio there and not here"
        )
        trl.leave(name, shown, reason)


def _entropy(trl: Values, average: str) -> Iterator[Keyed]:
    """Entropy, whose bonus is a mean over tokens there and has the weights of the loss here."""
    coefficient, share = trl.number("entropy_coef"), trl.number("top_entropy_quantile")
    yield trl.set("algorithm.entropy_coef", coefficient, "entropy_coef")
    yield trl.set("algorithm.entropy_share", share, "top_entropy_quantile")
    if not coefficient:
        return
    if average == "fixed_length":
        limit = trl.whole("max_completion_length")
        reason = (
            f"a mean over tokens there; here a completion's sum is divided by {limit}, so the bonus is weaker by the "
            f"mean length / {limit}: for the same one set {coefficient * limit:g} / the mean length"
        )
        trl.leave("entropy_coef", f"{coefficient:g}", reason)
    elif average == "sequence_mean":
        reason = (
            "a mean over all tokens there; here each completion counts the same, so tokens of short ones count more"
        )
        trl.leave("entropy_coef", f"{coefficient:g}", reason)
    if share < 1:
        reason = f"the bonus acts on the chosen {share:g} of the tokens alone there, and on every token here"
        trl.leave("entropy_coef", f"{coefficient:g}", reason)


def sampler_settings(trl: Values) -> Iterator[Keyed]:
    """The correction for a sampler other than the trainer."""
    switch, mode, bound, old, least = (
        f"vllm_importance_sampling_{end}" for end in ("correction", "mode", "clip_max", "cap", "clip_min")
    )
    trl.read |= {switch, mode, bound, old}
    if trl.given.get("use_vllm") is not True or trl.values[switch] is not True:
        return
    level, _, way = str(trl.values[mode]).partition("_")
    cap = trl.given.get(old, trl.values[bound])
    why = "SlimRL samples with the trained module, so rounding alone is corrected"
    yield trl.set("algorithm.importance", way, switch, mode, why=why)
    yield trl.set("algorithm.importance_level", level, mode)
    unbounded = "null there: no bound" if cap is None else ""
    yield trl.set("algorithm.importance_cap", UNBOUNDED if cap is None else cap, bound, old, why=unbounded)
    if way == "mask" and least not in trl.given and cap is not None:
        reason = "no weight is too small there; here those below 1 / algorithm.importance_cap are left out too"
        trl.leave(least, "none", reason)
