"""What is decided and refused before the first step: model, task, memory plan, doctor, settings without effect."""
