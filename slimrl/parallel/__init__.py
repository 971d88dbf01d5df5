"""One run on several devices. The leader, rank 0, runs `slimrl train` as one process does; the other ranks follow.

    leader    problems -> Draw    ->  completions -> rewards -> groups -> Update  -> log, checkpoints
    followers             sample their share                              gradient of their share, the same step

Whole groups are dealt for sampling (`sampler`), micro-batches for everything that the learner computes
(`Microbatcher.own`), and sums over ranks are the same on all, so all take the same steps. A follower knows the settings, the
model and what it is told (`follow`); it writes nothing.
"""
