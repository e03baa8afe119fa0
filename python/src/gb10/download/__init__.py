"""Fetch a model of Hugging Face's hub into its cache: what vLLM reads of it, resumed and compared.

huggingface_hub sends all requests (its session, token, proxies, HF_ENDPOINT) and lays out the cache. What it
lacks is here:

- A download that is killed begins at nothing again: each process of huggingface_hub 2.4.0 writes to a file
  of a new name (`file_download._download_to_tmp_and_move`), because locks do not hold on every file system.
  Ours keeps one name and appends; what came is believed only when its digest is right, so two that write the
  same file where locks do not hold make a damaged one, which is refused.
- The digest that the hub names a file by is never compared with what came.
- Room on the disk is looked at for each file, and then only warned of.

Tests: tests/unit/download. It can go when huggingface_hub resumes across processes and compares digests.
"""
