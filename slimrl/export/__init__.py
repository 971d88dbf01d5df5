"""A trained model for other programs: a model card, GGUF for llama.cpp, a Modelfile for Ollama, a repository on the Hub.

Everything is made from the folder of a run: `final/` holds the model, config.yaml and run.json say how it came about and how it
was measured.
"""
