"""Training data: files to records, records to token ids with a loss mask.

splits.py         which files of a folder are meant: those of the training, the validation or the test split
streams.py        bytes and text of a file, plain or gzip, a piece at a time
records.py        files -> one dict per example, named by file and line; json_records.py, tables.py (CSV, Parquet) do it
samples.py        what a record means: messages, prompt/completion, alpaca, ShareGPT, text -> samples
conversation.py   messages -> token ids, with loss on what the assistant says
text_pieces.py    a text file -> token pieces of one length
dataset.py        samples of all files, and what happened to the examples on the way
fits.py           whether samples fit a model
"""

from .dataset import Dataset, load_dataset, load_files
from .samples import Sample, samples_from_record
from .splits import FoundFiles, find_files

__all__ = ["Dataset", "FoundFiles", "Sample", "find_files", "load_dataset", "load_files", "samples_from_record"]
