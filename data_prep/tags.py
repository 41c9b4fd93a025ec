"""The header elements that are read, by DICOM keyword; nothing else of a header is looked at."""

from __future__ import annotations

from pydicom.tag import BaseTag

SCAN_TAGS = (
    "Manufacturer",
    "MagneticFieldStrength",
    "ScanningSequence",
    "SequenceVariant",
    "ScanOptions",
    "MRAcquisitionType",
    "AcquisitionMatrix",
    "SequenceName",
    "PulseSequenceName",
    "ImageType",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "EchoTrainLength",
    "EchoNumbers",
    "AngioFlag",
    "AcquisitionContrast",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "StudyDescription",
    "DiffusionBValue",
    "ContrastBolusAgent",
    "ContrastBolusVolume",
    "SeriesDescription",
    "ProtocolName",
    "BodyPartExamined",
    "SpacingBetweenSlices",
    "SliceThickness",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "PatientAge",
    "PatientSex",
    "RescaleSlope",
    "RescaleIntercept",
)
"""How the image was acquired."""
PEOPLE_TAGS = (
    "PatientName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "ResponsiblePerson",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "NameOfPhysiciansReadingStudy",
    "PhysiciansOfRecord",
    "RequestingPhysician",
    "ScheduledPerformingPhysicianName",
    "ConsultingPhysicianName",
)
"""Names of persons: reports are scrubbed of them."""
NUMBER_TAGS = (
    "PatientID",
    "OtherPatientIDs",
    "AccessionNumber",
    "StudyID",
    "PatientTelephoneNumbers",
    "RequestedProcedureID",
    "AdmissionID",
    "FillerOrderNumberImagingServiceRequest",
    "PlacerOrderNumberImagingServiceRequest",
    "DeviceSerialNumber",
)
"""Numbers and other identifiers: reports are scrubbed of them."""
PLACE_TAGS = (
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
    "PatientAddress",
    "CurrentPatientLocation",
    "ReferringPhysicianAddress",
    "IssuerOfPatientID",
)
"""Institutions, stations and addresses: reports are scrubbed of them."""
DATE_TAGS = (
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "PatientBirthDate",
    "InstanceCreationDate",
    "PerformedProcedureStepStartDate",
)
"""Dates: reports are scrubbed of them."""
OTHER_TAGS = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "SamplesPerPixel",
    "PixelSpacing",
    "ImageOrientationPatient",
    "BurnedInAnnotation",
    "ConversionType",
)
"""What an image needs to be one."""
PRIVATE_B_VALUES = (BaseTag(0x0019100C), BaseTag(0x00651009))
"""B-value elements of Siemens and United Imaging."""
PRIVATE_TECHNIQUES = {"ge": BaseTag(0x0019109C), "philips": BaseTag(0x20011020)}
"""Elements in which GE and Philips name the pulse sequence, by a word of the manufacturer's name."""
