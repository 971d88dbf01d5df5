"""From a question about switches to an answer with an interval: a study is data, its unit is the training seed."""
