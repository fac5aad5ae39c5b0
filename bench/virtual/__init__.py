"""SGLang's real scheduler on a virtual clock: arms side by side on a device that is not there."""
