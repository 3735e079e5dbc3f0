"""Studies: experiments as YAML files. See `commands.study`."""
