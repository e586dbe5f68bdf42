"""Training data: files to records, records to token ids with a loss mask.

records.py        JSONL, JSON arrays, Parquet (plain or gzip) -> one dict per example, named by file and line
samples.py        what a record means: messages, prompt/completion, alpaca, ShareGPT, text -> samples
conversation.py   messages -> token ids, with loss on what the assistant says
dataset.py        samples of all files, and what happened to the examples on the way
"""

from .dataset import Dataset, load_dataset
from .samples import Sample, samples_from_record

__all__ = ["Dataset", "Sample", "load_dataset", "samples_from_record"]
