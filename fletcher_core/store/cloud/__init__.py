"""A store on object storage: a working copy on this machine, and in the bucket all that counts.

The segments, and a log of the manifest's changes, are in the bucket; the working copy is an ordinary store's folder
that follows the log, and can be deleted while nobody uses it.
"""
