"""Turn a corpus into documents, splits, token shards and batches."""
