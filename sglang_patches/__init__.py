"""The only room that names SGLang attributes: plugin, hooks, actuators and the CPU platform."""
