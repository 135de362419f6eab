"""Videos, lists, sampling, transforms, loaders. Stands on paths and errors; never imports models, config or engine.

This file imports nothing: `revvideo.data.manifest` must work where torch is not installed (a login node).
"""
