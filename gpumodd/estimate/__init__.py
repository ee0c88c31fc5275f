"""Bytes and mappings in, memory out: what a model will need before it has ever run.

Owns arithmetic only. It opens no file and asks no program: `config/model_files.py` reads, this package reckons.
"""
