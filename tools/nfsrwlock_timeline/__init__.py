"""Who held what when and who waited for whom, as `NFSRWLOCK_TRACE` had it recorded."""
