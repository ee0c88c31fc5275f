"""Configuration: YAML, environment and templates in; core specs, unit files and problems out.

The one home of pydantic, ruamel.yaml and Jinja2. It reads files and nothing else: it starts no program, asks no
device, and never changes what a running service has.
"""
