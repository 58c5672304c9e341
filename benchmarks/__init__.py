"""
Benchmarks of nfsrwlock beside other locks, locally and on a real NFS cluster of kernels.

``make bench`` and ``make bench-nfs`` run them, docs/benchmarks.md says what is measured and shows the latest results.

A run is a sequence of *measurements* (one module each) at *places* (a local directory; NFS of one version, with or
without network delay), of *contenders* (the locks). All that is timed happens in processes of their own on the place's
*machines*; this process only conducts. The results are one JSON document, from which table and plot are drawn.
"""
