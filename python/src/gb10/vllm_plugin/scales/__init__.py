"""The scales of an NVFP4 layer between vLLM's loader and its kernels, on every platform.

A checkpoint has one global scale for each projection, and vLLM's kernels take one for each layer, of which
several projections may be parts. What the loader has put into a layer is brought into the form that vLLM
expects without changing a weight, and input scales that the checkpoint lacks are chosen.
"""
