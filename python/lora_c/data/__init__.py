"""Training data: files or what is in memory to records, records to token ids with a loss mask.

splits.py         which files of a folder are meant: those of the training, the validation or the test split; globs.py
streams.py        bytes and text of a file, plain or gzip, a piece at a time; standard_input.py
records.py        files -> one dict per example, named by file and line; json_records.py, tables.py (CSV, Parquet) do it
in_memory.py      iterables, DataFrames and sets of the package datasets -> one dict per example, named by its number
columns.py        columns of other names; known_columns.py: which names data sets have, for the way out of errors
samples.py        what a record means: messages, prompt/completion, alpaca, ShareGPT, text -> samples
labelled.py       texts with labels, for classifiers; label_values.py: what a label may be; found_labels.py: which there are
conversation.py   messages -> token ids, with loss on what the assistant says
text_pieces.py    a text file -> token pieces of one length
loader.py         examples -> the samples of a data set
loading.py        all of it together: load_dataset
dataset.py        samples, and what happened to the examples on the way; shown.py shows some
lengths.py        how long the samples are; duplicates.py: which are in training and held-out data
fits.py           whether samples fit a model
"""

from .dataset import Dataset
from .found_labels import find_labels
from .loading import load_dataset, load_files
from .samples import Sample, samples_from_record
from .splits import FoundFiles, find_files

__all__ = ["Dataset", "FoundFiles", "Sample", "find_files", "find_labels", "load_dataset", "load_files", "samples_from_record"]
