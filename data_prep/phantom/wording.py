"""Phrases of radiology reports. `{loc}` is the place, `{size}` the size; one line of a table is drawn per report."""

from __future__ import annotations

FINDING = {
    "tumour": (
        "There is a heterogeneous mass in the {loc} measuring {size} with surrounding vasogenic oedema.",
        "Space-occupying lesion in the {loc}, {size}, with a broad zone of perifocal oedema and local mass effect.",
        "{Loc}: irregular intra-axial tumour, {size} in diameter, surrounded by oedema.",
        "An ill-defined intra-axial neoplasm of {size} is seen in the {loc}; perilesional white matter signal change.",
    ),
    "stroke": (
        "There is a territorial signal abnormality involving cortex and white matter of the {loc}, {size}, consistent "
        "with infarction.",
        "Wedge-shaped lesion of cortex and subcortical white matter in the {loc} ({size}), in keeping with an "
        "ischaemic infarct.",
        "{Loc}: cortical and subcortical hyperintensity of {size}, typical of recent ischaemia.",
        "Area of infarcted brain in the {loc}, {size} in extent, with gyral swelling.",
    ),
    "plaques": (
        "Several confluent white matter plaques in the {loc}, the largest {size}, of demyelinating appearance.",
        "Multiple ovoid T2 hyperintense white matter lesions cluster in the {loc}; the largest measures {size}.",
        "{Loc}: cluster of demyelinating plaques up to {size}, with satellites nearby.",
        "Multifocal demyelination is present in the white matter of the {loc} (largest plaque {size}).",
    ),
    "haemorrhage": (
        "There is an intraparenchymal haematoma in the {loc} measuring {size} with a thin rim of oedema.",
        "Intracerebral haemorrhage in the {loc}, {size}, with T1 shortening of subacute blood products.",
        "{Loc}: parenchymal bleed of {size}, T1 bright and T2 dark, early subacute.",
        "A focus of blood is seen in the {loc}, {size}, surrounded by a little oedema.",
    ),
    "metastasis": (
        "There is a rounded solid lesion in the {loc} measuring {size}, suspicious for metastasis.",
        "{Loc}: focal T2 hyperintense mass of {size}, most likely a secondary deposit.",
        "A metastatic deposit of {size} is seen in the {loc}.",
        "Focal liver lesion in the {loc}, {size}, with features of a metastasis.",
    ),
    "cyst": (
        "There is a simple cyst of the {loc} measuring {size}.",
        "{Loc}: well-defined fluid-filled lesion of {size}, a simple cyst.",
        "Thin-walled renal cyst arising from the {loc}, {size}.",
        "A cystic lesion of {size} without septa is seen in the {loc}.",
    ),
}

DIAGNOSIS = {
    "tumour": (
        "Mass in the {loc}, most in keeping with a primary brain tumour.",
        "Findings suspicious for high-grade glioma of the {loc}.",
        "{Loc}: tumour with oedema; neurosurgical referral suggested.",
        "Intra-axial neoplasm in the {loc}.",
    ),
    "stroke": (
        "Infarct in the {loc}.",
        "Recent ischaemic stroke involving the {loc}.",
        "{Loc}: infarction, probably subacute.",
        "Ischaemic lesion of the {loc}; consider embolic source.",
    ),
    "plaques": (
        "Demyelinating plaques in the {loc}, suggestive of multiple sclerosis.",
        "Findings in keeping with MS; lesion load mainly in the {loc}.",
        "Inflammatory demyelination of the {loc}.",
        "White matter lesions of the {loc}, typical of demyelination.",
    ),
    "haemorrhage": (
        "Intraparenchymal haemorrhage in the {loc}.",
        "Subacute haematoma of the {loc}.",
        "{Loc}: bleed with mild perifocal oedema.",
        "Intracerebral haemorrhage, {loc}.",
    ),
    "metastasis": (
        "Metastasis in the {loc}.",
        "Suspicious liver lesion in the {loc}, likely metastatic.",
        "{Loc}: secondary deposit.",
        "Hepatic metastatic disease, {loc}.",
    ),
    "cyst": (
        "Simple cyst of the {loc}.",
        "Benign renal cyst, {loc}.",
        "{Loc}: Bosniak I cyst, no follow-up needed.",
        "Uncomplicated cortical cyst of the {loc}.",
    ),
}

ENHANCES = {
    "tumour": ("There is avid ring enhancement after contrast.", "Thick irregular rim enhancement post gadolinium."),
    "stroke": ("No abnormal enhancement.", "Contrast series add nothing of note."),
    "plaques": ("Faint enhancement of some plaques, suggesting activity.", "Mild plaque enhancement after contrast."),
    "haemorrhage": ("No enhancing component.", "No pathological enhancement beyond the T1 bright blood."),
    "metastasis": ("Moderate peripheral enhancement.", "The lesion enhances less than the liver centrally."),
    "cyst": ("The cyst does not enhance.", "No enhancing nodule."),
}
RESTRICTS = {
    "tumour": ("No true diffusion restriction of the core.", "Diffusion is facilitated in the oedema."),
    "stroke": ("Marked diffusion restriction with low ADC.", "DWI bright and ADC dark, i.e. restricted diffusion."),
    "plaques": ("No restricted diffusion.", "ADC of the plaques is raised."),
    "haemorrhage": ("Low ADC due to blood products.", "Susceptibility from blood hampers DWI."),
    "metastasis": ("Mild restriction on DWI.", "The lesion is moderately bright at b1000."),
    "cyst": ("Free diffusion within the cyst.", "High ADC throughout."),
}

ABSENT = {
    "tumour": ("No mass lesion.", "No space-occupying lesion.", "No evidence of tumour."),
    "stroke": ("No acute infarct.", "No evidence of recent ischaemia.", "Diffusion abnormalities are not evident."),
    "plaques": ("No demyelinating lesions.", "White matter is otherwise unremarkable.", "No plaques seen."),
    "haemorrhage": ("No intracranial haemorrhage.", "No evidence of bleeding.", "No blood products."),
    "metastasis": ("No focal liver lesion.", "The liver is free of metastases.", "No hepatic mass."),
    "cyst": ("No renal cyst.", "Both kidneys without cystic change.", "The kidneys are free of cysts."),
}
NORMAL_HEAD = (
    "Brain parenchyma shows normal signal throughout; no focal lesion.",
    "No focal parenchymal abnormality.",
    "No mass, haemorrhage or infarct.",
    "Grey and white matter are unremarkable without focal signal change.",
)
NORMAL_ABDOMEN = (
    "Liver and kidneys without focal lesion.",
    "No focal lesion of the solid organs.",
    "Homogeneous signal of liver, spleen and both kidneys.",
    "No suspicious hepatic or renal finding.",
)
NORMAL_HEAD_IMPRESSION = (
    "No focal intracranial lesion.",
    "No acute intracranial abnormality.",
    "No evidence of focal brain disease.",
    "Unremarkable brain parenchyma.",
)
NORMAL_ABDOMEN_IMPRESSION = (
    "No focal lesion of the abdominal organs.",
    "Unremarkable MRI of the upper abdomen.",
    "No evidence of metastatic disease.",
    "Normal appearances of liver and kidneys.",
)

ATROPHY = (
    (
        "Ventricles and sulci are of normal size for age.",
        "No significant volume loss; ventricles are slim.",
        "CSF spaces are age-appropriate.",
        "Normal ventricular calibre. No atrophy.",
    ),
    (
        "Mild generalised atrophy with mildly widened ventricles.",
        "CSF spaces mildly enlarged, in keeping with mild volume loss.",
        "There is mild cerebral involution with slight ventricular dilatation.",
        "Mild global brain volume loss.",
    ),
    (
        "Marked generalised atrophy with clearly dilated ventricles.",
        "Severe cerebral volume loss; ventricles and sulci are markedly widened.",
        "Advanced involutional change with pronounced ex vacuo ventriculomegaly.",
        "Ventricles markedly enlarged ex vacuo, severe global atrophy.",
    ),
)
ATROPHY_IMPRESSION = (
    ("No atrophy beyond age.", "Normal brain volume."),
    ("Mild cerebral atrophy.", "Mild generalised volume loss."),
    ("Marked cerebral atrophy.", "Severe generalised volume loss."),
)

SINUS = (
    "Opacification of the {side} maxillary sinus.",
    "The {side} maxillary antrum is filled with fluid and swollen mucosa.",
    "Incidental {side} maxillary sinusitis with complete opacification.",
    "Mucosal disease fills the {side} maxillary sinus.",
)
SINUS_IMPRESSION = (
    "Incidental {side} maxillary sinus disease.",
    "{Side} maxillary sinusitis.",
    "Opacified {side} maxillary sinus.",
)
SINUS_CLEAR = (
    "Paranasal sinuses are clear.",
    "Sinuses well aerated.",
    "No sinus disease.",
    "Visualised paranasal sinuses and mastoids are unremarkable.",
)

FILLER_HEAD = (
    "Midline structures are centred.",
    "Major flow voids are preserved.",
    "Orbits are unremarkable.",
    "The craniocervical junction is normal.",
    "Pituitary of normal size.",
    "Calvarium and scalp unremarkable.",
)
FILLER_ABDOMEN = (
    "Spleen of normal size.",
    "No free fluid.",
    "The aorta is of normal calibre.",
    "No enlarged lymph nodes.",
    "Gallbladder without stones.",
    "Lumbar spine without destructive change.",
)

HISTORY_HEAD = ("headache", "dizziness", "gait disturbance", "memory complaints", "transient numbness", "syncope",
                "visual disturbance", "follow-up", "first seizure", "weakness")  # fmt: skip
HISTORY_ABDOMEN = ("abdominal pain", "raised liver enzymes", "weight loss", "staging", "follow-up",
                   "unclear ultrasound finding", "haematuria")  # fmt: skip

HEADINGS = (
    ("HISTORY:", "TECHNIQUE:", "FINDINGS:", "IMPRESSION:"),
    ("Clinical information:", "Technique:", "Findings:", "Impression:"),
    ("INDICATION:", "PROCEDURE:", "REPORT:", "CONCLUSION:"),
    ("Clinical history:", "Protocol:", "Findings:", "Conclusion:"),
    ("Indication:", "Examination:", "Findings:", "Opinion:"),
)

AMERICAN = (
    ("tumour", "tumor"), ("Tumour", "Tumor"), ("oedema", "edema"), ("haemorrhag", "hemorrhag"),
    ("Haemorrhag", "Hemorrhag"), ("haematoma", "hematoma"), ("Haematoma", "Hematoma"), ("Grey", "Gray"),
    ("grey", "gray"), ("ischaemi", "ischemi"), ("Ischaemi", "Ischemi"), ("centred", "centered"), ("calibre", "caliber"),
    ("generalised", "generalized"), ("Visualised", "Visualized"), ("haematuria", "hematuria"),
)  # fmt: skip

SHORTHAND = (
    ("in keeping with", "c/w"), ("consistent with", "c/w"), ("measuring", "meas."), ("without", "w/o"),
    (" with ", " w/ "), ("No evidence of", "No e/o"), ("approximately", "approx."), ("white matter", "WM"),
)  # fmt: skip
