"""Hospital DICOM and reports in, de-identified and verified shards out; every file is accounted for."""
